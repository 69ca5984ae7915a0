"""Clusters get a description.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Clusters that exist have none."""
    op.add_column('clusters', sa.Column('description', sa.String(1024)))


def downgrade() -> None:
    """Drop the column with its values."""
    with op.batch_alter_table('clusters') as batch:
        batch.drop_column('description')
