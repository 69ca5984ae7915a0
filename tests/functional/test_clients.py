"""Each call of the seam to the cloud, once on a real one: that Heat, Keystone, Neutron and Octavia
are as it believes.

OS_CLOUD names the cloud; `service.py` and `cloud.py` say what else is needed. Times that were seen
are printed."""

from __future__ import annotations

import contextlib
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from functional.cloud import ON_A_CLOUD, STACK_S, TIDY_S, Project, Sandbox, Say
from functional.service import _identity, _write_conf, poll
from oslo_config import cfg

from magnum_lite import clients, config

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD

NODE = '''
heat_template_version: 2018-08-31
parameters:
  network: {type: string}
resources:
  port:
    type: OS::Neutron::Port
    properties: {network: {get_param: network}}
  server:
    type: OS::Nova::Server
    properties: {image: debian, flavor: m1.tiny, networks: [{port: {get_resource: port}}]}
outputs:
  OS::stack_id: {value: {get_resource: server}}
  address: {value: {get_attr: [port, fixed_ips, 0, ip_address]}}
'''
#: Three levels. `word` is what an update waits for, `secret` what it need not name.
TEMPLATE = '''
heat_template_version: 2018-08-31
parameters:
  count: {type: number, default: 1}
  wait_s: {type: number, default: 0}
  word: {type: string, default: one}
  secret: {type: string, hidden: true}
resources:
  network:
    type: OS::Neutron::Net
  subnet:
    type: OS::Neutron::Subnet
    properties: {network: {get_resource: network}, cidr: 10.78.0.0/24}
  group:
    type: OS::Neutron::SecurityGroup
  router:
    type: OS::Neutron::Router
    properties: {external_gateway_info: {network: public}}
  interface:
    type: OS::Neutron::RouterInterface
    properties: {router: {get_resource: router}, subnet: {get_resource: subnet}}
  nodes:
    type: OS::Heat::ResourceGroup
    depends_on: subnet
    properties:
      count: {get_param: count}
      resource_def: {type: node.yaml, properties: {network: {get_resource: network}}}
  slow:
    type: OS::Heat::TestResource
    properties: {value: {get_param: word}, action_wait_secs: {update: {get_param: wait_s}}}
  kept:
    type: OS::Heat::TestResource
    properties: {value: {get_param: secret}}
outputs:
  addresses: {value: {get_attr: [nodes, address]}}
  kept: {value: {get_attr: [kept, output]}}
'''
FILES = {'node.yaml': NODE}
SECRET = 'not told again'
WAIT_S = 15


@pytest.fixture(scope='module')
def cloud(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> clients.Cloud:
    """The cloud as the service sees it."""
    return connect_as(sandbox.service_cloud, tmp_path_factory.mktemp('service'))


def connect_as(cloud_name: str, folder: pathlib.Path) -> clients.Cloud:
    """The cloud as a service sees it that logs in as an entry of clouds.yaml says."""
    path = folder / 'magnum-lite.conf'
    _write_conf(
        path,
        {
            clients.AUTH_GROUP: _identity(cloud_name),
            'identity': {'project_roles': 'member,load-balancer_member'},
        },
    )
    conf = cfg.ConfigOpts()
    config.register(conf)
    conf(['--config-file', str(path)], project='magnum-lite', default_config_files=[])
    return clients.Cloud(conf)


@pytest.fixture
def project(sandbox: Sandbox, cloud: clients.Cloud) -> Iterator[Project]:
    """A project in which the service user has its roles."""
    with sandbox.project() as made:
        cloud.grant_roles(made.id)
        yield made


def timed(say: Say, what: str, call: Callable[[], Any]) -> Any:
    begun = time.monotonic()
    found = call()
    say(f'{what}: {time.monotonic() - begun:.2f} s')
    return found


def settled(stacks: clients.Stacks, stack_id: str) -> clients.Stack:
    """The stack, once nothing is in progress."""

    def ended() -> clients.Stack | None:
        stack = stacks.list_by_ids([stack_id])[stack_id]
        return None if 'IN_PROGRESS' in stack.status else stack

    return poll(ended, STACK_S, f'stack {stack_id} ends')


def new_name() -> str:
    return f'fn-clients-{uuid.uuid4()}'


def make(
    stacks: clients.Stacks, name: str, tags: tuple[str, ...] = (clients.TAG, 'rev-1'), **more: Any
) -> str:
    return stacks.create(
        name,
        template=TEMPLATE,
        files=FILES,
        parameters={'secret': SECRET, **more},
        timeout_min=10,
        tags=tags,
    )


def update(stacks: clients.Stacks, stack_id: str, revision: int, **parameters: Any) -> None:
    stacks.update(
        stack_id,
        template=TEMPLATE,
        files=FILES,
        parameters=parameters,
        timeout_min=10,
        tags=(clients.TAG, f'rev-{revision}'),
    )


def assert_gone(stacks: clients.Stacks, stack_id: str) -> None:
    poll(lambda: not stacks.list_by_ids([stack_id]), STACK_S, f'stack {stack_id} goes')


def test_a_stack_is_made_followed_changed_stopped_and_deleted(
    cloud: clients.Cloud, sandbox: Sandbox, project: Project, say: Say
) -> None:
    stacks, name = cloud.stacks(project.id), new_name()
    stack_id = make(stacks, name, count=3)
    begun = stacks.find(name)
    made = settled(stacks, stack_id)

    assert begun and (begun.id, begun.revision, begun.tags) == (stack_id, 1, (clients.TAG, 'rev-1'))
    assert (made.status, made.revision) == ('CREATE_COMPLETE', 1)
    assert timed(say, 'look', lambda: stacks.list_by_ids([stack_id, str(uuid.uuid4())])) == {
        stack_id: made
    }
    assert stacks.list_by_ids(
        [stack_id, *(str(uuid.uuid4()) for _ in range(clients.IDS_PER_CALL))]
    ) == {stack_id: made}
    outputs = timed(say, 'outputs, 4 nested stacks', lambda: stacks.get_outputs(stack_id))
    assert (len(outputs['addresses']), outputs['kept']) == (3, SECRET)
    # 8 of the root, 3 nodes, a port and a server of each.
    assert timed(say, 'progress, 4 nested stacks', lambda: stacks.get_progress(stack_id)) == (
        17,
        17,
    )
    assert stacks.list_ours() == [made]
    stacks.cancel(stack_id)

    update(stacks, stack_id, 2, count=1, word='two', wait_s=WAIT_S)
    asked = stacks.list_by_ids([stack_id])[stack_id]
    assert (asked.status, asked.revision) == ('UPDATE_IN_PROGRESS', 2), (
        'the tag changes with the state, at once'
    )
    update(stacks, stack_id, 3, count=2, word='three')
    asked = stacks.list_by_ids([stack_id])[stack_id]
    assert (asked.status, asked.revision) == ('UPDATE_IN_PROGRESS', 3)
    overtaken = settled(stacks, stack_id)
    say(f'an update that overtook another one: {overtaken}')
    assert overtaken.revision == 3 and overtaken.status in ('UPDATE_COMPLETE', 'UPDATE_FAILED')

    def again() -> bool:
        update(stacks, stack_id, 4, count=2, word='four')
        found = settled(stacks, stack_id)
        say(f'an update after one that was overtaken: {found}')
        return found.status == 'UPDATE_COMPLETE'

    # Heat may still be deleting the member of the first of these updates that the second wants
    # back, and refuses then ("when it is deleting"). Ours never come back: their numbers do not.
    poll(again, STACK_S, 'an update after one that was overtaken is done', every_s=5)
    outputs = stacks.get_outputs(stack_id)
    assert (len(outputs['addresses']), outputs['kept']) == (2, SECRET), 'what was not named stays'

    update(stacks, stack_id, 5, word='five')
    stacks.cancel(stack_id)
    stopped = settled(stacks, stack_id)
    say(f'an update that was stopped: {stopped}')
    assert (stopped.status, stopped.revision) == ('UPDATE_FAILED', 5)
    with pytest.raises(clients.Rejected):
        update(stacks, stack_id, 6, count='many')
    assert stacks.list_by_ids([stack_id])[stack_id].revision == 5, 'a refused update changes no tag'
    update(stacks, stack_id, 7, wait_s=0, word='seven')
    assert settled(stacks, stack_id).status == 'UPDATE_COMPLETE'

    stacks.delete(stack_id)
    assert_gone(stacks, stack_id)
    for call in (stacks.cancel, stacks.delete, lambda one: update(stacks, one, 8)):
        with pytest.raises(clients.NotFound):
            call(str(uuid.uuid4()))
        with pytest.raises(clients.NotFound):
            call(stack_id)


def test_a_failure_names_the_nested_stack_and_its_place(
    cloud: clients.Cloud, project: Project
) -> None:
    stacks = cloud.stacks(project.id)
    stack_id = stacks.create(
        new_name(),
        template=TEMPLATE,
        timeout_min=10,
        parameters={'secret': SECRET},
        files={'node.yaml': NODE.replace('m1.tiny', 'm1.nofit')},
    )

    assert settled(stacks, stack_id).status == 'CREATE_FAILED'
    failed = {f.name: f for f in stacks.list_failures(stack_id)}

    assert set(failed) == {'nodes', '0', 'server'}
    assert (failed['nodes'].stack_id, failed['nodes'].parent) == (stack_id, '')
    assert (failed['0'].stack_id, failed['0'].parent) == (failed['nodes'].physical_id, 'nodes')
    assert (failed['server'].stack_id, failed['server'].parent) == (failed['0'].physical_id, '0')
    assert failed['server'].stack_name.startswith(failed['0'].stack_name)
    assert 'No valid host' in failed['server'].reason
    done, total = stacks.get_progress(stack_id)
    assert 0 < done < total


def test_another_projects_stacks_are_not_ours(
    cloud: clients.Cloud, sandbox: Sandbox, project: Project
) -> None:
    """A service with the role admin everywhere is shown the stacks of the whole cloud, if it does
    not ask well."""
    identity = sandbox.admin.identity
    admin = identity.find_role('admin', ignore_missing=False).id
    template = 'heat_template_version: 2018-08-31'
    with sandbox.project() as other:
        for one in (project, other):
            identity.put(
                f'/projects/{one.id}/users/{sandbox.service_user_id}/roles/{admin}', raise_exc=True
            )
        name = new_name()
        mine = cloud.stacks(project.id).create(
            name, template=template, files={}, parameters={}, timeout_min=5
        )
        theirs = cloud.stacks(other.id)
        theirs_id = theirs.create(
            'fn-plain',
            template=template,
            files={},
            parameters={},
            timeout_min=5,
            tags=[clients.TAG],
        )

        assert list(theirs.list_by_ids([mine, theirs_id])) == [theirs_id]
        assert theirs.find(name) is None
        assert [s.name for s in theirs.list_ours()] == ['fn-plain'], 'by its tag'
        assert [s.name for s in cloud.stacks(project.id).list_ours()] == [name], 'by its name'


@pytest.mark.parametrize('state', ['disabled', 'gone'])
def test_the_stack_of_a_project_without_tokens_is_deleted(
    cloud: clients.Cloud, sandbox: Sandbox, tmp_path: pathlib.Path, state: str
) -> None:
    identity = sandbox.admin.identity
    domain_id = identity.get_project(sandbox.user.current_project_id).domain_id
    project = identity.create_project(name=f'{new_name()}-{state}', domain_id=domain_id)
    name, stacks = new_name(), cloud.stacks(project.id, as_admin=True)
    try:
        cloud.grant_roles(project.id)
        stack_id = make(cloud.stacks(project.id), name)
        assert settled(cloud.stacks(project.id), stack_id).status == 'CREATE_COMPLETE'
        assert cloud.get_project_state(project.id) == 'enabled'
        if state == 'disabled':
            identity.update_project(project, is_enabled=False)
        else:
            identity.delete_project(project)
        assert cloud.get_project_state(project.id) == state

        # Heat believes a token that it has seen for five minutes more. This one is new.
        with pytest.raises(clients.Unreachable):
            connect_as(sandbox.service_cloud, tmp_path).stacks(project.id).list_by_ids([stack_id])
        found = stacks.find(name)
        assert found and found.id == stack_id
        assert stacks.get_progress(stack_id) == (11, 11)
        assert stacks.list_failures(stack_id) == []
        stacks.delete(stack_id)
        assert_gone(stacks, stack_id)

        assert not list(sandbox.admin.network.ports(project_id=project.id))
        assert not list(sandbox.admin.compute.servers(all_projects=True, project_id=project.id))
        cloud.revoke_roles(project.id)
    finally:
        for left in stacks.list_ours():
            stacks.delete(left.id)
            assert_gone(stacks, left.id)
        identity.delete_project(project)
        for group in sandbox.admin.network.security_groups(project_id=project.id):
            sandbox.admin.network.delete_security_group(group)


def test_what_a_cluster_made_itself_is_found_and_removed(
    cloud: clients.Cloud, project: Project, say: Say
) -> None:
    """A load balancer with a floating IP, as a cloud controller in a cluster makes one, blocks the
    network."""
    stacks, name = cloud.stacks(project.id), new_name()
    stack_id = make(stacks, name)
    assert settled(stacks, stack_id).status == 'CREATE_COMPLETE'
    own = project.cloud
    network = next(own.network.networks(project_id=project.id))
    subnet = next(own.network.subnets(project_id=project.id))
    interface = f'{next(own.network.routers(project_id=project.id)).id}:subnet_id={subnet.id}'
    balancers = [
        own.load_balancer.create_load_balancer(vip_subnet_id=subnet.id, **said)
        for said in (
            {'name': 'one', 'description': f'Kubernetes external service x from cluster {name}'},
            {'name': 'two', 'tags': [f'kube_service_{name}_default_x']},
            {'name': 'other', 'description': 'nobody knows'},
        )
    ]
    for made in balancers:
        own.load_balancer.wait_for_load_balancer(made.id, interval=1)
    outside = own.network.find_network('public', ignore_missing=False)
    own.network.create_ip(floating_network_id=outside.id, port_id=balancers[0].vip_port_id)
    group = own.network.create_security_group(name='fn-group')
    port = own.network.create_port(
        network_id=network.id, name='fn-port', security_group_ids=[group.id]
    )

    found = cloud.list_load_balancers(project.id, name)
    assert {b.name: (b.id, b.status) for b in found} == {
        b.name: (b.id, 'ACTIVE') for b in balancers if b.name != 'other'
    }
    assert cloud.list_load_balancers(project.id, name, as_admin=True) == found
    sentences = {
        kind: cloud.list_blockers(project.id, f'OS::Neutron::{kind}', physical_id)
        for kind, physical_id in (
            ('Net', network.id),
            ('Subnet', subnet.id),
            ('RouterInterface', interface),
            ('SecurityGroup', group.id),
            ('Port', port.id),
        )
    }
    for kind, said in sentences.items():
        say(f'{kind}: {said}')
    assert [len(said) for said in sentences.values()] == [6, 6, 5, 1, 0]
    assert sentences['SecurityGroup'] == [f'Port fn-port ({port.id}) of nobody']
    assert sum('of compute:nova' in said for said in sentences['Net']) == 1
    assert sum(f'of Octavia lb-{b.id}' in said for b in balancers for said in sentences['Net']) == 3
    assert (
        cloud.list_blockers(project.id, 'OS::Neutron::Net', network.id, as_admin=True)
        == sentences['Net']
    )

    for made in balancers:
        cloud.delete_load_balancer(project.id, made.id)
    with contextlib.suppress(clients.Conflict):
        cloud.delete_load_balancer(project.id, balancers[0].id)
    poll(
        lambda: not cloud.list_load_balancers(project.id, ''),
        TIDY_S,
        'the load balancers go',
        every_s=1,
    )
    cloud.delete_load_balancer(project.id, balancers[0].id)
    assert not list(own.network.ips(project_id=project.id))
    own.network.delete_port(port)
    own.network.delete_security_group(group)
    stacks.delete(stack_id)
    assert_gone(stacks, stack_id)


def test_grants_are_known(cloud: clients.Cloud, sandbox: Sandbox, project: Project) -> None:
    assert project.id in cloud.list_projects_with_role()
    assert sandbox.admin.current_project_id not in cloud.list_projects_with_role()

    cloud.revoke_roles(project.id)

    assert project.id not in cloud.list_projects_with_role()
    assert cloud.get_project_state(uuid.uuid4().hex) == 'gone'
    with pytest.raises(
        clients.Unreachable
    ):  # no role, no token: a role that is being granted may mend that
        cloud.list_load_balancers(project.id, 'x')


def test_a_service_that_is_no_admin_is_refused_and_not_told_that_a_stack_is_gone(
    sandbox: Sandbox, project: Project, tmp_path: pathlib.Path
) -> None:
    stacks = connect_as(sandbox.cloud_name, tmp_path).stacks(project.id, as_admin=True)

    for call in (
        stacks.delete,
        stacks.find,
        stacks.list_failures,
        lambda one: stacks.list_by_ids([one]),
    ):
        with pytest.raises(clients.Rejected):
            call(str(uuid.uuid4()))


def test_networks_are_found_by_name_and_by_id(sandbox: Sandbox) -> None:
    lookups = clients.Lookups(sandbox.user, 'public', None)
    find = sandbox.user.network.find_network
    public, private = (find(name, ignore_missing=False).id for name in ('public', 'private'))

    assert {lookups.get_network_id(ref, external=True) for ref in ('public', public)} == {public}
    assert {lookups.get_network_id(ref) for ref in ('private', private)} == {private}
    for ref in ('private', private, str(uuid.uuid4())):
        with pytest.raises(clients.NotFound):
            lookups.get_network_id(ref, external=True)
