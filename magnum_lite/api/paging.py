"""Listings: what a query asks for (`read_page`), and the body with its `next` link.

Every handler that lists rows calls both parts around its own query of `db`. Nothing here reads the
database."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from typing import Any

from oslo_utils import uuidutils

from magnum_lite import db, errors, models, schema
from magnum_lite.api.request import Request

#: The query parameters of a listing of what belongs to one cluster.
PAGES = ('limit', 'marker', 'sort_key', 'sort_dir')
#: The query parameters of every other listing.
PAGING = (*PAGES, 'all_tenants')


def read_page(
    req: Request, model: type[db.Listed], resource: schema.Resource
) -> tuple[db.Scope, db.Page]:
    """The scope and the page that a query asks for.

    Sort keys are the columns that answers show at the request's version, and `id`, which is the
    order of creation. Raises Invalid, and Forbidden for `all_tenants` without being admin."""
    shown = {field.name for field in resource.list_shown(req.version)}
    sort_keys = db.sort_keys(model, shown | {'id'})
    sort_key = req.query.get('sort_key', 'id')
    if sort_key not in sort_keys:
        raise errors.Invalid(
            f'The sort_key {sort_key!r:.80} is invalid. It must be one of: {", ".join(sort_keys)}.'
        )
    direction = req.query.get('sort_dir', 'asc')
    if direction not in ('asc', 'desc'):
        raise errors.Invalid(f'Invalid sort direction: {direction!r:.80}. It must be asc or desc.')
    marker = req.query.get('marker')
    if marker is not None:
        _check_marker(marker, model)
    page = db.Page(_read_limit(req), marker, sort_key, direction == 'desc')
    return db.Scope(req.caller.project_id, all_projects=_read_all_projects(req)), page


def _check_marker(marker: str, model: type[db.Listed]) -> None:
    """Raise Invalid for a marker of the wrong form. Quotas have no uuid, so theirs is the id."""
    if model is models.Quota:
        noun = 'an id'
        # 18 digits always fit a signed 64-bit integer.
        is_valid = marker.isascii() and marker.isdigit() and len(marker) < 19
    else:
        noun = 'a uuid'
        is_valid = uuidutils.is_uuid_like(marker)
    if not is_valid:
        raise errors.Invalid(f'Expected {noun} as marker but received {marker!r:.80}.')


def _read_limit(req: Request) -> int:
    text = req.query.get('limit')
    max_limit = int(req.services.conf.api.max_limit)
    if text is None:
        return max_limit
    digits = text.lstrip('0')
    if not digits.isascii() or not digits.isdigit():
        raise errors.Invalid(f'The limit must be a positive number, not {text!r:.80}.')
    return min(int(digits[:18]), max_limit)


def _read_all_projects(req: Request) -> bool:
    is_permitted = req.scope.all_projects
    all_projects = req.read_flag('all_tenants', is_permitted)
    if all_projects and not is_permitted:
        raise errors.Forbidden('Policy does not allow to list what belongs to other projects.')
    return all_projects


def build_listing(
    req: Request,
    resource: schema.Resource,
    plural: str,
    rows: Sequence[Any],
    page: db.Page,
    *,
    brief: bool,
    path: str = '',
    items: str = '',
) -> dict[str, Any]:
    """The body of a listing, with `next` when the page is full.

    `path` is the address of the listing and `items` that of the collection of its items. Both are
    relative to `/v1/` and default to `plural`. The fields are looked up once for all rows, because
    some clients list a thousand clusters every minute."""
    fields = resource.list_shown(req.version, brief=brief)
    bodies = []
    for row in rows:
        body = {field.name: field.show(row) for field in fields}
        body['links'] = req.build_links(items or plural, row.uuid)
        bodies.append(body)
    listing: dict[str, Any] = {plural: bodies}
    if rows and len(rows) == page.limit:
        listing['next'] = build_next(req, path or plural, page, rows[-1].uuid)
    return listing


def build_next(req: Request, path: str, page: db.Page, marker: str) -> str:
    """The address of the page of this listing that begins after the row `marker`."""
    query = {
        'sort_key': page.sort_key,
        'sort_dir': 'desc' if page.descending else 'asc',
        'limit': str(page.limit),
        'marker': marker,
    }
    for name in ('all_tenants', 'role'):
        if name in req.query:
            query[name] = req.query[name]
    return f'{req.app_url}/v1/{path}?{urllib.parse.urlencode(query)}'
