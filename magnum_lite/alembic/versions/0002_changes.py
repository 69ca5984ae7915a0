"""Add what changes of running clusters need.

These are revisions of stacks, epochs of members (today rollouts: see 0005), cancellation, error
codes, health and progress.

Revision ID: 0002
Revises: 0001
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from magnum_lite.models import UTCDateTime

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None

TIME = UTCDateTime()


def _number(name: str, value: int) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=False, server_default=str(value))


def _columns() -> dict[str, list[sa.Column[Any]]]:
    return {
        'clusters': [
            _number('cancelled_generation', 0),
            _number('revision', 0),
            sa.Column('delete_forced', sa.Boolean(), nullable=False, server_default=sa.false()),
            sa.Column('error_code', sa.String(40)),
            sa.Column('health_at', TIME),
            sa.Column('watched_until', TIME),
        ],
        'nodegroups': [
            _number('epoch', 1),
            _number('batch_size', 1),
            _number('sent_generation', 0),
            _number('revision', 0),
            sa.Column('error_code', sa.String(40)),
            sa.Column('stack_text', sa.JSON()),
        ],
        'nodes': [_number('epoch', 1), sa.Column('error_code', sa.String(40))],
        'operations': [
            sa.Column('driver', sa.String(255)),
            sa.Column('node_count', sa.Integer()),
            sa.Column('resources_done', sa.Integer()),
            sa.Column('resources_total', sa.Integer()),
        ],
    }


INDEXES = {'clusters': ('leased_until', 'health_at'), 'nodegroups': ('stack_id',)}


def upgrade() -> None:
    """Add the columns. Existing clusters have no revision, and members of the first epoch."""
    for table, columns in _columns().items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.add_column(column)
    for table, names in INDEXES.items():
        for name in names:
            op.create_index(f'ix_{table}_{name}', table, [name])


def downgrade() -> None:
    """Drop the columns and indexes."""
    for table, names in INDEXES.items():
        for name in names:
            op.drop_index(f'ix_{table}_{name}', table)
    for table, columns in _columns().items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.drop_column(column.name)
