"""Heat's notifications on a real cloud: they are what ends a cluster at once, and nothing else
comes of them.

Looks are a minute apart here, so only a message explains a cluster that is done within seconds. The
broker is the one that Heat notifies over; the queue there is this test's own. OS_CLOUD names the
cloud, MAGNUM_LITE_HEAT_RABBITMQ its broker if it is not the one that `service.py` uses."""

from __future__ import annotations

import json
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
import requests
from functional.cloud import ON_A_CLOUD, STACK_S, Project, Sandbox, Start
from functional.service import RABBITMQ, Service, poll, unique_name

DRIVERS = pathlib.Path(__file__).parents[1] / 'chaos' / 'drivers'

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD

BROKER = os.environ.get('MAGNUM_LITE_HEAT_RABBITMQ', RABBITMQ)
INTERVAL_S = 60
#: From the signal to the end in the API: what Heat takes on a busy machine is most of it.
AT_ONCE_S = 20
TEMPLATE = {
    'name': 'fn-following',
    'coe': 'chaos',
    'image_id': 'debian',
    'flavor_id': 'm1.small',
    'master_flavor_id': 'm1.small',
    'external_network_id': 'public',
}
FLOOD = 200


@pytest.fixture(scope='module')
def project(sandbox: Sandbox) -> Iterator[Project]:
    """A project for all tests."""
    with sandbox.project() as made:
        yield made


@pytest.fixture(scope='module')
def pool() -> Iterator[str]:
    """The name of a queue that nobody else has. It is removed at the end."""
    name = unique_name()
    yield name
    with kombu.Connection(BROKER.replace('rabbit://', 'amqp://')) as connection:
        connection.default_channel.queue_delete(name)


@pytest.fixture(scope='module')
def service(start: Start, project: Project, pool: str) -> Service:
    """The service, which looks at stacks once a minute."""
    made = start(
        extra={
            'conductor': {'watch_interval': INTERVAL_S},
            'drivers': {'path': DRIVERS},
            'heat_notifications': {'transport_url': BROKER, 'pool': pool},
        }
    )
    status, body = made.request('POST', '/v1/clustertemplates', TEMPLATE, headers=project.headers)
    assert status == 201, body
    return made


Create = Callable[[str], str]


@pytest.fixture
def create(service: Service, project: Project) -> Iterator[Create]:
    """Make a cluster and return its uuid when its node waits to be heard. It is deleted
    afterwards."""
    made: list[str] = []

    def make(name: str) -> str:
        status, body = service.request(
            'POST',
            '/v1/clusters',
            {'name': name, 'cluster_template_id': 'fn-following', 'node_count': 1},
            headers=project.headers,
        )
        assert status == 202, body
        made.append(body['uuid'])
        poll(lambda: handle(service, project, body['uuid']), STACK_S, 'a node waits', every_s=2)
        return str(body['uuid'])

    yield make
    for one in made:
        service.request('DELETE', f'/v1/clusters/{one}', headers=project.headers)
        service.wait(one, 'GONE', STACK_S, headers=project.headers)


def stack_id(service: Service, cluster: str) -> str | None:
    [row] = service.rows('SELECT stack_id FROM clusters WHERE uuid = :uuid', uuid=cluster)
    return row['stack_id']


def handle(service: Service, project: Project, cluster: str) -> dict[str, Any] | None:
    """What the node of a cluster would know: the address and the token to report with. None: it
    does not wait yet."""
    stack, heat = stack_id(service, cluster), project.cloud.orchestration
    found = (
        heat.get(f'/stacks/{stack}/resources?nested_depth=3').json().get('resources', ())
        if stack
        else ()
    )
    types = {r['resource_type']: r for r in found if r['resource_status'] != 'INIT_COMPLETE'}
    if 'OS::Heat::WaitCondition' not in types:
        return None
    link = next(
        link['href']
        for link in types['OS::Heat::WaitConditionHandle']['links']
        if link['rel'] == 'self'
    )
    shown = heat.get(link[link.index('/stacks/') :]).json()['resource'].get('attributes') or {}
    return shown if shown.get('token') else None


def report(service: Service, project: Project, cluster: str, status: str) -> None:
    """Say what the node of a cluster would say."""
    known = handle(service, project, cluster)
    assert known
    requests.post(
        known['endpoint'],
        headers={'X-Auth-Token': known['token']},
        timeout=60,
        json={'status': status, 'reason': 'as asked'},
    ).raise_for_status()


def publish(queue: str, *bodies: Any, content_type: str = 'application/json') -> None:
    """Put messages into a queue, past every exchange, as anybody with the broker's password can."""
    with kombu.Connection(BROKER.replace('rabbit://', 'amqp://')) as connection:
        producer = connection.Producer()
        for body in bodies:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            producer.publish(
                raw, routing_key=queue, content_type=content_type, content_encoding='utf-8'
            )


def notification(event_type: Any, payload: Any, **fields: Any) -> dict[str, Any]:
    """A message as oslo.messaging sends it."""
    message = {
        '_context_domain': None,
        'publisher_id': 'orchestration.forged',
        'event_type': event_type,
        'priority': 'INFO',
        'message_id': str(uuid.uuid4()),
        'timestamp': '2026-01-01 00:00:00.000000',
        'payload': payload,
        '_unique_id': uuid.uuid4().hex,
    } | fields
    return {'oslo.version': '2.0', 'oslo.message': json.dumps(message)}


def ended(stack: str, **fields: Any) -> dict[str, Any]:
    """The message that a stack is done."""
    return notification(
        'orchestration.stack.create.end',
        {'stack_identity': f'arn:openstack:heat::p:stacks/c/{stack}', 'state': 'CREATE_COMPLETE'},
        **fields,
    )


def is_drained(pool: str) -> bool:
    """Whether the conductor has taken everything from its queue."""
    with kombu.Connection(BROKER.replace('rabbit://', 'amqp://')) as connection:
        return bool(connection.default_channel.queue_declare(pool, passive=True).message_count == 0)


@pytest.mark.parametrize(
    ('reported', 'status'), [('SUCCESS', 'CREATE_COMPLETE'), ('FAILURE', 'CREATE_FAILED')]
)
def test_end_of_a_stack_is_seen_long_before_the_next_look(
    service: Service, project: Project, create: Create, reported: str, status: str
) -> None:
    cluster = create('at-once')
    began = time.monotonic()

    report(service, project, cluster, reported)

    service.wait(cluster, status, AT_ONCE_S, headers=project.headers)
    assert time.monotonic() - began < AT_ONCE_S < INTERVAL_S / 2


def test_forged_messages_change_nothing_and_the_next_true_one_is_heard(
    service: Service, project: Project, create: Create, pool: str
) -> None:
    cluster = create('forged')
    stack = stack_id(service, cluster)
    assert stack
    before = service.rows('SELECT status, generation, failures, stack_id FROM clusters')

    publish(pool, *(ended(str(uuid.uuid4())) for _ in range(FLOOD)))  # of stacks that nobody knows
    publish(pool, *(ended(stack) for _ in range(FLOOD)))  # of one that is not done
    payloads: list[Any] = [
        None,
        'text',
        7,
        [],
        {},
        {'stack_identity': None},
        {'stack_identity': 7},
        {'stack_identity': 'x' * 5000},
    ]
    publish(
        pool,
        *(notification('orchestration.stack.create.end', payload) for payload in payloads),
    )
    publish(
        pool,
        *(
            notification(event_type, {})
            for event_type in (None, 7, '', 'orchestration.stack.create.start')
        ),
    )
    publish(
        pool,
        ended(stack, priority='NONSENSE'),
        ended(stack, _context_domain=[]),
        {'oslo.version': '99.0'},
        {'oslo.version': '2.0', 'oslo.message': 'no JSON'},
        {'oslo.version': '2.0', 'oslo.message': '[]'},
        [],
        {},
        None,
        'text',
    )
    publish(pool, b'\xff\xfe{', b'', b'<html>', content_type='application/octet-stream')
    publish(pool, b'{"oslo.version": "2.0", "oslo.mess')
    poll(lambda: is_drained(pool), AT_ONCE_S, 'the conductor has taken all messages')

    poll(
        lambda: service.rows(
            'SELECT id FROM clusters WHERE leased_by IS NULL AND check_at > UTC_TIMESTAMP()'
        ),
        AT_ONCE_S,
        'the conductor has looked and waits again',
    )
    assert service.rows('SELECT status, generation, failures, stack_id FROM clusters') == before
    assert service.conductors[0].popen.poll() is None
    report(service, project, cluster, 'SUCCESS')
    service.wait(cluster, 'CREATE_COMPLETE', AT_ONCE_S, headers=project.headers)


def test_stale_and_doubled_messages_find_nothing_to_do(
    service: Service, project: Project, create: Create, pool: str
) -> None:
    cluster = create('stale')
    stack = stack_id(service, cluster)
    assert stack
    report(service, project, cluster, 'SUCCESS')
    service.wait(cluster, 'CREATE_COMPLETE', AT_ONCE_S, headers=project.headers)
    before = service.rows('SELECT * FROM clusters WHERE uuid = :uuid', uuid=cluster)

    publish(
        pool,
        *[ended(stack)] * 5,
        notification(
            'orchestration.stack.delete.end',
            {
                'stack_identity': f'arn:openstack:heat::p:stacks/c/{stack}',
                'state': 'DELETE_COMPLETE',
            },
        ),
    )
    poll(lambda: is_drained(pool), AT_ONCE_S, 'the conductor has taken all messages')

    assert service.rows('SELECT * FROM clusters WHERE uuid = :uuid', uuid=cluster) == before
