"""Changes of a cluster that runs: queued, stopped, failed, in batches, and with conductors that die
at every call."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import uuid
from collections.abc import Callable
from typing import Any

import fakes
import pytest
import sqlalchemy as sa
import yaml
from conftest import Api, history_of
from oslo_db import exception as db_exc
from test_reconcile import ADMIN, DiesInTheDatabase, Story, dying, with_time_passing

from magnum_lite import clients, db, errors, members, models, stacktext, states
from magnum_lite.api.request import Services
from magnum_lite.conductor import task
from magnum_lite.conductor.stacks import DELETE_RESEND_S
from magnum_lite.models import Cluster, Node, NodeGroup, Operation

Change = Callable[[Cluster], None]


def request(story: Story, cluster: str, change: Change, kind: str = 'resize') -> Operation:
    operation = Operation(uuid=str(uuid.uuid4()), user_id='u', kind=kind)
    db.request_update(story.conductor_services.db, ADMIN, cluster, operation, change)
    return operation


def workers(cluster: Cluster) -> NodeGroup:
    return next(group for group in cluster.nodegroups if group.name == 'default-worker')


def resize(count: int, *remove: str) -> Change:
    def change(cluster: Cluster) -> None:
        members.resize(cluster, workers(cluster), count, remove)
        workers(cluster).status = states.UPDATE_IN_PROGRESS

    return change


def add_group(name: str = 'pool', count: int = 2) -> Change:
    """Add a nodegroup, whose role is a word of the user's."""

    def change(cluster: Cluster) -> None:
        group = NodeGroup(
            uuid=str(uuid.uuid4()),
            project_id=cluster.project_id,
            name=name,
            role='gpu',
            labels={},
            node_count=count,
            next_number=0,
            rollout=1,
            image_id='ubuntu',
            flavor_id='m1.small',
            nodes=[],
            status=states.CREATE_IN_PROGRESS,
        )
        cluster.nodegroups.append(group)
        members.add(cluster, group, count)

    return change


def drop_group(name: str = 'pool') -> Change:
    def change(cluster: Cluster) -> None:
        group = next(group for group in cluster.nodegroups if group.name == name)
        members.mark_unwanted(group.nodes)
        group.status = states.DELETE_IN_PROGRESS

    return change


def upgrade(batch_size: int = 1) -> Change:
    def change(cluster: Cluster) -> None:
        group = workers(cluster)
        group.rollout, group.batch_size, group.image_id = (
            group.rollout + 1,
            batch_size,
            'ubuntu-new',
        )
        group.status = states.UPDATE_IN_PROGRESS

    return change


def rotate(cluster: Cluster) -> None:
    cluster.rotation_phase = 1
    for group in cluster.nodegroups:
        group.rollout, group.status = group.rollout + 1, states.UPDATE_IN_PROGRESS


def loaded(story: Story, cluster: str) -> Cluster:
    """The row with all that hangs off it."""
    with story.conductor_services.db.read() as session:
        return session.scalars(
            sa.select(Cluster)
            .where(Cluster.uuid == cluster)
            .options(sa.orm.selectinload(Cluster.nodegroups).selectinload(NodeGroup.nodes))
        ).one()


def numbers(story: Story, cluster: str, group: str = 'default-worker') -> dict[int, str]:
    [found] = [g for g in loaded(story, cluster).nodegroups if g.name == group]
    return {node.number: node.status for node in found.nodes}


def history(story: Story, cluster: str) -> list[tuple[str, str | None]]:
    return [(o.kind, o.outcome) for o in history_of(story.conductor_services.db, cluster)]


def failed_member(stack: fakes.FakeStack, number: int, reason: str) -> list[clients.FailedResource]:
    """What Heat lists for a member that failed: the leaf, and every nested stack above it."""
    group, member = f'group-of-{stack.id}', f'member-{number}-of-{stack.id}'
    return [
        clients.FailedResource(name, kind, text, 's', physical, holder)
        for name, kind, text, holder, physical in (
            (
                'kube_minions',
                'kube_minions.yaml',
                f'resources.kube_minions: {reason}',
                stack.id,
                group,
            ),
            (str(number), 'worker.yaml', reason, group, member),
            ('node_config_deployment', 'OS::Heat::WaitCondition', reason, member, 'x'),
        )
    ]


@pytest.fixture
def running(story: Story, cluster: str) -> str:
    """A cluster that is complete: one master, two workers with the numbers 0 and 1."""
    story.run(4)
    assert story.clusters()[0].status == 'CREATE_COMPLETE'
    story.cloud.calls.clear()
    return cluster


@pytest.fixture
def story(conductor_services: task.Services, cloud: fakes.FakeCloud) -> Story:
    return Story(conductor_services, cloud)


# -- resize ----------------------------------------------------------------------------------------


def test_resize_adds_members_and_touches_no_other(story: Story, running: str) -> None:
    [stack] = story.cloud.all_stacks()
    before = dict(stack.files)
    request(story, running, resize(4))
    story.run(3)

    assert numbers(story, running) == dict.fromkeys(range(4), 'CREATE_COMPLETE')
    assert stack.members == {'kube_masters.yaml': {0}, 'kube_minions.yaml': {0, 1, 2, 3}}
    assert {name for name in before if before[name] != stack.files[name]} == {'kube_minions.yaml'}
    row = loaded(story, running)
    assert (row.status, row.leased_by, row.check_at) == ('UPDATE_COMPLETE', None, None)
    assert {g.status for g in row.nodegroups} == {'CREATE_COMPLETE', 'UPDATE_COMPLETE'}
    assert history(story, running) == [('create', 'complete'), ('resize', 'complete')]
    assert (story.cloud.calls.count('update'), story.cloud.calls.count('get_outputs')) == (1, 1)


def test_members_that_stay_are_written_as_they_were(story: Story, running: str) -> None:
    """A newer release of templates must not change what runs."""
    with story.conductor_services.db.write() as session:
        row = session.scalars(sa.select(Cluster)).one()
        text = dict(row.stack_text)
        text['files'] = text['files'] | {
            'kube_minions.yaml': text['files']['kube_minions.yaml'].replace(
                '"m1.small"', '"m1.older"'
            )
        }
        row.stack_text = text
    request(story, running, resize(1))
    request(story, running, resize(3))
    story.run(3)

    [stack] = story.cloud.all_stacks()
    assert 'm1.older' in stack.files['kube_minions.yaml']
    assert stack.members['kube_minions.yaml'] == {0, 2, 3}


def test_named_member_goes_and_no_number_comes_back(story: Story, running: str) -> None:
    request(story, running, resize(1, '0'))
    story.run(3)
    request(story, running, resize(2))
    story.run(3)

    assert numbers(story, running) == {1: 'CREATE_COMPLETE', 2: 'CREATE_COMPLETE'}
    assert story.cloud.all_stacks()[0].members['kube_minions.yaml'] == {1, 2}


def test_resize_to_nothing_and_back(story: Story, running: str) -> None:
    request(story, running, resize(0))
    story.run(3)
    assert (numbers(story, running), story.cloud.all_stacks()[0].members['kube_minions.yaml']) == (
        {},
        set(),
    )

    request(story, running, resize(1))
    story.run(3)
    assert numbers(story, running) == {2: 'CREATE_COMPLETE'}


def test_only_new_members_cost_new_user_data(story: Story, running: str) -> None:
    stack = story.cloud.all_stacks()[0]
    master, worker = stack.parameters['master_user_data'], stack.parameters['worker_user_data']
    request(story, running, resize(1))
    story.run(3)
    assert (stack.parameters['master_user_data'], stack.parameters['worker_user_data']) == (
        master,
        worker,
    )

    request(story, running, resize(2))
    story.run(3)
    assert (stack.parameters['master_user_data'], stack.parameters['worker_user_data']) == (
        master,
        worker,
    )
    assert stack.parameters['worker_user_data_2'] != worker, (
        'the certificate to join with is a new one'
    )
    assert user_data_read(stack) == {0: 'user_data', 2: 'user_data_2'}


def user_data_read(stack: fakes.FakeStack) -> dict[int, str]:
    """Which parameter each worker has its user-data from; it and the root template hand it on,
    hidden."""
    text, root = (yaml.safe_load(t) for t in (stack.files['kube_minions.yaml'], stack.template))
    read = {
        int(number): member['properties']['user_data']['get_param']
        for number, member in text['resources'].items()
    }
    handed = root['resources']['kube_minions']['properties']
    assert {key: value for key, value in handed.items() if key.startswith('user_data')} == {
        key: {'get_param': f'worker_{key}'} for key in {'user_data', *read.values()}
    }, 'and no more'
    assert all(
        text['parameters'][key]['hidden'] and root['parameters'][f'worker_{key}']['hidden']
        for key in read.values()
    )
    assert all(f'worker_{key}' in stack.parameters for key in read.values())
    return read


def test_members_of_many_times_share_so_many_parameters(story: Story, running: str) -> None:
    stack = story.cloud.all_stacks()[0]
    for count in range(3, 12):
        request(story, running, resize(count))
        story.run(3)

    read = user_data_read(stack)
    assert len(read) == 11 and len(set(read.values())) == stacktext.USER_DATA_SLOTS
    assert list(read.values()).count('user_data') == 2, 'the one that most have is left alone'


def test_user_data_that_nobody_has_any_more_is_forgotten(story: Story, running: str) -> None:
    stack = story.cloud.all_stacks()[0]
    request(story, running, resize(3))
    story.run(3)
    request(story, running, resize(1, '0', '1'))
    story.run(3)

    assert user_data_read(stack) == {2: 'user_data_2'}
    assert stack.parameters['worker_user_data'] == ''
    request(story, running, resize(2))
    story.run(3)
    assert user_data_read(stack) == {2: 'user_data_2', 3: 'user_data'}
    assert stack.parameters['worker_user_data'].startswith('#cloud-config')


def test_text_that_is_sent_again_brings_user_data_to_all_that_heat_may_not_have(
    story: Story, running: str
) -> None:
    stack = story.cloud.all_stacks()[0]
    first = stack.parameters['worker_user_data']
    request(story, running, resize(3))
    story.make_due()
    story.round()
    sent = stack.parameters['worker_user_data_2']
    stack.status, stack.failed = 'UPDATE_FAILED', []
    request(story, running, resize(4))
    story.run(4)

    assert stack.parameters['worker_user_data'] == first, 'those that are there are not touched'
    assert stack.parameters['worker_user_data_2'] != sent, (
        'the one that was on its way may be made anew'
    )
    assert user_data_read(stack) == {
        0: 'user_data',
        1: 'user_data',
        2: 'user_data_2',
        3: 'user_data_3',
    }


# -- waves -----------------------------------------------------------------------------------------


@pytest.fixture
def waves(story: Story) -> Story:
    """Two workers at once."""
    story.conductor_services.conf.set_override('nodes_per_wave', 2, 'cluster_heat')
    return story


def members_sent(story: Story, rounds: int) -> list[set[int]]:
    """The workers that Heat has in the first stack, each time that this changes."""
    seen: list[set[int]] = []
    for _ in range(rounds):
        story.make_due()
        story.round()
        for stack in story.cloud.all_stacks()[:1]:
            if seen[-1:] != [stack.members['kube_minions.yaml']]:
                seen.append(stack.members['kube_minions.yaml'])
        story.heat_works()
    return seen


def test_workers_of_a_new_cluster_come_in_waves(waves: Story, cluster: str) -> None:
    waves.conductor_services.conf.set_override('nodes_per_wave', 1, 'cluster_heat')

    assert members_sent(waves, 5) == [{0}, {0, 1}]
    assert numbers(waves, cluster) == dict.fromkeys(range(2), 'CREATE_COMPLETE')
    assert (loaded(waves, cluster).status, history(waves, cluster)) == (
        'CREATE_COMPLETE',
        [('create', 'complete')],
    )
    assert (waves.cloud.calls.count('create'), waves.cloud.calls.count('update')) == (1, 1)


def test_workers_that_are_added_come_in_waves_each_with_the_time_of_the_operation(
    waves: Story, running: str
) -> None:
    request(waves, running, resize(7))
    asked = loaded(waves, running).updated_at

    assert members_sent(waves, 6) == [{0, 1, 2, 3}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5, 6}]
    row = loaded(waves, running)
    assert numbers(waves, running) == dict.fromkeys(range(7), 'CREATE_COMPLETE')
    assert (row.status, waves.cloud.calls.count('update')) == ('UPDATE_COMPLETE', 3)
    assert row.updated_at > asked
    assert history(waves, running) == [('create', 'complete'), ('resize', 'complete')]


def test_further_nodegroup_comes_in_waves(waves: Story, running: str) -> None:
    request(waves, running, add_group(count=5), 'nodegroup_create')
    waves.run(8)

    [_, stack] = waves.cloud.all_stacks()
    assert (stack.members['kube_minions.yaml'], waves.cloud.calls.count('update')) == (
        {0, 1, 2, 3, 4},
        2,
    )
    assert numbers(waves, running, 'pool') == dict.fromkeys(range(5), 'CREATE_COMPLETE')


def test_no_more_are_replaced_at_once_than_come_at_once(waves: Story, running: str) -> None:
    request(waves, running, resize(4))
    waves.run(4)
    request(waves, running, upgrade(batch_size=4))

    assert members_sent(waves, 4) == [{2, 3, 4, 5}, {4, 5, 6, 7}]
    assert loaded(waves, running).status == 'UPDATE_COMPLETE'


def test_wave_that_fails_takes_no_earlier_one_along_and_the_next_change_goes_on(
    waves: Story, running: str
) -> None:
    request(waves, running, resize(6))
    for _ in range(2):
        waves.make_due()
        waves.round()
        [stack] = waves.cloud.all_stacks()
        waves.heat_works()
    stack.status, stack.failed = (
        'UPDATE_FAILED',
        failed_member(stack, 5, 'WaitConditionFailure: no kubelet'),
    )
    waves.run(3)

    assert loaded(waves, running).status == 'UPDATE_FAILED'
    assert {n: s for n, s in numbers(waves, running).items() if n < 4} == dict.fromkeys(
        range(4), 'CREATE_COMPLETE'
    )
    assert numbers(waves, running)[5] == 'CREATE_FAILED'
    request(waves, running, resize(6))
    waves.run(8)
    assert len(numbers(waves, running)) == 6 and set(numbers(waves, running).values()) == {
        'CREATE_COMPLETE'
    }
    assert 5 not in numbers(waves, running)


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize('victim', ['create', 'update', 'list_by_ids', 'get_outputs'])
def test_conductor_that_dies_between_waves(
    waves: Story, cluster: str, victim: str, moment: str
) -> None:
    waves.conductor_services.conf.set_override('nodes_per_wave', 1, 'cluster_heat')
    deaths = dying(waves.cloud, victim, moment)
    seen = members_sent(waves, 8)

    assert deaths, 'the call was never made, so this shows nothing'
    assert [len(there) for there in seen if there] == [1, 2], 'never more at once'
    assert numbers(waves, cluster) == dict.fromkeys(range(2), 'CREATE_COMPLETE')
    assert loaded(waves, cluster).status == 'CREATE_COMPLETE'


def test_unknown_name_is_refused_and_nothing_changes(story: Story, running: str) -> None:
    with pytest.raises(errors.Invalid, match="has no node '7', 'x'"):
        request(story, running, resize(1, '7', 'x'))

    assert loaded(story, running).status == 'CREATE_COMPLETE'


# -- queue -----------------------------------------------------------------------------------------


def test_update_during_an_update_is_applied_next(story: Story, running: str) -> None:
    request(story, running, resize(3))
    story.make_due()
    story.round()
    request(story, running, resize(5))
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    assert stack.members['kube_minions.yaml'] == {0, 1, 2}, 'Heat is not disturbed while it works'
    story.heat_works()
    story.make_due()
    story.round()
    assert stack.members['kube_minions.yaml'] == {0, 1, 2, 3, 4}
    assert history(story, running)[1:] == [('resize', 'complete'), ('resize', None)]
    story.run(3)

    assert history(story, running)[1:] == [('resize', 'complete')] * 2
    assert numbers(story, running) == dict.fromkeys(range(5), 'CREATE_COMPLETE')
    assert story.cloud.calls.count('update') == 2


def test_three_nodegroups_asked_for_at_once_all_come_to_be(story: Story, running: str) -> None:
    for name in ('one', 'two', 'three'):
        request(story, running, add_group(name), 'nodegroup_create')
    story.run(4)

    row = loaded(story, running)
    assert row.status == 'UPDATE_COMPLETE'
    assert {g.status for g in row.nodegroups} == {'CREATE_COMPLETE'}
    assert len({g.stack_id for g in row.nodegroups}) == 4 == len(story.cloud.all_stacks())
    assert numbers(story, running, 'two') == dict.fromkeys(range(2), 'CREATE_COMPLETE')
    assert {o for _, o in history(story, running)} == {'complete'}


def test_update_that_fails_while_another_waits_does_not_take_that_one_along(
    story: Story, running: str
) -> None:
    request(story, running, resize(3))
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    stack.status = 'UPDATE_FAILED'
    stack.failed = failed_member(stack, 2, 'WaitConditionFailure: no kubelet')
    request(story, running, resize(4))
    story.run(3)

    assert history(story, running)[1:] == [('resize', 'failed'), ('resize', 'complete')]
    assert numbers(story, running) == dict.fromkeys((0, 1, 3, 4), 'CREATE_COMPLETE'), (
        'the failed one is replaced'
    )


def test_delete_overtakes_a_running_update(story: Story, api: Api, running: str) -> None:
    request(story, running, resize(3))
    request(story, running, add_group(), 'nodegroup_create')
    story.make_due()
    story.round()
    assert len(story.cloud.all_stacks()) == 2
    api('DELETE', f'/v1/clusters/{running}')
    story.run(4)

    assert (story.clusters(), story.cloud.all_stacks(), story.cloud.granted) == ([], [], set())
    assert history(story, running)[1:] == [
        ('resize', 'superseded'),
        ('nodegroup_create', 'superseded'),
        ('delete', 'complete'),
    ]


# -- nodegroups ------------------------------------------------------------------------------------


def test_nodegroup_comes_and_goes(story: Story, running: str) -> None:
    request(story, running, add_group(), 'nodegroup_create')
    story.run(3)
    [_, stack] = story.cloud.all_stacks()
    assert stack.members == {'kube_minions.yaml': {0, 1}}
    request(story, running, drop_group(), 'nodegroup_delete')
    story.run(4)

    assert [g.name for g in loaded(story, running).nodegroups] == [
        'default-master',
        'default-worker',
    ]
    assert len(story.cloud.all_stacks()) == 1
    assert story.count(Node) == 3
    assert loaded(story, running).status == 'UPDATE_COMPLETE'


def test_nodegroup_that_fails_fails_alone(story: Story, running: str) -> None:
    request(story, running, add_group(), 'nodegroup_create')
    request(story, running, resize(3))
    story.make_due()
    story.round()
    [_, stack] = story.cloud.all_stacks()
    stack.status = 'CREATE_FAILED'
    stack.failed = failed_member(stack, 1, 'Quota exceeded for instances')
    story.run(3)

    row = loaded(story, running)
    pool = next(g for g in row.nodegroups if g.name == 'pool')
    assert (row.status, row.error_code) == ('UPDATE_FAILED', 'QUOTA_EXCEEDED')
    assert (pool.status, pool.error_code, workers(row).status) == (
        'CREATE_FAILED',
        'QUOTA_EXCEEDED',
        'UPDATE_COMPLETE',
    )
    assert [(n.number, n.status, n.error_code) for n in pool.nodes] == [
        (0, 'CREATE_FAILED', None),
        (1, 'CREATE_FAILED', 'QUOTA_EXCEEDED'),
    ]
    assert story.cloud.calls.count('list_failures') == 1, 'the walk is done once'

    request(story, running, resize(2))  # any later change tries again what has failed
    story.run(4)
    row = loaded(story, running)
    assert (row.status, {g.status for g in row.nodegroups}, row.error_code) == (
        'UPDATE_COMPLETE',
        {'CREATE_COMPLETE', 'UPDATE_COMPLETE'},
        None,
    )
    assert set(numbers(story, running, 'pool')) == {2, 3}


# -- upgrade ---------------------------------------------------------------------------------------


def test_upgrade_replaces_so_many_at_a_time(story: Story, running: str) -> None:
    request(story, running, resize(5))
    story.run(3)
    request(story, running, upgrade(2), 'upgrade')
    [stack] = story.cloud.all_stacks()
    seen = [stack.members['kube_minions.yaml']]
    for _ in range(8):
        story.run(1)
        if stack.members['kube_minions.yaml'] != seen[-1]:
            seen.append(stack.members['kube_minions.yaml'])

    assert seen == [{0, 1, 2, 3, 4}, {2, 3, 4, 5, 6}, {4, 5, 6, 7, 8}, {5, 6, 7, 8, 9}]
    row = loaded(story, running)
    assert row.status == 'UPDATE_COMPLETE'
    assert {(node.rollout, node.image_id) for node in workers(row).nodes} == {(2, 'ubuntu-new')}
    assert history(story, running)[-1] == ('upgrade', 'complete')


def test_upgrade_that_fails_stops_at_its_batch_and_goes_on_when_asked_again(
    story: Story, running: str
) -> None:
    request(story, running, upgrade(), 'upgrade')
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    stack.status, stack.failed = (
        'UPDATE_FAILED',
        failed_member(stack, 2, 'WaitConditionFailure: disk full'),
    )
    story.run(2)
    row = loaded(story, running)
    assert (row.status, row.error_code) == ('UPDATE_FAILED', 'NODE_FAILED')
    assert stack.members['kube_minions.yaml'] == {1, 2}

    stack.failed = []
    request(story, running, lambda cluster: None, 'upgrade')
    story.run(6)
    assert loaded(story, running).status == 'UPDATE_COMPLETE'
    assert {node.rollout for node in workers(loaded(story, running)).nodes} == {2}
    assert len(numbers(story, running)) == 2


# -- masters ---------------------------------------------------------------------------------------


@pytest.fixture
def balanced(story: Story, running: str) -> str:
    """The same with a load balancer before its master, so that the master can be replaced."""
    with story.conductor_services.db.write() as session:
        session.execute(sa.update(Cluster).values(master_lb_enabled=True))
    return running


def masters(cluster: Cluster) -> NodeGroup:
    return next(group for group in cluster.nodegroups if group.role == 'master')


def upgrade_all(batch_size: int = 1) -> Change:
    def change(cluster: Cluster) -> None:
        group = masters(cluster)
        group.rollout, group.image_id, group.status = (
            group.rollout + 1,
            'ubuntu-new',
            states.UPDATE_IN_PROGRESS,
        )
        upgrade(batch_size)(cluster)

    return change


def with_three_masters(cluster: Cluster) -> None:
    """As if it had been created with three."""
    group = masters(cluster)
    members.add(cluster, group, 2)
    group.node_count, group.status = 3, states.UPDATE_IN_PROGRESS


def pairs(stack: fakes.FakeStack) -> tuple[set[int], set[int]]:
    return stack.members['kube_masters.yaml'], stack.members['kube_minions.yaml']


def seen_by_heat(story: Story, rounds: int) -> list[tuple[set[int], set[int]]]:
    """The numbers of masters and workers that Heat is told, one after the other."""
    [stack] = story.cloud.all_stacks()
    seen = [pairs(stack)]
    for _ in range(rounds):
        story.run(1)
        if pairs(stack) != seen[-1]:
            seen.append(pairs(stack))
    return seen


def test_upgrade_replaces_a_master_before_workers_and_has_one_more_meanwhile(
    story: Story, balanced: str
) -> None:
    request(story, balanced, upgrade_all(2), 'upgrade')

    assert seen_by_heat(story, 6) == [({0}, {0, 1}), ({0, 1}, {0, 1}), ({1}, {2, 3})]
    row = loaded(story, balanced)
    assert (row.status, history(story, balanced)[-1]) == (
        'UPDATE_COMPLETE',
        ('upgrade', 'complete'),
    )
    assert {(n.rollout, n.image_id, n.status) for g in row.nodegroups for n in g.nodes} == {
        (2, 'ubuntu-new', 'CREATE_COMPLETE')
    }
    assert (row.master_count, len(masters(row).nodes)) == (1, 1)


def test_upgrade_replaces_three_masters_one_by_one(story: Story, balanced: str) -> None:
    request(story, balanced, with_three_masters)
    story.run(4)
    assert numbers(story, balanced, 'default-master') == dict.fromkeys(range(3), 'CREATE_COMPLETE')
    request(story, balanced, upgrade_all(2), 'upgrade')

    assert [sorted(m) for m, _ in seen_by_heat(story, 10)] == [
        [0, 1, 2],
        [0, 1, 2, 3],
        [1, 2, 3],
        [1, 2, 3, 4],
        [2, 3, 4],
        [2, 3, 4, 5],
        [3, 4, 5],
    ]
    assert loaded(story, balanced).status == 'UPDATE_COMPLETE'


def test_what_else_is_asked_for_waits_for_the_masters(story: Story, balanced: str) -> None:
    """A node that is newer than its masters would not join."""
    request(story, balanced, upgrade_all(5), 'upgrade')
    request(story, balanced, resize(3))
    request(story, balanced, add_group(), 'nodegroup_create')

    assert seen_by_heat(story, 1)[-1] == ({0, 1}, {0, 1})
    assert len(story.cloud.all_stacks()) == 1
    story.run(6)
    assert pairs(story.cloud.all_stacks()[0]) == ({1}, {2, 3, 4})
    assert len(story.cloud.all_stacks()) == 2
    assert loaded(story, balanced).status == 'UPDATE_COMPLETE'
    assert {outcome for _, outcome in history(story, balanced)} == {'complete'}


def failed_master(stack: fakes.FakeStack, number: int, reason: str) -> list[clients.FailedResource]:
    return [
        dataclasses.replace(
            failed,
            name=failed.name.replace('minion', 'master'),
            type=failed.type.replace('minion', 'master').replace('worker', 'master'),
        )
        for failed in failed_member(stack, number, reason)
    ]


def test_new_master_that_says_it_failed_goes_before_another_one_comes(
    story: Story, balanced: str
) -> None:
    request(story, balanced, upgrade_all(2), 'upgrade')
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    stack.status, stack.failed = (
        'UPDATE_FAILED',
        failed_master(stack, 1, 'WaitConditionFailure: no kubelet'),
    )
    story.run(2)
    row = loaded(story, balanced)
    assert (row.status, row.error_code) == ('UPDATE_FAILED', 'NODE_FAILED')
    assert numbers(story, balanced, 'default-master') == {0: 'CREATE_COMPLETE', 1: 'CREATE_FAILED'}

    stack.failed = []
    request(story, balanced, lambda cluster: None, 'upgrade')
    assert seen_by_heat(story, 6) == [
        ({0, 1}, {0, 1}),
        ({0}, {0, 1}),
        ({0, 2}, {0, 1}),
        ({2}, {2, 3}),
    ]
    assert loaded(story, balanced).status == 'UPDATE_COMPLETE'


def test_new_master_that_has_not_said_how_it_ended_is_waited_for_and_never_thrown_away(
    story: Story, balanced: str
) -> None:
    """It may have taken the place of the old one, and then the cluster is where it is."""
    request(story, balanced, upgrade_all(2), 'upgrade')
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    stack.status, stack.failed = (
        'UPDATE_FAILED',
        failed_master(stack, 1, 'CREATE aborted (Engine went down)'),
    )
    story.run(2)
    assert loaded(story, balanced).status == 'UPDATE_FAILED'
    assert numbers(story, balanced, 'default-master') == {
        0: 'CREATE_COMPLETE',
        1: 'CREATE_IN_PROGRESS',
    }

    stack.failed = []
    request(story, balanced, lambda cluster: None, 'upgrade')
    assert seen_by_heat(story, 6) == [({0, 1}, {0, 1}), ({1}, {2, 3})]
    assert loaded(story, balanced).status == 'UPDATE_COMPLETE'


def test_worker_that_fails_takes_no_new_master_along(story: Story, balanced: str) -> None:
    request(story, balanced, upgrade_all(), 'upgrade')
    story.run(1)
    [stack] = story.cloud.all_stacks()
    story.make_due()
    story.round()
    assert pairs(stack) == ({1}, {1, 2})
    stack.status, stack.failed = (
        'UPDATE_FAILED',
        failed_member(stack, 2, 'WaitConditionFailure: disk full'),
    )
    story.run(2)

    assert loaded(story, balanced).status == 'UPDATE_FAILED'
    assert [n.status for n in masters(loaded(story, balanced)).nodes if n.number == 1] == [
        'CREATE_COMPLETE'
    ]
    stack.failed = []
    request(story, balanced, lambda cluster: None, 'upgrade')
    story.run(6)
    assert numbers(story, balanced, 'default-master') == {1: 'CREATE_COMPLETE'}
    assert loaded(story, balanced).status == 'UPDATE_COMPLETE'


def test_upgrade_that_is_stopped_ends_when_the_present_master_is_there(
    story: Story, balanced: str
) -> None:
    operation = request(story, balanced, upgrade_all(), 'upgrade')
    story.make_due()
    story.round()
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.run(3)

    row = loaded(story, balanced)
    assert 'cancel' not in story.cloud.calls
    assert (row.status, row.error_code) == ('UPDATE_FAILED', 'CANCELLED')
    assert numbers(story, balanced, 'default-master') == dict.fromkeys((0, 1), 'CREATE_COMPLETE')
    request(story, balanced, lambda cluster: None, 'upgrade')
    story.run(6)
    assert numbers(story, balanced, 'default-master') == {1: 'CREATE_COMPLETE'}
    assert loaded(story, balanced).status == 'UPDATE_COMPLETE'


def test_master_without_a_load_balancer_is_never_replaced(story: Story, running: str) -> None:
    with story.conductor_services.db.write() as session:
        [number] = [n.id for n in masters(loaded(story, running)).nodes]
        session.execute(sa.update(Node).where(Node.id == number).values(status='CREATE_FAILED'))
    request(
        story,
        running,
        lambda cluster: setattr(masters(cluster), 'status', states.UPDATE_IN_PROGRESS),
    )
    story.run(4)

    assert story.cloud.all_stacks()[0].members['kube_masters.yaml'] == {0}
    assert loaded(story, running).status == 'UPDATE_COMPLETE'


# -- rotate ----------------------------------------------------------------------------------------


def trust(story: Story, cluster: str) -> tuple[str, str]:
    """The certificate of the authority that signs now, and of the one that is trusted beside it."""
    pair = story.conductor_services.keystore.load_pairs(
        story.conductor_services.db, loaded(story, cluster)
    )['ca']
    return pair.certificate, pair.beside


def test_rotation_replaces_everybody_three_times_so_that_nobody_meets_a_stranger(
    story: Story, balanced: str
) -> None:
    old, _ = trust(story, balanced)
    request(story, balanced, rotate, 'rotate')
    phases = {}
    for _ in range(ROUNDS['rotate']):
        story.run(1)
        row = loaded(story, balanced)
        if row.rotation_phase and (row.rotation_phase not in phases):
            phases[row.rotation_phase] = (*trust(story, balanced), workers(row).rollout)
            assert history_of(story.conductor_services.db, balanced)[-1].text == (
                None if row.rotation_phase == 1 else f'Phase {row.rotation_phase} of 3'
            )

    row, (new, beside) = loaded(story, balanced), trust(story, balanced)
    assert phases == {1: (old, new, 2), 2: (new, old, 3), 3: (new, '', 4)}
    assert (row.status, row.rotation_phase, beside, new == old) == ('UPDATE_COMPLETE', 0, '', False)
    assert {node.rollout for group in row.nodegroups for node in group.nodes} == {4}
    assert history(story, balanced)[-1] == ('rotate', 'complete')
    assert story.count(models.Key) == len(story.conductor_services.drivers[row.driver].keys), (
        'the old ones are forgotten'
    )
    check_nothing_is_doubled(story, balanced)


def test_rotation_is_asked_for_once_by_a_member(story: Story, api: Api, balanced: str) -> None:
    path = f'/v1/certificates/{balanced}'

    assert api('PATCH', path, roles='reader').status_code == 403
    assert api('PATCH', path, project='p2').status_code == 404
    assert api('PATCH', path, {'ca': 'new'}).status_code == 400
    asked = api('PATCH', path, headers={'Content-Type': 'application/octet-stream'}, version=None)
    assert (asked.status_code, asked.json) == (202, {'uuid': balanced})
    assert '/v1/operations/' in asked.headers['Location']
    again = api('PATCH', path)
    assert again.status_code == 409 and 'phase 1 of 3' in again.text
    story.run(ROUNDS['rotate'])
    assert history(story, balanced)[-1] == ('rotate', 'complete')


def test_rotation_that_the_driver_cannot_do_is_refused(
    services: Services, story: Story, api: Api, balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(services.drivers['k8s_cloud_init'].manifest, 'rotation')

    refused = api('PATCH', f'/v1/certificates/{balanced}')

    assert refused.status_code == 400 and 'cannot exchange authorities' in refused.text
    assert loaded(story, balanced).status == 'CREATE_COMPLETE'


def test_rotation_that_fails_goes_on_where_it_was(story: Story, balanced: str) -> None:
    request(story, balanced, rotate, 'rotate')
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    stack.status, stack.failed = (
        'UPDATE_FAILED',
        failed_member(stack, 2, 'WaitConditionFailure: disk full'),
    )
    story.run(2)
    row = loaded(story, balanced)
    assert (row.status, row.rotation_phase) == ('UPDATE_FAILED', 1)
    signer, _ = trust(story, balanced)
    stack.failed = []
    request(story, balanced, lambda cluster: None, 'rotate')
    story.run(ROUNDS['rotate'])

    assert (loaded(story, balanced).status, loaded(story, balanced).rotation_phase) == (
        'UPDATE_COMPLETE',
        0,
    )
    assert trust(story, balanced)[0] != signer
    assert history(story, balanced)[-2:] == [('rotate', 'failed'), ('rotate', 'complete')]


def test_rotation_that_is_stopped_ends_after_a_step_and_goes_on_when_asked_again(
    story: Story, balanced: str
) -> None:
    operation = request(story, balanced, rotate, 'rotate')
    story.make_due()
    story.round()
    story.heat_works()
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.run(8)

    row = loaded(story, balanced)
    assert (row.status, row.error_code, row.rotation_phase) == ('UPDATE_FAILED', 'CANCELLED', 1)
    request(story, balanced, lambda cluster: None, 'rotate')
    story.run(ROUNDS['rotate'])
    assert (loaded(story, balanced).status, loaded(story, balanced).rotation_phase) == (
        'UPDATE_COMPLETE',
        0,
    )
    check_nothing_is_doubled(story, balanced)


def test_resize_in_a_rotation_waits_its_turn_and_both_are_done(story: Story, balanced: str) -> None:
    request(story, balanced, rotate, 'rotate')
    story.make_due()
    story.round()
    request(story, balanced, resize(3))
    story.run(ROUNDS['rotate'])

    row = loaded(story, balanced)
    assert (row.status, row.rotation_phase, len(numbers(story, balanced))) == (
        'UPDATE_COMPLETE',
        0,
        3,
    )
    assert history(story, balanced)[1:] == [('rotate', 'complete'), ('resize', 'complete')]
    check_nothing_is_doubled(story, balanced)


def test_delete_in_a_rotation_leaves_no_key(story: Story, api: Api, balanced: str) -> None:
    request(story, balanced, rotate, 'rotate')
    story.run(2)
    assert story.count(models.Key) > len(story.conductor_services.drivers['k8s_cloud_init'].keys)
    api('DELETE', f'/v1/clusters/{balanced}')
    story.run(4)

    assert (story.clusters(), story.count(models.Key)) == ([], 0)


# -- stop ------------------------------------------------------------------------------------------


def test_create_that_is_stopped_leaves_nothing_in_the_cloud(
    story: Story, api: Api, cluster: str
) -> None:
    story.make_due()
    story.round()
    [operation] = history_of(story.conductor_services.db, cluster)
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.run(4)

    row = loaded(story, cluster)
    assert (row.status, row.error_code, row.stack_id, story.cloud.all_stacks()) == (
        'CREATE_FAILED',
        'CANCELLED',
        None,
        [],
    )
    assert {group.stack_id for group in row.nodegroups} == {None}
    assert history(story, cluster) == [('create', 'failed')]
    api('DELETE', f'/v1/clusters/{cluster}')
    story.run(2)
    assert (story.clusters(), story.cloud.granted) == ([], set())


def test_create_that_is_stopped_before_it_began_makes_no_stack(story: Story, cluster: str) -> None:
    [operation] = history_of(story.conductor_services.db, cluster)
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.run(2)

    assert loaded(story, cluster).status == 'CREATE_FAILED'
    assert 'create' not in story.cloud.calls


def test_update_that_is_stopped_keeps_what_is_and_goes_on_from_there(
    story: Story, running: str
) -> None:
    operation = request(story, running, resize(4))
    story.make_due()
    story.round()
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.make_due()
    story.round()
    story.make_due()
    story.round()

    row = loaded(story, running)
    assert (row.status, row.error_code) == ('UPDATE_FAILED', 'CANCELLED')
    assert story.cloud.calls.count('cancel') == 1
    assert history(story, running)[-1] == ('resize', 'failed')
    request(story, running, resize(2))
    story.run(4)
    assert loaded(story, running).status == 'UPDATE_COMPLETE'
    assert len(story.cloud.all_stacks()[0].members['kube_minions.yaml']) == 2


def test_stop_that_comes_too_late_is_no_failure(story: Story, running: str) -> None:
    operation = request(story, running, resize(4))
    story.make_due()
    story.round()
    story.heat_works()
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.run(2)

    assert (loaded(story, running).status, history(story, running)[-1]) == (
        'UPDATE_COMPLETE',
        ('resize', 'complete'),
    )
    with pytest.raises(errors.Conflict, match='has ended already, as complete'):
        db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)


def test_what_cannot_be_stopped_is_said(story: Story, api: Api, running: str) -> None:
    first = request(story, running, resize(3))
    request(story, running, resize(4))
    with pytest.raises(errors.Conflict, match='is not the only one'):
        db.request_cancel(story.conductor_services.db, ADMIN, first.uuid)
    api('DELETE', f'/v1/clusters/{running}')
    deleting = history_of(story.conductor_services.db, running)[-1]

    with pytest.raises(errors.Conflict, match='cannot be stopped'):
        db.request_cancel(story.conductor_services.db, ADMIN, deleting.uuid)
    with pytest.raises(errors.NotFound):
        db.request_cancel(story.conductor_services.db, db.Scope('p2'), deleting.uuid)


# -- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('what', ['create', 'update', 'delete'])
def test_operation_ends_although_heat_never_does(
    story: Story, api: Api, cluster: str, what: str
) -> None:
    if what != 'create':
        story.run(4)
        request(story, cluster, resize(3)) if what == 'update' else api(
            'DELETE', f'/v1/clusters/{cluster}'
        )
    story.make_due()
    story.round()
    with story.conductor_services.db.write() as session:
        past = models.utcnow() - datetime.timedelta(minutes=71)
        session.execute(
            sa.update(Cluster).values(
                created_at=past, updated_at=past if what != 'create' else None
            )
        )
    story.make_due()
    story.round()

    row = loaded(story, cluster)
    assert (row.status, row.error_code) == (f'{what.upper()}_FAILED', 'TIMEOUT')
    assert 'is not done after 71 minutes, and 60 were given' in row.status_reason
    assert history(story, cluster)[-1][1] == 'failed'
    assert (row.leased_by, row.check_at) == (None, None)


# -- delete ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('state', ['disabled', 'gone'])
def test_delete_in_a_project_that_is_closed(
    story: Story, api: Api, running: str, state: str
) -> None:
    request(story, running, add_group(), 'nodegroup_create')
    story.run(3)
    story.cloud.project_states['p1'] = state
    api('DELETE', f'/v1/clusters/{running}')
    story.run(6)

    assert (story.clusters(), story.cloud.all_stacks()) == ([], [])


def test_load_balancers_made_inside_go_first(story: Story, api: Api, running: str) -> None:
    story.cloud.balancers = {
        'lb1': clients.LoadBalancer(
            'lb1', 'svc', f'Kubernetes external service a/b from cluster {running}', 'ACTIVE'
        ),
        'lb2': clients.LoadBalancer('lb2', 'other', 'of somebody else', 'ACTIVE'),
    }
    api('DELETE', f'/v1/clusters/{running}')
    story.run(5)

    assert (story.clusters(), list(story.cloud.balancers)) == ([], ['lb2'])
    calls = story.cloud.calls
    assert calls.index('delete_load_balancer') < calls.index('delete')
    assert calls.count('list_load_balancers') == 2, (
        'once more to see that they are gone, and never after that'
    )


def test_load_balancer_that_does_not_go_is_named(story: Story, api: Api, running: str) -> None:
    balancer = clients.LoadBalancer('lb1', 'svc', f'x from cluster {running}', 'PENDING_UPDATE')
    story.cloud.balancers = {'lb1': balancer}

    def busy(call: str, when: str) -> None:
        if call == 'delete_load_balancer':
            raise clients.Conflict('immutable (HTTP 409)')

    story.cloud.hook = busy
    api('DELETE', f'/v1/clusters/{running}')
    story.run(2)
    assert loaded(story, running).status == 'DELETE_IN_PROGRESS'
    with story.conductor_services.db.write() as session:
        session.execute(
            sa.update(Cluster).values(updated_at=models.utcnow() - datetime.timedelta(hours=2))
        )
    story.run(1)

    row = loaded(story, running)
    assert (row.status, row.error_code) == ('DELETE_FAILED', 'LOADBALANCER')
    assert 'svc (lb1, PENDING_UPDATE)' in row.status_reason


def blocked(story: Story, api: Api, cluster: str, **query: str) -> None:
    """Ask for a delete that Heat cannot carry out, because something is in use."""
    api('DELETE', f'/v1/clusters/{cluster}')
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    stack.status = 'DELETE_FAILED'
    stack.failed = [
        clients.FailedResource(
            'subnet',
            'OS::Neutron::Subnet',
            'Conflict: Unable to complete operation on subnet. One or more ports have an '
            'IP allocation from this subnet.',
            's',
            'subnet-1',
            stack.id,
        )
    ]
    story.cloud.users['subnet-1'] = ['Port lb-vip (p1) of Octavia lb9']


def test_what_blocks_a_delete_is_named(story: Story, api: Api, running: str) -> None:
    blocked(story, api, running)
    story.run(1)

    row = loaded(story, running)
    assert (row.status, row.error_code) == ('DELETE_FAILED', 'IN_USE')
    assert 'Port lb-vip (p1) of Octavia lb9' in row.status_reason


def test_forced_delete_gives_up_on_what_blocks_and_says_what_it_left(
    story: Story, api: Api, running: str
) -> None:
    blocked(story, api, running)
    story.run(1)
    [stack] = story.cloud.all_stacks()
    db.request_delete(
        story.conductor_services.db,
        ADMIN,
        running,
        Operation(uuid=str(uuid.uuid4()), user_id='u', kind='delete'),
        force=True,
    )
    story.make_due()
    story.round()
    stack.status = 'DELETE_FAILED'
    story.run(2)

    assert story.clusters() == []
    last = history_of(story.conductor_services.db, running)[-1]
    assert last.outcome == 'complete'
    assert stack.id in last.text and 'Port lb-vip (p1)' in last.text


def test_forced_delete_does_without_a_cloud_that_is_away(
    story: Story, api: Api, running: str
) -> None:
    def away(call: str, when: str) -> None:
        raise clients.Unreachable('Heat does not answer')

    story.cloud.hook = away
    db.request_delete(
        story.conductor_services.db,
        ADMIN,
        running,
        Operation(uuid=str(uuid.uuid4()), user_id='u', kind='delete'),
        force=True,
    )
    story.run(2)
    assert len(story.clusters()) == 1, 'it is given a few tries'
    story.run(4)

    assert story.clusters() == []
    assert 'Heat does not answer' in history_of(story.conductor_services.db, running)[-1].text


def age(story: Story, seconds: float) -> None:
    """Have the operation been asked for so long ago."""
    with story.conductor_services.db.write() as session:
        session.execute(
            sa.update(Cluster).values(
                updated_at=models.utcnow() - datetime.timedelta(seconds=seconds)
            )
        )


@pytest.mark.parametrize('status', ['CREATE_COMPLETE', 'DELETE_IN_PROGRESS'])
def test_delete_is_sent_once_also_when_heat_says_so_late(
    story: Story, api: Api, running: str, status: str
) -> None:
    api('DELETE', f'/v1/clusters/{running}')
    [stack] = story.cloud.all_stacks()
    for _ in range(4):
        story.make_due()
        story.round()
        stack.status = status
    assert story.cloud.calls.count('delete') == 1

    age(story, DELETE_RESEND_S + 1)
    story.make_due()
    story.round()
    assert story.cloud.calls.count('delete') == (1 if status == 'DELETE_IN_PROGRESS' else 2), (
        'what is dropped is not'
    )


def test_delete_that_heat_lost_is_sent_again_when_asked_for_again(
    story: Story, api: Api, running: str
) -> None:
    request(story, running, add_group(), 'nodegroup_create')
    story.run(3)
    api('DELETE', f'/v1/clusters/{running}')
    lost = [fakes.FakeStack.seen(stack).id for stack in story.cloud.all_stacks()]
    for expected in (1, 1):
        story.make_due()
        story.round()
        assert story.cloud.calls.count('delete') == expected
        api('DELETE', f'/v1/clusters/{running}')

    age(story, db.RESEND_S + 1)
    api('DELETE', f'/v1/clusters/{running}')
    story.make_due()
    story.round()
    assert (story.cloud.calls.count('delete'), len(lost)) == (2, 2), (
        'the nodegroup, which goes first'
    )
    del story.cloud.stacks_by_project['p1'][lost[1]]
    for _ in range(2):
        story.make_due()
        story.round()
    assert story.cloud.calls.count('delete') == 3
    age(story, 2 * db.RESEND_S + 1)
    api('DELETE', f'/v1/clusters/{running}')
    story.make_due()
    story.round()
    assert story.cloud.calls.count('delete') == 4
    story.run(3)

    assert (story.clusters(), story.cloud.all_stacks(), story.cloud.granted) == ([], [], set())
    assert history(story, running)[-1] == ('delete', 'complete')
    assert [kind for kind, _ in history(story, running)].count('delete') == 1


# -- watching --------------------------------------------------------------------------------------


def test_resources_are_counted_for_who_looks_and_for_nobody_else(
    story: Story, running: str
) -> None:
    operation = request(story, running, resize(3))
    story.make_due()
    story.round()
    story.make_due()
    story.round()
    assert 'get_progress' not in story.cloud.calls
    db.mark_polled(story.conductor_services.db, running)
    story.make_due()
    story.round()

    assert story.cloud.calls.count('get_progress') == 1
    found = db.get_operation(story.conductor_services.db, ADMIN, operation.uuid)
    assert (found.resources_done, found.resources_total) == (3, 10)


def test_estimate_is_of_operations_of_that_size(story: Story, running: str) -> None:
    with story.conductor_services.db.write() as session:
        for nodes, seconds in ((3, 30), (3, 32), (3, 34), *[(50, 900)] * 20):
            asked = models.utcnow()
            session.add(
                Operation(
                    uuid=str(uuid.uuid4()),
                    cluster_id=running,
                    project_id='p1',
                    user_id='u',
                    kind='resize',
                    generation=1,
                    driver='k8s_cloud_init',
                    node_count=nodes,
                    outcome='complete',
                    created_at=asked,
                    ended_at=asked + datetime.timedelta(seconds=seconds),
                )
            )
    operation = request(story, running, resize(45))
    assert 600 < db.estimate_duration_s(story.conductor_services.db, operation) < 1000
    small = Operation(driver='k8s_cloud_init', kind='upgrade', node_count=3)
    assert db.estimate_duration_s(story.conductor_services.db, small) is None


# -- death -----------------------------------------------------------------------------------------


def check_nothing_is_doubled(story: Story, cluster: str) -> None:
    """Stacks are those that rows own, with the members that rows have."""
    row = loaded(story, cluster)
    assert {g.stack_id for g in row.nodegroups} == {s.id for s in story.cloud.all_stacks()}
    for group in row.nodegroups:
        stack = story.cloud.stacks_by_project['p1'][group.stack_id]
        name = 'kube_masters.yaml' if group.role == 'master' else 'kube_minions.yaml'
        assert stack.members[name] == {node.number for node in group.nodes}, group.name
        assert len(group.nodes) == group.node_count
        assert {node.status for node in group.nodes} <= {'CREATE_COMPLETE'}


def behind_a_load_balancer(cluster: Cluster) -> None:
    cluster.master_lb_enabled = True


#: kind -> (what was there before, the change, calls that are made for it).
CHANGES: dict[str, tuple[list[Change], Change, tuple[str, ...]]] = {
    'resize out': ([], resize(4), ('list_by_ids', 'update', 'get_outputs')),
    'resize in': ([], resize(1, '0'), ('list_by_ids', 'update', 'get_outputs')),
    'nodegroup create': ([], add_group(), ('list_by_ids', 'get_outputs', 'create')),
    'nodegroup delete': ([add_group()], drop_group(), ('list_by_ids', 'delete')),
    'upgrade': ([resize(3)], upgrade(2), ('list_by_ids', 'update', 'get_outputs')),
    'rotate': (
        [behind_a_load_balancer, add_group()],
        rotate,
        ('list_by_ids', 'update', 'get_outputs'),
    ),
    'upgrade with masters': (
        [behind_a_load_balancer],
        upgrade_all(2),
        ('list_by_ids', 'update', 'get_outputs'),
    ),
}
#: Rounds after which the longest of them is over, and the others.
ROUNDS = {'rotate': 40}


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize(
    ('kind', 'victim'), [(kind, call) for kind, item in CHANGES.items() for call in item[2]]
)
def test_conductor_that_dies_in_a_change(
    story: Story, running: str, kind: str, victim: str, moment: str
) -> None:
    first, change, _ = CHANGES[kind]
    for step in first:
        request(story, running, step)
        story.run(4)
    request(story, running, change, kind)
    deaths = dying(story.cloud, victim, moment)
    story.run(ROUNDS.get(kind, 12))

    assert deaths, 'the call was never made, so this shows nothing'
    assert loaded(story, running).status == 'UPDATE_COMPLETE'
    assert history(story, running)[-1] == (kind, 'complete')
    check_nothing_is_doubled(story, running)


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize(
    ('kind', 'number'),
    [(kind, number) for kind in CHANGES for number in range(1, 25 if kind in ROUNDS else 12)],
)
def test_conductor_that_dies_at_a_write_of_a_change(
    story: Story, running: str, kind: str, number: int, moment: str
) -> None:
    first, change, _ = CHANGES[kind]
    for step in first:
        request(story, running, step)
        story.run(4)
    request(story, running, change, kind)
    deaths = 0
    with DiesInTheDatabase(story.conductor_services.db, number, moment) as killer:
        for _ in range(ROUNDS.get(kind, 6)):
            try:
                story.look()
            except fakes.Died:
                deaths += 1
                break
            with_time_passing(story, killer)
    story.run(ROUNDS.get(kind, 12))

    assert deaths or number > 6, 'nobody died, so this shows nothing'
    assert loaded(story, running).status == 'UPDATE_COMPLETE'
    assert history(story, running)[-1] == (kind, 'complete')
    check_nothing_is_doubled(story, running)


class GivesUp(DiesInTheDatabase):
    """Has the database give up the n-th write for the sake of another one."""

    def commit(self, connection: sa.Connection) -> None:
        with contextlib.suppress(fakes.Died):
            super().commit(connection)
            return
        raise db_exc.DBDeadlock


@pytest.mark.parametrize('number', range(1, 8))
def test_write_that_the_database_gives_up_is_no_mistake_and_costs_one_look(
    story: Story, running: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    request(story, running, resize(4))
    with GivesUp(story.conductor_services.db, number, 'before') as database:
        for _ in range(5):
            story.round()
            with_time_passing(story, database)

    assert database.seen >= number, 'nothing was given up, so this shows nothing'
    assert (loaded(story, running).status, loaded(story, running).leased_by) == (
        'UPDATE_COMPLETE',
        None,
    )
    assert history(story, running)[-1] == ('resize', 'complete')
    assert not [record for record in caplog.records if record.levelname in ('WARNING', 'ERROR')]
    check_nothing_is_doubled(story, running)


def test_update_that_heat_took_and_did_not_say_so_is_not_sent_again(
    story: Story, running: str
) -> None:
    def hook(name: str, when: str) -> None:
        if (name, when) == ('update', 'after'):
            story.cloud.hook = None
            raise clients.Unreachable('Updating the stack: gateway time-out (HTTP 504)')

    story.cloud.hook = hook
    request(story, running, resize(3))
    story.run(4)

    assert story.cloud.calls.count('update') == 1
    assert loaded(story, running).status == 'UPDATE_COMPLETE'
    check_nothing_is_doubled(story, running)


def test_stale_update_of_a_conductor_that_slept_is_put_right(story: Story, running: str) -> None:
    """It wakes up after others have done the work and more, and sends what it was about to send."""
    [stack] = story.cloud.all_stacks()
    old = (dict(stack.files), stack.tags)
    request(story, running, resize(4))
    story.make_due()
    story.round()
    stack.files, stack.tags = old[0], (*old[1][:2], 'rev-1')  # Heat took the stale one last
    story.run(4)

    assert loaded(story, running).status == 'UPDATE_COMPLETE'
    check_nothing_is_doubled(story, running)


def sleeping(story: Story, call: str, meanwhile: Callable[[], None]) -> list[int]:
    """Have the process be stopped before its first call of this name; `meanwhile` others have its
    leases.

    Returns a list that holds 1 once it was.
    """
    slept: list[int] = []

    def hook(name: str, when: str) -> None:
        if (name, when) == (call, 'before') and not slept:
            slept.append(1)
            meanwhile()

    story.cloud.hook = hook
    return slept


@pytest.mark.parametrize('answer', [None, clients.Unreachable('gateway time-out (HTTP 504)')])
@pytest.mark.parametrize('meanwhile', [resize(1, '0'), add_group(), lambda cluster: None])
def test_update_that_is_sent_after_everything_was_done_without_it_is_put_right(
    story: Story, running: str, meanwhile: Change, answer: Exception | None
) -> None:
    """A conductor is stopped between storing a text and sending it, and wakes up when nobody waits
    any more."""

    def others_work() -> None:
        request(story, running, meanwhile)
        story.run(6)
        assert (loaded(story, running).status, loaded(story, running).check_at) == (
            'UPDATE_COMPLETE',
            None,
        )
        check_nothing_is_doubled(story, running)

        def answered(name: str, when: str) -> None:
            if (name, when) == ('update', 'after') and answer:
                story.cloud.hook = None
                raise answer

        story.cloud.hook = answered

    request(story, running, resize(4))
    slept = sleeping(story, 'update', others_work)
    story.make_due()
    story.round()
    row = loaded(story, running)
    stack = story.cloud.stacks_by_project['p1'][row.stack_id]
    assert slept and f'rev-{row.revision}' not in stack.tags, (
        'the stale one is there, or this shows nothing'
    )
    assert (row.status, row.leased_by) == ('UPDATE_COMPLETE', None)
    before, user_data = history(story, running), stack.parameters['worker_user_data']
    story.heat_works()
    story.run(4)

    row = loaded(story, running)
    assert (row.status, row.leased_by, row.check_at, row.failures) == (
        'UPDATE_COMPLETE',
        None,
        None,
        0,
    )
    assert f'rev-{row.revision}' in stack.tags
    assert stack.parameters['worker_user_data'] != user_data, (
        'who is made anew joins with a new certificate'
    )
    assert history(story, running) == before
    check_nothing_is_doubled(story, running)


def test_update_that_is_sent_while_another_one_finds_that_all_is_done_is_put_right(
    story: Story, running: str
) -> None:
    """The other one has looked at the stack before, and writes that all is done after."""
    request(story, running, resize(4))
    story.make_due()
    story.round()
    story.heat_works()
    [stack] = story.cloud.all_stacks()

    def wake_up() -> None:
        stack.files = stack.files | {'kube_minions.yaml': before['kube_minions.yaml']}
        stack.tags, stack.status = (*stack.tags[:2], 'rev-1'), 'UPDATE_IN_PROGRESS'
        db.release(story.conductor_services.db, loaded(story, running), 'sleeper', check_in_s=1)

    before = dict(loaded_text(story, running)['files'])
    before['kube_minions.yaml'] = (
        before['kube_minions.yaml'].replace("'3':", "'9':").replace('"3":', '"9":')
    )
    slept = sleeping(story, 'get_outputs', wake_up)
    story.make_due()
    story.round()
    row = loaded(story, running)
    assert slept and row.status == 'UPDATE_COMPLETE' and row.check_at is not None
    story.run(4)

    assert (loaded(story, running).status, loaded(story, running).check_at) == (
        'UPDATE_COMPLETE',
        None,
    )
    check_nothing_is_doubled(story, running)


def loaded_text(story: Story, cluster: str) -> dict[str, Any]:
    with story.conductor_services.db.read() as session:
        return session.scalars(sa.select(Cluster.stack_text).where(Cluster.uuid == cluster)).one()


def test_stale_text_of_one_stack_is_put_right_beside_a_nodegroup_that_has_failed(
    story: Story, running: str
) -> None:
    request(story, running, add_group(), 'nodegroup_create')
    story.make_due()
    story.round()
    [stack, pool] = story.cloud.all_stacks()
    pool.status = 'CREATE_FAILED'
    story.run(3)
    assert loaded(story, running).status == 'UPDATE_FAILED'
    stack.tags = (*stack.tags[:2], 'rev-999')
    db.make_due(story.conductor_services.db, running)
    story.run(4)

    row = loaded(story, running)
    assert (row.status, workers(row).status, row.check_at) == (
        'UPDATE_FAILED',
        'UPDATE_COMPLETE',
        None,
    )
    assert f'rev-{row.revision}' in stack.tags
    assert pool.status == 'CREATE_FAILED' and 'NODE' not in history(story, running)[-1]


def test_look_at_a_cluster_at_rest_survives_a_cloud_that_is_away(
    story: Story, running: str
) -> None:
    age(story, 100 * 3600)
    db.make_due(story.conductor_services.db, running)
    left = [clients.Unreachable('Heat does not answer')] * 3

    def hook(name: str, when: str) -> None:
        if (name, when) == ('list_by_ids', 'before') and left:
            raise left.pop()

    story.cloud.hook = hook
    story.run(2)
    row = loaded(story, running)
    assert (row.status, row.failures, row.leased_by) == ('CREATE_COMPLETE', 2, None)
    story.run(2)

    row = loaded(story, running)
    assert (left, row.status, row.failures, row.check_at) == ([], 'CREATE_COMPLETE', 0, None)


def test_conductor_that_slept_through_the_stop_of_its_create_removes_the_stack_it_made(
    story: Story, api: Api, cluster: str
) -> None:
    [operation] = history_of(story.conductor_services.db, cluster)

    def others_work() -> None:
        db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
        story.run(3)
        assert loaded(story, cluster).status == 'CREATE_FAILED'

    slept = sleeping(story, 'create', others_work)
    story.run(3)

    assert slept and story.cloud.all_stacks() == []
    assert (loaded(story, cluster).status, loaded(story, cluster).check_at) == (
        'CREATE_FAILED',
        None,
    )


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize('victim', ['cancel', 'list_by_ids'])
def test_conductor_that_dies_while_it_stops_an_update(
    story: Story, running: str, victim: str, moment: str
) -> None:
    operation = request(story, running, resize(4))
    story.make_due()
    story.round()
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    deaths = dying(story.cloud, victim, moment)
    for _ in range(4):  # Heat does not end it by itself meanwhile
        story.make_due()
        story.round()

    assert deaths, 'the call was never made, so this shows nothing'
    assert (loaded(story, running).status, history(story, running)[-1]) == (
        'UPDATE_FAILED',
        ('resize', 'failed'),
    )


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize(
    'victim',
    ['list_load_balancers', 'delete_load_balancer', 'list_by_ids', 'delete', 'revoke_roles'],
)
def test_conductor_that_dies_in_the_delete_of_a_cluster_with_everything(
    story: Story, api: Api, running: str, victim: str, moment: str
) -> None:
    request(story, running, add_group(), 'nodegroup_create')
    story.run(3)
    story.cloud.balancers = {
        'lb1': clients.LoadBalancer('lb1', 'svc', f'x from cluster {running}', 'ACTIVE')
    }
    api('DELETE', f'/v1/clusters/{running}')
    deaths = dying(story.cloud, victim, moment)
    story.run()

    assert deaths, 'the call was never made, so this shows nothing'
    assert (
        story.clusters(),
        story.cloud.all_stacks(),
        story.cloud.granted,
        story.cloud.balancers,
    ) == ([], [], set(), {})
    assert [story.count(m) for m in (NodeGroup, Node, models.Key)] == [0, 0, 0]
