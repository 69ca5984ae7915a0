"""Labels: which there are, what they may be, where their defaults come from."""

from __future__ import annotations

import pytest
from oslo_config import cfg
from rendering import LOGIN, a_cluster

from magnum_lite import certs, drivers, errors


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


def test_labels_are_read_as_typed_values(conf: cfg.ConfigOpts) -> None:
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
