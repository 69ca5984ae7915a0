"""The conductor against a cloud that fails and with processes that die: the same end, whatever
happened."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import fakes
import pytest
import sqlalchemy as sa
from conftest import Api, history_of
from oslo_db import exception as db_exc
from stories import DiesInTheDatabase, Story, dying, with_time_passing

from magnum_lite import clients, db, errors, models
from magnum_lite.conductor import reconcile, steps
from magnum_lite.conductor.task import Task, choose_interval_s


def test_create_reaches_complete_with_one_stack(story: Story, cluster: str) -> None:
    story.run(4)

    [row] = story.clusters()
    [stack] = story.cloud.all_stacks()
    assert (row.status, row.stack_id, row.check_at, row.leased_by) == (
        'CREATE_COMPLETE',
        stack.id,
        None,
        None,
    )
    assert stack.name == f'c1-{cluster}'
    assert story.count(models.Key) == len(story.conductor_services.drivers[row.driver].keys)
    assert {group.status for group in row.nodegroups} == {'CREATE_COMPLETE'}
    [operation] = history_of(story.conductor_services.db, cluster)
    assert (operation.kind, operation.outcome, operation.code) == ('create', 'complete', None)
    assert operation.begun_at is not None and operation.ended_at is not None


def test_outputs_become_addresses(story: Story, cluster: str) -> None:
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    outputs = story.conductor_services.drivers['k8s_cloud_init'].manifest['outputs']
    stack.outputs = {
        outputs['api_address']: 'https://172.24.0.5:6443',
        outputs['nodes'][0]: [
            {
                'nodegroup': 'default-master',
                'number': 0,
                'server_id': 's0',
                'address': '172.24.0.5',
                'private_address': '10.0.0.5',
            }
        ],
        outputs['nodes'][1]: [
            {
                'nodegroup': 'default-worker',
                'number': n,
                'server_id': f's{n + 1}',
                'address': f'172.24.0.{n + 6}',
                'private_address': None,
            }
            for n in range(2)
        ],
    }
    story.heat_works()
    story.run(1)

    [row] = story.clusters()
    assert row.api_address == 'https://172.24.0.5:6443'
    assert row.master_addresses == ['172.24.0.5']
    assert row.node_addresses == ['172.24.0.6', '172.24.0.7']
    with story.conductor_services.db.read() as session:
        nodes = session.scalars(sa.select(models.Node).order_by(models.Node.id)).all()
    assert [(n.name.rpartition('-')[2], n.server_id, n.status) for n in nodes] == [
        ('0', 's0', 'CREATE_COMPLETE'),
        ('0', 's1', 'CREATE_COMPLETE'),
        ('1', 's2', 'CREATE_COMPLETE'),
    ]


def test_outputs_that_are_null_are_borne(story: Story, cluster: str) -> None:
    story.run(4)

    [row] = story.clusters()
    assert (row.status, row.api_address, row.node_addresses) == ('CREATE_COMPLETE', None, [])


def test_delete_leaves_nothing(story: Story, api: Api, cluster: str) -> None:
    story.run(3)
    assert api('DELETE', f'/v1/clusters/{cluster}').status_code == 204
    story.run(4)

    assert story.clusters() == []
    assert story.cloud.all_stacks() == []
    assert story.cloud.granted == set()
    assert [story.count(m) for m in (models.NodeGroup, models.Node, models.Key)] == [0, 0, 0]
    assert [(o.kind, o.outcome) for o in history_of(story.conductor_services.db, cluster)] == [
        ('create', 'complete'),
        ('delete', 'complete'),
    ]


def test_delete_of_one_cluster_keeps_the_role_for_the_other(
    story: Story, api: Api, cluster: str, template: dict[str, Any]
) -> None:
    api('POST', '/v1/clusters', {'name': 'c2', 'cluster_template_id': template['uuid']})
    story.run(3)
    api('DELETE', f'/v1/clusters/{cluster}')
    story.run(4)

    assert [row.name for row in story.clusters()] == ['c2']
    assert story.cloud.granted == {'p1'}


def test_delete_during_create_removes_the_stack(story: Story, api: Api, cluster: str) -> None:
    story.make_due()
    story.round()
    assert len(story.cloud.all_stacks()) == 1
    api('DELETE', f'/v1/clusters/{cluster}')
    story.run(4)

    assert (story.clusters(), story.cloud.all_stacks()) == ([], [])
    assert [(o.kind, o.outcome) for o in history_of(story.conductor_services.db, cluster)] == [
        ('create', 'superseded'),
        ('delete', 'complete'),
    ]


def test_delete_that_arrives_while_the_stack_is_being_created_is_not_overwritten(
    story: Story, api: Api, cluster: str
) -> None:
    """The API writes while a conductor waits for Heat: what the conductor writes then must not undo
    it."""

    def delete_meanwhile(call: str, when: str) -> None:
        if (call, when) == ('create', 'after'):
            story.cloud.hook = None
            assert api('DELETE', f'/v1/clusters/{cluster}').status_code == 204

    story.cloud.hook = delete_meanwhile
    story.run(6)

    assert (story.clusters(), story.cloud.all_stacks()) == ([], [])


def test_delete_before_any_conductor_saw_it_makes_no_call_to_heat(
    story: Story, api: Api, cluster: str
) -> None:
    api('DELETE', f'/v1/clusters/{cluster}')
    story.run(2)

    assert story.clusters() == []
    assert story.cloud.calls.count('create') == story.cloud.calls.count('find') == 0


OUTSIDE_CALLS = ('grant_roles', 'create', 'list_by_ids', 'get_outputs')


DELETE_CALLS = ('list_by_ids', 'delete', 'revoke_roles')


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize('victim', OUTSIDE_CALLS)
def test_conductor_that_dies_in_a_create(
    story: Story, cluster: str, victim: str, moment: str
) -> None:
    deaths = dying(story.cloud, victim, moment)
    story.run()

    [row] = story.clusters()
    [stack] = story.cloud.all_stacks()
    assert deaths, 'the call was never made, so this shows nothing'
    assert (row.status, row.stack_id) == ('CREATE_COMPLETE', stack.id)
    assert story.count(models.Key) == len(story.conductor_services.drivers[row.driver].keys)


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize('victim', DELETE_CALLS)
def test_conductor_that_dies_in_a_delete(
    story: Story, api: Api, cluster: str, victim: str, moment: str
) -> None:
    story.run(3)
    api('DELETE', f'/v1/clusters/{cluster}')
    deaths = dying(story.cloud, victim, moment)
    story.run()

    assert deaths, 'the call was never made, so this shows nothing'
    assert (story.clusters(), story.cloud.all_stacks(), story.cloud.granted) == ([], [], set())
    assert story.count(models.Key) == 0


@pytest.mark.parametrize('moment', ['before', 'after'])
def test_delete_after_a_conductor_died_in_its_create_finds_the_stack(
    story: Story, api: Api, cluster: str, moment: str
) -> None:
    """The stack may exist although no row knows its id."""
    dying(story.cloud, 'create', moment)
    story.make_due()
    story.round()
    api('DELETE', f'/v1/clusters/{cluster}')
    story.run()

    assert (story.clusters(), story.cloud.all_stacks()) == ([], [])


@pytest.mark.parametrize('moment', ['before', 'after'])
def test_conductor_that_dies_while_it_looks_for_what_a_dead_one_made(
    story: Story, cluster: str, moment: str
) -> None:
    dying(story.cloud, 'create', 'after')
    story.make_due()
    story.round()
    deaths = dying(story.cloud, 'find', moment)
    story.run()

    [row] = story.clusters()
    [stack] = story.cloud.all_stacks()
    assert deaths, 'the call was never made, so this shows nothing'
    assert (row.status, row.stack_id) == ('CREATE_COMPLETE', stack.id)


@pytest.mark.parametrize('moment', ['before', 'after'])
def test_conductor_that_dies_in_a_diagnosis(story: Story, cluster: str, moment: str) -> None:
    story.make_due()
    story.round()
    story.cloud.all_stacks()[0].status = 'CREATE_FAILED'
    deaths = dying(story.cloud, 'list_failures', moment)
    story.run()

    assert deaths, 'the call was never made, so this shows nothing'
    assert story.clusters()[0].status == 'CREATE_FAILED'
    assert [o.outcome for o in history_of(story.conductor_services.db, cluster)] == ['failed']


@pytest.mark.parametrize('number', range(1, 14))
@pytest.mark.parametrize('moment', ['before', 'after'])
def test_conductor_that_dies_at_a_write_of_create_or_delete(
    story: Story, api: Api, cluster: str, number: int, moment: str
) -> None:
    """Creating takes 8 writes or so and deleting 6: every one of them is a place to die at."""
    deaths = 0
    for phase in ('create', 'delete'):
        if phase == 'delete':
            api('DELETE', f'/v1/clusters/{cluster}')
        with DiesInTheDatabase(story.conductor_services.db, number, moment) as killer:
            for _ in range(5):
                try:
                    story.look()
                except fakes.Died:
                    deaths += 1
                    break
                with_time_passing(story, killer)
        story.run()
        if phase == 'create':
            [row] = story.clusters()
            [stack] = story.cloud.all_stacks()
            assert (row.status, row.stack_id) == ('CREATE_COMPLETE', stack.id)
    assert (story.clusters(), story.cloud.all_stacks(), story.cloud.granted) == ([], [], set())
    assert deaths or number > 8, 'nobody died, so this shows nothing'


def test_stack_that_fails_says_why(story: Story, api: Api, cluster: str) -> None:
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    with story.conductor_services.db.read() as session:
        victim = (
            session.scalars(sa.select(models.Node).where(models.Node.name.like('%worker-1')))
            .one()
            .name
        )
    stack.status, stack.reason = 'CREATE_FAILED', 'Resource CREATE failed: resources.kube_minions'
    stack.failed = [
        clients.FailedResource(
            'kube_minions', 'nodegroup.yaml', 'resources[1].kube-minion: ...', 'root', 'x'
        ),
        clients.FailedResource(
            'kube-minion',
            'OS::Nova::Server',
            f'ResourceInError: {victim}: Went to status ERROR due to "Message: No valid host was '
            'found. There are not enough hosts available., Code: 500"',
            'root-1',
            'y',
        ),
    ]
    story.run(1)

    body = api('GET', f'/v1/clusters/{cluster}').json
    assert body['status'] == 'CREATE_FAILED'
    assert body['status_reason'].startswith(
        'No compute host has room for a server of this flavor: kube-minion: Res'
    )
    assert 'No valid host was found' in body['faults']['default-worker']
    [operation] = history_of(story.conductor_services.db, cluster)
    assert (operation.outcome, operation.code) == ('failed', 'NO_VALID_HOST')
    assert story.cloud.calls.count('list_failures') == 1

    api('DELETE', f'/v1/clusters/{cluster}')
    story.run(4)
    assert (story.clusters(), story.cloud.all_stacks(), story.cloud.granted) == ([], [], set())


def test_stack_that_cannot_be_deleted_fails_the_delete_and_a_second_request_tries_again(
    story: Story, api: Api, cluster: str
) -> None:
    story.run(3)
    api('DELETE', f'/v1/clusters/{cluster}')
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    stack.status, stack.reason = 'DELETE_FAILED', 'Conflict: port is in use'
    story.run(1)
    assert api('GET', f'/v1/clusters/{cluster}').json['status'] == 'DELETE_FAILED'

    api('DELETE', f'/v1/clusters/{cluster}')
    story.run(4)
    assert (story.clusters(), story.cloud.calls.count('delete')) == ([], 2)


def test_stack_deleted_by_a_user_fails_the_cluster(story: Story, api: Api, cluster: str) -> None:
    story.make_due()
    story.round()
    story.cloud.stacks_by_project.clear()
    story.run(1)

    [operation] = history_of(story.conductor_services.db, cluster)
    assert (operation.outcome, operation.code) == ('failed', 'STACK_GONE')


def test_stack_that_heat_refuses_fails_at_once(story: Story, cluster: str) -> None:
    def refuse(call: str, when: str) -> None:
        if call == 'create':
            raise clients.Rejected(
                'Creating the stack: You have reached the maximum stacks per tenant, 512. (HTTP '
                '403)'
            )

    story.cloud.hook = refuse
    story.run(2)

    [row] = story.clusters()
    assert row.status == 'CREATE_FAILED'
    [operation] = history_of(story.conductor_services.db, cluster)
    assert operation.code == 'STACK_LIMIT'


@pytest.mark.parametrize(
    'error',
    [
        clients.Unreachable('Heat does not answer'),
        clients.Unreachable('slow down (HTTP 429)', 3.0),
        clients.Conflict('busy (HTTP 409)'),
        RuntimeError('a mistake of ours'),
    ],
)
@pytest.mark.parametrize('call', ['grant_roles', 'create', 'list_by_ids', 'get_outputs'])
def test_call_that_fails_for_a_while_is_tried_again(
    story: Story, cluster: str, call: str, error: Exception
) -> None:
    left = [error] * 3

    def hook(name: str, when: str) -> None:
        if name == call and when == 'before' and left:
            raise left.pop()

    story.cloud.hook = hook
    story.run()

    [row] = story.clusters()
    assert (row.status, row.failures, len(story.cloud.all_stacks()), left) == (
        'CREATE_COMPLETE',
        0,
        1,
        [],
    )


def test_create_that_heat_did_and_did_not_say_so(story: Story, cluster: str) -> None:
    """A gateway times out, the stack is there: it is adopted and not made twice."""

    def hook(name: str, when: str) -> None:
        if (name, when) == ('create', 'after'):
            story.cloud.hook = None
            raise clients.Unreachable('Creating the stack: gateway time-out (HTTP 504)')

    story.cloud.hook = hook
    story.run()

    [row] = story.clusters()
    [stack] = story.cloud.all_stacks()
    assert (row.status, row.stack_id) == ('CREATE_COMPLETE', stack.id)


def test_operation_ends_when_the_cloud_stays_away(story: Story, cluster: str) -> None:
    def hook(name: str, when: str) -> None:
        raise clients.Unreachable('Heat does not answer')

    story.cloud.hook = hook
    with story.conductor_services.db.write() as session:
        session.execute(
            sa.update(models.Cluster).values(
                created_at=models.utcnow() - datetime.timedelta(hours=2)
            )
        )
    story.run(1)

    [row] = story.clusters()
    assert row.status == 'CREATE_FAILED'
    assert row.status_reason == 'A cloud service could not be reached in time: Heat does not answer'


def test_conductor_that_lost_its_lease_changes_nothing(story: Story, cluster: str) -> None:
    """It was paused while it held the cluster, another one did the work, and now it goes on."""
    db.claim_unstarted(story.conductor_services.db, 'paused', limit=1, lease_s=60)
    [row] = db.list_leased(story.conductor_services.db, 'paused')
    story.run(4)
    before = vars_of(story.clusters()[0])

    task = Task(story.conductor_services, row, 'paused', {})
    reconcile.reconcile(task)
    with pytest.raises(errors.LeaseLost):
        task.update(status_reason='I was here')

    assert vars_of(story.clusters()[0]) | {'check_at': None} == before
    assert len(story.cloud.all_stacks()) == 1
    story.run(1)
    assert vars_of(story.clusters()[0]) == before, 'it has the cluster looked at, and that is all'


def test_conductor_that_slept_through_a_delete_removes_the_stack_it_made(
    story: Story, api: Api, cluster: str
) -> None:
    """It was stopped in the middle of its call; meanwhile others deleted the cluster and found no
    stack."""

    def sleep(call: str, when: str) -> None:
        if (call, when) == ('create', 'before'):
            story.cloud.hook = None
            api('DELETE', f'/v1/clusters/{cluster}')
            story.run(3)
            assert story.clusters() == []
            story.cloud.granted.add('p1')  # another cluster of the project keeps it

    story.cloud.hook = sleep
    story.run(4)

    assert (story.clusters(), [stack.status for stack in story.cloud.all_stacks()]) == ([], [])


def vars_of(row: models.Cluster) -> dict[str, Any]:
    return {
        c.key: getattr(row, c.key)
        for c in models.Cluster.__table__.columns
        if c.key != 'stack_text'
    }


def test_looks_of_one_project_are_one_call(
    story: Story, api: Api, template: dict[str, Any]
) -> None:
    for _ in range(20):
        api('POST', '/v1/clusters', {'cluster_template_id': template['uuid']})
    story.make_due()
    story.round()
    story.cloud.calls.clear()
    story.make_due()
    story.round()

    assert story.cloud.calls == ['list_by_ids']


def test_looks_grow_seldom_with_age() -> None:
    young = [choose_interval_s(4, 0) for _ in range(50)]
    old = [choose_interval_s(4, 3600) for _ in range(50)]

    assert max(young) < 5 and min(old) > 30 and max(old) < 50
    assert len(set(young)) > 1, 'without jitter all conductors look at once'


def test_project_whose_role_was_taken_away_meanwhile_gets_it_back(
    story: Story, cluster: str
) -> None:
    story.make_due()
    story.round()
    story.cloud.granted.clear()
    story.run(4)

    assert story.clusters()[0].status == 'CREATE_COMPLETE'


@pytest.mark.usefixtures('cluster')
def test_database_that_goes_away_in_a_visit_is_no_mistake_of_the_step(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    class Away:
        def store_pairs(self, *_: Any, **__: Any) -> None:
            raise db_exc.DBConnectionError(Exception('gone'))

    keystore: Any = Away()
    story.conductor_services = dataclasses.replace(story.conductor_services, keystore=keystore)

    with pytest.raises(db_exc.DBConnectionError):
        story.look()

    assert not [r for r in caplog.records if r.levelname == 'ERROR']


def test_role_is_taken_back_when_the_last_two_clusters_go_at_the_same_moment(
    story: Story, api: Api, cluster: str
) -> None:
    template = story.clusters()[0].template.uuid
    other = api('POST', '/v1/clusters', {'name': 'c2', 'cluster_template_id': template}).json[
        'uuid'
    ]
    story.run(4)
    for uuid in (cluster, other):
        api('DELETE', f'/v1/clusters/{uuid}')
    with story.conductor_services.db.write() as session:
        soon = models.utcnow() + datetime.timedelta(hours=1)
        session.execute(sa.update(models.Cluster).values(leased_by='me', leased_until=soon))
    held = db.list_leased(story.conductor_services.db, 'me', [cluster, other])

    for one in held:
        steps.ensure_project_left(Task(story.conductor_services, one, 'me', {}))

    assert len(held) == 2 and story.cloud.granted == set()
