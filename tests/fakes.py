"""The fake cloud of tests, in memory. It takes the place of `clients.Cloud`, and fails on purpose.

It repeats what was seen on real Keystone and Heat: without a role on the project no call works
(401); a second stack of a name is refused (409); the list of stacks leaves out those that are
deleted; a stack that is being deleted goes after a while. Nothing here is patched into the program:
a `FakeCloud` is handed to it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from magnum_lite import clients


class Died(BaseException):
    """The process is killed here. No `except Exception` of the program can see it, as none sees
    SIGKILL."""


@dataclass
class FakeStack:
    """A stack of the fake Heat. A test sets `status`, `reason`, `outputs` and `failed` as the story
    goes."""

    id: str
    name: str
    template: str
    files: dict[str, str]
    parameters: dict[str, Any]
    timeout_min: int
    status: str = 'CREATE_IN_PROGRESS'
    reason: str = ''
    tags: tuple[str, ...] = ()
    outputs: dict[str, Any] = field(default_factory=dict)
    failed: list[clients.FailedResource] = field(default_factory=list)
    #: Resources that are done, and all resources.
    progress: tuple[int, int] = (3, 10)

    def seen(self) -> clients.Stack:
        revision = next((int(tag[4:]) for tag in self.tags if tag.startswith('rev-')), 0)
        return clients.Stack(self.id, self.name, self.status, self.reason, revision, self.tags)

    @property
    def members(self) -> dict[str, set[int]]:
        """The numbers of the members that the text lists, by the name of its file."""
        texts = {name: yaml.safe_load(text) for name, text in self.files.items()}
        return {
            name: {int(n) for n in text.get('resources') or {}}
            for name, text in texts.items()
            if 'refs_map' in (text.get('outputs') or {})
        }


@dataclass
class FakeCloud:
    """`clients.Cloud`, `clients.Stacks` and `clients.Lookups` of one pretended cloud."""

    images: dict[str, clients.Image] = field(
        default_factory=lambda: {
            'ubuntu': clients.Image(
                '5d7e1b5c-0000-4000-8000-000000000001', 'ubuntu', 'ubuntu', None
            ),
            'no-distro': clients.Image(
                '5d7e1b5c-0000-4000-8000-000000000002', 'no-distro', None, None
            ),
            'plan9': clients.Image('5d7e1b5c-0000-4000-8000-000000000003', 'plan9', 'plan9', None),
        }
    )
    flavors: dict[str, clients.Flavor] = field(
        default_factory=lambda: {
            'm1.small': clients.Flavor('2', 20),
            'm1.nodisk': clients.Flavor('9', 0),
        }
    )
    external_networks: dict[str, str] = field(default_factory=lambda: {'public': 'net-public'})
    networks: dict[str, str] = field(default_factory=lambda: {'private': 'net-private'})
    subnets: dict[str, str] = field(default_factory=lambda: {'private-subnet': 'subnet-private'})
    keypairs: dict[str, str] = field(
        default_factory=lambda: {'testkey': 'ssh-ed25519 AAAAC3Nza test'}
    )
    #: Names that fit more than one thing.
    ambiguous: set[str] = field(default_factory=set)
    #: Service types that the catalog does not have.
    missing: set[str] = field(default_factory=set)

    granted: set[str] = field(default_factory=set)
    #: Users of clusters: by name id and password, and by id the projects on which they have roles.
    cluster_logins: dict[str, tuple[str, str]] = field(default_factory=dict)
    user_grants: dict[str, set[str]] = field(default_factory=dict)
    #: Projects that are not as they should be: 'disabled' or 'gone'.
    project_states: dict[str, str] = field(default_factory=dict)
    balancers: dict[str, clients.LoadBalancer] = field(default_factory=dict)
    #: What uses a thing that cannot be deleted, by its id.
    users: dict[str, list[str]] = field(default_factory=dict)
    stacks_by_project: dict[str, dict[str, FakeStack]] = field(default_factory=dict)
    #: Every call that was made, by name.
    calls: list[str] = field(default_factory=list)
    #: Called before and after each call with its name and 'before' or 'after'; whatever it raises,
    #: the call raises.
    hook: Callable[[str, str], None] | None = None

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        self.calls.append(name)
        if self.hook:
            self.hook(name, 'before')
        yield
        if self.hook:
            self.hook(name, 'after')

    def all_stacks(self) -> list[FakeStack]:
        """Every stack that was not deleted, of all projects."""
        return [stack for stacks in self.stacks_by_project.values() for stack in stacks.values()]

    # -- clients.Cloud

    def grant_roles(self, project_id: str) -> None:
        with self.call('grant_roles'):
            if self.project_states.get(project_id) == 'gone':
                raise clients.NotFound('no such project (HTTP 404)')
            self.granted.add(project_id)

    def revoke_roles(self, project_id: str) -> None:
        with self.call('revoke_roles'):
            self.granted.discard(project_id)

    def make_user(self, name: str, password: str) -> str:
        with self.call('make_user'):
            user_id, _ = self.cluster_logins.get(name, (uuid.uuid4().hex, ''))
            self.cluster_logins[name] = user_id, password
        return user_id

    def grant_user(self, user_id: str, project_id: str) -> None:
        with self.call('grant_user'):
            known = {known for known, _ in self.cluster_logins.values()}
            if self.project_states.get(project_id) == 'gone' or user_id not in known:
                raise clients.NotFound('no such project, or no such user (HTTP 404)')
            self.user_grants.setdefault(user_id, set()).add(project_id)

    def remove_user(self, name: str, user_id: str = '') -> None:
        with self.call('remove_user'):
            known = self.cluster_logins.get(name)
            if known and user_id in ('', known[0]):
                del self.cluster_logins[name]
                self.user_grants.pop(known[0], None)  # Keystone deletes grants with their user

    def list_cluster_users(self) -> dict[str, str]:
        with self.call('list_cluster_users'):
            return {name: user_id for name, (user_id, _) in self.cluster_logins.items()}

    def build_login(self, user_id: str, password: str) -> clients.Login:
        with self.call('build_login'):
            return clients.Login(user_id, password, 'http://keystone/v3', 'RegionOne')

    def list_projects_with_role(self) -> list[str]:
        with self.call('list_projects_with_role'):
            return sorted(self.granted)

    def get_project_state(self, project_id: str) -> str:
        with self.call('get_project_state'):
            return self.project_states.get(project_id, 'enabled')

    def stacks(self, project_id: str, *, as_admin: bool = False) -> FakeStacks:
        return FakeStacks(self, project_id, as_admin)

    def list_load_balancers(
        self, project_id: str, text: str, *, as_admin: bool = False
    ) -> list[clients.LoadBalancer]:
        with self.call('list_load_balancers'):
            return [b for b in self.balancers.values() if text in b.description]

    def delete_load_balancer(
        self, project_id: str, load_balancer_id: str, *, as_admin: bool = False
    ) -> None:
        with self.call('delete_load_balancer'):
            self.balancers.pop(load_balancer_id, None)

    def list_blockers(
        self, project_id: str, resource_type: str, physical_id: str, *, as_admin: bool = False
    ) -> list[str]:
        with self.call('list_blockers'):
            return self.users.get(physical_id, [])

    def check_identity(self, *, timeout_s: float) -> None:
        with self.call('check_identity'):
            pass

    def check_orchestration(self, *, timeout_s: float) -> None:
        with self.call('check_orchestration'):
            pass

    def list_service_roles(self) -> tuple[list[str], list[str]]:
        with self.call('list_service_roles'):
            return ['admin'], []

    def lookups(self, auth: Any) -> FakeLookups:
        return FakeLookups(self)


@dataclass
class FakeStacks:
    cloud: FakeCloud
    project_id: str
    as_admin: bool = False

    @contextlib.contextmanager
    def _call(self, name: str) -> Iterator[dict[str, FakeStack]]:
        with self.cloud.call(name):
            closed = (
                self.project_id not in self.cloud.granted
                or self.project_id in self.cloud.project_states
            )
            if closed and not self.as_admin:
                raise clients.Unreachable('the service has no token for the project (HTTP 401)')
            yield self.cloud.stacks_by_project.setdefault(self.project_id, {})

    def _one(self, stacks: dict[str, FakeStack], stack_id: str) -> FakeStack:
        if stack_id not in stacks:
            raise clients.NotFound('no such stack (HTTP 404)')
        return stacks[stack_id]

    def create(
        self,
        name: str,
        *,
        template: str,
        files: dict[str, str],
        parameters: dict[str, Any],
        timeout_min: int,
        tags: Any = (),
    ) -> str:
        with self._call('create') as stacks:
            if any(stack.name == name for stack in stacks.values()):
                raise clients.Conflict(f'the stack {name} exists (HTTP 409)')
            stack = FakeStack(
                str(uuid.uuid4()), name, template, files, parameters, timeout_min, tags=tuple(tags)
            )
            # Every output is there, on a cloud with stand-ins as null.
            stack.outputs = dict.fromkeys(
                yaml.load(template, Loader=yaml.CSafeLoader).get('outputs') or {}
            )
            stacks[stack.id] = stack
        return stack.id

    def update(
        self,
        stack_id: str,
        *,
        template: str,
        files: dict[str, str],
        parameters: dict[str, Any],
        timeout_min: int,
        tags: Any,
    ) -> None:
        with self._call('update') as stacks:
            stack = self._one(stacks, stack_id)
            # Heat drops parameters that are no longer declared, and requires a value for those that
            # are. (Others than user-data may be outputs of another stack, which are null here.)
            declared = yaml.load(template, Loader=yaml.CSafeLoader).get('parameters') or {}
            kept = {
                name: value
                for name, value in (stack.parameters | parameters).items()
                if name in declared
            }
            if missing := [
                name for name, spec in declared.items() if spec.get('hidden') and name not in kept
            ]:
                raise clients.Rejected(f'The Parameter ({missing[0]}) was not provided. (HTTP 400)')
            stack.template, stack.files, stack.timeout_min, stack.tags = (
                template,
                files,
                timeout_min,
                tuple(tags),
            )
            stack.parameters = kept
            stack.status, stack.reason = 'UPDATE_IN_PROGRESS', ''

    def cancel(self, stack_id: str) -> None:
        with self._call('cancel') as stacks:
            stack = self._one(stacks, stack_id)
            if stack.status in ('CREATE_IN_PROGRESS', 'UPDATE_IN_PROGRESS'):
                stack.status = stack.status.replace('IN_PROGRESS', 'FAILED')
                stack.reason = 'User cancelled operation'

    def get_progress(self, stack_id: str) -> tuple[int, int]:
        with self._call('get_progress') as stacks:
            return self._one(stacks, stack_id).progress

    def list_ours(self) -> list[clients.Stack]:
        with self._call('list_ours') as stacks:
            return [stack.seen() for stack in stacks.values()]

    def find(self, name: str) -> clients.Stack | None:
        with self._call('find') as stacks:
            return next((stack.seen() for stack in stacks.values() if stack.name == name), None)

    def list_by_ids(self, ids: Any) -> dict[str, clients.Stack]:
        with self._call('list_by_ids') as stacks:
            return {key: stack.seen() for key, stack in stacks.items() if key in ids}

    def get_outputs(self, stack_id: str) -> dict[str, Any]:
        with self._call('get_outputs') as stacks:
            return self._one(stacks, stack_id).outputs

    def list_failures(self, stack_id: str) -> list[clients.FailedResource]:
        with self._call('list_failures') as stacks:
            return self._one(stacks, stack_id).failed

    def delete(self, stack_id: str) -> None:
        with self._call('delete') as stacks:
            self._one(stacks, stack_id).status = 'DELETE_IN_PROGRESS'


@dataclass
class FakeLookups:
    cloud: FakeCloud

    def _get(self, what: str, things: dict[str, Any], ref: str) -> Any:
        with self.cloud.call(what):
            if ref in self.cloud.ambiguous:
                raise clients.Conflict(f'{what} {ref}: more than one fits')
            for name, thing in things.items():
                if ref in (name, getattr(thing, 'id', thing)):
                    return thing
            raise clients.NotFound(f'{what} {ref}: not there (HTTP 404)')

    def has(self, service: str) -> bool:
        return service not in self.cloud.missing

    def get_image(self, ref: str) -> clients.Image:
        return self._get('image', self.cloud.images, ref)

    def get_flavor(self, ref: str) -> clients.Flavor:
        return self._get('flavor', self.cloud.flavors, ref)

    def get_network_id(self, ref: str, *, external: bool = False) -> str:
        return self._get(
            'network',
            self.cloud.external_networks
            if external
            else self.cloud.networks | self.cloud.external_networks,
            ref,
        )

    def get_subnet_id(self, ref: str) -> str:
        return self._get('subnet', self.cloud.subnets, ref)

    def get_public_key(self, keypair: str) -> str:
        return self._get('keypair', self.cloud.keypairs, keypair)
