#!/usr/bin/env python3
"""How long GET /v1/clusters takes with 1,000 clusters in one page, against a page of one.

    bench/list_clusters.py [--url SQLALCHEMY-URL] [--clusters 1000] [--runs 20]

The whole application is timed, from the WSGI call to the last byte: routing, policy, SQL, JSON.
Only the token check and the network are left out. Both pages are asked for in turn in one process,
so the ratio holds on a busy machine; the absolute figures hold only for the machine that printed
them. Without --url a SQLite file is made and removed; a database that is named must exist, be
empty, and is emptied again."""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
import uuid

import webob
from oslo_config import cfg

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'tests'))

import fakes

from magnum_lite import config, db, drivers, models
from magnum_lite.api import app, policies
from magnum_lite.api.request import Services


def fill(database: db.Database, count: int) -> None:
    """Store `count` clusters of one master and three workers each."""
    models.Base.metadata.create_all(database.engine)
    labels = {f'label_{n}': f'value {n}' for n in range(8)}
    template = models.ClusterTemplate(
        uuid=str(uuid.uuid4()),
        name='t',
        project_id='p',
        user_id='u',
        coe='x',
        image_id='i',
        server_type='vm',
        cluster_distro='d',
        labels=labels,
    )
    db.create_template(database, template)
    with database.write() as session:
        for number in range(count):
            cluster = models.Cluster(
                uuid=str(uuid.uuid4()),
                name=f'c{number}',
                project_id='p',
                user_id='u',
                driver='d',
                labels=labels,
                cluster_template_id=template.uuid,
                status='CREATE_COMPLETE',
                floating_ip_enabled=True,
                master_lb_enabled=False,
                stack_id=str(uuid.uuid4()),
                stack_text={'template': 'x' * 20_000},
            )
            for role, nodes in (('master', 1), ('worker', 3)):
                cluster.nodegroups.append(
                    models.NodeGroup(
                        uuid=str(uuid.uuid4()),
                        project_id='p',
                        name=f'default-{role}',
                        role=role,
                        is_default=True,
                        node_count=nodes,
                        status='CREATE_COMPLETE',
                        labels=labels,
                        node_addresses=[f'10.0.0.{n}' for n in range(nodes)],
                    )
                )
            session.add(cluster)
            if number % 100 == 99:  # MariaDB takes statements of 16 MiB
                session.flush()


def seconds(application: app.WSGI, path: str, expected: int) -> float:
    """Return how long a request takes. Raises AssertionError for another page than expected."""
    request = webob.Request.blank(path, environ={'REMOTE_ADDR': '127.0.0.1'})
    request.headers.update({'X-Project-Id': 'p', 'X-User-Id': 'u', 'X-Roles': 'reader'})
    began = time.perf_counter()
    response = request.get_response(application)
    body = response.body
    took = time.perf_counter() - began
    assert response.status_code == 200 and len(response.json['clusters']) == expected, body[:500]
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--url', help='SQLAlchemy URL of an empty database')
    parser.add_argument('--clusters', type=int, default=1000)
    parser.add_argument('--runs', type=int, default=20)
    args = parser.parse_args()
    conf = cfg.CONF
    config.register(conf)
    conf([], project=config.PROJECT, default_config_files=[])
    conf.set_override('auth_strategy', 'noauth', group='api')
    with tempfile.TemporaryDirectory() as folder:
        database = db.Database(conf, connection=args.url or f'sqlite:///{folder}/bench.sqlite')
        try:
            fill(database, args.clusters)
            application = app.make_app(
                Services(
                    conf=conf,
                    db=database,
                    cloud=fakes.FakeCloud(),
                    drivers=drivers.load(conf),
                    nudger=None,
                    enforcer=policies.make_enforcer(conf),
                    notifier=None,
                    signer=None,
                )
            )
            pages = {
                '/v1/clusters?limit=1': 1,
                '/v1/clusters': args.clusters,
                '/v1/clusters/detail': args.clusters,
            }
            for path, expected in pages.items():
                seconds(application, path, expected)  # caches fill
            times: dict[str, list[float]] = {path: [] for path in pages}
            for _ in range(args.runs):
                for path, expected in pages.items():
                    times[path].append(seconds(application, path, expected))
        finally:
            models.Base.metadata.drop_all(database.engine)
            database.engine.dispose()
    one = statistics.median(times['/v1/clusters?limit=1'])
    print(
        f'{database.engine.dialect.name}, {args.clusters} clusters, {args.runs} runs; milliseconds'
    )
    print(f'{"":26}{"min":>8}{"median":>8}{"max":>8}   median against a page of one')
    for path, took in times.items():
        print(
            f'{path:26}{min(took) * 1000:8.1f}{statistics.median(took) * 1000:8.1f}{max(took) * 1000:8.1f}'  # noqa: E501
            f'   {statistics.median(took) / one:6.1f}'
        )


if __name__ == '__main__':
    main()
