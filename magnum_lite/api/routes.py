"""The map of the API: method, address, handler, policy rule, status. One line is one operation.

`match` finds the line for a request. Addresses may lack the `/v1`, and may end in a slash except
where `/detail` does (api.md 0.1): clients rely on both."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from magnum_lite import errors
from magnum_lite.api import (
    actions,
    certificates,
    cluster_templates,
    clusters,
    federations,
    mservices,
    nodegroups,
    openapi,
    operations,
    quotas,
    root,
    stats,
    versions,
)
from magnum_lite.api.request import PAGES, PAGING, Request
from magnum_lite.api.resources import (
    CERTIFICATE,
    CLUSTER,
    CLUSTER_TEMPLATE,
    FAULTS,
    KUBECONFIG,
    NODE,
    NODEGROUP,
    OPERATION,
    QUOTA,
    RESIZE,
    SERVICE,
    UPGRADE,
)
from magnum_lite.schema import NO_BODY, UUID_ONLY, many, one, patched, posted


@dataclass(frozen=True)
class Route:
    """One operation. `rule` None: needs no token. `since`: the first minor version that has it.

    The rest is for the document (`openapi`), and the two flags are what `app` goes by. `takes`: the
    schema of the body, which a POST or PATCH without one says with `schema.NO_BODY`. `gives`: the
    schema of the answer, None if that has no body. `tagged`: what it shows has an `ETag`, what it
    changes takes `If-Match`. `keyed`: a POST that takes an `Idempotency-Key`, for which its handler
    gives `Request.receipt` to `db`; False where the answer holds a secret, which is not to be
    stored. `media`: what the answer is, if not JSON."""

    method: str
    path: str
    handler: Callable[[Request], Any]
    rule: str | None
    status: int = 200
    query: tuple[str, ...] = ()
    since: int = 1
    takes: Mapping[str, Any] | None = None
    gives: Mapping[str, Any] | None = None
    tagged: bool = False
    keyed: bool | None = None
    media: str = 'application/json'


ROUTES = (
    Route('GET', '/', root.index, None, gives=root.INDEX),
    Route('GET', '/v1', root.version, None, gives=root.VERSION),
    Route('GET', '/v1/openapi.json', openapi.serve, None, gives=openapi.DOCUMENT),
    Route('GET', '/docs', openapi.page, None, gives={'type': 'string'}, media='text/html'),
    Route(
        'GET',
        '/v1/clustertemplates',
        cluster_templates.index,
        'clustertemplate:get_all',
        query=PAGING,
        gives=many(CLUSTER_TEMPLATE, 'clustertemplates'),
    ),
    Route(
        'GET',
        '/v1/clustertemplates/detail',
        cluster_templates.detail,
        'clustertemplate:detail',
        query=PAGING,
        gives=many(CLUSTER_TEMPLATE, 'clustertemplates'),
    ),
    Route(
        'POST',
        '/v1/clustertemplates',
        cluster_templates.create,
        'clustertemplate:create',
        201,
        takes=posted(CLUSTER_TEMPLATE),
        gives=one(CLUSTER_TEMPLATE),
        keyed=True,
    ),
    Route(
        'GET',
        '/v1/clustertemplates/{ident}',
        cluster_templates.get,
        'clustertemplate:get',
        gives=one(CLUSTER_TEMPLATE),
    ),
    Route(
        'DELETE',
        '/v1/clustertemplates/{ident}',
        cluster_templates.delete,
        'clustertemplate:delete',
        204,
    ),
    Route(
        'GET',
        '/v1/clusters',
        clusters.index,
        'cluster:get_all',
        query=PAGING,
        gives=many(CLUSTER, 'clusters', brief=True),
    ),
    Route(
        'GET',
        '/v1/clusters/detail',
        clusters.detail,
        'cluster:detail',
        query=PAGING,
        gives=many(CLUSTER, 'clusters'),
    ),
    Route(
        'POST',
        '/v1/clusters',
        clusters.create,
        'cluster:create',
        202,
        takes=posted(CLUSTER),
        gives=UUID_ONLY,
        keyed=True,
    ),
    Route(
        'GET',
        '/v1/clusters/{ident}',
        clusters.get,
        'cluster:get',
        gives=one(CLUSTER, faults=FAULTS),
        tagged=True,
    ),
    Route(
        'PATCH',
        '/v1/clusters/{ident}',
        clusters.update,
        'cluster:update',
        202,
        query=('rollback',),
        takes=patched(CLUSTER, clusters.PATCHABLE),
        gives=UUID_ONLY,
        tagged=True,
    ),
    Route(
        'DELETE',
        '/v1/clusters/{ident}',
        clusters.delete,
        'cluster:delete',
        204,
        query=('force',),
        tagged=True,
    ),
    Route(
        'POST',
        '/v1/clusters/{ident}/actions/resize',
        actions.resize,
        'cluster:resize',
        202,
        since=versions.RESIZE,
        takes=posted(RESIZE),
        gives=UUID_ONLY,
        tagged=True,
        keyed=True,
    ),
    Route(
        'POST',
        '/v1/clusters/{ident}/actions/upgrade',
        actions.upgrade,
        'cluster:upgrade',
        202,
        since=versions.RESIZE,
        takes=posted(UPGRADE),
        gives=UUID_ONLY,
        tagged=True,
        keyed=True,
    ),
    Route(
        'GET',
        '/v1/clusters/{ident}/nodegroups',
        nodegroups.index,
        'nodegroup:get_all',
        query=(*PAGES, 'role'),
        since=versions.NODEGROUPS,
        gives=many(NODEGROUP, 'nodegroups', brief=True),
    ),
    Route(
        'POST',
        '/v1/clusters/{ident}/nodegroups',
        nodegroups.create,
        'nodegroup:create',
        202,
        since=versions.NODEGROUPS,
        takes=posted(NODEGROUP),
        gives=one(NODEGROUP),
        tagged=True,
        keyed=True,
    ),
    Route(
        'GET',
        '/v1/clusters/{ident}/nodegroups/{group}',
        nodegroups.get,
        'nodegroup:get',
        since=versions.NODEGROUPS,
        gives=one(NODEGROUP),
        tagged=True,
    ),
    Route(
        'PATCH',
        '/v1/clusters/{ident}/nodegroups/{group}',
        nodegroups.update,
        'nodegroup:update',
        202,
        since=versions.NODEGROUPS,
        takes=patched(NODEGROUP, nodegroups.PATCHABLE),
        gives=one(NODEGROUP),
        tagged=True,
    ),
    Route(
        'DELETE',
        '/v1/clusters/{ident}/nodegroups/{group}',
        nodegroups.delete,
        'nodegroup:delete',
        204,
        since=versions.NODEGROUPS,
        tagged=True,
    ),
    Route(
        'GET',
        '/v1/clusters/{ident}/nodes',
        operations.nodes,
        'node:get_all',
        gives=many(NODE, 'nodes', linked=False),
    ),
    Route(
        'GET',
        '/v1/clusters/{ident}/operations',
        operations.index,
        'operation:get_all',
        query=PAGES,
        gives=many(OPERATION, 'operations', brief=True),
    ),
    Route('GET', '/v1/operations/{ident}', operations.get, 'operation:get', gives=one(OPERATION)),
    Route(
        'DELETE',
        '/v1/operations/{ident}',
        operations.delete,
        'operation:cancel',
        202,
        gives=operations.CANCELLED,
    ),
    Route(
        'PATCH',
        '/v1/certificates/{ident}',
        certificates.rotate,
        'certificate:rotate_ca',
        202,
        takes=NO_BODY,
        gives=UUID_ONLY,
        tagged=True,
    ),
    Route(
        'POST',
        '/v1/certificates',
        certificates.create,
        'certificate:create',
        201,
        takes=posted(CERTIFICATE),
        gives=certificates.SHOWN,
        keyed=False,
    ),
    Route(
        'GET',
        '/v1/certificates/{ident}',
        certificates.get,
        'certificate:get',
        query=('ca_cert_type',),
        gives=certificates.SHOWN,
    ),
    Route(
        'GET',
        '/v1/certificates/{ident}/{type}',
        certificates.get,
        'certificate:get',
        gives=certificates.SHOWN,
    ),
    Route(
        'PATCH',
        '/v1/credentials/{ident}',
        certificates.rotate_credentials,
        'credential:rotate',
        202,
        since=versions.CREDENTIALS,
        takes=NO_BODY,
        gives=UUID_ONLY,
    ),
    Route(
        'POST',
        '/v1/clusters/{ident}/kubeconfig',
        certificates.create_kubeconfig,
        'cluster:kubeconfig',
        201,
        takes=NO_BODY,
        gives=one(KUBECONFIG, linked=False),
        keyed=False,
    ),
    Route(
        'PATCH',
        '/v1/clustertemplates/{ident}',
        cluster_templates.update,
        'clustertemplate:update',
        takes=patched(CLUSTER_TEMPLATE, cluster_templates.PATCHABLE),
        gives=one(CLUSTER_TEMPLATE),
    ),
    Route(
        'GET',
        '/v1/quotas',
        quotas.index,
        'quota:get_all',
        query=PAGING,
        gives=many(QUOTA, 'quotas', linked=False),
    ),
    Route(
        'POST',
        '/v1/quotas',
        quotas.create,
        'quota:create',
        201,
        takes=posted(QUOTA),
        gives=one(QUOTA, linked=False),
        keyed=True,
    ),
    Route('GET', '/v1/quotas/{project_id}/{resource}', quotas.get, 'quota:get', gives=quotas.SHOWN),
    Route(
        'PATCH',
        '/v1/quotas/{project_id}/{resource}',
        quotas.update,
        'quota:update',
        202,
        takes=quotas.CHANGE,
        gives=one(QUOTA, linked=False),
    ),
    Route('DELETE', '/v1/quotas/{project_id}/{resource}', quotas.delete, 'quota:delete', 204),
    Route(
        'GET',
        '/v1/stats',
        stats.get,
        'stats:get_all',
        query=('project_id', 'type'),
        gives=stats.COUNTS,
    ),
    Route(
        'GET',
        '/v1/mservices',
        mservices.index,
        'magnum-service:get_all',
        gives=many(SERVICE, 'mservices', linked=False),
    ),
    Route(
        'GET',
        '/v1/federations',
        federations.index,
        'federation:get_all',
        query=PAGES,
        gives=federations.NONE,
    ),
    Route(
        'GET',
        '/v1/federations/detail',
        federations.index,
        'federation:detail',
        query=PAGES,
        gives=federations.NONE,
    ),
    Route(
        'POST',
        '/v1/federations',
        federations.create,
        'federation:create',
        202,
        takes=NO_BODY,
        gives=UUID_ONLY,
        keyed=False,
    ),
    Route('GET', '/v1/federations/{ident}', federations.find, 'federation:get', gives=UUID_ONLY),
    Route(
        'PATCH',
        '/v1/federations/{ident}',
        federations.find,
        'federation:update',
        202,
        query=('rollback',),
        takes=NO_BODY,
        gives=UUID_ONLY,
    ),
    Route('DELETE', '/v1/federations/{ident}', federations.find, 'federation:delete', 204),
)


#: Addresses that have no version, and those that need no token, in every spelling that `match`
#: takes.
UNVERSIONED = frozenset(
    f'{route.path.rstrip("/")}{slash}'
    for route in ROUTES
    if not route.path.startswith('/v1')
    for slash in ('', '/')
)
PUBLIC = UNVERSIONED.union(
    f'{start}{route.path[3:]}{slash}'
    for route in ROUTES
    if route.rule is None and route.path.startswith('/v1')
    for start in ('/v1', '')
    for slash in ('', '/')
)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r'\{(\w+)\}', r'(?P<\1>[^/]+)', path))


#: Addresses in the order of their first line, each with its methods.
_BY_PATH: list[tuple[re.Pattern[str], dict[str, Route]]] = [
    (_pattern(path), {r.method: r for r in ROUTES if r.path == path})
    for path in dict.fromkeys(r.path for r in ROUTES)
]


def match(method: str, path: str) -> tuple[Route, Mapping[str, str]]:
    """The line for a request and the variable parts of its address.

    Raises NotFound, MethodNotAllowed, and Invalid for an address that lacks its end: a method that
    items of this collection take but not the collection itself, or a part of what names an item.
    """
    if path in UNVERSIONED:
        path = path.rstrip('/') or '/'
    else:
        path = path if path == '/v1' or path.startswith(('/v1/', '/v2')) else f'/v1{path}'
        path = path.removesuffix('/') if not path.endswith('/detail/') else path
    for pattern, methods in _BY_PATH:
        found = pattern.fullmatch(path)
        if not found:
            continue
        if method in methods:
            return methods[method], found.groupdict()
        if method in ('PATCH', 'DELETE'):
            _refuse_short(method, path)
        raise errors.MethodNotAllowed(sorted(methods))
    _refuse_short(method, path)
    if _ACTION.fullmatch(path):
        raise errors.MethodNotAllowed([])
    raise errors.NotFound('')


#: Below this, what is not known is a method that is not allowed, for Magnum.
_ACTION = re.compile(r'/v1/clusters/[^/]+/actions(/[^/]+)?')


def _refuse_short(method: str, path: str) -> None:
    """Raise Invalid if the address, with a name or two at its end, would be one that takes the
    method."""
    if any(
        item.fullmatch(path + more) and method in verbs
        for item, verbs in _BY_PATH
        for more in ('/x', '/x/x')
    ):
        raise errors.Invalid('Missing argument: the address must end in a name or uuid.')
