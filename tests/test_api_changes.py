"""What a change of a cluster leaves in the database: operations, generations, members, health."""

from __future__ import annotations

from typing import Any

import fakes
import pytest
import sqlalchemy as sa
from conftest import Api, Nudges
from oslo_policy import _checks as policy
from rows import NEWER_UUID, rows_of, store_cluster, store_operation, store_template, wanted

from magnum_lite import models, states
from magnum_lite.api import app as api_app
from magnum_lite.api.request import Services


@pytest.fixture
def api(watched_api: Api) -> Api:
    """Sends requests whose responses `Watched` checks."""
    return watched_api


REQUESTS: dict[str, tuple[str, str, Any]] = {
    'patch': ('PATCH', '', [{'op': 'replace', 'path': '/node_count', 'value': 3}]),
    'resize': ('POST', '/actions/resize', {'node_count': 3}),
    'upgrade': ('POST', '/actions/upgrade', {'cluster_template': 'k8s'}),
    'new': ('POST', '/nodegroups', {'name': 'further'}),
    'labels': (
        'PATCH',
        '/nodegroups/default-worker',
        [{'op': 'add', 'path': '/node_labels/a', 'value': 'b'}],
    ),
    'delete': ('DELETE', '', None),
}


@pytest.mark.parametrize('request_', REQUESTS)
def test_change_is_one_operation_and_one_generation(
    api: Api, services: Services, nudges: Nudges, complete: str, request_: str
) -> None:
    method, path, body = REQUESTS[request_]
    with services.db.write() as session:
        session.execute(
            sa.update(models.Cluster).values(
                status_reason='It was so.', error_code='NETWORK', failures=3, check_at=None
            )
        )

    response = api(method, complete + path, body)

    assert response.status_code == (204 if method == 'DELETE' else 202), response.text
    cluster, _, kinds = rows_of(services, 1)
    assert (cluster.generation, cluster.failures, len(kinds)) == (2, 0, 1)
    assert (cluster.status_reason, cluster.error_code) == (None, None)
    assert cluster.check_at is not None and cluster.status.endswith('_IN_PROGRESS')
    assert nudges == [cluster.uuid]
    operation = api('GET', response.headers['Location'].removeprefix('http://localhost')).json
    assert (operation['kind'], operation['cluster_id']) == (kinds[0], cluster.uuid)
    assert operation['request_id'] == response.headers['x-openstack-request-id']


@pytest.mark.parametrize(
    'status',
    [
        states.CREATE_IN_PROGRESS,
        states.CREATE_FAILED,
        states.DELETE_IN_PROGRESS,
        states.DELETE_FAILED,
    ],
)
@pytest.mark.parametrize('request_', sorted(REQUESTS.keys() - {'delete'}))
def test_change_that_makes_no_sense_is_refused_at_once(
    api: Api, services: Services, complete: str, request_: str, status: str
) -> None:
    method, path, body = REQUESTS[request_]
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(status=status))

    response = api(method, complete + path, body)

    assert response.status_code == 409
    assert f'is {status}, which allows no change' in response.json['faultstring']


@pytest.mark.parametrize(
    'status',
    [
        states.CREATE_COMPLETE,
        states.UPDATE_COMPLETE,
        states.UPDATE_FAILED,
        states.UPDATE_IN_PROGRESS,
    ],
)
@pytest.mark.parametrize('request_', sorted(REQUESTS.keys() - {'delete'}))
def test_change_is_taken_while_another_runs_or_has_failed(
    api: Api, services: Services, complete: str, request_: str, status: str
) -> None:
    method, path, body = REQUESTS[request_]
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(status=status))

    assert api(method, complete + path, body).status_code == 202
    assert rows_of(services, 1)[0].status == states.UPDATE_IN_PROGRESS


@pytest.mark.parametrize(
    ('count', 'remove', 'left', 'next_number'),
    [
        (2, [], [0, 1], 2),
        (4, [], [0, 1, 2, 3], 4),
        (1, [], [0], 2),
        (0, [], [], 2),
        (2, ['0'], [1, 2], 3),
        (1, ['0'], [1], 2),
        (2, ['0', 'server-1'], [2, 3], 4),
        (3, ['c1-c0000000-worker-1'], [0, 2, 3], 4),
        (0, ['1'], [], 2),
    ],
)
def test_resize_changes_these_members(
    api: Api,
    services: Services,
    complete: str,
    count: int,
    remove: list[str],
    left: list[int],
    next_number: int,
) -> None:
    with services.db.write() as session:
        session.execute(
            sa.update(models.Node).where(models.Node.number == 1).values(server_id='server-1')
        )

    response = api(
        'POST', f'{complete}/actions/resize', {'node_count': count, 'nodes_to_remove': remove}
    )

    assert response.status_code == 202
    _, groups, kinds = rows_of(services, 1)
    group = groups['default-worker']
    assert (wanted(group), group.next_number, group.node_count) == (left, next_number, count)
    assert [n.status for n in group.nodes if n.number > 1] == [states.CREATE_IN_PROGRESS] * (
        next_number - 2
    )
    assert {n.number for n in group.nodes} == set(range(next_number)), (
        'what goes is there until its stack let it go'
    )
    assert (group.status, kinds) == (states.UPDATE_IN_PROGRESS, ['resize'])
    assert (groups['default-master'].status, wanted(groups['default-master'])) == (
        states.CREATE_COMPLETE,
        [0],
    )


@pytest.mark.parametrize(('balanced', 'version'), [(True, 'v1.36.1'), (False, 'v1.35.9')])
def test_upgrade_marks_the_nodes_as_outdated_and_the_masters_if_they_can_be_replaced(
    api: Api,
    services: Services,
    complete: str,
    cloud: fakes.FakeCloud,
    balanced: bool,
    version: str,
) -> None:
    cloud.images['newer'] = cloud.images['ubuntu']
    store_template(
        services.db, uuid=NEWER_UUID, name='newer', image_id='newer', labels={'kube_tag': version}
    )
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(master_lb_enabled=balanced))

    response = api(
        'POST', f'{complete}/actions/upgrade', {'cluster_template': 'newer', 'max_batch_size': 3}
    )

    assert response.status_code == 202
    cluster, groups, kinds = rows_of(services, 1)
    worker, master = groups['default-worker'], groups['default-master']
    assert (cluster.cluster_template_id, cluster.labels, kinds) == (
        NEWER_UUID,
        {'kube_tag': version},
        ['upgrade'],
    )
    assert (worker.image_id, worker.rollout, worker.batch_size, worker.labels, worker.status) == (
        'newer',
        2,
        3,
        {'kube_tag': version},
        states.UPDATE_IN_PROGRESS,
    )
    assert [(n.number, n.rollout, n.status, n.image_id) for n in worker.nodes] == [
        (0, 1, states.CREATE_COMPLETE, 'ubuntu'),
        (1, 1, states.CREATE_COMPLETE, 'ubuntu'),
    ]
    assert (master.image_id, master.rollout, master.batch_size, master.labels, master.status) == (
        ('newer', 2, 1, {'kube_tag': version}, states.UPDATE_IN_PROGRESS)
        if balanced
        else ('ubuntu', 1, 1, {'kube_tag': 'v1.35.9'}, states.CREATE_COMPLETE)
    )


def test_upgrade_to_a_version_waits_until_the_masters_have_the_last_one(
    api: Api, services: Services, complete: str
) -> None:
    for number, version in enumerate(('v1.36.0', 'v1.37.0'), 2):
        store_template(
            services.db,
            uuid=NEWER_UUID[:-1] + str(number),
            name=version,
            labels={'kube_tag': version},
        )
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(master_lb_enabled=True))
    assert (
        api('POST', f'{complete}/actions/upgrade', {'cluster_template': 'v1.36.0'}).status_code
        == 202
    )

    response = api('POST', f'{complete}/actions/upgrade', {'cluster_template': 'v1.37.0'})

    assert (
        response.status_code == 409
        and 'are not all of version v1.36.0 yet' in response.json['faultstring']
    )
    again = api('POST', f'{complete}/actions/upgrade', {'cluster_template': 'v1.36.0'})
    assert again.status_code == 202, 'the same version once more may do what has failed'


def test_upgrade_to_a_template_deleted_during_the_request_is_refused(
    api: Api, services: Services, complete: str, cloud: fakes.FakeCloud
) -> None:
    store_template(services.db, uuid=NEWER_UUID, name='newer')

    def vanish(name: str, when: str) -> None:
        with services.db.write() as session:
            session.execute(
                sa.delete(models.ClusterTemplate).where(models.ClusterTemplate.uuid == NEWER_UUID)
            )

    cloud.hook = vanish
    unwatched = Api(api_app.make_app(services))  # what is stored here is not by the refusal

    response = unwatched('POST', f'{complete}/actions/upgrade', {'cluster_template': 'newer'})

    assert response.status_code == 404 and NEWER_UUID in response.json['faultstring']
    assert rows_of(services, 1)[0].status == states.CREATE_COMPLETE


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        (states.CREATE_FAILED, states.CREATE_IN_PROGRESS),
        (states.UPDATE_FAILED, states.UPDATE_IN_PROGRESS),
        (states.DELETE_FAILED, states.DELETE_IN_PROGRESS),
        (states.CREATE_IN_PROGRESS, states.CREATE_IN_PROGRESS),
        (states.UPDATE_COMPLETE, states.UPDATE_COMPLETE),
    ],
)
def test_any_change_tries_again_what_has_failed(
    api: Api, services: Services, complete: str, before: str, after: str
) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further'})
    with services.db.write() as session:
        session.execute(
            sa.update(models.NodeGroup)
            .where(models.NodeGroup.name == 'further')
            .values(status=before, status_reason='No room.', error_code='NO_VALID_HOST')
        )

    assert api('POST', f'{complete}/actions/resize', {'node_count': 3}).status_code == 202

    group = rows_of(services, 1)[1]['further']
    assert group.status == after
    assert (group.status_reason is None) == states.is_busy(after)


def test_cluster_beyond_a_limit_that_came_later_may_shrink(
    api: Api, services: Services, complete: str
) -> None:
    services.conf.set_override('max_resources_per_stack', 30, 'cluster_heat')

    assert api('POST', f'{complete}/actions/resize', {'node_count': 1}).status_code == 202
    assert api('POST', f'{complete}/actions/resize', {'node_count': 2}).status_code == 400


def test_cluster_whose_driver_is_missing_may_only_shrink(
    api: Api, services: Services, complete: str
) -> None:
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(driver='gone'))

    assert api('POST', f'{complete}/actions/resize', {'node_count': 3}).status_code == 409
    assert api('POST', f'{complete}/nodegroups', {'name': 'further'}).status_code == 409
    assert api('POST', f'{complete}/actions/resize', {'node_count': 1}).status_code == 202, (
        'it may shrink'
    )


@pytest.mark.parametrize('status', states.STATUSES)
def test_health_is_taken_in_every_status(
    api: Api, services: Services, nudges: Nudges, complete: str, status: str
) -> None:
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(status=status))
    before = rows_of(services, 1)[0]

    response = api(
        'PATCH', complete, [{'op': 'add', 'path': '/health_status', 'value': 'UNHEALTHY'}]
    )

    assert response.status_code == 202 and 'Location' not in response.headers
    cluster, _, kinds = rows_of(services, 1)
    assert cluster.health_status == 'UNHEALTHY'
    for name in ('status', 'updated_at', 'generation', 'check_at', 'health_at', 'status_reason'):
        assert getattr(cluster, name) == getattr(before, name)
    assert kinds == [] and nudges == []


def test_health_has_a_rule_of_its_own(services: Services, complete: str) -> None:
    services.enforcer.load_rules()
    services.enforcer.set_rules(
        {'cluster:update_health_status': policy.RoleCheck('role', 'healer')}, overwrite=False
    )
    api = Api(api_app.make_app(services))
    health, count = (
        [{'op': 'replace', 'path': f'/{name}', 'value': value}]
        for name, value in (('health_status', 'UNKNOWN'), ('node_count', 3))
    )

    assert api('PATCH', complete, [{**health[0], 'op': 'add'}]).status_code == 403
    assert api('PATCH', complete, [*count, {**health[0], 'op': 'add'}]).status_code == 403
    assert api('PATCH', complete, count).status_code == 202


@pytest.mark.parametrize('force', [False, True])
def test_force_is_written_down_and_stays(
    api: Api, services: Services, complete: str, force: bool
) -> None:
    assert api('DELETE', f'{complete}?force={force}', roles='admin').status_code == 204
    assert rows_of(services, 1)[0].delete_forced is force

    assert api('DELETE', f'{complete}?force=1', roles='admin').status_code == 204
    assert api('DELETE', complete).status_code == 204
    cluster, _, kinds = rows_of(services, 1)
    assert (cluster.delete_forced, kinds) == (True, ['delete'])


def test_operation_that_is_stopped_is_written_down(
    api: Api, services: Services, nudges: Nudges, complete: str
) -> None:
    location = api('POST', f'{complete}/actions/resize', {'node_count': 3}).headers['Location']
    nudges.clear()

    response = api('DELETE', location.removeprefix('http://localhost'))

    assert response.status_code == 202 and response.headers['Location'] == location
    cluster, _, _ = rows_of(services, 1)
    assert (cluster.cancelled_generation, cluster.generation, cluster.status) == (
        2,
        2,
        states.UPDATE_IN_PROGRESS,
    )
    assert cluster.check_at is not None and nudges == [cluster.uuid]


def test_look_at_a_running_operation_is_noted(services: Services, complete: str) -> None:
    api = Api(api_app.make_app(services))
    running = api('POST', f'{complete}/actions/resize', {'node_count': 3}).headers['Location']
    ended = store_operation(services.db, 1, 1, 'create')

    api('GET', f'/v1/operations/{ended}')
    api('GET', f'{complete}/operations')
    assert rows_of(services, 1)[0].polled_until is None

    api('GET', running.removeprefix('http://localhost'))
    assert rows_of(services, 1)[0].polled_until is not None


def test_operations_outlive_their_cluster(api: Api, services: Services, complete: str) -> None:
    location = api('DELETE', complete).headers['Location'].removeprefix('http://localhost')
    with services.db.write() as session:
        session.execute(sa.delete(models.Cluster))
        session.execute(
            sa.update(models.Operation).values(outcome='complete', ended_at=models.utcnow())
        )

    assert api('GET', location).json['outcome'] == 'complete'
    assert api('GET', location, project='p2').status_code == 404
    assert api('DELETE', location).status_code == 409
    assert api('GET', f'{complete}/operations').status_code == 404


def test_progress_and_failure_are_shown(api: Api, services: Services) -> None:
    store_template(services.db)
    store_cluster(
        services.db,
        1,
        status=states.UPDATE_FAILED,
        error_code='NO_VALID_HOST',
        status_reason='No room.',
    )
    running = store_operation(
        services.db, 1, 2, 'resize', ended=False, resources_done=3, resources_total=9
    )
    failed = store_operation(
        services.db, 1, 1, 'resize', outcome='failed', code='NO_VALID_HOST', text='No room.'
    )
    with services.db.write() as session:
        for thing in (models.NodeGroup, models.Node):
            session.execute(
                sa.update(thing).values(error_code='NO_VALID_HOST', status_reason='No room.')
            )

    part = {
        name: api('GET', f'/v1/operations/{running}').json[name]
        for name in ('resources_done', 'resources_total')
    }
    assert part == {'resources_done': 3, 'resources_total': 9}
    body = api('GET', f'/v1/operations/{failed}').json
    assert (body['outcome'], body['code'], body['text']) == ('failed', 'NO_VALID_HOST', 'No room.')
    assert {node['code'] for node in api('GET', '/v1/clusters/c1/nodes').json['nodes']} == {
        'NO_VALID_HOST'
    }
    for path in ('/v1/clusters/c1', '/v1/clusters/c1/nodegroups/default-worker'):
        assert api('GET', path).json['error_code'] == 'NO_VALID_HOST'
        assert 'error_code' not in api('GET', path, version='container-infra 1.14').json
