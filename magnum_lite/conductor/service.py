"""The conductor process: a loop that claims due clusters, and a pool of threads that visits them.

`run()` is the main thread's; `stop()` may be called from a signal handler. To stop means: claim
nothing more, let calls under way finish for a few seconds, and hand the rest back, due now, for
another conductor."""

from __future__ import annotations

import contextlib
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
from magnum_lite.conductor import endpoint, health, steps, watch

LOG = log.getLogger(__name__)

BINARY = 'magnum-conductor'  # the name that clients of Magnum look for
#: Seconds between reports that this conductor is alive.
REPORT_INTERVAL_S = 30
#: Receipts of requests that are removed at each report: a site would have to ask 33 times a second
#: to outrun this.
RECEIPTS_DROPPED = 1000
#: Seconds between two rounds at least, when rows are due but no worker is free or another conductor
#: is faster.
SHORTEST_PAUSE_S = 0.2


class Conductor:
    """One conductor. Several in one process do no harm, as several processes do none."""

    def __init__(self, services: steps.Services) -> None:
        self._services = services
        self._conf = services.conf.conductor
        self._wake = threading.Event()
        self._stopping = threading.Event()
        #: The visits under way, and the holder of each one's leases.
        self._visits: dict[futures.Future[None], str] = {}
        self._pool = futures.ThreadPoolExecutor(self._conf.workers, thread_name_prefix='visit')
        self._reported_at = float('-inf')
        self._database = outage.Outage(
            'The database', 'Nothing is worked on meanwhile. See [database] connection'
        )

    def stop(self) -> None:
        """Have `run()` come to its end. Returns at once; may be called from a signal handler, and
        twice."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Work until `stop()`. A broker or a database that is away is waited for, not died of."""
        LOG.info('Conductor %s has started', self._services.conf.host)
        for name, make in (('rpc', self._nudges), ('heat', self._notifications)):
            threading.Thread(target=self._listen, args=(make,), name=name, daemon=True).start()
        prober = health.Prober(self._services)
        threading.Thread(
            target=prober.run, args=(self._stopping,), name='health', daemon=True
        ).start()
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._report()
                pause_s = self.round()
                self._database.works()
            except db_exc.DBError as e:
                self._database.failed(str(e.inner_exception or e))
                pause_s = self._conf.tick
            except Exception:
                LOG.exception(
                    'No look for due clusters. It is tried again in %s s.', self._conf.tick
                )
                pause_s = self._conf.tick
            self._wake.wait(pause_s)
        self._shut_down()

    def round(self) -> float:
        """Claim what is due, as far as there are free workers, and have it visited.

        Returns the seconds until the next round, unless a message or a worker that becomes free
        wakes us before."""
        free = self._conf.workers - len(self._visits)
        if free <= 0:
            return float(self._conf.tick)
        fresh_in_s, followed_in_s = db.due_in_s(self._services.db)
        if fresh_in_s <= 0:
            holder = self._holder()
            for uuid in db.claim_unstarted(
                self._services.db, holder, limit=free, lease_s=self._conf.lease
            ):
                self._submit(watch.visit, self._services, holder, uuid, {}, False, self._stopping)
        if followed_in_s <= 0:
            holder = self._holder()
            followed = db.claim_watched(
                self._services.db,
                holder,
                projects=free,
                lease_s=self._conf.lease,
                horizon_s=self._conf.watch_interval * watch.HORIZON,
            )
            for clusters in by_project(followed):
                self._submit(
                    watch.follow, self._services, holder, clusters, self._submit, self._stopping
                )
        return min(max(min(fresh_in_s, followed_in_s), SHORTEST_PAUSE_S), self._conf.tick)

    def _holder(self) -> str:
        return f'{self._services.conf.host}:{os.getpid()}:{uuidlib.uuid4().hex[:8]}'

    def _submit(
        self, work: Callable[..., None], services: steps.Services, holder: str, *args: Any
    ) -> None:
        """Have a thread of the pool do this for leases of `holder`; after `stop()` they are handed
        back instead."""
        with contextlib.suppress(RuntimeError):
            future = self._pool.submit(work, services, holder, *args)
            self._visits[future] = holder
            future.add_done_callback(self._visited)

    def _visited(self, future: futures.Future[None]) -> None:
        self._visits.pop(future, None)
        error = None if future.cancelled() else future.exception()
        if isinstance(error, db_exc.DBError):
            self._database.failed(str(error.inner_exception or error))
        elif error:
            LOG.error(
                'A visit broke off; its clusters are due again when their lease is over',
                exc_info=error,
            )
        self._wake.set()

    def _report(self) -> None:
        if time.monotonic() - self._reported_at > REPORT_INTERVAL_S:
            db.report_service(self._services.db, self._services.conf.host, BINARY)
            db.delete_expired_receipts(self._services.db, limit=RECEIPTS_DROPPED)
            self._reported_at = time.monotonic()

    def _nudges(self) -> Any:
        return rpc.server(self._services.conf, endpoint.Endpoint(self._wake, self._services))

    def _notifications(self) -> Any:
        return watch.listener(self._services, self._wake, self._stopping)

    def _listen(self, make: Callable[[], Any]) -> None:
        """Have messages wake us. While the broker is away, the ticks do."""
        away = outage.Outage(
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
                away.failed(str(e))
                self._stopping.wait(self._conf.tick)
                continue
            away.works()
            self._stopping.wait()
            with contextlib.suppress(Exception):
                server.stop()
            return

    def _shut_down(self) -> None:
        LOG.info('Conductor %s is stopping', self._services.conf.host)
        visits = dict(self._visits)
        self._pool.shutdown(wait=False, cancel_futures=True)
        futures.wait(visits, timeout=self._conf.graceful_shutdown_timeout)
        for holder in set(visits.values()):
            with contextlib.suppress(Exception):
                db.hand_back(self._services.db, holder)
        LOG.info('Conductor %s has stopped', self._services.conf.host)


def by_project(clusters: Sequence[db.StackWatch]) -> list[list[db.StackWatch]]:
    """The clusters of each project: they share one look."""
    projects: dict[str, list[db.StackWatch]] = {}
    for cluster in clusters:
        projects.setdefault(cluster.project_id, []).append(cluster)
    return list(projects.values())
