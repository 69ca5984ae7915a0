"""The WSGI application: middleware in plain Python, a Pecan root that hands everything to
`dispatch`, and `dispatch`.

A request goes through request id, proxy headers, CORS and Keystone's token check into Pecan, which
leads to one exposed method. `dispatch` then finds the line in `routes`, checks version, policy,
query and body, calls the handler and writes the answer, errors included: it is the only place that
knows the envelope."""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import oslo_middleware
import pecan
import webob
import webob.exc
from keystonemiddleware import auth_token
from oslo_config import cfg
from oslo_db import exception as db_exc
from oslo_log import log
from pecan import core

from magnum_lite import context, db, drivers, errors, notify, outage, rpc, schema
from magnum_lite.api import etags, healthcheck, idempotency, policies, preflight, routes, versions
from magnum_lite.api.request import Answer, Request, Services

LOG = log.getLogger(__name__)

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_DATABASE = outage.Outage(
    'The database', 'Requests are answered with 503 meanwhile. See [database] connection'
)
#: Braces and brackets in one body, those in texts included: far more than any client sends.
_MOST_CONTAINERS = 10_000
HELP = 'https://docs.openstack.org/magnum/latest/contributor/api-microversion.html'


class Root:
    """Pecan's root. There is no tree below it: the table is the tree."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @pecan.expose()
    def serve(self, request: webob.Request, response: webob.Response) -> webob.Response:
        """Answer the request; the response that Pecan offers is not used."""
        return dispatch(self._services, request)


class Application(core.ExplicitPecan):
    """Pecan that leaves path, query and body to `dispatch`, which reads them once, with limits.

    Its own search for a controller decodes all three first, at any length, and raises what it
    cannot decode."""

    def find_controller(self, state: Any) -> tuple[Any, list[Any], dict[str, Any]]:
        """The one that there is."""
        state.controller = self.root.serve
        return state.controller, [state.request, state.response], {}


def make_services(conf: cfg.ConfigOpts) -> Services:
    """What the API of this process works with. Raises DriverError for a driver folder that is
    wrong."""
    return Services(
        conf=conf,
        db=db.Database(conf),
        cloud=preflight.cloud(conf),
        drivers=drivers.load(conf),
        nudger=rpc.Nudger(conf),
        notifier=notify.Notifier(conf),
        enforcer=policies.enforcer(conf),
        signer=rpc.Signer(conf),
    )


def make_app(services: Services) -> WSGI:
    """The whole stack."""
    conf = services.conf
    app: WSGI = Application(
        Root(services), request_cls=webob.Request
    )  # Pecan's own hides what cannot be decoded
    if conf.api.auth_strategy != 'noauth':
        app = _public_beside(app, TokenCheck(app, {'oslo_config_config': conf}))
    cors = oslo_middleware.CORS(app, conf)
    if cors.allowed_origins:  # else it would answer every OPTIONS with 200
        app = cors
    app = oslo_middleware.HTTPProxyToWSGI(app, conf)
    app = oslo_middleware.RequestId(app, conf)
    app = healthcheck.Healthcheck(app, conf, healthcheck.Readiness(healthcheck.checks(services)))
    # Outside of what reads proxy headers: those say what a caller likes.
    return _believe_loopback(app) if conf.api.auth_strategy == 'noauth' else app


class TokenCheck(auth_token.AuthProtocol):
    """Keystone's own, which lets through what it makes of an answer that is no token, such as an
    HTML page with 200."""

    def fetch_token(self, token: str, **kwargs: Any) -> Any:
        """What Keystone says of a token. Raises the 503 that keystonemiddleware has for a Keystone
        that is away."""
        try:
            return super().fetch_token(token, **kwargs)
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            self.log.critical(
                'Unable to validate token: the answer cannot be read (%s)', type(e).__name__
            )
            raise webob.exc.HTTPServiceUnavailable(
                'The Keystone service is temporarily unavailable.'
            ) from e


def _public_beside(app: WSGI, checked: WSGI) -> WSGI:
    """Let the public documents past the token check, and nothing else."""

    def choose(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return (app if environ.get('PATH_INFO', '') in routes.PUBLIC else checked)(
            environ, start_response
        )

    return choose


def _believe_loopback(app: WSGI) -> WSGI:
    """Without Keystone: callers are believed, so they must be on this machine."""

    def check(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not is_loopback(environ.get('REMOTE_ADDR', '')):
            return webob.Response(
                status=403,
                json_body=_envelope(
                    403, 'auth_strategy noauth serves loopback addresses only', 'client'
                ),
            )(environ, start_response)
        return app(environ, start_response)

    return check


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine only. No name is but localhost: others may mean
    anything."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == 'localhost'


def dispatch(services: Services, raw: webob.Request) -> webob.Response:
    """Answer one request, whatever happens."""
    response = webob.Response(content_type='application/json', charset='UTF-8')
    try:
        answer, status = _handle(services, raw, response)
        response.status_code = status
        response.headers.update(answer.headers)
        if answer.body is None:
            del response.content_type, response.content_length
        elif isinstance(answer.body, bytes):  # a document that is no JSON says itself what it is
            response.body = answer.body
        else:
            response.body = json.dumps(answer.body).encode()
    except versions.Unsupported as e:
        _headers(response, e.asked)
        response.status_code = e.code
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
    except errors.HttpError as e:
        response.status_code = e.code
        if isinstance(e, errors.MethodNotAllowed):
            response.headers['Allow'] = ', '.join(e.allowed)
        response.json_body = _envelope(
            e.code,
            str(e),
            'client' if str(e) and e.code < 500 else 'server' if str(e) else '',
            e.title,
        )
    except db_exc.DBConnectionError as e:
        _DATABASE.failed(str(e.inner_exception or e))
        response.status_code = 503
        response.json_body = _envelope(
            503, 'The database does not answer. Try again later.', 'server'
        )
    except Exception:
        LOG.exception('%s %s failed', raw.method, raw.path_info)
        response.status_code = 500
        request_id = raw.environ.get('openstack.request_id', '')
        response.json_body = _envelope(
            500,
            'The service made a mistake. Its log has the details under the request id '
            f'{request_id}.',
            'server',
        )
    return response


def _envelope(status: int, detail: str, code: str, title: str | None = None) -> dict[str, Any]:
    """Magnum's error body, plus `faultstring`, where openstacksdk looks for the text."""
    if title is None:
        title = detail.split('. ', 1)[0].rstrip('.')
    return {
        'errors': [
            {
                'request_id': '',
                'code': code,
                'status': status,
                'title': title,
                'detail': detail,
                'links': [],
            }
        ],
        'faultstring': detail,
    }


def _headers(response: webob.Response, version: str) -> None:
    for name, value in (('Minimum', f'1.{versions.MINIMUM}'), ('Maximum', f'1.{versions.MAXIMUM}')):
        response.headers[f'OpenStack-API-{name}-Version'] = f'{versions.SERVICE} {value}'
    response.headers[versions.HEADER] = f'{versions.SERVICE} {version}'
    response.headers['Vary'] = versions.HEADER


def _handle(services: Services, raw: webob.Request, response: webob.Response) -> tuple[Answer, int]:
    """Check the request in the order that callers are told of mistakes, and call its handler."""
    try:
        path = raw.path_info
    except UnicodeDecodeError:
        raise errors.NotFound('') from None
    if '\0' in path:  # PostgreSQL takes none, not even to compare with
        raise errors.NotFound('')
    version = versions.MINIMUM
    if path not in routes.UNVERSIONED:
        version = versions.negotiate(raw.headers.get(versions.HEADER))
        _headers(response, f'1.{version}')
    route, variables = routes.match(raw.method, path or '/')
    if version < route.since:
        raise errors.NotAcceptable('')
    if raw.headers.get('Accept') and not raw.accept.acceptable_offers([route.media]):
        raise errors.NotAcceptable('')
    request = Request(
        services=services,
        caller=_caller(services, raw, public=route.rule is None),
        version=version,
        path=variables,
        query=_query(raw, route),
        body=None,
        app_url=raw.application_url,
        rule=route.rule,
        if_match=_if_match(raw, route),
    )
    if route.rule is not None:
        request.authorize(route.rule)
    body = _body(raw, int(services.conf.api.max_body))
    request = Request(**vars(request) | {'body': body, 'key': _key(raw, route, request, body)})

    def handle() -> Answer:
        answer = route.handler(request)
        return answer if isinstance(answer, Answer) else Answer(answer)

    answer = idempotency.once(services.db, request.key, handle) if request.key else handle()
    if route.rule is not None:  # the others do not ask it
        _DATABASE.works()
    return answer, route.status


def _if_match(raw: webob.Request, route: routes.Route) -> tuple[str, ...] | None:
    """The tags that a change must find. Raises Invalid where there are none, for the caller relies
    on them."""
    header = raw.headers.get('If-Match')
    if header is None or route.method == 'GET':
        return None
    if not route.tagged:
        raise errors.Invalid(
            'If-Match is not held against anything here, because this has no ETag.'
        )
    return etags.parse(header)


def _key(
    raw: webob.Request, route: routes.Route, request: Request, body: Any
) -> idempotency.Key | None:
    """What the `Idempotency-Key` of a POST stands for. Raises Invalid where the answer holds what
    is never stored."""
    header = raw.headers.get(idempotency.HEADER)
    if header is None or route.method != 'POST':
        return None
    if not route.keyed:
        raise errors.Invalid(
            f'{idempotency.HEADER} is not taken here, because the answer is not kept.'
        )
    return idempotency.key(
        header, request.caller, route.method, raw.path_info, raw.query_string, request.version, body
    )


def _caller(services: Services, raw: webob.Request, *, public: bool) -> context.Caller:
    """Who asks. Raises Forbidden for a token that is not scoped to a project."""
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


def _query(raw: webob.Request, route: routes.Route) -> Mapping[str, str]:
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


def _body(raw: webob.Request, most: int) -> Any:
    """The JSON body, None if there is none. Raises TooLarge, UnsupportedMediaType, Invalid."""
    if raw.content_length and raw.content_length > most:
        raise errors.TooLarge(f'The body has {raw.content_length} bytes and may have {most}.')
    try:
        text = raw.body_file.read(most + 1)
    except OSError:
        raise errors.Invalid('The body is shorter than its Content-Length.') from None
    if not text:
        return None
    if len(text) > most:
        raise errors.TooLarge(f'The body has more than {most} bytes.')
    if raw.content_type not in ('application/json', 'application/javascript', 'text/javascript'):
        raise errors.UnsupportedMediaType(
            f'The body must be application/json, not {raw.content_type!r:.80}.'
        )
    if (
        text.count(b'{') + text.count(b'[') > _MOST_CONTAINERS
    ):  # to make so many takes longer than a request may
        raise errors.Invalid(f'The body holds more than {_MOST_CONTAINERS} objects and lists.')
    try:
        body = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as e:
        raise errors.Invalid(f'The body is not JSON: {e}.') from e
    if much := schema.is_too_much(body):
        raise errors.Invalid(f'The body {much}.')
    return body


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is not a JSON value')


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f'{digits:.40} is too large')
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. One that names something twice is something else to each reader (RFC 8259, 4)."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError('an object has a name twice')
    return made
