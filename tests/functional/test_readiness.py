"""Broker, database, Keystone and Heat are away in turn, on a real cloud: readiness names which, and all recover.

Only the service under test loses them, as in `test_outages`. Nothing of it is started again meanwhile.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from functional.cloud import MARKS, Forwarder, Project, Sandbox, Say
from functional.service import Service, own_database, own_vhost, poll, start_service
from functional.test_outages import TEMPLATE, proxy_of, through

pytest_plugins = ('functional.fixtures',)
pytestmark = MARKS
#: Seconds within which readiness names what is away: the promise of the product.
NAMED_S = 10
#: Seconds for all to be well again; oslo.messaging and a busy cloud take their time.
WELL_S = 60
SECRETS = ('guest', 'root', 'secret', 'password', '127.0.0.1')


@dataclass
class Watched:
    """A service, and what can be broken for it."""

    service: Service
    links: dict[str, Forwarder]

    def ready(self) -> dict[str, Any]:
        """What readiness says now, with the status."""
        answer = requests.get(f'{self.service.url}/healthcheck/ready', timeout=NAMED_S)
        assert answer.status_code == (200 if answer.json()['ready'] else 503)
        assert not [word for word in SECRETS if word in answer.text], answer.text
        return dict(answer.json())


@pytest.fixture(scope='module')
def watched(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One API and one conductor."""
    folder = tmp_path_factory.mktemp('service')
    with contextlib.ExitStack() as undo:
        heat, keystone = proxy_of(sandbox, 'orchestration'), proxy_of(sandbox, 'identity')
        undo.callback(heat.close)
        undo.callback(keystone.close)
        region = undo.enter_context(sandbox.region({'orchestration': heat.url, 'identity': keystone.url}))
        database, database_url = through(undo.enter_context(own_database(folder)))
        broker, broker_url = through(undo.enter_context(own_vhost()))
        identity = {'auth_url': keystone.url, 'region_name': region}
        service = start_service(
            sandbox.cloud_name, folder, database_url=database_url, transport_url=broker_url, extra={
                'conductor': {'tick': 2, 'watch_interval': 1.5, 'retry_interval': 1},
                'drivers': {'path': pathlib.Path(__file__).with_name('drivers')},
                'keystone_auth': identity, 'keystone_authtoken': identity | {'interface': 'public'}})
        undo.callback(service.stop)
        yield Watched(service, {'broker': broker, 'database': database, 'keystone': keystone.connections,
                                'heat': heat.connections})


def timed(look: Callable[[], Any], timeout_s: float, what: Callable[[], str]) -> float:
    """Seconds until a look brings something true."""
    begun = time.monotonic()
    poll(look, timeout_s, what, every_s=0.2)
    return time.monotonic() - begun


@pytest.mark.parametrize('how', ['down', 'hang'])
@pytest.mark.parametrize('name', ['broker', 'database', 'keystone', 'heat'])
def test_what_is_away_is_named_and_liveness_stays(watched: Watched, name: str, how: str, say: Say) -> None:
    timed(lambda: watched.ready()['ready'], WELL_S, lambda: f'all is well: {watched.ready()}')

    getattr(watched.links[name], how)()
    try:
        named_s = timed(lambda: name in watched.ready()['down'], NAMED_S, lambda: f'{name}: {watched.ready()}')
        # A cloud that is busy may take longer than it is given, but not for long.
        timed(lambda: watched.ready()['down'] == [name], WELL_S, lambda: f'nothing but {name}: {watched.ready()}')
        begun = time.monotonic()
        alive = requests.get(f'{watched.service.url}/healthcheck', timeout=NAMED_S)
        alive_s = time.monotonic() - begun
    finally:
        watched.links[name].up()
    well_s = timed(lambda: watched.ready()['ready'], WELL_S, lambda: f'all is well again: {watched.ready()}')

    say(f'{name} {how}: named after {named_s:.1f} s, liveness in {alive_s * 1000:.0f} ms, well after {well_s:.1f} s')
    assert (alive.status_code, alive.text) == (200, 'OK')


def test_after_all_this_a_cluster_is_made_by_the_same_processes(watched: Watched, project: Project) -> None:
    service, headers = watched.service, project.headers
    _, template = service.request('POST', '/v1/clustertemplates', TEMPLATE, headers=headers)
    status, body = service.request('POST', '/v1/clusters', {
        'name': 'fn-after', 'cluster_template_id': template['uuid'], 'node_count': 1}, headers=headers)
    assert status == 202, body

    service.wait(body['uuid'], 'CREATE_COMPLETE', headers=headers)
    service.request('DELETE', f'/v1/clusters/{body["uuid"]}', headers=headers)
    service.wait(body['uuid'], 'GONE', headers=headers)

    assert service.past == []
