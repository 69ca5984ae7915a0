"""Rows that tests put into the database directly, without a request.

For states that only a conductor reaches, and where a hundred requests would take too long. Each
`store_...` commits; each `new_...` stores what `build_...` makes."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from magnum_lite import db, members, models, states
from magnum_lite.api.request import Services
from magnum_lite.models import Cluster, ClusterTemplate, NodeGroup, Operation


def uuid_of(number: int) -> str:
    """The uuid of the cluster of that number, `template_uuid` that of its template."""
    return f'c0000000-0000-4000-8000-{number:012}'


TEMPLATE_UUID, NEWER_UUID = (
    '70000000-0000-4000-8000-000000000001',
    '70000000-0000-4000-8000-000000000002',
)


def store_template(database: db.Database, **columns: Any) -> None:
    db.create_template(
        database,
        models.ClusterTemplate(
            **{
                'uuid': TEMPLATE_UUID,
                'project_id': 'p1',
                'user_id': 'u1',
                'name': 'k8s',
                'coe': 'kubernetes',
                'server_type': 'vm',
                'cluster_distro': 'ubuntu',
                'image_id': 'ubuntu',
                'flavor_id': 'm1.small',
                'master_flavor_id': 'm1.small',
                'external_network_id': 'public',
                'network_driver': 'flannel',
                'labels': {'kube_tag': 'v1.35.9'},
            }
            | columns
        ),
    )


def store_cluster(database: db.Database, number: int, **columns: Any) -> str:
    """A cluster with one master and two workers."""
    cluster = models.Cluster(
        **{
            'uuid': uuid_of(number),
            'project_id': 'p1',
            'user_id': 'u1',
            'name': f'c{number}',
            'flavor_id': 'm1.small',
            'cluster_template_id': TEMPLATE_UUID,
            'driver': 'k8s_cloud_init',
            'master_flavor_id': 'm1.small',
            'floating_ip_enabled': True,
            'master_lb_enabled': False,
            'labels': {'kube_tag': 'v1.35.9'},
            'create_timeout': 60,
            'status': states.CREATE_COMPLETE,
            'nodegroups': [],
        }
        | columns
    )
    for role, count in (('master', 1), ('worker', 2)):
        cluster.nodegroups.append(
            models.NodeGroup(
                uuid=group_uuid(number, role),
                project_id=cluster.project_id,
                name=f'default-{role}',
                role=role,
                is_default=True,
                node_count=count,
                next_number=0,
                labels=dict(cluster.labels),
                status=cluster.status,
                flavor_id='m1.small',
                image_id='ubuntu',
                stack_id=cluster.stack_id,
                nodes=[],
            )
        )
        members.add(cluster, cluster.nodegroups[-1], count)
        for node in cluster.nodegroups[-1].nodes:
            node.status = cluster.status
    with database.write() as session:
        session.add(cluster)
    return str(cluster.uuid)


def group_uuid(number: int, role: str) -> str:
    """The uuid of a nodegroup of the cluster of that number."""
    return uuid_of(number).replace('c', {'master': 'a', 'worker': 'b'}[role], 1)


def store_operation(
    database: db.Database,
    number: int,
    generation: int,
    kind: str,
    *,
    ended: bool = True,
    **columns: Any,
) -> str:
    """An operation of the cluster of that number, which took a minute and a half."""
    asked = datetime.datetime(2026, 7, 1, 12, tzinfo=datetime.UTC)
    operation = models.Operation(
        **{
            'uuid': f'e{generation:07}-0000-4000-8000-{number:012}',
            'cluster_id': uuid_of(number),
            'project_id': 'p1',
            'user_id': 'u1',
            'request_id': 'req-1',
            'kind': kind,
            'generation': generation,
            'driver': 'k8s_cloud_init',
            'node_count': 3,
            'created_at': asked,
            'begun_at': asked + datetime.timedelta(seconds=1),
            'ended_at': asked + datetime.timedelta(seconds=90) if ended else None,
            'outcome': 'complete' if ended else None,
        }
        | columns
    )
    with database.write() as session:
        session.add(operation)
    return str(operation.uuid)


def rows_of(
    services: Services, number: int
) -> tuple[models.Cluster, dict[str, models.NodeGroup], list[str]]:
    """A cluster, its nodegroups by name with their nodes, and the kinds of its operations."""
    with services.db.read() as session:
        groups = session.scalars(
            sa.select(models.NodeGroup)
            .where(models.NodeGroup.cluster_id == uuid_of(number))
            .options(sa.orm.selectinload(models.NodeGroup.nodes))
        ).all()
        return (
            session.scalars(
                sa.select(models.Cluster).where(models.Cluster.uuid == uuid_of(number))
            ).one(),
            {group.name: group for group in groups},
            list(
                session.scalars(
                    sa.select(models.Operation.kind)
                    .where(models.Operation.cluster_id == uuid_of(number))
                    .order_by(models.Operation.id)
                )
            ),
        )


def wanted(group: models.NodeGroup) -> list[int]:
    return [node.number for node in members.list_wanted(group)]


def new_template(database: db.Database, project: str = 'p1', **columns: Any) -> ClusterTemplate:
    values = {
        'name': 't',
        'coe': 'x',
        'image_id': 'i',
        'server_type': 'vm',
        'cluster_distro': 'd',
        'labels': {},
    }
    template = ClusterTemplate(
        uuid=str(uuid.uuid4()), project_id=project, user_id='u', **values | columns
    )
    db.create_template(database, template)
    return template


def a_cluster(
    template: ClusterTemplate, *, project: str = 'p1', workers: int = 2, **columns: Any
) -> Cluster:
    """The rows of a cluster, not yet stored."""
    values = {
        'name': 'c',
        'driver': 'd',
        'status': 'CREATE_IN_PROGRESS',
        'generation': 1,
        'labels': {'a': '1'},
        'floating_ip_enabled': True,
        'master_lb_enabled': False,
        'nodegroups': [],
    }
    cluster = Cluster(
        uuid=str(uuid.uuid4()),
        project_id=project,
        user_id='u',
        cluster_template_id=template.uuid,
        **values | columns,
    )
    for name, role, count in (
        ('default-master', 'master', 1),
        ('default-worker', 'worker', workers),
    ):
        group = NodeGroup(
            uuid=str(uuid.uuid4()),
            project_id=project,
            name=name,
            role=role,
            is_default=True,
            node_count=count,
            next_number=0,
            status=cluster.status,
            nodes=[],
            labels={},
        )
        cluster.nodegroups.append(group)
        members.add(cluster, group, count)
    return cluster


def new_cluster(
    database: db.Database, template: ClusterTemplate, *, quota: int = 10_000, **values: Any
) -> Cluster:
    cluster = a_cluster(template, **values)
    db.create_cluster(database, cluster, operation(cluster), default_quota=quota)
    return cluster


def operation(cluster: Cluster | None = None, kind: str = 'create') -> Operation:
    return Operation(
        uuid=str(uuid.uuid4()),
        user_id='u',
        kind=kind,
        cluster_id=cluster and cluster.uuid,
        project_id=cluster and cluster.project_id,
        generation=1,
    )


@pytest.fixture
def complete(services: Services) -> str:
    """The path of cluster c1 of project p1, which is complete."""
    store_template(services.db)
    return f'/v1/clusters/{store_cluster(services.db, 1, stack_id="stack-1")}'
