"""Every engine on every image that a driver folder is for: one cluster each comes to be and goes,
all at the same time.

The servers boot nowhere. What Nova was given for them is looked at: Heat has put something in for
every placeholder, and the file that says where to report is as it was meant to be, in the envelope
that the image reads."""

from __future__ import annotations

import base64
import json
import shlex
import urllib.parse
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from typing import Any

import pytest
import yaml
from functional.cloud import ON_A_CLOUD, STACK_S, Cluster, Project, Sandbox, Say, ask
from functional.service import Service

from magnum_lite import drivers

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD

CIDR = '10.78.0.0/24'
NODE_ENV = '/etc/magnum-lite/node.env'


def every_image() -> dict[str, tuple[str, dict[str, str]]]:
    """Name -> folder and what it provides. An engine that has two names is made by one of them, in
    turn."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for manifest in sorted(drivers.BUILT_IN.glob('[!_]*/manifest.yaml')):
        for item in yaml.safe_load(manifest.read_text())['provides']:
            found.setdefault((manifest.parent.name, item['os_distro']), []).append(item)
    return {
        f'{folder} {os_distro}': (folder, items[n % len(items)])
        for n, ((folder, os_distro), items) in enumerate(found.items())
    }


IMAGES = every_image()


def artefacts(folder: str) -> dict[str, str]:
    """Labels that say where programs come from. Nobody fetches them here."""
    manifests = [folder]
    while extended := yaml.safe_load(
        (drivers.BUILT_IN / manifests[-1] / 'manifest.yaml').read_text()
    ).get('extends'):
        manifests.append(extended)
    labels: dict[str, Any] = {}
    for name in manifests:
        labels = (
            yaml.safe_load((drivers.BUILT_IN / name / 'manifest.yaml').read_text()).get(
                'labels', {}
            )
            | labels
        )
    return {
        name: str(label['schema']['examples'][0])
        for name, label in labels.items()
        if name.endswith(('_url', '_sha256'))
    }


@pytest.fixture(scope='module')
def projects(sandbox: Sandbox) -> Iterator[dict[str, Project]]:
    """A project with a network for each folder, without limits that a few clusters would meet."""
    with ExitStack() as undo:
        made = {}
        for folder in dict.fromkeys(folder for folder, _ in IMAGES.values()):
            made[folder] = project = undo.enter_context(sandbox.project())
            sandbox.admin.set_compute_quotas(project.id, instances=-1, cores=-1, ram=-1)
            sandbox.admin.set_network_quotas(project.id, security_group=-1, security_group_rule=-1)
            network = project.cloud.network.create_network(name='nodes')
            project.cloud.network.create_subnet(network_id=network.id, ip_version=4, cidr=CIDR)
        yield made


@pytest.fixture(scope='module')
def asked(projects: dict[str, Project], service: Service) -> dict[str, Cluster]:
    """A cluster for each image, all asked for at once."""

    def make(name: str) -> Cluster:
        folder, provided = IMAGES[name]
        cluster = ask(
            service,
            projects[folder],
            name='fn-image',
            node_count=1,
            floating_ip_enabled=False,
            template={
                'name': f'fn-{provided["os_distro"]}',
                'coe': provided['coe'],
                'image_id': provided['os_distro'],
                'flavor_id': 'm1.tiny',
                'master_flavor_id': 'm1.tiny',
                'fixed_network': 'nodes',
                'labels': artefacts(folder),
            },
        )
        cluster.play_nodes('--data', '"1.2.3"')
        return cluster

    with futures.ThreadPoolExecutor(4) as pool:
        return dict(zip(IMAGES, pool.map(make, IMAGES), strict=True))


def node_env(user_data: str) -> dict[str, str]:
    """The settings of a node's script, as the image's own program would write them."""
    if user_data.startswith('{'):
        document = json.loads(user_data)
        assert document['ignition']['version'] == '3.3.0'
        [source] = [
            f['contents']['source'] for f in document['storage']['files'] if f['path'] == NODE_ENV
        ]
        text = urllib.parse.unquote(source.removeprefix('data:,'), errors='strict')
    else:
        [text] = [
            f['content'] for f in yaml.safe_load(user_data)['write_files'] if f['path'] == NODE_ENV
        ]
    return dict(word.split('=', 1) for word in shlex.split(text))


@pytest.mark.parametrize('image', IMAGES)
def test_a_cluster_comes_to_be_on_every_image(
    asked: dict[str, Cluster], service: Service, sandbox: Sandbox, say: Say, image: str
) -> None:
    cluster, (folder, provided) = asked[image], IMAGES[image]

    made = cluster.wait('CREATE_COMPLETE')

    assert cluster.row['driver'] == folder
    sizes = []
    for server in cluster.servers():
        user_data = base64.b64decode(sandbox.admin.compute.get_server(server.id).user_data).decode()
        assert '@@' not in user_data
        settings = node_env(user_data)
        address = server.addresses['nodes'][0]['addr']
        assert (settings['NODE_NAME'], settings['NODE_ADDRESS']) == (server.name, address)
        assert urllib.parse.urlsplit(settings['SIGNAL_URL']).path.endswith(
            '/resources/handle/signal'
        )
        assert len(settings['SIGNAL_TOKEN']) > 30
        sizes.append(len(user_data))
    assert len(sizes) == 2
    say(
        f'{image} ({provided["coe"]}): {made["status"]}, user-data of {max(sizes)} and '
        f'{min(sizes)} bytes'
    )
    cluster.delete()


def test_all_of_them_go_and_leave_nothing(asked: dict[str, Cluster], service: Service) -> None:
    for cluster in asked.values():
        service.wait(cluster.uuid, 'GONE', STACK_S, headers=cluster.project.headers)
    for cluster in asked.values():
        cluster.assert_nothing_is_left('networks')  # which they were given
