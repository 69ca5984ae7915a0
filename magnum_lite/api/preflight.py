"""Look-ups in the cloud before anything is stored: the only API module that calls the cloud.

Handlers call `look_up` for what a request names and `check_project` for a quota. Every look-up uses
the caller's own token, and all of a request run in parallel. One error reports all problems: a 400
now is better than a failure in ten minutes, and one 400 is better than five. A service that is not
in the catalog cannot be queried; that becomes a warning and no refusal."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

from oslo_config import cfg
from oslo_log import log

from magnum_lite import clients, context, errors

LOG = log.getLogger(__name__)

#: Service types of the catalog.
COMPUTE = 'compute'
IMAGE = 'image'
NETWORK = 'network'
#: Threads of the process for the look-ups of all requests.
_POOL = futures.ThreadPoolExecutor(32, thread_name_prefix='preflight')


@dataclass(frozen=True, kw_only=True)
class Names:
    """The cloud resources that a request names. None is not looked up."""

    image: str | None = None
    flavor: str | None = None
    master_flavor: str | None = None
    external_network: str | None = None
    fixed_network: str | None = None
    fixed_subnet: str | None = None
    keypair: str | None = None
    #: Whether nodes boot from the disk of the flavor, which then must not be empty.
    needs_disk: bool = True


@dataclass(frozen=True)
class Found:
    """The results of the look-ups. None where nothing was named, or its service is missing."""

    image: clients.Image | None = None
    public_key: str | None = None
    #: What was not checked, as sentences for the caller.
    skipped: list[str] = field(default_factory=list)


def make_cloud(conf: cfg.ConfigOpts) -> clients.Cloud:
    """The clients of the cloud for this process."""
    return clients.Cloud(conf)


#: A look-up by the name of its attribute: service type, reference (None: not named), call.
_Lookups = Mapping[str, tuple[str, str | None, Callable[[str], Any]]]


def look_up(cloud: clients.Cloud, caller: context.Caller, names: Names) -> Found:
    """Look up all names.

    Raises an HttpError with all problems: of the status that they share, else 400."""
    client = cloud.lookups(caller.auth)
    lookups = _list_lookups(client, names)
    try:
        calls, skipped = _plan_calls(client, lookups)
    except clients.CloudError as e:
        LOG.warning('A look-up before a cluster is made failed: %s', e)
        raise errors.Unavailable(
            'The catalog of services cannot be read now. Try again later.'
        ) from e
    if names.flavor == names.master_flavor:
        calls.pop('master_flavor', None)
    results = {name: _POOL.submit(call) for name, call in calls.items()}
    values = {}
    problems: list[errors.HttpError] = []
    for name, future in results.items():
        try:
            values[name] = future.result()
        except clients.CloudError as e:
            problems.append(_translate_error(name, lookups[name][1], e))
        except errors.HttpError as e:
            problems.append(e)
    image = values.get('image')
    if image is not None and not image.os_distro:
        problems.append(
            errors.Invalid(
                f'Image {names.image} does not contain the os_distro property. Set it to the '
                'name of its distribution.'
            )
        )
    if problems:
        raise _join_problems(problems)
    for sentence in skipped:
        LOG.warning('%s', sentence)
    return Found(image, values.get('keypair'), skipped)


def _list_lookups(client: clients.Lookups, names: Names) -> _Lookups:
    def get_flavor(ref: str) -> clients.Flavor:
        flavor = client.get_flavor(ref)
        if names.needs_disk and not flavor.disk_gb:
            raise errors.Invalid(
                f'Flavor {ref} has no disk. Use another, or the label boot_volume_size.'
            )
        return flavor

    get_external = functools.partial(client.get_network_id, external=True)
    return {
        'image': (IMAGE, names.image, client.get_image),
        'flavor': (COMPUTE, names.flavor, get_flavor),
        'master_flavor': (COMPUTE, names.master_flavor, get_flavor),
        'external_network': (NETWORK, names.external_network, get_external),
        'fixed_network': (NETWORK, names.fixed_network, client.get_network_id),
        'fixed_subnet': (NETWORK, names.fixed_subnet, client.get_subnet_id),
        'keypair': (COMPUTE, names.keypair, client.get_public_key),
    }


def _plan_calls(
    client: clients.Lookups, lookups: _Lookups
) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """The calls to make, and a sentence for each service that is not in the catalog."""
    calls: dict[str, Callable[[], Any]] = {}
    is_in_catalog: dict[str, bool] = {}
    unchecked: dict[str, list[str]] = {}
    for name, (service, ref, call) in lookups.items():
        if ref is None:
            continue
        if service not in is_in_catalog:
            is_in_catalog[service] = client.has(service)
        if is_in_catalog[service]:
            calls[name] = functools.partial(call, ref)
        else:
            unchecked.setdefault(service, []).append(name.replace('_', ' '))
    skipped = [
        f'The catalog has no {service} service: {", ".join(things)} not checked.'
        for service, things in unchecked.items()
    ]
    return calls, skipped


def _translate_error(name: str, ref: str | None, error: clients.CloudError) -> errors.HttpError:
    """The answer that Magnum gives to a failed look-up (doc/contributor/wire-contract.md)."""
    thing = name.replace('_', ' ')
    if isinstance(error, clients.NotFound):
        kind = errors.NotFound if name == 'keypair' else errors.Invalid
        return kind(f'Unable to find {thing} {ref}.')
    if isinstance(error, clients.Conflict):
        return errors.Conflict(f'More than one {thing} has the name {ref}. Use its id instead.')
    if isinstance(error, clients.Rejected):
        return errors.Forbidden(f'You may not use {thing} {ref}.')
    LOG.warning('A look-up before a cluster is made failed: %s', error)
    return errors.Unavailable(
        f'The {thing} {ref} cannot be checked now, because its service does not answer. '
        'Try again later.'
    )


def _join_problems(problems: list[errors.HttpError]) -> errors.HttpError:
    """One error with the texts of all, each once."""
    kinds = {type(problem) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else errors.Invalid
    return kind(' '.join(dict.fromkeys(str(problem) for problem in problems)))


#: The syntax of Keystone's project ids. Nothing else is put into an address of Keystone.
_PROJECT = re.compile(r'[0-9A-Za-z_-]{1,64}')


def check_project(cloud: clients.Cloud, project_id: str) -> None:
    """Raise NotFound unless Keystone knows the project; Unavailable if Keystone cannot be asked, or
    does not let this service see projects."""
    try:
        if _PROJECT.fullmatch(project_id) and cloud.get_project_state(project_id) != 'gone':
            return
    except clients.CloudError as e:
        LOG.warning('Project %s could not be looked up: %s', project_id, e)
        reason = (
            'it does not let this service see projects'
            if isinstance(e, clients.Rejected)
            else 'it does not answer'
        )
        raise errors.Unavailable(
            f'Keystone cannot say now whether there is a project {project_id}: {reason}. '
            'Try again later, or ask an operator.'
        ) from e
    raise errors.NotFound(f'Project {project_id} could not be found.')


def needs_disk(labels: dict[str, str]) -> bool:
    """Whether nodes boot from the disk of their flavor. Raises Invalid for a size of no number."""
    size = labels.get('boot_volume_size') or '0'
    if not size.isascii() or not size.isdigit():
        raise errors.Invalid(
            f'The label boot_volume_size must be a number of GB, not {size!r:.80}.'
        )
    return int(size[:9]) == 0


def check_docker_volume(
    storage_driver: str | None, size_gb: int | None, problems: list[str]
) -> None:
    """Add to `problems` if devicemapper has less than the 3 GB that it needs."""
    if storage_driver == 'devicemapper' and (size_gb or 0) < 3:
        problems.append(
            'docker_volume_size must be at least 3 GB with docker_storage_driver devicemapper.'
        )
