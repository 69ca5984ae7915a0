"""Handlers of /v1/clustertemplates."""

from __future__ import annotations

import ipaddress
import uuid as uuidlib
from typing import Any

from oslo_utils import uuidutils

from magnum_lite import db, drivers, errors, models
from magnum_lite.api import preflight, request
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import CLUSTER_TEMPLATE

PLURAL = 'clustertemplates'


def show(req: Request, template: models.ClusterTemplate) -> dict[str, Any]:
    """The body of one template."""
    return CLUSTER_TEMPLATE.show(template, req.version) | {'links': req.links(PLURAL, template.uuid)}


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
    """Delete a template that no cluster uses. A public one of another project is its owner's to delete (403)."""
    template = db.get_template(req.services.db, req.scope, req.path['ident'])
    if template.project_id != req.caller.project_id and not req.caller.is_admin:
        raise errors.Forbidden(f'Cluster template {template.uuid} belongs to another project.')
    db.delete_template(req.services.db, req.scope, template.uuid)


def create(req: Request) -> Answer:
    """Create a template, after all that it names was found in the cloud and a driver for its image was found here."""
    values = CLUSTER_TEMPLATE.parse(req.body)
    if values['public'] or values['hidden']:
        req.authorize('clustertemplate:publish')
    _check(values)
    found = preflight.look(req.services.cloud, req.caller, preflight.Names(
        image=values['image_id'], flavor=values['flavor_id'], master_flavor=values['master_flavor_id'],
        external_network=values['external_network_id'], fixed_network=values['fixed_network'],
        fixed_subnet=values['fixed_subnet'], needs_disk=preflight.needs_disk(values['labels'])))
    if found.image is None or found.image.os_distro is None:
        raise errors.Unavailable('The catalog has no image service, so nobody can say what the image holds.')
    values['driver'] = values['driver'] or found.image.driver
    driver = drivers.find(req.conf, server_type=values['server_type'], os_distro=found.image.os_distro,
                          coe=values['coe'], name=values['driver'])
    values = driver.template_defaults | {k: v for k, v in values.items() if v is not None}
    request.refuse(driver.check_template(values) + driver.check_labels(values['labels'], req.conf))
    values['uuid'] = str(uuidlib.UUID(values.get('uuid') or uuidutils.generate_uuid()))
    values.setdefault('name', request.random_name('template'))
    values['cluster_distro'] = found.image.os_distro
    template = models.ClusterTemplate(project_id=req.caller.project_id, user_id=req.caller.user_id, **values)

    def answer(template: models.ClusterTemplate) -> Answer:
        body = show(req, template)
        return Answer(body, {'Location': body['links'][0]['href'], **request.warnings(found.skipped)})

    db.create_template(req.services.db, template, receipt=req.receipt(answer))
    return answer(template)


def _check(values: dict[str, Any]) -> None:
    """What the types of the fields cannot say. Raises Invalid."""
    problems = []
    for address in values['dns_nameserver'].split(',') if values['dns_nameserver'] else ():
        try:
            ipaddress.IPv4Address(address.strip())
        except ValueError:
            problems.append(f'In dns_nameserver, {address.strip()!r:.80} is not an IPv4 address.')
    if values['uuid'] and not uuidutils.is_uuid_like(values['uuid']):
        problems.append(f'Expected a uuid but received {values["uuid"]!r:.80}.')
    preflight.check_docker_volume(values['docker_storage_driver'], values['docker_volume_size'], problems)
    request.refuse(problems)
