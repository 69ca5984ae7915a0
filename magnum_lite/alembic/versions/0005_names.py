"""Columns get the names of what they hold: rollout, rotation_phase, polled_until.

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

#: (table, name until now, name from now on)
RENAMED = (
    ('clusters', 'rotation', 'rotation_phase'),
    ('clusters', 'watched_until', 'polled_until'),
    ('nodegroups', 'epoch', 'rollout'),
    ('nodes', 'epoch', 'rollout'),
)
#: What the columns are besides: MariaDB has a column described anew when it is renamed.
NUMBER: dict[str, Any] = {'existing_type': sa.Integer(), 'existing_nullable': False}
#: Not models.UTCDateTime: Alembic cannot rename a column of a decorated type on SQLite.
TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    'rotation_phase': NUMBER | {'existing_server_default': '0'},
    'polled_until': {'existing_type': TIME, 'existing_nullable': True},
    'rollout': NUMBER | {'existing_server_default': '1'},
}


def upgrade() -> None:
    """Rename the columns. Values stay."""
    for table, old, new in RENAMED:
        with op.batch_alter_table(table) as batch:
            batch.alter_column(old, new_column_name=new, **DESCRIPTIONS[new])


def downgrade() -> None:
    """Give them their old names again."""
    for table, old, new in RENAMED:
        with op.batch_alter_table(table) as batch:
            batch.alter_column(new, new_column_name=old, **DESCRIPTIONS[new])
