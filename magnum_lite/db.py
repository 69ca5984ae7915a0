"""The database: its engine and every query of the service.

Each public function that takes a `Database` is one transaction and is tried again after a deadlock.
Those that take a `session` are parts of a caller's transaction. Tenancy is inside the queries: a
`Scope` says whose rows exist for the caller, so what belongs to somebody else is simply not found.

`move()` is the only writer of a cluster's status. `claim_unstarted()` is how conductors share the
work: a guarded UPDATE with the database's clock, so that no two of them hold a cluster and none
needs a clock that is right. What a conductor writes goes through `lease_transaction()`, which fails
when the lease is no longer its own."""

from __future__ import annotations

import contextlib
import datetime
import functools
import random
import re
import statistics
import uuid as uuidlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

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
from magnum_lite.models import (
    Cluster,
    ClusterTemplate,
    Key,
    Node,
    NodeGroup,
    Operation,
    Quota,
    Receipt,
    Service,
)

CLUSTER_RESOURCE = 'Cluster'


class now(sa.sql.functions.FunctionElement[Any]):
    """The database's clock in UTC, plus so many seconds."""

    type = models.UTCDateTime()
    inherit_cache = True

    def __init__(self, plus_s: float = 0) -> None:
        super().__init__(sa.bindparam(None, round(plus_s, 3), type_=sa.Float, unique=True))


@compiler.compiles(now, 'sqlite')
def _now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    return (
        f"(strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(element.clauses, **kw)} || ' "
        "seconds'))"
    )


@compiler.compiles(now, 'mysql')
@compiler.compiles(now, 'mariadb')
def _now_mysql(element: now, compiler: Any, **kw: Any) -> str:
    return (
        f'(UTC_TIMESTAMP(6) + INTERVAL CAST({compiler.process(element.clauses, **kw)} * 1000000 AS '
        'SIGNED) MICROSECOND)'
    )


@compiler.compiles(now, 'postgresql')
def _now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(timezone('UTC', clock_timestamp()) + make_interval(secs => {seconds}))"


class Database:
    """The engine of one process and its two kinds of transactions."""

    def __init__(self, conf: cfg.ConfigOpts, *, connection: str | None = None) -> None:
        """Connect to `connection`, default `[database] connection`, default SQLite under
        `state_path`.

        A server that is away is tried again as `[database] max_retries` and `retry_interval` say.
        Raises oslo.db's `DBError` if it stays away."""
        conf.register_opts(db_options.database_opts, 'database')
        self.url = (
            connection
            or conf.database.connection
            or f'sqlite:///{conf.state_path}/magnum-lite.sqlite'
        )
        facade = enginefacade.transaction_context()
        facade.configure(connection=self.url, sqlite_fk=True)
        self.engine = facade.writer.get_engine()
        if self.engine.dialect.name == 'sqlite':
            _tame_sqlite(self.engine)
        else:
            _bound_idle_transactions(self.engine)
        # Of the connection by which oslo.db has tried the server: it lacks the above, and a WSGI
        # server may fork now.
        self.engine.dispose()
        self._reader = orm.sessionmaker(self.engine, expire_on_commit=False)
        self._writer = orm.sessionmaker(
            self.engine.execution_options(magnum_lite_writes=True), expire_on_commit=False
        )

    @contextlib.contextmanager
    def read(self) -> Iterator[orm.Session]:
        """A transaction that only reads. Rows stay usable after it, as far as they were loaded."""
        with self._reader() as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[orm.Session]:
        """A transaction that writes: committed at the end, rolled back if an exception leaves
        it."""
        with self._writer() as session, session.begin():
            yield session


def _tame_sqlite(engine: sa.Engine) -> None:
    """Let the threads of one process share a SQLite file.

    A transaction that begins by reading and then wants to write fails at once with "database is
    locked", whatever the timeout. So one that is going to write takes the write lock at its
    beginning, and readers go on beside it (WAL)."""

    @sa.event.listens_for(engine, 'connect')
    def connect(connection: Any, record: Any) -> None:
        connection.execute('PRAGMA journal_mode = WAL')
        connection.execute('PRAGMA synchronous = NORMAL')  # with WAL: safe when a process dies
        connection.execute('PRAGMA busy_timeout = 60000')

    @sa.event.listens_for(engine, 'before_cursor_execute', retval=True)
    def begin(
        conn: sa.Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> Any:
        if statement == 'BEGIN' and conn.get_execution_options().get('magnum_lite_writes'):
            statement = 'BEGIN IMMEDIATE'
        return statement, parameters


#: Seconds that the server leaves a transaction open in which nothing happens. No longer than the
#: shortest lease.
IDLE_TRANSACTION_S = 10


def _bound_idle_transactions(engine: sa.Engine) -> None:
    """Have the server end the transaction of a process that stands still, or that has lost its
    network.

    Its locks would stop every other conductor, whose claims come to the same rows: seen with
    SIGSTOP. Nothing of ours waits for anything but the database while it has a transaction open.
    MySQL knows no such limit, which reads the comment as one; there the locks stay until it ends
    the connection."""
    seconds = IDLE_TRANSACTION_S
    statement = (
        f"SET idle_in_transaction_session_timeout = '{seconds}s'"
        if engine.dialect.name == 'postgresql'
        else f'SET @magnum_lite = 0 /*M!100300 , SESSION idle_transaction_timeout = {seconds} */'
    )

    @sa.event.listens_for(engine, 'connect')
    def connect(connection: Any, record: Any) -> None:
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(statement)
        connection.commit()


def add_timeouts(url: str, timeout_s: int) -> str:
    """The URL of a database with limits, in seconds, for connecting to it and for each of its
    answers."""
    parsed = sa.make_url(url)
    limits = {
        'mysql': {
            'connect_timeout': f'{timeout_s}',
            'read_timeout': f'{timeout_s}',
            'write_timeout': f'{timeout_s}',
        },
        'postgresql': {
            'connect_timeout': f'{timeout_s}',
            'tcp_user_timeout': f'{timeout_s * 1000}',
            'options': f'-c statement_timeout={timeout_s * 1000}',
        },
    }.get(parsed.get_backend_name(), {})
    return parsed.update_query_dict(limits).render_as_string(hide_password=False)


P = ParamSpec('P')
T = TypeVar('T')
M = TypeVar('M', Cluster, ClusterTemplate)
#: What belongs to a project and is listed in pages.
Listed = Cluster | ClusterTemplate | NodeGroup | Operation | Quota


def transaction(
    function: Callable[Concatenate[Database, P], T],
) -> Callable[Concatenate[Database, P], T]:
    """Mark a function that is one transaction: it is run again when the database gave it up for
    another's sake."""
    return functools.wraps(function)(
        oslo_db_api.wrap_db_retry(
            max_retries=10,
            retry_interval=0.05,
            max_retry_interval=1,
            inc_retry_interval=True,
            retry_on_deadlock=True,
        )(function)
    )


def _change(session: orm.Session, statement: sa.Delete | sa.Update) -> int:
    """Execute a change of rows that the session does not go on to use. Returns how many it
    found."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    return cast('sa.CursorResult[Any]', result).rowcount


# -- what is done once -----------------------------------------------------------------------------

#: Makes the receipt of a request from what its transaction has written; None: the caller wants
#: none.
MakeReceipt = Callable[[T], Receipt] | None
#: Looks at a locked cluster before anything is written, and may raise an HttpError; None: nothing
#: is to be looked at.
Guard = Callable[[Cluster], None] | None


def store_receipt(session: orm.Session, receipt: MakeReceipt[T], written: T) -> None:
    """Store the receipt of a request in the transaction that does what it asks for: its last
    statement.

    Raises Repeated if the same request was committed first. Databases have the second one wait for
    the first here."""
    if receipt is None:
        return
    session.flush()  # what is wrong with the other rows is not said of this one
    session.add(receipt(written))
    try:
        session.flush()
    except db_exc.DBDuplicateEntry as e:
        raise errors.Repeated from e


@transaction
def find_receipt(db: Database, digest: str) -> Receipt | None:
    """The receipt of a request. One statement, and one more that removes it if its time is over."""
    with db.read() as session:
        found = session.scalars(sa.select(Receipt).where(Receipt.digest == digest)).first()
    if found is None or found.expires_at > models.utcnow():
        return found
    with db.write() as session:
        session.execute(sa.delete(Receipt).where(Receipt.id == found.id))
    return None


@transaction
def delete_expired_receipts(db: Database, *, limit: int) -> int:
    """Remove up to `limit` receipts whose time is over, oldest first, by the index. Returns how
    many.

    The time is this process's own, for PostgreSQL uses no index to compare with its clock; a day is
    not that exact."""
    with db.read() as session:
        ids = session.scalars(
            sa.select(Receipt.id)
            .where(Receipt.expires_at <= models.utcnow())
            .order_by(Receipt.expires_at)
            .limit(limit)
        ).all()
    if ids:
        with db.write() as session:
            _change(session, sa.delete(Receipt).where(Receipt.id.in_(ids)))
    return len(ids)


# -- who may see what, and in which order ----------------------------------------------------------


@dataclass(frozen=True)
class Scope:
    """Whose rows exist for a caller."""

    project_id: str
    all_projects: bool = False


@dataclass(frozen=True)
class Page:
    """One page of a listing: at most `limit` rows after `marker`, sorted by `sort_key` and then by
    age.

    The marker is a uuid, or the number of a row that has none.
    """

    limit: int
    marker: str | None = None
    sort_key: str = 'id'
    descending: bool = False


def sort_keys(model: type[models.Base], shown: Container[str]) -> list[str]:
    """The columns by which a listing may be sorted: of those in `shown`, what databases order."""
    return [
        c.key
        for c in sa.inspect(model).columns
        if c.key in shown and not isinstance(c.type, sa.JSON)
    ]


def _visible(model: type[Listed], scope: Scope) -> sa.ColumnElement[bool]:
    if scope.all_projects:
        return sa.true()
    own = model.project_id == scope.project_id
    if model is ClusterTemplate:
        return sa.or_(own, sa.and_(ClusterTemplate.public, sa.not_(ClusterTemplate.hidden)))
    return own


def _paged(
    session: orm.Session,
    model: type[Listed],
    scope: Scope,
    page: Page,
    *which: sa.ColumnElement[bool],
) -> sa.Select[Any]:
    """SELECT the rows of one page, of those for which `which` holds.

    Raises NotFound for a marker that the caller cannot see.

    Rows without a value come last in either direction: databases disagree, and a marker must mean
    the same on all."""
    visible = sa.and_(_visible(model, scope), *which)
    column = getattr(model, page.sort_key)
    order = column.desc() if page.descending else column.asc()
    query = (
        sa.select(model)
        .where(visible)
        .order_by(column.is_(None), order, model.id)
        .limit(page.limit)
    )
    if page.marker is None:
        return query
    marked = model.id == int(page.marker) if issubclass(model, Quota) else model.uuid == page.marker
    last = session.execute(sa.select(column, model.id).where(visible, marked)).one_or_none()
    if last is None:
        raise errors.NotFound(f'The marker {page.marker} could not be found.')
    value, last_id = last
    if value is None:
        return query.where(column.is_(None), model.id > last_id)
    if isinstance(value, bool):  # not every database orders these
        column, value = sa.cast(column, sa.Integer), int(value)
    beyond = column < value if page.descending else column > value
    return query.where(
        sa.or_(beyond, sa.and_(column == value, model.id > last_id), column.is_(None))
    )


def _ident(model: type[Cluster] | type[ClusterTemplate], ident: str) -> sa.ColumnElement[bool]:
    """By uuid what looks like one, in any spelling; else by the exact name."""
    if uuidutils.is_uuid_like(ident):
        return model.uuid == str(uuidlib.UUID(ident))
    # LIKE as well, because MariaDB's `=` takes no notice of spaces at the end.
    return sa.and_(
        model.name == ident, model.name.like(re.sub(r'([%_/])', r'/\1', ident), escape='/')
    )


def _one(
    session: orm.Session, model: type[M], noun: str, scope: Scope, ident: str, *options: Any
) -> M:
    rows = session.scalars(
        sa.select(model)
        .where(_ident(model, ident), _visible(model, scope))
        .limit(2)
        .options(*options)
    ).all()
    if not rows:
        raise errors.NotFound(f'{noun} {ident} could not be found.')
    if len(rows) > 1:
        raise errors.Conflict(
            f'More than one {noun.lower()} has the name {ident}. Use the uuid instead.'
        )
    return rows[0]


# -- cluster templates -----------------------------------------------------------------------------


@transaction
def create_template(
    db: Database, template: ClusterTemplate, *, receipt: MakeReceipt[ClusterTemplate] = None
) -> None:
    """Store a new template. Raises Conflict if its uuid is taken, and what `store_receipt`
    raises."""
    try:
        with db.write() as session:
            session.add(template)
            store_receipt(session, receipt, template)
    except db_exc.DBDuplicateEntry as e:
        raise errors.Conflict(
            f'A cluster template with the uuid {template.uuid} exists already.'
        ) from e


@transaction
def list_templates(db: Database, scope: Scope, page: Page) -> Sequence[ClusterTemplate]:
    """One page of the templates that the caller may see. One statement, and one more for a
    marker."""
    with db.read() as session:
        return session.scalars(_paged(session, ClusterTemplate, scope, page)).all()


@transaction
def get_template(db: Database, scope: Scope, ident: str) -> ClusterTemplate:
    """A template by uuid or name. Raises NotFound, or Conflict when the name fits several."""
    with db.read() as session:
        return _one(session, ClusterTemplate, 'Cluster template', scope, ident)


@transaction
def delete_template(db: Database, scope: Scope, template_uuid: str) -> None:
    """Remove a template that no cluster uses. Raises NotFound, Invalid if it is used (as Magnum:
    400)."""
    try:
        with db.write() as session:
            session.delete(_one(session, ClusterTemplate, 'Cluster template', scope, template_uuid))
    except db_exc.DBReferenceError as e:
        raise errors.Invalid(
            f'Cluster template {template_uuid} is referenced by one or multiple clusters. '
            'Delete these first.'
        ) from e


#: Columns of a template of which nothing goes into a cluster. Only these may change while clusters
#: use it.
LABELLING = frozenset(('name', 'tags', 'public', 'hidden'))


def _may_change_in_use(changed: Mapping[str, Any]) -> bool:
    """Whether a template that clusters use may change so: one thing at a time, as with Magnum
    (api.md 2.1)."""
    if len(changed) != 1 or not changed.keys() <= LABELLING:
        return False
    return changed.get('public', True) is True and changed.get('tags', '') is not None


@transaction
def update_template(
    db: Database, scope: Scope, seen: ClusterTemplate, changed: Mapping[str, Any]
) -> ClusterTemplate:
    """Write these columns of a template, if it still is as it was `seen`. Returns it.

    The row is locked before its clusters are looked for, and whoever stores one waits for that
    lock, so none can come in between. Raises NotFound, Conflict if it has changed meanwhile,
    Invalid (as Magnum: 400) if clusters use it and forbid the change."""
    with db.write() as session:
        template = session.scalars(
            sa.select(ClusterTemplate)
            .where(ClusterTemplate.id == seen.id, _visible(ClusterTemplate, scope))
            .with_for_update()
        ).first()
        if template is None:
            raise errors.NotFound(f'Cluster template {seen.uuid} could not be found.')
        if template.updated_at != seen.updated_at:
            raise errors.Conflict(
                f'Cluster template {seen.uuid} has changed meanwhile. Look again.'
            )
        if (
            not _may_change_in_use(changed)
            and session.scalar(
                sa.select(Cluster.id).where(Cluster.cluster_template_id == template.uuid).limit(1)
            )
            is not None
        ):
            raise errors.Invalid(
                f'Cluster template {template.uuid} is referenced by one or multiple clusters. Of '
                'such a one only name, tags and hidden can be changed, or public be set to true, '
                'and only one of them at a time.'
            )
        for name, value in changed.items():
            setattr(template, name, value)
        template.updated_at = models.utcnow()
        return template


def _check_template(session: orm.Session, seen: ClusterTemplate) -> None:
    """Raise Conflict if what a cluster takes from its template has changed since that was read.

    The template stays as it is until the transaction ends. Raises NotFound if it has gone.
    """
    with session.no_autoflush:
        template = session.scalars(
            sa.select(ClusterTemplate)
            .where(ClusterTemplate.id == seen.id)
            .with_for_update(read=True)
        ).first()
    if template is None:
        raise errors.NotFound(f'Cluster template {seen.uuid} could not be found.')
    columns = [
        c.key
        for c in sa.inspect(ClusterTemplate).columns
        if c.key not in LABELLING | {'updated_at'}
    ]
    if any(getattr(template, name) != getattr(seen, name) for name in columns):
        raise errors.Conflict(f'Cluster template {seen.uuid} has changed meanwhile. Ask again.')


# -- clusters, as the API sees them ----------------------------------------------------------------


def _nodes(role: sa.ColumnElement[bool], name: str) -> sa.ColumnElement[int]:
    """How many nodes the nodegroups of a role have together, as a column beside each cluster."""
    total = (
        sa.select(sa.func.coalesce(sa.func.sum(NodeGroup.node_count), 0))
        .where(NodeGroup.cluster_id == Cluster.uuid, role)
        .correlate(Cluster)
        .scalar_subquery()
    )
    return sa.cast(total, sa.Integer).label(name)


#: Columns of the short listing.
BRIEF = (
    Cluster.uuid,
    Cluster.name,
    Cluster.cluster_template_id,
    Cluster.keypair,
    Cluster.docker_volume_size,
    Cluster.labels,
    Cluster.flavor_id,
    Cluster.master_flavor_id,
    Cluster.create_timeout,
    Cluster.stack_id,
    Cluster.status,
    Cluster.health_status,
    _nodes(NodeGroup.role == 'master', 'master_count'),
    _nodes(NodeGroup.role != 'master', 'node_count'),
)


@transaction
def list_clusters_brief(db: Database, scope: Scope, page: Page) -> Sequence[sa.Row[Any]]:
    """One page of clusters in short: rows of the columns `BRIEF`. One statement, and one more for a
    marker.

    Plain rows and no objects, which take three times as long to make: some clients list a thousand
    every minute."""
    with db.read() as session:
        return session.execute(
            _paged(session, Cluster, scope, page).with_only_columns(*BRIEF)
        ).all()


@transaction
def list_clusters(db: Database, scope: Scope, page: Page) -> Sequence[Cluster]:
    """One page of clusters with their nodegroups and templates.

    Two statements at any page size, and one more for a marker. (`selectinload` would send one for
    each 500 rows.)"""
    with db.read() as session:
        clusters = session.scalars(
            _paged(session, Cluster, scope, page).options(
                orm.joinedload(Cluster.template, innerjoin=True)
            )
        ).all()
        groups: dict[str, list[NodeGroup]] = {cluster.uuid: [] for cluster in clusters}
        if groups:
            for group in session.scalars(
                sa.select(NodeGroup)
                .where(NodeGroup.cluster_id.in_(list(groups)))
                .order_by(NodeGroup.id)
            ):
                groups[group.cluster_id].append(group)
        for cluster in clusters:
            orm.attributes.set_committed_value(cluster, 'nodegroups', groups[cluster.uuid])
        return clusters


@transaction
def get_cluster(db: Database, scope: Scope, ident: str) -> Cluster:
    """A cluster by uuid or name, with nodegroups and template. Raises NotFound, or Conflict for a
    doubtful name."""
    with db.read() as session:
        return _one(
            session,
            Cluster,
            'Cluster',
            scope,
            ident,
            orm.selectinload(Cluster.nodegroups),
            orm.joinedload(Cluster.template, innerjoin=True),
        )


@transaction
def create_cluster(
    db: Database,
    cluster: Cluster,
    operation: Operation,
    *,
    default_quota: int,
    receipt: MakeReceipt[Cluster] = None,
) -> None:
    """Store a new cluster with its nodegroups, nodes and operation, if the project's quota allows
    one more.

    Quota and insert are one transaction under a lock of the project's quota row, so that parallel
    requests cannot exceed it. Raises OverQuota, NotFound if the template has gone meanwhile,
    Conflict if it has changed, and what `store_receipt` raises."""
    _ensure_quota_row(db, cluster.project_id, CLUSTER_RESOURCE)
    try:
        with db.write() as session:
            quota = session.scalars(
                sa.select(Quota)
                .where(Quota.project_id == cluster.project_id, Quota.resource == CLUSTER_RESOURCE)
                .with_for_update()
            ).one()
            limit = default_quota if quota.hard_limit is None else quota.hard_limit
            used = (
                session.scalar(
                    sa.select(sa.func.count()).where(Cluster.project_id == cluster.project_id)
                )
                or 0
            )
            if used >= limit:
                raise errors.OverQuota(
                    f'The project has {used} clusters and its quota is {limit}. Delete a cluster '
                    'or ask an operator for a larger quota.'
                )
            if (template := sa.inspect(cluster).dict.get('template')) is not None:
                _check_template(session, template)
            cluster.check_at = now()
            operation.cluster_id, operation.project_id, operation.generation = (
                cluster.uuid,
                cluster.project_id,
                1,
            )
            operation.driver, operation.node_count = (
                cluster.driver,
                cluster.master_count + cluster.node_count,
            )
            session.add(cluster)
            session.add(operation)
            store_receipt(session, receipt, cluster)
    except db_exc.DBReferenceError as e:
        raise errors.NotFound(
            f'Cluster template {cluster.cluster_template_id} could not be found.'
        ) from e


def _ensure_quota_row(db: Database, project_id: str, resource: str) -> None:
    """Make the row that is locked to count what a project has. In a transaction of its own: see
    Quota."""
    with db.read() as session:
        if (
            session.scalar(
                sa.select(Quota.id).where(
                    Quota.project_id == project_id, Quota.resource == resource
                )
            )
            is not None
        ):
            return
    with contextlib.suppress(db_exc.DBDuplicateEntry), db.write() as session:
        session.add(Quota(project_id=project_id, resource=resource, hard_limit=None))


@contextlib.contextmanager
def _locked(
    db: Database, scope: Scope, ident: str, guard: Guard = None
) -> Iterator[tuple[orm.Session, Cluster]]:
    """A transaction with a cluster and all that hangs off it, its row locked until the end. Raises
    NotFound, Conflict. `guard` looks at it first.

    The lock is the first statement. MariaDB shows a transaction what was there at its first plain
    SELECT, so one before the lock would hide what the last holder of the lock has written on
    nodegroups and nodes."""
    with db.read() as session:
        found = _one(session, Cluster, 'Cluster', scope, ident)
    with db.write() as session:
        cluster = session.get(
            Cluster,
            found.id,
            with_for_update=True,
            options=[
                orm.selectinload(Cluster.template),
                orm.selectinload(Cluster.nodegroups).selectinload(NodeGroup.nodes),
            ],
        )
        if cluster is None:
            raise errors.NotFound(f'Cluster {ident} could not be found.')
        if guard is not None:
            guard(cluster)
        yield session, cluster


def _ask(
    session: orm.Session, cluster: Cluster, event: str, operation: Operation, **columns: Any
) -> None:
    """Write down what a caller asks for: a new generation that is due now, and its operation."""
    operation.cluster_id, operation.project_id = cluster.uuid, cluster.project_id
    operation.generation = cluster.generation + 1
    operation.driver = cluster.driver
    operation.node_count = sum(group.node_count for group in cluster.nodegroups)
    session.add(operation)
    move(
        session,
        cluster,
        event,
        generation=cluster.generation + 1,
        check_at=now(),
        failures=0,
        status_reason=None,
        error_code=None,
        **columns,
    )
    orm.attributes.set_committed_value(cluster, 'status', states.TRANSITIONS[event][cluster.status])
    orm.attributes.set_committed_value(cluster, 'generation', operation.generation)


@transaction
def request_update(
    db: Database,
    scope: Scope,
    ident: str,
    operation: Operation,
    change: Callable[[Cluster], T],
    *,
    guard: Guard = None,
    receipt: MakeReceipt[tuple[Cluster, T]] = None,
) -> tuple[Cluster, T]:
    """Ask for a change of a cluster. It is queued if another one runs: what is wanted is what the
    rows say last.

    `change` gets the locked cluster with template, nodegroups and nodes, writes on them what is
    wanted, sets the status of each nodegroup that has work to *_IN_PROGRESS, and may raise an
    HttpError, which undoes all. Nodegroups that have failed before are tried again. `operation` is
    completed here. Returns the cluster and what `change` returned. Raises NotFound, also for a
    template that has gone meanwhile; Conflict for one that has changed, and where the cluster's
    status allows no change; and what `guard` and `store_receipt` raise."""
    with _locked(db, scope, ident, guard) as (session, cluster):
        if cluster.status not in states.TRANSITIONS['update']:
            raise errors.Conflict(
                f'Cluster {cluster.uuid} is {cluster.status}, which allows no change. '
                f'{states.ADVICE.get(cluster.status, "")}'.strip()
            )
        before = cluster.cluster_template_id
        result = change(cluster)
        if cluster.cluster_template_id != before:
            _check_template(session, cluster.template)
        for group in cluster.nodegroups:
            if states.is_failed(group.status):
                group.status = states.again(group.status)
            if states.is_busy(group.status):
                group.status_reason, group.error_code = None, None
        _ask(session, cluster, 'update', operation)
        store_receipt(session, receipt, (cluster, result))
        return cluster, result


@transaction
def edit_cluster(
    db: Database,
    scope: Scope,
    ident: str,
    change: Callable[[Cluster], object],
    *,
    guard: Guard = None,
) -> Cluster:
    """Change columns that are no work for anybody: no operation, no generation, in any status.

    `change` is as for `request_update`. Raises NotFound, and what `guard` raises.
    """
    with _locked(db, scope, ident, guard) as (_, cluster):
        change(cluster)
        return cluster


#: Seconds for which a client's word on the health of an engine stands before it is looked at again.
CLIENT_HEALTH_S = 300


@transaction
def set_health(
    db: Database,
    scope: Scope,
    ident: str,
    *,
    status: str | None,
    reason: dict[str, str],
    guard: Guard = None,
) -> None:
    """Write down how a client says that the engine is, in any status. It is no change: `updated_at`
    stays.

    Raises NotFound, and what `guard` raises, for which the row is locked.
    """
    with db.write() as session:
        cluster = _one(session, Cluster, 'Cluster', scope, ident)
        if guard is not None:
            session.refresh(cluster, with_for_update=True)
            guard(cluster)
        # A look of a conductor that is under way loses its turn by this.
        _change(
            session,
            sa.update(Cluster)
            .where(Cluster.id == cluster.id)
            .values(
                health_status=status,
                health_status_reason=reason,
                health_at=sa.case(
                    (Cluster.health_at.is_not(None), now(CLIENT_HEALTH_S)), else_=None
                ),
            ),
        )


#: Seconds that a delete is given before another request for it has it sent to Heat again, and again
#: after as many.
RESEND_S = 60


@transaction
def request_delete(
    db: Database,
    scope: Scope,
    ident: str,
    operation: Operation,
    *,
    force: bool = False,
    guard: Guard = None,
) -> tuple[Cluster, Operation | None]:
    """Ask for a cluster to be deleted, whatever it is doing. Asking again is no second operation.

    But if it has run for `RESEND_S` the row gets a new generation, for which Heat is told again: it
    may have lost it.

    `force`: what cannot be deleted in the cloud is left there. `operation` is completed here with
    what only the row knows. Returns the cluster and the operation that deletes it: that one, or the
    one that runs. Raises NotFound, Conflict for a doubtful name, and what `guard` raises."""
    with _locked(db, scope, ident, guard) as (session, cluster):
        forced = cluster.delete_forced or force
        if cluster.status == states.DELETE_IN_PROGRESS:
            running = session.scalars(
                sa.select(Operation)
                .where(Operation.cluster_id == cluster.uuid, Operation.outcome.is_(None))
                .order_by(Operation.id.desc())
                .limit(1)
            ).first()
            sent = 1 + cluster.generation - (running or cluster).generation
            age_s = (models.utcnow() - (cluster.updated_at or cluster.created_at)).total_seconds()
            _change(
                session,
                sa.update(Cluster)
                .where(Cluster.id == cluster.id)
                .values(
                    check_at=now(),
                    delete_forced=forced,
                    generation=cluster.generation + (age_s > sent * RESEND_S),
                ),
            )
            return cluster, running
        session.execute(
            sa.update(Operation)
            .where(Operation.cluster_id == cluster.uuid, Operation.outcome.is_(None))
            .values(
                outcome='superseded',
                ended_at=models.utcnow(),
                text='A request to delete the cluster came in.',
            )
        )
        _ask(session, cluster, 'delete', operation, delete_forced=forced, health_at=None)
        session.execute(
            sa.update(NodeGroup)
            .where(NodeGroup.cluster_id == cluster.uuid)
            .values(status=states.DELETE_IN_PROGRESS, status_reason=None, error_code=None)
        )
        return cluster, operation


# -- operations ------------------------------------------------------------------------------------


@transaction
def get_operation(db: Database, scope: Scope, uuid: str) -> Operation:
    """An operation by uuid, also of a cluster that is gone. Raises NotFound."""
    with db.read() as session:
        return _operation(session, scope, uuid)


def _operation(session: orm.Session, scope: Scope, uuid: str) -> Operation:
    found = (
        session.scalars(
            sa.select(Operation).where(
                Operation.uuid == str(uuidlib.UUID(uuid)),
                _visible(Operation, scope),
            )
        ).first()
        if uuidutils.is_uuid_like(uuid)
        else None
    )
    if found is None:
        raise errors.NotFound(f'Operation {uuid} could not be found.')
    return found


@transaction
def list_operations(db: Database, scope: Scope, ident: str, page: Page) -> Sequence[Operation]:
    """One page of the history of a cluster. Two statements, and one more for a marker. Raises
    NotFound."""
    with db.read() as session:
        cluster = _one(session, Cluster, 'Cluster', scope, ident)
        return session.scalars(
            _paged(session, Operation, scope, page, Operation.cluster_id == cluster.uuid)
        ).all()


@transaction
def request_cancel(db: Database, scope: Scope, uuid: str) -> Operation:
    """Ask for a running operation to be stopped. Raises NotFound; Conflict if it cannot be, with
    the reason."""
    with db.read() as session:
        operation = _operation(session, scope, uuid)
    if operation.outcome is not None:
        raise errors.Conflict(f'Operation {uuid} has ended already, as {operation.outcome}.')
    if operation.kind == 'delete':
        raise errors.Conflict(
            f'Operation {uuid} deletes its cluster, which cannot be stopped half-way.'
        )
    with _locked(db, scope, operation.cluster_id) as (session, cluster):
        operation = _operation(session, scope, uuid)
        if operation.outcome is not None:
            raise errors.Conflict(f'Operation {uuid} has ended meanwhile, as {operation.outcome}.')
        others = session.scalars(
            sa.select(Operation.uuid)
            .where(
                Operation.cluster_id == cluster.uuid,
                Operation.outcome.is_(None),
                Operation.uuid != uuid,
            )
            .limit(5)
        ).all()
        if others:
            raise errors.Conflict(
                f'Operation {uuid} is not the only one: {", ".join(others)} of the same cluster is '
                'not done either, and they are carried out together. Ask for another change '
                'instead.'
            )
        _change(
            session,
            sa.update(Cluster)
            .where(Cluster.id == cluster.id)
            .values(cancelled_generation=cluster.generation, check_at=now()),
        )
        return operation


@transaction
def record_finished(db: Database, cluster: Cluster, operation: Operation, text: str) -> None:
    """Store an operation that was done when it was asked for and has changed nothing of the
    cluster."""
    operation.cluster_id, operation.project_id = cluster.uuid, cluster.project_id
    operation.generation, operation.driver = cluster.generation, cluster.driver
    operation.created_at = operation.begun_at = operation.ended_at = models.utcnow()
    operation.outcome, operation.text = 'complete', text
    with db.write() as session:
        session.add(operation)


#: Seconds for which resources are counted after somebody has looked at an operation.
POLL_S = 60


@transaction
def mark_polled(db: Database, cluster_uuid: str) -> None:
    """Note that somebody looks at the progress of a cluster: conductors then count its resources
    for a minute."""
    with db.write() as session:
        _change(
            session,
            sa.update(Cluster)
            .where(
                Cluster.uuid == cluster_uuid,
                sa.or_(Cluster.check_at.is_not(None), Cluster.leased_by.is_not(None)),
                sa.or_(Cluster.polled_until.is_(None), Cluster.polled_until < now(POLL_S / 2)),
            )
            .values(polled_until=now(POLL_S), check_at=now()),
        )


#: How many of the newest operations of a driver an estimate looks at, and how many of those it goes
#: by.
PAST_OPERATIONS, NEAREST_OPERATIONS = 200, 15


@transaction
def estimate_s(db: Database, operation: Operation) -> float | None:
    """Seconds that such an operation took in the past, from asked to done: the median of those
    nearest in size.

    None if there was none of that kind with that driver.
    """
    with db.read() as session:
        past = session.execute(
            sa.select(Operation.node_count, Operation.created_at, Operation.ended_at)
            .where(
                Operation.driver == operation.driver,
                Operation.kind == operation.kind,
                Operation.outcome == 'complete',
            )
            .order_by(Operation.id.desc())
            .limit(PAST_OPERATIONS)
        ).all()
    nearest = sorted(past, key=lambda o: abs((o.node_count or 0) - (operation.node_count or 0)))[
        :NEAREST_OPERATIONS
    ]
    return (
        statistics.median((o.ended_at - o.created_at).total_seconds() for o in nearest)
        if nearest
        else None
    )


# -- nodegroups and nodes, as the API sees them ----------------------------------------------------


@transaction
def list_nodegroups(
    db: Database, scope: Scope, ident: str, page: Page, role: str | None
) -> Sequence[NodeGroup]:
    """One page of the nodegroups of a cluster, or of those with a role. Two statements, and one
    more for a marker."""
    with db.read() as session:
        cluster = _one(session, Cluster, 'Cluster', scope, ident)
        which = [
            NodeGroup.cluster_id == cluster.uuid,
            *([] if role is None else [NodeGroup.role == role]),
        ]
        return session.scalars(_paged(session, NodeGroup, scope, page, *which)).all()


@transaction
def list_nodes(db: Database, scope: Scope, ident: str) -> Sequence[sa.Row[Any]]:
    """All nodes of a cluster with `nodegroup` and `role`, as plain rows. Two statements. Raises
    NotFound."""
    with db.read() as session:
        cluster = _one(session, Cluster, 'Cluster', scope, ident)
        return session.execute(
            sa.select(
                Node.name,
                NodeGroup.name.label('nodegroup'),
                NodeGroup.role,
                Node.number,
                Node.status,
                Node.status_reason,
                Node.error_code.label('code'),
                Node.server_id,
                Node.address,
                Node.private_address,
                Node.image_id,
                Node.version,
            )
            .join(NodeGroup, NodeGroup.uuid == Node.nodegroup_id)
            .where(NodeGroup.cluster_id == cluster.uuid)
            .order_by(NodeGroup.id, Node.number)
        ).all()


# -- clusters, as the conductor sees them ----------------------------------------------------------


def move(
    session: orm.Session, cluster: Cluster, event: str, *, holder: str | None = None, **columns: Any
) -> None:
    """Move a cluster along one transition of `states.TRANSITIONS`: the only writer of a cluster's
    status.

    One UPDATE, guarded by the status and the generation that `cluster` was read with, and by the
    lease if `holder` is given; `columns` are written along. Raises Conflict where the table allows
    no such move, and where the row has changed meanwhile LeaseLost (with a holder) or Conflict.
    `cluster` itself is left as it was."""
    status = states.TRANSITIONS[event].get(cluster.status)
    if status is None:
        raise errors.Conflict(
            f'Cluster {cluster.uuid} is {cluster.status}, which does not allow this.'
        )
    guard = [
        Cluster.uuid == cluster.uuid,
        Cluster.status == cluster.status,
        Cluster.generation == cluster.generation,
    ]
    if holder is not None:
        guard.append(Cluster.leased_by == holder)
    if (
        _change(
            session,
            sa.update(Cluster)
            .where(*guard)
            .values(status=status, updated_at=models.utcnow(), **columns),
        )
        != 1
    ):
        if holder is not None:
            raise errors.LeaseLost(cluster.uuid)
        raise errors.Conflict(f'Cluster {cluster.uuid} has changed meanwhile. Look again.')


#: Rows that are or will be due. It is said beside every comparison with `now()`, for which
#: PostgreSQL uses no index.
_WAITS = sa.or_(Cluster.check_at.is_not(None), Cluster.leased_until.is_not(None))


def _due() -> sa.ColumnElement[bool]:
    """Nobody holds it and it is due; or whoever held it has died."""
    return sa.and_(
        _WAITS,
        sa.or_(
            sa.and_(Cluster.check_at <= now(), Cluster.leased_until.is_(None)),
            Cluster.leased_until < now(),
        ),
    )


def _lease(
    db: Database, holder: str, ids: Sequence[int], which: sa.ColumnElement[bool], lease_s: float
) -> None:
    """Lease those of these rows for which `which` still holds.

    By id, as every other write comes to the row: one that came by the index of a column that those
    change would wait for them while they wait for it."""
    with db.write() as session:
        _change(
            session,
            sa.update(Cluster)
            .where(Cluster.id.in_(ids), which)
            .values(leased_by=holder, leased_until=now(lease_s), check_at=None),
        )


@transaction
def claim_unstarted(db: Database, holder: str, *, limit: int, lease_s: float) -> Sequence[str]:
    """Lease up to `limit` due clusters that have no stack yet, longest overdue first, and return
    their uuids.

    `holder` must be new for each call: it is the fence, and a conductor that claims its own expired
    lease again must not be taken for the thread that still believes in the first one. From here on
    `check_at` is null until somebody asks for a look."""
    fresh = sa.and_(_due(), Cluster.stack_id.is_(None))
    with db.read() as session:
        ids = session.scalars(
            sa.select(Cluster.id).where(fresh).order_by(Cluster.check_at).limit(limit)
        ).all()
    if not ids:
        return []
    _lease(db, holder, ids, fresh, lease_s)
    with db.read() as session:
        return session.scalars(sa.select(Cluster.uuid).where(Cluster.leased_by == holder)).all()


@dataclass(frozen=True)
class StackWatch:
    """What is needed to look at the stacks of a cluster, and no more: there may be thousands of
    them.

    `groups` has (id of the stack or None, status) of each nodegroup.
    """

    uuid: str
    project_id: str
    status: str
    generation: int
    sent_generation: int
    cancelled_generation: int
    failures: int
    create_timeout: int | None
    watched: bool
    asked_at: datetime.datetime
    groups: list[tuple[str | None, str]] = field(default_factory=list)


@transaction
def claim_watched(
    db: Database, holder: str, *, projects: int, lease_s: float, horizon_s: float
) -> list[StackWatch]:
    """Lease the clusters with a stack of up to `projects` projects in which one is due.

    What is due within `horizon_s` comes along: all stacks of a project are looked at in one call,
    so they should be due together. Four statements at any number of clusters."""
    has_stack = Cluster.stack_id.is_not(None)
    soon = sa.and_(Cluster.check_at <= now(horizon_s), Cluster.leased_until.is_(None))
    wanted = sa.and_(has_stack, sa.or_(_due(), soon))
    with db.read() as session:
        due = session.scalars(
            sa.select(Cluster.project_id)
            .where(_due(), has_stack)
            .group_by(Cluster.project_id)
            .order_by(sa.func.min(Cluster.check_at))
            .limit(projects)
        ).all()
        ids = (
            session.scalars(sa.select(Cluster.id).where(Cluster.project_id.in_(due), wanted)).all()
            if due
            else []
        )
    if not ids:
        return []
    _lease(db, holder, ids, wanted, lease_s)
    with db.read() as session:
        rows = session.execute(
            sa.select(
                Cluster.uuid,
                Cluster.project_id,
                Cluster.status,
                Cluster.generation,
                Cluster.sent_generation,
                Cluster.cancelled_generation,
                Cluster.failures,
                Cluster.create_timeout,
                sa.func.coalesce(Cluster.polled_until > now(), sa.false()),
                sa.func.coalesce(Cluster.updated_at, Cluster.created_at),
                NodeGroup.stack_id,
                NodeGroup.status,
            )
            .outerjoin(NodeGroup, NodeGroup.cluster_id == Cluster.uuid)
            .where(Cluster.leased_by == holder)
        ).all()
    found: dict[str, StackWatch] = {}
    for *columns, stack_id, status in rows:
        cluster = found.get(columns[0])
        if cluster is None:
            cluster = found[columns[0]] = StackWatch(*columns)
        if status is not None:  # else it has no nodegroups, and is to be looked at all the same
            cluster.groups.append((stack_id, status))
    return list(found.values())


@transaction
def release_unchanged(
    db: Database, holder: str, uuids: Sequence[str], *, check_in_s: float
) -> None:
    """Give clusters back of which nothing new is known: one statement. Whatever was asked for a
    look stays due."""
    with db.write() as session:
        _change(
            session,
            sa.update(Cluster)
            .where(Cluster.leased_by == holder, Cluster.uuid.in_(uuids))
            .values(
                leased_by=None,
                leased_until=None,
                check_at=sa.func.coalesce(Cluster.check_at, now(check_in_s)),
            ),
        )


@transaction
def make_due_by_stack(db: Database, stack_ids: Sequence[str]) -> int:
    """Have the clusters with these stacks looked at now, those that wait for something. Returns how
    many there are.

    Most messages are about stacks that no row knows: those cost one read.
    """
    with db.read() as session:
        uuids = session.scalars(
            sa.select(NodeGroup.cluster_id).where(NodeGroup.stack_id.in_(stack_ids))
        ).all()
    if not uuids:
        return 0
    with db.write() as session:
        return _change(
            session,
            sa.update(Cluster)
            .where(
                Cluster.uuid.in_(uuids),
                sa.or_(Cluster.check_at.is_not(None), Cluster.leased_by.is_not(None)),
            )
            .values(check_at=now()),
        )


@transaction
def store_progress(db: Database, cluster_uuid: str, done: int, total: int) -> None:
    """Write down how many resources of a cluster's stacks are done, at its operations that run."""
    with db.write() as session:
        session.execute(
            sa.update(Operation)
            .where(Operation.cluster_id == cluster_uuid, Operation.outcome.is_(None))
            .values(resources_done=done, resources_total=total)
        )


#: When the first one is due of those without a stack, and of those with one. Built once, because it
#: is asked so often.
_NEXT = (
    sa.select(
        Cluster.stack_id.is_(None),
        sa.func.min(sa.func.coalesce(Cluster.leased_until, Cluster.check_at)),
        now(),
    )
    .where(_WAITS)
    .group_by(Cluster.stack_id.is_(None))
)


@transaction
def due_in_s(db: Database) -> tuple[float, float]:
    """Seconds until the next cluster without a stack is due, and until the next one with a stack.

    0 or less if one is, infinity if there is none. One that is held is due when its lease is over.
    One statement, which says whether it is worth while to `claim_unstarted` and to
    `claim_watched`."""
    with db.read() as session:
        due = {
            bool(fresh): (at - clock).total_seconds() for fresh, at, clock in session.execute(_NEXT)
        }
    return due.get(True, float('inf')), due.get(False, float('inf'))


@transaction
def list_leased(db: Database, holder: str, uuids: Sequence[str] | None = None) -> list[Cluster]:
    """The clusters that `holder` has leased, or those of them, with template, nodegroups, nodes and
    texts."""
    which = (
        Cluster.leased_by == holder
        if uuids is None
        else sa.and_(Cluster.leased_by == holder, Cluster.uuid.in_(uuids))
    )
    with db.read() as session:
        return list(
            session.scalars(
                sa.select(Cluster)
                .where(which)
                .order_by(Cluster.id)
                .options(
                    orm.joinedload(Cluster.template, innerjoin=True),
                    orm.undefer(Cluster.stack_text),
                    orm.selectinload(Cluster.nodegroups).options(
                        orm.undefer(NodeGroup.stack_text), orm.selectinload(NodeGroup.nodes)
                    ),
                )
            )
        )


@transaction
def find_running_operation(db: Database, cluster: Cluster) -> tuple[str | None, str | None]:
    """The uuid of the newest operation of a cluster that has not ended, and the id of the request
    that asked for it."""
    with db.read() as session:
        found = session.execute(
            sa.select(Operation.uuid, Operation.request_id)
            .where(Operation.cluster_id == cluster.uuid, Operation.outcome.is_(None))
            .order_by(Operation.id.desc())
            .limit(1)
        ).one_or_none()
    return (found.uuid, found.request_id) if found else (None, None)


@contextlib.contextmanager
def lease_transaction(
    db: Database,
    cluster: Cluster,
    holder: str,
    *,
    lease_s: float,
    guarded: bool = False,
    **columns: Any,
) -> Iterator[orm.Session]:
    """A transaction of a conductor: it renews the lease, writes `columns`, and is where its other
    writes go.

    Raises LeaseLost, and then nothing is written, if `holder` does not hold the cluster any more,
    or, if `guarded`, when something else was asked for since `cluster` was read. After the commit
    `cluster` shows the columns that are plain values."""
    with db.write() as session:
        if (
            _change(
                session,
                sa.update(Cluster)
                .where(
                    Cluster.uuid == cluster.uuid,
                    Cluster.leased_by == holder,
                    sa.true() if not guarded else Cluster.generation == cluster.generation,
                )
                .values(leased_until=now(lease_s), **columns),
            )
            != 1
        ):
            raise errors.LeaseLost(cluster.uuid)
        yield session
    for name, value in columns.items():
        if not isinstance(value, sa.ClauseElement):
            orm.attributes.set_committed_value(cluster, name, value)


#: Seconds after which a cluster is looked at that somebody worked on without a lease: when Heat has
#: taken what he sent.
RECHECK_S = 3


@transaction
def release(db: Database, cluster: Cluster, holder: str, *, check_in_s: float | None) -> None:
    """Give a cluster back, due again in so many seconds (None: when somebody asks for something).

    If somebody asked for a look meanwhile it is due now. If the lease is lost, which is not an
    error here, `holder` may have slept through it between his last write and a call, and so have
    sent what was out of date: then the cluster is looked at soon, also when nobody waits for it or
    somebody else has it."""
    later = sa.null() if check_in_s is None else now(check_in_s)
    with db.write() as session:
        if not _change(
            session,
            sa.update(Cluster)
            .where(Cluster.uuid == cluster.uuid, Cluster.leased_by == holder)
            .values(
                leased_by=None,
                leased_until=None,
                check_at=sa.func.coalesce(Cluster.check_at, later),
            ),
        ):
            _change(
                session,
                sa.update(Cluster)
                .where(
                    Cluster.uuid == cluster.uuid,
                    sa.or_(Cluster.check_at.is_(None), Cluster.leased_by.is_not(None)),
                )
                .values(check_at=now(RECHECK_S)),
            )


@transaction
def hand_back(db: Database, holder: str) -> int:
    """Give back all that `holder` has, due now: what a conductor does that is told to stop. Returns
    how many."""
    with db.write() as session:
        return _change(
            session,
            sa.update(Cluster)
            .where(Cluster.leased_by == holder)
            .values(leased_by=None, leased_until=None, check_at=now()),
        )


@transaction
def is_stack_wanted(db: Database, owner: Cluster | NodeGroup) -> bool:
    """Whether there still is such a cluster or nodegroup, whoever holds it, and it is to have a
    stack."""
    model = type(owner)
    with db.read() as session:
        return (
            session.scalar(
                sa.select(model.id).where(model.uuid == owner.uuid, model.stack_text.is_not(None))
            )
            is not None
        )


@transaction
def has_other_clusters(db: Database, project_id: str, cluster_uuid: str) -> bool:
    """Whether the project has a cluster besides this one, in any state but that of being deleted
    without a stack."""
    with db.read() as session:
        return (
            session.scalar(
                sa.select(Cluster.id)
                .where(
                    Cluster.project_id == project_id,
                    Cluster.uuid != cluster_uuid,
                    sa.or_(
                        Cluster.status != states.DELETE_IN_PROGRESS, Cluster.stack_id.is_not(None)
                    ),
                )
                .limit(1)
            )
            is not None
        )


def begin_operation(session: orm.Session, cluster: Cluster) -> None:
    """Note that work on what the row asks for has begun, the first time that it does."""
    session.execute(
        sa.update(Operation)
        .where(
            Operation.cluster_id == cluster.uuid,
            Operation.generation <= cluster.generation,
            Operation.begun_at.is_(None),
        )
        .values(begun_at=models.utcnow())
    )


def end_operations(
    session: orm.Session,
    cluster: Cluster,
    outcome: str,
    *,
    through: int | None = None,
    code: str | None = None,
    text: str | None = None,
) -> Sequence[Operation]:
    """Note how the work on this generation, or `through` an older one, and on those before it has
    ended.

    Returns the operations that this has ended.
    """
    last = cluster.generation if through is None else through
    ended = session.scalars(
        sa.select(Operation).where(
            Operation.cluster_id == cluster.uuid,
            Operation.generation <= last,
            Operation.outcome.is_(None),
        )
    ).all()
    for operation in ended:
        operation.outcome, operation.ended_at = outcome, models.utcnow()
        operation.code, operation.text = code, text
    return ended


def delete_cluster_row(session: orm.Session, cluster: Cluster) -> None:
    """Remove the row with its nodegroups, nodes and keys. Its operations stay."""
    session.execute(sa.delete(Cluster).where(Cluster.uuid == cluster.uuid))


# -- keys, services --------------------------------------------------------------------------------


@transaction
def list_certificates(db: Database, scope: Scope, ident: str) -> tuple[Cluster, dict[str, str]]:
    """A cluster with its template, and the public parts of its keys by purpose, as PEM. Raises
    NotFound, Conflict.

    Two statements, neither of which reads a private part. Where a purpose has several, all are in
    it, oldest first."""
    with db.read() as session:
        cluster = _one(
            session,
            Cluster,
            'Cluster',
            scope,
            ident,
            orm.joinedload(Cluster.template, innerjoin=True),
        )
        found: dict[str, str] = {}
        for purpose, pem in session.execute(
            sa.select(Key.purpose, Key.certificate)
            .where(Key.cluster_id == cluster.uuid)
            .order_by(Key.id)
        ):
            found[purpose] = found.get(purpose, '') + pem
        return cluster, found


@transaction
def list_keys(db: Database, cluster_uuid: str) -> Sequence[Key]:
    """The keys of a cluster, private parts included; of one purpose the next one comes last."""
    with db.read() as session:
        return session.scalars(
            sa.select(Key)
            .where(Key.cluster_id == cluster_uuid)
            .order_by(Key.is_next, Key.id)
            .options(orm.undefer(Key.private_key))
        ).all()


def advance_rotation(session: orm.Session, cluster: Cluster) -> None:
    """Begin the next phase of the exchange of a cluster's authorities: every member is outdated
    once more.

    The caller's transaction holds the lease. The operation's time begins anew, and its text says
    how far it is."""
    phase = cluster.rotation_phase + 1
    session.execute(
        sa.update(Cluster)
        .where(Cluster.uuid == cluster.uuid)
        .values(rotation_phase=phase, updated_at=models.utcnow())
    )
    session.execute(
        sa.update(NodeGroup)
        .where(NodeGroup.cluster_id == cluster.uuid)
        .values(rollout=NodeGroup.rollout + 1, status=states.UPDATE_IN_PROGRESS)
    )
    session.execute(
        sa.update(Operation)
        .where(
            Operation.cluster_id == cluster.uuid,
            Operation.outcome.is_(None),
            Operation.kind == 'rotate',
        )
        .values(text=f'Phase {phase} of {models.ROTATION_PHASES}')
    )


def end_rotation(session: orm.Session, cluster: Cluster) -> None:
    """Have the next authorities of a cluster take the place of the old ones, which are
    forgotten."""
    keys = session.scalars(sa.select(Key).where(Key.cluster_id == cluster.uuid, Key.is_next)).all()
    session.execute(
        sa.delete(Key).where(
            Key.cluster_id == cluster.uuid,
            sa.not_(Key.is_next),
            Key.purpose.in_([key.purpose for key in keys]),
        )
    )
    session.execute(sa.update(Key).where(Key.cluster_id == cluster.uuid).values(is_next=False))


@transaction
def report_service(db: Database, host: str, binary: str) -> None:
    """Note that a conductor is alive."""
    with db.write() as session:
        if not _change(
            session,
            sa.update(Service)
            .where(Service.host == host, Service.binary == binary)
            .values(last_seen_up=now(), report_count=Service.report_count + 1),
        ):
            session.add(Service(host=host, binary=binary, last_seen_up=now(), report_count=1))


@transaction
def list_services(db: Database, down_time_s: float) -> Sequence[sa.Row[Any]]:
    """All conductors that ever reported, as plain rows.

    `state` is up if the last report, which is `updated_at`, is no older than so many seconds by the
    database's clock. One statement."""
    seen = sa.func.coalesce(Service.last_seen_up, Service.created_at)
    state = sa.case((sa.or_(Service.forced_down, seen < now(-down_time_s)), 'down'), else_='up')
    with db.read() as session:
        return session.execute(
            sa.select(
                Service.id,
                Service.host,
                Service.binary,
                state.label('state'),
                Service.report_count,
                Service.disabled,
                Service.disabled_reason,
                Service.created_at,
                Service.last_seen_up.label('updated_at'),
            ).order_by(Service.id)
        ).all()


# -- quotas and statistics -------------------------------------------------------------------------


def _quota(project_id: str, resource: str) -> sa.ColumnElement[bool]:
    """The quota that an operator has set. The row without a limit, which is there to be locked, is
    none."""
    return sa.and_(
        Quota.project_id == project_id, Quota.resource == resource, Quota.hard_limit.is_not(None)
    )


@transaction
def list_quotas(db: Database, scope: Scope, page: Page) -> Sequence[Quota]:
    """One page of the quotas that were set. One statement, and one more for a marker."""
    with db.read() as session:
        return session.scalars(
            _paged(session, Quota, scope, page, Quota.hard_limit.is_not(None))
        ).all()


@transaction
def get_quota(db: Database, project_id: str, resource: str) -> Quota | None:
    """The quota that was set for a project, or None: then the default holds."""
    with db.read() as session:
        return session.scalars(sa.select(Quota).where(_quota(project_id, resource))).first()


@transaction
def create_quota(db: Database, quota: Quota, *, receipt: MakeReceipt[Quota] = None) -> Quota:
    """Store a quota, in the row that is locked for it if there is one.

    Raises Conflict if one was set already, and what `store_receipt` raises.
    """
    _ensure_quota_row(db, quota.project_id, quota.resource)
    with db.write() as session:
        row = session.scalars(
            sa.select(Quota)
            .where(Quota.project_id == quota.project_id, Quota.resource == quota.resource)
            .with_for_update()
        ).one()
        if row.hard_limit is not None:
            raise errors.Conflict(
                f'Project {quota.project_id} has a quota for {quota.resource} already. Change that.'
            )
        row.hard_limit, row.created_at, row.updated_at = quota.hard_limit, models.utcnow(), None
        store_receipt(session, receipt, row)
        return row


@transaction
def update_quota(db: Database, project_id: str, resource: str, hard_limit: int | None) -> Quota:
    """Set the limit of a quota that there is; None: the default holds again, and the row stays to
    be locked.

    A smaller limit than what the project has takes nothing away. Raises NotFound.
    """
    with db.write() as session:
        row = session.scalars(
            sa.select(Quota).where(_quota(project_id, resource)).with_for_update()
        ).first()
        if row is None:
            raise errors.NotFound(f'Project {project_id} has no quota for {resource} of its own.')
        row.hard_limit, row.updated_at = hard_limit, models.utcnow()
        return row


@transaction
def count(db: Database, project_id: str | None) -> tuple[int, int]:
    """How many clusters there are, in a project or (None) in all, and nodes, masters included. One
    statement."""

    def total(what: Any, model: type[Cluster] | type[NodeGroup]) -> Any:
        mine = sa.true() if project_id is None else model.project_id == project_id
        return sa.select(what).where(mine).scalar_subquery()

    with db.read() as session:
        clusters, nodes = session.execute(
            sa.select(
                total(sa.func.count(Cluster.id), Cluster),
                total(sa.func.coalesce(sa.func.sum(NodeGroup.node_count), 0), NodeGroup),
            )
        ).one()
        return int(clusters), int(nodes)


# -- what the doctor looks at ----------------------------------------------------------------------


@dataclass(frozen=True)
class Inventory:
    """All rows at one moment, `clock` (the database's). `known_*`: of every cluster that was ever
    asked for here."""

    clock: datetime.datetime
    clusters: Sequence[Cluster]
    keys: Sequence[Key]
    stray_keys: Sequence[Key]
    services: Sequence[Service]
    known_clusters: frozenset[str]
    known_projects: frozenset[str]


@transaction
def take_inventory(db: Database) -> Inventory:
    """Read everything: clusters with their nodegroups, keys with their private parts, and what
    history remembers."""
    with db.read() as session:
        clusters = session.scalars(
            sa.select(Cluster).order_by(Cluster.id).options(orm.selectinload(Cluster.nodegroups))
        ).all()
        keys = session.scalars(
            sa.select(Key).order_by(Key.id).options(orm.undefer(Key.private_key))
        ).all()
        uuids = {cluster.uuid for cluster in clusters}
        past = session.execute(
            sa.select(Operation.cluster_id, Operation.project_id).distinct()
        ).all()
        return Inventory(
            clock=session.execute(sa.select(now())).scalar_one(),
            clusters=clusters,
            keys=[key for key in keys if key.cluster_id in uuids],
            stray_keys=[key for key in keys if key.cluster_id not in uuids],
            services=session.scalars(sa.select(Service).order_by(Service.id)).all(),
            known_clusters=frozenset(uuids.union(cluster_id for cluster_id, _ in past)),
            known_projects=frozenset(project_id for _, project_id in past),
        )


@transaction
def list_projects(db: Database) -> Sequence[str]:
    """Ids of the projects that have clusters."""
    with db.read() as session:
        return session.scalars(sa.select(Cluster.project_id).distinct()).all()


@transaction
def has_stack(db: Database, stack_id: str) -> bool:
    """Whether a cluster or a nodegroup says that this stack is its own."""
    with db.read() as session:
        return any(
            session.scalar(sa.select(model.id).where(model.stack_id == stack_id).limit(1))
            is not None
            for model in (Cluster, NodeGroup)
        )


@transaction
def make_due(db: Database, cluster_uuid: str) -> None:
    """Have a conductor look at a cluster, if nothing else would make one do so."""
    with db.write() as session:
        _change(
            session,
            sa.update(Cluster)
            .where(
                Cluster.uuid == cluster_uuid,
                Cluster.check_at.is_(None),
                Cluster.leased_by.is_(None),
            )
            .values(check_at=now()),
        )


@transaction
def forget(db: Database, row: Key | Service) -> None:
    """Remove one row."""
    with db.write() as session:
        session.execute(sa.delete(type(row)).where(type(row).id == row.id))


# -- health ----------------------------------------------------------------------------------------


@transaction
def claim_health(
    db: Database, *, limit: int, interval_s: float
) -> list[tuple[Cluster, datetime.datetime]]:
    """Take the turn to ask up to `limit` engines how they are, longest overdue first.

    Returns each cluster, with all that hangs off it, and the token that `report_health` wants: the
    time of the next turn, about `interval_s` from now. Whoever moves that on has this turn, so
    nobody else asks, and nothing has to be given back."""
    due = sa.and_(
        Cluster.health_at <= now(),
        Cluster.api_address.is_not(None),
        Cluster.status.not_in(
            [status for status in states.STATUSES if status.startswith('DELETE_')]
        ),
    )
    with db.read() as session:
        rows = session.execute(
            sa.select(Cluster.id, Cluster.health_at, now())
            .where(due)
            .order_by(Cluster.health_at)
            .limit(limit)
        ).all()
    if not rows:
        return []
    tokens: dict[int, datetime.datetime] = {}
    with db.write() as session:
        for cluster_id, due_at, clock in rows:
            token = clock + datetime.timedelta(seconds=interval_s * random.uniform(0.9, 1.1))
            if _change(
                session,
                sa.update(Cluster)
                .where(Cluster.id == cluster_id, Cluster.health_at == due_at)
                .values(health_at=token),
            ):
                tokens[cluster_id] = token
    with db.read() as session:
        return [
            (cluster, tokens[cluster.id])
            for cluster in session.scalars(
                sa.select(Cluster)
                .where(Cluster.id.in_(list(tokens)))
                .order_by(Cluster.id)
                .options(
                    orm.joinedload(Cluster.template, innerjoin=True),
                    orm.selectinload(Cluster.nodegroups).selectinload(NodeGroup.nodes),
                )
            )
        ]


@transaction
def report_health(
    db: Database,
    cluster_uuid: str,
    token: datetime.datetime,
    *,
    status: str | None,
    reason: dict[str, str],
) -> bool:
    """Write down how an engine is, if it still is the turn of `token`; returns whether it was.

    Status None: it cannot be asked at all, and nobody does until its next turn is set anew.
    """
    values = (
        {'health_at': None}
        if status is None
        else {'health_status': status, 'health_status_reason': reason}
    )
    with db.write() as session:
        return bool(
            _change(
                session,
                sa.update(Cluster)
                .where(Cluster.uuid == cluster_uuid, Cluster.health_at == token)
                .values(**values),
            )
        )
