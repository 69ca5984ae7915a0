"""Resizing: members that come, go and stay, in waves where there are many."""

from __future__ import annotations

import fakes
import pytest
import sqlalchemy as sa
import yaml
from stories import (
    Story,
    add_group,
    dying,
    failed_member,
    history,
    loaded,
    members_sent,
    numbers,
    request,
    resize,
    upgrade,
)

from magnum_lite import errors, stacktext
from magnum_lite.models import Cluster

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
        text = dict(row.stack_text or {})
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


def test_user_data_without_members_is_dropped(story: Story, running: str) -> None:
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
    assert row.updated_at and asked and row.updated_at > asked
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
