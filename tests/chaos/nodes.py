"""The nodes of every cluster, played at once: whoever waits for a report in Heat gets one.

Each node is a nested stack with a handle. Its own token and address, which are attributes of the
handle, are all that a node would have, and all that is used to report. What is not known to have
arrived is sent again."""

from __future__ import annotations

import re
import threading
import time
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import requests
from functional.cloud import Project
from keystoneauth1 import exceptions as ksa_exc
from openstack import exceptions as sdk_exc

#: NAME-OWNER-kube_minions-xxxxxxxxxxxx-NUMBER-xxxxxxxxxxxx: the stack of a member of an owner's, a
#: uuid.
MEMBER = re.compile(
    r'.*-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-kube_minions-[a-z0-9]{12}-(\d+)-[a-z0-9]{12}'
)
#: Seconds between rounds, and after which a node that is still waited for reports again.
ROUND_S = 1.5
AGAIN_S = 15
REASON = 'step install ended with 1: the plan says so'

Away = (
    ksa_exc.ClientException,
    sdk_exc.SDKException,
    requests.RequestException,
    KeyError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Member:
    """The nested stack of a member."""

    id: str
    name: str
    owner: str
    number: int
    status: str


def members(project: Project) -> list[Member]:
    """The members that Heat has in a project, in one call."""
    answer = project.cloud.orchestration.get('/stacks?show_nested=True')
    found = []
    for stack in _body(answer)['stacks']:
        match = MEMBER.fullmatch(stack['stack_name'])
        if match:
            found.append(
                Member(
                    stack['id'], stack['stack_name'], match[1], int(match[2]), stack['stack_status']
                )
            )
    return found


def _body(answer: requests.Response) -> dict[str, Any]:
    if answer.status_code != 200:
        raise requests.RequestException(f'{answer.status_code} {answer.text[:200]}')
    return dict(answer.json())


class Nodes:
    """Plays the nodes of the owners that it was told of, until `stop()`."""

    def __init__(self, projects: list[Project]) -> None:
        self._projects = projects
        self._lock = threading.Lock()
        #: owner -> whether its nodes report.
        self._reports: dict[str, bool] = {}
        #: owner -> ids of the members that were there before one is to fail.
        self._fail: dict[str, set[str]] = {}
        #: id of a member -> (whether it is fine, when it reported last).
        self.sent: dict[str, tuple[bool, float]] = {}
        self.problems: dict[str, int] = {}
        #: Seconds that Heat took to list the stacks of a project, each time that it did.
        self.answers_s: list[float] = []
        self._stopping = threading.Event()
        self._pool = futures.ThreadPoolExecutor(4, thread_name_prefix='nodes')
        self._threads = [
            threading.Thread(target=self._run, args=(p,), name=f'nodes of {p.name}')
            for p in projects
        ]
        for thread in self._threads:
            thread.start()

    def expect(self, owner: str, nodes: str) -> None:
        """Have the nodes of an owner, known or new, do what the plan says from now on."""
        with self._lock:
            self._reports[owner] = nodes != 'silent'
            self._fail.pop(owner, None)
            if nodes == 'fail':
                self._fail[owner] = set(self.sent)

    def stop(self) -> None:
        """End, and wait for the last report."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()

    def _run(self, project: Project) -> None:
        while not self._stopping.wait(ROUND_S):
            try:
                asked_at = time.monotonic()
                found = members(project)
                self.answers_s.append(time.monotonic() - asked_at)
                waiting = [
                    m for m in found if m.status in ('CREATE_IN_PROGRESS', 'UPDATE_IN_PROGRESS')
                ]
                list(self._pool.map(lambda member: self._report(project, member), waiting))
            except Away as e:
                self._note(e)

    def _note(self, e: Exception) -> None:
        name = f'{type(e).__name__} {str(e)[:60]}'
        self.problems[name] = self.problems.get(name, 0) + 1

    def _report(self, project: Project, member: Member) -> None:
        fine, sent_at = self.sent.get(member.id, (None, 0.0))
        if not self._reports.get(member.owner) or time.monotonic() - sent_at < AGAIN_S:
            return
        try:
            answer = project.cloud.orchestration.get(
                f'/stacks/{member.name}/{member.id}/resources/handle'
            )
            handle = _body(answer)['resource'].get('attributes') or {}
            if not handle.get('token') or not handle.get('endpoint'):
                return  # it is being made
            if fine is None:
                fine = self._is_fine(member)
            requests.post(
                handle['endpoint'],
                headers={'X-Auth-Token': handle['token']},
                timeout=20,
                json={
                    'status': 'SUCCESS' if fine else 'FAILURE',
                    'id': f'node-{member.number}',
                    'reason': 'done' if fine else REASON,
                },
            ).raise_for_status()
            with self._lock:
                self.sent[member.id] = (fine, time.monotonic())
        except Away as e:
            self._note(e)

    def _is_fine(self, member: Member) -> bool:
        """Decide, once, whether a member reports success: the first new one of an owner that is to
        have a failure not.

        Noted before it is sent: a report that arrived although it looked lost must not be followed
        by another."""
        with self._lock:
            known = self._fail.get(member.owner)
            fine = known is None or member.id in known
            if not fine:
                del self._fail[member.owner]
            self.sent[member.id] = (fine, 0.0)
            return fine
