"""The route table of the API: method, address, handler, policy rule, status of each operation.

`app` finds the route of a request with `match`; `openapi` describes the table. Addresses may lack
the `/v1`, and may end in a slash, except after `/detail`: clients rely on both
(doc/contributor/wire-contract.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from magnum_lite import errors
from magnum_lite.api import (
    actions,
    certificates,
    cluster_templates,
    clusters,
    docs,
    federations,
    mservices,
    nodegroups,
    operations,
    quotas,
    root,
    stats,
    versions,
)
from magnum_lite.api.paging import PAGES, PAGING
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
from magnum_lite.api.route import Route
from magnum_lite.schema import (
    NO_BODY,
    UUID_ONLY,
    describe_listing,
    describe_patch,
    describe_post,
    describe_row,
)

ROUTES = (
    Route('GET', '/', root.index, None, gives=root.INDEX),
    Route('GET', '/v1', root.version, None, gives=root.VERSION),
    Route('GET', '/v1/openapi.json', docs.serve_document, None, gives=docs.DOCUMENT),
    Route('GET', '/docs', docs.serve_page, None, gives={'type': 'string'}, media='text/html'),
    Route(
        'GET',
        '/v1/clustertemplates',
        cluster_templates.index,
        'clustertemplate:get_all',
        query=PAGING,
        gives=describe_listing(CLUSTER_TEMPLATE, 'clustertemplates'),
    ),
    Route(
        'GET',
        '/v1/clustertemplates/detail',
        cluster_templates.detail,
        'clustertemplate:detail',
        query=PAGING,
        gives=describe_listing(CLUSTER_TEMPLATE, 'clustertemplates'),
    ),
    Route(
        'POST',
        '/v1/clustertemplates',
        cluster_templates.create,
        'clustertemplate:create',
        201,
        takes=describe_post(CLUSTER_TEMPLATE),
        gives=describe_row(CLUSTER_TEMPLATE),
        keyed=True,
    ),
    Route(
        'GET',
        '/v1/clustertemplates/{ident}',
        cluster_templates.get,
        'clustertemplate:get',
        gives=describe_row(CLUSTER_TEMPLATE),
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
        gives=describe_listing(CLUSTER, 'clusters', brief=True),
    ),
    Route(
        'GET',
        '/v1/clusters/detail',
        clusters.detail,
        'cluster:detail',
        query=PAGING,
        gives=describe_listing(CLUSTER, 'clusters'),
    ),
    Route(
        'POST',
        '/v1/clusters',
        clusters.create,
        'cluster:create',
        202,
        takes=describe_post(CLUSTER),
        gives=UUID_ONLY,
        keyed=True,
    ),
    Route(
        'GET',
        '/v1/clusters/{ident}',
        clusters.get,
        'cluster:get',
        gives=describe_row(CLUSTER, faults=FAULTS),
        tagged=True,
    ),
    Route(
        'PATCH',
        '/v1/clusters/{ident}',
        clusters.update,
        'cluster:update',
        202,
        query=('rollback',),
        takes=describe_patch(CLUSTER, clusters.PATCHABLE),
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
        takes=describe_post(RESIZE),
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
        takes=describe_post(UPGRADE),
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
        gives=describe_listing(NODEGROUP, 'nodegroups', brief=True),
    ),
    Route(
        'POST',
        '/v1/clusters/{ident}/nodegroups',
        nodegroups.create,
        'nodegroup:create',
        202,
        since=versions.NODEGROUPS,
        takes=describe_post(NODEGROUP),
        gives=describe_row(NODEGROUP),
        tagged=True,
        keyed=True,
    ),
    Route(
        'GET',
        '/v1/clusters/{ident}/nodegroups/{group}',
        nodegroups.get,
        'nodegroup:get',
        since=versions.NODEGROUPS,
        gives=describe_row(NODEGROUP),
        tagged=True,
    ),
    Route(
        'PATCH',
        '/v1/clusters/{ident}/nodegroups/{group}',
        nodegroups.update,
        'nodegroup:update',
        202,
        since=versions.NODEGROUPS,
        takes=describe_patch(NODEGROUP, nodegroups.PATCHABLE),
        gives=describe_row(NODEGROUP),
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
        gives=describe_listing(NODE, 'nodes', linked=False),
    ),
    Route(
        'GET',
        '/v1/clusters/{ident}/operations',
        operations.index,
        'operation:get_all',
        query=PAGES,
        gives=describe_listing(OPERATION, 'operations', brief=True),
    ),
    Route(
        'GET',
        '/v1/operations/{ident}',
        operations.get,
        'operation:get',
        gives=describe_row(OPERATION),
    ),
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
        takes=describe_post(CERTIFICATE),
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
        gives=describe_row(KUBECONFIG, linked=False),
        keyed=False,
    ),
    Route(
        'PATCH',
        '/v1/clustertemplates/{ident}',
        cluster_templates.update,
        'clustertemplate:update',
        takes=describe_patch(CLUSTER_TEMPLATE, cluster_templates.PATCHABLE),
        gives=describe_row(CLUSTER_TEMPLATE),
    ),
    Route(
        'GET',
        '/v1/quotas',
        quotas.index,
        'quota:get_all',
        query=PAGING,
        gives=describe_listing(QUOTA, 'quotas', linked=False),
    ),
    Route(
        'POST',
        '/v1/quotas',
        quotas.create,
        'quota:create',
        201,
        takes=describe_post(QUOTA),
        gives=describe_row(QUOTA, linked=False),
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
        gives=describe_row(QUOTA, linked=False),
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
        gives=describe_listing(SERVICE, 'mservices', linked=False),
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


#: Addresses that have no version, with and without a slash at the end.
UNVERSIONED = frozenset(
    f'{route.path.rstrip("/")}{slash}'
    for route in ROUTES
    if not route.path.startswith('/v1')
    for slash in ('', '/')
)
#: Addresses that need no token, in every spelling that `match` takes.
PUBLIC = UNVERSIONED.union(
    f'{start}{route.path[3:]}{slash}'
    for route in ROUTES
    if route.rule is None and route.path.startswith('/v1')
    for start in ('/v1', '')
    for slash in ('', '/')
)


def _compile_path(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r'\{(\w+)\}', r'(?P<\1>[^/]+)', path))


#: Addresses in the order of the table, each with its routes by method.
_BY_PATH: list[tuple[re.Pattern[str], dict[str, Route]]] = [
    (_compile_path(path), {r.method: r for r in ROUTES if r.path == path})
    for path in dict.fromkeys(r.path for r in ROUTES)
]
#: Below these addresses, Magnum answers "method not allowed" for what it does not know.
_ACTION = re.compile(r'/v1/clusters/[^/]+/actions(/[^/]+)?')


def match(method: str, path: str) -> tuple[Route, Mapping[str, str]]:
    """The route of a request and the variable parts of its address.

    Raises NotFound and MethodNotAllowed. Raises Invalid for an incomplete address: an item's method
    on its collection, or only a part of what names an item."""
    if path in UNVERSIONED:
        path = path.rstrip('/') or '/'
    else:
        if path != '/v1' and not path.startswith(('/v1/', '/v2')):
            path = f'/v1{path}'
        if not path.endswith('/detail/'):
            path = path.removesuffix('/')
    for pattern, methods in _BY_PATH:
        found = pattern.fullmatch(path)
        if not found:
            continue
        if method in methods:
            return methods[method], found.groupdict()
        if method in ('PATCH', 'DELETE'):
            _check_complete(method, path)
        raise errors.MethodNotAllowed(sorted(methods))
    _check_complete(method, path)
    if _ACTION.fullmatch(path):
        raise errors.MethodNotAllowed([])
    raise errors.NotFound('')


def _check_complete(method: str, path: str) -> None:
    """Raise Invalid if the address would take the method with one or two more parts at its end."""
    for pattern, methods in _BY_PATH:
        is_item = pattern.fullmatch(f'{path}/x') or pattern.fullmatch(f'{path}/x/x')
        if is_item and method in methods:
            raise errors.Invalid('Missing argument: the address must end in a name or uuid.')
