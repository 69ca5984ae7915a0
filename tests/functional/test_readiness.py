"""Broker, database, Keystone and Heat are away in turn, on a real cloud: readiness names which, and
all recover.

Only the service under test loses them, as in `test_outages`. Nothing of it is started again
meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from functional.broken import Broken, breakable
from functional.cloud import ON_A_CLOUD, PAPER_TEMPLATE, Forwarder, Project, Sandbox, Say
from functional.service import Service, poll

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD
#: Seconds within which readiness names what is away: the promise of the product.
NAMED_S = 10
#: Seconds for all to be well again; oslo.messaging and a busy cloud take their time.
WELL_S = 60
SECRETS = ('guest', 'root', 'secret', 'password', '127.0.0.1')


@pytest.fixture(scope='module')
def broken(
    sandbox: Sandbox, running: list[Service], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broken]:
    """One API and one conductor."""
    with breakable(
        sandbox,
        running,
        tmp_path_factory.mktemp('service'),
        {'conductor': {'tick': 2, 'watch_interval': 1.5, 'retry_interval': 1}},
    ) as made:
        yield made


@pytest.fixture
def links(broken: Broken) -> dict[str, Forwarder]:
    """What can be broken, by the names that readiness has for it."""
    return {
        'broker': broken.broker,
        'database': broken.database,
        'keystone': broken.keystone.connections,
        'heat': broken.heat.connections,
    }


def ready(broken: Broken) -> dict[str, Any]:
    """What readiness says now, with the status."""
    answer = requests.get(f'{broken.service.url}/healthcheck/ready', timeout=NAMED_S)
    assert answer.status_code == (200 if answer.json()['ready'] else 503)
    assert not [word for word in SECRETS if word in answer.text], answer.text
    return dict(answer.json())


def timed(look: Callable[[], Any], timeout_s: float, what: Callable[[], str]) -> float:
    """Seconds until a look brings something true."""
    begun = time.monotonic()
    poll(look, timeout_s, what, every_s=0.2)
    return time.monotonic() - begun


@pytest.mark.parametrize('how', ['down', 'hang'])
@pytest.mark.parametrize('name', ['broker', 'database', 'keystone', 'heat'])
def test_what_is_away_is_named_and_liveness_stays(
    broken: Broken, links: dict[str, Forwarder], name: str, how: str, say: Say
) -> None:
    timed(lambda: ready(broken)['ready'], WELL_S, lambda: f'all is well: {ready(broken)}')

    getattr(links[name], how)()
    try:
        named_s = timed(
            lambda: name in ready(broken)['down'], NAMED_S, lambda: f'{name}: {ready(broken)}'
        )
        # A cloud that is busy may take longer than it is given, but not for long.
        timed(
            lambda: ready(broken)['down'] == [name],
            WELL_S,
            lambda: f'nothing but {name}: {ready(broken)}',
        )
        begun = time.monotonic()
        alive = requests.get(f'{broken.service.url}/healthcheck', timeout=NAMED_S)
        alive_s = time.monotonic() - begun
    finally:
        links[name].up()
    well_s = timed(
        lambda: ready(broken)['ready'], WELL_S, lambda: f'all is well again: {ready(broken)}'
    )

    say(
        f'{name} {how}: named after {named_s:.1f} s, liveness in {alive_s * 1000:.0f} ms, well '
        f'after {well_s:.1f} s'
    )
    assert (alive.status_code, alive.text) == (200, 'OK')


def test_after_all_this_a_cluster_is_made_by_the_same_processes(
    broken: Broken, project: Project
) -> None:
    service, headers = broken.service, project.headers
    _, template = service.request('POST', '/v1/clustertemplates', PAPER_TEMPLATE, headers=headers)
    status, body = service.request(
        'POST',
        '/v1/clusters',
        {'name': 'fn-after', 'cluster_template_id': template['uuid'], 'node_count': 1},
        headers=headers,
    )
    assert status == 202, body

    service.wait(body['uuid'], 'CREATE_COMPLETE', headers=headers)
    service.request('DELETE', f'/v1/clusters/{body["uuid"]}', headers=headers)
    service.wait(body['uuid'], 'GONE', headers=headers)

    assert service.past == []
