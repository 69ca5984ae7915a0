"""What changes of nodegroups leave in the database, and which limits of Heat hold them back."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Api
from rows import rows_of, wanted

from magnum_lite import states
from magnum_lite.api.request import Services


@pytest.fixture
def api(watched_api: Api) -> Api:
    """Sends requests whose responses `Watched` checks."""
    return watched_api


def test_new_nodegroup_is_stored_whole(api: Api, services: Services, complete: str) -> None:
    response = api(
        'POST',
        f'{complete}/nodegroups',
        {'name': 'GPU nodes', 'node_count': 2, 'max_node_count': 4},
    )

    _, groups, kinds = rows_of(services, 1)
    group = groups['GPU nodes']
    assert response.json['id'] == group.id and response.json['uuid'] == group.uuid
    assert (group.status, group.rollout, group.is_default, group.project_id) == (
        states.CREATE_IN_PROGRESS,
        1,
        False,
        'p1',
    )
    assert [(n.number, n.name, n.status, n.image_id) for n in group.nodes] == [
        (number, f'c1-{group.uuid[:8]}-gpu-nodes-{number}', states.CREATE_IN_PROGRESS, 'ubuntu')
        for number in (0, 1)
    ]
    assert (group.next_number, group.node_count, kinds) == (2, 2, ['nodegroup_create'])
    assert groups['default-worker'].status == states.CREATE_COMPLETE


#: More labels of nodes than user-data has room for.
MANY_LABELS = {f'{number:0200}.example/a': 'b' * 60 for number in range(200)}


@pytest.mark.parametrize(
    ('method', 'path', 'body', 'said'),
    [
        ('POST', '', {'name': 'big', 'node_labels': MANY_LABELS}, 'Nova takes 49149'),
        (
            'PATCH',
            '/default-worker',
            [{'op': 'replace', 'path': '/node_labels', 'value': MANY_LABELS}],
            'Nova takes 49149',
        ),
        (
            'PATCH',
            '/further',
            [{'op': 'replace', 'path': '/node_labels', 'value': MANY_LABELS}],
            'Nova takes 49149',
        ),
        (
            'POST',
            '',
            {'name': 'big', 'node_count': 244},
            'has room for 248 nodes, and 249 are asked for',
        ),
        (
            'POST',
            '',
            {'name': 'big', 'node_count': 200},
            '200 nodes need 1429 resources in one stack, and Heat',
        ),
        ('POST', '', {'name': 'big', 'node_count': 20}, '20 nodes make a template of '),
        (
            'POST',
            '',
            {
                'name': 'big',
                'node_count': 3,
                'labels': {'api_server_cert_sans': 'a'},
                'merge_labels': True,
            },
            '3 nodes make a request of ',
        ),
    ],
)
def test_nodegroup_beyond_a_limit_is_refused_with_the_number_and_the_limit(
    api: Api, services: Services, complete: str, method: str, path: str, body: Any, said: str
) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further', 'node_count': 2})
    if 'template of' in said:
        services.conf.set_override('max_template_size', 10_000, group='cluster_heat')
    if 'request of' in said:
        services.conf.set_override('max_json_body_size', 20_000, group='cluster_heat')
    before = rows_of(services, 1)[2]

    response = api(method, f'{complete}/nodegroups{path}', body)

    assert (response.status_code, said in response.json['faultstring']) == (400, True), (
        response.json
    )
    assert rows_of(services, 1)[2] == before and 'big' not in rows_of(services, 1)[1]


def test_resize_of_a_further_nodegroup_counts_the_nodes_of_all(
    api: Api, services: Services, complete: str
) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further', 'node_count': 2})
    api('POST', f'{complete}/nodegroups', {'name': 'another', 'node_count': 120})

    response = api(
        'POST', f'{complete}/actions/resize', {'node_count': 130, 'nodegroup': 'further'}
    )

    assert response.status_code == 400
    assert 'has room for 248 nodes, and 253 are asked for' in response.json['faultstring']


def test_deleted_nodegroup_wants_no_members(api: Api, services: Services, complete: str) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further', 'node_count': 2})

    assert api('DELETE', f'{complete}/nodegroups/further').status_code == 204
    assert api('DELETE', f'{complete}/nodegroups/further').status_code == 204

    _, groups, kinds = rows_of(services, 1)
    assert (groups['further'].status, wanted(groups['further'])) == (states.DELETE_IN_PROGRESS, [])
    assert wanted(groups['default-worker']) == [0, 1]
    assert kinds == ['nodegroup_create', 'nodegroup_delete']


def test_nodegroup_that_is_being_made_goes_on_being_made_when_it_is_resized(
    api: Api, services: Services, complete: str
) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further'})

    api('POST', f'{complete}/actions/resize', {'node_count': 3, 'nodegroup': 'further'})

    group = rows_of(services, 1)[1]['further']
    assert (group.status, wanted(group)) == (states.CREATE_IN_PROGRESS, [0, 1, 2])
