"""Changes of a running cluster on a real cloud, over the API: queued, stopped, blocked, in a
project that is closed.

Each test has a cluster and a project of its own. Heat's notifications are listened to, as an
operator would have it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from functional.cloud import (
    ON_A_CLOUD,
    SIGNAL,
    STACK_S,
    TEMPLATE,
    Cluster,
    Project,
    Sandbox,
    Say,
    ask,
)
from functional.service import RABBITMQ, Service, poll, start_service, unique_name

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD


@pytest.fixture(scope='module')
def service(
    sandbox: Sandbox, running: list[Service], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One API, two conductors, with Heat's notifications."""
    made = start_service(
        sandbox.cloud_name,
        tmp_path_factory.mktemp('changes'),
        conductors=2,
        extra={'heat_notifications': {'transport_url': RABBITMQ, 'pool': unique_name()}},
    )
    running.append(made)
    yield made
    running.remove(made)
    made.stop()


@contextlib.contextmanager
def reporting(cluster: Cluster) -> Iterator[None]:
    """Have the nodes of all stacks of a project report as they come, as long as the block lasts."""
    stop = threading.Event()
    environ = {**os.environ, 'OS_CLIENT_CONFIG_FILE': str(cluster.project.sandbox.clouds_file)}

    def play() -> None:
        while not stop.is_set():
            for stack in cluster.project.stacks():
                if stack.status in ('CREATE_IN_PROGRESS', 'UPDATE_IN_PROGRESS'):
                    subprocess.run(
                        [str(SIGNAL), stack.id, '--cloud', cluster.project.name],
                        env=environ,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        check=False,
                    )
            stop.wait(1)

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


class Changes:
    """Asks for changes of one cluster, and waits for what becomes of them."""

    def __init__(self, service: Service, project: Project, cluster: Cluster) -> None:
        self.service, self.project, self.cluster = service, project, cluster

    def call(self, method: str, path: str, expected: int, body: Any = None) -> Any:
        status, answer = self.service.request(method, path, body, headers=self.project.headers)
        assert status == expected, answer
        return answer

    def resize(self, count: int, *remove: str) -> None:
        self.call(
            'POST',
            f'/v1/clusters/{self.cluster.uuid}/actions/resize',
            202,
            {'node_count': count, 'nodes_to_remove': list(remove)},
        )

    def heat_works(self) -> bool:
        """Whether the cluster's own stack is being updated."""
        return bool(self.cluster.stacks()[0].status == 'UPDATE_IN_PROGRESS')

    @property
    def history(self) -> list[tuple[str, str | None]]:
        return [(o['kind'], o['outcome']) for o in self.cluster.operations]

    def nodes(self) -> dict[str, str]:
        found = self.call('GET', f'/v1/clusters/{self.cluster.uuid}/nodes', 200)['nodes']
        return {f'{n["nodegroup"]} {n["number"]}': n['status'] for n in found}

    def settled(self) -> dict[str, Any]:
        """Wait until nothing is under way any more."""
        poll(
            lambda: all(outcome for _, outcome in self.history),
            STACK_S,
            lambda: f'all is done: {self.history} {self.cluster.get()}',
        )
        return self.cluster.get()


@pytest.fixture
def changes(service: Service, project: Project) -> Changes:
    """A cluster of one master and one worker that is complete."""
    cluster = ask(service, project, name='fn-changes', node_count=1)
    with reporting(cluster):
        cluster.wait('CREATE_COMPLETE')
    return Changes(service, project, cluster)


def test_changes_are_queued_and_stopped_and_named(changes: Changes, say: Say) -> None:
    cluster, project = changes.cluster, changes.project
    path = f'/v1/clusters/{cluster.uuid}'

    with reporting(cluster):  # an update during an update, and three nodegroups at once
        changes.resize(2)
        poll(changes.heat_works, STACK_S, 'Heat works on the first', every_s=0.2)
        changes.resize(3, '0')
        for name in ('one', 'two', 'three'):
            changes.call('POST', f'{path}/nodegroups', 202, {'name': name, 'node_count': 1})
        shown = changes.settled()
    assert shown['status'] == 'UPDATE_COMPLETE', shown
    assert [outcome for _, outcome in changes.history] == ['complete'] * 6
    assert changes.nodes() == dict.fromkeys(
        (
            'default-master 0',
            'default-worker 1',
            'default-worker 2',
            'default-worker 3',
            'one 0',
            'two 0',
            'three 0',
        ),
        'CREATE_COMPLETE',
    )
    assert (
        len(cluster.servers()) + 3
        == len(changes.nodes())
        == len(list(project.cloud.compute.servers()))
    )
    assert len(project.stacks()) == 4
    took = [(o['ended_at'] - o['created_at']).total_seconds() for o in cluster.operations]
    say(
        'an update, one behind it, and three nodegroups at once: '
        f'{", ".join(f"{t:.0f}" for t in took[1:])} s'
    )

    changes.resize(5)  # nobody reports: it is stopped
    poll(changes.heat_works, STACK_S, 'Heat works on it', every_s=0.2)
    operation = cluster.operations[-1]['uuid']
    progress = poll(
        lambda: (
            changes.call('GET', f'/v1/operations/{operation}', 200)['resources_total']
            and changes.call('GET', f'/v1/operations/{operation}', 200)
        ),
        60,
        'resources are counted',
    )
    say(
        f'progress: {progress["resources_done"]} of {progress["resources_total"]} resources, '
        f'estimated {progress["estimated_s"]} s'
    )
    assert (
        0 < progress['resources_done'] <= progress['resources_total']
        and progress['estimated_s'] > 0
    )
    assert 'UPDATE_FAILED' in changes.call('DELETE', f'/v1/operations/{operation}', 202)['text']
    shown = changes.settled()
    assert (shown['status'], shown['error_code']) == ('UPDATE_FAILED', 'CANCELLED')

    with reporting(
        cluster
    ):  # what was stopped is put right by the next change, and a nodegroup goes
        changes.call('DELETE', f'{path}/nodegroups/two', 204)
        changes.resize(1)
        shown = changes.settled()
    assert shown['status'] == 'UPDATE_COMPLETE', shown
    assert sorted(name.rpartition(' ')[0] for name in changes.nodes()) == [
        'default-master',
        'default-worker',
        'one',
        'three',
    ]

    subnet = next(
        iter(project.cloud.network.subnets(project_id=project.id))
    )  # somebody else uses the network
    port = project.cloud.network.create_port(network_id=subnet.network_id, name='fn-foreign')
    cluster.delete()
    poll(lambda: cluster.get()['status'] == 'DELETE_FAILED', STACK_S, lambda: f'{cluster.get()}')
    shown = cluster.get()
    say(f'blocked: {shown["status_reason"]}')
    assert (shown['error_code'], port.id in shown['status_reason']) == ('IN_USE', True)
    project.cloud.network.delete_port(port)
    cluster.delete()
    cluster.wait('GONE')
    cluster.assert_nothing_is_left()


def test_upgrade_replaces_the_master_behind_its_load_balancer(
    service: Service, project: Project, say: Say
) -> None:
    """The given network has no subnet named: what rests on it must not rest on a master's port."""
    network = project.cloud.network.create_network(name='fn-given')
    project.cloud.network.create_subnet(
        network_id=network.id, ip_version=4, cidr='10.77.0.0/24', name='fn-given'
    )
    cluster = ask(
        service,
        project,
        name='fn-masters',
        node_count=1,
        master_lb_enabled=True,
        fixed_network=network.id,
        floating_ip_enabled=False,
    )
    with reporting(cluster):
        cluster.wait('CREATE_COMPLETE')
    changes = Changes(service, project, cluster)
    before = cluster.get()
    newer = changes.call(
        'POST', '/v1/clustertemplates', 201, {**TEMPLATE, 'labels': {'api_server_cert_sans': 'x.y'}}
    )

    with reporting(cluster):
        changes.call(
            'POST',
            f'/v1/clusters/{cluster.uuid}/actions/upgrade',
            202,
            {'cluster_template': newer['uuid']},
        )
        shown = changes.settled()
    assert shown['status'] == 'UPDATE_COMPLETE', shown
    assert changes.nodes() == dict.fromkeys(
        ('default-master 1', 'default-worker 1'), 'CREATE_COMPLETE'
    )
    assert shown['api_address'] == before['api_address']
    assert (
        len(shown['master_addresses']) == 1
        and shown['master_addresses'] != before['master_addresses']
    )
    [pool] = project.cloud.load_balancer.pools(project_id=project.id)
    assert [m.address for m in project.cloud.load_balancer.members(pool)] == shown[
        'master_addresses'
    ]
    took = [(o['ended_at'] - o['created_at']).total_seconds() for o in cluster.operations]
    say(f'upgrade of a master and a worker: {took[-1]:.0f} s')

    cluster.delete()
    cluster.wait('GONE')
    for port in project.cloud.network.ports(network_id=network.id, device_owner=''):
        pytest.fail(f'a port is left: {port.name} {port.id}')
    project.cloud.network.delete_network(network)
    cluster.assert_nothing_is_left()


def test_create_that_is_stopped(service: Service, project: Project) -> None:
    cluster = ask(service, project, name='fn-stopped', node_count=0)
    cluster.stack_id()
    changes = Changes(service, project, cluster)

    changes.call('DELETE', f'/v1/operations/{cluster.operations[0]["uuid"]}', 202)

    shown = changes.settled()
    assert (shown['status'], shown['error_code'], shown['cluster_id']) == (
        'CREATE_FAILED',
        'CANCELLED',
        None,
    )
    assert project.stacks() == []
    cluster.delete()
    cluster.wait('GONE')
    cluster.assert_nothing_is_left()


def test_delete_in_a_project_that_is_disabled(
    service: Service, project: Project, sandbox: Sandbox
) -> None:
    cluster = ask(service, project, name='fn-disabled', node_count=0)
    with reporting(cluster):
        cluster.wait('CREATE_COMPLETE')
    admin = sandbox.admin.identity
    status, _ = service.request('DELETE', f'/v1/clusters/{cluster.uuid}', headers=project.headers)
    assert status == 204
    admin.update_project(project.id, is_enabled=False)
    try:
        poll(
            lambda: (
                not service.rows('SELECT id FROM clusters WHERE uuid = :uuid', uuid=cluster.uuid)
            ),
            STACK_S,
            lambda: f'the row goes: {cluster.row}',
        )
    finally:
        admin.update_project(project.id, is_enabled=True)
    cluster.assert_nothing_is_left()
