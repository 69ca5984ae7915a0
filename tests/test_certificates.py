"""Certificates through API, broker and conductor: who may have what signed, and what happens when
nobody signs."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import oslo_messaging
import pytest
import sqlalchemy as sa
import yaml
from conftest import BROKERS, Api, counted_statements, history_of, use
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from oslo_config import cfg
from oslo_db import exception as db_exc

from magnum_lite import certs, db, drivers, errors, keystore, models, rpc
from magnum_lite.api import app as api_app
from magnum_lite.api.request import Services
from magnum_lite.conductor import endpoint, task

LIFE_S = 3600


@pytest.fixture
def ca() -> certs.Pair:
    return certs.make_ca('ca', life=datetime.timedelta(days=400))


@pytest.fixture
def complete(conductor_services: task.Services, cluster: str, ca: certs.Pair) -> str:
    """The uuid of a cluster with authorities and an address."""
    with conductor_services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(api_address='https://192.0.2.1:6443'))
        for purpose in ('ca', 'etcd', 'front-proxy', 'service-account'):
            conductor_services.keystore.store_pair(session, cluster, purpose, ca)
    return cluster


@pytest.fixture
def csr() -> str:
    return certs.make_request(common_name='admin', organization='system:masters').certificate


@pytest.fixture
def ask(complete: str, csr: str) -> dict[str, Any]:
    """What the API asks a conductor."""
    return {
        'cluster_uuid': complete,
        'project_id': 'p1',
        'purpose': 'ca',
        'csr': csr,
        'life_s': LIFE_S,
        'user_id': 'u1',
        'request_id': 'req-1',
    }


@pytest.fixture
def here(conductor_services: task.Services) -> Callable[..., dict[str, Any]]:
    """A conductor's answer to a call."""
    made = endpoint.Endpoint(threading.Event(), conductor_services)
    return lambda **request: made.sign_certificate({}, **request)


def subject_of(pem: str) -> str:
    return x509.load_pem_x509_certificate(pem.encode()).subject.rfc4514_string()


# -- what is public --------------------------------------------------------------------------------


def test_public_part_takes_two_statements_and_no_private_one(
    api: Api, services: Services, complete: str
) -> None:
    with counted_statements(services.db) as statements:
        response = api('GET', f'/v1/certificates/{complete}', roles='reader')

    assert response.status_code == 200
    assert len(statements) == 2 and not any('private_key' in statement for statement in statements)


@pytest.mark.parametrize('phase', range(1, models.ROTATION_PHASES + 1))
def test_while_authorities_are_exchanged_both_are_shown_and_one_signs(
    api: Api,
    conductor_services: task.Services,
    complete: str,
    csr: str,
    ca: certs.Pair,
    phase: int,
) -> None:
    newer = certs.make_ca('newer', life=datetime.timedelta(days=1))
    with conductor_services.db.write() as session:
        conductor_services.keystore.store_pair(session, complete, 'ca', newer, is_next=True)
        session.execute(sa.update(models.Cluster).values(rotation_phase=phase))

    assert (
        api('GET', f'/v1/certificates/{complete}').json['pem'] == ca.certificate + newer.certificate
    )
    assert api('GET', f'/v1/certificates/{complete}/etcd').json['pem'] == ca.certificate
    pem = api('POST', '/v1/certificates', {'cluster_uuid': complete, 'csr': csr}).json['pem']
    signer = ca if phase == 1 else newer
    x509.load_pem_x509_certificate(pem.encode()).verify_directly_issued_by(
        x509.load_pem_x509_certificate(signer.certificate.encode())
    )


def test_deleted_cluster_has_no_certificates(api: Api, services: Services, complete: str) -> None:
    with services.db.write() as session:
        db.delete_cluster_row(session, session.query(models.Cluster).one())

    assert api('GET', f'/v1/certificates/{complete}').status_code == 404


# -- what is signed --------------------------------------------------------------------------------


def test_certificate_lives_as_long_as_the_operator_says(
    api: Api,
    conf: cfg.ConfigOpts,
    complete: str,
    csr: str,
    ca: certs.Pair,
    caplog: pytest.LogCaptureFixture,
) -> None:
    conf.set_override('term_of_validity', 30, 'certificates')

    with caplog.at_level('INFO', 'magnum_lite'):
        pem = api('POST', '/v1/certificates', {'cluster_uuid': complete, 'csr': csr}).json['pem']

    made = x509.load_pem_x509_certificate(pem.encode())
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.certificate.encode()))
    assert (made.not_valid_after_utc - models.utcnow()).total_seconds() == pytest.approx(
        30 * 86400, abs=60
    )
    assert f'Cluster {complete}: authority ca has signed {made.serial_number:x} for ' in caplog.text
    assert 'CN=admin,O=system:masters' in caplog.text and 'user-of-p1' in caplog.text
    assert 'PRIVATE' not in caplog.text


@pytest.mark.parametrize(
    ('role', 'group'),
    [
        ('admin', 'magnum-lite:admin'),
        ('member', 'magnum-lite:admin'),
        ('reader', 'magnum-lite:view'),
    ],
)
def test_parts_of_a_kubeconfig_fit_each_other(
    api: Api,
    services: Services,
    complete: str,
    ca: certs.Pair,
    caplog: pytest.LogCaptureFixture,
    role: str,
    group: str,
) -> None:
    with caplog.at_level('DEBUG'):
        answer = api('POST', f'/v1/clusters/{complete}/kubeconfig', roles=role).json

    config = yaml.safe_load(answer['kubeconfig'])
    [cluster], [user], [context] = config['clusters'], config['users'], config['contexts']
    read = {
        name: base64.b64decode(value)
        for name, value in (cluster['cluster'] | user['user']).items()
        if name.endswith('-data')
    }
    made = x509.load_pem_x509_certificate(read['client-certificate-data'])
    key = serialization.load_pem_private_key(read['client-key-data'], None)
    assert cluster['cluster']['server'] == 'https://192.0.2.1:6443'
    assert read['certificate-authority-data'].decode() == ca.certificate
    assert context == {
        'name': config['current-context'],
        'context': {'cluster': cluster['name'], 'user': user['name']},
    }
    assert made.public_key() == key.public_key()
    assert made.subject.rfc4514_string() == f'CN=user-of-p1,O={group}'
    assert (made.not_valid_after_utc - models.utcnow()).total_seconds() == pytest.approx(
        8 * 3600, abs=60
    )
    assert (answer['group'], answer['serial']) == (group, f'{made.serial_number:x}')
    assert answer['expires_at'] == made.not_valid_after_utc.isoformat()

    stored = repr([*services.db.engine.connect().execute(sa.text('SELECT * FROM operations'))])
    secret = read['client-key-data'].decode().splitlines()[1]
    assert answer['serial'] in stored and secret not in stored and secret not in caplog.text


def test_kubeconfig_disturbs_no_work(api: Api, services: Services, complete: str) -> None:
    """An issue in the middle of a create: it neither ends with it, nor tells how long others take,
    nor is stopped."""
    before = api('GET', f'/v1/clusters/{complete}').json
    api('POST', f'/v1/clusters/{complete}/kubeconfig')

    created, issued = history_of(services.db, complete)
    assert api('GET', f'/v1/clusters/{complete}').json == before
    assert (created.outcome, issued.kind, issued.outcome) == (None, 'kubeconfig', 'complete')
    assert issued.created_at == issued.begun_at == issued.ended_at
    assert db.estimate_duration_s(services.db, created) is None
    assert api('DELETE', f'/v1/operations/{created.uuid}').status_code == 202, (
        'the create alone is stopped'
    )
    with services.db.write() as session:
        cluster = session.query(models.Cluster).one()
        ended = db.end_operations(session, cluster, 'failed', code='CANCELLED', text='x')
        assert [operation.uuid for operation in ended] == [created.uuid]


def test_groups_of_the_manifest_are_bound_in_the_cluster(conf: cfg.ConfigOpts) -> None:
    for driver in drivers.load(conf).values():
        if driver.access is None:
            continue
        bindings = [
            item
            for item in yaml.safe_load_all(driver._render_text('access.yaml.j2', {}))
            if item['kind'] == 'ClusterRoleBinding'
        ]
        health = driver.manifest['health']['certificate']['organization']
        assert {s['name'] for binding in bindings for s in binding['subjects']} == {
            health,
            *driver.access.groups.values(),
        }
        assert all(driver.access.groups)


def test_issue_hides_what_is_in_it() -> None:
    from magnum_lite.api import certificates

    made = certificates._Issue('SECRET', 'c', 'u', 'g', 's', models.utcnow())

    assert 'SECRET' not in repr(made) and 'SECRET' not in str(made)


# -- the conductor's answers -----------------------------------------------------------------------


def test_conductor_signs_for_the_cluster_s_own_project_only(
    here: Callable[..., dict[str, Any]], ask: dict[str, Any]
) -> None:
    assert subject_of(here(**ask)['pem']) == 'CN=admin,O=system:masters'
    assert here(**ask | {'project_id': 'p2'})['code'] == 404


@pytest.mark.parametrize(
    ('change', 'code'),
    [
        ({'purpose': 'service-account'}, 409),
        ({'purpose': 'nobody'}, 409),
        ({'csr': 'hello'}, 400),
        ({'cluster_uuid': '5d7e1b5c-0000-4000-8000-000000000009'}, 404),
    ],
)
def test_conductor_checks_every_message_against_the_row(
    here: Callable[..., dict[str, Any]], ask: dict[str, Any], change: dict[str, Any], code: int
) -> None:
    answer = here(**ask | change)

    assert answer.keys() == {'code', 'text'} and answer['code'] == code


def test_key_that_does_not_open_is_the_operator_s_to_mend(
    conductor_services: task.Services,
    here: Callable[..., dict[str, Any]],
    ask: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with conductor_services.db.write() as session:
        session.execute(sa.update(models.Key).values(private_key='x'))

    answer = here(**ask)

    assert answer['code'] == 503 and 'req-1' in answer['text'] and 'key_file' not in answer['text']
    assert 'key_file' in caplog.text


@pytest.mark.parametrize('error', [db_exc.DBConnectionError(), RuntimeError('a bug')])
def test_errors_come_back_as_data(
    conductor_services: task.Services, ask: dict[str, Any], error: Exception
) -> None:
    class Broken(keystore.KeyStore):
        def load_pairs(self, *_: Any) -> NoReturn:
            raise error

    broken = Broken(conductor_services.conf)
    made = endpoint.Endpoint(
        threading.Event(), dataclasses.replace(conductor_services, keystore=broken)
    )

    assert made.sign_certificate({}, **ask)['code'] == 503


# -- over the broker -------------------------------------------------------------------------------


@contextlib.contextmanager
def conductor(conf: cfg.ConfigOpts, made: Any) -> Iterator[None]:
    server = rpc.make_server(conf, made)
    server.start()
    try:
        yield
    finally:
        server.stop()
        server.wait()


@pytest.mark.parametrize('url', BROKERS)
def test_certificate_is_signed_over_the_broker(
    conf: cfg.ConfigOpts,
    topic: None,
    url: str,
    conductor_services: task.Services,
    ask: dict[str, Any],
) -> None:
    use(conf, url)
    signer = rpc.Signer(conf)

    with conductor(conf, endpoint.Endpoint(threading.Event(), conductor_services)):
        first, second = (
            signer.sign_certificate(**ask),
            signer.sign_certificate(**ask | {'purpose': 'etcd'}),
        )
        with pytest.raises(errors.NotFound, match='could not be found'):
            signer.sign_certificate(**ask | {'project_id': 'p2'})

    assert (
        subject_of(first['pem']) == 'CN=admin,O=system:masters'
        and first['serial'] != second['serial']
    )


@pytest.mark.parametrize('url', BROKERS)
def test_signing_that_takes_long_holds_up_no_nudge(
    conf: cfg.ConfigOpts,
    topic: None,
    url: str,
    conductor_services: task.Services,
    ask: dict[str, Any],
) -> None:
    use(conf, url)
    wake, begun, release = threading.Event(), threading.Event(), threading.Event()

    class Slow(endpoint.Endpoint):
        @oslo_messaging.expose
        def sign_certificate(self, context: Any, **request: Any) -> dict[str, Any]:
            begun.set()
            release.wait(60)
            return super().sign_certificate(context, **request)

    with conductor(conf, Slow(wake, conductor_services)):
        answers: list[Any] = []
        caller = threading.Thread(
            target=lambda: answers.append(rpc.Signer(conf).sign_certificate(**ask))
        )
        caller.start()
        assert begun.wait(20)
        wake.clear()
        rpc.Nudger(conf).nudge(ask['cluster_uuid'])
        assert wake.wait(20)
        release.set()
        caller.join(20)

    assert answers[0]['serial']


@pytest.mark.parametrize('url', BROKERS)
def test_conductor_that_is_away_is_a_503_in_time(
    conf: cfg.ConfigOpts, topic: None, url: str, ask: dict[str, Any]
) -> None:
    use(conf, url)
    conf.set_override('sign_timeout', 1, 'certificates')

    began = time.monotonic()
    with pytest.raises(errors.Unavailable, match='No conductor has answered within 1 s'):
        rpc.Signer(conf).sign_certificate(**ask)
    assert time.monotonic() - began < 5


class Former:
    """A conductor of the release before: it knows no signing."""

    target = oslo_messaging.Target(version='1.0')

    @oslo_messaging.expose
    def nudge(self, context: Any, uuid: str) -> None:
        pass


@pytest.mark.parametrize('url', BROKERS)
def test_conductor_that_knows_no_signing_is_a_503(
    conf: cfg.ConfigOpts, topic: None, url: str, ask: dict[str, Any]
) -> None:
    use(conf, url)

    with (
        conductor(conf, Former()),
        pytest.raises(errors.Unavailable, match='No conductor can be reached now'),
    ):
        rpc.Signer(conf).sign_certificate(**ask)


def test_broker_that_is_down_is_a_503_at_once(
    conf: cfg.ConfigOpts, services: Services, complete: str, csr: str
) -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))  # bound and not listening: a connection is refused
        use(conf, f'rabbit://guest:guest@127.0.0.1:{taken.getsockname()[1]}/')
        api = Api(api_app.make_app(dataclasses.replace(services, signer=rpc.Signer(conf))))

        began = time.monotonic()
        answer = api('POST', '/v1/certificates', {'cluster_uuid': complete, 'csr': csr})
        kubeconfig = api('POST', f'/v1/clusters/{complete}/kubeconfig')

    assert time.monotonic() - began < 5
    assert (answer.status_code, kubeconfig.status_code) == (503, 503)
    assert (
        'No conductor can be reached now, and only they can sign'
        in answer.json['errors'][0]['title']
    )
    assert [o.kind for o in history_of(services.db, complete)] == ['create'], 'nothing was issued'


@pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnhandledThreadExceptionWarning', 'ignore::ResourceWarning'
)
def test_broker_that_hangs_is_a_503_in_time_and_holds_few(
    conf: cfg.ConfigOpts, silent_broker: str, ask: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(conf, silent_broker)
    conf.set_override('sign_timeout', 1, 'certificates')
    monkeypatch.setattr(rpc, 'MAX_CALLS', 2)
    signer = rpc.Signer(conf)

    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(errors.Unavailable, match='within 1 s'):
            signer.sign_certificate(**ask)
    with pytest.raises(errors.Unavailable, match='2 requests wait for a conductor already'):
        signer.sign_certificate(**ask)
    assert time.monotonic() - began < 5
