"""What is asked of each cluster, by one thread each, and what the rows say meanwhile, by one thread
for all.

A cluster that Heat itself has lost is stopped as a user would stop it: Heat keeps the work on a
stack in the memory of its engine and in messages, and a stack whose work was lost that way stays
IN_PROGRESS for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
from chaos import plan
from chaos.faults import Faults
from chaos.nodes import Away, Nodes
from functional.cloud import Project
from functional.service import Service

from magnum_lite import states

#: Seconds between looks at all rows.
LOOK_S = 0.25
#: Seconds between two tries of a request that was answered with 5xx, and tries of it.
AGAIN_S, TRIES = 2, 60
#: Kind of event -> kind of operation.
KINDS = {'resize': 'resize', 'add': 'nodegroup_create', 'drop': 'nodegroup_delete'}


class Watch:
    """Looks at all rows, and measures how long the work of a killed conductor lies."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.rows: dict[str, dict[str, Any]] = {}
        self.seen_at = 0.0
        #: uuid -> (beginning of the dead one's name in leases, when it was killed).
        self._orphans: dict[str, tuple[str, float]] = {}
        self.takeovers_s: list[float] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name='watch')
        self._thread.start()

    def killed(self, pid: int) -> None:
        """A conductor was killed just now: see who takes its clusters over."""
        name = f':{pid}:'
        with self._lock:
            for row in self._look():
                if name in (row['leased_by'] or ''):
                    self._orphans[row['uuid']] = (name, time.monotonic())

    @property
    def orphans(self) -> dict[str, tuple[str, float]]:
        """The clusters of dead conductors that nobody has taken over yet."""
        return dict(self._orphans)

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join()

    def _look(self) -> list[dict[str, Any]]:
        return self._service.rows(
            'SELECT uuid, status, generation, error_code, status_reason, leased_by, check_at '
            'FROM clusters'
        )

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            with self._lock:
                began = time.monotonic()
                self.rows = {row['uuid']: row for row in self._look()}
                self.seen_at = began
                for uuid_, (name, at) in list(self._orphans.items()):
                    if name not in (self.rows.get(uuid_, {}).get('leased_by') or ''):
                        self.takeovers_s.append(began - at)
                        del self._orphans[uuid_]


@dataclass
class World:
    """What the players share."""

    service: Service
    projects: list[Project]
    templates: list[str]
    nodes: Nodes
    watch: Watch
    faults: Faults
    #: Seconds without any change in Heat after which its stack counts as lost.
    quiet_s: float
    #: When everybody gives up, of time.monotonic().
    deadline: float
    headers: list[dict[str, str]]
    say: Callable[[str], None]


class Stuck(AssertionError):
    """A cluster is not done although it should be."""


@dataclass
class Player:
    """Does what a story says. Afterwards `uuid` is the cluster's, and what else came of it is here,
    too."""

    world: World
    story: plan.Story
    uuid: str = ''
    groups: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    #: Heat was harmed while it worked on this cluster.
    excused: bool = False
    #: How often Heat had lost the cluster's stack, so that it was stopped.
    losses: int = 0
    left_out: int = 0
    _asked_at: float = 0.0

    @property
    def project(self) -> Project:
        """Where the cluster is."""
        return self.world.projects[self.story.project]

    @property
    def status(self) -> str:
        """What its row says, GONE if there is none."""
        row = self.world.watch.rows.get(self.uuid)
        return str(row['status']) if row else 'GONE'

    def play(self) -> None:
        """Ask for everything, and wait until it is done. Raises AssertionError."""
        for number, event in enumerate(self.story.events):
            if number and event.after_s is not None:
                threading.Event().wait(event.after_s)
            elif number:
                self.settle()
            if event.kind == 'create':
                self._create(event)
            elif event.kind == 'delete':
                self.delete()
            elif not self._change(event):
                self.left_out += 1
        self.settle()

    def _send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """A request; where the service says that it cannot now, again. Such an answer means that
        nothing was stored."""
        for _ in range(TRIES):
            status, answer = self.world.service.request(
                method, path, body, headers=self.world.headers[self.story.project]
            )
            if status < 500:
                break
            threading.Event().wait(AGAIN_S)
        self._asked_at = time.monotonic()
        return status, answer

    def _create(self, event: plan.Event) -> None:
        status, body = self._send(
            'POST',
            '/v1/clusters',
            {
                'name': self.story.name,
                'cluster_template_id': self.world.templates[self.story.project],
                'node_count': event.count,
                'labels': {'node_timeout': str(plan.SILENCE_S)} if event.nodes == 'silent' else {},
            },
        )
        assert status == 202, body
        self.uuid = body['uuid']
        self.asked.append('create')
        self.world.nodes.expect(self.uuid, event.nodes)

    def delete(self) -> None:
        """Ask for the cluster to be deleted."""
        status, body = self._send('DELETE', f'/v1/clusters/{self.uuid}')
        assert status in (204, 404), body
        if status == 204:
            self.asked.append('delete')

    def _change(self, event: plan.Event) -> bool:
        """Ask for a change. Returns False where there is nothing to change, because the create has
        failed."""
        if event.group == 'default-worker' or event.group in self.groups:
            self.world.nodes.expect(self.groups.get(event.group, self.uuid), event.nodes)
        method, path, body = {
            'resize': (
                'POST',
                'actions/resize',
                {'node_count': event.count, 'nodegroup': event.group},
            ),
            'add': ('POST', 'nodegroups', {'name': event.group, 'node_count': event.count}),
            'drop': ('DELETE', f'nodegroups/{event.group}', None),
        }[event.kind]
        status, answer = self._send(method, f'/v1/clusters/{self.uuid}/{path}', body)
        if status == 409 and self.excused:
            return False
        assert status in (202, 204), f'{self.story.name}: {event}: {status} {answer}'
        if event.kind == 'add':
            self.groups[event.group] = answer['uuid']
            self.world.nodes.expect(answer['uuid'], event.nodes)
        self.asked.append(KINDS[event.kind])
        return True

    # Waiting.

    def settle(self) -> None:
        """Wait until nothing is under way. Raises Stuck."""
        lost = Loss(self)
        while True:
            threading.Event().wait(0.5)
            row = self.world.watch.rows.get(self.uuid)
            now = time.monotonic()
            if self.world.watch.seen_at > self._asked_at:
                self.excused = self.excused or self.world.faults.is_excuse(self._asked_at, now)
                if row is None:
                    return
                if (
                    row['status'] == states.DELETE_FAILED
                    and self.excused
                    and self.asked.count('delete') < 5
                ):
                    self.delete()
                elif not states.is_busy(row['status']):
                    return
            if now > self.world.deadline:
                raise Stuck(f'{self.story.name} {self.uuid} is not done: {row}')
            if row is not None and now - self._asked_at > self.world.quiet_s / 2 and lost.look():
                self._stop(row)
                lost = Loss(self)

    def _stop(self, row: dict[str, Any]) -> None:
        """Heat has lost the stack: stop the operation. A delete is told to Heat again, as an
        operator would."""
        assert self.excused, (
            f'{self.story.name} {self.uuid}: Heat does nothing any more, and nobody harmed it: '
            f'{row}'
        )
        self.losses += 1
        self.world.say(f'{self.story.name} {self.uuid}: Heat has lost its stack in {row["status"]}')
        if row['status'] == states.DELETE_IN_PROGRESS or self.losses > 1:
            if self.losses > 2:
                self.world.faults.restart_heat()
            for stack_id in self.stack_ids():
                self.project.cloud.orchestration.delete_stack(stack_id)
            return
        running = self.world.service.rows(
            'SELECT uuid FROM operations WHERE cluster_id = :uuid AND outcome IS NULL',
            uuid=self.uuid,
        )
        status, _ = self._send('DELETE', f'/v1/operations/{running[0]["uuid"]}')
        if status == 409:  # several are carried out together
            self.delete()

    def stack_ids(self) -> list[str]:
        """The stacks that its rows know of."""
        return [
            row['stack_id']
            for row in self.world.service.rows(
                'SELECT DISTINCT stack_id FROM nodegroups WHERE cluster_id = :uuid AND stack_id '
                'IS NOT NULL',
                uuid=self.uuid,
            )
        ]


class Loss:
    """Finds out whether Heat still does anything about the stacks of a cluster."""

    def __init__(self, player: Player) -> None:
        self._player, self._before, self._since, self._next = player, None, time.monotonic(), 0.0

    def look(self) -> bool:
        """Whether nothing has changed in Heat for long although it says that it is at work."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 5
        try:
            found = self._digest()
        except Away:
            found = None
        if found is None or found != self._before:
            self._before, self._since = found, now
        return found is not None and now - self._since > self._player.world.quiet_s

    def _digest(self) -> Any:
        """What Heat says of every resource; None if it does not say that it is at work."""
        heat, found, busy = self._player.project.cloud.orchestration, [], False
        for stack_id in self._player.stack_ids():
            answer = heat.get(f'/stacks/{stack_id}/resources?nested_depth=5')
            if answer.status_code == 404:
                continue
            if answer.status_code != 200:
                raise requests.RequestException(answer.text[:100])
            stack = heat.get(f'/stacks/{stack_id}').json()['stack']
            busy = busy or states.is_busy(stack['stack_status'])
            found += sorted(
                (r['resource_name'], r['resource_status'], r['physical_resource_id'] or '')
                for r in answer.json()['resources']
            )
        return found if busy else None
