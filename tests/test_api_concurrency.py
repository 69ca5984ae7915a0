"""Requests for one cluster, or for one quota, at the same time, on every database that answers."""

from __future__ import annotations

from concurrent import futures
from typing import Any

import fakes
from conftest import Api, Nudges, make_services
from rows import TEMPLATE_UUID, rows_of, store_cluster, store_template, uuid_of, wanted

from magnum_lite import db
from magnum_lite.api import app as api_app


def test_changes_at_the_same_time_all_come_to_be(
    conf: Any, any_database: db.Database, cloud: fakes.FakeCloud, nudges: Nudges
) -> None:
    """MariaDB would show each transaction the nodegroups and nodes from before it waited for the
    lock."""
    services = make_services(conf, any_database, cloud, nudges)
    api, path = Api(api_app.make_app(services)), f'/v1/clusters/{uuid_of(1)}'
    store_template(any_database)
    store_cluster(any_database, 1)
    replace = {'node_count': 2, 'nodes_to_remove': []}
    requests = [('/nodegroups', {'name': f'g{number}'}) for number in range(4)] + [
        ('/actions/resize', {**replace, 'node_count': number}) for number in (3, 4, 5, 6)
    ]

    with futures.ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda request: api('POST', path + request[0], request[1]), requests)
        )

    assert [answer.status_code for answer in answers] == [202] * 8
    cluster, groups, kinds = rows_of(services, 1)
    assert groups.keys() == {'default-master', 'default-worker', 'g0', 'g1', 'g2', 'g3'}
    worker = groups['default-worker']
    assert len(wanted(worker)) == worker.node_count and worker.next_number == len(worker.nodes)
    assert (cluster.generation, len(kinds)) == (9, 8)


def test_one_of_two_nodegroups_with_one_name_comes_to_be(
    conf: Any, any_database: db.Database, cloud: fakes.FakeCloud, nudges: Nudges
) -> None:
    services = make_services(conf, any_database, cloud, nudges)
    api = Api(api_app.make_app(services))
    store_template(any_database)
    store_cluster(any_database, 1)

    with futures.ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(
                lambda name: api('POST', f'/v1/clusters/{uuid_of(1)}/nodegroups', {'name': name}),
                ['same', 'same', 'same ', 'Same'],
            )
        )

    assert sorted(answer.status_code for answer in answers) == [202, 202, 409, 409]


def test_200_creates_at_once_make_as_many_clusters_as_the_quota_has(
    conf: Any, any_database: db.Database, cloud: fakes.FakeCloud, nudges: Nudges
) -> None:
    services = make_services(conf, any_database, cloud, nudges)
    api = Api(api_app.make_app(services))
    store_template(any_database)

    with futures.ThreadPoolExecutor(32) as pool:
        answers = list(
            pool.map(
                lambda _: (
                    api(
                        'POST',
                        '/v1/clusters',
                        {'cluster_template_id': TEMPLATE_UUID, 'node_count': 0},
                    ).status_code
                ),
                range(200),
            )
        )

    assert conf.quotas.max_clusters_per_project == 20
    assert (answers.count(202), answers.count(403)) == (20, 180)
    assert len(db.list_clusters(any_database, db.Scope('p1'), db.Page(1000))) == 20
    assert len(nudges) == 20 and len(set(nudges)) == 20
