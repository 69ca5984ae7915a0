"""The one seam to the cloud: Keystone sessions, Heat stacks, role grants, and look-ups in the caller's name.

`Cloud` is what the rest of the program knows; `tests/fakes.py` has the other one. The service acts as itself, with a
role on the project it works for (identity.md: seen on a real cloud): one token per project and hour. Look-ups that a
caller's request needs are made with the caller's own token and end with the request.

Every failure leaves this file as one of four exceptions, because callers decide only by these: `Gone`, `Clash`,
`Refused`, `Away`. Whatever is none of the first three is `Away`: slow, broken, or answering what cannot be read.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import openstack.connection
from heatclient import exc as heat_exc
from heatclient.v1 import client as heat_client
from keystoneauth1 import exceptions as ksa_exc
from keystoneauth1 import loading, session
from openstack import exceptions as sdk_exc
from oslo_config import cfg

AUTH_GROUP = 'keystone_auth'
#: Ids that go into one address of a list call: 36 characters each, well under the 8 KiB that servers take.
IDS_PER_CALL = 100


class CloudError(Exception):
    """A call to the cloud did not succeed. The text says which call, and what the cloud answered."""


class Gone(CloudError):
    """The thing is not there (404)."""


class Clash(CloudError):
    """The thing is there already, is busy, or a name fits several (409)."""


class Refused(CloudError):
    """The cloud understood and will not do it (other 4xx): trying again is no use."""


class Away(CloudError):
    """The service is slow, away, overloaded or answers nonsense. `retry_after_s` is what it asked for, or None."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


def _from_status(what: str, status: int, text: str, retry_after: str | None) -> CloudError:
    said = f'{what}: {text or "no reason given"} (HTTP {status})'
    if status == 404:
        return Gone(said)
    if status == 409:
        return Clash(said)
    # 401: our token was refused although it was renewed; a role that is being granted may mend that. 413 was what
    # older services said for 429.
    if 400 <= status < 500 and status not in (401, 408, 413, 429):
        return Refused(said)
    return Away(said, float(retry_after) if retry_after and retry_after.isdigit() else None)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn whatever a client library raises into a CloudError that says what was being done."""
    try:
        yield
    except CloudError:
        raise
    except heat_exc.HTTPException as e:
        error = e.error.get('error') if isinstance(e.error, dict) else None
        text = (error.get('message') if isinstance(error, dict) else None) or str(e)
        raise _from_status(what, e.code if isinstance(e.code, int) else 500, _line(text), None) from e
    except sdk_exc.DuplicateResource as e:
        raise Clash(f'{what}: more than one fits, use the id') from e
    except sdk_exc.NotFoundException as e:  # has no status when a search by name found nothing
        raise Gone(f'{what}: {_line(e.details or e.message)}') from e
    except sdk_exc.HttpException as e:
        raise _from_status(what, e.status_code or 500, _line(e.details or e.message), _retry_after(e.response)) from e
    except ksa_exc.HttpError as e:
        raise _from_status(what, e.http_status, _line(e.message), _retry_after(e.response)) from e
    except (ksa_exc.ClientException, sdk_exc.SDKException, heat_exc.BaseException) as e:
        raise Away(f'{what}: {_line(str(e))}') from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        # requests' own errors are OSErrors; the others are what a library does with an answer that is no JSON or
        # JSON of another shape, such as a proxy's HTML page.
        raise Away(f'{what}: the answer could not be read ({type(e).__name__}: {_line(str(e))})') from e


def _line(text: object) -> str:
    return ' '.join(str(text).split())[:2000]


def _retry_after(response: Any) -> str | None:
    return response.headers.get('Retry-After') if response is not None else None


@dataclass(frozen=True)
class Stack:
    """What the list of stacks says of one."""

    id: str
    name: str
    status: str
    reason: str


@dataclass(frozen=True)
class FailedResource:
    """A resource of a stack, or of a stack nested in it, that failed."""

    name: str
    type: str
    reason: str
    stack_name: str
    physical_id: str


class Stacks:
    """The stacks of one project."""

    def __init__(self, heat: heat_client.Client) -> None:
        self._heat = heat

    def create(self, name: str, *, template: str, files: dict[str, str], parameters: dict[str, Any],
               timeout_min: int) -> str:
        """Create a stack and return its id. Raises Clash if the project has one of that name already."""
        with _translated('Creating the stack'):
            made = self._heat.stacks.create(
                stack_name=name, template=template, files=files, parameters=parameters, timeout_mins=timeout_min,
                disable_rollback=True)
            return str(made['stack']['id'])

    def find(self, name: str) -> Stack | None:
        """The stack of that name, or None."""
        with _translated('Looking for the stack'):
            for stack in self._heat.stacks.list(filters={'name': name}):
                if stack.stack_name == name:
                    return self._stack(stack)
        return None

    def look(self, ids: Collection[str]) -> dict[str, Stack]:
        """The stacks of these ids in as few calls as possible; what is missing is not there any more."""
        found: dict[str, Stack] = {}
        wanted = sorted(ids)
        for start in range(0, len(wanted), IDS_PER_CALL):
            with _translated('Looking at stacks'):
                for stack in self._heat.stacks.list(filters={'id': wanted[start:start + IDS_PER_CALL]}):
                    found[stack.id] = self._stack(stack)
        return found

    @staticmethod
    def _stack(stack: Any) -> Stack:
        return Stack(stack.id, stack.stack_name, stack.stack_status, stack.stack_status_reason or '')

    def outputs(self, stack_id: str) -> dict[str, Any]:
        """All outputs of a stack. Heat works them out at each call, so ask once, at the end."""
        with _translated('Reading the outputs of the stack'):
            stack = self._heat.stacks.get(stack_id, resolve_outputs=True)
            return {output['output_key']: output.get('output_value') for output in getattr(stack, 'outputs', ())}

    def failures(self, stack_id: str) -> list[FailedResource]:
        """Every resource that failed, nested stacks included, in one call."""
        with _translated('Reading the failed resources of the stack'):
            return [FailedResource(r.resource_name, r.resource_type, r.resource_status_reason or '',
                                   getattr(r, 'stack_name', ''), r.physical_resource_id or '')
                    for r in self._heat.resources.list(stack_id, nested_depth=5, filters={'status': 'FAILED'})]

    def delete(self, stack_id: str) -> None:
        """Begin to delete a stack. Raises Gone if it is not there."""
        with _translated('Deleting the stack'):
            self._heat.stacks.delete(stack_id)


@dataclass(frozen=True)
class Image:
    """What matters of a Glance image."""

    id: str
    name: str
    os_distro: str | None
    driver: str | None


@dataclass(frozen=True)
class Flavor:
    """What matters of a Nova flavor."""

    id: str
    disk_gb: int


class Lookups:
    """What a caller can see of the cloud. Each method raises Gone, Clash (ambiguous), Refused or Away."""

    def __init__(self, cloud: openstack.connection.Connection, interface: str, region: str | None) -> None:
        self._cloud = cloud
        self._interface, self._region = interface, region

    def has(self, service: str) -> bool:
        """Whether the caller's catalog has this service type."""
        with _translated(f'Looking for the {service} service'):
            try:
                return self._cloud.session.get_endpoint(
                    service_type=service, interface=self._interface, region_name=self._region) is not None
            except ksa_exc.EndpointNotFound:  # what the plugin of a checked token raises; others return None
                return False

    def image(self, ref: str) -> Image:
        """An image by id or name."""
        with _translated(f'Image {ref}'):
            image = self._cloud.image.find_image(ref, ignore_missing=False)
            properties = image.properties or {}
            return Image(image.id, image.name, image.os_distro or properties.get('os_distro'),
                         properties.get('magnum_driver'))

    def flavor(self, ref: str) -> Flavor:
        """A flavor by id or name."""
        with _translated(f'Flavor {ref}'):
            flavor = self._cloud.compute.find_flavor(ref, ignore_missing=False)
            return Flavor(flavor.id, flavor.disk)

    def network(self, ref: str, *, external: bool = False) -> str:
        """The id of a network by id or name; `external`: only one that leads out of the cloud counts."""
        with _translated(f'{"External network" if external else "Network"} {ref}'):
            only = {'is_router_external': True} if external else {}
            return str(self._cloud.network.find_network(ref, ignore_missing=False, **only).id)

    def subnet(self, ref: str) -> str:
        """The id of a subnet by id or name."""
        with _translated(f'Subnet {ref}'):
            return str(self._cloud.network.find_subnet(ref, ignore_missing=False).id)

    def public_key(self, keypair: str) -> str:
        """The public key of a keypair of the caller's own."""
        with _translated(f'Keypair {keypair}'):
            return str(self._cloud.compute.find_keypair(keypair, ignore_missing=False).public_key)


class Cloud:
    """The cloud as the service sees it. One per process; safe for threads."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._group = conf[AUTH_GROUP]
        # No call may take half a lease, and one call of ours may need a token first.
        self._timeout_s = min(self._group.timeout or 3600, conf.conductor.lease * 0.4)
        self._discovery: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._stacks: dict[str, Stacks] = {}

    def _session(self, auth: Any) -> session.Session:
        group = self._group
        return session.Session(
            auth=auth, verify=not group.insecure and (group.cafile or True), timeout=self._timeout_s,
            cert=(group.certfile, group.keyfile) if group.certfile and group.keyfile else group.certfile,
            discovery_cache=self._discovery)

    def _connection(self, auth: Any) -> openstack.connection.Connection:
        return openstack.connection.Connection(
            session=self._session(auth), region_name=self._group.region_name, app_name='magnum-lite')

    @functools.cached_property
    def _own(self) -> openstack.connection.Connection:
        return self._connection(loading.load_auth_from_conf_options(self._conf, AUTH_GROUP))

    @functools.cached_property
    def _role_ids(self) -> list[str]:
        return [self._own.identity.find_role(name, ignore_missing=False).id
                for name in self._conf.identity.project_roles]

    def lookups(self, auth: Any) -> Lookups:
        """Look-ups with the token of the caller whose keystoneauth plugin `auth` is."""
        return Lookups(self._connection(auth), self._group.interface, self._group.region_name)

    def stacks(self, project_id: str) -> Stacks:
        """The stacks of a project, as the service user with its role there."""
        with self._lock:
            if project_id not in self._stacks:
                auth = loading.load_auth_from_conf_options(
                    self._conf, AUTH_GROUP, project_id=project_id, project_name=None, project_domain_id=None,
                    project_domain_name=None, system_scope=None, domain_id=None, domain_name=None)
                self._stacks[project_id] = Stacks(heat_client.Client(
                    session=self._session(auth), service_type='orchestration', interface=self._group.interface,
                    region_name=self._group.region_name))
            return self._stacks[project_id]

    def _role_path(self, project_id: str, role_id: str) -> str:
        return f'/projects/{project_id}/users/{self._own.session.get_user_id()}/roles/{role_id}'

    def grant_roles(self, project_id: str) -> None:
        """Give the service user its roles on a project. Doing it twice does no harm."""
        with _translated('Granting the service its role on the project'):
            for role_id in self._role_ids:
                self._own.identity.put(self._role_path(project_id, role_id), raise_exc=True)

    def revoke_roles(self, project_id: str) -> None:
        """Take the roles back. A role, or a project, that is not there is what was wanted."""
        with _translated('Looking for the roles of the service'):
            role_ids = self._role_ids
        for role_id in role_ids:
            with contextlib.suppress(Gone), _translated('Taking back the role of the service on the project'):
                self._own.identity.delete(self._role_path(project_id, role_id), raise_exc=True)
        with self._lock:
            self._stacks.pop(project_id, None)
