"""Deletions: of closed projects, of what blocks, by force, and sent only once."""

from __future__ import annotations

import datetime
import uuid

import fakes
import pytest
import sqlalchemy as sa
from conftest import Api, history_of
from stories import ADMIN, Story, add_group, age, history, loaded, request

from magnum_lite import clients, db, models
from magnum_lite.conductor.stacks import DELETE_RESEND_S
from magnum_lite.models import Cluster, Operation


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
    assert 'svc (lb1, PENDING_UPDATE)' in str(row.status_reason)


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


def test_resource_that_blocks_a_delete_is_named(story: Story, api: Api, running: str) -> None:
    blocked(story, api, running)
    story.run(1)

    row = loaded(story, running)
    assert (row.status, row.error_code) == ('DELETE_FAILED', 'IN_USE')
    assert 'Port lb-vip (p1) of Octavia lb9' in str(row.status_reason)


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
    assert last.outcome == 'complete' and last.text
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
    last = history_of(story.conductor_services.db, running)[-1]
    assert 'Heat does not answer' in str(last.text)


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
