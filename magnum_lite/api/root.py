"""Handlers of / and /v1: the version documents, which need no token.

Called by `app` through the route table. Clients discover the API and its versions here."""

from __future__ import annotations

from typing import Any

from magnum_lite.api import versions
from magnum_lite.api.request import Request

#: Collections to which the version document links, with their addresses.
COLLECTIONS = {
    name: name
    for name in (
        'clustertemplates',
        'clusters',
        'quotas',
        'certificates',
        'mservices',
        'stats',
        'federations',
    )
} | {'nodegroups': 'clusters/{cluster_id}/nodegroups', 'credentials': 'credentials'}


_LINKS = {'type': 'array', 'items': {'type': 'object'}}
INDEX = {
    'type': 'object',
    'required': ['name', 'description', 'versions'],
    'properties': {
        'name': {'type': 'string'},
        'description': {'type': 'string'},
        'versions': {
            'type': 'array',
            'items': {
                'type': 'object',
                'required': ['id', 'status', 'max_version', 'min_version', 'links'],
                'properties': {'links': _LINKS},
            },
        },
    },
}
VERSION = {
    'type': 'object',
    'required': ['id', 'media_types', 'links', *COLLECTIONS],
    'properties': {
        'id': {'const': 'v1'},
        'media_types': _LINKS,
        'links': _LINKS,
        **dict.fromkeys(COLLECTIONS, _LINKS),
    },
}


def index(req: Request) -> dict[str, Any]:
    """The root: one version."""
    return {
        'name': 'OpenStack Magnum API',
        'description': (
            'Magnum is an OpenStack project which aims to provide container cluster management.'
        ),
        'versions': [
            {
                'id': 'v1',
                'status': 'CURRENT',
                'max_version': f'1.{versions.MAXIMUM}',
                'min_version': f'1.{versions.MINIMUM}',
                'links': [{'href': f'{req.app_url}/v1/', 'rel': 'self'}],
            }
        ],
    }


def version(req: Request) -> dict[str, Any]:
    """The version document. keystoneauth takes the flat form because it has an `id`."""
    body: dict[str, Any] = {
        'id': 'v1',
        'media_types': [
            {'base': 'application/json', 'type': 'application/vnd.openstack.magnum.v1+json'}
        ],
        'links': [
            {'href': f'{req.app_url}/v1/', 'rel': 'self'},
            {
                'href': 'https://docs.openstack.org/api-ref/container-infrastructure-management/',
                'rel': 'describedby',
                'type': 'text/html',
            },
        ],
    }
    for name, path in COLLECTIONS.items():
        body[name] = [
            {'href': f'{req.app_url}/v1/{path}/', 'rel': 'self'},
            {'href': f'{req.app_url}/{path}/', 'rel': 'bookmark'},
        ]
    return body
