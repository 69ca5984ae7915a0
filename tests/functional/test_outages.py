"""Heat, Keystone, the broker and the database are away, on a real cloud, and only for the service
under test.

Each fault lasts some seconds, or as long as OUTAGE_SECONDS says: by hand, minutes. Before or in it
a create, a resize and a delete are asked for; afterwards all is as asked for, with one stack a
cluster. Heat breaks in every way at once, another in each project; Keystone in one way after the
other, or with OUTAGE_SECONDS in each of them for that long.

Clusters are of a driver without servers: here stacks count. OS_CLOUD names the cloud; `cloud.py`
says what is needed."""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from functional.broken import Broken, breakable
from functional.cloud import ON_A_CLOUD, PAPER_TEMPLATE, Cluster, Project, Sandbox, Say
from functional.proxy import MODES, Proxy
from functional.service import Process, Service, connect

pytest_plugins = ('functional.fixtures',)
pytestmark = [pytest.mark.timeout(3600), *ON_A_CLOUD]

IS_LONG = 'OUTAGE_SECONDS' in os.environ
SECONDS = float(os.environ.get('OUTAGE_SECONDS', '12'))
#: A slow answer takes half a lease, so the calls time out before: after two fifths.
LEASE_S = 60 if IS_LONG else 30
SLOW_S = LEASE_S / 2
RETRY_AFTER_S = 40 if IS_LONG else 5
#: Seconds for a GET while something is away, on a busy machine.
AT_ONCE_S = 3
LINES_PER_MINUTE = 2
KEYSTONE_MODES = ('refuse', 'cut', 'slow', 'html 200', 'html 502', '429', '503', '504')


@pytest.fixture(scope='module')
def broken(
    sandbox: Sandbox, running: list[Service], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broken]:
    """One API and one conductor, which reach everything through something that can break."""
    with breakable(
        sandbox,
        running,
        tmp_path_factory.mktemp('service'),
        {
            'conductor': {
                'lease': LEASE_S,
                'tick': 2,
                'watch_interval': 1.5,
                'retry_interval': 1,
                'workers': 16,
            },
            'quotas': {'max_clusters_per_project': 1000},
        },
        slow_s=SLOW_S,
        retry_after_s=RETRY_AFTER_S,
    ) as made:
        yield made


# -- what is asked for -----------------------------------------------------------------------------


@dataclass
class Story:
    """A project with a cluster to be created, one to be resized, and one to be deleted."""

    service: Service
    project: Project
    headers: dict[str, str] = field(init=False)
    template: str = ''
    made: Cluster | None = None
    resized: Cluster = field(init=False)
    deleted: Cluster = field(init=False)

    def __post_init__(self) -> None:
        self.headers = self.project.headers

    def send(self, method: str, path: str, body: Any, expected: int) -> Any:
        status, answer = self.service.request(method, path, body, headers=self.headers)
        assert status == expected, (method, path, status, answer)
        return answer

    def prepare(self) -> None:
        """Have those that there are before."""
        self.template = self.send('POST', '/v1/clustertemplates', PAPER_TEMPLATE, 201)['uuid']
        self.resized, self.deleted = self.create('resized'), self.create('deleted')
        self.resized.wait('CREATE_COMPLETE')
        self.deleted.wait('CREATE_COMPLETE')

    def create(self, name: str) -> Cluster:
        return Cluster(
            self.service,
            self.project,
            self.send(
                'POST',
                '/v1/clusters',
                {'name': name, 'cluster_template_id': self.template, 'node_count': 1},
                202,
            )['uuid'],
        )

    def ask(self) -> None:
        """Ask for all three."""
        self.made = self.create('made')
        self.send(
            'POST', f'/v1/clusters/{self.resized.uuid}/actions/resize', {'node_count': 2}, 202
        )
        self.send('DELETE', f'/v1/clusters/{self.deleted.uuid}', None, 204)

    def settle(self) -> None:
        """Wait until all is as asked for; then look at what there is."""
        assert self.made
        self.made.wait('CREATE_COMPLETE')
        shown = self.resized.wait('UPDATE_COMPLETE')
        self.deleted.wait('GONE')
        assert shown['node_count'] == 2
        names = [s.name for s in self.project.stacks()]
        assert len(names) == 2, names
        assert [len([n for n in names if c.uuid in n]) for c in (self.made, self.resized)] == [
            1,
            1,
        ], names
        for cluster, kinds in (
            (self.made, ['create']),
            (self.resized, ['create', 'resize']),
            (self.deleted, ['create', 'delete']),
        ):
            assert [(o['kind'], o['outcome']) for o in cluster.operations] == [
                (k, 'complete') for k in kinds
            ]


@pytest.fixture
def stories(sandbox: Sandbox, broken: Broken) -> Iterator[Callable[[int], list[Story]]]:
    """Make so many stories, prepared at once."""
    with contextlib.ExitStack() as undo:

        def make(count: int) -> list[Story]:
            found = [
                Story(broken.service, undo.enter_context(sandbox.project())) for _ in range(count)
            ]
            everybody(Story.prepare, found)
            return found

        yield make


def everybody(do: Callable[[Story], None], found: list[Story]) -> None:
    with futures.ThreadPoolExecutor(len(found)) as pool:
        list(pool.map(do, found))


def remove(found: list[Story]) -> None:
    """Delete all clusters as a user does: afterwards nothing is left of them."""

    def one(story: Story) -> None:
        for cluster in (story.made, story.resized):
            if cluster:
                cluster.delete()
        for cluster in (story.made, story.resized):
            if cluster:
                cluster.wait('GONE')
        story.resized.assert_nothing_is_left()

    everybody(one, found)


# -- what is seen meanwhile ------------------------------------------------------------------------


class Reader:
    """Reads the clusters of stories, with a token each that was used before, and notes how that
    went."""

    def __init__(self, found: list[Story], path: str = '/v1/clusters') -> None:
        self.statuses: collections.Counter[int] = collections.Counter()
        self.took_s: list[float] = []
        self.words: set[str] = set()
        self._stories, self._path = found, path
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for story in self._stories:
                begun = time.monotonic()
                try:
                    answer = requests.get(
                        story.service.url + self._path, headers=story.headers, timeout=60
                    )
                    self.statuses[answer.status_code] += 1
                    if answer.status_code != 200:
                        self.words.add(answer.text[:300])
                except requests.RequestException as e:
                    self.statuses[0] += 1
                    self.words.add(str(e)[:300])
                self.took_s.append(time.monotonic() - begun)
                self._stopping.wait(0.5)

    def __str__(self) -> str:
        return f'{dict(self.statuses)}, slowest {max(self.took_s):.2f} s {" ".join(self.words)}'


LINE = re.compile(
    r'^(\S+ \S+ \d+ (?:WARNING|ERROR|CRITICAL) (\S+)) (?:\[[^]]*\] )?(.*)$', re.MULTILINE
)


class Logs:
    """Counts what the processes complain of from now on, by kind: the same words with other numbers
    and names."""

    def __init__(self, service: Service) -> None:
        self._from = [(p, len(p.text)) for p in (service.api, *service.conductors) if p]
        self._since = time.monotonic()

    def counts(self) -> dict[str, collections.Counter[str]]:
        return {p.log.stem: self._kinds(p, start) for p, start in self._from}

    @staticmethod
    def _kinds(process: Process, start: int) -> collections.Counter[str]:
        kinds: collections.Counter[str] = collections.Counter()
        before = ''
        for head, logger, said in LINE.findall(process.text[start:]):
            if (
                head == before
            ):  # a line of a traceback, which oslo.log gives the time and the name of its record
                continue
            before = head
            kind = re.split(r' fails\.| has failed|: ', said)[0]
            kind = re.sub(
                r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+(\.\d+)?|\[.*?\]', '#', kind
            )
            kinds[f'{logger.rpartition(".")[2]}: {kind[:90]}'] += 1
        return kinds

    def assert_quiet(self, say: Say) -> None:
        """No kind was said more often than may be."""
        minutes = (time.monotonic() - self._since) / 60
        most = LINES_PER_MINUTE * math.ceil(minutes)
        counts = self.counts()
        for name, kinds in counts.items():
            say(f'log of {name} in {minutes:.1f} min: {dict(kinds)}')
        loud = {f'{n} {k}': c for n, kinds in counts.items() for k, c in kinds.items() if c > most}
        assert not loud, loud


def gaps(proxy: Proxy, story: Story, since: float, mode: str) -> list[float]:
    """Seconds between the tries to create a cluster while the fault lasted: hits that name it, less
    those beside."""
    assert story.made
    times = [
        h.at
        for h in list(proxy.hits)
        if h.at > since and h.mode == mode and story.made.uuid in h.text
    ]
    return [b - a for a, b in itertools.pairwise(times)]


def during(seconds: float) -> None:
    """Let a fault last."""
    threading.Event().wait(seconds)


# -- the outages -----------------------------------------------------------------------------------


def test_heat_breaks_in_every_way_at_once(
    broken: Broken, stories: Callable[[int], list[Story]], say: Say
) -> None:
    found = stories(len(MODES))
    logs, since = Logs(broken.service), time.monotonic()

    modes = {story.project.id: mode for story, mode in zip(found, MODES, strict=True)}
    with broken.heat.broken(modes), Reader(found) as reader:
        everybody(Story.ask, found)
        during(SECONDS)
    ended = time.monotonic()

    say(f'Heat: GET {reader}')
    for story, mode in zip(found, MODES, strict=True):
        story.settle()
        tries = gaps(broken.heat, story, since, mode)
        hits = len([h for h in broken.heat.hits if h.mode == mode and h.at > since])
        say(
            f'Heat {mode}: as asked for {time.monotonic() - ended:.0f} s after the end; calls '
            f'meanwhile: {hits}; seconds between those about the new cluster: '
            f'{[round(g, 1) for g in tries]}'
        )
        if mode == '429':
            assert tries and min(tries) >= RETRY_AFTER_S
        elif mode in ('cut', 'html 200', 'html 502', '503'):
            assert len(tries) >= 2 and tries[-1] > tries[0]
    assert set(reader.statuses) == {200} and max(reader.took_s) < AT_ONCE_S, str(reader)
    logs.assert_quiet(say)
    remove(found)


@pytest.mark.parametrize(
    'modes', [(m,) for m in KEYSTONE_MODES] if IS_LONG else [KEYSTONE_MODES], ids=', '.join
)
def test_keystone_is_broken(
    broken: Broken,
    sandbox: Sandbox,
    stories: Callable[[int], list[Story]],
    say: Say,
    modes: tuple[str, ...],
) -> None:
    """A token is needed for the new project's stack, and to give and take roles."""
    [story] = found = stories(1)
    unseen = connect(story.project.name, sandbox.clouds_file)
    stranger = {'X-Auth-Token': str(unseen.auth_token)}
    unseen.close()
    logs = Logs(broken.service)

    with Reader(found) as reader:
        for number, mode in enumerate(modes):
            with broken.keystone.broken({'': mode}):
                if number == 0:
                    story.ask()
                    begun = time.monotonic()
                    answer = requests.get(
                        f'{broken.service.url}/v1/clusters', headers=stranger, timeout=180
                    )
                    say(
                        f'Keystone {mode}: a token not seen before gets {answer.status_code} after '
                        f'{time.monotonic() - begun:.1f} s: {answer.text[:300]!r}'
                    )
                    assert answer.status_code == (200 if mode == 'slow' else 503) and answer.text
                during(SECONDS / len(modes))
    ended = time.monotonic()

    story.settle()
    say(
        f'Keystone {", ".join(modes)}: GET {reader}; as asked for {time.monotonic() - ended:.0f} s '
        'after the end'
    )
    assert set(reader.statuses) == {200} and max(reader.took_s) < AT_ONCE_S, str(reader)
    logs.assert_quiet(say)
    remove(found)


@pytest.mark.parametrize('how', ['down', 'hang'])
def test_the_broker_is_away(
    broken: Broken, stories: Callable[[int], list[Story]], say: Say, how: str
) -> None:
    [story] = found = stories(1)
    logs = Logs(broken.service)
    getattr(broken.broker, how)()
    begun = time.monotonic()
    try:
        with Reader(found) as reader:
            story.ask()
            asked_s = time.monotonic() - begun
            story.settle()
            settled_s = time.monotonic() - begun
            during(SECONDS - settled_s)
    finally:
        broken.broker.up()

    say(
        f'broker {how}: GET {reader}; three requests {asked_s:.1f} s, all done {settled_s:.0f} s, '
        'without a broker'
    )
    assert set(reader.statuses) == {200} and max(reader.took_s) < AT_ONCE_S, str(reader)
    logs.assert_quiet(say)
    remove(found)


@pytest.mark.parametrize('how', ['down', 'hang'] if IS_LONG else ['down'])
def test_the_database_is_away(
    broken: Broken, stories: Callable[[int], list[Story]], say: Say, how: str
) -> None:
    [story] = found = stories(1)
    logs = Logs(broken.service)
    story.ask()
    getattr(broken.database, how)()
    try:
        with Reader(found) as reader:
            during(SECONDS)
    finally:
        broken.database.up()
    ended = time.monotonic()

    say(f'database {how}: GET {reader}')
    assert all(p.popen.poll() is None for p in broken.service.conductors)
    story.settle()
    say(f'database {how}: as asked for {time.monotonic() - ended:.0f} s after the end')
    if how == 'down':
        assert set(reader.statuses) == {503} and 'database' in ''.join(reader.words), str(reader)
    logs.assert_quiet(say)
    remove(found)
