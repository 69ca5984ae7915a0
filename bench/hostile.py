#!/usr/bin/env python3
"""What hostile requests cost against a plain GET: time to the answer, and memory that the process
gains by it.

    bench/hostile.py [--runs 20]

Each is sent over loopback to the server that `magnum-lite api` starts, in a process of its own, in
turn with a plain `GET /v1/clusters/{uuid}`; so the ratio holds on a busy machine, and the
milliseconds only where they were printed. The promise is an answer of 4xx in under 50 ms on an idle
machine, and memory that stays flat however often it is sent. The token check is left out. Memory is
the peak of the server's resident set, in KiB that a round of each request adds."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import pathlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'tests'))

MIB = 1024 * 1024
WARM, ROUNDS = 3, 10


@dataclass(frozen=True)
class Hostile:
    """A request. `chunked`: its body is sent without a length."""

    name: str
    body: bytes
    method: str = 'POST'
    path: str = '/v1/clusters'
    chunked: bool = False


def patch(value: object, *, times: int = 1, path: str = '/health_status_reason') -> bytes:
    return json.dumps([{'op': 'replace', 'path': path, 'value': value}] * times).encode()


def cases(item: str) -> list[Hostile]:
    """The requests; `item` is the address of a cluster."""
    cluster, labels = (
        b'{"cluster_template_id":"t","labels":',
        b','.join(b'"%x":1' % n for n in range(100_000)),
    )
    return [
        Hostile('JSON nested 26 deep', b'{"a":' * 25 + b'1' + b'}' * 25),
        Hostile('JSON nested 100,000 deep', b'[' * 100_000),
        Hostile('body over 1 MiB', b' ' * (MIB + 1)),
        Hostile('body over 1 MiB, no length', b' ' * (MIB + 1), chunked=True),
        Hostile('body of 64 MiB, no length', b' ' * 64 * MIB, chunked=True),
        Hostile('1 MiB of [', b'[' * MIB),
        Hostile('1 MiB of digits', b'1' * MIB),
        Hostile('1 MiB of numbers', b'[' + b'1,' * (MIB // 2 - 2) + b'1]'),
        Hostile('1 MiB of lists', b'[' + b'[],' * (MIB // 3 - 1) + b'1]'),
        Hostile('a name of 1 MiB', json.dumps({'name': 'a' * (MIB - 100)}).encode()),
        Hostile(
            'a name of 1 MiB, not ASCII',
            '{"name": "%s"}'.__mod__('\u00e4' * (MIB // 2 - 100)).encode(),
        ),
        Hostile('1 MiB of objects', b'[' + b'{},' * (MIB // 3 - 1) + b'{}]'),
        Hostile(
            '10,000 patch operations', patch(3, times=10_000, path='/node_count'), 'PATCH', item
        ),
        Hostile('a patch with a deep list', patch(json.loads('[' * 20 + ']' * 20)), 'PATCH', item),
        Hostile('a patch with a deep text', patch('{"a":' * 5000), 'PATCH', item),
        Hostile('a patch with a text of 128 KiB', patch('[' + '1,' * 65_000 + ']'), 'PATCH', item),
        Hostile('a patch with a long literal', patch('[' + '1,' * 19_000 + ']'), 'PATCH', item),
        Hostile('half a surrogate pair', b'{"cluster_template_id": "\\ud800"}'),
        Hostile('NaN', b'{"cluster_template_id": "t", "node_count": NaN}'),
        Hostile(
            'an integer of 4,000 digits',
            b'{"cluster_template_id": "t", "node_count": %s}' % (b'9' * 4000),
        ),
        Hostile('a name twice', b'{"name": "a", "name": "b"}'),
        Hostile('100,000 labels', cluster + b'{' + labels + b'}}'),
        Hostile('100,000 attributes', b'{' + labels + b'}'),
        Hostile('invalid UTF-8', b'{"cluster_template_id": "\xff"}'),
        Hostile('1 MiB of invalid UTF-8', b'"' + b'\xff' * (MIB - 2) + b'"'),
    ]


def serve(folder: str, port: int, ready: multiprocessing.synchronize.Event) -> None:
    """The server, with one cluster."""
    import fakes
    from cheroot import wsgi
    from conftest import Nudges
    from rows import store_cluster, store_template

    from magnum_lite import config, db, drivers, models, notify
    from magnum_lite.api import app, policies
    from magnum_lite.api.request import Services

    config.register(config.CONF)
    conf = config.CONF
    conf([], project=config.PROJECT, default_config_files=[])
    conf.set_override('auth_strategy', 'noauth', group='api')
    database = db.Database(conf, connection=f'sqlite:///{folder}/hostile.sqlite')
    models.Base.metadata.create_all(database.engine)
    store_template(database)
    store_cluster(database, 1)
    services = Services(
        conf=conf,
        db=database,
        cloud=fakes.FakeCloud(),
        drivers=drivers.load(conf),
        nudger=Nudges(),
        notifier=notify.Notifier(conf),
        enforcer=policies.make_enforcer(conf),
        signer=None,
    )
    server = wsgi.Server(('127.0.0.1', port), app.make_app(services), numthreads=4)
    server.prepare()
    ready.set()
    server.serve()


def chunks(body: bytes) -> Iterator[bytes]:
    for begin in range(0, len(body), 64 * 1024):
        yield body[begin : begin + 64 * 1024]


def ask(
    port: int, method: str, path: str, body: bytes | None = None, *, chunked: bool = False
) -> tuple[int, float]:
    """Return the status, and the seconds until the response was read. A server may reject the body
    and close the connection while it is still being sent."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    headers = {
        'X-Project-Id': 'p1',
        'X-User-Id': 'u',
        'X-Roles': 'member',
        'Content-Type': 'application/json',
    }
    began = time.perf_counter()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(
            method,
            path,
            chunks(body) if chunked and body else body,
            headers,
            encode_chunked=chunked,
        )
    response = connection.getresponse()
    response.read()
    took = time.perf_counter() - began
    connection.close()
    return response.status, took


def peak_kib(pid: int) -> int:
    """Return the largest resident set that a process has had."""
    text = pathlib.Path(f'/proc/{pid}/status').read_text()
    return int(text.split('VmHWM:')[1].split()[0])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', type=int, default=20)
    args = parser.parse_args()
    from rows import uuid_of

    item = f'/v1/clusters/{uuid_of(1)}'
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context('spawn')
    ready = context.Event()
    with tempfile.TemporaryDirectory() as folder:
        server = context.Process(target=serve, args=(folder, port, ready), daemon=True)
        server.start()
        try:
            if not ready.wait(60):
                return 1
            return measure(port, item, server.pid or 0, args.runs)
        finally:
            server.terminate()
            server.join()


def measure(port: int, item: str, pid: int, runs: int) -> int:
    """Print a line for each request. Returns 1 if one is not answered with 4xx."""
    for _ in range(WARM):
        ask(port, 'GET', item)
    wrong = 0
    print(
        f'{"":32}{"status":>7}{"ms":>8}{"x GET":>8}{"KiB":>9}{"KiB":>9}   median of {runs}; peak '
        f'gained by the first {ROUNDS} and the next {ROUNDS}'
    )
    for case in cases(item):
        hostile, plain, statuses = [], [], set()
        begun = peak_kib(pid)
        gained = []
        for number in range(max(runs, 2 * ROUNDS)):
            plain.append(ask(port, 'GET', item)[1])
            status, took = ask(port, case.method, case.path, case.body, chunked=case.chunked)
            statuses.add(status)
            hostile.append(took)
            if number + 1 in (ROUNDS, 2 * ROUNDS):
                gained.append(peak_kib(pid) - begun)
        wrong += any(not 400 <= status < 500 for status in statuses)
        one, other = statistics.median(plain), statistics.median(hostile)
        print(
            f'{case.name:32}{"/".join(map(str, sorted(statuses))):>7}{other * 1000:8.1f}{other / one:8.1f}'  # noqa: E501
            f'{gained[0]:9}{gained[1] - gained[0]:9}'
        )
    return min(wrong, 1)


if __name__ == '__main__':
    sys.exit(main())
