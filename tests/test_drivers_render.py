"""Every driver folder, in every shape: it renders, and what it renders is a sound Heat template."""

from __future__ import annotations

import re
import uuid
from typing import Any

from oslo_config import cfg
from rendering import (
    a_cluster,
    assert_sound,
    in_every_shape,
    parse,
    resources_of,
    unpacked,
    user_data,
    user_data_of,
)

from magnum_lite import certs, drivers, models


@in_every_shape
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


@in_every_shape
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


def test_new_user_data_never_replaces_a_running_server(
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
