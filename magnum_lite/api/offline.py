"""What POSTs would send to Heat, without a cloud and a database.

The commands `magnum-lite drivers check` and `drivers render` and the tests call it. Request bodies
pass the same tables and checks as in the API, so they are refused in the same words. Facts that
only a cloud knows are assumed: every named resource exists, the image holds a fitting system."""

from __future__ import annotations

import datetime
import types
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from oslo_config import cfg

from magnum_lite import certs, drivers, errors
from magnum_lite.api import cluster_templates, clusters, nodegroups, versions
from magnum_lite.api.resources import CLUSTER, CLUSTER_TEMPLATE, NODEGROUP
from magnum_lite.models import Cluster, ClusterTemplate, NodeGroup

Body = Mapping[str, Any]
#: What a folder is tried with: a name, and bodies of a template, a cluster and a further nodegroup.
Shape = tuple[str, Body, Body, Body]
#: How long the throw-away certificates are valid.
LIFE = datetime.timedelta(hours=1)
#: What every template must name, whatever its engine.
TEMPLATE = {
    'image_id': 'IMAGE',
    'flavor_id': 'FLAVOR',
    'master_flavor_id': 'FLAVOR',
    'external_network_id': 'public',
}


def _fake_request(conf: cfg.ConfigOpts, body: Body) -> Any:
    """The part of a request that handlers read before they query a cloud or a database."""
    return types.SimpleNamespace(
        services=types.SimpleNamespace(conf=conf, drivers=drivers.load(conf)),
        body=body,
        version=versions.MAXIMUM,
        caller=types.SimpleNamespace(project_id='offline', user_id='offline', is_admin=True),
    )


def make_template(
    conf: cfg.ConfigOpts, body: Body, os_distro: str | None = None
) -> ClusterTemplate:
    """The row of a template. Raises Invalid.

    Its image holds `os_distro`, by default the first system on which a driver makes the engine."""
    values = CLUSTER_TEMPLATE.parse(body, versions.MAXIMUM)
    cluster_templates.check_values(values, values)
    if os_distro is None:
        offered = [
            distro
            for name, driver in sorted(drivers.load(conf).items())
            for server_type, distro, coe in driver.provides
            if (server_type, coe) == (values['server_type'], values['coe'])
            and drivers.load(conf).get(values['driver'] or name) is driver
        ]
        os_distro = offered[0] if offered else 'unknown'
    return cluster_templates.make_template(_fake_request(conf, body), values, os_distro, None)


def make_cluster(
    conf: cfg.ConfigOpts, template: ClusterTemplate, body: Body
) -> tuple[drivers.Driver, Cluster]:
    """The driver and the rows of a cluster, with a made-up public key. Raises Invalid."""
    body = {'cluster_template_id': template.uuid, **body}
    req = _fake_request(conf, body)
    values = CLUSTER.parse(body, req.version)
    driver = clusters.complete_values(req, template, values)
    public_key = f'ssh-ed25519 AAAA {values["keypair"]}' if values['keypair'] else None
    return driver, clusters.make_cluster(req, template, driver, public_key, values)


def make_nodegroup(
    conf: cfg.ConfigOpts, driver: drivers.Driver, cluster: Cluster, body: Body
) -> NodeGroup:
    """The rows of a further nodegroup, added to its cluster. Raises Invalid, Conflict."""
    req = _fake_request(conf, body)
    values = NODEGROUP.parse(body, req.version)
    nodegroups.complete_values(req, cluster, driver, values)
    return nodegroups.add_group(req, cluster, driver, values)


def make_secrets(driver: drivers.Driver) -> dict[str, certs.Pair]:
    """Keys and certificates such as a conductor makes, to be thrown away after a rendering."""
    secrets = {}
    for name, key in driver.keys.items():
        if key.kind == 'ca':
            secrets[name] = certs.make_ca(key.common_name, life=LIFE, algorithm=key.algorithm)
        else:
            secrets[name] = certs.make_keypair(algorithm=key.algorithm)
    for name, spec in driver.certificates.items():
        secrets[name] = certs.issue_client(
            secrets[spec.signed_by],
            common_name=spec.common_name,
            organization=spec.organization,
            life=LIFE,
        )
    return secrets


def render(
    conf: cfg.ConfigOpts,
    driver: drivers.Driver,
    cluster: Cluster,
    secrets: Mapping[str, certs.Pair],
    group: NodeGroup | None = None,
) -> drivers.Rendered:
    """The text of the stack of a cluster, or of its further nodegroup. Raises DriverError."""
    login = drivers.SAMPLE_LOGIN if driver.wants_cloud_user(conf, cluster) else None
    rendered = driver.render(conf, cluster, secrets, login)
    if group is None:
        return rendered
    names = yaml.safe_load(rendered.template).get('outputs') or {}
    outputs = {name: f'OUTPUT {name}' for name in names}
    return driver.render_nodegroup(conf, cluster, group, secrets, outputs=outputs, login=login)


def _list_examples(schema: Mapping[str, Any]) -> list[Any]:
    """Values that a schema allows, as different as can be. A list becomes a text with commas."""
    if schema.get('type') == 'boolean':
        return [True, False]
    values = [*schema.get('examples', ()), *schema.get('enum', ())]
    values += [schema[name] for name in ('minimum', 'maximum', 'const') if name in schema]
    return [','.join(value) if isinstance(value, list) else value for value in values]


def list_shapes(driver: drivers.Driver) -> Iterator[Shape]:
    """The shapes with which a folder is tried.

    Defaults, everything, nothing, and each value of a field or a label by itself. A folder may
    refuse all but the defaults."""
    server_type, _, coe = driver.provides[0]
    plain = TEMPLATE | {'coe': coe, 'server_type': server_type, 'driver': driver.name}
    yield 'defaults', plain, {}, {}
    yield from _list_large_and_small(driver, plain)
    yield 'taints', plain, {}, {'node_taints': [{'key': 'k', 'effect': 'NoSchedule'}]}
    for name, item in driver.manifest.get('template_fields', {}).items():
        for value in _list_examples(item['schema']):
            yield f'{name}={value}', plain | {name: value}, {}, {}
    for name, label in driver.labels_known.items():
        for value in _list_examples(label['schema']):
            labelled = plain | {'labels': {name: value}}
            yield f'{name}={value}', labelled, {'master_lb_enabled': True}, {}


def _list_large_and_small(driver: drivers.Driver, plain: Body) -> Iterator[Shape]:
    """The bodies with everything and with nothing, each with three ways of networking."""
    labels = {}
    for name, label in driver.labels_known.items():
        # Not all networks at once, because the examples of their ranges may overlap.
        if label['schema'].get('format') != 'ipv4-network':
            labels[name] = _list_examples(label['schema'])[0]
    full = {
        **plain,
        'http_proxy': 'http://proxy:3128',
        'https_proxy': 'http://proxy:3128',
        'no_proxy': 'example.com',
        'keypair_id': 'me',
        'dns_nameserver': '192.0.2.53',
        'insecure_registry': 'registry:5000',
        'docker_volume_size': 5,
        'labels': labels,
    }
    closed = {**plain, 'external_network_id': None, 'floating_ip_enabled': False}
    large_group = {
        'node_labels': {'a': 'b'},
        'docker_volume_size': 5,
        'image_id': 'i',
        'flavor_id': 'f',
    }
    for network in ({}, {'fixed_network': 'n'}, {'fixed_network': 'n', 'fixed_subnet': 's'}):
        masters = {'master_count': 3, 'master_lb_enabled': True, **network}
        yield f'everything {network}', full, masters, large_group
        yield f'nothing {network}', closed, {'node_count': 0, **network}, {'node_count': 0}


def check_folder(conf: cfg.ConfigOpts, driver: drivers.Driver) -> tuple[int, list[str]]:
    """Render a folder in all shapes: (number of shapes rendered, what it refused).

    Raises DriverError with place and reason, also if it refuses its own defaults."""
    secrets = make_secrets(driver)
    count = 0
    refused = []
    for name, of_template, of_cluster, of_group in list_shapes(driver):
        try:
            row = make_template(conf, of_template, driver.provides[0][1])
            _, shape = make_cluster(conf, row, of_cluster)
            render(conf, driver, shape, secrets)
            if 'nodegroup_stack' in driver.manifest:
                group = make_nodegroup(conf, driver, shape, {'name': 'further', **of_group})
                render(conf, driver, shape, secrets, group)
            count += 1
        except (errors.Invalid, errors.Conflict) as e:
            if name == 'defaults':
                raise errors.DriverError(
                    f'driver folder {driver.folder}: it refuses its own defaults: {e}'
                ) from e
            refused.append(f'{name}: {e}')
    return count, refused
