"""The loop's body: one leased cluster, from what its row asks for to what may be written about it.

There is no code for recovery. Whoever claims a row runs the steps of its status from the first one; those that were
done find so and go on. What a step raises decides how the visit ends:

    Retry          look again later                    LeaseLost   drop it, another one has it
    Away           the cloud is not there: back off    Failed      the operation has failed, and says why
    anything else  a mistake of ours: log it, back off
"""

from __future__ import annotations

import random

import sqlalchemy as sa
from oslo_log import log

from magnum_lite import clients, db, drivers, errors, models, states
from magnum_lite.conductor import steps

LOG = log.getLogger(__name__)

RELEASED = {'leased_by': None, 'leased_until': None, 'check_at': None, 'failures': 0}


def visit(task: steps.Task) -> None:
    """Do for one cluster what can be done now, and give it back. Raises nothing but what ends a process."""
    cluster = task.cluster
    try:
        try:
            VISITS[cluster.status](task)
        except errors.Failed as e:
            _fail(task, e)
        except errors.Retry as e:
            if cluster.failures:
                task.note(failures=0)
            db.release(task.world.db, cluster, task.holder, check_in_s=e.args[0])
        except errors.LeaseLost:
            raise
        except Exception as e:
            back_off(task, e)
    except errors.LeaseLost:  # perhaps from what was to be written about the others
        LOG.info('Cluster %s: somebody else has it now, or it was asked for something else', cluster.uuid)
        db.release(task.world.db, cluster, task.holder, check_in_s=0)


def back_off(task: steps.Task, error: Exception) -> None:
    """Give a cluster back after a call that did not work out: due again later, and the later the longer it lasts.

    When the operation's time is over the operation has failed. Raises LeaseLost.
    """
    conf, cluster = task.world.conf.conductor, task.cluster
    if isinstance(error, clients.CloudError):
        LOG.warning('Cluster %s: %s. It is tried again (failure %s).', cluster.uuid, error, cluster.failures + 1)
    else:
        LOG.error('Cluster %s: an unexpected error. It is tried again (failure %s).', cluster.uuid,
                  cluster.failures + 1, exc_info=error)
    if task.is_overdue():
        if isinstance(error, clients.CloudError):
            _fail(task, errors.Failed('CLOUD_UNAVAILABLE', f'{errors.CODES["CLOUD_UNAVAILABLE"]}: {error}'))
        else:  # whose text is for the log: it may hold anything
            _fail(task, errors.Failed('INTERNAL', errors.CODES['INTERNAL']))
        return
    delay_s = getattr(error, 'retry_after_s', None)
    if delay_s is None:
        delay_s = min(conf.retry_interval * 2 ** min(cluster.failures, 16), conf.retry_interval_max)
        delay_s *= random.uniform(0.75, 1.25)
    task.note(failures=cluster.failures + 1)
    db.release(task.world.db, cluster, task.holder, check_in_s=delay_s)


def _create(task: steps.Task) -> None:
    steps.ensure_project_role(task)
    steps.ensure_keys(task)
    steps.ensure_stack(task)
    _done(task, steps.observe(task))


def _delete(task: steps.Task) -> None:
    cluster = task.cluster
    if cluster.stack_text is not None:  # else nothing was ever sent to Heat
        steps.ensure_project_role(task)
        steps.ensure_gone(task)
    steps.ensure_project_left(task)
    with task.world.db.write() as session:
        db.move(session, cluster, 'done', holder=task.holder)
        db.end_operation(session, cluster, 'complete')
        db.destroy_cluster(session, cluster)
    LOG.info('Cluster %s is deleted', cluster.uuid)


#: What a status asks for. A status that is not here asks for nothing and is never due.
VISITS = {states.CREATE_IN_PROGRESS: _create, states.DELETE_IN_PROGRESS: _delete}


def _done(task: steps.Task, observed: drivers.Observed) -> None:
    """The stack is complete: write down what it says, and that the operation is over. One transaction."""
    cluster = task.cluster
    status = states.TRANSITIONS['done'][cluster.status]
    with task.world.db.write() as session:
        db.move(session, cluster, 'done', holder=task.holder, status_reason=None, api_address=observed.api_address,
                coe_version=observed.coe_version, **RELEASED)
        for group in cluster.nodegroups:
            session.execute(sa.update(models.NodeGroup).where(models.NodeGroup.id == group.id).values(
                status=status, status_reason=None, stack_id=cluster.stack_id,
                node_addresses=observed.addresses.get(group.name, []), version=observed.coe_version))
            for node in group.nodes:
                seen = observed.nodes.get((group.name, node.number))
                session.execute(sa.update(models.Node).where(models.Node.id == node.id).values(
                    status=status, status_reason=None, **(vars(seen) if seen else {})))
        db.end_operation(session, cluster, 'complete')
    LOG.info('Cluster %s is %s', cluster.uuid, status)


def _fail(task: steps.Task, failure: errors.Failed) -> None:
    """The operation has failed: write down why, for the cluster, its nodegroups and each node that did not make it."""
    cluster = task.cluster
    status, reason = states.TRANSITIONS['fail'][cluster.status], str(failure)
    diagnosis = failure.diagnosis if isinstance(failure, steps.StackFailed) else None
    with task.world.db.write() as session:
        db.move(session, cluster, 'fail', holder=task.holder, status_reason=reason, **RELEASED)
        for group in cluster.nodegroups:
            blamed = {node.id: diagnosis.reason_for(node.name) for node in group.nodes} if diagnosis else {}
            session.execute(sa.update(models.NodeGroup).where(models.NodeGroup.id == group.id).values(
                status=status, status_reason='; '.join(r for r in blamed.values() if r) or reason))
            session.execute(sa.update(models.Node).where(models.Node.nodegroup_id == group.uuid).values(status=status))
            for node_id, text in blamed.items():
                if text:
                    session.execute(sa.update(models.Node).where(models.Node.id == node_id).values(status_reason=text))
        db.end_operation(session, cluster, 'failed', code=failure.code, text=reason)
    LOG.warning('Cluster %s is %s (%s): %s', cluster.uuid, status, failure.code, reason)
