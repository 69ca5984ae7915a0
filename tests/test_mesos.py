"""The driver folder of Mesos: what test_drivers.py cannot know of it, and flannel without
Kubernetes."""

from __future__ import annotations

import json
import pathlib
import shlex
import subprocess
from typing import Any

import pytest
from oslo_config import cfg
from rendering import a_cluster, functions, parse, unpacked, user_data

from magnum_lite import drivers, models

FILES = drivers.BUILT_IN / '_shared' / 'files'


@pytest.fixture
def driver(conf: cfg.ConfigOpts) -> drivers.Driver:
    return drivers.load(conf).find(server_type='vm', os_distro='debian', coe='mesos')


def files_of(
    driver: drivers.Driver, conf: cfg.ConfigOpts, cluster: models.Cluster
) -> dict[str, dict[str, str]]:
    """What nodes get, by role."""
    texts = user_data(driver, driver.render(conf, cluster, {}))
    return {name.removesuffix('_user_data'): unpacked(text) for name, text in texts.items()}


def environment(files: dict[str, str]) -> dict[str, str]:
    """What a node's settings are, as its shell reads them."""
    return dict(word.split('=', 1) for word in shlex.split(files['/etc/magnum-lite/node.env']))


@pytest.mark.parametrize('os_distro', ['ubuntu', 'debian'])
def test_it_is_found_on_each_image(conf: cfg.ConfigOpts, os_distro: str) -> None:
    assert (
        drivers.load(conf).find(server_type='vm', os_distro=os_distro, coe='mesos').name
        == 'mesos_cloud_init'
    )


def test_it_says_what_it_is_and_takes_the_templates_of_old_users(driver: drivers.Driver) -> None:
    text = driver.manifest['text']
    assert all(
        word in text
        for word in ('Experimental', 'retired', 'mesos_package_url', 'no TLS', 'tls_disabled')
    )
    assert driver.template_defaults == {'network_driver': 'flannel'}
    assert driver.check_template({'network_driver': 'docker', 'tls_disabled': False}) == []
    assert driver.check_template({'network_driver': 'flannel', 'tls_disabled': True}) == []
    assert driver.check_template({'network_driver': 'calico', 'volume_driver': 'rexray'}) == [
        "network_driver cannot be 'calico' with driver mesos_cloud_init: it must be one of "
        "flannel, "
        "docker (with docker, "
        'containers of different workers reach each other by ports of their hosts only)',
        "volume_driver cannot be 'rexray' with driver mesos_cloud_init: it must be None (there is "
        "no "
        "volume plugin for "
        'Docker that is maintained)',
    ]


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'template': {'external_network_id': None}}, ['external_network_id']),
        ({'masters': 3, 'master_lb_enabled': False}, ['master_lb_enabled']),
        ({'masters': 2}, ['majority', '1, 3 or 5']),
        ({'masters': 7}, ['slower', '1, 3 or 5']),
        ({'template': {'apiserver_port': 5050}}, ['5050', 'apiserver_port']),
        ({'fixed_subnet': 'sub'}, ['fixed_network']),
        ({'labels': {'mesos_package_url': 'https://a/b'}}, ['mesos_package_sha256']),
        ({'labels': {'marathon_package_sha256': '0' * 64}}, ['marathon_package_url']),
        ({'labels': {'docker_tarball_url': 'https://a/b'}}, ['docker_tarball_sha256']),
        ({'labels': {'etcd_tarball_url': 'https://a/b'}}, ['etcd_tarball_sha256']),
        ({'labels': {'flannel_tarball_url': 'https://a/b'}}, ['flannel_tarball_sha256']),
        ({'labels': {'flannel_network_cidr': '10.0.0.0/8'}}, ['overlaps', '10.0.0.0/8']),
        ({'labels': {'flannel_network_subnetlen': '17'}}, ['room for 2 nodes', '3 are asked for']),
    ],
)
def test_cluster_beyond_a_limit_of_the_folder_is_refused(
    driver: drivers.Driver, conf: cfg.ConfigOpts, changes: dict[str, Any], words: list[str]
) -> None:
    problems = driver.check_cluster(conf, a_cluster(driver, **changes))

    assert len(problems) == 1
    assert all(word in problems[0] for word in words), problems


def test_ranges_of_flannel_do_not_count_without_it(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    cluster = a_cluster(
        driver, labels={'flannel_network_cidr': '10.0.0.0/8'}, template={'network_driver': 'docker'}
    )

    assert driver.check_cluster(conf, cluster) == []


def test_taints_are_refused(driver: drivers.Driver, conf: cfg.ConfigOpts) -> None:
    cluster = a_cluster(driver)
    cluster.nodegroups[1].node_taints = [{'key': 'a', 'value': 'b', 'effect': 'NoSchedule'}]

    assert driver.check_cluster(conf, cluster) == [
        'Mesos knows no taints; give nodes labels, and applications constraints on these '
        'attributes of agents'
    ]


def test_masters_stay_and_workers_can_be_replaced(driver: drivers.Driver) -> None:
    cluster = a_cluster(driver, masters=3)

    assert 'members of ZooKeeper' in str(driver.explain_irreplaceable(cluster, 'master'))
    assert driver.explain_irreplaceable(cluster, 'worker') is None


def test_there_are_no_authorities_to_exchange(driver: drivers.Driver) -> None:
    cluster = a_cluster(driver)

    assert (driver.keys, driver.certificates, driver.access) == ({}, {}, None)
    assert driver.check_rotation(cluster) == [
        f'Driver mesos_cloud_init of cluster {cluster.uuid} cannot exchange authorities; make a '
        'new '
        'cluster'
    ]
    cluster.template.tls_disabled = True
    assert driver.check_rotation(cluster) == [
        f'Cluster {cluster.uuid} is without TLS, so it has no authorities'
    ]


# Addresses that are known beforehand.


@pytest.mark.parametrize(('masters', 'lb'), [(1, False), (1, True), (3, True), (5, True)])
def test_ports_of_masters_are_the_root_stacks_and_every_node_knows_their_addresses(
    driver: drivers.Driver, conf: cfg.ConfigOpts, masters: int, lb: bool
) -> None:
    parsed = parse(
        driver.render(conf, a_cluster(driver, masters=masters, master_lb_enabled=lb), {})
    )

    root = parsed['']['resources']
    ports = [f'master_port_{number}' for number in range(masters)]
    assert [name for name, item in root.items() if name.startswith('master_port_')] == ports
    known = {
        'list_join': [',', [{'get_attr': [port, 'fixed_ips', 0, 'ip_address']} for port in ports]]
    }
    for group in ('kube_masters', 'kube_minions'):
        assert root[group]['properties']['settings']['master_addresses'] == known
    assert parsed['']['outputs']['master_private_addresses']['value'] == known
    assert 'port' not in parsed['master.yaml']['resources']
    for name in ('master.yaml', 'worker.yaml'):
        [filled] = functions(parsed[name], 'str_replace')
        assert filled['params']['@@MASTER_ADDRESSES@@'] == {
            'get_param': ['settings', 'master_addresses']
        }


def test_nodes_of_a_further_group_know_the_masters(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    cluster = a_cluster(driver)
    group = models.NodeGroup(
        uuid='u',
        name='big',
        role='gpu',
        is_default=False,
        node_count=1,
        image_id='i',
        flavor_id='f',
        labels={},
        node_labels={'example.com/tier': 'x', 'fast': ''},
    )
    group.nodes = [models.Node(number=0, name='c-big-0')]
    cluster.nodegroups.append(group)
    outputs = {
        name: f'the-{name}' for name in parse(driver.render(conf, cluster, {}))['']['outputs']
    }

    rendered = driver.render_nodegroup(conf, cluster, group, {}, outputs=outputs)

    assert rendered.parameters['master_private_addresses'] == 'the-master_private_addresses'
    settings = parse(rendered)['']['resources']['kube_minions']['properties']['settings']
    assert settings['master_addresses'] == {'get_param': 'master_private_addresses'}
    seen = environment(unpacked(rendered.parameters['worker_user_data']))
    assert seen['AGENT_ATTRIBUTES'].split(';') == [
        'magnum.openstack.org/name:@@NODE_NAME@@',
        'magnum.openstack.org/nodegroup:big',
        'example.com/tier:x',
        'fast:true',
    ]


# Who may speak to whom.


def rules(parsed: dict[str, Any], group: str) -> dict[tuple[str | None, int | None], set[str]]:
    """From whom, by protocol and port: groups, `itself`, or ranges."""
    found: dict[tuple[str | None, int | None], set[str]] = {}
    for rule in parsed['']['resources'][group]['properties']['rules']:
        port = rule.get('port_range_min')
        key = rule.get('protocol'), port if isinstance(port, int) else port and 8080
        source = (
            rule.get('remote_group_id', {}).get('get_resource')
            or rule.get('remote_ip_prefix')
            or ('itself' if 'remote_mode' in rule else 'anywhere')
        )
        found.setdefault(key, set()).add(source)
    return found


def test_ports_are_open_to_those_who_need_them(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    allowed = '192.0.2.0/24'
    cluster = a_cluster(driver, masters=3, labels={'api_master_lb_allowed_cidrs': allowed})

    parsed = parse(driver.render(conf, cluster, {}))

    assert rules(parsed, 'master_security_group') == {
        ('tcp', 2181): {'node_security_group'},
        ('tcp', 2888): {'itself'},
        ('tcp', 3888): {'itself'},
        ('tcp', 5050): {'node_security_group', allowed},
        ('tcp', 15101): {'itself'},
        ('tcp', 2379): {'node_security_group'},
        ('tcp', 2380): {'itself'},
        ('tcp', 8080): {'node_security_group', allowed},
    }
    assert rules(parsed, 'worker_security_group') == {
        (None, None): {'itself', 'master_security_group'},
        ('tcp', 31000): {'anywhere'},
        ('udp', 31000): {'anywhere'},
    }
    assert rules(parsed, 'node_security_group') == {
        ('tcp', 22): {'anywhere'},
        ('icmp', None): {'anywhere'},
        ('udp', 8472): {'itself'},
        ('udp', 8285): {'itself'},
    }
    for listener in ('listener', 'join_listener'):
        assert parsed['']['resources'][listener]['properties']['allowed_cidrs'] == [
            allowed,
            {'get_param': 'fixed_subnet_cidr'},
        ]


def test_without_flannel_its_ports_are_closed(driver: drivers.Driver, conf: cfg.ConfigOpts) -> None:
    parsed = parse(
        driver.render(conf, a_cluster(driver, template={'network_driver': 'docker'}), {})
    )

    assert {port for _, port in rules(parsed, 'master_security_group')} == {
        2181,
        2888,
        3888,
        5050,
        15101,
        8080,
    }
    assert rules(parsed, 'node_security_group').keys() == {('tcp', 22), ('icmp', None)}


def test_the_load_balancer_asks_only_the_master_that_leads(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    def monitor(**labels: str) -> dict[str, Any]:
        parsed = parse(driver.render(conf, a_cluster(driver, masters=3, labels=labels), {}))
        assert (
            parsed['master.yaml']['resources']['join_member']['properties']['protocol_port'] == 5050
        )
        return dict(parsed['']['resources']['join_health_monitor']['properties'])

    asked = monitor()

    assert (asked['type'], asked['url_path'], asked['expected_codes']) == (
        'HTTP',
        '/master/slaves',
        '200',
    )
    assert monitor(octavia_provider='ovn')['type'] == 'TCP', 'this one has no other'


def test_containers_of_other_nodes_may_speak_through_the_ports_with_host_gw(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    parsed = parse(
        driver.render(conf, a_cluster(driver, masters=3, labels={'flannel_backend': 'host-gw'}), {})
    )

    pair = [{'ip_address': '10.100.0.0/16'}]
    ports = [parsed['']['resources'][f'master_port_{n}'] for n in range(3)]
    ports.append(parsed['worker.yaml']['resources']['port'])
    assert [port['properties']['allowed_address_pairs'] for port in ports] == [pair] * 4


# Labels, and what they come to.


@pytest.mark.parametrize(
    ('label', 'value', 'good'),
    [
        ('mesos_agent_isolation', 'filesystem/linux,docker/runtime', True),
        ('mesos_agent_isolation', 'a b', False),
        ('mesos_agent_image_providers', 'docker,appc', True),
        ('mesos_agent_image_providers', 'oci', False),
        ('mesos_agent_work_dir', '/data/mesos', True),
        ('mesos_agent_work_dir', 'data', False),
        ('mesos_agent_work_dir', '/a b', False),
        ('mesos_agent_work_dir', '/a%b', False),
        ('mesos_agent_executor_env_variables', '{"A": "b", "C_1":"/d:e"}', True),
        ('mesos_agent_executor_env_variables', '{}', True),
        ('mesos_agent_executor_env_variables', '{"A": "b",}', False),
        ('mesos_agent_executor_env_variables', '{"A": "b" "C": "d"}', False),
        ('mesos_agent_executor_env_variables', 'A=b', False),
    ],
)
def test_labels_of_agents_are_checked(
    driver: drivers.Driver, conf: cfg.ConfigOpts, label: str, value: str, good: bool
) -> None:
    assert (driver.check_labels({label: value}, conf) == []) is good
    assert (driver.check_labels({label.replace('agent', 'slave'): value}, conf) == []) is good


def test_flannel_is_configured_as_the_labels_say(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    labels = {
        'flannel_network_cidr': '10.200.0.0/16',
        'flannel_network_subnetlen': '26',
        'flannel_backend': 'host-gw',
    }

    files = files_of(driver, conf, a_cluster(driver, labels=labels))
    without = files_of(driver, conf, a_cluster(driver, template={'network_driver': 'docker'}))

    for role in ('master', 'worker'):
        assert json.loads(environment(files[role])['FLANNEL_CONFIG']) == {
            'Network': '10.200.0.0/16',
            'SubnetLen': 26,
            'Backend': {'Type': 'host-gw'},
        }
        assert '/opt/magnum-lite/flannel.sh' in files[role]
        assert environment(without[role])['FLANNEL_CONFIG'] == ''
        assert '/opt/magnum-lite/flannel.sh' not in without[role]


def test_docker_is_configured_as_the_cluster_says(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    files = files_of(
        driver,
        conf,
        a_cluster(
            driver,
            labels={
                'registry_mirrors': 'https://m/1',
                'mesos_slave_executor_env_variables': '{"A": "b"}',
            },
            docker_volume_size=3,
            template={'insecure_registry': 'registry:5000'},
        ),
    )

    made = json.loads(files['worker']['/etc/magnum-lite/daemon.json'])
    assert made['insecure-registries'] == ['registry:5000']
    assert made['registry-mirrors'] == ['https://m/1']
    assert made['features'] == {'containerd-snapshotter': False}
    assert files['worker']['/etc/magnum-lite/executor-environment.json'] == '{"A": "b"}'
    assert (
        not {'/etc/magnum-lite/daemon.json', '/opt/magnum-lite/docker.sh'} & files['master'].keys()
    )


# How it is.


def agent(name: str, active: bool = True) -> dict[str, Any]:
    return {
        'id': f'x-S-{name}',
        'active': active,
        'attributes': {'magnum.openstack.org/name': name},
    }


W = 'c-worker-0', 'c-worker-1'
OK = drivers.HealthResponse(200, '{"leader":"10.0.0.5:8080"}')


@pytest.mark.parametrize(
    ('api', 'status', 'body', 'healthy', 'reason'),
    [
        (
            OK,
            200,
            {'slaves': [agent(W[0]), agent(W[1])]},
            True,
            {'api': 'ok', f'{W[0]}.Ready': 'True', f'{W[1]}.Ready': 'True'},
        ),
        (
            OK,
            200,
            {'slaves': [agent(W[0]), agent(W[1], active=False)]},
            False,
            {'api': 'ok', f'{W[0]}.Ready': 'True', f'{W[1]}.Ready': 'False'},
        ),
        (
            OK,
            200,
            {'slaves': [agent(W[0])]},
            False,
            {'api': 'ok', f'{W[0]}.Ready': 'True', f'{W[1]}.Ready': 'False'},
        ),
        (
            OK,
            307,
            None,
            None,
            {'api': 'ok', 'nodes': 'mesos-master gives no list of agents (HTTP 307)'},
        ),
        (
            OK,
            200,
            {'message': 'x'},
            None,
            {'api': 'ok', 'nodes': 'mesos-master gives no list of agents (HTTP 200)'},
        ),
        (
            drivers.HealthResponse(404, 'x'),
            503,
            None,
            False,
            {'api': 'no instance of Marathon leads (HTTP 404)'},
        ),
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
    cluster = a_cluster(driver, workers=2, api_address='http://192.0.2.1:8080')

    seen = driver.read_health(
        conf, cluster, {'api': api, 'agents': drivers.HealthResponse(status, '', body)}
    )

    assert (seen.healthy, seen.reason, seen.stale_paths) == (healthy, reason, ())


def test_a_worker_that_is_being_made_may_be_missing(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    cluster = a_cluster(driver, workers=2, api_address='http://192.0.2.1:8080')
    cluster.nodegroups[1].nodes[1].status = 'CREATE_IN_PROGRESS'

    seen = driver.read_health(
        conf,
        cluster,
        {'api': OK, 'agents': drivers.HealthResponse(200, '', {'slaves': [agent(W[0])]})},
    )

    assert (seen.healthy, seen.reason) == (True, {'api': 'ok', f'{W[0]}.Ready': 'True'})


def test_each_is_asked_at_its_own_port_without_tls(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    check = driver.build_health_check(conf, a_cluster(driver, api_address='http://192.0.2.1:7777'))

    assert check is not None
    assert {name: request.url for name, request in check.requests.items()} == {
        'api': 'http://192.0.2.1:7777/v2/leader',
        'agents': 'http://192.0.2.1:5050/master/slaves',
    }
    assert (check.authority, check.certificate) == (None, None)


# The scripts.


class Place:
    """A folder with the scripts and programs that note how they are called."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        for name in ('mesos.sh', 'flannel.sh'):
            text = (FILES / name).read_text()
            for place in (
                '/etc/magnum-lite',
                '/opt/magnum-lite',
                '/var/lib',
                '/var/log',
                '/run/flannel',
                '/etc/systemd',
            ):
                (folder / place[1:]).mkdir(parents=True, exist_ok=True)
                text = text.replace(place, f'{folder}{place}')
            (folder / 'opt/magnum-lite' / name).write_text(text)

    def run(self, body: str, masters: str = '10.0.0.5,10.0.0.6,10.0.0.7', **settings: str) -> str:
        """Call functions of the scripts; what they have systemd run is shown instead. Returns what
        they say."""
        words = ' '.join(
            f'{name}={shlex.quote(text)}'
            for name, text in {
                'NODE_ADDRESS': '10.0.0.6',
                'NODE_NAME': 'n-1',
                'API_PORT': '8080',
                'CLUSTER_NAME': 'c',
                'AGENT_WORK_DIR': f'{self.folder}/work',
                'AGENT_ATTRIBUTES': 'a:b;c:d',
                'AGENT_ISOLATION': '',
                'AGENT_IMAGE_PROVIDERS': '',
                'MASTER_ADDRESSES': masters,
                'STATE': str(self.folder),
                **settings,
            }.items()
        )
        done = subprocess.run(
            [
                'sh',
                '-eu',
                '-c',
                f"""
            {words}
            have() {{ true; }}
            fail() {{ echo "$*"; exit 1; }}
            until_ok() {{ "$@"; }}
            run_service() {{ echo "$1 [$2]"; shift 2; printf '%s\\n' "$@"; }}
            command() {{ echo "/bin/$2"; }}
            chown() {{ :; }}; id() {{ :; }}
            . {self.folder}/opt/magnum-lite/mesos.sh
            {body}""",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    return Place(tmp_path)


ZK = 'zk://10.0.0.5:2181,10.0.0.6:2181,10.0.0.7:2181'


@pytest.mark.parametrize(
    ('masters', 'quorum', 'number', 'servers'),
    [
        ('10.0.0.6', 1, '1', []),
        (
            '10.0.0.5,10.0.0.6,10.0.0.7',
            2,
            '2',
            [
                'server.1=10.0.0.5:2888:3888',
                'server.2=10.0.0.6:2888:3888',
                'server.3=10.0.0.7:2888:3888',
            ],
        ),
        (
            '10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.6',
            3,
            '5',
            [
                *(f'server.{n}=10.0.0.{n}:2888:3888' for n in range(1, 5)),
                'server.5=10.0.0.6:2888:3888',
            ],
        ),
    ],
)
def test_masters_are_members_of_one_quorum(
    place: Place, masters: str, quorum: int, number: str, servers: list[str]
) -> None:
    said = place.run('start_zookeeper; start_master', masters)

    settings = (place.folder / 'etc/magnum-lite/zoo.cfg').read_text().splitlines()
    assert [line for line in settings if line.startswith('server')] == servers
    assert 'admin.enableServer=false' in settings, 'its port is Marathon\'s'
    assert (place.folder / 'var/lib/zookeeper/myid').read_text().strip() == number
    assert f'--quorum={quorum}\n' in said
    assert f'--zk=zk://{masters.replace(",", ":2181,")}:2181/mesos\n' in said


def test_marathon_and_agents_find_the_leader_in_zookeeper(place: Place) -> None:
    said = place.run(
        'start_marathon; start_agent',
        AGENT_ISOLATION='docker/runtime',
        AGENT_IMAGE_PROVIDERS='docker',
    )

    assert said.splitlines() == [
        'marathon [Environment=LIBPROCESS_IP=10.0.0.6 LIBPROCESS_PORT=15101]',
        '/bin/marathon',
        '--master',
        f'{ZK}/mesos',
        '--zk',
        f'{ZK}/marathon',
        '--hostname',
        '10.0.0.6',
        '--http_port',
        '8080',
        'mesos-agent [KillMode=process',
        'Delegate=yes]',
        '/bin/mesos-agent',
        f'--master={ZK}/mesos',
        '--ip=10.0.0.6',
        '--hostname=10.0.0.6',
        f'--work_dir={place.folder}/work',
        '--containerizers=docker,mesos',
        '--executor_registration_timeout=5mins',
        '--attributes=a:b;c:d',
        '--isolation=docker/runtime',
        '--image_providers=docker',
    ]


def test_executors_get_their_environment_from_a_file(place: Place) -> None:
    file = place.folder / 'etc/magnum-lite/executor-environment.json'
    file.write_text('{}')

    assert (
        f'--executor_environment_variables=file://{file}' in place.run('start_agent').splitlines()
    )


@pytest.mark.parametrize(
    ('state', 'at', 'answer', 'counted'),
    [
        (
            '{"id":"a-b-S3","frameworks":[{"id":"f","executors":[{"id":"e","slave_id":"a-b-S9"}]}]}',
            '10.0.0.7',
            '{"slaves":[{"id":"a-b-S3","active":true}]}',
            'yes',
        ),
        (
            '{"id":"a-b-S3"}',
            '10.0.0.7',
            '{"slaves":[]}',
            'no leading master counts the agent a-b-S3\nno',
        ),
        ('{"id":""}', '10.0.0.5', '{"slaves":[]}', 'no master has taken the agent\nno'),
        ('{"id":"a-b-S3"}', 'nobody', '', 'no leading master counts the agent a-b-S3\nno'),
    ],
    ids=['counted', 'lost', 'not taken yet', 'no leader'],
)
def test_an_agent_is_ready_when_the_leading_master_counts_it(
    place: Place, state: str, at: str, answer: str, counted: str
) -> None:
    said = place.run(f"""
        ask() {{
            case $1 in
            http://10.0.0.6:5051/state) echo '{state}' >"$STATE/answer" ;;
            'http://{at}:5050/master/slaves?slave_id=a-b-S3') echo '{answer}' >"$STATE/answer" ;;
            *) return 1 ;;
            esac
        }}
        if counted; then echo yes; else echo no; fi""")

    assert said.strip() == counted


def test_a_program_that_is_nowhere_is_named_with_its_label(place: Place) -> None:
    said = place.run(
        "have() { false; }; systemctl() { :; }; (install_package mesos-agent mesos_package_url '' "
        "'') || :"
    )

    assert said.startswith(
        'the image lacks mesos-agent, and no distribution has it, for Mesos is retired;'
    )
    assert said.endswith('or name the label mesos_package_url\n')


def test_etcd_begins_with_all_masters_and_is_told_the_network(place: Place) -> None:
    said = place.run(
        """
        timeout() { shift; echo "asked $*" "$ETCDCTL_API"; }
        chmod() { :; }
        start_etcd""",
        FLANNEL_CONFIG='{"Network": "10.100.0.0/16"}',
    ).splitlines()

    assert said[said.index('--initial-cluster') + 1] == ','.join(
        f'10.0.0.{n}=http://10.0.0.{n}:2380' for n in (5, 6, 7)
    )
    assert said[said.index('--listen-client-urls') + 1] == 'http://10.0.0.6:2379', (
        'and nowhere else'
    )
    assert said[-1] == (
        'asked etcdctl --endpoints http://10.0.0.5:2379,http://10.0.0.6:2379,http://10.0.0.7:2379 '
        'put /coreos.com/network/config {"Network": "10.100.0.0/16"} 3'
    )


def test_where_there_is_an_authority_etcd_asks_for_certificates(place: Place) -> None:
    (place.folder / 'etc/magnum-lite/flannel').mkdir()
    (place.folder / 'etc/magnum-lite/flannel/ca.crt').touch()
    (place.folder / 'run/flannel/subnet.env').write_text('FLANNEL_NETWORK=10.101.0.0/16\n')

    said = place.run(
        """
        timeout() { shift; echo "asked $*"; }
        chmod() { :; }; cp() { :; }
        start_etcd; start_flannel""",
        FLANNEL_CONFIG='{}',
    )

    keys, tls = f'{place.folder}/var/lib/etcd', f'{place.folder}/etc/magnum-lite/flannel'
    assert 'http://' not in said
    assert f'--client-cert-auth\n--trusted-ca-file\n{keys}/join-ca.crt\n' in said
    assert f'--peer-client-cert-auth\n--peer-cert-file\n{keys}/server.crt\n' in said
    assert f'--peer-trusted-ca-file\n{keys}/ca.crt\n' in said
    assert f' --cacert {tls}/ca.crt --cert {tls}/client.crt --key {tls}/client.key put ' in said
    assert (
        f'--etcd-cafile={tls}/ca.crt\n--etcd-certfile={tls}/client.crt\n--etcd-keyfile={tls}/client.key'
        in said
    )


def test_docker_takes_its_range_from_flannel(place: Place) -> None:
    (place.folder / 'run/flannel/subnet.env').write_text(
        'FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.7.1/24\nFLANNEL_MTU=1450\n'
    )

    said = place.run('start_flannel')

    drop_in = (place.folder / 'etc/systemd/system/docker.service.d/50-flannel.conf').read_text()
    assert 'flanneld\n--etcd-endpoints=http://10.0.0.5:2379,' in said
    assert '--bip=$$FLANNEL_SUBNET --mtu=$$FLANNEL_MTU --ip-masq=false' in drop_in, (
        'systemd keeps one $'
    )
    assert 'exec /bin/dockerd ' in drop_in
    assert 'iptables -w -I DOCKER-USER $$way 10.100.0.0/16 -j ACCEPT' in drop_in
