"""Stock clients, unmodified, on a real cloud: `openstack coe`, openstacksdk, Heat's resources, Horizon, Tempest.

What each sends and reads is in api.md 7. Clusters are of a driver whose members are only values; `test_main_job.py` and
`test_stock_controllers.py` make such with servers. OS_CLOUD names the cloud; `cloud.py` says what else is needed.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import openstack
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from functional import stock
from functional.cloud import MARKS, STACK_S, Cluster, Project, Sandbox, Say, ask
from functional.service import Service, poll, start_service
from openstack import exceptions as sdk_exc

pytest_plugins = ('functional.fixtures',)
pytestmark = MARKS

#: A word in what a command is expected to print stands for what an earlier one printed.
UUID = r'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'


@pytest.fixture(scope='module')
def service(sandbox: Sandbox, running: list[Service], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One API, one conductor, which looks at stacks every second."""
    made = start_service(sandbox.cloud_name, tmp_path_factory.mktemp('service'), extra={
        'conductor': {'tick': 2, 'watch_interval': 1}, 'drivers': {'path': stock.DRIVERS}})
    running.append(made)
    yield made
    running.remove(made)
    made.stop()


@pytest.fixture(scope='module')
def region(sandbox: Sandbox, service: Service) -> Iterator[str]:
    """A region whose container service is the one under test."""
    with stock.own_region(sandbox, f'{service.url}/v1') as made:
        yield made


@pytest.fixture(scope='module')
def shell(sandbox: Sandbox, say: Say) -> Iterator[stock.Shell]:
    """The stock client."""
    python = stock.interpreter()
    if python is None:
        pytest.skip('no openstack with python-magnumclient on the path')
    made = stock.Shell(python)
    say(' '.join(f'{name} {version}' for name, version in made.versions.items()))
    yield made
    made.close()


@pytest.fixture(scope='module')
def place(sandbox: Sandbox) -> Iterator[Project]:
    """A project for the tests that share clusters."""
    with sandbox.project() as made:
        yield made


@pytest.fixture(scope='module')
def entry(sandbox: Sandbox, place: Project, region: str) -> str:
    """The entry of clouds.yaml for that project, where the service under test is found."""
    return sandbox.in_region(place.name, region)


@pytest.fixture(scope='module')
def cluster(service: Service, place: Project) -> Iterator[Cluster]:
    """A cluster of one master and one worker that is complete."""
    made = ask(service, place, template=stock.PAPER | {'name': 'fn-stock', 'labels': {'colour': 'green'}},
               name='fn-stock', node_count=1)
    made.wait('CREATE_COMPLETE')
    yield made
    made.delete()
    made.wait('GONE')


class Coe:
    """`openstack coe` for one project."""

    def __init__(self, shell: stock.Shell, cloud_name: str) -> None:
        self.shell, self.cloud_name = shell, cloud_name

    def __call__(self, *words: str) -> str:
        """What a command prints that is expected to succeed."""
        status, out, err = self.shell.run(self.cloud_name, 'coe', *words)
        assert status == 0, f'{" ".join(words)}: {status} {out} {err}'
        return out

    def shown(self, *words: str) -> Any:
        """The same, as JSON."""
        return stock.shown(self(*words, '-f', 'json'))

    def refused(self, *words: str) -> str:
        """What a command complains of that is expected to fail."""
        status, out, err = self.shell.run(self.cloud_name, 'coe', *words)
        assert status != 0, f'{" ".join(words)}: {out}'
        return err


@pytest.fixture
def coe(shell: stock.Shell, entry: str) -> Coe:
    return Coe(shell, entry)


@pytest.fixture
def admin_coe(shell: stock.Shell, sandbox: Sandbox, region: str) -> Coe:
    return Coe(shell, sandbox.in_region(sandbox.service_cloud, region))


def holds(found: Any, expected: dict[str, Any]) -> None:
    assert {k: found[k] for k in expected} == expected


# -- openstack coe ---------------------------------------------------------------------------------------------------

TEMPLATE_WORDS = ('--coe', 'kubernetes', '--image', 'coreos', '--external-network', 'public', '--flavor', 'm1.tiny',
                  '--master-flavor', 'm1.tiny')


def test_coe_templates(coe: Coe) -> None:
    made = coe.shown('cluster', 'template', 'create', 'fn-coe', *TEMPLATE_WORDS, '--keypair', 'testkey',
                     '--labels', 'colour=green,size=2', '--tags', 'a')
    holds(made, {'name': 'fn-coe', 'coe': 'kubernetes', 'image_id': 'coreos', 'server_type': 'vm', 'tags': 'a',
                 'labels': {'colour': 'green', 'size': '2'}, 'dns_nameserver': '8.8.8.8', 'http_proxy': '-',
                 'docker_storage_driver': 'overlay2', 'cluster_distro': 'coreos', 'public': False})
    assert {'uuid': made['uuid'], 'name': 'fn-coe', 'tags': 'a'} in coe.shown('cluster', 'template', 'list')
    assert coe.shown('cluster', 'template', 'list', '--limit', '1', '--sort-key', 'uuid', '--fields', 'coe')[0]['coe']
    holds(coe.shown('cluster', 'template', 'show', 'fn-coe'), {'uuid': made['uuid'], 'labels': made['labels']})
    assert 'fn-none' in coe.refused('cluster', 'template', 'show', 'fn-none')
    refused = coe.refused('cluster', 'template', 'create', 'x', *TEMPLATE_WORDS[:4], '--external-network', 'fn-none')
    assert 'fn-none' in refused and '400' in refused
    assert coe('cluster', 'template', 'delete', 'fn-coe') == (
        'Request to delete cluster template fn-coe has been accepted.\n')
    assert 'could not be found' in coe('cluster', 'template', 'delete', 'fn-coe')


def test_coe_template_update(coe: Coe) -> None:
    coe('cluster', 'template', 'create', 'fn-coe-2', *TEMPLATE_WORDS, '--labels', 'colour=green,size=2')
    changed = coe.shown('cluster', 'template', 'update', 'fn-coe-2', '--name', 'fn-coe-3', '--label', 'colour=red',
                        '--no-label', 'size', '--docker-volume-size', '5', '--master-lb-enabled', '--tag', 'b')
    holds(changed, {'name': 'fn-coe-3', 'labels': {'colour': 'red'}, 'docker_volume_size': 5, 'tags': 'b',
                    'master_lb_enabled': True})
    assert '403' in coe.refused('cluster', 'template', 'update', 'fn-coe-3', '--public')
    assert 'fn-coe-3' in coe('cluster', 'template', 'delete', 'fn-coe-3')


def test_coe_clusters(coe: Coe, service: Service, place: Project) -> None:
    for name in ('fn-first', 'fn-second'):
        coe('cluster', 'template', 'create', name, *TEMPLATE_WORDS, '--labels', 'colour=green')
    out = coe('cluster', 'create', 'fn-coe', '--cluster-template', 'fn-first', '--node-count', '1', '--labels',
              'size=2', '--merge-labels', '--timeout', '30', '--keypair', 'testkey')
    uuid = out.split()[4]
    assert out == f'Request to create cluster {uuid} accepted\n'
    stock.wait_for(service, place, 'fn-coe', 'CREATE_COMPLETE')

    listed = coe.shown('cluster', 'list', '--sort-key', 'name', '--sort-dir', 'desc', '--limit', '50')
    assert {'uuid': uuid, 'name': 'fn-coe', 'keypair': 'testkey', 'node_count': 1, 'master_count': 1,
            'status': 'CREATE_COMPLETE', 'health_status': None} in listed
    one = coe.shown('cluster', 'show', 'fn-coe')
    holds(one, {'uuid': uuid, 'labels': {'colour': 'green', 'size': '2'}, 'labels_added': {'size': '2'},
                'labels_overridden': {}, 'labels_skipped': {}, 'create_timeout': 30, 'faults': '',
                'api_address': 'https://192.0.2.1:6443', 'project_id': place.id})
    assert one['cluster_id'] == service.rows('SELECT stack_id FROM clusters WHERE uuid = :uuid', uuid=uuid)[0]['stack_id']

    assert coe('cluster', 'update', 'fn-coe', '--node-count', '2', '--rollback') == (
        'Request to update cluster fn-coe has been accepted.\n')
    assert stock.wait_for(service, place, 'fn-coe', 'UPDATE_COMPLETE')['node_count'] == 2
    refused = coe.refused('cluster', 'update', 'fn-coe', '--name', 'other', '--label', 'colour=red')
    assert 'Cannot change labels, name of a cluster' in refused
    assert coe('cluster', 'resize', 'fn-coe', '1', '--nodes-to-remove', '0', '--nodegroup', 'default-worker') == (
        'Request to resize cluster fn-coe has been accepted.\n')
    stock.wait_for(service, place, 'fn-coe', 'UPDATE_COMPLETE')
    assert coe('cluster', 'upgrade', 'fn-coe', 'fn-second', '--max-batch-size', '2') == (
        'Request to upgrade cluster fn-coe has been accepted.\n')
    changed = stock.wait_for(service, place, 'fn-coe', 'UPDATE_COMPLETE')
    assert coe.shown('cluster', 'template', 'show', 'fn-second')['uuid'] == changed['cluster_template_id']

    assert coe('cluster', 'delete', 'fn-coe') == 'Request to delete cluster fn-coe has been accepted.\n'
    stock.wait_for(service, place, uuid, 'DELETED')
    assert 'fn-coe' in coe.refused('cluster', 'show', 'fn-coe')
    out = coe('cluster', 'template', 'delete', 'fn-first', 'fn-second')
    assert out.count('has been accepted') == 2, out


def test_coe_nodegroups(coe: Coe, cluster: Cluster, service: Service, place: Project) -> None:
    out = coe('nodegroup', 'create', 'fn-stock', 'extra', '--node-count', '1', '--min-nodes', '1', '--max-nodes', '3',
              '--role', 'gpu', '--labels', 'size=3', '--merge-labels', '--flavor', 'm1.small',
              '--node-labels', 'a.example/b=c', '--node-taints', 'k=v:NoSchedule')
    uuid = out.split()[4]
    assert out == f'Request to create nodegroup {uuid} accepted\n'
    stock.wait_for(service, place, 'fn-stock/nodegroups/extra', 'CREATE_COMPLETE')

    listed = coe.shown('nodegroup', 'list', 'fn-stock')
    assert [(g['name'], g['role'], g['node_count'], g['status']) for g in listed] == [
        ('default-master', 'master', 1, 'CREATE_COMPLETE'), ('default-worker', 'worker', 1, 'CREATE_COMPLETE'),
        ('extra', 'gpu', 1, 'CREATE_COMPLETE')]
    assert [g['uuid'] for g in coe.shown('nodegroup', 'list', 'fn-stock', '--role', 'gpu', '--limit', '5')] == [uuid]
    holds(coe.shown('nodegroup', 'show', 'fn-stock', 'extra'), {
        'uuid': uuid, 'cluster_id': cluster.uuid, 'labels': {'colour': 'green', 'size': '3'}, 'flavor_id': 'm1.small',
        'labels_added': {'size': '3'}, 'min_node_count': 1, 'max_node_count': 3, 'is_default': False,
        'node_labels': {'a.example/b': 'c'}, 'node_taints': [{'key': 'k', 'value': 'v', 'effect': 'NoSchedule'}]})
    coe('nodegroup', 'update', 'fn-stock', 'extra', '--min-nodes', '0', '--max-nodes', '5')
    coe('nodegroup', 'update', 'fn-stock', 'extra', '--node-labels', 'a=b', '--node-taints', 'k:NoExecute')
    holds(coe.shown('nodegroup', 'show', 'fn-stock', uuid), {
        'min_node_count': 0, 'max_node_count': 5, 'node_labels': {'a': 'b'},
        'node_taints': [{'key': 'k', 'value': '', 'effect': 'NoExecute'}]})
    assert '409' in coe.refused('nodegroup', 'create', 'fn-stock', 'extra')
    assert '400' in coe.refused('nodegroup', 'delete', 'fn-stock', 'default-worker')
    assert coe('nodegroup', 'delete', 'fn-stock', 'extra') == (
        'Request to delete nodegroup extra has been accepted.\n')
    stock.wait_for(service, place, f'fn-stock/nodegroups/{uuid}', 'DELETED')


# -- certificates ----------------------------------------------------------------------------------------------------

def a_csr(path: pathlib.Path) -> pathlib.Path:
    """A file with a request for a certificate, as `openssl req` writes one."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([
        x509.NameAttribute(NameOID.COMMON_NAME, 'admin'),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'system:masters')])).sign(key, hashes.SHA256())
    path.write_bytes(csr.public_bytes(serialization.Encoding.PEM))
    return path


def check_kubeconfig(path: pathlib.Path) -> dict[str, Any]:
    """What kubectl makes of a kubeconfig; nothing it needs not may be wrong with it either."""
    kubectl = shutil.which('kubectl')
    if kubectl is None:
        return dict(yaml.safe_load(path.read_text()))
    done = subprocess.run([kubectl, 'config', 'view', '--raw', '--kubeconfig', str(path), '-o', 'json'],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def signed_by(config: dict[str, Any]) -> x509.Certificate:
    """The client certificate of a kubeconfig, after it was checked against the authority that is in there, too."""
    authority = x509.load_pem_x509_certificate(
        base64.b64decode(config['clusters'][0]['cluster']['certificate-authority-data']))
    user = config['users'][0]['user']
    certificate = x509.load_pem_x509_certificate(base64.b64decode(user['client-certificate-data']))
    key = serialization.load_pem_private_key(base64.b64decode(user['client-key-data']), None)
    certificate.verify_directly_issued_by(authority)
    assert certificate.public_key() == key.public_key()
    return certificate


def test_coe_certificates(coe: Coe, cluster: Cluster, tmp_path: pathlib.Path, say: Say) -> None:
    authority = coe('ca', 'show', 'fn-stock')
    signed = coe('ca', 'sign', 'fn-stock', str(a_csr(tmp_path / 'a.csr')))

    x509.load_pem_x509_certificate(signed.encode()).verify_directly_issued_by(
        x509.load_pem_x509_certificate(authority.encode()))

    out = coe('cluster', 'config', 'fn-stock', '--dir', str(tmp_path), '--output-certs')
    config = check_kubeconfig(tmp_path / 'config')

    assert out == f'export KUBECONFIG={tmp_path}/config\n\n'
    assert config['clusters'][0]['cluster']['server'] == 'https://192.0.2.1:6443'
    assert config['current-context'] == 'default'
    assert [a.value for a in signed_by(config).subject] == ['admin', 'system:masters']
    assert {f.name for f in tmp_path.iterdir()} == {'a.csr', 'config', 'key.pem', 'cert.pem', 'ca.pem'}
    assert 'exists, aborting' in coe.refused('cluster', 'config', 'fn-stock', '--dir', str(tmp_path))
    coe('cluster', 'config', 'fn-stock', '--dir', str(tmp_path), '--force', '--use-keystone')
    assert check_kubeconfig(tmp_path / 'config')['users'][0]['user']['exec']['command'] == '/bin/bash'
    say(f'kubectl config view: {"accepted" if shutil.which("kubectl") else "no kubectl on the path, read as YAML"}')


def test_coe_rotation(coe: Coe, cluster: Cluster, service: Service, place: Project) -> None:
    before = coe('ca', 'show', 'fn-stock')

    out = coe('ca', 'rotate', 'fn-stock')

    assert out == f'Request to rotate the CA certificate for cluster {cluster.uuid} has been accepted.\n'
    stock.wait_for(service, place, 'fn-stock', 'UPDATE_COMPLETE')
    assert coe('ca', 'show', 'fn-stock') != before


def test_coe_credential_rotation_is_refused_where_there_is_no_credential(coe: Coe, cluster: Cluster) -> None:
    assert '(HTTP 4' in coe.refused('credential', 'rotate', 'fn-stock')


# -- quotas, stats, services -----------------------------------------------------------------------------------------

def row(out: str, key: str) -> str:
    """A value in the table of two columns that a command printed."""
    return next(cells[2].strip() for line in out.splitlines() if len(cells := line.split('|')) > 2
                and cells[1].strip() == key)


def test_coe_quotas(coe: Coe, admin_coe: Coe, place: Project) -> None:
    whose = ('--project-id', place.id, '--resource', 'Cluster')
    made = admin_coe('quotas', 'create', *whose, '--hard-limit', '7')
    assert (row(made, 'hard_limit'), row(made, 'project_id'), row(made, 'resource')) == ('7', place.id, 'Cluster')
    assert 'failed' in admin_coe('quotas', 'create', *whose)
    assert row(coe('quotas', 'show', *whose), 'hard_limit') == '7'
    assert row(admin_coe('quotas', 'update', *whose, '--hard-limit', '9'), 'hard_limit') == '9'
    assert place.id in admin_coe('quotas', 'list', '--all-tenants', '--limit', '10', '--sort-key', 'id')
    assert '403' in coe.refused('quotas', 'list')
    assert admin_coe('quotas', 'delete', *whose).startswith('Request to delete quota for project id')
    assert row(coe('quotas', 'show', *whose), 'hard_limit') == '20'


def test_coe_stats_and_services(coe: Coe, admin_coe: Coe, cluster: Cluster, place: Project) -> None:
    assert int(row(coe('stats', 'list', place.id), 'clusters')) >= 1
    assert int(row(coe('stats', 'list', place.id), 'nodes')) >= 2
    [conductor] = admin_coe.shown('service', 'list')
    holds(conductor, {'id': 1, 'host': 'functional', 'binary': 'magnum-conductor', 'state': 'up', 'disabled': False})
    assert conductor['created_at']
    assert '403' in coe.refused('service', 'list')
