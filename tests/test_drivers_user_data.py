"""The user-data of nodes, for cloud-init and for Ignition: sound, small, and values stay values."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
from typing import Any

import pytest
from oslo_config import cfg
from rendering import (
    FOLDERS,
    HOSTILE,
    IGNITION_PROGRAM,
    LIFE,
    SHAPES,
    a_cluster,
    all_secrets,
    check_ignition,
    functions,
    is_ignition,
    keys_of,
    parse,
    read_yaml,
    unpacked,
    user_data,
)

from magnum_lite import certs, drivers, userdata
from magnum_lite.drivers import limits


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
def test_quoted_value_reads_back_as_itself(value: Any) -> None:
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


@pytest.mark.parametrize('folder', ['k8s_ignition', 'swarm_ignition'])
def test_ignition_brings_what_cloud_config_brings(
    conf: cfg.ConfigOpts, folder: str, rsa_pair: certs.Pair
) -> None:
    driver = drivers.load(conf)[folder]
    other = drivers.load(conf)[str(driver.manifest['extends'])]
    cluster = a_cluster(
        driver,
        masters=3,
        docker_volume_size=3,
        template={'http_proxy': 'http://proxy:3128', 'insecure_registry': 'registry:5000'},
    )
    secrets = all_secrets(driver, rsa_pair)

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
    conf: cfg.ConfigOpts, folder: str, rsa_pair: certs.Pair
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
        driver, driver.render(conf, a_cluster(driver), all_secrets(driver, rsa_pair))
    ).values():
        wanted = unpacked(text)['/etc/magnum-lite/node.env']
        for name, value in values.items():
            text, wanted = text.replace(name, value), wanted.replace(name, value)
        check_ignition(text)
        assert unpacked(text)['/etc/magnum-lite/node.env'] == wanted
        assert values['@@SIGNAL_URL@@'] in wanted and values['@@SIGNAL_TOKEN@@'] in wanted


@pytest.mark.skipif(
    not os.path.exists(IGNITION_PROGRAM) or os.geteuid() != 0,
    reason='IGNITION names no program of that name, or this is not root',
)
@pytest.mark.parametrize('folder', ['k8s_ignition', 'swarm_ignition'])
def test_ignition_itself_writes_what_was_meant(
    conf: cfg.ConfigOpts, folder: str, rsa_pair: certs.Pair, tmp_path: pathlib.Path
) -> None:
    driver = drivers.load(conf)[folder]
    rendered = driver.render(conf, a_cluster(driver, masters=3), all_secrets(driver, rsa_pair))
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
    conf: cfg.ConfigOpts, rsa_pair: certs.Pair, folder: str, os_distro: str, coe: str
) -> None:
    driver = drivers.load(conf).find(server_type='vm', os_distro=os_distro, coe=coe)
    cluster = a_cluster(driver, template={'coe': coe, 'cluster_distro': os_distro})

    rendered = driver.render(conf, cluster, all_secrets(driver, rsa_pair))

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
        public_key='ssh-rsa_pair ' + 'A' * 720 + ' me',
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
    monkeypatch.setattr(limits, 'MAX_USER_DATA', 1)
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
