"""The transition table: every pair of event and status is either a move or refused."""

from __future__ import annotations

import uuid

import pytest
from conftest import Api

from magnum_lite import db, errors, models, states

ALLOWED = {
    ('update', 'CREATE_COMPLETE'): 'UPDATE_IN_PROGRESS',
    ('update', 'UPDATE_COMPLETE'): 'UPDATE_IN_PROGRESS',
    ('update', 'UPDATE_FAILED'): 'UPDATE_IN_PROGRESS',
    ('update', 'UPDATE_IN_PROGRESS'): 'UPDATE_IN_PROGRESS',
    ('delete', 'CREATE_IN_PROGRESS'): 'DELETE_IN_PROGRESS',
    ('delete', 'CREATE_COMPLETE'): 'DELETE_IN_PROGRESS',
    ('delete', 'CREATE_FAILED'): 'DELETE_IN_PROGRESS',
    ('delete', 'UPDATE_IN_PROGRESS'): 'DELETE_IN_PROGRESS',
    ('delete', 'UPDATE_COMPLETE'): 'DELETE_IN_PROGRESS',
    ('delete', 'UPDATE_FAILED'): 'DELETE_IN_PROGRESS',
    ('delete', 'DELETE_IN_PROGRESS'): 'DELETE_IN_PROGRESS',
    ('delete', 'DELETE_FAILED'): 'DELETE_IN_PROGRESS',
    ('done', 'CREATE_IN_PROGRESS'): 'CREATE_COMPLETE',
    ('done', 'UPDATE_IN_PROGRESS'): 'UPDATE_COMPLETE',
    ('done', 'DELETE_IN_PROGRESS'): 'DELETE_COMPLETE',
    ('fail', 'CREATE_IN_PROGRESS'): 'CREATE_FAILED',
    ('fail', 'UPDATE_IN_PROGRESS'): 'UPDATE_FAILED',
    ('fail', 'DELETE_IN_PROGRESS'): 'DELETE_FAILED',
}


@pytest.mark.parametrize(
    ('event', 'status'),
    [(event, status) for event in states.TRANSITIONS for status in states.STATUSES],
)
def test_every_pair_moves_or_is_refused(
    database: db.Database, cluster: str, event: str, status: str
) -> None:
    expected = ALLOWED.get((event, status))
    with database.write() as session:
        row = session.query(models.Cluster).one()
        row.status = status
    with database.write() as session:
        row = session.query(models.Cluster).one()
        if expected is None:
            with pytest.raises(errors.Conflict, match=f'{cluster} is {status}'):
                db.move(session, row, event)
        else:
            db.move(session, row, event)
    with database.read() as session:
        assert session.query(models.Cluster).one().status == (expected or status)


def test_move_loses_against_a_status_that_changed_meanwhile(
    database: db.Database, cluster: str
) -> None:
    with database.read() as session:
        seen = session.query(models.Cluster).one()
    with database.write() as session:
        session.query(models.Cluster).one().status = 'DELETE_IN_PROGRESS'

    with database.write() as session, pytest.raises(errors.Conflict, match='has changed meanwhile'):
        db.move(session, seen, 'done')
    with database.write() as session, pytest.raises(errors.LeaseLost):
        db.move(session, seen, 'done', holder='me')


def test_move_loses_against_a_change_that_was_asked_for_meanwhile(
    database: db.Database, cluster: str
) -> None:
    with database.read() as session:
        seen = session.query(models.Cluster).one()
    with database.write() as session:
        session.query(models.Cluster).one().generation += 1

    with database.write() as session, pytest.raises(errors.Conflict):
        db.move(session, seen, 'done')


def test_foreign_statuses_are_never_entered() -> None:
    entered = {status for moves in states.TRANSITIONS.values() for status in moves.values()}

    assert entered <= set(states.STATUSES)
    assert not entered & set(states.FOREIGN_STATUSES)


def test_a_cluster_is_made_in_its_first_status(api: Api, cluster: str) -> None:
    assert uuid.UUID(cluster)
    assert api('GET', f'/v1/clusters/{cluster}').json['status'] == 'CREATE_IN_PROGRESS'
