"""Count what there is in the cloud of a cluster: `inventory.py NAME FILE`, run by the test cloud's
Python, with OS_CLOUD and OS_CLIENT_CONFIG_FILE set.

What Heat lists as resources of stacks whose names begin with `NAME-`, at any depth, is added to
FILE, which remembers it beyond the stack. Printed is, for each kind, how many of all that were ever
seen there are in the cloud now, as Nova, Neutron, Cinder, Octavia, Heat and Keystone say
themselves."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import openstack

#: A kind: the type of its resources in Heat.
TYPES = {
    'servers': 'OS::Nova::Server',
    'ports': 'OS::Neutron::Port',
    'floating IPs': 'OS::Neutron::FloatingIP',
    'security groups': 'OS::Neutron::SecurityGroup',
    'networks': 'OS::Neutron::Net',
    'routers': 'OS::Neutron::Router',
    'volumes': 'OS::Cinder::Volume',
    'load balancers': 'OS::Octavia::LoadBalancer',
}


def look(user: Any, admin: Any, name: str) -> dict[str, Callable[[], Iterable[str]]]:
    """For each kind a function that lists the ids of all that the project has now."""

    def ids(things: Iterable[Any]) -> Iterable[str]:
        return [str(thing.id) for thing in things]

    network, heat_domain = user.network, admin.identity.find_domain('heat')
    return {
        'stacks': lambda: ids(s for s in user.orchestration.stacks() if is_ours(s.name, name)),
        'servers': lambda: ids(user.compute.servers(details=False)),
        'ports': lambda: ids(network.ports()),
        'floating IPs': lambda: ids(network.ips()),
        'security groups': lambda: ids(network.security_groups()),
        'networks': lambda: ids(network.networks()),
        'routers': lambda: ids(network.routers()),
        'volumes': lambda: ids(user.block_storage.volumes(details=False)),
        'load balancers': lambda: ids(user.load_balancer.load_balancers()),
        # Heat makes a user for each handle of a node, named after its stack.
        'users of nodes': lambda: ids(
            u for u in admin.identity.users(domain_id=heat_domain.id) if is_ours(u.name, name)
        ),
    }


def is_ours(found: str, name: str) -> bool:
    """Whether a name is that of the cluster's stack, or begins with it."""
    return found == name or found.startswith(f'{name}-')


def remember(user: Any, name: str, known: dict[str, list[str]]) -> None:
    """Add to `known`, for each kind, the ids of what stacks of this name consist of now."""
    for stack in user.orchestration.stacks():
        if is_ours(stack.name, name):
            # openstacksdk 4 does not pass on how deep it is to look.
            path = f'/stacks/{stack.name}/{stack.id}/resources?nested_depth=5'
            for resource in user.orchestration.get(path).json()['resources']:
                for kind, heat_type in TYPES.items():
                    if resource['resource_type'] == heat_type and resource['physical_resource_id']:
                        known.setdefault(kind, []).append(resource['physical_resource_id'])


def main() -> None:
    name, file = sys.argv[1], Path(sys.argv[2])
    user = openstack.connect(os.environ['OS_CLOUD'])
    admin = openstack.connect(f'{os.environ["OS_CLOUD"]}-admin')
    known: dict[str, list[str]] = json.loads(file.read_text()) if file.exists() else {}
    remember(user, name, known)
    counts: dict[str, list[int]] = {}
    for kind, list_ids in look(user, admin, name).items():
        there = set(list_ids())
        if kind not in TYPES:  # these are told by their names
            known[kind] = sorted({*known.get(kind, []), *there})
        counts[kind] = [len(set(known.get(kind, []))), len(there & set(known.get(kind, [])))]
    file.write_text(json.dumps(known))
    print(f'{"":18} seen  there now')
    for kind, (seen, now) in counts.items():
        print(f'{kind:18} {seen:4}  {now:4}')
    print(
        f'{"all":18} {sum(s for s, _ in counts.values()):4}  {sum(n for _, n in counts.values()):4}'
    )


if __name__ == '__main__':
    main()
