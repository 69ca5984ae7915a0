"""How many SQL statements a request costs, at any length of its answer."""

from __future__ import annotations

import uuid

import fakes
import pytest
from conftest import Api, Nudges, counted_statements
from rows import store_cluster, store_operation, store_template, uuid_of

from magnum_lite import db, models, states
from magnum_lite.api import app as api_app
from magnum_lite.api.request import Services

# -- what a listing costs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('path', 'most'), [('/v1/clusters', 2), ('/v1/clusters/detail', 2), ('/v1/clustertemplates', 1)]
)
def test_listing_sends_the_same_statements_for_one_and_for_fifty(
    services: Services, nudges: Nudges, cloud: fakes.FakeCloud, path: str, most: int
) -> None:
    api = Api(api_app.make_app(services))  # not watched, for that reads the database
    plural = path.split('/')[2]
    store_template(services.db)
    store_cluster(services.db, 1)
    with counted_statements(services.db) as for_one:
        assert len(api('GET', path).json[plural]) == 1
    for number in range(2, 51):
        if plural == 'clusters':
            store_cluster(services.db, number)
        else:
            store_template(services.db, uuid=uuid_of(number))

    with counted_statements(services.db) as for_fifty:
        assert len(api('GET', path).json[plural]) == 50
    with counted_statements(services.db) as for_ten:
        assert len(api('GET', f'{path}?limit=10').json[plural]) == 10

    assert 1 <= len(for_one) == len(for_fifty) == len(for_ten) <= most
    assert nudges == [] and cloud.calls == []


def test_one_cluster_costs_two_statements(services: Services) -> None:
    api = Api(api_app.make_app(services))
    store_template(services.db)
    store_cluster(services.db, 1)

    with counted_statements(services.db) as seen:
        api('GET', '/v1/clusters/c1')

    assert len(seen) == 2


# -- what a change leaves in the database ----------------------------------------------------------


@pytest.mark.parametrize('path', ['nodegroups', 'nodes', 'operations'])
def test_listing_of_a_cluster_sends_two_statements_at_any_length(
    services: Services, path: str
) -> None:
    api = Api(api_app.make_app(services))
    store_template(services.db)
    store_cluster(services.db, 1)
    for number in range(2, 12):
        store_operation(services.db, 1, number, 'resize', ended=False)
        with services.db.write() as session:
            session.add(
                models.NodeGroup(
                    uuid=str(uuid.uuid4()),
                    project_id='p1',
                    cluster_id=uuid_of(1),
                    name=f'g{number}',
                    role='worker',
                    node_count=0,
                    next_number=0,
                    labels={},
                    status=states.CREATE_COMPLETE,
                )
            )

    with counted_statements(services.db) as seen:
        assert len(api('GET', f'/v1/clusters/c1/{path}').json[path]) >= 3

    assert len(seen) == 2


@pytest.mark.parametrize('path', ['quotas?all_tenants=true', 'mservices', 'stats'])
def test_listing_of_operators_is_one_statement_at_any_length(services: Services, path: str) -> None:
    api = Api(api_app.make_app(services))
    for number in range(12):
        db.report_service(services.db, f'c{number}', 'magnum-conductor')
        db.create_quota(
            services.db,
            models.Quota(project_id=f'p{number}', resource=db.CLUSTER_RESOURCE, hard_limit=1),
        )

    with counted_statements(services.db) as seen:
        body = api('GET', f'/v1/{path}', roles='admin').json

    assert len(seen) == 1
    assert (
        body == {'clusters': 0, 'nodes': 0}
        if path == 'stats'
        else len(body[path.partition('?')[0]]) == 12
    )
