"""Queries and leases, on every database that answers."""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import threading
import time
import uuid
from collections.abc import Callable
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import counted_statements, history_of
from oslo_config import cfg
from oslo_db import exception as db_exc
from oslo_db import options as db_options
from rows import a_cluster, new_cluster, new_template, operation
from sqlalchemy import orm

from magnum_lite import db, errors, models
from magnum_lite.models import Cluster, NodeGroup, Operation

ADMIN = db.Scope('', all_projects=True)


P1, P2 = db.Scope('p1'), db.Scope('p2')


def claim(
    database: db.Database, holder: str, *, limit: int = 10, lease_s: float = 60
) -> list[Cluster]:
    db.claim_unstarted(database, holder, limit=limit, lease_s=lease_s)
    return db.list_leased(database, holder)


def expire_leases(database: db.Database) -> None:
    with database.write() as session:
        session.execute(sa.update(Cluster).values(leased_until=db.now(-1)))


# -- tenancy, names, pages -------------------------------------------------------------------------


def test_foreign_cluster_is_not_found(any_database: db.Database) -> None:
    cluster = new_cluster(any_database, new_template(any_database))

    with pytest.raises(errors.NotFound):
        db.get_cluster(any_database, P2, cluster.uuid)
    with pytest.raises(errors.NotFound):
        db.request_delete(any_database, P2, cluster.uuid, operation(kind='delete'))
    assert db.get_cluster(any_database, ADMIN, cluster.uuid).uuid == cluster.uuid


@pytest.mark.parametrize(
    ('public', 'hidden', 'seen'),
    [(False, False, False), (True, False, True), (False, True, False), (True, True, False)],
)
def test_template_of_another_project_is_listed_if_public_and_not_hidden(
    any_database: db.Database, public: bool, hidden: bool, seen: bool
) -> None:
    template = new_template(any_database, public=public, hidden=hidden)

    listed = db.list_templates(any_database, P2, db.Page(10))
    assert [t.uuid for t in listed] == ([template.uuid] if seen else [])
    if not seen:
        with pytest.raises(errors.NotFound):
            db.get_template(any_database, P2, template.uuid)
    assert db.get_template(any_database, P1, template.name).uuid == template.uuid


def test_name_matches_only_in_exact_spelling(any_database: db.Database) -> None:
    """MariaDB would take Foo, foo and 'foo ' for the same."""
    new_template(any_database, name='Foo')

    for name in ('foo', 'Foo ', 'Föo'):
        with pytest.raises(errors.NotFound):
            db.get_template(any_database, P1, name)
    new_template(any_database, name='Foo')
    with pytest.raises(errors.Conflict, match='More than one'):
        db.get_template(any_database, P1, 'Foo')


def test_uuid_without_dashes_is_a_uuid(any_database: db.Database) -> None:
    template = new_template(any_database)

    assert db.get_template(any_database, P1, template.uuid.replace('-', '')).uuid == template.uuid


@pytest.mark.parametrize('descending', [False, True])
@pytest.mark.parametrize('sort_key', ['id', 'name', 'keypair', 'floating_ip_enabled', 'created_at'])
def test_pages_put_together_are_the_whole_once(
    any_database: db.Database, sort_key: str, descending: bool
) -> None:
    template = new_template(any_database)
    for number in range(9):
        new_cluster(
            any_database,
            template,
            name='same' if number % 2 else f'n{number}',
            keypair=None if number % 3 else f'k{number % 2}',
            floating_ip_enabled=number > 4,
        )

    seen: list[str] = []
    marker = None
    for _ in range(20):
        page = db.Page(2, marker, sort_key, descending)
        rows = db.list_clusters(any_database, P1, page)
        if not rows:
            break
        seen += [row.uuid for row in rows]
        marker = rows[-1].uuid
    whole = db.list_clusters(any_database, P1, db.Page(100, None, sort_key, descending))
    assert seen == [row.uuid for row in whole] and len(set(seen)) == 9
    values = [getattr(row, sort_key) for row in whole]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=descending)
    assert values[len(known) :] == [None] * (9 - len(known))


def test_marker_of_another_project_is_not_found(any_database: db.Database) -> None:
    cluster = new_cluster(any_database, new_template(any_database))

    with pytest.raises(errors.NotFound, match='marker'):
        db.list_clusters(any_database, P2, db.Page(10, cluster.uuid))


@pytest.mark.parametrize(
    ('listing', 'statements'), [(db.list_clusters_brief, 1), (db.list_clusters, 2)]
)
def test_listing_takes_the_same_statements_at_any_size(
    any_database: db.Database, listing: Any, statements: int
) -> None:
    template = new_template(any_database)
    counts = []
    for _ in range(2):
        new_cluster(any_database, template)
        with counted_statements(any_database) as sent:
            rows = listing(any_database, P1, db.Page(1000))
            assert [(row.node_count, row.master_count) for row in rows] == [(2, 1)] * len(rows)
        counts.append(len(sent))
        with (
            any_database.write() as session
        ):  # more than go into one statement of SQLAlchemy's own loaders
            session.add_all([a_cluster(template) for _ in range(600)])
    assert counts == [statements, statements]


# -- quota -----------------------------------------------------------------------------------------


def test_parallel_creates_do_not_exceed_the_quota(any_database: db.Database) -> None:
    template = new_template(any_database)

    def create(_: int) -> bool:
        try:
            new_cluster(any_database, template, quota=5)
        except errors.OverQuota:
            return False
        return True

    with futures.ThreadPoolExecutor(8) as pool:
        made = sum(pool.map(create, range(30)))
    assert made == 5
    assert len(db.list_clusters(any_database, P1, db.Page(100))) == 5


def test_quota_of_one_project_is_not_another_ones(any_database: db.Database) -> None:
    template = new_template(any_database, public=True)
    new_cluster(any_database, template, quota=1)

    with pytest.raises(errors.OverQuota, match='has 1 clusters and its quota is 1'):
        new_cluster(any_database, template, quota=1)
    new_cluster(any_database, template, project='p2', quota=1)


def a_quota(hard_limit: int = 3, project: str = 'p1') -> models.Quota:
    return models.Quota(project_id=project, resource=db.CLUSTER_RESOURCE, hard_limit=hard_limit)


def test_row_that_is_locked_is_no_quota_until_one_is_set(any_database: db.Database) -> None:
    new_cluster(any_database, new_template(any_database))
    assert db.find_quota(any_database, 'p1', db.CLUSTER_RESOURCE) is None
    assert db.list_quotas(any_database, P1, db.Page(10)) == []
    with pytest.raises(errors.NotFound):
        db.update_quota(any_database, 'p1', db.CLUSTER_RESOURCE, 5)

    made = db.create_quota(any_database, a_quota())

    assert (made.hard_limit, made.updated_at) == (3, None)
    assert [quota.id for quota in db.list_quotas(any_database, ADMIN, db.Page(10))] == [made.id]
    with pytest.raises(errors.Conflict, match='has a quota for Cluster already'):
        db.create_quota(any_database, a_quota())
    assert db.update_quota(any_database, 'p1', db.CLUSTER_RESOURCE, 5).hard_limit == 5
    db.update_quota(any_database, 'p1', db.CLUSTER_RESOURCE, None)
    assert db.find_quota(any_database, 'p1', db.CLUSTER_RESOURCE) is None


def test_one_of_many_sets_a_quota(any_database: db.Database) -> None:
    def create(limit: int) -> int:
        try:
            return db.create_quota(any_database, a_quota(limit)).hard_limit or 0
        except errors.Conflict:
            return 0

    with futures.ThreadPoolExecutor(6) as pool:
        limits = list(pool.map(create, range(1, 13)))
    assert len([limit for limit in limits if limit]) == 1
    found = db.find_quota(any_database, 'p1', db.CLUSTER_RESOURCE)
    assert found is not None and found.hard_limit == max(limits)


def test_quota_that_comes_and_goes_while_clusters_are_made(any_database: db.Database) -> None:
    template = new_template(any_database)

    def change(number: int) -> None:
        if number % 3 == 0:
            with contextlib.suppress(errors.Conflict):
                db.create_quota(any_database, a_quota(100))
        elif number % 3 == 1:
            with contextlib.suppress(errors.NotFound):
                db.update_quota(any_database, 'p1', db.CLUSTER_RESOURCE, None)
        else:
            new_cluster(any_database, template)

    with futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(change, range(30)))
    assert len(db.list_clusters(any_database, P1, db.Page(100))) == 10


def test_what_there_is_is_counted_in_one_statement(any_database: db.Database) -> None:
    template = new_template(any_database, public=True)
    assert db.count_usage(any_database, None) == (0, 0)
    for project, workers in (('p1', 2), ('p1', 0), ('p2', 5)):
        new_cluster(any_database, template, project=project, workers=workers)

    with counted_statements(any_database) as sent:
        assert db.count_usage(any_database, 'p1') == (2, 4)
    assert len(sent) == 1
    assert db.count_usage(any_database, None) == (3, 10)
    assert db.count_usage(any_database, 'p3') == (0, 0)


def test_conductor_is_up_while_it_reports(any_database: db.Database) -> None:
    for host in ('a', 'b', 'a'):
        db.report_service(any_database, host, 'magnum-conductor')
    with any_database.write() as session:
        session.execute(
            sa.update(models.Service)
            .where(models.Service.host == 'b')
            .values(last_seen_up=db.now(-100))
        )

    def states(down_time_s: float) -> list[tuple[str, str, int]]:
        return [
            (row.host, row.state, row.report_count)
            for row in db.list_services(any_database, down_time_s)
        ]

    with counted_statements(any_database) as sent:
        assert states(60) == [('a', 'up', 2), ('b', 'down', 1)]
    assert len(sent) == 1
    assert states(180) == [('a', 'up', 2), ('b', 'up', 1)]


def test_cluster_of_a_template_that_went_meanwhile_is_not_made(any_database: db.Database) -> None:
    template = new_template(any_database)
    db.delete_template(any_database, P1, template.uuid)

    with pytest.raises(errors.NotFound, match='Cluster template'):
        new_cluster(any_database, template)
    assert db.list_clusters(any_database, ADMIN, db.Page(10)) == []


def test_cluster_of_a_template_that_changed_meanwhile_is_not_made(
    any_database: db.Database,
) -> None:
    template = new_template(any_database)
    cluster = a_cluster(template)
    orm.attributes.set_committed_value(cluster, 'template', template)
    db.update_template(any_database, P1, template, {'labels': {'a': '2'}})

    with pytest.raises(errors.Conflict, match='has changed meanwhile'):
        db.create_cluster(any_database, cluster, operation(cluster), default_quota=1)
    assert db.list_clusters(any_database, ADMIN, db.Page(10)) == []


def test_cluster_of_a_template_that_was_renamed_meanwhile_is_made(
    any_database: db.Database,
) -> None:
    template = new_template(any_database)
    cluster = a_cluster(template)
    orm.attributes.set_committed_value(cluster, 'template', template)
    db.update_template(any_database, P1, template, {'name': 'new', 'tags': 'new', 'public': True})

    db.create_cluster(any_database, cluster, operation(cluster), default_quota=1)

    assert db.get_cluster(any_database, P1, cluster.uuid).template.name == 'new'


@pytest.mark.parametrize(
    'changed',
    [
        {'labels': {'a': '2'}},
        {'name': 'a', 'tags': 'a'},
        {'tags': None},
        {'public': False},
        {'image_id': 'j'},
    ],
)
def test_either_a_template_changes_or_a_cluster_is_made_with_it(
    any_database: db.Database, changed: dict[str, Any]
) -> None:
    """Whoever comes second is refused, also where both have read that nothing stands in the way."""
    template = new_template(any_database)
    cluster = a_cluster(template)
    orm.attributes.set_committed_value(cluster, 'template', template)
    together = threading.Barrier(2)

    def create() -> bool:
        together.wait(10)
        try:
            db.create_cluster(any_database, cluster, operation(cluster), default_quota=100)
        except errors.Conflict:
            return False
        return True

    def update() -> bool:
        together.wait(10)
        try:
            db.update_template(any_database, P1, template, changed)
        except errors.Invalid:
            return False
        return True

    with futures.ThreadPoolExecutor(2) as pool:
        created, updated = [
            future.result(30) for future in (pool.submit(create), pool.submit(update))
        ]
    assert created if changed.keys() <= db.CLUSTER_INDEPENDENT_COLUMNS else created is not updated


def test_template_that_changed_meanwhile_is_looked_at_again(any_database: db.Database) -> None:
    template = new_template(any_database)
    db.update_template(any_database, P1, template, {'name': 'first'})

    with pytest.raises(errors.Conflict, match='Look again'):
        db.update_template(any_database, P1, template, {'name': 'second'})
    with pytest.raises(errors.NotFound):
        db.update_template(any_database, P2, template, {'name': 'second'})
    assert db.get_template(any_database, P1, template.uuid).name == 'first'


@pytest.mark.parametrize(
    ('changed', 'taken'),
    [
        ({'name': 'x'}, True),
        ({'tags': 'x'}, True),
        ({'tags': ''}, True),
        ({'hidden': True}, True),
        ({'hidden': False}, True),
        ({'public': True}, True),
        ({'public': False}, False),
        ({'tags': None}, False),
        ({'name': 'x', 'tags': 'x'}, False),
        ({'hidden': True, 'public': True}, False),
        ({'image_id': 'x'}, False),
        ({'labels': {}}, False),
        ({'driver': 'x'}, False),
    ],
)
def test_what_of_a_template_in_use_may_change(
    database: db.Database, changed: dict[str, Any], taken: bool
) -> None:
    template = new_template(database)
    new_cluster(database, template)

    if not taken:
        with pytest.raises(errors.Invalid, match='is referenced'):
            db.update_template(database, P1, template, changed)
        return
    updated = db.update_template(database, P1, template, changed)
    assert {name: getattr(updated, name) for name in changed} == changed
    assert updated.updated_at is not None


def test_template_in_use_stays(any_database: db.Database) -> None:
    template = new_template(any_database)
    new_cluster(any_database, template)

    with pytest.raises(errors.Invalid, match='is referenced'):
        db.delete_template(any_database, P1, template.uuid)
    assert db.get_template(any_database, P1, template.uuid)


# -- leases ----------------------------------------------------------------------------------------


def test_each_cluster_is_claimed_once(any_database: db.Database) -> None:
    template = new_template(any_database)
    uuids = {new_cluster(any_database, template).uuid for _ in range(30)}
    start = threading.Barrier(6)

    def work(number: int) -> list[str]:
        start.wait()
        return [
            row.uuid
            for turn in range(10)
            for row in claim(any_database, f'h{number}-{turn}', limit=4)
        ]

    with futures.ThreadPoolExecutor(6) as pool:
        claimed = [uuid for found in pool.map(work, range(6)) for uuid in found]
    assert sorted(claimed) == sorted(uuids)


def test_lease_that_is_over_is_claimed_again_and_the_first_holder_can_write_nothing(
    any_database: db.Database,
) -> None:
    new_cluster(any_database, new_template(any_database))
    [first] = claim(any_database, 'first')
    assert claim(any_database, 'second') == []
    expire_leases(any_database)
    [second] = claim(any_database, 'second')

    with (
        pytest.raises(errors.LeaseLost),
        db.lease_transaction(any_database, first, 'first', lease_s=60, failures=7) as session,
    ):
        session.execute(sa.update(NodeGroup).values(node_count=99))
    with any_database.write() as session, pytest.raises(errors.LeaseLost):
        db.move(session, first, 'done', holder='first')
    db.release(any_database, first, 'first', check_in_s=None)

    [row] = db.list_leased(any_database, 'second')
    assert (row.failures, row.node_count, row.status, row.uuid) == (
        0,
        2,
        'CREATE_IN_PROGRESS',
        second.uuid,
    )
    assert row.leased_until == second.leased_until


def test_cluster_that_somebody_left_without_a_lease_is_looked_at_again(
    any_database: db.Database,
) -> None:
    """He may have sent something while he had none: also when nobody waits for the cluster, or
    another one has it."""
    cluster = new_cluster(any_database, new_template(any_database))
    claim(any_database, 'second')
    db.release(any_database, cluster, 'first', check_in_s=None)
    db.release(any_database, cluster, 'second', check_in_s=None)
    assert 0 < min(db.get_due_in_s(any_database)) <= db.RECHECK_S

    with any_database.write() as session:
        session.execute(sa.update(Cluster).values(check_at=None))
    db.release(any_database, cluster, 'first', check_in_s=None)
    assert 0 < min(db.get_due_in_s(any_database)) <= db.RECHECK_S

    with any_database.write() as session:
        session.execute(sa.update(Cluster).values(check_at=db.now(100)))
    db.release(any_database, cluster, 'first', check_in_s=None)
    assert min(db.get_due_in_s(any_database)) > 90, 'a look comes anyway, in its time'

    with any_database.write() as session:
        session.execute(sa.update(Cluster).values(check_at=db.now(), leased_by='second'))
    db.release(any_database, cluster, 'first', check_in_s=None)
    assert min(db.get_due_in_s(any_database)) > 0, (
        'a look that somebody else has begun may have seen what was before'
    )


def test_lease_lasts_by_the_clock_of_the_database(any_database: db.Database) -> None:
    cluster = new_cluster(any_database, new_template(any_database))
    [row] = claim(any_database, 'me', lease_s=60)

    with any_database.read() as session:
        clock = session.scalar(sa.select(db.now()))
        ahead = session.scalar(sa.select(db.now(90.5)))
    assert row.uuid == cluster.uuid
    assert (
        datetime.timedelta(seconds=50) < row.leased_until - clock <= datetime.timedelta(seconds=60)
    )
    assert datetime.timedelta(seconds=89) < ahead - clock < datetime.timedelta(seconds=92)
    assert abs(clock - models.utcnow()) < datetime.timedelta(seconds=5), 'it is in UTC'


def test_held_renews_the_lease(any_database: db.Database) -> None:
    new_cluster(any_database, new_template(any_database))
    [row] = claim(any_database, 'me', lease_s=10)
    with db.lease_transaction(any_database, row, 'me', lease_s=600, stack_id='s'):
        pass

    [again] = db.list_leased(any_database, 'me')
    assert again.leased_until and row.leased_until
    assert again.leased_until - row.leased_until > datetime.timedelta(seconds=500)
    assert (row.stack_id, again.stack_id) == ('s', 's')


def test_released_cluster_is_due_later_unless_a_change_came(any_database: db.Database) -> None:
    cluster = new_cluster(any_database, new_template(any_database))
    [row] = claim(any_database, 'me')
    db.release(any_database, row, 'me', check_in_s=100)
    assert claim(any_database, 'me2') == []
    assert 90 < min(db.get_due_in_s(any_database)) <= 100

    with any_database.write() as session:
        session.execute(sa.update(Cluster).values(check_at=db.now(-1)))
    [row] = claim(any_database, 'me3')
    db.request_delete(any_database, P1, cluster.uuid, operation(kind='delete'))
    db.release(any_database, row, 'me3', check_in_s=100)
    [row] = claim(any_database, 'me4')
    assert row.status == 'DELETE_IN_PROGRESS'


def test_handed_back_clusters_are_due_at_once(any_database: db.Database) -> None:
    new_cluster(any_database, new_template(any_database))
    claim(any_database, 'me')

    assert db.release_all(any_database, 'me') == 1
    assert len(claim(any_database, 'other')) == 1


def follow(
    database: db.Database, holder: str, *, projects: int = 10, horizon_s: float = 0
) -> list[db.StackWatch]:
    return db.claim_watched(database, holder, projects=projects, lease_s=60, horizon_s=horizon_s)


def test_claims_tell_those_with_a_stack_from_those_without(any_database: db.Database) -> None:
    template = new_template(any_database)
    fresh = new_cluster(any_database, template, name='fresh')
    running = new_cluster(any_database, template, name='running', stack_id='s')
    with any_database.write() as session:
        session.execute(
            sa.update(NodeGroup).where(NodeGroup.cluster_id == running.uuid).values(stack_id='s')
        )

    [followed] = follow(any_database, 'b')
    [claimed] = claim(any_database, 'a')
    assert (claimed.uuid, [len(group.nodes) for group in claimed.nodegroups]) == (
        fresh.uuid,
        [1, 2],
    )
    assert (followed.uuid, followed.groups) == (running.uuid, [('s', 'CREATE_IN_PROGRESS')] * 2)
    assert (followed.is_polled, followed.failures) == (False, 0)


def test_followed_clusters_of_a_project_come_together(any_database: db.Database) -> None:
    """Those that are due soon share the look of the one that is due now; other projects wait for
    their turn."""
    template = new_template(any_database, public=True)
    now, soon, late = (new_cluster(any_database, template, stack_id='s') for _ in range(3))
    other = new_cluster(any_database, template, project='p2', stack_id='s')
    with any_database.write() as session:
        for cluster, due_s in ((now, -9), (soon, 2), (late, 100), (other, -5)):
            session.execute(
                sa.update(Cluster)
                .where(Cluster.uuid == cluster.uuid)
                .values(check_at=db.now(due_s))
            )

    assert {f.uuid for f in follow(any_database, 'a', projects=1, horizon_s=5)} == {
        now.uuid,
        soon.uuid,
    }
    assert [f.uuid for f in follow(any_database, 'b', projects=1, horizon_s=5)] == [other.uuid]
    assert follow(any_database, 'c') == []


def test_cluster_without_nodegroups_is_followed_too(any_database: db.Database) -> None:
    cluster = new_cluster(any_database, new_template(any_database), stack_id='s')
    with any_database.write() as session:
        session.execute(sa.delete(NodeGroup))

    assert [(f.uuid, f.groups) for f in follow(any_database, 'a')] == [(cluster.uuid, [])]


def test_claiming_what_is_followed_takes_the_same_statements_at_any_size(
    any_database: db.Database,
) -> None:
    template = new_template(any_database)
    counts = []
    for _ in range(2):
        with any_database.write() as session:
            session.add_all([a_cluster(template, stack_id='s') for _ in range(300)])
            session.flush()
            session.execute(sa.update(Cluster).values(check_at=db.now(-1)))
        with counted_statements(any_database) as sent:
            clusters = follow(any_database, str(uuid.uuid4()))
            db.release_unchanged(any_database, 'x', [c.uuid for c in clusters], check_in_s=1)
        with any_database.write() as session:
            session.execute(sa.update(Cluster).values(leased_by=None, leased_until=None))
        counts.append(len(sent))
    assert (len(clusters), counts[0], counts[1]) == (600, 5, 5)


def test_nudge_during_a_visit_makes_the_cluster_due_again(
    any_database: db.Database,
) -> None:
    """Heat says that the stack is done just after the conductor has seen that it is not."""
    cluster = new_cluster(any_database, new_template(any_database), stack_id='s')
    with any_database.write() as session:
        session.execute(sa.update(NodeGroup).values(stack_id='s'))
    ways_to_give_back: list[Callable[[], object]] = [
        lambda: db.release_unchanged(any_database, 'me', [cluster.uuid], check_in_s=100),
        lambda: db.release(any_database, cluster, 'me', check_in_s=100),
    ]
    for give_back in ways_to_give_back:
        assert len(follow(any_database, 'me')) == 1
        assert db.make_due_by_stack(any_database, ['s']) == 1
        give_back()
        assert min(db.get_due_in_s(any_database)) <= 0
    assert len(follow(any_database, 'me')) == 1
    db.release_unchanged(any_database, 'me', [cluster.uuid], check_in_s=100)
    assert 90 < min(db.get_due_in_s(any_database)) <= 100


def test_notification_does_not_wake_who_waits_for_nothing(any_database: db.Database) -> None:
    new_cluster(any_database, new_template(any_database), stack_id='s')
    with any_database.write() as session:
        session.execute(sa.update(NodeGroup).values(stack_id='s'))
        session.execute(sa.update(Cluster).values(check_at=None))

    assert db.make_due_by_stack(any_database, ['s', 'unknown']) == 0
    assert min(db.get_due_in_s(any_database)) == float('inf')


def test_asking_twice_to_delete_is_one_operation(any_database: db.Database) -> None:
    cluster = new_cluster(any_database, new_template(any_database))
    for _ in range(2):
        db.request_delete(any_database, P1, cluster.uuid, operation(kind='delete'))

    history = history_of(any_database, cluster.uuid)
    assert [(o.kind, o.outcome, o.generation) for o in history] == [
        ('create', 'superseded', 1),
        ('delete', None, 2),
    ]
    assert {g.status for g in db.get_cluster(any_database, P1, cluster.uuid).nodegroups} == {
        'DELETE_IN_PROGRESS'
    }


def test_asking_again_after_a_while_has_the_delete_sent_again_once_a_minute(
    any_database: db.Database,
) -> None:
    cluster = new_cluster(any_database, new_template(any_database))
    db.request_delete(any_database, P1, cluster.uuid, operation(kind='delete'))
    operations: list[Operation] = []
    generations = []
    for age_s in (0, db.RESEND_S + 1, db.RESEND_S + 1, 2 * db.RESEND_S + 1):
        with any_database.write() as session:
            session.execute(
                sa.update(Cluster).values(
                    updated_at=models.utcnow() - datetime.timedelta(seconds=age_s)
                )
            )
        _, running = db.request_delete(any_database, P1, cluster.uuid, operation(kind='delete'))
        assert running is not None
        operations.append(running)
        generations.append(db.get_cluster(any_database, P1, cluster.uuid).generation)

    assert generations == [2, 3, 3, 4]
    assert {(o.kind, o.generation) for o in operations} == {('delete', 2)}
    assert len(history_of(any_database, cluster.uuid)) == 2
    with any_database.write() as session:
        assert (
            len(
                db.end_operations(
                    session, db.get_cluster(any_database, P1, cluster.uuid), 'complete'
                )
            )
            == 1
        )


def test_destroyed_cluster_takes_its_rows_along_but_not_its_history(
    any_database: db.Database,
) -> None:
    cluster = new_cluster(any_database, new_template(any_database))
    with any_database.write() as session:
        db.delete_cluster_row(session, cluster)

    with any_database.read() as session:
        left = [
            session.scalar(sa.select(sa.func.count()).select_from(model))
            for model in (Cluster, NodeGroup, models.Node, Operation)
        ]
    assert left == [0, 0, 0, 1]


def test_node_names_are_labels_of_the_dns_and_differ(any_database: db.Database) -> None:
    template = new_template(any_database)
    names = []
    for name in ('Web.Shop_1', 'x' * 242, '---', 'web-shop-1'):
        cluster = new_cluster(any_database, template, name=name)
        names += [node.name for group in cluster.nodegroups for node in group.nodes]

    assert len(set(names)) == len(names) == 12
    for name in names:
        assert len(name) <= 53 and name.islower() and name.strip('-') == name
        assert set(name) <= set('abcdefghijklmnopqrstuvwxyz0123456789-')


def test_service_reports_count(any_database: db.Database) -> None:
    for _ in range(3):
        db.report_service(any_database, 'host', 'magnum-conductor')

    with any_database.read() as session:
        [row] = session.scalars(sa.select(models.Service)).all()
    assert (row.id, row.report_count) == (1, 3)


def test_naive_times_are_not_stored(any_database: db.Database) -> None:
    with pytest.raises(ValueError, match='naive'):
        models.UTCDateTime().process_bind_param(
            datetime.datetime(2026, 1, 1), any_database.engine.dialect
        )


def test_process_that_stands_still_in_a_transaction_does_not_stop_the_others(
    any_database: db.Database, conf: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any_database.engine.dialect.name == 'sqlite':
        pytest.skip('a file has no server that could end it')
    cluster = new_cluster(any_database, new_template(any_database))
    monkeypatch.setattr(db.engine, 'IDLE_TRANSACTION_S', 1)
    frozen = db.Database(conf, connection=any_database.url)

    with pytest.raises(db_exc.DBError), frozen.write() as session:
        session.execute(
            sa.update(Cluster).where(Cluster.uuid == cluster.uuid).values(name='frozen')
        )
        begun = time.monotonic()
        assert db.claim_unstarted(any_database, 'other', limit=1, lease_s=60) == [cluster.uuid]
        waited_s = time.monotonic() - begun
        session.execute(sa.select(Cluster.id))
    frozen.engine.dispose()

    assert 0.3 < waited_s < 10
    assert db.get_cluster(any_database, ADMIN, cluster.uuid).name != 'frozen'


@pytest.mark.parametrize(
    ('connection', 'said'),
    [
        ('mysql', 'is not of the form mysql+pymysql://'),
        ('mysql+pymysql://u:1@127.0.0.1:geheim/x', 'and / %2F'),
        ('mysql+pymysql://u:1@geheim@127.0.0.1/x', 'in a password @ is written %40'),
        ('nonsense://u:geheim@127.0.0.1/x', 'plugin: sqlalchemy.dialects:nonsense'),
        ('mysql+nonsense://u:geheim@127.0.0.1/x', 'plugin: sqlalchemy.dialects:mysql.nonsense'),
        ('postgresql+asyncpg://u:geheim@127.0.0.1/x', "No module named 'asyncpg'"),
        ('mysql+pymysql://u:geheim@127.0.0.1:1/x', "Can't connect to MySQL server"),
        ('mysql+pymysql://127.0.0.1/x?charst=utf8', "unexpected keyword argument 'charst'"),
        ('postgresql://u:geheim@127.0.0.1:1/x', 'Connection refused'),
        ('postgresql://u:geheim@127.0.0.1/x?charst=1', 'invalid connection option "charst"'),
        ('sqlite:///{file}', 'file is not a database'),
        ('sqlite:////nowhere/at/all.sqlite', 'unable to open database file'),
    ],
)
def test_wrong_connection_is_one_line_without_the_password(
    conf: cfg.ConfigOpts,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    connection: str,
    said: str,
) -> None:
    file = tmp_path / 'text'
    file.write_text('This is no database at all, whatever its name may be.\n' * 20)
    conf.register_opts(db_options.database_opts, 'database')
    conf.set_override('max_retries', 0, 'database')

    with pytest.raises(cfg.Error) as raised:
        db.Database(conf, connection=connection.format(file=file))

    text = str(raised.value)
    assert said in text
    assert '[database] connection' in text
    assert 'geheim' not in text + caplog.text
    assert '\n' not in text
    assert not [record for record in caplog.records if record.exc_info]


def test_wrong_password_is_one_line(conf: cfg.ConfigOpts, any_database: db.Database) -> None:
    url = sa.make_url(any_database.url)
    if url.get_backend_name() != 'mysql':
        pytest.skip('SQLite asks for no password, and PostgreSQL lets everybody in here')

    with pytest.raises(cfg.Error, match=r'Access denied for user .nobody.*See .database. connec'):
        db.Database(
            conf,
            connection=url.set(username='nobody', password='geheim').render_as_string(False),
        )
