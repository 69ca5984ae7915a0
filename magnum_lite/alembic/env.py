"""The environment of Alembic: run by `alembic.command`, never imported by the service.

It runs the migrations over the connection that `magnum_lite.cli` puts into the configuration, in
one transaction, and makes no connection of its own."""

from alembic import context

from magnum_lite import models

context.configure(
    connection=context.config.attributes['connection'],
    target_metadata=models.Base.metadata,
    compare_type=True,
    # SQLite cannot change a column in place, so Alembic copies the table instead.
    render_as_batch=True,
    version_table='alembic_version',
)
with context.begin_transaction():
    context.run_migrations()
