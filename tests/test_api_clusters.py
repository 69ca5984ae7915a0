"""What the creation and the deletion of a cluster store, and which notifications tell of it."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from conftest import TEMPLATE, Api, Nudges
from rows import TEMPLATE_UUID, store_cluster, store_template

from magnum_lite import models, states
from magnum_lite.api.request import Services


@pytest.fixture
def api(watched_api: Api) -> Api:
    """Sends requests whose responses `Watched` checks."""
    return watched_api


def test_accepted_cluster_is_stored_whole(api: Api, services: Services, nudges: Nudges) -> None:
    api('POST', '/v1/clustertemplates', TEMPLATE)

    response = api(
        'POST',
        '/v1/clusters',
        {
            'cluster_template_id': 'k8s',
            'name': 'c1',
            'master_count': 3,
            'master_lb_enabled': True,
            'node_count': 2,
        },
    )

    assert nudges == [response.json['uuid']]
    with services.db.read() as session:
        cluster = session.scalars(sa.select(models.Cluster)).one()
        groups = session.scalars(
            sa.select(models.NodeGroup).options(sa.orm.selectinload(models.NodeGroup.nodes))
        ).all()
        operation = session.scalars(sa.select(models.Operation)).one()
    assert (cluster.uuid, cluster.status, cluster.generation) == (
        response.json['uuid'],
        'CREATE_IN_PROGRESS',
        1,
    )
    assert cluster.check_at is not None and cluster.leased_by is None
    assert cluster.public_key == 'ssh-ed25519 AAAAC3Nza test'
    assert [
        (g.name, g.role, g.node_count, [n.number for n in g.nodes], g.next_number) for g in groups
    ] == [('default-master', 'master', 3, [0, 1, 2], 3), ('default-worker', 'worker', 2, [0, 1], 2)]
    assert len({node.name for group in groups for node in group.nodes}) == 5
    assert (
        operation.cluster_id,
        operation.kind,
        operation.user_id,
        operation.generation,
        operation.outcome,
    ) == (cluster.uuid, 'create', 'user-of-p1', 1, None)
    assert operation.request_id == response.headers['x-openstack-request-id']


def test_each_deletion_is_told_and_only_the_first_is_an_operation(
    api: Api, services: Services, cluster: str, nudges: Nudges
) -> None:
    nudges.clear()

    assert [api('DELETE', f'/v1/clusters/{cluster}').status_code for _ in range(3)] == [
        204,
        204,
        204,
    ]

    assert nudges == [cluster] * 3
    with services.db.read() as session:
        assert session.scalars(
            sa.select(models.Operation.kind).order_by(models.Operation.id)
        ).all() == ['create', 'delete']


def test_a_cluster_that_has_gone_is_not_found(api: Api, services: Services, cluster: str) -> None:
    with services.db.write() as session:
        session.execute(sa.delete(models.Cluster))

    assert api('GET', f'/v1/clusters/{cluster}').status_code == 404
    assert api('DELETE', f'/v1/clusters/{cluster}').status_code == 404
    assert api('DELETE', '/v1/clustertemplates/k8s').status_code == 204


def test_faults_are_for_one_cluster_and_not_for_listings(api: Api, services: Services) -> None:
    store_template(services.db)
    store_cluster(services.db, 1, status=states.CREATE_FAILED)

    assert 'faults' in api('GET', '/v1/clusters/c1').json
    for path in ('/v1/clusters', '/v1/clusters/detail'):
        assert 'faults' not in api('GET', path).json['clusters'][0]


@pytest.mark.parametrize('columns', [{'public': False}, {'hidden': True}])
def test_withdrawn_template_leaves_the_clusters_of_others_alone(
    api: Api, services: Services, columns: dict[str, Any]
) -> None:
    """Magnum answers 404 for such a cluster, and for the whole listing of its project
    (doc/contributor/wire-contract.md)."""
    store_template(services.db, project_id='p2', public=True)
    store_cluster(services.db, 1, labels={})
    with services.db.write() as session:
        session.execute(sa.update(models.ClusterTemplate).values(**columns))

    assert api('GET', '/v1/clusters/c1').json['labels_skipped'] == {'kube_tag': 'v1.35.9'}
    assert len(api('GET', '/v1/clusters/detail').json['clusters']) == 1
    assert api('POST', '/v1/clusters', {'cluster_template_id': TEMPLATE_UUID}).status_code == 404
