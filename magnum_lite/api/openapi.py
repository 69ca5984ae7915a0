"""`build`: the OpenAPI 3.1 document of a table of routes.

`docs` serves it and makes a page of it; `doc/openapi.json` is the same document. Pure functions.
Nothing is written twice: addresses, statuses, policy rules and versions come from the routes,
bodies from the field tables, texts from the docstrings of the handlers, whose first sentence is the
summary. `tests/test_openapi.py` reports what a new route lacks, and whether `doc/openapi.json` is
up to date."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from magnum_lite.api import etags, idempotency, versions
from magnum_lite.api.route import Route

TEXT = {'type': 'string'}
FLAG = {'type': 'string', 'enum': ['true', 'false', 'True', 'False', '1', '0']}
#: Query parameters by name: description and schema.
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
#: Descriptions of the variable parts of addresses, by name.
PATH = {
    'ident': 'Uuid, or a name that fits one only.',
    'group': 'Uuid or name of the nodegroup.',
    'type': 'The authority whose certificate is wanted.',
    'project_id': 'Id of the project.',
    'resource': 'What the quota bounds.',
}
#: Descriptions of the errors by status.
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
#: The body of the 401 of keystonemiddleware.
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
#: The body of the 503 of keystonemiddleware, when Keystone does not answer.
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


#: An object of an OpenAPI document.
OpenApi = dict[str, Any]


def build(routes: Sequence[Route]) -> OpenApi:
    """The document of these routes. Raises ValueError for two schemas with one title."""
    schemas: OpenApi = {}
    paths: OpenApi = {}
    for route, name in zip(routes, list_operation_ids(routes), strict=True):
        paths.setdefault(route.path, {})[route.method.lower()] = _describe_route(route, name)
    paths = _share_schemas(paths, schemas)
    failures = {str(status): _describe_failure(status) for status in STATUSES}
    failures = _share_schemas(failures, schemas)
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
        'paths': paths,
        'components': {
            'responses': failures,
            'schemas': dict(sorted(schemas.items())),
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


def _describe_route(route: Route, name: str) -> OpenApi:
    summary, _, text = _read_docstring(route.handler).partition('. ')
    operation: OpenApi = {
        'operationId': name,
        'tags': [name.split('.')[0]],
        'summary': summary.rstrip('.'),
        'description': text,
        'parameters': list(_list_parameters(route)),
        'x-policy-rule': route.rule,
        'x-microversion': f'1.{route.since}',
    }
    if route.takes:
        operation['requestBody'] = {
            'required': True,
            'content': {'application/json': {'schema': route.takes}},
        }
    if route.rule is None:
        operation['security'] = []
    responses = {str(route.status): _describe_success(route)}
    for status in sorted(_list_failures(route)):
        responses[str(status)] = {'$ref': f'#/components/responses/{status}'}
    operation['responses'] = responses
    return operation


def list_operation_ids(routes: Sequence[Route]) -> list[str]:
    """The id of each operation: its handler, such as `clusters.create`, numbered from the second
    route of that handler on."""
    ids: list[str] = []
    counts: dict[str, int] = {}
    for route in routes:
        name = f'{route.handler.__module__.rpartition(".")[2]}.{route.handler.__name__}'
        counts[name] = counts.get(name, 0) + 1
        ids.append(name if counts[name] == 1 else f'{name}.{counts[name]}')
    return ids


def _read_docstring(handler: Callable[..., Any]) -> str:
    """The docstring of a handler, each paragraph on one line."""
    text = inspect.getdoc(handler) or ''
    return '\n\n'.join(' '.join(part.split()) for part in re.split(r'\n\s*\n', text))


def _list_parameters(route: Route) -> Iterator[OpenApi]:
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
        yield _describe_header(
            versions.HEADER,
            f'The version that is spoken. Without it: 1.{versions.MINIMUM}.',
            required=route.since > versions.MINIMUM,
            pattern=rf'^{versions.SERVICES[0]} (1\.({offered})|latest)$',
        )
    if route.tagged and route.method != 'GET':
        yield _describe_header(
            'If-Match',
            'The `ETag` that the caller has seen: 412 if it is another one now. `*` fits any.',
            pattern=etags.PATTERN,
        )
    if route.keyed:
        yield _describe_header(
            idempotency.HEADER,
            'A key that the caller makes up, for this request alone: if the request is '
            'sent again within 24 hours it is not carried out again, and answered as it was.',
            pattern=idempotency.PATTERN,
        )


def _describe_header(name: str, text: str, *, required: bool = False, **schema: Any) -> OpenApi:
    return {
        'name': name,
        'in': 'header',
        'required': required,
        'description': text,
        'schema': TEXT | schema,
    }


def _describe_success(route: Route) -> OpenApi:
    meanings = {
        200: 'Here it is.',
        201: 'It was made.',
        202: 'It is stored, and will be carried out.',
        204: 'It is gone, or will be.',
    }
    response: OpenApi = {'description': meanings.get(route.status, '')}
    headers = []
    if route.status == 202 or (route.method, route.status) in (('POST', 201), ('DELETE', 204)):
        headers.append('Location')
    if route.tagged and route.method in ('GET', 'PATCH'):
        headers.append('ETag')
    if route.method in ('POST', 'PATCH'):
        headers.append('Warning')
    if headers:
        response['headers'] = {
            name: {'description': _HEADERS[name], 'schema': TEXT} for name in headers
        }
    if route.gives is not None:
        response['content'] = {route.media: {'schema': route.gives}}
    return response


def _list_failures(route: Route) -> set[int]:
    """The statuses of the errors that the route may answer."""
    statuses = {400, 406, 503}
    if route.rule:
        statuses |= {401, 403, 404}
    if '{' in route.path or route.method != 'GET':
        statuses.add(409)
    if route.takes:
        statuses |= {413, 415}
    if route.tagged and route.method != 'GET':
        statuses.add(412)
    if route.keyed:
        statuses.add(422)
    return statuses


def _describe_failure(status: int) -> OpenApi:
    special: dict[int, OpenApi] = {
        401: UNAUTHORIZED,
        406: {'anyOf': [ERROR, NOT_OFFERED]},
        503: {'anyOf': [ERROR, UNAVAILABLE]},
    }
    content = {'application/json': {'schema': special.get(status, ERROR)}}
    if status == 503:
        # keystonemiddleware answers in the media type that the caller accepts.
        content |= {media: {'schema': TEXT} for media in ('text/html', 'text/plain')}
    return {'description': STATUSES[status], 'content': content}


def _share_schemas(value: Any, schemas: OpenApi) -> Any:
    """A copy of `value` with a reference in place of each schema that has a title.

    Collects those in `schemas` by title. Raises ValueError for two that differ and share a title.
    """
    if isinstance(value, list):
        return [_share_schemas(item, schemas) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _share_schemas(item, schemas) for key, item in value.items()}
    title = value.get('title')
    if not isinstance(title, str) or 'type' not in value:
        return copy
    if schemas.setdefault(title, copy) != copy:
        raise ValueError(f'two schemas have the title {title}')
    return {'$ref': f'#/components/schemas/{title}'}
