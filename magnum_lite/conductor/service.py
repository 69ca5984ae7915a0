"""The conductor process: a loop that claims due clusters, and a pool of threads that reconciles
them.

`cli` makes a `Conductor` and calls `run()` in the main thread; `stop()` may be called from a signal
handler. To stop means: claim nothing more, let calls in progress finish for a few seconds, and give
the rest back, due now, for another conductor. Talks to the database only; `watch` and `reconcile`
talk to the cloud.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import threading
import time
import uuid as uuidlib
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from oslo_db import exception as db_exc
from oslo_log import log

from magnum_lite import db, outage, rpc
from magnum_lite.conductor import endpoint, health, reconcile, watch
from magnum_lite.conductor.task import Services, Snapshot

LOG = log.getLogger(__name__)

#: The name that clients of Magnum look for in the list of services.
BINARY = 'magnum-conductor'
#: Seconds between reports that this conductor is alive.
REPORT_INTERVAL_S = 30
#: Expired receipts that are deleted at each report: more pile up only above 33 requests a second.
RECEIPTS_DROPPED = 1000
#: Least seconds between two rounds, when rows are due but no worker is free or another conductor
#: was faster.
SHORTEST_PAUSE_S = 0.2


class Conductor:
    """One conductor. Any number may run, in one process or in many."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._conf = services.conf.conductor
        self._wake = threading.Event()
        self._stopping = threading.Event()
        #: What the pool works on, and the holder of the leases of each.
        self._visits: dict[futures.Future[None], str] = {}
        self._pool = futures.ThreadPoolExecutor(self._conf.workers, thread_name_prefix='visit')
        self._reported_at = float('-inf')
        self._database = outage.Outage(
            'The database', 'Nothing is worked on meanwhile. See [database] connection'
        )

    def stop(self) -> None:
        """Make `run()` return soon. Returns at once; may be called from a signal handler, and
        twice."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Work until `stop()`. While the broker or the database is away, wait for it."""
        LOG.info('Conductor %s has started', self._services.conf.host)
        prober = health.Prober(self._services)
        for name, target, argument in (
            ('rpc', self._listen, self._make_rpc_server),
            ('heat', self._listen, self._make_heat_listener),
            ('health', prober.run, self._stopping),
        ):
            threading.Thread(target=target, args=(argument,), name=name, daemon=True).start()
        while not self._stopping.is_set():
            self._wake.clear()
            pause_s = self._conf.tick
            try:
                self._report()
                pause_s = self.run_round()
                self._database.record_success()
            except db_exc.DBError as e:
                self._database.record_failure(str(e.inner_exception or e))
            except Exception:
                LOG.exception(
                    'No look for due clusters. It is tried again in %s s.', self._conf.tick
                )
            self._wake.wait(pause_s)
        self._shut_down()

    def run_round(self) -> float:
        """Claim what is due, as far as workers are free, and have it reconciled.

        Returns the seconds until the next round, unless a message, or a worker that gets free,
        starts it earlier."""
        free = self._conf.workers - len(self._visits)
        if free <= 0:
            return float(self._conf.tick)
        unstarted_in_s, watched_in_s = db.get_due_in_s(self._services.db)
        if unstarted_in_s <= 0:
            holder = self._make_holder()
            for uuid in db.claim_unstarted(
                self._services.db, holder, limit=free, lease_s=self._conf.lease
            ):
                self._submit(holder, self._reconcile, uuid, {}, False)
        if watched_in_s <= 0:
            holder = self._make_holder()
            watched = db.claim_watched(
                self._services.db,
                holder,
                projects=free,
                lease_s=self._conf.lease,
                horizon_s=self._conf.watch_interval * watch.HORIZON,
            )
            for clusters in group_by_project(watched):
                self._submit(holder, self._check_stacks, clusters)
        return min(max(min(unstarted_in_s, watched_in_s), SHORTEST_PAUSE_S), self._conf.tick)

    def _make_holder(self) -> str:
        """Return a new name for the leases of one claim."""
        return f'{self._services.conf.host}:{os.getpid()}:{uuidlib.uuid4().hex[:8]}'

    def _check_stacks(self, holder: str, clusters: Sequence[db.StackWatch]) -> None:
        """Look at the stacks of one project's clusters, and have those reconciled that need it."""
        if self._release_if_stopping(holder, [cluster.uuid for cluster in clusters]):
            return
        look = watch.check_stacks(self._services, holder, clusters)
        for uuid in look.changed:
            self._submit(holder, self._reconcile, uuid, look.snapshot, look.as_admin)

    def _reconcile(self, holder: str, uuid: str, snapshot: Snapshot, as_admin: bool) -> None:
        if not self._release_if_stopping(holder, [uuid]):
            reconcile.reconcile_leased(self._services, holder, uuid, snapshot, as_admin)

    def _release_if_stopping(self, holder: str, uuids: Sequence[str]) -> bool:
        """Give clusters back, due now, if the conductor is to stop. Returns whether it is."""
        is_stopping = self._stopping.is_set()
        if is_stopping:
            db.release_unchanged(self._services.db, holder, uuids, check_in_s=0)
        return is_stopping

    def _submit(self, holder: str, work: Callable[..., None], *args: Any) -> None:
        """Have a thread of the pool do this with leases of `holder`.

        The pool takes nothing any more after `stop()`; `_shut_down` then gives the leases back."""
        with contextlib.suppress(RuntimeError):
            future = self._pool.submit(work, holder, *args)
            self._visits[future] = holder
            future.add_done_callback(self._end_visit)

    def _end_visit(self, future: futures.Future[None]) -> None:
        self._visits.pop(future, None)
        error = None if future.cancelled() else future.exception()
        if isinstance(error, db_exc.DBError):
            self._database.record_failure(str(error.inner_exception or error))
        elif error:
            LOG.error(
                'A visit broke off; its clusters are due again when their lease is over',
                exc_info=error,
            )
        self._wake.set()

    def _report(self) -> None:
        """Report now and then that this conductor is alive, and delete expired receipts."""
        if time.monotonic() - self._reported_at > REPORT_INTERVAL_S:
            db.report_service(self._services.db, self._services.conf.host, BINARY)
            db.delete_expired_receipts(self._services.db, limit=RECEIPTS_DROPPED)
            self._reported_at = time.monotonic()

    def _make_rpc_server(self) -> Any:
        return rpc.make_server(self._services.conf, endpoint.Endpoint(self._wake, self._services))

    def _make_heat_listener(self) -> Any:
        return watch.make_listener(self._services, self._wake, self._stopping)

    def _listen(self, make: Callable[[], Any]) -> None:
        """Run what `make` returns until the conductor stops; None means that there is nothing to
        run.

        While the broker is away it is tried again, and clusters are found by the regular rounds."""
        broker = outage.Outage(
            'Listening to the broker',
            'Clusters are found at the next tick. See [DEFAULT] '
            'transport_url and [heat_notifications]',
        )
        while not self._stopping.is_set():
            try:
                server = make()
                if server is None:
                    return
                server.start()
            except Exception as e:
                broker.record_failure(str(e))
                self._stopping.wait(self._conf.tick)
                continue
            broker.record_success()
            self._stopping.wait()
            with contextlib.suppress(Exception):
                server.stop()
            return

    def _shut_down(self) -> None:
        """Wait for the calls in progress as long as is configured, and give all leases back."""
        LOG.info('Conductor %s is stopping', self._services.conf.host)
        visits = dict(self._visits)
        self._pool.shutdown(wait=False, cancel_futures=True)
        futures.wait(visits, timeout=self._conf.graceful_shutdown_timeout)
        for holder in set(visits.values()):
            with contextlib.suppress(Exception):
                db.release_all(self._services.db, holder)
        LOG.info('Conductor %s has stopped', self._services.conf.host)


def group_by_project(clusters: Sequence[db.StackWatch]) -> list[list[db.StackWatch]]:
    """Group clusters by project: those of a project share one look at their stacks."""
    by_project = operator.attrgetter('project_id')
    groups = itertools.groupby(sorted(clusters, key=by_project), by_project)
    return [list(group) for _, group in groups]
