"""What differs between the engines of the demo: the cluster template, how a user gets in, and the
engine's own client. Standard library only.

The clients are those of the node image, /usr/bin/docker of its Debian package and the kubectl that
was built with Kubernetes: nothing more is installed on this machine, and client and engine are of
one release. There is no registry that nodes reach, so they make the image of the service of a file
that the node image has."""

import json
import re
import shlex
from pathlib import Path
from typing import Any, Protocol

from calls import Api
from machine import LAYER, NODES_HOME
from processes import Failed
from terminal import Terminal, say, wait_until

#: At most one replica of the service runs on a worker, where it can be asked for at this port.
PORT = 30080
REPLICAS = 3
#: What a replica answers: the name of its container, which differs from one to the next.
SERVE = 'mkdir -p /www; hostname >/www/index.html; exec busybox httpd -f -p {port} -h /www'
IMAGE = 'demo:busybox'
READY_S = 600


class Engine(Protocol):
    """One engine in the story that `walk` tells."""

    name: str
    client: str
    #: Options of the cluster template.
    template: str
    #: The client, in the node image or its layer.
    program: Path

    def let_in(self, terminal: Terminal, api: Api, cluster: dict[str, Any], folder: Path) -> None:
        """Get the access of a user to the cluster from magnum-lite, and print the first answer."""

    def nodes(self, terminal: Terminal) -> None:
        """Print the nodes as the engine knows them."""

    def prepare(self, terminal: Terminal, nodes: list[str]) -> None:
        """Bring the image of the service to these nodes, where they do not have it."""

    def deploy(self, terminal: Terminal) -> None:
        """Ask for the service with three replicas."""

    def scale(self, terminal: Terminal, replicas: int) -> None:
        """Ask for another number of replicas."""

    def places(self, terminal: Terminal) -> set[str]:
        """The nodes on which a replica runs."""

    def show(self, terminal: Terminal) -> None:
        """Print where the replicas run."""

    def knows(self, terminal: Terminal, node: str) -> str | None:
        """How the engine says that a node is: `ready` or its own word; None if it is not known."""

    def forget(self, terminal: Terminal, node: str) -> None:
        """Have the engine forget a node that was removed."""

    def ask(self, terminal: Terminal, addresses: list[str], replicas: int) -> None:
        """Ask the service with curl until every replica has answered."""


class Swarm:
    """Docker Swarm, with the certificate that the stock client fetches."""

    name = 'swarm'
    client = 'docker'
    template = '--coe swarm-mode'

    def __init__(self) -> None:
        self.program = NODES_HOME / 'image/rootfs/usr/bin/docker'

    def let_in(self, terminal: Terminal, api: Api, cluster: dict[str, Any], folder: Path) -> None:
        text = terminal.run(
            f'openstack coe cluster config {cluster["name"]} --dir {folder} --output-certs --force'
        )
        exports = dict(re.findall(r'^export (DOCKER_\w+)=(.*)$', text, re.MULTILINE))
        if 'DOCKER_HOST' not in exports:
            raise Failed(f'The stock client did not say how to get in: {text}')
        terminal.set(**exports)
        terminal.run(
            "docker version --format 'client {{.Client.Version}}, server {{.Server.Version}}'"
        )

    def nodes(self, terminal: Terminal) -> None:
        terminal.run(
            "docker node ls --format 'table {{.Hostname}}\\t{{.Status}}\\t{{.Availability}}"
            "\\t{{.ManagerStatus}}'"
        )

    def prepare(self, terminal: Terminal, nodes: list[str]) -> None:
        terminal.run(
            f'for node in {" ".join(nodes)}; do\n'
            '    testcloud/nodes/exec $node -- docker import -c \'CMD ["sh"]\' '
            f'/opt/images/busybox-rootfs.tar {IMAGE} >/dev/null || exit\n'
            'done'
        )

    def deploy(self, terminal: Terminal) -> None:
        if terminal.ask('docker service inspect web')[0] == 0:
            say('The service is there already.')
            return
        # By the nodes that run it: the routing mesh needs IPVS, which not every kernel has.
        terminal.run(
            'docker network create --driver overlay demo && \\\n'
            f'docker service create --detach --name web --replicas {REPLICAS} --no-resolve-image '
            '--network demo \\\n'
            '    --constraint engine.labels.magnum.openstack.org.role==worker '
            '--endpoint-mode dnsrr \\\n'
            f'    --publish mode=host,target=80,published={PORT} {IMAGE} \\\n'
            f'    sh -c {shlex.quote(SERVE.format(port=80))}'
        )

    def scale(self, terminal: Terminal, replicas: int) -> None:
        terminal.run(f'docker service scale --detach web={replicas}')

    def places(self, terminal: Terminal) -> set[str]:
        words = "--filter desired-state=running --format '{{.Node}} {{.CurrentState}}'"
        code, text = terminal.ask(f'docker service ps web {words}')
        rows = [line.split() for line in text.splitlines()] if code == 0 else []
        return {row[0] for row in rows if row[1:2] == ['Running']}

    def show(self, terminal: Terminal) -> None:
        terminal.run(
            'docker service ps web --filter desired-state=running '
            "--format 'table {{.Name}}\\t{{.Node}}\\t{{.CurrentState}}'"
        )

    def knows(self, terminal: Terminal, node: str) -> str | None:
        _, text = terminal.ask("docker node ls --format '{{.Hostname}} {{.Status}}'")
        return dict(line.split()[:2] for line in text.splitlines() if ' ' in line).get(node)

    def forget(self, terminal: Terminal, node: str) -> None:
        # Managers do that by themselves, some time after its server has gone.
        pass

    def ask(self, terminal: Terminal, addresses: list[str], replicas: int) -> None:
        asked = ' '.join(f'http://{address}:{PORT}/' for address in addresses)
        line = f'curl -sS --max-time 10 {asked}'
        wait_until(
            lambda: len(set(terminal.ask(line)[1].split())) == replicas,
            within_s=READY_S,
            what=lambda: f'{replicas} replicas answer: {terminal.ask(line)[1]}',
        )
        terminal.run(line)


class Kubernetes:
    """Kubernetes, with the kubeconfig that magnum-lite gives for some hours."""

    name = 'kubernetes'
    client = 'kubectl'

    def __init__(self) -> None:
        version = (LAYER / 'opt/k8s/VERSION').read_text().strip()
        self.program = LAYER / 'usr/bin/kubectl'
        self.template = (
            f'--coe kubernetes --labels kube_tag={version},flannel_network_cidr=10.244.0.0/16,'
            'network_manifest_url=file:///opt/k8s/podnet.yaml'
        )

    def let_in(self, terminal: Terminal, api: Api, cluster: dict[str, Any], folder: Path) -> None:
        answer = api.call('POST', f'/v1/clusters/{cluster["uuid"]}/kubeconfig', shown=True)
        file = folder / 'kubeconfig'
        file.touch(mode=0o600)
        file.write_text(answer.pop('kubeconfig'))
        say(f'-> {json.dumps(answer)}, and the text of the file, which holds a key: {file}')
        terminal.set(KUBECONFIG=str(file))
        terminal.run('kubectl version --short')

    def nodes(self, terminal: Terminal) -> None:
        terminal.run('kubectl get nodes -o wide | cut -c 1-110')

    def prepare(self, terminal: Terminal, nodes: list[str]) -> None:
        # The layer of Kubernetes has brought the image.
        pass

    def deploy(self, terminal: Terminal) -> None:
        # A pod leaves a node that is gone after 5 s and not after the default, five minutes.
        pod = {
            'containers': [
                {
                    'name': 'web',
                    'image': 'docker.io/library/busybox:local',
                    'command': ['busybox', 'sh', '-c', SERVE.format(port=8080)],
                }
            ],
            'terminationGracePeriodSeconds': 0,
            'tolerations': [
                {
                    'key': f'node.kubernetes.io/{state}',
                    'operator': 'Exists',
                    'effect': 'NoExecute',
                    'tolerationSeconds': 5,
                }
                for state in ('not-ready', 'unreachable')
            ],
            'affinity': {
                'podAntiAffinity': {
                    'requiredDuringSchedulingIgnoredDuringExecution': [
                        {
                            'labelSelector': {'matchLabels': {'app': 'web'}},
                            'topologyKey': 'kubernetes.io/hostname',
                        }
                    ]
                }
            },
        }
        labels = {'app': 'web'}
        deployment = {
            'apiVersion': 'apps/v1',
            'kind': 'Deployment',
            'metadata': {'name': 'web'},
            'spec': {
                'replicas': REPLICAS,
                'selector': {'matchLabels': labels},
                'template': {'metadata': {'labels': labels}, 'spec': pod},
            },
        }
        port = {'port': 80, 'targetPort': 8080, 'nodePort': PORT}
        service = {
            'apiVersion': 'v1',
            'kind': 'Service',
            'metadata': {'name': 'web'},
            'spec': {'type': 'NodePort', 'selector': labels, 'ports': [port]},
        }
        file = Path(terminal.variables['KUBECONFIG']).with_name('web.json')
        both = {'apiVersion': 'v1', 'kind': 'List', 'items': [deployment, service]}
        file.write_text(json.dumps(both, indent=1))
        say(f'{file}: a Deployment with {REPLICAS} replicas of busybox httpd, a Service at {PORT}')
        terminal.run(f'kubectl apply -f {file}')

    def scale(self, terminal: Terminal, replicas: int) -> None:
        terminal.run(f'kubectl scale deployment web --replicas {replicas}')

    def _pods(self, terminal: Terminal) -> list[dict[str, Any]]:
        code, text = terminal.ask('kubectl --request-timeout=20s get pods -l app=web -o json')
        return list(json.loads(text)['items']) if code == 0 else []

    def places(self, terminal: Terminal) -> set[str]:
        return {
            pod['spec']['nodeName']
            for pod in self._pods(terminal)
            if not pod['metadata'].get('deletionTimestamp')
            for condition in pod['status'].get('conditions', ())
            if (condition['type'], condition['status']) == ('Ready', 'True')
        }

    def show(self, terminal: Terminal) -> None:
        terminal.run('kubectl get pods -l app=web -o wide | cut -c 1-120')

    def knows(self, terminal: Terminal, node: str) -> str | None:
        _, text = terminal.ask('kubectl --request-timeout=20s get nodes --no-headers')
        return dict(line.split()[:2] for line in text.splitlines() if ' ' in line).get(node)

    def forget(self, terminal: Terminal, node: str) -> None:
        if self.knows(terminal, node):
            terminal.run(f'kubectl delete node {node}')

    def ask(self, terminal: Terminal, addresses: list[str], replicas: int) -> None:
        # Each worker hands a connection to any pod.
        asked = f'http://{addresses[0]}:{PORT}/'
        line = (
            f'for i in $(seq {replicas * 12}); do curl -sS --max-time 10 {asked}; done '
            '| sort | uniq -c'
        )
        wait_until(
            lambda: terminal.ask(line)[1].count('web-') == replicas,
            within_s=READY_S,
            what=lambda: f'{replicas} replicas answer: {terminal.ask(line)[1]}',
        )
        terminal.run(line)
