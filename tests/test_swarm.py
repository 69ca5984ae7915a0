"""The driver folder of Docker swarms: what test_drivers.py cannot know of it."""

from __future__ import annotations

import json
import pathlib
import shutil
import socket
import ssl
import subprocess
from typing import Any

import pytest
from cryptography import x509
from oslo_config import cfg
from rendering import LIFE, a_cluster, parse, unpacked, user_data, with_new_master

from magnum_lite import certs, drivers, models

FLANNEL: dict[str, Any] = {'template': {'network_driver': 'flannel'}}
FILES = drivers.BUILT_IN / '_shared' / 'files'


@pytest.fixture
def driver(conf: cfg.ConfigOpts) -> drivers.Driver:
    return drivers.load(conf).find(server_type='vm', os_distro='debian', coe='swarm')


@pytest.fixture(scope='module')
def secrets() -> dict[str, certs.Pair]:
    ca, join = certs.make_ca('docker', life=30 * LIFE), certs.make_ca('join', life=30 * LIFE)
    return {
        'ca': ca,
        'join': join,
        'joining': certs.issue_client(join, common_name='node-join', organization=None, life=LIFE),
        'flannel': certs.issue_client(join, common_name='flannel', organization=None, life=None),
    }


def files_of(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    cluster: models.Cluster,
    secrets: dict[str, certs.Pair],
) -> dict[str, dict[str, str]]:
    """What nodes get, by role."""
    texts = user_data(driver, driver.render(conf, cluster, secrets))
    return {name.removesuffix('_user_data'): unpacked(text) for name, text in texts.items()}


@pytest.mark.parametrize('os_distro', ['ubuntu', 'debian', 'opensuse'])
@pytest.mark.parametrize('coe', ['swarm', 'swarm-mode'])
def test_both_names_of_the_engine_are_found_on_each_image(
    conf: cfg.ConfigOpts, os_distro: str, coe: str
) -> None:
    assert (
        drivers.load(conf).find(server_type='vm', os_distro=os_distro, coe=coe).name
        == 'swarm_cloud_init'
    )


def test_what_a_swarm_cannot_be_is_said(driver: drivers.Driver) -> None:
    assert driver.template_defaults == {'network_driver': 'docker'}
    assert driver.check_template({'network_driver': 'docker', 'tls_disabled': False}) == []
    assert driver.check_template({'network_driver': 'flannel'}) == []
    assert driver.check_template(
        {'network_driver': 'calico', 'volume_driver': 'rexray', 'tls_disabled': True}
    ) == [
        "network_driver cannot be 'calico' with driver swarm_cloud_init: it must be one of docker, "
        "flannel (services of a "
        "swarm use Docker's own overlay networks with both; with flannel the containers of a "
        "node's own bridge have "
        'addresses that all nodes reach)',
        "volume_driver cannot be 'rexray' with driver swarm_cloud_init: it must be None (there is "
        "no "
        "volume plugin for "
        'Docker that is maintained)',
        "tls_disabled cannot be True with driver swarm_cloud_init: it must be False (whoever "
        "reaches "
        "Docker's API without "
        'TLS is root on the node)',
    ]


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'template': {'external_network_id': None}}, ['external_network_id']),
        ({'masters': 3, 'master_lb_enabled': False}, ['master_lb_enabled']),
        ({'masters': 2}, ['majority', '1, 3, 5 or 7']),
        ({'template': {'apiserver_port': 2378}}, ['2378', 'apiserver_port']),
        ({'fixed_subnet': 'sub'}, ['fixed_network']),
        ({'labels': {'docker_tarball_url': 'https://a/b'}}, ['docker_tarball_sha256']),
        ({'labels': {'overlay_network_cidr': '10.0.0.0/8'}}, ['overlaps', '10.0.0.0/8']),
        (
            {'labels': {'flannel_network_cidr': '10.100.0.0/16'}, **FLANNEL},
            ['overlaps', 'overlay_network_cidr'],
        ),
        (
            {'labels': {'flannel_network_subnetlen': '17'}, **FLANNEL},
            ['room for 2 nodes', '3 are asked for'],
        ),
        ({'labels': {'flannel_tarball_url': 'https://a/b'}}, ['flannel_tarball_sha256']),
        ({'labels': {'etcd_tarball_sha256': '0' * 64}}, ['etcd_tarball_url']),
        (
            {'template': {'network_driver': 'flannel', 'apiserver_port': 2379}},
            ['2379', 'apiserver_port'],
        ),
        ({'labels': {'overlay_network_subnetlen': '16'}}, ['overlay_network_subnetlen']),
        ({'labels': {'fixed_subnet_cidr': '10.0.0.0/30'}}, ['room for 0 nodes', '3 are asked for']),
    ],
)
def test_cluster_beyond_a_limit_of_the_folder_is_refused(
    driver: drivers.Driver, conf: cfg.ConfigOpts, changes: dict[str, Any], words: list[str]
) -> None:
    problems = driver.check_cluster(conf, a_cluster(driver, **changes))

    assert len(problems) == 1
    assert all(word in problems[0] for word in words), problems


def test_taints_are_refused(driver: drivers.Driver, conf: cfg.ConfigOpts) -> None:
    cluster = a_cluster(driver)
    cluster.nodegroups[1].node_taints = [{'key': 'a', 'value': 'b', 'effect': 'NoSchedule'}]

    assert driver.check_cluster(conf, cluster) == [
        'A swarm knows no taints; give nodes labels, and services constraints on engine.labels'
    ]


def test_docker_is_configured_as_the_cluster_says(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    cluster = a_cluster(
        driver,
        docker_volume_size=3,
        labels={'registry_mirrors': 'https://m/1,https://m/2'},
        template={'insecure_registry': 'registry:5000', 'apiserver_port': 7777},
    )
    cluster.nodegroups[1].node_labels = {'example.com/tier': 'x'}

    made = {
        role: json.loads(
            files[f'/etc/magnum-lite/{"manager" if role == "master" else "daemon"}.json']
        )
        for role, files in files_of(driver, conf, cluster, secrets).items()
    }

    assert made['worker'].pop('labels') == [
        'magnum.openstack.org.role=worker',
        'magnum.openstack.org.nodegroup=default-worker',
        'example.com.tier=x',
    ]
    assert made['worker'] == {
        'hosts': ['unix:///run/docker.sock'],
        'insecure-registries': ['registry:5000'],
        'registry-mirrors': ['https://m/1', 'https://m/2'],
        'features': {'containerd-snapshotter': False},
        'log-driver': 'json-file',
        'log-opts': {'max-size': '50m', 'max-file': '3'},
    }
    assert made['master']['hosts'] == ['unix:///run/docker.sock', 'tcp://0.0.0.0:7777']
    assert made['master']['tlsverify'] is True
    assert {made['master'][name] for name in ('tlscacert', 'tlscert', 'tlskey')} == {
        f'/etc/docker/tls/{name}' for name in ('ca.crt', 'server.crt', 'server.key')
    }


def test_workers_get_nothing_that_opens_the_api(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    files = files_of(driver, conf, a_cluster(driver), secrets)

    joining = x509.load_pem_x509_certificate(
        files['worker']['/etc/magnum-lite/pki/join.crt'].encode()
    )
    issuer = x509.load_pem_x509_certificate(files['master']['/etc/docker/tls/join-ca.crt'].encode())
    joining.verify_directly_issued_by(issuer)
    with pytest.raises(ValueError, match='subject does not match'):
        joining.verify_directly_issued_by(
            x509.load_pem_x509_certificate(secrets['ca'].certificate.encode())
        )
    assert secrets['join'].private_key not in ''.join(files['master'].values()) + ''.join(
        files['worker'].values()
    )


def test_the_load_balancer_leads_workers_from_the_subnet_to_where_they_are_invited(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    parsed = parse(driver.render(conf, a_cluster(driver, masters=3), secrets))

    resources = parsed['']['resources']
    assert resources['join_listener']['properties']['protocol_port'] == 2378
    assert resources['join_listener']['properties']['allowed_cidrs'] == [
        {'get_param': 'fixed_subnet_cidr'}
    ]
    assert parsed['master.yaml']['resources']['join_member']['properties']['protocol_port'] == 2378


def test_a_new_manager_knows_whose_place_it_takes(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    def replaces(cluster: models.Cluster) -> str:
        environment = files_of(driver, conf, cluster, secrets)['master'][
            '/etc/magnum-lite/node.env'
        ]
        return dict(line.split('=', 1) for line in environment.splitlines())['NODE_REPLACES']

    cluster = a_cluster(driver, masters=3)
    first = replaces(cluster)
    with_new_master(cluster)

    assert (first, replaces(cluster)) == ("''", 'c-master-0')


# With flannel.


def test_with_flannel_nodes_know_the_managers_that_stay(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    cluster = a_cluster(driver, masters=3, **FLANNEL)

    parsed = parse(driver.render(conf, cluster, secrets))
    without = parse(driver.render(conf, a_cluster(driver, masters=3), secrets))

    assert 'network_driver is flannel' in str(driver.explain_irreplaceable(cluster, 'master'))
    assert {f'master_port_{n}' for n in range(3)} <= set(parsed['']['resources'])
    assert 'master_private_addresses' in parsed['']['outputs']
    ports = [
        rule.get('port_range_min')
        for group in ('node', 'master')
        for rule in parsed['']['resources'][f'{group}_security_group']['properties']['rules']
    ]
    assert [port in ports for port in (8472, 8285, 2379, 2380)] == [True] * 4
    assert not {name for name in without['']['resources'] if name.startswith('master_port_')}
    assert 'master_private_addresses' not in without['']['outputs']


def test_with_flannel_every_node_gets_a_certificate_that_invites_nobody(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    files = files_of(driver, conf, a_cluster(driver, **FLANNEL), secrets)
    without = files_of(driver, conf, a_cluster(driver), secrets)

    for role in ('master', 'worker'):
        given = {
            path.rpartition('/')[2]: text
            for path, text in files[role].items()
            if '/flannel/' in path
        }
        assert given == {
            'ca.crt': secrets['ca'].certificate,
            'client.crt': secrets['flannel'].certificate,
            'client.key': secrets['flannel'].private_key,
        }
        assert not [path for path in without[role] if 'flannel' in path]
    made = x509.load_pem_x509_certificate(secrets['flannel'].certificate.encode())
    ends = x509.load_pem_x509_certificate(secrets['join'].certificate.encode()).not_valid_after_utc
    assert abs((made.not_valid_after_utc - ends).total_seconds()) < 60
    assert made.subject.rfc4514_string() == 'CN=flannel'


# How it is.


def node(name: str, state: str = 'ready', **more: Any) -> dict[str, Any]:
    return {
        'ID': f'id-of-{name}',
        'Description': {'Hostname': name},
        'Status': {'State': state},
        'Spec': {'Role': 'worker'},
        **more,
    }


M = 'c-master-0', 'c-worker-0'
OK = drivers.HealthResponse(200, 'OK')
LEADER: dict[str, Any] = {'ManagerStatus': {'Reachability': 'reachable', 'Leader': True}}
LOST: dict[str, Any] = {'ManagerStatus': {'Reachability': 'unreachable'}}


@pytest.mark.parametrize(
    ('api', 'status', 'body', 'healthy', 'reason'),
    [
        (
            OK,
            200,
            [node(M[0], **LEADER), node(M[1])],
            True,
            {'api': 'ok', f'{M[0]}.Ready': 'True', f'{M[1]}.Ready': 'True'},
        ),
        (
            OK,
            200,
            [node(M[0], **LEADER), node(M[1], 'down')],
            False,
            {'api': 'ok', f'{M[0]}.Ready': 'True', f'{M[1]}.Ready': 'False'},
        ),
        (OK, 200, [node(M[0], **LOST)], False, {'api': 'ok', f'{M[0]}.Ready': 'False'}),
        (OK, 200, [node(M[0], 'unknown')], False, {'api': 'ok', f'{M[0]}.Ready': 'Unknown'}),
        (
            OK,
            200,
            [node('c-removed-1', 'down'), node(M[1], 'down'), node(M[1])],
            True,
            {'api': 'ok', f'{M[1]}.Ready': 'True'},
        ),
        (OK, 200, [node('a-stranger', 'down')], False, {'api': 'ok', 'a-stranger.Ready': 'False'}),
        (
            OK,
            503,
            {'message': 'This node is not a swarm manager'},
            None,
            {'api': 'ok', 'nodes': 'The list of nodes could not be read (HTTP 503)'},
        ),
        (
            OK,
            200,
            {'message': 'x'},
            None,
            {'api': 'ok', 'nodes': 'The list of nodes could not be read (HTTP 200)'},
        ),
        (drivers.HealthResponse(500, 'x'), 500, None, False, {'api': 'not ready (HTTP 500)'}),
        (
            drivers.HealthResponse(None, 'It does not answer in time'),
            None,
            None,
            False,
            {'api': 'It does not answer in time'},
        ),
    ],
)
def test_answers_of_an_engine_become_its_health(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    api: drivers.HealthResponse,
    status: int | None,
    body: Any,
    healthy: bool | None,
    reason: dict[str, str],
) -> None:
    cluster = a_cluster(driver, workers=1, api_address='tcp://192.0.2.1:2376')

    seen = driver.read_health(
        conf, cluster, {'api': api, 'nodes': drivers.HealthResponse(status, '', body)}
    )

    assert (seen.healthy, seen.reason) == (healthy, reason)


def test_workers_that_were_removed_and_are_down_are_forgotten(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    known = [
        node('c-worker-0', 'down'),
        node('c-worker-7', 'down'),
        node('c-worker-8'),
        node('stranger', 'down'),
        node('stranger', 'down'),
        node('c-master-9', 'down', Spec={'Role': 'manager'}),
    ]

    seen = driver.read_health(
        conf,
        a_cluster(driver, workers=1),
        {'api': OK, 'nodes': drivers.HealthResponse(200, '', known)},
    )

    assert seen.stale_paths == ('/nodes/id-of-c-worker-7?force=true',)


def test_it_is_asked_by_https(driver: drivers.Driver, conf: cfg.ConfigOpts) -> None:
    check = driver.build_health_check(conf, a_cluster(driver, api_address='tcp://192.0.2.1:2376'))

    assert check is not None
    assert {r.url for r in check.requests.values()} == {
        'https://192.0.2.1:2376/_ping',
        'https://192.0.2.1:2376/nodes',
    }
    assert check.authority == 'ca'


# The scripts, with openssl and socat as they are on nodes.


class Place:
    """A folder with the scripts, and a `docker` that says what a manager's would."""

    def __init__(self, folder: pathlib.Path, secrets: dict[str, certs.Pair]) -> None:
        self.folder = folder
        for name, text in {
            'tls/ca.crt': secrets['ca'].certificate,
            'tls/join-ca.crt': secrets['join'].certificate,
            'pki/ca.key': secrets['ca'].private_key,
            'pki/join.crt': secrets['joining'].certificate,
            'pki/join.key': secrets['joining'].private_key,
            'docker': '#!/bin/sh\ncase $1 in swarm) echo SWMTKN-1-a-b ;; '
            'info) echo "$3" | sed "s/{.*/ 192.0.2.1:2377/" ;; esac\n',
        }.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        (folder / 'docker').chmod(0o755)
        for name in ('swarm.sh', 'docker.sh', 'swarm-invite.sh'):
            text = (
                (FILES / name)
                .read_text()
                .replace('/etc/docker/tls', f'{folder}/tls')
                .replace('/etc/magnum-lite/pki', f'{folder}/pki')
                .replace('/etc/magnum-lite', str(folder))
                .replace('/opt/magnum-lite', str(folder))
            )
            (folder / name).write_text(text.replace('PATH=', f'PATH={folder}:'))
        with socket.create_server(('127.0.0.1', 0)) as free:
            self.port = free.getsockname()[1]
        self.settings = (
            f'NODE_NAME=n-0 NODE_ADDRESS=127.0.0.1 NODE_FLOATING_IP= API_ADDRESS=127.0.0.1 '
            f'API_FLOATING_IP=192.0.2.7 API_NAMES="api.example 192.0.2.8" JOIN_PORT={self.port}\n'
        )
        (folder / 'node.env').write_text(self.settings)

    def run(self, function: str, role: str = 'worker') -> subprocess.CompletedProcess[str]:
        """Call a function of the engine's script."""
        script = f'set -eu; NODE_ROLE={role}\n{self.settings}. {self.folder}/swarm.sh\n{function}'
        return subprocess.run(['sh', '-c', script], capture_output=True, text=True, check=False)


@pytest.fixture
def place(tmp_path: pathlib.Path, secrets: dict[str, certs.Pair]) -> Place:
    return Place(tmp_path, secrets)


def test_a_manager_makes_a_certificate_for_all_its_names(
    place: Place, secrets: dict[str, certs.Pair]
) -> None:
    done = place.run('make_certificate', 'master')

    assert done.returncode == 0, done.stderr
    made = x509.load_pem_x509_certificate((place.folder / 'tls/server.crt').read_bytes())
    made.verify_directly_issued_by(
        x509.load_pem_x509_certificate(secrets['ca'].certificate.encode())
    )
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {'n-0', 'localhost', 'api.example'}
    assert {str(a) for a in names.get_values_for_type(x509.IPAddress)} == {
        '127.0.0.1',
        '192.0.2.7',
        '192.0.2.8',
    }
    assert (place.folder / 'tls/server.key').stat().st_mode & 0o077 == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place.folder / 'tls/server.crt', place.folder / 'tls/server.key')


@pytest.mark.skipif(
    shutil.which('socat') is None, reason='socat, which managers have, is not on this machine'
)
def test_a_worker_is_invited_by_its_certificate_and_by_no_other(
    place: Place, secrets: dict[str, certs.Pair]
) -> None:
    assert place.run('make_certificate', 'master').returncode == 0
    wrong = certs.issue_client(secrets['ca'], common_name='admin', organization=None, life=LIFE)
    manager = subprocess.Popen(['sh', str(place.folder / 'swarm-invite.sh')])
    try:
        invited = place.run(
            'i=0; until ask; do i=$((i + 1)); [ $i -lt 200 ] || exit 1; sleep 0.1; done'
        )
        (place.folder / 'pki/join.crt').write_text(wrong.certificate)
        (place.folder / 'pki/join.key').write_text(wrong.private_key)
        invitation = (place.folder / 'pki/invitation').read_text()
        refused = [place.run('ask')]
        for name, text in (
            ('crt', secrets['flannel'].certificate),
            ('key', secrets['flannel'].private_key),
        ):
            (place.folder / f'pki/join.{name}').write_text(text)
        refused.append(place.run('ask'))
    finally:
        manager.terminate()
        manager.wait()

    assert invited.returncode == 0, invited
    assert invitation == 'SWMTKN-1-a-b 192.0.2.1:2377\n'
    assert 'SWMTKN' not in invited.stdout + invited.stderr, 'what is logged may be shown to users'
    assert [done.returncode for done in refused] == [1, 1]
    assert (place.folder / 'pki/invitation').read_text() == ''
