"""Changes that wait for one another, and nodegroups that come, go and fail alone."""

from __future__ import annotations

from conftest import Api
from stories import (
    Story,
    add_group,
    drop_group,
    failed_member,
    history,
    loaded,
    numbers,
    request,
    resize,
    workers,
)

from magnum_lite.models import Node

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
