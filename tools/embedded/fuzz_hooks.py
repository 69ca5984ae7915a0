"""Leads schemathesis (`tools/fuzz`) to what there is: random names and bodies would all end at the
first check.

Of each request that was made up, its own checksum decides what is put in its place, so that a run
can be repeated. What was made meanwhile is remembered, and asked for as well."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import schemathesis

_KNOWN = json.loads(Path(os.environ['FUZZ_KNOWN']).read_text())
TEMPLATES, CLUSTERS, OPERATIONS = (
    [_KNOWN['template'], 'fuzz'],
    [*_KNOWN['clusters'], 'fuzz-1'],
    ['none'],
)
GROUPS = ['default-worker', 'default-master', 'no-such']
VERSION = 'OpenStack-API-Version'
#: Each further nodegroup is a stack in the cloud.
MOST_GROUPS = 12
#: Attributes of a POST whose random values nothing in the cloud has.
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


def _chance(case: Any, salt: str) -> int:
    """A number that belongs to this request."""
    return zlib.crc32(
        f'{salt} {case.method} {case.path} {case.path_parameters!r} {case.query!r} {case.body!r}'.encode(  # noqa: E501
            errors='replace'
        )
    )


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Put in the place of some made-up values such as there are."""
    chance = _chance(case, 'what')
    _lead(case, chance)
    if isinstance(case.query, dict) and chance % 4:
        _ask(case.query, chance)
    if isinstance(case.body, dict):
        _fill(case, chance)
    if isinstance(case.body, list):
        _limit(case.body)
    headers = case.headers
    if (
        headers is not None and VERSION in headers and chance % 16 > 2
    ):  # else most requests would end at a wrong one
        headers[VERSION] = f'container-infra {("latest", "1.14", "latest", "1.9")[chance % 4]}'
    if headers is not None and 'If-Match' in headers and chance % 2:
        headers['If-Match'] = '*'
    if headers is not None and 'Idempotency-Key' in headers and chance % 2:
        headers['Idempotency-Key'] = f'key-{chance % 20}'


def _lead(case: Any, chance: int) -> None:
    """Name in the address what there is, three times of four; what is to be deleted, seldom."""
    parameters = case.path_parameters
    if parameters and parameters.get('ident') == 'detail':  # the address of another operation
        parameters['ident'] = 'details'
    if not parameters or chance % 4 == 0:
        return
    deletes = case.method == 'DELETE' and not case.path.startswith('/v1/operations')
    if deletes and '{group}' not in case.path and chance % 16 != 1:
        return
    kind = (
        TEMPLATES
        if case.path.startswith('/v1/clustertemplates')
        else OPERATIONS
        if case.path.startswith('/v1/operations')
        else CLUSTERS
    )
    if 'ident' in parameters:
        parameters['ident'] = kind[chance // 16 % len(kind)]
    if 'group' in parameters:
        parameters['group'] = GROUPS[chance // 64 % len(GROUPS)]


def _ask(query: dict[str, Any], chance: int) -> None:
    """Sort by what there is, and from the beginning; seldom ask for what only an admin may."""
    if 'sort_key' in query:
        query['sort_key'] = ('id', 'uuid', 'name', 'created_at', 'status')[chance % 5]
    for name in ('marker', 'all_tenants', 'force'):
        if chance % 8 != 1:
            query.pop(name, None)


def _fill(case: Any, chance: int) -> None:
    """Name in the body what there is, leave out half of what the cloud does not have, and ask for a
    few nodes only."""
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
    if case.path.endswith('/nodegroups') and len(GROUPS) > MOST_GROUPS:
        body['name'] = 'default-worker'


def _limit(patch: list[Any]) -> None:
    for item in patch:
        if isinstance(item, dict) and isinstance(item.get('value'), int) and item['value'] > 9:
            item['value'] %= 9


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Remember what was made."""
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
