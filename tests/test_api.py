"""The API from outside: the requests of `api/*.yaml`, sent by gabbi, and in Python what YAML is
weak at.

All of them go through `Watched`, which holds each answer to what must be true of every answer, so
that no single test has to say it: a request that is refused, and every GET, leaves the database as
it was.

One request of a YAML file, with those before it: `pytest tests/test_api.py -k
the_words_of_its_name`. (Gabbi cannot be given a test's full name: it needs to see the first one of
the file.)"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import json
import logging
import pathlib
import re
import sqlite3
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import contract
import fakes
import pytest
import sqlalchemy as sa
import webob
from conftest import TEMPLATE, Api, Nudges, SigningHere, counted_statements, scratch_database
from gabbi import case, driver, fixture
from gabbi.driver import test_pytest
from gabbi.handlers import base
from keystonemiddleware import auth_token
from oslo_config import fixture as config_fixture
from oslo_db import exception as db_exc
from oslo_policy import _checks as policy

from magnum_lite import (
    certs,
    clients,
    config,
    db,
    drivers,
    keystore,
    members,
    models,
    notify,
    outage,
    states,
)
from magnum_lite.api import app as api_app
from magnum_lite.api import policies, resources
from magnum_lite.api.request import Services

YAML = str(pathlib.Path(__file__).with_name('api'))
VERSIONED = (
    'OpenStack-API-Version',
    'OpenStack-API-Minimum-Version',
    'OpenStack-API-Maximum-Version',
    'Vary',
)
#: What the API may ask of the cloud. Everything else is the conductor's.
LOOKUPS = {'image', 'flavor', 'network', 'subnet', 'keypair', 'get_project_state'}


# -- what holds for every answer -------------------------------------------------------------------


class Watched:
    """The application, and what must be true of each of its answers whatever was asked."""

    def __init__(self, application: api_app.WSGI, services: Services) -> None:
        self._application = application
        self._services = services
        self._watch = sqlite3.connect(services.db.url.removeprefix('sqlite:///'))
        self._watch.row_factory = sqlite3.Row
        self._seen: Any = None
        self.close = self._watch.close

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        request = webob.Request(environ)
        nudges: Any = self._services.nudger
        cloud: Any = self._services.cloud
        rows, nudged, called = self._rows(), len(nudges), len(cloud.calls)
        response = request.get_response(self._application)

        self._check_shape(environ, response)
        contract.check(environ, response)
        if response.status_code >= 400 or request.method == 'GET':
            watches = request.method == 'GET' and '/operations/' in environ['PATH_INFO']
            assert self._rows() == rows or (
                watches and _unwatched(self._rows()) == _unwatched(rows)
            ), 'it was stored'
            assert len(nudges) == nudged
        if request.method != 'POST' and not (
            request.method == 'PATCH' and '/clustertemplates/' in environ['PATH_INFO']
        ):
            assert len(cloud.calls) == called, 'the cloud was called'
        assert set(cloud.calls[called:]) <= LOOKUPS
        return response(environ, start_response)

    def _rows(self) -> dict[str, list[Any]]:
        """All that is stored, but for the rows that are locked while a quota is looked at
        (`db._ensure_quota_row`).

        It is read again only when somebody has written: SQLite tells by a number.
        """
        if (seen := self._watch.execute('PRAGMA data_version').fetchone()[0]) != self._seen:
            self._seen = seen
            self._stored = {
                name: [dict(row) for row in self._watch.execute(f'SELECT * FROM {name}')]
                for name in models.Base.metadata.tables
                if name != 'quotas'
            }
        return self._stored

    @staticmethod
    def _check_shape(environ: dict[str, Any], response: webob.Response) -> None:
        assert response.headers['x-openstack-request-id'].startswith('req-')
        if response.status_code == 204:
            assert not response.body
            assert (
                'Content-Type' not in response.headers and 'Content-Length' not in response.headers
            )
            return
        if environ['PATH_INFO'].startswith('/docs') and response.status_code == 200:
            assert response.headers['Content-Type'] == 'text/html; charset=UTF-8'
            return
        assert response.headers['Content-Type'] == 'application/json'
        if environ['REQUEST_METHOD'] == 'HEAD':
            return
        body = response.json
        if response.status_code < 400:
            assert isinstance(body, dict) and 'errors' not in body
            return
        (error,) = body['errors']
        if error['code'] == 'magnum.microversion-unsupported':
            assert response.status_code == 406
            return
        assert body == {'errors': [error], 'faultstring': error['detail']}
        assert error == {
            'request_id': '',
            'status': response.status_code,
            'links': [],
            'code': error['code'],
            'title': error['title'],
            'detail': error['detail'],
        }
        assert error['code'] == (
            '' if not error['detail'] else 'client' if response.status_code < 500 else 'server'
        )
        assert error['detail'].startswith(error['title']) and '. ' not in error['title']
        assert bool(error['title']) == bool(error['detail'])


def _unwatched(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """All but what a look at an operation may write: that somebody looks."""
    return rows | {
        'clusters': [row | {'check_at': None, 'polled_until': None} for row in rows['clusters']]
    }


Watch = Callable[[api_app.WSGI], Api]


@pytest.fixture
def watch(services: Services) -> Iterator[Watch]:
    """Makes watched requests to an application."""
    with contextlib.ExitStack() as stack:
        yield lambda application: Api(
            stack.enter_context(contextlib.closing(Watched(application, services)))
        )


@pytest.fixture
def api(services: Services, watch: Watch) -> Api:
    """As in conftest, and watched."""
    return watch(api_app.make_app(services))


# -- gabbi -----------------------------------------------------------------------------------------


@dataclass
class Stage:
    """One application on one database and one fake cloud, for one YAML file."""

    conf: config_fixture.Config
    database: db.Database
    cloud: fakes.FakeCloud
    application: Watched


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """What conftest's fixtures make for one test, for one YAML file."""
    config.register(config.CONF)
    with (
        tempfile.TemporaryDirectory() as folder,
        config_fixture.Config(config.CONF) as settings,
        scratch_database('sqlite', pathlib.Path(folder)) as url,
    ):
        settings.conf([], project='magnum-lite', default_config_files=[])
        settings.config(state_path=folder)
        settings.config(group='api', auth_strategy='noauth')
        database, cloud = db.Database(settings.conf, connection=url), fakes.FakeCloud()
        models.Base.metadata.create_all(database.engine)
        services: Any = Services(
            conf=settings.conf,
            db=database,
            cloud=cloud,
            drivers=drivers.load(settings.conf),
            nudger=Nudges(),
            notifier=notify.Notifier(settings.conf),
            enforcer=policies.make_enforcer(settings.conf),
            signer=SigningHere(settings.conf, database),
        )
        with contextlib.closing(Watched(api_app.make_app(services), services)) as application:
            yield Stage(settings, database, cloud, application)
        database.engine.dispose()


class App(fixture.GabbiFixture):
    """The application of a YAML file. Further fixtures of the file act on `App.now`."""

    now: Stage

    def start_fixture(self) -> None:
        self._stack = contextlib.ExitStack()
        App.now = self._stack.enter_context(stage())

    def stop_fixture(self) -> None:
        self._stack.close()


class Stories(fixture.GabbiFixture):
    """A template of project p1, and clusters with it at points of their lives to which only a
    conductor brings them."""

    def start_fixture(self) -> None:
        store_template(App.now.database)
        for number, status, columns in (
            (
                1,
                states.CREATE_COMPLETE,
                {
                    'stack_id': 'stack-1',
                    'api_address': 'https://192.0.2.1:6443',
                    'coe_version': 'v1.35.9',
                },
            ),
            (2, states.CREATE_FAILED, {'status_reason': 'No room. Try later.'}),
            (3, states.UPDATE_FAILED, {}),
            (4, states.DELETE_FAILED, {}),
            (5, 'ROLLBACK_FAILED', {}),
            (6, states.DELETE_IN_PROGRESS, {}),
        ):
            store_cluster(App.now.database, number, status=status, **columns)
        with App.now.database.write() as session:
            for group in session.scalars(sa.select(models.NodeGroup)):
                if group.role == 'master' and group.cluster_id in (uuid_of(2), uuid_of(5)):
                    group.status, group.status_reason = (
                        states.CREATE_FAILED,
                        'Node 0 did not answer.',
                    )
                if group.role == 'worker' and group.cluster_id == uuid_of(3):
                    group.status, group.status_reason = states.UPDATE_FAILED, None
                if group.cluster_id == uuid_of(1):
                    group.node_addresses = (
                        ['192.0.2.10'] if group.role == 'master' else ['192.0.2.20', '192.0.2.21']
                    )


class SevenClusters(fixture.GabbiFixture):
    """Seven clusters of p1, the fifth one of p2, on pages of four at most."""

    def start_fixture(self) -> None:
        App.now.conf.config(group='api', max_limit=4)
        store_template(App.now.database)
        for number, name in enumerate('dbacxga', 1):
            store_cluster(
                App.now.database,
                number,
                name=name,
                project_id='p2' if number == 5 else 'p1',
                stack_id=None if number % 2 else f'stack-{number}',
            )


class Complete(fixture.GabbiFixture):
    """Clusters c1 to c5 of project p1, and c6 of p2, that are there: a master and two workers each.

    Those from c3 to c5 have a load balancer.
    """

    def start_fixture(self) -> None:
        store_template(App.now.database)
        store_template(
            App.now.database,
            uuid=NEWER_UUID,
            name='newer',
            image_id='ubuntu-2',
            labels={'kube_tag': 'v1.36.1', 'etcd_volume_size': '5'},
        )
        store_template(
            App.now.database, uuid=str(uuid.uuid4()), name='newer-image', image_id='ubuntu-2'
        )
        store_template(
            App.now.database, uuid=str(uuid.uuid4()), name='too-new', labels={'kube_tag': 'v1.37.0'}
        )
        store_template(App.now.database, uuid=str(uuid.uuid4()), name='other-coe', coe='swarm')
        store_template(App.now.database, uuid=str(uuid.uuid4()), name='other-driver', driver='x')
        store_template(
            App.now.database, uuid=str(uuid.uuid4()), name='hidden', project_id='p2', hidden=True
        )
        App.now.cloud.images['ubuntu-2'] = clients.Image(
            '5d7e1b5c-0000-4000-8000-000000000004', 'u2', 'ubuntu', None
        )
        for number in range(1, 7):
            store_cluster(
                App.now.database,
                number,
                project_id='p2' if number == 6 else 'p1',
                stack_id=f'stack-{number}',
                api_address='https://192.0.2.1:6443',
                master_lb_enabled=3 <= number <= 5,
            )


class Authorities(fixture.GabbiFixture):
    """Authorities of c1, c2, c6, c7 and c8, with their names above the PEM. The key of c2 does not
    open."""

    def start_fixture(self) -> None:
        now = App.now
        keystore.create_key_file(now.conf.conf.keystore.key_file)
        store = keystore.KeyStore(now.conf.conf)
        store_template(now.database, uuid=str(uuid.UUID(int=7)), name='plain', tls_disabled=True)
        store_cluster(
            now.database,
            7,
            cluster_template_id=str(uuid.UUID(int=7)),
            api_address='http://192.0.2.7:8080',
        )
        store_cluster(now.database, 8, status=states.CREATE_IN_PROGRESS)
        made = certs.make_ca('ca', life=datetime.timedelta(days=1000))
        with now.database.write() as session:
            session.execute(
                sa.update(models.Cluster).where(models.Cluster.name == 'c5').values(driver='gone')
            )
            for number, purposes in (
                (1, ('ca', 'etcd', 'front-proxy', 'service-account')),
                (2, ('ca',)),
                (6, ('ca',)),
                (7, ('ca',)),
                (8, ('ca',)),
            ):
                for purpose in purposes:
                    store.store_pair(
                        session,
                        uuid_of(number),
                        purpose,
                        certs.Pair(f'{purpose} of c{number}\n{made.certificate}', made.private_key),
                    )
            session.flush()
            session.execute(
                sa.update(models.Key)
                .where(models.Key.cluster_id == uuid_of(2))
                .values(private_key='x')
            )


class Running(fixture.GabbiFixture):
    """One cluster in each status that runs or has failed, with the operations of its life."""

    def start_fixture(self) -> None:
        store_template(App.now.database)
        for number, status, kinds in (
            (1, states.CREATE_IN_PROGRESS, ['create']),
            (2, states.UPDATE_IN_PROGRESS, ['create', 'resize']),
            (3, states.UPDATE_IN_PROGRESS, ['create', 'resize', 'nodegroup_create']),
            (4, states.DELETE_IN_PROGRESS, ['create', 'delete']),
            (5, states.CREATE_FAILED, ['create']),
            (6, states.UPDATE_IN_PROGRESS, ['create', 'upgrade']),
        ):
            store_cluster(App.now.database, number, status=status, generation=len(kinds))
            for generation, kind in enumerate(kinds, 1):
                # Of two changes of c3, neither has been made.
                store_operation(
                    App.now.database,
                    number,
                    generation,
                    kind,
                    ended=status == states.CREATE_FAILED or (kind == 'create' and number > 1),
                )


class QuotaOfOne(fixture.GabbiFixture):
    """Projects may have one cluster; p2 has a quota of its own, of two, and p3 one of none."""

    def start_fixture(self) -> None:
        App.now.conf.config(group='quotas', max_clusters_per_project=1)
        with App.now.database.write() as session:
            session.add(models.Quota(project_id='p2', resource=db.CLUSTER_RESOURCE, hard_limit=2))
            session.add(models.Quota(project_id='p3', resource=db.CLUSTER_RESOURCE, hard_limit=0))


class LostCloud(fixture.GabbiFixture):
    """Template k8s of p1, of what the cloud does not have any more; and one of p3 that is public
    and hidden."""

    def start_fixture(self) -> None:
        lost = {
            'image_id': 'lost',
            'flavor_id': 'lost',
            'master_flavor_id': 'lost',
            'external_network_id': 'lost',
        }
        store_template(App.now.database, **lost)
        store_template(
            App.now.database,
            uuid=NEWER_UUID,
            name='hidden',
            project_id='p3',
            hidden=True,
            public=True,
        )


class Conductors(fixture.GabbiFixture):
    """One that has just reported, for the second time; one that has not for four minutes; one that
    is forced down."""

    def start_fixture(self) -> None:
        for _ in range(2):
            db.report_service(App.now.database, 'well', 'magnum-conductor')
        with App.now.database.write() as session:
            for columns in (
                {
                    'host': 'silent',
                    'last_seen_up': models.utcnow() - datetime.timedelta(minutes=4),
                    'report_count': 7,
                },
                {
                    'host': 'forced',
                    'forced_down': True,
                    'disabled': True,
                    'report_count': 1,
                    'disabled_reason': 'It is being mended.',
                },
            ):
                session.add(models.Service(binary='magnum-conductor', **columns))
                session.flush()


class OddCloud(fixture.GabbiFixture):
    """A cloud in which things named `twice` are there twice, and the project `gone` is not
    there."""

    def start_fixture(self) -> None:
        App.now.cloud.ambiguous.add('twice')
        App.now.cloud.project_states |= {'gone': 'gone', 'disabled': 'disabled'}


class WholeBody(base.ResponseHandler):
    """`response_body`: the whole answer, in which a string in slashes is a regular expression."""

    test_key_suffix = 'body'
    test_key_value: dict[str, Any] = {}

    def __call__(self, test: case.HTTPTestCase) -> None:
        if expected := test.test_data[self._key]:
            differ = list(_differ(test.replace_template(expected), test.response_data, '$'))
            assert not differ, '\n'.join([*differ, json.dumps(test.response_data, indent=1)])


def _differ(expected: Any, found: Any, where: str) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted(expected.keys() ^ found.keys()):
            yield f'{where}.{name} is {"there" if name in found else "missing"}'
        for name in expected.keys() & found.keys():
            yield from _differ(expected[name], found[name], f'{where}.{name}')
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _differ(one, other, f'{where}[{number}]')
    elif isinstance(expected, str) and len(expected) > 1 and expected[0] == expected[-1] == '/':
        if not isinstance(found, str) or not re.fullmatch(expected[1:-1], found):
            yield f'{where}: {found!r} does not match {expected}'
    elif type(expected) is not type(found) or expected != found:
        yield f'{where}: {found!r} is not {expected!r}'


class Part(WholeBody):
    """`response_part`: the same for some of the keys of the answer."""

    test_key_suffix = 'part'

    def __call__(self, test: case.HTTPTestCase) -> None:
        expected = test.replace_template(test.test_data[self._key])
        found = {name: test.response_data.get(name, '(missing)') for name in expected}
        differ = list(_differ(expected, found, '$'))
        assert not differ, '\n'.join(differ)


class Error(base.ResponseHandler):
    """`response_error`: a part of the text that the caller reads."""

    test_key_suffix = 'error'
    test_key_value: list[str] = []

    def action(self, test: case.HTTPTestCase, item: str, value: Any = None) -> None:
        detail = test.response_data['errors'][0]['detail']
        assert item in detail, detail


def _the_application() -> api_app.WSGI:
    """What gabbi binds while it reads the files, long before there is an application."""
    return lambda environ, start_response: App.now.application(environ, start_response)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_pytest:
        driver.py_test_generator(
            YAML,
            intercept=_the_application,
            fixture_module=sys.modules[__name__],
            test_loader_name='api',
            metafunc=metafunc,
            response_handlers=[WholeBody, Part, Error],
        )
        _keep_gabbi_to_itself()


def _keep_gabbi_to_itself() -> None:
    """Its plugin takes every test with a colon in its name, of any file, for its own, and stumbles
    over it."""
    plugin = sys.modules['gabbi.pytester']
    named = plugin.get_cleanname
    plugin.get_cleanname = lambda item: (  # type: ignore[attr-defined]
        named(item) if getattr(item, 'function', None) is test_pytest else ''
    )


# -- rows that a request could not make ------------------------------------------------------------


def uuid_of(number: int) -> str:
    """The uuid of the cluster of that number, `template_uuid` that of its template."""
    return f'c0000000-0000-4000-8000-{number:012}'


TEMPLATE_UUID, NEWER_UUID = (
    '70000000-0000-4000-8000-000000000001',
    '70000000-0000-4000-8000-000000000002',
)


def store_template(database: db.Database, **columns: Any) -> None:
    db.create_template(
        database,
        models.ClusterTemplate(
            **{
                'uuid': TEMPLATE_UUID,
                'project_id': 'p1',
                'user_id': 'u1',
                'name': 'k8s',
                'coe': 'kubernetes',
                'server_type': 'vm',
                'cluster_distro': 'ubuntu',
                'image_id': 'ubuntu',
                'flavor_id': 'm1.small',
                'master_flavor_id': 'm1.small',
                'external_network_id': 'public',
                'network_driver': 'flannel',
                'labels': {'kube_tag': 'v1.35.9'},
            }
            | columns
        ),
    )


def store_cluster(database: db.Database, number: int, **columns: Any) -> str:
    """A cluster with one master and two workers."""
    cluster = models.Cluster(
        **{
            'uuid': uuid_of(number),
            'project_id': 'p1',
            'user_id': 'u1',
            'name': f'c{number}',
            'flavor_id': 'm1.small',
            'cluster_template_id': TEMPLATE_UUID,
            'driver': 'k8s_cloud_init',
            'master_flavor_id': 'm1.small',
            'floating_ip_enabled': True,
            'master_lb_enabled': False,
            'labels': {'kube_tag': 'v1.35.9'},
            'create_timeout': 60,
            'status': states.CREATE_COMPLETE,
            'nodegroups': [],
        }
        | columns
    )
    for role, count in (('master', 1), ('worker', 2)):
        cluster.nodegroups.append(
            models.NodeGroup(
                uuid=group_uuid(number, role),
                project_id=cluster.project_id,
                name=f'default-{role}',
                role=role,
                is_default=True,
                node_count=count,
                next_number=0,
                labels=dict(cluster.labels),
                status=cluster.status,
                flavor_id='m1.small',
                image_id='ubuntu',
                stack_id=cluster.stack_id,
                nodes=[],
            )
        )
        members.add(cluster, cluster.nodegroups[-1], count)
        for node in cluster.nodegroups[-1].nodes:
            node.status = cluster.status
    with database.write() as session:
        session.add(cluster)
    return str(cluster.uuid)


def group_uuid(number: int, role: str) -> str:
    """The uuid of a nodegroup of the cluster of that number."""
    return uuid_of(number).replace('c', {'master': 'a', 'worker': 'b'}[role], 1)


def store_operation(
    database: db.Database,
    number: int,
    generation: int,
    kind: str,
    *,
    ended: bool = True,
    **columns: Any,
) -> str:
    """An operation of the cluster of that number, which took a minute and a half."""
    asked = datetime.datetime(2026, 7, 1, 12, tzinfo=datetime.UTC)
    operation = models.Operation(
        **{
            'uuid': f'e{generation:07}-0000-4000-8000-{number:012}',
            'cluster_id': uuid_of(number),
            'project_id': 'p1',
            'user_id': 'u1',
            'request_id': 'req-1',
            'kind': kind,
            'generation': generation,
            'driver': 'k8s_cloud_init',
            'node_count': 3,
            'created_at': asked,
            'begun_at': asked + datetime.timedelta(seconds=1),
            'ended_at': asked + datetime.timedelta(seconds=90) if ended else None,
            'outcome': 'complete' if ended else None,
        }
        | columns
    )
    with database.write() as session:
        session.add(operation)
    return str(operation.uuid)


# -- what Watched sees -----------------------------------------------------------------------------


def _answering(status: int, body: Any) -> webob.Response:
    """An application that answers this."""
    return webob.Response(
        status=status,
        json_body=body,
        charset=None,
        headerlist=[('Content-Type', 'application/json'), ('x-openstack-request-id', 'req-1')],
    )


def _envelope(**changes: Any) -> dict[str, Any]:
    error = {
        'request_id': '',
        'code': 'client',
        'status': 400,
        'title': 'It is wrong',
        'detail': 'It is wrong. Mend it.',
        'links': [],
    } | changes
    return {'errors': [error], 'faultstring': error['detail']}


def test_watched_takes_a_right_answer(watch: Watch) -> None:
    response = watch(_answering(400, _envelope()))('GET', '/')

    assert response.json == _envelope()


@pytest.mark.parametrize(
    ('status', 'body'),
    [
        (400, _envelope(title='It is wrong. Mend it')),
        (400, _envelope(title='')),
        (400, _envelope(status=500)),
        (400, _envelope(code='')),
        (400, _envelope(more=1)),
        (400, _envelope() | {'faultstring': ''}),
        (400, {'errors': []}),
        (400, {'error': 'x'}),
        (200, _envelope()),
        (204, {}),
    ],
    ids=[
        'long title',
        'no title',
        'status',
        'code',
        'more',
        'faultstring',
        'empty',
        'other',
        '200',
        '204',
    ],
)
def test_watched_sees_a_wrong_answer(watch: Watch, status: int, body: Any) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError)):
        watch(_answering(status, body))('GET', '/')


def test_watched_sees_what_a_refusal_stores(services: Services, watch: Watch) -> None:
    def careless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        store_template(services.db)
        return _answering(400, _envelope())(environ, start_response)

    with pytest.raises(AssertionError, match='it was stored'):
        watch(careless)('POST', '/v1/clustertemplates')


def test_watched_sees_a_listing_that_calls_the_cloud(services: Services, watch: Watch) -> None:
    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        services.cloud.lookups(None).get_image('ubuntu')
        return _answering(200, {'clusters': []})(environ, start_response)

    with pytest.raises(AssertionError, match='the cloud was called'):
        watch(slow)('GET', '/v1/clusters')


# -- hostile callers -------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """A JSON value of that depth: objects in each other, and a number in the innermost."""
    inner = b'{"a":' * (depth - 2) + b'1' + b'}' * (depth - 2)
    return b'{"cluster_template_id": "k8s", "health_status_reason": %s}' % inner


def posted(**values: Any) -> bytes:
    return json.dumps({'cluster_template_id': 'k8s'} | values).encode()


HOSTILE_BODIES = {
    'nested 26 deep': (nested(26), 'nested more than 25 deep'),
    'nested 100,000 deep': (nested(100_000), 'more than 10000 objects and lists'),
    'nested 9,000 deep': (nested(9_000), 'not JSON'),
    'never closed': (b'[' * 9_000, 'not JSON'),
    'NaN': (b'{"cluster_template_id": "k8s", "node_count": NaN}', 'NaN is not a JSON value'),
    'Infinity': (
        b'{"cluster_template_id": "k8s", "node_count": Infinity}',
        'Infinity is not a JSON value',
    ),
    '-Infinity': (
        b'{"cluster_template_id": "k8s", "labels": {"a": -Infinity}}',
        '-Infinity is not a JSON value',
    ),
    'beyond a float': (
        b'{"cluster_template_id": "k8s", "node_count": 1e400}',
        '1e400 is too large',
    ),
    'a label beyond a float': (
        b'{"cluster_template_id": "k8s", "labels": {"a": 1e400}}',
        'is too large',
    ),
    'a name twice': (
        b'{"cluster_template_id": "k8s", "name": "a", "name": "b"}',
        'has a name twice',
    ),
    'a label twice': (
        b'{"cluster_template_id": "k8s", "labels": {"a": 1, "a": 1}}',
        'has a name twice',
    ),
    '100,000 labels': (
        b'{"cluster_template_id": "k8s", "labels": {%s}}'
        % b','.join(b'"%x":1' % n for n in range(100_000)),
        'holds more than 50000 values',
    ),
    '100,000 values': (
        b'{"cluster_template_id": [%s0]}' % (b'0,' * 100_000),
        'holds more than 50000 values',
    ),
    '100,000 objects': (b'[%s{}]' % (b'{},' * 100_000), 'more than 10000 objects and lists'),
    'a huge integer': (posted(node_count=10**4000), "'node_count'"),
    'an integer too long to read': (b'{"node_count": ' + b'9' * 5000 + b'}', 'not JSON'),
    'a huge integer as text': (posted(node_count='9' * 5000), "'node_count'"),
    'more than 31 bits': (posted(node_count=2**31), "'node_count'"),
    'a timeout of more than 31 bits': (posted(create_timeout=2**31), "'create_timeout'"),
    '31 bits of nodes': (posted(node_count=2**31 - 1), 'has room for'),
    '31 bits of masters': (posted(master_count=2**31 - 1, master_lb_enabled=True), 'has room for'),
    'a huge float of nodes': (posted(node_count=1e300), "'node_count'"),
    'half a pair in a name': (posted(name='a\ud800'), 'cannot be stored'),
    'half a pair in a template': (posted(cluster_template_id='\udfff'), 'cannot be stored'),
    'half a pair in a label': (posted(labels={'kube_tag': '\ud800'}), 'cannot be stored'),
    'half a pair in the name of a label': (posted(labels={'\ud800': 'x'}), 'cannot be stored'),
    'half a pair in an attribute': (posted(**{'\ud800': 1}), 'Unknown attribute'),
    'NUL in a text': (posted(discovery_url='a\0b'), 'cannot be stored'),
    'NUL in a template': (posted(cluster_template_id='k8s\0'), 'cannot be stored'),
    'NUL in the name of a label': (posted(labels={'a\0': 'x'}), 'cannot be stored'),
    'NUL in what is ignored': (posted(status_reason='\0'), 'cannot be stored'),
    '10,000 labels': (posted(labels={f'l{n}': 'x' for n in range(10_000)}), "'labels'"),
    'a long label': (posted(labels={'kube_tag': 'v' * 5000}), 'labels/kube_tag'),
    'a long name of a label': (posted(labels={'k' * 256: 'x'}), "'labels'"),
    '40,000 attributes': (posted(**{f'a{n}': 1 for n in range(40_000)}), 'Unknown attribute'),
    'not UTF-8': (b'{"cluster_template_id": "k8s", "name": "\xff"}', 'not JSON'),
    'a pair in UTF-8': (
        b'{"cluster_template_id": "k8s", "name": "\xed\xa0\x80"}',
        'cannot be stored',
    ),
    'a byte of nothing': (b'\0', 'not JSON'),
    'a name of 243 letters': (posted(name='a' * 243), "'name'"),
}


class Unread:
    """A body that nobody may touch."""

    def read(self, *_: Any) -> bytes:
        raise AssertionError('the body was read')

    readline = readlines = __iter__ = read


def send(api: Api, body: Any, **headers: str) -> webob.Response:
    """POST a cluster from a file or the like; `headers` as in a WSGI environment."""
    environ = {
        'REMOTE_ADDR': '127.0.0.1',
        'HTTP_X_PROJECT_ID': 'p1',
        'HTTP_X_USER_ID': 'u1',
        'HTTP_X_ROLES': 'member',
        'CONTENT_TYPE': 'application/json',
        'wsgi.input': body,
    } | headers
    return webob.Request.blank('/v1/clusters', method='POST', environ=environ).get_response(
        api.application
    )


class TestHostile:
    """None of these leaves a trace, so that one application, with a template and a cluster, does
    for all."""

    @pytest.fixture(scope='class')
    @classmethod
    def api(cls) -> Iterator[Api]:
        with stage() as staged:
            store_template(staged.database)
            store_cluster(staged.database, 1)
            yield Api(staged.application)

    @pytest.mark.parametrize('case', HOSTILE_BODIES)
    def test_body_is_refused(self, api: Api, case: str) -> None:
        raw, reason = HOSTILE_BODIES[case]

        response = api('POST', '/v1/clusters', raw=raw)

        assert response.status_code == 400
        assert reason in response.json['errors'][0]['detail']
        assert len(response.body) < 20_000, 'a small request has a small answer'

    @pytest.mark.parametrize(
        'kind',
        [
            'application/json',
            '',
            'application/x-www-form-urlencoded',
            'multipart/form-data; boundary=x',
        ],
    )
    def test_too_large_body_is_refused_unread(self, api: Api, kind: str) -> None:
        response = send(api, Unread(), CONTENT_LENGTH=str(1024 * 1024 + 1), CONTENT_TYPE=kind)

        assert response.status_code == 413
        assert (
            response.json['errors'][0]['title'] == 'The body has 1048577 bytes and may have 1048576'
        )

    def test_body_of_no_known_length_is_read_up_to_the_limit(self, api: Api) -> None:
        body = io.BytesIO(b' ' * 3 * 1024 * 1024)
        environ: dict[str, Any] = {'wsgi.input_terminated': True}

        response = send(api, body, **environ)

        assert response.status_code == 413
        assert body.tell() <= 1024 * 1024 + 64 * 1024

    def test_body_of_somebody_who_may_not_is_not_read(self, api: Api) -> None:
        assert send(api, Unread(), CONTENT_LENGTH='100', HTTP_X_ROLES='reader').status_code == 403

    def test_body_that_ends_too_early(self, api: Api) -> None:
        response = send(api, io.BytesIO(b'{"cluster_template_id"'), CONTENT_LENGTH='100')

        assert response.status_code == 400
        assert response.json['errors'][0]['title'] == 'The body is shorter than its Content-Length'

    @pytest.mark.parametrize(
        'path',
        [
            '%ff',
            '%ed%a0%80',
            '%00',
            'c1%00',
            'a%2Fb',
            '%2F',
            '..',
            '%2e%2e%2fclusters',
            'a' * 20_000,
            '%F0%9F%92%A5',
            '%0A',
            '%25',
            '%27%20OR%201=1',
            '{ident}',
            'c_',
            'c%25',
            'c1%20',
            ';',
            'c1;x=1',
        ],
        ids=lambda path: path[:20],
    )
    @pytest.mark.parametrize('noun', ['clusters', 'clustertemplates'])
    def test_address_is_not_found(self, api: Api, noun: str, path: str) -> None:
        for method in ('GET', 'DELETE'):
            assert api(method, f'/v1/{noun}/{path}').status_code == 404, method

    @pytest.mark.parametrize('path', ['/v1/clusters/%00', '/v1/clustertemplates/k8s%00'])
    def test_nul_in_an_address_does_not_reach_the_database(self, api: Api, path: str) -> None:
        """PostgreSQL's client raises ValueError for it; SQLite takes it, and would answer with the
        name."""
        assert api('GET', path).json['faultstring'] == ''

    @pytest.mark.parametrize(
        'path', ['/%ff', '/v1/%ff/x', '/v1%00', '/%00', '/v1/clusters%ff', '/v1/clusters/%ff/x']
    )
    def test_address_of_nothing_is_not_found(self, api: Api, path: str) -> None:
        for method in ('GET', 'POST', 'DELETE', 'PATCH', 'OPTIONS', 'BREW'):
            assert api(method, path).status_code == 404, method

    @pytest.mark.parametrize(
        'query',
        [
            'limit=%ff',
            '%ff=1',
            'limit=1&limit=1',
            'sort_key=id&sort_key=id',
            'all_tenants=false&all_tenants=true',
            'limit=%00',
            'marker=%00',
            'sort_key=%00',
            'sort_dir=%00',
            'all_tenants=%00',
            'limit=1%00',
            'marker=',
            'sort_key=',
            'limit=' + '9' * 10_000 + 'x',
            'limit=1e3',
            'limit=0x10',
            'limit=%20',
            'marker=' + 'a' * 10_000,
            '&&x',
            '=1',
            'sort_key=__class__',
            'sort_key=id;drop',
            'sort_key=id,name',
            'sort_key=public_key',
            'sort_key=nodegroups',
            'limit[]=1',
            'limit',
            'all_tenants=2',
        ],
        ids=lambda query: query[:24],
    )
    def test_query_is_refused(self, api: Api, query: str) -> None:
        for path in (
            '/v1/clusters',
            '/v1/clusters/detail',
            '/v1/clustertemplates',
            '/v1/clustertemplates/detail',
        ):
            assert api('GET', f'{path}?{query}', roles='admin').status_code == 400, path

    @pytest.mark.parametrize(
        'version',
        [
            'container-infra 1.' + '9' * 10_000,
            'container-infra 1.\xb2',
            'container-infra 1.9 1.9',
            'container-infra 1.9.1',
            'container-infra -1.9',
            'container-infra 1.9, compute 2.1',
            '',
            ' ',
            'latest',
            'container-infra 1.9\x00',
        ],
        ids=lambda version: repr(version[:32]),
    )
    def test_version_is_not_acceptable(self, api: Api, version: str) -> None:
        response = api(
            'GET', '/v1/clusters', version=None, headers={'OpenStack-API-Version': version}
        )

        assert response.status_code == 406
        assert not any(name in response.headers for name in VERSIONED)

    @pytest.mark.parametrize(
        'headers',
        [
            {'Accept': ';' * 1000},
            {'Accept': 'application/json;q=nan'},
            {'Accept': 'a/b, ' * 200 + '*/*'},
            {'Accept': '\xff'},
            {'Content-Length': '-5'},
            {'Content-Length': 'many'},
            {'Content-Type': '\xff'},
        ],
    )
    def test_odd_header_does_no_harm(self, api: Api, headers: dict[str, str]) -> None:
        assert api('GET', '/v1/clusters', headers=headers).status_code == 200

    def test_limit_of_ten_thousand_digits_is_cut(self, api: Api) -> None:
        assert len(api('GET', '/v1/clusters?limit=' + '9' * 10_000).json['clusters']) == 1


def test_body_may_be_nested_25_deep(api: Api, template: dict[str, Any]) -> None:
    response = api('POST', '/v1/clusters', raw=nested(25))

    assert "'health_status_reason/a' is wrong" in response.json['faultstring']


def test_body_of_exactly_the_limit_is_read(api: Api) -> None:
    raw = json.dumps(TEMPLATE).encode().ljust(1024 * 1024)

    assert api('POST', '/v1/clustertemplates', raw=raw).status_code == 201


def test_charset_that_nobody_knows_is_not_looked_at(api: Api) -> None:
    response = api(
        'POST',
        '/v1/clustertemplates',
        TEMPLATE,
        headers={'Content-Type': 'application/json; charset=x'},
    )

    assert response.status_code == 201


def test_name_may_have_242_letters(api: Api, template: dict[str, Any]) -> None:
    name = 'a' * 242

    assert (
        api('POST', '/v1/clusters', {'cluster_template_id': 'k8s', 'name': name}).status_code == 202
    )

    assert api('GET', f'/v1/clusters/{name}').json['name'] == name


@pytest.mark.parametrize('field', ['name', 'tags', 'http_proxy', 'keypair_id'])
def test_texts_of_a_template_have_255_characters(api: Api, field: str) -> None:
    assert (
        api('POST', '/v1/clustertemplates', TEMPLATE | {field: 'ä' * 255}).json[field] == 'ä' * 255
    )
    assert api('POST', '/v1/clustertemplates', TEMPLATE | {field: 'ä' * 256}).status_code == 400


ODD_VALUES: list[Any] = [
    None,
    '',
    'x' * 300,
    '\0',
    '\ud800',
    '\n',
    '💥',
    -1,
    2**31 - 1,
    10**30,
    1.0,
    1e308,
    True,
    ['x'],
    {'x': 'y'},
    {'x': None},
]


@pytest.mark.parametrize(
    ('path', 'resource', 'given'),
    [
        ('/v1/clustertemplates', resources.CLUSTER_TEMPLATE, TEMPLATE | {'name': 'other'}),
        ('/v1/clusters', resources.CLUSTER, {'cluster_template_id': TEMPLATE_UUID}),
    ],
    ids=['templates', 'clusters'],
)
def test_no_value_of_any_attribute_is_our_mistake(
    api: Api, services: Services, path: str, resource: Any, given: dict[str, Any]
) -> None:
    """Each is either stored, and then shown, or refused; `Watched` sees that what is refused is not
    stored."""
    store_template(services.db)
    stored = 0

    for name in [*(field.name for field in resource.fields), 'links', 'faults', 'nothing']:
        for value in ODD_VALUES:
            response = api('POST', path, given | {name: value})
            assert response.status_code in (201, 202, 400, 403, 404, 409), (
                name,
                value,
                response.text,
            )
            if response.status_code in (201, 202):
                stored += 1
                shown = api('GET', f'{path}/{response.json["uuid"]}').json
                for key in {
                    'node_count',
                    'master_count',
                    'docker_volume_size',
                    'apiserver_port',
                } & shown.keys():
                    assert type(shown[key]) in (int, type(None)), (name, value)
                with services.db.write() as session:
                    session.execute(sa.delete(models.Cluster))
                    session.execute(
                        sa.delete(models.ClusterTemplate).where(
                            models.ClusterTemplate.uuid != TEMPLATE_UUID
                        )
                    )

    assert stored > 30


# -- what a listing costs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('path', 'most'), [('/v1/clusters', 2), ('/v1/clusters/detail', 2), ('/v1/clustertemplates', 1)]
)
def test_listing_sends_the_same_statements_for_one_and_for_fifty(
    services: Services, nudges: Nudges, cloud: fakes.FakeCloud, path: str, most: int
) -> None:
    api = Api(api_app.make_app(services))  # not watched, for that reads the database
    plural = path.split('/')[2]
    store_template(services.db)
    store_cluster(services.db, 1)
    with counted_statements(services.db) as for_one:
        assert len(api('GET', path).json[plural]) == 1
    for number in range(2, 51):
        if plural == 'clusters':
            store_cluster(services.db, number)
        else:
            store_template(services.db, uuid=uuid_of(number))

    with counted_statements(services.db) as for_fifty:
        assert len(api('GET', path).json[plural]) == 50
    with counted_statements(services.db) as for_ten:
        assert len(api('GET', f'{path}?limit=10').json[plural]) == 10

    assert 1 <= len(for_one) == len(for_fifty) == len(for_ten) <= most
    assert nudges == [] and cloud.calls == []


def test_one_cluster_costs_two_statements(services: Services) -> None:
    api = Api(api_app.make_app(services))
    store_template(services.db)
    store_cluster(services.db, 1)

    with counted_statements(services.db) as seen:
        api('GET', '/v1/clusters/c1')

    assert len(seen) == 2


# -- what is stored, and who hears of it -----------------------------------------------------------


def test_accepted_cluster_is_stored_whole(api: Api, services: Services, nudges: Nudges) -> None:
    api('POST', '/v1/clustertemplates', TEMPLATE)

    response = api(
        'POST',
        '/v1/clusters',
        {
            'cluster_template_id': 'k8s',
            'name': 'c1',
            'master_count': 3,
            'master_lb_enabled': True,
            'node_count': 2,
        },
    )

    assert nudges == [response.json['uuid']]
    with services.db.read() as session:
        cluster = session.scalars(sa.select(models.Cluster)).one()
        groups = session.scalars(
            sa.select(models.NodeGroup).options(sa.orm.selectinload(models.NodeGroup.nodes))
        ).all()
        operation = session.scalars(sa.select(models.Operation)).one()
    assert (cluster.uuid, cluster.status, cluster.generation) == (
        response.json['uuid'],
        'CREATE_IN_PROGRESS',
        1,
    )
    assert cluster.check_at is not None and cluster.leased_by is None
    assert cluster.public_key == 'ssh-ed25519 AAAAC3Nza test'
    assert [
        (g.name, g.role, g.node_count, [n.number for n in g.nodes], g.next_number) for g in groups
    ] == [('default-master', 'master', 3, [0, 1, 2], 3), ('default-worker', 'worker', 2, [0, 1], 2)]
    assert len({node.name for group in groups for node in group.nodes}) == 5
    assert (
        operation.cluster_id,
        operation.kind,
        operation.user_id,
        operation.generation,
        operation.outcome,
    ) == (cluster.uuid, 'create', 'user-of-p1', 1, None)
    assert operation.request_id == response.headers['x-openstack-request-id']


def test_each_deletion_is_told_and_only_the_first_is_an_operation(
    api: Api, services: Services, cluster: str, nudges: Nudges
) -> None:
    nudges.clear()

    assert [api('DELETE', f'/v1/clusters/{cluster}').status_code for _ in range(3)] == [
        204,
        204,
        204,
    ]

    assert nudges == [cluster] * 3
    with services.db.read() as session:
        assert session.scalars(
            sa.select(models.Operation.kind).order_by(models.Operation.id)
        ).all() == ['create', 'delete']


def test_a_cluster_that_has_gone_is_not_found(api: Api, services: Services, cluster: str) -> None:
    with services.db.write() as session:
        session.execute(sa.delete(models.Cluster))

    assert api('GET', f'/v1/clusters/{cluster}').status_code == 404
    assert api('DELETE', f'/v1/clusters/{cluster}').status_code == 404
    assert api('DELETE', '/v1/clustertemplates/k8s').status_code == 204


def test_faults_are_for_one_cluster_and_not_for_listings(api: Api, services: Services) -> None:
    store_template(services.db)
    store_cluster(services.db, 1, status=states.CREATE_FAILED)

    assert 'faults' in api('GET', '/v1/clusters/c1').json
    for path in ('/v1/clusters', '/v1/clusters/detail'):
        assert 'faults' not in api('GET', path).json['clusters'][0]


@pytest.mark.parametrize('columns', [{'public': False}, {'hidden': True}])
def test_withdrawn_template_leaves_the_clusters_of_others_alone(
    api: Api, services: Services, columns: dict[str, Any]
) -> None:
    """Magnum answers 404 for such a cluster, and for the whole listing of its project
    (doc/contributor/wire-contract.md)."""
    store_template(services.db, project_id='p2', public=True)
    store_cluster(services.db, 1, labels={})
    with services.db.write() as session:
        session.execute(sa.update(models.ClusterTemplate).values(**columns))

    assert api('GET', '/v1/clusters/c1').json['labels_skipped'] == {'kube_tag': 'v1.35.9'}
    assert len(api('GET', '/v1/clusters/detail').json['clusters']) == 1
    assert api('POST', '/v1/clusters', {'cluster_template_id': TEMPLATE_UUID}).status_code == 404


# -- what a change leaves in the database ----------------------------------------------------------


def rows_of(
    services: Services, number: int
) -> tuple[models.Cluster, dict[str, models.NodeGroup], list[str]]:
    """A cluster, its nodegroups by name with their nodes, and the kinds of its operations."""
    with services.db.read() as session:
        groups = session.scalars(
            sa.select(models.NodeGroup)
            .where(models.NodeGroup.cluster_id == uuid_of(number))
            .options(sa.orm.selectinload(models.NodeGroup.nodes))
        ).all()
        return (
            session.scalars(
                sa.select(models.Cluster).where(models.Cluster.uuid == uuid_of(number))
            ).one(),
            {group.name: group for group in groups},
            list(
                session.scalars(
                    sa.select(models.Operation.kind)
                    .where(models.Operation.cluster_id == uuid_of(number))
                    .order_by(models.Operation.id)
                )
            ),
        )


def wanted(group: models.NodeGroup) -> list[int]:
    return [node.number for node in members.list_wanted(group)]


@pytest.fixture
def complete(services: Services) -> str:
    """The address of a cluster c1 of project p1 that is there."""
    store_template(services.db)
    return f'/v1/clusters/{store_cluster(services.db, 1, stack_id="stack-1")}'


REQUESTS: dict[str, tuple[str, str, Any]] = {
    'patch': ('PATCH', '', [{'op': 'replace', 'path': '/node_count', 'value': 3}]),
    'resize': ('POST', '/actions/resize', {'node_count': 3}),
    'upgrade': ('POST', '/actions/upgrade', {'cluster_template': 'k8s'}),
    'new': ('POST', '/nodegroups', {'name': 'further'}),
    'labels': (
        'PATCH',
        '/nodegroups/default-worker',
        [{'op': 'add', 'path': '/node_labels/a', 'value': 'b'}],
    ),
    'delete': ('DELETE', '', None),
}


@pytest.mark.parametrize('request_', REQUESTS)
def test_change_is_one_operation_and_one_generation(
    api: Api, services: Services, nudges: Nudges, complete: str, request_: str
) -> None:
    method, path, body = REQUESTS[request_]
    with services.db.write() as session:
        session.execute(
            sa.update(models.Cluster).values(
                status_reason='It was so.', error_code='NETWORK', failures=3, check_at=None
            )
        )

    response = api(method, complete + path, body)

    assert response.status_code == (204 if method == 'DELETE' else 202), response.text
    cluster, _, kinds = rows_of(services, 1)
    assert (cluster.generation, cluster.failures, len(kinds)) == (2, 0, 1)
    assert (cluster.status_reason, cluster.error_code) == (None, None)
    assert cluster.check_at is not None and cluster.status.endswith('_IN_PROGRESS')
    assert nudges == [cluster.uuid]
    operation = api('GET', response.headers['Location'].removeprefix('http://localhost')).json
    assert (operation['kind'], operation['cluster_id']) == (kinds[0], cluster.uuid)
    assert operation['request_id'] == response.headers['x-openstack-request-id']


@pytest.mark.parametrize(
    'status',
    [
        states.CREATE_IN_PROGRESS,
        states.CREATE_FAILED,
        states.DELETE_IN_PROGRESS,
        states.DELETE_FAILED,
    ],
)
@pytest.mark.parametrize('request_', sorted(REQUESTS.keys() - {'delete'}))
def test_change_that_makes_no_sense_is_refused_at_once(
    api: Api, services: Services, complete: str, request_: str, status: str
) -> None:
    method, path, body = REQUESTS[request_]
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(status=status))

    response = api(method, complete + path, body)

    assert response.status_code == 409
    assert f'is {status}, which allows no change' in response.json['faultstring']


@pytest.mark.parametrize(
    'status',
    [
        states.CREATE_COMPLETE,
        states.UPDATE_COMPLETE,
        states.UPDATE_FAILED,
        states.UPDATE_IN_PROGRESS,
    ],
)
@pytest.mark.parametrize('request_', sorted(REQUESTS.keys() - {'delete'}))
def test_change_is_taken_while_another_runs_or_has_failed(
    api: Api, services: Services, complete: str, request_: str, status: str
) -> None:
    method, path, body = REQUESTS[request_]
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(status=status))

    assert api(method, complete + path, body).status_code == 202
    assert rows_of(services, 1)[0].status == states.UPDATE_IN_PROGRESS


@pytest.mark.parametrize(
    ('count', 'remove', 'left', 'next_number'),
    [
        (2, [], [0, 1], 2),
        (4, [], [0, 1, 2, 3], 4),
        (1, [], [0], 2),
        (0, [], [], 2),
        (2, ['0'], [1, 2], 3),
        (1, ['0'], [1], 2),
        (2, ['0', 'server-1'], [2, 3], 4),
        (3, ['c1-c0000000-worker-1'], [0, 2, 3], 4),
        (0, ['1'], [], 2),
    ],
)
def test_resize_changes_these_members(
    api: Api,
    services: Services,
    complete: str,
    count: int,
    remove: list[str],
    left: list[int],
    next_number: int,
) -> None:
    with services.db.write() as session:
        session.execute(
            sa.update(models.Node).where(models.Node.number == 1).values(server_id='server-1')
        )

    response = api(
        'POST', f'{complete}/actions/resize', {'node_count': count, 'nodes_to_remove': remove}
    )

    assert response.status_code == 202
    _, groups, kinds = rows_of(services, 1)
    group = groups['default-worker']
    assert (wanted(group), group.next_number, group.node_count) == (left, next_number, count)
    assert [n.status for n in group.nodes if n.number > 1] == [states.CREATE_IN_PROGRESS] * (
        next_number - 2
    )
    assert {n.number for n in group.nodes} == set(range(next_number)), (
        'what goes is there until its stack let it go'
    )
    assert (group.status, kinds) == (states.UPDATE_IN_PROGRESS, ['resize'])
    assert (groups['default-master'].status, wanted(groups['default-master'])) == (
        states.CREATE_COMPLETE,
        [0],
    )


@pytest.mark.parametrize(('balanced', 'version'), [(True, 'v1.36.1'), (False, 'v1.35.9')])
def test_upgrade_marks_the_nodes_as_outdated_and_the_masters_if_they_can_be_replaced(
    api: Api,
    services: Services,
    complete: str,
    cloud: fakes.FakeCloud,
    balanced: bool,
    version: str,
) -> None:
    cloud.images['newer'] = cloud.images['ubuntu']
    store_template(
        services.db, uuid=NEWER_UUID, name='newer', image_id='newer', labels={'kube_tag': version}
    )
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(master_lb_enabled=balanced))

    response = api(
        'POST', f'{complete}/actions/upgrade', {'cluster_template': 'newer', 'max_batch_size': 3}
    )

    assert response.status_code == 202
    cluster, groups, kinds = rows_of(services, 1)
    worker, master = groups['default-worker'], groups['default-master']
    assert (cluster.cluster_template_id, cluster.labels, kinds) == (
        NEWER_UUID,
        {'kube_tag': version},
        ['upgrade'],
    )
    assert (worker.image_id, worker.rollout, worker.batch_size, worker.labels, worker.status) == (
        'newer',
        2,
        3,
        {'kube_tag': version},
        states.UPDATE_IN_PROGRESS,
    )
    assert [(n.number, n.rollout, n.status, n.image_id) for n in worker.nodes] == [
        (0, 1, states.CREATE_COMPLETE, 'ubuntu'),
        (1, 1, states.CREATE_COMPLETE, 'ubuntu'),
    ]
    assert (master.image_id, master.rollout, master.batch_size, master.labels, master.status) == (
        ('newer', 2, 1, {'kube_tag': version}, states.UPDATE_IN_PROGRESS)
        if balanced
        else ('ubuntu', 1, 1, {'kube_tag': 'v1.35.9'}, states.CREATE_COMPLETE)
    )


def test_upgrade_to_a_version_waits_until_the_masters_have_the_last_one(
    api: Api, services: Services, complete: str
) -> None:
    for number, version in enumerate(('v1.36.0', 'v1.37.0'), 2):
        store_template(
            services.db,
            uuid=NEWER_UUID[:-1] + str(number),
            name=version,
            labels={'kube_tag': version},
        )
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(master_lb_enabled=True))
    assert (
        api('POST', f'{complete}/actions/upgrade', {'cluster_template': 'v1.36.0'}).status_code
        == 202
    )

    response = api('POST', f'{complete}/actions/upgrade', {'cluster_template': 'v1.37.0'})

    assert (
        response.status_code == 409
        and 'are not all of version v1.36.0 yet' in response.json['faultstring']
    )
    again = api('POST', f'{complete}/actions/upgrade', {'cluster_template': 'v1.36.0'})
    assert again.status_code == 202, 'the same version once more may do what has failed'


def test_upgrade_to_a_template_that_goes_meanwhile(
    api: Api, services: Services, complete: str, cloud: fakes.FakeCloud
) -> None:
    store_template(services.db, uuid=NEWER_UUID, name='newer')

    def vanish(name: str, when: str) -> None:
        with services.db.write() as session:
            session.execute(
                sa.delete(models.ClusterTemplate).where(models.ClusterTemplate.uuid == NEWER_UUID)
            )

    cloud.hook = vanish
    unwatched = Api(api_app.make_app(services))  # what is stored here is not by the refusal

    response = unwatched('POST', f'{complete}/actions/upgrade', {'cluster_template': 'newer'})

    assert response.status_code == 404 and NEWER_UUID in response.json['faultstring']
    assert rows_of(services, 1)[0].status == states.CREATE_COMPLETE


def test_new_nodegroup_is_stored_whole(api: Api, services: Services, complete: str) -> None:
    response = api(
        'POST',
        f'{complete}/nodegroups',
        {'name': 'GPU nodes', 'node_count': 2, 'max_node_count': 4},
    )

    _, groups, kinds = rows_of(services, 1)
    group = groups['GPU nodes']
    assert response.json['id'] == group.id and response.json['uuid'] == group.uuid
    assert (group.status, group.rollout, group.is_default, group.project_id) == (
        states.CREATE_IN_PROGRESS,
        1,
        False,
        'p1',
    )
    assert [(n.number, n.name, n.status, n.image_id) for n in group.nodes] == [
        (number, f'c1-{group.uuid[:8]}-gpu-nodes-{number}', states.CREATE_IN_PROGRESS, 'ubuntu')
        for number in (0, 1)
    ]
    assert (group.next_number, group.node_count, kinds) == (2, 2, ['nodegroup_create'])
    assert groups['default-worker'].status == states.CREATE_COMPLETE


#: More labels of nodes than user-data has room for.
MANY_LABELS = {f'{number:0200}.example/a': 'b' * 60 for number in range(200)}


@pytest.mark.parametrize(
    ('method', 'path', 'body', 'said'),
    [
        ('POST', '', {'name': 'big', 'node_labels': MANY_LABELS}, 'Nova takes 49149'),
        (
            'PATCH',
            '/default-worker',
            [{'op': 'replace', 'path': '/node_labels', 'value': MANY_LABELS}],
            'Nova takes 49149',
        ),
        (
            'PATCH',
            '/further',
            [{'op': 'replace', 'path': '/node_labels', 'value': MANY_LABELS}],
            'Nova takes 49149',
        ),
        (
            'POST',
            '',
            {'name': 'big', 'node_count': 244},
            'has room for 248 nodes, and 249 are asked for',
        ),
        (
            'POST',
            '',
            {'name': 'big', 'node_count': 200},
            '200 nodes need 1429 resources in one stack, and Heat',
        ),
        ('POST', '', {'name': 'big', 'node_count': 20}, '20 nodes make a template of '),
        (
            'POST',
            '',
            {
                'name': 'big',
                'node_count': 3,
                'labels': {'api_server_cert_sans': 'a'},
                'merge_labels': True,
            },
            '3 nodes make a request of ',
        ),
    ],
)
def test_nodegroup_beyond_a_limit_is_refused_with_the_number_and_the_limit(
    api: Api, services: Services, complete: str, method: str, path: str, body: Any, said: str
) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further', 'node_count': 2})
    if 'template of' in said:
        services.conf.set_override('max_template_size', 10_000, group='cluster_heat')
    if 'request of' in said:
        services.conf.set_override('max_json_body_size', 20_000, group='cluster_heat')
    before = rows_of(services, 1)[2]

    response = api(method, f'{complete}/nodegroups{path}', body)

    assert (response.status_code, said in response.json['faultstring']) == (400, True), (
        response.json
    )
    assert rows_of(services, 1)[2] == before and 'big' not in rows_of(services, 1)[1]


def test_resize_of_a_further_nodegroup_counts_the_nodes_of_all(
    api: Api, services: Services, complete: str
) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further', 'node_count': 2})
    api('POST', f'{complete}/nodegroups', {'name': 'another', 'node_count': 120})

    response = api(
        'POST', f'{complete}/actions/resize', {'node_count': 130, 'nodegroup': 'further'}
    )

    assert response.status_code == 400
    assert 'has room for 248 nodes, and 253 are asked for' in response.json['faultstring']


def test_deleted_nodegroup_wants_no_members(api: Api, services: Services, complete: str) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further', 'node_count': 2})

    assert api('DELETE', f'{complete}/nodegroups/further').status_code == 204
    assert api('DELETE', f'{complete}/nodegroups/further').status_code == 204

    _, groups, kinds = rows_of(services, 1)
    assert (groups['further'].status, wanted(groups['further'])) == (states.DELETE_IN_PROGRESS, [])
    assert wanted(groups['default-worker']) == [0, 1]
    assert kinds == ['nodegroup_create', 'nodegroup_delete']


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        (states.CREATE_FAILED, states.CREATE_IN_PROGRESS),
        (states.UPDATE_FAILED, states.UPDATE_IN_PROGRESS),
        (states.DELETE_FAILED, states.DELETE_IN_PROGRESS),
        (states.CREATE_IN_PROGRESS, states.CREATE_IN_PROGRESS),
        (states.UPDATE_COMPLETE, states.UPDATE_COMPLETE),
    ],
)
def test_any_change_tries_again_what_has_failed(
    api: Api, services: Services, complete: str, before: str, after: str
) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further'})
    with services.db.write() as session:
        session.execute(
            sa.update(models.NodeGroup)
            .where(models.NodeGroup.name == 'further')
            .values(status=before, status_reason='No room.', error_code='NO_VALID_HOST')
        )

    assert api('POST', f'{complete}/actions/resize', {'node_count': 3}).status_code == 202

    group = rows_of(services, 1)[1]['further']
    assert group.status == after
    assert (group.status_reason is None) == states.is_busy(after)


def test_nodegroup_that_is_being_made_goes_on_being_made_when_it_is_resized(
    api: Api, services: Services, complete: str
) -> None:
    api('POST', f'{complete}/nodegroups', {'name': 'further'})

    api('POST', f'{complete}/actions/resize', {'node_count': 3, 'nodegroup': 'further'})

    group = rows_of(services, 1)[1]['further']
    assert (group.status, wanted(group)) == (states.CREATE_IN_PROGRESS, [0, 1, 2])


def test_cluster_beyond_a_limit_that_came_later_may_shrink(
    api: Api, services: Services, complete: str
) -> None:
    services.conf.set_override('max_resources_per_stack', 30, 'cluster_heat')

    assert api('POST', f'{complete}/actions/resize', {'node_count': 1}).status_code == 202
    assert api('POST', f'{complete}/actions/resize', {'node_count': 2}).status_code == 400


def test_cluster_whose_driver_was_taken_away(api: Api, services: Services, complete: str) -> None:
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(driver='gone'))

    assert api('POST', f'{complete}/actions/resize', {'node_count': 3}).status_code == 409
    assert api('POST', f'{complete}/nodegroups', {'name': 'further'}).status_code == 409
    assert api('POST', f'{complete}/actions/resize', {'node_count': 1}).status_code == 202, (
        'it may shrink'
    )


@pytest.mark.parametrize('status', states.STATUSES)
def test_health_is_taken_in_every_status(
    api: Api, services: Services, nudges: Nudges, complete: str, status: str
) -> None:
    with services.db.write() as session:
        session.execute(sa.update(models.Cluster).values(status=status))
    before = rows_of(services, 1)[0]

    response = api(
        'PATCH', complete, [{'op': 'add', 'path': '/health_status', 'value': 'UNHEALTHY'}]
    )

    assert response.status_code == 202 and 'Location' not in response.headers
    cluster, _, kinds = rows_of(services, 1)
    assert cluster.health_status == 'UNHEALTHY'
    for name in ('status', 'updated_at', 'generation', 'check_at', 'health_at', 'status_reason'):
        assert getattr(cluster, name) == getattr(before, name)
    assert kinds == [] and nudges == []


def test_health_has_a_rule_of_its_own(services: Services, complete: str) -> None:
    services.enforcer.load_rules()
    services.enforcer.set_rules(
        {'cluster:update_health_status': policy.RoleCheck('role', 'healer')}, overwrite=False
    )
    api = Api(api_app.make_app(services))
    health, count = (
        [{'op': 'replace', 'path': f'/{name}', 'value': value}]
        for name, value in (('health_status', 'UNKNOWN'), ('node_count', 3))
    )

    assert api('PATCH', complete, [{**health[0], 'op': 'add'}]).status_code == 403
    assert api('PATCH', complete, [*count, {**health[0], 'op': 'add'}]).status_code == 403
    assert api('PATCH', complete, count).status_code == 202


@pytest.mark.parametrize('force', [False, True])
def test_force_is_written_down_and_stays(
    api: Api, services: Services, complete: str, force: bool
) -> None:
    assert api('DELETE', f'{complete}?force={force}', roles='admin').status_code == 204
    assert rows_of(services, 1)[0].delete_forced is force

    assert api('DELETE', f'{complete}?force=1', roles='admin').status_code == 204
    assert api('DELETE', complete).status_code == 204
    cluster, _, kinds = rows_of(services, 1)
    assert (cluster.delete_forced, kinds) == (True, ['delete'])


def test_operation_that_is_stopped_is_written_down(
    api: Api, services: Services, nudges: Nudges, complete: str
) -> None:
    location = api('POST', f'{complete}/actions/resize', {'node_count': 3}).headers['Location']
    nudges.clear()

    response = api('DELETE', location.removeprefix('http://localhost'))

    assert response.status_code == 202 and response.headers['Location'] == location
    cluster, _, _ = rows_of(services, 1)
    assert (cluster.cancelled_generation, cluster.generation, cluster.status) == (
        2,
        2,
        states.UPDATE_IN_PROGRESS,
    )
    assert cluster.check_at is not None and nudges == [cluster.uuid]


def test_look_at_a_running_operation_is_noted(services: Services, complete: str) -> None:
    api = Api(api_app.make_app(services))
    running = api('POST', f'{complete}/actions/resize', {'node_count': 3}).headers['Location']
    ended = store_operation(services.db, 1, 1, 'create')

    api('GET', f'/v1/operations/{ended}')
    api('GET', f'{complete}/operations')
    assert rows_of(services, 1)[0].polled_until is None

    api('GET', running.removeprefix('http://localhost'))
    assert rows_of(services, 1)[0].polled_until is not None


def test_operations_outlive_their_cluster(api: Api, services: Services, complete: str) -> None:
    location = api('DELETE', complete).headers['Location'].removeprefix('http://localhost')
    with services.db.write() as session:
        session.execute(sa.delete(models.Cluster))
        session.execute(
            sa.update(models.Operation).values(outcome='complete', ended_at=models.utcnow())
        )

    assert api('GET', location).json['outcome'] == 'complete'
    assert api('GET', location, project='p2').status_code == 404
    assert api('DELETE', location).status_code == 409
    assert api('GET', f'{complete}/operations').status_code == 404


def test_progress_and_failure_are_told(api: Api, services: Services) -> None:
    store_template(services.db)
    store_cluster(
        services.db,
        1,
        status=states.UPDATE_FAILED,
        error_code='NO_VALID_HOST',
        status_reason='No room.',
    )
    running = store_operation(
        services.db, 1, 2, 'resize', ended=False, resources_done=3, resources_total=9
    )
    failed = store_operation(
        services.db, 1, 1, 'resize', outcome='failed', code='NO_VALID_HOST', text='No room.'
    )
    with services.db.write() as session:
        for thing in (models.NodeGroup, models.Node):
            session.execute(
                sa.update(thing).values(error_code='NO_VALID_HOST', status_reason='No room.')
            )

    part = {
        name: api('GET', f'/v1/operations/{running}').json[name]
        for name in ('resources_done', 'resources_total')
    }
    assert part == {'resources_done': 3, 'resources_total': 9}
    body = api('GET', f'/v1/operations/{failed}').json
    assert (body['outcome'], body['code'], body['text']) == ('failed', 'NO_VALID_HOST', 'No room.')
    assert {node['code'] for node in api('GET', '/v1/clusters/c1/nodes').json['nodes']} == {
        'NO_VALID_HOST'
    }
    for path in ('/v1/clusters/c1', '/v1/clusters/c1/nodegroups/default-worker'):
        assert api('GET', path).json['error_code'] == 'NO_VALID_HOST'
        assert 'error_code' not in api('GET', path, version='container-infra 1.14').json


@pytest.mark.parametrize('path', ['nodegroups', 'nodes', 'operations'])
def test_listing_of_a_cluster_sends_two_statements_at_any_length(
    services: Services, path: str
) -> None:
    api = Api(api_app.make_app(services))
    store_template(services.db)
    store_cluster(services.db, 1)
    for number in range(2, 12):
        store_operation(services.db, 1, number, 'resize', ended=False)
        with services.db.write() as session:
            session.add(
                models.NodeGroup(
                    uuid=str(uuid.uuid4()),
                    project_id='p1',
                    cluster_id=uuid_of(1),
                    name=f'g{number}',
                    role='worker',
                    node_count=0,
                    next_number=0,
                    labels={},
                    status=states.CREATE_COMPLETE,
                )
            )

    with counted_statements(services.db) as seen:
        assert len(api('GET', f'/v1/clusters/c1/{path}').json[path]) >= 3

    assert len(seen) == 2


@pytest.mark.parametrize('path', ['quotas?all_tenants=true', 'mservices', 'stats'])
def test_listing_of_operators_is_one_statement_at_any_length(services: Services, path: str) -> None:
    api = Api(api_app.make_app(services))
    for number in range(12):
        db.report_service(services.db, f'c{number}', 'magnum-conductor')
        db.create_quota(
            services.db,
            models.Quota(project_id=f'p{number}', resource=db.CLUSTER_RESOURCE, hard_limit=1),
        )

    with counted_statements(services.db) as seen:
        body = api('GET', f'/v1/{path}', roles='admin').json

    assert len(seen) == 1
    assert (
        body == {'clusters': 0, 'nodes': 0}
        if path == 'stats'
        else len(body[path.partition('?')[0]]) == 12
    )


HOSTILE_PATCHES = {
    '10,000 operations': [{'op': 'replace', 'path': '/node_count', 'value': 3}] * 10_000,
    'a deep text': [{'op': 'replace', 'path': '/health_status_reason', 'value': '{"a":' * 5000}],
    'a deep sum': [
        {'op': 'replace', 'path': '/health_status_reason', 'value': '-' * 100_000 + '1'}
    ],
    'code': [
        {'op': 'replace', 'path': '/health_status_reason', 'value': "__import__('os').abort()"}
    ],
    'half a pair': [{'op': 'replace', 'path': '/health_status_reason', 'value': {'a': '\ud800'}}],
    'half a pair in a path': [{'op': 'replace', 'path': '/\ud800', 'value': 1}],
    'half a pair in an op': [{'op': '\ud800', 'path': '/node_count', 'value': 1}],
    '20,000 reasons': [
        {
            'op': 'replace',
            'path': '/health_status_reason',
            'value': dict.fromkeys(map(str, range(20_000)), ''),
        }
    ],
    'a long reason': [
        {'op': 'replace', 'path': '/health_status_reason', 'value': {'a': 'x' * 100_000}}
    ],
    'a deep list': [
        {'op': 'replace', 'path': '/health_status_reason', 'value': json.loads('[' * 20 + ']' * 20)}
    ],
    'a deep list of taints': [
        {'op': 'replace', 'path': '/node_taints', 'value': [[[[[[[['a']]]]]]]]}
    ],
    'half a pair in a key': [{'op': 'add', 'path': '/health_status_reason/a\ud800', 'value': 'x'}],
    'too many nodes': [{'op': 'replace', 'path': '/node_count', 'value': 2**31 - 1}],
    'more than nodes': [{'op': 'replace', 'path': '/node_count', 'value': 10**4000}],
}


@pytest.mark.parametrize('case', HOSTILE_PATCHES)
@pytest.mark.parametrize('path', ['', '/nodegroups/default-worker'])
def test_hostile_patch_is_refused(api: Api, complete: str, path: str, case: str) -> None:
    response = api('PATCH', complete + path, HOSTILE_PATCHES[case])

    assert response.status_code == 400
    assert len(response.body) < 3000


@pytest.mark.parametrize('value', ODD_VALUES, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize('op', ['add', 'replace', 'remove'])
def test_no_patch_of_a_template_is_our_mistake(
    api: Api, services: Services, op: str, value: Any
) -> None:
    for field in [
        *(field.name for field in resources.CLUSTER_TEMPLATE.fields),
        'links',
        'labels/x',
        'nothing',
    ]:
        with services.db.write() as session:
            session.execute(sa.delete(models.ClusterTemplate))
        store_template(services.db)

        response = api(
            'PATCH',
            f'/v1/clustertemplates/{TEMPLATE_UUID}',
            [{'op': op, 'path': f'/{field}', 'value': value}],
            roles='admin',
        )

        assert response.status_code in (200, 400), (field, response.text)
        if response.status_code == 200:
            assert api('GET', f'/v1/clustertemplates/{TEMPLATE_UUID}').json == response.json


@pytest.mark.parametrize('value', ODD_VALUES, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize(
    'field', ['project_id', 'resource', 'hard_limit', 'id', 'created_at', 'links']
)
def test_no_quota_is_our_mistake(api: Api, field: str, value: Any) -> None:
    body = {'project_id': 'p1', 'hard_limit': 3} | {field: value}

    assert api('POST', '/v1/quotas', body, roles='admin').status_code in (201, 400, 404)
    assert api('PATCH', '/v1/quotas/p1/Cluster', body, roles='admin').status_code in (202, 400, 404)


@pytest.mark.parametrize(
    'ident', ['%00', '%ff', 'x' * 10_000, '9' * 100, '-1', '0', '%F0%9F%98%80', "'", ' ']
)
def test_nothing_has_such_a_name(api: Api, complete: str, ident: str) -> None:
    for path in (
        f'{complete}/nodegroups/{ident}',
        f'/v1/operations/{ident}',
        f'/v1/clusters/{ident}/nodes',
    ):
        assert api('GET', path).status_code == 404
    assert api('DELETE', f'/v1/operations/{ident}').status_code == 404
    assert api('DELETE', f'/v1/quotas/{ident}/{ident}', roles='admin').status_code == 404
    assert api('GET', f'/v1/federations/{ident}').status_code == 404


def test_changes_at_the_same_time_all_come_to_be(
    conf: Any, any_database: db.Database, cloud: fakes.FakeCloud, nudges: Nudges
) -> None:
    """MariaDB would show each transaction the nodegroups and nodes from before it waited for the
    lock."""
    services: Any = Services(
        conf=conf,
        db=any_database,
        cloud=cloud,
        drivers=drivers.load(conf),
        nudger=nudges,
        notifier=notify.Notifier(conf),
        enforcer=policies.make_enforcer(conf),
        signer=None,
    )
    api, path = Api(api_app.make_app(services)), f'/v1/clusters/{uuid_of(1)}'
    store_template(any_database)
    store_cluster(any_database, 1)
    replace = {'node_count': 2, 'nodes_to_remove': []}
    requests = [('/nodegroups', {'name': f'g{number}'}) for number in range(4)] + [
        ('/actions/resize', {**replace, 'node_count': number}) for number in (3, 4, 5, 6)
    ]

    with futures.ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda request: api('POST', path + request[0], request[1]), requests)
        )

    assert [answer.status_code for answer in answers] == [202] * 8
    cluster, groups, kinds = rows_of(services, 1)
    assert groups.keys() == {'default-master', 'default-worker', 'g0', 'g1', 'g2', 'g3'}
    worker = groups['default-worker']
    assert len(wanted(worker)) == worker.node_count and worker.next_number == len(worker.nodes)
    assert (cluster.generation, len(kinds)) == (9, 8)


def test_one_of_two_nodegroups_with_one_name_comes_to_be(
    conf: Any, any_database: db.Database, cloud: fakes.FakeCloud, nudges: Nudges
) -> None:
    services: Any = Services(
        conf=conf,
        db=any_database,
        cloud=cloud,
        drivers=drivers.load(conf),
        nudger=nudges,
        notifier=notify.Notifier(conf),
        enforcer=policies.make_enforcer(conf),
        signer=None,
    )
    api = Api(api_app.make_app(services))
    store_template(any_database)
    store_cluster(any_database, 1)

    with futures.ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(
                lambda name: api('POST', f'/v1/clusters/{uuid_of(1)}/nodegroups', {'name': name}),
                ['same', 'same', 'same ', 'Same'],
            )
        )

    assert sorted(answer.status_code for answer in answers) == [202, 202, 409, 409]


def test_200_creates_at_once_make_as_many_clusters_as_the_quota_has(
    conf: Any, any_database: db.Database, cloud: fakes.FakeCloud, nudges: Nudges
) -> None:
    services: Any = Services(
        conf=conf,
        db=any_database,
        cloud=cloud,
        drivers=drivers.load(conf),
        nudger=nudges,
        notifier=notify.Notifier(conf),
        enforcer=policies.make_enforcer(conf),
        signer=None,
    )
    api = Api(api_app.make_app(services))
    store_template(any_database)

    with futures.ThreadPoolExecutor(32) as pool:
        answers = list(
            pool.map(
                lambda _: (
                    api(
                        'POST',
                        '/v1/clusters',
                        {'cluster_template_id': TEMPLATE_UUID, 'node_count': 0},
                    ).status_code
                ),
                range(200),
            )
        )

    assert conf.quotas.max_clusters_per_project == 20
    assert (answers.count(202), answers.count(403)) == (20, 180)
    assert len(db.list_clusters(any_database, db.Scope('p1'), db.Page(1000))) == 20
    assert len(nudges) == 20 and len(set(nudges)) == 20


# -- a cloud that is not well ----------------------------------------------------------------------

CREATIONS = [
    ('/v1/clustertemplates', TEMPLATE | {'name': 'other'}),
    ('/v1/clusters', {'cluster_template_id': 'k8s'}),
]


def fail(what: str, error: Exception) -> Callable[[str, str], None]:
    """A hook for the fake cloud: look-ups of that name end so."""

    def hook(name: str, when: str) -> None:
        if name == what:
            raise error

    return hook


@pytest.mark.parametrize(('path', 'body'), CREATIONS, ids=['template', 'cluster'])
@pytest.mark.parametrize('what', ['image', 'flavor', 'network'])
def test_service_that_does_not_answer_is_told_apart_from_a_mistake(
    api: Api,
    template: dict[str, Any],
    cloud: fakes.FakeCloud,
    path: str,
    body: dict[str, Any],
    what: str,
) -> None:
    cloud.hook = fail(what, clients.Unreachable('connection refused by 192.0.2.7'))

    response = api('POST', path, body)

    assert response.status_code == 503
    assert 'does not answer' in response.json['faultstring'] and '192.0.2.7' not in response.text


@pytest.mark.parametrize(('path', 'body'), CREATIONS, ids=['template', 'cluster'])
def test_image_that_the_caller_may_not_use(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud, path: str, body: dict[str, Any]
) -> None:
    cloud.hook = fail('image', clients.Rejected('HTTP 403'))

    response = api('POST', path, body)

    assert response.status_code == 403
    assert response.json['faultstring'] == 'You may not use image ubuntu.'


def test_key_that_is_there_twice(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud
) -> None:
    cloud.ambiguous.add('testkey')

    assert api('POST', '/v1/clusters', {'cluster_template_id': 'k8s'}).status_code == 409


@pytest.mark.parametrize('gone', ['images', 'flavors', 'external_networks', 'keypairs'])
def test_what_the_template_names_is_looked_up_again_for_a_cluster(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud, gone: str
) -> None:
    getattr(cloud, gone).clear()

    response = api('POST', '/v1/clusters', {'cluster_template_id': 'k8s'})

    assert response.status_code == (404 if gone == 'keypairs' else 400)


def test_service_that_the_catalog_does_not_have_is_told(api: Api, cloud: fakes.FakeCloud) -> None:
    cloud.missing = {'compute', 'network'}

    made = api('POST', '/v1/clustertemplates', TEMPLATE | {'flavor_id': 'nobody-looks'})
    response = api('POST', '/v1/clusters', {'cluster_template_id': 'k8s'})

    assert (made.status_code, response.status_code) == (201, 202)
    assert response.headers['Warning'] == (
        '199 magnum-lite "The catalog has no compute service: flavor, master flavor, keypair not '
        'checked.", 199 magnum-lite "The catalog has no network service: external network not '
        'checked."'
    )


@pytest.mark.parametrize(
    ('what', 'path', 'value'),
    [
        ('image', '/image_id', 'ubuntu-2'),
        ('flavor', '/flavor_id', 'm1.other'),
        ('network', '/external_network_id', 'other'),
    ],
)
def test_service_that_does_not_answer_keeps_a_template_as_it_is(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud, what: str, path: str, value: str
) -> None:
    cloud.hook = fail(what, clients.Unreachable('connection refused by 192.0.2.7'))
    change, rename = (
        [{'op': 'replace', 'path': path, 'value': value}]
        for path, value in ((path, value), ('/name', 'renamed'))
    )

    response = api('PATCH', '/v1/clustertemplates/k8s', change)

    assert response.status_code == 503 and '192.0.2.7' not in response.text
    assert api('PATCH', '/v1/clustertemplates/k8s', rename).status_code == 200


def test_change_of_what_the_catalog_has_no_service_for_is_told(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud
) -> None:
    cloud.missing = {'compute', 'image'}

    response = api(
        'PATCH',
        '/v1/clustertemplates/k8s',
        [{'op': 'replace', 'path': '/flavor_id', 'value': 'other'}],
    )

    assert response.headers['Warning'] == (
        '199 magnum-lite "The catalog has no compute service: flavor not checked."'
    )
    assert (
        api(
            'PATCH',
            '/v1/clustertemplates/k8s',
            [{'op': 'replace', 'path': '/image_id', 'value': 'other'}],
        ).status_code
        == 503
    )


def test_image_that_names_its_driver_does_so_for_a_template_without_one(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud
) -> None:
    cloud.images['own'] = clients.Image(
        '5d7e1b5c-0000-4000-8000-000000000007', 'own', 'ubuntu', 'k8s_cloud_init'
    )

    response = api(
        'PATCH',
        '/v1/clustertemplates/k8s',
        [{'op': 'replace', 'path': '/image_id', 'value': 'own'}],
    )

    assert (response.json['driver'], response.json['image_id']) == ('k8s_cloud_init', 'own')


@pytest.mark.parametrize('os_distro', ['fedora-coreos', 'flatcar'])
def test_nodes_come_from_images_that_the_driver_of_their_cluster_is_for(
    api: Api, template: dict[str, Any], cluster: str, cloud: fakes.FakeCloud, os_distro: str
) -> None:
    cloud.images['next'] = clients.Image(
        '5d7e1b5c-0000-4000-8000-000000000007', 'next', os_distro, None
    )
    assert (
        api(
            'POST', '/v1/clustertemplates', TEMPLATE | {'name': 'next', 'image_id': 'next'}
        ).status_code
        == 201
    )

    added = api('POST', f'/v1/clusters/{cluster}/nodegroups', {'name': 'more', 'image_id': 'next'})
    upgraded = api('POST', f'/v1/clusters/{cluster}/actions/upgrade', {'cluster_template': 'next'})

    assert (added.status_code, upgraded.status_code) == (400, 400)
    assert added.json['faultstring'] == (
        f'Driver k8s_cloud_init of cluster {cluster} makes no nodes from image next, whose '
        'os_distro '
        f'is {os_distro}. It makes them from ubuntu, debian, opensuse or fedora-atomic.'
    )
    assert upgraded.json['faultstring'].startswith(
        "Driver k8s_cloud_init does not make kubernetes clusters from an image with os_distro "
        f"'{os_distro}'"
    )


def test_template_whose_driver_was_taken_away_can_still_be_renamed(
    api: Api, template: dict[str, Any], services: Services
) -> None:
    services.conf.set_override('disabled_drivers', ['k8s_cloud_init'], 'drivers')

    assert (
        api(
            'PATCH',
            '/v1/clustertemplates/k8s',
            [
                {
                    'op': 'replace',
                    'path': '/image_id',
                    'value': '5d7e1b5c-0000-4000-8000-000000000001',
                }
            ],
        ).status_code
        == 400
    )
    assert (
        api(
            'PATCH',
            '/v1/clustertemplates/k8s',
            [{'op': 'replace', 'path': '/name', 'value': 'renamed'}],
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (clients.Unreachable('connection refused by 192.0.2.7'), 'it does not answer'),
        (clients.Rejected('HTTP 403'), 'it does not let this service see projects'),
    ],
)
def test_quota_is_not_set_while_keystone_cannot_say_whose_it_is(
    api: Api, services: Services, cloud: fakes.FakeCloud, error: Exception, reason: str
) -> None:
    cloud.hook = fail('get_project_state', error)

    response = api('POST', '/v1/quotas', {'project_id': 'p1', 'hard_limit': 3}, roles='admin')

    assert response.status_code == 503
    assert reason in response.json['faultstring'] and '192.0.2.7' not in response.text
    assert db.find_quota(services.db, 'p1', db.CLUSTER_RESOURCE) is None


def test_without_an_image_service_there_are_no_templates(api: Api, cloud: fakes.FakeCloud) -> None:
    cloud.missing = {'image'}

    assert api('POST', '/v1/clustertemplates', TEMPLATE).status_code == 503


# -- the stack of the application ------------------------------------------------------------------

PUBLIC = ['/', '/v1', '/v1/', '/v1/openapi.json', '/openapi.json/', '/docs', '/docs/']


@pytest.mark.parametrize('path', PUBLIC)
def test_public_documents_need_no_token(with_keystone: Api, path: str) -> None:
    response = with_keystone('GET', path, headers={'X-Auth-Token': 'rubbish'})

    assert response.status_code == 200
    assert 'links' in response.text or path.startswith('/docs')


@pytest.mark.parametrize(
    ('method', 'path'),
    [
        ('GET', '/v1/clusters'),
        ('GET', '/v1/clusters/'),
        ('GET', '/clusters'),
        ('GET', '/v1/clustertemplates'),
        ('GET', '/v1.json'),
        ('GET', '/v1//'),
        ('GET', '//'),
        ('GET', '//v1'),
        ('GET', '/v1/%2e%2e/v1'),
        ('GET', '/v2'),
        ('GET', '/nothing'),
        ('POST', '/v1/clusters'),
        ('DELETE', '/v1/clusters/c1'),
        ('GET', '/%ff'),
        ('GET', '/docs/x'),
        ('GET', '/v1/docs'),
        ('GET', '//docs'),
        ('GET', '/v1/openapi.json/x'),
    ],
)
def test_everything_else_needs_one(with_keystone: Api, method: str, path: str) -> None:
    """Claims of identity in the request count for nothing, and the body is that of
    keystonemiddleware."""
    response = with_keystone(
        method, path, roles='admin', headers={'X-Identity-Status': 'Confirmed'}
    )

    assert response.status_code == 401
    assert response.headers['Content-Type'].startswith('application/json')
    assert response.headers['WWW-Authenticate'] == 'Keystone uri="http://127.0.0.1:9/v3"'
    assert response.json == {
        'error': {
            'code': 401,
            'title': 'Unauthorized',
            'message': 'The request you have made requires authentication.',
        }
    }


def test_answer_of_keystone_that_is_no_token_is_a_503(
    with_keystone: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def html(*_: Any, **__: Any) -> None:
        raise KeyError('token')

    monkeypatch.setattr(auth_token.AuthProtocol, 'fetch_token', html)

    response = with_keystone('GET', '/v1/clusters', headers={'X-Auth-Token': 'fine'})

    assert response.status_code == 503 and 'temporarily unavailable' in response.text


@pytest.mark.parametrize(
    'address', ['192.0.2.1', '', '10.0.0.1', '2001:db8::1', '127.0.0.1.example', '0.0.0.0', 'x']
)
def test_noauth_serves_nobody_from_elsewhere(services: Services, address: str) -> None:
    application = api_app.make_app(services)

    for path in ('/', '/v1/clusters'):
        request = webob.Request.blank(
            path,
            environ={
                'REMOTE_ADDR': address,
                'HTTP_X_PROJECT_ID': 'p1',
                'HTTP_X_USER_ID': 'u1',
                'HTTP_X_ROLES': 'admin',
                'HTTP_X_FORWARDED_FOR': '127.0.0.1',
                'HTTP_FORWARDED': 'for=127.0.0.1',
            },
        )
        response = request.get_response(application)
        assert response.status_code == 403
        assert (
            response.json['errors'][0]['title']
            == 'auth_strategy noauth serves loopback addresses only'
        )


@pytest.mark.parametrize('address', ['127.0.0.1', '127.1.2.3', '::1', 'localhost'])
def test_noauth_serves_this_machine(services: Services, address: str) -> None:
    request = webob.Request.blank('/', environ={'REMOTE_ADDR': address})

    assert request.get_response(api_app.make_app(services)).status_code == 200


def test_links_have_the_prefix_under_which_the_api_is_mounted(services: Services) -> None:
    api, base_url = api_app.make_app(services), 'https://cloud.example/container-infra'
    caller = {
        'REMOTE_ADDR': '127.0.0.1',
        'HTTP_X_PROJECT_ID': 'p1',
        'HTTP_X_USER_ID': 'u1',
        'HTTP_X_ROLES': 'member',
    }

    def get(path: str, **more: Any) -> webob.Response:
        return webob.Request.blank(
            path, base_url=base_url, environ=dict(caller), **more
        ).get_response(api)

    made = get(
        '/v1/clustertemplates', POST=json.dumps(TEMPLATE).encode(), content_type='application/json'
    )
    item = f'{base_url}/v1/clustertemplates/{made.json["uuid"]}'
    assert made.headers['Location'] == item
    assert [link['href'] for link in made.json['links']] == [item, item.replace('/v1/', '/')]
    assert get('/v1/').json['links'][0]['href'] == f'{base_url}/v1/'
    assert get('/').json['versions'][0]['links'][0]['href'] == f'{base_url}/v1/'
    assert (
        get('/v1/clustertemplates?limit=1')
        .json['next']
        .startswith(f'{base_url}/v1/clustertemplates?')
    )


@pytest.mark.parametrize(('trusted', 'scheme'), [(False, 'http'), (True, 'https')])
def test_links_have_the_scheme_that_a_trusted_proxy_tells(
    services: Services, trusted: bool, scheme: str
) -> None:
    application = api_app.make_app(services)
    services.conf.set_override('enable_proxy_headers_parsing', trusted, 'oslo_middleware')

    response = Api(application)(
        'GET', '/v1', headers={'X-Forwarded-Proto': 'https', 'Host': 'cloud.example'}
    )

    assert response.json['links'][0]['href'] == f'{scheme}://cloud.example/v1/'


def test_origin_that_is_configured_is_answered(services: Services) -> None:
    api_app.make_app(services)  # this makes the options known
    services.conf.set_override('allowed_origin', ['https://dash.example'], 'cors')
    ask = {'Origin': 'https://dash.example', 'Access-Control-Request-Method': 'GET'}

    response = Api(api_app.make_app(services))('OPTIONS', '/v1/clusters', headers=ask)

    assert response.status_code == 200
    assert response.headers['Access-Control-Allow-Origin'] == 'https://dash.example'


def test_database_that_does_not_answer_is_no_mistake(services: Services) -> None:
    class Away:
        def read(self) -> Any:
            raise db_exc.DBConnectionError(Exception('192.0.2.7 is gone'))

    broken: Any = Away()
    response = Api(api_app.make_app(dataclasses.replace(services, db=broken)))(
        'GET', '/v1/clusters'
    )

    assert response.status_code == 503
    assert response.json['errors'][0]['code'] == 'server' and '192.0.2.7' not in response.text


def test_database_that_does_not_answer_is_said_once_and_not_for_each_request(
    services: Services, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        def read(self) -> Any:
            raise db_exc.DBConnectionError(Exception('192.0.2.7 is gone'))

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(api_app, '_DATABASE', outage.Outage('The database', 'Requests wait'))
    broken: Any = Away()
    away = Api(api_app.make_app(dataclasses.replace(services, db=broken)))
    for _ in range(3):
        away('GET', '/v1/clusters')
    Api(api_app.make_app(services))('GET', '/v1/clusters')

    said = [r.getMessage().split('.')[0] for r in caplog.records if r.name == outage.__name__]
    assert said[0] == 'The database fails' and len(said) == 2 and 'works again' in said[1]


def test_mistake_of_ours_tells_where_to_look_and_nothing_else(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def read(self) -> Any:
            raise RuntimeError('SELECT secret')

    broken: Any = Broken()
    response = Api(api_app.make_app(dataclasses.replace(services, db=broken)))(
        'GET', '/v1/clusters'
    )

    assert response.status_code == 500
    error = response.json['errors'][0]
    assert (
        error['code'] == 'server' and response.headers['x-openstack-request-id'] in error['detail']
    )
    assert 'secret' not in response.text and 'SELECT secret' in caplog.text
