"""Mesos on nodes that really boot: ZooKeeper, etcd and Docker are real; mesos-layer says what
stands in for the rest.

`booted` says what is needed; the nodes have what mesos-layer adds. NODES_MASTERS=3: behind a load
balancer."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

import pytest
import requests
from functional.service import Service, poll
from nodes import booted
from nodes.booted import (
    MESOS,
    artefact,
    containers_reach_each_other,
    fails_with,
    names_of,
    on_node,
    resize,
)

service, template, cluster = booted.service, booted.template, booted.cluster  # fixtures
MASTERS, WORKERS = int(os.environ.get('NODES_MASTERS', '1')), 2
pytestmark = booted.marks(MESOS)


@pytest.fixture(scope='module')
def fields() -> dict[str, Any]:
    """Fields of the cluster template."""
    return {
        'coe': 'mesos',
        'master_lb_enabled': MASTERS > 1,
        'labels': {
            **artefact('mesos.tgz', 'mesos_package_url'),
            **artefact('flannel.tgz', 'flannel_tarball_url'),
            'mesos_slave_isolation': 'docker/runtime',
            'mesos_agent_executor_env_variables': '{"LANG": "C"}',
        },
    }


def is_healthy(service: Service, cluster: dict[str, Any]) -> None:
    """Wait until Marathon and just the workers that there are are well: of masters it does not
    tell."""
    booted.is_healthy(service, cluster, names_of(service, cluster, 'worker'))


def agents(cluster: dict[str, Any]) -> dict[str, bool]:
    """What the leading master says of agents, by the names that they were given."""
    url = f'http://{cluster["master_addresses"][0]}:5050/master/slaves'
    answer = requests.get(url, timeout=20, allow_redirects=False)
    if (
        answer.status_code == 307
    ):  # to an address of the nodes' network, which has a floating IP, too
        [answer] = [
            found
            for address in cluster['master_addresses']
            if (
                found := requests.get(
                    f'http://{address}:5050/master/slaves', timeout=20, allow_redirects=False
                )
            ).status_code
            == 200
        ]
    return {
        agent['attributes']['magnum.openstack.org/name']: agent['active']
        for agent in answer.json()['slaves']
    }


def test_marathon_and_a_leading_master_answer(service: Service, cluster: dict[str, Any]) -> None:
    assert cluster['coe_version'] == '1.11.0'
    assert cluster['api_address'].endswith(':8080')
    assert requests.get(f'{cluster["api_address"]}/v2/leader', timeout=20).status_code == 200
    assert agents(cluster) == dict.fromkeys(names_of(service, cluster, 'worker'), True)


def test_masters_are_one_ensemble_of_zookeeper(service: Service, cluster: dict[str, Any]) -> None:
    server, settings = '/usr/share/zookeeper/bin/zkServer.sh', '/etc/magnum-lite/zoo.cfg'

    modes = sorted(
        on_node(name, server, 'status', settings).split()[-1]
        for name in names_of(service, cluster, 'master')
    )

    assert modes == (['standalone'] if MASTERS == 1 else ['follower'] * (MASTERS - 1) + ['leader'])


def test_containers_of_different_workers_reach_each_other_by_their_own_addresses(
    service: Service, cluster: dict[str, Any]
) -> None:
    containers_reach_each_other(
        names_of(service, cluster, 'worker'), ipaddress.IPv4Network('10.100.0.0/16')
    )


def test_health_is_what_the_engine_says(service: Service, cluster: dict[str, Any]) -> None:
    is_healthy(service, cluster)


def test_there_is_no_certificate_and_no_kubeconfig(
    service: Service, cluster: dict[str, Any]
) -> None:
    certificate = f'/v1/certificates/{cluster["uuid"]}'
    for method, path in (
        ('GET', certificate),
        ('PATCH', certificate),
        ('POST', f'/v1/clusters/{cluster["uuid"]}/kubeconfig'),
    ):
        status, body = service.request(method, path)

        assert status == 400, body
        assert 'Driver mesos_cloud_init of cluster' in str(body)


def test_nodes_come_and_go(service: Service, cluster: dict[str, Any]) -> None:
    before = names_of(service, cluster, 'worker')
    resize(service, cluster, WORKERS + 1)
    [new] = names_of(service, cluster, 'worker') - before
    assert agents(cluster)[new] is True

    resize(service, cluster, WORKERS, '0')
    assert names_of(service, cluster, 'worker') == {
        name for name in before | {new} if not name.endswith('worker-0')
    }
    is_healthy(service, cluster)


@pytest.mark.skipif(
    MASTERS == 1, reason='NODES_MASTERS is 1: nobody takes the place of the only master'
)
def test_another_master_leads_when_the_leading_one_is_gone(
    service: Service, cluster: dict[str, Any]
) -> None:
    def leaders() -> list[str]:
        return [
            name
            for name in names_of(service, cluster, 'master')
            if on_node(
                name,
                'sh',
                '-c',
                'curl -s -o /dev/null -w "%{http_code}" "http://$(hostname -I | cut -d" " '
                '-f1):5050/master/slaves" || :',
            ).endswith('200')
        ]

    [old] = leaders()
    on_node(old, 'systemctl', 'stop', 'mesos-master')

    poll(
        lambda: len(leaders()) == 1 and old not in leaders(),
        60,
        lambda: f'another one leads: {leaders()}',
    )
    poll(
        lambda: agents(cluster) == dict.fromkeys(names_of(service, cluster, 'worker'), True),
        60,
        'agents find it',
    )
    on_node(old, 'systemctl', 'start', 'mesos-master')
    is_healthy(service, cluster)


def test_a_worker_that_fails_says_where_and_why(service: Service, cluster: dict[str, Any]) -> None:
    """Its nodegroup names a package with another checksum."""
    fails_with(
        service,
        cluster,
        {'mesos_package_sha256': '0' * 64},
        "step 'install mesos' failed (exit code 1)",
        f'mesos.tgz has another checksum than {"0" * 64}',
    )
