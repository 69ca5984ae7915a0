"""The main job once on real Keystone, Glance and Heat: the embedded cloud of the demo, with nodes
that are played.

Runs where MAGNUM_LITE_EMBEDDED_CLOUD names a folder for that cloud; `tools/test` sets it. The
conductor is killed with SIGKILL in the middle, because that is the promise."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import yaml

ROOT = pathlib.Path(__file__).parent.parent
HOME = os.environ.get('MAGNUM_LITE_EMBEDDED_CLOUD')

pytestmark = [
    pytest.mark.skipif(
        not HOME, reason='MAGNUM_LITE_EMBEDDED_CLOUD names no folder; tools/test does'
    ),
    pytest.mark.timeout(600),
]


def until(look: Callable[[], Any], timeout_s: float, what: Callable[[], str]) -> Any:
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        pause.wait(0.3)
    raise AssertionError(f'not within {timeout_s} s: {what()}')


@pytest.fixture(scope='module')
def clouds() -> Iterator[dict[str, Any]]:
    """The accounts of the embedded cloud, by name."""
    home = pathlib.Path(HOME or '').absolute()
    cloud = ROOT / 'tools' / 'embedded' / 'cloud'
    subprocess.run([cloud, 'up', '--home', home, '--port-base', '25500'], check=True)
    yield yaml.safe_load((home / 'clouds.yaml').read_text())['clouds'] | {
        'file': home / 'clouds.yaml'
    }
    subprocess.run([cloud, 'down', '--home', home], check=True)


class Serve:
    """A `magnum-lite serve` process, and requests to it as the user demo."""

    def __init__(self, clouds: dict[str, Any], folder: pathlib.Path) -> None:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.url, self.log = f'http://127.0.0.1:{port}', folder / 'serve.log'
        self.conf = folder / 'magnum-lite.conf'
        identity = '\n'.join(
            f'{name} = {value}' for name, value in clouds['magnum']['auth'].items()
        )
        self.conf.write_text(
            f'[DEFAULT]\nstate_path = {folder}\n[api]\nport = {port}\n[conductor]\nlease = '
            '10\ntick = 0.5\nwatch_interval = 0.5\n[keystone_authtoken]\nwww_authenticate_uri = '
            f'{clouds["magnum"]["auth"]["auth_url"]}\nauth_type = '
            f'password\n{identity}\nservice_token_roles_required = true\n'
            '[keystone_auth]\nauth_type = password\nauth_section = keystone_authtoken\nregion_name '
            '= RegionOne\n'
        )
        self.process: subprocess.Popen[bytes] | None = None
        auth = clouds['demo']['auth']
        answer = requests.post(
            f'{auth["auth_url"].rstrip("/").removesuffix("/v3")}/v3/auth/tokens',
            timeout=60,
            json={
                'auth': {
                    'identity': {
                        'methods': ['password'],
                        'password': {
                            'user': {
                                'name': auth['username'],
                                'password': auth['password'],
                                'domain': {'name': 'Default'},
                            }
                        },
                    },
                    'scope': {
                        'project': {'name': auth['project_name'], 'domain': {'name': 'Default'}}
                    },
                }
            },
        )
        answer.raise_for_status()
        self.headers = {
            'X-Auth-Token': answer.headers['X-Subject-Token'],
            'OpenStack-API-Version': 'container-infra latest',
        }

    def start(self) -> None:
        with self.log.open('ab') as log:
            self.process = subprocess.Popen(
                [
                    pathlib.Path(sys.executable).parent / 'magnum-lite',
                    '--config-file',
                    self.conf,
                    'serve',
                ],
                stdout=log,
                stderr=log,
            )
        until(self.answers, 90, self.log.read_text)

    def answers(self) -> bool:
        try:
            return requests.get(self.url, timeout=5).ok
        except requests.ConnectionError:
            return False

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(12)

    def __call__(self, method: str, path: str, body: Any = None) -> requests.Response:
        return requests.request(
            method, self.url + path, json=body, headers=self.headers, timeout=60
        )


@pytest.fixture
def serve(clouds: dict[str, Any], tmp_path: pathlib.Path) -> Iterator[Serve]:
    made = Serve(clouds, tmp_path)
    made.start()
    yield made
    if made.process and made.process.poll() is None:
        assert made.end(signal.SIGTERM) == 0, made.log.read_text()


def test_cluster_comes_and_goes_although_the_service_is_killed(
    serve: Serve, clouds: dict[str, Any]
) -> None:
    refused = serve('POST', '/v1/clustertemplates', {'coe': 'kubernetes', 'image_id': 'no-distro'})
    assert refused.status_code == 400 and 'os_distro' in refused.json()['errors'][0]['detail']

    template = serve(
        'POST',
        '/v1/clustertemplates',
        {
            'name': 't',
            'coe': 'kubernetes',
            'image_id': 'ubuntu',
            'flavor_id': 'any',
            'master_flavor_id': 'any',
            'external_network_id': 'public',
        },
    )
    assert template.status_code == 201, template.text
    assert 'no compute service' in template.headers['Warning'], 'what is not checked is said'
    asked = serve(
        'POST', '/v1/clusters', {'name': 'e2e', 'cluster_template_id': 't', 'node_count': 2}
    )
    assert asked.status_code == 202, asked.text
    uuid = asked.json()['uuid']

    def shown() -> dict[str, Any]:
        return serve('GET', f'/v1/clusters/{uuid}').json()

    stack_id = until(lambda: shown()['cluster_id'], 60, serve.log.read_text)
    serve.end(signal.SIGKILL)
    played = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'embedded' / 'nodes.py', stack_id],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {'OS_CLOUD': 'demo', 'OS_CLIENT_CONFIG_FILE': str(clouds['file'])},
    )
    assert played.returncode == 0, played.stdout + played.stderr
    serve.start()
    until(
        lambda: shown()['status'] == 'CREATE_COMPLETE',
        60,
        lambda: str(shown()) + serve.log.read_text(),
    )
    assert [c['uuid'] for c in serve('GET', '/v1/clusters').json()['clusters']] == [uuid]

    assert serve('DELETE', f'/v1/clusters/{uuid}').status_code == 204
    until(lambda: serve('GET', f'/v1/clusters/{uuid}').status_code == 404, 120, serve.log.read_text)
    assert serve('DELETE', '/v1/clustertemplates/t').status_code == 204
