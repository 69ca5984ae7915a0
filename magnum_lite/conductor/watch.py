"""Looking at stacks: the one call for all due stacks of a project, and Heat's notifications, which
say when to look.

`follow` is what makes the following correct. A notification only makes a row due: lost, doubled,
late, stale or forged ones cost a look at most, since what counts is what Heat then answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import oslo_messaging
from oslo_log import log

from magnum_lite import clients, context, db, models, rpc, states
from magnum_lite.conductor import reconcile, steps

LOG = log.getLogger(__name__)

#: What Heat says of a stack that has come to an end (heat/engine/notification.py).
EVENTS = r'^orchestration\.stack\.(create|update|delete)\.(end|error)$'
#: Seconds until a stack that is said to be done is looked at again, each time that its cluster
#: still waits then. Heat says so before it commits (heat/engine/stack.py, _persist_state): by some
#: milliseconds, on a bad day by more.
AGAIN_S = (0.25, 0.75, 2)
#: Share of the shortest interval within which clusters of a project are looked at together.
HORIZON = 0.5

Submit = Callable[..., None]


def follow(
    services: steps.Services,
    holder: str,
    clusters: Sequence[db.StackWatch],
    submit: Submit,
    stopping: threading.Event,
) -> None:
    """Look at the stacks of these clusters, all of one project, in one call.

    Those that Heat still works on are due again later; the others are submitted: `submit(visit,
    ...)` has each of them reconciled, beside each other."""
    if stopping.is_set():
        db.release_unchanged(services.db, holder, [c.uuid for c in clusters], check_in_s=0)
        return
    project_id = clusters[0].project_id
    as_admin = False
    try:
        if any(c.failures for c in clusters):
            as_admin = _leave_project(services, project_id, clusters)
        ids = {stack_id for c in clusters for stack_id, _ in c.groups if stack_id}
        seen = services.cloud.stacks(project_id, as_admin=as_admin).look(ids) if ids else {}
        for cluster in clusters:
            if cluster.watched:
                _count(services, cluster, seen, as_admin)
    except Exception as e:
        for row in db.list_leased(services.db, holder, [c.uuid for c in clusters]):
            reconcile.back_off_from(steps.Task(services, row, holder, {}, as_admin), e)
        return
    quiet = [c for c in clusters if _is_quiet(services, c, seen)]
    if quiet:
        age_s = min((models.utcnow() - c.asked_at).total_seconds() for c in quiet)
        db.release_unchanged(
            services.db,
            holder,
            [c.uuid for c in quiet],
            check_in_s=steps.interval_s(services.conf.conductor.watch_interval, age_s),
        )
    for cluster in clusters:
        if cluster not in quiet:
            submit(visit, services, holder, cluster.uuid, seen, as_admin, stopping)


def _leave_project(
    services: steps.Services, project_id: str, clusters: Sequence[db.StackWatch]
) -> bool:
    """Calls have failed. Give back the role that may have been lost; say whether the project is
    closed to everybody.

    A role can be taken away by somebody, or by a delete that died. What is deleted in a project
    that is disabled or gone is deleted with the token of the service's own."""
    if (
        any(c.status == states.DELETE_IN_PROGRESS for c in clusters)
        and services.cloud.project_state(project_id) != 'enabled'
    ):
        return True
    services.cloud.grant_roles(project_id)
    return False


def _is_quiet(
    services: steps.Services, cluster: db.StackWatch, seen: Mapping[str, clients.Stack]
) -> bool:
    """Whether Heat works on all of a cluster's stacks that have work, so that there is nothing to
    do but to wait."""
    if cluster.failures or cluster.cancelled_generation >= cluster.generation:
        return False
    deleting = cluster.status == states.DELETE_IN_PROGRESS
    if deleting and cluster.sent_generation < cluster.generation:
        return False
    busy = [stack_id for stack_id, status in cluster.groups if states.is_busy(status)]
    for stack_id in busy:
        stack = seen.get(stack_id or '')
        if (
            stack is None
            or not states.is_busy(stack.status)
            or deleting != stack.status.startswith('DELETE_')
        ):
            return False
    age_s = (models.utcnow() - cluster.asked_at).total_seconds()
    # With no work left somebody has died before he could say that all is done.
    return bool(busy) and not steps.is_overdue(
        steps.timeout_min(services.conf, cluster.status, cluster.create_timeout), age_s
    )


def _count(
    services: steps.Services,
    cluster: db.StackWatch,
    seen: Mapping[str, clients.Stack],
    as_admin: bool,
) -> None:
    """Somebody watches: count the resources of the cluster's stacks that have work. A call for each
    stack."""
    stacks = services.cloud.stacks(cluster.project_id, as_admin=as_admin)
    ids = {
        stack_id
        for stack_id, status in cluster.groups
        if stack_id and stack_id in seen and states.is_busy(status)
    }
    counts = []
    for stack_id in ids:
        with contextlib.suppress(clients.NotFound):
            counts.append(stacks.progress(stack_id))
    if counts:
        db.store_progress(
            services.db, cluster.uuid, sum(c[0] for c in counts), sum(c[1] for c in counts)
        )


def visit(
    services: steps.Services,
    holder: str,
    uuid: str,
    seen: Mapping[str, clients.Stack],
    as_admin: bool,
    stopping: threading.Event,
) -> None:
    """Reconcile one leased cluster, after its stacks were looked at. If the lease is lost,
    nothing."""
    for cluster in db.list_leased(services.db, holder, [uuid]):
        if stopping.is_set():
            db.release(services.db, cluster, holder, check_in_s=0)
            continue
        try:
            if (
                cluster.failures
                and cluster.stack_id is None
                and cluster.status == states.DELETE_IN_PROGRESS
            ):
                as_admin = services.cloud.project_state(cluster.project_id) != 'enabled'
        except clients.CloudError as e:
            reconcile.back_off_from(steps.Task(services, cluster, holder, seen), e)
            continue
        with context.working_on(cluster.uuid, *db.find_running_operation(services.db, cluster)):
            reconcile.visit(steps.Task(services, cluster, holder, seen, as_admin))


class Listener:
    """What is done with a notification of Heat. One queue is shared by all conductors (`pool`)."""

    filter_rule = oslo_messaging.NotificationFilter(event_type=EVENTS)

    def __init__(
        self, database: db.Database, wake: threading.Event, stopping: threading.Event
    ) -> None:
        self._db, self._wake, self._stopping = database, wake, stopping
        #: Stacks that a thread is to look at again, so that a flood of messages takes no more of
        #: them.
        self._awaited: set[str] = set()

    def info(
        self, context: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any
    ) -> None:
        """A stack is done."""
        self._look(payload)

    def error(
        self, context: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any
    ) -> None:
        """A stack has failed."""
        self._look(payload)

    def _look(self, payload: Any) -> None:
        """Have the cluster of this stack looked at. Most are nested stacks, which no row knows."""
        arn = payload.get('stack_identity') if isinstance(payload, dict) else None
        stack_id = str(arn or '').rpartition('/')[2]
        if len(stack_id) == 36:
            try:
                self._wake_until_done(stack_id)
            except Exception as e:  # the database is away: the look at its time finds it
                LOG.debug('A notification of Heat was dropped: %s', e)

    def _wake_until_done(self, stack_id: str) -> None:
        if not self._is_woken(stack_id) or stack_id in self._awaited:
            return
        self._awaited.add(stack_id)
        try:
            for pause_s in AGAIN_S:
                if self._stopping.wait(pause_s) or not self._is_woken(stack_id):
                    return
        finally:
            self._awaited.discard(stack_id)

    def _is_woken(self, stack_id: str) -> bool:
        """Have the cluster of a stack looked at, if there is one that waits for something; returns
        whether."""
        woken = db.make_due_by_stack(self._db, [stack_id]) > 0
        if woken:
            self._wake.set()
        return woken


def listener(services: steps.Services, wake: threading.Event, stopping: threading.Event) -> Any:
    """A listener to Heat's notifications, not yet started; None where the operator wants none or
    there is no broker."""
    conf = services.conf.heat_notifications
    if not conf.enabled:
        return None
    return rpc.notification_listener(
        services.conf,
        Listener(services.db, wake, stopping),
        url=conf.transport_url,
        exchange=conf.exchange,
        topic=conf.topic,
        pool=conf.pool,
    )
