"""The loop's body: one leased cluster, from what its row asks for to what may be written about it.

There is no code for recovery. Whoever claims a row runs the steps of its status from the first one;
those that were done find so and go on. What a step raises decides how the visit ends:

    Retry          look again later                    LeaseLost   drop it, another one has it
    Unreachable           the cloud is not there: back off    Failed      the operation has failed
    anything else  a mistake of ours: log it, back off
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from oslo_db import exception as db_exc
from oslo_log import log
from sqlalchemy import orm

from magnum_lite import clients, db, errors, models, notify, states
from magnum_lite.conductor import diagnose, steps

LOG = log.getLogger(__name__)

#: A look that is asked for later than now is for what `db.release` says, and stays.
RELEASED = {
    'leased_by': None,
    'leased_until': None,
    'failures': 0,
    'polled_until': None,
    'check_at': sa.case((models.Cluster.check_at > db.now(), models.Cluster.check_at), else_=None),
}
#: After so many calls in a row that did not work out, a delete that is forced goes on without them.
FORCED_AFTER = 3


def visit(task: steps.Task) -> None:
    """Do for one cluster what can be done now, and give it back.

    Raises nothing but oslo.db's DBConnectionError when the database is away: the lease then runs
    out."""
    _give_back(task, lambda: _try(VISITS.get(task.cluster.status, _rest), task))


def back_off_from(task: steps.Task, error: Exception) -> None:
    """Give one cluster back after a call that was made for it, and others, did not work out. Raises
    as `visit` does."""
    _give_back(task, lambda: error)


def _give_back(task: steps.Task, work: Callable[[], Exception | None]) -> None:
    """Do the work on a cluster, and give the cluster back as its end says."""
    cluster = task.cluster
    try:
        ended_by = work()
        if isinstance(ended_by, errors.Failed):
            _fail(task, ended_by)
        elif isinstance(ended_by, errors.Retry):
            if cluster.failures:
                task.update(failures=0)
            db.release(task.services.db, cluster, task.holder, check_in_s=ended_by.delay_s)
        elif ended_by is not None:
            back_off(task, ended_by)
    except errors.LeaseLost:  # perhaps from what was to be written about the others
        LOG.info(
            'Cluster %s: somebody else has it now, or it was asked for something else', cluster.uuid
        )
        db.release(task.services.db, cluster, task.holder, check_in_s=0)
    except db_exc.DBDeadlock:  # nothing was written: as if we had died before it
        LOG.info(
            'Cluster %s: the database gave a write up for the sake of another one; it is looked '
            'at again',
            cluster.uuid,
        )
        db.release(task.services.db, cluster, task.holder, check_in_s=0)


def _try(step: Callable[..., None], *args: Any) -> Exception | None:
    """What a step ended with, None if it did all.

    Raises LeaseLost, and oslo.db's error if the database is away or gave up a write for another
    one's sake.

    Dealt with outside of the `except`, where the log would write every line's exception a second
    time."""
    try:
        step(*args)
    except (
        errors.LeaseLost,
        db_exc.DBConnectionError,
        db_exc.DBDeadlock,
    ):  # nothing can be written about it
        raise
    except Exception as e:
        return e
    return None


def back_off(task: steps.Task, error: Exception) -> None:
    """Give a cluster back after a call that did not work out: due again later, and the later the
    longer it lasts.

    When the operation's time is over the operation has failed. Raises LeaseLost.
    """
    conf, cluster = task.services.conf.conductor, task.cluster
    if isinstance(error, clients.Unreachable):  # which `clients` says once a minute for all
        LOG.debug(
            'Cluster %s: %s. It is tried again (failure %s).',
            cluster.uuid,
            error,
            cluster.failures + 1,
        )
    elif isinstance(error, clients.CloudError):
        LOG.warning(
            'Cluster %s: %s. It is tried again (failure %s).',
            cluster.uuid,
            error,
            cluster.failures + 1,
        )
    else:
        LOG.error(
            'Cluster %s: an unexpected error. It is tried again (failure %s).',
            cluster.uuid,
            cluster.failures + 1,
            exc_info=error,
        )
    if cluster.delete_forced and cluster.failures >= FORCED_AFTER:
        _forget(task, error)
        return
    if task.is_overdue():
        if isinstance(error, clients.CloudError):
            _fail(
                task,
                errors.Failed('CLOUD_UNAVAILABLE', f'{errors.CODES["CLOUD_UNAVAILABLE"]}: {error}'),
            )
        else:  # whose text is for the log: it may hold anything
            _fail(task, errors.Failed('INTERNAL', errors.CODES['INTERNAL']))
        return
    delay_s = getattr(error, 'retry_after_s', None)
    if delay_s is None:
        delay_s = min(conf.retry_interval * 2 ** min(cluster.failures, 16), conf.retry_interval_max)
    delay_s *= random.uniform(1, 1.25)
    task.update(failures=cluster.failures + 1)
    db.release(task.services.db, cluster, task.holder, check_in_s=delay_s)


def _converge(task: steps.Task) -> None:
    """Make every stack of a cluster what the rows want. They go on beside each other; one that
    fails stops no other."""
    waits: list[float] = []
    # Nodegroups whose stacks have failed at an earlier visit, when others still had work.
    failed = [
        (group.error_code or 'INTERNAL', diagnose.sentence(group.error_code, group.status_reason))
        for group in task.cluster.nodegroups
        if states.is_failed(group.status)
    ]
    for owner in task.cluster.owners:
        ended_by = _try(steps.ensure_members, task, owner)
        if isinstance(ended_by, errors.Retry):
            waits.append(ended_by.delay_s)
        elif isinstance(ended_by, errors.Failed):
            steps.note_failure(task, owner, ended_by)
            failed.append((ended_by.code, str(ended_by)))
        elif ended_by is not None:
            raise ended_by
    if waits:
        raise errors.Retry(min(waits))
    if failed:
        raise errors.Failed(
            failed[0][0], '; '.join(dict.fromkeys(text for _, text in failed))[: diagnose.LONGEST]
        )
    if 0 < task.cluster.rotation_phase < models.ROTATION_PHASES:
        steps.advance_rotation(task)
    _done(task)


def _update(task: steps.Task) -> None:
    steps.ensure_keys(task)
    _converge(task)


def _create(task: steps.Task) -> None:
    if task.is_cancelled:
        _undo(task)
    steps.ensure_project_role(task)
    steps.ensure_keys(task)
    steps.ensure_cluster_user(task)
    _converge(task)


def _undo(task: steps.Task) -> None:
    """A create that is to be stopped: take away what there is of it. Raises Retry meanwhile, and
    then Failed."""
    cluster = task.cluster
    steps.ensure_no_cluster_user(task)
    if cluster.stack_text is not None:
        steps.ensure_gone(task, cluster)
        with task.transaction(stack_id=None, stack_text=None) as session:
            session.execute(
                sa.update(models.NodeGroup)
                .where(models.NodeGroup.cluster_id == cluster.uuid)
                .values(stack_id=None)
            )
    raise errors.Failed(
        'CANCELLED',
        f'{errors.CODES["CANCELLED"]}. Nothing of the cluster is left in the cloud. '
        'Delete it, and create it anew if you want it.',
    )


def _delete(task: steps.Task) -> None:
    ended_by = _try(_empty, task)
    if ended_by is not None and not (
        isinstance(ended_by, errors.Failed) and task.cluster.delete_forced
    ):
        raise ended_by
    _forget(task, ended_by)


def _forget(task: steps.Task, blocked_by: Exception | None) -> None:
    """Remove the row. What is then still in the cloud, because an admin forced it, is told by the
    operation."""
    cluster, left = task.cluster, None
    if blocked_by is not None:
        names = ', '.join(owner.stack_id or task.stack_name(owner) for owner in task.cluster.owners)
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
    _tell(task, ended, states.DELETE_COMPLETE)


def _empty(task: steps.Task) -> None:
    """Have nothing of the cluster left in the cloud: what was made inside it, further nodegroups,
    its own stack."""
    steps.ensure_no_cluster_user(task)
    if task.cluster.stack_text is not None:  # else nothing was ever sent to Heat
        steps.ensure_project_role(task)
        steps.ensure_no_load_balancers(task)
        waits: list[float] = []
        for owner in reversed(task.cluster.owners):
            if owner is task.cluster and waits:
                break
            try:
                steps.ensure_gone(task, owner)
            except errors.Retry as e:
                waits.append(e.delay_s)
        if waits:
            raise errors.Retry(min(waits))
    steps.ensure_project_left(task)


def _rest(task: steps.Task) -> None:
    """Nothing is asked for. But somebody who slept through his lease may have sent Heat a text that
    was out of date.

    What then is another one than the stored text is put right as any change is; it is no operation,
    as nobody asked."""
    cluster = task.cluster
    stale = [owner for owner in task.cluster.owners if _is_stale(task, owner)]
    if not stale:
        if cluster.failures:
            task.update(failures=0)
        db.release(task.services.db, cluster, task.holder, check_in_s=None)
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
        session.execute(
            sa.update(models.NodeGroup)
            .where(
                models.NodeGroup.id.in_(
                    [group.id for owner in stale for group in task.groups_of(owner)]
                )
            )
            .values(status=states.UPDATE_IN_PROGRESS, status_reason=None, error_code=None)
        )
    LOG.warning(
        'Cluster %s: its stacks %s have another text than they should, from a conductor that was '
        'stopped for longer than its lease. They are put right.',
        cluster.uuid,
        [owner.stack_id for owner in stale],
    )


def _is_stale(task: steps.Task, owner: steps.Owner) -> bool:
    """Whether a stack that is done has another text than the stored one. Older stacks bear no
    number.

    Where an exchange of authorities has failed or was stopped, nothing is begun that would go on
    with it."""
    stack = task.stack(owner)
    return (
        task.cluster.status in states.TRANSITIONS['update']
        and not task.cluster.rotation_phase
        and stack is not None
        and stack.revision not in (0, owner.revision)
        and all(group.status.endswith('_COMPLETE') for group in task.groups_of(owner))
    )


#: What a status asks for. What is not here asks for nothing; somebody only wants it looked at.
VISITS = {
    states.CREATE_IN_PROGRESS: _create,
    states.UPDATE_IN_PROGRESS: _update,
    states.DELETE_IN_PROGRESS: _delete,
}


def _done(task: steps.Task) -> None:
    """Every stack is as the rows want it: write down that the operation is over. One
    transaction."""
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
    LOG.info('Cluster %s is %s', cluster.uuid, states.TRANSITIONS['done'][cluster.status])
    _tell(task, ended, states.TRANSITIONS['done'][cluster.status])


def _fail(task: steps.Task, failure: errors.Failed) -> None:
    """The operation has failed: write down why, for the cluster and for each nodegroup that does
    not know yet."""
    cluster, reason = task.cluster, str(failure)
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
                steps.blame(session, group, failure)
        ended = db.end_operations(session, cluster, 'failed', code=failure.code, text=reason)
    LOG.warning(
        'Cluster %s is %s (%s): %s',
        cluster.uuid,
        states.TRANSITIONS['fail'][cluster.status],
        failure.code,
        reason,
    )
    _tell(task, ended, states.TRANSITIONS['fail'][cluster.status], failure.code)


def _tell(
    task: steps.Task, ended: Sequence[models.Operation], status: str, code: str | None = None
) -> None:
    """Notify whoever listens of the operations that have ended."""
    orm.attributes.set_committed_value(task.cluster, 'status', status)
    for operation in ended:
        task.services.notifier.cluster(
            task.cluster,
            operation.kind,
            notify.FAILURE if code else notify.SUCCESS,
            user_id=operation.user_id,
            project_id=operation.project_id,
            request_id=operation.request_id or '',
            reason=code,
        )
