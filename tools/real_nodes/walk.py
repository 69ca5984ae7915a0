"""`tools/demo --nodes`: from nothing to a container that answers, on nodes that really boot.

`run` sets up what `machine` and `installation` describe and then tells the story in acts: a cluster
template, a cluster, the engine's own client, a service that answers, one node more, a node that
dies and is replaced, and the end of it all. `stop` and `remove` undo it. Standard library only."""

import argparse
import json
import os
import re
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import machine
from calls import Api
from engines import REPLICAS, Engine, Kubernetes, Swarm
from installation import URL, Installation
from made import Made
from processes import Failed
from terminal import POLL_S, Terminal, say, wait_until

ENGINES = ('swarm', 'kubernetes')
#: A replica for each worker: where nodes publish a port themselves, there is one at most on each.
WORKERS = REPLICAS
#: Longer than the cluster's own time-out, which says more; and for what an engine does.
CREATE_S, CHANGE_S, NOTICE_S = 3900, 3900, 600
STEP = re.compile(r'^== \d{6}Z (.*)$', re.MULTILINE)


class Walk:
    """One run: where it keeps things, and what it talks to."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.made = Made(home / 'made.json')
        self.terminal = Terminal(machine.ROOT)
        self.installation = Installation(home, self.made)
        self.api = Api(URL, self._make_token)
        self._told: dict[str, str] = {}

    def _make_token(self) -> str:
        code, text = self.terminal.ask('openstack token issue -f value -c id', timeout_s=300)
        if code:
            # What it printed may be a token: it can fail, or be given up, after that.
            raise Failed(
                f'Keystone gives no token (exit code {code}). To see why: OS_CLOUD=testcloud '
                f'OS_CLIENT_CONFIG_FILE={machine.CLOUD_HOME}/clouds.yaml '
                f'{machine.CLOUD_HOME}/venv/bin/openstack token issue'
            )
        return text.split()[-1]

    def enter(self) -> None:
        """Have the commands that follow find the clients, and the cloud."""
        path = f'{self.home}/bin:{machine.CLOUD_HOME}/venv/bin:$PATH'
        self.terminal.set(
            PATH=path,
            OS_CLIENT_CONFIG_FILE=str(machine.CLOUD_HOME / 'clouds.yaml'),
            OS_CLOUD='testcloud',
        )

    # ---- waiting

    def follow(self, cluster: dict[str, Any], wanted: str, *, within_s: float) -> dict[str, Any]:
        """Print what happens, node by node, until the cluster has a final status; return it, or
        what was last seen of one that is gone. Raises Failed if it ends otherwise."""
        path, told = f'/v1/clusters/{cluster["uuid"]}', None
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            found = self.api.find(path)
            self.tell_nodes(cluster['name'])
            status = found['status'] if found else 'GONE'
            if status != told:
                say(f'cluster {cluster["name"]}: {status}')
                told = status
            if status == wanted:
                return found or cluster
            if status.endswith('_FAILED'):
                raise Failed(
                    f'The cluster {cluster["name"]} is {status}: {found.get("status_reason")} '
                    f'{json.dumps(found.get("faults") or {})}\nThe log of the conductor is '
                    f'{self.installation.conductor.log}; and testcloud/nodes/logs NODE shows more.'
                )
            time.sleep(POLL_S)
        raise Failed(
            f'The cluster {cluster["name"]} is still {told} after {within_s:.0f} s. See the log '
            f'{self.installation.conductor.log}, and testcloud/nodes/status.'
        )

    def tell_nodes(self, name: str) -> None:
        """Print each step that a node of the cluster has come to since the last look."""
        seen = set()
        for spec_file in sorted(machine.NODES_HOME.glob('nodes/*/spec.json')):
            with suppress(OSError, ValueError, KeyError):
                spec = json.loads(spec_file.read_text())
                if not spec['name'].startswith(f'{name}-'):
                    continue
                seen.add(spec['name'])
                log = spec_file.parent / 'up/var/log/magnum-lite-node.log'
                text = log.read_text(errors='replace') if log.exists() else ''
                told = self._told.get(spec['name'])
                # A node that is being removed has no log any more.
                steps = STEP.findall(text) or [told or f'boots, {spec["ip"]}']
                if told != steps[-1]:
                    say(f'node {spec["name"]}: {steps[-1]}')
                    self._told[spec['name']] = steps[-1]
        for gone in sorted(set(self._told) - seen):
            say(f'node {gone}: its server is gone')
            del self._told[gone]

    def nodes(self, cluster: dict[str, Any], role: str = 'worker') -> list[dict[str, Any]]:
        """Its nodes with a role, as magnum-lite has them."""
        found = self.api.call('GET', f'/v1/clusters/{cluster["uuid"]}/nodes')['nodes']
        return [node for node in found if node['role'] == role]

    # ---- the acts

    def begin(self, engine: Engine) -> dict[str, Any]:
        """A cluster template and a cluster, until it is complete. One of an interrupted run that is
        as it was made is gone on with."""
        run, name = self.terminal.run, machine.PREFIX + engine.name
        found = self.api.find(f'/v1/clusters/{name}')
        if found and found['status'] in ('CREATE_IN_PROGRESS', 'CREATE_COMPLETE'):
            say(f'The cluster {name} of an interrupted run is there, and is gone on with.')
        else:
            self.clear(name, found)
            run(
                f'openstack coe cluster template create {name} {engine.template} --image debian '
                '\\\n    --external-network public --flavor m1.small --master-flavor m1.small '
                '-f yaml -c uuid -c coe'
            )
            run(
                f'openstack coe cluster create {name} --cluster-template {name} '
                f'--master-count 1 --node-count {WORKERS}'
            )
        cluster = self.api.call('GET', f'/v1/clusters/{name}')
        say(f'$ curl -s {URL}/v1/clusters/{cluster["uuid"]}  # and the logs of its nodes')
        cluster = self.follow(cluster, 'CREATE_COMPLETE', within_s=CREATE_S)
        run(
            f'openstack coe cluster show {name} -f yaml -c name -c status -c coe_version '
            '-c api_address -c node_addresses'
        )
        self.count(cluster)
        return cluster

    def clear(self, name: str, cluster: dict[str, Any] | None) -> None:
        """Remove what an interrupted run has left of a cluster and its template."""
        if cluster:
            say(f'An earlier run has left the cluster {name}: it goes first.')
            if cluster['status'] != 'DELETE_IN_PROGRESS':
                self.terminal.run(f'openstack coe cluster delete {name}')
            self.follow(cluster, 'GONE', within_s=CHANGE_S)
        if self.api.find(f'/v1/clustertemplates/{name}'):
            self.terminal.run(f'openstack coe cluster template delete {name}')
        (self.home / 'user' / f'{name}.json').unlink(missing_ok=True)

    def count(self, cluster: dict[str, Any]) -> int:
        """Print what there is of the cluster in the cloud; return how many things that are."""
        name = cluster['name']
        text = self.terminal.run(
            f'python tools/real_nodes/inventory.py {name} {self.home}/user/{name}.json'
        )
        return int(re.findall(r'^all +\d+ +(\d+)$', text, re.MULTILINE)[0])

    def use(self, engine: Engine, cluster: dict[str, Any]) -> None:
        """The engine's own client: nodes, a service with three replicas, and curl through it."""
        self.link(engine)
        engine.let_in(self.terminal, self.api, cluster, self.home / 'user')
        engine.nodes(self.terminal)
        workers = self.nodes(cluster)
        engine.prepare(self.terminal, [node['name'] for node in workers])
        engine.deploy(self.terminal)
        self.settle(engine, cluster, WORKERS)

    def link(self, engine: Engine) -> None:
        """Put the client of the node image on the path."""
        folder = self.home / 'bin'
        folder.mkdir(exist_ok=True)
        link = folder / engine.client
        link.unlink(missing_ok=True)
        link.symlink_to(engine.program)

    def settle(self, engine: Engine, cluster: dict[str, Any], replicas: int) -> None:
        """Wait until so many replicas run, each on a worker of its own, and ask them."""
        workers = self.nodes(cluster)
        names = {node['name'] for node in workers}
        wait_until(
            lambda: len(engine.places(self.terminal) & names) == replicas,
            within_s=NOTICE_S,
            what=lambda: (
                f'{replicas} replicas run on {sorted(names)}: '
                f'{sorted(engine.places(self.terminal))}'
            ),
        )
        engine.show(self.terminal)
        engine.ask(self.terminal, [node['address'] for node in workers], replicas)

    def grow(self, engine: Engine, cluster: dict[str, Any]) -> None:
        """One worker more, and a replica on it."""
        name, before = cluster['name'], {node['name'] for node in self.nodes(cluster)}
        self.terminal.run(f'openstack coe cluster resize {name} {WORKERS + 1}')
        self.follow(cluster, 'UPDATE_COMPLETE', within_s=CHANGE_S)
        engine.prepare(
            self.terminal,
            [node['name'] for node in self.nodes(cluster) if node['name'] not in before],
        )
        engine.scale(self.terminal, WORKERS + 1)
        self.settle(engine, cluster, WORKERS + 1)
        self.count(cluster)

    def heal(self, engine: Engine, cluster: dict[str, Any]) -> None:
        """A worker dies: the engine and magnum-lite see it, and it is replaced."""
        name, workers = cluster['name'], self.nodes(cluster)
        victim = workers[0]
        self.terminal.run(f'testcloud/nodes/kill {victim["name"]}')
        wait_until(
            lambda: engine.knows(self.terminal, victim['name']) not in ('Ready', None),
            within_s=NOTICE_S,
            what=lambda: (
                f'the engine sees that {victim["name"]} is gone: '
                f'{engine.knows(self.terminal, victim["name"])}'
            ),
        )
        engine.nodes(self.terminal)
        path = f'/v1/clusters/{cluster["uuid"]}'
        wait_until(
            lambda: self.api.call('GET', path)['health_status'] == 'UNHEALTHY',
            within_s=NOTICE_S,
            what=lambda: (
                f'magnum-lite sees it: {self.api.call("GET", path)["health_status_reason"]}'
            ),
        )
        self.terminal.run(
            f'openstack coe cluster show {name} -f yaml -c health_status -c health_status_reason'
        )
        say(f'The same number of nodes, without that one, which has the number {victim["number"]}:')
        self.terminal.run(
            f'openstack coe cluster resize {name} {WORKERS + 1} '
            f'--nodes-to-remove {victim["number"]}'
        )
        self.follow(cluster, 'UPDATE_COMPLETE', within_s=CHANGE_S)
        old = {node['name'] for node in workers}
        new = [node['name'] for node in self.nodes(cluster) if node['name'] not in old]
        if not new or victim['name'] in {node['name'] for node in self.nodes(cluster)}:
            raise Failed(f'{victim["name"]} was not replaced: {self.nodes(cluster)}')
        engine.prepare(self.terminal, new)
        engine.forget(self.terminal, victim['name'])
        self.settle(engine, cluster, WORKERS + 1)
        engine.nodes(self.terminal)
        wait_until(
            lambda: self.api.call('GET', path)['health_status'] == 'HEALTHY',
            within_s=NOTICE_S,
            what=lambda: f'all is well: {self.api.call("GET", path)["health_status_reason"]}',
        )
        say(f'cluster {name}: HEALTHY')

    def end(self, cluster: dict[str, Any]) -> None:
        """Delete all, and show that nothing is left. Raises Failed if something is."""
        name = cluster['name']
        self.count(cluster)
        self.terminal.run(f'openstack coe cluster delete {name}')
        self.follow(cluster, 'GONE', within_s=CHANGE_S)
        self.terminal.run(f'openstack coe cluster template delete {name}')
        left = self.count(cluster)
        wait_until(
            lambda: self.terminal.ask(f'testcloud/nodes/status | grep ^{name}-')[0] == 1,
            within_s=60,
            what=lambda: self.terminal.ask('testcloud/nodes/status')[1],
        )
        self.terminal.run(f'! testcloud/nodes/status | grep ^{name}-')
        if left:
            raise Failed(f'{left} things of the cluster are left; the table above names them.')
        say('Nothing is left of the cluster: no stack, server, port, volume, user or node.')


def run(args: argparse.Namespace, home: Path) -> int:
    """Set everything up and tell the story; return the exit code. Raises Failed."""
    machine.check(args.engine)
    home.mkdir(parents=True, mode=0o700, exist_ok=True)
    walk = Walk(home)
    (home / 'user').mkdir(mode=0o700, exist_ok=True)
    say(
        f'From nothing to a container that answers, with {args.engine} on nodes that boot.\n'
        'Real: Keystone, Heat, Nova, Neutron and others; magnum-lite; systemd, '
        'cloud-init and the engine on the nodes.\n'
        'Stand-ins: nodes are containers of this machine (systemd-nspawn), not virtual machines.\n'
        f'Kept in {home}, {machine.CLOUD_HOME} and {machine.NODES_HOME}; Ctrl-C does no harm.'
    )
    machine.install_packages(walk.terminal, walk.made)
    machine.bring_up(walk.terminal, walk.made, args.engine)
    walk.installation.install_package()
    engine: Engine = Kubernetes() if args.engine == 'kubernetes' else Swarm()
    walk.enter()
    walk.installation.set_up(walk.terminal)
    walk.installation.start(walk.terminal)
    say('The control plane stands.')
    cluster = walk.begin(engine)
    walk.use(engine, cluster)
    if args.keep_cluster:
        say(f'Kept, as you said: the cluster {cluster["name"]}.')
    else:
        walk.grow(engine, cluster)
        walk.heal(engine, cluster)
        walk.end(cluster)
    show_next(walk, args)
    return 0


def show_next(walk: Walk, args: argparse.Namespace) -> None:
    """Print how to look around in what runs on, and how to end it."""
    variables = '\n'.join(
        f'export {name}={shlex.quote(value)}'
        for name, value in walk.terminal.variables.items()
        # The access to a cluster goes with it.
        if args.keep_cluster or name.startswith(('PATH', 'OS_'))
    )
    again = 'tools/demo --nodes' + ('' if args.engine == 'swarm' else f' --engine {args.engine}')
    say('Done. Cloud, nodes and magnum-lite run on. To look around:')
    print(
        f"""
cd {machine.ROOT}
{variables}
openstack coe service list
openstack coe cluster template create mine {template_options(args)} --image debian \\
    --external-network public --flavor m1.small --master-flavor m1.small
openstack coe cluster create {machine.PREFIX}mine --cluster-template mine --node-count 2
openstack coe cluster list; openstack stack list; testcloud/nodes/status
# a shell in a node
testcloud/nodes/exec NODE
# every operation of the API, as a page
curl -s {URL}/docs
# what API and conductor say
tail -F {walk.installation.home}/log/magnum-lite-*.log
# the same, but the cluster stays
{again} --keep-cluster
# stop what this demo has started, for a quick next run; or remove it, so that nothing is left
tools/demo --stop
tools/demo --down
""",
        flush=True,
    )


def template_options(args: argparse.Namespace) -> str:
    """The options of a cluster template for the engine."""
    return Kubernetes().template if args.engine == 'kubernetes' else Swarm.template


# ---- the end


def stop(home: Path, *, down: bool) -> None:
    """Stop what the demo has started; `down`: remove what it has made, but for `home`. Raises
    Failed."""
    walk = Walk(home)
    if not walk.made.entries() and not (home / 'run').exists():
        return
    path = [str(home / 'bin'), str(machine.CLOUD_HOME / 'venv' / 'bin')]
    walk.terminal.variables = {
        'PATH': ':'.join([*path, os.environ['PATH']]),
        'OS_CLIENT_CONFIG_FILE': str(machine.CLOUD_HOME / 'clouds.yaml'),
        'OS_CLOUD': 'testcloud',
    }
    remove_clusters(walk, down=down)
    walk.installation.stop()
    if down:
        walk.installation.remove(walk.terminal)
    machine.stop(walk.terminal, walk.made)
    if down:
        machine.remove(walk.terminal, walk.made)


def remove_clusters(walk: Walk, *, down: bool) -> None:
    """Delete the clusters that are left, if they cannot or must not stay: their nodes end with a
    watcher of this demo. Raises Failed."""
    if not walk.made.names('watcher') and not down:
        return
    if down and walk.made.names('cloud home'):
        return  # the cloud goes as a whole
    if not walk.installation.conf.exists() or not machine.is_cloud_up():
        return
    walk.installation.start(walk.terminal)
    for cluster in walk.api.call('GET', '/v1/clusters')['clusters']:
        say(f'deleting the cluster {cluster["name"]}')
        walk.api.call('DELETE', f'/v1/clusters/{cluster["uuid"]}')
        walk.follow(cluster, 'GONE', within_s=CHANGE_S)
