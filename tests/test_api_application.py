"""The WSGI application around the handlers: tokens, proxies, CORS, and a database that is away."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from typing import Any

import fakes
import pytest
import sqlalchemy as sa
import webob
import webob.exc
from conftest import AVAILABLE, SERVERS, TEMPLATE, Api, Nudges, make_services, scratch_database
from keystoneauth1 import exceptions as ksa_exceptions
from keystonemiddleware import auth_token
from oslo_config import cfg
from oslo_db import exception as db_exc

from magnum_lite import db, models, outage
from magnum_lite.api import app as api_app
from magnum_lite.api.request import Services

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
def test_every_other_path_needs_a_token(with_keystone: Api, method: str, path: str) -> None:
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

    assert response.status_code == 503 and response.headers['Retry-After'] == '5'
    [error] = response.json['errors']
    assert error['detail'] == 'Keystone cannot check the token now. Try again later.'


@pytest.mark.parametrize(
    'raised',
    [
        pytest.param(webob.exc.HTTPServiceUnavailable('gone'), id='Keystone is away'),
        pytest.param(ksa_exceptions.EndpointNotFound(), id='no Keystone in the region'),
        pytest.param(ksa_exceptions.Unauthorized(), id='password of the service user'),
    ],
)
def test_keystone_that_cannot_be_asked_is_a_503_in_json(
    with_keystone: Api, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(auth_token.AuthProtocol, 'fetch_token', fail)

    response = with_keystone('GET', '/v1/clusters', headers={'X-Auth-Token': 'fine'})

    assert response.status_code == 503
    assert response.json['faultstring'] == 'Keystone cannot check the token now. Try again later.'


def test_request_without_a_token_does_not_end_an_outage_of_keystone(
    with_keystone: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    keystone = outage.Outage('The check of tokens by Keystone', 'Requests wait')
    monkeypatch.setattr(api_app, '_KEYSTONE', keystone)
    keystone.record_failure('refused')

    response = with_keystone('GET', '/v1/clusters', headers={})

    assert response.status_code == 401 and keystone.is_failing


@pytest.mark.parametrize(
    'address', ['192.0.2.1', '', '10.0.0.1', '2001:db8::1', '127.0.0.1.example', '0.0.0.0', 'x']
)
def test_noauth_refuses_other_machines(services: Services, address: str) -> None:
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


def test_database_that_does_not_answer_gives_a_503(services: Services) -> None:
    class Away:
        def read(self) -> Any:
            raise db_exc.DBConnectionError(Exception('192.0.2.7 is gone'))

    broken: Any = Away()
    response = Api(api_app.make_app(dataclasses.replace(services, db=broken)))(
        'GET', '/v1/clusters'
    )

    assert response.status_code == 503 and response.headers['Retry-After'] == '5'
    assert response.json['errors'][0]['code'] == 'server' and '192.0.2.7' not in response.text


def test_database_without_a_schema_gives_a_503(
    conf: cfg.ConfigOpts, any_database: db.Database, cloud: fakes.FakeCloud, nudges: Nudges
) -> None:
    api = Api(api_app.make_app(make_services(conf, any_database, cloud, nudges)))
    models.Base.metadata.drop_all(any_database.engine)

    response = api('GET', '/v1/clusters')

    assert response.status_code == 503 and response.headers['Retry-After'] == '5'


@pytest.mark.skipif('postgresql' not in AVAILABLE, reason='no PostgreSQL answers')
def test_postgresql_that_takes_no_connection_gives_a_503(
    conf: cfg.ConfigOpts, tmp_path: pathlib.Path, cloud: fakes.FakeCloud, nudges: Nudges
) -> None:
    with scratch_database('postgresql', tmp_path) as url:
        database = db.Database(conf, connection=url)
        models.Base.metadata.create_all(database.engine)
        api = Api(api_app.make_app(make_services(conf, database, cloud, nudges)))
        assert api('GET', '/v1/clusters').status_code == 200
        database.engine.dispose()
        server = sa.create_engine(SERVERS['postgresql'], isolation_level='AUTOCOMMIT')
        allow = f'ALTER DATABASE {sa.make_url(url).database} ALLOW_CONNECTIONS'
        with server.connect() as connection:
            connection.execute(sa.text(f'{allow} false'))
            response = api('GET', '/v1/clusters')
            connection.execute(sa.text(f'{allow} true'))
        server.dispose()
        again = api('GET', '/v1/clusters')
        database.engine.dispose()

    assert (response.status_code, again.status_code) == (503, 200)


def test_database_that_does_not_answer_is_logged_once_and_not_for_each_request(
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


def test_internal_error_shows_where_to_look_and_no_secret(
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
