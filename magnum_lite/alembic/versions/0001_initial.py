"""Create the first tables: cluster templates, clusters and all that belongs to these, operations,
quotas, services.

Revision ID: 0001
Revises:
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from magnum_lite.models import UTCDateTime

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None

TIME = UTCDateTime()
# The binary collation makes names differ by case and accents, as they do on other databases.
INNODB: dict[str, Any] = {
    'mysql_engine': 'InnoDB',
    'mysql_charset': 'utf8mb4',
    'mysql_collate': 'utf8mb4_bin',
}


def upgrade() -> None:
    """Create all tables, those that others refer to first."""
    op.create_table(
        'cluster_templates',
        sa.Column('uuid', sa.String(36), nullable=False),
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('user_id', sa.String(255), nullable=False),
        sa.Column('name', sa.String(255), nullable=False),
        sa.Column('coe', sa.String(255), nullable=False),
        sa.Column('server_type', sa.String(255), nullable=False),
        sa.Column('cluster_distro', sa.String(255), nullable=False),
        sa.Column('driver', sa.String(255)),
        sa.Column('image_id', sa.String(255), nullable=False),
        sa.Column('flavor_id', sa.String(255)),
        sa.Column('master_flavor_id', sa.String(255)),
        sa.Column('keypair_id', sa.String(255)),
        sa.Column('external_network_id', sa.String(255)),
        sa.Column('fixed_network', sa.String(255)),
        sa.Column('fixed_subnet', sa.String(255)),
        sa.Column('network_driver', sa.String(255)),
        sa.Column('volume_driver', sa.String(255)),
        sa.Column('dns_nameserver', sa.String(255)),
        sa.Column('apiserver_port', sa.Integer()),
        sa.Column('docker_volume_size', sa.Integer()),
        sa.Column('docker_storage_driver', sa.String(255)),
        sa.Column('http_proxy', sa.String(255)),
        sa.Column('https_proxy', sa.String(255)),
        sa.Column('no_proxy', sa.String(255)),
        sa.Column('insecure_registry', sa.String(255)),
        sa.Column('registry_enabled', sa.Boolean(), nullable=False),
        sa.Column('tls_disabled', sa.Boolean(), nullable=False),
        sa.Column('public', sa.Boolean(), nullable=False),
        sa.Column('hidden', sa.Boolean(), nullable=False),
        sa.Column('master_lb_enabled', sa.Boolean(), nullable=False),
        sa.Column('floating_ip_enabled', sa.Boolean(), nullable=False),
        sa.Column('labels', sa.JSON(), nullable=False),
        sa.Column('tags', sa.String(255)),
        sa.Column('id', sa.Integer(), nullable=False),
        sa.Column('created_at', TIME, nullable=False),
        sa.Column('updated_at', TIME),
        sa.PrimaryKeyConstraint('id', name='pk_cluster_templates'),
        sa.UniqueConstraint('uuid', name='uq_cluster_templates_uuid'),
        **INNODB,
    )
    op.create_index('ix_cluster_templates_project_id', 'cluster_templates', ['project_id'])
    op.create_table(
        'operations',
        sa.Column('uuid', sa.String(36), nullable=False),
        sa.Column('cluster_id', sa.String(36), nullable=False),
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('user_id', sa.String(255), nullable=False),
        sa.Column('request_id', sa.String(255)),
        sa.Column('kind', sa.String(20), nullable=False),
        sa.Column('generation', sa.Integer(), nullable=False),
        sa.Column('begun_at', TIME),
        sa.Column('ended_at', TIME),
        sa.Column('outcome', sa.String(20)),
        sa.Column('code', sa.String(40)),
        sa.Column('text', sa.Text()),
        sa.Column('id', sa.Integer(), nullable=False),
        sa.Column('created_at', TIME, nullable=False),
        sa.Column('updated_at', TIME),
        sa.PrimaryKeyConstraint('id', name='pk_operations'),
        sa.UniqueConstraint('uuid', name='uq_operations_uuid'),
        **INNODB,
    )
    op.create_index('ix_operations_cluster_id', 'operations', ['cluster_id'])
    op.create_index('ix_operations_project_id', 'operations', ['project_id'])
    op.create_table(
        'quotas',
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('resource', sa.String(40), nullable=False),
        sa.Column('hard_limit', sa.Integer()),
        sa.Column('id', sa.Integer(), nullable=False),
        sa.Column('created_at', TIME, nullable=False),
        sa.Column('updated_at', TIME),
        sa.PrimaryKeyConstraint('id', name='pk_quotas'),
        sa.UniqueConstraint('project_id', 'resource', name='uq_quotas_project_id_resource'),
        **INNODB,
    )
    op.create_table(
        'services',
        sa.Column('host', sa.String(255), nullable=False),
        sa.Column('binary', sa.String(255), nullable=False),
        sa.Column('disabled', sa.Boolean(), nullable=False),
        sa.Column('disabled_reason', sa.String(255)),
        sa.Column('forced_down', sa.Boolean(), nullable=False),
        sa.Column('last_seen_up', TIME),
        sa.Column('report_count', sa.Integer(), nullable=False),
        sa.Column('id', sa.Integer(), nullable=False),
        sa.Column('created_at', TIME, nullable=False),
        sa.Column('updated_at', TIME),
        sa.PrimaryKeyConstraint('id', name='pk_services'),
        sa.UniqueConstraint('host', 'binary', name='uq_services_host_binary'),
        **INNODB,
    )
    op.create_table(
        'clusters',
        sa.Column('uuid', sa.String(36), nullable=False),
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('user_id', sa.String(255), nullable=False),
        sa.Column('name', sa.String(255), nullable=False),
        sa.Column('cluster_template_id', sa.String(36), nullable=False),
        sa.Column('driver', sa.String(255), nullable=False),
        sa.Column('keypair', sa.String(255)),
        sa.Column('public_key', sa.Text()),
        sa.Column('flavor_id', sa.String(255)),
        sa.Column('master_flavor_id', sa.String(255)),
        sa.Column('docker_volume_size', sa.Integer()),
        sa.Column('fixed_network', sa.String(255)),
        sa.Column('fixed_subnet', sa.String(255)),
        sa.Column('floating_ip_enabled', sa.Boolean(), nullable=False),
        sa.Column('master_lb_enabled', sa.Boolean(), nullable=False),
        sa.Column('labels', sa.JSON(), nullable=False),
        sa.Column('discovery_url', sa.String(255)),
        sa.Column('create_timeout', sa.Integer()),
        sa.Column('generation', sa.Integer(), nullable=False),
        sa.Column('sent_generation', sa.Integer(), nullable=False),
        sa.Column('status', sa.String(20), nullable=False),
        sa.Column('status_reason', sa.Text()),
        sa.Column('health_status', sa.String(20)),
        sa.Column('health_status_reason', sa.JSON(), nullable=False),
        sa.Column('stack_id', sa.String(255)),
        sa.Column('stack_text', sa.JSON()),
        sa.Column('api_address', sa.String(255)),
        sa.Column('coe_version', sa.String(255)),
        sa.Column('container_version', sa.String(255)),
        sa.Column('leased_by', sa.String(255)),
        sa.Column('leased_until', TIME),
        sa.Column('check_at', TIME),
        sa.Column('failures', sa.Integer(), nullable=False),
        sa.Column('id', sa.Integer(), nullable=False),
        sa.Column('created_at', TIME, nullable=False),
        sa.Column('updated_at', TIME),
        sa.ForeignKeyConstraint(
            ['cluster_template_id'],
            ['cluster_templates.uuid'],
            name='fk_clusters_cluster_template_id',
        ),
        sa.PrimaryKeyConstraint('id', name='pk_clusters'),
        sa.UniqueConstraint('uuid', name='uq_clusters_uuid'),
        **INNODB,
    )
    op.create_index('ix_clusters_check_at', 'clusters', ['check_at'])
    op.create_index('ix_clusters_cluster_template_id', 'clusters', ['cluster_template_id'])
    op.create_index('ix_clusters_project_id', 'clusters', ['project_id'])
    op.create_table(
        'cluster_keys',
        sa.Column('cluster_id', sa.String(36), nullable=False),
        sa.Column('purpose', sa.String(40), nullable=False),
        sa.Column('certificate', sa.Text(), nullable=False),
        sa.Column('private_key', sa.Text(), nullable=False),
        sa.Column('backend', sa.String(20), nullable=False),
        sa.Column('id', sa.Integer(), nullable=False),
        sa.Column('created_at', TIME, nullable=False),
        sa.Column('updated_at', TIME),
        sa.ForeignKeyConstraint(
            ['cluster_id'], ['clusters.uuid'], name='fk_cluster_keys_cluster_id', ondelete='CASCADE'
        ),
        sa.PrimaryKeyConstraint('id', name='pk_cluster_keys'),
        sa.UniqueConstraint('cluster_id', 'purpose', name='uq_cluster_keys_cluster_id_purpose'),
        **INNODB,
    )
    op.create_index('ix_cluster_keys_cluster_id', 'cluster_keys', ['cluster_id'])
    op.create_table(
        'nodegroups',
        sa.Column('uuid', sa.String(36), nullable=False),
        sa.Column('cluster_id', sa.String(36), nullable=False),
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('name', sa.String(255), nullable=False),
        sa.Column('role', sa.String(255), nullable=False),
        sa.Column('is_default', sa.Boolean(), nullable=False),
        sa.Column('flavor_id', sa.String(255)),
        sa.Column('image_id', sa.String(255)),
        sa.Column('docker_volume_size', sa.Integer()),
        sa.Column('labels', sa.JSON(), nullable=False),
        sa.Column('node_count', sa.Integer(), nullable=False),
        sa.Column('min_node_count', sa.Integer(), nullable=False),
        sa.Column('max_node_count', sa.Integer()),
        sa.Column('node_labels', sa.JSON(), nullable=False),
        sa.Column('node_taints', sa.JSON(), nullable=False),
        sa.Column('next_number', sa.Integer(), nullable=False),
        sa.Column('status', sa.String(20), nullable=False),
        sa.Column('status_reason', sa.Text()),
        sa.Column('stack_id', sa.String(255)),
        sa.Column('version', sa.String(255)),
        sa.Column('node_addresses', sa.JSON(), nullable=False),
        sa.Column('id', sa.Integer(), nullable=False),
        sa.Column('created_at', TIME, nullable=False),
        sa.Column('updated_at', TIME),
        sa.ForeignKeyConstraint(
            ['cluster_id'], ['clusters.uuid'], name='fk_nodegroups_cluster_id', ondelete='CASCADE'
        ),
        sa.PrimaryKeyConstraint('id', name='pk_nodegroups'),
        sa.UniqueConstraint('cluster_id', 'name', name='uq_nodegroups_cluster_id_name'),
        sa.UniqueConstraint('uuid', name='uq_nodegroups_uuid'),
        **INNODB,
    )
    op.create_index('ix_nodegroups_cluster_id', 'nodegroups', ['cluster_id'])
    op.create_index('ix_nodegroups_project_id', 'nodegroups', ['project_id'])
    op.create_table(
        'nodes',
        sa.Column('nodegroup_id', sa.String(36), nullable=False),
        sa.Column('number', sa.Integer(), nullable=False),
        sa.Column('name', sa.String(63), nullable=False),
        sa.Column('status', sa.String(20), nullable=False),
        sa.Column('status_reason', sa.Text()),
        sa.Column('server_id', sa.String(255)),
        sa.Column('address', sa.String(255)),
        sa.Column('private_address', sa.String(255)),
        sa.Column('image_id', sa.String(255)),
        sa.Column('version', sa.String(255)),
        sa.Column('id', sa.Integer(), nullable=False),
        sa.Column('created_at', TIME, nullable=False),
        sa.Column('updated_at', TIME),
        sa.ForeignKeyConstraint(
            ['nodegroup_id'], ['nodegroups.uuid'], name='fk_nodes_nodegroup_id', ondelete='CASCADE'
        ),
        sa.PrimaryKeyConstraint('id', name='pk_nodes'),
        sa.UniqueConstraint('nodegroup_id', 'number', name='uq_nodes_nodegroup_id_number'),
        **INNODB,
    )
    op.create_index('ix_nodes_nodegroup_id', 'nodes', ['nodegroup_id'])


def downgrade() -> None:
    """Drop all tables in the reverse order."""
    for table in (
        'nodes',
        'nodegroups',
        'cluster_keys',
        'clusters',
        'services',
        'quotas',
        'operations',
        'cluster_templates',
    ):
        op.drop_table(table)
