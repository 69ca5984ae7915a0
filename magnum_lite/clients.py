"""The one seam to the cloud: Keystone sessions, Heat stacks, role grants, and look-ups in the
caller's name.

`Cloud` is what the rest of the program knows; `tests/fakes.py` has the other one. The service acts
as itself, with a role on the project it works for (identity.md: seen on a real cloud): one token
per project and hour. Look-ups that a caller's request needs are made with the caller's own token
and end with the request.

Every failure leaves this file as one of four exceptions, because callers decide only by these:
`NotFound`, `Conflict`, `Rejected`, `Unreachable`. Whatever is none of the first three is
`Unreachable`: slow, broken, or answering what cannot be read.

A token of the project is of no use once Keystone has disabled the project or removed it. For that
there is `as_admin`: the same calls with the token of the service's own project, which must have the
role admin. Seen on Heat 27: it shows and deletes the stacks of such a project, and deletes what is
in them in the name of that token."""

from __future__ import annotations

import contextlib
import datetime
import functools
import pathlib
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import openstack.connection
import requests
from heatclient import exc as heat_exc
from heatclient.v1 import client as heat_client
from keystoneauth1 import exceptions as ksa_exc
from keystoneauth1 import loading, session
from openstack import exceptions as sdk_exc
from oslo_config import cfg

from magnum_lite import outage

AUTH_GROUP = 'keystone_auth'
#: Ids that go into one address of a list call: 36 characters each, well under the 8 KiB that
#: servers take.
IDS_PER_CALL = 100
#: The tag of every stack of ours. Those of releases before it have none.
TAG = 'magnum-lite'
#: Longest wait that a service can ask for, in seconds: a slip of its pen must not put work off for
#: days.
RETRY_AFTER_MAX_S = 600
#: Levels of nested stacks that are looked into; no template of ours has more.
NESTED_DEPTH = 5
_REVISION = re.compile(r'rev-(\d+)')
_UUID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')
_ENDS_IN_UUID = re.compile(f'{_UUID.pattern}$')
_PAGE = re.compile(r'\s*<(!doctype|html|\?xml)', re.IGNORECASE)


class CloudError(Exception):
    """A call to the cloud did not succeed. The text says which call, and what the cloud answered.

    `what` is the call alone, such as 'Looking at stacks', or '': by it the lines of a log can be
    put together."""

    what: str = ''


class NotFound(CloudError):
    """The thing is not there (404)."""


class Conflict(CloudError):
    """The thing is there already, is busy, or a name fits several (409)."""


class Rejected(CloudError):
    """The cloud understood and will not do it (other 4xx): trying again is no use."""


class Unreachable(CloudError):
    """The service is slow, away, overloaded or answers nonsense. `retry_after_s` is what it asked
    for, or None."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class _Overloaded(Exception):
    """A service says when to come again. Its client library may not pass that on, so
    `_heed_overload` raises this."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__(
            f'{_line(response.content) or "no reason given"} (HTTP {response.status_code})'
        )
        self.retry_after_s = _retry_after_s(response)


def _heed_overload(response: requests.Response, *_: Any, **__: Any) -> None:
    """Look at every answer before any library does. A hook of requests."""
    if response.status_code in (429, 503) and _retry_after_s(response) is not None:
        raise _Overloaded(response)


def _from_status(
    what: str,
    status: int,
    text: str,
    response: requests.Response | None,
    page: bool = False,
) -> CloudError:
    said = f'{what}: {text or "no reason given"} (HTTP {status})'
    # A page in HTML is of a proxy, which knows nothing of the thing that was asked for.
    page = page or (response is not None and 'html' in response.headers.get('Content-Type', ''))
    if status == 404 and not page:
        return NotFound(said)
    if status == 409:
        return Conflict(said)
    # 401: our token was refused although it was renewed; a role that is being granted may mend
    # that. 413 was what older services said for 429.
    if 400 <= status < 500 and status not in (401, 404, 408, 413, 429):
        return Rejected(said)
    return Unreachable(said, _retry_after_s(response))


def _from_heat(what: str, e: heat_exc.HTTPException) -> CloudError:
    error = e.error.get('error') if isinstance(e.error, dict) else None
    body = _text(e.message or '')
    text = (error.get('message') if isinstance(error, dict) else None) or body
    return _from_status(
        what, e.code if isinstance(e.code, int) else 500, _line(text), None, bool(_PAGE.match(body))
    )


def _error(what: str, e: Exception) -> CloudError:
    """The one of four that an exception of a library is."""
    match e:
        case _Overloaded():
            return Unreachable(f'{what}: {e}', e.retry_after_s)
        case heat_exc.HTTPException():
            return _from_heat(what, e)
        case sdk_exc.DuplicateResource():
            return Conflict(f'{what}: more than one fits, use the id')
        case sdk_exc.NotFoundException() if (
            e.response is None
        ):  # a search by name found nothing: there is no status
            return NotFound(f'{what}: {_line(e.details or e.message)}')
        case sdk_exc.HttpException():
            return _from_status(
                what, e.status_code or 500, _line(e.details or e.message), e.response
            )
        case ksa_exc.HttpError():
            return _from_status(what, e.http_status, _line(e.message), e.response)
        case ksa_exc.ClientException() | sdk_exc.SDKException() | heat_exc.BaseException():
            return Unreachable(f'{what}: {_line(e)}')
    # requests' own errors are OSErrors; the others are what a library does with an answer that is
    # no JSON or JSON of another shape, such as a proxy's HTML page.
    return Unreachable(f'{what}: the answer could not be read ({type(e).__name__}: {_line(e)})')


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn whatever a client library raises into a CloudError that says what was being done."""
    try:
        yield
    except CloudError as e:
        e.what = e.what or what
        raise
    except (
        _Overloaded,
        ksa_exc.ClientException,
        sdk_exc.SDKException,
        heat_exc.BaseException,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as e:
        error = _error(what, e)
        error.what = what
        raise error from e


_OUTAGES: dict[str, outage.Outage] = {}


@contextlib.contextmanager
def _calling(what: str) -> Iterator[None]:
    """The same for a call that is tried again until it works: the log says once a minute that it
    does not."""
    away: Unreachable | None = None
    try:
        with _translated(what):
            yield
    except Unreachable as e:
        away = e
    except CloudError:
        _works(what)
        raise
    if away is None:
        _works(what)
        return
    # Not inside the `except`, where the log would write the exception a second time.
    _OUTAGES.setdefault(
        what, outage.Outage(what, 'Clusters wait for it and are tried again')
    ).failed(str(away))
    raise away


def _works(what: str) -> None:
    """It answered, whatever it said."""
    if what in _OUTAGES:
        _OUTAGES[what].works()


def _text(said: object) -> str:
    return said.decode(errors='replace') if isinstance(said, bytes) else str(said)


def _line(said: object) -> str:
    text = _text(said)
    if _PAGE.match(text):
        text = re.sub(r'<[^<>]*>', ' ', text)
    return ' '.join(text.split())[:2000]


def _retry_after_s(response: requests.Response | None) -> float | None:
    """What Retry-After asks for. A date, its other form, is left alone: clocks differ."""
    said = response.headers.get('Retry-After', '').strip() if response is not None else ''
    return min(float(said), RETRY_AFTER_MAX_S) if said.isdecimal() else None


def _time(said: str) -> datetime.datetime:
    """Heat says UTC, some releases of it without saying so."""
    time = datetime.datetime.fromisoformat(said)
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Stack:
    """What the list of stacks says of one. `revision` is the number of its tag `rev-N`, 0 if it has
    none."""

    id: str
    name: str
    status: str
    reason: str
    revision: int = 0
    tags: tuple[str, ...] = ()
    created_at: datetime.datetime | None = None


@dataclass(frozen=True)
class FailedResource:
    """A resource of a stack, or of a stack nested in it, that failed.

    `stack_name` and `stack_id` are of the stack that holds it; `parent` is the resource in the
    stack above which is that stack, '' in the uppermost one."""

    name: str
    type: str
    reason: str
    stack_name: str
    physical_id: str
    stack_id: str = ''
    parent: str = ''


class Stacks:
    """The stacks of one project."""

    def __init__(self, heat: heat_client.Client, project_id: str) -> None:
        self._heat = heat
        self._project_id = project_id

    def create(
        self,
        name: str,
        *,
        template: str,
        files: dict[str, str],
        parameters: dict[str, Any],
        timeout_min: int,
        tags: Sequence[str] = (),
    ) -> str:
        """Create a stack and return its id. Raises Conflict if the project has one of that name
        already."""
        with _calling('Creating the stack'):
            made = self._heat.stacks.create(
                stack_name=name,
                template=template,
                files=files,
                parameters=parameters,
                timeout_mins=timeout_min,
                disable_rollback=True,
                **({'tags': ','.join(tags)} if tags else {}),
            )
            return str(made['stack']['id'])

    def update(
        self,
        stack_id: str,
        *,
        template: str,
        files: dict[str, str],
        parameters: dict[str, Any],
        timeout_min: int,
        tags: Sequence[str],
    ) -> None:
        """Begin to update a stack; one that is being created or updated is taken further from where
        it is.

        That may fail in members at work: Heat 27 was seen to end such an update in UPDATE_FAILED on
        a busy machine, and the next one, of the stack at rest, in UPDATE_COMPLETE. Parameters that
        are not named keep their values, hidden ones too. The tags change at once. Raises NotFound;
        Rejected if Heat finds fault with the template or the stack is being deleted; Conflict if it
        is busy; Unreachable, after which it may have begun all the same: the revision tells."""
        with _calling('Updating the stack'):
            self._heat.stacks.update(
                stack_id,
                existing=True,
                template=template,
                files=files,
                parameters=parameters,
                timeout_mins=timeout_min,
                disable_rollback=True,
                tags=','.join(tags),
            )

    def cancel(self, stack_id: str) -> None:
        """Stop a create or an update where it is; the stack is FAILED soon after. If it has ended,
        do nothing.

        Resources that are at work go on until they have ended. Raises NotFound if there is no such
        stack."""
        with _calling('Stopping the work on the stack'):
            try:
                self._heat.actions.cancel_without_rollback(stack_id)
            except heat_exc.HTTPBadRequest as e:
                if 'Cancelling update when stack is' not in _text(e.message):
                    raise

    def find(self, name: str) -> Stack | None:
        """The stack of that name, or None."""
        with _calling('Looking for the stack'):
            return next((s for s in self._list(name=name) if s.name == name), None)

    def look(self, ids: Collection[str]) -> dict[str, Stack]:
        """The stacks of these ids in one call; what is missing is not there any more.

        Many ids do not fit into an address: then all of the project are listed. Heat has no limit
        of its own, and its client asks again only if told a limit. The tag is no filter here: older
        stacks have none."""
        wanted = set(ids)
        if not wanted:
            return {}
        with _calling('Looking at stacks'):
            filters = {'id': sorted(wanted)} if len(wanted) <= IDS_PER_CALL else {}
            return {s.id: s for s in self._list(**filters) if s.id in wanted}

    def list_ours(self) -> list[Stack]:
        """Every root stack that has our tag or, as older ones, a name that ends in a uuid."""
        with _calling('Listing stacks'):
            return [s for s in self._list() if TAG in s.tags or _ENDS_IN_UUID.search(s.name)]

    def _list(self, **filters: Any) -> Iterator[Stack]:
        # A token with the role admin is shown the stacks of every project unless it names one.
        # Together with the filter `tags` Heat 27 answers any other filter with 500, or with
        # nothing.
        for stack in self._heat.stacks.list(filters={'tenant': self._project_id, **filters}):
            tags = tuple(getattr(stack, 'tags', None) or ())
            revisions = [int(found[1]) for found in map(_REVISION.fullmatch, tags) if found]
            yield Stack(
                stack.id,
                stack.stack_name,
                stack.stack_status,
                stack.stack_status_reason or '',
                max(revisions, default=0),
                tags,
                _time(stack.creation_time),
            )

    def outputs(self, stack_id: str) -> dict[str, Any]:
        """All outputs of a stack. Heat works them out at each call, so ask once, at the end."""
        with _calling('Reading the outputs of the stack'):
            stack = self._heat.stacks.get(stack_id, resolve_outputs=True)
            return {
                output['output_key']: output.get('output_value')
                for output in getattr(stack, 'outputs', ())
            }

    def failures(self, stack_id: str) -> list[FailedResource]:
        """Every resource that failed, nested stacks included, in one call."""
        with _calling('Reading the failed resources of the stack'):
            return [
                self._failed(r)
                for r in self._heat.resources.list(
                    stack_id, nested_depth=NESTED_DEPTH, filters={'status': 'FAILED'}
                )
            ]

    @staticmethod
    def _failed(resource: Any) -> FailedResource:
        # Heat says only in the end of a link which stack holds a resource: /stacks/NAME/ID.
        [holder] = [link['href'] for link in resource.links if link.get('rel') == 'stack']
        stack_name, stack_id = holder.split('/')[-2:]
        return FailedResource(
            resource.resource_name,
            resource.resource_type,
            resource.resource_status_reason or '',
            stack_name,
            resource.physical_resource_id or '',
            stack_id,
            getattr(resource, 'parent_resource', None) or '',
        )

    def progress(self, stack_id: str) -> tuple[int, int]:
        """How many resources are done, and of how many. Those of nested stacks count, as does a
        nested stack itself.

        Done is what is COMPLETE and was begun. The total grows while nested stacks are made. An
        update has done, by this, all that it did not come to yet; a delete takes resources off the
        total. Heat loads every resource for the answer: not a call for each round."""
        with _calling('Counting the resources of the stack'):
            found = [
                r.resource_status
                for r in self._heat.resources.list(stack_id, nested_depth=NESTED_DEPTH)
            ]
            return sum(s.endswith('_COMPLETE') and s != 'INIT_COMPLETE' for s in found), len(found)

    def delete(self, stack_id: str) -> None:
        """Begin to delete a stack. Raises NotFound if it is not there."""
        with _calling('Deleting the stack'):
            self._heat.stacks.delete(stack_id)


@dataclass(frozen=True)
class LoadBalancer:
    """What matters of an Octavia load balancer. `status` is its provisioning status."""

    id: str
    name: str
    description: str
    status: str


@dataclass(frozen=True)
class Login:
    """How what runs inside a cluster gets a token: as a user of its own. `ca` is PEM text, '' if
    none is needed."""

    user_id: str
    password: str = field(repr=False)
    auth_url: str
    region: str = ''
    ca: str = ''


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


def _in_catalog(own: session.Session, service: str, interface: str, region: str | None) -> bool:
    """Whether the catalog of a session's token has this service type."""
    try:
        return (
            own.get_endpoint(service_type=service, interface=interface, region_name=region)
            is not None
        )
    except ksa_exc.EndpointNotFound:  # what some plugins raise; others return None
        return False


class Lookups:
    """What a caller can see of the cloud. Each method raises NotFound, Conflict (ambiguous),
    Rejected or Unreachable."""

    def __init__(
        self, cloud: openstack.connection.Connection, interface: str, region: str | None
    ) -> None:
        self._cloud = cloud
        self._interface, self._region = interface, region

    def has(self, service: str) -> bool:
        """Whether the caller's catalog has this service type."""
        with _translated(f'Looking for the {service} service'):
            return _in_catalog(self._cloud.session, service, self._interface, self._region)

    def image(self, ref: str) -> Image:
        """An image by id or name."""
        with _translated(f'Image {ref}'):
            image = self._cloud.image.find_image(ref, ignore_missing=False)
            properties = image.properties or {}
            return Image(
                image.id,
                image.name,
                image.os_distro or properties.get('os_distro'),
                properties.get('magnum_driver'),
            )

    def flavor(self, ref: str) -> Flavor:
        """A flavor by id or name."""
        with _translated(f'Flavor {ref}'):
            flavor = self._cloud.compute.find_flavor(ref, ignore_missing=False)
            return Flavor(flavor.id, flavor.disk)

    def network(self, ref: str, *, external: bool = False) -> str:
        """The id of a network by id or name; `external`: only one that leads out of the cloud
        counts."""
        with _translated(f'{"External network" if external else "Network"} {ref}'):
            # As Neutron spells it: the SDK sends it with a look for an id, too, where Neutron takes
            # nothing else.
            only = {'router:external': True} if external else {}
            found = self._cloud.network.find_network(ref, ignore_missing=False, **only)
            if external and not found.is_router_external:  # a look for an id does not go by it
                raise sdk_exc.NotFoundException(f'Network {ref} does not lead out of the cloud')
            return str(found.id)

    def subnet(self, ref: str) -> str:
        """The id of a subnet by id or name."""
        with _translated(f'Subnet {ref}'):
            return str(self._cloud.network.find_subnet(ref, ignore_missing=False).id)

    def public_key(self, keypair: str) -> str:
        """The public key of a keypair of the caller's own."""
        with _translated(f'Keypair {keypair}'):
            return str(self._cloud.compute.find_keypair(keypair, ignore_missing=False).public_key)


#: Owners of ports that Neutron removes by itself, and of a router interface's own port.
HARMLESS_OWNERS = ('network:dhcp', 'network:distributed')
ROUTER_OWNER = 'network:router_interface'
SENTENCES = 10


def _ports_at(resource_type: str, physical_id: str) -> dict[str, str]:
    """The filter of Neutron's list of ports for those that use a thing, both as Heat has them; {}
    if not known."""
    match resource_type:
        case 'OS::Neutron::Net':
            return {'network_id': physical_id}
        case 'OS::Neutron::Subnet':
            return {'fixed_ips': f'subnet_id={physical_id}'}
        case 'OS::Neutron::RouterInterface' if ':subnet_id=' in physical_id:
            return {'fixed_ips': physical_id.partition(':')[2]}
        case 'OS::Neutron::SecurityGroup':
            return {'security_groups': physical_id}
    return {}


class Cloud:
    """The cloud as the service sees it. One per process; safe for threads."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._group = conf[AUTH_GROUP]
        # No call may take half a lease, and one call of ours may need a token first.
        self._timeout_s = min(self._group.timeout or 3600, conf.conductor.lease * 0.4)
        self._discovery: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._sessions: dict[str, session.Session] = {}

    def _session(self, auth: Any) -> session.Session:
        group = self._group
        made = session.Session(
            auth=auth,
            verify=not group.insecure and (group.cafile or True),
            timeout=self._timeout_s,
            cert=(group.certfile, group.keyfile)
            if group.certfile and group.keyfile
            else group.certfile,
            discovery_cache=self._discovery,
        )
        made.session.hooks['response'].append(_heed_overload)
        return made

    def _connection(self, own: session.Session) -> openstack.connection.Connection:
        return openstack.connection.Connection(
            session=own,
            region_name=self._group.region_name,
            interface=self._group.interface,
            app_name='magnum-lite',
        )

    @functools.cached_property
    def _own(self) -> openstack.connection.Connection:
        return self._connection(
            self._session(loading.load_auth_from_conf_options(self._conf, AUTH_GROUP))
        )

    @property
    def _keystone(self) -> Any:
        """The SDK's Keystone, of version 3: its own types do not say which."""
        return self._own.identity

    @functools.cached_property
    def _role_ids(self) -> list[str]:
        return self._ids_of(self._conf.identity.project_roles)

    def _ids_of(self, roles: list[str]) -> list[str]:
        return [self._keystone.find_role(name, ignore_missing=False).id for name in roles]

    @functools.cached_property
    def _user_role_ids(self) -> list[str]:
        return self._ids_of(self._conf.trust.roles or self._conf.identity.project_roles)

    @functools.cached_property
    def _user_domain_id(self) -> str:
        group = self._conf.trust
        return str(
            group.trustee_domain_id
            or self._keystone.find_domain(group.trustee_domain_name, ignore_missing=False).id
        )

    def _session_in(self, project_id: str, as_admin: bool = False) -> session.Session:
        """The service user's session in a project, one for all that is done there; `as_admin`: in
        its own project."""
        if as_admin:
            return self._own.session
        with self._lock:
            if project_id not in self._sessions:
                self._sessions[project_id] = self._session(
                    loading.load_auth_from_conf_options(
                        self._conf,
                        AUTH_GROUP,
                        project_id=project_id,
                        project_name=None,
                        project_domain_id=None,
                        project_domain_name=None,
                        system_scope=None,
                        domain_id=None,
                        domain_name=None,
                    )
                )
            return self._sessions[project_id]

    def lookups(self, auth: Any) -> Lookups:
        """Look-ups with the token of the caller whose keystoneauth plugin `auth` is."""
        return Lookups(
            self._connection(self._session(auth)), self._group.interface, self._group.region_name
        )

    def stacks(self, project_id: str, *, as_admin: bool = False) -> Stacks:
        """The stacks of a project, as the service user with its role there.

        `as_admin`: with the token of the service's own project, for a project that is disabled or
        gone. Finding, looking, failures, progress and deleting were tried so. Heat must take its
        role for `context_is_admin`, else every call raises Rejected, never NotFound. Raises
        Unreachable if the catalog cannot be read."""
        where = {'endpoint_override': self._heat_of(project_id)} if as_admin else {}
        return Stacks(
            heat_client.Client(
                session=self._session_in(project_id, as_admin),
                service_type='orchestration',
                interface=self._group.interface,
                region_name=self._group.region_name,
                **where,
            ),
            project_id,
        )

    def _heat_of(self, project_id: str) -> str:
        """Heat's address for a project that no token of ours is of.

        At the address of its own project Heat would show a service that is no admin nothing at all,
        which would look as if the stack were gone; at this one it says 403."""
        with _calling('Looking for the orchestration service'):
            own = self._own.session
            address = (
                own.get_endpoint(
                    service_type='orchestration',
                    interface=self._group.interface,
                    region_name=self._group.region_name,
                )
                or ''
            )
            ours = own.get_project_id()
            if not ours or ours not in address:
                raise Unreachable(
                    f'Looking for the orchestration service: no project in its address {address!r}'
                )
            return address.replace(ours, project_id)

    def _role_path(self, project_id: str, role_id: str, user_id: str = '') -> str:
        who = user_id or self._own.session.get_user_id()
        return f'/projects/{project_id}/users/{who}/roles/{role_id}'

    def grant_roles(self, project_id: str) -> None:
        """Give the service user its roles on a project. Doing it twice does no harm."""
        with _calling('Granting the service its role on the project'):
            for role_id in self._role_ids:
                self._keystone.put(self._role_path(project_id, role_id), raise_exc=True)

    def revoke_roles(self, project_id: str) -> None:
        """Take the roles back. A role, or a project, that is not there is what was wanted."""
        with _calling('Looking for the roles of the service'):
            role_ids = self._role_ids
        for role_id in role_ids:
            with (
                contextlib.suppress(NotFound),
                _calling('Taking back the role of the service on the project'),
            ):
                self._keystone.delete(self._role_path(project_id, role_id), raise_exc=True)
        with self._lock:
            self._sessions.pop(project_id, None)

    def projects_with_role(self) -> list[str]:
        """Ids of the projects on which the service user was granted a role of `project_roles`
        itself.

        That is not by inheritance, and not the project of its own login.
        """
        with _calling('Listing the roles of the service'):
            own = self._own.session
            scopes = [
                a.scope
                for role_id in self._role_ids
                for a in self._keystone.role_assignments(user_id=own.get_user_id(), role_id=role_id)
            ]
            found = {
                s['project']['id']
                for s in scopes
                if 'project' in s and 'OS-INHERIT:inherited_to' not in s
            }
            return sorted(found - {own.get_project_id()})

    def make_user(self, name: str, password: str) -> str:
        """Make the user that a cluster has in the cloud, and return its id. One of that name gets
        this password.

        The site's rules for the passwords of people do not hold for it: nobody would change it when
        it expires."""
        with _calling('Making the user of the cluster'):
            identity = self._keystone
            user = {
                'password': password,
                'enabled': True,
                'options': dict.fromkeys(
                    (
                        'ignore_change_password_upon_first_use',
                        'ignore_password_expiry',
                        'ignore_lockout_failure_attempts',
                        'lock_password',
                    ),
                    True,
                ),
            }
            try:
                return str(
                    identity.post(
                        '/users',
                        raise_exc=True,
                        json={
                            'user': user
                            | {
                                'name': name,
                                'domain_id': self._user_domain_id,
                                'description': f'What runs inside cluster {name}',
                            }
                        },
                    ).json()['user']['id']
                )
            except ksa_exc.Conflict:
                user_id = str(
                    identity.find_user(
                        name, ignore_missing=False, domain_id=self._user_domain_id
                    ).id
                )
                identity.patch(f'/users/{user_id}', raise_exc=True, json={'user': user})
                return user_id

    def grant_user(self, user_id: str, project_id: str) -> None:
        """Give the user of a cluster its roles on the project. Doing it twice does no harm."""
        with _calling('Granting the user of the cluster its role on the project'):
            for role_id in self._user_role_ids:
                self._keystone.put(self._role_path(project_id, role_id, user_id), raise_exc=True)

    def remove_user(self, name: str, user_id: str = '') -> None:
        """Remove the user of a cluster, and with it its roles and tokens. One that is not there is
        what was wanted."""
        with contextlib.suppress(NotFound), _calling('Removing the user of the cluster'):
            identity = self._keystone
            user_id = (
                user_id
                or identity.find_user(name, ignore_missing=False, domain_id=self._user_domain_id).id
            )
            identity.delete(f'/users/{user_id}', raise_exc=True)

    def cluster_users(self) -> dict[str, str]:
        """Ids by name of the users that are named after a uuid in the domain of clusters' users;
        none without one."""
        if not (self._conf.trust.trustee_domain_id or self._conf.trust.trustee_domain_name):
            return {}
        with _calling('Listing the users of clusters'):
            return {
                user.name: user.id
                for user in self._keystone.users(domain_id=self._user_domain_id)
                if _UUID.fullmatch(user.name)
            }

    def login(self, user_id: str, password: str) -> Login:
        """How a user logs in from inside a cluster, by what the catalog and the configuration
        say."""
        ca, region = self._conf.drivers.openstack_ca_file, self._group.region_name
        interface = self._conf.trust.trustee_keystone_interface
        with _calling('Looking for Keystone in the catalog'):
            url = self._own.session.get_endpoint(
                service_type='identity', region_name=region, interface=interface
            )
            if not url:
                raise Rejected(
                    f'Looking for Keystone in the catalog: it has no {interface} address of '
                    f'identity{f" in region {region}" if region else ""} (see [trust] '
                    'trustee_keystone_interface)'
                )
            return Login(
                user_id,
                password,
                f'{url.rstrip("/").removesuffix("/v3")}/v3',
                region or '',
                pathlib.Path(ca).read_text() if ca else '',
            )

    def project_state(self, project_id: str) -> str:
        """Whether tokens can be had for a project: 'enabled', 'disabled' (it, or its domain) or
        'gone'."""
        try:
            with _calling('Looking at the project'):
                project = self._keystone.get_project(project_id)
                enabled = (
                    project.is_enabled and self._keystone.get_domain(project.domain_id).is_enabled
                )
        except NotFound:
            return 'gone'
        return 'enabled' if enabled else 'disabled'

    def load_balancers(
        self, project_id: str, text: str, *, as_admin: bool = False
    ) -> list[LoadBalancer]:
        """The load balancers of a project with `text` in their description or in a tag; none
        without Octavia.

        Raises Rejected where Octavia wants a role that the service user does not have there.
        """
        with _calling('Looking for load balancers'):
            own = self._session_in(project_id, as_admin)
            if not _in_catalog(
                own, 'load-balancer', self._group.interface, self._group.region_name
            ):
                return []
            return [
                LoadBalancer(b.id, b.name, b.description or '', b.provisioning_status)
                for b in self._connection(own).load_balancer.load_balancers(project_id=project_id)
                if any(text in said for said in (b.description or '', *(b.tags or ())))
            ]

    def delete_load_balancer(
        self, project_id: str, load_balancer_id: str, *, as_admin: bool = False
    ) -> None:
        """Begin to delete a load balancer and all in it, its floating IPs first: Octavia leaves
        those behind.

        One that is not there is done. Raises Conflict while Octavia works on it (PENDING_*): try
        again later."""
        with contextlib.suppress(NotFound), _calling('Deleting the load balancer'):
            cloud = self._connection(self._session_in(project_id, as_admin))
            found = cloud.load_balancer.get_load_balancer(load_balancer_id)
            if found.provisioning_status.startswith('PENDING_'):
                raise Conflict(
                    f'Deleting the load balancer: {load_balancer_id} is {found.provisioning_status}'
                )
            # Without a port the filter would be none, and every address of the project be meant.
            for address in (
                cloud.network.ips(port_id=found.vip_port_id) if found.vip_port_id else ()
            ):
                cloud.network.delete_ip(address)
            cloud.load_balancer.delete_load_balancer(load_balancer_id, cascade=True)

    def blockers(
        self, project_id: str, resource_type: str, physical_id: str, *, as_admin: bool = False
    ) -> list[str]:
        """Sentences that name the ports which keep a Neutron thing from being deleted; none for
        types not known.

        `resource_type` and `physical_id` are as Heat has them: a router interface is
        ROUTER:subnet_id=SUBNET."""
        filters = _ports_at(resource_type, physical_id) if physical_id else {}
        if not filters:  # without any, all ports would be meant
            return []
        harmless = HARMLESS_OWNERS + (
            (ROUTER_OWNER,) if resource_type == 'OS::Neutron::RouterInterface' else ()
        )
        with _calling('Looking for what blocks the delete'):
            network = self._connection(self._session_in(project_id, as_admin)).network
            ports = [p for p in network.ports(**filters) if p.device_owner not in harmless]
        said = [
            f'Port {p.name or "without a name"} ({p.id}) of {p.device_owner or "nobody"} '
            f'{p.device_id or ""}'.strip()
            for p in ports[:SENTENCES]
        ]
        return said + ([f'and {len(ports) - SENTENCES} more'] if len(ports) > SENTENCES else [])

    def check_identity(self, *, timeout_s: float) -> None:
        """Have Keystone answer, for which no token is needed. Raises CloudError."""
        with _translated('Looking at Keystone'):
            auth: Any = self._own.session.auth
            self._own.session.get(auth.auth_url, authenticated=False, timeout=timeout_s).json()

    def check_orchestration(self, *, timeout_s: float) -> None:
        """Have Heat answer, API and engine: the least call that an API process cannot answer alone.
        Raises Unreachable."""
        with contextlib.suppress(Rejected, NotFound), _translated('Looking at Heat'):
            self._own.session.get(
                '/build_info',
                timeout=timeout_s,
                endpoint_filter={
                    'service_type': 'orchestration',
                    'interface': self._group.interface,
                    'region_name': self._group.region_name,
                },
            )

    def service_roles(self) -> tuple[list[str], list[str]]:
        """The roles that the service user has on its own project, and those of `project_roles` that
        do not exist."""
        with _translated('Looking at the roles of the service'):
            own = self._own
            auth: Any = own.session.auth
            roles = list(auth.get_access(own.session).role_names)
            known = {role.name for role in self._keystone.roles()}
            return roles, [name for name in self._conf.identity.project_roles if name not in known]
