"""Handlers of /v1/quotas: how many clusters a project may have.

Called by `app` through the route table. They only store the limits; `db.create_cluster` enforces
them. `create` asks Keystone for the project through `preflight`."""

from __future__ import annotations

from typing import Any

from magnum_lite import db, errors, models, schema
from magnum_lite.api import changes, paging, preflight
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import QUOTA

PLURAL = 'quotas'
#: The schema of an answer. A default has no row, so neither id nor times.
SHOWN = schema.describe_row(QUOTA, linked=False) | {
    'title': 'QuotaOrDefault',
    'required': ['project_id', 'resource', 'hard_limit'],
}
#: The schema of a PATCH, of which the address gives the rest.
CHANGE = schema.describe_post(QUOTA, name='QuotaChange') | {'required': []}


def index(req: Request) -> dict[str, Any]:
    """List the quotas that were set: of the caller's project, or of all."""
    scope, page = paging.read_page(req, models.Quota, QUOTA)
    # Unlike the other listings, this one shows all projects to an admin only on request.
    if not req.read_flag('all_tenants'):
        scope = db.Scope(req.caller.project_id)
    rows = db.list_quotas(req.services.db, scope, page)
    body: dict[str, Any] = {PLURAL: [QUOTA.show(row, req.version) for row in rows]}
    if rows and len(rows) == page.limit:
        body['next'] = paging.build_next(req, PLURAL, page, str(rows[-1].id))
    return body


def get(req: Request) -> dict[str, Any]:
    """Show the quota of a project: the one that was set, or the default, which has no id."""
    project_id = req.path['project_id']
    resource = req.path['resource']
    if not req.caller.is_admin and project_id != req.caller.project_id:
        raise errors.Forbidden('The quota of another project is for admins to see.')
    quota = db.find_quota(req.services.db, project_id, resource)
    if quota is not None:
        return QUOTA.show(quota, req.version)
    return {
        'hard_limit': req.services.conf.quotas.max_clusters_per_project,
        'project_id': project_id,
        'resource': db.CLUSTER_RESOURCE,
    }


def create(req: Request) -> Answer:
    """Set a quota for a project that Keystone knows."""
    values = QUOTA.parse(req.body, req.version)
    preflight.check_project(req.services.cloud, values['project_id'])

    def respond(quota: models.Quota) -> Answer:
        return Answer(QUOTA.show(quota, req.version))

    receipt = changes.make_receipt(req, respond)
    quota = db.create_quota(req.services.db, models.Quota(**values), receipt=receipt)
    return respond(quota)


def update(req: Request) -> dict[str, Any]:
    """Change a quota. The body is a quota and no patch; whose it is, the address says."""
    project_id = req.path['project_id']
    body = req.body
    if isinstance(body, dict):
        body = {**body, 'project_id': project_id, 'resource': db.CLUSTER_RESOURCE}
    limit = QUOTA.parse(body, req.version)['hard_limit']
    quota = db.update_quota(req.services.db, project_id, req.path['resource'], limit)
    return QUOTA.show(quota, req.version)


def delete(req: Request) -> None:
    """Have the default hold again for a project."""
    db.update_quota(req.services.db, req.path['project_id'], req.path['resource'], None)
