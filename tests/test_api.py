"""The requests of `api/*.yaml`, sent by gabbi to the application, and their fixtures.

One request of a YAML file, with those before it: `pytest tests/test_api.py -k
the_words_of_its_name`. (Gabbi cannot be given a test's full name: it needs to see the first one of
the file.)"""

from __future__ import annotations

import contextlib
import datetime
import json
import pathlib
import re
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from gabbi import case, driver, fixture
from gabbi.driver import test_pytest
from gabbi.handlers import base
from rows import NEWER_UUID, store_cluster, store_operation, store_template, uuid_of
from watched import Stage, stage

from magnum_lite import certs, clients, db, keystore, models, states
from magnum_lite.api import app as api_app

YAML = str(pathlib.Path(__file__).with_name('api'))


# -- gabbi -----------------------------------------------------------------------------------------


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
