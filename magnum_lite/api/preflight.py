"""What a request names in the cloud, looked up before anything is stored: the only API file that
calls the cloud.

Every look-up is made with the caller's own token, all of a request at the same time, and all that
is wrong comes back in one answer: a 400 now is better than a failure in ten minutes, and one better
than five. A service that the catalog does not have cannot be asked; that is said and no reason to
refuse."""

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

#: Service types by what is looked up.
COMPUTE, IMAGE, NETWORK = 'compute', 'image', 'network'
#: One pool for the process: look-ups of one request run beside each other.
_POOL = futures.ThreadPoolExecutor(32, thread_name_prefix='preflight')


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a template, or a cluster with its template, names. None is not looked up."""

    image: str | None = None
    flavor: str | None = None
    master_flavor: str | None = None
    external_network: str | None = None
    fixed_network: str | None = None
    fixed_subnet: str | None = None
    keypair: str | None = None
    #: Whether nodes boot from the flavor's own disk, which then must not be empty.
    needs_disk: bool = True


@dataclass(frozen=True)
class Found:
    """What the look-ups brought. A value is None where nothing was named or nobody could be
    asked."""

    image: clients.Image | None = None
    public_key: str | None = None
    #: Sentences on what was not checked.
    skipped: list[str] = field(default_factory=list)


def cloud(conf: cfg.ConfigOpts) -> clients.Cloud:
    """The cloud that this process asks."""
    return clients.Cloud(conf)


def look(cloud: clients.Cloud, caller: context.Caller, names: Names) -> Found:
    """Look everything up. Raises an HttpError with all problems: of their common status, else
    400."""
    lookups = cloud.lookups(caller.auth)
    wanted = {
        'image': (IMAGE, names.image, lookups.image),
        'flavor': (COMPUTE, names.flavor, lambda ref: _flavor(lookups, ref, names.needs_disk)),
        'master_flavor': (
            COMPUTE,
            names.master_flavor,
            lambda ref: _flavor(lookups, ref, names.needs_disk),
        ),
        'external_network': (
            NETWORK,
            names.external_network,
            lambda ref: lookups.network(ref, external=True),
        ),
        'fixed_network': (NETWORK, names.fixed_network, lookups.network),
        'fixed_subnet': (NETWORK, names.fixed_subnet, lookups.subnet),
        'keypair': (COMPUTE, names.keypair, lookups.public_key),
    }
    try:
        calls, skipped = _plan(lookups, wanted)
    except clients.CloudError as e:
        LOG.warning('A look-up before a cluster is made failed: %s', e)
        raise errors.Unavailable(
            'The catalog of services cannot be read now. Try again later.'
        ) from e
    if names.flavor == names.master_flavor:
        calls.pop('master_flavor', None)
    results = {what: _POOL.submit(call) for what, call in calls.items()}
    values, problems = {}, []
    for what, future in results.items():
        try:
            values[what] = future.result()
        except clients.CloudError as e:
            problems.append(_problem(what, wanted[what][1], e))
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
        raise _together(problems)
    for sentence in skipped:
        LOG.warning('%s', sentence)
    return Found(image, values.get('keypair'), skipped)


def _plan(
    lookups: clients.Lookups,
    wanted: Mapping[str, tuple[str, str | None, Callable[[str], Any]]],
) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """The calls to make, and what cannot be asked because its service is not in the catalog."""
    calls: dict[str, Callable[[], Any]] = {}
    missing: dict[str, list[str]] = {}
    there: dict[str, bool] = {}
    for what, (service, ref, call) in wanted.items():
        if ref is None:
            continue
        if service not in there:
            there[service] = lookups.has(service)
        if there[service]:
            calls[what] = functools.partial(call, ref)
        else:
            missing.setdefault(service, []).append(what.replace('_', ' '))
    return calls, [
        f'The catalog has no {service} service: {", ".join(things)} not checked.'
        for service, things in missing.items()
    ]


def _flavor(lookups: clients.Lookups, ref: str, needs_disk: bool) -> clients.Flavor:
    flavor = lookups.flavor(ref)
    if needs_disk and not flavor.disk_gb:
        raise errors.Invalid(
            f'Flavor {ref} has no disk. Use another, or the label boot_volume_size.'
        )
    return flavor


def _problem(what: str, ref: str | None, error: clients.CloudError) -> errors.HttpError:
    """The answer that Magnum gives to this finding (api.md 3)."""
    thing = what.replace('_', ' ')
    if isinstance(error, clients.NotFound):
        kind = errors.NotFound if what == 'keypair' else errors.Invalid
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


def _together(problems: list[errors.HttpError]) -> errors.HttpError:
    kinds = {type(p) for p in problems}
    kind = kinds.pop() if len(kinds) == 1 else errors.Invalid
    return kind(' '.join(dict.fromkeys(str(p) for p in problems)))


#: How Keystone spells ids of projects. Nothing else goes into an address of it.
_PROJECT = re.compile(r'[0-9A-Za-z_-]{1,64}')


def check_project(cloud: clients.Cloud, project_id: str) -> None:
    """Raise NotFound unless Keystone knows the project; Unavailable if it cannot be asked, or tells
    the service not."""
    try:
        if _PROJECT.fullmatch(project_id) and cloud.project_state(project_id) != 'gone':
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
    """Whether nodes boot from their flavor's disk. Raises Invalid for a size that is no number."""
    size = labels.get('boot_volume_size') or '0'
    if not size.isascii() or not size.isdigit():
        raise errors.Invalid(
            f'The label boot_volume_size must be a number of GB, not {size!r:.80}.'
        )
    return int(size[:9]) == 0


def check_docker_volume(
    storage_driver: str | None, size_gb: int | None, problems: list[str]
) -> None:
    """Add what is wrong: devicemapper does not fit on less than 3 GB."""
    if storage_driver == 'devicemapper' and (size_gb or 0) < 3:
        problems.append(
            'docker_volume_size must be at least 3 GB with docker_storage_driver devicemapper.'
        )
