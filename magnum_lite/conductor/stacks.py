"""One stack, from its first text until it is deleted: what the conductor asks of Heat.

`reconcile` calls `ensure_members` or `ensure_gone` for each stack owner at every visit. Each call
compares the rows with the stack as Heat has listed it, takes the next action, and raises
`errors.Retry` while Heat works, or `errors.Failed`.

The row holds the text that the stack is to have and the text's revision, which is also a tag on the
stack. Comparing both tells whether Heat has this text, whatever happened in between. A text is
always stored before it is sent, so the conductor that adopts the stack after a crash knows what is
in it. Rows are written under the lease, and those of nodes only if the generation has not moved
(`guarded`). See doc/contributor/protocol.md.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from typing import Any, NoReturn

import sqlalchemy as sa
from oslo_log import log
from sqlalchemy import orm

from magnum_lite import certs, clients, db, drivers, errors, keystore, members, models, states
from magnum_lite.conductor import diagnose
from magnum_lite.conductor.task import StackOwner, Task, update_nodegroup
from magnum_lite.models import Cluster, Node, NodeGroup

LOG = log.getLogger(__name__)

#: The client certificate of a new node outlives the stack's own time-out by this: it may join late.
CERTIFICATE_MARGIN = datetime.timedelta(hours=1)
#: Seconds from DELETE_COMPLETE until Heat has removed what belongs to the stack.
CLEARING_UP_S = 0.5
#: Seconds after which a delete is sent again if the stack does not report DELETE_IN_PROGRESS. Heat
#: drops a delete without an error when the stack changes at that moment (heat/engine/stack.py,
#: converge_stack).
DELETE_RESEND_S = 20


class StackFailed(errors.Failed):
    """Heat reports the stack as failed. The diagnosis also names the members that failed."""

    def __init__(self, diagnosis: diagnose.Diagnosis) -> None:
        super().__init__(diagnosis.code, diagnosis.text)
        self.diagnosis = diagnosis


# -- from the first text to a finished stack -------------------------------------------------------


def ensure_members(task: Task, owner: StackOwner) -> None:
    """Make one stack what the rows want, then record what its outputs say.

    Raises Retry while Heat works on it, Failed when it cannot be done. A change that was requested
    while Heat worked is sent afterwards. Members of an older rollout are replaced in batches."""
    if not task.has_work(owner):
        return
    if isinstance(owner, NodeGroup) and owner.status == states.DELETE_IN_PROGRESS:
        ensure_nodegroup_gone(task, owner)
        return
    _check_preconditions(task, owner)
    if owner.stack_id is None:
        ensure_stack(task, owner)
    stack = _get_idle_stack(task, owner)
    has_text = stack.revision == owner.revision
    has_failed = states.is_failed(stack.status)
    if has_text and has_failed:
        _handle_failed_stack(task, owner, stack)
    if (has_failed or not has_text) and task.is_cancelled:
        raise _make_cancelled()
    if not has_text:
        # A conductor died between storing the text and sending it: the members are chosen already.
        send(task, owner, stack)
    in_stack = task.driver.texts.list_numbers(owner.stack_text or {})
    if has_failed:
        choose_members(task, owner, in_stack)
        send(task, owner, stack)
    _mark_arrivals(task, owner, in_stack)
    incomplete_roles = choose_members(task, owner, in_stack)
    if not incomplete_roles:
        finish_stack(task, owner, stack)
        return
    if task.is_cancelled:
        with task.transaction(guarded=True) as session:
            _store_arrivals(session, task, owner)
        raise _make_cancelled()
    # The next batch.
    send(task, owner, stack, incomplete_roles)


def _check_preconditions(task: Task, owner: StackOwner) -> None:
    """Raise Failed if the operation was cancelled before it began here, Retry if the masters have
    to be replaced first."""
    if owner.sent_generation < task.cluster.generation and task.is_cancelled:
        raise _make_cancelled()
    if owner is not task.cluster and task.waits_for_masters:
        raise task.make_retry('the replacement of the masters')


def ensure_stack(task: Task, owner: StackOwner) -> NoReturn:
    """Create the owner's stack, or adopt the one that an earlier try has created. Always raises:
    Retry once there is a stack, Failed if Heat rejects it.

    If Heat reports that the stack exists (`clients.Conflict`), the next visit adopts it."""
    cluster = task.cluster
    if owner.stack_text is not None:
        existing = task.stacks.find(task.name_stack(owner))
        if existing is not None:
            _adopt_stack(task, owner, existing.id)
    rendered = _render(task, owner)
    text = {'template': rendered.template, 'files': rendered.files}
    revision = owner.revision
    if owner.stack_text != text:
        revision += 1
    with task.transaction(owner, guarded=True, stack_text=text, revision=revision) as session:
        db.begin_operation(session, cluster)
    try:
        stack_id = task.stacks.create(
            task.name_stack(owner),
            template=rendered.template,
            files=rendered.files,
            parameters=rendered.parameters,
            timeout_min=task.timeout_min,
            tags=_make_tags(task, owner),
        )
    except clients.Rejected as e:
        raise errors.Failed(diagnose.find_code(str(e)), f'Heat refused the stack. {e}') from e
    try:
        _adopt_stack(task, owner, stack_id)
    except errors.LeaseLost:
        # This conductor was suspended for longer than its lease. If the owner was deleted in that
        # time, no row names this stack.
        if not db.is_stack_wanted(task.services.db, owner):
            with contextlib.suppress(clients.NotFound):
                task.stacks.delete(stack_id)
        raise


def _adopt_stack(task: Task, owner: StackOwner, stack_id: str) -> NoReturn:
    """Record the id of the owner's stack, and wait for it. Raises Retry."""
    with task.transaction(
        owner, stack_id=stack_id, sent_generation=task.cluster.generation
    ) as session:
        session.execute(
            sa.update(NodeGroup)
            .where(NodeGroup.id.in_([group.id for group in task.list_groups(owner)]))
            .values(stack_id=stack_id)
        )
    LOG.info('Cluster %s: stack %s is being created', task.cluster.uuid, stack_id)
    raise task.make_retry(f'stack {stack_id}')


def _get_idle_stack(task: Task, owner: StackOwner) -> clients.Stack:
    """Return the owner's stack when Heat does not work on it. Raises Retry while it does, Failed if
    there is no such stack."""
    stack = task.find_stack(owner)
    if stack is None or stack.status.startswith('DELETE_'):
        raise errors.Failed(
            'STACK_GONE',
            f'{errors.CODES["STACK_GONE"]}: {owner.stack_id}. Delete the '
            f'{"cluster" if owner is task.cluster else "nodegroup"}.',
        )
    if states.is_busy(stack.status):
        if task.is_cancelled and not task.is_changing_masters:
            task.renew_lease()
            task.stacks.cancel(stack.id)
        raise task.make_retry(f'stack {stack.id}')
    return stack


def finish_stack(task: Task, owner: StackOwner, stack: clients.Stack) -> None:
    """Record that the stack is as the rows want it: its outputs, and that its nodegroups are
    done."""
    task.renew_lease()
    observed = task.driver.read_outputs(task.stacks.get_outputs(stack.id))
    addresses = observed.addresses
    columns: dict[str, Any] = {}
    if owner is task.cluster:
        columns = {'api_address': observed.api_address, 'coe_version': observed.coe_version}
    with task.transaction(owner, guarded=True, **columns) as session:
        for group in task.list_groups(owner):
            status = states.TRANSITIONS['done'].get(group.status, group.status)
            update_nodegroup(
                session,
                group,
                status=status,
                status_reason=None,
                error_code=None,
                version=observed.coe_version or group.version,
                node_addresses=addresses.get(group.name, []),
            )
            _finish_members(session, group, observed)
            orm.attributes.set_committed_value(group, 'status', status)


def _finish_members(session: orm.Session, group: NodeGroup, observed: drivers.Observed) -> None:
    """Remove the rows of members that are gone, and record the others as complete."""
    gone_ids = []
    rows = []
    for node in group.nodes:
        if node.status == states.DELETE_IN_PROGRESS:
            gone_ids.append(node.id)
        else:
            server = observed.nodes.get((group.name, node.number))
            # A member that was complete before keeps the version that it was created with.
            is_new = node.version is None or not node.status.endswith('_COMPLETE')
            rows.append(
                {
                    'id': node.id,
                    'status': states.CREATE_COMPLETE,
                    'status_reason': None,
                    'error_code': None,
                    'version': observed.coe_version if is_new else node.version,
                    **(vars(server) if server else {}),
                }
            )
    session.execute(sa.delete(Node).where(Node.id.in_(gone_ids)))
    if rows:
        session.execute(sa.update(Node), rows)


def advance_rotation(task: Task) -> NoReturn:
    """Begin the next phase of the rotation of authorities: every member has what this phase brings.

    Always raises: Retry, or Failed if the operation is cancelled."""
    if task.is_cancelled:
        raise _make_cancelled()
    with task.transaction(guarded=True) as session:
        db.advance_rotation(session, task.cluster)
    LOG.info(
        'Cluster %s: phase %s of the exchange of its authorities begins',
        task.cluster.uuid,
        task.cluster.rotation_phase + 1,
    )
    raise errors.Retry(0)


# -- which members, and what is sent ---------------------------------------------------------------


def choose_members(task: Task, owner: StackOwner, in_stack: Mapping[str, set[int]]) -> set[str]:
    """Mark, on the loaded rows only, the members to replace next.

    `in_stack`: the numbers of the members in the stored text, by role. Returns the roles whose
    members in the stack differ from the wanted ones, and that may change now."""
    driver = task.driver
    nodes_per_wave = task.services.conf.cluster_heat.nodes_per_wave
    incomplete_roles = set()
    for group in task.list_groups(owner):
        role = group.stack_role
        present = in_stack.get(role, set())
        if (
            states.is_busy(group.status)
            and driver.explain_irreplaceable(task.cluster, role) is None
        ):
            room = None
            # Masters are replaced one at a time whatever room there is.
            if nodes_per_wave and role != 'master':
                room = nodes_per_wave - len(_list_wanted_numbers(group) - present)
            members.replace(task.cluster, group, room)
        if _list_wanted_numbers(group) != present:
            incomplete_roles.add(role)
    return _select_changeable(task, incomplete_roles)


def _list_wanted_numbers(group: NodeGroup) -> set[int]:
    return {node.number for node in members.list_wanted(group)}


def _select_changeable(task: Task, roles: set[str]) -> set[str]:
    """Return those of `roles` that may change now.

    While masters are replaced one by one nothing else changes, so what fails then is known to be a
    master's."""
    return roles & {'master'} if roles and task.waits_for_masters else roles


def send(
    task: Task,
    owner: StackOwner,
    stack: clients.Stack,
    incomplete_roles: set[str] | None = None,
) -> NoReturn:
    """Have Heat update the stack to the stored text with the members that are wanted now.

    `incomplete_roles`: the roles to update, where the stack is complete with the text that was sent
    before. None: it is not, because Heat may not have got that text or has failed to apply it; then
    all roles are sent. Always raises: Retry when Heat has accepted the update, Failed if it rejects
    it."""
    driver = task.driver
    roles = incomplete_roles
    if roles is None:
        roles = _select_changeable(task, {group.stack_role for group in task.list_groups(owner)})
    rendered = _render(task, owner)
    text = driver.texts.replace_members(owner.stack_text or {}, rendered.files, roles)
    may_be_recreated = _list_recreatable(task, owner, stack, roles)
    _store_text(task, owner, text, is_previous_done=incomplete_roles is not None)
    try:
        task.stacks.update(
            stack.id,
            template=text['template'],
            files=text['files'],
            parameters=driver.texts.select_parameters(text, rendered.parameters, may_be_recreated),
            timeout_min=task.timeout_min,
            tags=_make_tags(task, owner),
        )
    except clients.Rejected as e:
        raise errors.Failed(
            diagnose.find_code(str(e)), f'Heat refused the change of the stack. {e}'
        ) from e
    LOG.info(
        'Cluster %s: stack %s is being updated (revision %s)',
        task.cluster.uuid,
        stack.id,
        owner.revision,
    )
    raise task.make_retry(f'stack {stack.id}')


def _list_recreatable(
    task: Task, owner: StackOwner, stack: clients.Stack, roles: set[str]
) -> dict[str, set[int]]:
    """List the members, by role, whose servers may get new user-data, which recreates them.

    These are members that have not reported yet, or have failed. Where the stack has another text
    than the stored one, it is unknown which members it lacks: then all."""
    is_text_unknown = stack.revision != owner.revision
    numbers = {}
    for group in task.list_groups(owner):
        if group.stack_role in roles:
            numbers[group.stack_role] = {
                node.number
                for node in members.list_wanted(group)
                if is_text_unknown or not node.status.endswith('_COMPLETE')
            }
    return numbers


def _store_text(
    task: Task, owner: StackOwner, text: Mapping[str, Any], *, is_previous_done: bool
) -> None:
    """Store the text that will be sent, its revision, and the members that are in it.

    `is_previous_done`: the stack is complete with what was sent before."""
    cluster = task.cluster
    in_stack = task.driver.texts.list_numbers(owner.stack_text or {})
    previous_generation = owner.sent_generation
    with task.transaction(
        owner,
        guarded=True,
        stack_text=text,
        revision=owner.revision + 1,
        sent_generation=cluster.generation,
    ) as session:
        if is_previous_done and previous_generation == cluster.generation:
            # One more batch of the same operation, and each batch has the operation's time.
            session.execute(
                sa.update(Cluster)
                .where(Cluster.id == cluster.id)
                .values(updated_at=models.utcnow())
            )
        elif is_previous_done and not cluster.rotation_phase and _is_only_busy(task, owner):
            db.end_operations(session, cluster, 'complete', through=previous_generation)
        db.begin_operation(session, cluster)
        _store_arrivals(session, task, owner)
        for group in task.list_groups(owner):
            _store_members(session, group, in_stack.get(group.stack_role, set()))


def _is_only_busy(task: Task, owner: StackOwner) -> bool:
    """Whether no other stack of the cluster has work.

    Where several have, it is unknown which of them an operation is about; the operations then end
    together, with the cluster's status."""
    return [other for other in task.cluster.owners if task.has_work(other)] == [owner]


def _store_members(session: orm.Session, group: NodeGroup, in_stack: set[int]) -> None:
    """Store what `members` changed on the loaded rows.

    A member that is not wanted loses its row at once if it is not in the stack, else when the stack
    is complete without it."""
    update_nodegroup(session, group, next_number=group.next_number)
    for node in list(group.nodes):
        if node.id is None:
            session.add(node)
        elif node.status == states.DELETE_IN_PROGRESS:
            is_row = Node.id == node.id
            if node.number in in_stack:
                session.execute(
                    sa.update(Node)
                    .where(is_row)
                    .values(status=node.status, status_reason=None, error_code=None)
                )
            else:
                session.execute(sa.delete(Node).where(is_row))


def _mark_arrivals(task: Task, owner: StackOwner, in_stack: Mapping[str, set[int]]) -> None:
    """Mark, on the loaded rows only, the members of a complete stack as complete: a later failure
    is not theirs."""
    for group in task.list_groups(owner):
        present = in_stack.get(group.stack_role, set())
        for node in group.nodes:
            if node.status == states.CREATE_IN_PROGRESS and node.number in present:
                node.status = states.CREATE_COMPLETE


def _store_arrivals(session: orm.Session, task: Task, owner: StackOwner) -> None:
    """Store what `_mark_arrivals` has marked."""
    arrived = [
        node.id
        for group in task.list_groups(owner)
        for node in group.nodes
        if node.id is not None and node.status == states.CREATE_COMPLETE
    ]
    session.execute(
        sa.update(Node)
        .where(Node.id.in_(arrived), Node.status == states.CREATE_IN_PROGRESS)
        .values(status=states.CREATE_COMPLETE)
    )


def _render(task: Task, owner: StackOwner) -> drivers.Rendered:
    """Render the owner's stack from its rows, with the templates of this release. Raises Failed."""
    conf = task.services.conf
    driver = task.driver
    pairs = _load_secrets(task, driver)
    user = pairs.pop(keystore.CLOUD_USER, None)
    login = task.services.cloud.build_login(user.certificate, user.private_key) if user else None
    with task.fail_on_driver_error():
        if isinstance(owner, NodeGroup):
            outputs = task.stacks.get_outputs(task.cluster.stack_id or '')
            return driver.render_nodegroup(
                conf, task.cluster, owner, pairs, outputs=outputs, login=login
            )
        return driver.render(conf, task.cluster, pairs, login)


def _load_secrets(task: Task, driver: drivers.Driver) -> dict[str, certs.Pair]:
    """Load the cluster's keys, and issue the client certificates that new nodes join with, by
    name."""
    pairs = task.services.keystore.load_pairs(task.services.db, task.cluster)
    joining_life = datetime.timedelta(minutes=task.timeout_min) + CERTIFICATE_MARGIN
    certificates = {
        name: certs.issue_client(
            pairs[spec.signed_by],
            common_name=spec.common_name,
            organization=spec.organization,
            life=None if spec.lasting else joining_life,
        )
        for name, spec in driver.certificates.items()
    }
    return pairs | certificates


def _make_tags(task: Task, owner: StackOwner) -> list[str]:
    return [clients.TAG, task.cluster.uuid, f'rev-{owner.revision}']


# -- failures --------------------------------------------------------------------------------------


def _handle_failed_stack(task: Task, owner: StackOwner, stack: clients.Stack) -> None:
    """End what has failed. Raises Failed, unless another change was requested since it was sent:
    that one gets its try, and the failed members are marked for replacement."""
    task.renew_lease()
    if task.is_cancelled and not task.is_changing_masters:
        raise _make_cancelled()
    diagnosis = diagnose.explain(task, stack)
    if owner.sent_generation >= task.cluster.generation:
        raise StackFailed(diagnosis)
    with task.transaction() as session:
        db.end_operations(
            session,
            task.cluster,
            'failed',
            through=owner.sent_generation,
            code=diagnosis.code,
            text=diagnosis.text,
        )
    # A node that has reported a failure never reports again, so it has to be replaced.
    for group in task.list_groups(owner):
        for node, fault in diagnosis.list_faults(group):
            if node.status != states.DELETE_IN_PROGRESS and _must_be_replaced(group, fault):
                node.status = states.CREATE_FAILED


def _must_be_replaced(group: NodeGroup, fault: diagnose.Fault) -> bool:
    """Whether a member with a fault has to be replaced, rather than waited for.

    A new master that has not reported how it ended may already have taken the place of another one,
    and have the only copy of the cluster's state. So it is never thrown away: when Heat is sent the
    text again, it waits for the same master."""
    return (
        group.role != 'master'
        or group.status == states.CREATE_IN_PROGRESS
        or fault.code != 'INTERNAL'
    )


def _make_cancelled() -> errors.Failed:
    return errors.Failed(
        'CANCELLED',
        f'{errors.CODES["CANCELLED"]}. Members that were made by then are there; the '
        'next change goes on from what is.',
    )


def record_stack_failure(task: Task, owner: StackOwner, failure: errors.Failed) -> None:
    """Record why an owner's stack has failed, for its nodegroups and each node that failed.

    The stack is left alone for the rest of the operation; the cluster's other stacks go on.
    """
    diagnosis = failure.diagnosis if isinstance(failure, StackFailed) else None
    with task.transaction(guarded=True) as session:
        for group in task.list_groups(owner):
            if states.is_busy(group.status):
                record_failure(session, group, failure, diagnosis)
    LOG.warning(
        'Cluster %s: the stack of %s has failed (%s): %s',
        task.cluster.uuid,
        'the cluster' if owner is task.cluster else f'nodegroup {owner.uuid}',
        failure.code,
        failure,
    )


def record_failure(
    session: orm.Session,
    group: NodeGroup,
    failure: errors.Failed,
    diagnosis: diagnose.Diagnosis | None = None,
) -> None:
    """Record that a nodegroup has failed and why, on its row and on those of nodes with a fault of
    their own."""
    faults = diagnosis.list_faults(group) if diagnosis else []
    reason = str(failure)
    code = failure.code
    if faults:
        reason = '; '.join(fault.text for _, fault in faults)
        code = faults[0][1].code
    status = states.TRANSITIONS['fail'][group.status]
    update_nodegroup(
        session,
        group,
        status=status,
        status_reason=reason[: diagnose.MAX_REASON],
        error_code=code,
    )
    # New members without a fault are not complete either. Masters are left: see _must_be_replaced.
    if group.role != 'master' or status == states.CREATE_FAILED:
        session.execute(
            sa.update(Node)
            .where(
                Node.nodegroup_id == group.uuid,
                Node.status == states.CREATE_IN_PROGRESS,
            )
            .values(status=states.CREATE_FAILED)
        )
    for node, fault in faults:
        if _must_be_replaced(group, fault):
            session.execute(
                sa.update(Node)
                .where(Node.id == node.id)
                .values(
                    status=states.CREATE_FAILED, status_reason=fault.text, error_code=fault.code
                )
            )
    orm.attributes.set_committed_value(group, 'status', status)


# -- the end ---------------------------------------------------------------------------------------


def ensure_gone(task: Task, owner: StackOwner) -> None:
    """Delete the owner's stack, and return when it is gone. Raises Retry until then, Failed if Heat
    cannot delete it."""
    cluster = task.cluster
    stack = task.find_stack(owner)
    if owner.stack_id is None and owner.stack_text is not None:
        # A conductor may have died between creating the stack and storing its id.
        stack = task.stacks.find(task.name_stack(owner))
    if stack is None:
        return
    if stack.status == 'DELETE_COMPLETE':
        # Heat still removes what belongs to the stack, and needs the role that we have on the
        # project for that.
        raise errors.Retry(CLEARING_UP_S)
    if stack.status == 'DELETE_FAILED' and owner.sent_generation == cluster.generation:
        task.renew_lease()
        raise StackFailed(diagnose.explain(task, stack))
    if _needs_delete(task, owner, stack):
        with task.transaction() as session:
            db.begin_operation(session, cluster)
        with contextlib.suppress(clients.NotFound):
            task.stacks.delete(stack.id)
        task.update(owner, stack_id=stack.id, sent_generation=cluster.generation)
        LOG.info('Cluster %s: stack %s is being deleted', cluster.uuid, stack.id)
    raise task.make_retry(f'stack {stack.id}')


def _needs_delete(task: Task, owner: StackOwner, stack: clients.Stack) -> bool:
    """Whether Heat has to be sent the delete: once for each generation, whatever the stack reports.

    Heat may have lost the delete that it reports as in progress, with the memory of its engine. It
    accepts another one and begins again."""
    if owner.sent_generation != task.cluster.generation:
        return True
    if stack.status == 'DELETE_IN_PROGRESS':
        return False
    # Where a create is cancelled, this generation's request to Heat was the create.
    return task.cluster.status == states.CREATE_IN_PROGRESS or task.age_s > DELETE_RESEND_S


def ensure_nodegroup_gone(task: Task, group: NodeGroup) -> None:
    """Delete a further nodegroup: its stack, then its row. Raises as `ensure_gone` does."""
    ensure_gone(task, group)
    with task.transaction(guarded=True) as session:
        session.execute(sa.delete(NodeGroup).where(NodeGroup.id == group.id))
    LOG.info('Cluster %s: nodegroup %s is deleted', task.cluster.uuid, group.name)
    task.cluster.nodegroups.remove(group)
