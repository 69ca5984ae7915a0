"""Mesos on nodes that really boot: ZooKeeper, etcd and Docker are real; mesos-layer says what stands in for the rest.

Needs what test_real_swarm.py needs, and nodes with what mesos-layer adds. NODES_MASTERS=3: behind a load balancer.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from functional.service import Service, poll, start_service
from test_real_swarm import (
    LACK,
    LAYER,
    MASTERS,
    PREFIX,
    TIMEOUT_MIN,
    WORKERS,
    artefact,
    containers_reach_each_other,
    nodes,
    on_node,
    resize,
    show,
)

REASON = LACK or (None if LAYER.exists() else f'tests/nodes/mesos-layer has not made {LAYER}')
pytestmark = [pytest.mark.nodes, pytest.mark.timeout(TIMEOUT_MIN * 60 + 300),
              pytest.mark.skipif(REASON is not None, reason=f'real nodes: {REASON}'),
              # openstacksdk says it to everybody who connects
              pytest.mark.filterwarnings('ignore:Support for InfluxDB')]


@pytest.fixture(scope='module')
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = start_service(os.environ['OS_CLOUD'], tmp_path_factory.mktemp('mesos'),
                            extra={'health': {'interval': 3}})
    yield started
    started.print_logs()
    started.stop()


@pytest.fixture(scope='module')
def template(service: Service) -> Iterator[dict[str, Any]]:
    flavor = os.environ.get('NODES_FLAVOR', 'm1.small')
    status, body = service.request('POST', '/v1/clustertemplates', {
        'name': f'{PREFIX}-{secrets.token_hex(3)}', 'coe': 'mesos',
        'image_id': os.environ.get('NODES_IMAGE', 'debian'), 'flavor_id': flavor, 'master_flavor_id': flavor,
        'external_network_id': os.environ.get('NODES_EXTERNAL_NETWORK', 'public'), 'master_lb_enabled': MASTERS > 1,
        'labels': {**artefact('mesos.tgz', 'mesos_package_url'), **artefact('flannel.tgz', 'flannel_tarball_url'),
                   'mesos_slave_isolation': 'docker/runtime',
                   'mesos_agent_executor_env_variables': '{"LANG": "C"}'}})
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


def workers(service: Service, cluster: dict[str, Any]) -> list[str]:
    """Names of its workers, by the API."""
    return sorted(name for name in nodes(service, cluster) if '-master-' not in name)


def is_healthy(service: Service, cluster: dict[str, Any]) -> None:
    """Wait until Marathon and just the workers that there are are well."""
    wanted = {'api': 'ok'} | {f'{name}.Ready': 'True' for name in workers(service, cluster)}
    poll(lambda: show(service, cluster)['health_status_reason'] == wanted, 120,
         lambda: f'all is well: {show(service, cluster)}')


def agents(cluster: dict[str, Any]) -> dict[str, bool]:
    """What the leading master says of agents, by the names that they were given."""
    url = f'http://{cluster["master_addresses"][0]}:5050/master/slaves'
    answer = requests.get(url, timeout=20, allow_redirects=False)
    if answer.status_code == 307:  # to an address of the nodes' network, which has a floating IP, too
        [answer] = [found for address in cluster['master_addresses'] if (found := requests.get(
            f'http://{address}:5050/master/slaves', timeout=20, allow_redirects=False)).status_code == 200]
    return {agent['attributes']['magnum.openstack.org/name']: agent['active'] for agent in answer.json()['slaves']}


def test_marathon_and_a_leading_master_answer(service: Service, cluster: dict[str, Any]) -> None:
    assert cluster['coe_version'] == '1.11.0'
    assert cluster['api_address'].endswith(':8080')
    assert requests.get(f'{cluster["api_address"]}/v2/leader', timeout=20).status_code == 200
    assert agents(cluster) == dict.fromkeys(workers(service, cluster), True)


def test_masters_are_one_ensemble_of_zookeeper(service: Service, cluster: dict[str, Any]) -> None:
    server, settings = '/usr/share/zookeeper/bin/zkServer.sh', '/etc/magnum-lite/zoo.cfg'

    modes = sorted(on_node(name, server, 'status', settings).split()[-1]
                   for name in nodes(service, cluster) if '-master-' in name)

    assert modes == (['standalone'] if MASTERS == 1 else ['follower'] * (MASTERS - 1) + ['leader'])


def test_containers_of_different_workers_reach_each_other_by_their_own_addresses(
        service: Service, cluster: dict[str, Any]) -> None:
    containers_reach_each_other(*workers(service, cluster)[:2], ipaddress.IPv4Network('10.100.0.0/16'))


def test_health_is_what_the_engine_says(service: Service, cluster: dict[str, Any]) -> None:
    is_healthy(service, cluster)
    assert show(service, cluster)['health_status'] == 'HEALTHY'


def test_there_is_no_certificate_and_no_kubeconfig(service: Service, cluster: dict[str, Any]) -> None:
    certificate = f'/v1/certificates/{cluster["uuid"]}'
    for method, path in (('GET', certificate), ('PATCH', certificate),
                         ('POST', f'/v1/clusters/{cluster["uuid"]}/kubeconfig')):
        status, body = service.request(method, path)

        assert status == 400, body
        assert 'Driver mesos_ubuntu of cluster' in str(body)


def test_nodes_come_and_go(service: Service, cluster: dict[str, Any]) -> None:
    before = set(workers(service, cluster))
    resize(service, cluster, WORKERS + 1)
    [new] = set(workers(service, cluster)) - before
    assert agents(cluster)[new] is True

    resize(service, cluster, WORKERS, '0')
    assert set(workers(service, cluster)) == {name for name in before | {new} if not name.endswith('worker-0')}
    is_healthy(service, cluster)


@pytest.mark.skipif(MASTERS == 1, reason='NODES_MASTERS is 1: nobody takes the place of the only master')
def test_another_master_leads_when_the_leading_one_is_gone(service: Service, cluster: dict[str, Any]) -> None:
    def leaders() -> list[str]:
        return [name for name in nodes(service, cluster) if '-master-' in name and on_node(
            name, 'sh', '-c', 'curl -s -o /dev/null -w "%{http_code}" "http://$(hostname -I | cut -d" " -f1):5050/'
            'master/slaves" || :').endswith('200')]
    [old] = leaders()
    on_node(old, 'systemctl', 'stop', 'mesos-master')

    poll(lambda: len(leaders()) == 1 and old not in leaders(), 60, lambda: f'another one leads: {leaders()}')
    poll(lambda: agents(cluster) == dict.fromkeys(workers(service, cluster), True), 60, 'agents find it')
    on_node(old, 'systemctl', 'start', 'mesos-master')
    is_healthy(service, cluster)


def test_a_worker_that_fails_says_where_and_why(service: Service, cluster: dict[str, Any]) -> None:
    """Its nodegroup names a package with another checksum."""
    groups = f'/v1/clusters/{cluster["uuid"]}/nodegroups'
    status, body = service.request('POST', groups, {
        'name': 'broken', 'node_count': 1, 'labels': {'mesos_package_sha256': '0' * 64}, 'merge_labels': True})
    assert status == 202, body

    failed = service.wait(cluster['uuid'], 'UPDATE_FAILED', timeout_s=TIMEOUT_MIN * 60)

    assert "step 'install mesos' failed (exit code 1)" in failed['status_reason']
    assert f'mesos.tgz has another checksum than {"0" * 64}' in failed['status_reason']
    assert '-broken-0: ' in failed['status_reason']
    service.request('DELETE', f'{groups}/broken')
    service.wait(cluster['uuid'], 'UPDATE_COMPLETE', timeout_s=300)
