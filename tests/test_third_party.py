"""Engines and operating systems that somebody else adds, by folders outside the package: those of
`doc/drivers.md`."""

from __future__ import annotations

import importlib
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import fakes
import pytest
import sqlalchemy as sa
import yaml
from conftest import TEMPLATE, Api
from oslo_config import cfg
from rendering import (
    a_cluster,
    all_secrets,
    check_ignition,
    functions,
    parse,
    resources_of,
    unpacked,
    user_data,
)

from magnum_lite import certs, clients, drivers, errors
from magnum_lite.api.request import Services

PAGE = pathlib.Path(__file__).parent.parent / 'doc' / 'drivers.md'
BLOCKS = dict(re.findall(r'^```\w+ (\S+)\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL))


def write(home: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    drivers.folders.read_folders.cache_clear()


@pytest.fixture(autouse=True)
def home(conf: cfg.ConfigOpts, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of an operator with what the page says."""
    write(tmp_path / 'drivers', BLOCKS)
    conf.set_override('path', [str(tmp_path / 'drivers')], 'drivers')
    return tmp_path / 'drivers'


def test_an_operating_system_is_three_lines(conf: cfg.ConfigOpts, rsa_pair: certs.Pair) -> None:
    ours = drivers.load(conf).find(server_type='vm', os_distro='rocky', coe='kubernetes')
    theirs = drivers.load(conf)['k8s_cloud_init']
    cluster, secrets = a_cluster(ours), all_secrets(ours, rsa_pair)

    rendered, plain = ours.render(conf, cluster, secrets), theirs.render(conf, cluster, secrets)

    assert ours.name == 'k8s_rocky' and ours.provides == [('vm', 'rocky', 'kubernetes')]
    assert (rendered.template, rendered.files) == (plain.template, plain.files)
    for name, text in user_data(ours, rendered).items():
        assert unpacked(text) == unpacked(plain.parameters[name])
        assert ['systemctl', 'mask', '--now', 'dnf-automatic.timer'] in yaml.safe_load(text)[
            'runcmd'
        ]


def test_an_engine_is_a_folder(
    conf: cfg.ConfigOpts, rsa_pair: certs.Pair, home: pathlib.Path
) -> None:
    driver = drivers.load(conf).find(server_type='vm', os_distro='debian', coe='hello')
    cluster = a_cluster(driver, fixed_network='net', labels={'greeting': 'Good evening'})

    rendered = driver.render(conf, cluster, {})

    assert driver.check_cluster(conf, cluster) == []
    assert 'name one as fixed_network' in driver.check_cluster(conf, a_cluster(driver))[0]
    parsed = parse(rendered)
    assert resources_of(parsed) == 2 + 3 * 5
    [filled] = functions(parsed['member.yaml'], 'str_replace')
    for text in user_data(driver, rendered).values():
        assert unpacked(text)['/srv/hello/index.html'] == 'Good evening\n'
        assert set(re.findall('@@[A-Z_]+@@', text)) == set(filled['params'])
    if checker := shutil.which('shellcheck'):
        subprocess.run(
            [checker, '-s', 'sh', str(home / 'hello' / 'files' / 'hello.sh')], check=True
        )


def test_an_engine_of_theirs_is_extended_to_another_envelope(
    conf: cfg.ConfigOpts, rsa_pair: certs.Pair, home: pathlib.Path
) -> None:
    write(
        home,
        {
            'hello_flatcar/manifest.yaml': (
                'extends: hello\ntext: A page\nenvelope: ignition\n'
                'provides: [{server_type: vm, os_distro: flatcar, coe: hello}]\n'
            )
        },
    )
    driver = drivers.load(conf).find(server_type='vm', os_distro='flatcar', coe='hello')

    texts = user_data(driver, driver.render(conf, a_cluster(driver, fixed_network='net'), {}))

    for text in texts.values():
        check_ignition(text)
        assert json.loads(text)['systemd']['units'] == [
            {'name': 'magnum-lite-node.service', 'enabled': True}
        ]


@pytest.mark.parametrize(
    ('image', 'coe', 'name'), [('rocky', 'kubernetes', 'k8s_rocky'), ('debian', 'hello', 'hello')]
)
def test_clusters_of_theirs_are_asked_for_as_any_other(
    api: Api, services: Services, cloud: fakes.FakeCloud, image: str, coe: str, name: str
) -> None:
    cloud.images[image] = clients.Image('5d7e1b5c-0000-4000-8000-000000000008', image, image, None)

    made = api(
        'POST',
        '/v1/clustertemplates',
        TEMPLATE | {'coe': coe, 'image_id': image, 'fixed_network': 'private'},
    )
    asked = api(
        'POST',
        '/v1/clusters',
        {'name': 'c', 'cluster_template_id': made.json['uuid'], 'node_count': 2},
    )
    wrong = api(
        'POST',
        '/v1/clusters',
        {'cluster_template_id': made.json['uuid'], 'labels': {'gretting': 'x'}},
    )

    assert (made.status_code, asked.status_code) == (201, 202), made.text + asked.text
    with services.db.engine.connect() as connection:
        assert connection.scalars(sa.text('SELECT driver FROM clusters')).all() == [name]
    assert wrong.status_code == 400 and f"Driver {name} has no label 'gretting'" in wrong.text


# -- what is extended ------------------------------------------------------------------------------


def test_entries_and_keys_are_changed_replaced_and_taken_away(
    conf: cfg.ConfigOpts, home: pathlib.Path
) -> None:
    write(
        home,
        {
            'ours/manifest.yaml': '''
        extends: k8s_rocky
        provides: [{server_type: vm, os_distro: ours, coe: kubernetes}]
        labels:
          kube_tag: null
          colour: {schema: {type: string, enum: [red], examples: [red]}, text: means nothing}
        upgrade: null
        access: null
        ranges: []
        '''
        },
    )

    ours, theirs = drivers.load(conf)['ours'], drivers.load(conf)['k8s_rocky']

    assert set(theirs.labels_known) ^ set(ours.labels_known) == {'kube_tag', 'colour'}
    assert ours.access is None and ours.manifest['ranges'] == [] and 'upgrade' not in ours.manifest
    assert ours.manifest['facts'] == theirs.manifest['facts'] and len(ours.manifest['facts']) > 3
    assert ours.manifest['text'] == theirs.manifest['text']


def test_a_folder_that_takes_the_place_of_another_can_extend_that_one(
    conf: cfg.ConfigOpts, home: pathlib.Path
) -> None:
    default = (
        '{schema: {type: integer, minimum: 16, maximum: 28, examples: [26]}, text: x, default: 26}'
    )
    labels = f'labels: {{flannel_network_subnetlen: {default}}}'
    write(home, {'k8s_cloud_init/manifest.yaml': f'extends: k8s_cloud_init\n{labels}\n'})

    found = drivers.load(conf)

    for name in ('k8s_cloud_init', 'k8s_ignition', 'k8s_rocky'):
        assert found[name].read_labels(conf, {})['flannel_network_subnetlen'] == 26, name
    assert found['k8s_cloud_init'].folder == home / 'k8s_cloud_init'
    assert (
        found['k8s_cloud_init'].provides
        == [p for p in found['k8s_cloud_init'].provides if p[2] == 'kubernetes']
        != []
    )


def test_code_and_files_of_the_extended_folder_count_unless_there_are_own_ones(
    conf: cfg.ConfigOpts, rsa_pair: certs.Pair, home: pathlib.Path
) -> None:
    code = "from magnum_lite import drivers\n\n\nclass Driver(drivers.Driver):\n    whose = '{}'\n"
    write(
        home,
        {
            'a/manifest.yaml': 'extends: k8s_rocky\n',
            'a/driver.py': code.format('a'),
            'b/manifest.yaml': 'extends: a\n',
            'b/files/node.sh': 'echo b\n',
            'c/manifest.yaml': 'extends: b\n',
            'c/driver.py': code.format('c'),
            '_shared/files/kubeadm.sh': 'echo shared\n',
        },
    )

    found: dict[str, Any] = drivers.load(conf)

    assert (found['a'].whose, found['b'].whose, found['c'].whose) == ('a', 'a', 'c')
    cluster = a_cluster(found['k8s_cloud_init'])
    for name, script in {'a': '#!/bin/sh\n', 'b': 'echo b\n', 'c': 'echo b\n'}.items():
        text = (
            found[name]
            .render(conf, cluster, all_secrets(found[name], rsa_pair))
            .parameters['worker_user_data']
        )
        assert unpacked(text)['/opt/magnum-lite/node.sh'].startswith(script)
        assert unpacked(text)['/opt/magnum-lite/engine.sh'] == 'echo shared\n'


@pytest.mark.parametrize(
    ('files', 'where', 'why'),
    [
        ({'a': 'extends: nobody'}, 'a', r'\$\.extends: there is no other driver folder nobody'),
        ({'a': 'extends: a'}, 'a', r'\$\.extends: there is no other driver folder a'),
        ({'a': 'extends: b', 'b': 'extends: a'}, 'b', r'\$\.extends: a extends this folder itself'),
        ({'a': 'extends: [b]'}, 'a', r"\$\.extends: there is no other driver folder \['b'\]"),
        ({'a': 'extends: _shared'}, 'a', r'\$\.extends: there is no other driver folder _shared'),
        ({'a': '- extends: b'}, 'a', r'\$: .* is not a mapping'),
        ({'a': 'extends: k8s_rocky\nenvelope: tar'}, 'a', r"\$\.envelope: 'tar' is not one of"),
        (
            {'a': 'extends: k8s_rocky\nlabels: {kube_tag: null}'},
            'a',
            r'\$\.upgrade: there is no label kube_tag',
        ),
    ],
)
def test_what_cannot_be_extended_is_named_with_its_place(
    conf: cfg.ConfigOpts, home: pathlib.Path, files: dict[str, str], where: str, why: str
) -> None:
    write(home, {f'{name}/manifest.yaml': text + '\n' for name, text in files.items()})

    with pytest.raises(
        errors.DriverError, match=f'driver folder {home}/{where}: manifest.yaml {why}'
    ):
        drivers.load(conf)


def test_a_package_brings_folders_by_its_entry_point(
    conf: cfg.ConfigOpts,
    home: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(
        tmp_path / 'site' / 'theirs',
        {'__init__.py': '', 'theirs/manifest.yaml': 'extends: hello\n'},
    )
    write(
        tmp_path / 'site' / 'theirs-1.dist-info',
        {
            'METADATA': 'Name: theirs\nVersion: 1\n',
            'entry_points.txt': '[magnum_lite.drivers]\ntheirs = theirs\n',
        },
    )
    monkeypatch.syspath_prepend(str(tmp_path / 'site'))
    importlib.invalidate_caches()

    assert drivers.load(conf)['theirs'].provides == drivers.load(conf)['hello'].provides
