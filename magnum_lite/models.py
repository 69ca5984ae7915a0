"""What is stored: one typed class per table, and nothing that does I/O.

A cluster is a row (`Cluster`): what is wanted (counts, labels, `generation`), what is known
(`status`, addresses, `stack_id`) and who holds it (`leased_by`, `leased_until`, `check_at`).
Everything else hangs off that row by its uuid. `db` is the only module that reads or writes these
tables; `alembic/` must make exactly what stands here, which `tests/test_migrations.py` compares on
every database.

Times are UTC. They are stored without an offset (no database agrees with another on offsets) and
handed out as aware datetimes, because clients written in Go refuse a time without one."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class UTCDateTime(sa.types.TypeDecorator[datetime.datetime]):
    """A point in time with microseconds: aware UTC in Python, without offset in the database."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        return mysql.DATETIME(fsp=6) if dialect.name == 'mysql' else sa.DateTime()

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: sa.Dialect
    ) -> datetime.datetime | None:
        """Drop the offset. Raises ValueError for a naive time: nobody could say which zone it was
        meant in."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f'a naive time is not stored: {value!r}')
        return value.astimezone(datetime.UTC).replace(tzinfo=None)

    def process_result_value(
        self, value: datetime.datetime | None, dialect: sa.Dialect
    ) -> datetime.datetime | None:
        return None if value is None else value.replace(tzinfo=datetime.UTC)


def utcnow() -> datetime.datetime:
    """The present, aware. For what people read (`created_at`); leases use the database's clock
    instead (`db.now`)."""
    return datetime.datetime.now(datetime.UTC)


Json = sa.JSON(none_as_null=True)

Uuid = Annotated[str, mapped_column(sa.String(36))]
Text255 = Annotated[str, mapped_column(sa.String(255))]
#: A name of `errors.CODES`: why the last change failed.
ErrorCode = Annotated[str, mapped_column(sa.String(40))]
Labels = Annotated[dict[str, str], mapped_column(Json, default=dict)]
#: See Cluster.rotation_phase.
ROTATION_PHASES = 3


class Base(DeclarativeBase):
    """Every table has an integer key, which orders equal rows, and says when a row was made and
    last changed."""

    __table_args__: Any = {
        'mysql_engine': 'InnoDB',
        'mysql_charset': 'utf8mb4',
        'mysql_collate': 'utf8mb4_bin',
    }
    metadata = sa.MetaData(
        naming_convention={
            'ix': 'ix_%(table_name)s_%(column_0_name)s',
            'uq': 'uq_%(table_name)s_%(column_0_N_name)s',
            'fk': 'fk_%(table_name)s_%(column_0_name)s',
            'pk': 'pk_%(table_name)s',
        }
    )
    type_annotation_map = {datetime.datetime: UTCDateTime}

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    created_at: Mapped[datetime.datetime] = mapped_column(default=utcnow)
    #: Null until the first change that a user would notice; leases and look-ups do not count.
    updated_at: Mapped[datetime.datetime | None]


class ClusterTemplate(Base):
    """What an operator or user describes once: engine, image, flavors, network. Clusters are made
    after it."""

    __tablename__ = 'cluster_templates'

    uuid: Mapped[Uuid] = mapped_column(unique=True)
    project_id: Mapped[Text255] = mapped_column(index=True)
    user_id: Mapped[Text255]
    name: Mapped[Text255]
    coe: Mapped[Text255]
    server_type: Mapped[Text255]
    cluster_distro: Mapped[Text255]
    #: Name of the driver folder; null means: found by server type, distribution and engine.
    driver: Mapped[Text255 | None]
    image_id: Mapped[Text255]
    flavor_id: Mapped[Text255 | None]
    master_flavor_id: Mapped[Text255 | None]
    keypair_id: Mapped[Text255 | None]
    external_network_id: Mapped[Text255 | None]
    fixed_network: Mapped[Text255 | None]
    fixed_subnet: Mapped[Text255 | None]
    network_driver: Mapped[Text255 | None]
    volume_driver: Mapped[Text255 | None]
    dns_nameserver: Mapped[Text255 | None]
    apiserver_port: Mapped[int | None]
    docker_volume_size: Mapped[int | None]
    docker_storage_driver: Mapped[Text255 | None]
    http_proxy: Mapped[Text255 | None]
    https_proxy: Mapped[Text255 | None]
    no_proxy: Mapped[Text255 | None]
    insecure_registry: Mapped[Text255 | None]
    registry_enabled: Mapped[bool] = mapped_column(default=False)
    tls_disabled: Mapped[bool] = mapped_column(default=False)
    public: Mapped[bool] = mapped_column(default=False)
    hidden: Mapped[bool] = mapped_column(default=False)
    master_lb_enabled: Mapped[bool] = mapped_column(default=False)
    floating_ip_enabled: Mapped[bool] = mapped_column(default=True)
    labels: Mapped[Labels]
    tags: Mapped[Text255 | None]


class Cluster(Base):
    """One cluster. The conductor makes the world match the upper half and writes down the lower
    half."""

    __tablename__ = 'clusters'

    uuid: Mapped[Uuid] = mapped_column(unique=True)
    project_id: Mapped[Text255] = mapped_column(index=True)
    user_id: Mapped[Text255]
    name: Mapped[Text255]
    description: Mapped[str | None] = mapped_column(sa.String(1024))
    cluster_template_id: Mapped[Uuid] = mapped_column(
        sa.ForeignKey('cluster_templates.uuid'), index=True
    )
    #: Name of the driver folder that was found when the cluster was asked for. It never changes
    #: afterwards.
    driver: Mapped[Text255]
    keypair: Mapped[Text255 | None]
    #: The key itself, read with the caller's token when the cluster was asked for: a Nova keypair
    #: belongs to one user, so the service could not name it on a server.
    public_key: Mapped[str | None] = mapped_column(sa.Text)
    flavor_id: Mapped[Text255 | None]
    master_flavor_id: Mapped[Text255 | None]
    docker_volume_size: Mapped[int | None]
    fixed_network: Mapped[Text255 | None]
    fixed_subnet: Mapped[Text255 | None]
    floating_ip_enabled: Mapped[bool]
    master_lb_enabled: Mapped[bool]
    labels: Mapped[Labels]
    discovery_url: Mapped[Text255 | None]
    #: Minutes, or null for the configured default.
    create_timeout: Mapped[int | None]
    #: Counts the changes that were asked for. A conductor only ever says "done" for the generation
    #: that it read.
    generation: Mapped[int] = mapped_column(default=1)
    #: The newest generation that somebody wants stopped. Only what the row is at, or older, can be.
    cancelled_generation: Mapped[int] = mapped_column(default=0)
    #: An admin wants it gone whatever it leaves behind in the cloud.
    delete_forced: Mapped[bool] = mapped_column(default=False)
    #: How far the exchange of its authorities is. 0: there is none; 1: all learn to trust the new
    #: ones, too; 2: the new ones sign; 3: the old ones are forgotten. In each of these phases every
    #: member is replaced.
    rotation_phase: Mapped[int] = mapped_column(default=0)

    status: Mapped[str] = mapped_column(sa.String(20))
    status_reason: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[ErrorCode | None]
    health_status: Mapped[str | None] = mapped_column(sa.String(20))
    health_status_reason: Mapped[dict[str, str]] = mapped_column(Json, default=dict)
    #: When the engine is next asked how it is. Whoever moves this on has the turn; null: nobody
    #: asks.
    health_at: Mapped[datetime.datetime | None] = mapped_column(index=True)
    stack_id: Mapped[Text255 | None]
    #: The newest generation whose change of this stack was sent to Heat.
    sent_generation: Mapped[int] = mapped_column(default=0)
    #: Counts the texts of this stack. The stack bears the number as a tag, so that Heat can say
    #: which text it has.
    revision: Mapped[int] = mapped_column(default=0)
    #: The text that was sent to Heat, {"template": str, "files": {name: str}}; an update edits this
    #: and nothing newer, so a release of ours never changes a running cluster. No secret is in it.
    stack_text: Mapped[dict[str, Any] | None] = mapped_column(Json, deferred=True)
    api_address: Mapped[Text255 | None]
    coe_version: Mapped[Text255 | None]
    container_version: Mapped[Text255 | None]

    #: The conductor that works on this row, until when (the database's clock), and when the row is
    #: next due. While it is held `check_at` is null, unless somebody asks for one more look
    #: meanwhile.
    leased_by: Mapped[Text255 | None]
    leased_until: Mapped[datetime.datetime | None] = mapped_column(index=True)
    check_at: Mapped[datetime.datetime | None] = mapped_column(index=True)
    #: Somebody looks at the progress of its operation: until then resources are counted at each
    #: look.
    polled_until: Mapped[datetime.datetime | None]
    #: Outside calls that failed in a row: what the back-off grows with.
    failures: Mapped[int] = mapped_column(default=0)

    template: Mapped[ClusterTemplate] = relationship(lazy='raise', viewonly=True)
    nodegroups: Mapped[list[NodeGroup]] = relationship(
        lazy='raise',
        order_by='NodeGroup.id',
        back_populates='cluster',
        cascade='all, delete-orphan',
        passive_deletes=True,
    )

    @property
    def owners(self) -> list[Cluster | NodeGroup]:
        """Whoever has a stack of its own: the cluster first, then its further nodegroups."""
        return [self, *(group for group in self.nodegroups if not group.is_default)]

    @property
    def master_count(self) -> int:
        """Nodes of all master nodegroups."""
        return sum(group.node_count for group in self.nodegroups if group.role == 'master')

    @property
    def node_count(self) -> int:
        """Nodes of all nodegroups that are not masters."""
        return sum(group.node_count for group in self.nodegroups if group.role != 'master')

    @property
    def master_addresses(self) -> list[str]:
        """Addresses of the masters, as far as they are known."""
        return [
            a
            for group in self.nodegroups
            if group.role == 'master'
            for a in group.node_addresses or ()
        ]

    @property
    def node_addresses(self) -> list[str]:
        """Addresses of the workers, as far as they are known."""
        return [
            a
            for group in self.nodegroups
            if group.role != 'master'
            for a in group.node_addresses or ()
        ]


class NodeGroup(Base):
    """Nodes that share role, image and flavor. Two come with every cluster: `default-master`,
    `default-worker`."""

    __tablename__ = 'nodegroups'
    __table_args__ = (sa.UniqueConstraint('cluster_id', 'name'), Base.__table_args__)

    uuid: Mapped[Uuid] = mapped_column(unique=True)
    cluster_id: Mapped[Uuid] = mapped_column(
        sa.ForeignKey('clusters.uuid', ondelete='CASCADE'), index=True
    )
    project_id: Mapped[Text255] = mapped_column(index=True)
    name: Mapped[Text255]
    role: Mapped[Text255]
    is_default: Mapped[bool] = mapped_column(default=False)
    flavor_id: Mapped[Text255 | None]
    image_id: Mapped[Text255 | None]
    docker_volume_size: Mapped[int | None]
    labels: Mapped[Labels]
    node_count: Mapped[int]
    min_node_count: Mapped[int] = mapped_column(default=0)
    max_node_count: Mapped[int | None]
    node_labels: Mapped[Labels]
    node_taints: Mapped[list[dict[str, str]]] = mapped_column(Json, default=list)
    #: The number that the next member gets. It never goes back: a removed number is not used again.
    next_number: Mapped[int] = mapped_column(default=0)
    #: Members of an older rollout than their nodegroup's are replaced, so many at a time.
    rollout: Mapped[int] = mapped_column(default=1)
    batch_size: Mapped[int] = mapped_column(default=1)
    status: Mapped[str] = mapped_column(sa.String(20))
    status_reason: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[ErrorCode | None]
    #: The root stack that holds the members: the cluster's own for the two defaults. The next three
    #: are as on `Cluster`, for a stack of its own.
    stack_id: Mapped[Text255 | None] = mapped_column(index=True)
    stack_text: Mapped[dict[str, Any] | None] = mapped_column(Json, deferred=True)
    sent_generation: Mapped[int] = mapped_column(default=0)
    revision: Mapped[int] = mapped_column(default=0)
    version: Mapped[Text255 | None]
    node_addresses: Mapped[list[str]] = mapped_column(Json, default=list)

    cluster: Mapped[Cluster] = relationship(lazy='raise', back_populates='nodegroups')
    nodes: Mapped[list[Node]] = relationship(
        lazy='raise', order_by='Node.number', cascade='all, delete-orphan', passive_deletes=True
    )

    @property
    def stack_role(self) -> str:
        """What its members are to the templates of a driver: `worker`, whatever users call the
        role, or `master`."""
        return 'master' if self.role == 'master' else 'worker'


class Node(Base):
    """One member of a nodegroup, which is one server in Nova. Its number is its name in the stack,
    for ever."""

    __tablename__ = 'nodes'
    __table_args__ = (sa.UniqueConstraint('nodegroup_id', 'number'), Base.__table_args__)

    nodegroup_id: Mapped[Uuid] = mapped_column(
        sa.ForeignKey('nodegroups.uuid', ondelete='CASCADE'), index=True
    )
    number: Mapped[int]
    #: Name of the server in Nova and of the node in the engine: a DNS label.
    name: Mapped[str] = mapped_column(sa.String(63))
    rollout: Mapped[int] = mapped_column(default=1)
    #: DELETE_IN_PROGRESS: it is not wanted any more, and the row goes when its stack has let it go.
    status: Mapped[str] = mapped_column(sa.String(20))
    status_reason: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[ErrorCode | None]
    server_id: Mapped[Text255 | None]
    address: Mapped[Text255 | None]
    private_address: Mapped[Text255 | None]
    image_id: Mapped[Text255 | None]
    version: Mapped[Text255 | None]


class Operation(Base):
    """A change that a caller asked for: who, what, when, and how it ended. Read by people; never a
    queue.

    It outlives its cluster, so there is no foreign key.
    """

    __tablename__ = 'operations'

    uuid: Mapped[Uuid] = mapped_column(unique=True)
    cluster_id: Mapped[Uuid] = mapped_column(index=True)
    project_id: Mapped[Text255] = mapped_column(index=True)
    user_id: Mapped[Text255]
    request_id: Mapped[Text255 | None]
    kind: Mapped[str] = mapped_column(sa.String(20))
    #: The generation of the cluster that this change asked for.
    generation: Mapped[int]
    begun_at: Mapped[datetime.datetime | None]
    ended_at: Mapped[datetime.datetime | None]
    #: `complete`, `failed` or `superseded`; null while it runs.
    outcome: Mapped[str | None] = mapped_column(sa.String(20))
    #: A name of `errors.CODES` when it failed.
    code: Mapped[ErrorCode | None]
    text: Mapped[str | None] = mapped_column(sa.Text)
    #: Driver and nodes of the cluster when this was asked for: how long such things took tells how
    #: long this takes.
    driver: Mapped[Text255 | None]
    node_count: Mapped[int | None]
    #: Resources of its stacks, while somebody watches.
    resources_done: Mapped[int | None]
    resources_total: Mapped[int | None]


class Key(Base):
    """A key pair of a cluster. The certificate is public; `private_key` is what the key store made
    of the key."""

    __tablename__ = 'cluster_keys'
    __table_args__ = (sa.UniqueConstraint('cluster_id', 'purpose', 'is_next'), Base.__table_args__)

    cluster_id: Mapped[Uuid] = mapped_column(
        sa.ForeignKey('clusters.uuid', ondelete='CASCADE'), index=True
    )
    #: A name under `keys` of the driver's manifest, or one of `keystore`'s own.
    purpose: Mapped[str] = mapped_column(sa.String(40))
    #: It takes the place of the other one of its purpose when the exchange of authorities is over.
    is_next: Mapped[bool] = mapped_column(default=False)
    #: PEM: a certificate for an authority, a public key for a bare key pair.
    certificate: Mapped[str] = mapped_column(sa.Text)
    #: Ciphertext, or a reference, as `backend` says. Deferred, so that no listing ever reads it.
    private_key: Mapped[str] = mapped_column(sa.Text, deferred=True)
    backend: Mapped[str] = mapped_column(sa.String(20))


class Quota(Base):
    """How many of a resource a project may have.

    A null limit means the configured default: the row is there to be locked while a project's use
    is counted."""

    __tablename__ = 'quotas'
    __table_args__ = (sa.UniqueConstraint('project_id', 'resource'), Base.__table_args__)

    project_id: Mapped[Text255]
    resource: Mapped[str] = mapped_column(sa.String(40))
    hard_limit: Mapped[int | None]


class Receipt(Base):
    """The answer to a request that came with an `Idempotency-Key`, written in the transaction that
    did what it asked.

    So either both are there or neither, wherever the process dies.
    """

    __tablename__ = 'receipts'

    #: SHA-256 of project, user and key: one column of known length that no database compares in a
    #: way of its own.
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    #: SHA-256 of what was asked for. The same key with another one is a mistake of the caller.
    fingerprint: Mapped[str] = mapped_column(sa.String(64))
    headers: Mapped[dict[str, str]] = mapped_column(Json, default=dict)
    body: Mapped[Any | None] = mapped_column(Json)
    expires_at: Mapped[datetime.datetime] = mapped_column(index=True)


class Service(Base):
    """A conductor that reports in. Operators see it with `openstack coe service list`; nothing
    decides by it."""

    __tablename__ = 'services'
    __table_args__ = (sa.UniqueConstraint('host', 'binary'), Base.__table_args__)

    host: Mapped[Text255]
    binary: Mapped[Text255]
    disabled: Mapped[bool] = mapped_column(default=False)
    disabled_reason: Mapped[Text255 | None]
    forced_down: Mapped[bool] = mapped_column(default=False)
    last_seen_up: Mapped[datetime.datetime | None]
    report_count: Mapped[int] = mapped_column(default=0)
