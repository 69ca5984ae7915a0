"""The API, described for machines (OpenAPI 3.1) and for people, from the tables that it is made of.

Nothing is written twice. Addresses, statuses, policy rules and versions come from `routes.ROUTES`,
bodies from the field tables, and texts from the docstrings of the handlers: the first sentence is
the summary. A new line in the table is in the document; `tests/test_openapi.py` says what such a
line lacks, and that `doc/openapi.json` is as fresh."""

from __future__ import annotations

import base64
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from magnum_lite.api import etags, idempotency, versions
from magnum_lite.api.request import Answer, Request

if TYPE_CHECKING:
    from magnum_lite.api.routes import Route

#: The schema of the document itself.
DOCUMENT = {'type': 'object', 'required': ['openapi', 'info', 'paths', 'components']}
TEXT = {'type': 'string'}
FLAG = {'type': 'string', 'enum': ['true', 'false', 'True', 'False', '1', '0']}
#: Query parameters by name: what they are, and their schema.
QUERY: dict[str, tuple[str, Mapping[str, Any]]] = {
    'limit': (
        'Items of a page at most. The operator sets a limit of its own.',
        {'type': 'integer', 'minimum': 1},
    ),
    'marker': (
        'The uuid of the last item of the page before.',
        {'type': 'string', 'format': 'uuid'},
    ),
    'sort_key': ('The attribute by which items are sorted.', {'type': 'string', 'default': 'id'}),
    'sort_dir': (
        'The direction in which items are sorted.',
        {'type': 'string', 'enum': ['asc', 'desc']},
    ),
    'all_tenants': ('Whether to list what belongs to other projects, too. For admins only.', FLAG),
    'rollback': ('Taken from version 1.3 on, and without effect.', FLAG),
    'force': ('Whether to give up on what cannot be deleted in the cloud.', FLAG),
    'role': ('The role of the nodegroups that are wanted.', {'type': 'string', 'minLength': 1}),
    'ca_cert_type': ('The authority whose certificate is wanted.', TEXT),
    'project_id': ('The project that is asked about; default the caller\'s own.', TEXT),
    'type': ('What is counted.', TEXT),
}
#: Variable parts of addresses by name.
PATH = {
    'ident': 'Uuid, or a name that fits one only.',
    'group': 'Uuid or name of the nodegroup.',
    'type': 'The authority whose certificate is wanted.',
    'project_id': 'Id of the project.',
    'resource': 'What the quota bounds.',
}
#: What each status of an error means here.
STATUSES = {
    400: 'The request is wrong in itself. All findings of one look are in the text.',
    401: 'There is no token, or it is not valid.',
    403: 'The policy does not allow it to the caller, or a quota is used up.',
    404: 'It is not there, or the caller may not know that it is.',
    406: 'The version or the media type is not offered.',
    409: 'It makes no sense in the state that the thing is in, or a name fits more than one. '
    'With an `Idempotency-Key`: the first request is still being carried out.',
    412: 'What `If-Match` names has changed since.',
    413: 'The body is too large.',
    415: 'The body is not said to be JSON.',
    422: 'The `Idempotency-Key` belongs to another request.',
    503: 'Something that is needed for the answer is away. Try again later.',
}
_ITEM = {
    'type': 'object',
    'required': ['request_id', 'code', 'status', 'title', 'detail', 'links'],
    'properties': {
        'request_id': TEXT,
        'code': TEXT,
        'status': {'type': 'integer'},
        'title': TEXT,
        'detail': TEXT,
        'links': {'type': 'array'},
    },
}
ERROR = {
    'title': 'Error',
    'type': 'object',
    'required': ['errors', 'faultstring'],
    'additionalProperties': False,
    'properties': {
        'errors': {'type': 'array', 'minItems': 1, 'maxItems': 1, 'items': _ITEM},
        'faultstring': {'type': 'string', 'description': 'The same text, for openstacksdk.'},
    },
}
#: What keystonemiddleware says.
UNAUTHORIZED = {
    'title': 'Unauthorized',
    'type': 'object',
    'required': ['error'],
    'properties': {
        'error': {
            'type': 'object',
            'required': ['code', 'title', 'message'],
            'properties': {'code': {'const': 401}, 'title': TEXT, 'message': TEXT},
        }
    },
}
NOT_OFFERED = {
    'title': 'VersionNotOffered',
    'type': 'object',
    'required': ['errors'],
    'additionalProperties': False,
    'properties': {
        'errors': {
            'type': 'array',
            'minItems': 1,
            'maxItems': 1,
            'items': {
                'type': 'object',
                'required': ['code', 'title', 'max_version', 'min_version', 'links'],
            },
        }
    },
}
#: What keystonemiddleware says when Keystone does not answer.
UNAVAILABLE = {
    'title': 'KeystoneUnavailable',
    'type': 'object',
    'required': ['message', 'code', 'title'],
    'properties': {'message': TEXT, 'code': TEXT, 'title': TEXT},
}
_HEADERS = {
    'Location': (
        'Where the operation is that carries this out. It is not there if there is nothing to '
        'carry out.'
    ),
    'ETag': (
        'What `If-Match` is held against: it stands for what is wanted of this, not for how it is.'
    ),
    'Warning': 'What could not be checked.',
}


# -- for machines ----------------------------------------------------------------------------------


def build(routes: Sequence[Route]) -> dict[str, Any]:
    """The document of these routes."""
    shared: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route, name in zip(routes, operation_ids(routes), strict=True):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, name)
    described, failures = (
        _share(paths, shared),
        _share({str(status): _failure(status) for status in STATUSES}, shared),
    )
    history = '\n'.join(f'- 1.{minor}: {text}' for minor, text in versions.VERSIONS.items())
    return {
        'openapi': '3.1.0',
        'info': {
            'title': 'Containers as a service: the Magnum v1 API',
            'version': f'1.{versions.MAXIMUM}',
            'description': f'A request speaks version 1.{versions.MINIMUM} unless '
            f'`{versions.HEADER}` says otherwise.\n\n{history}',
        },
        'security': [{'token': []}],
        'paths': described,
        'components': {
            'responses': failures,
            'schemas': dict(sorted(shared.items())),
            'securitySchemes': {
                'token': {
                    'type': 'apiKey',
                    'in': 'header',
                    'name': 'X-Auth-Token',
                    'description': 'A token of Keystone that is scoped to a project.',
                }
            },
        },
    }


def _operation(route: Route, name: str) -> dict[str, Any]:
    summary, _, text = _words(route.handler).partition('. ')
    made: dict[str, Any] = {
        'operationId': name,
        'tags': [name.split('.')[0]],
        'summary': summary.rstrip('.'),
        'description': text,
        'parameters': list(_parameters(route)),
        'x-policy-rule': route.rule,
        'x-microversion': f'1.{route.since}',
    }
    if route.takes:
        made['requestBody'] = {
            'required': True,
            'content': {'application/json': {'schema': route.takes}},
        }
    if route.rule is None:
        made['security'] = []
    made['responses'] = {str(route.status): _success(route)} | {
        str(status): {'$ref': f'#/components/responses/{status}'}
        for status in sorted(_failures(route))
    }
    return made


def operation_ids(routes: Sequence[Route]) -> list[str]:
    """The name of each operation: that of its handler, such as `clusters.create`, the second time
    with a number."""
    names: list[str] = []
    for route in routes:
        name = f'{route.handler.__module__.rpartition(".")[2]}.{route.handler.__name__}'
        before = sum(other == name or other.startswith(f'{name}.') for other in names)
        names.append(f'{name}.{before + 1}' if before else name)
    return names


def _words(handler: Callable[..., Any]) -> str:
    """The docstring of a handler in one line for each paragraph."""
    text = inspect.getdoc(handler) or ''
    return '\n\n'.join(' '.join(part.split()) for part in re.split(r'\n\s*\n', text))


def _parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in re.findall(r'\{(\w+)\}', route.path):
        yield {
            'name': name,
            'in': 'path',
            'required': True,
            'description': PATH.get(name, ''),
            'schema': {'type': 'string', 'minLength': 1, 'not': {'const': 'detail'}},
        }
    for name in route.query:
        text, schema = QUERY.get(name, ('', TEXT))
        yield {'name': name, 'in': 'query', 'description': text, 'schema': schema}
    if route.path.startswith('/v1'):
        offered = '|'.join(str(minor) for minor in versions.VERSIONS if minor >= route.since)
        yield _header(
            versions.HEADER,
            f'The version that is spoken. Without it: 1.{versions.MINIMUM}.',
            required=route.since > versions.MINIMUM,
            pattern=rf'^{versions.SERVICES[0]} (1\.({offered})|latest)$',
        )
    if route.tagged and route.method != 'GET':
        yield _header(
            'If-Match',
            'The `ETag` that the caller has seen: 412 if it is another one now. `*` fits any.',
            pattern=etags.PATTERN,
        )
    if route.keyed:
        yield _header(
            idempotency.HEADER,
            'A key that the caller makes up, for this request alone: if the request is '
            'sent again within 24 hours it is not carried out again, and answered as it was.',
            pattern=idempotency.PATTERN,
        )


def _header(name: str, text: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {
        'name': name,
        'in': 'header',
        'required': required,
        'description': text,
        'schema': TEXT | schema,
    }


def _success(route: Route) -> dict[str, Any]:
    names = (
        ['Location']
        if route.status == 202 or (route.method, route.status) in (('POST', 201), ('DELETE', 204))
        else []
    )
    names += ['ETag'] if route.tagged and route.method in ('GET', 'PATCH') else []
    names += ['Warning'] if route.method in ('POST', 'PATCH') else []
    meaning = {
        200: 'Here it is.',
        201: 'It was made.',
        202: 'It is stored, and will be carried out.',
        204: 'It is gone, or will be.',
    }
    made: dict[str, Any] = {'description': meaning.get(route.status, '')}
    if names:
        made['headers'] = {name: {'description': _HEADERS[name], 'schema': TEXT} for name in names}
    if route.gives is not None:
        made['content'] = {route.media: {'schema': route.gives}}
    return made


def _failures(route: Route) -> set[int]:
    found = {400, 406, 503}
    found |= {401, 403, 404} if route.rule else set()
    found |= {409} if '{' in route.path or route.method != 'GET' else set()
    found |= {413, 415} if route.takes else set()
    found |= {412} if route.tagged and route.method != 'GET' else set()
    return found | ({422} if route.keyed else set())


def _failure(status: int) -> dict[str, Any]:
    special: dict[int, dict[str, Any]] = {
        401: UNAUTHORIZED,
        406: {'anyOf': [ERROR, NOT_OFFERED]},
        503: {'anyOf': [ERROR, UNAVAILABLE]},
    }
    content = {'application/json': {'schema': special.get(status, ERROR)}}
    if status == 503:  # keystonemiddleware says it in whatever the caller reads
        content |= {media: {'schema': TEXT} for media in ('text/html', 'text/plain')}
    return {'description': STATUSES[status], 'content': content}


def _share(value: Any, shared: dict[str, Any]) -> Any:
    """The same with a reference in the place of each schema that has a title; those are collected
    in `shared`.

    Raises ValueError for two that are not the same and have the same title.
    """
    if isinstance(value, list):
        return [_share(item, shared) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: _share(item, shared) for key, item in value.items()}
    title = value.get('title')
    if not isinstance(title, str) or 'type' not in value:
        return made
    if shared.setdefault(title, made) != made:
        raise ValueError(f'two schemas have the title {title}')
    return {'$ref': f'#/components/schemas/{title}'}


@functools.cache
def document() -> dict[str, Any]:
    """The document of this API."""
    from magnum_lite.api import routes  # which names the handlers below

    return build(routes.ROUTES)


def serve(req: Request) -> dict[str, Any]:
    """This document, in which the server is the address that it was asked for at."""
    return document() | {'servers': [{'url': req.app_url}]}


# -- for people ------------------------------------------------------------------------------------

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:auto;padding:0 1em;color:#222;background:#fff}
section{border-top:1px solid #ccc;padding:.5em 0}h3 code{font-size:1.1em}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.2em .6em .2em 0;border-bottom:1px solid #eee}nav li{list-style:none}
code{font-family:ui-monospace,monospace;font-size:.95em}.d{color:#555}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}a{color:#8bf}.d{color:#aaa}
td,th,section{border-color:#444}}
"""  # noqa: E501
#: The page loads nothing, runs nothing and is put into no other page; its one style is known by its
#: hash.
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HERE = '@HERE@'


def page(req: Request) -> Answer:
    """This document as a page to read, which needs nothing from outside."""
    return Answer(
        _page().replace(_HERE, escape(req.app_url)).encode(),
        {
            'Content-Type': 'text/html; charset=UTF-8',
            'Content-Security-Policy': _POLICY,
            'X-Content-Type-Options': 'nosniff',
            'Referrer-Policy': 'no-referrer',
        },
    )


@functools.cache
def _page() -> str:
    made = document()
    shared = made['components']['responses']
    operations = [
        (method, path, operation)
        for path, methods in made['paths'].items()
        for method, operation in methods.items()
    ]
    title = escape(made['info']['title'])
    return ''.join(
        [
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" '
            f'content="width=device-width"><style>{_STYLE}</style></head><body>',
            f'<h1>{title}</h1>{_prose(made["info"]["description"])}<p>For machines: <a '
            f'href="{_HERE}/v1/openapi.json">{_HERE}/v1/openapi.json</a></p><nav><ul>',
            *(
                f'<li><a href="#{operation["operationId"]}"><code>{method.upper()} '
                f'{escape(path)}</code></a> {_inline(operation["summary"])}</li>'
                for method, path, operation in operations
            ),
            '</ul></nav><h2>Operations</h2>',
            *(_section(*operation, shared) for operation in operations),
            '<h2>Bodies</h2>',
            *(_schema(name, schema) for name, schema in made['components']['schemas'].items()),
            '</body></html>\n',
        ]
    )


def _section(
    method: str, path: str, operation: Mapping[str, Any], shared: Mapping[str, Any]
) -> str:
    rule = operation['x-policy-rule']
    parameters = [(p['name'], p['in'], _inline(p['description'])) for p in operation['parameters']]
    body = operation.get('requestBody')
    answers = [
        (status, _type(answer), _inline(answer['description']) + _header_names(answer))
        for status, answer in (
            (status, shared.get(status, answer))
            for status, answer in operation['responses'].items()
        )
    ]
    return (
        f'<section id="{operation["operationId"]}"><h3><code>{method.upper()} '
        f'{escape(path)}</code></h3>'
        f'<p>{_inline(operation["summary"])}.</p>{_prose(operation["description"])}<p class="d">'
        f'{f"Policy rule <code>{rule}</code>, from" if rule else "No token is needed. From"} '
        f'version {operation["x-microversion"]} on.{f" Body: {_type(body)}." if body else ""}</p>'
        f'{_table(parameters)}{_table(answers)}</section>'
    )


def _header_names(answer: Mapping[str, Any]) -> str:
    names = ', '.join(f'<code>{name}</code>' for name in answer.get('headers', ()))
    return f' Headers: {names}.' if names else ''


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    if ways := schema.get('items', {}).get('anyOf'):  # a patch
        return (
            f'<section id="schema-{name}"><h3>{name}</h3>'
            + _table(
                [
                    (
                        way['properties']['path']['pattern'].strip('^$'),
                        ' or '.join(way['properties']['op']['enum']),
                        _inline(way['properties'].get('value', {}).get('description', '')),
                    )
                    for way in ways
                ]
            )
            + '</section>'
        )
    shown = schema.get('items', schema)
    needed = shown.get('required', ())
    rows = [
        (
            field,
            _type(fragment)
            + (', required' if field in needed and name.endswith('Request') else ''),
            _inline(fragment.get('description', ''))
            + ''.join(
                f' {word} version {fragment[key]}.'
                for word, key in (('From', 'x-since'), ('Until', 'x-until'))
                if key in fragment
            ),
        )
        for field, fragment in shown.get('properties', {}).items()
    ]
    return f'<section id="schema-{name}"><h3>{name}</h3>{_table(rows)}</section>'


def _type(fragment: Mapping[str, Any]) -> str:
    """What a value is, with a link to it where it has a place of its own."""
    if '$ref' in fragment:
        name = fragment['$ref'].rpartition('/')[2]
        return f'<a href="#schema-{name}">{name}</a>'
    for inner in fragment.get('content', {}).values():
        return _type(inner['schema'])
    if 'anyOf' in fragment:
        return ' or '.join(map(_type, fragment['anyOf']))
    if fragment.get('type') == 'object' and len(properties := fragment.get('properties', {})) in (
        1,
        2,
    ):
        return ', '.join(
            f'<code>{name}</code>: {_type(inner)}' for name, inner in properties.items()
        )
    if fragment.get('type') == 'array' and fragment.get('items'):
        return f'list of {_type(fragment["items"])}'
    kinds = fragment.get('enum') or fragment.get('type', '')
    return escape(' or '.join(map(str, kinds)) if isinstance(kinds, list) else str(kinds))


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Rows of a name, and of two cells that are HTML already."""
    if not rows:
        return ''
    return (
        '<table>'
        + ''.join(
            f'<tr><th><code>{escape(name)}</code></th><td>{kind}</td><td>{text}</td></tr>'
            for name, kind, text in rows
        )
        + '</table>'
    )


def _inline(text: str) -> str:
    return re.sub(r'`([^`]+)`', r'<code>\1</code>', escape(text))


def _prose(text: str) -> str:
    return ''.join(
        f'<p>{"<br>".join(map(_inline, part.splitlines()))}</p>'
        for part in text.split('\n\n')
        if part
    )
