"""An API that is killed again and again, with SIGKILL, while clients repeat their requests until
they are answered.

Real processes, tokens, look-ups and database. No conductor works, so nothing is made in the cloud.
"""

from __future__ import annotations

import pathlib
import random
import threading
import time
from typing import Any

import requests
from functional.cloud import ON_A_CLOUD, Project, Say, Start

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD

DRIVERS = pathlib.Path(__file__).parent / 'drivers'
TEMPLATE = {
    'name': 'fn-contract',
    'coe': 'paper',
    'image_id': 'debian',
    'flavor_id': 'm1.small',
    'master_flavor_id': 'm1.small',
}
ROUNDS, CLIENTS = 4, 3
#: Seconds after the first request within which the API is killed: it has answered none, some, or
#: all by then.
LONGEST_LIFE_S = 2.0
PAUSE_S = 0.2


class Client(threading.Thread):
    """Asks for one cluster until there is an answer, as a client does that must not get two."""

    def __init__(self, url: str, token: str, number: int) -> None:
        super().__init__(daemon=True)
        self.answers: list[tuple[int, str]] = []
        self.broken = 0
        self._url, self._name = f'{url}/v1/clusters', f'c{number}'
        self._headers = {'X-Auth-Token': token, 'Idempotency-Key': f'key-{number}'}

    def ask(self) -> tuple[int, str]:
        """Send the request until it is answered, whatever that takes."""
        while True:
            try:
                answer = requests.post(
                    self._url,
                    headers=self._headers,
                    timeout=60,
                    json={'name': self._name, 'cluster_template_id': TEMPLATE['name']},
                )
            except requests.RequestException:
                self.broken += 1
            else:
                if answer.status_code < 500 and answer.status_code != 409:
                    return answer.status_code, answer.text
            time.sleep(PAUSE_S)

    def run(self) -> None:
        """Twice: the second is a repetition of what was answered."""
        self.answers = [self.ask(), self.ask()]


def test_killed_api_makes_each_cluster_once(lone: Start, project: Project, say: Say) -> None:
    service = lone(extra={'drivers': {'path': DRIVERS}})
    status, body = service.request(
        'POST', '/v1/clustertemplates', TEMPLATE, headers=project.headers
    )
    assert status == 201, body
    clients: list[Client] = []

    for _ in range(ROUNDS):
        clients += (
            new := [
                Client(service.url, project.headers['X-Auth-Token'], len(clients) + n)
                for n in range(CLIENTS)
            ]
        )
        for client in new:
            client.start()
        time.sleep(random.uniform(0.1, LONGEST_LIFE_S))
        assert service.api
        service.api.kill()
        service.start_api()
        service.wait_ready()
    for client in clients:
        client.join(300)

    rows: list[dict[str, Any]] = service.rows('SELECT uuid FROM clusters')
    assert [first[0] for first, _ in (client.answers for client in clients)] == [202] * len(clients)
    assert all(first == again for first, again in (client.answers for client in clients))
    assert len({client.answers[0][1] for client in clients}) == len(rows) == len(clients)
    say(f'{len(clients)} clusters, {sum(client.broken for client in clients)} broken connections')
