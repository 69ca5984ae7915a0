"""Handlers of /v1/operations, and of /v1/clusters/{ident}/operations and /nodes.

Called by `app` through the route table. A client that polls an operation has conductors count the
resources of its stack (`db.mark_polled`)."""

from __future__ import annotations

import datetime
from typing import Any

from magnum_lite import db, models
from magnum_lite.api import paging
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import NODE, OPERATION

PLURAL = 'operations'
#: What remains after a `create`, or any other operation, was stopped.
AFTER_CREATE = 'Cluster {} will be CREATE_FAILED, with nothing left in the cloud. Delete it then.'
AFTER_CHANGE = (
    'Cluster {} will be UPDATE_FAILED, with the nodes that it then has. Ask for a further change '
    'to go on from there.'
)
#: The schema of the answer to a request to stop an operation.
CANCELLED = {
    'type': 'object',
    'required': ['uuid', 'cluster_id', 'text'],
    'properties': {
        'uuid': {'type': 'string'},
        'cluster_id': {'type': 'string'},
        'text': {'type': 'string'},
    },
}


def index(req: Request) -> dict[str, Any]:
    """The history of a cluster, oldest first unless asked otherwise."""
    scope, page = paging.read_page(req, models.Operation, OPERATION)
    rows = db.list_operations(req.services.db, scope, req.path['ident'], page)
    path = f'clusters/{rows[0].cluster_id}/{PLURAL}' if rows else ''
    return paging.build_listing(req, OPERATION, PLURAL, rows, page, brief=True, path=path)


def get(req: Request) -> dict[str, Any]:
    """Show one operation, also of a cluster that is gone. Conductors count the resources of one
    that is looked at."""
    operation = db.get_operation(req.services.db, req.scope, req.path['ident'])
    body = OPERATION.show(operation, req.version)
    if operation.outcome is None:
        db.mark_polled(req.services.db, operation.cluster_id)
        estimated_s = db.estimate_duration_s(req.services.db, operation)
        if estimated_s is not None:
            # In the past if the operation takes longer than those before it.
            end = operation.created_at + datetime.timedelta(seconds=estimated_s)
            body['estimated_s'] = estimated_s
            body['estimated_end_at'] = end.isoformat()
    return body | {'links': req.build_links(PLURAL, operation.uuid)}


def delete(req: Request) -> Answer:
    """Ask for a running operation to be stopped, and say what that leaves."""
    operation = db.request_cancel(req.services.db, req.scope, req.path['ident'])
    req.services.nudger.nudge(operation.cluster_id)
    text = AFTER_CREATE if operation.kind == 'create' else AFTER_CHANGE
    return Answer(
        {
            'uuid': operation.uuid,
            'cluster_id': operation.cluster_id,
            'text': text.format(operation.cluster_id),
        },
        req.locate(operation),
    )


def nodes(req: Request) -> dict[str, Any]:
    """All nodes of a cluster."""
    rows = db.list_nodes(req.services.db, req.scope, req.path['ident'])
    return {'nodes': [NODE.show(row, req.version) for row in rows]}
