"""Handlers of /v1/clustertemplates, and the row of a new template.

Called by `app` through the route table; `offline` uses `check_values` and `make_template`. Writes
only through `db`, looks into the cloud only through `preflight`."""

from __future__ import annotations

import ipaddress
import uuid as uuidlib
from typing import Any

from oslo_utils import uuidutils

from magnum_lite import db, errors
from magnum_lite.api import changes, paging, patch, preflight, request, versions
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import CLUSTER_TEMPLATE
from magnum_lite.models import ClusterTemplate
from magnum_lite.schema import Values

PLURAL = 'clustertemplates'
#: Attributes that a patch may change.
PATCHABLE = tuple(f.name for f in patch.list_patchable(CLUSTER_TEMPLATE, versions.MAXIMUM))
#: Attributes that a patch may replace and not remove: those of Magnum
#: (doc/contributor/wire-contract.md), and the name, by which users find the template.
KEPT = (
    'name',
    'image_id',
    'coe',
    'network_driver',
    'external_network_id',
    'tls_disabled',
    'public',
    'server_type',
    'registry_enabled',
    'cluster_distro',
    'hidden',
)


def show(req: Request, template: ClusterTemplate) -> Values:
    """The body of one template."""
    return CLUSTER_TEMPLATE.show(template, req.version) | {
        'links': req.build_links(PLURAL, template.uuid)
    }


def index(req: Request) -> dict[str, Any]:
    """List the templates that the caller may see; there is no short form."""
    return _list_templates(req, PLURAL)


def detail(req: Request) -> dict[str, Any]:
    """The same under the address that clients use for details."""
    return _list_templates(req, f'{PLURAL}/detail')


def _list_templates(req: Request, path: str) -> dict[str, Any]:
    scope, page = paging.read_page(req, ClusterTemplate, CLUSTER_TEMPLATE)
    rows = db.list_templates(req.services.db, scope, page)
    return paging.build_listing(req, CLUSTER_TEMPLATE, PLURAL, rows, page, brief=False, path=path)


def get(req: Request) -> dict[str, Any]:
    """Show one template."""
    return show(req, db.get_template(req.services.db, req.scope, req.path['ident']))


def delete(req: Request) -> None:
    """Delete a template that no cluster uses. A public one of another project is its owner's to
    delete (403)."""
    db.delete_template(req.services.db, req.scope, _get_own(req).uuid)


def _get_own(req: Request) -> ClusterTemplate:
    """The template of the address, which the caller may change. Raises NotFound, Conflict,
    Forbidden."""
    scope = req.scope
    template = db.get_template(req.services.db, scope, req.path['ident'])
    if template.project_id != scope.project_id and not scope.all_projects:
        raise errors.Forbidden(f'Cluster template {template.uuid} belongs to another project.')
    return template


def update(req: Request) -> Answer:
    """Change a template. Only what changes is looked up, so that one whose image has gone can still
    be renamed."""
    template = _get_own(req)
    before = patch.read_document(CLUSTER_TEMPLATE, template, req.version)
    changed = patch.read_changes(CLUSTER_TEMPLATE, before, req.body, req.version, PATCHABLE, KEPT)
    if not changed:
        return Answer(show(req, template))
    if not changed.keys().isdisjoint(('public', 'hidden')):
        req.authorize('clustertemplate:publish')
    check_values(changed, before | changed)
    found = preflight.look_up(req.services.cloud, req.caller, _list_names(before, changed))
    if 'image_id' in changed:
        changed.setdefault('cluster_distro', _get_distro(found))
        if before['driver'] is None and found.image:
            changed.setdefault('driver', found.image.driver)
    _check_driver(req, before | changed, changed)
    template = db.update_template(req.services.db, req.scope, template, changed)
    return Answer(show(req, template), request.build_warning(found.skipped))


def _list_names(before: Values, changed: Values) -> preflight.Names:
    """The names of cloud resources that a change brings.

    The flavors count as changed when nodes begin to boot from their disks, which may be empty."""
    after = before | changed
    needs_disk = preflight.needs_disk(after['labels'])
    flavors = changed
    if needs_disk and not preflight.needs_disk(before['labels']):
        flavors = after
    return preflight.Names(
        image=changed.get('image_id'),
        flavor=flavors.get('flavor_id'),
        master_flavor=flavors.get('master_flavor_id'),
        external_network=changed.get('external_network_id'),
        fixed_network=changed.get('fixed_network'),
        fixed_subnet=changed.get('fixed_subnet'),
        needs_disk=needs_disk,
    )


def _get_distro(found: preflight.Found) -> str:
    """The distribution of the image. Raises Unavailable where there is no image service."""
    if found.image is None or found.image.os_distro is None:
        raise errors.Unavailable(
            'The catalog has no image service, so nobody can say what the image holds.'
        )
    return found.image.os_distro


def _check_driver(req: Request, values: Values, changed: Values) -> None:
    """Raise Invalid if the driver of the changed template cannot make what has changed."""
    if changed.keys() <= db.CLUSTER_INDEPENDENT_COLUMNS:
        return
    driver = req.services.drivers.find(
        server_type=values['server_type'],
        os_distro=values['cluster_distro'],
        coe=values['coe'],
        name=values['driver'],
    )
    # Another driver may refuse what the last one allowed, so then all fields are checked.
    may_be_another = not changed.keys().isdisjoint(
        ('driver', 'server_type', 'cluster_distro', 'coe')
    )
    labels = values['labels'] if may_be_another or 'labels' in changed else {}
    fields = values if may_be_another else changed | {'labels': values['labels']}
    request.raise_problems(
        driver.check_template(fields, req.services.conf)
        + driver.check_labels(labels, req.services.conf)
    )


def create(req: Request) -> Answer:
    """Create a template, after all that it names was found in the cloud and a driver for its image
    was found here."""
    values = CLUSTER_TEMPLATE.parse(req.body, req.version)
    if values['public'] or values['hidden']:
        req.authorize('clustertemplate:publish')
    check_values(values, values)
    found = preflight.look_up(
        req.services.cloud,
        req.caller,
        preflight.Names(
            image=values['image_id'],
            flavor=values['flavor_id'],
            master_flavor=values['master_flavor_id'],
            external_network=values['external_network_id'],
            fixed_network=values['fixed_network'],
            fixed_subnet=values['fixed_subnet'],
            needs_disk=preflight.needs_disk(values['labels']),
        ),
    )
    driver_name = found.image.driver if found.image else None
    template = make_template(req, values, _get_distro(found), driver_name)

    def respond(template: ClusterTemplate) -> Answer:
        body = show(req, template)
        location = body['links'][0]['href']
        return Answer(body, {'Location': location, **request.build_warning(found.skipped)})

    db.create_template(req.services.db, template, receipt=changes.make_receipt(req, respond))
    return respond(template)


def make_template(
    req: Request, values: Values, distro: str, driver_name: str | None
) -> ClusterTemplate:
    """The row of a new template. `distro` and `driver_name` are properties of its image.

    Raises Invalid for what its driver cannot make."""
    values['driver'] = values['driver'] or driver_name
    driver = req.services.drivers.find(
        server_type=values['server_type'],
        os_distro=distro,
        coe=values['coe'],
        name=values['driver'],
    )
    values = driver.template_defaults | {k: v for k, v in values.items() if v is not None}
    request.raise_problems(
        driver.check_template(values, req.services.conf)
        + driver.check_labels(values['labels'], req.services.conf)
    )
    values['uuid'] = str(uuidlib.UUID(values.get('uuid') or uuidutils.generate_uuid()))
    values.setdefault('name', request.make_name('template'))
    values['cluster_distro'] = distro
    return ClusterTemplate(project_id=req.caller.project_id, user_id=req.caller.user_id, **values)


def check_values(given: Values, values: Values) -> None:
    """Check what the field types cannot express. Raises Invalid with all problems.

    `given` are the attributes to check; `values` has the others as well."""
    problems = []
    servers = given.get('dns_nameserver')
    for address in servers.split(',') if servers else ():
        try:
            ipaddress.IPv4Address(address.strip(' '))
        except ValueError:
            problems.append(f'In dns_nameserver, {address.strip()!r:.80} is not an IPv4 address.')
    if given.get('uuid') and not uuidutils.is_uuid_like(given['uuid']):
        problems.append(f'Expected a uuid but received {given["uuid"]!r:.80}.')
    if not given.keys().isdisjoint(('docker_storage_driver', 'docker_volume_size')):
        preflight.check_docker_volume(
            values['docker_storage_driver'], values['docker_volume_size'], problems
        )
    request.raise_problems(problems)
