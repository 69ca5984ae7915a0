"""What tests/api/etag.yaml and idempotency.yaml cannot say: requests at the same time, processes
that die, costs."""

from __future__ import annotations

import datetime
from concurrent import futures
from typing import Any

import fakes
import pytest
import sqlalchemy as sa
from conftest import Api, Nudges, counted_statements
from oslo_config import cfg
from rows import TEMPLATE_UUID, store_cluster, store_template, uuid_of

from magnum_lite import db, drivers, models, notify
from magnum_lite.api import app as api_app
from magnum_lite.api import idempotency, policies
from magnum_lite.api.request import Services
from magnum_lite.conductor import service, task

KEY = {'Idempotency-Key': 'k1'}
CLUSTER = {'name': 'once', 'cluster_template_id': TEMPLATE_UUID}


@pytest.fixture
def stored(services: Services) -> str:
    """The address of a cluster that is there."""
    store_template(services.db)
    return f'/v1/clusters/{store_cluster(services.db, 1, stack_id="stack-1")}'


@pytest.fixture
def any_api(conf: cfg.ConfigOpts, any_database: db.Database, cloud: fakes.FakeCloud) -> Api:
    """The API on each database, with a template and a cluster."""
    services: Any = Services(
        conf=conf,
        db=any_database,
        cloud=cloud,
        drivers=drivers.load(conf),
        nudger=Nudges(),
        notifier=notify.Notifier(conf),
        enforcer=policies.make_enforcer(conf),
        signer=None,
    )
    store_template(any_database)
    store_cluster(any_database, 1, stack_id='stack-1')
    return Api(api_app.make_app(services))


def count(database: db.Database, model: type[models.Base]) -> int:
    with database.read() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(model)) or 0


class Blind(set[str]):
    """The keys that other processes work on."""

    def __contains__(self, _: object) -> bool:
        return False


# -- at the same time ------------------------------------------------------------------------------


def test_one_of_many_changes_with_the_same_tag_is_made(
    any_api: Api, any_database: db.Database
) -> None:
    path = f'/v1/clusters/{uuid_of(1)}'
    tag = {'If-Match': any_api('GET', path).headers['ETag']}
    requests = [('POST', '/actions/resize', {'node_count': number}) for number in (3, 4, 5)] + [
        ('PATCH', '', [{'op': 'replace', 'path': '/node_count', 'value': 6}]),
        ('POST', '/nodegroups', {'name': 'n'}),
        ('DELETE', '', None),
    ]

    with futures.ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda r: any_api(r[0], path + r[1], r[2], headers=tag).status_code, requests)
        )

    assert sorted(answers)[1:] == [412] * 5 and min(answers) in (202, 204)
    assert count(any_database, models.Operation) == 1


def test_tag_is_looked_at_when_the_change_is_written(
    api: Api, services: Services, cloud: fakes.FakeCloud, stored: str
) -> None:
    """The upgrade has read the cluster, and looks up an image while another caller resizes it."""

    def change(name: str, when: str) -> None:
        cloud.hook = None
        assert api('POST', f'{stored}/actions/resize', {'node_count': 3}).status_code == 202

    cloud.hook = change
    response = api(
        'POST',
        f'{stored}/actions/upgrade',
        {'cluster_template': 'k8s'},
        headers={'If-Match': '"c0000000-1"'},
    )

    assert response.status_code == 412
    assert count(services.db, models.Operation) == 1


@pytest.mark.parametrize('separate', [False, True], ids=['one process', 'many processes'])
def test_many_repetitions_at_the_same_time_make_one_cluster(
    any_api: Api, any_database: db.Database, monkeypatch: pytest.MonkeyPatch, separate: bool
) -> None:
    if separate:
        monkeypatch.setattr(idempotency, '_running', Blind())

    with futures.ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda _: any_api('POST', '/v1/clusters', CLUSTER, headers=KEY), range(6))
        )

    assert {answer.status_code for answer in answers} <= ({202} if separate else {202, 409})
    assert len({answer.text for answer in answers if answer.status_code == 202}) == 1
    assert count(any_database, models.Cluster) == 2
    assert count(any_database, models.Receipt) == count(any_database, models.Operation) == 1


@pytest.mark.parametrize(
    ('path', 'body', 'model'),
    [
        (
            '/v1/clustertemplates',
            {
                'name': 't',
                'coe': 'kubernetes',
                'image_id': 'ubuntu',
                'flavor_id': 'm1.small',
                'master_flavor_id': 'm1.small',
                'external_network_id': 'public',
            },
            models.ClusterTemplate,
        ),
        (f'/v1/clusters/{uuid_of(1)}/nodegroups', {'name': 'n'}, models.NodeGroup),
        (f'/v1/clusters/{uuid_of(1)}/actions/resize', {'node_count': 3}, models.Operation),
        (
            f'/v1/clusters/{uuid_of(1)}/actions/upgrade',
            {'cluster_template': 'k8s'},
            models.Operation,
        ),
    ],
)
def test_many_repetitions_in_many_processes_do_it_once(
    any_api: Api,
    any_database: db.Database,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: Any,
    model: type[models.Base],
) -> None:
    monkeypatch.setattr(idempotency, '_running', Blind())
    before = count(any_database, model)

    with futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: any_api('POST', path, body, headers=KEY), range(4)))

    assert {answer.status_code for answer in answers} in ({201}, {202})
    assert len({answer.text for answer in answers}) == 1
    assert count(any_database, model) == before + 1


def test_key_whose_request_still_runs(
    api: Api, services: Services, cloud: fakes.FakeCloud, stored: str
) -> None:
    during = []

    def repeat(name: str, when: str) -> None:
        cloud.hook = None
        during.append(api('POST', '/v1/clusters', CLUSTER, headers=KEY))

    cloud.hook = repeat
    first = api('POST', '/v1/clusters', CLUSTER, headers=KEY)
    later = api('POST', '/v1/clusters', CLUSTER, headers=KEY)

    assert during[0].status_code == 409 and 'is still being carried out' in during[0].text
    assert (first.status_code, later.status_code) == (202, 202) and first.json == later.json


def test_key_that_another_process_was_faster_with(
    api: Api,
    services: Services,
    cloud: fakes.FakeCloud,
    stored: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answer is given, as if this had come later; nothing of this request is stored."""
    monkeypatch.setattr(idempotency, '_running', Blind())
    during = []

    def repeat(name: str, when: str) -> None:
        cloud.hook = None
        during.append(api('POST', '/v1/clusters', CLUSTER, headers=KEY))

    cloud.hook = repeat
    first = api('POST', '/v1/clusters', CLUSTER, headers=KEY)

    assert (first.status_code, first.json) == (202, during[0].json)
    assert first.headers['Location'] == during[0].headers['Location']
    assert count(services.db, models.Cluster) == 2


def test_other_request_that_another_process_was_faster_with(
    api: Api, cloud: fakes.FakeCloud, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, '_running', Blind())

    def other(name: str, when: str) -> None:
        cloud.hook = None
        assert (
            api('POST', '/v1/clusters', CLUSTER | {'name': 'other'}, headers=KEY).status_code == 202
        )

    cloud.hook = other

    assert api('POST', '/v1/clusters', CLUSTER, headers=KEY).status_code == 422


# -- processes that die ----------------------------------------------------------------------------


class Died(BaseException):
    """A process that ends here."""


@pytest.mark.parametrize('path', ['/v1/clusters', f'/v1/clusters/{uuid_of(1)}/nodegroups'])
def test_death_between_commit_and_answer_loses_nothing(
    api: Api, services: Services, stored: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The nudge is the first thing behind the commit."""

    def die(_: Any, __: str) -> None:
        raise Died

    monkeypatch.setattr(Nudges, 'nudge', die)
    with pytest.raises(Died):
        api('POST', path, CLUSTER if path == '/v1/clusters' else {'name': 'n'}, headers=KEY)
    monkeypatch.undo()

    response = api('POST', path, CLUSTER if path == '/v1/clusters' else {'name': 'n'}, headers=KEY)

    assert response.status_code == 202
    operation = api('GET', response.headers['Location'].removeprefix('http://localhost')).json
    assert operation['kind'] in ('create', 'nodegroup_create')
    assert count(services.db, models.Operation) == 1
    if path != '/v1/clusters':
        assert response.json['id'] and response.json['created_at']


def test_death_before_the_commit_leaves_the_key_free(
    api: Api, services: Services, cloud: fakes.FakeCloud, stored: str
) -> None:
    def die(name: str, when: str) -> None:
        raise Died

    cloud.hook = die
    with pytest.raises(Died):
        api('POST', '/v1/clusters', CLUSTER, headers=KEY)
    cloud.hook = None

    assert count(services.db, models.Receipt) == 0
    assert api('POST', '/v1/clusters', CLUSTER, headers=KEY).status_code == 202


# -- the end of a receipt --------------------------------------------------------------------------


def age(database: db.Database, by: datetime.timedelta) -> None:
    """Have time go by for all receipts."""
    with database.write() as session:
        for receipt in session.scalars(sa.select(models.Receipt)):
            receipt.expires_at -= by


@pytest.mark.parametrize(('hours', 'clusters'), [(23.9, 2), (24.1, 3)])
def test_answer_is_kept_for_a_day(
    api: Api, services: Services, stored: str, hours: float, clusters: int
) -> None:
    first = api('POST', '/v1/clusters', CLUSTER, headers=KEY)
    age(services.db, datetime.timedelta(hours=hours))

    second = api('POST', '/v1/clusters', CLUSTER, headers=KEY)

    assert (first.status_code, second.status_code) == (202, 202)
    assert (first.json == second.json) == (clusters == 2)
    assert count(services.db, models.Cluster) == clusters


def test_answer_is_given_when_the_cluster_is_gone(
    api: Api, services: Services, stored: str
) -> None:
    first = api('POST', '/v1/clusters', CLUSTER, headers=KEY)
    with services.db.write() as session:
        session.execute(sa.delete(models.Cluster))

    assert api('POST', '/v1/clusters', CLUSTER, headers=KEY).json == first.json


def receipt(number: int, expires_at: datetime.datetime) -> models.Receipt:
    return models.Receipt(
        digest=f'{number:064}', fingerprint='f' * 64, headers={}, body=None, expires_at=expires_at
    )


def test_old_receipts_are_dropped_in_portions(any_database: db.Database) -> None:
    now = models.utcnow()
    with any_database.write() as session:
        session.add_all([receipt(n, now - datetime.timedelta(hours=1)) for n in range(25)])
        session.add_all([receipt(n, now + datetime.timedelta(hours=1)) for n in range(100, 103)])

    dropped = [db.delete_expired_receipts(any_database, limit=10) for _ in range(4)]

    assert dropped == [10, 10, 5, 0]
    assert count(any_database, models.Receipt) == 3


def test_old_receipts_are_found_by_their_index(database: db.Database) -> None:
    with counted_statements(database) as seen:
        db.delete_expired_receipts(database, limit=10)

    with database.read() as session:
        plan = session.execute(sa.text(f'EXPLAIN QUERY PLAN {seen[0].replace("?", "1")}')).all()
    assert 'INDEX ix_receipts_expires_at' in plan[0].detail


def test_conductor_drops_them_when_it_reports(
    conductor_services: task.Services, database: db.Database
) -> None:
    with database.write() as session:
        session.add(receipt(1, models.utcnow() - datetime.timedelta(seconds=1)))

    service.Conductor(conductor_services)._report()

    assert count(database, models.Receipt) == 0


# -- costs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('path', 'body'),
    [
        ('/v1/clusters', CLUSTER),
        (f'/v1/clusters/{uuid_of(1)}/nodegroups', {'name': 'n'}),
        (f'/v1/clusters/{uuid_of(1)}/actions/resize', {'node_count': 2}),
    ],
)
def test_key_costs_two_statements_and_a_repetition_one(
    api: Api, services: Services, stored: str, path: str, body: dict[str, Any]
) -> None:
    api('POST', '/v1/clusters', CLUSTER)  # the quota's row is made
    with counted_statements(services.db) as plain:
        api('POST', path, body)
    other = body | ({'name': 'm'} if 'name' in body else {})

    with counted_statements(services.db) as first:
        assert api('POST', path, other, headers=KEY).status_code == 202
    with counted_statements(services.db) as again:
        assert api('POST', path, other, headers=KEY).status_code == 202

    assert not any('receipts' in statement for statement in plain)
    assert sum('receipts' in statement for statement in first) == 2
    if 'resize' not in path:  # of a second resize there is an operation that waits
        assert len(first) == len(plain) + 2
    assert len(again) == 1


def test_if_match_costs_no_further_statement(api: Api, services: Services, stored: str) -> None:
    resize = f'{stored}/actions/resize'
    with counted_statements(services.db) as looked:
        tag = api('GET', stored).headers['ETag']
    with counted_statements(services.db) as with_tag:
        assert api('POST', resize, {'node_count': 2}, headers={'If-Match': tag}).status_code == 202
    with counted_statements(services.db) as without:
        assert api('POST', resize, {'node_count': 2}).status_code == 202

    assert len(looked) == 2
    assert len(with_tag) == len(without)


@pytest.mark.parametrize(
    ('path', 'body'),
    [
        ('/v1/clusters', CLUSTER),
        (f'/v1/clusters/{uuid_of(1)}', [{'op': 'replace', 'path': '/node_count', 'value': 3}]),
        (f'/v1/clusters/{uuid_of(1)}/nodegroups', {'name': 'n'}),
        (
            f'/v1/clusters/{uuid_of(1)}/nodegroups/default-worker',
            [{'op': 'add', 'path': '/node_labels/a', 'value': 'b'}],
        ),
        (f'/v1/clusters/{uuid_of(1)}/actions/resize', {'node_count': 3}),
        (f'/v1/clusters/{uuid_of(1)}/actions/upgrade', {'cluster_template': 'k8s'}),
    ],
)
def test_what_is_to_be_carried_out_has_an_address(
    api: Api, services: Services, stored: str, path: str, body: Any
) -> None:
    response = api('PATCH' if isinstance(body, list) else 'POST', path, body)

    assert response.status_code == 202
    with services.db.read() as session:
        operation = session.scalars(sa.select(models.Operation.uuid)).one()
    assert response.headers['Location'] == f'http://localhost/v1/operations/{operation}'
