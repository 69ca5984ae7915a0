"""Operations that are stopped, or that end because their time is up."""

from __future__ import annotations

import datetime

import pytest
import sqlalchemy as sa
from conftest import Api, history_of
from stories import ADMIN, Story, history, loaded, request, resize

from magnum_lite import db, errors, models
from magnum_lite.models import Cluster

# -- stop ------------------------------------------------------------------------------------------


def test_create_that_is_stopped_leaves_nothing_in_the_cloud(
    story: Story, api: Api, cluster: str
) -> None:
    story.make_due()
    story.round()
    [operation] = history_of(story.conductor_services.db, cluster)
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.run(4)

    row = loaded(story, cluster)
    assert (row.status, row.error_code, row.stack_id, story.cloud.all_stacks()) == (
        'CREATE_FAILED',
        'CANCELLED',
        None,
        [],
    )
    assert {group.stack_id for group in row.nodegroups} == {None}
    assert history(story, cluster) == [('create', 'failed')]
    api('DELETE', f'/v1/clusters/{cluster}')
    story.run(2)
    assert (story.clusters(), story.cloud.granted) == ([], set())


def test_create_that_is_stopped_before_it_began_makes_no_stack(story: Story, cluster: str) -> None:
    [operation] = history_of(story.conductor_services.db, cluster)
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.run(2)

    assert loaded(story, cluster).status == 'CREATE_FAILED'
    assert 'create' not in story.cloud.calls


def test_update_that_is_stopped_keeps_what_is_and_goes_on_from_there(
    story: Story, running: str
) -> None:
    operation = request(story, running, resize(4))
    story.make_due()
    story.round()
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.make_due()
    story.round()
    story.make_due()
    story.round()

    row = loaded(story, running)
    assert (row.status, row.error_code) == ('UPDATE_FAILED', 'CANCELLED')
    assert story.cloud.calls.count('cancel') == 1
    assert history(story, running)[-1] == ('resize', 'failed')
    request(story, running, resize(2))
    story.run(4)
    assert loaded(story, running).status == 'UPDATE_COMPLETE'
    assert len(story.cloud.all_stacks()[0].members['kube_minions.yaml']) == 2


def test_stop_that_comes_too_late_is_no_failure(story: Story, running: str) -> None:
    operation = request(story, running, resize(4))
    story.make_due()
    story.round()
    story.heat_works()
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.run(2)

    assert (loaded(story, running).status, history(story, running)[-1]) == (
        'UPDATE_COMPLETE',
        ('resize', 'complete'),
    )
    with pytest.raises(errors.Conflict, match='has ended already, as complete'):
        db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)


def test_stop_of_an_operation_that_cannot_stop_is_refused(
    story: Story, api: Api, running: str
) -> None:
    first = request(story, running, resize(3))
    request(story, running, resize(4))
    with pytest.raises(errors.Conflict, match='is not the only one'):
        db.request_cancel(story.conductor_services.db, ADMIN, first.uuid)
    api('DELETE', f'/v1/clusters/{running}')
    deleting = history_of(story.conductor_services.db, running)[-1]

    with pytest.raises(errors.Conflict, match='cannot be stopped'):
        db.request_cancel(story.conductor_services.db, ADMIN, deleting.uuid)
    with pytest.raises(errors.NotFound):
        db.request_cancel(story.conductor_services.db, db.Scope('p2'), deleting.uuid)


# -- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('what', ['create', 'update', 'delete'])
def test_operation_ends_although_heat_never_does(
    story: Story, api: Api, cluster: str, what: str
) -> None:
    if what != 'create':
        story.run(4)
        request(story, cluster, resize(3)) if what == 'update' else api(
            'DELETE', f'/v1/clusters/{cluster}'
        )
    story.make_due()
    story.round()
    with story.conductor_services.db.write() as session:
        past = models.utcnow() - datetime.timedelta(minutes=71)
        session.execute(
            sa.update(Cluster).values(
                created_at=past, updated_at=past if what != 'create' else None
            )
        )
    story.make_due()
    story.round()

    row = loaded(story, cluster)
    assert (row.status, row.error_code) == (f'{what.upper()}_FAILED', 'TIMEOUT')
    assert 'is not done after 71 minutes, and 60 were given' in str(row.status_reason)
    assert history(story, cluster)[-1][1] == 'failed'
    assert (row.leased_by, row.check_at) == (None, None)
