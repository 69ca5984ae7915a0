"""How alembic reaches the database: over the connection that `magnum_lite.cli` hands in, inside one
transaction."""

from alembic import context

from magnum_lite import models

context.configure(
    connection=context.config.attributes['connection'],
    target_metadata=models.Base.metadata,
    compare_type=True,
    # SQLite cannot change a column in place: alembic then makes the table anew.
    render_as_batch=True,
    version_table='alembic_version',
)
with context.begin_transaction():
    context.run_migrations()
