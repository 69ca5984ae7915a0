"""What the functional tests need of the cloud: projects of their own, nodes that are played, and
what was left behind.

Each test works in a project of its own, so that it can say at the end that nothing is left there,
whatever else the cloud is used for meanwhile. The service's identity is an admin and makes these
projects; the user of the tests gets the same roles there as in its own project.

The nodes boot nowhere: `testcloud/cloud/signal` plays them, on whatever cloud OS_CLOUD names.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from functional.service import (
    PREFIX,
    Service,
    connect,
    is_old,
    poll,
    remove_leftovers,
    start_service,
    unique_name,
)
from keystoneauth1 import exceptions as ksa_exc
from openstack import config as cloud_config
from openstack import exceptions as sdk_exc

#: The scripts of the test cloud.
TOOLS = pathlib.Path(__file__).parents[2] / 'testcloud' / 'cloud'
SIGNAL = TOOLS / 'signal'
#: `pytestmark` of a module of tests on a real cloud.
ON_A_CLOUD = [
    pytest.mark.functional,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings('ignore::PendingDeprecationWarning'),  # the SDK's, of its own code
    pytest.mark.skipif(not os.environ.get('OS_CLOUD'), reason='OS_CLOUD names no cloud'),
]
#: Seconds between looks that no message asked for: long, so that only a message explains a cluster
#: begun at once.
LONG_TICK_S = 60

Say = Callable[[str], None]
#: Starts a service with options of `start_service`; who made this stops it.
Start = Callable[..., Service]
#: Seconds for what a cloud does on a busy machine: a cluster's stack comes, or goes.
STACK_S = 400
#: Seconds for the cloud to tidy up behind a stack that is gone (users of its own, ports).
TIDY_S = 60


class Sandbox:
    """A cloud, and the projects that tests make in it. Entries of clouds.yaml for them go into a
    file of our own."""

    def __init__(self, cloud_name: str, folder: pathlib.Path) -> None:
        self.cloud_name = cloud_name
        self.service_cloud = os.environ.get('MAGNUM_LITE_OS_CLOUD') or f'{cloud_name}-magnum'
        self.clouds_file = folder / 'clouds.yaml'
        self._clouds = yaml.safe_load(
            pathlib.Path(cloud_config.OpenStackConfig().config_filename).read_text()
        )
        self._write()
        self.admin = connect(self.service_cloud)
        self.user = connect(cloud_name)
        self._user_roles = [
            a.role['id']
            for a in self.admin.identity.role_assignments(
                scope_project_id=self.user.current_project_id, user_id=self.user.current_user_id
            )
        ]

    def _write(self) -> None:
        self.clouds_file.write_text(yaml.safe_dump(self._clouds))
        self.clouds_file.chmod(0o600)

    @property
    def service_user_id(self) -> str:
        """The user that magnum-lite acts as."""
        return str(self.admin.current_user_id)

    def close(self) -> None:
        """Close the connections."""
        self.admin.close()
        self.user.close()

    def remove_leftovers(self) -> None:
        """Remove what runs left behind that were killed more than an hour ago: projects, with all
        that they hold."""
        remove_leftovers()
        for project in self.admin.identity.projects():
            if is_old(project.name):
                # Two runs may begin at the same time and find the same project.
                with contextlib.suppress(ksa_exc.NotFound, sdk_exc.NotFoundException):
                    self._enter(project.id)
                    self._clouds['clouds'][project.name] = self._entry(project.name)
                    self._write()
                    Project(self, project.name, project.id).remove()

    def _enter(self, project_id: str) -> None:
        for role_id in self._user_roles:
            self.admin.identity.put(
                f'/projects/{project_id}/users/{self.user.current_user_id}/roles/{role_id}',
                raise_exc=True,
            )

    def _entry(self, name: str) -> dict[str, Any]:
        """The user's entry of clouds.yaml, for another project."""
        ours = self._clouds['clouds'][self.cloud_name]
        auth = {k: v for k, v in ours['auth'].items() if k not in ('project_id', 'project_name')}
        return {**ours, 'auth': {**auth, 'project_name': name}}

    @contextlib.contextmanager
    def project(self) -> Iterator[Project]:
        """A new project, removed afterwards with all that is in it."""
        domain_id = self.admin.identity.get_project(self.user.current_project_id).domain_id
        made = self.admin.identity.create_project(name=unique_name(), domain_id=domain_id)
        self._enter(made.id)
        self._clouds['clouds'][made.name] = self._entry(made.name)
        self._write()
        project = Project(self, made.name, made.id)
        try:
            yield project
        finally:
            project.remove()

    @contextlib.contextmanager
    def client_entry(self, project: Project, url: str) -> Iterator[str]:
        """An entry of clouds.yaml for a project and a region in which the container service stands
        at `url`.

        Clients that know no other address than the catalogue's find it by that.
        """
        identity = self.admin.identity
        services = [s for s in identity.services() if s.type == 'container-infra']
        name = unique_name()
        region = identity.create_region(id=name)
        service = (
            services[0] if services else identity.create_service(type='container-infra', name=name)
        )
        endpoint = identity.create_endpoint(
            service_id=service.id, interface='public', url=url, region_id=region.id
        )
        self._clouds['clouds'][name] = {**self._entry(project.name), 'region_name': name}
        self._write()
        try:
            yield name
        finally:
            identity.delete_endpoint(endpoint)
            if not services:
                identity.delete_service(service)
            identity.delete_region(region)

    def in_region(self, cloud_name: str, region: str) -> str:
        """The name of an entry of clouds.yaml that is another one's, in a region."""
        name = f'{cloud_name}-in-{region}'
        self._clouds['clouds'][name] = {**self._clouds['clouds'][cloud_name], 'region_name': region}
        self._write()
        return name

    @contextlib.contextmanager
    def region(self, instead: Mapping[str, str]) -> Iterator[str]:
        """A region with the services that a cluster needs, some of them, by type, at `instead`
        (http://host:port).

        The path of an address, which may hold the project, stays as it is.
        """
        identity = self.admin.identity
        types = {s.id: s.type for s in identity.services()}
        name = unique_name()
        region = identity.create_region(id=name)
        made = []
        try:
            for known in list(identity.endpoints(interface='public')):
                kind = types[known.service_id]
                if kind not in ('identity', 'image', 'compute', 'network', 'orchestration') or (
                    known.region_id or ''
                ).startswith(PREFIX):
                    continue
                url = known.url
                if kind in instead:
                    url = instead[kind] + url[len('http://') + len(url.split('/')[2]) :]
                made.append(
                    identity.create_endpoint(
                        service_id=known.service_id,
                        interface='public',
                        url=url,
                        region_id=region.id,
                    )
                )
            yield name
        finally:
            for endpoint in made:
                identity.delete_endpoint(endpoint)
            identity.delete_region(region)


class Project:
    """A project of the cloud, with the user of the tests in it. `name` is also its entry in
    clouds.yaml."""

    def __init__(self, sandbox: Sandbox, name: str, project_id: str) -> None:
        self.sandbox, self.name, self.id = sandbox, name, project_id
        self.cloud = connect(name, sandbox.clouds_file)

    @property
    def headers(self) -> dict[str, str]:
        """What a request of the user in this project carries."""
        return {'X-Auth-Token': str(self.cloud.auth_token)}

    def stacks(self) -> list[Any]:
        """Its root stacks."""
        return list(self.cloud.orchestration.stacks())

    def stack_users(self) -> list[str]:
        """Ids of the projects and users that Heat made for stacks of this project."""
        identity = self.sandbox.admin.identity
        projects = [p for p in identity.projects() if p.name.startswith(f'{self.id}-')]
        users = [
            u.id
            for p in projects
            for u in identity.users(domain_id=p.domain_id)
            if u.default_project_id == p.id
        ]
        return [p.id for p in projects] + users

    def cluster_users(self) -> set[str]:
        """Ids of the users that clusters have in this project: nobody else was given a role."""
        known = self.sandbox.service_user_id, self.cloud.current_user_id
        return {
            a.user['id']
            for a in self.sandbox.admin.identity.role_assignments(scope_project_id=self.id)
            if a.user and a.user['id'] not in known
        }

    def leftovers(self) -> dict[str, list[str]]:
        """What there is in this project, by kind; only the kinds of which there is something."""
        cloud, identity = self.cloud, self.sandbox.admin.identity
        found = {
            'stacks': [s.name for s in self.stacks()],
            'stack users': self.stack_users(),
            'servers': [s.name for s in cloud.compute.servers()],
            'floating IPs': [f.floating_ip_address for f in cloud.network.ips(project_id=self.id)],
            'routers': [r.name for r in cloud.network.routers(project_id=self.id)],
            'ports': [
                f'{p.device_owner} {p.name}' for p in cloud.network.ports(project_id=self.id)
            ],
            'networks': [n.name for n in cloud.network.networks(project_id=self.id)],
            'security groups': [
                g.name
                for g in cloud.network.security_groups(project_id=self.id)
                if g.name != 'default'
            ],
            'roles of the service': [
                a.role['id']
                for a in identity.role_assignments(
                    scope_project_id=self.id, user_id=self.sandbox.service_user_id
                )
            ],
            'users of clusters': sorted(self.cluster_users()),
            'volumes': [v.id for v in cloud.block_storage.volumes()],
            'load balancers': [b.name for b in cloud.load_balancer.load_balancers()],
        }
        return {kind: things for kind, things in found.items() if things}

    def remove(self) -> None:
        """Remove the project and what is in it."""
        for stack in self.stacks():
            self.cloud.orchestration.delete_stack(stack.id)
        poll(lambda: not self.stacks(), STACK_S, f'the stacks of {self.name} go', every_s=2)
        network = self.cloud.network
        for router in network.routers(project_id=self.id):
            for port in network.ports(device_id=router.id):
                with contextlib.suppress(sdk_exc.ResourceNotFound, sdk_exc.BadRequestException):
                    network.remove_interface_from_router(router, port_id=port.id)
            network.delete_router(router)
        for made in network.networks(project_id=self.id):
            network.delete_network(made)
        admin = self.sandbox.admin
        for user_id in self.cluster_users():
            admin.identity.delete_user(user_id)
        self.cloud.close()
        admin.identity.delete_project(self.id)
        for group in admin.network.security_groups(project_id=self.id):
            admin.network.delete_security_group(group)


# -- nodes -----------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """A cluster that was asked for in a project, its nodes played by a thread if there are any to
    play."""

    service: Service
    project: Project
    uuid: str
    nodes: futures.Future[str] | None = None

    def get(self) -> dict[str, Any]:
        """What the API shows of it."""
        status, body = self.service.request(
            'GET', f'/v1/clusters/{self.uuid}', headers=self.project.headers
        )
        assert status == 200, body
        return dict(body)

    @property
    def row(self) -> dict[str, Any]:
        """What the database holds of it."""
        return self.service.rows('SELECT * FROM clusters WHERE uuid = :uuid', uuid=self.uuid)[0]

    @property
    def operations(self) -> list[dict[str, Any]]:
        """Its history."""
        return self.service.rows(
            'SELECT * FROM operations WHERE cluster_id = :uuid ORDER BY id', uuid=self.uuid
        )

    def stacks(self) -> list[Any]:
        """The stacks that bear its uuid."""
        return [s for s in self.project.stacks() if self.uuid in s.name]

    def stack_id(self) -> str:
        """The id of its stack, as soon as there is one."""
        return str(
            poll(lambda: self.get()['cluster_id'], STACK_S, f'cluster {self.uuid} has a stack')
        )

    def wait(self, status: str, timeout_s: float = STACK_S) -> dict[str, Any]:
        """Wait until it has a status; see `Service.wait`. What went wrong with its nodes is raised
        here, too."""
        if self.nodes and status.startswith('CREATE'):
            self.nodes.result(timeout_s)
        return self.service.wait(self.uuid, status, timeout_s, headers=self.project.headers)

    def play_nodes(self, *options: str) -> None:
        """Have its nodes report once their servers run. `options` are those of the tool."""
        pool = futures.ThreadPoolExecutor(1, thread_name_prefix='nodes')
        self.nodes = pool.submit(self._play, *options)
        pool.shutdown(wait=False)

    def servers(self) -> list[Any]:
        """Its servers."""
        return [s for s in self.project.cloud.compute.servers() if f'-{self.uuid[:8]}-' in s.name]

    def _play(self, *options: str) -> str:
        shown = self.get()
        count = shown['master_count'] + shown['node_count']
        poll(
            lambda: [s.status for s in self.servers()].count('ACTIVE') == count,
            STACK_S,
            f'{count} servers of cluster {self.uuid} are active',
            every_s=2,
        )
        done = subprocess.run(
            [str(SIGNAL), self.stack_id(), '--cloud', self.project.name, *options],
            env={**os.environ, 'OS_CLIENT_CONFIG_FILE': str(self.project.sandbox.clouds_file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout)
        assert done.stdout.count(' TOKEN_SIGNAL ') == count, done.stdout
        return done.stdout

    def delete(self, headers: dict[str, str] | None = None) -> None:
        """Ask for it to be deleted."""
        status, body = self.service.request(
            'DELETE', f'/v1/clusters/{self.uuid}', headers=headers or self.project.headers
        )
        assert status == 204, body

    def assert_nothing_is_left(self, *others: str) -> None:
        """Nothing but `others`' kinds of things is in the project, and nothing but its history in
        the database."""
        poll(
            lambda: set(self.project.leftovers()) == set(others),
            TIDY_S,
            lambda: f'all is gone: {self.project.leftovers()}',
        )
        for table, column in (
            ('clusters', 'uuid'),
            ('nodegroups', 'cluster_id'),
            ('cluster_keys', 'cluster_id'),
        ):
            assert not self.service.rows(
                f'SELECT id FROM {table} WHERE {column} = :uuid', uuid=self.uuid
            ), table
        assert not self.service.rows(
            'SELECT id FROM nodes WHERE nodegroup_id NOT IN (SELECT uuid FROM nodegroups)'
        )


#: A cluster template that the test cloud can make clusters of.
TEMPLATE = {
    'name': 'fn-template',
    'coe': 'kubernetes',
    'image_id': 'ubuntu',
    'flavor_id': 'm1.small',
    'master_flavor_id': 'm1.small',
    'external_network_id': 'public',
    'keypair_id': 'testkey',
}

#: The same of the driver `paper`, whose stacks have no servers.
PAPER_TEMPLATE = {
    'name': 'paper',
    'coe': 'paper',
    'image_id': 'debian',
    'flavor_id': 'm1.tiny',
    'master_flavor_id': 'm1.tiny',
}


def post(
    service: Service,
    project: Project,
    path: str,
    headers: dict[str, str] | None = None,
    **body: Any,
) -> tuple[int, Any]:
    return service.request('POST', f'/v1/{path}', body, headers=headers or project.headers)


def ask(
    service: Service,
    project: Project,
    *,
    template: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    **body: Any,
) -> Cluster:
    """Ask for a cluster, and for the template it needs. A 503 stores nothing and says "try again":
    a busy cloud."""

    def send(path: str, expected: int, **values: Any) -> Any:
        for _ in range(5):
            status, answer = post(service, project, path, headers, **values)
            if status != 503:
                break
        assert status == expected, answer
        return answer

    found = send('clustertemplates', 201, **(TEMPLATE | (template or {})))
    return Cluster(
        service, project, send('clusters', 202, cluster_template_id=found['uuid'], **body)['uuid']
    )


@contextlib.contextmanager
def starting(
    sandbox: Sandbox, running: list[Service], folder: pathlib.Path, **always: Any
) -> Iterator[Start]:
    """Start services, each with a folder of its own in this one, and stop them at the end."""
    with contextlib.ExitStack() as undo:

        def start(**options: Any) -> Service:
            made = start_service(
                sandbox.cloud_name, folder / str(len(running)), **{**always, **options}
            )
            running.append(made)
            undo.callback(made.stop)
            undo.callback(running.remove, made)
            return made

        yield start


# -- a broker that can fail ------------------------------------------------------------------------


class Forwarder:
    """A loopback port in front of another address, which can be down (refused) or hang (accepted,
    never answered).

    For processes that know only this port the server behind it is away, and nobody else is hurt.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._flows = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.up()

    def up(self) -> None:
        """Forward, what was held up as well as what comes."""
        self._flows.set()
        self._listen()

    def hang(self) -> None:
        """Accept connections and let nothing through, in those that are open neither."""
        self._flows.clear()
        self._listen()

    def down(self) -> None:
        """Refuse connections, and cut those that are open."""
        if self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._flows.set()  # lets waiting threads find that their connection is cut

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(('127.0.0.1', self.port), backlog=64)
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._open.add(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            self._flows.wait()
            with socket.create_connection(self._target) as server:
                self._open.add(server)
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                self._pump(client, server)
                back.join()
                self._open.discard(server)
        self._open.discard(client)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
