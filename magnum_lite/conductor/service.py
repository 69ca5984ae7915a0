"""The conductor process: a loop that claims due clusters, and a pool of threads that visits them.

`run()` is the main thread's; `stop()` may be called from a signal handler. To stop means: claim nothing more, let
calls under way finish for a few seconds, and hand the rest back, due now, for another conductor.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid as uuidlib
from collections.abc import Sequence
from concurrent import futures

from oslo_log import log

from magnum_lite import clients, db, errors, models, rpc
from magnum_lite.conductor import endpoint, reconcile, steps

LOG = log.getLogger(__name__)

BINARY = 'magnum-conductor'  # the name that clients of Magnum look for
#: Seconds between reports that this conductor is alive.
REPORT_INTERVAL_S = 30
#: Clusters with a stack that are claimed for each free worker: those of one project share a look.
LOOKS_PER_WORKER = 8
#: Seconds between two rounds at least, when rows are due but no worker is free or another conductor is faster.
SHORTEST_PAUSE_S = 0.2


class Conductor:
    """One conductor. Several in one process do no harm, as several processes do none."""

    def __init__(self, world: steps.World) -> None:
        self._world = world
        self._conf = world.conf.conductor
        self._wake = threading.Event()
        self._stopping = threading.Event()
        #: The visits under way, and the holder of each one's leases.
        self._visits: dict[futures.Future[None], str] = {}
        self._pool = futures.ThreadPoolExecutor(self._conf.workers, thread_name_prefix='visit')
        self._reported_at = float('-inf')

    def stop(self) -> None:
        """Have `run()` come to its end. Returns at once; may be called from a signal handler, and twice."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Work until `stop()`. A broker or a database that is away is waited for, not died of."""
        LOG.info('Conductor %s has started', self._world.conf.host)
        listener = threading.Thread(target=self._listen, name='rpc', daemon=True)
        listener.start()
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._report()
                pause_s = self.round()
            except Exception as e:
                LOG.warning('No look for due clusters: %s. It is tried again in %s s.', e, self._conf.tick)
                pause_s = self._conf.tick
            self._wake.wait(pause_s)
        self._shut_down()

    def round(self) -> float:
        """Claim what is due, as far as there are free workers, and have it visited.

        Returns the seconds until the next round, unless a message or a worker that becomes free wakes us before.
        """
        free = self._conf.workers - len(self._visits)
        if free <= 0:
            return float(self._conf.tick)
        for cluster in self._claim(free, followed=False):
            self._submit([cluster])
        for clusters in by_project(self._claim(free * LOOKS_PER_WORKER, followed=True)):
            self._submit(clusters)
        due_in_s = db.due_in_s(self._world.db)
        return float(self._conf.tick) if due_in_s is None else min(max(due_in_s, SHORTEST_PAUSE_S), self._conf.tick)

    def _claim(self, limit: int, *, followed: bool) -> list[models.Cluster]:
        holder = f'{self._world.conf.host}:{os.getpid()}:{uuidlib.uuid4().hex[:8]}'
        return db.claim(self._world.db, holder, limit=limit, lease_s=self._conf.lease, followed=followed)

    def _submit(self, clusters: Sequence[models.Cluster]) -> None:
        holder = clusters[0].leased_by or ''
        future = self._pool.submit(visit, self._world, holder, clusters, self._stopping)
        self._visits[future] = holder
        future.add_done_callback(self._visited)

    def _visited(self, future: futures.Future[None]) -> None:
        self._visits.pop(future, None)
        if not future.cancelled() and future.exception():
            LOG.error('A visit broke off; its clusters are due again when their lease is over',
                      exc_info=future.exception())
        self._wake.set()

    def _report(self) -> None:
        if time.monotonic() - self._reported_at > REPORT_INTERVAL_S:
            db.report_service(self._world.db, self._world.conf.host, BINARY)
            self._reported_at = time.monotonic()

    def _listen(self) -> None:
        """Have nudges wake us. While the broker is away, the ticks do."""
        while not self._stopping.is_set():
            try:
                server = rpc.server(self._world.conf, endpoint.Endpoint(self._wake))
                server.start()
            except Exception as e:
                LOG.warning('The broker does not answer (%s). Clusters are found every %s s.', e, self._conf.tick)
                self._stopping.wait(self._conf.tick)
                continue
            self._stopping.wait()
            with contextlib.suppress(Exception):
                server.stop()
            return

    def _shut_down(self) -> None:
        LOG.info('Conductor %s is stopping', self._world.conf.host)
        visits = dict(self._visits)
        self._pool.shutdown(wait=False, cancel_futures=True)
        futures.wait(visits, timeout=self._conf.graceful_shutdown_timeout)
        for holder in set(visits.values()):
            with contextlib.suppress(Exception):
                db.hand_back(self._world.db, holder)
        LOG.info('Conductor %s has stopped', self._world.conf.host)


def by_project(clusters: Sequence[models.Cluster]) -> list[list[models.Cluster]]:
    """The clusters of each project: they share one look."""
    projects: dict[str, list[models.Cluster]] = {}
    for cluster in clusters:
        projects.setdefault(cluster.project_id, []).append(cluster)
    return list(projects.values())


def visit(world: steps.World, holder: str, clusters: Sequence[models.Cluster], stopping: threading.Event) -> None:
    """Look at the stacks of these clusters, all of one project, in one call; then reconcile each of them."""
    project_id = clusters[0].project_id

    def task(cluster: models.Cluster, stack: clients.Stack | None) -> steps.Task:
        return steps.Task(world=world, cluster=cluster, holder=holder, stack=stack)

    try:
        if any(cluster.failures and cluster.stack_id for cluster in clusters):
            # Perhaps because the role on the project is gone: taken away by somebody, or by a delete that died.
            world.cloud.grant_roles(project_id)
        ids = {cluster.stack_id for cluster in clusters if cluster.stack_id}
        seen = world.cloud.stacks(project_id).look(ids) if ids else {}
    except Exception as e:
        for cluster in clusters:
            with contextlib.suppress(errors.LeaseLost):
                reconcile.back_off(task(cluster, None), e)
        return
    for cluster in clusters:
        if stopping.is_set():
            db.release(world.db, cluster, holder, check_in_s=0)
        else:
            reconcile.visit(task(cluster, seen.get(cluster.stack_id or '')))
