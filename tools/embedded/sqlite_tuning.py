"""Make SQLite usable by a service with threads, for every engine of this process.

By default a transaction of SQLite begins as a reader. If another connection has written since,
its first write fails at once with "database is locked", whatever the timeout. BEGIN IMMEDIATE takes
the write lock at the start, where SQLite does wait. WAL lets readers outside a transaction go on
without waiting. The timeout, and that nothing is synced to disk, are in the configuration files
(`?timeout=` and `sqlite_synchronous`).

Each server of the embedded cloud calls `tune` after its schema has been created. Migrations read
through a second connection while the first one has a transaction open, so they would deadlock."""

from sqlalchemy import event
from sqlalchemy.engine import Engine


def tune() -> None:
    """Tune every engine of this process, present and future."""
    event.listen(Engine, 'connect', _use_write_ahead_log)
    event.listen(Engine, 'before_cursor_execute', _begin_as_writer, retval=True)


def _use_write_ahead_log(connection, _record):
    connection.execute('PRAGMA journal_mode = WAL')


def _begin_as_writer(_connection, _cursor, statement, parameters, _context, _executemany):
    # oslo.db disables the driver's BEGIN and sends one as a statement, so it can be replaced here.
    return ('BEGIN IMMEDIATE' if statement == 'BEGIN' else statement), parameters
