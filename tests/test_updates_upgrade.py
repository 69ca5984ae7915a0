"""Upgrades: workers in batches, masters one by one."""

from __future__ import annotations

import sqlalchemy as sa
from stories import (
    ADMIN,
    Story,
    add_group,
    failed_master,
    failed_member,
    history,
    loaded,
    masters,
    numbers,
    pairs,
    request,
    resize,
    seen_by_heat,
    upgrade,
    upgrade_all,
    with_three_masters,
    workers,
)

from magnum_lite import db, states
from magnum_lite.models import Node

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
