"""Handlers of /v1/quotas: how many clusters a project may have. `db.create_cluster` is where they
are enforced."""

from __future__ import annotations

from typing import Any

from magnum_lite import db, errors, models, schema
from magnum_lite.api import preflight
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import QUOTA

PLURAL = 'quotas'
#: A default has no row, so no id and no times.
SHOWN = schema.one(QUOTA, linked=False) | {
    'title': 'QuotaOrDefault',
    'required': ['project_id', 'resource', 'hard_limit'],
}
CHANGE = schema.posted(QUOTA, name='QuotaChange') | {'required': []}


def index(req: Request) -> dict[str, Any]:
    """List the quotas that were set: of the caller's project, or of all."""
    scope, page = req.listing(models.Quota)
    if not req.flag('all_tenants'):  # unlike other listings, this one wants to be asked
        scope = db.Scope(req.caller.project_id)
    rows = db.list_quotas(req.services.db, scope, page)
    body: dict[str, Any] = {PLURAL: [QUOTA.show(row, req.version) for row in rows]}
    if rows and len(rows) == page.limit:
        body['next'] = req.next(PLURAL, page, str(rows[-1].id))
    return body


def get(req: Request) -> dict[str, Any]:
    """Show the quota of a project: the one that was set, or the default, which has no id."""
    project_id, resource = req.path['project_id'], req.path['resource']
    if not req.caller.is_admin and project_id != req.caller.project_id:
        raise errors.Forbidden('The quota of another project is for admins to see.')
    found = db.get_quota(req.services.db, project_id, resource)
    if found is not None:
        return QUOTA.show(found, req.version)
    return {
        'hard_limit': req.conf.quotas.max_clusters_per_project,
        'project_id': project_id,
        'resource': db.CLUSTER_RESOURCE,
    }


def create(req: Request) -> Answer:
    """Set a quota for a project that Keystone knows."""
    values = QUOTA.parse(req.body)
    preflight.check_project(req.services.cloud, values['project_id'])

    def answer(quota: models.Quota) -> Answer:
        return Answer(QUOTA.show(quota, req.version))

    return answer(
        db.create_quota(req.services.db, models.Quota(**values), receipt=req.receipt(answer))
    )


def update(req: Request) -> dict[str, Any]:
    """Change a quota. The body is a quota and no patch; whose it is, the address says."""
    project_id, resource = req.path['project_id'], req.path['resource']
    where = {'project_id': project_id, 'resource': db.CLUSTER_RESOURCE}
    values = QUOTA.parse({**req.body, **where} if isinstance(req.body, dict) else req.body)
    return QUOTA.show(
        db.update_quota(req.services.db, project_id, resource, values['hard_limit']), req.version
    )


def delete(req: Request) -> None:
    """Have the default hold again for a project."""
    db.update_quota(req.services.db, req.path['project_id'], req.path['resource'], None)
