"""Hooks of schemathesis (`tools/fuzz`) that put existing names into its random requests, most of
which would otherwise end at the first check.

A checksum of each request decides what is replaced in it, so a run can be repeated. Things that the
requests create are remembered and used in later requests."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import schemathesis

_KNOWN = json.loads(Path(os.environ['FUZZ_KNOWN']).read_text())
TEMPLATES = [_KNOWN['template'], 'fuzz']
CLUSTERS = [*_KNOWN['clusters'], 'fuzz-1']
OPERATIONS = ['none']
GROUPS = ['default-worker', 'default-master', 'no-such']
VERSION = 'OpenStack-API-Version'
#: Each further nodegroup is a stack in the cloud.
MAX_GROUPS = 12
#: Attributes of a POST whose random values match nothing in the cloud.
NAMES = (
    'image_id',
    'flavor_id',
    'master_flavor_id',
    'keypair',
    'keypair_id',
    'fixed_network',
    'fixed_subnet',
    'external_network_id',
    'labels',
    'docker_volume_size',
    'driver',
    'coe',
    'server_type',
    'dns_nameserver',
    'docker_storage_driver',
    'public',
    'hidden',
    'master_count',
    'master_lb_enabled',
)


def _get_chance(case: Any, salt: str) -> int:
    """Return a number that depends on the request and `salt` alone."""
    return zlib.crc32(
        f'{salt} {case.method} {case.path} {case.path_parameters!r} {case.query!r} {case.body!r}'.encode(  # noqa: E501
            errors='replace'
        )
    )


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Replace some random values by existing ones."""
    chance = _get_chance(case, 'what')
    _fill_path(case, chance)
    if isinstance(case.query, dict) and chance % 4:
        _fill_query(case.query, chance)
    if isinstance(case.body, dict):
        _fill_body(case, chance)
    if isinstance(case.body, list):
        _limit_numbers(case.body)
    headers = case.headers
    if (
        headers is not None and VERSION in headers and chance % 16 > 2
    ):  # else most requests would end at a wrong one
        headers[VERSION] = f'container-infra {("latest", "1.14", "latest", "1.9")[chance % 4]}'
    if headers is not None and 'If-Match' in headers and chance % 2:
        headers['If-Match'] = '*'
    if headers is not None and 'Idempotency-Key' in headers and chance % 2:
        headers['Idempotency-Key'] = f'key-{chance % 20}'


def _fill_path(case: Any, chance: int) -> None:
    """Name existing things in the address of three requests in four, but seldom in a DELETE."""
    parameters = case.path_parameters
    # /detail is the address of another operation.
    if parameters and parameters.get('ident') == 'detail':
        parameters['ident'] = 'details'
    if not parameters or chance % 4 == 0:
        return
    deletes = case.method == 'DELETE' and not case.path.startswith('/v1/operations')
    if deletes and '{group}' not in case.path and chance % 16 != 1:
        return
    kind = CLUSTERS
    if case.path.startswith('/v1/clustertemplates'):
        kind = TEMPLATES
    elif case.path.startswith('/v1/operations'):
        kind = OPERATIONS
    if 'ident' in parameters:
        parameters['ident'] = kind[chance // 16 % len(kind)]
    if 'group' in parameters:
        parameters['group'] = GROUPS[chance // 64 % len(GROUPS)]


def _fill_query(query: dict[str, Any], chance: int) -> None:
    """Sort by existing keys, and from the first page. Seldom ask for what only an admin may do."""
    if 'sort_key' in query:
        query['sort_key'] = ('id', 'uuid', 'name', 'created_at', 'status')[chance % 5]
    for name in ('marker', 'all_tenants', 'force'):
        if chance % 8 != 1:
            query.pop(name, None)


def _fill_body(case: Any, chance: int) -> None:
    """Name existing things in the body, drop half of the values that match nothing in the cloud,
    and ask for few nodes."""
    body = case.body
    for bit, name in enumerate(NAMES):
        if chance >> (bit % 20) & 3 and name in body:
            del body[name]
    if chance % 4 and case.path == '/v1/clustertemplates':
        body.update(
            coe='paper', image_id='debian', flavor_id='m1.small', master_flavor_id='m1.small'
        )
    for name in ('cluster_template_id', 'cluster_template'):
        if chance % 4 and name in body:
            body[name] = TEMPLATES[chance // 16 % len(TEMPLATES)]
    if chance % 4 and 'nodegroup' in body:
        body['nodegroup'] = GROUPS[chance // 64 % len(GROUPS)]
    for name in ('node_count', 'min_node_count', 'max_node_count'):
        if chance % 4 and isinstance(body.get(name), int) and body[name] > 9:
            body[name] %= 9
    if case.path.endswith('/nodegroups') and len(GROUPS) > MAX_GROUPS:
        body['name'] = 'default-worker'


def _limit_numbers(patch: list[Any]) -> None:
    for item in patch:
        if isinstance(item, dict) and isinstance(item.get('value'), int) and item['value'] > 9:
            item['value'] %= 9


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Remember what the request created."""
    if case.method not in ('POST', 'PATCH') or response.status_code not in (201, 202):
        return
    uuid = response.json().get('uuid')
    if case.path.endswith('/nodegroups'):
        GROUPS.append(uuid)
    elif case.path == '/v1/clusters':
        CLUSTERS.append(uuid)
    elif case.path == '/v1/clustertemplates' and len(TEMPLATES) < 20:
        TEMPLATES.append(uuid)
    if location := response.headers.get('location'):
        OPERATIONS.append(location[0].rpartition('/')[2])
        del OPERATIONS[:-30]
