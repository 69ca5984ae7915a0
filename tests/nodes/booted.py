"""What tests on nodes that really boot stand on: a service, one cluster for each file of tests, and
hands on its nodes.

Needs a cloud named by OS_CLOUD, nodes for its servers, and their watcher, started with a --match
that takes names beginning with `real-` (NODES_PREFIX: another beginning). NODES_HOME says where the
nodes are. A file that takes the fixtures says how many MASTERS and WORKERS its cluster has, and has
a fixture `fields` for its cluster template."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import pathlib
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from functional.cloud import TOOLS
from functional.service import Service, poll, start_service

NODES_HOME = pathlib.Path(os.environ.get('NODES_HOME', ''))
NODE_TOOLS = TOOLS.parent / 'nodes'
#: What lies in nodes beside Debian and Docker: Kubernetes, built with these tools, and what
#: mesos-layer makes.
KUBERNETES, MESOS = NODES_HOME / 'overlay/kubernetes', NODES_HOME / 'overlay/mesos'
PREFIX = os.environ.get('NODES_PREFIX', 'real')
IMAGE = os.environ.get('NODES_IMAGE', 'debian')
FLAVOR = os.environ.get('NODES_FLAVOR', 'm1.small')
#: A node with all of its images takes a minute on an idle machine; a busy one is given more.
TIMEOUT_MIN = 15


def _lack(needed: pathlib.Path) -> str | None:
    """What is missing to boot nodes with this file or folder, in words; None if nothing is."""
    if not os.environ.get('OS_CLOUD'):
        return 'no cloud is named by OS_CLOUD'
    if not os.environ.get('NODES_HOME'):
        return 'NODES_HOME does not say where the nodes are'
    if not needed.exists():
        return f'there is no {needed}'
    try:
        os.kill(int((NODES_HOME / 'run' / 'noded.pid').read_text()), 0)
    except (OSError, ValueError):
        return f'the watcher that makes nodes does not run ({NODES_HOME}/run/noded.pid)'
    return None


def marks(
    needed: pathlib.Path, *, timeout_min: int = TIMEOUT_MIN + 5
) -> list[pytest.MarkDecorator]:
    """`pytestmark` of a file of tests on nodes that need this file or folder; the time is for one
    test."""
    lack = _lack(needed)
    return [
        pytest.mark.nodes,
        pytest.mark.timeout(timeout_min * 60),
        pytest.mark.skipif(lack is not None, reason=f'real nodes: {lack}'),
        # openstacksdk says it to everybody who connects, and of its own code
        pytest.mark.filterwarnings(
            'ignore:Support for InfluxDB', 'ignore::PendingDeprecationWarning'
        ),
    ]


# -- fixtures: a file takes those that it wants by name --------------------------------------------


@pytest.fixture(scope='module')
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One API, one conductor, which asks engines every three seconds how they are."""
    started = start_service(
        os.environ['OS_CLOUD'],
        tmp_path_factory.mktemp('service'),
        extra={'health': {'interval': 3}},
    )
    yield started
    started.print_logs()
    started.stop()


@pytest.fixture(scope='module')
def template(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    """The cluster template of the file's cluster."""
    return make_template(service, **fields)


@pytest.fixture(scope='module')
def cluster(
    request: pytest.FixtureRequest, service: Service, template: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The cluster, after its nodes have said that they are ready."""
    status, body = service.request(
        'POST',
        '/v1/clusters',
        {
            'name': f'{PREFIX}-{secrets.token_hex(3)}',
            'cluster_template_id': template['uuid'],
            'master_count': request.module.MASTERS,
            'node_count': request.module.WORKERS,
            'create_timeout': TIMEOUT_MIN,
        },
    )
    assert status == 202, body
    try:
        yield service.wait(body['uuid'], 'CREATE_COMPLETE', timeout_s=TIMEOUT_MIN * 60)
    finally:
        service.request('DELETE', f'/v1/clusters/{body["uuid"]}')
        service.wait(body['uuid'], 'GONE', timeout_s=300)


# -- by the API ------------------------------------------------------------------------------------


def make_template(service: Service, **fields: Any) -> dict[str, Any]:
    """A cluster template of what nodes are made of here, and these fields. It goes with the
    service's database."""
    status, body = service.request(
        'POST',
        '/v1/clustertemplates',
        {
            'name': f'{PREFIX}-{secrets.token_hex(3)}',
            'image_id': IMAGE,
            'flavor_id': FLAVOR,
            'master_flavor_id': FLAVOR,
            'external_network_id': os.environ.get('NODES_EXTERNAL_NETWORK', 'public'),
            **fields,
        },
    )
    assert status == 201, body
    return dict(body)


def show(service: Service, cluster: dict[str, Any]) -> dict[str, Any]:
    """What the API says of a cluster now."""
    status, body = service.request('GET', f'/v1/clusters/{cluster["uuid"]}')
    assert status == 200, body
    return dict(body)


def nodes(service: Service, cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its nodes by name."""
    status, body = service.request('GET', f'/v1/clusters/{cluster["uuid"]}/nodes')
    assert status == 200, body
    return {node['name']: node for node in body['nodes']}


def names_of(service: Service, cluster: dict[str, Any], role: str = '') -> set[str]:
    """The names of its nodes; `role`: of masters or of workers."""
    return {name for name, node in nodes(service, cluster).items() if role in ('', node['role'])}


def resize(service: Service, cluster: dict[str, Any], count: int, *remove: str) -> None:
    """Have so many workers, without those named."""
    status, body = service.request(
        'POST',
        f'/v1/clusters/{cluster["uuid"]}/actions/resize',
        {'node_count': count, 'nodes_to_remove': list(remove)},
    )
    assert status == 202, body
    service.wait(cluster['uuid'], 'UPDATE_COMPLETE', timeout_s=TIMEOUT_MIN * 60)


def upgrade(
    service: Service, cluster: dict[str, Any], template: dict[str, Any], **fields: Any
) -> None:
    """Ask for a cluster to become what a template says."""
    status, body = service.request(
        'POST',
        f'/v1/clusters/{cluster["uuid"]}/actions/upgrade',
        {'cluster_template': template['uuid'], **fields},
    )
    assert status == 202, body


def is_healthy(
    service: Service, cluster: dict[str, Any], known: Iterable[str] | None = None
) -> None:
    """Wait until the engine and just the nodes that there are, or those that it knows, are well."""
    wanted = {'api': 'ok'} | {
        f'{name}.Ready': 'True' for name in known or names_of(service, cluster)
    }
    poll(
        lambda: show(service, cluster)['health_status_reason'] == wanted,
        120,
        lambda: f'all is well: {show(service, cluster)}',
    )
    assert show(service, cluster)['health_status'] == 'HEALTHY'


def fails_with(
    service: Service, cluster: dict[str, Any], labels: dict[str, str], *said: str
) -> None:
    """Add a nodegroup with labels that are wrong: its only node says where it failed and why. It is
    removed again."""
    groups = f'/v1/clusters/{cluster["uuid"]}/nodegroups'
    status, body = service.request(
        'POST', groups, {'name': 'broken', 'node_count': 1, 'labels': labels, 'merge_labels': True}
    )
    assert status == 202, body
    reason = service.wait(cluster['uuid'], 'UPDATE_FAILED', timeout_s=TIMEOUT_MIN * 60)[
        'status_reason'
    ]
    assert '-broken-0: ' in reason
    assert [text for text in said if text not in reason] == [], reason
    service.request('DELETE', f'{groups}/broken')
    service.wait(cluster['uuid'], 'UPDATE_COMPLETE', timeout_s=300)


# -- in the nodes ----------------------------------------------------------------------------------


def on_node(name: str, *words: str) -> str:
    """What a command in a node says."""
    return subprocess.run(
        [str(NODE_TOOLS / 'exec'), name, '--', *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def crash(name: str) -> None:
    """End a node as a power cut does."""
    subprocess.run([str(NODE_TOOLS / 'kill'), name], check=True, stdout=subprocess.DEVNULL)


def artefact(name: str, label: str) -> dict[str, str]:
    """The labels that name a tarball which mesos-layer has put on nodes."""
    digest = hashlib.sha256((MESOS / 'opt/standins' / name).read_bytes()).hexdigest()
    return {label: f'file:///opt/standins/{name}', f'{label.removesuffix("_url")}_sha256': digest}


def containers_reach_each_other(workers: Iterable[str], network: ipaddress.IPv4Network) -> None:
    """Run one on the bridge of each of two workers: each has an address of its node's range, and is
    seen by that."""
    here, there = sorted(workers)[:2]
    addresses = {}
    for name in (here, there):
        on_node(name, 'docker', 'import', '/opt/images/busybox-rootfs.tar', 'here:busybox')
        on_node(
            name,
            'docker',
            'run',
            '--detach',
            '--name',
            'alone',
            'here:busybox',
            'httpd',
            '-f',
            '-h',
            '/www',
        )
        addresses[name] = on_node(
            name, 'docker', 'inspect', 'alone', '--format', '{{.NetworkSettings.IPAddress}}'
        )

    ranges = {ipaddress.IPv4Interface(f'{address}/24').network for address in addresses.values()}
    assert len(ranges) == 2
    assert all(found.subnet_of(network) for found in ranges)
    assert ' 0% packet loss' in on_node(
        here, 'docker', 'exec', 'alone', 'ping', '-c', '2', addresses[there]
    )
    # Nobody hides it: the other one sees where it comes from.
    on_node(there, 'iptables', '-I', 'FORWARD', '-s', f'{addresses[here]}/32', '-j', 'ACCEPT')
    on_node(here, 'docker', 'exec', 'alone', 'ping', '-c', '2', addresses[there])
    counted = on_node(there, 'iptables', '-nvxL', 'FORWARD', '1').split()
    assert int(counted[0]) >= 2
    assert '1450' in on_node(here, 'docker', 'exec', 'alone', 'ip', 'link', 'show', 'eth0')
