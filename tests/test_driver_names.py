"""Former names of driver folders: stored rows and operators' folders hold them after a renaming."""

from __future__ import annotations

import pathlib

import pytest
from conftest import TEMPLATE, Api
from oslo_config import cfg

from magnum_lite import drivers, errors
from magnum_lite.api.request import Services

FORMER = {
    'k8s_ubuntu': 'k8s_cloud_init',
    'swarm_ubuntu': 'swarm_cloud_init',
    'mesos_ubuntu': 'mesos_cloud_init',
}


@pytest.fixture
def home(conf: cfg.ConfigOpts, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of an operator, without driver folders yet."""
    (tmp_path / 'drivers').mkdir()
    conf.set_override('path', [str(tmp_path / 'drivers')], 'drivers')
    return tmp_path / 'drivers'


def write_manifest(home: pathlib.Path, name: str, text: str) -> None:
    (home / name).mkdir()
    (home / name / 'manifest.yaml').write_text(text)
    drivers.folders.read_folders.cache_clear()


@pytest.mark.parametrize(('former', 'current'), FORMER.items())
def test_a_former_name_gives_the_renamed_driver(
    conf: cfg.ConfigOpts, former: str, current: str
) -> None:
    loaded = drivers.load(conf)

    assert loaded[former] is loaded[current]
    assert former in loaded and loaded.resolve_name(former) == current
    assert former not in list(loaded) and len(loaded) == len(list(loaded))
    assert loaded[former].name == current


def test_former_names_are_not_inherited_by_extending_folders(conf: cfg.ConfigOpts) -> None:
    loaded = drivers.load(conf)

    assert loaded['k8s_cloud_init'].manifest['former_names'] == ['k8s_ubuntu']
    assert loaded['k8s_ignition'].manifest['former_names'] == []


def test_find_takes_a_former_name(conf: cfg.ConfigOpts) -> None:
    loaded = drivers.load(conf)

    found = loaded.find(server_type='vm', os_distro='debian', coe='kubernetes', name='k8s_ubuntu')
    assert found is loaded['k8s_cloud_init']
    with pytest.raises(errors.Invalid, match='Driver k8s_ubuntu does not make kubernetes'):
        loaded.find(server_type='vm', os_distro='beos', coe='kubernetes', name='k8s_ubuntu')


@pytest.mark.parametrize('name', ['k8s_ubuntu', 'k8s_cloud_init'])
def test_a_driver_disabled_by_its_former_name_is_not_found(conf: cfg.ConfigOpts, name: str) -> None:
    conf.set_override('disabled_drivers', ['k8s_ubuntu'], 'drivers')
    loaded = drivers.load(conf)

    assert loaded.is_disabled(name)
    with pytest.raises(errors.Invalid, match=f"Driver '{name}' is disabled here"):
        loaded.find(server_type='vm', os_distro='debian', coe='kubernetes', name=name)


def test_a_folder_extends_another_by_its_former_name(
    conf: cfg.ConfigOpts, home: pathlib.Path
) -> None:
    write_manifest(home, 'own', 'extends: k8s_ubuntu\ntext: own\n')

    loaded = drivers.load(conf)

    assert loaded['own'].labels_known == loaded['k8s_cloud_init'].labels_known
    assert loaded['k8s_ubuntu'] is loaded['k8s_cloud_init']


def test_a_folder_with_a_former_name_takes_the_place_of_the_renamed_one(
    conf: cfg.ConfigOpts, home: pathlib.Path
) -> None:
    write_manifest(home, 'swarm_ubuntu', 'extends: swarm_ubuntu\ntext: own\n')

    loaded = drivers.load(conf)

    own = loaded['swarm_cloud_init']
    assert loaded['swarm_ubuntu'] is own and 'swarm_ubuntu' not in list(loaded)
    assert own.folder == home / 'swarm_ubuntu' and own.name == 'swarm_cloud_init'
    assert own.manifest['text'] == 'own'


def test_a_copy_of_a_folder_does_not_take_its_former_name(
    conf: cfg.ConfigOpts, home: pathlib.Path
) -> None:
    write_manifest(home, 'copy', 'extends: k8s_cloud_init\nformer_names: [k8s_ubuntu, old_copy]\n')

    loaded = drivers.load(conf)

    assert loaded['k8s_ubuntu'].name == 'k8s_cloud_init'
    assert loaded['old_copy'].name == 'copy'


def test_former_names_that_are_no_list_are_a_fault_of_the_folder(
    conf: cfg.ConfigOpts, home: pathlib.Path
) -> None:
    write_manifest(home, 'wrong', 'extends: k8s_cloud_init\nformer_names: old\n')

    with pytest.raises(errors.DriverError, match=r"wrong: manifest.yaml \$\.former_names: 'old'"):
        drivers.load(conf)


def test_rows_with_a_former_name_work(api: Api, services: Services) -> None:
    template = api('POST', '/v1/clustertemplates', TEMPLATE | {'driver': 'k8s_ubuntu'})
    with services.db.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cluster_templates SET driver = 'k8s_ubuntu'")

    created = api(
        'POST', '/v1/clusters', {'name': 'c', 'cluster_template_id': template.json['uuid']}
    )

    assert (template.status_code, created.status_code) == (201, 202), created.text
    with services.db.engine.begin() as connection:
        rows = connection.exec_driver_sql('SELECT driver FROM clusters').scalars().all()
        assert rows == ['k8s_cloud_init']
        connection.exec_driver_sql("UPDATE clusters SET driver = 'k8s_ubuntu'")
    resized = api('POST', f'/v1/clusters/{created.json["uuid"]}/actions/resize', {'node_count': 2})
    assert resized.status_code in (202, 409), resized.text
