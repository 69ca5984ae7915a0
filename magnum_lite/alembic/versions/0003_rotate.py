"""Add the rotation of a cluster's authorities: its phase, and next key pairs beside the old ones.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

#: Columns of the unique constraint: one key of each purpose, and later one next key as well.
OLD, NEW = ('cluster_id', 'purpose'), ('cluster_id', 'purpose', 'is_next')


def upgrade() -> None:
    """Add the columns. Existing clusters have no rotation in progress."""
    with op.batch_alter_table('clusters') as batch:
        batch.add_column(sa.Column('rotation', sa.Integer(), nullable=False, server_default='0'))
    with op.batch_alter_table('cluster_keys') as batch:
        batch.add_column(
            sa.Column('is_next', sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch.drop_constraint(f'uq_cluster_keys_{"_".join(OLD)}', type_='unique')
        batch.create_unique_constraint(f'uq_cluster_keys_{"_".join(NEW)}', list(NEW))


def downgrade() -> None:
    """Drop the columns, and delete the next keys."""
    keys = sa.table('cluster_keys', sa.column('is_next', sa.Boolean()))
    op.execute(sa.delete(keys).where(keys.c.is_next))
    with op.batch_alter_table('cluster_keys') as batch:
        batch.drop_constraint(f'uq_cluster_keys_{"_".join(NEW)}', type_='unique')
        batch.create_unique_constraint(f'uq_cluster_keys_{"_".join(OLD)}', list(OLD))
        batch.drop_column('is_next')
    with op.batch_alter_table('clusters') as batch:
        batch.drop_column('rotation')
