"""The map of the API: method, address, handler, policy rule, status. One line is one operation.

`match` finds the line for a request. Addresses may lack the `/v1`, and may end in a slash except where `/detail`
does (api.md 0.1): clients rely on both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from magnum_lite import errors
from magnum_lite.api import actions, certificates, cluster_templates, clusters, nodegroups, operations, root, versions
from magnum_lite.api.request import PAGES, PAGING, Request


@dataclass(frozen=True)
class Route:
    """One operation. `rule` None: needs no token. `since`: the first minor version that has it."""

    method: str
    path: str
    handler: Callable[[Request], Any]
    rule: str | None
    status: int = 200
    query: tuple[str, ...] = ()
    since: int = 1


ROUTES = (
    Route('GET', '/', root.index, None),
    Route('GET', '/v1', root.version, None),
    Route('GET', '/v1/clustertemplates', cluster_templates.index, 'clustertemplate:get_all', query=PAGING),
    Route('GET', '/v1/clustertemplates/detail', cluster_templates.detail, 'clustertemplate:detail', query=PAGING),
    Route('POST', '/v1/clustertemplates', cluster_templates.create, 'clustertemplate:create', 201),
    Route('GET', '/v1/clustertemplates/{ident}', cluster_templates.get, 'clustertemplate:get'),
    Route('DELETE', '/v1/clustertemplates/{ident}', cluster_templates.delete, 'clustertemplate:delete', 204),
    Route('GET', '/v1/clusters', clusters.index, 'cluster:get_all', query=PAGING),
    Route('GET', '/v1/clusters/detail', clusters.detail, 'cluster:detail', query=PAGING),
    Route('POST', '/v1/clusters', clusters.create, 'cluster:create', 202),
    Route('GET', '/v1/clusters/{ident}', clusters.get, 'cluster:get'),
    Route('PATCH', '/v1/clusters/{ident}', clusters.update, 'cluster:update', 202, query=('rollback',)),
    Route('DELETE', '/v1/clusters/{ident}', clusters.delete, 'cluster:delete', 204, query=('force',)),
    Route('POST', '/v1/clusters/{ident}/actions/resize', actions.resize, 'cluster:resize', 202,
          since=versions.RESIZE),
    Route('POST', '/v1/clusters/{ident}/actions/upgrade', actions.upgrade, 'cluster:upgrade', 202,
          since=versions.RESIZE),
    Route('GET', '/v1/clusters/{ident}/nodegroups', nodegroups.index, 'nodegroup:get_all', query=(*PAGES, 'role'),
          since=versions.NODEGROUPS),
    Route('POST', '/v1/clusters/{ident}/nodegroups', nodegroups.create, 'nodegroup:create', 202,
          since=versions.NODEGROUPS),
    Route('GET', '/v1/clusters/{ident}/nodegroups/{group}', nodegroups.get, 'nodegroup:get',
          since=versions.NODEGROUPS),
    Route('PATCH', '/v1/clusters/{ident}/nodegroups/{group}', nodegroups.update, 'nodegroup:update', 202,
          since=versions.NODEGROUPS),
    Route('DELETE', '/v1/clusters/{ident}/nodegroups/{group}', nodegroups.delete, 'nodegroup:delete', 204,
          since=versions.NODEGROUPS),
    Route('GET', '/v1/clusters/{ident}/nodes', operations.nodes, 'node:get_all'),
    Route('GET', '/v1/clusters/{ident}/operations', operations.index, 'operation:get_all', query=PAGES),
    Route('GET', '/v1/operations/{ident}', operations.get, 'operation:get'),
    Route('DELETE', '/v1/operations/{ident}', operations.delete, 'operation:cancel', 202),
    Route('PATCH', '/v1/certificates/{ident}', certificates.rotate, 'certificate:rotate_ca', 202),
)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r'\{(\w+)\}', r'(?P<\1>[^/]+)', path))


#: Addresses in the order of their first line, each with its methods.
_BY_PATH: list[tuple[re.Pattern[str], dict[str, Route]]] = [
    (_pattern(path), {r.method: r for r in ROUTES if r.path == path})
    for path in dict.fromkeys(r.path for r in ROUTES)]


def match(method: str, path: str) -> tuple[Route, Mapping[str, str]]:
    """The line for a request and the variable parts of its address.

    Raises NotFound, MethodNotAllowed, and Invalid for a method that items of this collection take but not the
    collection itself.
    """
    if path != '/':
        path = path if path == '/v1' or path.startswith(('/v1/', '/v2')) else f'/v1{path}'
        path = path.removesuffix('/') if not path.endswith('/detail/') else path
    for pattern, methods in _BY_PATH:
        found = pattern.fullmatch(path)
        if not found:
            continue
        if method in methods:
            return methods[method], found.groupdict()
        if method in ('PATCH', 'DELETE') and any(
                item.fullmatch(f'{path}/x') and method in verbs for item, verbs in _BY_PATH):
            raise errors.Invalid('Missing argument: the address must end in a name or uuid.')
        raise errors.MethodNotAllowed(sorted(methods))
    raise errors.NotFound('')
