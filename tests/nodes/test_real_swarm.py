"""A swarm on nodes that really boot: asked for over the API, finished by the nodes' own reports,
used with docker.

`booted` says what is needed. NODES_MASTERS=3: behind a load balancer, and they are replaced.
NODES_NETWORK=flannel: with that, for which nodes need what mesos-layer adds."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import pathlib
import subprocess
from typing import Any

import pytest
import requests
from functional.service import Service, poll
from nodes import booted
from nodes.booted import (
    MESOS,
    NODES_HOME,
    TIMEOUT_MIN,
    artefact,
    containers_reach_each_other,
    fails_with,
    is_healthy,
    names_of,
    nodes,
    on_node,
    resize,
    upgrade,
)

from magnum_lite import certs

service, template, cluster = booted.service, booted.template, booted.cluster  # fixtures
DOCKER = NODES_HOME / 'image/rootfs/usr/bin/docker'
NETWORK = os.environ.get('NODES_NETWORK', 'docker')
MASTERS, WORKERS = int(os.environ.get('NODES_MASTERS', '1')), 2
pytestmark = booted.marks(MESOS if NETWORK == 'flannel' else DOCKER)


@pytest.fixture(scope='module')
def fields() -> dict[str, Any]:
    """Fields of the cluster template."""
    return {
        'coe': 'swarm-mode',
        'master_lb_enabled': MASTERS > 1,
        'network_driver': NETWORK,
        'labels': artefact('flannel.tgz', 'flannel_tarball_url') if NETWORK == 'flannel' else {},
    }


class Docker:
    """A user's docker with the files that `cluster config` writes, signed through the API, for one
    swarm."""

    def __init__(self, service: Service, cluster: dict[str, Any], folder: pathlib.Path) -> None:
        user = certs.make_request(common_name='admin', organization='system:masters')
        status, ca = service.request('GET', f'/v1/certificates/{cluster["uuid"]}')
        assert status == 200, ca
        status, signed = service.request(
            'POST', '/v1/certificates', {'cluster_uuid': cluster['uuid'], 'csr': user.certificate}
        )
        assert status == 201, signed
        for name, text in (
            ('ca.pem', ca['pem']),
            ('cert.pem', signed['pem']),
            ('key.pem', user.private_key),
        ):
            (folder / name).touch(0o600)
            (folder / name).write_text(text)
        self.environment = {
            'DOCKER_HOST': cluster['api_address'],
            'DOCKER_TLS_VERIFY': '1',
            'DOCKER_CERT_PATH': str(folder),
            'HOME': str(folder),
        }

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever comes of it."""
        return subprocess.run(
            ['timeout', '60', str(DOCKER), *words],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment | environment,
        )

    def __call__(self, *words: str) -> str:
        """What docker says. Raises AssertionError with its words if it fails."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def nodes(self) -> dict[str, str]:
        """State and role of all nodes, by name."""
        rows = [
            json.loads(line) for line in self('node', 'ls', '--format', '{{json .}}').splitlines()
        ]
        return {
            row['Hostname']: ' '.join(
                filter(None, (row['Status'], row['Availability'], row['ManagerStatus']))
            )
            for row in rows
        }


@pytest.fixture(scope='module')
def docker(
    service: Service, cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Docker:
    return Docker(service, cluster, tmp_path_factory.mktemp('user'))


def test_a_user_sees_all_nodes_ready(
    service: Service, cluster: dict[str, Any], docker: Docker
) -> None:
    expected = {
        name: 'Ready Active' if '-worker-' in name else 'Ready Drain'
        for name in nodes(service, cluster)
    }

    seen = docker.nodes()

    assert len(seen) == MASTERS + WORKERS
    assert {
        name: state.removesuffix(' Leader').removesuffix(' Reachable')
        for name, state in seen.items()
    } == expected
    assert sum('Leader' in state for state in seen.values()) == 1
    assert sum('Reachable' in state for state in seen.values()) == MASTERS - 1


def test_address_and_version_are_shown(cluster: dict[str, Any], docker: Docker) -> None:
    assert cluster['api_address'].startswith('tcp://')
    assert cluster['api_address'].endswith(':2376')
    if MASTERS == 1:
        assert cluster['api_address'] == f'tcp://{cluster["master_addresses"][0]}:2376'
    assert len(cluster['node_addresses']) == WORKERS
    assert cluster['coe_version'] == docker('version', '--format', '{{.Server.Version}}')


def test_nobody_gets_in_without_a_certificate(
    cluster: dict[str, Any], docker: Docker, tmp_path: pathlib.Path
) -> None:
    stranger = certs.make_ca('stranger', life=datetime.timedelta(hours=1))
    forged = certs.issue_client(
        stranger, common_name='admin', organization=None, life=datetime.timedelta(hours=1)
    )
    ca = pathlib.Path(docker.environment['DOCKER_CERT_PATH']) / 'ca.pem'
    for name, text in (
        ('ca.pem', ca.read_text()),
        ('cert.pem', forged.certificate),
        ('key.pem', forged.private_key),
    ):
        (tmp_path / name).write_text(text)

    assert docker.run('info', DOCKER_CERT_PATH=str(tmp_path)).returncode != 0
    # What workers get to join with does not open the API either, and is gone when they have joined.
    worker = next(name for name in docker.nodes() if '-worker-' in name)
    assert set(on_node(worker, 'sh', '-c', 'ls /etc/magnum-lite; ls /etc/docker/tls').split()) - {
        'flannel'
    } == {'daemon.json', 'node.env', 'ca.crt'}


def test_a_service_runs_on_the_workers_and_its_tasks_reach_each_other(
    cluster: dict[str, Any], docker: Docker
) -> None:
    """Published by the nodes that run it: the kernel of this machine may lack what the routing mesh
    needs (IPVS)."""
    workers = sorted(name for name in docker.nodes() if '-worker-' in name)
    for name in workers:
        on_node(name, 'docker', 'import', '/opt/images/busybox-rootfs.tar', 'here:busybox')

    docker('network', 'create', '--driver', 'overlay', 'mesh')
    docker(
        'service',
        'create',
        '--detach',
        '--name',
        'web',
        '--replicas',
        str(WORKERS),
        '--no-resolve-image',
        '--constraint',
        'engine.labels.magnum.openstack.org.role==worker',
        '--network',
        'mesh',
        '--endpoint-mode',
        'dnsrr',
        '--publish',
        'mode=host,target=80,published=30080',
        'here:busybox',
        'sh',
        '-c',
        'mkdir /www; hostname >/www/index.html; exec httpd -f -h /www',
    )

    def running() -> list[list[str]]:
        lines = docker(
            'service',
            'ps',
            'web',
            '--filter',
            'desired-state=running',
            '--format',
            '{{.Node}} {{.CurrentState}}',
        ).splitlines()
        return sorted(line.split()[:2] for line in lines)

    poll(
        lambda: running() == [[name, 'Running'] for name in workers],
        60,
        lambda: f'the service runs on {workers}: {running()}',
        every_s=1,
    )
    assert (
        len(
            {requests.get(f'http://{a}:30080/', timeout=20).text for a in cluster['node_addresses']}
        )
        == WORKERS
    )
    [here, there] = [
        on_node(name, 'docker', 'ps', '--quiet', '--filter', 'name=web') for name in workers
    ]
    address = on_node(
        workers[1],
        'docker',
        'inspect',
        there,
        '--format',
        '{{.NetworkSettings.Networks.mesh.IPAddress}}',
    )
    assert address.startswith('10.100.')
    assert ' 0% packet loss' in on_node(
        workers[0], 'docker', 'exec', here, 'ping', '-c', '2', address
    )


@pytest.mark.skipif(NETWORK != 'flannel', reason='NODES_NETWORK is not flannel')
def test_containers_of_different_workers_reach_each_other_by_their_own_addresses(
    service: Service, cluster: dict[str, Any]
) -> None:
    containers_reach_each_other(
        names_of(service, cluster, 'worker'), ipaddress.IPv4Network('10.101.0.0/16')
    )


@pytest.mark.skipif(NETWORK != 'flannel', reason='NODES_NETWORK is not flannel')
def test_etcd_takes_the_certificate_of_nodes_and_no_other_client(
    service: Service, cluster: dict[str, Any], docker: Docker
) -> None:
    manager = next(node for node in nodes(service, cluster).values() if node['role'] == 'master')
    url = f'https://{manager["private_address"]}:2379'
    worker = min(names_of(service, cluster, 'worker'))
    tls = '/etc/magnum-lite/flannel'

    def ask(*words: str) -> str:
        return on_node(
            worker,
            'sh',
            '-c',
            'ETCDCTL_API=3 etcdctl "$@" 2>&1 || echo refused',
            'sh',
            f'--endpoints={url}',
            '--cacert',
            f'{tls}/ca.crt',
            *words,
            'member',
            'list',
        )

    assert (
        len(ask('--cert', f'{tls}/client.crt', '--key', f'{tls}/client.key').splitlines())
        == MASTERS
    )
    assert ask().endswith('refused')


def test_health_is_what_the_engine_says(service: Service, cluster: dict[str, Any]) -> None:
    is_healthy(service, cluster)


def test_nodes_come_and_go(service: Service, cluster: dict[str, Any], docker: Docker) -> None:
    before = names_of(service, cluster)
    resize(service, cluster, WORKERS + 1)
    [new] = names_of(service, cluster) - before
    assert docker.nodes()[new] == 'Ready Active'

    resize(service, cluster, WORKERS, '0')
    assert names_of(service, cluster) == {
        name for name in before | {new} if not name.endswith('worker-0')
    }
    is_healthy(service, cluster)  # although the engine may still know the one that was removed
    # It is down when its server has not been heard of for a while, and then it is forgotten.
    poll(
        lambda: set(docker.nodes()) == names_of(service, cluster),
        60,
        lambda: f'it is forgotten: {docker.nodes()}',
    )


@pytest.mark.skipif(
    MASTERS == 1 or NETWORK == 'flannel', reason='one manager, and those with flannel, stay'
)
def test_managers_are_replaced_one_by_one(
    service: Service, template: dict[str, Any], cluster: dict[str, Any], docker: Docker
) -> None:
    before = names_of(service, cluster)
    upgrade(service, cluster, template, max_batch_size=2)

    service.wait(cluster['uuid'], 'UPDATE_COMPLETE', timeout_s=TIMEOUT_MIN * 60)

    after = names_of(service, cluster)
    assert len(after) == len(before)
    assert not after & before
    assert docker('service', 'ls', '--format', '{{.Name}}') == 'web', (
        'what the swarm knew it knows still'
    )
    poll(
        lambda: set(docker.nodes()) == after,
        60,
        lambda: f'the old ones are forgotten: {docker.nodes()}',
    )
    is_healthy(service, cluster)


def test_a_worker_that_fails_says_where_and_why(service: Service, cluster: dict[str, Any]) -> None:
    """Its nodegroup names a tarball with another checksum."""
    fails_with(
        service,
        cluster,
        {
            'docker_tarball_url': 'file:///opt/images/busybox-rootfs.tar',
            'docker_tarball_sha256': '0' * 64,
        },
        "step 'install docker' failed (exit code 1)",
        f'busybox-rootfs.tar has another checksum than {"0" * 64}',
    )
