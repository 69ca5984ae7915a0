"""The field tables: every attribute on the wire, one `Field` each.

Handlers parse bodies and build answers by these tables, `routes` describes them in the OpenAPI
document, `paging` takes the sort keys from them. A new attribute is a column in `models`, a
migration, a field here, and a test (CONTRIBUTING.md has the recipe). Order and spelling are
Magnum's (doc/contributor/wire-contract.md); `brief` fields are those of the short listings.

The texts of the fields are part of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from magnum_lite import certs, states
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
#: The look-ahead is there because Python's `$` also matches before a newline at the end.
CLUSTER_NAME = text(242, 1, r'^[a-zA-Z][a-zA-Z0-9_.-]*$(?!\n)')
STATUS = one_of(*states.STATUSES, *states.FOREIGN_STATUSES)
HEALTH = one_of('HEALTHY', 'UNHEALTHY', 'UNKNOWN')
#: Room for one entry for each node.
HEALTH_REASON = LABELS | {'maxProperties': 10_000}
TAINTS = {
    'type': 'array',
    'maxItems': 50,
    'items': {
        'type': 'object',
        'required': ['key', 'effect'],
        'additionalProperties': False,
        'properties': {
            'key': text(),
            'value': {'type': ['string', 'null'], 'maxLength': 255},
            'effect': one_of('NoSchedule', 'PreferNoSchedule', 'NoExecute'),
        },
    },
}

#: An attribute of clusters and of nodegroups.
ERROR_CODE = Field(
    'error_code',
    text(),
    'Why the last operation failed, in a word; null if it did not.',
    since=versions.EXTENSIONS,
)
#: Why a cluster failed, by the names of its nodegroups.
FAULTS = {'type': 'object', 'additionalProperties': {'type': 'string'}}

CLUSTER_TEMPLATE = Resource(
    'cluster template',
    [
        Field('uuid', UUID, 'Uuid. A client may choose it.', OPTIONAL),
        Field(
            'name',
            text(),
            'Name. It need not be unique; one is made up if none is given.',
            OPTIONAL,
        ),
        Field('coe', text(), 'The engine: what kind of clusters this makes.', REQUIRED),
        Field(
            'image_id',
            text(),
            'Glance image of the nodes, by name or id. Its os_distro chooses the driver.',
            REQUIRED,
        ),
        Field('flavor_id', text(), 'Nova flavor of the workers, by name or id.', OPTIONAL),
        Field('master_flavor_id', text(), 'Nova flavor of the masters, by name or id.', OPTIONAL),
        Field('dns_nameserver', text(), 'IPv4 addresses of name servers, with commas.', OPTIONAL),
        Field(
            'keypair_id',
            text(),
            'Nova keypair whose public key is put on nodes. Checked when a cluster is made.',
            OPTIONAL,
        ),
        Field(
            'external_network_id',
            text(),
            'Network that leads out of the cloud, by name or id.',
            OPTIONAL,
        ),
        Field(
            'fixed_network',
            text(),
            'Existing network for the nodes; without it each cluster gets its own.',
            OPTIONAL,
        ),
        Field('fixed_subnet', text(), 'Existing subnet for the nodes.', OPTIONAL),
        Field('network_driver', text(), 'Overlay network; the default is the driver\'s.', OPTIONAL),
        Field(
            'apiserver_port',
            integer(1024, 65535),
            'Kept for old clients; no driver reads it.',
            OPTIONAL,
        ),
        Field(
            'docker_volume_size',
            integer(1),
            'GB of a volume for container images on each node.',
            OPTIONAL,
        ),
        Field('docker_storage_driver', text(), 'Kept for old clients.', OPTIONAL),
        Field(
            'cluster_distro',
            text(),
            'os_distro of the image. What a client sends is not used.',
            IGNORED,
        ),
        Field('http_proxy', text(), 'Proxy of the nodes for http.', OPTIONAL),
        Field('https_proxy', text(), 'Proxy of the nodes for https.', OPTIONAL),
        Field('no_proxy', text(), 'Hosts that nodes reach without a proxy, with commas.', OPTIONAL),
        Field('volume_driver', text(), 'How containers get volumes.', OPTIONAL),
        Field('registry_enabled', BOOLEAN, 'Kept for old clients.', OPTIONAL, False),
        Field('insecure_registry', text(), 'host:port of a registry without TLS.', OPTIONAL),
        Field(
            'labels',
            LABELS,
            'Settings of the driver; see `magnum-lite drivers list`.',
            OPTIONAL,
            dict,
        ),
        Field('tls_disabled', BOOLEAN, 'The engine\'s API without TLS.', OPTIONAL, False),
        Field('public', BOOLEAN, 'Other projects may use it (admin only).', OPTIONAL, False),
        Field(
            'hidden',
            BOOLEAN,
            'Not for new clusters, not in listings of others (admin only).',
            OPTIONAL,
            False,
        ),
        Field('server_type', one_of('vm', 'bm'), 'Virtual machines or bare metal.', OPTIONAL, 'vm'),
        Field(
            'master_lb_enabled',
            BOOLEAN,
            'A load balancer in front of the masters.',
            OPTIONAL,
            False,
        ),
        Field('floating_ip_enabled', BOOLEAN, 'Floating IPs for the nodes.', OPTIONAL, True),
        Field('tags', text(minimum=0), 'Tags, with commas.', OPTIONAL),
        Field(
            'driver', text(), 'Name of the driver; without it the one that fits is found.', OPTIONAL
        ),
        Field('project_id', text(), 'Project it belongs to.'),
        Field('user_id', text(), 'User who made it.'),
        Field('created_at', TIME, 'When it was made.'),
        Field('updated_at', TIME, 'When it was changed; null if never.'),
    ],
)


def _compare_labels(base: Callable[[Any], dict[str, str]], whose: str, of: str) -> list[Field]:
    """The fields that tell how the labels of a row differ from those of its `base`.

    `whose` is the noun of the base, `of` that of the row."""

    def list_overridden(row: Any) -> dict[str, str]:
        return {k: v for k, v in base(row).items() if k in row.labels and row.labels[k] != v}

    def list_added(row: Any) -> dict[str, str]:
        return {k: v for k, v in row.labels.items() if k not in base(row)}

    def list_skipped(row: Any) -> dict[str, str]:
        return {k: v for k, v in base(row).items() if k not in row.labels}

    return [
        Field(
            'labels_overridden',
            LABELS,
            f'The {whose}\'s values of labels that the {of} has with others.',
            read=list_overridden,
        ),
        Field('labels_added', LABELS, f'Labels that only the {of} has.', read=list_added),
        Field('labels_skipped', LABELS, f'Labels that only the {whose} has.', read=list_skipped),
    ]


def _read_false(_: Any) -> bool:
    return False


def _read_none(_: Any) -> None:
    return None


CLUSTER = Resource(
    'cluster',
    [
        Field('uuid', UUID, 'Uuid. What a client sends is not used.', IGNORED, brief=True),
        Field(
            'name',
            CLUSTER_NAME,
            'Name. It need not be unique; one is made up if none is given.',
            OPTIONAL,
            brief=True,
        ),
        Field(
            'cluster_template_id',
            text(),
            'Its template; by name or uuid in a request.',
            REQUIRED,
            brief=True,
        ),
        # Horizon sends an empty text for an empty form field: always for discovery_url, sometimes
        # for the keypair.
        Field(
            'keypair',
            text(minimum=0),
            'Nova keypair; default the template\'s.',
            OPTIONAL,
            brief=True,
        ),
        Field('node_count', integer(), 'Nodes that are no masters.', OPTIONAL, 1, brief=True),
        Field('master_count', integer(1), 'Masters: an odd number.', OPTIONAL, 1, brief=True),
        Field(
            'docker_volume_size', integer(1), 'GB; default the template\'s.', OPTIONAL, brief=True
        ),
        Field(
            'labels',
            LABELS,
            'Settings of the driver. They take the place of the template\'s, or with '
            '`merge_labels` are laid over them.',
            OPTIONAL,
            brief=True,
        ),
        Field(
            'merge_labels',
            BOOLEAN,
            'Lay `labels` over the template\'s.',
            OPTIONAL,
            False,
            brief=True,
            read=_read_false,
        ),
        Field(
            'flavor_id',
            text(),
            'Flavor of the workers; default the template\'s.',
            OPTIONAL,
            brief=True,
        ),
        Field(
            'master_flavor_id',
            text(),
            'Flavor of the masters; default the template\'s.',
            OPTIONAL,
            brief=True,
        ),
        Field(
            'create_timeout',
            integer(),
            'Minutes that the creation may take; 0 or null: as the operator says.',
            OPTIONAL,
            brief=True,
        ),
        # In every version, although Magnum drops it from 1.13 on: magnum-auto-healer requests the
        # latest version and reads it.
        Field('stack_id', text(), 'Heat stack; null until there is one.', brief=True),
        Field(
            'cluster_id',
            text(),
            'Heat stack, under its newer name.',
            brief=True,
            since=versions.CLUSTER_ID,
            read=lambda cluster: cluster.stack_id,
        ),
        Field(
            'status',
            STATUS,
            'Where it stands.',
            IGNORED,
            brief=True,
        ),
        Field(
            'health_status',
            HEALTH,
            'Health of the engine; null if nobody looked.',
            IGNORED,
            brief=True,
        ),
        Field('status_reason', text(100_000, 0), 'Why the last operation failed.', IGNORED),
        Field('health_status_reason', HEALTH_REASON, 'What the health rests on.', IGNORED, dict),
        Field(
            'discovery_url',
            text(minimum=0),
            'Kept for old clients; clusters find their members by themselves.',
            OPTIONAL,
        ),
        Field('api_address', text(), 'URL of the engine\'s API; null until it is known.'),
        Field('coe_version', text(), 'Version of the engine; null until it is known.'),
        Field(
            'container_version', text(), 'Version of the container runtime; null until it is known.'
        ),
        Field('node_addresses', STRINGS, 'Addresses of the workers.'),
        Field('master_addresses', STRINGS, 'Addresses of the masters.'),
        Field('project_id', text(), 'Project it belongs to.'),
        Field('user_id', text(), 'User who made it.'),
        Field(
            'fixed_network',
            text(),
            'Existing network for the nodes; default the template\'s.',
            OPTIONAL,
        ),
        Field(
            'fixed_subnet',
            text(),
            'Existing subnet for the nodes; default the template\'s.',
            OPTIONAL,
        ),
        Field(
            'floating_ip_enabled',
            BOOLEAN,
            'Floating IPs for the nodes; default the template\'s.',
            OPTIONAL,
        ),
        Field('master_lb_enabled', BOOLEAN, 'A load balancer; default the template\'s.', OPTIONAL),
        *_compare_labels(lambda cluster: cluster.template.labels, 'template', 'cluster'),
        Field('created_at', TIME, 'When it was asked for.'),
        Field('updated_at', TIME, 'When it last changed; null if never.'),
        ERROR_CODE,
        Field(
            'description',
            text(1024, minimum=0),
            'What the cluster is for, in the caller\'s words.',
            OPTIONAL,
            since=versions.EXTENSIONS,
            is_note=True,
        ),
    ],
)
#: The names of the notes on a cluster.
CLUSTER_NOTES = tuple(field.name for field in CLUSTER.fields if field.is_note)

NODEGROUP = Resource(
    'nodegroup',
    [
        Field('id', integer(), 'Number in the database.', IGNORED),
        Field('uuid', UUID, 'Uuid. What a client sends is not used.', IGNORED, brief=True),
        Field('name', text(), 'Name, unique in the cluster.', REQUIRED, brief=True),
        Field(
            'cluster_id', text(), 'Uuid of the cluster. What a client sends is not used.', IGNORED
        ),
        Field('project_id', text(), 'Project it belongs to.'),
        Field(
            'docker_volume_size',
            integer(1),
            'GB of a volume for container images on each node.',
            OPTIONAL,
        ),
        Field(
            'labels',
            LABELS,
            'Settings of the driver; default the cluster\'s. They take the place of the '
            'cluster\'s, or with `merge_labels` are laid over them.',
            OPTIONAL,
        ),
        Field(
            'flavor_id',
            text(),
            'Flavor of the nodes; default the cluster\'s.',
            OPTIONAL,
            brief=True,
        ),
        Field(
            'image_id', text(), 'Image of the nodes; default the template\'s.', OPTIONAL, brief=True
        ),
        Field('node_addresses', STRINGS, 'Addresses of the nodes.'),
        Field('node_count', integer(), 'Nodes.', OPTIONAL, 1, brief=True),
        Field(
            'role',
            text(),
            'What the nodes are for; only the nodegroup of the masters has the role `master`.',
            OPTIONAL,
            'worker',
            brief=True,
        ),
        Field(
            'min_node_count',
            integer(),
            'A resize does not go below this.',
            OPTIONAL,
            0,
            brief=True,
        ),
        Field(
            'max_node_count',
            integer(),
            'A resize does not go beyond this; null: no limit.',
            OPTIONAL,
            brief=True,
        ),
        Field(
            'is_default',
            BOOLEAN,
            'Whether it came with the cluster. What a client sends is not used.',
            IGNORED,
            brief=True,
        ),
        Field(
            'stack_id',
            text(),
            'Heat stack of the nodes: the cluster\'s for those that came with it.',
            brief=True,
        ),
        Field(
            'status',
            STATUS,
            'Where it stands.',
            IGNORED,
            brief=True,
        ),
        Field('status_reason', text(100_000, 0), 'Why the last operation failed.', IGNORED),
        Field(
            'version',
            text(),
            'Version of the engine on the nodes; null until it is known.',
            IGNORED,
        ),
        Field(
            'merge_labels',
            BOOLEAN,
            'Lay `labels` over the cluster\'s.',
            OPTIONAL,
            False,
            brief=True,
            read=_read_false,
        ),
        *_compare_labels(lambda group: group.cluster.labels, 'cluster', 'nodegroup'),
        Field('node_labels', LABELS, 'Labels of each node in the engine.', OPTIONAL, dict),
        Field('node_taints', TAINTS, 'Taints of each node in the engine.', OPTIONAL, list),
        Field('created_at', TIME, 'When it was asked for.'),
        Field('updated_at', TIME, 'When it last changed; null if never.'),
        ERROR_CODE,
    ],
)

NODE = Resource(
    'node',
    [
        Field('name', text(), 'Name of the server, and of the node in the engine.'),
        Field('nodegroup', text(), 'Name of its nodegroup.'),
        Field('role', text(), 'Role of its nodegroup.'),
        Field('number', integer(), 'Number in its nodegroup, which no other node there ever has.'),
        Field('status', one_of(*states.STATUSES), 'Where it stands.'),
        Field('status_reason', text(), 'Why it failed.'),
        Field('code', text(), 'Why it failed, in a word.'),
        Field('server_id', text(), 'Server in Nova; null until there is one.'),
        Field('address', text(), 'Address; null until it is known.'),
        Field(
            'private_address',
            text(),
            'Address in the network of the nodes; null until it is known.',
        ),
        Field('image_id', text(), 'Image it was made of.'),
        Field('version', text(), 'Version of the engine; null until it is known.'),
    ],
)

OPERATION = Resource(
    'operation',
    [
        Field('uuid', UUID, 'Uuid.', brief=True),
        Field('cluster_id', UUID, 'Uuid of the cluster, which may be gone.', brief=True),
        Field('kind', text(), 'What was asked for.', brief=True),
        Field('user_id', text(), 'Who asked.', brief=True),
        Field('request_id', text(), 'Id of the request by which it was asked for.', brief=True),
        Field('created_at', TIME, 'When it was asked for.', brief=True),
        Field('begun_at', TIME, 'When work on it began; null until then.', brief=True),
        Field('ended_at', TIME, 'When it ended; null while it runs.', brief=True),
        Field(
            'outcome',
            one_of('complete', 'failed', 'superseded'),
            'How it ended; null while it runs.',
            brief=True,
        ),
        Field('code', text(), 'Why it failed, in a word.', brief=True),
        Field('text', text(), 'Why it failed.', brief=True),
        Field(
            'resources_done',
            integer(),
            'Resources in Heat that are done; null until somebody watches.',
            brief=True,
        ),
        Field(
            'resources_total',
            integer(),
            'Resources in Heat that there will be; null until somebody watches.',
            brief=True,
        ),
        # The estimate is not a column: the handler of one running operation fills it in.
        Field(
            'estimated_s',
            {'type': 'number'},
            'Seconds that such operations took; null if there were none, or it ended.',
            read=_read_none,
        ),
        Field(
            'estimated_end_at',
            TIME,
            'When it ends if it takes as long as those did.',
            read=_read_none,
        ),
    ],
)

RESIZE = Resource(
    'resize',
    [
        Field('node_count', integer(), 'Nodes that are wanted.', REQUIRED),
        Field(
            'nodes_to_remove',
            {'type': 'array', 'maxItems': 10_000, 'items': text()},
            'Nodes that must go: ids of servers, names, or numbers.',
            OPTIONAL,
            list,
        ),
        Field(
            'nodegroup',
            text(),
            'Name or uuid; default the workers that came with the cluster.',
            OPTIONAL,
        ),
    ],
)

UPGRADE = Resource(
    'upgrade',
    [
        Field(
            'cluster_template',
            text(),
            'Name or uuid of the template whose image and labels are wanted.',
            REQUIRED,
        ),
        Field('max_batch_size', integer(1), 'Nodes that are replaced at a time.', OPTIONAL, 1),
        Field(
            'nodegroup',
            text(),
            'Name or uuid; default the workers that came with the cluster.',
            OPTIONAL,
        ),
    ],
)

CERTIFICATE = Resource(
    'certificate',
    [
        Field('cluster_uuid', text(), 'Its cluster; by name or uuid in a request.', REQUIRED),
        Field(
            'csr',
            text(certs.MAX_REQUEST),
            'Request for a client certificate (PKCS#10, PEM), as it was sent.',
            REQUIRED,
        ),
        Field(
            'pem',
            text(certs.MAX_REQUEST),
            'The certificate; of an authority that is exchanged, both.',
        ),
        Field(
            'ca_cert_type',
            text(),
            'Which of the cluster\'s authorities signs; by default, and for a type that it does '
            'not have, its main one.',
            OPTIONAL,
        ),
    ],
)

KUBECONFIG = Resource(
    'kubeconfig',
    [
        Field('kubeconfig', text(1_000_000), 'Text of the file, with a private key in it.'),
        Field('cluster_uuid', UUID, 'Its cluster.'),
        Field('user', text(), 'Id of the user that the engine is told of.'),
        Field('group', text(), 'Group of the engine, which goes by the caller\'s role.'),
        Field('serial', text(), 'Serial number of the certificate, in hex.'),
        Field('expires_at', TIME, 'When the certificate ends. It cannot be taken back before.'),
    ],
)

QUOTA = Resource(
    'quota',
    [
        Field('id', integer(), 'Number in the database.', IGNORED),
        Field('project_id', text(), 'Project it holds for.', REQUIRED),
        Field('resource', one_of('Cluster'), 'What is counted.', OPTIONAL, 'Cluster'),
        Field('hard_limit', integer(), 'How many there may be.', OPTIONAL, 1),
        Field('created_at', TIME, 'When it was set.'),
        Field('updated_at', TIME, 'When it was changed; null if never.'),
    ],
)

SERVICE = Resource(
    'conductor',
    [
        Field('id', integer(), 'Number in the database.'),
        Field('host', text(), 'Its name: [DEFAULT] host of its configuration.'),
        Field('binary', one_of('magnum-conductor'), 'What it is.'),
        Field(
            'state',
            one_of('up', 'down'),
            'Whether it reported lately: [DEFAULT] service_down_time.',
        ),
        Field('report_count', integer(), 'How often it has reported.'),
        Field('disabled', BOOLEAN, 'Kept for old clients.'),
        Field('disabled_reason', text(), 'Kept for old clients.'),
        Field('created_at', TIME, 'When it reported for the first time.'),
        Field('updated_at', TIME, 'When it reported last.'),
    ],
)
