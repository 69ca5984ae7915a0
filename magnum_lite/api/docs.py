"""The description of this API, served: OpenAPI at /v1/openapi.json, and an HTML page at /docs.

`app` calls `build` once; the two handlers send its result. Neither needs a token, so neither shows
anything but the API itself. The page is rendered from the OpenAPI document by `docs.html.j2`."""

from __future__ import annotations

import base64
import hashlib
import html
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from magnum_lite import schema
from magnum_lite.api import openapi
from magnum_lite.api.request import Answer, Documents, Request
from magnum_lite.api.route import Route

#: The schema of the OpenAPI document.
DOCUMENT = {'type': 'object', 'required': ['openapi', 'info', 'paths', 'components']}
#: Stands in the page for the address of the API, which each request may see under another name.
_HERE = '@HERE@'


def build(routes: Sequence[Route]) -> Documents:
    """The documents of these routes."""
    document = openapi.build(routes)
    page = _render_page(document)
    return Documents(document, page, _make_policy(page))


def serve_document(req: Request) -> dict[str, Any]:
    """This document, in which the server is the address that it was asked for at."""
    return {**req.services.documents.openapi, 'servers': [{'url': req.app_url}]}


def serve_page(req: Request) -> Answer:
    """This document as a page to read, which needs nothing from outside."""
    documents = req.services.documents
    return Answer(
        documents.page.replace(_HERE, html.escape(req.app_url)).encode(),
        {
            'Content-Type': 'text/html; charset=UTF-8',
            'Content-Security-Policy': documents.page_policy,
            'X-Content-Type-Options': 'nosniff',
            'Referrer-Policy': 'no-referrer',
        },
    )


def _make_policy(page: str) -> str:
    """The Content-Security-Policy of the page: it loads nothing, runs nothing, and may not be
    framed. Its one style is allowed by its hash."""
    style = page.partition('<style>')[2].partition('</style>')[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _render_page(document: Mapping[str, Any]) -> str:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = env.get_template('docs.html.j2')
    return template.render(document=document, here=_HERE, list_patch_rows=_list_patch_rows)


def _list_patch_rows(ways: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """The paths of a patch, each with its operations and its description.

    `ways` is from `schema.describe_patch`: the operations by their kind, where one pattern may
    match the paths of many attributes, too long for one cell."""
    ops: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for way in ways:
        properties = way['properties']
        for path in schema.list_paths(properties['path']['pattern']):
            ops.setdefault(path, []).extend(properties['op']['enum'])
            texts[path] = properties.get('value', {}).get('description', '')
    for path in ops:
        yield path, ' or '.join(ops[path]), texts[path]
