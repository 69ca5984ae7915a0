"""The body of the conductor's loop: one leased cluster, from what its row asks for to what may be
recorded about it. Begin reading here.

`service` calls `reconcile_leased` in a thread of its pool, for each cluster that is due. It calls
the steps in `steps` and `stacks`, records how they ended, and gives the lease back. It writes to
the cluster's row only by `db.move`, `db.release` and the lease's transactions.

There is no code for recovery. Whichever conductor has the lease runs the steps of the row's status
from the first one; those that were done find so and return. What a step raises decides how the
visit ends: see `conclude`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NoReturn

import sqlalchemy as sa
from oslo_db import exception as db_exc
from oslo_log import log
from sqlalchemy import orm

from magnum_lite import clients, context, db, errors, models, notify, states
from magnum_lite.conductor import diagnose, stacks, steps
from magnum_lite.conductor.task import Services, Snapshot, StackOwner, Task, update_nodegroup

LOG = log.getLogger(__name__)

#: The columns of a cluster that is given back with its operation ended. A `check_at` in the future
#: stays: a conductor that had lost the lease set it, to have its work checked (see `db.release`).
RELEASED = {
    'leased_by': None,
    'leased_until': None,
    'failures': 0,
    'polled_until': None,
    'check_at': sa.case((models.Cluster.check_at > db.now(), models.Cluster.check_at), else_=None),
}
#: A forced delete gives up on the cloud after this many failed visits in a row.
FORCED_AFTER = 3


def reconcile_leased(
    services: Services,
    holder: str,
    uuid: str,
    snapshot: Snapshot,
    as_admin: bool = False,
) -> None:
    """Load a cluster and reconcile it. Do nothing if `holder` does not hold its lease any more.

    `snapshot` and `as_admin` are those of `task.Task`. Raises oslo.db's DBError if the
    database is away: the lease then runs out."""
    for cluster in db.list_leased(services.db, holder, [uuid]):
        # Of a cluster with a stack, `watch` has found out whether its project is closed.
        may_be_closed = cluster.status == states.DELETE_IN_PROGRESS and cluster.stack_id is None
        try:
            if cluster.failures and may_be_closed:
                as_admin = services.cloud.get_project_state(cluster.project_id) != 'enabled'
        except clients.CloudError as e:
            conclude(Task(services, cluster, holder, snapshot), e)
            continue
        with context.tag_logs(cluster.uuid, *db.find_running_operation(services.db, cluster)):
            reconcile(Task(services, cluster, holder, snapshot, as_admin))


def reconcile(task: Task) -> None:
    """Do for one cluster what can be done now, and give it back. Raises as `reconcile_leased`
    does."""
    step = BY_STATUS.get(task.cluster.status, _restore_if_stale)
    ended_by = None
    try:
        step(task)
    except Exception as e:
        ended_by = e
    conclude(task, ended_by)


def conclude(task: Task, ended_by: Exception | None) -> None:
    """Record how a visit ended, and give the cluster back.

    `ended_by` is what a step has raised, None if all is done and recorded. It is handed over as a
    value, because oslo.log prints the active exception behind every line that is logged inside of
    an `except` block."""
    try:
        _record_end(task, ended_by)
    except (errors.LeaseLost, db_exc.DBDeadlock) as e:
        # The record itself can lose the lease or deadlock. What these end in raises neither.
        _record_end(task, e)


def _record_end(task: Task, ended_by: Exception | None) -> None:
    cluster = task.cluster
    match ended_by:
        case None:
            pass
        case errors.Retry():
            if cluster.failures:
                task.update(failures=0)
            _release(task, ended_by.delay_s)
        case errors.Failed():
            _fail(task, ended_by)
        case errors.LeaseLost():
            LOG.info(
                'Cluster %s: somebody else has it now, or it was asked for something else',
                cluster.uuid,
            )
            _release(task, 0)
        case db_exc.DBDeadlock():
            # Nothing was written: the same as if this conductor had died before the write.
            LOG.info(
                'Cluster %s: the database gave a write up for the sake of another one; it is '
                'looked at again',
                cluster.uuid,
            )
            _release(task, 0)
        case _ if db.is_outage(ended_by):
            # Nothing can be recorded.
            raise ended_by
        case _:
            _back_off(task, ended_by)


def _release(task: Task, check_in_s: float | None) -> None:
    """Give the cluster back, due again in so many seconds; None: when something is requested."""
    db.release(task.services.db, task.cluster, task.holder, check_in_s=check_in_s)


def _back_off(task: Task, error: Exception) -> None:
    """Give a cluster back after a failed call or an unexpected error: due later, and the later
    the more visits have failed in a row.

    An operation whose time is over has failed. A forced delete goes on without the cloud. Raises
    LeaseLost."""
    cluster = task.cluster
    _log_error(task, error)
    if cluster.delete_forced and cluster.failures >= FORCED_AFTER:
        _finish_delete(task, error)
        return
    if task.is_overdue():
        if isinstance(error, clients.CloudError):
            reason = f'{errors.CODES["CLOUD_UNAVAILABLE"]}: {error}'
            _fail(task, errors.Failed('CLOUD_UNAVAILABLE', reason))
        else:
            # The error's text is for the log only: it may hold anything.
            _fail(task, errors.Failed('INTERNAL', errors.CODES['INTERNAL']))
        return
    delay_s = getattr(error, 'retry_after_s', None)
    if delay_s is None:
        conf = task.services.conf.conductor
        doubled_s = conf.retry_interval * 2 ** min(cluster.failures, 16)
        delay_s = min(doubled_s, conf.retry_interval_max)
    delay_s *= random.uniform(1, 1.25)
    task.update(failures=cluster.failures + 1)
    _release(task, delay_s)


def _log_error(task: Task, error: Exception) -> None:
    uuid = task.cluster.uuid
    failures = task.cluster.failures + 1
    if isinstance(error, clients.CloudError):
        # `clients` itself warns of an unreachable service, once a minute for all clusters.
        level = log.DEBUG if isinstance(error, clients.Unreachable) else log.WARNING
        LOG.log(level, 'Cluster %s: %s. It is tried again (failure %s).', uuid, error, failures)
    else:
        LOG.error(
            'Cluster %s: an unexpected error. It is tried again (failure %s).',
            uuid,
            failures,
            exc_info=error,
        )


# -- what each status asks for ---------------------------------------------------------------------


def _create(task: Task) -> None:
    if task.is_cancelled:
        _undo_create(task)
    if task.cluster.stack_id is None:
        # What the first stack needs is complete once there is a stack.
        steps.ensure_project_role(task)
        steps.ensure_keys(task)
        steps.ensure_cluster_user(task)
    _converge(task)


def _update(task: Task) -> None:
    steps.ensure_keys(task)
    _converge(task)


def _converge(task: Task) -> None:
    """Make every stack of a cluster what the rows want. They advance side by side: one that fails
    stops no other.

    Raises Retry while any stack has work left, and only then Failed."""
    waits_s = []
    # The nodegroups whose stacks failed at an earlier visit, while others still had work.
    failures = [
        errors.Failed(
            group.error_code or 'INTERNAL',
            diagnose.write_sentence(group.error_code, group.status_reason),
        )
        for group in task.cluster.nodegroups
        if states.is_failed(group.status)
    ]
    for owner in task.cluster.owners:
        failure = None
        try:
            stacks.ensure_members(task, owner)
        except errors.Retry as e:
            waits_s.append(e.delay_s)
        except errors.Failed as e:
            failure = e
        # Outside of the `except` block, as this logs: see `conclude`.
        if failure:
            stacks.record_stack_failure(task, owner, failure)
            failures.append(failure)
    if waits_s:
        raise errors.Retry(min(waits_s))
    if failures:
        texts = dict.fromkeys(str(failure) for failure in failures)
        raise errors.Failed(failures[0].code, '; '.join(texts)[: diagnose.MAX_REASON])
    if 0 < task.cluster.rotation_phase < models.ROTATION_PHASES:
        stacks.advance_rotation(task)
    _finish(task)


def _undo_create(task: Task) -> NoReturn:
    """Remove what a cancelled create has made. Raises Retry until it is gone, and then Failed."""
    cluster = task.cluster
    steps.ensure_no_cluster_user(task)
    if cluster.stack_text is not None:
        stacks.ensure_gone(task, cluster)
        with task.transaction(stack_id=None, stack_text=None) as session:
            for group in cluster.nodegroups:
                update_nodegroup(session, group, stack_id=None)
    raise errors.Failed(
        'CANCELLED',
        f'{errors.CODES["CANCELLED"]}. Nothing of the cluster is left in the cloud. '
        'Delete it, and create it anew if you want it.',
    )


def _delete(task: Task) -> None:
    blocked_by = None
    try:
        _remove_from_cloud(task)
    except errors.Failed as e:
        if not task.cluster.delete_forced:
            raise
        blocked_by = e
    _finish_delete(task, blocked_by)


def _remove_from_cloud(task: Task) -> None:
    """Delete all that the cluster has in the cloud: its user, the load balancers that it has
    created, the stacks of further nodegroups, its own stack. Raises Retry until it is gone."""
    steps.ensure_no_cluster_user(task)
    # Without a stored text nothing was ever sent to Heat.
    if task.cluster.stack_text is not None:
        steps.ensure_project_role(task)
        steps.ensure_no_load_balancers(task)
        waits_s: list[float] = []
        # The cluster's own stack comes last, because the others use its network.
        for owner in reversed(task.cluster.owners):
            if owner is task.cluster and waits_s:
                break
            try:
                stacks.ensure_gone(task, owner)
            except errors.Retry as e:
                waits_s.append(e.delay_s)
        if waits_s:
            raise errors.Retry(min(waits_s))
    steps.ensure_project_left(task)


def _restore_if_stale(task: Task) -> None:
    """Start an update if a stack has another text than the stored one, else give the cluster back.

    No operation is pending. But a conductor that was suspended for longer than its lease may have
    sent Heat an outdated text. The update that restores the stored text is an update like any
    other, without an operation, as no caller requested it."""
    cluster = task.cluster
    stale = [owner for owner in cluster.owners if _is_stale(task, owner)]
    if not stale:
        if cluster.failures:
            task.update(failures=0)
        _release(task, None)
        return
    with task.services.db.write() as session:
        db.move(
            session,
            cluster,
            'update',
            holder=task.holder,
            generation=cluster.generation + 1,
            **RELEASED | {'check_at': db.now()},
        )
        for owner in stale:
            for group in task.list_groups(owner):
                update_nodegroup(
                    session,
                    group,
                    status=states.UPDATE_IN_PROGRESS,
                    status_reason=None,
                    error_code=None,
                )
    LOG.warning(
        'Cluster %s: its stacks %s have another text than they should, from a conductor that was '
        'stopped for longer than its lease. They are put right.',
        cluster.uuid,
        [owner.stack_id for owner in stale],
    )


def _is_stale(task: Task, owner: StackOwner) -> bool:
    """Whether a complete stack has another text than the stored one.

    Not where a rotation of authorities has failed or was cancelled: an update would go on with it.
    Stacks of older releases have no revision; it then reads as 0."""
    if task.cluster.status not in states.TRANSITIONS['update'] or task.cluster.rotation_phase:
        return False
    stack = task.find_stack(owner)
    if stack is None or stack.revision in (0, owner.revision):
        return False
    return all(group.status.endswith('_COMPLETE') for group in task.list_groups(owner))


#: What each status asks for. With any other status nothing is pending, and the cluster is only
#: looked at.
BY_STATUS = {
    states.CREATE_IN_PROGRESS: _create,
    states.UPDATE_IN_PROGRESS: _update,
    states.DELETE_IN_PROGRESS: _delete,
}


# -- how an operation ends -------------------------------------------------------------------------


def _finish(task: Task) -> None:
    """Record, in one transaction, that the operation is complete: every stack is as the rows
    want it."""
    cluster = task.cluster
    with task.services.db.write() as session:
        db.move(
            session,
            cluster,
            'done',
            holder=task.holder,
            status_reason=None,
            error_code=None,
            rotation_phase=0,
            health_at=db.now() if cluster.api_address else None,
            **RELEASED,
        )
        if cluster.rotation_phase:
            db.end_rotation(session, cluster)
        ended = db.end_operations(session, cluster, 'complete')
    status = states.TRANSITIONS['done'][cluster.status]
    LOG.info('Cluster %s is %s', cluster.uuid, status)
    _notify(task, ended, status)


def _finish_delete(task: Task, blocked_by: Exception | None) -> None:
    """Remove the row. What a forced delete has left in the cloud is recorded with the operation."""
    cluster = task.cluster
    left = None
    if blocked_by is not None:
        names = ', '.join(owner.stack_id or task.name_stack(owner) for owner in cluster.owners)
        left = (
            f'Deleted by force. What is left in the cloud is in these stacks: {names}. The reason: '
            f'{blocked_by}'
        )
        LOG.warning('Cluster %s: %s', cluster.uuid, left)
    with task.services.db.write() as session:
        db.move(session, cluster, 'done', holder=task.holder)
        ended = db.end_operations(session, cluster, 'complete', text=left)
        db.delete_cluster_row(session, cluster)
    LOG.info('Cluster %s is deleted', cluster.uuid)
    _notify(task, ended, states.DELETE_COMPLETE)


def _fail(task: Task, failure: errors.Failed) -> None:
    """Record, in one transaction, that the operation has failed and why, for the cluster and for
    each nodegroup that is not failed already."""
    cluster = task.cluster
    reason = str(failure)
    with task.services.db.write() as session:
        db.move(
            session,
            cluster,
            'fail',
            holder=task.holder,
            status_reason=reason,
            error_code=failure.code,
            **RELEASED,
        )
        for group in cluster.nodegroups:
            if states.is_busy(group.status):
                stacks.record_failure(session, group, failure)
        ended = db.end_operations(session, cluster, 'failed', code=failure.code, text=reason)
    status = states.TRANSITIONS['fail'][cluster.status]
    LOG.warning('Cluster %s is %s (%s): %s', cluster.uuid, status, failure.code, reason)
    _notify(task, ended, status, failure.code)


def _notify(
    task: Task, ended: Sequence[models.Operation], status: str, code: str | None = None
) -> None:
    """Send a notification for each operation that has ended."""
    orm.attributes.set_committed_value(task.cluster, 'status', status)
    for operation in ended:
        task.services.notifier.send_cluster_event(
            task.cluster,
            operation.kind,
            notify.FAILURE if code else notify.SUCCESS,
            user_id=operation.user_id,
            project_id=operation.project_id,
            request_id=operation.request_id or '',
            reason=code,
        )
