"""What operators ask for, by the stock client on a real cloud: quotas, statistics, conductors,
changes of templates.

OS_CLOUD names the cloud; `<cloud>-admin` is an entry of clouds.yaml for an admin. `service.py` and
`cloud.py` say what else is needed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator

import pytest
import yaml
from functional.cloud import ON_A_CLOUD, TEMPLATE, Project, Sandbox, Start, post
from functional.service import Service, poll

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD

#: Runs `openstack coe` with these words, as an admin or not, and returns status and all that it
#: says.
Coe = Callable[..., tuple[int, str]]


@pytest.fixture
def coe(
    sandbox: Sandbox, project: Project, service: Service, tmp_path: pathlib.Path
) -> Iterator[Coe]:
    with sandbox.client_entry(project, f'{service.url}/v1') as member:
        clouds = yaml.safe_load(sandbox.clouds_file.read_text())['clouds']
        clouds['admin'] = clouds[f'{sandbox.cloud_name}-admin'] | {'region_name': member}
        (tmp_path / 'clouds.yaml').write_text(yaml.safe_dump({'clouds': clouds}))
        environ = {**os.environ, 'OS_CLIENT_CONFIG_FILE': str(tmp_path / 'clouds.yaml')}

        def run(*words: str, admin: bool = False) -> tuple[int, str]:
            done = subprocess.run(
                ['openstack', '--os-cloud', 'admin' if admin else member, 'coe', *words],
                env=environ,
                capture_output=True,
                text=True,
                check=False,
            )
            print('$ openstack coe', *words, '\n', done.stdout, done.stderr)
            return done.returncode, done.stdout or done.stderr

        yield run


def test_quotas_statistics_and_conductors(coe: Coe, project: Project, service: Service) -> None:
    of = ('--project-id', project.id, '--resource', 'Cluster')
    post(service, project, 'clustertemplates', **TEMPLATE)

    status, out = coe('quotas', 'show', *of)
    assert status == 0 and '20' in out, 'the default'
    assert coe('quotas', 'create', *of, '--hard-limit', '0', admin=True)[0] == 0
    assert post(service, project, 'clusters', cluster_template_id='fn-template')[0] == 403
    assert '409' in coe('quotas', 'create', *of, admin=True)[1]
    assert (
        '404'
        in coe('quotas', 'create', '--project-id', 'f' * 32, '--resource', 'Cluster', admin=True)[1]
    )
    assert '403' in coe('quotas', 'update', *of, '--hard-limit', '5')[1], 'a member sets none'
    assert coe('quotas', 'update', *of, '--hard-limit', '5', admin=True)[0] == 0
    status, out = coe('quotas', 'list', '--all-tenants', admin=True)
    assert status == 0 and project.id in out and ' 5 ' in out
    assert project.id not in coe('quotas', 'list', admin=True)[1], 'the own ones'
    assert coe('quotas', 'delete', *of, admin=True)[0] == 0
    assert '20' in coe('quotas', 'show', *of)[1]

    status, out = coe('stats', 'list', project.id)
    assert status == 0 and 'clusters' in out and ' 0 ' in out
    assert '403' in coe('stats', 'list', 'f' * 32)[1]

    status, out = coe('service', 'list', '-f', 'json', admin=True)
    [conductor] = json.loads(out)
    assert (conductor['id'], conductor['host'], conductor['binary'], conductor['state']) == (
        1,
        'functional',
        'magnum-conductor',
        'up',
    )
    assert conductor['updated_at'], 'when it reported last'
    assert '403' in coe('service', 'list')[1]


def test_conductor_that_is_silent_is_down(sandbox: Sandbox, lone: Start) -> None:
    service = lone(conductors=1, extra={'DEFAULT': {'service_down_time': 3}})
    admin = {'X-Auth-Token': str(sandbox.admin.auth_token)}

    def state() -> str:
        code, body = service.request('GET', '/v1/mservices', headers=admin)
        assert code == 200, body
        return str(body['mservices'][0]['state'])

    assert state() == 'up'
    service.kill_conductor()
    poll(lambda: state() == 'down', 20, 'the conductor is down')


def test_template_is_changed_in_the_newest_dialect(
    coe: Coe, project: Project, service: Service
) -> None:
    post(service, project, 'clustertemplates', **TEMPLATE)

    status, out = coe(
        'cluster',
        'template',
        'update',
        'fn-template',
        '--name',
        'renamed',
        '--label',
        'kube_tag=v1.34.3',
        '--label',
        'boot_volume_size=10',
        '--docker-volume-size',
        '7',
        '--master-lb-enabled',
        '--floating-ip-disabled',
        '--tag',
        'red',
        '--tag',
        'green',
        '-f',
        'json',
    )
    shown = json.loads(out)
    assert status == 0
    assert (shown['name'], shown['labels'], shown['docker_volume_size'], shown['tags']) == (
        'renamed',
        {'kube_tag': 'v1.34.3', 'boot_volume_size': '10'},
        7,
        'red,green',
    )
    assert (shown['master_lb_enabled'], shown['floating_ip_enabled']) == (True, False)
    _, out = coe(
        'cluster', 'template', 'update', 'renamed', '--no-label', 'boot_volume_size', '-f', 'json'
    )
    assert json.loads(out)['labels'] == {'kube_tag': 'v1.34.3'}

    assert (
        'Unable to find image nothing'
        in coe('cluster', 'template', 'update', 'renamed', '--image', 'nothing')[1]
    )
    assert (
        'clustertemplate:publish' in coe('cluster', 'template', 'update', 'renamed', '--hidden')[1]
    )
    status, out = coe(
        'cluster', 'template', 'update', shown['uuid'], '--hidden', '-f', 'json', admin=True
    )
    assert status == 0 and json.loads(out)['hidden'] is True
