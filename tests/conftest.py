"""Fixtures of all tests: a database, a configuration, a fake cloud, an application.

The database is SQLite in a file of its own. The tests that ask for `any_database` run on MariaDB
and PostgreSQL too, where one answers on loopback; the header of the run says which."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import fakes
import oslo_messaging
import pytest
import sqlalchemy as sa
import webob
from oslo_config import cfg
from oslo_config import fixture as config_fixture

from magnum_lite import certs, config, db, drivers, keystore, models, notify, rpc
from magnum_lite.api import app as api_app
from magnum_lite.api import policies
from magnum_lite.api.request import Services
from magnum_lite.conductor import endpoint, task

#: Modules with helpers of several test modules and fixtures for them.
pytest_plugins = ['rendering', 'rows', 'stories', 'watched']
pytest.register_assert_rewrite('contract')

SERVERS = {
    'mariadb': os.environ.get(
        'TEST_MARIADB', 'mysql+pymysql://root@127.0.0.1:3306/?charset=utf8mb4'
    ),
    'postgresql': os.environ.get(
        'TEST_POSTGRESQL', 'postgresql+psycopg2://postgres@127.0.0.1:5432/postgres'
    ),
}
RABBITMQ = os.environ.get('TEST_RABBITMQ', 'rabbit://guest:guest@127.0.0.1:5672/')


def _answers(name: str) -> bool:
    url = sa.make_url(SERVERS[name])
    with (
        contextlib.suppress(OSError, sa.exc.SQLAlchemyError),
        socket.create_connection((url.host or '', url.port or 0), timeout=1),
    ):
        engine = sa.create_engine(url)
        with engine.connect():
            engine.dispose()
            return True
    return False


def rabbitmq_answers() -> bool:
    url = sa.make_url(RABBITMQ)
    with (
        contextlib.suppress(OSError),
        socket.create_connection((url.host or '', url.port or 0), timeout=1),
    ):
        return True
    return False


AVAILABLE = ['sqlite', *(name for name in SERVERS if _answers(name))]


def pytest_report_header() -> list[str]:
    missing = [name for name in SERVERS if name not in AVAILABLE]
    return [
        f'databases: {", ".join(AVAILABLE)}'
        + (f'; no {", ".join(missing)} on loopback' if missing else ''),
        f'broker: in-process{", RabbitMQ" if rabbitmq_answers() else "; no RabbitMQ on loopback"}',
    ]


#: What this process has made on shared servers: (kind of server, database), and queues.
DATABASES_MADE: list[tuple[str, str]] = []
QUEUES_MADE: list[str] = []


@contextlib.contextmanager
def scratch_database(kind: str, folder: pathlib.Path) -> Iterator[str]:
    """The URL of an empty database of that kind, dropped afterwards."""
    if kind == 'sqlite':
        yield f'sqlite:///{folder}/test.sqlite'
        return
    name = f'ml_test_{uuid.uuid4().hex[:12]}'
    DATABASES_MADE.append((kind, name))
    server = sa.create_engine(SERVERS[kind], isolation_level='AUTOCOMMIT')
    with server.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE {name}'))
    try:
        yield sa.make_url(SERVERS[kind]).set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            force = ' WITH (FORCE)' if kind == 'postgresql' else ''
            connection.execute(sa.text(f'DROP DATABASE {name}{force}'))
        server.dispose()


@pytest.fixture
def conf(tmp_path: pathlib.Path) -> Iterator[cfg.ConfigOpts]:
    """The configuration, with state in a folder of the test, callers that are believed, and no
    broker."""
    config.register(config.CONF)
    with config_fixture.Config(config.CONF) as fixture:
        fixture.conf([], project='magnum-lite', default_config_files=[])
        fixture.config(state_path=str(tmp_path), host='tester')
        fixture.config(group='api', auth_strategy='noauth')
        fixture.config(group='conductor', retry_interval=0.01, watch_interval=0.05)
        use(fixture.conf, 'fake://')
        yield fixture.conf


def connect_to_rabbitmq() -> amqp.Connection:
    url = sa.make_url(RABBITMQ)
    return amqp.Connection(
        f'{url.host}:{url.port or 5672}', userid=url.username or '', password=url.password or ''
    )


def delete_queues(names: list[str]) -> None:
    """Delete queues of the broker. Unknown names are ignored."""
    with connect_to_rabbitmq() as connection:
        for name in names:
            connection.channel().queue_delete(name)


def list_databases(kind: str) -> list[str]:
    server = sa.create_engine(SERVERS[kind], poolclass=sa.NullPool)
    column, table = {
        'mariadb': ('schema_name', 'information_schema.schemata'),
        'postgresql': ('datname', 'pg_database'),
    }[kind]
    with server.connect() as connection:
        return list(connection.scalars(sa.text(f'SELECT {column} FROM {table}')))


def list_existing_queues(names: list[str]) -> list[str]:
    """Those of the queues that the broker still has."""
    existing = []
    with connect_to_rabbitmq() as connection:
        for name in names:
            with contextlib.suppress(amqp.NotFound):
                connection.channel().queue_declare(name, passive=True)
                existing.append(name)
    return existing


@pytest.fixture(autouse=True, scope='session')
def nothing_is_left_on_servers() -> Iterator[None]:
    """Fail the last test of this process if a database or a queue of its tests still exists.

    Under pytest-xdist each worker checks its own: other runs may use the servers at the same time.
    """
    declare = amqp.Channel.queue_declare

    def declare_and_note(channel: amqp.Channel, queue: str = '', *args: Any, **kwargs: Any) -> Any:
        url = sa.make_url(RABBITMQ)
        address = f'{url.host}:{url.port or 5672}'
        if (channel.connection.host, channel.connection.virtual_host) == (address, '/'):
            QUEUES_MADE.append(queue)
        return declare(channel, queue, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amqp.Channel, 'queue_declare', declare_and_note)
        yield
    left = [name for kind, name in DATABASES_MADE if name in list_databases(kind)]
    if QUEUES_MADE:
        left += list_existing_queues(QUEUES_MADE)
    assert left == [], 'tests have left these databases and queues'


@pytest.fixture(autouse=True)
def no_connection_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test opened to brokers, and delete the queues that it made.

    An open connection would send heartbeats, and warn in the log of a later test.
    """
    opened: list[oslo_messaging.Transport] = []
    first_queue = len(QUEUES_MADE)

    def recorded(
        get: Callable[..., oslo_messaging.Transport],
    ) -> Callable[..., oslo_messaging.Transport]:
        def get_and_note(*args: Any, **kwargs: Any) -> oslo_messaging.Transport:
            opened.append(get(*args, **kwargs))
            return opened[-1]

        return get_and_note

    for name in ('get_rpc_transport', 'get_notification_transport'):
        monkeypatch.setattr(oslo_messaging, name, recorded(getattr(oslo_messaging, name)))
    yield
    for transport in opened:
        transport.cleanup()
    if queues := QUEUES_MADE[first_queue:]:
        delete_queues(queues)


@pytest.fixture
def database(conf: cfg.ConfigOpts, tmp_path: pathlib.Path) -> Iterator[db.Database]:
    """An empty SQLite database with the schema that the models describe."""
    with scratch_database('sqlite', tmp_path) as url:
        made = db.Database(conf, connection=url)
        models.Base.metadata.create_all(made.engine)
        yield made
        made.engine.dispose()


@pytest.fixture(params=AVAILABLE)
def any_database(
    request: pytest.FixtureRequest, conf: cfg.ConfigOpts, tmp_path: pathlib.Path
) -> Iterator[db.Database]:
    """The same on every database that answers."""
    with scratch_database(request.param, tmp_path) as url:
        made = db.Database(conf, connection=url)
        models.Base.metadata.create_all(made.engine)
        yield made
        made.engine.dispose()


@pytest.fixture
def cloud() -> fakes.FakeCloud:
    return fakes.FakeCloud()


class Nudges(list[str]):
    """Takes the place of `rpc.Nudger`: the uuids that were nudged."""

    def nudge(self, uuid: str) -> None:
        self.append(uuid)


@pytest.fixture
def nudges() -> Nudges:
    return Nudges()


class SigningHere:
    """Takes the place of `rpc.Signer`: what a conductor answers, without a message in between."""

    def __init__(self, conf: cfg.ConfigOpts, database: db.Database) -> None:
        self._conf, self._database = conf, database

    def sign_certificate(self, **request: Any) -> dict[str, Any]:
        signer: Any = rpc.Signer(self._conf)
        conductor_services: Any = types.SimpleNamespace(
            db=self._database,
            drivers=drivers.load(self._conf),
            keystore=keystore.KeyStore(self._conf),
        )
        signer._call = lambda request, timeout_s: endpoint.Endpoint(
            threading.Event(), conductor_services
        ).sign_certificate({}, **request)
        answer: dict[str, Any] = signer.sign_certificate(**request)
        return answer


@pytest.fixture
def services(
    conf: cfg.ConfigOpts, database: db.Database, cloud: fakes.FakeCloud, nudges: Nudges
) -> Services:
    """What the handlers of the API act on."""
    return make_services(conf, database, cloud, nudges)


def make_services(
    conf: cfg.ConfigOpts, database: db.Database, cloud: fakes.FakeCloud, nudges: Nudges
) -> Services:
    """Services of the API, with stand-ins for the cloud and for messages to conductors."""
    stand_ins: dict[str, Any] = {
        'cloud': cloud,
        'nudger': nudges,
        'signer': SigningHere(conf, database),
    }
    return Services(
        conf=conf,
        db=database,
        drivers=drivers.load(conf),
        notifier=notify.Notifier(conf),
        enforcer=policies.make_enforcer(conf),
        **stand_ins,
    )


@pytest.fixture(scope='session')
def rsa_pair() -> certs.Pair:
    return certs.make_keypair(algorithm='rsa-2048')


@pytest.fixture
def conductor_services(
    conf: cfg.ConfigOpts,
    database: db.Database,
    cloud: fakes.FakeCloud,
    rsa_pair: certs.Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> task.Services:
    """What the steps of the conductor act on. One RSA key serves all tests: making one takes a
    second."""
    monkeypatch.setattr(certs, 'make_keypair', lambda *, algorithm: rsa_pair)
    keystore.create_key_file(conf.keystore.key_file)
    fake_cloud: Any = cloud
    return task.Services(
        conf=conf,
        db=database,
        cloud=fake_cloud,
        keystore=keystore.KeyStore(conf),
        drivers=drivers.load(conf),
        notifier=notify.Notifier(conf),
    )


class Api:
    """Requests to the application, without a network in between."""

    def __init__(self, application: api_app.WSGI) -> None:
        self.application = application

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        project: str = 'p1',
        roles: str = 'member,reader',
        version: str | None = 'container-infra latest',
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> webob.Response:
        request = webob.Request.blank(path, method=method, environ={'REMOTE_ADDR': '127.0.0.1'})
        request.headers.update(
            {'X-Project-Id': project, 'X-User-Id': f'user-of-{project}', 'X-Roles': roles}
        )
        if version:
            request.headers['OpenStack-API-Version'] = version
        if body is not None or raw is not None:
            request.body = raw if raw is not None else json.dumps(body).encode()
            request.content_type = 'application/json'
        request.headers.update(headers or {})
        return request.get_response(self.application)


@pytest.fixture
def api(services: Services) -> Api:
    return Api(api_app.make_app(services))


@pytest.fixture
def with_keystone(services: Services) -> Iterator[Api]:
    """The application as operators run it. Nothing listens where its Keystone should be."""
    services.conf.set_override('auth_strategy', 'keystone', 'api')
    api_app.make_app(services)  # this makes the options known
    services.conf.set_override(
        'www_authenticate_uri', 'http://127.0.0.1:9/v3', 'keystone_authtoken'
    )
    try:
        yield Api(api_app.make_app(services))
    finally:
        services.conf.clear_override('www_authenticate_uri', 'keystone_authtoken')


TEMPLATE = {
    'name': 'k8s',
    'coe': 'kubernetes',
    'image_id': 'ubuntu',
    'flavor_id': 'm1.small',
    'master_flavor_id': 'm1.small',
    'external_network_id': 'public',
    'keypair_id': 'testkey',
}


@pytest.fixture
def template(api: Api) -> dict[str, Any]:
    """A cluster template of project p1."""
    response = api('POST', '/v1/clustertemplates', TEMPLATE)
    assert response.status_code == 201, response.text
    return response.json


@pytest.fixture
def cluster(api: Api, template: dict[str, Any]) -> str:
    """The uuid of a cluster of project p1 that was just asked for: one master, two workers."""
    response = api(
        'POST',
        '/v1/clusters',
        {'name': 'c1', 'cluster_template_id': template['uuid'], 'node_count': 2},
    )
    assert response.status_code == 202, response.text
    return response.json['uuid']


@contextlib.contextmanager
def counted_statements(database: db.Database) -> Iterator[list[str]]:
    """The SQL statements of a block, without BEGIN and the like."""
    seen: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.split()[0].upper() in ('SELECT', 'INSERT', 'UPDATE', 'DELETE'):
            seen.append(statement)

    sa.event.listen(database.engine, 'before_cursor_execute', note)
    try:
        yield seen
    finally:
        sa.event.remove(database.engine, 'before_cursor_execute', note)


def history_of(database: db.Database, cluster_uuid: str) -> list[models.Operation]:
    """All operations of a cluster, oldest first."""
    with database.read() as session:
        return list(
            session.scalars(
                sa.select(models.Operation)
                .where(models.Operation.cluster_id == cluster_uuid)
                .order_by(models.Operation.id)
            )
        )


BROKERS = ['fake://', *([RABBITMQ] if rabbitmq_answers() else [])]


def use(conf: cfg.ConfigOpts, url: str) -> None:
    """Have a broker used."""
    oslo_messaging.TransportURL.parse(conf)
    conf.set_override('transport_url', url)


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a queue of its own: the broker may serve others at the same time."""
    monkeypatch.setattr(rpc, 'TOPIC', f'{rpc.TOPIC}-test-{uuid.uuid4().hex[:12]}')


@pytest.fixture
def silent_broker() -> Iterator[str]:
    """Takes connections and never answers: what a paused RabbitMQ looks like."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(16)
        yield f'rabbit://guest:guest@127.0.0.1:{listener.getsockname()[1]}/'
