"""How driver folders are found, and how mistakes in one are reported."""

from __future__ import annotations

import pathlib
import shutil

import pytest
from oslo_config import cfg
from rendering import FOLDERS, a_cluster, edit

from magnum_lite import certs, drivers, errors


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
        ({'name': 'none'}, "Driver 'none' does not exist. There are: k8s_cloud_init, "),
    ],
)
def test_missing_driver_is_not_found(
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
