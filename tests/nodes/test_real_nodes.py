"""A cluster on nodes that really boot: asked for over the API, finished by the nodes' own reports, used with kubectl.

Needs a cloud named by OS_CLOUD, nodes for its servers with the Kubernetes layer, and their watcher, started with a
--match that takes names beginning with `real-` (NODES_PREFIX: another beginning). NODES_HOME says where the nodes are.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import pathlib
import secrets
import subprocess
import types
from collections.abc import Iterator
from typing import Any, cast

import pytest
from functional.cloud import TOOLS, Project, Sandbox
from functional.service import Service, connect, poll, start_service
from functional.test_main_job import has_client
from keystoneauth1 import session
from keystoneauth1.identity import v3
from oslo_config import cfg

from magnum_lite import certs, config, db, keystore, models

NODES_HOME = pathlib.Path(os.environ.get('NODES_HOME', ''))
#: The tools of the nodes stand beside those of the cloud.
NODE_TOOLS = TOOLS.parent / 'nodes'
LAYER = NODES_HOME / 'overlay' / 'kubernetes'
PREFIX = os.environ.get('NODES_PREFIX', 'real')
MASTERS, WORKERS = 1, 2
#: A node with all of its images takes a minute on an idle machine; a busy one is given more.
TIMEOUT_MIN = 15


def _lack() -> str | None:
    """What is missing for this test, in words; None if nothing is."""
    if not os.environ.get('OS_CLOUD'):
        return 'no cloud is named by OS_CLOUD'
    if not os.environ.get('NODES_HOME'):
        return 'NODES_HOME does not say where the nodes are'
    if not (LAYER / 'usr/bin/kubectl').exists():
        return f'the Kubernetes layer of the nodes is not built ({LAYER})'
    try:
        pid = int((NODES_HOME / 'run' / 'noded.pid').read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return f'the watcher that makes nodes does not run ({NODES_HOME}/run/noded.pid)'
    return None


LACK = _lack()
pytestmark = [pytest.mark.nodes, pytest.mark.timeout(TIMEOUT_MIN * 60 + 300),
              pytest.mark.skipif(LACK is not None, reason=f'real nodes: {LACK}'),
              # openstacksdk says it to everybody who connects, and of its own code
              pytest.mark.filterwarnings('ignore:Support for InfluxDB', 'ignore::PendingDeprecationWarning')]


@pytest.fixture(scope='module')
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = start_service(os.environ['OS_CLOUD'], tmp_path_factory.mktemp('real'), extra={'health': {'interval': 3}})
    yield started
    started.print_logs()
    started.stop()


@pytest.fixture(scope='module')
def version() -> str:
    """The version of Kubernetes that the layer holds."""
    return (LAYER / 'opt/k8s/VERSION').read_text().strip()


@pytest.fixture(scope='module')
def template(service: Service, version: str) -> Iterator[dict[str, Any]]:
    status, body = service.request('POST', '/v1/clustertemplates', {
        'name': f'{PREFIX}-{secrets.token_hex(3)}', 'coe': 'kubernetes',
        'image_id': os.environ.get('NODES_IMAGE', 'debian'),
        'flavor_id': os.environ.get('NODES_FLAVOR', 'm1.small'),
        'master_flavor_id': os.environ.get('NODES_FLAVOR', 'm1.small'),
        'external_network_id': os.environ.get('NODES_EXTERNAL_NETWORK', 'public'),
        # There is no registry: images, Kubernetes and the pod network lie in the nodes.
        'labels': {'kube_tag': version, 'network_manifest_url': 'file:///opt/k8s/podnet.yaml',
                   'flannel_network_cidr': '10.244.0.0/16'}})
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


@pytest.fixture(scope='module')
def kubeconfig(service: Service, cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An administrator's kubeconfig, signed by the cluster's authority as its key store holds it."""
    conf = cfg.ConfigOpts()
    config.register(conf)
    conf(['--config-file', str(service.conf_file)], project='magnum-lite')
    database = db.Database(conf)
    ca = keystore.KeyStore(conf).load(
        database, models.Cluster(uuid=cluster['uuid'], rotation=0))['ca']
    database.engine.dispose()
    admin = certs.issue_client(
        ca, common_name='admin', organization='system:masters', life=datetime.timedelta(hours=1))
    path = tmp_path_factory.mktemp('admin') / 'kubeconfig'
    path.touch(0o600)
    path.write_text(json.dumps({
        'apiVersion': 'v1', 'kind': 'Config', 'current-context': 'c',
        'clusters': [{'name': 'c', 'cluster': {
            'server': cluster['api_address'], 'certificate-authority-data': _b64(ca.certificate)}}],
        'users': [{'name': 'u', 'user': {'client-certificate-data': _b64(admin.certificate),
                                         'client-key-data': _b64(admin.private_key)}}],
        'contexts': [{'name': 'c', 'context': {'cluster': 'c', 'user': 'u'}}]}))
    return path


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def kubectl(kubeconfig: pathlib.Path, *words: str) -> Any:
    """What kubectl answers, as JSON. Raises AssertionError with its words if it fails."""
    done = subprocess.run([str(LAYER / 'usr/bin/kubectl'), '--kubeconfig', str(kubeconfig), '--request-timeout=20s',
                           *words, '-o', 'json'], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_addresses_of_the_nodes_are_shown(cluster: dict[str, Any]) -> None:
    assert len(cluster['master_addresses']) == MASTERS
    assert len(cluster['node_addresses']) == WORKERS
    assert cluster['api_address'] == f'https://{cluster["master_addresses"][0]}:6443'


def test_all_nodes_are_ready(cluster: dict[str, Any], kubeconfig: pathlib.Path, version: str) -> None:
    nodes = kubectl(kubeconfig, 'get', 'nodes')['items']

    seen = {node['metadata']['name']: (
        [c['status'] for c in node['status']['conditions'] if c['type'] == 'Ready'],
        node['status']['nodeInfo']['kubeletVersion'],
        node['metadata']['labels']['magnum.openstack.org/role']) for node in nodes}
    assert sorted(seen.values()) == sorted(
        [(['True'], version, 'master')] * MASTERS + [(['True'], version, 'worker')] * WORKERS)
    assert cluster['coe_version'] == version


def test_what_is_known_of_the_nodes_is_what_they_are(
        service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path) -> None:
    nodes = kubectl(kubeconfig, 'get', 'nodes')['items']
    rows = service.rows(
        'SELECT nodes.name, nodes.private_address FROM nodes JOIN nodegroups ON nodegroups.uuid = nodes.nodegroup_id '
        'WHERE nodegroups.cluster_id = :uuid', uuid=cluster['uuid'])

    assert {row['name']: row['private_address'] for row in rows} == {
        node['metadata']['name']: next(a['address'] for a in node['status']['addresses'] if a['type'] == 'InternalIP')
        for node in nodes}


def test_pods_of_the_system_run_everywhere(kubeconfig: pathlib.Path) -> None:
    def all_run() -> bool:
        pods = kubectl(kubeconfig, '-n', 'kube-system', 'get', 'pods')['items']
        return bool(pods) and all(
            any(c['type'] == 'Ready' and c['status'] == 'True' for c in pod['status'].get('conditions', ()))
            for pod in pods)

    poll(all_run, 180, 'all pods of kube-system are ready', every_s=2)
    placed = {pod['spec']['nodeName'] for pod in kubectl(kubeconfig, '-n', 'kube-system', 'get', 'pods')['items']}
    assert len(placed) == MASTERS + WORKERS


def test_no_token_to_join_with_is_left(kubeconfig: pathlib.Path) -> None:
    found = kubectl(kubeconfig, '-n', 'kube-system', 'get', 'secrets', '--field-selector',
                    'type=bootstrap.kubernetes.io/token')

    assert found['items'] == []


def test_a_member_may_do_all_and_a_reader_may_look(
        service: Service, cluster: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """With the kubeconfig that each has from the API, by a token with this role alone."""
    def enter(role: str) -> pathlib.Path:
        with contextlib.closing(connect(os.environ['OS_CLOUD'])) as cloud:
            made = cloud.identity.create_application_credential(
                user=cloud.current_user_id, name=f'{PREFIX}-{secrets.token_hex(3)}', roles=[{'name': role}])
            auth = v3.ApplicationCredential(
                auth_url=cloud.config.get_auth_args()['auth_url'], application_credential_id=made.id,
                application_credential_secret=made.secret)
            status, body = service.request('POST', f'/v1/clusters/{cluster["uuid"]}/kubeconfig', headers={
                'X-Auth-Token': str(session.Session(auth=auth).get_token())})
            cloud.identity.delete_application_credential(cloud.current_user_id, made)
        assert status == 201, body
        path = tmp_path / role
        path.write_text(body['kubeconfig'])
        return path

    member, reader = enter('member'), enter('reader')

    assert len(kubectl(member, 'get', 'nodes')['items']) == MASTERS + WORKERS
    pods = [pod['metadata']['name'] for pod in kubectl(reader, '-n', 'kube-system', 'get', 'pods')['items']]
    pod = next(pod for pod in pods if pod.startswith('kube-proxy'))
    delete = [str(LAYER / 'usr/bin/kubectl'), '-n', 'kube-system', 'delete', 'pod', pod, '--wait=false', '--kubeconfig']
    refused = subprocess.run([*delete, str(reader)], capture_output=True, text=True, check=False)
    assert refused.returncode and 'Forbidden' in refused.stderr
    with pytest.raises(AssertionError, match='Forbidden'):
        kubectl(reader, '-n', 'kube-system', 'get', 'secrets')
    assert subprocess.run([*delete, str(member)], check=False).returncode == 0


def test_stock_client_gets_a_kubeconfig_that_works(
        service: Service, cluster: dict[str, Any], version: str, tmp_path: pathlib.Path) -> None:
    if not has_client():
        pytest.skip('no stock client on the path')
    sandbox = Sandbox(os.environ['OS_CLOUD'], tmp_path)
    try:
        project = types.SimpleNamespace(name=sandbox.user.current_project.name)
        with sandbox.client_entry(cast(Project, project), f'{service.url}/v1') as entry:
            subprocess.run(['openstack', 'coe', 'cluster', 'config', cluster['name'], '--dir', str(tmp_path)], env={
                **os.environ, 'OS_CLOUD': entry, 'OS_CLIENT_CONFIG_FILE': str(sandbox.clouds_file),
                'SHELL': '/bin/bash'}, check=True)
    finally:
        sandbox.close()

    nodes = kubectl(tmp_path / 'config', 'get', 'nodes')['items']
    assert [c['status'] for node in nodes for c in node['status']['conditions'] if c['type'] == 'Ready'] == [
        'True'] * (MASTERS + WORKERS)


def deploy(kubeconfig: pathlib.Path, replicas: int) -> None:
    """Ask for a Deployment `web` of which a node has one pod at most."""
    labels = {'app': 'web'}
    apart = {'requiredDuringSchedulingIgnoredDuringExecution': [
        {'labelSelector': {'matchLabels': labels}, 'topologyKey': 'kubernetes.io/hostname'}]}
    container = {'name': 'web', 'image': 'docker.io/library/busybox:local', 'command': ['sleep', '9999']}
    subprocess.run([str(LAYER / 'usr/bin/kubectl'), '--kubeconfig', str(kubeconfig), 'apply', '-f', '-'], check=True,
                   text=True, input=json.dumps({
                       'apiVersion': 'apps/v1', 'kind': 'Deployment', 'metadata': {'name': 'web'}, 'spec': {
                           'replicas': replicas, 'selector': {'matchLabels': labels}, 'template': {
                               'metadata': {'labels': labels}, 'spec': {
                                   'containers': [container], 'affinity': {'podAntiAffinity': apart},
                                   'terminationGracePeriodSeconds': 0}}}}))


def where_it_runs(kubeconfig: pathlib.Path) -> list[str]:
    """The nodes on which a pod of the Deployment is ready."""
    return sorted(pod['spec']['nodeName'] for pod in kubectl(kubeconfig, 'get', 'pods', '-l', 'app=web')['items']
                  if any(c['type'] == 'Ready' and c['status'] == 'True' for c in pod['status'].get('conditions', ())))


def test_deployment_runs_on_every_worker(
        service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path) -> None:
    workers = sorted(name for name in node_names(service, cluster) if '-worker-' in name)
    deploy(kubeconfig, WORKERS)

    poll(lambda: where_it_runs(kubeconfig) == workers, 120,
         lambda: f'it runs on {workers}: {where_it_runs(kubeconfig)}')


def show(service: Service, cluster: dict[str, Any]) -> dict[str, Any]:
    """What the API says of the cluster now."""
    status, body = service.request('GET', f'/v1/clusters/{cluster["uuid"]}')
    assert status == 200, body
    return dict(body)


def node_names(service: Service, cluster: dict[str, Any]) -> set[str]:
    """The names of its nodes, by the API."""
    status, body = service.request('GET', f'/v1/clusters/{cluster["uuid"]}/nodes')
    assert status == 200, body
    return {node['name'] for node in body['nodes']}


def is_healthy(service: Service, cluster: dict[str, Any]) -> None:
    """Wait until the engine and just the nodes that there are are well."""
    wanted = {'api': 'ok'} | {f'{name}.Ready': 'True' for name in node_names(service, cluster)}
    poll(lambda: show(service, cluster)['health_status_reason'] == wanted, 120,
         lambda: f'all is well: {show(service, cluster)}')
    assert show(service, cluster)['health_status'] == 'HEALTHY'


def test_health_is_what_the_engine_says(service: Service, cluster: dict[str, Any]) -> None:
    is_healthy(service, cluster)


def test_nodes_come_and_go_and_a_dead_one_is_seen(
        service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path) -> None:
    """One joins that was not there when the cluster was made, a named one goes, and what was crashed is unhealthy."""
    def resize(count: int, *remove: str) -> None:
        status, body = service.request('POST', f'/v1/clusters/{cluster["uuid"]}/actions/resize', {
            'node_count': count, 'nodes_to_remove': list(remove)})
        assert status == 202, body
        service.wait(cluster['uuid'], 'UPDATE_COMPLETE', timeout_s=TIMEOUT_MIN * 60)

    def ready() -> set[str]:
        return {n['metadata']['name'] for n in kubectl(kubeconfig, 'get', 'nodes')['items']
                if any(c['type'] == 'Ready' and c['status'] == 'True' for c in n['status']['conditions'])}

    before = node_names(service, cluster)
    resize(WORKERS + 1)
    [new] = node_names(service, cluster) - before
    assert new in ready()
    deploy(kubeconfig, WORKERS + 1)
    poll(lambda: new in where_it_runs(kubeconfig), 120,
         lambda: f'the Deployment has come to the new one: {where_it_runs(kubeconfig)}')

    resize(WORKERS, '0')
    assert node_names(service, cluster) == {name for name in before | {new} if not name.endswith('worker-0')}
    removed = next(name for name in before if name.endswith('worker-0'))
    poll(lambda: removed not in {n['metadata']['name'] for n in kubectl(kubeconfig, 'get', 'nodes')['items']}, 120,
         'the engine forgets the node that was removed')
    poll(lambda: removed not in {pod['spec'].get('nodeName') for pod in kubectl(kubeconfig, 'get', 'pods')['items']},
         120, 'and its pods, which are made anew for other nodes')
    is_healthy(service, cluster)

    crashed = next(name for name in before if name.endswith('worker-1'))
    subprocess.run([str(NODE_TOOLS / 'kill'), crashed], check=True, stdout=subprocess.DEVNULL)
    poll(lambda: show(service, cluster)['health_status'] == 'UNHEALTHY', 120,
         lambda: f'the crashed one is seen: {show(service, cluster)}')
    assert [k for k, v in show(service, cluster)['health_status_reason'].items() if v != 'True' and v != 'ok'] == [
        f'{crashed}.Ready']
