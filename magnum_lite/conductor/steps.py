"""The steps that make the world match a row, each of them idempotent.

A step does one outside thing and writes down that it did, or finds that it was done. It may die
anywhere: between the call and the note, the next conductor runs it again, so every outside thing is
named after a uuid of ours and is looked for before it is made. A step that must wait raises
`errors.Retry`, one that cannot succeed `errors.Failed`.

Whoever has a stack of its own, the cluster or a further nodegroup, is an owner. The row has the
text that the stack is to have, with a number (`revision`) that the stack bears as a tag: so one
look at Heat says whether it has this text, whatever died meanwhile and whatever else was sent.
Nothing is sent before its text is stored.

Every write goes through `Task.transaction` or `db.move` with the lease as its guard.
"""

from __future__ import annotations

import contextlib
import datetime
import random
import secrets as token
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from oslo_config import cfg
from oslo_log import log
from sqlalchemy import orm

from magnum_lite import (
    certs,
    clients,
    db,
    drivers,
    errors,
    keystore,
    members,
    models,
    notify,
    states,
)
from magnum_lite.conductor import diagnose

LOG = log.getLogger(__name__)

#: Characters of a cluster's name that its stacks' names begin with; the uuid behind it makes it
#: unlike any other.
STACK_NAME_PREFIX = 30
#: A node may join this long after the stack's own time is over.
CERTIFICATE_MARGIN = datetime.timedelta(hours=1)
#: Seconds until Heat has forgotten a stack that is deleted.
CLEARING_UP_S = 0.5
#: Seconds after which a stack that was to be deleted and does not say that it is being deleted is
#: deleted again. Heat drops a delete without a word when the stack changes at that moment
#: (heat/engine/stack.py, converge_stack).
UNHEARD_S = 20
#: Minutes that Heat has beyond a stack's time to say itself that the stack has failed.
OVERDUE_MARGIN_MIN = 10

Owner = models.Cluster | models.NodeGroup


@dataclass(frozen=True)
class Services:
    """What the steps act on: configuration, database, cloud, key store, the loaded drivers, and who
    is told of it."""

    conf: cfg.ConfigOpts
    db: db.Database
    cloud: clients.Cloud
    keystore: keystore.KeyStore
    drivers: Mapping[str, drivers.Driver]
    notifier: notify.Notifier


@dataclass(frozen=True)
class Task:
    """One cluster, leased by `holder`. `seen` is what Heat just said of its stacks by id; what is
    missing is gone.

    `as_admin`: its project is disabled or gone, so calls are made with the token of the service's
    own project."""

    services: Services
    cluster: models.Cluster
    holder: str
    seen: Mapping[str, clients.Stack]
    as_admin: bool = False

    @property
    def stacks(self) -> clients.Stacks:
        """The stacks of the cluster's project."""
        return self.services.cloud.stacks(self.cluster.project_id, as_admin=self.as_admin)

    def groups_of(self, owner: Owner) -> list[models.NodeGroup]:
        """The nodegroups whose members are in the owner's stack."""
        return (
            [owner]
            if isinstance(owner, models.NodeGroup)
            else [g for g in owner.nodegroups if g.is_default]
        )

    def is_busy(self, owner: Owner) -> bool:
        """Whether a nodegroup of the owner's stack has work."""
        return any(states.is_busy(group.status) for group in self.groups_of(owner))

    @property
    def waits_for_masters(self) -> bool:
        """Whether masters are being replaced that others have to wait for."""
        return any(
            g.role == 'master' and states.is_busy(g.status) for g in self.cluster.nodegroups
        ) and (members.has_outdated_masters(self.cluster))

    @property
    def masters_change(self) -> bool:
        """Whether a master of a cluster that runs is on its way in or out, which is not to be
        stopped half-way."""
        return self.cluster.status == states.UPDATE_IN_PROGRESS and any(
            states.is_busy(node.status)
            for group in self.cluster.nodegroups
            if group.role == 'master'
            for node in group.nodes
        )

    def stack_name(self, owner: Owner) -> str:
        """The name of the owner's stack, which makes a create that is tried again find the first
        one."""
        return f'{self.cluster.name[:STACK_NAME_PREFIX]}-{owner.uuid}'

    def stack(self, owner: Owner) -> clients.Stack | None:
        """What Heat said of the owner's stack."""
        return self.seen.get(owner.stack_id or '')

    @property
    def driver(self) -> drivers.Driver:
        """The driver that the cluster was made with. Raises Failed if the operator has taken it
        away."""
        try:
            return self.services.drivers[self.cluster.driver]
        except KeyError:
            raise errors.Failed(
                'INTERNAL',
                f'The driver {self.cluster.driver} of this cluster is not installed. An '
                'operator has to put it back.',
            ) from None

    @property
    def timeout_min(self) -> int:
        """Minutes that the operation may take."""
        return timeout_min(self.services.conf, self.cluster.status, self.cluster.create_timeout)

    @property
    def is_cancelled(self) -> bool:
        """Whether what is asked for now is to be stopped."""
        return self.cluster.cancelled_generation >= self.cluster.generation

    @contextlib.contextmanager
    def transaction(
        self, owner: Owner | None = None, *, guarded: bool = False, **columns: Any
    ) -> Iterator[orm.Session]:
        """A transaction that renews the lease and writes columns of the owner, default the cluster,
        and more.

        Raises LeaseLost if the lease is not ours any more, or, if `guarded`, when something else
        was asked for since the row was read: so must be written what rests on the rows of nodes,
        which a request may have changed."""
        group = owner if isinstance(owner, models.NodeGroup) else None
        with db.lease_transaction(
            self.services.db,
            self.cluster,
            self.holder,
            lease_s=self.services.conf.conductor.lease,
            guarded=guarded,
            **({} if group else columns),
        ) as session:
            if group and columns:
                session.execute(
                    sa.update(models.NodeGroup)
                    .where(models.NodeGroup.id == group.id)
                    .values(**columns)
                )
            yield session
        for name, value in columns.items() if group else ():
            orm.attributes.set_committed_value(group, name, value)

    def renew_lease(self) -> None:
        """Prove that the cluster is still ours, before a call to the cloud. Raises LeaseLost.

        A conductor that was suspended for longer than its lease stops here, so it cannot act on
        what is out of date.
        """
        self.update()

    def update(self, owner: Owner | None = None, **columns: Any) -> None:
        """Renew the lease and write columns of the owner, default the cluster. Raises LeaseLost."""
        with self.transaction(owner, **columns):
            pass

    @property
    def age_s(self) -> float:
        """Seconds since the operation was asked for."""
        return (
            models.utcnow() - (self.cluster.updated_at or self.cluster.created_at)
        ).total_seconds()

    def is_overdue(self) -> bool:
        """Whether the operation's time is over. Heat watches over its own part; this is for when it
        does not."""
        return states.is_busy(self.cluster.status) and is_overdue(self.timeout_min, self.age_s)

    def wait(self, what: str = 'its stack') -> errors.Retry:
        """The exception that says: nothing is wrong, look again after a while. Raises Failed if the
        time is over."""
        if self.is_overdue():
            raise errors.Failed(
                'TIMEOUT',
                f'{errors.CODES["TIMEOUT"]}: {what} is not done after '
                f'{self.age_s / 60:.0f} minutes, and {self.timeout_min} were given',
            )
        return errors.Retry(interval_s(self.services.conf.conductor.watch_interval, self.age_s))


def timeout_min(conf: cfg.ConfigOpts, status: str, create_timeout: int | None) -> int:
    """Minutes that what a status asks for may take."""
    if status == states.DELETE_IN_PROGRESS:
        return int(conf.cluster_heat.delete_timeout)
    if status == states.CREATE_IN_PROGRESS:
        return create_timeout or int(conf.cluster_heat.create_timeout)
    return int(conf.cluster_heat.update_timeout)


def is_overdue(minutes: int, age_s: float) -> bool:
    """Whether an operation that was asked for so long ago has had its time, and Heat the margin to
    say so itself."""
    return age_s > (minutes + OVERDUE_MARGIN_MIN) * 60


def interval_s(base_s: float, age_s: float) -> float:
    """How long to wait before the next look: often while work is young, seldom when it drags on,
    never in step."""
    return min(base_s * (1 + max(age_s, 0) / 120), base_s * 10) * random.uniform(0.85, 1.15)


# -- before anything is asked of Heat --------------------------------------------------------------


def ensure_project_role(task: Task) -> None:
    """Give the service its role on the project, before anything is asked of Heat for this cluster.

    A role that is lost later is given again by `service.follow`, when calls have failed.
    """
    if task.cluster.stack_id is not None or task.as_admin:
        return
    task.renew_lease()
    try:
        task.services.cloud.grant_roles(task.cluster.project_id)
    except clients.Rejected as e:
        raise errors.Failed(
            'INTERNAL',
            f'The service may not give itself a role on the project. {e}. An operator '
            'has to make the service user an admin, or to grant the roles and to empty [identity] '
            'project_roles.',
        ) from e


def ensure_keys(task: Task) -> None:
    """Make the authorities and key pairs that the driver asks for, those that are missing, in one
    transaction.

    While authorities are exchanged each has its successor beside it. A bare key pair has none.
    """
    cluster = task.cluster
    if cluster.stack_id is not None and not cluster.rotation_phase:
        return
    have = {(key.purpose, key.is_next) for key in db.list_keys(task.services.db, cluster.uuid)}
    life = datetime.timedelta(days=task.services.conf.cluster.ca_days)
    made = {}
    for purpose, spec in task.driver.keys.items():
        for is_next in (False, True) if cluster.rotation_phase and spec.kind == 'ca' else (False,):
            if (purpose, is_next) in have:
                continue
            if spec.kind == 'ca':
                made[purpose, is_next] = certs.make_ca(
                    spec.common_name, life=life, algorithm=spec.algorithm
                )
            else:
                made[purpose, is_next] = certs.make_keypair(algorithm=spec.algorithm)
    if made:
        with task.transaction() as session:
            for (purpose, is_next), pair in made.items():
                task.services.keystore.put(session, cluster.uuid, purpose, pair, is_next=is_next)


def ensure_cluster_user(task: Task) -> None:
    """Make the user that a cluster has in the cloud, if it is to have one, with roles on its
    project.

    Its password is stored first and never changes, so that whoever makes it again means the same
    user."""
    services, cluster = task.services, task.cluster
    if cluster.stack_id is not None:
        return
    with _driver_errors(task):
        if not task.driver.wants_cloud_user(services.conf, cluster):
            return
    if _cloud_user(task) is None:
        made = certs.Pair(
            '', f'{token.token_urlsafe(32)}-aA1'
        )  # of all kinds that rules for passwords ask for
        with task.transaction() as session:
            services.keystore.put(session, cluster.uuid, keystore.CLOUD_USER, made)
    row = _cloud_user(task)
    if row is None or row.certificate:
        return
    task.renew_lease()
    try:
        user_id = services.cloud.make_user(cluster.uuid, services.keystore.open(row).private_key)
        services.cloud.grant_user(user_id, cluster.project_id)
    except clients.Rejected as e:
        raise errors.Failed(
            'INTERNAL',
            f'The service may not make a user for this cluster. {e}. An operator has to '
            'give it the role admin on the domain that [trust] names.',
        ) from e
    try:
        with task.transaction() as session:
            session.execute(
                sa.update(models.Key).where(models.Key.id == row.id).values(certificate=user_id)
            )
    except errors.LeaseLost:
        if (
            _cloud_user(task) is None
        ):  # the cluster was deleted while we were stopped: nobody knows of this user
            services.cloud.remove_user(cluster.uuid, user_id)
        raise


def ensure_no_cluster_user(task: Task) -> None:
    """Remove the user that a cluster has in the cloud, before anything else: nothing inside gets a
    token any more."""
    row = _cloud_user(task)
    if row is not None:
        task.renew_lease()
        task.services.cloud.remove_user(task.cluster.uuid, row.certificate)
        with task.transaction() as session:
            session.execute(sa.delete(models.Key).where(models.Key.id == row.id))


def _cloud_user(task: Task) -> models.Key | None:
    """What is stored of the cluster's user. It is not opened: a delete must not need the key
    store."""
    return next(
        (
            key
            for key in db.list_keys(task.services.db, task.cluster.uuid)
            if key.purpose == keystore.CLOUD_USER
        ),
        None,
    )


def secrets(task: Task) -> dict[str, certs.Pair]:
    """The cluster's keys, and the client certificates of new nodes, by name."""
    pairs = task.services.keystore.load(task.services.db, task.cluster)
    life = datetime.timedelta(minutes=task.timeout_min) + CERTIFICATE_MARGIN
    joining = {
        name: certs.issue_client(
            pairs[spec.signed_by],
            common_name=spec.common_name,
            organization=spec.organization,
            life=None if spec.lasting else life,
        )
        for name, spec in task.driver.certificates.items()
    }
    return pairs | joining


# -- one stack -------------------------------------------------------------------------------------


def ensure_members(task: Task, owner: Owner) -> None:
    """Make one stack what the rows want, and write down what it then says. Raises Retry while Heat
    works on it.

    A change that came while Heat worked is sent when it is done; members of an older rollout are
    replaced batch by batch."""
    if not task.is_busy(owner):
        return
    if isinstance(owner, models.NodeGroup) and owner.status == states.DELETE_IN_PROGRESS:
        ensure_nodegroup_gone(task, owner)
        return
    _check_turn(task, owner)
    if owner.stack_id is None:
        ensure_stack(task, owner)
    stack = _stack_at_rest(task, owner)
    has_text, failed = stack.revision == owner.revision, states.is_failed(stack.status)
    if has_text and failed:
        _face_failure(task, owner, stack)
    if task.is_cancelled and (failed or not has_text):
        raise _cancelled()
    if not has_text:  # what was not sent before somebody died has its batch chosen already
        send(task, owner, stack, set(), settled=False)
    if failed:
        send(task, owner, stack, choose_members(task, owner), settled=False)
    _note_arrivals(task, owner)
    if lacking := choose_members(task, owner):
        _go_on(task, owner, stack, lacking)
    settle(task, owner, stack)


def _check_turn(task: Task, owner: Owner) -> None:
    """Raise Failed for what was stopped before it began, Retry for a nodegroup whose masters are
    outdated."""
    if task.is_cancelled and owner.sent_generation < task.cluster.generation:
        raise _cancelled()
    if owner is not task.cluster and task.waits_for_masters:
        raise task.wait('the replacement of the masters')


def _go_on(task: Task, owner: Owner, stack: clients.Stack, lacking: set[str]) -> None:
    """A stack is complete, and there is more to do: have the next members made, unless somebody
    wants it stopped."""
    if task.is_cancelled:
        with task.transaction(guarded=True) as session:
            _write_arrivals(session, task, owner)
        raise _cancelled()
    send(task, owner, stack, lacking, settled=True)


def _stack_at_rest(task: Task, owner: Owner) -> clients.Stack:
    """The owner's stack, when Heat does not work on it. Raises Retry while it does, Failed when the
    stack is gone."""
    stack = task.stack(owner)
    if stack is None or stack.status.startswith('DELETE_'):
        raise errors.Failed(
            'STACK_GONE',
            f'{errors.CODES["STACK_GONE"]}: {owner.stack_id}. Delete the '
            f'{"cluster" if owner is task.cluster else "nodegroup"}.',
        )
    if states.is_busy(stack.status):
        if task.is_cancelled and not task.masters_change:
            task.renew_lease()
            task.stacks.cancel(stack.id)
        raise task.wait(f'stack {stack.id}')
    return stack


def _face_failure(task: Task, owner: Owner, stack: clients.Stack) -> None:
    """A stack failed. That is the end, unless something else was asked for meanwhile, which then
    gets its try."""
    task.renew_lease()
    if task.is_cancelled and not task.masters_change:
        raise _cancelled()
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
    for group in task.groups_of(
        owner
    ):  # a node that has reported a failure never reports again: it is replaced
        for node in members.list_wanted(group):
            if _failed_for_good(group, diagnosis.of(group, node)):
                node.status = states.CREATE_FAILED


def _failed_for_good(group: models.NodeGroup, fault: diagnose.Fault | None) -> bool:
    """Whether a member is to be replaced that is in a stack that failed.

    A new master that has not said how it ended may have taken the place of another one already, and
    all that the cluster knows is with it. So it is never thrown away: when Heat is sent the text
    again it waits for the same master."""
    return fault is not None and (
        group.role != 'master'
        or group.status == states.CREATE_IN_PROGRESS
        or fault.code != 'INTERNAL'
    )


def _cancelled() -> errors.Failed:
    return errors.Failed(
        'CANCELLED',
        f'{errors.CODES["CANCELLED"]}. Members that were made by then are there; the '
        'next change goes on from what is.',
    )


class StackFailed(errors.Failed):
    """Heat gave the stack up; the diagnosis also says which members did not make it."""

    def __init__(self, diagnosis: diagnose.Diagnosis) -> None:
        super().__init__(diagnosis.code, diagnosis.text)
        self.diagnosis = diagnosis


def _rendered(task: Task, owner: Owner) -> drivers.Rendered:
    """The owner's stack as the rows want it, rendered by the release that runs now. Raises
    Failed."""
    conf, cluster, pairs = task.services.conf, task.cluster, secrets(task)
    user = pairs.pop(keystore.CLOUD_USER, None)
    login = task.services.cloud.login(user.certificate, user.private_key) if user else None
    with _driver_errors(task):
        if isinstance(owner, models.NodeGroup):
            outputs = task.stacks.outputs(cluster.stack_id or '')
            return task.driver.render_nodegroup(
                conf, cluster, owner, pairs, outputs=outputs, login=login
            )
        return task.driver.render(conf, cluster, pairs, login)


@contextlib.contextmanager
def _driver_errors(task: Task) -> Iterator[None]:
    """Have what is wrong with a driver folder, or with a default of the operator, fail the
    operation."""
    try:
        yield
    except errors.DriverError as e:
        LOG.error('Cluster %s: %s', task.cluster.uuid, e)
        raise errors.Failed(
            'INTERNAL', f'The template of this cluster could not be made: {e}'
        ) from e


def _tags(task: Task, owner: Owner) -> list[str]:
    return [clients.TAG, task.cluster.uuid, f'rev-{owner.revision}']


def ensure_stack(task: Task, owner: Owner) -> None:
    """Create the owner's stack, or find the one that an earlier try has made. Raises Retry when
    there is one.

    The text is stored before it is sent: whoever adopts the stack after a crash knows what is in
    it. If Heat says that the stack exists (`clients.Conflict`), the next visit finds it."""
    cluster = task.cluster
    if owner.stack_text is not None:
        found = task.stacks.find(task.stack_name(owner))
        if found is not None:
            _adopt(task, owner, found.id)
    rendered = _rendered(task, owner)
    text = {'template': rendered.template, 'files': rendered.files}
    with task.transaction(
        owner, guarded=True, stack_text=text, revision=owner.revision + (owner.stack_text != text)
    ) as session:
        db.begin_operation(session, cluster)
    try:
        stack_id = task.stacks.create(
            task.stack_name(owner),
            template=rendered.template,
            files=rendered.files,
            parameters=rendered.parameters,
            timeout_min=task.timeout_min,
            tags=_tags(task, owner),
        )
    except clients.Rejected as e:
        raise errors.Failed(diagnose.code_of(str(e)), f'Heat refused the stack. {e}') from e
    try:
        _adopt(task, owner, stack_id)
    except errors.LeaseLost:
        # We were stopped for longer than a lease. If the owner was deleted meanwhile, nobody knows
        # of this stack.
        if not db.is_stack_wanted(task.services.db, owner):
            with contextlib.suppress(clients.NotFound):
                task.stacks.delete(stack_id)
        raise


def _adopt(task: Task, owner: Owner, stack_id: str) -> None:
    with task.transaction(
        owner, stack_id=stack_id, sent_generation=task.cluster.generation
    ) as session:
        session.execute(
            sa.update(models.NodeGroup)
            .where(models.NodeGroup.id.in_([group.id for group in task.groups_of(owner)]))
            .values(stack_id=stack_id)
        )
    LOG.info('Cluster %s: stack %s is being created', task.cluster.uuid, stack_id)
    raise task.wait(f'stack {stack_id}')


def choose_members(task: Task, owner: Owner) -> set[str]:
    """Choose, in memory, who of a settled stack is replaced next. Returns the roles of which the
    stack lacks anything.

    While masters are replaced one by one nothing else is changed beside it: whatever fails then is
    a master's."""
    there, most = (
        task.driver.texts.numbers(owner.stack_text or {}),
        task.services.conf.cluster_heat.nodes_per_wave,
    )
    for group in task.groups_of(owner):
        if (
            states.is_busy(group.status)
            and task.driver.replaceable(task.cluster, group.stack_role) is None
        ):
            waiting = {node.number for node in members.list_wanted(group)} - there.get(
                group.stack_role, set()
            )
            members.replace(task.cluster, group, most - len(waiting) if most else None)
    lacking = {
        group.stack_role
        for group in task.groups_of(owner)
        if {node.number for node in members.list_wanted(group)}
        != there.get(group.stack_role, set())
    }
    return _now(task, lacking)


def _now(task: Task, roles: set[str]) -> set[str]:
    """Those of `roles` that may change now."""
    return roles & {'master'} if task.waits_for_masters else roles


def _note_arrivals(task: Task, owner: Owner) -> None:
    """Note, in memory, that the members of a stack that is complete are there: what follows may
    fail without them."""
    there = task.driver.texts.numbers(owner.stack_text or {})
    for group in task.groups_of(owner):
        for node in members.list_wanted(group):
            if node.status == states.CREATE_IN_PROGRESS and node.number in there.get(
                group.stack_role, set()
            ):
                node.status = states.CREATE_COMPLETE


def _write_arrivals(session: orm.Session, task: Task, owner: Owner) -> None:
    """Store what `_note_arrivals` has noted."""
    arrived = [
        node.id
        for group in task.groups_of(owner)
        for node in group.nodes
        if node.id is not None and node.status == states.CREATE_COMPLETE
    ]
    session.execute(
        sa.update(models.Node)
        .where(models.Node.id.in_(arrived), models.Node.status == states.CREATE_IN_PROGRESS)
        .values(status=states.CREATE_COMPLETE)
    )


def send(
    task: Task, owner: Owner, stack: clients.Stack, lacking: set[str], *, settled: bool
) -> None:
    """Have Heat make the stack what the rows want: the stored text, with the members that are
    wanted now.

    `lacking`: the roles of which it lacks anything, if that is all that there is to do. What Heat
    may not have got, or has failed to do, is sent whole. `settled`: what was sent before is done,
    and so are the operations that asked for it. (Where several stacks have work it is not known
    which of them an operation is about: those end together.) Raises Retry when Heat has taken it;
    Failed if it will not."""
    cluster, driver = task.cluster, task.driver
    rendered = _rendered(task, owner)
    changed = (
        lacking if settled else _now(task, {group.stack_role for group in task.groups_of(owner)})
    )
    text = driver.texts.with_members(owner.stack_text or {}, rendered.files, changed)
    # Members that are still to report, or have failed to, may be made anew; nobody else reads
    # user-data. Nor is it known who is missing from a stack that has another text than the stored
    # one.
    stale = stack.revision != owner.revision
    young = {
        group.stack_role: {
            node.number
            for node in members.list_wanted(group)
            if stale or not node.status.endswith('_COMPLETE')
        }
        for group in task.groups_of(owner)
        if group.stack_role in changed
    }
    gone = driver.texts.numbers(owner.stack_text or {})
    before = owner.sent_generation
    with task.transaction(
        owner,
        guarded=True,
        stack_text=text,
        revision=owner.revision + 1,
        sent_generation=cluster.generation,
    ) as session:
        if (
            settled and before == cluster.generation
        ):  # one more batch, which has the operation's time for itself
            session.execute(
                sa.update(models.Cluster)
                .where(models.Cluster.id == cluster.id)
                .values(updated_at=models.utcnow())
            )
        elif (
            settled
            and not cluster.rotation_phase
            and [o for o in task.cluster.owners if task.is_busy(o)] == [owner]
        ):
            db.end_operations(session, cluster, 'complete', through=before)
        db.begin_operation(session, cluster)
        _write_arrivals(session, task, owner)
        for group in task.groups_of(owner):
            _write_members(session, group, gone.get(group.stack_role, set()))
    try:
        task.stacks.update(
            stack.id,
            template=text['template'],
            files=text['files'],
            parameters=driver.texts.values(text, rendered.parameters, young),
            timeout_min=task.timeout_min,
            tags=_tags(task, owner),
        )
    except clients.Rejected as e:
        raise errors.Failed(
            diagnose.code_of(str(e)), f'Heat refused the change of the stack. {e}'
        ) from e
    LOG.info(
        'Cluster %s: stack %s is being updated (revision %s)',
        cluster.uuid,
        stack.id,
        owner.revision,
    )
    raise task.wait(f'stack {stack.id}')


def _write_members(session: orm.Session, group: models.NodeGroup, in_stack: set[int]) -> None:
    """Store what `members` changed in memory; the rows of members that the stack has let go, or
    never had, go."""
    session.execute(
        sa.update(models.NodeGroup)
        .where(models.NodeGroup.id == group.id)
        .values(next_number=group.next_number)
    )
    for node in list(group.nodes):
        if node.id is None:
            session.add(node)
        elif node.status == states.DELETE_IN_PROGRESS and node.number not in in_stack:
            session.execute(sa.delete(models.Node).where(models.Node.id == node.id))
        elif node.status == states.DELETE_IN_PROGRESS:
            session.execute(
                sa.update(models.Node)
                .where(models.Node.id == node.id)
                .values(status=node.status, status_reason=None, error_code=None)
            )


def settle(task: Task, owner: Owner, stack: clients.Stack) -> None:
    """The stack is as the rows want it: write down what its outputs say, and that its nodegroups
    are done."""
    task.renew_lease()
    observed = task.driver.read_outputs(task.stacks.outputs(stack.id))
    columns = (
        {}
        if isinstance(owner, models.NodeGroup)
        else {'api_address': observed.api_address, 'coe_version': observed.coe_version}
    )
    groups = task.groups_of(owner)
    with task.transaction(owner, guarded=True, **columns) as session:
        for group in groups:
            status = states.TRANSITIONS['done'].get(group.status, group.status)
            nodes = [node for node in group.nodes if node.status == states.DELETE_IN_PROGRESS]
            session.execute(
                sa.delete(models.Node).where(models.Node.id.in_([node.id for node in nodes]))
            )
            session.execute(
                sa.update(models.NodeGroup)
                .where(models.NodeGroup.id == group.id)
                .values(
                    status=status,
                    status_reason=None,
                    error_code=None,
                    version=observed.coe_version or group.version,
                    node_addresses=observed.addresses.get(group.name, []),
                )
            )
            rows = [
                _node(node, observed.nodes.get((group.name, node.number)), observed.coe_version)
                for node in members.list_wanted(group)
            ]
            if rows:
                session.execute(sa.update(models.Node), rows)
    for group in groups:
        orm.attributes.set_committed_value(
            group, 'status', states.TRANSITIONS['done'].get(group.status, group.status)
        )


def _node(
    node: models.Node, seen: drivers.ObservedNode | None, version: str | None
) -> dict[str, Any]:
    """The columns of a member that is there. One that was there before has the version that it was
    made with."""
    made = states.is_busy(node.status) or states.is_failed(node.status) or node.version is None
    return {
        'id': node.id,
        'status': states.CREATE_COMPLETE,
        'status_reason': None,
        'error_code': None,
        'version': version if made else node.version,
        **(vars(seen) if seen else {}),
    }


def advance_rotation(task: Task) -> None:
    """Every member knows what this phase of the exchange of authorities is about: begin the next.
    Raises Retry."""
    if task.is_cancelled:
        raise _cancelled()
    with task.transaction(guarded=True) as session:
        db.advance_rotation(session, task.cluster)
    LOG.info(
        'Cluster %s: phase %s of the exchange of its authorities begins',
        task.cluster.uuid,
        task.cluster.rotation_phase + 1,
    )
    raise errors.Retry(0)


def note_failure(task: Task, owner: Owner, failure: errors.Failed) -> None:
    """An owner's stack has failed: write down why, for its nodegroups and each node that did not
    make it.

    It is not looked at again in this operation; those of the others go on.
    """
    diagnosis = failure.diagnosis if isinstance(failure, StackFailed) else None
    with task.transaction(guarded=True) as session:
        for group in task.groups_of(owner):
            if states.is_busy(group.status):
                blame(session, group, failure, diagnosis)
    LOG.warning(
        'Cluster %s: the stack of %s has failed (%s): %s',
        task.cluster.uuid,
        'the cluster' if owner is task.cluster else f'nodegroup {owner.uuid}',
        failure.code,
        failure,
    )


def blame(
    session: orm.Session,
    group: models.NodeGroup,
    failure: errors.Failed,
    diagnosis: diagnose.Diagnosis | None = None,
) -> None:
    """Write down that a nodegroup has failed, and why; what is known of a node is written at the
    node."""
    status = states.TRANSITIONS['fail'][group.status]
    blamed = {node.id: diagnosis.of(group, node) for node in group.nodes} if diagnosis else {}
    found = [fault for fault in blamed.values() if fault]
    blamed = {node_id: fault for node_id, fault in blamed.items() if _failed_for_good(group, fault)}
    reason, code = (
        ('; '.join(f.text for f in found), found[0].code) if found else (str(failure), failure.code)
    )
    session.execute(
        sa.update(models.NodeGroup)
        .where(models.NodeGroup.id == group.id)
        .values(status=status, status_reason=reason[: diagnose.LONGEST], error_code=code)
    )
    # Whoever is not blamed and was not there before has not come to be either.
    if group.role != 'master' or status == states.CREATE_FAILED:
        session.execute(
            sa.update(models.Node)
            .where(
                models.Node.nodegroup_id == group.uuid,
                models.Node.status == states.CREATE_IN_PROGRESS,
            )
            .values(status=states.CREATE_FAILED)
        )
    for node_id, fault in blamed.items():
        if fault:
            session.execute(
                sa.update(models.Node)
                .where(models.Node.id == node_id)
                .values(
                    status=states.CREATE_FAILED, status_reason=fault.text, error_code=fault.code
                )
            )
    orm.attributes.set_committed_value(group, 'status', status)
    orm.attributes.set_committed_value(group, 'status_reason', reason)
    orm.attributes.set_committed_value(group, 'error_code', code)


# -- the end ---------------------------------------------------------------------------------------


def ensure_gone(task: Task, owner: Owner) -> None:
    """Delete the owner's stack and wait until it is gone. Raises Retry meanwhile, Failed if Heat
    cannot delete it."""
    cluster = task.cluster
    stack = task.stack(owner)
    if owner.stack_id is None and owner.stack_text is not None:
        stack = task.stacks.find(
            task.stack_name(owner)
        )  # made by one who died before it could say so
    if stack is None:
        return
    if (
        stack.status == 'DELETE_COMPLETE'
    ):  # Heat clears up behind it, with the role that we have on the project
        raise errors.Retry(CLEARING_UP_S)
    if stack.status == 'DELETE_FAILED' and owner.sent_generation == cluster.generation:
        task.renew_lease()
        raise StackFailed(diagnose.explain(task, stack))
    if _is_to_be_deleted(task, owner, stack):
        with task.transaction() as session:
            db.begin_operation(session, cluster)
        with contextlib.suppress(clients.NotFound):
            task.stacks.delete(stack.id)
        task.update(owner, stack_id=stack.id, sent_generation=cluster.generation)
        LOG.info('Cluster %s: stack %s is being deleted', cluster.uuid, stack.id)
    raise task.wait(f'stack {stack.id}')


def _is_to_be_deleted(task: Task, owner: Owner, stack: clients.Stack) -> bool:
    """Whether Heat is to be told: once for each time that something was asked for, whatever the
    stack says.

    Heat may have lost the delete that it says is in progress, with its engine's memory; it takes
    another one and begins anew."""
    if owner.sent_generation != task.cluster.generation:
        return True
    if stack.status == 'DELETE_IN_PROGRESS':
        return False
    # Of a create that is stopped, what was sent is the create.
    return task.cluster.status == states.CREATE_IN_PROGRESS or task.age_s > UNHEARD_S


def ensure_nodegroup_gone(task: Task, group: models.NodeGroup) -> None:
    """Delete a further nodegroup, first its stack, then its row."""
    ensure_gone(task, group)
    with task.transaction(guarded=True) as session:
        session.execute(sa.delete(models.NodeGroup).where(models.NodeGroup.id == group.id))
    LOG.info('Cluster %s: nodegroup %s is deleted', task.cluster.uuid, group.name)
    task.cluster.nodegroups.remove(group)


def ensure_no_load_balancers(task: Task) -> None:
    """Delete what the engine has made in the cloud for services inside the cluster, before the
    network under it goes.

    Raises Retry while there are any. Without a role at Octavia nothing can be done here; what is in
    the way is then named when Heat cannot delete the network."""
    cluster, cloud = task.cluster, task.services.cloud
    text = task.driver.load_balancers_text(cluster)
    if text is None or cluster.stack_id is None or cluster.sent_generation == cluster.generation:
        return
    task.renew_lease()
    try:
        found = cloud.load_balancers(cluster.project_id, text, as_admin=task.as_admin)
        for balancer in found:
            with contextlib.suppress(clients.Conflict):  # it is busy: next time
                cloud.delete_load_balancer(cluster.project_id, balancer.id, as_admin=task.as_admin)
            LOG.info(
                'Cluster %s: load balancer %s (%s) was made inside the cluster and is being '
                'deleted',
                cluster.uuid,
                balancer.id,
                balancer.name,
            )
    except clients.Rejected as e:
        LOG.warning(
            'Cluster %s: load balancers made inside the cluster cannot be looked for: %s',
            cluster.uuid,
            e,
        )
        return
    if found:
        names = ', '.join(f'{b.name} ({b.id}, {b.status})' for b in found)
        try:
            raise task.wait()
        except errors.Failed as e:
            raise errors.Failed(
                'LOADBALANCER',
                f'Load balancers that were made inside the cluster do not go: {names}. '
                'Delete them, then the cluster again.',
            ) from e


def ensure_project_left(task: Task) -> None:
    """Take back the service's role after the last cluster of a project.

    A cluster that is asked for at this very moment finds its calls refused, and its conductor
    grants the role again."""
    task.update(
        stack_id=None
    )  # of the last two, deleted at once, each would take the other for a reason to stay
    if not db.has_other_clusters(task.services.db, task.cluster.project_id, task.cluster.uuid):
        with contextlib.suppress(clients.Rejected):
            task.services.cloud.revoke_roles(task.cluster.project_id)
