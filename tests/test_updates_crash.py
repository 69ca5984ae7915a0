"""Conductors that die, sleep or lose the database in a change: the end is the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import fakes
import pytest
import sqlalchemy as sa
from conftest import Api, history_of
from oslo_db import exception as db_exc
from stories import (
    ADMIN,
    ROUNDS,
    Change,
    DiesInTheDatabase,
    Story,
    add_group,
    age,
    behind_a_load_balancer,
    check_nothing_is_doubled,
    drop_group,
    dying,
    history,
    loaded,
    loaded_text,
    request,
    resize,
    rotate,
    upgrade,
    upgrade_all,
    with_time_passing,
    workers,
)

from magnum_lite import clients, db, models
from magnum_lite.models import Node, NodeGroup

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
def test_deadlock_at_a_write_is_retried_at_the_next_visit(
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
    stack = story.cloud.stacks_by_project['p1'][str(row.stack_id)]
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
