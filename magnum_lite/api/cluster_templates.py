"""Handlers of /v1/clustertemplates."""

from __future__ import annotations

import ipaddress
import uuid as uuidlib
from typing import Any

from oslo_utils import uuidutils

from magnum_lite import db, drivers, errors, models
from magnum_lite.api import patch, preflight, request
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import CLUSTER_TEMPLATE

PLURAL = 'clustertemplates'
PATCHABLE = tuple(f.name for f in patch.known(CLUSTER_TEMPLATE))
#: What a patch may replace and not remove (api.md 2.1), and the name, without which nobody would
#: find it.
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


def show(req: Request, template: models.ClusterTemplate) -> dict[str, Any]:
    """The body of one template."""
    return CLUSTER_TEMPLATE.show(template, req.version) | {
        'links': req.links(PLURAL, template.uuid)
    }


def index(req: Request) -> dict[str, Any]:
    """List the templates that the caller may see; there is no short form."""
    return _index(req, PLURAL)


def detail(req: Request) -> dict[str, Any]:
    """The same under the address that clients use for details."""
    return _index(req, f'{PLURAL}/detail')


def _index(req: Request, path: str) -> dict[str, Any]:
    scope, page = req.listing(models.ClusterTemplate)
    rows = db.list_templates(req.services.db, scope, page)
    return req.collection(CLUSTER_TEMPLATE, PLURAL, rows, page, brief=False, path=path)


def get(req: Request) -> dict[str, Any]:
    """Show one template."""
    return show(req, db.get_template(req.services.db, req.scope, req.path['ident']))


def delete(req: Request) -> None:
    """Delete a template that no cluster uses. A public one of another project is its owner's to
    delete (403)."""
    db.delete_template(req.services.db, req.scope, _own(req).uuid)


def _own(req: Request) -> models.ClusterTemplate:
    """The template of the address, if it is the caller's to change. Raises NotFound, Conflict,
    Forbidden."""
    scope = req.scope
    template = db.get_template(req.services.db, scope, req.path['ident'])
    if template.project_id != scope.project_id and not scope.all_projects:
        raise errors.Forbidden(f'Cluster template {template.uuid} belongs to another project.')
    return template


def update(req: Request) -> Answer:
    """Change a template. Only what changes is looked up, so that one whose image has gone can still
    be renamed."""
    template = _own(req)
    before = patch.document(CLUSTER_TEMPLATE, template)
    changed = patch.changes(CLUSTER_TEMPLATE, before, req.body, PATCHABLE, KEPT)
    if not changed:
        return Answer(show(req, template))
    if not changed.keys().isdisjoint(('public', 'hidden')):
        req.authorize('clustertemplate:publish')
    check(changed, before | changed)
    found = preflight.look(req.services.cloud, req.caller, _names(before, changed))
    if 'image_id' in changed:
        changed.setdefault('cluster_distro', _distro(found))
        if before['driver'] is None and found.image:
            changed.setdefault('driver', found.image.driver)
    _check_driver(req, before | changed, changed)
    template = db.update_template(req.services.db, req.scope, template, changed)
    return Answer(show(req, template), request.warnings(found.skipped))


def _names(before: dict[str, Any], changed: dict[str, Any]) -> preflight.Names:
    """What a change names in the cloud. Flavors count as changed when their disk begins to
    matter."""
    needs_disk = preflight.needs_disk((before | changed)['labels'])
    flavors = (
        before | changed if needs_disk and not preflight.needs_disk(before['labels']) else changed
    )
    return preflight.Names(
        image=changed.get('image_id'),
        flavor=flavors.get('flavor_id'),
        master_flavor=flavors.get('master_flavor_id'),
        external_network=changed.get('external_network_id'),
        fixed_network=changed.get('fixed_network'),
        fixed_subnet=changed.get('fixed_subnet'),
        needs_disk=needs_disk,
    )


def _distro(found: preflight.Found) -> str:
    """What the image holds. Raises Unavailable if nobody could be asked."""
    if found.image is None or found.image.os_distro is None:
        raise errors.Unavailable(
            'The catalog has no image service, so nobody can say what the image holds.'
        )
    return found.image.os_distro


def _check_driver(req: Request, values: dict[str, Any], changed: dict[str, Any]) -> None:
    """Raise Invalid if the driver, or what is found in its place, cannot do what has changed."""
    if changed.keys() <= db.LABELLING:
        return
    driver = drivers.find(
        req.conf,
        server_type=values['server_type'],
        os_distro=values['cluster_distro'],
        coe=values['coe'],
        name=values['driver'],
    )
    anew = not changed.keys().isdisjoint(('driver', 'server_type', 'cluster_distro', 'coe'))
    labels = values['labels'] if anew or 'labels' in changed else {}
    fields = values if anew else changed | {'labels': values['labels']}
    request.refuse(driver.check_template(fields, req.conf) + driver.check_labels(labels, req.conf))


def create(req: Request) -> Answer:
    """Create a template, after all that it names was found in the cloud and a driver for its image
    was found here."""
    values = CLUSTER_TEMPLATE.parse(req.body)
    if values['public'] or values['hidden']:
        req.authorize('clustertemplate:publish')
    check(values, values)
    found = preflight.look(
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
    template = made(req, values, _distro(found), found.image.driver if found.image else None)

    def answer(template: models.ClusterTemplate) -> Answer:
        body = show(req, template)
        return Answer(
            body, {'Location': body['links'][0]['href'], **request.warnings(found.skipped)}
        )

    db.create_template(req.services.db, template, receipt=req.receipt(answer))
    return answer(template)


def made(
    req: Request, values: dict[str, Any], distro: str, driver_name: str | None
) -> models.ClusterTemplate:
    """The row of a new template whose image says this of itself. Raises Invalid for what its driver
    cannot do."""
    values['driver'] = values['driver'] or driver_name
    driver = drivers.find(
        req.conf,
        server_type=values['server_type'],
        os_distro=distro,
        coe=values['coe'],
        name=values['driver'],
    )
    values = driver.template_defaults | {k: v for k, v in values.items() if v is not None}
    request.refuse(
        driver.check_template(values, req.conf) + driver.check_labels(values['labels'], req.conf)
    )
    values['uuid'] = str(uuidlib.UUID(values.get('uuid') or uuidutils.generate_uuid()))
    values.setdefault('name', request.random_name('template'))
    values['cluster_distro'] = distro
    return models.ClusterTemplate(
        project_id=req.caller.project_id, user_id=req.caller.user_id, **values
    )


def check(given: dict[str, Any], values: dict[str, Any]) -> None:
    """What the types of the fields cannot say of what is given; `values` has the rest as well.
    Raises Invalid."""
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
    request.refuse(problems)
