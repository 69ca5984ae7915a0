"""The WSGI application: middleware, a Pecan root, and `dispatch`, which answers every request.

`wsgi`, the command and the tests call `make_app`. A request passes request id, proxy headers, CORS
and Keystone's token check, and reaches Pecan, which calls one exposed method. `dispatch` finds the
route, checks version, policy, query and body, calls the handler and writes the answer or the error.
It is the only place that knows the error envelope. Handlers, not this module, use the database."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import oslo_middleware
import pecan
import webob
import webob.exc
from keystoneauth1 import exceptions as ksa_exceptions
from keystonemiddleware import auth_token
from oslo_config import cfg
from oslo_log import log
from pecan import core

from magnum_lite import context, db, drivers, errors, notify, outage, rpc, schema
from magnum_lite.api import (
    docs,
    etags,
    healthcheck,
    idempotency,
    policies,
    preflight,
    routes,
    versions,
)
from magnum_lite.api.request import Answer, Documents, Key, Request, Services
from magnum_lite.api.route import Route

LOG = log.getLogger(__name__)

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_DATABASE = outage.Outage(
    'The database', 'Requests are answered with 503 meanwhile. See [database] connection'
)
_KEYSTONE = outage.Outage(
    'The check of tokens by Keystone',
    'Requests are answered with 503 meanwhile. See [keystone_authtoken]',
)
#: Seconds after which a caller may try again what was answered with 503.
RETRY_AFTER_S = 5
#: Braces and brackets in one body, those in texts included: far more than any client sends. To
#: parse more takes longer than a request may.
_MAX_CONTAINERS = 10_000
HELP = 'https://docs.openstack.org/magnum/latest/contributor/api-microversion.html'


class Root:
    """Pecan's root. It has no controllers below it, because `routes` is the only table."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @pecan.expose()
    def serve(self, request: webob.Request, response: webob.Response) -> webob.Response:
        """Answer the request; the response that Pecan offers is not used."""
        return dispatch(self._services, request)


class Application(core.ExplicitPecan):
    """Pecan that leaves path, query and body to `dispatch`, which reads them once, with limits.

    Pecan's own search for a controller decodes all three first, at any length, and raises if it
    cannot."""

    def find_controller(self, state: Any) -> tuple[Any, list[Any], dict[str, Any]]:
        """The only controller, `Root.serve`."""
        state.controller = self.root.serve
        return state.controller, [state.request, state.response], {}


def make_services(conf: cfg.ConfigOpts) -> Services:
    """The services of this process. Raises DriverError for a faulty driver folder."""
    return Services(
        conf=conf,
        db=db.Database(conf),
        cloud=preflight.make_cloud(conf),
        drivers=drivers.load(conf),
        nudger=rpc.Nudger(conf),
        notifier=notify.Notifier(conf),
        enforcer=policies.make_enforcer(conf),
        signer=rpc.Signer(conf),
    )


@functools.cache
def _build_documents() -> Documents:
    """Once per process and not per application, because tests make thousands of those."""
    return docs.build(routes.ROUTES)


def make_app(services: Services) -> WSGI:
    """The application with all its middleware."""
    conf = services.conf
    services = dataclasses.replace(services, documents=_build_documents())
    # Pecan's own request class hides what cannot be decoded.
    app: WSGI = Application(Root(services), request_cls=webob.Request)
    if conf.api.auth_strategy != 'noauth':
        app = _bypass_for_public(app, TokenCheck(app, {'oslo_config_config': conf}))
    cors = oslo_middleware.CORS(app, conf)
    # Without origins it would answer every OPTIONS with 200.
    if cors.allowed_origins:
        app = cors
    app = oslo_middleware.HTTPProxyToWSGI(app, conf)
    app = oslo_middleware.RequestId(app, conf)
    readiness = healthcheck.Readiness(healthcheck.make_checks(services))
    app = _add_healthcheck(app, healthcheck.Healthcheck(conf, readiness))
    if conf.api.auth_strategy == 'noauth':
        # Outside of the middleware that reads proxy headers, because a caller may forge those.
        app = _require_loopback(app)
    return app


class TokenCheck(auth_token.AuthProtocol):
    """Keystone's token check, and our 503 where Keystone cannot be asked.

    The middleware's own 503 is an HTML page. For other failures it raises: an answer that is no
    token, such as an HTML page with status 200, or a catalog without Keystone in the region that
    [keystone_authtoken] names."""

    def process_request(self, request: webob.Request) -> webob.Response | None:
        """Check the token. Returns None if it is good, and an answer if Keystone cannot tell.

        Raises keystonemiddleware's 401 for a bad token, or none: that may not have asked Keystone,
        so it ends no outage."""
        try:
            answer = super().process_request(request)
        except (webob.exc.HTTPServerError, ksa_exceptions.ClientException, *NO_TOKEN) as e:
            _KEYSTONE.record_failure(f'{type(e).__name__}: {e}')
            return _make_error(503, 'Keystone cannot check the token now. Try again later.')
        _KEYSTONE.record_success()
        return answer


#: What keystonemiddleware raises when the answer of Keystone cannot be read as a token.
NO_TOKEN = (LookupError, TypeError, ValueError, AttributeError)


def _bypass_for_public(app: WSGI, checked: WSGI) -> WSGI:
    """Serve the public documents by `app`, everything else by `checked`, which needs a token."""

    def choose(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        is_public = environ.get('PATH_INFO', '') in routes.PUBLIC
        return (app if is_public else checked)(environ, start_response)

    return choose


def _add_healthcheck(app: WSGI, health: WSGI) -> WSGI:
    """Serve the two addresses of health by `health`, and all others by `app`."""

    def choose(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get('PATH_INFO', '').removesuffix('/')
        is_health = path in (healthcheck.LIVE, healthcheck.READY)
        return (health if is_health else app)(environ, start_response)

    return choose


def _require_loopback(app: WSGI) -> WSGI:
    """Refuse callers on other machines: without Keystone, callers are not authenticated."""

    def check(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if is_loopback(environ.get('REMOTE_ADDR', '')):
            return app(environ, start_response)
        response = _make_error(403, 'auth_strategy noauth serves loopback addresses only')
        return response(environ, start_response)

    return check


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine only. Of names only localhost is: others may resolve
    to any address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == 'localhost'


def dispatch(services: Services, raw: webob.Request) -> webob.Response:
    """Answer one request, whatever happens."""
    response = _make_response()
    try:
        answer, status = _handle_request(services, raw, response)
        _write_answer(response, answer, status)
    except versions.Unsupported as e:
        _write_unsupported(response, e)
    except errors.HttpError as e:
        if isinstance(e, errors.MethodNotAllowed):
            response.headers['Allow'] = ', '.join(e.allowed)
        code = 'client' if e.code < 500 else 'server'
        _write_error(response, e.code, str(e), code if str(e) else '', e.title)
    except Exception as e:
        if db.is_outage(e):
            _DATABASE.record_failure(str(getattr(e, 'inner_exception', None) or e))
            _write_error(
                response, 503, 'The database cannot be used now. Try again later.', 'server'
            )
            return response
        LOG.exception('%s %s failed', raw.method, raw.path_info)
        request_id = raw.environ.get('openstack.request_id', '')
        detail = (
            'The service made a mistake. Its log has the details under the request id '
            f'{request_id}.'
        )
        _write_error(response, 500, detail, 'server')
    return response


def _make_response() -> webob.Response:
    return webob.Response(content_type='application/json', charset='UTF-8')


def _make_error(status: int, detail: str) -> webob.Response:
    """Make an answer with the error body, for a request that does not reach `dispatch`."""
    response = _make_response()
    _write_error(response, status, detail, 'client' if status < 500 else 'server')
    return response


def _write_answer(response: webob.Response, answer: Answer, status: int) -> None:
    response.status_code = status
    response.headers.update(answer.headers)
    if answer.body is None:
        del response.content_type, response.content_length
    elif isinstance(answer.body, bytes):
        # Not JSON: the headers of the answer name the media type.
        response.body = answer.body
    else:
        response.body = json.dumps(answer.body).encode()


def _write_unsupported(response: webob.Response, error: versions.Unsupported) -> None:
    """Write the error document of the microversion specification, which is not the envelope."""
    _write_versions(response, error.version)
    response.status_code = error.code
    response.json_body = {
        'errors': [
            {
                'code': 'magnum.microversion-unsupported',
                'title': 'Requested microversion is unsupported',
                'max_version': f'1.{versions.MAXIMUM}',
                'min_version': f'1.{versions.MINIMUM}',
                'links': [{'rel': 'help', 'href': HELP}],
            }
        ]
    }


def _write_error(
    response: webob.Response, status: int, detail: str, code: str, title: str | None = None
) -> None:
    """Write Magnum's error body, plus `faultstring`, where openstacksdk looks for the text.

    `code` is `client` or `server`. The title is the first sentence of `detail` unless given."""
    response.status_code = status
    if status == 503:
        response.headers['Retry-After'] = str(RETRY_AFTER_S)
    response.json_body = {
        'errors': [
            {
                'request_id': '',
                'code': code,
                'status': status,
                'title': detail.split('. ', 1)[0].rstrip('.') if title is None else title,
                'detail': detail,
                'links': [],
            }
        ],
        'faultstring': detail,
    }


def _write_versions(response: webob.Response, version: str) -> None:
    """Write the headers of the microversion specification."""
    headers = response.headers
    headers['OpenStack-API-Minimum-Version'] = f'{versions.SERVICE} 1.{versions.MINIMUM}'
    headers['OpenStack-API-Maximum-Version'] = f'{versions.SERVICE} 1.{versions.MAXIMUM}'
    headers[versions.HEADER] = f'{versions.SERVICE} {version}'
    headers['Vary'] = versions.HEADER


def _handle_request(
    services: Services, raw: webob.Request, response: webob.Response
) -> tuple[Answer, int]:
    """Check the request and call its handler. The order of the checks is the order of precedence of
    their errors. Returns the answer and its status."""
    path = _read_path(raw)
    version = versions.MINIMUM
    if path not in routes.UNVERSIONED:
        version = versions.negotiate(raw.headers.get(versions.HEADER))
        _write_versions(response, f'1.{version}')
    route, variables = routes.match(raw.method, path or '/')
    if version < route.since:
        raise errors.NotAcceptable('')
    if raw.headers.get('Accept') and not raw.accept.acceptable_offers([route.media]):
        raise errors.NotAcceptable('')
    request = Request(
        services=services,
        caller=_read_caller(services, raw, public=route.rule is None),
        version=version,
        path=variables,
        query=_read_query(raw, route),
        body=None,
        app_url=raw.application_url,
        rule=route.rule,
        if_match=_read_if_match(raw, route),
    )
    if route.rule is not None:
        request.authorize(route.rule)
    body = _read_body(raw, int(services.conf.api.max_body))
    key = _read_key(raw, route, request, body)
    answer = _call_handler(route, dataclasses.replace(request, body=body, key=key))
    # Routes without a rule do not use the database.
    if route.rule is not None and _DATABASE.is_failing:
        _DATABASE.record_success()
    return answer, route.status


def _call_handler(route: Route, request: Request) -> Answer:
    """Call the handler, or replay its stored answer to the same `Idempotency-Key`."""

    def handle() -> Answer:
        answer = route.handler(request)
        return answer if isinstance(answer, Answer) else Answer(answer)

    if request.key is None:
        return handle()
    return idempotency.run_once(request.services.db, request.key, handle)


def _read_path(raw: webob.Request) -> str:
    """The path of the address. Raises NotFound for one that no route can have."""
    try:
        path: str = raw.path_info
    except UnicodeDecodeError:
        raise errors.NotFound('') from None
    # PostgreSQL refuses NUL, even in a comparison.
    if '\0' in path:
        raise errors.NotFound('')
    return path


def _read_if_match(raw: webob.Request, route: Route) -> tuple[str, ...] | None:
    """The tags of `If-Match`. Raises Invalid where nothing has a tag: the caller relies on the
    comparison, so the header must not be ignored."""
    header = raw.headers.get('If-Match')
    if header is None or route.method == 'GET':
        return None
    if not route.tagged:
        raise errors.Invalid(
            'If-Match is not held against anything here, because this has no ETag.'
        )
    return etags.parse(header)


def _read_key(raw: webob.Request, route: Route, request: Request, body: Any) -> Key | None:
    """The `Idempotency-Key` of a POST. Raises Invalid where the answer is never stored."""
    header = raw.headers.get(idempotency.HEADER)
    if header is None or route.method != 'POST':
        return None
    if not route.keyed:
        raise errors.Invalid(
            f'{idempotency.HEADER} is not taken here, because the answer is not kept.'
        )
    return idempotency.make_key(
        header, request.caller, route.method, raw.path_info, raw.query_string, request.version, body
    )


def _read_caller(services: Services, raw: webob.Request, *, public: bool) -> context.Caller:
    """The caller. Raises Forbidden for a token that is not scoped to a project."""
    oslo = context.LogContext.from_environ(raw.environ)
    if not public and not (oslo.project_id and oslo.user_id):
        raise errors.Forbidden('The token is not scoped to a project.')
    return context.Caller(
        user_id=oslo.user_id or '',
        project_id=oslo.project_id or '',
        roles=tuple(oslo.roles or ()),
        request_id=oslo.request_id or '',
        oslo=oslo,
        auth=raw.environ.get('keystone.token_auth'),
        is_admin=not public and services.enforcer.authorize(policies.ADMIN, {}, oslo),
    )


def _read_query(raw: webob.Request, route: Route) -> Mapping[str, str]:
    try:
        query = dict(raw.GET)
    except UnicodeDecodeError:
        raise errors.Invalid('The query is not UTF-8.') from None
    for name in query:
        if name not in route.query:
            raise errors.Invalid(f'Unknown argument: {name!r:.80}.')
    if len(query) < len(raw.GET):
        raise errors.Invalid('An argument is given more than once.')
    return query


def _read_body(raw: webob.Request, max_bytes: int) -> Any:
    """The JSON body, None if there is none. Raises TooLarge, UnsupportedMediaType, Invalid."""
    if raw.content_length and raw.content_length > max_bytes:
        raise errors.TooLarge(f'The body has {raw.content_length} bytes and may have {max_bytes}.')
    try:
        text = raw.body_file.read(max_bytes + 1)
    except OSError:
        raise errors.Invalid('The body is shorter than its Content-Length.') from None
    if not text:
        return None
    if len(text) > max_bytes:
        raise errors.TooLarge(f'The body has more than {max_bytes} bytes.')
    if raw.content_type not in ('application/json', 'application/javascript', 'text/javascript'):
        raise errors.UnsupportedMediaType(
            f'The body must be application/json, not {raw.content_type!r:.80}.'
        )
    if text.count(b'{') + text.count(b'[') > _MAX_CONTAINERS:
        raise errors.Invalid(f'The body holds more than {_MAX_CONTAINERS} objects and lists.')
    try:
        body = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_parse_float,
            object_pairs_hook=_build_object,
        )
    except (ValueError, RecursionError) as e:
        raise errors.Invalid(f'The body is not JSON: {e}.') from e
    excess = schema.find_excess(body)
    if excess:
        raise errors.Invalid(f'The body {excess}.')
    return body


def _refuse_constant(name: str) -> Any:
    """Raise ValueError for NaN and Infinity, which Python takes and JSON does not have."""
    raise ValueError(f'{name} is not a JSON value')


def _parse_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f'{digits:.40} is too large')
    return value


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a repeated name: parsers differ in which value they take
    (RFC 8259, 4)."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError('an object has a name twice')
    return result
