"""The field tables: every attribute on the wire, one line each.

A new attribute is a column in `models`, a migration, a line here, and a test. Order and spelling are Magnum's
(api.md 2.1, 2.2); `brief` fields are those of the short listing of clusters.
"""

from __future__ import annotations

from typing import Any

from magnum_lite import models, states
from magnum_lite.api import versions
from magnum_lite.schema import (
    BOOLEAN,
    IGNORED,
    LABELS,
    OPTIONAL,
    REQUIRED,
    STRINGS,
    TIME,
    Field,
    Resource,
    integer,
    one_of,
    text,
)

UUID = text(36, 32, r'^[0-9a-fA-F-]{32,36}$')
#: Python's `$` also matches before a newline at the end.
CLUSTER_NAME = text(242, 1, r'^[a-zA-Z][a-zA-Z0-9_.-]*$(?!\n)')
HEALTH = one_of('HEALTHY', 'UNHEALTHY', 'UNKNOWN')

CLUSTER_TEMPLATE = Resource('cluster template', [
    Field('uuid', UUID, 'Uuid. A client may choose it.', OPTIONAL),
    Field('name', text(), 'Name. It need not be unique; one is made up if none is given.', OPTIONAL),
    Field('coe', text(), 'The engine: what kind of clusters this makes.', REQUIRED),
    Field('image_id', text(), 'Glance image of the nodes, by name or id. Its os_distro chooses the driver.', REQUIRED),
    Field('flavor_id', text(), 'Nova flavor of the workers, by name or id.', OPTIONAL),
    Field('master_flavor_id', text(), 'Nova flavor of the masters, by name or id.', OPTIONAL),
    Field('dns_nameserver', text(), 'IPv4 addresses of name servers, with commas.', OPTIONAL),
    Field('keypair_id', text(), 'Nova keypair whose public key is put on nodes. Checked when a cluster is made.',
          OPTIONAL),
    Field('external_network_id', text(), 'Network that leads out of the cloud, by name or id.', OPTIONAL),
    Field('fixed_network', text(), 'Existing network for the nodes; without it each cluster gets its own.', OPTIONAL),
    Field('fixed_subnet', text(), 'Existing subnet for the nodes.', OPTIONAL),
    Field('network_driver', text(), 'Overlay network; the default is the driver\'s.', OPTIONAL),
    Field('apiserver_port', integer(1024, 65535), 'Kept for old clients; no driver reads it.', OPTIONAL),
    Field('docker_volume_size', integer(1), 'GB of a volume for container images on each node.', OPTIONAL),
    Field('docker_storage_driver', text(), 'Kept for old clients.', OPTIONAL),
    Field('cluster_distro', text(), 'os_distro of the image. What a client sends is not used.', IGNORED),
    Field('http_proxy', text(), 'Proxy of the nodes for http.', OPTIONAL),
    Field('https_proxy', text(), 'Proxy of the nodes for https.', OPTIONAL),
    Field('no_proxy', text(), 'Hosts that nodes reach without a proxy, with commas.', OPTIONAL),
    Field('volume_driver', text(), 'How containers get volumes.', OPTIONAL),
    Field('registry_enabled', BOOLEAN, 'Kept for old clients.', OPTIONAL, False),
    Field('insecure_registry', text(), 'host:port of a registry without TLS.', OPTIONAL),
    Field('labels', LABELS, 'Settings of the driver; see `magnum-lite drivers list`.', OPTIONAL, dict),
    Field('tls_disabled', BOOLEAN, 'The engine\'s API without TLS.', OPTIONAL, False),
    Field('public', BOOLEAN, 'Other projects may use it (admin only).', OPTIONAL, False),
    Field('hidden', BOOLEAN, 'Not for new clusters, not in listings of others (admin only).', OPTIONAL, False),
    Field('server_type', one_of('vm', 'bm'), 'Virtual machines or bare metal.', OPTIONAL, 'vm'),
    Field('master_lb_enabled', BOOLEAN, 'A load balancer in front of the masters.', OPTIONAL, False),
    Field('floating_ip_enabled', BOOLEAN, 'Floating IPs for the nodes.', OPTIONAL, True),
    Field('tags', text(minimum=0), 'Tags, with commas.', OPTIONAL),
    Field('driver', text(), 'Name of the driver; without it the one that fits is found.', OPTIONAL),
    Field('project_id', text(), 'Project it belongs to.'),
    Field('user_id', text(), 'User who made it.'),
    Field('created_at', TIME, 'When it was made.'),
    Field('updated_at', TIME, 'When it was changed; null if never.'),
])


def _differing(cluster: models.Cluster) -> dict[str, str]:
    theirs, ours = cluster.template.labels, cluster.labels
    return {k: v for k, v in theirs.items() if k in ours and ours[k] != v}


def _added(cluster: models.Cluster) -> dict[str, str]:
    return {k: v for k, v in cluster.labels.items() if k not in cluster.template.labels}


def _skipped(cluster: models.Cluster) -> dict[str, str]:
    return {k: v for k, v in cluster.template.labels.items() if k not in cluster.labels}


def _never(_: Any) -> bool:
    return False


CLUSTER = Resource('cluster', [
    Field('uuid', UUID, 'Uuid. What a client sends is not used.', IGNORED, brief=True),
    Field('name', CLUSTER_NAME, 'Name. It need not be unique; one is made up if none is given.', OPTIONAL, brief=True),
    Field('cluster_template_id', text(), 'Its template; by name or uuid in a request.', REQUIRED, brief=True),
    Field('keypair', text(), 'Nova keypair; default the template\'s.', OPTIONAL, brief=True),
    Field('node_count', integer(0), 'Nodes that are no masters.', OPTIONAL, 1, brief=True),
    Field('master_count', integer(1), 'Masters: an odd number.', OPTIONAL, 1, brief=True),
    Field('docker_volume_size', integer(1), 'GB; default the template\'s.', OPTIONAL, brief=True),
    Field('labels', LABELS, 'Settings of the driver. They take the place of the template\'s, or with `merge_labels` '
          'are laid over them.', OPTIONAL, brief=True),
    Field('merge_labels', BOOLEAN, 'Lay `labels` over the template\'s.', OPTIONAL, False, brief=True, read=_never),
    Field('flavor_id', text(), 'Flavor of the workers; default the template\'s.', OPTIONAL, brief=True),
    Field('master_flavor_id', text(), 'Flavor of the masters; default the template\'s.', OPTIONAL, brief=True),
    Field('create_timeout', integer(0), 'Minutes that the creation may take; 0 or null: as the operator says.',
          OPTIONAL, brief=True),
    Field('stack_id', text(), 'Heat stack; null until there is one.', brief=True, until=versions.CLUSTER_ID - 1),
    Field('cluster_id', text(), 'Heat stack, under its newer name.', brief=True, since=versions.CLUSTER_ID,
          read=lambda cluster: cluster.stack_id),
    Field('status', one_of(*states.STATUSES, *states.FOREIGN_STATUSES), 'Where it stands.', IGNORED, brief=True),
    Field('health_status', HEALTH, 'Health of the engine; null if nobody looked.', IGNORED, brief=True),
    Field('status_reason', text(100_000, 0), 'Why the last operation failed.', IGNORED),
    Field('health_status_reason', {'type': 'object'}, 'What the health rests on.', IGNORED),
    Field('discovery_url', text(), 'Kept for old clients; clusters find their members by themselves.', OPTIONAL),
    Field('api_address', text(), 'URL of the engine\'s API; null until it is known.'),
    Field('coe_version', text(), 'Version of the engine; null until it is known.'),
    Field('container_version', text(), 'Version of the container runtime; null until it is known.'),
    Field('node_addresses', STRINGS, 'Addresses of the workers.'),
    Field('master_addresses', STRINGS, 'Addresses of the masters.'),
    Field('project_id', text(), 'Project it belongs to.'),
    Field('user_id', text(), 'User who made it.'),
    Field('fixed_network', text(), 'Existing network for the nodes; default the template\'s.', OPTIONAL),
    Field('fixed_subnet', text(), 'Existing subnet for the nodes; default the template\'s.', OPTIONAL),
    Field('floating_ip_enabled', BOOLEAN, 'Floating IPs for the nodes; default the template\'s.', OPTIONAL),
    Field('master_lb_enabled', BOOLEAN, 'A load balancer; default the template\'s.', OPTIONAL),
    Field('labels_overridden', LABELS, 'The template\'s values of labels that the cluster has with others.',
          read=_differing),
    Field('labels_added', LABELS, 'Labels that only the cluster has.', read=_added),
    Field('labels_skipped', LABELS, 'Labels that only the template has.', read=_skipped),
    Field('created_at', TIME, 'When it was asked for.'),
    Field('updated_at', TIME, 'When it last changed; null if never.'),
])
