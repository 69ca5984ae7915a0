"""How engines are asked: one owner per turn, one budget per look, and nothing believed of what
answers."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.server
import ipaddress
import json
import pathlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from oslo_db import exception as db_exc
from rows import new_cluster, new_template

from magnum_lite import certs, db, drivers, keystore, members, models
from magnum_lite.conductor import health
from magnum_lite.conductor.task import Services
from magnum_lite.models import Cluster

LIFE = datetime.timedelta(days=1)
#: Who asks: the user may list nodes, the group delete them. In the order of the certificate.
PROBER = {'organizationName': 'magnum-lite:health', 'commonName': 'system:kube-proxy'}
READY = {
    'kind': 'Table',
    'columnDefinitions': [{'name': 'Name'}, {'name': 'Status'}],
    'rows': [{'cells': ['m-0', 'Ready']}, {'cells': ['w-0', 'Ready,SchedulingDisabled']}],
}


# -- turns -----------------------------------------------------------------------------------------


def due(database: db.Database, **columns: Any) -> Cluster:
    values = {'status': 'CREATE_COMPLETE', 'api_address': 'https://192.0.2.1:6443'} | columns
    cluster = new_cluster(database, new_template(database), **values)
    wake(database)
    return cluster


def wake(database: db.Database) -> None:
    with database.write() as session:
        session.execute(sa.update(Cluster).values(health_at=db.now(-1)))


def row(database: db.Database, cluster: Cluster) -> Cluster:
    with database.read() as session:
        return session.scalars(sa.select(Cluster).where(Cluster.uuid == cluster.uuid)).one()


def test_each_turn_has_one_owner(any_database: db.Database) -> None:
    uuids = {due(any_database).uuid for _ in range(12)}
    wake(any_database)

    with futures.ThreadPoolExecutor(4) as pool:
        claims = list(
            pool.map(
                lambda _: db.claim_health_checks(any_database, limit=5, interval_s=60), range(16)
            )
        )

    taken = [cluster.uuid for claim in claims for cluster, _ in claim]
    assert sorted(taken) == sorted(uuids)


def test_the_next_turn_comes_an_interval_later(any_database: db.Database) -> None:
    cluster = due(any_database)

    [(claimed, token)] = db.claim_health_checks(any_database, limit=5, interval_s=100)

    with any_database.read() as session:
        clock = session.scalar(sa.select(db.now()))
    assert 85 < (token - clock).total_seconds() <= 110
    assert row(any_database, cluster).health_at == token
    assert (claimed.template.name, len(claimed.nodegroups)) == ('t', 2)
    assert db.claim_health_checks(any_database, limit=5, interval_s=100) == []


@pytest.mark.parametrize(
    'columns',
    [{'api_address': None}, {'status': 'DELETE_IN_PROGRESS'}, {'status': 'DELETE_FAILED'}],
)
def test_what_has_no_address_or_is_deleted_is_not_asked(
    any_database: db.Database, columns: dict[str, Any]
) -> None:
    due(any_database, **columns)

    assert db.claim_health_checks(any_database, limit=5, interval_s=60) == []


def test_a_report_changes_nothing_but_health(any_database: db.Database) -> None:
    cluster = due(any_database)
    before = vars(row(any_database, cluster))
    [(_, token)] = db.claim_health_checks(any_database, limit=5, interval_s=60)

    written = db.report_health(
        any_database, cluster.uuid, token, status='HEALTHY', reason={'api': 'ok'}
    )

    after = vars(row(any_database, cluster))
    assert written
    assert {
        name: after[name] for name in after if after[name] != before[name] and name[0] != '_'
    } == {'health_status': 'HEALTHY', 'health_status_reason': {'api': 'ok'}, 'health_at': token}


def test_who_slept_through_a_turn_writes_nothing(any_database: db.Database) -> None:
    cluster = due(any_database)
    [(_, old)] = db.claim_health_checks(any_database, limit=5, interval_s=60)
    wake(any_database)
    [(_, new)] = db.claim_health_checks(any_database, limit=5, interval_s=60)

    assert db.report_health(any_database, cluster.uuid, new, status='HEALTHY', reason={})
    assert not db.report_health(any_database, cluster.uuid, old, status='UNHEALTHY', reason={})
    assert row(any_database, cluster).health_status == 'HEALTHY'


def test_a_cluster_that_is_deleted_meanwhile_is_left_alone(any_database: db.Database) -> None:
    cluster = due(any_database)
    [(_, token)] = db.claim_health_checks(any_database, limit=5, interval_s=60)
    with any_database.write() as session:
        session.execute(sa.update(Cluster).values(health_at=None))
    gone = due(any_database)
    [(_, token_of_gone)] = [
        c
        for c in db.claim_health_checks(any_database, limit=5, interval_s=60)
        if c[0].uuid == gone.uuid
    ]
    with any_database.write() as session:
        db.delete_cluster_row(session, gone)

    assert not db.report_health(any_database, cluster.uuid, token, status='HEALTHY', reason={})
    assert not db.report_health(any_database, gone.uuid, token_of_gone, status='HEALTHY', reason={})


# -- an engine that is made up ---------------------------------------------------------------------


class Engine(http.server.ThreadingHTTPServer):
    """Answers what a test says, by path; notes who asked for what."""

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.answers: dict[str, tuple[int, bytes] | Callable[[Handler], None]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.forgotten: list[str] = []
        self.released = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news here."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        peer: Any = None
        if isinstance(self.connection, ssl.SSLSocket):
            peer = self.connection.getpeercert()
        subject = {k: v for part in peer['subject'] for k, v in part} if peer else None
        self.server.asked.append((self.path, self.headers['Accept'], subject))
        answer = self.server.answers.get(self.path, (404, b''))
        if callable(answer):
            answer(self)
            return
        self.send_response(answer[0])
        self.send_header('Content-Length', str(len(answer[1])))
        if 300 <= answer[0] < 400:
            self.send_header('Location', '/elsewhere')
        self.end_headers()
        self.wfile.write(answer[1])

    def do_DELETE(self) -> None:
        self.server.forgotten.append(self.path)
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


def server_pair(ca: certs.Pair, address: str = '127.0.0.1') -> certs.Pair:
    """A certificate of a server with an address, as engines have it."""
    made = certs.issue_client(ca, common_name='server', organization=None, life=LIFE)
    key: Any = serialization.load_pem_private_key(made.private_key.encode(), None)
    signer: Any = serialization.load_pem_private_key(ca.private_key.encode(), None)
    authority = x509.load_pem_x509_certificate(ca.certificate.encode())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - LIFE)
        .not_valid_after(now + LIFE)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    return certs.Pair(
        certificate.public_bytes(serialization.Encoding.PEM).decode(), made.private_key
    )


@contextlib.contextmanager
def serving(
    tmp_path: pathlib.Path, *, ca: certs.Pair | None = None, pair: certs.Pair | None = None
) -> Iterator[Engine]:
    """An engine over http, or over https that asks for certificates of `ca`."""
    engine = Engine()
    if ca is not None:
        pair = pair or server_pair(ca)
        file = tmp_path / 'server.pem'
        file.write_text(pair.certificate + pair.private_key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.load_verify_locations(cadata=ca.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        engine.socket = context.wrap_socket(
            engine.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=engine.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    try:
        yield engine
    finally:
        engine.released.set()
        engine.shutdown()
        thread.join()
        engine.server_close()


@pytest.fixture(scope='module')
def ca() -> certs.Pair:
    return certs.make_ca('engine', life=LIFE)


@pytest.fixture
def engine(tmp_path: pathlib.Path, ca: certs.Pair) -> Iterator[Engine]:
    """One that is well."""
    with serving(tmp_path, ca=ca) as made:
        made.answers = {
            '/readyz?verbose': (200, b'[+]ping ok\nreadyz check passed\n'),
            '/api/v1/nodes?includeObject=None&resourceVersion=0': (200, json.dumps(READY).encode()),
        }
        yield made


NODES = '/api/v1/nodes?includeObject=None&resourceVersion=0'


def asked(
    conductor_services: Services,
    url: str,
    *,
    authority: certs.Pair | None,
    driver: str = 'k8s_cloud_init',
    **columns: Any,
) -> Cluster:
    """A cluster with this address that is due."""
    cluster = due(conductor_services.db, driver=driver, api_address=url, labels={}, **columns)
    if authority is not None:
        with conductor_services.db.write() as session:
            conductor_services.keystore.store_pair(session, cluster.uuid, 'ca', authority)
    return cluster


def address(engine: Engine, scheme: str = 'https') -> str:
    return f'{scheme}://127.0.0.1:{engine.server_address[1]}'


def look(conductor_services: Services, cluster: Cluster) -> tuple[str | None, dict[str, str]]:
    """What a round writes down."""
    prober = health.Prober(conductor_services)
    prober.run_round()
    futures.wait(prober._probes)
    prober._pool.shutdown()
    seen = row(conductor_services.db, cluster)
    return seen.health_status, seen.health_status_reason


def test_a_cluster_that_is_well(
    conductor_services: Services, engine: Engine, ca: certs.Pair
) -> None:
    cluster = asked(conductor_services, address(engine), authority=ca)

    assert look(conductor_services, cluster) == (
        'HEALTHY',
        {'api': 'ok', 'm-0.Ready': 'True', 'w-0.Ready': 'True'},
    )
    assert engine.asked == [
        ('/readyz?verbose', '*/*', PROBER),
        (NODES, 'application/json;as=Table;v=v1;g=meta.k8s.io', PROBER),
    ]


@pytest.mark.parametrize(
    ('path', 'answer', 'status', 'reason'),
    [
        (
            '/readyz?verbose',
            (500, b'[+]ping ok\n[-]etcd failed: reason withheld\n'),
            'UNHEALTHY',
            {
                'api': 'not ready (HTTP 500) [-]etcd failed: reason withheld',
                'm-0.Ready': 'True',
                'w-0.Ready': 'True',
            },
        ),
        (
            NODES,
            (
                200,
                json.dumps(
                    READY
                    | {
                        'rows': [
                            {'cells': ['m-0', 'Ready']},
                            {'cells': ['w-0', 'NotReady']},
                            {'cells': ['w-1', 'Unknown']},
                        ]
                    }
                ).encode(),
            ),
            'UNHEALTHY',
            {'api': 'ok', 'm-0.Ready': 'True', 'w-0.Ready': 'False', 'w-1.Ready': 'Unknown'},
        ),
        (
            NODES,
            (403, b'{}'),
            'UNKNOWN',
            {'api': 'ok', 'nodes': 'The list of nodes could not be read (HTTP 403)'},
        ),
        (
            NODES,
            (302, b''),
            'UNKNOWN',
            {'api': 'ok', 'nodes': 'The list of nodes could not be read (HTTP 302)'},
        ),
        (
            NODES,
            (200, json.dumps(READY).encode() + b' ' * health.MAX_BODY),
            'UNKNOWN',
            {'api': 'ok', 'nodes': 'The list of nodes could not be read (HTTP 200)'},
        ),
        (
            NODES,
            (200, b'[' * 100_000),
            'UNKNOWN',
            {'api': 'ok', 'nodes': 'The list of nodes could not be read (HTTP 200)'},
        ),
        (
            NODES,
            (200, b'{"kind": "Table", "columnDefinitions": 7}'),
            'UNKNOWN',
            {'api': 'The service made a mistake, and its log has the details'},
        ),
    ],
)
def test_answers_of_an_engine_become_its_health(
    conductor_services: Services,
    engine: Engine,
    ca: certs.Pair,
    path: str,
    answer: tuple[int, bytes],
    status: str,
    reason: dict[str, str],
) -> None:
    engine.answers[path] = answer
    cluster = asked(conductor_services, address(engine), authority=ca)

    assert look(conductor_services, cluster) == (status, reason)
    assert '/elsewhere' not in [path for path, *_ in engine.asked]


def test_members_that_were_removed_do_not_count_and_are_forgotten(
    conductor_services: Services, engine: Engine, ca: certs.Pair
) -> None:
    """The engine goes on to know them, as not ready. Who joined by other ways counts."""
    cluster = asked(conductor_services, address(engine), authority=ca)
    with conductor_services.db.read() as session:
        there = (
            session.scalars(sa.select(models.Node).where(models.Node.name.like('%worker-0')))
            .one()
            .name
        )
    gone = members.make_name_prefix(cluster) + '0123abcd-pool-7'
    cells = [
        [there, 'Ready'],
        [gone, 'NotReady'],
        [f'{gone}-not-yet', 'Ready'],
        ['by-hand', 'NotReady'],
    ]
    engine.answers[NODES] = (
        200,
        json.dumps(READY | {'rows': [{'cells': c} for c in cells]}).encode(),
    )

    assert look(conductor_services, cluster) == (
        'UNHEALTHY',
        {'api': 'ok', f'{there}.Ready': 'True', 'by-hand.Ready': 'False'},
    )
    assert engine.forgotten == [f'/api/v1/nodes/{gone}']


def test_a_thousand_nodes_fit(conductor_services: Services, engine: Engine, ca: certs.Pair) -> None:
    names = [f'a-cluster-with-a-name-0123abcd-worker-{n}' for n in range(1000)]
    rows = [
        {
            'cells': [
                name,
                'Ready',
                '<none>',
                '38m',
                'v1.20.2',
                '10.0.0.58',
                '<none>',
                'os',
                'kernel',
                'runtime',
            ],
            'object': None,
        }
        for name in names
    ]
    engine.answers[NODES] = (200, json.dumps(READY | {'rows': rows}, indent=2).encode())
    cluster = asked(conductor_services, address(engine), authority=ca)

    status, reason = look(conductor_services, cluster)

    assert (status, len(reason), reason[f'{names[999]}.Ready']) == ('HEALTHY', 1001, 'True')


def test_what_a_cluster_says_of_itself_is_bounded(
    conductor_services: Services, engine: Engine, ca: certs.Pair
) -> None:
    rows = [{'cells': [f'{n:0900}', 'Ready']} for n in range(1000)]
    engine.answers[NODES] = (200, json.dumps(READY | {'rows': rows}).encode())
    cluster = asked(conductor_services, address(engine), authority=ca)

    _, reason = look(conductor_services, cluster)

    assert len(json.dumps(reason)) < drivers.MAX_REASON * 1.1
    assert reason['...'].endswith(' more')


def trickle(handler: Handler) -> None:
    with contextlib.suppress(OSError):
        handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n')
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b'x')


def trickle_headers(handler: Handler) -> None:
    with contextlib.suppress(OSError):
        handler.wfile.write(b'HTTP/1.1 200 OK\r\nX: ')
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b'x')


def silence(handler: Handler) -> None:
    handler.server.released.wait(20)


@pytest.mark.parametrize('slow', [trickle, trickle_headers, silence])
def test_a_slow_engine_has_one_budget_for_all(
    conductor_services: Services,
    engine: Engine,
    ca: certs.Pair,
    slow: Callable[[Handler], None],
) -> None:
    conductor_services.conf.set_override('timeout', 0.6, 'health')
    engine.answers = dict.fromkeys(engine.answers, slow)
    cluster = asked(conductor_services, address(engine), authority=ca)
    begun = time.monotonic()

    seen = look(conductor_services, cluster)

    assert time.monotonic() - begun < 2
    assert seen == ('UNHEALTHY', {'api': 'It does not answer in time'})


def test_an_address_that_swallows_everything_has_the_same_budget(
    conductor_services: Services, ca: certs.Pair
) -> None:
    conductor_services.conf.set_override('timeout', 0.4, 'health')
    with socket.create_server(('127.0.0.1', 0)) as listening:  # accepts, and never shakes hands
        cluster = asked(
            conductor_services, f'https://127.0.0.1:{listening.getsockname()[1]}', authority=ca
        )
        begun = time.monotonic()

        seen = look(conductor_services, cluster)

    assert time.monotonic() - begun < 2
    assert seen == ('UNHEALTHY', {'api': 'It does not answer in time'})


def test_engine_that_refuses_connections_is_unhealthy(
    conductor_services: Services, ca: certs.Pair
) -> None:
    with socket.create_server(('127.0.0.1', 0)) as listening:
        port = listening.getsockname()[1]
    cluster = asked(conductor_services, f'https://127.0.0.1:{port}', authority=ca)

    assert look(conductor_services, cluster) == (
        'UNHEALTHY',
        {'api': 'It cannot be reached: Connection refused'},
    )


def test_a_private_address_that_never_answered_is_unknown(
    conductor_services: Services, engine: Engine, ca: certs.Pair
) -> None:
    with socket.create_server(('127.0.0.1', 0)) as listening:
        port = listening.getsockname()[1]
    cluster = asked(
        conductor_services, f'https://127.0.0.1:{port}', authority=ca, floating_ip_enabled=False
    )

    assert look(conductor_services, cluster) == (
        'UNKNOWN',
        {'api': 'It cannot be reached: Connection refused'},
    )

    with conductor_services.db.write() as session:
        session.execute(
            sa.update(Cluster).values(api_address=address(engine), health_at=db.now(-1))
        )
    assert look(conductor_services, cluster)[0] == 'HEALTHY'
    with conductor_services.db.write() as session:
        session.execute(
            sa.update(Cluster).values(api_address=f'https://127.0.0.1:{port}', health_at=db.now(-1))
        )
    assert look(conductor_services, cluster)[0] == 'UNHEALTHY'


def test_a_foreign_authority_or_address_is_not_believed(
    conductor_services: Services, tmp_path: pathlib.Path, ca: certs.Pair
) -> None:
    other = certs.make_ca('engine', life=LIFE)
    for pair in (server_pair(other), server_pair(ca, '127.0.0.2')):
        with serving(tmp_path, ca=ca, pair=pair) as engine:
            cluster = asked(conductor_services, address(engine), authority=ca)

            status, reason = look(conductor_services, cluster)

            assert status == 'UNHEALTHY'
            assert reason['api'].startswith('Its certificate is not to be trusted: ')
            assert engine.asked == []


def test_proxies_of_the_environment_are_not_used(
    conductor_services: Services,
    engine: Engine,
    ca: certs.Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ('http_proxy', 'https_proxy', 'all_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    cluster = asked(conductor_services, address(engine), authority=ca)

    assert look(conductor_services, cluster)[0] == 'HEALTHY'


def test_no_key_is_left_in_a_file_or_shown(
    conductor_services: Services,
    engine: Engine,
    ca: certs.Pair,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []

    def fail_to_load(context: ssl.SSLContext, path: str) -> None:
        written.append(path)
        raise ZeroDivisionError

    monkeypatch.setattr(ssl.SSLContext, 'load_cert_chain', fail_to_load)
    cluster = asked(conductor_services, address(engine), authority=ca)

    status, reason = look(conductor_services, cluster)

    assert (status, reason) == (
        'UNKNOWN',
        {'api': 'The service made a mistake, and its log has the details'},
    )
    assert written[0].startswith('/proc/self/fd/') and not pathlib.Path(written[0]).is_file()
    assert 'PRIVATE' not in caplog.text


# -- what is missing -------------------------------------------------------------------------------


def test_what_is_missing_is_named(conductor_services: Services) -> None:
    no_driver = asked(conductor_services, 'https://192.0.2.1', authority=None, driver='gone')
    assert look(conductor_services, no_driver) == (
        'UNKNOWN',
        {'api': 'The driver gone of this cluster is not installed'},
    )

    no_authority = asked(conductor_services, 'https://192.0.2.1', authority=None)
    assert look(conductor_services, no_authority) == (
        'UNKNOWN',
        {'api': 'The authority ca of this cluster is missing'},
    )


def test_a_key_that_does_not_open_is_our_mistake(
    conductor_services: Services,
    ca: certs.Pair,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = asked(conductor_services, 'https://192.0.2.1', authority=ca)
    (tmp_path / 'keystore.key').write_text(keystore.generate_key())

    seen = look(
        dataclasses.replace(
            conductor_services, keystore=keystore.KeyStore(conductor_services.conf)
        ),
        cluster,
    )

    assert seen == ('UNKNOWN', {'api': 'The service made a mistake, and its log has the details'})
    assert 'does not open' in caplog.text


def test_a_database_that_is_away_is_waited_for_and_told_of_once(
    conductor_services: Services,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping, calls = threading.Event(), []

    def claim(*_: Any, **__: Any) -> list[Any]:
        calls.append(1)
        if len(calls) == 4:
            stopping.set()
        raise db_exc.DBConnectionError(Exception('gone'))

    monkeypatch.setattr(db, 'claim_health_checks', claim)
    monkeypatch.setattr(health, 'TICK_S', 0.01)

    health.Prober(conductor_services).run(stopping)

    assert len(calls) == 4
    assert caplog.text.count('could be looked for') == 1


def test_interval_zero_means_never(conductor_services: Services) -> None:
    conductor_services.conf.set_override('interval', 0, 'health')

    health.Prober(conductor_services).run(threading.Event())  # returns


def test_many_are_looked_at_with_few_workers(
    conductor_services: Services,
    engine: Engine,
    ca: certs.Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conductor_services.conf.set_override('workers', 3, 'health')
    monkeypatch.setattr(health, 'TICK_S', 0.05)
    clusters = [asked(conductor_services, address(engine), authority=ca) for _ in range(10)]
    stopping = threading.Event()
    running = threading.Thread(target=health.Prober(conductor_services).run, args=(stopping,))

    running.start()
    end = time.monotonic() + 20
    while (
        any(row(conductor_services.db, c).health_status is None for c in clusters)
        and time.monotonic() < end
    ):
        stopping.wait(0.05)
    stopping.set()
    running.join(5)

    assert [row(conductor_services.db, c).health_status for c in clusters] == ['HEALTHY'] * 10
    assert not running.is_alive()


# -- engines of other kinds ------------------------------------------------------------------------

MANIFEST = """
text: Made up
provides: [{server_type: vm, os_distro: any, coe: made-up}]
labels: {}
keys: {swarm: {kind: ca, algorithm: ecdsa-p256, common_name: s}}
stack: {template: cluster.yaml.j2}
resources: {base: 1}
outputs: {}
"""
HTTP = """
health:
  template: health.yaml.j2
  url: ('http' if template.tls_disabled else 'https') ~ '://' ~ cluster.api_address ~ '/v2'
  authority: swarm
  certificate: {signed_by: swarm, common_name: prober, organization: readers}
  requests: {info: {path: /info}}
"""
TEMPLATE = """
reason:
  api: {{ 'ok' if answers.info.status == 200 else answers.info.text }}
  tasks: {{ answers.info.json.tasks | string }}
healthy: {{ answers.info.json.tasks > 2 }}
"""


def made_up(
    conductor_services: Services, folder: pathlib.Path, manifest: str, more: str = ''
) -> Services:
    folder.mkdir()
    (folder / 'manifest.yaml').write_text(manifest)
    (folder / 'health.yaml.j2').write_text(TEMPLATE + more)
    return dataclasses.replace(
        conductor_services,
        drivers=drivers.Drivers(
            {'made_up': drivers.Driver('made_up', yaml.safe_load(manifest), [folder])}
        ),
    )


@pytest.mark.parametrize('tls', [True, False])
def test_another_engine_is_asked_in_its_own_way(
    conductor_services: Services, tmp_path: pathlib.Path, ca: certs.Pair, tls: bool
) -> None:
    conductor_services = made_up(conductor_services, tmp_path / 'made_up', MANIFEST + HTTP)
    with serving(tmp_path, ca=ca if tls else None) as engine:
        engine.answers['/v2/info'] = (200, b'{"tasks": 3}')
        cluster = asked(
            conductor_services,
            address(engine).removeprefix('https://'),
            authority=None,
            driver='made_up',
        )
        with conductor_services.db.write() as session:
            conductor_services.keystore.store_pair(session, cluster.uuid, 'swarm', ca)
            session.execute(sa.update(models.ClusterTemplate).values(tls_disabled=not tls))

        seen = look(conductor_services, cluster)

    assert seen == ('HEALTHY', {'api': 'ok', 'tasks': '3'})
    assert engine.asked == [
        (
            '/v2/info',
            '*/*',
            {'organizationName': 'readers', 'commonName': 'prober'} if tls else None,
        )
    ]


@pytest.mark.parametrize(
    ('forget', 'sent', 'status'),
    [
        (
            "['/nodes/7?force=true', '/nodes/8']",
            ['/v2/nodes/7?force=true', '/v2/nodes/8'],
            'HEALTHY',
        ),
        ('[]', [], 'HEALTHY'),
        ("['/x y']", [], 'UNKNOWN'),
        ('answers.info.json.tasks', [], 'UNKNOWN'),
    ],
)
def test_an_engine_is_told_to_forget_members_that_were_removed(
    conductor_services: Services,
    tmp_path: pathlib.Path,
    ca: certs.Pair,
    forget: str,
    sent: list[str],
    status: str,
) -> None:
    conductor_services = made_up(
        conductor_services, tmp_path / 'made_up', MANIFEST + HTTP, f'forget: {{{{ {forget} }}}}\n'
    )
    with serving(tmp_path, ca=ca) as engine:
        engine.answers['/v2/info'] = (200, b'{"tasks": 3}')
        cluster = asked(
            conductor_services,
            address(engine).removeprefix('https://'),
            authority=None,
            driver='made_up',
        )
        with conductor_services.db.write() as session:
            conductor_services.keystore.store_pair(session, cluster.uuid, 'swarm', ca)

        seen = look(conductor_services, cluster)

    assert seen[0] == status
    assert engine.forgotten == sent


def test_an_engine_that_nobody_can_ask_is_left_alone(
    conductor_services: Services, tmp_path: pathlib.Path
) -> None:
    conductor_services = made_up(conductor_services, tmp_path / 'made_up', MANIFEST)
    cluster = asked(conductor_services, 'http://192.0.2.1', authority=None, driver='made_up')

    assert look(conductor_services, cluster) == (None, {})
    assert row(conductor_services.db, cluster).health_at is None


def test_an_address_that_is_no_url_is_our_mistake(
    conductor_services: Services, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    conductor_services = made_up(conductor_services, tmp_path / 'made_up', MANIFEST + HTTP)
    cluster = asked(conductor_services, 'user@host', authority=None, driver='made_up')

    assert look(conductor_services, cluster)[0] == 'UNKNOWN'
    assert 'is no URL to ask' in caplog.text
