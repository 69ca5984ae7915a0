"""Make SQLite bear the threads of a service, for every engine of this process.

As it comes, SQLite lets a transaction begin as a reader and refuses at once, whatever its timeout,
when it wants to write after somebody else has written: "database is locked". BEGIN IMMEDIATE takes
the write lock at the start, where waiting for it is allowed. WAL keeps readers outside a
transaction from waiting at all. How long to wait, and that nothing is synced to disk, stands in the
configuration files (`?timeout=` and `sqlite_synchronous`).

Each server of the embedded cloud calls `tune` when its schema is there: migrations read through a
second connection while the first one has a transaction open, and would wait for themselves."""

from sqlalchemy import event
from sqlalchemy.engine import Engine


def tune() -> None:
    """Apply it to every engine of this process, those that are there and those to come."""
    event.listen(Engine, 'connect', _use_write_ahead_log)
    event.listen(Engine, 'before_cursor_execute', _begin_as_writer, retval=True)


def _use_write_ahead_log(connection, _record):
    connection.execute('PRAGMA journal_mode = WAL')


def _begin_as_writer(_connection, _cursor, statement, parameters, _context, _executemany):
    # oslo.db turns the driver's own BEGIN off and sends its own as a statement, so it can be
    # replaced here.
    return ('BEGIN IMMEDIATE' if statement == 'BEGIN' else statement), parameters
