"""Notifications: in Magnum's shape, valid CADF, over the test driver, over RabbitMQ, and over
brokers that are away."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import oslo_messaging
import pytest
from conftest import Api, rabbitmq_answers
from functional.service import own_vhost
from oslo_config import cfg
from oslo_messaging.notify import _impl_test
from pycadf import attachment, event, reason, resource

from magnum_lite import background, db, models, notify

WHO = {
    'user_id': '5d7e1b5c-0000-4000-8000-00000000000a',
    'project_id': '5d7e1b5c-0000-4000-8000-00000000000b',
    'request_id': 'req-5d7e1b5c-0000-4000-8000-00000000000c',
}


def use(conf: cfg.ConfigOpts, url: str, driver: str) -> None:
    oslo_messaging.get_notification_transport(conf, url='fake://')  # makes the options known
    conf.set_override('driver', [driver], 'oslo_messaging_notifications')
    conf.set_override('transport_url', url, 'oslo_messaging_notifications')


@pytest.fixture
def row(database: db.Database, api: Api, cluster: str) -> models.Cluster:
    return db.get_cluster(database, db.Scope('p1'), cluster)


@pytest.fixture
def sent(conf: cfg.ConfigOpts) -> Iterator[list[Any]]:
    """What oslo.messaging's test driver was given: (context, message, priority, retry)."""
    use(conf, 'fake://', 'test')
    _impl_test.reset()
    yield _impl_test.NOTIFICATIONS
    _impl_test.reset()


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 20
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < end
        tick.wait(0.01)


def revived(said: dict[str, Any]) -> event.Event:
    """The event that a payload is, made anew: pycadf checks each value that it is made of."""

    def thing(of: dict[str, Any]) -> resource.Resource:
        made = resource.Resource(id=of['id'], typeURI=of['typeURI'], name=of.get('name'))
        for one in of.get('attachments', ()):
            made.add_attachment(attachment.Attachment(**one))
        return made

    return event.Event(
        eventType=said['eventType'],
        id=said['id'],
        eventTime=said['eventTime'],
        action=said['action'],
        outcome=said['outcome'],
        initiator=thing(said['initiator']),
        target=thing(said['target']),
        observer=thing(said['observer']),
        reason=reason.Reason(**said['reason']) if 'reason' in said else None,
    )


@pytest.mark.parametrize(
    ('kind', 'event_type'),
    [
        ('create', 'magnum.cluster.create'),
        ('delete', 'magnum.cluster.delete'),
        ('update', 'magnum.cluster.update'),
        ('resize', 'magnum.cluster.update'),
        ('upgrade', 'magnum.cluster.update'),
    ],
)
@pytest.mark.parametrize(
    ('outcome', 'priority'), [('pending', 'INFO'), ('success', 'INFO'), ('failure', 'ERROR')]
)
def test_kind_and_outcome_are_said_in_magnums_terms(
    conf: cfg.ConfigOpts,
    row: models.Cluster,
    sent: list[Any],
    kind: str,
    event_type: str,
    outcome: str,
    priority: str,
) -> None:
    notify.Notifier(conf).send_cluster_event(row, kind, outcome, **WHO)

    wait_for(lambda: _impl_test.NOTIFICATIONS)
    message = _impl_test.NOTIFICATIONS[0][1]
    assert (message['event_type'], message['priority']) == (event_type, priority)
    assert (message['payload']['outcome'], message['publisher_id']) == (outcome, 'magnum.tester')


def test_payload_is_valid_and_complete(
    conf: cfg.ConfigOpts, row: models.Cluster, sent: list[Any]
) -> None:
    row.public_key = 'ssh-ed25519 AAAAsecret'

    notify.Notifier(conf).send_cluster_event(
        row, 'create', notify.FAILURE, reason='NO_VALID_HOST', **WHO
    )

    wait_for(lambda: _impl_test.NOTIFICATIONS)
    said = json.loads(json.dumps(_impl_test.NOTIFICATIONS[0][1]['payload']))
    assert revived(said).is_valid()
    assert said['initiator'].items() >= (WHO | {'typeURI': 'service/security/account/user'}).items()
    assert said['reason'] == {'reasonType': 'magnum-lite', 'reasonCode': 'NO_VALID_HOST'}
    assert (said['target']['id'], said['target']['name'], said['target']['typeURI']) == (
        row.uuid,
        'c1',
        'service/magnum/cluster',
    )
    [data] = said['target']['attachments']
    assert data == {
        'typeURI': 'service/magnum/cluster',
        'name': 'cluster_data',
        'content': {
            'status': 'CREATE_IN_PROGRESS',
            'status_reason': None,
            'project_id': 'p1',
            'keypair': 'testkey',
            'created_at': row.created_at.isoformat(),
            'updated_at': None,
            'docker_volume_size': None,
            'labels': {},
            'cluster_template_id': row.cluster_template_id,
            'master_flavor_id': 'm1.small',
            'flavor_id': 'm1.small',
            'stack_id': None,
            'health_status': None,
            'create_timeout': row.create_timeout,
            'api_address': None,
            'discovery_url': None,
            'node_addresses': [],
            'master_addresses': [],
            'node_count': 2,
            'master_count': 1,
        },
    }
    assert 'AAAA' not in str(said)


def test_nothing_is_made_where_nobody_listens(conf: cfg.ConfigOpts, row: models.Cluster) -> None:
    notifier = notify.Notifier(conf)

    notifier.send_cluster_event(row, 'create', notify.PENDING, **WHO)

    assert notifier._sender._thread is None


def test_what_cannot_be_told_is_logged_and_not_raised(
    conf: cfg.ConfigOpts, row: models.Cluster, sent: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    notify.Notifier(conf).send_cluster_event(row, 'create', 'sideways', **WHO)

    assert f'Cluster {row.uuid}: no notification could be made of create, sideways' in caplog.text


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))  # bound and not listening: a connection is refused
        yield f'rabbit://guest:guest@127.0.0.1:{taken.getsockname()[1]}/'


def test_broker_that_refuses_is_said_once_and_without_the_payload(
    conf: cfg.ConfigOpts,
    row: models.Cluster,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notify, 'RETRY_AFTER_S', 0.01)
    with closed_port() as url:
        use(conf, url, 'messagingv2')
        notifier = notify.Notifier(conf)

        notifier.send_cluster_event(row, 'create', notify.PENDING, **WHO)

        away = notifier._sender._broker
        wait_for(lambda: away._failures > 3)
    warnings = [
        r.getMessage()
        for r in caplog.records
        if r.name.startswith(('magnum_lite', 'oslo_messaging.notify'))
    ]
    assert warnings == [
        'The broker of notifications fails. Up to 1000 notifications wait, further ones are '
        'dropped. See [oslo_messaging_notifications] ([Errno 111] Connection refused)'
    ]
    assert row.uuid not in caplog.text
    notifier._sender._retry_after_s = None  # the thread gives up


@pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnhandledThreadExceptionWarning', 'ignore::ResourceWarning'
)
def test_broker_that_hangs_delays_no_request(conf: cfg.ConfigOpts, row: models.Cluster) -> None:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        use(conf, f'rabbit://guest:guest@127.0.0.1:{listener.getsockname()[1]}/', 'messagingv2')
        notifier = notify.Notifier(conf)
        notifier.send_cluster_event(row, 'create', notify.PENDING, **WHO)

        began = time.monotonic()
        for _ in range(100):
            notifier.send_cluster_event(row, 'create', notify.PENDING, **WHO)
        took_s = time.monotonic() - began
        notifier._sender._retry_after_s = None

    assert took_s < 2, 'a request would have waited'
    assert notifier._sender._queue.qsize() < background.BACKLOG


@pytest.mark.skipif(not rabbitmq_answers(), reason='no RabbitMQ on loopback')
def test_listener_at_the_broker_hears_it(conf: cfg.ConfigOpts, row: models.Cluster) -> None:
    heard: list[tuple[str, str, str, dict[str, Any]]] = []

    class Endpoint:
        def info(
            self, context: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any
        ) -> None:
            heard.append(('info', publisher_id, event_type, payload))

        def error(
            self, context: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any
        ) -> None:
            heard.append(('error', publisher_id, event_type, payload))

    with own_vhost() as url:
        use(conf, url, 'messagingv2')
        listener = oslo_messaging.get_notification_listener(
            oslo_messaging.get_notification_transport(conf, url=url),
            [oslo_messaging.Target(exchange='magnum', topic='notifications')],
            [Endpoint()],
            executor='threading',
        )
        listener.start()
        try:
            notifier = notify.Notifier(conf)
            notifier.send_cluster_event(row, 'create', notify.PENDING, **WHO)
            notifier.send_cluster_event(
                row, 'resize', notify.FAILURE, reason='QUOTA_EXCEEDED', **WHO
            )
            wait_for(lambda: len(heard) == 2)
        finally:
            listener.stop()
            listener.wait()

    by_level = {
        level: (publisher_id, event_type, payload)
        for level, publisher_id, event_type, payload in heard
    }
    assert by_level['info'][:2] == ('magnum.tester', 'magnum.cluster.create')
    assert by_level['error'][:2] == ('magnum.tester', 'magnum.cluster.update')
    assert all(revived(payload).is_valid() for _, _, payload in by_level.values())
