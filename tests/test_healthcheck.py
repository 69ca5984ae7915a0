"""Liveness and readiness: what they say, how long they take, and that they tell nobody what is none
of his business."""

from __future__ import annotations

import io
import json
import logging
import pathlib
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import Api
from oslo_config import cfg
from oslo_log import formatters

from magnum_lite import clients, db, models
from magnum_lite.api import app as api_app
from magnum_lite.api import healthcheck
from magnum_lite.api.request import Services

SECRET = 'mysql+pymysql://magnum:very-secret@10.1.2.3/magnum'


def test_liveness_asks_nobody_and_needs_no_token(services: Services) -> None:

    def never() -> None:
        raise AssertionError('liveness asks nobody')

    application = healthcheck.Healthcheck(services.conf, healthcheck.Readiness({'database': never}))

    response = Api(application)('GET', '/healthcheck', version=None)

    assert (response.status_code, response.text) == (200, 'OK')


def test_liveness_is_found_below_a_mount_point(api: Api) -> None:
    response = api('GET', '/healthcheck/', headers={})

    assert (response.status_code, response.text) == (200, 'OK')
    mounted: list[str] = []
    list(
        api.application(
            {
                'REQUEST_METHOD': 'GET',
                'SCRIPT_NAME': '/container-infra',
                'PATH_INFO': '/healthcheck',
                'SERVER_NAME': 'x',
                'SERVER_PORT': '80',
                'wsgi.url_scheme': 'http',
                'REMOTE_ADDR': '127.0.0.1',
            },
            lambda status, headers: mounted.append(status),
        )
    )
    assert mounted == ['200 OK']


def test_an_operator_takes_a_process_out_of_the_balancer_with_a_file(
    services: Services, tmp_path: pathlib.Path
) -> None:
    api_app.make_app(services)
    services.conf.set_override('disable_by_file_path', str(tmp_path / 'drain'), 'healthcheck')
    api = Api(api_app.make_app(services))
    before = api('GET', '/healthcheck').status_code

    (tmp_path / 'drain').touch()
    response = api('GET', '/healthcheck')

    assert before == 200
    assert (response.status_code, response.text) == (503, 'DISABLED BY FILE')


def test_readiness_says_that_all_is_there(api: Api) -> None:
    response = api('GET', '/healthcheck/ready', version=None)

    assert response.status_code == 200
    assert response.json == {
        'ready': True,
        'down': [],
        'oldest_due_s': 0.0,
        'checks': {
            'database': 'ok',
            'broker': 'ok',
            'keystone': 'ok',
            'heat': 'ok',
            'policy': 'ok',
        },
    }
    assert api('POST', '/healthcheck/ready').status_code == 405


def test_readiness_names_what_is_down_and_not_why(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(name: str, when: str) -> None:
        if name == 'check_orchestration':
            raise clients.Unreachable(f'no answer of {SECRET}')

    services.cloud.hook = away  # type: ignore[attr-defined]

    response = Api(api_app.make_app(services))('GET', '/healthcheck/ready')

    assert response.status_code == 503
    assert response.json['down'] == ['heat']
    assert response.json['checks']['heat'] == 'it fails, and the log says why'
    assert 'secret' not in response.text and '10.1.2.3' not in response.text


def test_a_check_that_hangs_is_named_and_costs_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, 'TIMEOUT_S', 0.05)
    monkeypatch.setattr(healthcheck, 'CACHE_S', 0)
    free, begun = threading.Event(), []

    def hang() -> None:
        begun.append(1)
        free.wait(20)

    readiness = healthcheck.Readiness({'broker': hang})

    said = [readiness.get_report() for _ in range(3)]

    assert len(begun) == 1
    assert [report['down'] for report in said] == [['broker']] * 3
    assert 'no answer within' in said[0]['checks']['broker']
    free.set()
    readiness._pool.shutdown(wait=True)


def test_an_answer_is_good_for_some_seconds_and_then_asked_for_anew() -> None:
    now, asked = [100.0], []
    readiness = healthcheck.Readiness({'broker': lambda: asked.append(1)}, clock=lambda: now[0])

    for _ in range(50):
        readiness.get_report()
    now[0] += healthcheck.CACHE_S + 0.1
    readiness.get_report()

    assert len(asked) == 2


def test_a_row_that_nobody_works_on_is_told_with_its_age(
    api: Api, cluster: str, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.write() as session:
        session.execute(sa.update(models.Cluster).values(check_at=db.now(-1000)))

    response = api('GET', '/healthcheck/ready')

    assert response.status_code == 503
    assert response.json['down'] == ['conductor']
    assert 990 < response.json['oldest_due_s'] < 1100


@pytest.mark.parametrize(
    ('url', 'expected'),
    [
        ('sqlite:////tmp/x.sqlite', 'sqlite:////tmp/x.sqlite'),
        (
            'mysql+pymysql://u:p@h/d?charset=utf8',
            'mysql+pymysql://u:p@h/d?charset=utf8&connect_timeout=4&read_timeout=4&write_timeout=4',
        ),
        (
            'postgresql+psycopg2://u:p@h/d',
            'postgresql+psycopg2://u:p@h/d?connect_timeout=4&'
            'options=-c+statement_timeout%3D4000&tcp_user_timeout=4000',
        ),
    ],
)
def test_the_look_at_the_database_has_a_limit(url: str, expected: str) -> None:
    assert db.add_timeouts(url, 4) == expected


def test_the_look_at_any_database_works(any_database: db.Database, conf: cfg.ConfigOpts) -> None:
    limited = db.Database(conf, connection=db.add_timeouts(any_database.url, 4))

    assert min(db.get_due_in_s(limited)) == float('inf')
    limited.engine.dispose()


def test_log_lines_bear_request_cluster_and_operation(api: Api, template: dict[str, Any]) -> None:
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(formatters.JSONFormatter())
    logger = logging.getLogger('magnum_lite.api.changes')
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    response = api('POST', '/v1/clusters', {'name': 'c', 'cluster_template_id': template['uuid']})
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)

    [line] = map(json.loads, lines.getvalue().splitlines())
    assert line['context']['cluster_uuid'] == response.json['uuid']
    assert line['context']['operation_id'] == response.headers['Location'].rpartition('/')[2]
    assert line['context']['request_id'] == response.headers['x-openstack-request-id']
