#!/usr/bin/env python3
"""What it costs one conductor to follow 1,000 clusters that are being created, over 20 projects.

    bench/follow_stacks.py [--url SQLALCHEMY-URL] [--clusters 1000] [--projects 20] [--seconds 60]
                           [--ages young mixed] [--change 0.02]

A real conductor with its threads runs on the tests' fake cloud and on a real database: a temporary
SQLite file, or the database of --url, which must exist and be empty, and is emptied at the end. All
options have their defaults, but messages stay within the process: there is no broker, and so there
are no notifications.

A round is one look at each project: line N is printed when every project was looked at N times.
After each round a part of the stacks (--change) becomes complete or failed in the fake. A cluster
counts as wrong if it does not have the status of its stack after two further looks at its project,
or if it has ended otherwise than its stack. Clusters that have ended are started again, so there
are always 1,000.

"young": all clusters count as just created, for the whole run. This is the worst case: a look every
4 s. "mixed": each project has clusters of every age up to an hour, and the youngest sets the
interval. In the first rounds no stack ends.

CPU is that of the conductor alone, relative to wall time: the process, without the thread that
plays Heat and checks, and without the fake's part of each call, which is printed, too. A database
server's CPU is not included, but SQLite's is. With SQLite, for which oslo.db opens a connection for
each transaction, a conductor takes twice the CPU that it takes beside a server (--url), where
conductors belong. CPU figures hold for the machine that printed them; statements and calls hold for
any.

Exit status 1 if a promise is broken: one call per project and round, and one more for each stack
that has ended; under 20 % of a core; every status right after each round."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import os
import pathlib
import random
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from oslo_config import cfg
from sqlalchemy import orm

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # this tree, whichever is installed
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'tests'))

import fakes

from magnum_lite import certs, clients, config, db, drivers, keystore, models, notify, rpc
from magnum_lite.conductor import service, watch
from magnum_lite.conductor.task import Services

CPU_PROMISED = 0.20
#: Rounds at the beginning in which no stack ends.
STILL_ROUNDS = 3
#: Why stacks fail here, as Heat says it.
NO_HOST = clients.FailedResource(
    'server',
    'OS::Nova::Server',
    'ResourceInError: resources.server: Went to status ERROR due to "Message: No valid '
    'host was found., Code: 500"',
    'nested',
    'a-server',
    'nested-id',
    '1',
)


# -- the other side --------------------------------------------------------------------------------


@dataclass
class CountedCloud(fakes.FakeCloud):
    """The fake cloud, which counts the looks at each project and its own CPU seconds.

    `lock` is held while a call is answered: who changes a stack holds it, too.
    """

    looks: Counter[str] = field(default_factory=Counter)
    #: Stacks that were looked for, in all.
    looked_for: int = 0
    #: When each project was last looked at, and the shortest time that there was between two looks
    #: at one.
    last_look: dict[str, float] = field(default_factory=dict)
    shortest_s: float = float('inf')
    own_s: float = 0
    lock: Any = field(default_factory=threading.RLock)

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        with self.lock:
            began = time.thread_time()
            self.calls.append(name)
            yield
            self.own_s += time.thread_time() - began

    def stacks(self, project_id: str, *, as_admin: bool = False) -> CountedStacks:
        return CountedStacks(self, project_id, as_admin)


class CountedStacks(fakes.FakeStacks):
    cloud: CountedCloud

    def list_by_ids(self, ids: Collection[str]) -> dict[str, clients.Stack]:
        cloud = self.cloud
        with cloud.lock:
            seen = super().list_by_ids(set(ids))
            now = time.monotonic()
            cloud.looks[self.project_id] += 1
            cloud.looked_for += len(ids)
            cloud.shortest_s = min(
                cloud.shortest_s, now - cloud.last_look.get(self.project_id, float('-inf'))
            )
            cloud.last_look[self.project_id] = now
        return seen


def make_clusters(
    services: Services, cloud: CountedCloud, args: argparse.Namespace, ages: str
) -> None:
    """Store the clusters, each of one master and two workers, with a stack in the fake."""
    driver = next(iter(services.drivers.values()))
    template = models.ClusterTemplate(
        uuid=str(uuid.uuid4()),
        name='t',
        project_id='p',
        user_id='u',
        coe='x',
        image_id='i',
        server_type='vm',
        cluster_distro='d',
    )
    template.labels = {}
    db.create_template(services.db, template)
    text: dict[str, Any] = {}
    with services.db.write() as session:
        for number in range(args.clusters):
            project = f'project-{number % args.projects}'
            stack = fakes.FakeStack(
                str(uuid.uuid4()), f'c{number}', '', {}, {}, 60, tags=('magnum-lite', 'rev-1')
            )
            cloud.granted.add(project)
            cloud.stacks_by_project.setdefault(project, {})[stack.id] = stack
            cluster = make_cluster(template, driver.name, project, stack.id)
            # Every project has the same ages. A time in the future keeps a cluster young.
            age_h = (
                (number // args.projects + 0.5) * args.projects / args.clusters
                if ages == 'mixed'
                else -1
            )
            cluster.created_at -= datetime.timedelta(hours=age_h)
            text = text or rendered(services, driver, cluster, template)
            cluster.stack_text = text
            session.add(cluster)
            session.add(
                models.Operation(
                    uuid=str(uuid.uuid4()),
                    cluster_id=cluster.uuid,
                    project_id=project,
                    user_id='u',
                    kind='create',
                    generation=1,
                )
            )
            if number % 100 == 99:  # MariaDB takes statements of 16 MiB
                session.flush()
        # As if the stacks had been started over some time: each project is due at its own time.
        for number in range(args.projects):
            session.execute(
                sa.update(models.Cluster)
                .where(models.Cluster.project_id == f'project-{number}')
                .values(check_at=db.now(random.uniform(0, services.conf.conductor.watch_interval)))
            )


def make_cluster(
    template: models.ClusterTemplate, driver: str, project: str, stack_id: str
) -> models.Cluster:
    """A cluster whose stack is being created, as its row is."""
    cluster = models.Cluster(
        uuid=str(uuid.uuid4()),
        name='c',
        project_id=project,
        user_id='u',
        driver=driver,
        stack_id=stack_id,
        cluster_template_id=template.uuid,
        status='CREATE_IN_PROGRESS',
        floating_ip_enabled=True,
        labels={},
        master_lb_enabled=False,
        revision=1,
        sent_generation=1,
        generation=1,
        created_at=models.utcnow(),
    )
    for role, count in (('master', 1), ('worker', 2)):
        group = models.NodeGroup(
            uuid=str(uuid.uuid4()),
            project_id=project,
            name=f'default-{role}',
            role=role,
            is_default=True,
            node_count=count,
            next_number=count,
            status='CREATE_IN_PROGRESS',
            stack_id=stack_id,
            rollout=1,
            batch_size=1,
            labels={},
            node_labels={},
            node_taints=[],
        )
        group.nodes = [
            models.Node(number=n, name=f'{role}-{n}', status='CREATE_IN_PROGRESS', rollout=1)
            for n in range(count)
        ]
        cluster.nodegroups.append(group)
    return cluster


def rendered(
    services: Services,
    driver: drivers.Driver,
    cluster: models.Cluster,
    template: models.ClusterTemplate,
) -> dict[str, Any]:
    """Render the text of a cluster's stack, as its row has it."""
    life = datetime.timedelta(days=1)
    pairs = {
        name: certs.make_ca(name, life=life, algorithm='ecdsa-p256')
        for name in (*driver.keys, *driver.certificates)
    }
    orm.attributes.set_committed_value(cluster, 'template', template)
    made = driver.render(services.conf, cluster, pairs)
    return {'template': made.template, 'files': made.files}


# -- what is watched -------------------------------------------------------------------------------


@dataclass
class Gauge:
    """Resources used since the start, times in seconds. The difference of two is a round's cost."""

    wall: float
    cpu: float
    fake: float
    calls: Counter[str]
    statements: int

    def __sub__(self, other: Gauge) -> Gauge:
        return Gauge(
            self.wall - other.wall,
            self.cpu - other.cpu,
            self.fake - other.fake,
            self.calls - other.calls,
            self.statements - other.statements,
        )

    @property
    def others(self) -> int:
        """Calls that are not a look at a project."""
        return self.calls.total() - self.calls['list_by_ids']


@dataclass(frozen=True)
class Ended:
    """The status that a cluster must get since its stack has ended, when that was, and how many
    looks at its project there had been by then."""

    status: str
    at: float
    looks: int


class Bench:
    """A conductor at work, the thread that plays Heat for it, and the figures."""

    def __init__(
        self, services: Services, cloud: CountedCloud, args: argparse.Namespace, ages: str
    ) -> None:
        self.services, self.cloud, self.args, self.ages = services, cloud, args, ages
        self.problems: list[str] = []
        self.lags_s: list[float] = []
        self.ended: dict[str, Ended] = {}
        self.stacks = {
            stack.id: (project, stack)
            for project, stacks in cloud.stacks_by_project.items()
            for stack in stacks.values()
        }
        self.statements = 0
        self.player = threading.get_ident()
        sa.event.listen(services.db.engine, 'before_cursor_execute', self._count)

    def _count(self, conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if threading.get_ident() != self.player and statement != 'BEGIN':
            self.statements += 1

    def gauge(self) -> Gauge:
        """Return what the conductor alone has used since the process began."""
        with self.cloud.lock:
            return Gauge(
                time.monotonic(),
                time.process_time() - time.thread_time() - self.cloud.own_s,
                self.cloud.own_s,
                Counter(self.cloud.calls),
                self.statements,
            )

    def run(self) -> None:
        """Let a conductor work for --seconds. Print a line for each round, and then a summary."""
        conductor = service.Conductor(self.services)
        thread = threading.Thread(target=conductor.run, name='conductor')
        thread.start()
        try:
            costs = list(self._rounds())
        finally:
            conductor.stop()
            thread.join()
        self._judge(costs)

    def _rounds(self) -> Iterator[Gauge]:
        print(
            f'\n{self.ages:8}{"round":>5}{"seconds":>9}{"looks":>7}{"other calls":>13}{"statements":>12}{"CPU":>8}'  # noqa: E501
            f'{"fake":>7}   statuses'
        )
        begun = last = self.gauge()
        number = 0
        while last.wall - begun.wall < self.args.seconds:
            number += 1
            wrong: list[str] = []
            right = 0
            while (
                min((self.cloud.looks[project] for project in self.cloud.granted), default=0)
                < number
            ):
                time.sleep(0.1)
                found = self._check()
                right += found[0]
                wrong += found[1]
            now = self.gauge()
            cost, last = now - last, now
            print(
                f'{"":8}{number:5}{cost.wall:9.2f}{cost.calls["list_by_ids"]:7}{cost.others:13}{cost.statements:12}'
                f'{cost.cpu / cost.wall:8.1%}{cost.fake / cost.wall:7.1%}   {right} new, '
                f'{len(wrong)} wrong',
                flush=True,
            )
            self.problems += wrong
            yield cost
            if number >= STILL_ROUNDS:
                self._end_some()

    def _end_some(self) -> None:
        """Have some of the stacks end in Heat."""
        running = [
            stack for _, stack in self.stacks.values() if stack.status == 'CREATE_IN_PROGRESS'
        ]
        for stack in random.sample(running, round(len(self.stacks) * self.args.change)):
            project = self.stacks[stack.id][0]
            with self.cloud.lock:
                stack.status = random.choice(['CREATE_COMPLETE', 'CREATE_FAILED'])
                stack.failed = [NO_HOST] if stack.status == 'CREATE_FAILED' else []
                self.ended[stack.id] = Ended(
                    stack.status, time.monotonic(), self.cloud.looks[project]
                )

    def _check(self) -> tuple[int, list[str]]:
        """Compare the rows with Heat. Returns how many clusters got the right status since the last
        check, and a sentence for each wrong one."""
        with self.services.db.read() as session:
            rows = session.execute(sa.select(models.Cluster.stack_id, models.Cluster.status)).all()
        right, wrong, now = [], [], time.monotonic()
        for stack_id, status in rows:
            ended = self.ended.get(stack_id)
            project, stack = self.stacks[stack_id]
            if ended and status == ended.status:
                self.lags_s.append(now - ended.at)
                right.append(stack_id)
            elif ended and self.cloud.looks[project] >= ended.looks + 2:
                wrong.append(
                    f'{stack_id} is {status}, and {ended.status} in Heat since '
                    f'{now - ended.at:.1f} s'
                )
                right.append(stack_id)  # once is enough
            elif status not in ('CREATE_IN_PROGRESS', stack.status):
                wrong.append(f'{stack_id} is {status}, and {stack.status} in Heat')
        if right:
            self._begin_anew(right)
        return len(right), wrong

    def _begin_anew(self, stack_ids: Sequence[str]) -> None:
        """Set these clusters and stacks back to CREATE_IN_PROGRESS, due with their project."""
        for stack_id in stack_ids:
            self.stacks[stack_id][1].status = 'CREATE_IN_PROGRESS'
            del self.ended[stack_id]
        cluster, group, node, done = models.Cluster, models.NodeGroup, models.Node, models.Operation
        again = {'status': 'CREATE_IN_PROGRESS', 'status_reason': None, 'error_code': None}
        later = db.now(self.services.conf.conductor.watch_interval)
        with self.services.db.write() as session:
            due: dict[str, Any] = dict(
                session.execute(
                    sa.select(cluster.project_id, sa.func.min(cluster.check_at))
                    .where(cluster.check_at.is_not(None))
                    .group_by(cluster.project_id)
                )
                .tuples()
                .all()
            )
            rows = session.execute(
                sa.select(cluster.uuid, cluster.stack_id).where(cluster.stack_id.in_(stack_ids))
            ).all()
            uuids = [row.uuid for row in rows]
            groups = session.scalars(sa.select(group.uuid).where(group.cluster_id.in_(uuids))).all()
            for uuid_, stack_id in rows:
                session.execute(
                    sa.update(cluster)
                    .where(cluster.uuid == uuid_)
                    .values(
                        updated_at=None, check_at=due.get(self.stacks[stack_id][0], later), **again
                    )
                )
            session.execute(sa.update(group).where(group.uuid.in_(groups)).values(**again))
            session.execute(sa.update(node).where(node.nodegroup_id.in_(groups)).values(**again))
            session.execute(
                sa.update(done)
                .where(done.cluster_id.in_(uuids))
                .values(outcome=None, ended_at=None)
            )

    def _judge(self, costs: Sequence[Gauge]) -> None:
        total, still = sum_of(costs), sum_of(costs[:STILL_ROUNDS])
        looks, ended = (
            total.calls['list_by_ids'],
            total.calls['get_outputs'] + total.calls['list_failures'],
        )
        shares = [cost.calls['list_by_ids'] / self.args.projects for cost in costs]
        shortest_s = self.services.conf.conductor.watch_interval * (1 - watch.HORIZON)
        if self.cloud.shortest_s < shortest_s:
            self.problems.append(f'a project was looked at after {self.cloud.shortest_s:.1f} s')
        if abs(statistics.mean(shares) - 1) > 0.1:
            self.problems.append(
                f'{looks} looks in {len(costs)} rounds over {self.args.projects} projects'
            )
        if total.others != ended or ended > len(self.lags_s) + len(self.ended):
            self.problems.append(f'calls that nobody needs: {total.calls}')
        if total.cpu / total.wall >= CPU_PROMISED:
            self.problems.append(f'{total.cpu / total.wall:.1%} of a core')
        lags = sorted(self.lags_s)
        still_looks = still.calls['list_by_ids']
        print(
            f'{self.ages}: {total.wall:.0f} s, {len(costs)} rounds, {looks} looks at projects '
            f'({looks / len(costs):.1f} a round, each for {self.cloud.looked_for / looks:.1f} '
            f'stacks), {self.cloud.shortest_s:.1f} s apart at least;\n  '
            f'{total.cpu / total.wall:.1%} of a core, {still.cpu / still.wall:.1%} while nothing '
            f'ends ({still.statements / still_looks:.1f} statements and '
            f'{still.cpu / still_looks * 1000:.1f} ms of CPU for a look);\n  {len(lags)} '
            f'stacks ended ({len(lags) / total.wall:.1f} a second), seen after '
            f'{statistics.median(lags) if lags else 0:.1f} s at the median and '
            f'{max(lags, default=0):.1f} s at most'
        )
        for problem in self.problems[:10]:
            print(f'  BROKEN: {problem}')


def sum_of(costs: Sequence[Gauge]) -> Gauge:
    return Gauge(
        *(
            sum((getattr(cost, name) for cost in costs), Counter() if name == 'calls' else 0)
            for name in ('wall', 'cpu', 'fake', 'calls', 'statements')
        )
    )


def measure(conf: cfg.ConfigOpts, args: argparse.Namespace, ages: str, folder: str) -> list[str]:
    """One run on a fresh database. Returns the promises that were broken."""
    database = db.Database(conf, connection=args.url or f'sqlite:///{folder}/{ages}.sqlite')
    models.Base.metadata.create_all(database.engine)
    try:
        cloud = CountedCloud()
        services = Services(
            conf=conf,
            db=database,
            cloud=cloud,
            keystore=keystore.KeyStore(conf),
            drivers=drivers.load(conf),
            notifier=notify.Notifier(conf),
        )
        make_clusters(services, cloud, args, ages)
        bench = Bench(services, cloud, args, ages)
        bench.run()
        return bench.problems
    finally:
        models.Base.metadata.drop_all(database.engine)
        database.engine.dispose()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--url', help='SQLAlchemy URL of an empty database')
    parser.add_argument('--clusters', type=int, default=1000)
    parser.add_argument('--projects', type=int, default=20)
    parser.add_argument('--seconds', type=float, default=60)
    parser.add_argument('--ages', nargs='+', choices=['young', 'mixed'], default=['young', 'mixed'])
    parser.add_argument(
        '--change', type=float, default=0.02, help='share of the stacks that end in each round'
    )
    args = parser.parse_args()
    conf = cfg.CONF
    config.register(conf)
    conf([], project=config.PROJECT, default_config_files=[])
    rpc.set_default_transport(conf)
    with tempfile.TemporaryDirectory() as folder:
        conf.set_override('state_path', folder)
        logging.basicConfig(filename=f'{folder}/log', level=logging.INFO)
        keystore.create_key_file(conf.keystore.key_file)
        kind = sa.make_url(args.url or 'sqlite://').get_backend_name()
        print(
            f'{kind}, {args.clusters} clusters of 1 master and 2 workers in {args.projects} '
            f'projects, watch_interval {conf.conductor.watch_interval} s, {conf.conductor.workers} '
            f'workers, {args.change:.0%} of the stacks end in each round;\n{os.cpu_count()} cores, '
            f'load {os.getloadavg()[0]:.1f} before'
        )
        problems = [problem for ages in args.ages for problem in measure(conf, args, ages, folder)]
    print(
        f'load {os.getloadavg()[0]:.1f} after\n{"BROKEN" if problems else "All promises are kept."}'
    )
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
