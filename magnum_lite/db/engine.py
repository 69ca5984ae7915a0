"""The base of the database layer: engine, clock, transactions, tenancy, paging.

`requests`, `leases` and `inventory` build on this file, and it imports none of them. Code that
starts a process makes a `Database`; the API makes each `Scope` and `Page`. No decision about a
cluster is taken here: statements for one table belong to the other three files."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import uuid as uuidlib
from collections.abc import Callable, Container, Iterator
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

from magnum_lite import errors, models
from magnum_lite.models import Cluster, ClusterTemplate, NodeGroup, Operation, Quota

# -- engine ----------------------------------------------------------------------------------------


class Database:
    """The engine of one process and its two kinds of transactions: `read` and `write`."""

    def __init__(self, conf: cfg.ConfigOpts, *, connection: str | None = None) -> None:
        """Connect to `connection`, else to `[database] connection`, else to SQLite in `state_path`.

        A server that does not respond is tried again as `[database] max_retries` and
        `retry_interval` say. Raises `cfg.Error`, whose one line names the option, when these are
        used up and when the connection cannot be used at all."""
        conf.register_opts(db_options.database_opts, 'database')
        self.url = (
            connection
            or conf.database.connection
            or f'sqlite:///{conf.state_path}/magnum-lite.sqlite'
        )
        _check_address(self.url)
        with _name_the_option():
            facade = enginefacade.transaction_context()
            facade.configure(connection=self.url, sqlite_fk=True)
            self.engine = facade.writer.get_engine()
            if self.engine.dialect.name == 'sqlite':
                _configure_sqlite(self.engine)
            else:
                _limit_idle_transactions(self.engine)
            # Drop the connection with which oslo.db has tested the server: it was opened before
            # the listeners above. With max_retries = 0 there was none, so this one is the test.
            self.engine.dispose()
            self.engine.connect().close()
        # A WSGI server may fork from here on.
        self.engine.dispose()
        self._reader = orm.sessionmaker(self.engine, expire_on_commit=False)
        self._writer = orm.sessionmaker(
            self.engine.execution_options(magnum_lite_writes=True), expire_on_commit=False
        )

    @contextlib.contextmanager
    def read(self) -> Iterator[orm.Session]:
        """A transaction that only reads. Its rows stay usable afterwards, as far as loaded."""
        with self._reader() as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[orm.Session]:
        """A transaction that writes: committed at its end, rolled back by an exception."""
        with self._writer() as session, session.begin():
            yield session


def _check_address(url: str) -> None:
    """Raise `cfg.Error` for what cannot be read as the address of a database.

    The text is not repeated: it has the password in it, and where that is not quoted SQLAlchemy
    takes a part of it for the host or the port."""
    try:
        is_address = '@' not in (sa.make_url(url).host or '')
    except (sa.exc.ArgumentError, ValueError):
        is_address = False
    if not is_address:
        raise cfg.Error(
            'The database cannot be used: [database] connection is not of the form '
            'mysql+pymysql://USER:PASSWORD@HOST/NAME; in a password @ is written %40, '
            ': %3A and / %2F'
        )


@contextlib.contextmanager
def _name_the_option() -> Iterator[None]:
    """Turn whatever goes wrong with a connection into one line for the operator, a `cfg.Error`.

    oslo.db hands on what SQLAlchemy and the libraries of databases raise: `OperationalError` of a
    wrong password, `ImportError` of a library that is not installed, `TypeError` of an option that
    `connect` does not know. Seen with oslo.db 18 and PyMySQL 1.1."""
    filters = logging.getLogger('oslo_db.sqlalchemy.exc_filters')  # it would log the traceback
    level = filters.level
    filters.setLevel(logging.CRITICAL)
    try:
        yield
    except (
        db_exc.DBError,
        sa.exc.SQLAlchemyError,
        ImportError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
    ) as e:
        raise cfg.Error(
            f'The database cannot be used: {say_first(e)}. See [database] connection'
        ) from e
    finally:
        filters.setLevel(level)


def say_first(error: Exception) -> str:
    """The first line of what the database, or its library, has said."""
    cause = getattr(error, 'inner_exception', None) or error
    return (str(cause).splitlines() or [type(cause).__name__])[0].rstrip('.')


def _configure_sqlite(engine: sa.Engine) -> None:
    """Let the threads of one process share a SQLite file.

    A transaction that reads first and then writes can fail at once with "database is locked",
    whatever the timeout. So a writing transaction takes the write lock when it begins. Readers run
    beside it (WAL)."""

    @sa.event.listens_for(engine, 'connect')
    def set_pragmas(connection: Any, record: Any) -> None:
        connection.execute('PRAGMA journal_mode = WAL')
        # With WAL this is safe when the process dies.
        connection.execute('PRAGMA synchronous = NORMAL')
        connection.execute('PRAGMA busy_timeout = 60000')

    @sa.event.listens_for(engine, 'before_cursor_execute', retval=True)
    def lock_for_writing(
        conn: sa.Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> Any:
        if statement == 'BEGIN' and conn.get_execution_options().get('magnum_lite_writes'):
            statement = 'BEGIN IMMEDIATE'
        return statement, parameters


#: Seconds after which the server ends a transaction in which nothing happens. No longer than the
#: shortest lease.
IDLE_TRANSACTION_S = 10


def _limit_idle_transactions(engine: sa.Engine) -> None:
    """Have the server end the transaction of a process that is suspended or cut off the network.

    Its locks would block every other conductor, because their claims touch the same rows: seen with
    SIGSTOP. The service itself never waits for anything but the database inside a transaction.
    MariaDB executes the comment in the second statement. MySQL has no such limit and skips it:
    there the locks stay until the server ends the connection."""
    seconds = IDLE_TRANSACTION_S
    if engine.dialect.name == 'postgresql':
        statement = f"SET idle_in_transaction_session_timeout = '{seconds}s'"
    else:
        statement = (
            f'SET @magnum_lite = 0 /*M!100300 , SESSION idle_transaction_timeout = {seconds} */'
        )

    @sa.event.listens_for(engine, 'connect')
    def set_limit(connection: Any, record: Any) -> None:
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(statement)
        connection.commit()


def add_timeouts(url: str, timeout_s: int) -> str:
    """Return the URL of a database with limits for connecting and for each response, in seconds."""
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


#: Codes of MariaDB and PostgreSQL for a table or a column that is not there: the schema is missing,
#: or it is that of another release.
_NO_SCHEMA = (1146, 1054, '42P01', '42703')


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the database cannot be used now, whatever was asked of it.

    Such as: stopped, no connection left, read-only, no schema. Drivers have one class for most of
    these, OperationalError, of which oslo.db makes DBConnectionError only where it knows the text:
    not for PostgreSQL's "not currently accepting connections" or MariaDB's "Too many connections".
    """
    if isinstance(error, db_exc.DBConnectionError):
        return True
    cause: Any = error.inner_exception if isinstance(error, db_exc.DBError) else error
    if isinstance(cause, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError):
        return True
    if not isinstance(cause, sa.exc.ProgrammingError) or cause.orig is None:
        return False
    code = getattr(cause.orig, 'pgcode', None) or next(iter(cause.orig.args), None)
    return code in _NO_SCHEMA


# -- statements ------------------------------------------------------------------------------------

P = ParamSpec('P')
T = TypeVar('T')
M = TypeVar('M', Cluster, ClusterTemplate)
#: A table whose rows belong to a project and are listed in pages.
Listed = Cluster | ClusterTemplate | NodeGroup | Operation | Quota

#: Loader options for clusters: the template, by an inner join since every cluster has one; and the
#: nodegroups with their nodes.
WITH_TEMPLATE = orm.joinedload(Cluster.template, innerjoin=True)
WITH_NODES = orm.selectinload(Cluster.nodegroups).selectinload(NodeGroup.nodes)


def retry_on_deadlock(
    function: Callable[Concatenate[Database, P], T],
) -> Callable[Concatenate[Database, P], T]:
    """Decorate a function that is one transaction: run it again when the database aborted it.

    A database ends a deadlock by aborting one of its transactions. At most 10 retries."""
    return functools.wraps(function)(
        oslo_db_api.wrap_db_retry(
            max_retries=10,
            retry_interval=0.05,
            max_retry_interval=1,
            inc_retry_interval=True,
            retry_on_deadlock=True,
        )(function)
    )


def row_exists(session: orm.Session, column: Any, *conditions: sa.ColumnElement[bool]) -> bool:
    """Whether a row meets all conditions. `column` is one of its table that is never null."""
    return session.scalar(sa.select(column).where(*conditions).limit(1)) is not None


# -- tenancy and paging ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scope:
    """Whose rows exist for a caller: those of one project, or of all."""

    project_id: str
    all_projects: bool = False


@dataclass(frozen=True)
class Page:
    """One page of a listing: at most `limit` rows after `marker`, sorted by `sort_key`, then by id.

    The marker is a uuid, or the integer key of a row without uuid."""

    limit: int
    marker: str | None = None
    sort_key: str = 'id'
    descending: bool = False


def sort_keys(model: type[models.Base], shown: Container[str]) -> list[str]:
    """List the columns by which a listing may be sorted: those in `shown` that every database can
    order."""
    return [
        column.key
        for column in sa.inspect(model).columns
        if column.key in shown and not isinstance(column.type, sa.JSON)
    ]


def match_visible(model: type[Listed], scope: Scope) -> sa.ColumnElement[bool]:
    """Build the condition for rows that exist for a caller: public templates count as its own."""
    if scope.all_projects:
        return sa.true()
    is_own = model.project_id == scope.project_id
    if model is ClusterTemplate:
        return sa.or_(is_own, sa.and_(ClusterTemplate.public, sa.not_(ClusterTemplate.hidden)))
    return is_own


def select_page(
    session: orm.Session,
    model: type[Listed],
    scope: Scope,
    page: Page,
    *conditions: sa.ColumnElement[bool],
) -> sa.Select[Any]:
    """Build the SELECT of one page of the visible rows that meet all conditions.

    Raises NotFound for a marker that the caller cannot see.

    Rows without a value come last in either direction: databases disagree on where nulls sort, and
    a marker must mean the same on all. (oslo.db's `paginate_query` was tried with nulls last: it
    returns the same page for ever.)"""
    is_listed = sa.and_(match_visible(model, scope), *conditions)
    column = getattr(model, page.sort_key)
    is_null = column.is_(None)
    query = (
        sa.select(model)
        .where(is_listed)
        .order_by(is_null, column.desc() if page.descending else column.asc(), model.id)
        .limit(page.limit)
    )
    if page.marker is None:
        return query
    is_marker = (
        model.id == int(page.marker) if issubclass(model, Quota) else model.uuid == page.marker
    )
    marker = session.execute(sa.select(column, model.id).where(is_listed, is_marker)).one_or_none()
    if marker is None:
        raise errors.NotFound(f'The marker {page.marker} could not be found.')
    value, marker_id = marker
    is_later = model.id > marker_id
    if value is None:
        return query.where(is_null, is_later)
    # Not every database can order booleans.
    if isinstance(value, bool):
        value = int(value)
        column = sa.cast(column, sa.Integer)
    is_beyond = column < value if page.descending else column > value
    return query.where(sa.or_(is_beyond, sa.and_(column == value, is_later), is_null))


def get_by_ident(
    session: orm.Session, model: type[M], scope: Scope, ident: str, *options: Any
) -> M:
    """Get a visible row by uuid, in any spelling, or by its exact name.

    Raises NotFound, or Conflict for a name that several rows have."""
    if uuidutils.is_uuid_like(ident):
        is_named = model.uuid == str(uuidlib.UUID(ident))
    else:
        # LIKE as well, because `=` of MariaDB ignores spaces at the end.
        pattern = re.sub(r'([%_/])', r'/\1', ident)
        is_named = sa.and_(model.name == ident, model.name.like(pattern, escape='/'))
    rows = session.scalars(
        sa.select(model).where(is_named, match_visible(model, scope)).limit(2).options(*options)
    ).all()
    noun = 'Cluster' if model is Cluster else 'Cluster template'
    if not rows:
        raise errors.NotFound(f'{noun} {ident} could not be found.')
    if len(rows) > 1:
        raise errors.Conflict(
            f'More than one {noun.lower()} has the name {ident}. Use the uuid instead.'
        )
    return rows[0]
