"""A cluster on nodes that really boot: asked for over the API, finished by the nodes' own reports,
used with kubectl.

`booted` says what is needed; the nodes have the Kubernetes layer.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import subprocess
import types
from typing import Any, cast

import pytest
from functional.cloud import Project, Sandbox
from functional.service import Service, connect, poll
from functional.stock import has_client
from keystoneauth1 import session
from keystoneauth1.identity import v3
from nodes import booted, kubernetes
from nodes.booted import KUBERNETES, PREFIX, crash, is_healthy, names_of, resize, show
from nodes.kubernetes import deploy, kubectl, ready, run, where_it_runs

service, template, cluster = booted.service, booted.template, booted.cluster  # fixtures
version, kubeconfig = kubernetes.version, kubernetes.kubeconfig
MASTERS, WORKERS = 1, 2
pytestmark = booted.marks(KUBERNETES / 'usr/bin/kubectl')


@pytest.fixture(scope='module')
def fields(version: str) -> dict[str, Any]:
    """Fields of the cluster template."""
    return kubernetes.fields_of(version)


def test_the_addresses_of_the_nodes_are_shown(cluster: dict[str, Any]) -> None:
    assert len(cluster['master_addresses']) == MASTERS
    assert len(cluster['node_addresses']) == WORKERS
    assert cluster['api_address'] == f'https://{cluster["master_addresses"][0]}:6443'


def test_all_nodes_are_ready(
    cluster: dict[str, Any], kubeconfig: pathlib.Path, version: str
) -> None:
    nodes = kubectl(kubeconfig, 'get', 'nodes')['items']

    seen = {
        node['metadata']['name']: (
            [c['status'] for c in node['status']['conditions'] if c['type'] == 'Ready'],
            node['status']['nodeInfo']['kubeletVersion'],
            node['metadata']['labels']['magnum.openstack.org/role'],
        )
        for node in nodes
    }
    assert sorted(seen.values()) == sorted(
        [(['True'], version, 'master')] * MASTERS + [(['True'], version, 'worker')] * WORKERS
    )
    assert cluster['coe_version'] == version


def test_what_is_known_of_the_nodes_is_what_they_are(
    service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path
) -> None:
    nodes = kubectl(kubeconfig, 'get', 'nodes')['items']
    rows = service.rows(
        'SELECT nodes.name, nodes.private_address FROM nodes JOIN nodegroups ON nodegroups.uuid = '
        'nodes.nodegroup_id WHERE nodegroups.cluster_id = :uuid',
        uuid=cluster['uuid'],
    )

    assert {row['name']: row['private_address'] for row in rows} == {
        node['metadata']['name']: next(
            a['address'] for a in node['status']['addresses'] if a['type'] == 'InternalIP'
        )
        for node in nodes
    }


def test_pods_of_the_system_run_everywhere(kubeconfig: pathlib.Path) -> None:
    def all_run() -> bool:
        pods = kubectl(kubeconfig, '-n', 'kube-system', 'get', 'pods')['items']
        return bool(pods) and all(
            any(
                c['type'] == 'Ready' and c['status'] == 'True'
                for c in pod['status'].get('conditions', ())
            )
            for pod in pods
        )

    poll(all_run, 180, 'all pods of kube-system are ready', every_s=2)
    placed = {
        pod['spec']['nodeName']
        for pod in kubectl(kubeconfig, '-n', 'kube-system', 'get', 'pods')['items']
    }
    assert len(placed) == MASTERS + WORKERS


def test_no_token_to_join_with_is_left(kubeconfig: pathlib.Path) -> None:
    found = kubectl(
        kubeconfig,
        '-n',
        'kube-system',
        'get',
        'secrets',
        '--field-selector',
        'type=bootstrap.kubernetes.io/token',
    )

    assert found['items'] == []


def test_a_member_may_do_all_and_a_reader_may_look(
    service: Service, cluster: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """With the kubeconfig that each has from the API, by a token with this role alone."""

    def enter(role: str) -> pathlib.Path:
        with contextlib.closing(connect(os.environ['OS_CLOUD'])) as cloud:
            made = cloud.identity.create_application_credential(
                user=cloud.current_user_id,
                name=f'{PREFIX}-{secrets.token_hex(3)}',
                roles=[{'name': role}],
            )
            auth = v3.ApplicationCredential(
                auth_url=cloud.config.get_auth_args()['auth_url'],
                application_credential_id=made.id,
                application_credential_secret=made.secret,
            )
            status, body = service.request(
                'POST',
                f'/v1/clusters/{cluster["uuid"]}/kubeconfig',
                headers={'X-Auth-Token': str(session.Session(auth=auth).get_token())},
            )
            cloud.identity.delete_application_credential(cloud.current_user_id, made)
        assert status == 201, body
        path = tmp_path / role
        path.write_text(body['kubeconfig'])
        return path

    member, reader = enter('member'), enter('reader')

    assert len(kubectl(member, 'get', 'nodes')['items']) == MASTERS + WORKERS
    pods = [
        pod['metadata']['name']
        for pod in kubectl(reader, '-n', 'kube-system', 'get', 'pods')['items']
    ]
    pod = next(pod for pod in pods if pod.startswith('kube-proxy'))
    delete = ('-n', 'kube-system', 'delete', 'pod', pod, '--wait=false')
    with pytest.raises(AssertionError, match='Forbidden'):
        run(reader, *delete)
    with pytest.raises(AssertionError, match='Forbidden'):
        kubectl(reader, '-n', 'kube-system', 'get', 'secrets')
    run(member, *delete)


def test_stock_client_gets_a_kubeconfig_that_works(
    service: Service, cluster: dict[str, Any], version: str, tmp_path: pathlib.Path
) -> None:
    if not has_client():
        pytest.skip('no stock client on the path')
    sandbox = Sandbox(os.environ['OS_CLOUD'], tmp_path)
    try:
        project = types.SimpleNamespace(name=sandbox.user.current_project.name)
        with sandbox.client_entry(cast(Project, project), f'{service.url}/v1') as entry:
            subprocess.run(
                ['openstack', 'coe', 'cluster', 'config', cluster['name'], '--dir', str(tmp_path)],
                env={
                    **os.environ,
                    'OS_CLOUD': entry,
                    'OS_CLIENT_CONFIG_FILE': str(sandbox.clouds_file),
                    'SHELL': '/bin/bash',
                },
                check=True,
            )
    finally:
        sandbox.close()

    nodes = kubectl(tmp_path / 'config', 'get', 'nodes')['items']
    assert [
        c['status'] for node in nodes for c in node['status']['conditions'] if c['type'] == 'Ready'
    ] == ['True'] * (MASTERS + WORKERS)


def test_deployment_runs_on_every_worker(
    service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path
) -> None:
    workers = sorted(names_of(service, cluster, 'worker'))
    deploy(kubeconfig, WORKERS)

    poll(
        lambda: where_it_runs(kubeconfig) == workers,
        120,
        lambda: f'it runs on {workers}: {where_it_runs(kubeconfig)}',
    )


def test_health_is_what_the_engine_says(service: Service, cluster: dict[str, Any]) -> None:
    is_healthy(service, cluster)


def test_nodes_come_and_go_and_a_dead_one_is_seen(
    service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path
) -> None:
    """One joins that was not there when the cluster was made, a named one goes, and what was
    crashed is unhealthy."""
    before = names_of(service, cluster)
    resize(service, cluster, WORKERS + 1)
    [new] = names_of(service, cluster) - before
    assert ready(kubeconfig)[new] == 'True'
    deploy(kubeconfig, WORKERS + 1)
    poll(
        lambda: new in where_it_runs(kubeconfig),
        120,
        lambda: f'the Deployment has come to the new one: {where_it_runs(kubeconfig)}',
    )

    resize(service, cluster, WORKERS, '0')
    assert names_of(service, cluster) == {
        name for name in before | {new} if not name.endswith('worker-0')
    }
    removed = next(name for name in before if name.endswith('worker-0'))
    poll(
        lambda: (
            removed
            not in {n['metadata']['name'] for n in kubectl(kubeconfig, 'get', 'nodes')['items']}
        ),
        120,
        'the engine forgets the node that was removed',
    )
    poll(
        lambda: (
            removed
            not in {
                pod['spec'].get('nodeName') for pod in kubectl(kubeconfig, 'get', 'pods')['items']
            }
        ),
        120,
        'and its pods, which are made anew for other nodes',
    )
    is_healthy(service, cluster)

    crashed = next(name for name in before if name.endswith('worker-1'))
    crash(crashed)
    poll(
        lambda: show(service, cluster)['health_status'] == 'UNHEALTHY',
        120,
        lambda: f'the crashed one is seen: {show(service, cluster)}',
    )
    assert [
        k
        for k, v in show(service, cluster)['health_status_reason'].items()
        if v != 'True' and v != 'ok'
    ] == [f'{crashed}.Ready']
