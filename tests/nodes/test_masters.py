"""Masters that are replaced on nodes that really boot: an upgrade, and an exchange of authorities.

`booted` says what is needed; the nodes have the Kubernetes layer. Each test takes 5 to 20 minutes,
so they are run by hand: NODES_MASTERS says with how many masters (1 or 3)."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import threading
import time
from typing import Any

import pytest
from functional.service import Service, poll
from nodes import booted, kubernetes
from nodes.booted import (
    IMAGE,
    KUBERNETES,
    NODE_TOOLS,
    TIMEOUT_MIN,
    crash,
    make_template,
    names_of,
    on_node,
    show,
    upgrade,
)
from nodes.kubernetes import deploy, fields_of, kubectl, ready, run, where_it_runs, write_kubeconfig

service, template, cluster = booted.service, booted.template, booted.cluster  # fixtures
version, kubeconfig = kubernetes.version, kubernetes.kubeconfig
MASTERS, WORKERS = int(os.environ.get('NODES_MASTERS') or 0), 1
pytestmark = [
    *booted.marks(KUBERNETES / 'usr/bin/kubectl', timeout_min=TIMEOUT_MIN * 3),
    pytest.mark.skipif(not MASTERS, reason='run by hand: NODES_MASTERS says with how many masters'),
]


@pytest.fixture(scope='module')
def fields(version: str) -> dict[str, Any]:
    """Fields of the cluster template."""
    return fields_of(version) | {'master_lb_enabled': True}


class Watcher:
    """Asks for a ConfigMap, each time over a new connection, and notes when that did not work."""

    def __init__(self, kubeconfig: pathlib.Path, name: str) -> None:
        self._kubeconfig, self._name, self._stop = kubeconfig, name, threading.Event()
        self.asked: list[tuple[float, float, str]] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began = time.monotonic()
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.is_set():
            at = time.monotonic()
            done = subprocess.run(
                [
                    str(KUBERNETES / 'usr/bin/kubectl'),
                    '--kubeconfig',
                    str(self._kubeconfig),
                    '--request-timeout=5s',
                    'get',
                    'configmap',
                    self._name,
                    '-o',
                    'name',
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            self.asked.append(
                (
                    at - self._began,
                    time.monotonic() - self._began,
                    '' if done.returncode == 0 else done.stderr.strip()[-160:],
                )
            )
            self._stop.wait(0.3)

    def stop(self) -> list[tuple[float, float]]:
        """When the API did not answer, from and to, in seconds."""
        self._stop.set()
        self._thread.join()
        gaps: list[tuple[float, float]] = []
        failing: float | None = None
        for begun, ended, error in self.asked:
            if error:
                print(f'{begun:.1f}-{ended:.1f} s: {error}')
                failing = begun if failing is None else failing
            elif failing is not None:
                gaps.append((failing, ended))
                failing = None
        return gaps


def etcd_members(kubeconfig: pathlib.Path, master: str) -> list[tuple[str, str]]:
    """(name, state) of the members of etcd, as one of them says."""
    pki = '/etc/kubernetes/pki/etcd'
    text = run(
        kubeconfig,
        '-n',
        'kube-system',
        'exec',
        f'etcd-{master}',
        '--',
        'etcdctl',
        '--endpoints',
        'https://127.0.0.1:2379',
        '--cacert',
        f'{pki}/ca.crt',
        '--cert',
        f'{pki}/server.crt',
        '--key',
        f'{pki}/server.key',
        'member',
        'list',
    )
    return sorted((line.split(', ')[2], line.split(', ')[1]) for line in text.splitlines())


def test_upgrade_replaces_masters_and_workers_and_keeps_the_rest(
    service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path, version: str
) -> None:
    before = names_of(service, cluster)
    kubectl(kubeconfig, 'create', 'configmap', 'kept', '--from-literal=a=b')
    run(
        kubeconfig,
        'create',
        'deployment',
        'web',
        '--image=docker.io/library/busybox:local',
        '--',
        'sleep',
        '9999',
    )
    newer = make_template(
        service,
        image_id=os.environ.get('NODES_OTHER_IMAGE', 'ubuntu'),
        master_lb_enabled=True,
        **fields_of(version, api_server_cert_sans='api.example'),
    )
    watcher = Watcher(kubeconfig, 'kept')
    began = time.monotonic()
    upgrade(service, cluster, newer)
    seen: list[set[str]] = [before]

    def is_done() -> bool:
        names = names_of(service, cluster)
        if names != seen[-1]:
            seen.append(names)
            print(f'{time.monotonic() - began:.0f} s: {sorted(names)}')
        return bool(show(service, cluster)['status'] != 'UPDATE_IN_PROGRESS')

    poll(is_done, TIMEOUT_MIN * 120, lambda: f'it is done: {seen}')
    print(f'upgrade of {MASTERS} masters and a worker: {time.monotonic() - began:.0f} s')
    gaps = watcher.stop()
    print(
        f'asked {len(watcher.asked)} times; no answer from-to: '
        f'{[(round(a, 1), round(b, 1)) for a, b in gaps]}'
    )

    shown = show(service, cluster)
    assert shown['status'] == 'UPDATE_COMPLETE', shown
    names = names_of(service, cluster)
    masters = {name for name in names if '-master-' in name}
    assert not names & before and len(masters) == MASTERS and len(names) == MASTERS + 1
    found = ready(kubeconfig)
    print(found)
    assert {
        name: state for name, state in found.items() if name in names or '-master-' in name
    } == dict.fromkeys(names, 'True')
    for master in masters:
        assert etcd_members(kubeconfig, master) == sorted((name, 'started') for name in masters)
    assert kubectl(kubeconfig, 'get', 'configmap', 'kept')['data'] == {'a': 'b'}
    poll(
        lambda: kubectl(kubeconfig, 'get', 'deployment', 'web')['status'].get('readyReplicas') == 1,
        400,
        lambda: f'the Deployment is there and runs: {kubectl(kubeconfig, "get", "pods")["items"]}',
        every_s=3,
    )
    seen_certificate = subprocess.run(
        ['openssl', 's_client', '-connect', shown['api_address'].removeprefix('https://')],
        input='',
        capture_output=True,
        text=True,
        check=False,
    )
    text = subprocess.run(
        ['openssl', 'x509', '-noout', '-text'],
        input=seen_certificate.stdout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 'DNS:api.example' in text, 'the new masters have the new labels'
    assert sum(b - a for a, b in gaps) < 60, gaps


def test_new_master_that_dies_when_it_has_joined_takes_nothing_along_and_is_replaced(
    service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path, version: str
) -> None:
    def log_of(node: str) -> str:
        return subprocess.run(
            [str(NODE_TOOLS / 'exec'), node, '--', 'cat', '/var/log/magnum-lite-node.log'],
            capture_output=True,
            text=True,
            check=False,
        ).stdout  # the node may not be there yet

    before = names_of(service, cluster)
    newest = make_template(service, image_id=IMAGE, master_lb_enabled=True, **fields_of(version))
    upgrade(service, cluster, newest)
    [new] = poll(lambda: names_of(service, cluster) - before, 60, 'a new master is asked for')
    poll(
        lambda: 'wait for the node to be ready' in log_of(new),
        TIMEOUT_MIN * 60,
        lambda: log_of(new),
        every_s=1,
    )
    began = time.monotonic()
    on_node(new, 'systemctl', 'kill', '-s', 'KILL', 'magnum-lite-node.service')
    service.wait(cluster['uuid'], 'UPDATE_FAILED', timeout_s=TIMEOUT_MIN * 60)
    print(
        f'failed after {time.monotonic() - began:.0f} s: {show(service, cluster)["status_reason"]}'
    )

    [old, *_] = masters = sorted(name for name in before if '-master-' in name)
    assert etcd_members(kubeconfig, old) == [(name, 'started') for name in masters]
    upgrade(service, cluster, newest)
    service.wait(cluster['uuid'], 'UPDATE_COMPLETE', timeout_s=TIMEOUT_MIN * 120)
    print(f'done after {time.monotonic() - began:.0f} s')
    masters = sorted(names_of(service, cluster, 'master'))
    assert len(masters) == MASTERS and new not in masters and not set(masters) & before
    assert etcd_members(kubeconfig, masters[0]) == [(name, 'started') for name in masters]


def test_authorities_are_exchanged(
    service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path
) -> None:
    def rotation() -> int:
        return int(
            service.rows('SELECT rotation_phase FROM clusters WHERE uuid = :u', u=cluster['uuid'])[
                0
            ]['rotation_phase']
        )

    def authority() -> str:
        return str(
            service.rows(
                "SELECT certificate FROM cluster_keys WHERE cluster_id = :u AND purpose = 'ca'",
                u=cluster['uuid'],
            )[-1]['certificate']
        )

    kubectl(kubeconfig, 'create', 'configmap', 'trusted', '--from-literal=a=b')
    old, before = authority(), names_of(service, cluster)
    watcher = Watcher(kubeconfig, 'trusted')
    began = time.monotonic()
    status, body = service.request('PATCH', f'/v1/certificates/{cluster["uuid"]}')
    assert status == 202, body
    seen: list[Any] = [(0, before)]

    def is_done() -> bool:
        now = (rotation(), names_of(service, cluster))
        if now[0] and now[0] != seen[-1][0]:
            poll(
                lambda: (
                    len(
                        service.rows(
                            "SELECT id FROM cluster_keys WHERE cluster_id = :u AND purpose = 'ca'",
                            u=cluster['uuid'],
                        )
                    )
                    == 2
                ),
                60,
                'the next keys are there',
            )
            write_kubeconfig(service, cluster, kubeconfig, now[0])
        if now != seen[-1]:
            seen.append(now)
            print(
                f'{time.monotonic() - began:.0f} s: phase {now[0]} '
                f'{sorted(n.split("-", 3)[3] for n in now[1])}',
                flush=True,
            )
        shown = show(service, cluster)
        return bool(shown['status'] != 'UPDATE_IN_PROGRESS')

    poll(is_done, TIMEOUT_MIN * 240, lambda: f'it is done: {seen}')
    print(
        f'exchange of authorities, {MASTERS} masters and a worker: {time.monotonic() - began:.0f} s'
    )
    gaps = watcher.stop()
    print(
        f'asked {len(watcher.asked)} times; no answer from-to: '
        f'{[(round(a, 1), round(b, 1)) for a, b in gaps]}'
    )

    shown = show(service, cluster)
    assert shown['status'] == 'UPDATE_COMPLETE', shown
    assert authority() != old
    names = names_of(service, cluster)
    assert not names & before and len(names) == MASTERS + 1
    found = ready(kubeconfig)
    print(found)
    assert {name: state for name, state in found.items() if name in names} == dict.fromkeys(
        names, 'True'
    )
    for master in (name for name in names if '-master-' in name):
        assert len(etcd_members(kubeconfig, master)) == MASTERS
    assert kubectl(kubeconfig, 'get', 'configmap', 'trusted')['data'] == {'a': 'b'}


@pytest.mark.skipif(MASTERS < 3, reason='of fewer than three masters none can be lost')
def test_master_that_is_killed_is_not_missed(
    service: Service, cluster: dict[str, Any], kubeconfig: pathlib.Path
) -> None:
    """Last, and best alone: the cluster is a master short afterwards."""
    names = names_of(service, cluster)
    victim = min(names_of(service, cluster, 'master'))
    [worker] = names_of(service, cluster, 'worker')
    kubectl(kubeconfig, 'create', 'configmap', 'survived', '--from-literal=a=b')
    assert ready(kubeconfig) == dict.fromkeys(names, 'True')
    watcher = Watcher(kubeconfig, 'survived')
    began = time.monotonic()
    crash(victim)

    def sees_it() -> bool:
        with contextlib.suppress(AssertionError):
            return ready(kubeconfig) == dict.fromkeys(names, 'True') | {victim: 'Unknown'}
        return False

    poll(sees_it, 180, lambda: f'the others see that it is gone: {ready(kubeconfig)}', every_s=2)
    print(f'{victim} is known to be gone after {time.monotonic() - began:.0f} s')
    deploy(kubeconfig, 1)
    poll(
        lambda: where_it_runs(kubeconfig) == [worker], 120, 'what is asked for now runs', every_s=2
    )
    print(f'a Deployment that was asked for then runs after {time.monotonic() - began:.0f} s')
    gaps = watcher.stop()
    print(
        f'asked {len(watcher.asked)} times; no answer from-to: '
        f'{[(round(a, 1), round(b, 1)) for a, b in gaps]}'
    )
    assert sum(b - a for a, b in gaps) < 60, gaps
