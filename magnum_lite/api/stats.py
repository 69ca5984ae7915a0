"""Handler of /v1/stats: how many clusters and nodes there are.

Called by `app` through the route table. Reads the database in one query."""

from __future__ import annotations

from magnum_lite import db, errors, schema
from magnum_lite.api.request import Request

#: The schema of the answer.
COUNTS = {
    'type': 'object',
    'required': ['clusters', 'nodes'],
    'properties': {'clusters': schema.integer(), 'nodes': schema.integer()},
}


def get(req: Request) -> dict[str, int]:
    """Count those of a project; for an admin who names none, all. Masters count as nodes."""
    kind = req.query.get('type', 'cluster')
    if kind.lower() != 'cluster':
        raise errors.Invalid(f'The type must be cluster, not {kind!r:.80}.')
    project_id = req.query.get('project_id')
    if not req.caller.is_admin:
        project_id = project_id or req.caller.project_id
        if project_id != req.caller.project_id:
            raise errors.Forbidden('What another project has is for admins to see.')
    clusters, nodes = db.count_usage(req.services.db, project_id)
    return {'clusters': clusters, 'nodes': nodes}
