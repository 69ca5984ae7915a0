"""The look at Heat stacks: one call for all due clusters of a project, and Heat's notifications,
which tell when to look.

`service` calls `check_stacks` in a thread of its pool and has the clusters reconciled that it
returns; `make_listener` is started by `service` as well. Both only read from the cloud. In the
database they move due times, store progress and give leases back.

Correctness rests on `check_stacks` alone. A notification only makes a row due: if it is lost,
doubled, late or forged it costs a look at most, as what counts is what Heat then answers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import oslo_messaging
from oslo_log import log

from magnum_lite import clients, db, models, rpc, states
from magnum_lite.conductor import reconcile
from magnum_lite.conductor.task import (
    Services,
    Snapshot,
    Task,
    choose_interval_s,
    get_timeout_min,
    is_past_timeout,
)

LOG = log.getLogger(__name__)

#: The notifications of stacks on which Heat has finished work (heat/engine/notification.py).
EVENTS = r'^orchestration\.stack\.(create|update|delete)\.(end|error)$'
#: Seconds before each further look at a stack that was reported as finished, as long as its cluster
#: still waits for it. Heat reports it before the commit (heat/engine/stack.py, _persist_state):
#: mostly by some milliseconds, under load by more.
AGAIN_S = (0.25, 0.75, 2)
#: Share of the shortest interval within which clusters of a project are looked at together.
HORIZON = 0.5


@dataclass(frozen=True)
class Look:
    """What one look at the stacks of a project has found.

    `changed` are the uuids of clusters to reconcile; `snapshot` and `as_admin` are for their
    tasks."""

    changed: Sequence[str]
    snapshot: Snapshot
    as_admin: bool


def check_stacks(services: Services, holder: str, clusters: Sequence[db.StackWatch]) -> Look:
    """Look at the stacks of these clusters, all of one project, in one call.

    Gives back those that Heat still works on, due again later, and returns the others. If a call
    fails all are given back as failed visits. Raises oslo.db's DBConnectionError."""
    project_id = clusters[0].project_id
    as_admin = False
    try:
        if any(cluster.failures for cluster in clusters):
            as_admin = _restore_access(services, project_id, clusters)
        ids = {stack_id for cluster in clusters for stack_id, _ in cluster.groups if stack_id}
        snapshot = {}
        if ids:
            snapshot = services.cloud.stacks(project_id, as_admin=as_admin).list_by_ids(ids)
        for cluster in clusters:
            if cluster.is_polled:
                _store_progress(services, cluster, snapshot, as_admin)
    except Exception as e:
        error = e
    else:
        unchanged = [c for c in clusters if _is_unchanged(services, c, snapshot)]
        uuids = {cluster.uuid for cluster in unchanged}
        if unchanged:
            age_s = min(_get_age_s(cluster) for cluster in unchanged)
            db.release_unchanged(
                services.db,
                holder,
                [*uuids],
                check_in_s=choose_interval_s(services.conf.conductor.watch_interval, age_s),
            )
        changed = [cluster.uuid for cluster in clusters if cluster.uuid not in uuids]
        return Look(changed, snapshot, as_admin)
    for row in db.list_leased(services.db, holder, [cluster.uuid for cluster in clusters]):
        reconcile.conclude(Task(services, row, holder, {}, as_admin), error)
    return Look((), {}, as_admin)


def _restore_access(services: Services, project_id: str, clusters: Sequence[db.StackWatch]) -> bool:
    """Return whether the project is disabled or deleted, so its clusters have to be deleted with a
    token for the service's own project. Else grant the service its role again.

    Called after a failed visit. The role may have been revoked by an operator, or by a delete whose
    conductor died."""
    is_deleting = any(cluster.status == states.DELETE_IN_PROGRESS for cluster in clusters)
    if is_deleting and services.cloud.get_project_state(project_id) != 'enabled':
        return True
    services.cloud.grant_roles(project_id)
    return False


def _is_unchanged(services: Services, cluster: db.StackWatch, snapshot: Snapshot) -> bool:
    """Whether Heat works on each stack of the cluster that has work, so all that is left is to
    wait."""
    if cluster.failures or cluster.cancelled_generation >= cluster.generation:
        return False
    is_deleting = cluster.status == states.DELETE_IN_PROGRESS
    if is_deleting and cluster.sent_generation < cluster.generation:
        return False
    busy_ids = [stack_id for stack_id, status in cluster.groups if states.is_busy(status)]
    # No busy nodegroup: a conductor died before it recorded that the operation is complete.
    if not busy_ids:
        return False
    for stack_id in busy_ids:
        stack = snapshot.get(stack_id or '')
        if stack is None or not states.is_busy(stack.status):
            return False
        if is_deleting != stack.status.startswith('DELETE_'):
            return False
    timeout_min = get_timeout_min(services.conf, cluster.status, cluster.create_timeout)
    return not is_past_timeout(timeout_min, _get_age_s(cluster))


def _get_age_s(cluster: db.StackWatch) -> float:
    return (models.utcnow() - cluster.requested_at).total_seconds()


def _store_progress(
    services: Services,
    cluster: db.StackWatch,
    snapshot: Snapshot,
    as_admin: bool,
) -> None:
    """Count the resources in the cluster's stacks that have work: one call for each stack. Only for
    a cluster whose operation a client polls."""
    stacks = services.cloud.stacks(cluster.project_id, as_admin=as_admin)
    # Nodegroups share stacks, and each stack is counted once.
    ids = {
        stack_id
        for stack_id, status in cluster.groups
        if stack_id and stack_id in snapshot and states.is_busy(status)
    }
    counts = []
    for stack_id in ids:
        with contextlib.suppress(clients.NotFound):
            counts.append(stacks.get_progress(stack_id))
    if counts:
        done = sum(count[0] for count in counts)
        total = sum(count[1] for count in counts)
        db.store_progress(services.db, cluster.uuid, done, total)


class Listener:
    """Takes Heat's notifications. All conductors share one queue (`pool`), so each message reaches
    one of them."""

    filter_rule = oslo_messaging.NotificationFilter(event_type=EVENTS)

    def __init__(
        self, database: db.Database, wake: threading.Event, stopping: threading.Event
    ) -> None:
        self._db = database
        self._wake = wake
        self._stopping = stopping
        #: Stacks for which a thread is waiting to look again, so many messages about one stack
        #: take one thread.
        self._awaited: set[str] = set()

    def info(
        self, context: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any
    ) -> None:
        """Take the notification that Heat has finished with a stack: make its cluster due.

        Most stacks are nested ones, which no row names."""
        arn = payload.get('stack_identity') if isinstance(payload, dict) else None
        stack_id = str(arn or '').rpartition('/')[2]
        if len(stack_id) == 36:
            try:
                self._wake_until_done(stack_id)
            except Exception as e:
                # The database is away. The look at its regular time finds the stack.
                LOG.debug('A notification of Heat was dropped: %s', e)

    #: Notifications of failed stacks have this priority, and are taken alike.
    error = info

    def _wake_until_done(self, stack_id: str) -> None:
        """Make the cluster due now and, while it still waits for the stack, again after each pause
        of AGAIN_S."""
        if not self._make_due(stack_id) or stack_id in self._awaited:
            return
        self._awaited.add(stack_id)
        try:
            for pause_s in AGAIN_S:
                if self._stopping.wait(pause_s) or not self._make_due(stack_id):
                    return
        finally:
            self._awaited.discard(stack_id)

    def _make_due(self, stack_id: str) -> bool:
        """Make the cluster of a stack due, and wake the conductor. Returns whether a cluster waits
        for the stack."""
        is_awaited = db.make_due_by_stack(self._db, [stack_id]) > 0
        if is_awaited:
            self._wake.set()
        return is_awaited


def make_listener(services: Services, wake: threading.Event, stopping: threading.Event) -> Any:
    """Return a listener to Heat's notifications, not yet started; None where [heat_notifications]
    is off or there is no broker."""
    conf = services.conf.heat_notifications
    if not conf.enabled:
        return None
    return rpc.make_notification_listener(
        services.conf,
        Listener(services.db, wake, stopping),
        url=conf.transport_url,
        exchange=conf.exchange,
        topic=conf.topic,
        pool=conf.pool,
    )
