"""What tests of stock clients share: a region in which these find the service under test, and the
`openstack` shell.

A stock client knows no address but the catalogue's. So a region is made that has the cloud's own
services and, under container-infra, the service under test; no other user of the cloud sees it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from functional.cloud import SIGNAL, STACK_S, Project, Sandbox
from functional.service import Service, poll

DRIVERS = pathlib.Path(__file__).with_name('drivers')
#: The cluster template of a driver whose members are only values: what matters here is the API.
PAPER = {
    'coe': 'kubernetes',
    'image_id': 'coreos',
    'flavor_id': 'm1.tiny',
    'master_flavor_id': 'm1.tiny',
    'external_network_id': 'public',
    'keypair_id': 'testkey',
}

#: Has this driver found for that image.
PAPER_ONLY = {'path': DRIVERS, 'disabled_drivers': 'k8s_ignition'}


def has_client() -> bool:
    """Whether the stock client is on the path, with what it needs for this service."""
    client = shutil.which('openstack')
    return (
        bool(client)
        and subprocess.run(
            [str(client), 'help', 'coe', 'cluster', 'list'],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        ).returncode
        == 0
    )


@contextlib.contextmanager
def own_region(sandbox: Sandbox, url: str) -> Iterator[str]:
    """The name of a region whose container-infra service stands at `url`, with the other services
    that Heat needs."""
    identity = sandbox.admin.identity
    with contextlib.ExitStack() as undo:
        region = undo.enter_context(sandbox.region({}))
        service = next((s for s in identity.services() if s.type == 'container-infra'), None)
        if service is None:
            service = identity.create_service(type='container-infra', name=region)
            undo.callback(identity.delete_service, service)
        endpoint = identity.create_endpoint(
            service_id=service.id, interface='public', url=url, region_id=region
        )
        undo.callback(identity.delete_endpoint, endpoint)
        yield region


def interpreter() -> str | None:
    """The Python that the stock client `openstack coe` is installed for, None if there is none on
    the path."""
    found = shutil.which('openstack')
    if not found:
        return None
    python = (
        pathlib.Path(found).read_text(errors='replace').splitlines()[0].removeprefix('#!').strip()
    )
    has = subprocess.run(
        [python, '-c', 'import magnumclient, openstackclient'], capture_output=True, check=False
    )
    return python if has.returncode == 0 else None


def versions(python: str, *packages: str) -> str:
    """Packages with their versions, for people to read."""
    code = (
        'import importlib.metadata as m, sys; print(" ".join(f"{n} {m.version(n)}" for n in '
        'sys.argv[1:]))'
    )
    return subprocess.run(
        [python, '-c', code, *packages], capture_output=True, text=True, check=True
    ).stdout.strip()


class Shell:
    """The stock `openstack` client for one entry of clouds.yaml: it keeps its clients as long as
    the process lives."""

    def __init__(self, python: str, cloud_name: str) -> None:
        self._cloud_name = cloud_name
        self._popen = subprocess.Popen(
            [python, str(pathlib.Path(__file__).with_name('openstack_shell.py'))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, 'SHELL': '/bin/bash'},
        )

    def close(self) -> None:
        """End it."""
        self._popen.communicate()

    def run(self, *words: str) -> tuple[int, str, str]:
        """Run one command; returns status, output, complaints."""
        assert self._popen.stdin and self._popen.stdout
        line = json.dumps(['--os-cloud', self._cloud_name, *words])
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
    """Look at a cluster or nodegroup until it has a status, and return it; DELETED: until it is not
    there any more."""
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


class Reporting:
    """Has the nodes of all stacks of a project report as they come, as long as the block lasts."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def _play(self) -> None:
        environ = {**os.environ, 'OS_CLIENT_CONFIG_FILE': str(self._project.sandbox.clouds_file)}
        while not self._stop.is_set():
            for stack in self._project.stacks():
                if stack.status in ('CREATE_IN_PROGRESS', 'UPDATE_IN_PROGRESS'):
                    subprocess.run(
                        [str(SIGNAL), stack.id, '--cloud', self._project.name],
                        env=environ,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        check=False,
                    )
            self._stop.wait(1)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


# -- clients written in Go -------------------------------------------------------------------------

#: gophercloud's decoding (openstack/containerinfra/v1): a null is a zero, any other type is a
#: failure of the call.
TEXT, NUMBER, TIME, FLAG, TEXTS, LABELS, LINKS = (
    'text',
    'number',
    'time',
    'flag',
    'texts',
    'labels',
    'links',
)
GO_CLUSTER = {
    TEXT: 'api_address coe_version cluster_template_id container_version discovery_url flavor_id keypair '  # noqa: E501
    'master_flavor_id name project_id stack_id status status_reason uuid user_id fixed_network '
    'fixed_subnet health_status',
    NUMBER: 'create_timeout docker_volume_size master_count node_count',
    TIME: 'created_at updated_at',
    FLAG: 'floating_ip_enabled master_lb_enabled',
    TEXTS: 'master_addresses node_addresses',
    LABELS: 'faults labels labels_added labels_overridden labels_skipped health_status_reason',
    LINKS: 'links',
}
GO_NODEGROUP = {
    TEXT: (
        'uuid name cluster_id project_id flavor_id image_id role stack_id status status_reason '
        'version'
    ),
    NUMBER: 'id docker_volume_size node_count min_node_count max_node_count',
    TIME: 'created_at updated_at',
    FLAG: 'is_default',
    TEXTS: 'node_addresses',
    LABELS: 'labels labels_added labels_overridden labels_skipped',
    LINKS: 'links',
}
GO_TEMPLATE = {
    TEXT: 'coe cluster_distro dns_nameserver docker_storage_driver external_network_id fixed_network fixed_subnet '  # noqa: E501
    'flavor_id http_proxy https_proxy image_id insecure_registry keypair_id master_flavor_id name '
    'network_driver no_proxy project_id server_type uuid user_id volume_driver',
    NUMBER: 'apiserver_port docker_volume_size',
    TIME: 'created_at updated_at',
    LABELS: 'labels',
    LINKS: 'links',
    FLAG: 'floating_ip_enabled master_lb_enabled public registry_enabled tls_disabled hidden',
}
_RFC_3339 = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)')
_DECODES: dict[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    NUMBER: lambda value: isinstance(value, int) and not isinstance(value, bool),
    TIME: lambda value: isinstance(value, str) and bool(_RFC_3339.fullmatch(value)),
    FLAG: lambda value: isinstance(value, bool),
    TEXTS: lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    LABELS: lambda value: (
        isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
    ),
    LINKS: lambda value: (
        isinstance(value, list) and all(set(one) >= {'href', 'rel'} for one in value)
    ),
}


class Go:
    """Calls as gophercloud makes them: the version in the header, only these statuses, bodies
    decoded by type."""

    def __init__(self, service: Service, project: Project, version: str | None = None) -> None:
        self._service, self._project = service, project
        self._headers = {'OpenStack-API-Version': f'container-infra {version}' if version else None}

    def at(self, version: str) -> Go:
        """The same at another version."""
        return Go(self._service, self._project, version)

    def __call__(
        self, method: str, path: str, body: Any = None, *, ok: Collection[int] = (200,)
    ) -> Any:
        """The body of an answer, decoded, or None. Raises AssertionError for what gophercloud takes
        for an error."""
        status, answer = self.raw(method, path, body)
        assert status in ok, f'{method} {path}: {status} {answer}'
        if isinstance(answer, dict):
            for plural, fields in (
                ('nodegroups', GO_NODEGROUP),
                ('clusters', GO_CLUSTER),
                ('clustertemplates', GO_TEMPLATE),
            ):
                if f'/{plural}' in path and '/actions/' not in path:
                    for item in answer.get(plural, [answer]):
                        self._decode(fields, item)
                    break
        return answer

    def raw(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body as they are."""
        return self._service.request(
            method, f'/v1{path}', body, headers={**self._project.headers, **self._headers}
        )  # type: ignore[dict-item]

    @staticmethod
    def _decode(fields: dict[str, str], item: dict[str, Any]) -> None:
        for kind, names in fields.items():
            for name in names.split():
                value = item.get(name)
                assert value is None or _DECODES[kind](value), f'{name} is no {kind}: {value!r}'
