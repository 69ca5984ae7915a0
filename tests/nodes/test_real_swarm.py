"""A swarm on nodes that really boot: asked for over the API, finished by the nodes' own reports, used with docker.

Needs a cloud named by OS_CLOUD, nodes for its servers, and their watcher, started with a --match that takes names
beginning with `real-` (NODES_PREFIX: another beginning). NODES_HOME says where the nodes are. NODES_NETWORK=flannel:
with that, for which nodes need what mesos-layer adds.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import os
import pathlib
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from functional.cloud import TOOLS
from functional.service import Service, poll, start_service

from magnum_lite import certs

NODES_HOME = pathlib.Path(os.environ.get('NODES_HOME', ''))
#: The tools of the nodes stand beside those of the cloud.
NODE_TOOLS = TOOLS.parent / 'nodes'
DOCKER = NODES_HOME / 'image/rootfs/usr/bin/docker'
NETWORK = os.environ.get('NODES_NETWORK', 'docker')
#: What tests/nodes/mesos-layer makes.
LAYER = NODES_HOME / 'overlay/mesos'
PREFIX = os.environ.get('NODES_PREFIX', 'real')
#: NODES_MASTERS=3: behind a load balancer, and one of them is replaced.
MASTERS, WORKERS = int(os.environ.get('NODES_MASTERS', '1')), 2
#: A node takes ten seconds on an idle machine; a busy one is given more.
TIMEOUT_MIN = 15


def _lack() -> str | None:
    """What is missing for this test, in words; None if nothing is."""
    if not os.environ.get('OS_CLOUD'):
        return 'no cloud is named by OS_CLOUD'
    if not os.environ.get('NODES_HOME'):
        return 'NODES_HOME does not say where the nodes are'
    if not DOCKER.exists():
        return f'the image of the nodes is not built ({DOCKER})'
    if NETWORK == 'flannel' and not LAYER.exists():
        return f'tests/nodes/mesos-layer has not made {LAYER}'
    try:
        os.kill(int((NODES_HOME / 'run' / 'noded.pid').read_text()), 0)
    except (OSError, ValueError):
        return f'the watcher that makes nodes does not run ({NODES_HOME}/run/noded.pid)'
    return None


LACK = _lack()
pytestmark = [pytest.mark.nodes, pytest.mark.timeout(TIMEOUT_MIN * 60 + 300),
              pytest.mark.skipif(LACK is not None, reason=f'real nodes: {LACK}'),
              # openstacksdk says it to everybody who connects
              pytest.mark.filterwarnings('ignore:Support for InfluxDB')]


def artefact(name: str, label: str) -> dict[str, str]:
    """The labels that name a tarball which mesos-layer has put on nodes."""
    digest = hashlib.sha256((LAYER / 'opt/standins' / name).read_bytes()).hexdigest()
    kind, _, _ = label.rpartition('_')
    return {label: f'file:///opt/standins/{name}', f'{kind}_sha256': digest}


@pytest.fixture(scope='module')
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = start_service(os.environ['OS_CLOUD'], tmp_path_factory.mktemp('swarm'),
                            extra={'health': {'interval': 3}})
    yield started
    started.print_logs()
    started.stop()


@pytest.fixture(scope='module')
def template(service: Service) -> Iterator[dict[str, Any]]:
    flavor = os.environ.get('NODES_FLAVOR', 'm1.small')
    status, body = service.request('POST', '/v1/clustertemplates', {
        'name': f'{PREFIX}-{secrets.token_hex(3)}', 'coe': 'swarm-mode',
        'image_id': os.environ.get('NODES_IMAGE', 'debian'), 'flavor_id': flavor, 'master_flavor_id': flavor,
        'external_network_id': os.environ.get('NODES_EXTERNAL_NETWORK', 'public'),
        'master_lb_enabled': MASTERS > 1, 'network_driver': NETWORK,
        'labels': artefact('flannel.tgz', 'flannel_tarball_url') if NETWORK == 'flannel' else {}})
    assert status == 201, body
    yield body
    service.request('DELETE', f'/v1/clustertemplates/{body["uuid"]}')


@pytest.fixture(scope='module')
def cluster(service: Service, template: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cluster, after its nodes have said that they are ready."""
    status, body = service.request('POST', '/v1/clusters', {
        'name': f'{PREFIX}-{secrets.token_hex(3)}', 'cluster_template_id': template['uuid'],
        'master_count': MASTERS, 'node_count': WORKERS, 'create_timeout': TIMEOUT_MIN})
    assert status == 202, body
    try:
        yield service.wait(body['uuid'], 'CREATE_COMPLETE', timeout_s=TIMEOUT_MIN * 60)
    finally:
        service.request('DELETE', f'/v1/clusters/{body["uuid"]}')
        service.wait(body['uuid'], 'GONE', timeout_s=300)


class Docker:
    """A user's docker with the files that `cluster config` writes, signed through the API, for one swarm."""

    def __init__(self, service: Service, cluster: dict[str, Any], folder: pathlib.Path) -> None:
        user = certs.make_request(common_name='admin', organization='system:masters')
        status, ca = service.request('GET', f'/v1/certificates/{cluster["uuid"]}')
        assert status == 200, ca
        status, signed = service.request('POST', '/v1/certificates', {
            'cluster_uuid': cluster['uuid'], 'csr': user.certificate})
        assert status == 201, signed
        for name, text in (('ca.pem', ca['pem']), ('cert.pem', signed['pem']), ('key.pem', user.private_key)):
            (folder / name).touch(0o600)
            (folder / name).write_text(text)
        self.environment = {'DOCKER_HOST': cluster['api_address'], 'DOCKER_TLS_VERIFY': '1',
                            'DOCKER_CERT_PATH': str(folder), 'HOME': str(folder)}

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever comes of it."""
        return subprocess.run(['timeout', '60', str(DOCKER), *words], capture_output=True, text=True, check=False,
                              env=self.environment | environment)

    def __call__(self, *words: str) -> str:
        """What docker says. Raises AssertionError with its words if it fails."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def nodes(self) -> dict[str, str]:
        """State and role of all nodes, by name."""
        rows = [json.loads(line) for line in self('node', 'ls', '--format', '{{json .}}').splitlines()]
        return {row['Hostname']: ' '.join(filter(None, (row['Status'], row['Availability'], row['ManagerStatus'])))
                for row in rows}


@pytest.fixture(scope='module')
def docker(service: Service, cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Docker:
    return Docker(service, cluster, tmp_path_factory.mktemp('user'))


def on_node(name: str, *words: str) -> str:
    """What a command in a node says."""
    return subprocess.run([str(NODE_TOOLS / 'exec'), name, '--', *words], capture_output=True, text=True,
                          check=True).stdout.strip()


def show(service: Service, cluster: dict[str, Any]) -> dict[str, Any]:
    """What the API says of the cluster now."""
    status, body = service.request('GET', f'/v1/clusters/{cluster["uuid"]}')
    assert status == 200, body
    return dict(body)


def nodes(service: Service, cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its nodes by name, by the API."""
    status, body = service.request('GET', f'/v1/clusters/{cluster["uuid"]}/nodes')
    assert status == 200, body
    return {node['name']: node for node in body['nodes']}


def is_healthy(service: Service, cluster: dict[str, Any]) -> None:
    """Wait until the engine and just the nodes that there are are well."""
    wanted = {'api': 'ok'} | {f'{name}.Ready': 'True' for name in nodes(service, cluster)}
    poll(lambda: show(service, cluster)['health_status_reason'] == wanted, 120,
         lambda: f'all is well: {show(service, cluster)}')
    assert show(service, cluster)['health_status'] == 'HEALTHY'


def test_a_user_sees_all_nodes_ready(service: Service, cluster: dict[str, Any], docker: Docker) -> None:
    expected = {name: 'Ready Active' if '-worker-' in name else 'Ready Drain' for name in nodes(service, cluster)}

    seen = docker.nodes()

    assert len(seen) == MASTERS + WORKERS
    assert {name: state.removesuffix(' Leader').removesuffix(' Reachable') for name, state in seen.items()} == expected
    assert sum('Leader' in state for state in seen.values()) == 1
    assert sum('Reachable' in state for state in seen.values()) == MASTERS - 1


def test_address_and_version_are_shown(cluster: dict[str, Any], docker: Docker) -> None:
    assert cluster['api_address'].startswith('tcp://')
    assert cluster['api_address'].endswith(':2376')
    if MASTERS == 1:
        assert cluster['api_address'] == f'tcp://{cluster["master_addresses"][0]}:2376'
    assert len(cluster['node_addresses']) == WORKERS
    assert cluster['coe_version'] == docker('version', '--format', '{{.Server.Version}}')


def test_nobody_gets_in_without_a_certificate(cluster: dict[str, Any], docker: Docker,
                                              tmp_path: pathlib.Path) -> None:
    stranger = certs.make_ca('stranger', life=datetime.timedelta(hours=1))
    forged = certs.issue_client(stranger, common_name='admin', organization=None, life=datetime.timedelta(hours=1))
    ca = pathlib.Path(docker.environment['DOCKER_CERT_PATH']) / 'ca.pem'
    for name, text in (('ca.pem', ca.read_text()), ('cert.pem', forged.certificate), ('key.pem', forged.private_key)):
        (tmp_path / name).write_text(text)

    assert docker.run('info', DOCKER_CERT_PATH=str(tmp_path)).returncode != 0
    # What workers get to join with does not open the API either, and is gone when they have joined.
    worker = next(name for name in docker.nodes() if '-worker-' in name)
    assert set(on_node(worker, 'sh', '-c', 'ls /etc/magnum-lite; ls /etc/docker/tls').split()) - {'flannel'} == {
        'daemon.json', 'node.env', 'ca.crt'}


def test_a_service_runs_on_the_workers_and_its_tasks_reach_each_other(
        cluster: dict[str, Any], docker: Docker) -> None:
    """Published by the nodes that run it: the kernel of this machine may lack what the routing mesh needs (IPVS)."""
    workers = sorted(name for name in docker.nodes() if '-worker-' in name)
    for name in workers:
        on_node(name, 'docker', 'import', '/opt/images/busybox-rootfs.tar', 'here:busybox')

    docker('network', 'create', '--driver', 'overlay', 'mesh')
    docker('service', 'create', '--detach', '--name', 'web', '--replicas', str(WORKERS), '--no-resolve-image',
           '--constraint', 'engine.labels.magnum.openstack.org.role==worker', '--network', 'mesh', '--endpoint-mode',
           'dnsrr', '--publish', 'mode=host,target=80,published=30080', 'here:busybox',
           'sh', '-c', 'mkdir /www; hostname >/www/index.html; exec httpd -f -h /www')

    def running() -> list[list[str]]:
        lines = docker('service', 'ps', 'web', '--filter', 'desired-state=running', '--format',
                       '{{.Node}} {{.CurrentState}}').splitlines()
        return sorted(line.split()[:2] for line in lines)
    poll(lambda: running() == [[name, 'Running'] for name in workers], 60,
         lambda: f'the service runs on {workers}: {running()}', every_s=1)
    assert len({requests.get(f'http://{a}:30080/', timeout=20).text for a in cluster['node_addresses']}) == WORKERS
    [here, there] = [on_node(name, 'docker', 'ps', '--quiet', '--filter', 'name=web') for name in workers]
    address = on_node(
        workers[1], 'docker', 'inspect', there, '--format', '{{.NetworkSettings.Networks.mesh.IPAddress}}')
    assert address.startswith('10.100.')
    assert ' 0% packet loss' in on_node(workers[0], 'docker', 'exec', here, 'ping', '-c', '2', address)


def containers_reach_each_other(here: str, there: str, network: ipaddress.IPv4Network) -> None:
    """Run one on the bridge of each of two nodes: each has an address of its node's range, and is seen by that."""
    addresses = {}
    for name in (here, there):
        on_node(name, 'docker', 'import', '/opt/images/busybox-rootfs.tar', 'here:busybox')
        on_node(name, 'docker', 'run', '--detach', '--name', 'alone', 'here:busybox', 'httpd', '-f', '-h', '/www')
        addresses[name] = on_node(name, 'docker', 'inspect', 'alone', '--format', '{{.NetworkSettings.IPAddress}}')

    ranges = {ipaddress.IPv4Interface(f'{address}/24').network for address in addresses.values()}
    assert len(ranges) == 2
    assert all(found.subnet_of(network) for found in ranges)
    assert ' 0% packet loss' in on_node(here, 'docker', 'exec', 'alone', 'ping', '-c', '2', addresses[there])
    # Nobody hides it: the other one sees where it comes from.
    on_node(there, 'iptables', '-I', 'FORWARD', '-s', f'{addresses[here]}/32', '-j', 'ACCEPT')
    on_node(here, 'docker', 'exec', 'alone', 'ping', '-c', '2', addresses[there])
    counted = on_node(there, 'iptables', '-nvxL', 'FORWARD', '1').split()
    assert int(counted[0]) >= 2
    assert '1450' in on_node(here, 'docker', 'exec', 'alone', 'ip', 'link', 'show', 'eth0')


@pytest.mark.skipif(NETWORK != 'flannel', reason='NODES_NETWORK is not flannel')
def test_containers_of_different_workers_reach_each_other_by_their_own_addresses(
        service: Service, cluster: dict[str, Any]) -> None:
    workers = sorted(name for name in nodes(service, cluster) if '-worker-' in name)

    containers_reach_each_other(*workers[:2], ipaddress.IPv4Network('10.101.0.0/16'))


@pytest.mark.skipif(NETWORK != 'flannel', reason='NODES_NETWORK is not flannel')
def test_etcd_takes_the_certificate_of_nodes_and_no_other_client(
        service: Service, cluster: dict[str, Any], docker: Docker) -> None:
    manager = next(node for name, node in nodes(service, cluster).items() if '-master-' in name)
    url = f'https://{manager["private_address"]}:2379'
    worker = next(name for name in nodes(service, cluster) if '-worker-' in name)
    tls = '/etc/magnum-lite/flannel'

    def ask(*words: str) -> str:
        return on_node(worker, 'sh', '-c', 'ETCDCTL_API=3 etcdctl "$@" 2>&1 || echo refused', 'sh',
                       f'--endpoints={url}', '--cacert', f'{tls}/ca.crt', *words, 'member', 'list')

    assert len(ask('--cert', f'{tls}/client.crt', '--key', f'{tls}/client.key').splitlines()) == MASTERS
    assert ask().endswith('refused')


def test_health_is_what_the_engine_says(service: Service, cluster: dict[str, Any]) -> None:
    is_healthy(service, cluster)


def resize(service: Service, cluster: dict[str, Any], count: int, *remove: str) -> None:
    """Have so many workers, without those named."""
    status, body = service.request('POST', f'/v1/clusters/{cluster["uuid"]}/actions/resize', {
        'node_count': count, 'nodes_to_remove': list(remove)})
    assert status == 202, body
    service.wait(cluster['uuid'], 'UPDATE_COMPLETE', timeout_s=TIMEOUT_MIN * 60)


def test_nodes_come_and_go(service: Service, cluster: dict[str, Any], docker: Docker) -> None:
    before = set(nodes(service, cluster))
    resize(service, cluster, WORKERS + 1)
    [new] = set(nodes(service, cluster)) - before
    assert docker.nodes()[new] == 'Ready Active'

    resize(service, cluster, WORKERS, '0')
    assert set(nodes(service, cluster)) == {name for name in before | {new} if not name.endswith('worker-0')}
    is_healthy(service, cluster)  # although the engine may still know the one that was removed
    # It is down when its server has not been heard of for a while, and then it is forgotten.
    poll(lambda: set(docker.nodes()) == set(nodes(service, cluster)), 60, lambda: f'it is forgotten: {docker.nodes()}')


@pytest.mark.skipif(MASTERS == 1 or NETWORK == 'flannel', reason='one manager, and those with flannel, stay')
def test_managers_are_replaced_one_by_one(service: Service, cluster: dict[str, Any], docker: Docker) -> None:
    before = set(nodes(service, cluster))
    status, body = service.request('POST', f'/v1/clusters/{cluster["uuid"]}/actions/upgrade', {
        'cluster_template': cluster['cluster_template_id'], 'max_batch_size': 2})
    assert status == 202, body

    service.wait(cluster['uuid'], 'UPDATE_COMPLETE', timeout_s=TIMEOUT_MIN * 60)

    after = set(nodes(service, cluster))
    assert len(after) == len(before)
    assert not after & before
    assert docker('service', 'ls', '--format', '{{.Name}}') == 'web', 'what the swarm knew it knows still'
    poll(lambda: set(docker.nodes()) == after, 60, lambda: f'the old ones are forgotten: {docker.nodes()}')
    is_healthy(service, cluster)


def test_a_worker_that_fails_says_where_and_why(service: Service, cluster: dict[str, Any]) -> None:
    """Its nodegroup names a tarball with another checksum."""
    groups = f'/v1/clusters/{cluster["uuid"]}/nodegroups'
    status, body = service.request('POST', groups, {
        'name': 'broken', 'node_count': 1, 'labels': {
            'docker_tarball_url': 'file:///opt/images/busybox-rootfs.tar', 'docker_tarball_sha256': '0' * 64}})
    assert status == 202, body

    failed = service.wait(cluster['uuid'], 'UPDATE_FAILED', timeout_s=TIMEOUT_MIN * 60)

    assert "step 'install docker' failed (exit code 1)" in failed['status_reason']
    assert f'busybox-rootfs.tar has another checksum than {"0" * 64}' in failed['status_reason']
    assert '-broken-0: ' in failed['status_reason']
    service.request('DELETE', f'{groups}/broken')
    service.wait(cluster['uuid'], 'UPDATE_COMPLETE', timeout_s=300)
