"""What a cluster may not be: too large, with ranges that overlap, or without what it needs."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from typing import Any

import pytest
from oslo_config import cfg
from rendering import BIG, a_cluster, read_yaml

from magnum_lite import certs, drivers, members, models, userdata


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
    render = driver._render_text

    def count(name: str, context: dict[str, Any]) -> str:
        calls.append(name)
        return render(name, context)

    driver._render_text = count  # type: ignore[method-assign]
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
def test_cluster_beyond_a_limit_of_the_folder_is_refused(
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
