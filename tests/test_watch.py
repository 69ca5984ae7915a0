"""What Heat's notifications do, and what they cannot do, whoever has sent them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from magnum_lite import db, models
from magnum_lite.conductor import watch
from magnum_lite.conductor.task import Services

ARN = 'arn:openstack:heat::p1:stacks/c1'


class Ear:
    """A listener, with a clock on which no time passes: `pauses` are the seconds that it would have
    waited.

    `meanwhile` is done in each pause; as soon as it returns true the conductor is stopping.
    """

    def __init__(
        self, database: db.Database, meanwhile: Callable[[], bool | None] = lambda: None
    ) -> None:
        self.pauses: list[float] = []
        self.meanwhile = meanwhile
        self.woken = threading.Event()
        self.listener = watch.Listener(database, self.woken, self)  # type: ignore[arg-type]

    def wait(self, pause_s: float) -> bool:
        self.pauses.append(pause_s)
        return bool(self.meanwhile())

    def hears(self, payload: Any, *, how: str = 'info') -> None:
        getattr(self.listener, how)(
            {}, 'orchestration.heat', 'orchestration.stack.create.end', payload, {}
        )


def follow(database: db.Database, stack_id: str) -> None:
    """Have all clusters in the database wait for this stack, to be looked at in an hour."""
    with database.write() as session:
        session.execute(sa.update(models.NodeGroup).values(stack_id=stack_id))
        session.execute(sa.update(models.Cluster).values(stack_id=stack_id, check_at=db.now(3600)))


def is_due(database: db.Database) -> bool:
    return min(db.get_due_in_s(database)) <= 0


@pytest.mark.usefixtures('cluster')
@pytest.mark.parametrize('how', ['info', 'error'])
def test_a_stack_that_has_ended_makes_its_cluster_due_at_once(
    database: db.Database, how: str
) -> None:
    stack_id = str(uuid.uuid4())
    follow(database, stack_id)
    ear = Ear(database)

    ear.hears({'stack_identity': f'{ARN}/{stack_id}'}, how=how)

    assert is_due(database)
    assert ear.woken.is_set()


@pytest.mark.usefixtures('cluster')
def test_it_is_looked_at_again_because_heat_says_so_before_it_commits(
    database: db.Database,
) -> None:
    stack_id = str(uuid.uuid4())
    follow(database, stack_id)
    due = []

    def look_too_early() -> None:
        due.append(is_due(database))
        follow(database, stack_id)

    ear = Ear(database, look_too_early)
    ear.hears({'stack_identity': f'{ARN}/{stack_id}'})

    assert due == [True] * len(watch.AGAIN_S)
    assert ear.pauses == list(watch.AGAIN_S)
    assert is_due(database)


@pytest.mark.usefixtures('cluster')
def test_it_is_not_looked_at_again_once_nothing_is_waited_for(database: db.Database) -> None:
    stack_id = str(uuid.uuid4())
    follow(database, stack_id)

    def done() -> None:
        with database.write() as session:
            session.execute(sa.update(models.Cluster).values(check_at=None))

    ear = Ear(database, done)
    ear.hears({'stack_identity': f'{ARN}/{stack_id}'})

    assert len(ear.pauses) == 1
    assert not is_due(database)


@pytest.mark.usefixtures('cluster')
def test_a_conductor_that_stops_waits_for_nothing(database: db.Database) -> None:
    stack_id = str(uuid.uuid4())
    follow(database, stack_id)
    ear = Ear(database, lambda: True)

    ear.hears({'stack_identity': f'{ARN}/{stack_id}'})

    assert len(ear.pauses) == 1


@pytest.mark.usefixtures('cluster')
def test_a_flood_about_one_stack_takes_one_thread(database: db.Database) -> None:
    stack_id = str(uuid.uuid4())
    follow(database, stack_id)
    payload = {'stack_identity': f'{ARN}/{stack_id}'}

    def more() -> None:
        pauses = len(ear.pauses)
        for _ in range(20):
            ear.hears(payload)
        assert len(ear.pauses) == pauses

    ear = Ear(database, more)
    ear.hears(payload)

    assert ear.pauses == list(watch.AGAIN_S)


@pytest.mark.usefixtures('cluster')
@pytest.mark.parametrize(
    'payload',
    [
        None,
        'text',
        7,
        [],
        ['stack_identity'],
        {},
        {'stack_identity': None},
        {'stack_identity': 7},
        {'stack_identity': {'id': 'x'}},
        {'stack_identity': ARN},
        {'stack_identity': f'{ARN}/{"%" * 36}'},
        {'stack_identity': f"{ARN}/' OR 1=1 --{' ' * 24}"},
        {'stack_identity': f'{ARN}/{"x" * 5000}'},
        {'stack_identity': f'{ARN}/00000000-0000-4000-8000-000000000000'},
        {'stack_identity': f'{ARN}/{chr(9731) * 36}'},
    ],
    ids=repr,
)
def test_what_no_row_knows_changes_nothing(database: db.Database, payload: Any) -> None:
    follow(database, str(uuid.uuid4()))
    ear = Ear(database)

    for how in ('info', 'error'):
        ear.hears(payload, how=how)

    assert not is_due(database)
    assert not ear.woken.is_set()
    assert ear.pauses == []


@pytest.mark.usefixtures('cluster')
def test_what_is_said_of_a_cluster_that_waits_for_nothing_changes_nothing(
    database: db.Database,
) -> None:
    stack_id = str(uuid.uuid4())
    follow(database, stack_id)
    with database.write() as session:
        session.execute(sa.update(models.Cluster).values(check_at=None))
    ear = Ear(database)

    ear.hears({'stack_identity': f'{ARN}/{stack_id}'})

    assert min(db.get_due_in_s(database)) == float('inf')
    assert not ear.woken.is_set()


def test_a_database_that_is_away_costs_the_message_and_nothing_else(database: db.Database) -> None:
    models.Base.metadata.drop_all(database.engine)
    ear = Ear(database)

    ear.hears({'stack_identity': f'{ARN}/{uuid.uuid4()}'})

    assert not ear.woken.is_set()
    assert ear.pauses == []


@pytest.mark.usefixtures('cluster')
def test_a_database_that_goes_away_meanwhile_lets_the_next_message_be_heard(
    database: db.Database,
) -> None:
    stack_id = str(uuid.uuid4())
    follow(database, stack_id)
    payload = {'stack_identity': f'{ARN}/{stack_id}'}

    def away() -> None:
        with database.write() as session:
            session.execute(sa.text('ALTER TABLE nodegroups RENAME TO gone'))

    ear = Ear(database, away)
    ear.hears(payload)
    with database.write() as session:
        session.execute(sa.text('ALTER TABLE gone RENAME TO nodegroups'))
    ear.meanwhile = lambda: True
    ear.hears(payload)

    assert ear.pauses == [watch.AGAIN_S[0]] * 2
    assert is_due(database)


def test_nobody_listens_where_the_operator_wants_none(conductor_services: Services) -> None:
    conductor_services.conf.set_override('enabled', False, group='heat_notifications')

    assert watch.make_listener(conductor_services, threading.Event(), threading.Event()) is None
