"""What a Kubernetes cluster does in the cloud it runs on: its user, volumes, ports, registries."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
import yaml
from oslo_config import cfg
from rendering import LOGIN, a_cluster, parse, read_yaml, unpacked, user_data, walk

from magnum_lite import certs, drivers


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
        kind: Any = type(where)
        assert kind is shape
        if kind is dict:
            return dict(where)
        return {item['name']: item['value'] for item in where}

    init, configuration, _ = yaml.safe_load_all(files['/etc/magnum-lite/init.yaml'])
    kubelet = read(init['nodeRegistration']['kubeletExtraArgs'])
    assert (kubelet['v'], kubelet['node-ip']) == ('4', '@@NODE_ADDRESS@@')
    assert read(configuration['apiServer']['extraArgs']) == {
        'a': 'b=c',
        'enable-admission-plugins': 'NodeRestriction,One,Two',
    }
    assert read(configuration['scheduler']['extraArgs']) == {'e': '2'}
    assert read(configuration['controllerManager']['extraArgs'])['d'] == '1'
