"""What the client libraries raise, and what it becomes. The exceptions are the libraries' own.

The second half speaks over HTTP to a Heat that says what it is told to: what a real one does is in
functional/."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import types
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from heatclient import exc as heat_exc
from heatclient.v1 import client as heat_client
from keystoneauth1 import exceptions as ksa_exc
from keystoneauth1 import token_endpoint
from openstack import exceptions as sdk_exc
from oslo_config import cfg

from magnum_lite import clients


def response(status: int, **headers: str) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    made.headers.update(headers)
    return made


@pytest.mark.parametrize(
    ('raised', 'becomes'),
    [
        (
            heat_exc.HTTPNotFound(
                '{"error": {"message": "The Stack (x) could not be found."}}', 404
            ),
            clients.NotFound,
        ),
        (
            heat_exc.HTTPConflict('{"error": {"message": "The Stack (x) already exists."}}', 409),
            clients.Conflict,
        ),
        (
            heat_exc.HTTPBadRequest('{"error": {"message": "Property error"}}', 400),
            clients.Rejected,
        ),
        (heat_exc.HTTPForbidden('not JSON', 403), clients.Rejected),
        (heat_exc.HTTPUnauthorized('{}', 401), clients.Unreachable),
        (heat_exc.HTTPInternalServerError('<html>500</html>', 500), clients.Unreachable),
        (heat_exc.HTTPServiceUnavailable('["a list"]', 503), clients.Unreachable),
        (heat_exc.HTTPServiceUnavailable('{"error": null}', 503), clients.Unreachable),
        (heat_exc.HTTPServiceUnavailable('{"error": "text"}', 503), clients.Unreachable),
        (heat_exc.HTTPServiceUnavailable(b'', 503), clients.Unreachable),
        (heat_exc.HTTPException(b'<html>too many</html>', 429), clients.Unreachable),
        (heat_exc.HTTPException(b'', 504), clients.Unreachable),
        (heat_exc.HTTPNotFound(b'<html><title>404</title></html>', 404), clients.Unreachable),
        (heat_exc.HTTPNotFound(b'', 404), clients.NotFound),
        (sdk_exc.NotFoundException('No Image found for x'), clients.NotFound),
        (sdk_exc.NotFoundException('gone', response=response(404)), clients.NotFound),
        (
            sdk_exc.NotFoundException(
                'a page', response=response(404, **{'Content-Type': 'text/html'})
            ),
            clients.Unreachable,
        ),
        (sdk_exc.ConflictException('immutable', response=response(409)), clients.Conflict),
        (sdk_exc.DuplicateResource('More than one'), clients.Conflict),
        (sdk_exc.BadRequestException('no', response=response(400)), clients.Rejected),
        (sdk_exc.HttpException('too many', response=response(429)), clients.Unreachable),
        (sdk_exc.SDKException('whatever'), clients.Unreachable),
        (ksa_exc.NotFound('no such project'), clients.NotFound),
        (ksa_exc.Conflict('taken'), clients.Conflict),
        (ksa_exc.Forbidden('no'), clients.Rejected),
        (ksa_exc.Unauthorized('who'), clients.Unreachable),
        (ksa_exc.GatewayTimeout('504'), clients.Unreachable),
        (ksa_exc.ConnectFailure('refused'), clients.Unreachable),
        (ksa_exc.EndpointNotFound('orchestration'), clients.Unreachable),
        (requests.ReadTimeout('slow'), clients.Unreachable),
        (requests.JSONDecodeError('Expecting value', '<html>', 0), clients.Unreachable),
        (KeyError('stack'), clients.Unreachable),
        (IndexError('no such link'), clients.Unreachable),
    ],
)
def test_every_failure_is_one_of_four(raised: Exception, becomes: type[clients.CloudError]) -> None:
    with (
        pytest.raises(clients.CloudError, match=r'^Doing it: ') as caught,
        clients._translate_errors('Doing it'),
    ):
        raise raised

    assert type(caught.value) is becomes
    assert caught.value.what == 'Doing it'


def test_what_heat_says_is_passed_on() -> None:
    with (
        pytest.raises(clients.Rejected, match=r'^Doing it: Property error: x \(HTTP 400\)$'),
        clients._translate_errors('Doing it'),
    ):
        raise heat_exc.HTTPBadRequest('{"error": {"message": "Property error:\\n   x"}}', 400)


def test_a_page_is_told_without_its_tags() -> None:
    with (
        pytest.raises(clients.Unreachable, match=r'^Doing it: 502 Bad Gateway nginx \(HTTP 502\)$'),
        clients._translate_errors('Doing it'),
    ):
        raise heat_exc.HTTPBadGateway(
            b'<html>\r\n<head></head><body><h1>502 Bad Gateway</h1>\r\n<hr>nginx</body></html>', 502
        )


@pytest.mark.parametrize(
    ('header', 'seconds'),
    [
        ('7', 7.0),
        ('86400', 600.0),
        ('-1', None),
        ('soon', None),
        ('Wed, 21 Oct 2026 07:28:00 GMT', None),
        (None, None),
    ],
)
def test_retry_after_is_heeded(header: str | None, seconds: float | None) -> None:
    headers = {'Retry-After': header} if header else {}
    with pytest.raises(clients.Unreachable) as caught, clients._translate_errors('Doing it'):
        raise ksa_exc.HttpError('slow down', response=response(429, **headers), http_status=429)

    assert caught.value.retry_after_s == seconds


def test_what_is_already_said_stays() -> None:
    with (
        pytest.raises(clients.NotFound, match=r'^inner: not found') as caught,
        clients._translate_errors('outer'),
        clients._translate_errors('inner'),
    ):
        raise ksa_exc.NotFound('not found')

    assert caught.value.what == 'inner'


def test_errors_can_be_made_by_hand() -> None:
    assert (clients.CloudError('text').what, clients.Unreachable('text', 3.0).retry_after_s) == (
        '',
        3.0,
    )


def test_death_is_no_failure_of_the_cloud() -> None:
    with pytest.raises(KeyboardInterrupt), clients._translate_errors('Doing it'):
        raise KeyboardInterrupt


class Heat:
    """Answers every request with the next of `answers`: status, headers, body (JSON unless it is
    bytes)."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], Any]] = []
        self.requests: list[tuple[str, str, Any]] = []

    def serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get('Content-Length') or 0))
        self.requests.append((request.command, request.path, json.loads(body) if body else None))
        status, headers, answer = self.answers.pop(0)
        if not isinstance(answer, bytes):
            answer, headers = (
                json.dumps(answer).encode(),
                {'Content-Type': 'application/json', **headers},
            )
        request.send_response(status)
        for name, value in {**headers, 'Content-Length': str(len(answer))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(answer)


@pytest.fixture
def heat() -> Heat:
    return Heat()


@pytest.fixture
def stacks(heat: Heat, conf: cfg.ConfigOpts) -> Iterator[clients.Stacks]:
    """The stacks of project `mine`, at a Heat of this process."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.close_connection = True
            self.raw_requestline = self.rfile.readline(65537)
            if self.raw_requestline and self.parse_request():
                heat.serve(self)

        def log_message(self, *_: Any) -> None:
            pass

    with (
        http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server,
        contextlib.ExitStack() as undo,
    ):
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        undo.callback(thread.join)
        undo.callback(server.shutdown)
        session = clients.Cloud(conf)._make_session(
            token_endpoint.Token(f'http://127.0.0.1:{server.server_port}', 'token')
        )
        undo.callback(session.session.close)
        yield clients.Stacks(
            heat_client.Client(session=session, service_type='orchestration'), 'mine'
        )


def listed(name: str, stack_id: str = 'id', **more: Any) -> dict[str, Any]:
    return {
        'id': stack_id,
        'stack_name': name,
        'stack_status': 'CREATE_COMPLETE',
        'stack_status_reason': None,
        'creation_time': '2026-11-24T20:10:05Z',
        **more,
    }


@pytest.mark.parametrize(
    ('status', 'headers', 'body', 'seconds', 'said'),
    [
        (429, {'Retry-After': '7'}, b'', 7, 'no reason given (HTTP 429)'),
        (503, {'Retry-After': '9999'}, b'<html><h1>Busy</h1></html>', 600, 'Busy (HTTP 503)'),
        (
            503,
            {'Retry-After': 'Wed, 21 Oct 2026 07:28:00 GMT'},
            b'',
            None,
            'no reason given (HTTP 503)',
        ),
        (503, {}, {'error': {'message': 'no engine'}}, None, 'no engine (HTTP 503)'),
        (504, {}, b'<html><h1>Gateway Time-out</h1></html>', None, 'Gateway Time-out (HTTP 504)'),
        (404, {}, b'<html><h1>Not Found</h1></html>', None, 'Not Found (HTTP 404)'),
        (200, {}, b'<html><h1>Maintenance</h1></html>', None, 'the answer could not be read'),
        (200, {}, b'', None, 'the answer could not be read'),
        (200, {}, [], None, 'the answer could not be read'),
        (200, {}, {'stacks': [{'id': 'x'}]}, None, 'the answer could not be read'),
    ],
)
def test_a_heat_that_is_not_well_is_away(
    heat: Heat,
    stacks: clients.Stacks,
    status: int,
    headers: dict[str, str],
    body: Any,
    seconds: float | None,
    said: str,
) -> None:
    heat.answers = [(status, headers, body)]

    with pytest.raises(clients.Unreachable) as caught:
        stacks.list_by_ids(['x'])

    assert (caught.value.what, caught.value.retry_after_s) == ('Looking at stacks', seconds)
    assert said in str(caught.value)
    assert len(heat.requests) == 1, 'no library tries it again by itself'


def test_tags_tell_the_revision(heat: Heat, stacks: clients.Stacks) -> None:
    heat.answers = [
        (
            200,
            {},
            {
                'stacks': [
                    listed('new', 'a', tags=['magnum-lite', 'rev-12']),
                    listed('old', 'b', tags=None),
                    listed('older', 'c'),
                    listed('odd', 'd', tags=['rev-x', 'my-rev-3']),
                ]
            },
        )
    ]

    found = stacks.list_by_ids(['a', 'b', 'c', 'd'])

    assert {s.id: (s.revision, s.tags) for s in found.values()} == {
        'a': (12, ('magnum-lite', 'rev-12')),
        'b': (0, ()),
        'c': (0, ()),
        'd': (0, ('rev-x', 'my-rev-3')),
    }


@pytest.mark.parametrize(('count', 'ids_in_address'), [(1, 1), (100, 100), (101, 0), (1000, 0)])
def test_any_number_of_stacks_is_one_call(
    heat: Heat, stacks: clients.Stacks, count: int, ids_in_address: int
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(count)]
    heat.answers = [(200, {}, {'stacks': [listed(one, one) for one in [*ids[1:], 'another']]})]

    found = stacks.list_by_ids(ids)

    assert set(found) == set(ids[1:])
    [(_, path, _)] = heat.requests
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)
    assert (query['tenant'], len(query.get('id', ()))) == (['mine'], ids_in_address)
    assert len(path) < 8192


def test_no_stack_is_no_call(heat: Heat, stacks: clients.Stacks) -> None:
    assert stacks.list_by_ids([]) == {}
    assert not heat.requests


def test_ours_are_those_with_the_tag_or_a_uuid_at_the_end(
    heat: Heat, stacks: clients.Stacks
) -> None:
    heat.answers = [
        (
            200,
            {},
            {
                'stacks': [
                    listed(f'one-{uuid.uuid4()}'),
                    listed('two', tags=['magnum-lite']),
                    listed('three', tags=['theirs']),
                    listed(f'{uuid.uuid4()}-four'),
                ]
            },
        )
    ]

    assert [s.name.partition('-')[0] for s in stacks.list_ours()] == ['one', 'two']


def test_an_update_keeps_what_it_does_not_name(heat: Heat, stacks: clients.Stacks) -> None:
    heat.answers = [(202, {}, b'')]

    stacks.update(
        'x',
        template='t',
        files={'f': 'F'},
        parameters={'a': 1},
        timeout_min=5,
        tags=['magnum-lite', 'rev-2'],
    )

    assert heat.requests == [
        (
            'PATCH',
            '/stacks/x',
            {
                'template': 't',
                'files': {'f': 'F'},
                'parameters': {'a': 1},
                'timeout_mins': 5,
                'disable_rollback': True,
                'tags': 'magnum-lite,rev-2',
            },
        )
    ]


@pytest.mark.parametrize(
    ('status', 'message', 'raised'),
    [
        (400, 'Cancelling update when stack is CREATE_COMPLETE is not supported.', None),
        (400, 'Invalid action', clients.Rejected),
        (404, 'The Stack (x) could not be found.', clients.NotFound),
    ],
)
def test_cancelling_what_has_ended_is_nothing(
    heat: Heat, stacks: clients.Stacks, status: int, message: str, raised: type[Exception] | None
) -> None:
    heat.answers = [(status, {}, {'code': status, 'error': {'type': 'x', 'message': message}})]

    with pytest.raises(raised) if raised else contextlib.nullcontext():
        stacks.cancel('x')

    assert heat.requests == [('POST', '/stacks/x/actions', {'cancel_without_rollback': None})]


def test_progress_counts_what_was_begun_and_is_complete(heat: Heat, stacks: clients.Stacks) -> None:
    heat.answers = [
        (
            200,
            {},
            {
                'resources': [
                    {'resource_status': status}
                    for status in (
                        'INIT_COMPLETE',
                        'CREATE_IN_PROGRESS',
                        'CREATE_COMPLETE',
                        'UPDATE_COMPLETE',
                        'CREATE_FAILED',
                    )
                ]
            },
        )
    ]

    assert stacks.get_progress('x') == (2, 5)


def test_a_failed_resource_tells_where_it_is(heat: Heat, stacks: clients.Stacks) -> None:
    def resource(name: str, **more: Any) -> dict[str, Any]:
        return {
            'resource_name': name,
            'resource_type': 't',
            'resource_status_reason': None,
            'physical_resource_id': '',
            'links': [
                {'rel': 'self', 'href': 'http://h/v1/p/stacks/outer/1/resources/x'},
                {'rel': 'stack', 'href': 'http://h/v1/p/stacks/outer/1'},
            ],
            **more,
        }

    heat.answers = [(200, {}, {'resources': [resource('a'), resource('b', parent_resource='a')]})]

    assert stacks.list_failures('x') == [
        clients.FailedResource('a', 't', '', 'outer', '', '1', ''),
        clients.FailedResource('b', 't', '', 'outer', '', '1', 'a'),
    ]


@pytest.mark.parametrize(
    ('resource_type', 'physical_id', 'filters'),
    [
        ('OS::Neutron::Net', 'n', {'network_id': 'n'}),
        ('OS::Neutron::Subnet', 's', {'fixed_ips': 'subnet_id=s'}),
        ('OS::Neutron::RouterInterface', 'r:subnet_id=s', {'fixed_ips': 'subnet_id=s'}),
        ('OS::Neutron::RouterInterface', 'r:port_id=p', {}),
        ('OS::Neutron::SecurityGroup', 'g', {'security_groups': 'g'}),
        ('OS::Nova::Server', 'x', {}),
    ],
)
def test_what_is_not_known_has_no_filter(
    resource_type: str, physical_id: str, filters: dict[str, str]
) -> None:
    assert clients._build_port_filter(resource_type, physical_id) == filters


def test_without_a_filter_nobody_is_asked(conf: cfg.ConfigOpts) -> None:
    cloud = clients.Cloud(conf)  # knows no cloud at all

    assert cloud.list_blockers('p', 'OS::Nova::Server', 'x') == []
    assert cloud.list_blockers('p', 'OS::Neutron::Net', '') == []


@pytest.mark.parametrize(
    ('address', 'url'),
    [
        ('http://k/identity', 'http://k/identity/v3'),
        ('http://k:5000/v3/', 'http://k:5000/v3'),
        (None, None),
    ],
)
def test_login_of_a_cluster_has_the_address_of_the_catalog(
    conf: cfg.ConfigOpts, address: str | None, url: str | None
) -> None:
    cloud: Any = clients.Cloud(conf)
    cloud._own = types.SimpleNamespace(
        session=types.SimpleNamespace(get_endpoint=lambda **_: address)
    )

    if url:
        assert cloud.build_login('user', 'password').auth_url == url
    else:
        with pytest.raises(clients.Rejected, match='it has no public address of identity'):
            cloud.build_login('user', 'password')


@pytest.mark.parametrize(
    ('ref', 'is_external', 'found'),
    [('public', True, True), ('an-id', True, True), ('an-id', False, False)],
)
def test_external_network_is_found_by_id_and_only_if_it_is_one(
    ref: str, is_external: bool, found: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def find_network(ref: str, **how: Any) -> types.SimpleNamespace:
        asked.append(how)
        return types.SimpleNamespace(id='an-id', is_router_external=is_external)

    cloud: Any = types.SimpleNamespace(network=types.SimpleNamespace(find_network=find_network))
    lookups = clients.Lookups(cloud, 'public', None)

    with contextlib.nullcontext() if found else pytest.raises(clients.NotFound):
        assert lookups.get_network_id(ref, external=True) == 'an-id'
    assert asked == [{'ignore_missing': False, 'router:external': True}], (
        'Neutron knows no other name of it'
    )
