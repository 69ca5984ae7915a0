"""The main job on a real cloud: API and conductors as separate processes over RabbitMQ and a
database of their own.

OS_CLOUD names the cloud; `service.py` and `cloud.py` say what else is needed. The clusters of the
first tests are asked for at once, each in a project of its own, because each mostly waits for Heat.
Times that were seen are printed."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from functional import service as services
from functional.cloud import (
    LONG_TICK_S,
    ON_A_CLOUD,
    STACK_S,
    TEMPLATE,
    Cluster,
    Forwarder,
    Project,
    Sandbox,
    Say,
    ask,
    post,
)
from functional.service import Service, poll
from functional.stock import has_client
from keystoneauth1 import session as ksa_session
from keystoneauth1.identity import v3

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD

#: A stored cluster is answered at once, with or without a broker; one call to a broker that hangs
#: takes 5 s.
AT_ONCE_S = 3
NODE_REASON = 'step install ended with 100: no space left on device'
CIDR = '10.77.0.0/24'
KEYS = 4
SEED = 20
STORIES = ('whole', 'no host', 'node fails', 'credential', 'existing network', 'other engine')


# -- clusters that are asked for at once -----------------------------------------------------------


def credential_headers(project: Project) -> dict[str, str]:
    """A token of an application credential of the user."""
    cloud = project.cloud
    made = cloud.identity.create_application_credential(
        user=cloud.current_user_id, name=project.name
    )
    session = ksa_session.Session(
        auth=v3.ApplicationCredential(
            auth_url=cloud.config.get_auth_args()['auth_url'],
            application_credential_id=made.id,
            application_credential_secret=made.secret,
        )
    )
    return {'X-Auth-Token': str(session.get_token())}


def make_network(project: Project) -> str:
    """A network named as one of another project's is, with a way out. Returns its id."""
    network = project.cloud.network
    made = network.create_network(name='private')
    subnet = network.create_subnet(network_id=made.id, ip_version=4, cidr=CIDR)
    outside = network.find_network(TEMPLATE['external_network_id'], ignore_missing=False)
    router = network.create_router(external_gateway_info={'network_id': outside.id})
    network.add_interface_to_router(router, subnet_id=subnet.id)
    return str(made.id)


@pytest.fixture(scope='module')
def projects(sandbox: Sandbox) -> Iterator[dict[str, Project]]:
    """A project for each story."""
    with contextlib.ExitStack() as undo:
        yield {story: undo.enter_context(sandbox.project()) for story in STORIES}


@pytest.fixture(scope='module')
def headers_of_credential(projects: dict[str, Project]) -> dict[str, str]:
    """A token of an application credential of the user."""
    return credential_headers(projects['credential'])


@pytest.fixture(scope='module')
def asked(
    projects: dict[str, Project], service: Service, headers_of_credential: dict[str, str]
) -> dict[str, Cluster]:
    """Every cluster that the next tests look at, by the name of its story."""
    make_network(projects['existing network'])
    wanted: dict[str, dict[str, Any]] = {
        'whole': {'name': 'fn-whole', 'node_count': 2},
        'no host': {'name': 'fn-nohost', 'node_count': 0, 'master_flavor_id': 'm1.nofit'},
        'node fails': {'name': 'fn-nodefails', 'node_count': 0},
        'credential': {'name': 'fn-credential', 'node_count': 0, 'headers': headers_of_credential},
        'existing network': {'name': 'fn-existing', 'template': {'fixed_network': 'private'}},
        'other engine': {
            'name': 'fn-swarm',
            'master_count': 3,
            'template': {'coe': 'swarm', 'image_id': 'debian', 'master_lb_enabled': True},
        },
    }
    with futures.ThreadPoolExecutor() as pool:
        made = pool.map(lambda story: ask(service, projects[story], **wanted[story]), STORIES)
        found = dict(zip(STORIES, made, strict=True))
    found['node fails'].play_nodes('--fail', '--reason', NODE_REASON)
    for story in ('whole', 'credential', 'existing network'):
        found[story].play_nodes()
    found['other engine'].play_nodes('--data', '"20.10.24"')
    return found


@pytest.mark.usefixtures('asked')  # not needed, but they can be made meanwhile
def test_bad_requests_get_their_status_and_store_nothing(
    service: Service, project: Project
) -> None:
    status, template = post(service, project, 'clustertemplates', **TEMPLATE)
    assert status == 201, template
    image = project.cloud.image.create_image(
        name='fn-no-distro', disk_format='raw', container_format='bare'
    )
    good = {'cluster_template_id': template['uuid'], 'name': 'fn-bad'}
    old = {'OpenStack-API-Version': 'container-infra 1.1'}
    wrong = [
        (400, 'clustertemplates', TEMPLATE | {'image_id': 'fn-none'}, {}, 'image fn-none'),
        (400, 'clustertemplates', TEMPLATE | {'image_id': image.id}, {}, 'os_distro'),
        (400, 'clustertemplates', TEMPLATE | {'flavor_id': 'fn-none'}, {}, 'flavor fn-none'),
        (
            400,
            'clustertemplates',
            TEMPLATE | {'external_network_id': 'fn-none'},
            {},
            'network fn-none',
        ),
        (400, 'clustertemplates', TEMPLATE | {'fixed_network': 'fn-none'}, {}, 'network fn-none'),
        (400, 'clustertemplates', TEMPLATE | {'fixed_subnet': 'fn-none'}, {}, 'subnet fn-none'),
        (400, 'clustertemplates', TEMPLATE | {'external_network_id': 'private'}, {}, 'private'),
        (400, 'clustertemplates', TEMPLATE | {'coe': 'other'}, {}, ''),
        (403, 'clustertemplates', TEMPLATE | {'public': True}, {}, ''),
        (400, 'clusters', good | {'flavor_id': 'fn-none'}, {}, 'flavor fn-none'),
        (400, 'clusters', good | {'master_flavor_id': 'fn-none'}, {}, 'flavor fn-none'),
        (400, 'clusters', good | {'fixed_network': 'fn-none'}, {}, 'network fn-none'),
        (404, 'clusters', good | {'keypair': 'fn-none'}, {}, 'keypair fn-none'),
        (404, 'clusters', good | {'cluster_template_id': 'fn-none'}, {}, 'fn-none'),
        (400, 'clusters', good | {'cluster_template_id': 'fn-none'}, old, 'fn-none'),
        (400, 'clusters', good | {'master_count': 2}, {}, 'odd'),
        (400, 'clusters', good | {'node_count': 'many'}, {}, 'node_count'),
        (400, 'clusters', good | {'nodes': 3}, {}, 'nodes'),
        (406, 'clusters', good, {'OpenStack-API-Version': 'container-infra 1.999'}, ''),
        (401, 'clusters', good, {'X-Auth-Token': 'nobody'}, ''),
    ]

    try:
        answers = [
            post(service, project, path, {**project.headers, **headers}, **body)
            for _, path, body, headers, _ in wrong
        ]
        malformed = requests.post(
            f'{service.url}/v1/clusters',
            data='{"name": ',
            timeout=60,
            headers={**project.headers, 'Content-Type': 'application/json'},
        )
    finally:
        project.cloud.image.delete_image(image)

    for (expected, path, body, headers, word), (status, answer) in zip(wrong, answers, strict=True):
        assert status == expected, (path, body, headers, answer)
        if word:
            assert word in answer['errors'][0]['detail'], (path, body, answer)
            assert answer['faultstring'] == answer['errors'][0]['detail']
    assert malformed.status_code == 400
    for table in ('cluster_templates', 'clusters', 'operations'):
        rows = service.rows(
            f'SELECT uuid FROM {table} WHERE project_id = :project', project=project.id
        )
        assert [r['uuid'] for r in rows] == (
            [template['uuid']] if table == 'cluster_templates' else []
        )


def test_the_main_job(
    asked: dict[str, Cluster], service: Service, sandbox: Sandbox, say: Say
) -> None:
    cluster = asked['whole']
    project = cluster.project

    shown = cluster.wait('CREATE_COMPLETE')

    [operation] = cluster.operations
    say(
        f'POST to CREATE_COMPLETE, 1 master and 2 workers, 4 other clusters beside it: '
        f'{(operation["ended_at"] - operation["created_at"]).total_seconds():.0f} s'
    )
    say(
        'POST to the stack sent to Heat: '
        f'{(operation["begun_at"] - operation["created_at"]).total_seconds():.1f} s'
    )
    assert (operation['kind'], operation['outcome'], operation['code']) == (
        'create',
        'complete',
        None,
    )
    assert (operation['begun_at'] - operation['created_at']).total_seconds() < LONG_TICK_S / 2, (
        'by a tick, no nudge'
    )
    assert_that_the_cloud_has_it(project, shown)
    assert_that_listings_agree(service, project, shown)
    assert (
        len(service.rows('SELECT id FROM cluster_keys WHERE cluster_id = :uuid', uuid=cluster.uuid))
        == KEYS
    )
    users = project.stack_users()
    assert len(users) == 4, 'one user for each node, in a project of Heat'
    assert project.leftovers()['roles of the service']
    if has_client():
        with sandbox.client_entry(project, f'{service.url}/v1') as entry:
            assert_that_the_client_agrees(entry, shown)
    else:
        say('no python-magnumclient on the path: not tried')
        cluster.delete()


def assert_that_the_cloud_has_it(project: Project, shown: dict[str, Any]) -> None:
    """Servers run, floating IPs exist and are what the API says, and the stack tells its members as
    autoscalers ask."""
    cloud = project.cloud
    servers = {s.name: s for s in cloud.compute.servers()}
    addresses = {f.floating_ip_address for f in cloud.network.ips(project_id=project.id)}
    [stack] = project.stacks()
    minions = cloud.orchestration.get(
        f'/stacks/{stack.name}/{stack.id}/resources/kube_minions'
    ).json()['resource']
    nested = cloud.orchestration.get(f'/stacks/{minions["physical_resource_id"]}').json()['stack']
    refs_map = next(o['output_value'] for o in nested['outputs'] if o['output_key'] == 'refs_map')

    beginning = f'fn-whole-{shown["uuid"][:8]}'
    assert set(servers) == {
        f'{beginning}-master-0',
        f'{beginning}-worker-0',
        f'{beginning}-worker-1',
    }
    assert {s.status for s in servers.values()} == {'ACTIVE'}
    assert len(shown['master_addresses']) == 1 and len(shown['node_addresses']) == 2
    assert {*shown['master_addresses'], *shown['node_addresses']} == addresses
    assert shown['api_address'] == f'https://{shown["master_addresses"][0]}:6443'
    assert (stack.id, stack.status) == (shown['cluster_id'], 'CREATE_COMPLETE')
    assert refs_map == {str(n): servers[f'{beginning}-worker-{n}'].id for n in (0, 1)}
    for name, address in [
        (f'{beginning}-master-0', shown['master_addresses'][0]),
        *((f'{beginning}-worker-{n}', shown['node_addresses'][n]) for n in (0, 1)),
    ]:
        assert address in [a['addr'] for net in servers[name].addresses.values() for a in net]


def assert_that_listings_agree(service: Service, project: Project, shown: dict[str, Any]) -> None:
    def get(path: str, headers: dict[str, str] | None = None) -> Any:
        status, body = service.request('GET', path, headers={**project.headers, **(headers or {})})
        assert status == 200, body
        return body

    def without_health(cluster: dict[str, Any]) -> dict[str, Any]:
        """Return what no probe changes: one may end between two requests."""
        return {k: v for k, v in cluster.items() if not k.startswith('health_status')}

    [brief] = get('/v1/clusters')['clusters']
    [detail] = get('/v1/clusters/detail')['clusters']
    steady = without_health(shown)

    assert brief.keys() <= shown.keys() and 'api_address' not in brief
    assert without_health(brief) == {k: v for k, v in steady.items() if k in brief}
    assert detail.keys() == shown.keys()
    assert without_health(detail) == steady
    assert without_health(get('/v1/clusters/fn-whole')) == steady
    assert (
        get(f'/v1/clusters/{shown["uuid"]}', {'OpenStack-API-Version': 'container-infra 1.12'})[
            'stack_id'
        ]
        == shown['cluster_id']
    )
    assert get('/v1/clustertemplates/fn-template')['uuid'] == shown['cluster_template_id']
    assert shown['status_reason'] is None and shown['node_count'] == 2 and shown['coe_version']


def assert_that_the_client_agrees(cloud_name: str, shown: dict[str, Any]) -> None:
    """The stock client lists, shows and deletes."""
    environ = {**os.environ, 'OS_CLOUD': cloud_name}

    def coe(*words: str) -> Any:
        done = subprocess.run(
            ['openstack', 'coe', *words], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if '-f' in words else None

    [listed] = coe('cluster', 'list', '-f', 'json')
    one = coe('cluster', 'show', 'fn-whole', '-f', 'json')
    template = coe('cluster', 'template', 'show', 'fn-template', '-f', 'json')
    coe('cluster', 'delete', 'fn-whole')

    assert {k: listed[k] for k in ('uuid', 'name', 'node_count', 'master_count', 'status')} == {
        k: shown[k] for k in ('uuid', 'name', 'node_count', 'master_count', 'status')
    }
    for name in (
        'uuid',
        'status',
        'api_address',
        'master_addresses',
        'node_addresses',
        'labels',
        'flavor_id',
    ):
        assert one[name] == shown[name]
    assert (template['uuid'], template['image_id'], template['coe']) == (
        shown['cluster_template_id'],
        'ubuntu',
        'kubernetes',
    )


def test_a_flavor_that_fits_no_host_fails_with_a_reason(
    asked: dict[str, Cluster], say: Say
) -> None:
    cluster = asked['no host']

    shown = cluster.wait('CREATE_FAILED')

    say(f'a flavor that fits no host: {shown["status_reason"][:150]}')
    assert 'no valid host' in shown['status_reason'].lower()
    assert shown['status_reason'].startswith('No compute host has room for a server of this flavor')
    assert set(shown['faults']) == {'default-master', 'default-worker'}
    assert 'no valid host' in shown['faults']['default-master'].lower()
    assert [(o['outcome'], o['code']) for o in cluster.operations] == [('failed', 'NO_VALID_HOST')]
    assert cluster.project.stack_users()
    cluster.delete()


def test_a_node_that_reports_failure_fails_the_cluster_with_its_words(
    asked: dict[str, Cluster], say: Say
) -> None:
    cluster = asked['node fails']

    shown = cluster.wait('CREATE_FAILED')

    say(f'a node that fails: {shown["status_reason"][:150]}')
    assert NODE_REASON in shown['status_reason']
    assert NODE_REASON in shown['faults']['default-master']
    assert [(o['outcome'], o['code']) for o in cluster.operations] == [('failed', 'NODE_FAILED')]
    _, body = cluster.service.request(
        'GET', f'/v1/clusters/{cluster.uuid}/nodes', headers=cluster.project.headers
    )
    assert [(n['name'].rpartition('-')[2], n['status'], n['code']) for n in body['nodes']] == [
        ('0', 'CREATE_FAILED', 'NODE_FAILED')
    ]
    assert NODE_REASON in body['nodes'][0]['status_reason']
    assert shown['error_code'] == 'NODE_FAILED'
    cluster.delete()


def test_an_application_credential_makes_and_deletes_a_cluster(
    asked: dict[str, Cluster], headers_of_credential: dict[str, str]
) -> None:
    cluster = asked['credential']

    cluster.wait('CREATE_COMPLETE')

    cluster.delete(headers_of_credential)
    assert cluster.get()['status'] == 'DELETE_IN_PROGRESS'


def test_an_existing_network_is_used(asked: dict[str, Cluster]) -> None:
    cluster = asked['existing network']
    cloud = cluster.project.cloud

    shown = cluster.wait('CREATE_COMPLETE')

    [network] = cloud.network.networks(project_id=cluster.project.id)
    ports = [
        p
        for p in cloud.network.ports(network_id=network.id)
        if p.device_owner.startswith('compute')
    ]
    assert (network.name, shown['fixed_network'], shown['fixed_subnet']) == (
        'private',
        'private',
        None,
    )
    assert len(ports) == 2
    assert all(
        ipaddress.ip_address(p.fixed_ips[0]['ip_address']) in ipaddress.ip_network(CIDR)
        for p in ports
    )
    assert len(list(cloud.network.routers(project_id=cluster.project.id))) == 1
    cluster.delete()


def test_an_engine_beside_it_stands_behind_its_load_balancer_and_tells_its_version(
    asked: dict[str, Cluster],
) -> None:
    cluster = asked['other engine']
    balancers = cluster.project.cloud.load_balancer

    shown = cluster.wait('CREATE_COMPLETE')

    assert (len(shown['master_addresses']), len(shown['node_addresses'])) == (3, 1)
    assert shown['coe_version'] == '20.10.24'
    [balancer] = balancers.load_balancers(project_id=cluster.project.id)
    [address] = cluster.project.cloud.network.ips(port_id=balancer.vip_port_id)
    assert shown['api_address'] == f'tcp://{address.floating_ip_address}:2376'
    pools = [
        len(list(balancers.members(pool))) for pool in balancers.pools(loadbalancer_id=balancer.id)
    ]
    assert pools == [3, 3]
    cluster.delete()


# -- processes that die, brokers that are away -----------------------------------------------------


def test_a_conductor_killed_at_any_moment_of_the_create_leaves_one_stack(
    lone: Callable[..., Service], project: Project, say: Say
) -> None:
    chance = random.Random(SEED)
    service = lone(extra={'conductor': {'tick': 1, 'lease': 20, 'watch_interval': 1}})

    def until_the_stack_is_there(cluster: Cluster) -> None:
        """Until Heat has made it, and the conductor, which stands still meanwhile, has not heard
        so."""
        poll(
            lambda: cluster.operations[0]['begun_at'],
            STACK_S,
            'the conductor calls Heat',
            every_s=0.01,
        )
        time.sleep(0.1)
        service.freeze_conductor()
        with contextlib.suppress(
            AssertionError
        ):  # then it stood still before it had sent the call: as good a moment
            poll(cluster.stacks, 20, 'the stack is there')

    def wait_for_the_note(cluster: Cluster) -> None:
        cluster.stack_id()
        time.sleep(chance.uniform(0.5, 4))

    moments: dict[str, Callable[[Cluster], Any]] = {
        'the 202': lambda cluster: time.sleep(chance.uniform(0, 0.5)),
        'the text': lambda cluster: poll(
            lambda: cluster.row['stack_text'], STACK_S, 'the text', every_s=0.01
        ),
        'the stack': until_the_stack_is_there,
        'its note': wait_for_the_note,
    }
    clusters: list[Cluster] = []

    for moment, wait in moments.items():
        service.start_conductor()
        cluster = ask(service, project, name=f'fn-killed-{len(clusters)}', node_count=0)
        clusters.append(cluster)
        wait(cluster)
        service.kill_conductor()
        row = cluster.row
        say(
            f'killed after {moment}: stack text {"stored" if row["stack_text"] else "not stored"}, '
            f'stack id {"known" if row["stack_id"] else "not known"}, stacks in Heat '
            f'{len(cluster.stacks())}'
        )
        cluster.play_nodes()
    service.start_conductor()

    for cluster in clusters:
        cluster.wait('CREATE_COMPLETE')
        [stack] = cluster.stacks()
        assert stack.id == cluster.row['stack_id']
        assert [(o['kind'], o['outcome']) for o in cluster.operations] == [('create', 'complete')]
        assert (
            len(
                service.rows(
                    'SELECT id FROM cluster_keys WHERE cluster_id = :uuid', uuid=cluster.uuid
                )
            )
            == KEYS
        )
        say(f'{cluster.get()["name"]}: CREATE_COMPLETE')
    for cluster in clusters:
        cluster.delete()
    for cluster in clusters:
        cluster.wait('GONE')
    clusters[-1].assert_nothing_is_left()


def test_a_broker_that_is_away_or_hangs_delays_no_request_and_loses_no_cluster(
    lone: Callable[..., Service], project: Project, say: Say
) -> None:
    broker = sa.make_url(services.RABBITMQ)
    forwarder = Forwarder(broker.host or '', broker.port or 5672)
    with services.own_vhost() as url:
        through = sa.make_url(url).set(host='127.0.0.1', port=forwarder.port)
        service = lone(
            transport_url=through.render_as_string(hide_password=False),
            extra={'conductor': {'tick': 3}},
        )
        took_s: dict[str, float] = {}

        def timed(name: str) -> Cluster:
            made = ask(service, project, name=f'fn-{name}', node_count=0)
            answered_at = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
            took_s[name] = (answered_at - made.row['created_at']).total_seconds()
            made.play_nodes()
            return made

        forwarder.down()
        away = timed('away')
        forwarder.hang()
        hanging = timed('hanging')
        service.start_conductor()  # while the broker hangs: ticks find the clusters
        away.wait('CREATE_COMPLETE')
        hanging.wait('CREATE_COMPLETE')
        without_s = (hanging.row['updated_at'] - hanging.row['created_at']).total_seconds()
        forwarder.down()
        away.delete()
        forwarder.up()
        back = timed('back')
        back.wait('CREATE_COMPLETE')
        back.delete()
        hanging.delete()

        say(
            'from the row to the 202, by broker: '
            + ', '.join(f'{name} {s:.1f} s' for name, s in took_s.items())
        )
        say(f'CREATE_COMPLETE without a broker: {without_s:.0f} s')
        assert max(took_s.values()) < AT_ONCE_S
        for cluster in (away, back, hanging):
            cluster.wait('GONE')
        back.assert_nothing_is_left()
        forwarder.down()


def test_a_conductor_told_to_stop_in_mid_work_hands_back(
    lone: Callable[..., Service], project: Project, say: Say
) -> None:
    service = lone(extra={'conductor': {'tick': 1, 'lease': 600}})
    service.start_conductor()

    cluster = ask(service, project, name='fn-told', node_count=0)
    poll(lambda: cluster.row['stack_text'], 60, 'the conductor calls Heat', every_s=0.01)
    holder = cluster.row['leased_by']
    took_s = service.stop_conductor()
    row = cluster.row

    say(
        f'SIGTERM while {holder} made the stack: gone after {took_s:.1f} s, stack id '
        f'{"known" if row["stack_id"] else "not known"}'
    )
    assert (row['leased_by'], row['leased_until']) == (None, None)
    assert row['check_at'] is not None
    begun = time.monotonic()
    service.start_conductor()
    cluster.stack_id()
    cluster.delete()
    cluster.wait('GONE')
    say(
        f'the next conductor had seen to it and to its DELETE after {time.monotonic() - begun:.0f} '
        's; the lease was for 600 s'
    )
    cluster.assert_nothing_is_left()


# -- what was deleted meanwhile --------------------------------------------------------------------


@pytest.mark.parametrize('story', STORIES)
def test_delete_leaves_nothing(asked: dict[str, Cluster], story: str) -> None:
    cluster = asked[story]
    if not any(o['kind'] == 'delete' for o in cluster.operations):
        cluster.delete()

    cluster.wait('GONE')

    cluster.assert_nothing_is_left(
        *(('networks', 'routers', 'ports') if story == 'existing network' else ())
    )
    last = cluster.operations[-1]
    assert (last['kind'], last['outcome'], last['code']) == ('delete', 'complete', None), (
        'the history stays'
    )
