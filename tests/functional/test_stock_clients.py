"""Stock clients, unmodified, on a real cloud: `openstack coe`, openstacksdk, Heat's resources,
Horizon, Tempest.

What each sends and reads is in doc/contributor/wire-contract.md, "What clients need".
Clusters are of a driver whose members are only values;
`test_main_job.py` and `test_stock_controllers.py` make such with servers. OS_CLOUD names the cloud;
`cloud.py` says what else is needed."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from functional import stock
from functional.cloud import ON_A_CLOUD, STACK_S, Cluster, Project, Sandbox, Say, Start, ask
from functional.service import Service, connect, poll
from openstack import exceptions as sdk_exc

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD


@pytest.fixture(scope='module')
def service(start: Start) -> Service:
    """One API, one conductor, which looks at stacks every second."""
    return start(extra={'conductor': {'tick': 2, 'watch_interval': 1}, 'drivers': stock.PAPER_ONLY})


@pytest.fixture(scope='module')
def region(sandbox: Sandbox, service: Service) -> Iterator[str]:
    """A region whose container service is the one under test."""
    with stock.own_region(sandbox, f'{service.url}/v1') as made:
        yield made


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
    made = ask(
        service,
        place,
        template=stock.PAPER | {'name': 'fn-stock', 'labels': {'colour': 'green'}},
        name='fn-stock',
        node_count=1,
    )
    made.wait('CREATE_COMPLETE')
    yield made
    made.delete()
    made.wait('GONE')


class Coe:
    """`openstack coe` for one project."""

    def __init__(self, shell: stock.Shell) -> None:
        self._shell = shell

    def __call__(self, *words: str) -> str:
        """What a command prints that is expected to succeed."""
        status, out, err = self._shell.run('coe', *words)
        assert status == 0, f'{" ".join(words)}: {status} {out} {err}'
        return out

    def shown(self, *words: str) -> Any:
        """The same, as JSON."""
        return stock.shown(self(*words, '-f', 'json'))

    def refused(self, *words: str) -> str:
        """What a command complains of that is expected to fail."""
        status, out, err = self._shell.run('coe', *words)
        assert status != 0, f'{" ".join(words)}: {out}'
        return err


@pytest.fixture(scope='module')
def shells(sandbox: Sandbox, entry: str, region: str, say: Say) -> Iterator[list[stock.Shell]]:
    """The stock client: a user's and an admin's."""
    python = stock.interpreter()
    if python is None:
        pytest.skip('no openstack with python-magnumclient on the path')
    made = [
        stock.Shell(python, name)
        for name in (entry, sandbox.in_region(sandbox.service_cloud, region))
    ]
    say(stock.versions(python, 'python-openstackclient', 'python-magnumclient'))
    yield made
    for one in made:
        one.close()


@pytest.fixture
def coe(shells: list[stock.Shell]) -> Coe:
    return Coe(shells[0])


@pytest.fixture
def admin_coe(shells: list[stock.Shell]) -> Coe:
    return Coe(shells[1])


def holds(found: Any, expected: dict[str, Any]) -> None:
    assert {k: found[k] for k in expected} == expected


# -- openstack coe ---------------------------------------------------------------------------------

TEMPLATE_WORDS = (
    '--coe',
    'kubernetes',
    '--image',
    'coreos',
    '--external-network',
    'public',
    '--flavor',
    'm1.tiny',
    '--master-flavor',
    'm1.tiny',
)


def test_coe_templates(coe: Coe) -> None:
    made = coe.shown(
        'cluster',
        'template',
        'create',
        'fn-coe',
        *TEMPLATE_WORDS,
        '--keypair',
        'testkey',
        '--labels',
        'colour=green,size=2',
        '--tags',
        'a',
    )
    holds(
        made,
        {
            'name': 'fn-coe',
            'coe': 'kubernetes',
            'image_id': 'coreos',
            'server_type': 'vm',
            'tags': 'a',
            'labels': {'colour': 'green', 'size': '2'},
            'dns_nameserver': '8.8.8.8',
            'http_proxy': '-',
            'docker_storage_driver': 'overlay2',
            'cluster_distro': 'coreos',
            'public': False,
        },
    )
    assert {'uuid': made['uuid'], 'name': 'fn-coe', 'tags': 'a'} in coe.shown(
        'cluster', 'template', 'list'
    )
    assert coe.shown(
        'cluster', 'template', 'list', '--limit', '1', '--sort-key', 'uuid', '--fields', 'coe'
    )[0]['coe']
    holds(
        coe.shown('cluster', 'template', 'show', 'fn-coe'),
        {'uuid': made['uuid'], 'labels': made['labels']},
    )
    assert 'fn-none' in coe.refused('cluster', 'template', 'show', 'fn-none')
    refused = coe.refused(
        'cluster', 'template', 'create', 'x', *TEMPLATE_WORDS[:4], '--external-network', 'fn-none'
    )
    assert 'fn-none' in refused and '400' in refused
    assert coe('cluster', 'template', 'delete', 'fn-coe') == (
        'Request to delete cluster template fn-coe has been accepted.\n'
    )
    assert 'could not be found' in coe('cluster', 'template', 'delete', 'fn-coe')


def test_coe_template_update(coe: Coe) -> None:
    coe(
        'cluster',
        'template',
        'create',
        'fn-coe-2',
        *TEMPLATE_WORDS,
        '--labels',
        'colour=green,size=2',
    )
    changed = coe.shown(
        'cluster',
        'template',
        'update',
        'fn-coe-2',
        '--name',
        'fn-coe-3',
        '--label',
        'colour=red',
        '--no-label',
        'size',
        '--docker-volume-size',
        '5',
        '--master-lb-enabled',
        '--tag',
        'b',
    )
    holds(
        changed,
        {
            'name': 'fn-coe-3',
            'labels': {'colour': 'red'},
            'docker_volume_size': 5,
            'tags': 'b',
            'master_lb_enabled': True,
        },
    )
    assert '403' in coe.refused('cluster', 'template', 'update', 'fn-coe-3', '--public')
    assert 'fn-coe-3' in coe('cluster', 'template', 'delete', 'fn-coe-3')


def test_coe_clusters(coe: Coe, service: Service, place: Project) -> None:
    for name in ('fn-first', 'fn-second'):
        coe('cluster', 'template', 'create', name, *TEMPLATE_WORDS, '--labels', 'colour=green')
    out = coe(
        'cluster',
        'create',
        'fn-coe',
        '--cluster-template',
        'fn-first',
        '--node-count',
        '1',
        '--labels',
        'size=2',
        '--merge-labels',
        '--timeout',
        '30',
        '--keypair',
        'testkey',
    )
    uuid = out.split()[4]
    assert out == f'Request to create cluster {uuid} accepted\n'
    stock.wait_for(service, place, 'fn-coe', 'CREATE_COMPLETE')

    listed = coe.shown(
        'cluster', 'list', '--sort-key', 'name', '--sort-dir', 'desc', '--limit', '50'
    )
    assert {
        'uuid': uuid,
        'name': 'fn-coe',
        'keypair': 'testkey',
        'node_count': 1,
        'master_count': 1,
        'status': 'CREATE_COMPLETE',
        'health_status': None,
    } in listed
    one = coe.shown('cluster', 'show', 'fn-coe')
    holds(
        one,
        {
            'uuid': uuid,
            'labels': {'colour': 'green', 'size': '2'},
            'labels_added': {'size': '2'},
            'labels_overridden': {},
            'labels_skipped': {},
            'create_timeout': 30,
            'faults': '',
            'api_address': 'https://192.0.2.1:6443',
            'project_id': place.id,
        },
    )
    [stored] = service.rows('SELECT stack_id FROM clusters WHERE uuid = :uuid', uuid=uuid)
    assert one['cluster_id'] == stored['stack_id']

    assert coe('cluster', 'update', 'fn-coe', '--node-count', '2', '--rollback') == (
        'Request to update cluster fn-coe has been accepted.\n'
    )
    assert stock.wait_for(service, place, 'fn-coe', 'UPDATE_COMPLETE')['node_count'] == 2
    refused = coe.refused('cluster', 'update', 'fn-coe', '--name', 'other', '--label', 'colour=red')
    assert 'Cannot change labels, name of a cluster' in refused
    assert coe(
        'cluster',
        'resize',
        'fn-coe',
        '1',
        '--nodes-to-remove',
        '0',
        '--nodegroup',
        'default-worker',
    ) == ('Request to resize cluster fn-coe has been accepted.\n')
    stock.wait_for(service, place, 'fn-coe', 'UPDATE_COMPLETE')
    assert coe('cluster', 'upgrade', 'fn-coe', 'fn-second', '--max-batch-size', '2') == (
        'Request to upgrade cluster fn-coe has been accepted.\n'
    )
    changed = stock.wait_for(service, place, 'fn-coe', 'UPDATE_COMPLETE')
    assert (
        coe.shown('cluster', 'template', 'show', 'fn-second')['uuid']
        == changed['cluster_template_id']
    )

    assert (
        coe('cluster', 'delete', 'fn-coe')
        == 'Request to delete cluster fn-coe has been accepted.\n'
    )
    stock.wait_for(service, place, uuid, 'DELETED')
    assert 'fn-coe' in coe.refused('cluster', 'show', 'fn-coe')
    out = coe('cluster', 'template', 'delete', 'fn-first', 'fn-second')
    assert out.count('has been accepted') == 2, out


def test_coe_nodegroups(coe: Coe, cluster: Cluster, service: Service, place: Project) -> None:
    out = coe(
        'nodegroup',
        'create',
        'fn-stock',
        'extra',
        '--node-count',
        '1',
        '--min-nodes',
        '1',
        '--max-nodes',
        '3',
        '--role',
        'gpu',
        '--labels',
        'size=3',
        '--merge-labels',
        '--flavor',
        'm1.small',
        '--node-labels',
        'a.example/b=c',
        '--node-taints',
        'k=v:NoSchedule',
    )
    uuid = out.split()[4]
    assert out == f'Request to create nodegroup {uuid} accepted\n'
    stock.wait_for(service, place, 'fn-stock/nodegroups/extra', 'CREATE_COMPLETE')

    listed = coe.shown('nodegroup', 'list', 'fn-stock')
    assert [(g['name'], g['role'], g['node_count'], g['status']) for g in listed] == [
        ('default-master', 'master', 1, 'CREATE_COMPLETE'),
        ('default-worker', 'worker', 1, 'CREATE_COMPLETE'),
        ('extra', 'gpu', 1, 'CREATE_COMPLETE'),
    ]
    assert [
        g['uuid']
        for g in coe.shown('nodegroup', 'list', 'fn-stock', '--role', 'gpu', '--limit', '5')
    ] == [uuid]
    holds(
        coe.shown('nodegroup', 'show', 'fn-stock', 'extra'),
        {
            'uuid': uuid,
            'cluster_id': cluster.uuid,
            'labels': {'colour': 'green', 'size': '3'},
            'flavor_id': 'm1.small',
            'labels_added': {'size': '3'},
            'min_node_count': 1,
            'max_node_count': 3,
            'is_default': False,
            'node_labels': {'a.example/b': 'c'},
            'node_taints': [{'key': 'k', 'value': 'v', 'effect': 'NoSchedule'}],
        },
    )
    coe('nodegroup', 'update', 'fn-stock', 'extra', '--min-nodes', '0', '--max-nodes', '5')
    coe(
        'nodegroup',
        'update',
        'fn-stock',
        'extra',
        '--node-labels',
        'a=b',
        '--node-taints',
        'k:NoExecute',
    )
    holds(
        coe.shown('nodegroup', 'show', 'fn-stock', uuid),
        {
            'min_node_count': 0,
            'max_node_count': 5,
            'node_labels': {'a': 'b'},
            'node_taints': [{'key': 'k', 'value': '', 'effect': 'NoExecute'}],
        },
    )
    assert '409' in coe.refused('nodegroup', 'create', 'fn-stock', 'extra')
    assert '400' in coe.refused('nodegroup', 'delete', 'fn-stock', 'default-worker')
    assert coe('nodegroup', 'delete', 'fn-stock', 'extra') == (
        'Request to delete nodegroup extra has been accepted.\n'
    )
    stock.wait_for(service, place, f'fn-stock/nodegroups/{uuid}', 'DELETED')


# -- certificates ----------------------------------------------------------------------------------


def a_csr(path: pathlib.Path) -> pathlib.Path:
    """A file with a request for a certificate, as `openssl req` writes one."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, 'admin'),
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'system:masters'),
                ]
            )
        )
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(csr.public_bytes(serialization.Encoding.PEM))
    return path


def check_kubeconfig(path: pathlib.Path) -> dict[str, Any]:
    """What kubectl makes of a kubeconfig; nothing it needs not may be wrong with it either."""
    kubectl = shutil.which('kubectl')
    if kubectl is None:
        return dict(yaml.safe_load(path.read_text()))
    done = subprocess.run(
        [kubectl, 'config', 'view', '--raw', '--kubeconfig', str(path), '-o', 'json'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def signed_by(config: dict[str, Any]) -> x509.Certificate:
    """The client certificate of a kubeconfig, after it was checked against the authority that is in
    there, too."""
    authority = x509.load_pem_x509_certificate(
        base64.b64decode(config['clusters'][0]['cluster']['certificate-authority-data'])
    )
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
        x509.load_pem_x509_certificate(authority.encode())
    )

    out = coe('cluster', 'config', 'fn-stock', '--dir', str(tmp_path), '--output-certs')
    config = check_kubeconfig(tmp_path / 'config')

    assert out == f'export KUBECONFIG={tmp_path}/config\n\n'
    assert config['clusters'][0]['cluster']['server'] == 'https://192.0.2.1:6443'
    assert config['current-context'] == 'default'
    assert [a.value for a in signed_by(config).subject] == ['admin', 'system:masters']
    assert {f.name for f in tmp_path.iterdir()} == {
        'a.csr',
        'config',
        'key.pem',
        'cert.pem',
        'ca.pem',
    }
    assert 'exists, aborting' in coe.refused(
        'cluster', 'config', 'fn-stock', '--dir', str(tmp_path)
    )
    coe('cluster', 'config', 'fn-stock', '--dir', str(tmp_path), '--force', '--use-keystone')
    assert (
        check_kubeconfig(tmp_path / 'config')['users'][0]['user']['exec']['command'] == '/bin/bash'
    )
    say(
        'kubectl config view: '
        f'{"accepted" if shutil.which("kubectl") else "no kubectl on the path, read as YAML"}'
    )


def test_coe_rotation_is_refused_by_a_driver_that_cannot(coe: Coe, cluster: Cluster) -> None:
    """`test_stock_controllers.py` has one that can."""
    assert 'cannot exchange authorities' in coe.refused('ca', 'rotate', 'fn-stock')


def test_coe_credential_rotation_is_refused_where_there_is_no_credential(
    coe: Coe, cluster: Cluster
) -> None:
    out = coe('credential', 'rotate', 'fn-stock')  # it says what went wrong and ends well

    assert out.startswith(
        'Credential rotation failed: Driver paper gives its clusters no credentials'
    ), out
    assert '(HTTP 400)' in out


# -- quotas, stats, services -----------------------------------------------------------------------


def row(out: str, key: str) -> str:
    """A value in the table of two columns that a command printed."""
    return next(
        cells[2].strip()
        for line in out.splitlines()
        if len(cells := line.split('|')) > 2 and cells[1].strip() == key
    )


def test_coe_quotas(coe: Coe, admin_coe: Coe, place: Project) -> None:
    whose = ('--project-id', place.id, '--resource', 'Cluster')
    made = admin_coe('quotas', 'create', *whose, '--hard-limit', '7')
    assert (row(made, 'hard_limit'), row(made, 'project_id'), row(made, 'resource')) == (
        '7',
        place.id,
        'Cluster',
    )
    assert 'failed' in admin_coe('quotas', 'create', *whose)
    assert row(coe('quotas', 'show', *whose), 'hard_limit') == '7'
    assert row(admin_coe('quotas', 'update', *whose, '--hard-limit', '9'), 'hard_limit') == '9'
    assert place.id in admin_coe(
        'quotas', 'list', '--all-tenants', '--limit', '10', '--sort-key', 'id'
    )
    assert '403' in coe.refused('quotas', 'list')
    assert admin_coe('quotas', 'delete', *whose).startswith(
        'Request to delete quota for project id'
    )
    assert row(coe('quotas', 'show', *whose), 'hard_limit') == '20'


def test_coe_stats_and_services(coe: Coe, admin_coe: Coe, cluster: Cluster, place: Project) -> None:
    assert int(row(coe('stats', 'list', place.id), 'clusters')) >= 1
    assert int(row(coe('stats', 'list', place.id), 'nodes')) >= 2
    [conductor] = admin_coe.shown('service', 'list')
    holds(
        conductor,
        {
            'id': 1,
            'host': 'functional',
            'binary': 'magnum-conductor',
            'state': 'up',
            'disabled': False,
        },
    )
    assert conductor['created_at']
    assert '403' in coe.refused('service', 'list')


# -- openstacksdk ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def infra(sandbox: Sandbox, entry: str, say: Say) -> Iterator[Any]:
    """`container_infrastructure_management` of a connection, without a version: 1.1."""
    cloud = connect(entry, sandbox.clouds_file)
    say(f'openstacksdk {importlib.metadata.version("openstacksdk")}')
    yield cloud.container_infrastructure_management
    cloud.close()


SDK_TEMPLATE = {
    **stock.PAPER,
    'labels': {'colour': 'green', 'size': '2'},
    'is_tls_disabled': False,
    'is_master_lb_enabled': False,
}


def test_sdk_templates(infra: Any) -> None:
    made = infra.create_cluster_template(name='fn-sdk', **SDK_TEMPLATE)

    assert (made.uuid, made.labels) == (made.id, SDK_TEMPLATE['labels'])
    assert infra.get_cluster_template(made.id).name == 'fn-sdk'
    assert infra.find_cluster_template('fn-sdk').uuid == made.id
    assert infra.find_cluster_template('fn-none') is None
    assert made.id in [t.id for t in infra.cluster_templates()]
    with pytest.raises(sdk_exc.BadRequestException, match='Unable to find image fn-none'):
        infra.create_cluster_template(name='x', **SDK_TEMPLATE | {'image_id': 'fn-none'})
    with pytest.raises(sdk_exc.NotFoundException, match='fn-none'):
        infra.get_cluster_template('fn-none')
    infra.delete_cluster_template(made)
    assert infra.find_cluster_template('fn-sdk') is None


def test_sdk_updates_a_template(infra: Any) -> None:
    made = infra.create_cluster_template(name='fn-sdk-2', **SDK_TEMPLATE)

    changed = infra.update_cluster_template(
        made, name='fn-sdk-3', labels={'colour': 'red'}, docker_volume_size=5
    )

    assert (changed.name, changed.labels, changed.docker_volume_size) == (
        'fn-sdk-3',
        {'colour': 'red'},
        5,
    )
    with pytest.raises(sdk_exc.ForbiddenException, match='clustertemplate:publish'):
        infra.update_cluster_template(changed, is_public=True)
    infra.delete_cluster_template(made)


def test_sdk_clusters(
    infra: Any, sandbox: Sandbox, entry: str, service: Service, place: Project
) -> None:
    template = infra.create_cluster_template(name='fn-sdk-4', **SDK_TEMPLATE)
    made = infra.create_cluster(
        name='fn-sdk', cluster_template_id=template.id, node_count=1, keypair='testkey'
    )
    stock.wait_for(service, place, made.id, 'CREATE_COMPLETE')

    shown = infra.find_cluster('fn-sdk')
    assert (shown.uuid, shown.status, shown.node_count, shown.labels) == (
        made.id,
        'CREATE_COMPLETE',
        1,
        SDK_TEMPLATE['labels'],
    )
    assert shown.api_address and shown.stack_id and shown.created_at
    assert made.id in [c.id for c in infra.clusters()]
    infra.update_cluster(infra.get_cluster(made.id), node_count=2)
    assert stock.wait_for(service, place, made.id, 'UPDATE_COMPLETE')['node_count'] == 2
    with pytest.raises(sdk_exc.BadRequestException, match='Cannot change name of a cluster'):
        infra.update_cluster(infra.get_cluster(made.id), name='other')
    with pytest.raises(sdk_exc.HttpException, match='406'):  # without a version, so 1.1
        shown.resize(infra, node_count=1)
    newer = connect(entry, sandbox.clouds_file)
    session = newer.container_infrastructure_management
    session.default_microversion = '1.10'
    for change in (
        lambda: shown.resize(session, node_count=1),
        lambda: shown.upgrade(session, cluster_template=template.id),
    ):
        with pytest.raises(
            TypeError, match='not subscriptable'
        ):  # the SDK's own, after the request is done
            change()
        assert stock.wait_for(service, place, made.id, 'UPDATE_COMPLETE')['node_count'] == 1
    newer.close()
    infra.delete_cluster(made.id, ignore_missing=False)
    infra.wait_for_delete(infra.get_cluster(made.id), interval=1, wait=STACK_S)
    infra.delete_cluster_template(template)


def test_sdk_certificates(infra: Any, cluster: Cluster, tmp_path: pathlib.Path) -> None:
    authority = infra.get_cluster_certificate(cluster.uuid)
    signed = infra.create_cluster_certificate(
        cluster_uuid=cluster.uuid, csr=a_csr(tmp_path / 'csr').read_text()
    )

    x509.load_pem_x509_certificate(signed.pem.encode()).verify_directly_issued_by(
        x509.load_pem_x509_certificate(authority.pem.encode())
    )


def test_sdk_services(infra: Any, sandbox: Sandbox, region: str) -> None:
    admin = connect(sandbox.in_region(sandbox.service_cloud, region), sandbox.clouds_file)

    [conductor] = admin.container_infrastructure_management.services()

    assert (conductor.binary, conductor.state, conductor.host) == (
        'magnum-conductor',
        'up',
        'functional',
    )
    assert conductor.report_count > 0
    with pytest.raises(sdk_exc.ForbiddenException, match='magnum-service:get_all'):
        list(infra.services())
    admin.close()


# -- Heat's own resources --------------------------------------------------------------------------

HEAT_TEMPLATE = """
heat_template_version: 2018-08-31
parameters:
  count: {type: number}
resources:
  template:
    type: OS::Magnum::ClusterTemplate
    properties: {name: fn-heat, image: coreos, flavor: m1.tiny, master_flavor: m1.tiny, external_network: public,
                 coe: kubernetes, docker_volume_size: 3, keypair: testkey, labels: {colour: green}}
  cluster:
    type: OS::Magnum::Cluster
    properties: {name: fn-heat, cluster_template: {get_resource: template}, node_count: {get_param: count},
                 create_timeout: 10}
outputs:
  all:
    value:
""" + ''.join(  # noqa: E501
    f'      {name}: {{get_attr: [cluster, {name}]}}\n'
    for name in (
        'api_address',
        'stack_id',
        'coe_version',
        'master_addresses',
        'status',
        'master_count',
        'node_addresses',
        'status_reason',
        'node_count',
        'name',
        'container_version',
        'discovery_url',
        'cluster_template_id',
        'keypair',
        'create_timeout',
    )
)


def test_heat_makes_changes_and_deletes_a_cluster(
    sandbox: Sandbox, service: Service, region: str, say: Say
) -> None:
    with sandbox.project() as project:
        # The region goes with the request, as `openstack --os-region-name` has it; all of Heat's
        # clients then use it.
        heat, headers = project.cloud.orchestration, {'X-Region-Name': region}

        def settled(wanted: str) -> dict[str, Any]:
            def look() -> Any:
                stack = heat.get('/stacks/fn-heat', headers=headers).json()['stack']
                assert not stack['stack_status'].endswith('_FAILED'), stack['stack_status_reason']
                return stack if stack['stack_status'] == wanted else None

            return dict(poll(look, STACK_S, f'the stack is {wanted}', every_s=1))

        def send(count: int) -> dict[str, Any]:
            return {
                'stack_name': 'fn-heat',
                'template': HEAT_TEMPLATE,
                'parameters': {'count': count},
            }

        made = heat.post('/stacks', json=send(1), headers=headers)
        if made.status_code == 400 and 'OS::Magnum' in made.text:
            pytest.skip(f'this Heat has no such resources: {made.text}')
        assert made.status_code == 201, made.text
        path = '/stacks/fn-heat/' + made.json()['stack']['id']
        shown = settled('CREATE_COMPLETE')['outputs'][0]['output_value']
        [cluster] = service.rows('SELECT * FROM clusters WHERE project_id = :id', id=project.id)
        holds(
            shown,
            {
                'name': 'fn-heat',
                'status': 'CREATE_COMPLETE',
                'node_count': 1,
                'master_count': 1,
                'stack_id': cluster['stack_id'],
                'keypair': 'testkey',
                'create_timeout': 10,
                'cluster_template_id': cluster['cluster_template_id'],
                'api_address': 'https://192.0.2.1:6443',
            },
        )

        changed = heat.put(path, json=send(2), headers=headers)
        assert changed.status_code == 202, changed.text
        shown = settled('UPDATE_COMPLETE')['outputs'][0]['output_value']
        assert (shown['status'], shown['node_count']) == ('UPDATE_COMPLETE', 2)

        assert heat.delete(path, headers=headers).status_code == 204
        poll(
            lambda: not [s for s in project.stacks() if s.name == 'fn-heat'],
            STACK_S,
            'the stack goes',
            every_s=1,
        )
        for table in ('clusters', 'cluster_templates'):
            assert not service.rows(f'SELECT id FROM {table} WHERE project_id = :id', id=project.id)
        operations = service.rows(
            'SELECT kind, outcome FROM operations WHERE cluster_id = :uuid ORDER BY id',
            uuid=cluster['uuid'],
        )
        assert [(o['kind'], o['outcome']) for o in operations] == [
            ('create', 'complete'),
            ('resize', 'complete'),
            ('delete', 'complete'),
        ]
        say('OS::Magnum::ClusterTemplate and OS::Magnum::Cluster: created, updated, deleted')


# -- Horizon ---------------------------------------------------------------------------------------


def test_horizon_creates_shows_and_resizes_a_cluster(service: Service, place: Project) -> None:
    """What magnum-ui 19 sends from its forms as they open: all as text, what nobody filled in as an
    empty one."""
    headers = {**place.headers, 'OpenStack-API-Version': 'container-infra 1.13'}

    def call(method: str, path: str, body: Any = None) -> Any:
        status, answer = service.request(method, path, body, headers=headers)
        assert status < 300, answer
        return answer

    template = call(
        'POST',
        '/v1/clustertemplates',
        {
            'name': 'fn-horizon',
            'coe': 'kubernetes',
            'server_type': 'vm',
            'image_id': 'coreos',
            'flavor_id': 'm1.tiny',
            'master_flavor_id': 'm1.tiny',
            'docker_volume_size': '3',
            'docker_storage_driver': 'overlay2',
            'volume_driver': 'cinder',
            'external_network_id': 'public',
            'keypair_id': 'testkey',
            'floating_ip_enabled': 'True',
            'public': 'False',
            'hidden': 'False',
            'labels': {'colour': 'green'},
        },
    )
    made = call(
        'POST',
        '/v1/clusters',
        {
            'discovery_url': '',
            'create_timeout': '60',
            'name': 'fn-horizon',
            'cluster_template_id': template['uuid'],
            'keypair': '',
            'master_lb_enabled': 'False',
            'master_count': '1',
            'node_count': '1',
            'labels': {'colour': 'green'},
        },
    )
    stock.wait_for(service, place, made['uuid'], 'CREATE_COMPLETE')
    listed = next(
        c for c in call('GET', '/v1/clusters/detail')['clusters'] if c['uuid'] == made['uuid']
    )
    groups = call('GET', f'/v1/clusters/{made["uuid"]}/nodegroups/')['nodegroups']
    call(
        'POST',
        f'/v1/clusters/{made["uuid"]}/actions/resize',
        {'node_count': 2, 'nodes_to_remove': [], 'nodegroup': groups[1]['uuid']},
    )

    assert (listed['status'], listed['keypair'], listed['node_count']) == (
        'CREATE_COMPLETE',
        'testkey',
        1,
    )
    assert stock.wait_for(service, place, made['uuid'], 'UPDATE_COMPLETE')['node_count'] == 2
    call('DELETE', f'/v1/clusters/{made["uuid"]}')
    stock.wait_for(service, place, made['uuid'], 'DELETED')
    call('DELETE', f'/v1/clustertemplates/{template["uuid"]}')


# -- Tempest ---------------------------------------------------------------------------------------


def tempest_call(
    service: Service, place: Project, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    """A request without a version, so of 1.1."""
    return service.request(
        method, f'/v1/{path}', body, headers={**place.headers, 'OpenStack-API-Version': None}
    )  # type: ignore[dict-item]


def test_tempest_clusters(service: Service, place: Project, tmp_path: pathlib.Path) -> None:
    def call(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return tempest_call(service, place, method, path, body)

    _, template = call('POST', 'clustertemplates', {**stock.PAPER, 'name': 'fn-tempest'})
    good = {'name': 'fn-tempest', 'cluster_template_id': template['uuid'], 'node_count': 1}
    unknown = str(uuid4())

    status, made = call('POST', 'clusters', good)
    assert (status, set(made)) == (202, {'uuid'})
    for wrong in (
        {'cluster_template_id': unknown},
        {'node_count': 0},
        {'master_count': 0},
        {'flavor_id': 'fn-none'},
    ):
        assert call('POST', 'clusters', good | wrong)[0] == 400, wrong
    assert (
        call(
            'PATCH', f'clusters/{unknown}', [{'path': '/node_count', 'value': 2, 'op': 'replace'}]
        )[0]
        == 404
    )
    assert call('DELETE', f'clusters/{unknown}')[0] == 404
    stock.wait_for(service, place, made['uuid'], 'CREATE_COMPLETE')
    status, listed = call('GET', 'clusters')
    assert status == 200 and made['uuid'] in [c['uuid'] for c in listed['clusters']]
    status, shown = call('GET', f'certificates/{made["uuid"]}')
    assert (status, shown['cluster_uuid']) == (200, made['uuid'])
    assert (
        '-----BEGIN CERTIFICATE-----' in shown['pem']
        and '-----END CERTIFICATE-----' in shown['pem']
    )
    status, signed = call(
        'POST',
        'certificates',
        {'cluster_uuid': made['uuid'], 'csr': a_csr(tmp_path / 'csr').read_text()},
    )
    assert (status, '-----BEGIN CERTIFICATE-----' in signed['pem']) == (201, True)
    assert call('DELETE', f'clusters/{made["uuid"]}')[0] == 204
    stock.wait_for(service, place, made['uuid'], 'DELETED')
    assert [call('GET', f'{noun}/{made["uuid"]}')[0] for noun in ('clusters', 'certificates')] == [
        404,
        404,
    ]
    assert call('DELETE', f'clustertemplates/{template["uuid"]}')[0] == 204


def test_tempest_templates(service: Service, place: Project) -> None:
    def call(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return tempest_call(service, place, method, path, body)

    good = {**stock.PAPER, 'name': 'fn-tempest-2', 'keypair_id': 'fn-no-such-key'}
    rename = [{'path': '/name', 'value': 'fn-tempest-3', 'op': 'replace'}]
    unknown = f'clustertemplates/{uuid4()}'

    status, made = call('POST', 'clustertemplates', good)
    assert status == 201, 'an unknown keypair is accepted'
    path = f'clustertemplates/{made["uuid"]}'
    assert made['uuid'] in [
        t['uuid'] for t in call('GET', 'clustertemplates')[1]['clustertemplates']
    ]
    assert (call('PATCH', path, rename)[0], call('GET', path)[1]['name']) == (200, 'fn-tempest-3')
    assert call('PATCH', path, [{'path': '/public', 'value': True, 'op': 'replace'}])[0] == 403
    assert call('POST', 'clustertemplates', good | {'public': True})[0] == 403
    for wrong in (
        {'image_id': None},
        {'flavor_id': 'fn-none'},
        {'image_id': 'fn-none'},
        {'image_id': 'ubuntu', 'network_driver': 'fn-none'},
        {'image_id': 'ubuntu', 'volume_driver': 'fn-none'},
    ):
        assert call('POST', 'clustertemplates', good | wrong)[0] == 400, wrong
    for malformed in ({'path': '/name'}, [{'path': 'name', 'value': 'x', 'op': 'replace'}], 'x'):
        assert call('PATCH', path, malformed)[0] == 400, malformed
    assert [
        call('GET', unknown)[0],
        call('PATCH', unknown, rename)[0],
        call('DELETE', unknown)[0],
    ] == [404] * 3
    assert call('DELETE', 'clustertemplates/fn-tempest-3')[0] == 204


def test_tempest_services(service: Service, sandbox: Sandbox) -> None:
    status, body = service.request(
        'GET',
        '/v1/mservices',
        headers={'X-Auth-Token': str(sandbox.admin.auth_token), 'OpenStack-API-Version': None},
    )  # type: ignore[dict-item]

    assert status == 200, body
    [one] = body['mservices']
    holds(one, {'id': 1, 'state': 'up', 'binary': 'magnum-conductor'})
    assert one['report_count'] > 0
