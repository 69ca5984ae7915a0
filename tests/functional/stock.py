"""What tests of stock clients share: a region in which these find the service under test, and the `openstack` shell.

A stock client knows no address but the catalogue's. So a region is made that has the cloud's own services and, under
container-infra, the service under test; no other user of the cloud sees it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from functional.cloud import STACK_S, Project, Sandbox
from functional.service import Service, poll

DRIVERS = pathlib.Path(__file__).with_name('drivers')
#: The cluster template of a driver whose members are only values: what matters here is the API.
PAPER = {'coe': 'kubernetes', 'image_id': 'coreos', 'flavor_id': 'm1.tiny', 'master_flavor_id': 'm1.tiny',
         'external_network_id': 'public', 'keypair_id': 'testkey'}


@contextlib.contextmanager
def own_region(sandbox: Sandbox, url: str) -> Iterator[str]:
    """The name of a region whose container-infra service stands at `url`, with the other services that Heat needs."""
    identity = sandbox.admin.identity
    with contextlib.ExitStack() as undo:
        region = undo.enter_context(sandbox.region({}))
        service = next((s for s in identity.services() if s.type == 'container-infra'), None)
        if service is None:
            service = identity.create_service(type='container-infra', name=region)
            undo.callback(identity.delete_service, service)
        endpoint = identity.create_endpoint(service_id=service.id, interface='public', url=url, region_id=region)
        undo.callback(identity.delete_endpoint, endpoint)
        yield region


def interpreter() -> str | None:
    """The Python that the stock client `openstack coe` is installed for, None if there is none on the path."""
    found = shutil.which('openstack')
    if not found:
        return None
    python = pathlib.Path(found).read_text(errors='replace').splitlines()[0].removeprefix('#!').strip()
    has = subprocess.run([python, '-c', 'import magnumclient, openstackclient'], capture_output=True, check=False)
    return python if has.returncode == 0 else None


class Shell:
    """The stock `openstack` client."""

    def __init__(self, python: str) -> None:
        self.versions = {name: subprocess.run(
            [python, '-c', f'import importlib.metadata as m; print(m.version({name!r}))'],
            capture_output=True, text=True, check=True).stdout.strip()
            for name in ('python-openstackclient', 'python-magnumclient')}
        self._popen = subprocess.Popen(
            [python, str(pathlib.Path(__file__).with_name('openstack_shell.py'))], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, 'SHELL': '/bin/bash'})

    def close(self) -> None:
        """End it."""
        self._popen.communicate()

    def run(self, cloud_name: str, *words: str) -> tuple[int, str, str]:
        """Run one command; returns status, output, complaints."""
        assert self._popen.stdin and self._popen.stdout
        line = json.dumps(['--os-cloud', cloud_name, *words])
        self._popen.stdin.write(f'{line}\n')
        self._popen.stdin.flush()
        status, out, err = json.loads(self._popen.stdout.readline())
        return status, out, err


def shown(out: str) -> Any:
    """The JSON that a command printed, after what it said before."""
    found = re.search(r'^[\[{].*', out, re.MULTILINE | re.DOTALL)
    assert found, out
    return json.loads(found[0])


def wait_for(service: Service, project: Project, path: str, status: str) -> dict[str, Any]:
    """Look at a cluster or nodegroup until it has a status, and return it; DELETED: until it is not there any more."""
    found: dict[str, Any] = {}

    def look() -> bool:
        code, body = service.request('GET', f'/v1/clusters/{path}', headers=project.headers)
        found.clear()
        found.update(body)
        return bool(code == 404 if status == 'DELETED' else found.get('status') == status)

    def story() -> str:
        assert service.rows('SELECT 1')
        return f'{path} is {status}: {found.get("status")} {found.get("status_reason")}'

    poll(look, STACK_S, story)
    return found
