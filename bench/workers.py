#!/usr/bin/env python3
"""What many workers cost Heat: resources, seconds, and CPU of its engine, for a create and a resize
by one.

    bench/workers.py [--workers 50] [--resizes 1] [--then TREE] [--wave N] [--engine-pid-file FILE]

Needs a cloud as tests/functional do (OS_CLOUD), whose engine runs on this machine. The nodes are
played by `testcloud/cloud/signal`, whose questions are among the engine's work.
`--then`: conductors of another tree of this project resize the cluster once more, as if the service
had been upgraded. Everything that was made is removed."""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'tests'))

from functional.cloud import SIGNAL, Cluster, Project, Sandbox, ask
from functional.service import Service, poll, start_service

LONG_S = 3600


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process and its children have used."""
    total, children = 0, [pid]
    while children:
        one = children.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = pathlib.Path(f'/proc/{one}/stat').read_text().rpartition(')')[2].split()
            total += int(fields[11]) + int(fields[12])
            for task in pathlib.Path(f'/proc/{one}/task').iterdir():
                children += [int(child) for child in (task / 'children').read_text().split()]
    return total / os.sysconf('SC_CLK_TCK')


def resources(cluster: Cluster) -> list[dict[str, Any]]:
    """Return all resources of the cluster's stack, nested stacks included."""
    answer = cluster.project.cloud.orchestration.get(
        f'/stacks/{cluster.stack_id()}/resources?nested_depth=5'
    )
    return list(answer.json()['resources'])


@contextlib.contextmanager
def timed(what: str, engine: int) -> Iterator[None]:
    """Print how long a block takes, and what the engine works for it."""
    began, work = time.monotonic(), cpu_s(engine)
    yield
    print(
        f'{what}: {time.monotonic() - began:.0f} s, engine {cpu_s(engine) - work:.1f} s of CPU',
        flush=True,
    )


def done(cluster: Cluster, count: int) -> None:
    """Signal for new nodes until the cluster has `count` workers and no operation is running."""
    environ = {**os.environ, 'OS_CLIENT_CONFIG_FILE': str(cluster.project.sandbox.clouds_file)}

    def is_done() -> bool:
        subprocess.run(
            [str(SIGNAL), cluster.stack_id(), '--cloud', cluster.project.name, '--wait', '60'],
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        shown = cluster.get()
        assert not shown['status'].endswith('_FAILED'), shown
        return bool(shown['status'].endswith('_COMPLETE') and len(shown['node_addresses']) == count)

    poll(is_done, LONG_S, f'{count} workers', every_s=1)


def updates(cluster: Cluster, before: dict[str, Any]) -> dict[str, int]:
    """Count, by type, the resources of `before` that Heat has touched since."""
    return dict(
        collections.Counter(
            f'{pathlib.PurePath(r["resource_type"]).name} {r["resource_status"]}'
            for r in resources(cluster)
            if before.get(r['physical_resource_id'], r['updated_time']) != r['updated_time']
        )
    )


def resize(cluster: Cluster, count: int, engine: int) -> None:
    """Resize the cluster, and print what that cost."""
    before = {r['physical_resource_id']: r['updated_time'] for r in resources(cluster)}
    with timed(f'resize to {count}', engine):
        status, body = cluster.service.request(
            'POST',
            f'/v1/clusters/{cluster.uuid}/actions/resize',
            {'node_count': count},
            headers=cluster.project.headers,
        )
        assert status == 202, body
        done(cluster, count)
    print(f'  of what was there before, Heat touched: {updates(cluster, before)}', flush=True)


def measure(service: Service, project: Project, args: argparse.Namespace, engine: int) -> None:
    """Make a cluster, resize it, print what that cost."""
    count = args.workers
    with timed(f'create with {count} workers', engine):
        cluster = ask(
            service,
            project,
            name='bench-workers',
            node_count=count,
            template={'floating_ip_enabled': False},
        )
        done(cluster, count)
    found = resources(cluster)
    holders = {r['links'][1]['href'] for r in found if r['resource_name'] == 'kube-minion'}
    each = 1 + sum(r['links'][1]['href'] in holders for r in found) / count
    print(
        f'  {len(found)} resources; each worker has {each:.1f}, its nested stack included',
        flush=True,
    )
    for _ in range(args.resizes):
        count += 1
        resize(cluster, count, engine)
    if args.then:
        os.environ['PYTHONPATH'] = args.then
        service.stop_conductor()
        service.start_conductor()
        print(f'with the conductors of {args.then}:', flush=True)
        for _ in range(2):
            count += 1
            resize(cluster, count, engine)
    with timed('delete', engine):
        cluster.delete()
        poll(lambda: not cluster.stacks(), LONG_S, 'its stack is gone', every_s=2)
    service.wait(cluster.uuid, 'GONE', 300, headers=project.headers)


def main() -> None:
    """Start the service, measure, stop it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workers', type=int, default=50)
    parser.add_argument('--resizes', type=int, default=1)
    parser.add_argument('--then', metavar='TREE')
    parser.add_argument('--wave', type=int, help='nodes_per_wave; the default if not given')
    parser.add_argument('--engine-pid-file', default='/opt/testcloud/run/heat-engine.pid')
    args = parser.parse_args()
    engine = int(pathlib.Path(args.engine_pid_file).read_text().split()[0])
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sandbox = Sandbox(os.environ['OS_CLOUD'], folder)
        extra = {} if args.wave is None else {'cluster_heat': {'nodes_per_wave': args.wave}}
        service = start_service(os.environ['OS_CLOUD'], folder / 'service', extra=extra)
        try:
            with sandbox.project() as project:
                measure(service, project, args, engine)
        finally:
            service.stop()
            sandbox.close()


if __name__ == '__main__':
    main()
