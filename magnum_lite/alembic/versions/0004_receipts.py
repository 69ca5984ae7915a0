"""Add the receipts of requests with an Idempotency-Key.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from magnum_lite.models import UTCDateTime

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None

TIME = UTCDateTime()


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        'receipts',
        sa.Column('id', sa.Integer(), nullable=False, autoincrement=True),
        sa.Column('created_at', TIME, nullable=False),
        sa.Column('updated_at', TIME),
        sa.Column('digest', sa.String(64), nullable=False),
        sa.Column('fingerprint', sa.String(64), nullable=False),
        sa.Column('headers', sa.JSON(), nullable=False),
        sa.Column('body', sa.JSON()),
        sa.Column('expires_at', TIME, nullable=False),
        sa.PrimaryKeyConstraint('id', name='pk_receipts'),
        sa.UniqueConstraint('digest', name='uq_receipts_digest'),
        mysql_engine='InnoDB',
        mysql_charset='utf8mb4',
        mysql_collate='utf8mb4_bin',
    )
    op.create_index('ix_receipts_expires_at', 'receipts', ['expires_at'])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table('receipts')
