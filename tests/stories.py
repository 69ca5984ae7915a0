"""Stories: a cluster, the requests it gets, and conductors that act on it or die at it.

Used by test_reconcile*.py, test_updates_*.py and test_hops.py. Time does not pass by itself: a
story makes rows due, runs a round of a new conductor and lets the fake Heat finish what it has
begun."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import uuid
from collections.abc import Callable
from typing import Any

import fakes
import pytest
import sqlalchemy as sa
from conftest import history_of

from magnum_lite import clients, db, members, models, states
from magnum_lite.conductor import reconcile, service, watch
from magnum_lite.conductor.task import Services
from magnum_lite.models import Cluster, NodeGroup, Operation

ADMIN = db.Scope('', all_projects=True)


class Story:
    """Runs rounds of conductors, each of which may die, until nothing is due any more."""

    def __init__(self, conductor_services: Services, cloud: fakes.FakeCloud) -> None:
        self.conductor_services, self.cloud = conductor_services, cloud
        self.rounds = 0

    def make_due(self) -> None:
        """Let time pass: each row with a next look is due, and each lease has expired."""
        with self.conductor_services.db.write() as session:
            past = models.utcnow() - datetime.timedelta(hours=1)
            session.execute(
                sa.update(models.Cluster)
                .where(models.Cluster.check_at.is_not(None))
                .values(check_at=past)
            )
            session.execute(
                sa.update(models.Cluster)
                .where(models.Cluster.leased_by.is_not(None))
                .values(leased_until=past)
            )

    def round(self) -> None:
        """One look of a new conductor at all that is due. If it dies, it dies silently."""
        with contextlib.suppress(fakes.Died):
            self.look()

    def look(self) -> None:
        """One look of a new conductor at all that is due. `fakes.Died` reaches the test."""
        self.rounds += 1
        fresh, followed = f'conductor-{self.rounds}-a', f'conductor-{self.rounds}-b'
        unstarted = db.claim_unstarted(self.conductor_services.db, fresh, limit=100, lease_s=60)
        for cluster_uuid in unstarted:
            reconcile.reconcile_leased(self.conductor_services, fresh, cluster_uuid, {})
        clusters = db.claim_watched(
            self.conductor_services.db, followed, projects=100, lease_s=60, horizon_s=0
        )
        for project in service.group_by_project(clusters):
            look = watch.check_stacks(self.conductor_services, followed, project)
            for cluster_uuid in look.changed:
                reconcile.reconcile_leased(
                    self.conductor_services, followed, cluster_uuid, look.snapshot, look.as_admin
                )

    def heat_works(self) -> None:
        """Heat finishes what it has begun: stacks become complete, deleted ones are gone."""
        for stacks in self.cloud.stacks_by_project.values():
            for stack in list(stacks.values()):
                if stack.status in ('CREATE_IN_PROGRESS', 'UPDATE_IN_PROGRESS'):
                    stack.status = stack.status.replace('IN_PROGRESS', 'COMPLETE')
                elif stack.status == 'DELETE_IN_PROGRESS':
                    del stacks[stack.id]

    def run(self, rounds: int = 12) -> None:
        for _ in range(rounds):
            self.make_due()
            self.round()
            self.heat_works()
            if min(db.get_due_in_s(self.conductor_services.db)) == float('inf'):
                return

    def clusters(self) -> list[models.Cluster]:
        return list(db.list_clusters(self.conductor_services.db, ADMIN, db.Page(1000)))

    def count(self, model: type[models.Base]) -> int:
        with self.conductor_services.db.read() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(model)) or 0


@pytest.fixture
def story(conductor_services: Services, cloud: fakes.FakeCloud) -> Story:
    return Story(conductor_services, cloud)


def dying(cloud: fakes.FakeCloud, victim: str, moment: str) -> list[int]:
    """Have the process die at its first call of this name. Returns a list that holds 1 once it
    did."""
    deaths: list[int] = []

    def hook(call: str, when: str) -> None:
        if (call, when) == (victim, moment) and not deaths:
            deaths.append(1)
            raise fakes.Died

    cloud.hook = hook
    return deaths


class DiesInTheDatabase:
    """Has the process die at the n-th write to the database, before or after it is committed."""

    def __init__(self, database: db.Database, number: int, moment: str) -> None:
        self.engine, self.number, self.moment, self.seen = database.engine, number, moment, 0

    def __enter__(self) -> DiesInTheDatabase:
        sa.event.listen(self.engine, 'commit', self.commit)
        return self

    def __exit__(self, *_: object) -> None:
        sa.event.remove(self.engine, 'commit', self.commit)

    def commit(self, connection: sa.Connection) -> None:
        if not connection.get_execution_options().get('magnum_lite_writes'):
            return
        self.seen += 1
        if self.seen == self.number:
            if self.moment == 'after':
                connection.connection.commit()
            raise fakes.Died


def with_time_passing(story: Story, killer: DiesInTheDatabase) -> None:
    """Heat works on and rows become due; the writes for that are the test's, not the victim's."""
    number, killer.number = killer.number, -1
    seen = killer.seen
    story.heat_works()
    story.make_due()
    killer.number, killer.seen = number, seen


Change = Callable[[Cluster], None]


def request(story: Story, cluster: str, change: Change, kind: str = 'resize') -> Operation:
    operation = Operation(uuid=str(uuid.uuid4()), user_id='u', kind=kind)
    db.request_update(story.conductor_services.db, ADMIN, cluster, operation, change)
    return operation


def workers(cluster: Cluster) -> NodeGroup:
    return next(group for group in cluster.nodegroups if group.name == 'default-worker')


def resize(count: int, *remove: str) -> Change:
    def change(cluster: Cluster) -> None:
        members.resize(cluster, workers(cluster), count, remove)
        workers(cluster).status = states.UPDATE_IN_PROGRESS

    return change


def add_group(name: str = 'pool', count: int = 2) -> Change:
    """Add a nodegroup, whose role is a word of the user's."""

    def change(cluster: Cluster) -> None:
        group = NodeGroup(
            uuid=str(uuid.uuid4()),
            project_id=cluster.project_id,
            name=name,
            role='gpu',
            labels={},
            node_count=count,
            next_number=0,
            rollout=1,
            image_id='ubuntu',
            flavor_id='m1.small',
            nodes=[],
            status=states.CREATE_IN_PROGRESS,
        )
        cluster.nodegroups.append(group)
        members.add(cluster, group, count)

    return change


def drop_group(name: str = 'pool') -> Change:
    def change(cluster: Cluster) -> None:
        group = next(group for group in cluster.nodegroups if group.name == name)
        members.mark_unwanted(group.nodes)
        group.status = states.DELETE_IN_PROGRESS

    return change


def upgrade(batch_size: int = 1) -> Change:
    def change(cluster: Cluster) -> None:
        group = workers(cluster)
        group.rollout, group.batch_size, group.image_id = (
            group.rollout + 1,
            batch_size,
            'ubuntu-new',
        )
        group.status = states.UPDATE_IN_PROGRESS

    return change


def rotate(cluster: Cluster) -> None:
    cluster.rotation_phase = 1
    for group in cluster.nodegroups:
        group.rollout, group.status = group.rollout + 1, states.UPDATE_IN_PROGRESS


def loaded(story: Story, cluster: str) -> Cluster:
    """The row with all that hangs off it."""
    with story.conductor_services.db.read() as session:
        return session.scalars(
            sa.select(Cluster)
            .where(Cluster.uuid == cluster)
            .options(sa.orm.selectinload(Cluster.nodegroups).selectinload(NodeGroup.nodes))
        ).one()


def numbers(story: Story, cluster: str, group: str = 'default-worker') -> dict[int, str]:
    [found] = [g for g in loaded(story, cluster).nodegroups if g.name == group]
    return {node.number: node.status for node in found.nodes}


def history(story: Story, cluster: str) -> list[tuple[str, str | None]]:
    return [(o.kind, o.outcome) for o in history_of(story.conductor_services.db, cluster)]


def failed_member(stack: fakes.FakeStack, number: int, reason: str) -> list[clients.FailedResource]:
    """What Heat lists for a member that failed: the leaf, and every nested stack above it."""
    group, member = f'group-of-{stack.id}', f'member-{number}-of-{stack.id}'
    return [
        clients.FailedResource(name, kind, text, 's', physical, holder)
        for name, kind, text, holder, physical in (
            (
                'kube_minions',
                'kube_minions.yaml',
                f'resources.kube_minions: {reason}',
                stack.id,
                group,
            ),
            (str(number), 'worker.yaml', reason, group, member),
            ('node_config_deployment', 'OS::Heat::WaitCondition', reason, member, 'x'),
        )
    ]


@pytest.fixture
def running(story: Story, cluster: str) -> str:
    """A cluster that is complete: one master, two workers with the numbers 0 and 1."""
    story.run(4)
    assert story.clusters()[0].status == 'CREATE_COMPLETE'
    story.cloud.calls.clear()
    return cluster


@pytest.fixture
def waves(story: Story) -> Story:
    """Two workers at once."""
    story.conductor_services.conf.set_override('nodes_per_wave', 2, 'cluster_heat')
    return story


def members_sent(story: Story, rounds: int) -> list[set[int]]:
    """The workers that Heat has in the first stack, each time that this changes."""
    seen: list[set[int]] = []
    for _ in range(rounds):
        story.make_due()
        story.round()
        for stack in story.cloud.all_stacks()[:1]:
            if seen[-1:] != [stack.members['kube_minions.yaml']]:
                seen.append(stack.members['kube_minions.yaml'])
        story.heat_works()
    return seen


@pytest.fixture
def balanced(story: Story, running: str) -> str:
    """The same with a load balancer before its master, so that the master can be replaced."""
    with story.conductor_services.db.write() as session:
        session.execute(sa.update(Cluster).values(master_lb_enabled=True))
    return running


def masters(cluster: Cluster) -> NodeGroup:
    return next(group for group in cluster.nodegroups if group.role == 'master')


def upgrade_all(batch_size: int = 1) -> Change:
    def change(cluster: Cluster) -> None:
        group = masters(cluster)
        group.rollout, group.image_id, group.status = (
            group.rollout + 1,
            'ubuntu-new',
            states.UPDATE_IN_PROGRESS,
        )
        upgrade(batch_size)(cluster)

    return change


def with_three_masters(cluster: Cluster) -> None:
    """As if it had been created with three."""
    group = masters(cluster)
    members.add(cluster, group, 2)
    group.node_count, group.status = 3, states.UPDATE_IN_PROGRESS


def pairs(stack: fakes.FakeStack) -> tuple[set[int], set[int]]:
    return stack.members['kube_masters.yaml'], stack.members['kube_minions.yaml']


def seen_by_heat(story: Story, rounds: int) -> list[tuple[set[int], set[int]]]:
    """The numbers of masters and workers that Heat is told, one after the other."""
    [stack] = story.cloud.all_stacks()
    seen = [pairs(stack)]
    for _ in range(rounds):
        story.run(1)
        if pairs(stack) != seen[-1]:
            seen.append(pairs(stack))
    return seen


def failed_master(stack: fakes.FakeStack, number: int, reason: str) -> list[clients.FailedResource]:
    return [
        dataclasses.replace(
            failed,
            name=failed.name.replace('minion', 'master'),
            type=failed.type.replace('minion', 'master').replace('worker', 'master'),
        )
        for failed in failed_member(stack, number, reason)
    ]


def age(story: Story, seconds: float) -> None:
    """Have the operation been asked for so long ago."""
    with story.conductor_services.db.write() as session:
        session.execute(
            sa.update(Cluster).values(
                updated_at=models.utcnow() - datetime.timedelta(seconds=seconds)
            )
        )


def check_nothing_is_doubled(story: Story, cluster: str) -> None:
    """Stacks are those that rows own, with the members that rows have."""
    row = loaded(story, cluster)
    assert {g.stack_id for g in row.nodegroups} == {s.id for s in story.cloud.all_stacks()}
    for group in row.nodegroups:
        stack = story.cloud.stacks_by_project['p1'][str(group.stack_id)]
        name = 'kube_masters.yaml' if group.role == 'master' else 'kube_minions.yaml'
        assert stack.members[name] == {node.number for node in group.nodes}, group.name
        assert len(group.nodes) == group.node_count
        assert {node.status for node in group.nodes} <= {'CREATE_COMPLETE'}


def behind_a_load_balancer(cluster: Cluster) -> None:
    cluster.master_lb_enabled = True


#: Rounds after which the longest of them is over, and the others.
ROUNDS = {'rotate': 40}


def loaded_text(story: Story, cluster: str) -> dict[str, Any]:
    with story.conductor_services.db.read() as session:
        return session.scalars(sa.select(Cluster.stack_text).where(Cluster.uuid == cluster)).one()
