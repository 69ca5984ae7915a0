"""Holds answers against the document of the API."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema
import webob

from magnum_lite import errors
from magnum_lite.api import openapi, routes

DOCUMENT = openapi.build(routes.ROUTES)


@functools.cache
def validator(path: str, method: str, status: int) -> jsonschema.Draft202012Validator | None:
    """What the document says of the body of an answer; None if there is none. Raises KeyError for
    no such answer."""
    answer = DOCUMENT['paths'][path][method.lower()]['responses'][str(status)]
    if '$ref' in answer:
        answer = DOCUMENT['components']['responses'][answer['$ref'].rpartition('/')[2]]
    for media in answer.get('content', {}).values():
        return jsonschema.Draft202012Validator(
            media['schema'] | {'components': DOCUMENT['components']}
        )
    return None


def check(environ: dict[str, Any], response: webob.Response) -> None:
    """Raise AssertionError for an answer that the document does not have."""
    try:
        route, _ = routes.match(environ['REQUEST_METHOD'], webob.Request(environ).path_info or '/')
    except (errors.HttpError, UnicodeDecodeError):
        return
    body_is_unasked = response.status_code in (413, 415) and not route.takes
    if response.status_code >= 500 or body_is_unasked:
        return
    try:
        found = validator(route.path, route.method, response.status_code)
    except KeyError:
        raise AssertionError(
            f'{route.method} {route.path} does not answer {response.status_code}'
        ) from None
    if found is None:
        assert not response.body
        return
    body = response.json if response.content_type == 'application/json' else response.text
    for error in found.iter_errors(body):
        raise AssertionError(
            f'{route.method} {route.path} {response.status_code}: {error.json_path}: '
            f'{error.message}\n{json.dumps(body)[:2000]}'
        )
    declared = DOCUMENT['paths'][route.path][route.method.lower()]['responses'][
        str(response.status_code)
    ].get('headers', {})
    for name in ('Location', 'ETag', 'Warning'):
        assert name not in response.headers or name in declared, (
            f'{name} of {route.method} {route.path} is not said'
        )
    if 'ETag' in declared:
        assert 'ETag' in response.headers
