"""What POSTs would have sent to Heat, without a cloud and a database: for `magnum-lite drivers
check` and `render`.

Bodies go through the same tables and checks as those of requests, so what is refused is refused in
the same words. What only the cloud knows is taken as given: that what is named is there, and which
system an image holds."""

from __future__ import annotations

import datetime
import types
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from oslo_config import cfg

from magnum_lite import certs, drivers, errors, models
from magnum_lite.api import cluster_templates, clusters, nodegroups, versions
from magnum_lite.api.resources import CLUSTER, CLUSTER_TEMPLATE, NODEGROUP

Body = Mapping[str, Any]
#: Of keys that are thrown away.
LIFE = datetime.timedelta(hours=1)
#: The least that a template must name, whatever its engine.
TEMPLATE = {
    'image_id': 'IMAGE',
    'flavor_id': 'FLAVOR',
    'master_flavor_id': 'FLAVOR',
    'external_network_id': 'public',
}


def _request(conf: cfg.ConfigOpts, body: Body) -> Any:
    """As much of a request as handlers look at before they ask a cloud or a database."""
    return types.SimpleNamespace(
        conf=conf,
        body=body,
        version=versions.MAXIMUM,
        caller=types.SimpleNamespace(project_id='offline', user_id='offline', is_admin=True),
    )


def template(
    conf: cfg.ConfigOpts, body: Body, os_distro: str | None = None
) -> models.ClusterTemplate:
    """The row of a template. Its image holds `os_distro`, or else the first system that a driver
    makes such engines on.

    Raises Invalid.
    """
    values = CLUSTER_TEMPLATE.parse(body)
    cluster_templates.check(values, values)
    wanted = (values['server_type'], values['coe'])
    offered = [
        distro
        for name, driver in sorted(drivers.load(conf).items())
        for server_type, distro, coe in driver.provides
        if (server_type, coe) == wanted and values['driver'] in (None, name)
    ]
    return cluster_templates.made(
        _request(conf, body), values, os_distro or next(iter(offered), 'unknown'), None
    )


def cluster(
    conf: cfg.ConfigOpts,
    template: models.ClusterTemplate,
    body: Body,
) -> tuple[drivers.Driver, models.Cluster]:
    """The rows of a cluster, and its driver. The key of a keypair is a stand-in. Raises Invalid."""
    body = {'cluster_template_id': template.uuid, **body}
    req, values = _request(conf, body), CLUSTER.parse(body)
    driver = clusters.checked(req, template, values)
    public_key = f'ssh-ed25519 AAAA {values["keypair"]}' if values['keypair'] else None
    return driver, clusters.made(req, template, driver, public_key, values)


def nodegroup(
    conf: cfg.ConfigOpts, driver: drivers.Driver, cluster: models.Cluster, body: Body
) -> models.NodeGroup:
    """The rows of a further nodegroup, added to its cluster. Raises Invalid, Conflict."""
    req, values = _request(conf, body), NODEGROUP.parse(body)
    nodegroups.check(req, cluster, driver, values)
    return nodegroups.add(req, cluster, driver, values)


def throwaway_secrets(driver: drivers.Driver) -> dict[str, certs.Pair]:
    """Keys and certificates as a conductor makes them, for one look."""
    made = {
        name: certs.make_ca(key.common_name, life=LIFE, algorithm=key.algorithm)
        if key.kind == 'ca'
        else certs.make_keypair(algorithm=key.algorithm)
        for name, key in driver.keys.items()
    }
    return made | {
        name: certs.issue_client(
            made[spec.signed_by],
            common_name=spec.common_name,
            organization=spec.organization,
            life=LIFE,
        )
        for name, spec in driver.certificates.items()
    }


def render(
    conf: cfg.ConfigOpts,
    driver: drivers.Driver,
    cluster: models.Cluster,
    secrets: Mapping[str, certs.Pair],
    group: models.NodeGroup | None = None,
) -> drivers.Rendered:
    """What is sent for a cluster, or for its further nodegroup. Raises DriverError."""
    login = drivers.LOGIN_SIZE if driver.wants_cloud_user(conf, cluster) else None
    rendered = driver.render(conf, cluster, secrets, login)
    if group is None:
        return rendered
    outputs = {
        name: f'OUTPUT {name}' for name in yaml.safe_load(rendered.template).get('outputs') or {}
    }
    return driver.render_nodegroup(conf, cluster, group, secrets, outputs=outputs, login=login)


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    """Values of a schema that are as different as can be."""
    found = (
        [True, False]
        if schema.get('type') == 'boolean'
        else [
            *schema.get('examples', ()),
            *schema.get('enum', ()),
            *(schema[name] for name in ('minimum', 'maximum', 'const') if name in schema),
        ]
    )
    return [','.join(value) if isinstance(value, list) else value for value in found]


def shapes(driver: drivers.Driver) -> Iterator[tuple[str, Body, Body, Body]]:
    """What a folder is tried with: (name, template, cluster, further nodegroup). It may refuse all
    but the first.

    Defaults, with everything, with nothing, and each value of a field or a label by itself.
    """
    server_type, _, coe = driver.provides[0]
    plain = TEMPLATE | {'coe': coe, 'server_type': server_type, 'driver': driver.name}
    labels = {name: _choices(label['schema']) for name, label in driver.labels_known.items()}
    full = plain | {
        'http_proxy': 'http://proxy:3128',
        'https_proxy': 'http://proxy:3128',
        'no_proxy': 'example.com',
        'keypair_id': 'me',
        'dns_nameserver': '192.0.2.53',
        'insecure_registry': 'registry:5000',
        'docker_volume_size': 5,
        'labels': {  # examples of ranges may overlap
            name: values[0]
            for name, values in labels.items()
            if driver.labels_known[name]['schema'].get('format') != 'ipv4-network'
        },
    }
    yield 'defaults', plain, {}, {}
    for given in ({}, {'fixed_network': 'n'}, {'fixed_network': 'n', 'fixed_subnet': 's'}):
        yield (
            f'everything {given}',
            full,
            {'master_count': 3, 'master_lb_enabled': True, **given},
            {'node_labels': {'a': 'b'}, 'docker_volume_size': 5, 'image_id': 'i', 'flavor_id': 'f'},
        )
        yield (
            f'nothing {given}',
            plain | {'external_network_id': None, 'floating_ip_enabled': False},
            {'node_count': 0, **given},
            {'node_count': 0},
        )
    yield 'taints', plain, {}, {'node_taints': [{'key': 'k', 'effect': 'NoSchedule'}]}
    for name, item in driver.manifest.get('template_fields', {}).items():
        for value in _choices(item['schema']):
            yield f'{name}={value}', plain | {name: value}, {}, {}
    for name, values in labels.items():
        for value in values:
            yield (
                f'{name}={value}',
                plain | {'labels': {name: value}},
                {'master_lb_enabled': True},
                {},
            )


def check(conf: cfg.ConfigOpts, driver: drivers.Driver) -> tuple[int, list[str]]:
    """Render a folder in many shapes: (how many, what it refused). Raises DriverError with place
    and reason."""
    secrets, count, refused = throwaway_secrets(driver), 0, []
    for name, of_template, of_cluster, of_group in shapes(driver):
        try:
            row = template(conf, of_template, driver.provides[0][1])
            _, made = cluster(conf, row, of_cluster)
            render(conf, driver, made, secrets)
            if 'nodegroup_stack' in driver.manifest:
                render(
                    conf,
                    driver,
                    made,
                    secrets,
                    nodegroup(conf, driver, made, {'name': 'further', **of_group}),
                )
            count += 1
        except (errors.Invalid, errors.Conflict) as e:
            if name == 'defaults':
                raise errors.DriverError(
                    f'driver folder {driver.folder}: it refuses its own defaults: {e}'
                ) from e
            refused.append(f'{name}: {e}')
    return count, refused
