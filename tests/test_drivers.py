"""Every driver folder, in every shape: it renders, what it renders is sound, and no value becomes
syntax."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import gzip
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import urllib.parse
import uuid
from typing import Any

import options
import pytest
import yaml
from oslo_config import cfg

from magnum_lite import certs, clients, config, drivers, errors, members, models, userdata

FOLDERS = sorted(p.name for p in drivers.BUILT_IN.iterdir() if (p / 'manifest.yaml').is_file())
SCRIPTS = sorted(drivers.BUILT_IN.glob('*/files/*.sh'))

#: What a user could write into a text field, to end up as YAML, Jinja, shell or a placeholder.
HOSTILE = (
    'a"b\'c\\n\n{{ 7*7 }}{% x %}$(id)`id` &a *a !!x - : # @@SIGNAL_TOKEN@@ é\u0085\u2028 '
    '\U0001f600\x7f'
)

LIFE = datetime.timedelta(days=1)
#: Ranges with room for all nodes of a test.
BIG = {'fixed_subnet_cidr': '172.16.0.0/12'}

LOGIN = clients.Login(
    'the-user', 'the "pass\\word"', 'https://keystone.example/v3', 'RegionOne', 'CERTIFICATE\n'
)


@pytest.fixture
def conf() -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    config.register(conf)
    conf([], default_config_files=[])
    return conf


@pytest.fixture(params=FOLDERS)
def driver(request: pytest.FixtureRequest, conf: cfg.ConfigOpts) -> drivers.Driver:
    return drivers.load(conf)[request.param]


@pytest.fixture(scope='session')
def rsa() -> certs.Pair:
    return certs.make_keypair(algorithm='rsa-2048')


@pytest.fixture
def secrets(driver: drivers.Driver, rsa: certs.Pair) -> dict[str, certs.Pair]:
    return all_secrets(driver, rsa)


def all_secrets(driver: drivers.Driver, rsa: certs.Pair) -> dict[str, certs.Pair]:
    """All that a driver wants to have, made as the conductor makes it."""
    made: dict[str, certs.Pair] = {}
    for name, key in driver.keys.items():
        made[name] = certs.make_ca(key.common_name, life=LIFE) if key.kind == 'ca' else rsa
    for name, spec in driver.certificates.items():
        made[name] = certs.issue_client(
            made[spec.signed_by],
            common_name=spec.common_name,
            organization=spec.organization,
            life=LIFE,
        )
    return made


def read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, 'CSafeLoader', yaml.SafeLoader))


def a_cluster(
    driver: drivers.Driver,
    *,
    masters: int = 1,
    workers: int = 2,
    labels: dict[str, str] | None = None,
    template: dict[str, Any] | None = None,
    **columns: Any,
) -> models.Cluster:
    """Rows as the API makes them, with all nodes."""
    server_type, os_distro, coe = driver.provides[0]
    row = models.ClusterTemplate(
        **{
            'uuid': str(uuid.uuid4()),
            'name': 't',
            'coe': coe,
            'server_type': server_type,
            'cluster_distro': os_distro,
            'image_id': 'an-image',
            'flavor_id': 'small',
            'master_flavor_id': 'small',
            'external_network_id': 'public',
            'dns_nameserver': '192.0.2.53, 192.0.2.54',
            **(template or {}),
        }
    )
    cluster = models.Cluster(
        **{
            'uuid': str(uuid.uuid4()),
            'name': 'c',
            'driver': driver.name,
            'floating_ip_enabled': True,
            'master_lb_enabled': masters > 1,
            'labels': labels or {},
            'public_key': 'ssh-ed25519 AAAA me',
            'template': row,
            **columns,
        }
    )
    for role, count in (('master', masters), ('worker', workers)):
        group = models.NodeGroup(
            uuid=str(uuid.uuid4()),
            name=f'default-{role}',
            role=role,
            is_default=True,
            node_count=count,
            image_id='an-image',
            flavor_id='small',
            labels={},
        )
        group.nodes = [models.Node(number=i, name=f'c-{role}-{i}') for i in range(count)]
        cluster.nodegroups.append(group)
    return cluster


SHAPES = {
    f'{masters} masters, lb {lb}, fip {fip}, {network}, volumes {volumes}': {
        'masters': masters,
        'workers': masters - 1,
        'master_lb_enabled': lb,
        'floating_ip_enabled': fip,
        **({'fixed_network': 'net'} if network != 'own network' else {}),
        **({'fixed_subnet': 'sub'} if network == 'given subnet' else {}),
        **({'docker_volume_size': 3} if volumes else {}),
    }
    for masters, lb, fip, network, volumes in itertools.product(
        (1, 3),
        (False, True),
        (False, True),
        ('own network', 'given network', 'given subnet'),
        (False, True),
    )
    if lb or masters == 1
}


def parse(rendered: drivers.Rendered) -> dict[str, Any]:
    """All templates of a rendering by file name, the root as ''."""
    return {
        name: read_yaml(text) for name, text in {'': rendered.template, **rendered.files}.items()
    }


def walk(value: Any) -> Any:
    """Every mapping and scalar in a tree."""
    yield value
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from walk(inner)


def functions(tree: Any, name: str) -> list[Any]:
    """The arguments of every call of an intrinsic function."""
    return [v[name] for v in walk(tree) if isinstance(v, dict) and list(v) == [name]]


def resources_of(parsed: dict[str, Any], name: str = '') -> int:
    """How many resources Heat counts for a template, with those of its nested stacks."""
    found = (parsed[name].get('resources') or {}).values()
    return sum(1 + (resources_of(parsed, r['type']) if r['type'] in parsed else 0) for r in found)


def is_ignition(user_data: str) -> bool:
    return user_data.startswith('{')


def unpacked(user_data: str) -> dict[str, str]:
    """The files that cloud-init or Ignition would write."""
    if is_ignition(user_data):
        return {
            item['path']: from_url(**item['contents'])
            for item in json.loads(user_data)['storage']['files']
        }
    assert user_data.startswith('#cloud-config\n')
    files = read_yaml(user_data)['write_files']
    return {
        item['path']: gzip.decompress(base64.b64decode(item['content'])).decode()
        if item.get('encoding') == 'gz+b64'
        else item['content']
        for item in files
    }


def from_url(source: str, compression: str | None = None) -> str:
    """What a URL with its data in itself holds."""
    kind, data = source.split(',', 1)
    assert kind == ('data:' if compression is None else 'data:;base64')
    # A space, a control character or a # would end it, or not be allowed.
    assert re.fullmatch(r"[A-Za-z0-9_.%~!*'();:@&=+$,/-]*", data)
    if compression is None:
        return urllib.parse.unquote(data, errors='strict')
    assert compression == 'gzip'
    return gzip.decompress(base64.b64decode(data)).decode()


def keys_of(user_data: str) -> list[str]:
    """The keys with which one may log in."""
    if is_ignition(user_data):
        [user] = json.loads(user_data)['passwd']['users']
        assert user['name'] == 'core'
        return list(user['sshAuthorizedKeys'])
    return list(read_yaml(user_data)['ssh_authorized_keys'])


def user_data(driver: drivers.Driver, rendered: drivers.Rendered) -> dict[str, str]:
    return {name: rendered.parameters[name] for name in driver.manifest['stack']['user_data']}


# Shapes.


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_every_shape_is_a_sound_template(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    secrets: dict[str, certs.Pair],
    shape: dict[str, Any],
) -> None:
    cluster = a_cluster(driver, **shape)

    rendered = driver.render(conf, cluster, secrets)

    assert_sound(rendered)
    counts = driver.manifest['resources']
    expected = counts['base'] + sum(
        counts[g.role] * g.node_count + (0 if g.node_count else counts[g.role])
        for g in cluster.nodegroups
    )
    assert resources_of(parse(rendered)) <= expected
    assert driver.check_cluster(conf, cluster) == []


def assert_sound(rendered: drivers.Rendered) -> None:
    """All that templates refer to is there, and what is sent to them is what they want."""
    parsed = parse(rendered)
    for name, tree in parsed.items():
        declared, resources = tree.get('parameters') or {}, tree.get('resources') or {}
        for argument in functions(tree, 'get_param'):
            assert (argument[0] if isinstance(argument, list) else argument) in declared, (
                name,
                argument,
            )
        for argument in functions(tree, 'get_resource') + [
            a[0] for a in functions(tree, 'get_attr')
        ]:
            assert argument in resources, (name, argument)
        for resource in resources.values():
            assert set(resource.get('depends_on', ())) <= set(resources)
            if not resource['type'].startswith('OS::'):
                child = parsed[resource['type']].get('parameters') or {}
                required = {p for p, spec in child.items() if 'default' not in spec}
                assert required <= set(resource['properties']) <= set(child), (
                    name,
                    resource['type'],
                )
                settings = resource['properties'].get('settings', {})
                for member in {
                    m['type'] for m in parsed[resource['type']]['resources'].values()
                } & set(parsed):
                    read = {
                        a[1] for a in functions(parsed[member], 'get_param') if a[0] == 'settings'
                    }
                    assert read <= set(settings), (name, member)
    declared = parsed['']['parameters']
    assert (
        {p for p, spec in declared.items() if 'default' not in spec}
        <= set(rendered.parameters)
        <= set(declared)
    )
    assert all(v is not None for v in rendered.parameters.values())


@pytest.fixture(scope='module')
def walks() -> dict[str, options.Walk]:
    """Every option of every folder that is found, pairwise."""
    conf = cfg.ConfigOpts()
    config.register(conf)
    conf([], default_config_files=[])
    return {name: options.Walk(conf, driver) for name, driver in drivers.load(conf).items()}


def test_any_two_options_go_together_or_are_refused(
    driver: drivers.Driver, secrets: dict[str, certs.Pair], walks: dict[str, options.Walk]
) -> None:
    walk = walks[driver.name]
    seen = set()

    for row in walk.rows:
        cluster, group = walk.make(row)
        for rendered in walk.rendered(cluster, group, secrets):
            assert_sound(rendered)
            for text in (
                value for name, value in rendered.parameters.items() if name.endswith('user_data')
            ):
                assert len(text) + drivers.PLACEHOLDER_ROOM < drivers.MAX_USER_DATA
        seen |= {(name, number) for name, number in zip(walk.factors, row, strict=True)}

    left = {
        (name, number) for name, choices in walk.factors.items() for number in range(len(choices))
    } - seen
    for name, number in left:
        with pytest.raises((errors.Invalid, errors.Conflict)):
            walk.make(tuple(number if name == factor else 0 for factor in walk.factors))


def test_every_label_changes_what_is_sent_to_some_cluster(
    driver: drivers.Driver, secrets: dict[str, certs.Pair], walks: dict[str, options.Walk]
) -> None:
    """But for those that are informative, which never do."""
    walk = walks[driver.name]

    def changes(row: options.Row, label: str) -> bool:
        cluster, group = walk.make(row)
        before = walk.rendered(cluster, group, secrets)
        for owner in (cluster, *cluster.nodegroups):
            owner.labels = {key: value for key, value in owner.labels.items() if key != label}
        return walk.rendered(cluster, group, secrets) != before

    idle = set()
    for place, factor in enumerate(walk.factors):
        name = factor.removeprefix('label ')
        if name != factor:
            # Alone, with each value of each field, and as it comes in the walk.
            values = [(place, number) for number in range(1, len(walk.factors[factor]))]
            fields = [
                (other, number)
                for other, (field, choices) in enumerate(walk.factors.items())
                for number in range(len(choices))
                if field.startswith('field ')
            ]
            rows = [
                *filter(
                    walk.is_taken, (walk.only(*pair) for pair in itertools.product(values, fields))
                ),
                *(row for row in walk.rows if row[place]),
            ]
            assert rows, name
            informative = driver.labels_known[name].get('informative')
            if not any(changes(row, name) for row in (rows[:8] if informative else rows)):
                idle.add(name)

    assert idle == {name for name, label in driver.labels_known.items() if label.get('informative')}


# Limits.


@pytest.mark.parametrize(('masters', 'workers'), [(1, 0), (1, 60), (5, 3)])
def test_lengths_are_known_without_rendering_all(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    secrets: dict[str, certs.Pair],
    masters: int,
    workers: int,
) -> None:
    cluster = a_cluster(driver, masters=masters, workers=workers, labels=BIG)
    for group in cluster.nodegroups:
        for node in group.nodes:
            node.name = members.make_node_name(cluster, group, node.number)
    rendered = driver.render(conf, cluster, secrets)
    files = {'template': rendered.template, 'files': rendered.files}
    edited = driver.texts.replace_members(
        files
        | {
            'files': {
                name: userdata.quote(read_yaml(text)) for name, text in rendered.files.items()
            }
        },
        rendered.files,
        {'worker'},
    )
    conf.set_override('max_template_size', 1024, group='cluster_heat')
    conf.set_override('max_json_body_size', 1024, group='cluster_heat')

    said = [
        int(number)
        for text in driver.check_cluster(conf, cluster)
        for number in re.findall(r'of (\d+) bytes, and Heat takes 1024', text)
    ]

    longest = max(map(len, (rendered.template, *rendered.files.values())))
    assert longest <= max(said[:-1]) <= longest * 1.05 + 20
    for body in (files, edited):
        length = len(json.dumps(body | {'parameters': rendered.parameters, 'timeout_mins': 60}))
        # Keys are weighed at their longest, and twice, as while authorities are exchanged.
        assert length <= said[-1] <= length * 1.2 + drivers.REQUEST_OVERHEAD


def test_a_thousand_nodes_are_weighed_at_once(driver: drivers.Driver, conf: cfg.ConfigOpts) -> None:
    """Counted in templates that are rendered, which take the time, and not in seconds."""
    calls: list[str] = []
    render, driver._render_text = (
        driver._render_text,
        lambda *args: calls.append(args[0]) or render(*args),
    )  # type: ignore[method-assign]
    try:
        lengths = []
        for workers in (1000, 100_000):
            cluster = a_cluster(driver, workers=0, labels=BIG)
            cluster.nodegroups[1].node_count = workers
            problems = driver.check_cluster(conf, cluster)
            lengths.append(len(calls))
    finally:
        driver._render_text = render  # type: ignore[method-assign]

    assert lengths[1] == 2 * lengths[0] < 60
    assert [text for text in problems if 'and Heat takes 524288; use fewer nodes here' in text]
    assert [text for text in problems if 'and Heat takes 1048576; use fewer nodes here' in text]


@pytest.mark.parametrize(('masters', 'most'), [(11, 10), (9, 10), (3, 3), (3, 4), (99, -1), (1, 0)])
def test_masters_fit_into_their_server_group_even_while_one_is_replaced(
    driver: drivers.Driver, conf: cfg.ConfigOpts, masters: int, most: int
) -> None:
    conf.set_override('max_server_group_members', most, group='cluster_heat')
    conf.set_override('max_resources_per_stack', -1, group='cluster_heat')

    cluster = a_cluster(driver, masters=masters)
    wanted = masters + (driver.explain_irreplaceable(cluster, 'master') is None)

    problems = driver.check_cluster(conf, cluster)

    when = ' while one is replaced' if wanted > masters else ''
    assert [said for said in problems if 'server group' in said] == (
        [
            f'{masters} masters need {wanted} members in one server group{when}, and Nova allows '
            f'{most}; use fewer masters'
        ]
        if masters > 1 and 0 <= most < wanted
        else []
    )


def test_user_data_of_a_further_nodegroup_is_weighed(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    cluster = a_cluster(driver)
    group = models.NodeGroup(
        uuid=str(uuid.uuid4()),
        name='big',
        role='worker',
        is_default=False,
        node_count=1,
        labels={},
        node_labels={
            hashlib.sha512(str(number).encode()).hexdigest(): 'b' for number in range(600)
        },
    )
    cluster.nodegroups.append(group)

    [problem] = driver.check_cluster(conf, cluster, group)

    assert re.fullmatch(
        r'The user-data of a node would have \d+ bytes, and Nova takes 49149; .*', problem
    )
    assert driver.check_cluster(conf, cluster) == []


@pytest.mark.parametrize(
    'value', ['10.0.0.0/255.255.0.0', '10.0.0.0/0.0.255.255', '10.0.0.0/016', '10.0.0.0']
)
def test_ranges_are_spelled_as_engines_read_them(
    driver: drivers.Driver, conf: cfg.ConfigOpts, value: str
) -> None:
    assert len(driver.check_labels({'fixed_subnet_cidr': value}, conf)) == 1


@pytest.mark.parametrize(
    ('text', 'word'), [('a@@NODE_NAME@@', '@@NODE_NAME@@'), ('a\n', 'control'), ('\x7f', 'control')]
)
def test_what_heat_would_replace_and_control_characters_are_refused_everywhere(
    driver: drivers.Driver, conf: cfg.ConfigOpts, text: str, word: str
) -> None:
    fields = {'no_proxy': text, 'insecure_registry': f'registry{text}'}

    assert {said.split()[0] for said in driver.check_template(fields) if word in said} == set(
        fields
    )
    assert [said for said in driver.check_labels({'availability_zone': text}, conf) if word in said]
    assert [
        said
        for said in driver.check_cluster(conf, a_cluster(driver, public_key=f'k {text} x'))
        if word in said
    ]


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_no_secret_is_in_what_is_stored(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    secrets: dict[str, certs.Pair],
    shape: dict[str, Any],
) -> None:
    rendered = driver.render(conf, a_cluster(driver, **shape), secrets)

    stored = rendered.template + ''.join(rendered.files.values())
    for pair in secrets.values():
        assert pair.private_key.splitlines()[1] not in stored
    assert 'PRIVATE KEY' not in stored
    for name in user_data(driver, rendered):
        assert parse(rendered)['']['parameters'][name]['hidden'] is True
        assert rendered.parameters[name] not in repr(rendered)
    # A hidden value stays hidden on its way down.
    for tree in parse(rendered).values():
        assert all(
            spec.get('hidden')
            for name, spec in (tree.get('parameters') or {}).items()
            if 'user_data' in name
        )


def test_the_same_rows_give_the_same_text(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    cluster = a_cluster(driver)

    assert driver.render(conf, cluster, secrets) == driver.render(conf, cluster, secrets)


def test_members_are_found_where_the_stock_clients_look(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    cluster = a_cluster(driver, workers=2)
    cluster.nodegroups[1].nodes[1].number = 7

    parsed = parse(driver.render(conf, cluster, secrets))

    group = parsed[parsed['']['resources']['kube_minions']['type']]
    assert list(group['resources']) == ['0', '7']
    assert list(group['outputs']['refs_map']['value']) == ['0', '7']
    assert group['outputs']['refs_map']['value']['7'] == {
        'list_join': ['', [{'get_attr': ['7', 'server_id']}]]
    }, 'never null'
    member = parsed[group['resources']['7']['type']]['resources']
    assert member['kube-minion']['type'] == 'OS::Nova::Server'
    assert member['node_config_deployment']['type'] == 'OS::Heat::WaitCondition'
    assert member['handle']['type'] == 'OS::Heat::WaitConditionHandle'


def test_new_user_data_never_makes_a_running_server_anew(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    parsed = parse(driver.render(conf, a_cluster(driver), secrets))

    servers = [
        r['properties']
        for tree in parsed.values()
        for r in (tree.get('resources') or {}).values()
        if r['type'] == 'OS::Nova::Server'
    ]
    assert servers
    for server in servers:
        assert (server['user_data_format'], server['user_data_update_policy']) == ('RAW', 'IGNORE')
        assert 'key_name' not in server


def test_image_and_flavor_stand_with_each_member(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    cluster = a_cluster(driver)
    cluster.nodegroups[1].nodes[0].image_id = 'older'

    parsed = parse(driver.render(conf, cluster, secrets))

    members = parsed[parsed['']['resources']['kube_minions']['type']]['resources']
    assert [m['properties']['image'] for m in members.values()] == ['older', 'an-image']


def test_a_further_nodegroup_has_a_stack_of_its_own(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    cluster = a_cluster(driver)
    group = models.NodeGroup(
        uuid=str(uuid.uuid4()),
        name='big',
        role='gpu',
        is_default=False,
        node_count=1,
        image_id='another',
        flavor_id='large',
        labels={},
        node_labels={'tier': 'x'},
    )
    group.nodes = [models.Node(number=4, name='c-big-4')]
    cluster.nodegroups.append(group)
    outputs = {
        name: f'the-{name}' for name in parse(driver.render(conf, cluster, secrets))['']['outputs']
    }

    rendered = driver.render_nodegroup(conf, cluster, group, secrets, outputs=outputs)

    parsed = parse(rendered)
    declared = parsed['']['parameters']
    assert (
        {p for p, spec in declared.items() if 'default' not in spec}
        <= set(rendered.parameters)
        <= set(declared)
    )
    members = parsed[parsed['']['resources']['kube_minions']['type']]['resources']
    assert {
        n: (m['properties']['image'], m['properties']['flavor']) for n, m in members.items()
    } == {'4': ('another', 'large')}
    assert any(
        re.search('tier[=:]x', file)
        for text in user_data_of(rendered).values()
        for file in unpacked(text).values()
    )


def user_data_of(rendered: drivers.Rendered) -> dict[str, str]:
    return {
        name: value for name, value in rendered.parameters.items() if name.endswith('user_data')
    }


# Masters that are replaced.


def with_new_master(cluster: models.Cluster) -> models.NodeGroup:
    """Its first master is outdated, and one is there that is to take its place."""
    [group] = [group for group in cluster.nodegroups if group.role == 'master']
    for node in group.nodes:
        node.rollout, node.status = 1, 'CREATE_COMPLETE'
    group.rollout, group.next_number = 2, len(group.nodes)
    members.replace(cluster, group)
    return group


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_nothing_in_the_root_stack_rests_on_a_master_that_can_be_replaced(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    secrets: dict[str, certs.Pair],
    shape: dict[str, Any],
) -> None:
    cluster = a_cluster(driver, **shape)
    before = driver.render(conf, cluster, secrets)
    if driver.explain_irreplaceable(cluster, 'master'):
        return
    with_new_master(cluster)

    after = driver.render(conf, cluster, secrets)

    assert after.template == before.template
    changed = {name for name in before.files if before.files[name] != after.files[name]}
    masters = {
        name
        for name, item in driver.manifest['stack']['files'].items()
        if item.get('role') == 'master' and item.get('members')
    }
    assert (
        masters
        <= changed
        <= masters | {n for n in before.files if driver.texts.find_role(n) == 'master'}
    )


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
def test_new_master_knows_whose_place_it_takes_and_the_first_ones_take_nobodys(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    def environment(cluster: models.Cluster) -> dict[str, str]:
        texts = user_data(driver, driver.render(conf, cluster, secrets))
        [text] = [
            unpacked(text)['/etc/magnum-lite/node.env']
            for text in texts.values()
            if 'NODE_ROLE=master' in text
        ]
        return dict(line.split('=', 1) for line in text.splitlines())

    cluster = a_cluster(driver, masters=3)
    first = environment(cluster)
    group = with_new_master(cluster)
    of_three = environment(cluster)
    for node in group.nodes[1:]:
        node.rollout, node.status = 2, 'CREATE_COMPLETE'
    of_last = environment(cluster)

    assert (first['NODE_REPLACES'], first['NODE_STAYS']) == ("''", "''")
    assert (of_three['NODE_REPLACES'], of_three['NODE_REPLACES_LAST'], of_three['NODE_STAYS']) == (
        'c-master-0',
        "''",
        "''",
    )
    assert (of_last['NODE_REPLACES'], of_last['NODE_REPLACES_LAST']) == ('c-master-0', 'yes')
    assert of_last['NODE_STAYS'] == f"'{' '.join(node.name for node in group.nodes[1:])}'"


@pytest.mark.parametrize('driver', ['k8s_cloud_init', 'swarm_cloud_init'], indirect=True)
def test_masters_are_replaceable_behind_a_load_balancer_only(driver: drivers.Driver) -> None:
    assert driver.explain_irreplaceable(a_cluster(driver, master_lb_enabled=True), 'master') is None
    alone = a_cluster(driver, master_lb_enabled=False)
    assert driver.explain_irreplaceable(alone, 'worker') is None
    assert f'The masters of cluster {alone.uuid} cannot be replaced: There is no load' in str(
        driver.explain_irreplaceable(alone, 'master')
    )


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
def test_whatever_trusts_an_authority_trusts_the_next_one_beside_it(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    authorities = {name for name, key in driver.keys.items() if key.kind == 'ca'}
    both = {
        name: dataclasses.replace(pair, beside=f'the next {name}\n')
        if name in authorities
        else pair
        for name, pair in secrets.items()
    }

    for text in user_data(driver, driver.render(conf, a_cluster(driver), both)).values():
        files = unpacked(text)
        is_master = 'NODE_ROLE=master' in text
        for name in authorities:
            found = [t for t in files.values() if f'the next {name}' in t]
            assert [t.startswith(secrets[name].certificate) for t in found] == (
                [True] if is_master else []
            )
        trusted = base64.b64encode(both['ca'].trusted.encode()).decode()
        assert trusted in files['/etc/kubernetes/discovery.conf']
        assert (
            not is_master or files['/etc/magnum-lite/pki/signing.crt'] == secrets['ca'].certificate
        )


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        ('v1.35.9', 'v1.36.0', []),
        ('v1.35.9', 'v1.35.10', []),
        ('v1.35.9', 'v1.35.9', []),
        ('v1.20.2', 'v1.20.4', []),
        ('v1.35.9', 'v1.35.8', ['older']),
        ('v1.35.9', 'v1.34.12', ['older', 'leaves none out']),
        ('v1.35.9', 'v1.37.0', ['leaves none out']),
        ('v1.28.0', 'v1.29.0', ['before v1.29']),
    ],
)
def test_steps_of_the_version_that_the_engine_does_not_allow(
    conf: cfg.ConfigOpts, old: str, new: str, words: list[str]
) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']

    problems = driver.check_upgrade(conf, {'kube_tag': old}, {'kube_tag': new})

    assert [word in problem for word, problem in zip(words, problems, strict=True)] == [True] * len(
        words
    )
    assert driver.find_engine_version(conf, {'kube_tag': new}) == new


def test_new_members_bring_their_user_data_and_the_version_of_the_engine(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    rendered = driver.render(conf, a_cluster(driver, labels={'kube_tag': 'v1.34.1'}), secrets)

    text = {'template': rendered.template, 'files': rendered.files}
    assert driver.texts.select_parameters(text, rendered.parameters, {'worker': set()}) == {}
    version = {'coe_version': 'v1.34.1'} if 'coe_version' in rendered.parameters else {}
    assert driver.texts.select_parameters(text, rendered.parameters, {'worker': {0}}) == {
        'worker_user_data': rendered.parameters['worker_user_data'],
        **version,
    }


def test_user_data_that_is_handed_on_in_another_way_is_for_all(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    rendered = driver.render(conf, a_cluster(driver), secrets)
    file = parse(rendered)['']['resources']['kube_minions']['type']
    content = parse(rendered)[file]
    other = {'list_join': ['', [{'get_param': 'user_data'}]]}
    content['resources'] = {
        '0': {
            **content['resources']['0'],
            'properties': {**content['resources']['0']['properties'], 'user_data': other},
        }
    }
    text = {
        'template': rendered.template,
        'files': {**rendered.files, file: userdata.quote(content)},
    }

    grown = driver.texts.replace_members(text, rendered.files, {'worker'})

    assert (driver.texts.list_numbers(grown)['worker'], grown['template']) == (
        {0, 1},
        rendered.template,
    )
    sent = driver.texts.select_parameters(grown, rendered.parameters, {'worker': {1}})
    assert {name for name in sent if 'user_data' in name} == {'worker_user_data'}


# Values stay values.


def test_hostile_text_comes_back_as_data(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    secrets: dict[str, certs.Pair],
    tmp_path: pathlib.Path,
) -> None:
    cluster = a_cluster(
        driver,
        public_key=HOSTILE,
        fixed_network=HOSTILE,
        fixed_subnet=HOSTILE,
        template={
            'external_network_id': HOSTILE,
            'http_proxy': HOSTILE,
            'no_proxy': HOSTILE,
            'name': HOSTILE,
        },
    )
    cluster.nodegroups[1].image_id = cluster.nodegroups[1].flavor_id = HOSTILE

    rendered = driver.render(conf, cluster, secrets)

    parsed = parse(rendered)
    member = parsed[parsed['']['resources']['kube_minions']['type']]['resources']['0']['properties']
    assert (member['image'], member['flavor']) == (HOSTILE, HOSTILE)
    assert {n for n, v in rendered.parameters.items() if v == HOSTILE} == {
        'external_network',
        'fixed_network',
        'fixed_subnet',
    }
    for text in user_data(driver, rendered).values():
        assert text.isascii()
        assert keys_of(text) == [HOSTILE.strip()]
        [environment] = [t for path, t in unpacked(text).items() if path.endswith('/proxy.env')]
        (tmp_path / 'env').write_text(environment)
        reader = f'. {tmp_path}/env; printf %s "$HTTP_PROXY"'
        seen = subprocess.run(['sh', '-c', reader], capture_output=True, check=True)
        assert seen.stdout.decode() == HOSTILE


@pytest.mark.parametrize(
    'value',
    [
        HOSTILE,
        '\x00',
        '\ufffe',
        '',
        ' ',
        'null',
        '0x1',
        '2001-01-01',
        '-',
        '{',
        [],
        {},
        {'a': [None, True, 1.5]},
    ],
)
def test_what_is_printed_reads_back_as_itself(value: Any) -> None:
    assert read_yaml(userdata.quote(value)) == value


def test_user_data_is_sound_and_within_the_limit(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    rendered = driver.render(conf, a_cluster(driver), secrets)

    assert len(user_data(driver, rendered)) >= 2
    for text in user_data(driver, rendered).values():
        assert len(text) < drivers.MAX_USER_DATA * 2 // 3
        if is_ignition(text):
            check_ignition(text)
            continue
        document = read_yaml(text)
        assert set(document) <= {'write_files', 'runcmd', 'ssh_authorized_keys'}
        assert all(
            set(f) <= {'path', 'permissions', 'content', 'encoding'}
            for f in document['write_files']
        )
        assert len({f['path'] for f in document['write_files']}) == len(document['write_files'])


#: What version 3.3.0 of Ignition's specification knows, of what is used here, and the type of each.
IGNITION: dict[str, Any] = {
    'ignition': {'version': str},
    'passwd': {'users': [{'name': str, 'sshAuthorizedKeys': [str]}]},
    'storage': {
        'files': [
            {
                'path': str,
                'mode': int,
                'overwrite': bool,
                'contents': {'source': str, 'compression': str},
            }
        ]
    },
    'systemd': {'units': [{'name': str, 'enabled': bool, 'mask': bool}]},
}


def check_ignition(text: str) -> None:
    """What the tool for this would say, and it, where there is one."""

    def check(value: Any, shape: Any) -> None:
        if isinstance(shape, dict):
            assert set(value) <= set(shape)
            for key in value:
                check(value[key], shape[key])
        elif isinstance(shape, list):
            assert isinstance(value, list)
            for item in value:
                check(item, shape[0])
        else:
            assert type(value) is shape

    document = json.loads(text)
    check(document, IGNITION)
    assert document['ignition'] == {'version': '3.3.0'}
    for names in (
        [f['path'] for f in document['storage']['files']],
        [u['name'] for u in document['systemd']['units']],
    ):
        assert len(set(names)) == len(names)
    assert all(
        f['path'].startswith('/') and 0 <= f['mode'] <= 0o777 for f in document['storage']['files']
    )
    if tool := os.environ.get('IGNITION_VALIDATE') or shutil.which('ignition-validate'):
        subprocess.run([tool, '-'], input=text, text=True, check=True)


@pytest.mark.parametrize('folder', ['k8s_ignition', 'swarm_ignition'])
def test_ignition_brings_what_cloud_config_brings(
    conf: cfg.ConfigOpts, folder: str, rsa: certs.Pair
) -> None:
    driver = drivers.load(conf)[folder]
    other = drivers.load(conf)[str(driver.manifest['extends'])]
    cluster = a_cluster(
        driver,
        masters=3,
        docker_volume_size=3,
        template={'http_proxy': 'http://proxy:3128', 'insecure_registry': 'registry:5000'},
    )
    secrets = all_secrets(driver, rsa)

    ours, theirs = (user_data(d, d.render(conf, cluster, secrets)) for d in (driver, other))

    assert set(ours) == set(theirs)
    for name, text in ours.items():
        document, cloud_config = json.loads(text), read_yaml(theirs[name])
        assert unpacked(text) == unpacked(theirs[name])
        assert {f['path']: f['mode'] for f in document['storage']['files']} == {
            f['path']: int(f['permissions'], 8) for f in cloud_config['write_files']
        }
        assert keys_of(text) == keys_of(theirs[name])
        units = document['systemd']['units']
        started = [command[-1] for command in cloud_config['runcmd'] if command[1] == 'start']
        assert [unit['name'] for unit in units if unit.get('enabled')] == started
        # An enabled unit of which no target knows would never start.
        assert all(
            '\nWantedBy=' in unpacked(text)[f'/etc/systemd/system/{unit}'] for unit in started
        )
        assert {'zincati.service', 'locksmithd.service', 'update-engine.service'} == {
            unit['name'] for unit in units if unit.get('mask')
        }, 'none reboots by itself'


@pytest.mark.parametrize('folder', ['k8s_ignition', 'swarm_ignition'])
def test_what_heat_fills_in_arrives_within_ignition(
    conf: cfg.ConfigOpts, folder: str, rsa: certs.Pair
) -> None:
    """URLs of signals hold ids and names of stacks, tokens are of Fernet or JWS."""
    driver = drivers.load(conf)[folder]
    values = {
        '@@NODE_NAME@@': 'c-12345678-master-0',
        '@@NODE_ADDRESS@@': '10.0.0.5',
        '@@NODE_SUBNET@@': '10.0.0.0/24',
        '@@SIGNAL_TOKEN@@': 'gAAAAABk-_x==',
        '@@API_ADDRESS@@': '10.0.0.4',
        '@@NODE_BEGINS@@': 'yes',
        '@@SIGNAL_URL@@': (
            'http://h:8004/v1/4f/stacks/a-kube_masters-x_1-0-b/5e-1/resources/handle/signal'
        ),
    }

    for text in user_data(
        driver, driver.render(conf, a_cluster(driver), all_secrets(driver, rsa))
    ).values():
        wanted = unpacked(text)['/etc/magnum-lite/node.env']
        for name, value in values.items():
            text, wanted = text.replace(name, value), wanted.replace(name, value)
        check_ignition(text)
        assert unpacked(text)['/etc/magnum-lite/node.env'] == wanted
        assert values['@@SIGNAL_URL@@'] in wanted and values['@@SIGNAL_TOKEN@@'] in wanted


IGNITION_PROGRAM = os.environ.get('IGNITION', '/usr/lib/dracut/modules.d/30ignition/ignition')


@pytest.mark.skipif(
    not os.path.exists(IGNITION_PROGRAM) or os.geteuid() != 0,
    reason='IGNITION names no program of that name, or this is not root',
)
@pytest.mark.parametrize('folder', ['k8s_ignition', 'swarm_ignition'])
def test_ignition_itself_writes_what_was_meant(
    conf: cfg.ConfigOpts, folder: str, rsa: certs.Pair, tmp_path: pathlib.Path
) -> None:
    driver = drivers.load(conf)[folder]
    rendered = driver.render(conf, a_cluster(driver, masters=3), all_secrets(driver, rsa))
    document = json.loads(rendered.parameters['master_user_data'])
    del document['passwd']  # there are no users in an empty folder
    (tmp_path / 'config').write_text(json.dumps(document))
    root = tmp_path / 'root'
    (root / 'etc').mkdir(parents=True)

    for stage in ('fetch', 'files'):
        done = subprocess.run(
            [
                IGNITION_PROGRAM,
                '-platform',
                'file',
                '-stage',
                stage,
                '-root',
                str(root),
                '-log-to-stdout',
                '-config-cache',
                str(tmp_path / 'cache'),
                '-neednet',
                str(tmp_path / 'neednet'),
            ],
            env=os.environ | {'IGNITION_CONFIG_FILE': str(tmp_path / 'config')},
            capture_output=True,
            text=True,
            check=False,
        )
        # The last thing that it does is to label what it wrote, and SELinux is not here.
        assert (
            done.returncode == 0 or 'Ignition failed: failed to handle relabeling' in done.stdout
        ), done.stdout

    for path, content in unpacked(rendered.parameters['master_user_data']).items():
        assert (root / path[1:]).read_text() == content
    assert (root / 'etc/magnum-lite/node.env').stat().st_mode & 0o777 == 0o600
    units = root / 'etc' / 'systemd'
    assert (
        'enable magnum-lite-node.service'
        in (units / 'system-preset' / '20-ignition.preset').read_text()
    )
    assert os.readlink(units / 'system' / 'zincati.service') == '/dev/null'


@pytest.mark.parametrize(
    ('folder', 'os_distro', 'coe'),
    [
        (name, p['os_distro'], p['coe'])
        for name in FOLDERS
        for p in read_yaml((drivers.BUILT_IN / name / 'manifest.yaml').read_text())['provides']
    ],
)
def test_every_image_is_rendered_by_its_folder(
    conf: cfg.ConfigOpts, rsa: certs.Pair, folder: str, os_distro: str, coe: str
) -> None:
    driver = drivers.load(conf).find(server_type='vm', os_distro=os_distro, coe=coe)
    cluster = a_cluster(driver, template={'coe': coe, 'cluster_distro': os_distro})

    rendered = driver.render(conf, cluster, all_secrets(driver, rsa))

    assert driver.name == folder
    assert driver.check_cluster(conf, cluster) == []
    expected = os_distro in ('fedora-coreos', 'flatcar', 'coreos')
    assert {is_ignition(text) for text in user_data(driver, rendered).values()} == {expected}


def test_the_largest_user_data_is_within_the_limit_and_no_larger_than_was_thought(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    secrets: dict[str, certs.Pair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = {name: label['schema']['examples'][0] for name, label in driver.labels_known.items()}
    brings_less = {
        'network_manifest_url',
        *(item['label'] for item in driver.manifest['ranges']),
    }  # or overlaps
    labels = {
        name: ','.join(value) if isinstance(value, list) else str(value)
        for name, value in examples.items()
        if name not in brings_less
    }
    both = {
        name: dataclasses.replace(pair, beside=certs.make_ca(name, life=LIFE).certificate)
        if name in driver.keys and driver.keys[name].kind == 'ca'
        else pair
        for name, pair in secrets.items()
    }
    proxy, hosts = (
        'http://someone:something@proxy.example.com:3128',
        ','.join(f'host-{n}.example' for n in range(20)),
    )
    cluster = a_cluster(
        driver,
        masters=3,
        workers=3,
        labels=labels,
        docker_volume_size=3,
        public_key='ssh-rsa ' + 'A' * 720 + ' me',
        template={
            'http_proxy': proxy,
            'https_proxy': proxy,
            'no_proxy': hosts,
            'insecure_registry': 'registry.example:5000',
        },
    )

    sizes = {
        name: len(text)
        for name, text in user_data(driver, driver.render(conf, cluster, both)).items()
    }

    assert driver.check_cluster(conf, cluster) == []
    assert all(
        size + drivers.PLACEHOLDER_ROOM < drivers.MAX_USER_DATA for size in sizes.values()
    ), sizes
    monkeypatch.setattr(drivers.limits, 'MAX_USER_DATA', 1)
    thought = [
        int(problem.split(' would have ')[1].split()[0])
        for problem in driver.check_cluster(conf, cluster)
    ]
    assert all(
        size + drivers.PLACEHOLDER_ROOM <= most
        for size, most in zip(sizes.values(), thought, strict=True)
    )
    print(driver.name, sizes, thought)


def test_every_placeholder_is_filled_in_by_heat(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    for shape in SHAPES.values():
        rendered = driver.render(conf, a_cluster(driver, **shape), secrets)
        filled = [
            set(f['params'])
            for tree in parse(rendered).values()
            for f in functions(tree, 'str_replace')
        ]

        for text in user_data(driver, rendered).values():
            wanted = set(re.findall(r'@@[A-Z_]+@@', text))
            assert wanted and all(wanted <= params for params in filled)
            # Heat cannot reach into what is packed.
            assert '@@' not in ''.join(
                t for p, t in unpacked(text).items() if t not in text and p.endswith('.sh')
            )


def test_only_masters_get_the_keys_of_authorities(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    rendered = driver.render(conf, a_cluster(driver), secrets)

    for name, text in user_data(driver, rendered).items():
        files = ''.join(unpacked(text).values())
        role = driver.manifest['stack']['user_data'][name]['role']
        held = {purpose for purpose in driver.keys if secrets[purpose].private_key in files}
        assert 'ca' in held or not driver.keys if role == 'master' else not held, name


# Labels.


def test_every_label_but_the_informative_reaches_a_parameter_or_the_shape(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    conf.set_override('trustee_domain_id', 'users', 'trust')
    networks = driver.manifest['template_fields']['network_driver']['schema']['enum']
    clusters = [
        a_cluster(
            driver,
            masters=3,
            docker_volume_size=2,
            project_id='p1',
            template={'volume_driver': 'cinder', 'network_driver': network},
        )
        for network in networks
    ]

    def rendered(labels: dict[str, str]) -> list[drivers.Rendered]:
        made = []
        for cluster in clusters:
            cluster.labels = labels
            login = LOGIN if driver.wants_cloud_user(conf, cluster) else None
            made.append(driver.render(conf, cluster, secrets, login))
        return made

    plain = rendered({})
    for name, label in driver.labels_known.items():
        example = label['schema']['examples'][0]
        text = ','.join(example) if isinstance(example, list) else str(example)
        assert driver.check_labels({name: text}, conf) == [], name
        assert (rendered({name: text}) == plain) == label.get('informative', False), name


def test_no_label_takes_just_any_text(driver: drivers.Driver) -> None:
    for name, label in driver.labels_known.items():
        schema = label['schema'].get('items', label['schema'])
        assert {'pattern', 'format', 'enum'} & set(schema) or schema['type'] != 'string', name


@pytest.mark.parametrize(
    ('keys', 'taken'),
    [
        (
            [
                'tier',
                'example.com/gpu',
                'mykubernetes.io/x',
                'k8s.io.example/x',
                'kubelet.kubernetes.io/x',
                'sub.node.kubernetes.io/x',
                'node.kubernetes.io/instance-type',
                'kubernetes.io/arch',
                'kubernetes.io/hostname',
                'beta.kubernetes.io/os',
                'topology.kubernetes.io/zone',
                'failure-domain.beta.kubernetes.io/region',
            ],
            True,
        ),
        (
            [
                'kubernetes.io/x',
                'kubernetes.io/archive',
                'k8s.io/x',
                'node-role.kubernetes.io/worker',
                'a.b.k8s.io/x',
                'beta.kubernetes.io/x',
                'topology.kubernetes.io/rack',
                'kubernetes.io/',
            ],
            False,
        ),
    ],
)
def test_labels_of_nodes_that_the_engine_keeps(
    conf: cfg.ConfigOpts, keys: list[str], taken: bool
) -> None:
    problems = drivers.load(conf)['k8s_cloud_init'].check_node_labels(dict.fromkeys(keys, ''))

    assert len(problems) == (0 if taken else len(keys))
    assert all(
        f'the label {key!r}: of its own domains' in said
        for key, said in zip(keys, problems, strict=False)
    )


def test_an_unknown_label_is_told_the_nearest_name(conf: cfg.ConfigOpts) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']

    assert driver.check_labels({'flanel_backend': 'vxlan'}, conf) == [
        "Driver k8s_cloud_init has no label 'flanel_backend'; did you mean flannel_backend?"
    ]
    [problem] = driver.check_labels({'zzz': '1'}, conf)
    assert 'kube_tag' in problem


@pytest.mark.parametrize(
    ('label', 'value', 'sentence'),
    [
        (
            'kube_tag',
            'latest',
            "Label kube_tag cannot be 'latest': it must be like v1.34.3 (version of Kubernetes)",
        ),
        (
            'kube_tag',
            'v1.20.2\n',
            "Label kube_tag cannot be 'v1.20.2\\n': it must not hold control characters "
            '(version of Kubernetes)',
        ),
        (
            'boot_volume_size',
            'big',
            "Label boot_volume_size cannot be 'big': it must be a whole number from 0 to 65536 "
            "(GiB of the volume that a node boots from; 0 is the flavor's own disk)",
        ),
        (
            'octavia_lb_healthcheck',
            'maybe',
            "Label octavia_lb_healthcheck cannot be 'maybe': it must be true or false "
            '(whether the load balancer asks masters if they are alive)',
        ),
        (
            'flannel_backend',
            'gre',
            "Label flannel_backend cannot be 'gre': it must be one of vxlan, host-gw, udp "
            '(how flannel carries packets between nodes; udp is for debugging)',
        ),
        (
            'flannel_network_cidr',
            '10.1.2.3/8',
            "Label flannel_network_cidr cannot be '10.1.2.3/8': it must be like "
            '10.244.0.0/16 (address range of pods)',
        ),
        (
            'master_lb_allowed_cidrs',
            '10.0.0.0/8,x',
            "Label master_lb_allowed_cidrs cannot be '10.0.0.0/8,x': it must be a "
            'list with commas like 192.0.2.0/24,198.51.100.0/24 (address ranges '
            'that may reach the API; everywhere if not given)',
        ),
    ],
)
def test_a_wrong_label_is_told_what_it_must_be(
    conf: cfg.ConfigOpts, label: str, value: str, sentence: str
) -> None:
    assert drivers.load(conf)['k8s_cloud_init'].check_labels({label: value}, conf) == [sentence]


def test_the_operators_default_stands_between_manifest_and_user(conf: cfg.ConfigOpts) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']
    conf.set_override(
        'label_defaults',
        {'flannel_backend': 'udp', 'fixed_network_cidr': '10.9.0.0/24', 'other': 'x'},
        group='drivers',
    )

    assert driver.read_labels(conf, {})['flannel_backend'] == 'udp'
    assert driver.read_labels(conf, {})['fixed_subnet_cidr'] == '10.9.0.0/24'
    assert driver.read_labels(conf, {'flannel_backend': 'host-gw'})['flannel_backend'] == 'host-gw'
    assert driver.read_labels(conf, {'flannel_backend': ''})['flannel_backend'] == 'udp'
    assert 'other' not in driver.read_labels(conf, {})


def test_a_wrong_default_of_the_operator_names_its_option(conf: cfg.ConfigOpts) -> None:
    conf.set_override('label_defaults', {'flannel_backend': 'gre'}, group='drivers')

    with pytest.raises(errors.DriverError, match=r'label_defaults: label flannel_backend'):
        drivers.load(conf)['k8s_cloud_init'].read_labels(conf, {})


def test_labels_come_typed(conf: cfg.ConfigOpts) -> None:
    labels = drivers.load(conf)['k8s_cloud_init'].read_labels(
        conf,
        {
            'boot_volume_size': '20',
            'octavia_lb_healthcheck': 'False',
            'master_lb_allowed_cidrs': '10.0.0.0/8, 11.0.0.0/8',
        },
    )

    assert labels['boot_volume_size'] == 20
    assert labels['octavia_lb_healthcheck'] is False
    assert labels['api_master_lb_allowed_cidrs'] == ['10.0.0.0/8', '11.0.0.0/8']


def test_a_label_and_its_older_name_together_are_refused(conf: cfg.ConfigOpts) -> None:
    labels = {'fixed_subnet_cidr': '10.0.0.0/24', 'fixed_network_cidr': '10.1.0.0/24'}

    assert drivers.load(conf)['k8s_cloud_init'].check_labels(labels, conf) == [
        'Label fixed_network_cidr is another name of fixed_subnet_cidr; give one of them'
    ]


@pytest.mark.parametrize(
    ('label', 'value', 'words'),
    [
        ('heat_container_agent_tag', 'wallaby-stable-1', ''),
        ('metrics_server_chart_tag', 'v3.7.0', ''),
        ('monitoring_retention_days', '14', ''),
        ('cert_manager_api', 'true', ''),
        ('kube_dashboard_enabled', 'False', ''),
        ('kube_dashboard_enabled', 'true', 'post_install_manifest_url'),
        ('kube_dashboard_enabled', '', ''),
        ('monitoring_enabled', 'true', 'post_install_manifest_url'),
        ('keystone_auth_enabled', 'true', 'kubeconfig'),
        ('cgroup_driver', 'systemd', ''),
        ('cgroup_driver', 'cgroupfs', 'kubeadm'),
        ('ingress_controller', 'nginx', 'come'),
        ('hyperkube_prefix', 'k8s.gcr.io/', 'container_infra_prefix'),
    ],
)
def test_labels_of_old_templates_are_borne_unless_they_ask_for_what_is_not_there(
    conf: cfg.ConfigOpts, label: str, value: str, words: str
) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']

    problems = driver.check_labels({label: value}, conf)

    assert [label in problem and words in problem for problem in problems] == [True] * bool(words)
    assert label not in driver.read_labels(conf, {label: value})


# What acts on the cloud from inside.


@pytest.fixture
def integrated(conf: cfg.ConfigOpts) -> cfg.ConfigOpts:
    """An operator has provided for clusters to get users."""
    conf.set_override('trustee_domain_name', 'magnum', 'trust')
    return conf


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
def test_a_cluster_gets_a_user_where_an_operator_has_provided_for_it(
    driver: drivers.Driver, conf: cfg.ConfigOpts
) -> None:
    def wants(**labels: str) -> bool:
        return driver.wants_cloud_user(conf, a_cluster(driver, labels=labels))

    assert not wants()
    conf.set_override('trustee_domain_name', 'magnum', 'trust')
    assert wants() and not wants(cloud_provider_enabled='false')
    conf.set_override('project_roles', [], 'identity')
    assert not wants(), 'nobody could say with which roles'
    conf.set_override('roles', ['member'], 'trust')
    assert wants()


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
@pytest.mark.parametrize('tag', ['v1.20.2', 'v1.26.0', 'v1.35.9'])
def test_only_masters_get_the_login_and_apply_what_uses_it(
    driver: drivers.Driver, integrated: cfg.ConfigOpts, secrets: dict[str, certs.Pair], tag: str
) -> None:
    cluster = a_cluster(
        driver,
        labels={'kube_tag': tag},
        project_id='p1',
        template={'volume_driver': 'cinder', 'external_network_id': str(uuid.UUID(int=1))},
    )

    rendered = driver.render(integrated, cluster, secrets, LOGIN)

    assert driver.check_cluster(integrated, cluster) == []
    texts = user_data(driver, rendered)
    assert LOGIN.user_id not in rendered.template + ''.join(rendered.files.values())
    assert LOGIN.user_id not in str(unpacked(texts['worker_user_data']))
    files = unpacked(texts['master_user_data'])
    secret = read_yaml(files['/etc/magnum-lite/cloud.yaml'].removeprefix('---'))
    assert secret['stringData']['ca.pem'] == LOGIN.ca
    assert secret['stringData']['cloud.conf'].splitlines() == [
        '[Global]',
        'auth-url="https://keystone.example/v3"',
        'user-id="the-user"',
        r'password="the \"pass\\word\""',
        'tenant-id="p1"',
        'region="RegionOne"',
        'ca-file="/etc/config/ca.pem"',
        '[LoadBalancer]',
        'floating-network-id="00000000-0000-0000-0000-000000000001"',
        'lb-method="ROUND_ROBIN"',
        'create-monitor="true"',
    ]
    objects = [
        found
        for name in ('cloud-controller', 'cinder-csi')
        for found in yaml.safe_load_all(files[f'/opt/magnum-lite/{name}.yaml'])
    ]
    assert all(
        found['apiVersion'] and found['kind'] and found['metadata']['name'] for found in objects
    )
    with_login = {
        found['metadata']['name']
        for found in objects
        if "'secretName': 'cloud-config'" in str(found)
    }
    assert with_login == {'openstack-cloud-controller-manager', 'csi-cinder-controllerplugin'} | (
        set() if tag == 'v1.35.9' else {'csi-cinder-nodeplugin'}
    )
    images = {
        found['image'].rpartition(':')
        for found in walk(objects)
        if isinstance(found, dict) and 'image' in found
    }
    assert {version for name, _, version in images if name.endswith(('manager', 'plugin'))} == {
        tag.rpartition('.')[0] + '.0'
    }
    assert all(
        '"cloud-provider": "external"' in text or '"value": "external"' in text
        for text in (
            files['/etc/magnum-lite/init.yaml'],
            unpacked(texts['worker_user_data'])['/etc/magnum-lite/join.yaml'],
        )
    )


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
def test_every_image_comes_from_the_registry_that_is_given(
    driver: drivers.Driver, integrated: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    cluster = a_cluster(
        driver,
        labels={'container_infra_prefix': 'mirror.example/x/'},
        project_id='p1',
        template={'volume_driver': 'cinder'},
    )

    files = unpacked(
        user_data(driver, driver.render(integrated, cluster, secrets, LOGIN))['master_user_data']
    )

    images = [found for text in files.values() for found in re.findall(r'"image": "([^"]*)"', text)]
    assert len(images) == 10 and all(
        re.fullmatch(r'mirror\.example/x/[a-z-]+:[a-z0-9.-]+', image) for image in images
    )
    assert (
        read_yaml(files['/etc/magnum-lite/init.yaml'].split('---')[2])['imageRepository']
        == 'mirror.example/x'
    )
    assert "IMAGE_REPOSITORY=mirror.example/x\n" in files['/etc/magnum-lite/node.env']


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
def test_a_cluster_without_a_user_is_as_it_was(
    driver: drivers.Driver, integrated: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    """One that was made before an operator provided for users stays without: its nodes would wait
    for ever."""
    cluster = a_cluster(driver)

    now = driver.render(integrated, cluster, secrets)

    integrated.clear_override('trustee_domain_name', 'trust')
    assert now == driver.render(integrated, cluster, secrets)
    assert (
        'external' not in unpacked(now.parameters['worker_user_data'])['/etc/magnum-lite/join.yaml']
    )


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
@pytest.mark.parametrize(
    ('network', 'labels', 'ports', 'pairs'),
    [
        ('flannel', {}, {('udp', 8472), ('udp', 8285)}, False),
        ('flannel', {'flannel_backend': 'host-gw'}, {('udp', 8472), ('udp', 8285)}, True),
        ('calico', {}, {('4', None), ('tcp', 179), ('udp', 4789), ('tcp', 5473)}, True),
        (
            'calico',
            {'calico_ipv4pool_ipip': 'Always'},
            {('4', None), ('tcp', 179), ('udp', 4789), ('tcp', 5473)},
            False,
        ),
        ('cilium', {}, {('udp', 8472), ('tcp', 4240)}, False),
    ],
)
def test_each_pod_network_has_its_ports(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    secrets: dict[str, certs.Pair],
    network: str,
    labels: dict[str, str],
    ports: set[tuple[str, int | None]],
    pairs: bool,
) -> None:
    cluster = a_cluster(
        driver,
        template={'network_driver': network},
        labels=labels
        | {'network_manifest_url': 'file:///opt/network.yaml', 'calico_ipv4pool': '10.99.0.0/16'},
    )

    parsed = parse(driver.render(conf, cluster, secrets))

    rules = parsed['']['resources']['node_security_group']['properties']['rules']
    assert {(rule['protocol'], rule.get('port_range_min')) for rule in rules} == ports | {
        ('tcp', 22),
        ('icmp', None),
        ('tcp', 10250),
    }
    found = [
        r['properties'].get('allowed_address_pairs')
        for tree in parsed.values()
        for r in (tree.get('resources') or {}).values()
        if r['type'] == 'OS::Neutron::Port'
    ]
    assert found == [[{'ip_address': '10.99.0.0/16'}] if pairs else None] * len(found) != []


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
def test_registries_are_asked_where_the_labels_say(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    cluster = a_cluster(
        driver,
        template={'insecure_registry': 'plain.example:5000'},
        labels={
            'registry_mirrors': (
                'docker.io=https://mirror.example:5000,ghcr.io=http://harbor.example/v2/ghcr'
            ),
            'registry_ca': 'UEVN',
            'container_infra_prefix': 'own.example:443/x',
        },
    )

    for text in user_data(driver, driver.render(conf, cluster, secrets)).values():
        files = unpacked(text)
        assert files['/etc/magnum-lite/registry-ca.b64'] == 'UEVN'
        assert {
            path.split('/')[4]: content
            for path, content in files.items()
            if path.endswith('/hosts.toml')
        } == {
            'docker.io': (
                '[host."https://mirror.example:5000"]\n  ca = "/etc/containerd/registry-ca.pem"\n'
            ),
            'ghcr.io': '[host."http://harbor.example/v2/ghcr"]\n  override_path = true\n',
            'own.example:443': '[host."https://own.example:443"]\n  ca = "/etc/containerd/registry-ca.pem"\n',  # noqa: E501
            'plain.example:5000': '[host."http://plain.example:5000"]\n',
        }


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
@pytest.mark.parametrize(('tag', 'shape'), [('v1.30.0', dict), ('v1.35.9', list)])
def test_options_of_components_are_kubeadms_and_ours_win(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    secrets: dict[str, certs.Pair],
    tag: str,
    shape: type,
) -> None:
    cluster = a_cluster(
        driver,
        labels={
            'kube_tag': tag,
            'kubelet_options': '--v=4 --node-ip=192.0.2.1',
            'kubeapi_options': '--a=b=c',
            'kubecontroller_options': '--d=1',
            'kubescheduler_options': '--e=2',
            'admission_control_list': 'One,Two',
        },
    )

    files = unpacked(user_data(driver, driver.render(conf, cluster, secrets))['master_user_data'])

    def read(where: Any) -> dict[str, str]:
        assert isinstance(where, shape)
        return where if isinstance(where, dict) else {item['name']: item['value'] for item in where}

    init, configuration, _ = yaml.safe_load_all(files['/etc/magnum-lite/init.yaml'])
    kubelet = read(init['nodeRegistration']['kubeletExtraArgs'])
    assert (kubelet['v'], kubelet['node-ip']) == ('4', '@@NODE_ADDRESS@@')
    assert read(configuration['apiServer']['extraArgs']) == {
        'a': 'b=c',
        'enable-admission-plugins': 'NodeRestriction,One,Two',
    }
    assert read(configuration['scheduler']['extraArgs']) == {'e': '2'}
    assert read(configuration['controllerManager']['extraArgs'])['d'] == '1'


# Templates and clusters that cannot be.


def test_fields_of_a_template_are_checked(conf: cfg.ConfigOpts) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']

    assert driver.template_defaults == {'network_driver': 'flannel'}
    assert (
        driver.check_template(
            {'network_driver': None, 'volume_driver': 'cinder', 'tls_disabled': False}
        )
        == []
    )
    assert driver.check_template({'network_driver': 'weave', 'tls_disabled': True}) == [
        "network_driver cannot be 'weave' with driver k8s_cloud_init: it must be one of flannel, "
        "calico, cilium (flannel "
        'comes with the cluster, of others the manifest is applied that the label names)',
        'tls_disabled cannot be True with driver k8s_cloud_init: it must be False (kubeadm serves '
        'its '
        'API by TLS only)',
    ]


def test_a_pod_network_that_does_not_come_with_the_cluster_needs_its_manifest(
    conf: cfg.ConfigOpts,
) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']
    label = {'network_manifest_url': 'https://mirror.example/calico.yaml'}

    [problem] = driver.check_template({'network_driver': 'calico', 'labels': {}}, conf)

    assert problem.startswith('network_driver calico needs the label network_manifest_url (')
    assert driver.check_template({'network_driver': 'calico', 'labels': label}, conf) == []
    conf.set_override('label_defaults', label, 'drivers')
    assert driver.check_template({'network_driver': 'calico', 'labels': {}}, conf) == []


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'template': {'external_network_id': None}}, ['external_network_id']),
        ({'masters': 3, 'master_lb_enabled': False}, ['master_lb_enabled']),
        ({'fixed_subnet': 'sub'}, ['fixed_network']),
        ({'labels': {'kube_tarball_url': 'https://a/b'}}, ['kube_tarball_sha256']),
        ({'labels': {'flannel_network_cidr': '10.254.0.0/16'}}, ['overlaps', '10.254.0.0/16']),
        ({'labels': {'flannel_network_subnetlen': '17'}}, ['room for 2 nodes', '3 are asked for']),
        ({'labels': {'fixed_subnet_cidr': '10.0.0.0/30'}}, ['room for 0 nodes', '3 are asked for']),
        (
            {'workers': 150, 'labels': {'fixed_subnet_cidr': '10.0.0.0/16'}},
            ['1089 resources', '1000'],
        ),
        (
            {'labels': {'cloud_provider_enabled': 'true'}},
            ['trustee_domain_id', 'cloud_provider_enabled'],
        ),
        (
            {'template': {'volume_driver': 'cinder'}, 'labels': {'cinder_csi_enabled': 'true'}},
            ['cinder_csi_enabled to'],
        ),
        ({'template': {'network_driver': 'cilium'}}, ['network_manifest_url']),
        ({'labels': {'containerd_version': '2.1.5'}}, ['containerd_tarball_url']),
        ({'public_key': 'k' * 40000}, ['user-data', str(drivers.MAX_USER_DATA)]),
    ],
)
def test_limits_are_said_before_they_bite(
    conf: cfg.ConfigOpts, changes: dict[str, Any], words: list[str]
) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']
    if 'template' in changes:
        changes['template'].setdefault('external_network_id', 'public')

    problems = driver.check_cluster(conf, a_cluster(driver, **changes))

    assert problems
    assert all(word in problems[0] for word in words), problems


@pytest.mark.parametrize(
    ('minutes', 'seconds'),
    [(None, 3300), (0, 3300), (60, 3300), (20, 900), (10, 450), (1, 45), (10000, 43200)],
)
def test_nodes_report_before_their_stack_gives_up(
    driver: drivers.Driver, conf: cfg.ConfigOpts, minutes: int | None, seconds: int
) -> None:
    assert (
        drivers.compute_node_timeout_s(conf, a_cluster(driver, create_timeout=minutes)) == seconds
    )


# Outputs.


def test_outputs_may_all_be_missing_or_null(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    names = parse(driver.render(conf, a_cluster(driver), secrets))['']['outputs']

    assert (
        driver.read_outputs({}) == driver.read_outputs(dict.fromkeys(names)) == drivers.Observed()
    )


def test_outputs_that_the_manifest_reads_exist(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    names = parse(driver.render(conf, a_cluster(driver), secrets))['']['outputs']

    read = driver.manifest['outputs']
    assert {read['api_address'], read['coe_version'], *read['nodes']} <= set(names)


def test_outputs_are_read_in_the_order_of_numbers(conf: cfg.ConfigOpts) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']
    nodes = [
        {
            'nodegroup': 'default-worker',
            'number': n,
            'server_id': f's{n}',
            'address': a,
            'private_address': None,
        }
        for n, a in ((10, '192.0.2.10'), (2, '192.0.2.2'), (3, None))
    ]

    observed = driver.read_outputs(
        {
            'api_address': 'https://192.0.2.1:6443',
            'coe_version': 'v1.20.2',
            'masters': None,
            'workers': nodes,
        }
    )

    assert (observed.api_address, observed.coe_version) == ('https://192.0.2.1:6443', 'v1.20.2')
    assert observed.addresses == {'default-worker': ['192.0.2.2', '192.0.2.10']}
    assert observed.nodes['default-worker', 10] == drivers.ObservedNode('s10', '192.0.2.10', None)


# Folders.


def test_find_knows_what_each_folder_makes(conf: cfg.ConfigOpts) -> None:
    found = drivers.load(conf).find(server_type='vm', os_distro='ubuntu', coe='kubernetes')

    assert found.name == 'k8s_cloud_init'
    assert (
        drivers.load(conf).find(
            server_type='vm', os_distro='debian', coe='kubernetes', name='k8s_cloud_init'
        )
        is found
    )


@pytest.mark.parametrize(
    ('asked', 'sentences'),
    [
        (
            {'coe': 'other'},
            "No driver makes other clusters from an image with os_distro 'ubuntu' on server_type "
            "'vm'. "
            'k8s_cloud_init makes kubernetes on ubuntu (vm), kubernetes on debian (vm).',
        ),
        (
            {'os_distro': 'beos', 'name': 'k8s_cloud_init'},
            "Driver k8s_cloud_init does not make kubernetes clusters from an image with os_distro "
            "'beos' on server_type 'vm'. "
            'k8s_cloud_init makes kubernetes on ubuntu (vm), kubernetes on debian (vm).',
        ),
        ({'name': 'none'}, "Driver 'none' does not exist. There are: k8s_ignition, k8s_u"),
    ],
)
def test_a_driver_that_is_not_there(
    conf: cfg.ConfigOpts, asked: dict[str, str], sentences: str
) -> None:
    with pytest.raises(errors.Invalid) as raised:
        drivers.load(conf).find(
            **{'server_type': 'vm', 'os_distro': 'ubuntu', 'coe': 'kubernetes', **asked}
        )

    assert str(raised.value).startswith(sentences[:60])
    assert 'k8s_cloud_init' in str(raised.value)


def test_a_disabled_driver_is_not_found(conf: cfg.ConfigOpts) -> None:
    conf.set_override('disabled_drivers', FOLDERS, group='drivers')

    with pytest.raises(errors.Invalid, match='is disabled here'):
        drivers.load(conf).find(
            server_type='vm', os_distro='ubuntu', coe='kubernetes', name='k8s_cloud_init'
        )
    with pytest.raises(errors.Invalid, match='No driver is enabled'):
        drivers.load(conf).find(server_type='vm', os_distro='ubuntu', coe='kubernetes')


@pytest.fixture
def home(tmp_path: pathlib.Path, conf: cfg.ConfigOpts) -> pathlib.Path:
    """A folder of an operator with a copy of a built-in driver folder."""
    shutil.copytree(drivers.BUILT_IN / 'k8s_cloud_init', tmp_path / 'drivers' / 'k8s_cloud_init')
    conf.set_override('path', [str(tmp_path / 'drivers')], group='drivers')
    return tmp_path / 'drivers'


def edit(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    drivers.folders.read_folders.cache_clear()


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
def test_a_folder_of_the_operator_wins_over_the_built_in_one(
    conf: cfg.ConfigOpts, home: pathlib.Path, secrets: dict[str, certs.Pair]
) -> None:
    edit(home / 'k8s_cloud_init' / 'manifest.yaml', 'default: vxlan', 'default: host-gw')
    shutil.copytree(home / 'k8s_cloud_init', home / 'ours')
    edit(home / 'ours' / 'manifest.yaml', 'os_distro: ubuntu', 'os_distro: ours')
    (home / 'ours' / 'driver.py').write_text(
        'from magnum_lite import drivers\n\n\nclass Driver(drivers.Driver):\n'
        "    template_defaults = {'network_driver': 'own'}\n"
    )

    ours = drivers.load(conf).find(server_type='vm', os_distro='ours', coe='kubernetes')

    assert drivers.load(conf)['k8s_cloud_init'].folder == home / 'k8s_cloud_init'
    assert (
        drivers.load(conf)['k8s_cloud_init'].read_labels(conf, {})['flannel_backend'] == 'host-gw'
    )
    assert (ours.name, ours.template_defaults) == ('ours', {'network_driver': 'own'})
    assert ours.render(conf, a_cluster(ours), secrets).template  # what is shared is found


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'place'),
    [
        ('manifest.yaml', 'text: Kub', 'txt: Kub', r'manifest\.yaml \$: .*txt'),
        (
            'manifest.yaml',
            'default: vxlan',
            'default: gre',
            r'\$\.labels\.flannel_backend\.default: it must be one of',
        ),
        (
            'manifest.yaml',
            'signed_by: ca',
            'signed_by: cb',
            r'\$\.certificates\.join: no such authority',
        ),
        (
            'manifest.yaml',
            'per_node: flannel_network_subnetlen',
            'per_node: nope',
            'there is no label nope',
        ),
        (
            'manifest.yaml',
            'version: kube_tag',
            'version: tag',
            r'\$\.upgrade: there is no label tag',
        ),
        (
            'manifest.yaml',
            'authority: ca',
            'authority: etc',
            r'\$\.health: there is no authority etc',
        ),
        (
            'manifest.yaml',
            'types: {etcd: etcd',
            'types: {etcd: etc',
            'signing: there is no authority etc',
        ),
        (
            'manifest.yaml',
            'front-proxy: front-proxy}',
            'x: service-account}',
            'there is no authority service-account',
        ),
        (
            'manifest.yaml',
            'groups: {project_member',
            'groups: {everybody',
            r"access\.groups: 'everybody' is not one",
        ),
        ('manifest.yaml', "(?!([a-z0-9", "(?!(([a-z0-9", r'\$\.node_labels\.refused: missing \)'),
        ('manifest.yaml', 'path: /api', 'path: api', r'\$\.health\.requests\.nodes\.path: '),
        ('manifest.yaml', 'provides:', 'provides: [', r'manifest\.yaml: '),
    ],
)
def test_a_wrong_manifest_names_folder_and_place(
    conf: cfg.ConfigOpts, home: pathlib.Path, file: str, old: str, new: str, place: str
) -> None:
    edit(home / 'k8s_cloud_init' / file, old, new)

    with pytest.raises(errors.DriverError, match=f'driver folder {home}/k8s_cloud_init: .*{place}'):
        drivers.load(conf)


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
@pytest.mark.parametrize(
    ('file', 'old', 'new', 'place'),
    [
        (
            'cluster.yaml.j2',
            'resources:\n',
            '{{ nothing }}\nresources:\n',
            r"cluster\.yaml\.j2, line \d+: .*'nothing' is",
        ),
        ('cluster.yaml.j2', 'resources:\n', '{% if %}', r'cluster\.yaml\.j2, line \d+: '),
        (
            'cluster.yaml.j2',
            'resources:\n',
            'resources: [\n',
            r'cluster\.yaml\.j2, line \d+ of the result: ',
        ),
        (
            'cluster.yaml.j2',
            "'network.yaml.j2'",
            "'net.yaml.j2'",
            r'cluster\.yaml\.j2: there is no net\.yaml\.j2',
        ),
        (
            'node.yaml.j2',
            'file: node.sh',
            'file: nod.sh',
            r'node\.yaml\.j2: FileNotFoundError nod\.sh',
        ),
        ('node.yaml.j2', 'files:\n', 'flies:\n', r"node\.yaml\.j2: KeyError 'files'"),
        (
            'manifest.yaml',
            'api_port: api_port',
            'api_port: api_prot',
            "expression 'api_prot': 'api_prot' is undefined",
        ),
        (
            'manifest.yaml',
            'api_port: api_port',
            'api_port: cluster.__class__',
            'expression .* unsafe',
        ),
    ],
)
def test_a_wrong_template_names_folder_and_place(
    conf: cfg.ConfigOpts,
    home: pathlib.Path,
    secrets: dict[str, certs.Pair],
    file: str,
    old: str,
    new: str,
    place: str,
) -> None:
    edit(home / 'k8s_cloud_init' / file, old, new)
    driver = drivers.load(conf)['k8s_cloud_init']

    with pytest.raises(errors.DriverError, match=f'driver folder {home}/k8s_cloud_init: .*{place}'):
        driver.render(conf, a_cluster(driver), secrets)


def test_a_wrong_class_names_folder_and_file(conf: cfg.ConfigOpts, home: pathlib.Path) -> None:
    (home / 'k8s_cloud_init' / 'driver.py').write_text('import nothing_of_that_name\n')

    with pytest.raises(
        errors.DriverError, match=r'k8s_cloud_init: driver\.py: ModuleNotFoundError'
    ):
        drivers.load(conf)


def test_a_path_that_is_not_there_is_named(conf: cfg.ConfigOpts) -> None:
    conf.set_override('path', ['/nowhere'], group='drivers')

    with pytest.raises(errors.DriverError, match=r'\[drivers\] path /nowhere'):
        drivers.load(conf)


def test_missing_secrets_are_named(conf: cfg.ConfigOpts) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']

    with pytest.raises(
        errors.DriverError,
        match='no secrets given for ca, etcd, front-proxy, join, service-account',
    ):
        driver.render(conf, a_cluster(driver), {})


def test_code_of_a_folder_stays_the_exception(driver: drivers.Driver) -> None:
    own = driver.folder / 'driver.py'

    assert not own.exists() or len(own.read_text().splitlines()) <= 80


# Scripts of the nodes.


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_sound(script: pathlib.Path) -> None:
    subprocess.run(['sh', '-n', str(script)], check=True)
    if checker := shutil.which('shellcheck'):
        subprocess.run([checker, '-s', 'sh', '-e', 'SC1091', str(script)], check=True)


@dataclasses.dataclass
class Node:
    """The node script in a folder of its own, with a `curl` that notes what was posted."""

    folder: pathlib.Path
    engine: str = ''

    def run(self, *arguments: str, **environment: str) -> tuple[int, list[dict[str, str]]]:
        script = (drivers.BUILT_IN / '_shared' / 'files' / 'node.sh').read_text()
        for place in ('/etc/magnum-lite', '/opt/magnum-lite', '/var/lib/magnum-lite', '/var/log'):
            (self.folder / place[1:]).mkdir(parents=True, exist_ok=True)
            script = script.replace(place, f'{self.folder}{place}')
        script = script.replace('PATH=', f'PATH={self.folder}:')
        (self.folder / 'node.sh').write_text(script)
        (self.folder / 'opt/magnum-lite/engine.sh').write_text(
            'set_up_node() {\n' + self.engine + '\n}\n'
        )
        (self.folder / 'etc/magnum-lite/node.env').write_text(
            "NODE_NAME=n-0\nSIGNAL_URL=http://heat/signal\nSIGNAL_TOKEN='the token'\n"
        )
        (self.folder / 'sleep').write_text('#!/bin/sh\n')
        (self.folder / 'curl').write_text(
            '#!/bin/sh\ncat >>"$0.in"; while [ "$1" != --data-binary ]; do shift; done\nprintf '
            '"%s\\n" "$2" "$3" >>"$0.out"\n[ ! -e "$0.away" ] || { rm "$0.away"; exit 22; }\n'
        )
        for name in ('curl', 'sleep'):
            (self.folder / name).chmod(0o755)
        with (self.folder / 'var/log/magnum-lite-node.log').open('a') as log:
            code = subprocess.run(
                ['sh', str(self.folder / 'node.sh'), *arguments],
                stdout=log,
                stderr=log,
                env=os.environ | environment,
                check=False,
            ).returncode
        lines = (
            (self.folder / 'curl.out').read_text().splitlines()
            if (self.folder / 'curl.out').exists()
            else []
        )
        assert set(lines[1::2]) <= {'http://heat/signal'}
        return code, [json.loads(line) for line in lines[::2]]


@pytest.fixture
def node(tmp_path: pathlib.Path) -> Node:
    return Node(tmp_path)


def test_a_node_reports_success_with_its_token(node: Node) -> None:
    node.engine = "step 'do it'; echo done"

    assert node.run() == (0, [{'status': 'SUCCESS', 'reason': 'n-0 is ready'}])
    assert (node.folder / 'curl.in').read_text() == 'header = "X-Auth-Token: the token"\n'


def test_a_node_reports_the_step_that_failed_and_its_last_words(node: Node) -> None:
    node.engine = (
        "step 'first thing'; echo 'not this'\nstep 'second thing'\n"
        "printf 'say \"it\" \\\\ \\001 http://me:secret@proxy:3128\\n'; sh -c 'exit 7'; echo not "
        "reached"
    )

    code, [report] = node.run()

    assert code == 7
    assert report == {
        'status': 'FAILURE',
        'reason': "n-0: step 'second thing' failed (exit code 7): "
        'say "it" \\ ? http://***@proxy:3128',
    }


def test_a_report_is_cut_and_tried_again(node: Node) -> None:
    node.engine = "step 'talk'; head -c 5000 /dev/zero | tr '\\0' x; exit 1"
    node.folder.mkdir(exist_ok=True)
    (node.folder / 'curl.away').touch()

    _, reports = node.run()

    assert [r['status'] for r in reports] == ['FAILURE', 'FAILURE']
    assert 700 <= len(reports[1]['reason']) <= 1024


def test_a_step_that_takes_too_long_is_named(node: Node) -> None:
    node.engine = "step 'wait for ever'; kill -TERM $$; echo not reached"

    code, [report] = node.run()

    assert code == 124
    assert report['reason'].startswith(
        "n-0: step 'wait for ever, which was still running when the time was up' failed"
    )


def test_a_set_up_that_died_silently_is_reported_afterwards(node: Node) -> None:
    node.engine = "step 'die'; kill -KILL $$"

    assert node.run() == (-9, [])
    code, [report] = node.run('--if-silent', SERVICE_RESULT='signal', EXIT_STATUS='KILL')
    assert code == 0
    assert 'the set-up ended without a report (signal KILL)' in report['reason']
    assert node.run('--if-silent')[1] == [report]


def test_until_ok_tries_until_it_works(node: Node) -> None:
    node.engine = (
        "step 'wait'\ntries() { echo . >>$STATE/tries; echo same words; [ $(wc -l <$STATE/tries) = "
        "3 ]; }\n"
        'until_ok tries'
    )

    assert node.run()[0] == 0
    assert (node.folder / 'var/log/magnum-lite-node.log').read_text().count('same words') == 2


@pytest.mark.parametrize('engine', ['kubeadm', 'docker'])
def test_an_image_that_lacks_programs_and_has_no_package_manager_is_told_which_label_helps(
    node: Node, engine: str
) -> None:
    [line] = [
        line
        for line in (drivers.BUILT_IN / '_shared' / 'files' / f'{engine}.sh')
        .read_text()
        .splitlines()
        if line.startswith('INSTEAD=')
    ]
    node.engine = f"{line}\nhave() {{ [ $1 = curl ]; }}\nstep 'install'; packages socat openssl"

    code, [report] = node.run()

    assert code == 1
    assert (
        'the image lacks socat openssl and has no package manager that is known here; use an image '
        'that has this, '
        'or name the label ' in report['reason']
    )


def test_a_failed_node_is_made_harmless_before_it_reports(node: Node) -> None:
    node.engine = "step 'join'; exit 3\n}\ngive_up() { echo 'the report: '$(cat $0/../curl.out 2>/dev/null); false"  # noqa: E501

    code, reports = node.run()

    assert (code, [r['status'] for r in reports]) == (3, ['FAILURE'])
    assert 'the report: \n' in (node.folder / 'var/log/magnum-lite-node.log').read_text()


def test_a_node_that_succeeded_and_could_not_say_so_says_it_afterwards(node: Node) -> None:
    (node.folder / 'var/lib/magnum-lite').mkdir(parents=True)
    (node.folder / 'var/lib/magnum-lite/succeeded').touch()

    assert node.run('--if-silent') == (0, [{'status': 'SUCCESS', 'reason': 'n-0 is ready'}])


@dataclasses.dataclass
class Etcd:
    """The functions of kubeadm.sh that deal with members of etcd, and an `etcdctl` that knows
    some."""

    folder: pathlib.Path
    #: Lines as `member list` prints them, of `id` or `id, started, name, peer, client, false`.
    members: list[str]
    #: Names, and addresses of clients, that answer.
    healthy: tuple[str, ...]

    def call(self, function: str, **environment: str) -> tuple[int, list[str]]:
        """Its exit code, and the ids of the members that are left."""
        (self.folder / 'list').write_text(''.join(f'{line}\n' for line in self.members))
        script = drivers.BUILT_IN / '_shared' / 'files' / 'kubeadm.sh'
        (self.folder / 'run.sh').write_text(f"""
            . {script}
            kubeadm() {{ :; }}; rm() {{ :; }}; trust_all() {{ :; }}
            etcd() {{
                case "$2 $3" in
                'endpoint health') echo " {' '.join(self.healthy)} " | grep " ${{ENDPOINT:-$1}} " >/dev/null ;;
                'member list') cat {self.folder}/list ;;
                'member remove') grep -v "^$4," {self.folder}/list >{self.folder}/left
                                 cp {self.folder}/left {self.folder}/list ;;
                esac
            }}
            {function}
            """)  # noqa: E501
        done = subprocess.run(
            ['sh', '-eu', str(self.folder / 'run.sh')],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, [
            line.split(',')[0] for line in (self.folder / 'list').read_text().splitlines()
        ]


def member(number: int, state: str = 'started') -> str:
    """A line of etcd's list."""
    known = state == 'started'
    return (
        f'{number}{number}, {state}, {f"m-{number}" if known else ""}, '
        f'https://10.0.0.{number}:2380, {f"https://10.0.0.{number}:2379" if known else ""}, false'
    )


@pytest.mark.parametrize(
    ('members', 'healthy', 'left'),
    [
        ([member(0)], ('m-0', 'https://10.0.0.0:2379'), ['00']),
        ([member(0), member(1, 'unstarted')], ('m-0', 'https://10.0.0.0:2379'), ['00']),
        ([member(0), member(2), member(5)], ('m-2', 'https://10.0.0.2:2379'), ['22']),
        (
            [member(0), member(2), member(5)],
            ('m-0', 'https://10.0.0.0:2379', 'https://10.0.0.5:2379'),
            ['00', '22', '55'],
        ),
    ],
    ids=[
        'nothing to do',
        'half-made',
        'gone, of those that go and of nobody',
        'who stays is left, and who answers',
    ],
)
def test_what_does_not_answer_and_does_not_stay_leaves_etcd_before_a_master_joins(
    tmp_path: pathlib.Path, members: list[str], healthy: tuple[str, ...], left: list[str]
) -> None:
    etcd = Etcd(tmp_path, members, healthy)

    assert etcd.call('make_room', NODE_NAME='m-9', NODE_REPLACES='m-0', NODE_STAYS='m-2 m-3') == (
        0,
        left,
    )


def test_nobody_is_asked_who_does_not_answer(tmp_path: pathlib.Path) -> None:
    etcd = Etcd(tmp_path, [member(0)], ())

    assert etcd.call('make_room', NODE_NAME='m-9', NODE_REPLACES='m-0', NODE_STAYS='') == (
        1,
        ['00'],
    )


@pytest.mark.parametrize(
    ('members', 'code', 'left'),
    [
        ([member(0), member(9)], 0, ['99']),
        ([member(9)], 0, ['99']),
        ([member(0), member(9, 'unstarted')], 1, ['00', '99']),
    ],
    ids=['it goes', 'it is gone already', 'not before the new one counts'],
)
def test_the_old_master_leaves_etcd(
    tmp_path: pathlib.Path, members: list[str], code: int, left: list[str]
) -> None:
    etcd = Etcd(tmp_path, members, ())

    assert etcd.call('leave_etcd m-0', NODE_NAME='m-9') == (code, left)
