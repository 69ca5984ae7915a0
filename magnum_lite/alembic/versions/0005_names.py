"""Rename columns to what they hold: rollout, rotation_phase, polled_until.

Revision ID: 0005
Revises: 0004
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None

#: (table, old name, new name)
RENAMED = (
    ('clusters', 'rotation', 'rotation_phase'),
    ('clusters', 'watched_until', 'polled_until'),
    ('nodegroups', 'epoch', 'rollout'),
    ('nodes', 'epoch', 'rollout'),
)
#: The full descriptions of the columns, which MariaDB needs to rename them.
NUMBER: dict[str, Any] = {'existing_type': sa.Integer(), 'existing_nullable': False}
#: Not models.UTCDateTime: Alembic cannot rename a column of a decorated type on SQLite.
TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    'rotation_phase': NUMBER | {'existing_server_default': '0'},
    'polled_until': {'existing_type': TIME, 'existing_nullable': True},
    'rollout': NUMBER | {'existing_server_default': '1'},
}


def upgrade() -> None:
    """Rename the columns. Their values stay."""
    for table, old, new in RENAMED:
        with op.batch_alter_table(table) as batch:
            batch.alter_column(old, new_column_name=new, **DESCRIPTIONS[new])


def downgrade() -> None:
    """Give the columns their old names back."""
    for table, old, new in RENAMED:
        with op.batch_alter_table(table) as batch:
            batch.alter_column(new, new_column_name=old, **DESCRIPTIONS[new])
