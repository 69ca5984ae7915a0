"""What the conductor works with: the services it acts on, and one leased cluster with its time
limits.

Every other file of the conductor imports `Services` or `Task` from here. A `Task` is made by
`reconcile` and `watch` for a cluster that this conductor has leased, and handed to every step. It
asks nothing of the cloud by itself, and every write goes through `Task.transaction`, whose guard is
the lease: see doc/contributor/protocol.md.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from oslo_config import cfg
from oslo_log import log
from sqlalchemy import orm

from magnum_lite import clients, db, drivers, errors, keystore, members, models, notify, states
from magnum_lite.models import Cluster, NodeGroup

LOG = log.getLogger(__name__)

#: Characters of a cluster's name that the names of its stacks begin with. The uuid that follows
#: makes the name unique.
STACK_NAME_PREFIX = 30
#: Minutes that Heat has beyond a stack's time-out to report by itself that the stack has failed.
OVERDUE_MARGIN_MIN = 10

#: What has a stack of its own: a cluster, whose stack also holds the default nodegroups, or a
#: further nodegroup.
StackOwner = Cluster | NodeGroup
#: The stacks of a project as Heat has listed them, by id. A stack that is not in it does not exist.
Snapshot = Mapping[str, clients.Stack]


@dataclass(frozen=True)
class Services:
    """What the conductor acts on, made once for each process."""

    conf: cfg.ConfigOpts
    db: db.Database
    cloud: clients.Cloud
    keystore: keystore.KeyStore
    drivers: drivers.Drivers
    notifier: notify.Notifier


@dataclass(frozen=True)
class Task:
    """One cluster that `holder` has leased.

    `as_admin`: its project is disabled or deleted, so calls are made with a token for the service's
    own project."""

    services: Services
    cluster: Cluster
    holder: str
    snapshot: Snapshot
    as_admin: bool = False

    @property
    def stacks(self) -> clients.Stacks:
        """The client for the stacks of the cluster's project."""
        return self.services.cloud.stacks(self.cluster.project_id, as_admin=self.as_admin)

    @property
    def driver(self) -> drivers.Driver:
        """The driver that the cluster was created with. Raises Failed if it is not installed."""
        try:
            return self.services.drivers[self.cluster.driver]
        except KeyError:
            raise errors.Failed(
                'INTERNAL',
                f'The driver {self.cluster.driver} of this cluster is not installed. An '
                'operator has to put it back.',
            ) from None

    # -- the cluster's nodegroups and stacks

    def list_groups(self, owner: StackOwner) -> list[NodeGroup]:
        """List the nodegroups whose members are in the owner's stack."""
        if isinstance(owner, NodeGroup):
            return [owner]
        return [group for group in owner.nodegroups if group.is_default]

    def has_work(self, owner: StackOwner) -> bool:
        """Whether a nodegroup in the owner's stack is being created, updated or deleted."""
        return any(states.is_busy(group.status) for group in self.list_groups(owner))

    def name_stack(self, owner: StackOwner) -> str:
        """Return the name of the owner's stack: a fixed one, so a retried create finds the stack
        of the first try."""
        return f'{self.cluster.name[:STACK_NAME_PREFIX]}-{owner.uuid}'

    def find_stack(self, owner: StackOwner) -> clients.Stack | None:
        """Return the owner's stack as Heat has listed it."""
        return self.snapshot.get(owner.stack_id or '')

    @property
    def waits_for_masters(self) -> bool:
        """Whether masters are being replaced, so all other members have to wait."""
        has_busy_masters = any(
            group.role == 'master' and states.is_busy(group.status)
            for group in self.cluster.nodegroups
        )
        return has_busy_masters and members.has_outdated_masters(self.cluster)

    @property
    def is_changing_masters(self) -> bool:
        """Whether a master of a running cluster is being added or removed.

        That must not be stopped half-way: a new master may already have taken the place of another
        one, and have the only copy of the cluster's state."""
        return self.cluster.status == states.UPDATE_IN_PROGRESS and any(
            states.is_busy(node.status)
            for group in self.cluster.nodegroups
            if group.role == 'master'
            for node in group.nodes
        )

    # -- the lease

    @contextlib.contextmanager
    def transaction(
        self, owner: StackOwner | None = None, *, guarded: bool = False, **columns: Any
    ) -> Iterator[orm.Session]:
        """Open a transaction that renews the lease and writes columns of the owner, by default the
        cluster.

        The caller adds its other writes to the session. Raises LeaseLost, with nothing written, if
        another conductor has the lease. `guarded`: also if the cluster has got another generation
        since the row was read. What depends on rows of nodes must be written so, because a request
        may have changed them."""
        group = owner if isinstance(owner, NodeGroup) else None
        with db.lease_transaction(
            self.services.db,
            self.cluster,
            self.holder,
            lease_s=self.services.conf.conductor.lease,
            guarded=guarded,
            **({} if group else columns),
        ) as session:
            if group and columns:
                update_nodegroup(session, group, **columns)
            yield session
        if group:
            for name, value in columns.items():
                orm.attributes.set_committed_value(group, name, value)

    def update(self, owner: StackOwner | None = None, **columns: Any) -> None:
        """Renew the lease and write columns of the owner, by default the cluster. Raises
        LeaseLost."""
        with self.transaction(owner, **columns):
            pass

    def renew_lease(self) -> None:
        """Prove that this conductor still holds the cluster. Raises LeaseLost.

        The fence before each call to the cloud: a conductor that was suspended for longer than its
        lease stops here, before it acts on outdated rows."""
        self.update()

    # -- time limits

    @property
    def is_cancelled(self) -> bool:
        """Whether the operation that runs is to be stopped."""
        return self.cluster.cancelled_generation >= self.cluster.generation

    @property
    def timeout_min(self) -> int:
        """Minutes that the operation may take."""
        return get_timeout_min(self.services.conf, self.cluster.status, self.cluster.create_timeout)

    @property
    def age_s(self) -> float:
        """Seconds since the operation was requested."""
        requested_at = self.cluster.updated_at or self.cluster.created_at
        return (models.utcnow() - requested_at).total_seconds()

    def is_overdue(self) -> bool:
        """Whether the operation's time is over. Heat enforces its own time-out; this is for when it
        does not."""
        return states.is_busy(self.cluster.status) and is_past_timeout(self.timeout_min, self.age_s)

    def make_retry(self, waits_for: str = 'its stack') -> errors.Retry:
        """Return the exception to raise while `waits_for` is not done. Raises Failed if the
        operation's time is over."""
        if self.is_overdue():
            raise errors.Failed(
                'TIMEOUT',
                f'{errors.CODES["TIMEOUT"]}: {waits_for} is not done after '
                f'{self.age_s / 60:.0f} minutes, and {self.timeout_min} were given',
            )
        base_s = self.services.conf.conductor.watch_interval
        return errors.Retry(choose_interval_s(base_s, self.age_s))

    @contextlib.contextmanager
    def fail_on_driver_error(self) -> Iterator[None]:
        """Raise Failed instead of DriverError: a mistake in a driver folder, or in a default of the
        operator's, fails the operation."""
        try:
            yield
        except errors.DriverError as e:
            LOG.error('Cluster %s: %s', self.cluster.uuid, e)
            raise errors.Failed(
                'INTERNAL', f'The template of this cluster could not be made: {e}'
            ) from e


def update_nodegroup(session: orm.Session, group: NodeGroup, **columns: Any) -> None:
    """Write columns of a nodegroup's row. The loaded object keeps its values."""
    session.execute(sa.update(NodeGroup).where(NodeGroup.id == group.id).values(**columns))


def get_timeout_min(conf: cfg.ConfigOpts, status: str, create_timeout: int | None) -> int:
    """Return the minutes that an operation may take, by the status that it has set."""
    if status == states.DELETE_IN_PROGRESS:
        return int(conf.cluster_heat.delete_timeout)
    if status == states.CREATE_IN_PROGRESS:
        return create_timeout or int(conf.cluster_heat.create_timeout)
    return int(conf.cluster_heat.update_timeout)


def is_past_timeout(minutes: int, age_s: float) -> bool:
    """Whether an operation of this age has had its time, and Heat the margin to report so."""
    return age_s > (minutes + OVERDUE_MARGIN_MIN) * 60


def choose_interval_s(base_s: float, age_s: float) -> float:
    """Return the seconds until the next look at an operation of this age.

    Looks are frequent while an operation is young and become rare. The jitter keeps conductors from
    looking at the same moment."""
    interval_s = min(base_s * (1 + max(age_s, 0) / 120), base_s * 10)
    return interval_s * random.uniform(0.85, 1.15)
