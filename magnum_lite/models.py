"""The tables: one typed class each, and nothing that does I/O.

Every layer reads these classes. Rows are read and written through `db` alone, or in a session that
`db` hands out. The migrations in `alembic/` must create exactly what is declared here, which
`tests/test_migrations.py` compares on every database.

A cluster is one row (`Cluster`): the wanted state (counts, labels, `generation`), the observed
state (`status`, addresses, `stack_id`) and the lease (`leased_by`, `leased_until`, `check_at`). The
other tables refer to it by its uuid.

Several columns are counters, or nearly so. They differ in what they count:

    generation             number of what is requested: each request for work adds 1, and so does a
                           conductor that restores a stack
    sent_generation        the generation that a stack was last created, updated or deleted for
    cancelled_generation   the newest generation that a user wants stopped
    revision               number of a stored stack text; the stack bears it as a tag
    rollout                number of a nodegroup's node specification; members of an older one are
                           replaced
    rotation_phase         how far the rotation of a cluster's authorities is; 0: none
    next_number            the number that the next member of a nodegroup gets
    failures               failed calls to the cloud in a row, for the back-off

So for a stack with work, `sent_generation < generation` means that the request was not sent to Heat
yet; a tag other than `revision` means that the stack has another text than the row. A generation
may take several revisions, because nodes are started and replaced in batches.
doc/contributor/protocol.md describes who writes which of them, and when.

Times are UTC. They are stored without an offset (databases disagree on offsets) and read as aware
datetimes, because clients written in Go refuse a time without an offset."""

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
        """Convert to UTC and drop the offset. Raises ValueError for a naive time: no zone known."""
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
    """The time of this process, aware. For what users read; leases use the database's `db.now`."""
    return datetime.datetime.now(datetime.UTC)


Json = sa.JSON(none_as_null=True)

Uuid = Annotated[str, mapped_column(sa.String(36))]
Text255 = Annotated[str, mapped_column(sa.String(255))]
#: A key of `errors.CODES`: why the last change failed.
ErrorCode = Annotated[str, mapped_column(sa.String(40))]
Labels = Annotated[dict[str, str], mapped_column(Json, default=dict)]
#: The last phase of a rotation: see `Cluster.rotation_phase`.
ROTATION_PHASES = 3


class Base(DeclarativeBase):
    """The columns of every table: an integer key, which orders equal rows, and two times."""

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
    #: Null until the first change that a user would notice. Leases and progress do not count.
    updated_at: Mapped[datetime.datetime | None]


class ClusterTemplate(Base):
    """What clusters have in common: engine, image, flavors, network. Clusters are made from it."""

    __tablename__ = 'cluster_templates'

    uuid: Mapped[Uuid] = mapped_column(unique=True)
    project_id: Mapped[Text255] = mapped_column(index=True)
    user_id: Mapped[Text255]
    name: Mapped[Text255]
    coe: Mapped[Text255]
    server_type: Mapped[Text255]
    cluster_distro: Mapped[Text255]
    #: Name of the driver folder. Null: the one for the server type, distribution and engine.
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
    """One cluster: first its wanted state, then its observed state, then its lease.

    The API writes the wanted state. A conductor makes the cloud match it, and writes the rest."""

    __tablename__ = 'clusters'

    uuid: Mapped[Uuid] = mapped_column(unique=True)
    project_id: Mapped[Text255] = mapped_column(index=True)
    user_id: Mapped[Text255]
    name: Mapped[Text255]
    description: Mapped[str | None] = mapped_column(sa.String(1024))
    cluster_template_id: Mapped[Uuid] = mapped_column(
        sa.ForeignKey('cluster_templates.uuid'), index=True
    )
    #: Name of the driver folder, chosen when the cluster is requested. It never changes.
    driver: Mapped[Text255]
    keypair: Mapped[Text255 | None]
    #: The public key itself, read with the caller's token when the cluster is requested. A Nova
    #: keypair belongs to one user, so the service could not name it on a server.
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
    #: Number of what is requested: each request for work adds 1, also a delete that is sent to Heat
    #: again, and a conductor that restores a stack. A conductor records completion only for the
    #: generation that it has read, so a change that came in between is not lost.
    generation: Mapped[int] = mapped_column(default=1)
    #: The newest generation that a user wants stopped. A later request has a higher number, so it
    #: is not stopped by this.
    cancelled_generation: Mapped[int] = mapped_column(default=0)
    #: An admin wants the cluster deleted, whatever is left behind in the cloud.
    delete_forced: Mapped[bool] = mapped_column(default=False)
    #: How far the rotation of the cluster's authorities is. 0: none; 1: members trust the new ones
    #: as well; 2: the new ones sign; 3: the old ones are trusted no more. Every member is replaced
    #: in each phase from 1 to 3.
    rotation_phase: Mapped[int] = mapped_column(default=0)

    status: Mapped[str] = mapped_column(sa.String(20))
    status_reason: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[ErrorCode | None]
    health_status: Mapped[str | None] = mapped_column(sa.String(20))
    health_status_reason: Mapped[dict[str, str]] = mapped_column(Json, default=dict)
    #: When the health of the engine is checked next. The conductor that moves this on has claimed
    #: the check. Null: it is not checked.
    health_at: Mapped[datetime.datetime | None] = mapped_column(index=True)
    stack_id: Mapped[Text255 | None]
    #: The generation for which this stack was last created, updated or deleted in Heat. Less than
    #: `generation`: the newest request was not sent yet, or has no work for this stack.
    sent_generation: Mapped[int] = mapped_column(default=0)
    #: Number of the stored text of this stack: each new text adds 1. The stack bears it as a tag,
    #: so Heat shows which text the stack has.
    revision: Mapped[int] = mapped_column(default=0)
    #: The text that Heat has or is to get, {"template": str, "files": {name: str}}. It is stored
    #: before it is sent. An update edits this text and does not render a new one, so a new release
    #: of this service never changes a running cluster. It holds no secret.
    stack_text: Mapped[dict[str, Any] | None] = mapped_column(Json, deferred=True)
    api_address: Mapped[Text255 | None]
    coe_version: Mapped[Text255 | None]
    container_version: Mapped[Text255 | None]

    #: The lease: its holder, a name that is new for each claim, and its end by the clock of the
    #: database.
    leased_by: Mapped[Text255 | None]
    leased_until: Mapped[datetime.datetime | None] = mapped_column(index=True)
    #: When a conductor is to look at the row. Null: never, or the row is leased. A request that
    #: comes while it is leased sets this, so the row is due again as soon as it is released.
    check_at: Mapped[datetime.datetime | None] = mapped_column(index=True)
    #: A client polls the operation. Until then, conductors count the resources of the stacks.
    polled_until: Mapped[datetime.datetime | None]
    #: Calls to the cloud that have failed in a row. The back-off grows with it; success resets it.
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
        """The rows with a stack of their own: the cluster, then its nodegroups but the defaults."""
        return [self, *(group for group in self.nodegroups if not group.is_default)]

    @property
    def master_count(self) -> int:
        """Nodes of all master nodegroups."""
        return sum(group.node_count for group in self.nodegroups if group.role == 'master')

    @property
    def node_count(self) -> int:
        """Nodes of all other nodegroups."""
        return sum(group.node_count for group in self.nodegroups if group.role != 'master')

    @property
    def master_addresses(self) -> list[str]:
        """The known addresses of the masters."""
        return [
            address
            for group in self.nodegroups
            if group.role == 'master'
            for address in group.node_addresses or ()
        ]

    @property
    def node_addresses(self) -> list[str]:
        """The known addresses of the workers."""
        return [
            address
            for group in self.nodegroups
            if group.role != 'master'
            for address in group.node_addresses or ()
        ]


class NodeGroup(Base):
    """Nodes that share role, image and flavor.

    Every cluster has two of them from the beginning: `default-master` and `default-worker`."""

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
    #: The number that the next member gets. It only grows: no number is used twice.
    next_number: Mapped[int] = mapped_column(default=0)
    #: Number of the node specification. A request that replaces the members adds 1, and so does
    #: each phase of a rotation. Members of an older rollout than this are replaced.
    rollout: Mapped[int] = mapped_column(default=1)
    #: How many of them are replaced at the same time.
    batch_size: Mapped[int] = mapped_column(default=1)
    status: Mapped[str] = mapped_column(sa.String(20))
    status_reason: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[ErrorCode | None]
    #: The root stack that holds the members. For the two defaults it is the stack of the cluster,
    #: and the next three columns are unused. Else they are as on `Cluster`.
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
        """The role in the templates of a driver: `master`, or `worker` for any other role."""
        return 'master' if self.role == 'master' else 'worker'


class Node(Base):
    """One member of a nodegroup, which is one server in Nova.

    Its number is its name in the stack and never changes."""

    __tablename__ = 'nodes'
    __table_args__ = (sa.UniqueConstraint('nodegroup_id', 'number'), Base.__table_args__)

    nodegroup_id: Mapped[Uuid] = mapped_column(
        sa.ForeignKey('nodegroups.uuid', ondelete='CASCADE'), index=True
    )
    number: Mapped[int]
    #: Name of the server in Nova and of the node in the engine: a DNS label.
    name: Mapped[str] = mapped_column(sa.String(63))
    #: The rollout of the nodegroup when this member was added.
    rollout: Mapped[int] = mapped_column(default=1)
    #: DELETE_IN_PROGRESS: it is not wanted any more. The row is deleted when the stack no longer
    #: has the member.
    status: Mapped[str] = mapped_column(sa.String(20))
    status_reason: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[ErrorCode | None]
    server_id: Mapped[Text255 | None]
    address: Mapped[Text255 | None]
    private_address: Mapped[Text255 | None]
    image_id: Mapped[Text255 | None]
    version: Mapped[Text255 | None]


class Operation(Base):
    """A request for work on a cluster: by whom, for what, when, and how it ended.

    Users read it. It is no queue: conductors work from the row of the cluster. It outlives its
    cluster, so it has no foreign key."""

    __tablename__ = 'operations'

    uuid: Mapped[Uuid] = mapped_column(unique=True)
    cluster_id: Mapped[Uuid] = mapped_column(index=True)
    project_id: Mapped[Text255] = mapped_column(index=True)
    user_id: Mapped[Text255]
    request_id: Mapped[Text255 | None]
    kind: Mapped[str] = mapped_column(sa.String(20))
    #: The generation that this request gave the cluster.
    generation: Mapped[int]
    begun_at: Mapped[datetime.datetime | None]
    ended_at: Mapped[datetime.datetime | None]
    #: `complete`, `failed` or `superseded`; null while it runs.
    outcome: Mapped[str | None] = mapped_column(sa.String(20))
    #: A key of `errors.CODES` if it failed.
    code: Mapped[ErrorCode | None]
    text: Mapped[str | None] = mapped_column(sa.Text)
    #: Driver and number of nodes of the cluster at the request. `db.estimate_duration_s` compares
    #: operations by them.
    driver: Mapped[Text255 | None]
    node_count: Mapped[int | None]
    #: Resources of the stacks, counted while a client polls.
    resources_done: Mapped[int | None]
    resources_total: Mapped[int | None]


class Key(Base):
    """A key pair of a cluster. The certificate is public; `keystore` encrypts `private_key`."""

    __tablename__ = 'cluster_keys'
    __table_args__ = (sa.UniqueConstraint('cluster_id', 'purpose', 'is_next'), Base.__table_args__)

    cluster_id: Mapped[Uuid] = mapped_column(
        sa.ForeignKey('clusters.uuid', ondelete='CASCADE'), index=True
    )
    #: A name under `keys` of the driver's manifest, or `keystore.CLOUD_USER`.
    purpose: Mapped[str] = mapped_column(sa.String(40))
    #: It replaces the other pair of its purpose when the rotation ends.
    is_next: Mapped[bool] = mapped_column(default=False)
    #: PEM: a certificate for an authority, a public key for a bare key pair.
    certificate: Mapped[str] = mapped_column(sa.Text)
    #: Ciphertext, or a reference, as `backend` says. Deferred, so that no listing ever reads it.
    private_key: Mapped[str] = mapped_column(sa.Text, deferred=True)
    backend: Mapped[str] = mapped_column(sa.String(20))


class Quota(Base):
    """How many of a resource a project may have.

    A null limit means the configured default. Such a row exists to be locked while the resources of
    the project are counted, and is made in a transaction of its own."""

    __tablename__ = 'quotas'
    __table_args__ = (sa.UniqueConstraint('project_id', 'resource'), Base.__table_args__)

    project_id: Mapped[Text255]
    resource: Mapped[str] = mapped_column(sa.String(40))
    hard_limit: Mapped[int | None]


class Receipt(Base):
    """The response to a request with an `Idempotency-Key`.

    It is written in the transaction that carries the request out. So a process that dies leaves
    either both or neither."""

    __tablename__ = 'receipts'

    #: SHA-256 of project, user and key: of known length, and compared alike by all databases.
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    #: SHA-256 of the request. The same key with another fingerprint is a mistake of the client.
    fingerprint: Mapped[str] = mapped_column(sa.String(64))
    headers: Mapped[dict[str, str]] = mapped_column(Json, default=dict)
    body: Mapped[Any | None] = mapped_column(Json)
    expires_at: Mapped[datetime.datetime] = mapped_column(index=True)


class Service(Base):
    """A conductor that reports that it is alive.

    For `openstack coe service list`. No decision of this service depends on it."""

    __tablename__ = 'services'
    __table_args__ = (sa.UniqueConstraint('host', 'binary'), Base.__table_args__)

    host: Mapped[Text255]
    binary: Mapped[Text255]
    disabled: Mapped[bool] = mapped_column(default=False)
    disabled_reason: Mapped[Text255 | None]
    forced_down: Mapped[bool] = mapped_column(default=False)
    last_seen_up: Mapped[datetime.datetime | None]
    report_count: Mapped[int] = mapped_column(default=0)
