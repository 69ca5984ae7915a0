"""The application with checks on every response, and a stage to run it on outside of pytest.

`Watched` holds what must be true of every response, so that no single test has to say it: a refused
request, and every GET, leaves the database as it was. test_api.py and test_api_*.py use it through
the fixture `watched_api`, test_roles.py and the gabbi files through `stage()`."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import contract
import fakes
import pytest
import webob
from conftest import Api, Nudges, make_services, scratch_database
from oslo_config import fixture as config_fixture

from magnum_lite import config, db, models
from magnum_lite.api import app as api_app
from magnum_lite.api.request import Services

VERSIONED = (
    'OpenStack-API-Version',
    'OpenStack-API-Minimum-Version',
    'OpenStack-API-Maximum-Version',
    'Vary',
)


#: What the API may ask of the cloud. Everything else is the conductor's.
LOOKUPS = {'image', 'flavor', 'network', 'subnet', 'keypair', 'get_project_state'}


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
def watched_api(services: Services, watch: Watch) -> Api:
    """Sends requests whose responses `Watched` checks."""
    return watch(api_app.make_app(services))


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
        services = make_services(settings.conf, database, cloud, Nudges())
        with contextlib.closing(Watched(api_app.make_app(services), services)) as application:
            yield Stage(settings, database, cloud, application)
        database.engine.dispose()
