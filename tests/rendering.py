"""What the tests of driver folders share: clusters to render, and readers of what is rendered.

Nothing here knows a single folder. `parse` and `walk` read Heat templates, `unpacked` reads
user-data of cloud-init and of Ignition alike."""

from __future__ import annotations

import base64
import datetime
import gzip
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from oslo_config import cfg

from magnum_lite import certs, clients, drivers, members, models

FOLDERS = sorted(p.name for p in drivers.BUILT_IN.iterdir() if (p / 'manifest.yaml').is_file())


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


@pytest.fixture(params=FOLDERS)
def driver(request: pytest.FixtureRequest, conf: cfg.ConfigOpts) -> drivers.Driver:
    return drivers.load(conf)[request.param]


@pytest.fixture
def secrets(driver: drivers.Driver, rsa_pair: certs.Pair) -> dict[str, certs.Pair]:
    return all_secrets(driver, rsa_pair)


def all_secrets(driver: drivers.Driver, rsa_pair: certs.Pair) -> dict[str, certs.Pair]:
    """All that a driver wants to have, made as the conductor makes it."""
    made: dict[str, certs.Pair] = {}
    for name, key in driver.keys.items():
        made[name] = certs.make_ca(key.common_name, life=LIFE) if key.kind == 'ca' else rsa_pair
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


def list_shapes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of what changes the structure of stacks: a name, and arguments of
    `a_cluster`."""
    for masters, lb, fip, network, volumes in itertools.product(
        (1, 3),
        (False, True),
        (False, True),
        ('own network', 'given network', 'given subnet'),
        (False, True),
    ):
        if masters > 1 and not lb:
            continue
        shape: dict[str, Any] = {
            'masters': masters,
            'workers': masters - 1,
            'master_lb_enabled': lb,
            'floating_ip_enabled': fip,
        }
        if network != 'own network':
            shape['fixed_network'] = 'net'
        if network == 'given subnet':
            shape['fixed_subnet'] = 'sub'
        if volumes:
            shape['docker_volume_size'] = 3
        yield f'{masters} masters, lb {lb}, fip {fip}, {network}, volumes {volumes}', shape


SHAPES = dict(list_shapes())
DEFAULTS = '1 masters, lb False, fip False, own network, volumes False'
EVERYTHING = '3 masters, lb True, fip True, given subnet, volumes True'


def brings_templates(folder: str) -> bool:
    """Whether a folder has templates of its own; else it uses those of the folder it extends."""
    return any((drivers.BUILT_IN / folder).glob('*.j2'))


def list_shapes_of_folders() -> Iterator[Any]:
    """Parameters `driver` and `shape`: all shapes of a folder that brings templates, and two of one
    that extends another, whose templates it uses."""
    for folder in FOLDERS:
        for name in SHAPES if brings_templates(folder) else (DEFAULTS, EVERYTHING):
            yield pytest.param(folder, SHAPES[name], id=f'{folder}-{name}')


#: Runs a test for the shapes of each driver folder.
in_every_shape = pytest.mark.parametrize(
    ('driver', 'shape'), list(list_shapes_of_folders()), indirect=['driver']
)


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


def user_data_of(rendered: drivers.Rendered) -> dict[str, str]:
    return {
        name: value for name, value in rendered.parameters.items() if name.endswith('user_data')
    }


def with_new_master(cluster: models.Cluster) -> models.NodeGroup:
    """Its first master is outdated, and one is there that is to take its place."""
    [group] = [group for group in cluster.nodegroups if group.role == 'master']
    for node in group.nodes:
        node.rollout, node.status = 1, 'CREATE_COMPLETE'
    group.rollout, group.next_number = 2, len(group.nodes)
    members.replace(cluster, group)
    return group


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


IGNITION_PROGRAM = os.environ.get('IGNITION', '/usr/lib/dracut/modules.d/30ignition/ignition')


def edit(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    drivers.folders.read_folders.cache_clear()
