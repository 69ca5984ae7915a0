"""The database: its engine and every query of the service.

Each public function that takes a `Database` is one transaction and is tried again after a deadlock. Those that take a
`session` are parts of a caller's transaction. Tenancy is inside the queries: a `Scope` says whose rows exist for the
caller, so what belongs to somebody else is simply not found.

`move()` is the only writer of a cluster's status. `claim()` is how conductors share the work: a guarded UPDATE with
the database's clock, so that no two of them hold a cluster and none needs a clock that is right. What a conductor
writes goes through `held()`, which fails when the lease is no longer its own.
"""

from __future__ import annotations

import contextlib
import functools
import re
import uuid as uuidlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from oslo_config import cfg
from oslo_db import api as oslo_db_api
from oslo_db import exception as db_exc
from oslo_db import options as db_options
from oslo_db.sqlalchemy import enginefacade
from oslo_utils import uuidutils
from sqlalchemy import orm
from sqlalchemy.ext import compiler

from magnum_lite import errors, models, states
from magnum_lite.models import Cluster, ClusterTemplate, Key, Node, NodeGroup, Operation, Quota, Service

CLUSTER_RESOURCE = 'Cluster'


class now(sa.sql.functions.FunctionElement[Any]):
    """The database's clock in UTC, plus so many seconds."""

    type = models.UTCDateTime()
    inherit_cache = True

    def __init__(self, plus_s: float = 0) -> None:
        super().__init__(sa.bindparam(None, round(plus_s, 3), type_=sa.Float, unique=True))


@compiler.compiles(now, 'sqlite')
def _now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    return f"(strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(element.clauses, **kw)} || ' seconds'))"


@compiler.compiles(now, 'mysql')
@compiler.compiles(now, 'mariadb')
def _now_mysql(element: now, compiler: Any, **kw: Any) -> str:
    return (f'(UTC_TIMESTAMP(6) + INTERVAL CAST({compiler.process(element.clauses, **kw)} * 1000000 AS SIGNED) '
            'MICROSECOND)')


@compiler.compiles(now, 'postgresql')
def _now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(timezone('UTC', clock_timestamp()) + make_interval(secs => {seconds}))"


class Database:
    """The engine of one process and its two kinds of transactions."""

    def __init__(self, conf: cfg.ConfigOpts, *, connection: str | None = None) -> None:
        """Connect to `connection`, default `[database] connection`, default SQLite under `state_path`.

        A server that is away is tried again as `[database] max_retries` and `retry_interval` say. Raises oslo.db's
        `DBError` if it stays away.
        """
        conf.register_opts(db_options.database_opts, 'database')
        self.url = connection or conf.database.connection or f'sqlite:///{conf.state_path}/magnum-lite.sqlite'
        facade = enginefacade.transaction_context()
        facade.configure(connection=self.url, sqlite_fk=True)
        self.engine = facade.writer.get_engine()
        if self.engine.dialect.name == 'sqlite':
            _tame_sqlite(self.engine)
        self._reader = orm.sessionmaker(self.engine, expire_on_commit=False)
        self._writer = orm.sessionmaker(self.engine.execution_options(magnum_lite_writes=True), expire_on_commit=False)

    @contextlib.contextmanager
    def read(self) -> Iterator[orm.Session]:
        """A transaction that only reads. Rows stay usable after it, as far as they were loaded."""
        with self._reader() as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[orm.Session]:
        """A transaction that writes: committed at the end, rolled back if an exception leaves it."""
        with self._writer() as session, session.begin():
            yield session


def _tame_sqlite(engine: sa.Engine) -> None:
    """Let the threads of one process share a SQLite file.

    A transaction that begins by reading and then wants to write fails at once with "database is locked", whatever the
    timeout. So one that is going to write takes the write lock at its beginning, and readers go on beside it (WAL).
    """
    @sa.event.listens_for(engine, 'connect')
    def connect(connection: Any, record: Any) -> None:
        connection.execute('PRAGMA journal_mode = WAL')
        connection.execute('PRAGMA synchronous = NORMAL')  # with WAL: safe when a process dies
        connection.execute('PRAGMA busy_timeout = 60000')

    @sa.event.listens_for(engine, 'before_cursor_execute', retval=True)
    def begin(conn: sa.Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> Any:
        if statement == 'BEGIN' and conn.get_execution_options().get('magnum_lite_writes'):
            statement = 'BEGIN IMMEDIATE'
        return statement, parameters


P = ParamSpec('P')
T = TypeVar('T')
M = TypeVar('M', Cluster, ClusterTemplate)


def transaction(
        function: Callable[Concatenate[Database, P], T]) -> Callable[Concatenate[Database, P], T]:
    """Mark a function that is one transaction: it is run again when the database gave it up for another's sake."""
    return functools.wraps(function)(oslo_db_api.wrap_db_retry(
        max_retries=10, retry_interval=0.05, max_retry_interval=1, inc_retry_interval=True,
        retry_on_deadlock=True)(function))


# -- who may see what, and in which order --------------------------------------------------------------------------

@dataclass(frozen=True)
class Scope:
    """Whose rows exist for a caller."""

    project_id: str
    all_projects: bool = False


@dataclass(frozen=True)
class Page:
    """One page of a listing: at most `limit` rows after `marker` (a uuid), sorted by `sort_key` and then by age."""

    limit: int
    marker: str | None = None
    sort_key: str = 'id'
    descending: bool = False


def sort_keys(model: type[models.Base]) -> list[str]:
    """The columns that a listing may be sorted by: those that every database can order and a user may see."""
    private = {'public_key', 'stack_text', 'leased_by', 'leased_until', 'check_at', 'failures', 'generation',
               'sent_generation'}
    return [c.key for c in sa.inspect(model).columns
            if not isinstance(c.type, sa.JSON) and c.key not in private]


def _visible(model: type[Cluster] | type[ClusterTemplate], scope: Scope) -> sa.ColumnElement[bool]:
    if scope.all_projects:
        return sa.true()
    own = model.project_id == scope.project_id
    if model is ClusterTemplate:
        return sa.or_(own, sa.and_(ClusterTemplate.public, sa.not_(ClusterTemplate.hidden)))
    return own


def _paged(session: orm.Session, model: type[Cluster] | type[ClusterTemplate], scope: Scope,
           page: Page) -> sa.Select[Any]:
    """SELECT the rows of one page. Raises NotFound for a marker that the caller cannot see.

    Rows without a value come last in either direction: databases disagree, and a marker must mean the same on all.
    """
    visible = _visible(model, scope)
    column = getattr(model, page.sort_key)
    order = column.desc() if page.descending else column.asc()
    query = sa.select(model).where(visible).order_by(column.is_(None), order, model.id).limit(page.limit)
    if page.marker is None:
        return query
    last = session.execute(sa.select(column, model.id).where(visible, model.uuid == page.marker)).one_or_none()
    if last is None:
        raise errors.NotFound(f'The marker {page.marker} could not be found.')
    value, last_id = last
    if value is None:
        return query.where(column.is_(None), model.id > last_id)
    if isinstance(value, bool):  # not every database orders these
        column, value = sa.cast(column, sa.Integer), int(value)
    beyond = column < value if page.descending else column > value
    return query.where(sa.or_(beyond, sa.and_(column == value, model.id > last_id), column.is_(None)))


def _ident(model: type[Cluster] | type[ClusterTemplate], ident: str) -> sa.ColumnElement[bool]:
    """By uuid what looks like one, in any spelling; else by the exact name."""
    if uuidutils.is_uuid_like(ident):
        return model.uuid == str(uuidlib.UUID(ident))
    # LIKE as well, because MariaDB's `=` takes no notice of spaces at the end.
    return sa.and_(model.name == ident, model.name.like(re.sub(r'([%_/])', r'/\1', ident), escape='/'))


def _one(session: orm.Session, model: type[M], noun: str, scope: Scope, ident: str, *options: Any) -> M:
    rows = session.scalars(sa.select(model).where(
        _ident(model, ident), _visible(model, scope)).limit(2).options(*options)).all()
    if not rows:
        raise errors.NotFound(f'{noun} {ident} could not be found.')
    if len(rows) > 1:
        raise errors.Conflict(f'More than one {noun.lower()} has the name {ident}. Use the uuid instead.')
    return rows[0]


# -- cluster templates ---------------------------------------------------------------------------------------------

@transaction
def create_template(db: Database, template: ClusterTemplate) -> None:
    """Store a new template. Raises Conflict if its uuid is taken."""
    try:
        with db.write() as session:
            session.add(template)
    except db_exc.DBDuplicateEntry as e:
        raise errors.Conflict(f'A cluster template with the uuid {template.uuid} exists already.') from e


@transaction
def list_templates(db: Database, scope: Scope, page: Page) -> Sequence[ClusterTemplate]:
    """One page of the templates that the caller may see. One statement, and one more for a marker."""
    with db.read() as session:
        return session.scalars(_paged(session, ClusterTemplate, scope, page)).all()


@transaction
def get_template(db: Database, scope: Scope, ident: str) -> ClusterTemplate:
    """A template by uuid or name. Raises NotFound, or Conflict when the name fits several."""
    with db.read() as session:
        return _one(session, ClusterTemplate, 'Cluster template', scope, ident)


@transaction
def delete_template(db: Database, scope: Scope, template_uuid: str) -> None:
    """Remove a template that no cluster uses. Raises NotFound, Invalid if it is used (as Magnum: 400)."""
    try:
        with db.write() as session:
            session.delete(_one(session, ClusterTemplate, 'Cluster template', scope, template_uuid))
    except db_exc.DBReferenceError as e:
        raise errors.Invalid(f'Cluster template {template_uuid} is referenced by one or multiple clusters. '
                             'Delete these first.') from e


# -- clusters, as the API sees them --------------------------------------------------------------------------------

def _nodes(role: sa.ColumnElement[bool], name: str) -> sa.ColumnElement[int]:
    """How many nodes the nodegroups of a role have together, as a column beside each cluster."""
    total = sa.select(sa.func.coalesce(sa.func.sum(NodeGroup.node_count), 0)).where(
        NodeGroup.cluster_id == Cluster.uuid, role).correlate(Cluster).scalar_subquery()
    return sa.cast(total, sa.Integer).label(name)


#: Columns of the short listing.
BRIEF = (Cluster.uuid, Cluster.name, Cluster.cluster_template_id, Cluster.keypair, Cluster.docker_volume_size,
         Cluster.labels, Cluster.flavor_id, Cluster.master_flavor_id, Cluster.create_timeout, Cluster.stack_id,
         Cluster.status, Cluster.health_status, _nodes(NodeGroup.role == 'master', 'master_count'),
         _nodes(NodeGroup.role != 'master', 'node_count'))


@transaction
def list_clusters_brief(db: Database, scope: Scope, page: Page) -> Sequence[sa.Row[Any]]:
    """One page of clusters in short: rows of the columns `BRIEF`. One statement, and one more for a marker.

    Plain rows and no objects, which take three times as long to make: some clients list a thousand every minute.
    """
    with db.read() as session:
        return session.execute(_paged(session, Cluster, scope, page).with_only_columns(*BRIEF)).all()


@transaction
def list_clusters(db: Database, scope: Scope, page: Page) -> Sequence[Cluster]:
    """One page of clusters with their nodegroups and templates.

    Two statements at any page size, and one more for a marker. (`selectinload` would send one for each 500 rows.)
    """
    with db.read() as session:
        clusters = session.scalars(_paged(session, Cluster, scope, page).options(
            orm.joinedload(Cluster.template, innerjoin=True))).all()
        groups: dict[str, list[NodeGroup]] = {cluster.uuid: [] for cluster in clusters}
        if groups:
            for group in session.scalars(
                    sa.select(NodeGroup).where(NodeGroup.cluster_id.in_(list(groups))).order_by(NodeGroup.id)):
                groups[group.cluster_id].append(group)
        for cluster in clusters:
            orm.attributes.set_committed_value(cluster, 'nodegroups', groups[cluster.uuid])
        return clusters


@transaction
def get_cluster(db: Database, scope: Scope, ident: str) -> Cluster:
    """A cluster by uuid or name, with nodegroups and template. Raises NotFound, or Conflict for a doubtful name."""
    with db.read() as session:
        return _one(session, Cluster, 'Cluster', scope, ident, orm.selectinload(Cluster.nodegroups),
                    orm.joinedload(Cluster.template, innerjoin=True))


@transaction
def create_cluster(db: Database, cluster: Cluster, operation: Operation, *, default_quota: int) -> None:
    """Store a new cluster with its nodegroups, nodes and operation, if the project's quota allows one more.

    Quota and insert are one transaction under a lock of the project's quota row, so that parallel requests cannot
    exceed it. Raises OverQuota, and NotFound if the template has gone meanwhile.
    """
    _ensure_quota_row(db, cluster.project_id)
    try:
        with db.write() as session:
            quota = session.scalars(sa.select(Quota).where(
                Quota.project_id == cluster.project_id, Quota.resource == CLUSTER_RESOURCE).with_for_update()).one()
            limit = default_quota if quota.hard_limit is None else quota.hard_limit
            used = session.scalar(sa.select(sa.func.count()).where(Cluster.project_id == cluster.project_id)) or 0
            if used >= limit:
                raise errors.OverQuota(f'The project has {used} clusters and its quota is {limit}. Delete a cluster '
                                       'or ask an operator for a larger quota.')
            cluster.check_at = now()
            session.add(cluster)
            session.add(operation)
    except db_exc.DBReferenceError as e:
        raise errors.NotFound(f'Cluster template {cluster.cluster_template_id} could not be found.') from e


def _ensure_quota_row(db: Database, project_id: str) -> None:
    """Make the row that is locked to count a project's clusters. In a transaction of its own: see Quota."""
    with db.read() as session:
        if session.scalar(sa.select(Quota.id).where(
                Quota.project_id == project_id, Quota.resource == CLUSTER_RESOURCE)) is not None:
            return
    with contextlib.suppress(db_exc.DBDuplicateEntry), db.write() as session:
        session.add(Quota(project_id=project_id, resource=CLUSTER_RESOURCE, hard_limit=None))


@transaction
def request_delete(db: Database, scope: Scope, ident: str, operation: Operation) -> Cluster:
    """Ask for a cluster to be deleted, whatever it is doing. Asking again is no second operation.

    `operation` is completed here with what only the row knows. Raises NotFound, Conflict for a doubtful name.
    """
    with db.write() as session:
        found = _one(session, Cluster, 'Cluster', scope, ident)
        cluster = session.get_one(Cluster, found.id, with_for_update=True, populate_existing=True)
        if cluster.status == states.DELETE_IN_PROGRESS:
            session.execute(sa.update(Cluster).where(Cluster.id == cluster.id).values(check_at=now()).execution_options(
                synchronize_session=False))
            return cluster
        operation.cluster_id = cluster.uuid
        operation.project_id = cluster.project_id
        operation.generation = cluster.generation + 1
        session.execute(sa.update(Operation).where(
            Operation.cluster_id == cluster.uuid, Operation.outcome.is_(None)).values(
                outcome='superseded', ended_at=models.utcnow(), text='A request to delete the cluster came in.'))
        session.add(operation)
        move(session, cluster, 'delete', generation=cluster.generation + 1, check_at=now(), failures=0,
             status_reason=None)
        session.execute(sa.update(NodeGroup).where(NodeGroup.cluster_id == cluster.uuid).values(
            status=states.DELETE_IN_PROGRESS, status_reason=None))
        return cluster


def node_name(cluster: Cluster, group: NodeGroup, number: int) -> str:
    """The name of a member's server: a DNS label of at most 53 characters (Heat's limit), unlike any other's.

    The engine's node has the same name, because volumes and load balancers are found by it.
    """
    def slug(value: str, length: int) -> str:
        return re.sub(r'[^a-z0-9]+', '-', value.lower())[:length].strip('-')

    kind = slug(group.name.removeprefix('default-'), 15)
    return f'{slug(cluster.name, 20) or "c"}-{cluster.uuid[:8]}-{kind or "n"}-{number}'


def add_nodes(cluster: Cluster, group: NodeGroup, count: int) -> None:
    """Append `count` new members to a nodegroup, numbered from its counter. Nothing is stored here."""
    for _ in range(count):
        number = group.next_number
        group.next_number = number + 1
        group.nodes.append(Node(number=number, name=node_name(cluster, group, number), image_id=group.image_id,
                                status=states.CREATE_IN_PROGRESS))


# -- clusters, as the conductor sees them --------------------------------------------------------------------------

def move(session: orm.Session, cluster: Cluster, event: str, *, holder: str | None = None, **columns: Any) -> None:
    """Move a cluster along one transition of `states.TRANSITIONS`: the only writer of a cluster's status.

    One UPDATE, guarded by the status and the generation that `cluster` was read with, and by the lease if `holder`
    is given; `columns` are written along. Raises Conflict where the table allows no such move, and where the row has
    changed meanwhile LeaseLost (with a holder) or Conflict. `cluster` itself is left as it was.
    """
    status = states.TRANSITIONS[event].get(cluster.status)
    if status is None:
        raise errors.Conflict(f'Cluster {cluster.uuid} is {cluster.status}, which does not allow this.')
    guard = [Cluster.uuid == cluster.uuid, Cluster.status == cluster.status, Cluster.generation == cluster.generation]
    if holder is not None:
        guard.append(Cluster.leased_by == holder)
    result = session.execute(sa.update(Cluster).where(*guard).values(
        status=status, updated_at=models.utcnow(), **columns).execution_options(synchronize_session=False))
    if result.rowcount != 1:
        if holder is not None:
            raise errors.LeaseLost(cluster.uuid)
        raise errors.Conflict(f'Cluster {cluster.uuid} has changed meanwhile. Look again.')


@transaction
def claim(db: Database, holder: str, *, limit: int, lease_s: float, followed: bool) -> list[Cluster]:
    """Lease up to `limit` due clusters, longest overdue first, and return them with all that a conductor needs.

    `followed`: only those that have a stack to look at, or only those that have none yet. `holder` must
    be new for each call: it is the fence, and a conductor that claims its own expired lease again must not be taken
    for the thread that still believes in the first one.
    """
    due = sa.and_(
        Cluster.check_at <= now(), sa.or_(Cluster.leased_until.is_(None), Cluster.leased_until < now()),
        Cluster.stack_id.is_not(None) if followed else Cluster.stack_id.is_(None))
    with db.read() as session:
        ids = session.scalars(sa.select(Cluster.id).where(due).order_by(Cluster.check_at).limit(limit)).all()
    if not ids:
        return []
    with db.write() as session:
        session.execute(sa.update(Cluster).where(Cluster.id.in_(ids), due).values(
            leased_by=holder, leased_until=now(lease_s)).execution_options(synchronize_session=False))
    return list_held(db, holder)


@transaction
def due_in_s(db: Database) -> float | None:
    """Seconds until the next cluster that nobody holds is due, 0 or less if one is; None if there is none."""
    with db.read() as session:
        first, clock = session.execute(sa.select(
            sa.select(sa.func.min(Cluster.check_at)).where(Cluster.leased_until.is_(None)).scalar_subquery(),
            now())).one()
        return None if first is None else (first - clock).total_seconds()


@transaction
def list_held(db: Database, holder: str) -> list[Cluster]:
    """The clusters that `holder` has leased, with template, nodegroups and nodes."""
    with db.read() as session:
        return list(session.scalars(sa.select(Cluster).where(Cluster.leased_by == holder).order_by(
            Cluster.check_at).options(
                orm.joinedload(Cluster.template, innerjoin=True), orm.undefer(Cluster.stack_text),
                orm.selectinload(Cluster.nodegroups).selectinload(NodeGroup.nodes))))


@contextlib.contextmanager
def held(db: Database, cluster: Cluster, holder: str, *, lease_s: float, **columns: Any) -> Iterator[orm.Session]:
    """A transaction of a conductor: it renews the lease, writes `columns`, and is where its other writes go.

    Raises LeaseLost, and then nothing is written, if `holder` does not hold the cluster any more. After the commit
    `cluster` shows the columns that are plain values.
    """
    with db.write() as session:
        result = session.execute(sa.update(Cluster).where(
            Cluster.uuid == cluster.uuid, Cluster.leased_by == holder).values(
                leased_until=now(lease_s), **columns).execution_options(synchronize_session=False))
        if result.rowcount != 1:
            raise errors.LeaseLost(cluster.uuid)
        yield session
    for name, value in columns.items():
        if not isinstance(value, sa.ClauseElement):
            orm.attributes.set_committed_value(cluster, name, value)


@transaction
def release(db: Database, cluster: Cluster, holder: str, *, check_in_s: float | None) -> None:
    """Give a cluster back, due again in so many seconds (None: when somebody asks for something).

    If a change was asked for meanwhile it stays due now. A lease that is lost is not an error here.
    """
    later = sa.null() if check_in_s is None else now(check_in_s)
    with db.write() as session:
        session.execute(sa.update(Cluster).where(
            Cluster.uuid == cluster.uuid, Cluster.leased_by == holder).values(
                leased_by=None, leased_until=None,
                check_at=sa.case((Cluster.generation == cluster.generation, later), else_=Cluster.check_at),
            ).execution_options(synchronize_session=False))


@transaction
def hand_back(db: Database, holder: str) -> int:
    """Give back all that `holder` has, due now: what a conductor does that is told to stop. Returns how many."""
    with db.write() as session:
        return session.execute(sa.update(Cluster).where(Cluster.leased_by == holder).values(
            leased_by=None, leased_until=None, check_at=now())).rowcount


@transaction
def has_cluster(db: Database, cluster_uuid: str) -> bool:
    """Whether there still is such a cluster, whoever holds it."""
    with db.read() as session:
        return session.scalar(sa.select(Cluster.id).where(Cluster.uuid == cluster_uuid)) is not None


@transaction
def has_other_clusters(db: Database, project_id: str, cluster_uuid: str) -> bool:
    """Whether the project has a cluster besides this one, in any state."""
    with db.read() as session:
        return session.scalar(sa.select(Cluster.id).where(
            Cluster.project_id == project_id, Cluster.uuid != cluster_uuid).limit(1)) is not None


def begin_operation(session: orm.Session, cluster: Cluster) -> None:
    """Note that work on what the row asks for has begun, the first time that it does."""
    session.execute(sa.update(Operation).where(
        Operation.cluster_id == cluster.uuid, Operation.generation == cluster.generation,
        Operation.begun_at.is_(None)).values(begun_at=models.utcnow()))


def end_operation(session: orm.Session, cluster: Cluster, outcome: str, *, code: str | None = None,
                  text: str | None = None) -> None:
    """Note how the work on this generation, and on those it replaced, has ended."""
    session.execute(sa.update(Operation).where(
        Operation.cluster_id == cluster.uuid, Operation.generation <= cluster.generation,
        Operation.outcome.is_(None)).values(outcome=outcome, ended_at=models.utcnow(), code=code, text=text))


@transaction
def list_operations(db: Database, cluster_uuid: str) -> Sequence[Operation]:
    """The history of a cluster, oldest first."""
    with db.read() as session:
        return session.scalars(sa.select(Operation).where(
            Operation.cluster_id == cluster_uuid).order_by(Operation.id)).all()


def destroy_cluster(session: orm.Session, cluster: Cluster) -> None:
    """Remove the row with its nodegroups, nodes and keys. Its operations stay."""
    session.execute(sa.delete(Cluster).where(Cluster.uuid == cluster.uuid))


# -- keys, services ------------------------------------------------------------------------------------------------

@transaction
def list_keys(db: Database, cluster_uuid: str) -> dict[str, Key]:
    """The keys of a cluster by purpose, private parts included."""
    with db.read() as session:
        return {key.purpose: key for key in session.scalars(
            sa.select(Key).where(Key.cluster_id == cluster_uuid).options(orm.undefer(Key.private_key)))}


@transaction
def report_service(db: Database, host: str, binary: str) -> None:
    """Note that a conductor is alive."""
    with db.write() as session:
        alive = session.execute(sa.update(Service).where(Service.host == host, Service.binary == binary).values(
            last_seen_up=models.utcnow(), report_count=Service.report_count + 1))
        if not alive.rowcount:
            session.add(Service(host=host, binary=binary, last_seen_up=models.utcnow(), report_count=1))
