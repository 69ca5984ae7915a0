"""The steps that make the world match a row, each of them idempotent.

A step does one outside thing and writes down that it did, or finds that it was done. It may die anywhere: between the
call and the note, the next conductor runs it again, so every outside thing is named after the cluster's uuid and is
looked for before it is made. A step that must wait raises `errors.Retry`, one that cannot succeed `errors.Failed`.

Every write goes through `Task.save` or `db.move` with the lease as its guard.
"""

from __future__ import annotations

import contextlib
import datetime
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from oslo_config import cfg
from oslo_log import log
from sqlalchemy import orm

from magnum_lite import certs, clients, db, drivers, errors, keystore, models, states
from magnum_lite.conductor import diagnose

LOG = log.getLogger(__name__)

#: Characters of a cluster's name that its stack's name begins with; the uuid behind it makes it unlike any other.
STACK_NAME_PREFIX = 30
#: A node may join this long after the stack's own time is over.
CERTIFICATE_MARGIN = datetime.timedelta(hours=1)
#: Minutes that Heat has beyond a stack's time to say itself that the stack has failed.
OVERDUE_MARGIN_MIN = 10


@dataclass(frozen=True)
class World:
    """What the steps act on: configuration, database, cloud, key store and the loaded drivers."""

    conf: cfg.ConfigOpts
    db: db.Database
    cloud: clients.Cloud
    keystore: keystore.KeyStore
    drivers: Mapping[str, drivers.Driver]


@dataclass(frozen=True)
class Task:
    """One cluster, leased by `holder`. `stack` is what Heat just said of its stack, None if there is none."""

    world: World
    cluster: models.Cluster
    holder: str
    stack: clients.Stack | None

    @property
    def stacks(self) -> clients.Stacks:
        """The stacks of the cluster's project."""
        return self.world.cloud.stacks(self.cluster.project_id)

    @property
    def stack_name(self) -> str:
        """The name of the cluster's stack, which makes a create that is tried again find the first one."""
        return f'{self.cluster.name[:STACK_NAME_PREFIX]}-{self.cluster.uuid}'

    @property
    def driver(self) -> drivers.Driver:
        """The driver that the cluster was made with. Raises Failed if the operator has taken it away."""
        try:
            return self.world.drivers[self.cluster.driver]
        except KeyError:
            raise errors.Failed('INTERNAL', f'The driver {self.cluster.driver} of this cluster is not installed. An '
                                'operator has to put it back.') from None

    @property
    def create_timeout_min(self) -> int:
        """Minutes that the stack may take."""
        return self.cluster.create_timeout or int(self.world.conf.cluster_heat.create_timeout)

    @contextlib.contextmanager
    def save(self, **columns: Any) -> Iterator[orm.Session]:
        """A transaction that renews the lease and writes columns of the cluster, and more. Raises LeaseLost."""
        with db.held(self.world.db, self.cluster, self.holder, lease_s=self.world.conf.conductor.lease,
                     **columns) as session:
            yield session

    def note(self, **columns: Any) -> None:
        """Write columns of the cluster, and nothing else. Raises LeaseLost."""
        with self.save(**columns):
            pass

    @property
    def age_s(self) -> float:
        """Seconds since the operation was asked for."""
        return (models.utcnow() - (self.cluster.updated_at or self.cluster.created_at)).total_seconds()

    def is_overdue(self) -> bool:
        """Whether the operation's time is over. Heat watches over its own part; this is for when Heat is away."""
        deleting = self.cluster.status == states.DELETE_IN_PROGRESS
        minutes = self.world.conf.cluster_heat.delete_timeout if deleting else self.create_timeout_min
        return self.age_s > (minutes + OVERDUE_MARGIN_MIN) * 60

    def wait(self) -> errors.Retry:
        """The exception that says: nothing is wrong, look again after a while."""
        return errors.Retry(interval_s(self.world.conf.conductor.watch_interval, self.age_s))


def interval_s(base_s: float, age_s: float) -> float:
    """How long to wait before the next look: often while work is young, seldom when it drags on, never in step."""
    return min(base_s * (1 + max(age_s, 0) / 120), base_s * 10) * random.uniform(0.85, 1.15)


def ensure_project_role(task: Task) -> None:
    """Give the service its role on the project, before anything is asked of Heat for this cluster.

    A role that is lost later is given again by `service.visit`, when calls have failed.
    """
    if task.cluster.stack_id is not None:
        return
    task.note()
    try:
        task.world.cloud.grant_roles(task.cluster.project_id)
    except clients.Refused as e:
        raise errors.Failed('INTERNAL', f'The service may not give itself a role on the project. {e}. An operator '
                            'has to make the service user an admin, or to grant the roles and to empty [identity] '
                            'project_roles.') from e


def ensure_keys(task: Task) -> None:
    """Make the authorities and key pairs that the driver asks for, those that are missing, in one transaction."""
    if task.cluster.stack_id is not None:
        return
    have = db.list_keys(task.world.db, task.cluster.uuid)
    life = datetime.timedelta(days=task.world.conf.cluster.ca_days)
    made = {}
    for purpose, spec in task.driver.keys.items():
        if purpose in have:
            continue
        if spec.kind == 'ca':
            made[purpose] = certs.make_ca(spec.common_name, life=life, algorithm=spec.algorithm)
        else:
            made[purpose] = certs.make_keypair(algorithm=spec.algorithm)
    if made:
        with task.save() as session:
            for purpose, pair in made.items():
                task.world.keystore.put(session, task.cluster.uuid, purpose, pair)


def secrets(task: Task) -> dict[str, certs.Pair]:
    """The cluster's keys, and the short-lived client certificates that new nodes join with, by name."""
    pairs = task.world.keystore.load(task.world.db, task.cluster.uuid)
    life = datetime.timedelta(minutes=task.create_timeout_min) + CERTIFICATE_MARGIN
    joining = {
        name: certs.issue_client(pairs[spec.signed_by], common_name=spec.common_name,
                                 organization=spec.organization, life=life)
        for name, spec in task.driver.certificates.items()}
    return pairs | joining


def ensure_stack(task: Task) -> None:
    """Create the stack, or find the one that an earlier try has made.

    The text is stored before it is sent: whoever adopts the stack after a crash knows what is in it. If Heat says that
    the stack exists (`clients.Clash`), the next visit finds it.
    """
    cluster = task.cluster
    if cluster.stack_id is not None:
        return
    if cluster.stack_text is not None:
        found = task.stacks.find(task.stack_name)
        if found is not None:
            _adopt(task, found.id)
            return
    try:
        rendered = task.driver.render(task.world.conf, cluster, secrets(task))
    except errors.DriverError as e:
        LOG.error('Cluster %s: %s', cluster.uuid, e)
        raise errors.Failed('INTERNAL', f'The template of this cluster could not be made: {e}') from e
    with task.save(stack_text={'template': rendered.template, 'files': rendered.files}) as session:
        db.begin_operation(session, cluster)
    try:
        stack_id = task.stacks.create(
            task.stack_name, template=rendered.template, files=rendered.files, parameters=rendered.parameters,
            timeout_min=task.create_timeout_min)
    except clients.Refused as e:
        raise errors.Failed(diagnose.code_of(str(e)), f'Heat refused the stack. {e}') from e
    try:
        _adopt(task, stack_id)
    except errors.LeaseLost:
        # We were stopped for longer than a lease. If the cluster was deleted meanwhile, nobody knows of this stack.
        if not db.has_cluster(task.world.db, cluster.uuid):
            with contextlib.suppress(clients.Gone):
                task.stacks.delete(stack_id)
        raise


def _adopt(task: Task, stack_id: str) -> None:
    with task.save(stack_id=stack_id, sent_generation=task.cluster.generation) as session:
        session.execute(sa.update(models.NodeGroup).where(
            models.NodeGroup.cluster_id == task.cluster.uuid, models.NodeGroup.is_default).values(stack_id=stack_id))
    LOG.info('Cluster %s: stack %s is being created', task.cluster.uuid, stack_id)
    raise task.wait()


def observe(task: Task) -> drivers.Observed:
    """Wait for the stack and return what its outputs say. Raises Retry while it works, Failed when it failed."""
    stack = task.stack
    if stack is None or stack.status.startswith('DELETE_'):
        raise errors.Failed('STACK_GONE', f'The stack {task.cluster.stack_id} of this cluster was deleted in Heat. '
                            'Delete the cluster.')
    if stack.status.endswith('_IN_PROGRESS'):
        raise task.wait()
    task.note()
    if stack.status.endswith('_FAILED'):
        raise StackFailed(diagnose.explain(task.stacks, stack))
    return task.driver.read_outputs(task.stacks.outputs(stack.id))


class StackFailed(errors.Failed):
    """Heat gave the stack up; the diagnosis also says which members did not make it."""

    def __init__(self, diagnosis: diagnose.Diagnosis) -> None:
        super().__init__(diagnosis.code, diagnosis.text)
        self.diagnosis = diagnosis


def ensure_gone(task: Task) -> None:
    """Delete the stack and wait until it is gone. Raises Retry meanwhile, Failed if Heat cannot delete it."""
    cluster = task.cluster
    stack = task.stack
    if cluster.stack_id is None and cluster.stack_text is not None:
        stack = task.stacks.find(task.stack_name)  # made by one who died before it could say so
    if stack is None:
        return
    if stack.status != 'DELETE_IN_PROGRESS':
        if stack.status == 'DELETE_FAILED' and cluster.sent_generation == cluster.generation:
            raise StackFailed(diagnose.explain(task.stacks, stack))
        with task.save() as session:
            db.begin_operation(session, cluster)
        with contextlib.suppress(clients.Gone):
            task.stacks.delete(stack.id)
        task.note(stack_id=stack.id, sent_generation=cluster.generation)
        LOG.info('Cluster %s: stack %s is being deleted', cluster.uuid, stack.id)
    raise task.wait()


def ensure_project_left(task: Task) -> None:
    """Take back the service's role after the last cluster of a project.

    A cluster that is asked for at this very moment finds its calls refused, and its conductor grants the role again.
    """
    task.note()
    if not db.has_other_clusters(task.world.db, task.cluster.project_id, task.cluster.uuid):
        with contextlib.suppress(clients.Refused):
            task.world.cloud.revoke_roles(task.cluster.project_id)
