"""Programs in Go that look after clusters, replayed call by call: cluster-autoscaler,
magnum-auto-healer, Terraform.

The order of calls and what is read of each answer are those of their sources: kubernetes/autoscaler
1.3x, kubernetes/cloud-provider-openstack 1.3x, terraform-provider-openstack 3 with gophercloud 2.
None of their code is here. The first two work on a cluster with servers, whose stacks they read,
too; the nodes are played. OS_CLOUD names the cloud; `cloud.py` says what else is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import time
import uuid as uuidlib
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from functional import stock
from functional.cloud import ON_A_CLOUD, STACK_S, Cluster, Project, Sandbox, Say, Start, ask
from functional.service import Service, poll

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD

#: What the autoscaler reads as "there is no server yet".
NO_SERVER = 'kube-minion'


@pytest.fixture(scope='module')
def service(start: Start) -> Service:
    """One API, one conductor, which looks at stacks every second."""
    return start(extra={'conductor': {'tick': 2, 'watch_interval': 1}, 'drivers': stock.PAPER_ONLY})


@pytest.fixture(scope='module')
def place(sandbox: Sandbox) -> Iterator[Project]:
    """The project of the cluster with servers."""
    with sandbox.project() as made:
        yield made


@pytest.fixture(scope='module')
def asked(service: Service, place: Project) -> Cluster:
    """A cluster with servers: one master behind a load balancer, two workers. It is made while the
    first test runs."""
    made = ask(
        service,
        place,
        name='fn-scaled',
        node_count=2,
        master_lb_enabled=True,
        labels={'auto_healing_enabled': True},
    )
    made.play_nodes()
    return made


@pytest.fixture(scope='module')
def cluster(asked: Cluster) -> Cluster:
    """The same, when it is complete."""
    asked.wait('CREATE_COMPLETE')
    return asked


# -- Terraform -------------------------------------------------------------------------------------


def label_set(shown: dict[str, Any]) -> dict[str, str]:
    """The labels of a user, as Terraform puts them together when they were merged."""
    return {
        **shown['labels_added'],
        **shown['labels_skipped'],
        **{key: shown['labels'][key] for key in shown['labels_overridden']},
    }


def terraform_waits(
    go: stock.Go, path: str, target: str, pending: tuple[str, ...]
) -> dict[str, Any]:
    """Look until a resource has a status, as Terraform does: any status but these two is a
    failure."""

    def look() -> dict[str, Any] | None:
        status, body = go.raw('GET', path)
        found = 'DELETE_COMPLETE' if status == 404 else body['status']
        assert found in (target, *pending), f'{path} is {found}: {body}'
        return {'status': found} | (body if status == 200 else {}) if found == target else None

    return dict(poll(look, STACK_S, f'{path} is {target}'))


def terraform_kubeconfig(go: stock.Go, uuid: str) -> None:
    """Get an authority and have a certificate signed."""
    authority = go('GET', f'/certificates/{uuid}')['pem']
    key = rsa.generate_private_key(65537, 4096)
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'system:masters'),
                    x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, 'terraform'),
                    x509.NameAttribute(NameOID.COMMON_NAME, 'admin'),
                ]
            )
        )
        .sign(key, hashes.SHA512())
    )
    signed = go(
        'POST',
        '/certificates',
        {'cluster_uuid': uuid, 'csr': csr.public_bytes(serialization.Encoding.PEM).decode()},
        ok=(201,),
    )['pem']

    certificate = x509.load_pem_x509_certificate(signed.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.encode()))
    assert certificate.public_key() == key.public_key()
    assert base64.b64encode(signed.encode())


@pytest.mark.usefixtures('asked')  # not needed, but it can be made meanwhile
def test_terraform_makes_changes_and_destroys_a_cluster(service: Service, project: Project) -> None:
    go = stock.Go(service, project)
    template = go(
        'POST',
        '/clustertemplates',
        {
            **stock.PAPER,
            'name': 'fn-terraform',
            'labels': {'colour': 'green'},
            'floating_ip_enabled': True,
            'master_lb_enabled': False,
            'public': False,
            'registry_enabled': False,
            'tls_disabled': False,
            'server_type': 'vm',
            'docker_volume_size': 5,
        },
        ok=(201,),
    )
    other = go(
        'POST',
        '/clustertemplates',
        {**stock.PAPER, 'name': 'fn-terraform-2', 'labels': {'colour': 'red'}},
        ok=(201,),
    )
    assert go('GET', f'/clustertemplates/{template["uuid"]}')['labels'] == {'colour': 'green'}

    uuid = go(
        'POST',
        '/clusters',
        {
            'cluster_template_id': template['uuid'],
            'name': 'fn-terraform',
            'keypair': 'testkey',
            'create_timeout': 20,
            'master_count': 1,
            'node_count': 1,
            'floating_ip_enabled': False,
            'merge_labels': True,
            'labels': {'size': '2'},
        },
        ok=(202,),
    )['uuid']
    shown = terraform_waits(go, f'/clusters/{uuid}', 'CREATE_COMPLETE', ('CREATE_IN_PROGRESS',))
    assert go('GET', f'/clusters/{uuid}')['stack_id'] == shown['stack_id'] and shown['stack_id']
    assert label_set(shown) == {'size': '2'}
    groups = go.at('1.9')('GET', f'/clusters/{uuid}/nodegroups')['nodegroups']
    assert [g['node_count'] for g in groups if g['is_default'] and g['role'] == 'worker'] == [1]

    go.at('1.8')(
        'POST', f'/clusters/{uuid}/actions/upgrade', {'cluster_template': other['uuid']}, ok=(202,)
    )
    terraform_waits(go, f'/clusters/{uuid}', 'UPDATE_COMPLETE', ('UPDATE_IN_PROGRESS',))
    go(
        'PATCH',
        f'/clusters/{uuid}',
        [{'op': 'replace', 'path': '/node_count', 'value': 2}],
        ok=(200, 202),
    )
    terraform_waits(go, f'/clusters/{uuid}', 'UPDATE_COMPLETE', ('UPDATE_IN_PROGRESS',))
    # Older ones send a text.
    go(
        'PATCH',
        f'/clusters/{uuid}',
        [{'op': 'replace', 'path': '/node_count', 'value': '1'}],
        ok=(200, 202),
    )
    shown = terraform_waits(go, f'/clusters/{uuid}', 'UPDATE_COMPLETE', ('UPDATE_IN_PROGRESS',))
    assert (shown['node_count'], shown['cluster_template_id']) == (1, other['uuid'])

    terraform_nodegroups(go.at('1.9'), uuid)

    go('DELETE', f'/clusters/{uuid}', ok=(202, 204))
    terraform_waits(go, f'/clusters/{uuid}', 'DELETE_COMPLETE', ('DELETE_IN_PROGRESS',))
    for made in (template, other):
        go('DELETE', f'/clustertemplates/{made["uuid"]}', ok=(202, 204))


def terraform_nodegroups(go: stock.Go, cluster: str) -> None:
    """Three nodegroups at once, as Terraform makes resources that do not depend on each other."""
    path = f'/clusters/{cluster}/nodegroups'

    def make(name: str) -> dict[str, Any]:
        made = go(
            'POST',
            path,
            {
                'name': name,
                'labels': {'size': '3'},
                'min_node_count': 1,
                'max_node_count': 3,
                'node_count': 1,
                'role': name,
                'merge_labels': True,
            },
            ok=(202,),
        )
        return terraform_waits(
            go, f'{path}/{made["uuid"]}', 'CREATE_COMPLETE', ('CREATE_IN_PROGRESS',)
        )

    with futures.ThreadPoolExecutor() as pool:
        made = list(pool.map(make, ('one', 'two', 'three')))
    first = f'{path}/{made[0]["uuid"]}'
    assert label_set(made[0]) == {'size': '3'}
    go(
        'PATCH',
        first,
        [
            {'op': 'replace', 'path': '/min_node_count', 'value': 0},
            {'op': 'replace', 'path': '/max_node_count', 'value': 4},
        ],
        ok=(200, 202),
    )
    go(
        'POST',
        f'/clusters/{cluster}/actions/resize',
        {'node_count': 2, 'nodegroup': made[0]['uuid']},
        ok=(200, 202),
    )
    shown = terraform_waits(go, first, 'UPDATE_COMPLETE', ('UPDATE_IN_PROGRESS',))
    assert (shown['node_count'], shown['min_node_count'], shown['max_node_count']) == (2, 0, 4)

    def drop(group: dict[str, Any]) -> None:
        go('DELETE', f'{path}/{group["uuid"]}', ok=(202, 204))
        terraform_waits(go, f'{path}/{group["uuid"]}', 'DELETE_COMPLETE', ('DELETE_IN_PROGRESS',))

    with futures.ThreadPoolExecutor() as pool:
        list(pool.map(drop, made))


def test_terraform_updates_a_template(service: Service, project: Project) -> None:
    go = stock.Go(service, project)
    path = (
        '/clustertemplates/'
        + go(
            'POST',
            '/clustertemplates',
            {
                **stock.PAPER,
                'name': 'fn-tf',
                'dns_nameserver': '192.0.2.53',
                'docker_volume_size': 5,
            },
            ok=(201,),
        )['uuid']
    )

    go(
        'PATCH',
        path,
        [
            {'op': 'replace', 'path': '/name', 'value': 'fn-tf-2'},
            {'op': 'remove', 'path': '/dns_nameserver'},
            {'op': 'replace', 'path': '/docker_volume_size', 'value': '6'},
            {'op': 'replace', 'path': '/master_lb_enabled', 'value': 'true'},
            {'op': 'replace', 'path': '/floating_ip_enabled', 'value': 'false'},
        ],
    )

    shown = go('GET', path)
    assert [
        shown[name]
        for name in (
            'name',
            'dns_nameserver',
            'docker_volume_size',
            'master_lb_enabled',
            'floating_ip_enabled',
        )
    ] == ['fn-tf-2', None, 6, True, False]


def test_terraform_builds_a_kubeconfig_as_soon_as_a_cluster_is_complete(
    cluster: Cluster, service: Service, place: Project
) -> None:
    terraform_kubeconfig(stock.Go(service, place), cluster.uuid)


# -- cluster-autoscaler ----------------------------------------------------------------------------


@dataclass
class Autoscaler:
    """What cluster-autoscaler does with a cluster. A node is known by (its nodegroup's uuid, server
    id or number)."""

    service: Service
    project: Project
    name: str

    def __post_init__(self) -> None:
        self.magnum = stock.Go(self.service, self.project, '1.9')
        self._found: dict[str, tuple[str, str]] = {}

    def heat(self, path: str) -> Any:
        answer = self.project.cloud.orchestration.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def discover(self) -> list[dict[str, Any]]:
        """The nodegroups that it may scale: those with a limit, masters never."""
        groups = self.magnum('GET', f'/clusters/{self.name}/nodegroups')['nodegroups']
        details = [
            self.magnum('GET', f'/clusters/{self.name}/nodegroups/{g["uuid"]}')
            for g in groups
            if g['role'] != 'master'
        ]
        return [g for g in details if g['max_node_count'] is not None]

    def minions(self, group: str) -> str:
        """The address of the nested stack that holds the members."""
        if group not in self._found:
            stack_id = self.magnum('GET', f'/clusters/{self.name}/nodegroups/{group}')['stack_id']
            stack = self.heat(f'/stacks/{stack_id}')['stack']
            nested = self.heat(f'/stacks/{stack["stack_name"]}/{stack_id}/resources/kube_minions')[
                'resource'
            ]
            found = self.heat(f'/stacks/{nested["physical_resource_id"]}')['stack']
            self._found[group] = found['stack_name'], found['id']
        return '/stacks/{}/{}'.format(*self._found[group])

    def refs_map(self, group: str) -> dict[str, str]:
        outputs = self.heat(self.minions(group))['stack'].get('outputs', [])
        found = [o['output_value'] for o in outputs if o['output_key'] == 'refs_map']
        assert all(isinstance(value, str) for value in found[0].values()), found
        return dict(found[0])

    def nodes(self, group: str) -> dict[str, str]:
        """State by server id, or by `fake/NUMBER` where there is no server yet."""
        members = self.heat(f'{self.minions(group)}/resources')['resources']
        servers = self.refs_map(group)
        found = {}
        for member in members:
            server = servers.get(member['resource_name'], NO_SERVER)
            known, status = server != NO_SERVER, member['resource_status']
            name = server if known else f'fake/{member["resource_name"]}'
            if status == 'DELETE_IN_PROGRESS' and known:
                found[name] = 'deleting'
            elif status in ('INIT_COMPLETE', 'CREATE_IN_PROGRESS') or (
                status == 'UPDATE_IN_PROGRESS' and not known
            ):
                found[f'fake/{member["resource_name"]}'] = 'creating'
            elif status == 'UPDATE_IN_PROGRESS':
                found[name] = self._running(member['physical_resource_id'])
            elif status.endswith('_FAILED'):
                found[f'fake/{member["resource_name"]}'] = 'failed'
            elif status in ('CREATE_COMPLETE', 'UPDATE_COMPLETE'):
                found[name] = 'running'
        return found

    def _running(self, stack_id: str) -> str:
        """Whether a member that is being updated was complete before."""
        inside = {
            r['resource_name']: r['resource_status']
            for r in self.heat(f'/stacks/{stack_id}/resources')['resources']
        }
        done = [
            inside.get(name) == 'CREATE_COMPLETE'
            for name in ('kube-minion', 'node_config_deployment')
        ]
        return 'running' if all(done) else 'creating'

    def group_of(self, server: str) -> str:
        """The nodegroup of a server, looked for in the larger ones first."""
        groups = self.magnum('GET', f'/clusters/{self.name}/nodegroups')['nodegroups']
        for group in sorted(
            (g for g in groups if g['role'] != 'master'), key=lambda g: -g['node_count']
        ):
            if server in [
                s
                for s in self.refs_map(group['uuid']).values()
                if len(s) == len(str(uuidlib.UUID(int=0)))
            ]:
                return str(group['uuid'])
        raise AssertionError(f'no nodegroup has {server}')

    def size(self, group: str) -> int:
        return int(self.magnum('GET', f'/clusters/{self.name}/nodegroups/{group}')['node_count'])

    def resize(self, group: str, count: int, *remove: str) -> None:
        body = {'node_count': count, 'nodegroup': group} | (
            {'nodes_to_remove': list(remove)} if remove else {}
        )
        self.magnum('POST', f'/clusters/{self.name}/actions/resize', body, ok=(200, 202))


def test_autoscaler_scales_up_and_down(
    cluster: Cluster, place: Project, service: Service, say: Say
) -> None:
    scaler = Autoscaler(service, place, 'fn-scaled')
    assert scaler.discover() == []
    worker = scaler.magnum('GET', '/clusters/fn-scaled/nodegroups/default-worker')['uuid']
    scaler.magnum(
        'PATCH',
        f'/clusters/fn-scaled/nodegroups/{worker}',
        [
            {'op': 'replace', 'path': '/min_node_count', 'value': 1},
            {'op': 'replace', 'path': '/max_node_count', 'value': 3},
        ],
        ok=(202,),
    )
    [group] = scaler.discover()
    assert (
        group['uuid'],
        group['min_node_count'],
        group['max_node_count'],
        scaler.size(worker),
    ) == (worker, 1, 3, 2)
    before = scaler.nodes(worker)
    assert set(before) == {s.id for s in cluster.servers() if '-worker-' in s.name}
    assert set(before.values()) == {'running'}
    assert {scaler.group_of(server) for server in before} == {worker}

    begun = time.monotonic()
    with stock.Reporting(place):
        scaler.resize(worker, 3)
        seen = watch(scaler, worker, before)
        shown = stock.wait_for(service, place, 'fn-scaled', 'UPDATE_COMPLETE')
    assert 'creating' in {state for states in seen for state in states.values()}
    after = scaler.nodes(worker)
    assert (len(after), set(after.values()), shown['node_count']) == (3, {'running'}, 3)
    [new] = after.keys() - before.keys()
    inside = scaler.heat(f'/stacks/{shown["stack_id"]}/resources?nested_depth=4')['resources']
    assert {r['resource_status'] for r in inside if r['resource_type'] == 'OS::Nova::Server'} == {
        'CREATE_COMPLETE'
    }
    say(f'autoscaler: up from 2 to 3 in {time.monotonic() - begun:.0f} s')
    status, refused = scaler.magnum.raw(
        'POST', '/clusters/fn-scaled/actions/resize', {'node_count': 4, 'nodegroup': worker}
    )
    assert (status, 'from 1 to 3' in refused['faultstring']) == (400, True)

    begun = time.monotonic()
    number = next(key for key, server in scaler.refs_map(worker).items() if server == new)
    [gone, stays] = before
    with stock.Reporting(place):
        scaler.resize(worker, 2, gone)
        scaler.resize(worker, 1, number)  # comes while the first is on its way
        shown = stock.wait_for(service, place, 'fn-scaled', 'UPDATE_COMPLETE')
    assert scaler.nodes(worker) == {stays: 'running'}
    assert [s.id for s in cluster.servers() if '-worker-' in s.name] == [stays]
    say(
        f'autoscaler: down from 3 to 1, by server and by number, in {time.monotonic() - begun:.0f} '
        's'
    )


def watch(scaler: Autoscaler, group: str, before: dict[str, str]) -> list[dict[str, str]]:
    """What the autoscaler sees until the cluster is complete; the old nodes run all the while."""
    seen = []

    def look() -> bool:
        found = scaler.nodes(group)
        # Heat updates every nested stack, but inside it nothing that is as it was: they are
        # CREATE_COMPLETE on.
        assert before.items() <= found.items(), found
        seen.append(found)
        return bool(scaler.magnum('GET', f'/clusters/{scaler.name}')['status'] == 'UPDATE_COMPLETE')

    poll(look, STACK_S, lambda: f'it is scaled: {seen[-1:]}', every_s=1)
    return seen


# -- magnum-auto-healer ----------------------------------------------------------------------------


def test_auto_healer_reports_and_replaces(
    cluster: Cluster, place: Project, service: Service, say: Say
) -> None:
    go = stock.Go(service, place, 'latest')
    heat = place.cloud.orchestration
    shown = go('GET', '/clusters/fn-scaled')
    assert shown['labels']['auto_healing_enabled'].lower() == 'true' and shown['status'].endswith(
        '_COMPLETE'
    )
    stack = heat.get(f'/stacks/{shown["stack_id"]}').json()['stack']
    assert stack['stack_status'] not in ('UPDATE_IN_PROGRESS', 'UPDATE_FAILED')

    reason = json.dumps(
        {'updated_at': '2026-11-25 00:00:00 +0000 UTC', 'worker-0.Ready': 'error'}
    ).replace('"', "'")
    go(
        'PATCH',
        '/clusters/fn-scaled',
        [
            {'op': 'replace', 'path': '/health_status', 'value': 'UNHEALTHY'},
            {'op': 'replace', 'path': '/health_status_reason', 'value': reason},
        ],
        ok=(200, 202),
    )
    healed = go('GET', '/clusters/fn-scaled')
    assert (healed['health_status'], healed['health_status_reason']['worker-0.Ready']) == (
        'UNHEALTHY',
        'error',
    )
    assert healed['status'] == shown['status'], 'no operation'

    groups = [
        go('GET', f'/clusters/fn-scaled/nodegroups/{g["uuid"]}')
        for g in go('GET', '/clusters/fn-scaled/nodegroups')['nodegroups']
    ]
    [server] = [s for s in cluster.servers() if '-worker-' in s.name]
    addresses = {a['addr'] for net in server.addresses.values() for a in net}
    [group] = [g for g in groups if addresses & set(g['node_addresses'])]
    begun = time.monotonic()
    with stock.Reporting(place):
        go(
            'POST',
            '/clusters/fn-scaled/actions/resize',
            {
                'nodegroup': group['name'],
                'node_count': group['node_count'],
                'nodes_to_remove': [server.id],
            },
            ok=(200, 202),
        )
        stock.wait_for(service, place, 'fn-scaled', 'UPDATE_COMPLETE')
    [new] = [s for s in cluster.servers() if '-worker-' in s.name]
    assert new.id != server.id
    say(f'auto-healer: a worker replaced in {time.monotonic() - begun:.0f} s')


def test_auto_healer_rebuilds_a_master_behind_our_back(
    cluster: Cluster, place: Project, service: Service
) -> None:
    heat = place.cloud.orchestration
    stack_id = cluster.get()['stack_id']
    name = heat.get(f'/stacks/{stack_id}').json()['stack']['stack_name']
    resources = heat.get(f'/stacks/{name}/{stack_id}/resources?nested_depth=2').json()['resources']
    [master] = [s.id for s in cluster.servers() if '-master-' in s.name]
    [found] = [
        r
        for r in resources
        if r['resource_type'] == 'OS::Nova::Server' and r['physical_resource_id'] == master
    ]
    parent = next(link['href'] for link in found['links'] if link['rel'] != 'self').split('/')[-2:]

    marked = heat.patch(
        f'/stacks/{parent[0]}/{parent[1]}/resources/{master}',
        json={
            'mark_unhealthy': True,
            'resource_status_reason': 'Mark resource unhealthy by autohealing service',
        },
    )
    assert marked.status_code == 200, marked.text
    updated = heat.patch(f'/stacks/{name}/{stack_id}', json={})
    assert updated.status_code == 202, updated.text
    poll(
        lambda: (
            heat.get(f'/stacks/{stack_id}').json()['stack']['stack_status'] == 'UPDATE_COMPLETE'
        ),
        STACK_S,
        'Heat has rebuilt it',
    )

    [new] = [s.id for s in cluster.servers() if '-master-' in s.name]
    assert new != master


# -- the end ---------------------------------------------------------------------------------------


def test_coe_has_authorities_exchanged(
    cluster: Cluster, place: Project, service: Service, sandbox: Sandbox
) -> None:
    """Only that it is begun: that it ends is tried on real nodes."""
    python = stock.interpreter()
    if python is None:
        pytest.skip('no openstack with python-magnumclient on the path')

    with (
        stock.own_region(sandbox, f'{service.url}/v1') as region,
        contextlib.closing(stock.Shell(python, sandbox.in_region(place.name, region))) as shell,
    ):
        status, out, err = shell.run('coe', 'ca', 'rotate', 'fn-scaled')

    assert status == 0, err
    assert (
        out
        == f'Request to rotate the CA certificate for cluster {cluster.uuid} has been accepted.\n'
    )
    assert cluster.operations[-1]['kind'] == 'rotate'


def test_delete_leaves_nothing(cluster: Cluster) -> None:
    cluster.delete()
    cluster.wait('GONE')
    cluster.assert_nothing_is_left()
