"""The only module that calls the cloud: Keystone sessions, Heat stacks, role grants, look-ups.

`Cloud` is what conductors, `doctor` and `upgrade` use; `Lookups`, which `api.preflight` uses, sees
what one caller can see. `tests/fakes.py` has stand-ins with the same signatures. Nothing here reads
or writes the database.

The service acts as itself, with a role on the project that it works for, and with one token for
each project and hour (doc/contributor/identity.md: tried on a real cloud). The look-ups for a
request are made with the caller's own token and end with the request.

Every failure leaves this module as one of four exceptions, because callers decide by nothing else:
`NotFound`, `Conflict`, `Rejected`, `Unreachable`. What is none of the first three is `Unreachable`:
a service that is slow, broken, or sends an answer that cannot be read.

A token of a project does not work once Keystone has disabled or removed the project. For such a
project there is `as_admin`: the same calls with the token of the service's own project, which must
have the role admin. Seen on Heat 27: with that token it shows and deletes the stacks of such a
project, and uses it to delete the resources in them."""

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
#: Ids in the URL of one list call. At 36 characters each they stay well under the 8 KiB that
#: servers accept.
IDS_PER_CALL = 100
#: The tag of every stack that this program creates. Stacks of releases before the tag have none.
TAG = 'magnum-lite'
#: Upper bound on Retry-After, in seconds: a wrong header must not postpone work for days.
RETRY_AFTER_MAX_S = 600
#: Levels of nested stacks that calls descend into. No template of this program has more.
NESTED_DEPTH = 5
_REVISION = re.compile(r'rev-(\d+)')
_UUID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')
_ENDS_IN_UUID = re.compile(f'{_UUID.pattern}$')
_PAGE = re.compile(r'\s*<(!doctype|html|\?xml)', re.IGNORECASE)


class CloudError(Exception):
    """A call to the cloud failed. The text names the call, and what the cloud answered.

    `what` is the call alone, such as 'Looking at stacks', or ''. Log lines can be grouped by it."""

    what: str = ''


class NotFound(CloudError):
    """The thing does not exist (404)."""


class Conflict(CloudError):
    """The thing exists already, is busy, or a name fits several things (409)."""


class Rejected(CloudError):
    """The cloud understood the request and declines it (other 4xx). A retry cannot help."""


class Unreachable(CloudError):
    """The service is slow, down, overloaded, or its answer makes no sense. A retry may help.

    `retry_after_s` is the delay that the service asked for, or None."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class _Overloaded(Unreachable):
    """A service answered with Retry-After. Its text does not name the call yet."""


def _heed_overload(response: requests.Response, *_: Any, **__: Any) -> None:
    """requests hook: raise on 429 or 503 with Retry-After, before a library hides it."""
    retry_after_s = _read_retry_after(response)
    if response.status_code in (429, 503) and retry_after_s is not None:
        reason = _make_line(response.content) or 'no reason given'
        raise _Overloaded(f'{reason} (HTTP {response.status_code})', retry_after_s)


def _convert_status(
    what: str,
    status: int,
    text: str,
    response: requests.Response | None,
    is_page: bool = False,
) -> CloudError:
    message = f'{what}: {text or "no reason given"} (HTTP {status})'
    if response is not None and 'html' in response.headers.get('Content-Type', ''):
        is_page = True
    # An HTML page comes from a proxy, which does not know whether the thing exists.
    if status == 404 and not is_page:
        return NotFound(message)
    if status == 409:
        return Conflict(message)
    # 401: the token was renewed and still refused; a role that is just being granted may cure it.
    # 413: what older services sent in place of 429.
    if 400 <= status < 500 and status not in (401, 404, 408, 413, 429):
        return Rejected(message)
    return Unreachable(message, _read_retry_after(response))


def _convert_heat_error(what: str, e: heat_exc.HTTPException) -> CloudError:
    error = e.error.get('error') if isinstance(e.error, dict) else None
    body = _decode_text(e.message or '')
    text = error.get('message') if isinstance(error, dict) else None
    return _convert_status(
        what,
        e.code if isinstance(e.code, int) else 500,
        _make_line(text or body),
        None,
        is_page=bool(_PAGE.match(body)),
    )


def _convert_error(what: str, e: Exception) -> CloudError:
    """Return the one of the four that an exception of a library stands for."""
    match e:
        case _Overloaded():
            return Unreachable(f'{what}: {e}', e.retry_after_s)
        case heat_exc.HTTPException():
            return _convert_heat_error(what, e)
        case sdk_exc.DuplicateResource():
            return Conflict(f'{what}: more than one fits, use the id')
        # A search by name had no result. There is no response, and so no status.
        case sdk_exc.NotFoundException() if e.response is None:
            return NotFound(f'{what}: {_make_line(e.details or e.message)}')
        case sdk_exc.HttpException():
            return _convert_status(
                what, e.status_code or 500, _make_line(e.details or e.message), e.response
            )
        case ksa_exc.HttpError():
            return _convert_status(what, e.http_status, _make_line(e.message), e.response)
        case ksa_exc.ClientException() | sdk_exc.SDKException() | heat_exc.BaseException():
            return Unreachable(f'{what}: {_make_line(e)}')
    # The errors of requests are OSErrors. The others are what libraries raise on an answer that is
    # no JSON, or JSON of another shape, such as a proxy's HTML page.
    return Unreachable(
        f'{what}: the answer could not be read ({type(e).__name__}: {_make_line(e)})'
    )


@contextlib.contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Turn what a client library raises in the block into a CloudError that names the call."""
    try:
        yield
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
        error = _convert_error(what, e)
        error.what = what
        raise error from e
    except CloudError as e:
        # From a block inside this one, or raised by hand.
        e.what = e.what or what
        raise


_OUTAGES: dict[str, outage.Outage] = {}


@contextlib.contextmanager
def _track_outage(what: str) -> Iterator[None]:
    """As `_translate_errors`, for calls that are retried until they succeed: an outage is logged,
    once a minute."""
    error: CloudError | None = None
    try:
        with _translate_errors(what):
            yield
    except CloudError as e:
        error = e
    # Logged outside the `except`, in which oslo.log would append the active exception.
    if isinstance(error, Unreachable):
        _OUTAGES.setdefault(
            what, outage.Outage(what, 'Clusters wait for it and are tried again')
        ).record_failure(str(error))
    elif what in _OUTAGES:
        # The service answers again, even if it says no.
        _OUTAGES[what].record_success()
    if error is not None:
        raise error


def _decode_text(message: object) -> str:
    return message.decode(errors='replace') if isinstance(message, bytes) else str(message)


def _make_line(message: object) -> str:
    """Put a message into one line of at most 2,000 characters, without the tags of a page."""
    text = _decode_text(message)
    if _PAGE.match(text):
        text = re.sub(r'<[^<>]*>', ' ', text)
    return ' '.join(text.split())[:2000]


def _read_retry_after(response: requests.Response | None) -> float | None:
    """Return the seconds of Retry-After, or None. Its other form, a date, is ignored: clocks
    differ."""
    if response is None:
        return None
    value = response.headers.get('Retry-After', '').strip()
    return min(float(value), RETRY_AFTER_MAX_S) if value.isdecimal() else None


def _parse_time(text: str) -> datetime.datetime:
    """Parse a time of Heat. It is in UTC, and some releases leave out the zone."""
    time = datetime.datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Stack:
    """A stack as the list of stacks shows it.

    `revision` is the N of its tag `rev-N`, 0 if it has none."""

    id: str
    name: str
    status: str
    reason: str
    revision: int = 0
    tags: tuple[str, ...] = ()
    created_at: datetime.datetime | None = None


@dataclass(frozen=True)
class FailedResource:
    """A failed resource of a stack, or of a stack nested in it.

    `stack_name` and `stack_id` are those of the stack that contains it. `parent` is the name of the
    resource, in the stack above, that is this stack; '' in the root stack."""

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
        """Begin to create a stack and return its id.

        Raises Conflict if the project has a stack of that name."""
        with _track_outage('Creating the stack'):
            response = self._heat.stacks.create(
                stack_name=name,
                template=template,
                files=files,
                parameters=parameters,
                timeout_mins=timeout_min,
                disable_rollback=True,
                **({'tags': ','.join(tags)} if tags else {}),
            )
            return str(response['stack']['id'])

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
        """Begin to update a stack. A create or update that is under way is replaced: Heat goes on
        from the state that the stack is in.

        That may fail in resources which are at work: Heat 27 was seen to end such an update in
        UPDATE_FAILED on a busy machine, and the next one, of the stack at rest, in UPDATE_COMPLETE.

        Parameters that are not named keep their values, hidden ones too. The tags change at once.
        Raises NotFound; Rejected if Heat finds fault with the template or the stack is being
        deleted; Conflict if it is busy; Unreachable, after which the update may have begun or not:
        the revision in the tags tells."""
        with _track_outage('Updating the stack'):
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
        """Stop a create or an update where it is. The stack becomes FAILED soon after. Does nothing
        if the create or update has ended.

        Resources that are at work go on until they have ended. Raises NotFound if there is no such
        stack."""
        with _track_outage('Stopping the work on the stack'):
            try:
                self._heat.actions.cancel_without_rollback(stack_id)
            except heat_exc.HTTPBadRequest as e:
                # Heat's answer for a stack at rest.
                if 'Cancelling update when stack is' not in _decode_text(e.message):
                    raise

    def find(self, name: str) -> Stack | None:
        """Return the stack of that name, or None."""
        with _track_outage('Looking for the stack'):
            for stack in self._list(name=name):
                if stack.name == name:
                    return stack
            return None

    def list_by_ids(self, ids: Collection[str]) -> dict[str, Stack]:
        """Return the stacks of these ids, by id, in one call. Ids without a stack are left out.

        More than `IDS_PER_CALL` ids do not fit into a URL, so then all stacks of the project are
        listed. Heat has no page limit of its own, and its client pages only if given one. The tag
        is no filter here, because older stacks have none."""
        wanted = set(ids)
        if not wanted:
            return {}
        with _track_outage('Looking at stacks'):
            filters = {'id': sorted(wanted)} if len(wanted) <= IDS_PER_CALL else {}
            return {s.id: s for s in self._list(**filters) if s.id in wanted}

    def list_ours(self) -> list[Stack]:
        """Return every root stack with `TAG` or, as older ones, with a name that ends in a uuid."""
        with _track_outage('Listing stacks'):
            return [s for s in self._list() if TAG in s.tags or _ENDS_IN_UUID.search(s.name)]

    def _list(self, **filters: Any) -> Iterator[Stack]:
        # A token with the role admin sees the stacks of every project, unless the filter names one.
        # The filter `tags` is not used: Heat 27 answers it together with any other filter with 500,
        # or with an empty list.
        for stack in self._heat.stacks.list(filters={'tenant': self._project_id, **filters}):
            tags = tuple(getattr(stack, 'tags', None) or ())
            revisions = [int(match[1]) for match in map(_REVISION.fullmatch, tags) if match]
            yield Stack(
                stack.id,
                stack.stack_name,
                stack.stack_status,
                stack.stack_status_reason or '',
                max(revisions, default=0),
                tags,
                _parse_time(stack.creation_time),
            )

    def get_outputs(self, stack_id: str) -> dict[str, Any]:
        """Return all outputs of a stack, by name.

        Heat computes them at each call, so call this once, when the stack is done."""
        with _track_outage('Reading the outputs of the stack'):
            stack = self._heat.stacks.get(stack_id, resolve_outputs=True)
            return {
                output['output_key']: output.get('output_value')
                for output in getattr(stack, 'outputs', ())
            }

    def list_failures(self, stack_id: str) -> list[FailedResource]:
        """Return every failed resource of a stack and of the stacks nested in it, in one call."""
        with _track_outage('Reading the failed resources of the stack'):
            return [
                self._read_failure(resource)
                for resource in self._heat.resources.list(
                    stack_id, nested_depth=NESTED_DEPTH, filters={'status': 'FAILED'}
                )
            ]

    @staticmethod
    def _read_failure(resource: Any) -> FailedResource:
        # Which stack contains a resource is only in the end of a link: /stacks/NAME/ID.
        [address] = [link['href'] for link in resource.links if link.get('rel') == 'stack']
        stack_name, stack_id = address.split('/')[-2:]
        return FailedResource(
            resource.resource_name,
            resource.resource_type,
            resource.resource_status_reason or '',
            stack_name,
            resource.physical_resource_id or '',
            stack_id,
            getattr(resource, 'parent_resource', None) or '',
        )

    def get_progress(self, stack_id: str) -> tuple[int, int]:
        """Return how many resources are done, and how many there are, nested stacks included.

        Done means COMPLETE, but not INIT_COMPLETE, which has not begun. A nested stack counts as a
        resource, too. The total grows while nested stacks are created. In an update, resources that
        it has not come to yet count as done; a delete removes resources from the total. Heat loads
        every resource for the answer, so do not call this in each round."""
        with _track_outage('Counting the resources of the stack'):
            statuses = [
                resource.resource_status
                for resource in self._heat.resources.list(stack_id, nested_depth=NESTED_DEPTH)
            ]
            done = sum(s.endswith('_COMPLETE') and s != 'INIT_COMPLETE' for s in statuses)
            return done, len(statuses)

    def delete(self, stack_id: str) -> None:
        """Begin to delete a stack. Raises NotFound if it does not exist."""
        with _track_outage('Deleting the stack'):
            self._heat.stacks.delete(stack_id)


@dataclass(frozen=True)
class LoadBalancer:
    """An Octavia load balancer. `status` is its provisioning status."""

    id: str
    name: str
    description: str
    status: str


@dataclass(frozen=True)
class Login:
    """How software inside a cluster gets a token, as the cluster's own user.

    `ca` is PEM text, '' if none is needed."""

    user_id: str
    password: str = field(repr=False)
    auth_url: str
    region: str = ''
    ca: str = ''


@dataclass(frozen=True)
class Image:
    """A Glance image, with the properties that choose a driver."""

    id: str
    name: str
    os_distro: str | None
    driver: str | None


@dataclass(frozen=True)
class Flavor:
    """A Nova flavor."""

    id: str
    disk_gb: int


def _has_service(own: session.Session, service: str, where: dict[str, Any]) -> bool:
    """Whether the catalog of a session's token has this service type."""
    try:
        return own.get_endpoint(service_type=service, **where) is not None
    except ksa_exc.EndpointNotFound:
        # Some auth plugins raise this; others return None.
        return False


class Lookups:
    """What a caller can see of the cloud.

    Each method raises NotFound, Conflict (a name fits several things), Rejected or Unreachable."""

    def __init__(
        self, cloud: openstack.connection.Connection, interface: str, region_name: str | None
    ) -> None:
        self._cloud = cloud
        self._where = {'interface': interface, 'region_name': region_name}

    def has(self, service: str) -> bool:
        """Whether the caller's catalog has this service type."""
        with _translate_errors(f'Looking for the {service} service'):
            return _has_service(self._cloud.session, service, self._where)

    def get_image(self, ref: str) -> Image:
        """Get an image by id or name."""
        with _translate_errors(f'Image {ref}'):
            image = self._cloud.image.find_image(ref, ignore_missing=False)
            properties = image.properties or {}
            return Image(
                image.id,
                image.name,
                image.os_distro or properties.get('os_distro'),
                properties.get('magnum_driver'),
            )

    def get_flavor(self, ref: str) -> Flavor:
        """Get a flavor by id or name."""
        with _translate_errors(f'Flavor {ref}'):
            flavor = self._cloud.compute.find_flavor(ref, ignore_missing=False)
            return Flavor(flavor.id, flavor.disk)

    def get_network_id(self, ref: str, *, external: bool = False) -> str:
        """Get the id of a network by id or name.

        `external`: only networks that lead out of the cloud count."""
        with _translate_errors(f'{"External network" if external else "Network"} {ref}'):
            # Spelt as Neutron spells it: the SDK also sends it with a GET by id, where Neutron
            # accepts no other spelling.
            filters = {'router:external': True} if external else {}
            network = self._cloud.network.find_network(ref, ignore_missing=False, **filters)
            # Neutron ignores the filter in a GET by id.
            if external and not network.is_router_external:
                raise sdk_exc.NotFoundException(f'Network {ref} does not lead out of the cloud')
            return str(network.id)

    def get_subnet_id(self, ref: str) -> str:
        """Get the id of a subnet by id or name."""
        with _translate_errors(f'Subnet {ref}'):
            return str(self._cloud.network.find_subnet(ref, ignore_missing=False).id)

    def get_public_key(self, keypair: str) -> str:
        """Get the public key of one of the caller's own keypairs."""
        with _translate_errors(f'Keypair {keypair}'):
            return str(self._cloud.compute.find_keypair(keypair, ignore_missing=False).public_key)


#: `device_owner` of ports that Neutron removes by itself.
HARMLESS_OWNERS = ('network:dhcp', 'network:distributed')
#: `device_owner` of the port that a router interface is.
ROUTER_OWNER = 'network:router_interface'
#: Sentences of `Cloud.list_blockers` that name a port each.
SENTENCES = 10


def _build_port_filter(resource_type: str, physical_id: str) -> dict[str, str]:
    """Build the filter of Neutron's list of ports for those that use a resource.

    Type and id are as Heat has them. Returns {} for a type that is not known."""
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
    """The cloud as the service user sees it. One per process; safe for threads."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._group = conf[AUTH_GROUP]
        #: Which of the addresses in a catalog are called.
        self._where = {
            'interface': self._group.interface,
            'region_name': self._group.region_name,
        }
        self._heat = {'service_type': 'orchestration', **self._where}
        # A call must end within half a lease, and one call here may have to fetch a token first.
        self._timeout_s = min(self._group.timeout or 3600, conf.conductor.lease * 0.4)
        self._discovery: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._sessions: dict[str, session.Session] = {}

    def _make_session(self, auth: Any) -> session.Session:
        client = loading.load_session_from_conf_options(
            self._conf,
            AUTH_GROUP,
            auth=auth,
            timeout=self._timeout_s,
            discovery_cache=self._discovery,
        )
        client.session.hooks['response'].append(_heed_overload)
        return client

    def _connect(self, own: session.Session) -> openstack.connection.Connection:
        return openstack.connection.Connection(session=own, app_name='magnum-lite', **self._where)

    @functools.cached_property
    def _own(self) -> openstack.connection.Connection:
        """The connection in the service's own project."""
        return self._connect(
            self._make_session(loading.load_auth_from_conf_options(self._conf, AUTH_GROUP))
        )

    @property
    def _keystone(self) -> Any:
        """The SDK's Keystone proxy, which is of version 3. Its own types do not say so."""
        return self._own.identity

    @functools.cached_property
    def _role_ids(self) -> list[str]:
        return self._find_role_ids(self._conf.identity.project_roles)

    def _find_role_ids(self, roles: list[str]) -> list[str]:
        return [self._keystone.find_role(name, ignore_missing=False).id for name in roles]

    @functools.cached_property
    def _user_role_ids(self) -> list[str]:
        return self._find_role_ids(self._conf.trust.roles or self._conf.identity.project_roles)

    @functools.cached_property
    def _user_domain_id(self) -> str:
        group = self._conf.trust
        return str(
            group.trustee_domain_id
            or self._keystone.find_domain(group.trustee_domain_name, ignore_missing=False).id
        )

    def _get_session(self, project_id: str, as_admin: bool = False) -> session.Session:
        """Return the service user's session in a project, which all calls for the project share.

        `as_admin`: its session in its own project."""
        if as_admin:
            return self._own.session
        with self._lock:
            if project_id not in self._sessions:
                self._sessions[project_id] = self._make_session(
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
        """Return look-ups with the token of a caller, whose keystoneauth plugin is `auth`."""
        return Lookups(self._connect(self._make_session(auth)), **self._where)

    def stacks(self, project_id: str, *, as_admin: bool = False) -> Stacks:
        """Return the stacks of a project, as the service user with its role there sees them.

        `as_admin`: use the token of the service's own project, for a project that is disabled or
        gone. This was tried for find, list_by_ids, list_failures, get_progress and delete. Heat
        must count the service's role as `context_is_admin`, else every call raises Rejected, never
        NotFound. Raises Unreachable if the catalog cannot be read."""
        override = {'endpoint_override': self._build_heat_address(project_id)} if as_admin else {}
        return Stacks(
            heat_client.Client(
                session=self._get_session(project_id, as_admin), **self._heat, **override
            ),
            project_id,
        )

    def _build_heat_address(self, project_id: str) -> str:
        """Build Heat's address for a project that the service has no token of.

        At the address of the service's own project Heat would show a service that is no admin an
        empty list, as if the stacks had been deleted. At this address it answers 403."""
        with _track_outage('Looking for the orchestration service'):
            own = self._own.session
            address = own.get_endpoint(**self._heat) or ''
            own_project_id = own.get_project_id()
            if not own_project_id or own_project_id not in address:
                raise Unreachable(
                    f'Looking for the orchestration service: no project in its address {address!r}'
                )
            return address.replace(own_project_id, project_id)

    def _build_role_path(self, project_id: str, role_id: str, user_id: str = '') -> str:
        # Without `user_id` it is the service user's.
        holder = user_id or self._own.session.get_user_id()
        return f'/projects/{project_id}/users/{holder}/roles/{role_id}'

    def grant_roles(self, project_id: str) -> None:
        """Grant the service user its roles on a project. Idempotent."""
        with _track_outage('Granting the service its role on the project'):
            for role_id in self._role_ids:
                self._keystone.put(self._build_role_path(project_id, role_id), raise_exc=True)

    def revoke_roles(self, project_id: str) -> None:
        """Revoke the service user's roles on a project. Idempotent, also for a project that does
        not exist."""
        with _track_outage('Looking for the roles of the service'):
            role_ids = self._role_ids
        for role_id in role_ids:
            with (
                contextlib.suppress(NotFound),
                _track_outage('Taking back the role of the service on the project'),
            ):
                self._keystone.delete(self._build_role_path(project_id, role_id), raise_exc=True)
        with self._lock:
            self._sessions.pop(project_id, None)

    def list_projects_with_role(self) -> list[str]:
        """Return the ids of the projects on which the service user has a role of `project_roles`.

        Inherited roles do not count, nor does the project of the service's own login."""
        with _track_outage('Listing the roles of the service'):
            own = self._own.session
            scopes = [
                assignment.scope
                for role_id in self._role_ids
                for assignment in self._keystone.role_assignments(
                    user_id=own.get_user_id(), role_id=role_id
                )
            ]
            project_ids = {
                scope['project']['id']
                for scope in scopes
                if 'project' in scope and 'OS-INHERIT:inherited_to' not in scope
            }
            return sorted(project_ids - {own.get_project_id()})

    def make_user(self, name: str, password: str) -> str:
        """Make the user that a cluster has in the cloud, and return its id. A user of that name
        that exists gets this password.

        It is exempt from the site's rules for the passwords of people: nothing would change it
        before it expires."""
        with _track_outage('Making the user of the cluster'):
            identity = self._keystone
            options = (
                'ignore_change_password_upon_first_use',
                'ignore_password_expiry',
                'ignore_lockout_failure_attempts',
                'lock_password',
            )
            user = {'password': password, 'enabled': True, 'options': dict.fromkeys(options, True)}
            new_user = user | {
                'name': name,
                'domain_id': self._user_domain_id,
                'description': f'What runs inside cluster {name}',
            }
            try:
                response = identity.post('/users', raise_exc=True, json={'user': new_user})
                return str(response.json()['user']['id'])
            except ksa_exc.Conflict:
                user_id = self._find_user_id(name)
                identity.patch(f'/users/{user_id}', raise_exc=True, json={'user': user})
                return user_id

    def _find_user_id(self, name: str) -> str:
        user = self._keystone.find_user(name, ignore_missing=False, domain_id=self._user_domain_id)
        return str(user.id)

    def grant_user(self, user_id: str, project_id: str) -> None:
        """Grant the user of a cluster its roles on the project. Idempotent."""
        with _track_outage('Granting the user of the cluster its role on the project'):
            for role_id in self._user_role_ids:
                self._keystone.put(
                    self._build_role_path(project_id, role_id, user_id), raise_exc=True
                )

    def remove_user(self, name: str, user_id: str = '') -> None:
        """Remove the user of a cluster, and with it its roles and tokens. Idempotent."""
        with contextlib.suppress(NotFound), _track_outage('Removing the user of the cluster'):
            identity = self._keystone
            if not user_id:
                user_id = self._find_user_id(name)
            identity.delete(f'/users/{user_id}', raise_exc=True)

    def list_cluster_users(self) -> dict[str, str]:
        """Return the ids, by name, of the users in the domain of clusters' users whose name is a
        uuid.

        Returns {} if no such domain is configured."""
        if not (self._conf.trust.trustee_domain_id or self._conf.trust.trustee_domain_name):
            return {}
        with _track_outage('Listing the users of clusters'):
            return {
                user.name: user.id
                for user in self._keystone.users(domain_id=self._user_domain_id)
                if _UUID.fullmatch(user.name)
            }

    def build_login(self, user_id: str, password: str) -> Login:
        """Build the login of a user inside a cluster, from the catalog and the configuration.

        Raises Rejected if the catalog has no such address of Keystone."""
        region = self._group.region_name
        interface = self._conf.trust.trustee_keystone_interface
        with _track_outage('Looking for Keystone in the catalog'):
            url = self._own.session.get_endpoint(
                service_type='identity', region_name=region, interface=interface
            )
            if not url:
                raise Rejected(
                    f'Looking for Keystone in the catalog: it has no {interface} address of '
                    f'identity{f" in region {region}" if region else ""} (see [trust] '
                    'trustee_keystone_interface)'
                )
            ca_file = self._conf.drivers.openstack_ca_file
            return Login(
                user_id,
                password,
                f'{url.rstrip("/").removesuffix("/v3")}/v3',
                region or '',
                pathlib.Path(ca_file).read_text() if ca_file else '',
            )

    def get_project_state(self, project_id: str) -> str:
        """Return whether Keystone issues tokens for a project: 'enabled', 'disabled' (it, or its
        domain) or 'gone'."""
        try:
            with _track_outage('Looking at the project'):
                project = self._keystone.get_project(project_id)
                enabled = (
                    project.is_enabled and self._keystone.get_domain(project.domain_id).is_enabled
                )
        except NotFound:
            return 'gone'
        return 'enabled' if enabled else 'disabled'

    def list_load_balancers(
        self, project_id: str, text: str, *, as_admin: bool = False
    ) -> list[LoadBalancer]:
        """Return the load balancers of a project with `text` in their description or in a tag.

        Returns [] on a cloud without Octavia. Raises Rejected where Octavia requires a role that
        the service user does not have there."""
        with _track_outage('Looking for load balancers'):
            own = self._get_session(project_id, as_admin)
            if not _has_service(own, 'load-balancer', self._where):
                return []
            octavia = self._connect(own).load_balancer
            return [
                LoadBalancer(b.id, b.name, b.description or '', b.provisioning_status)
                for b in octavia.load_balancers(project_id=project_id)
                if any(text in place for place in (b.description or '', *(b.tags or ())))
            ]

    def delete_load_balancer(
        self, project_id: str, load_balancer_id: str, *, as_admin: bool = False
    ) -> None:
        """Begin to delete a load balancer and all in it. Does nothing if it does not exist.

        Its floating IPs are deleted first: Octavia leaves those behind. Raises Conflict while
        Octavia works on it (PENDING_*): retry later."""
        with contextlib.suppress(NotFound), _track_outage('Deleting the load balancer'):
            cloud = self._connect(self._get_session(project_id, as_admin))
            balancer = cloud.load_balancer.get_load_balancer(load_balancer_id)
            if balancer.provisioning_status.startswith('PENDING_'):
                raise Conflict(
                    f'Deleting the load balancer: {load_balancer_id} is '
                    f'{balancer.provisioning_status}'
                )
            # A filter by no port would be no filter: every floating IP of the project would go.
            if balancer.vip_port_id:
                for address in cloud.network.ips(port_id=balancer.vip_port_id):
                    cloud.network.delete_ip(address)
            cloud.load_balancer.delete_load_balancer(load_balancer_id, cascade=True)

    def list_blockers(
        self, project_id: str, resource_type: str, physical_id: str, *, as_admin: bool = False
    ) -> list[str]:
        """Return sentences that name the ports which prevent the deletion of a Neutron resource.

        `resource_type` and `physical_id` are as Heat has them: a router interface is
        ROUTER:subnet_id=SUBNET. Returns [] for types that are not known."""
        filters = _build_port_filter(resource_type, physical_id) if physical_id else {}
        # A list without a filter would be that of all ports.
        if not filters:
            return []
        harmless = [*HARMLESS_OWNERS]
        if resource_type == 'OS::Neutron::RouterInterface':
            harmless.append(ROUTER_OWNER)
        with _track_outage('Looking for what blocks the delete'):
            network = self._connect(self._get_session(project_id, as_admin)).network
            ports = [p for p in network.ports(**filters) if p.device_owner not in harmless]
        sentences = [
            f'Port {p.name or "without a name"} ({p.id}) of {p.device_owner or "nobody"} '
            f'{p.device_id or ""}'.strip()
            for p in ports[:SENTENCES]
        ]
        if len(ports) > SENTENCES:
            sentences.append(f'and {len(ports) - SENTENCES} more')
        return sentences

    def check_identity(self, *, timeout_s: float) -> None:
        """Check that Keystone answers. This needs no token. Raises CloudError."""
        with _translate_errors('Looking at Keystone'):
            auth: Any = self._own.session.auth
            self._own.session.get(auth.auth_url, authenticated=False, timeout=timeout_s).json()

    def check_orchestration(self, *, timeout_s: float) -> None:
        """Check that Heat answers, API and engine. Raises Unreachable.

        /build_info is the smallest call that an API process cannot answer without the engine."""
        with contextlib.suppress(Rejected, NotFound), _translate_errors('Looking at Heat'):
            self._own.session.get('/build_info', timeout=timeout_s, endpoint_filter=self._heat)

    def list_service_roles(self) -> tuple[list[str], list[str]]:
        """Return the roles that the service user has on its own project, and those of
        `project_roles` that do not exist."""
        with _translate_errors('Looking at the roles of the service'):
            own = self._own
            auth: Any = own.session.auth
            roles = list(auth.get_access(own.session).role_names)
            known = {role.name for role in self._keystone.roles()}
            return roles, [name for name in self._conf.identity.project_roles if name not in known]
