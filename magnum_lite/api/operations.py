"""Handlers of /v1/operations and /v1/clusters/{ident}/operations, and of
/v1/clusters/{ident}/nodes."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from magnum_lite import db, models
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import NODE, OPERATION

PLURAL = 'operations'
#: What a cluster is like after an operation of this kind, or of any other, was stopped.
AFTER_CREATE = 'Cluster {} will be CREATE_FAILED, with nothing left in the cloud. Delete it then.'
AFTER_CHANGE = (
    'Cluster {} will be UPDATE_FAILED, with the nodes that it then has. Ask for a further change '
    'to go on from there.'
)


#: The answer to a request to stop an operation.
CANCELLED = {
    'type': 'object',
    'required': ['uuid', 'cluster_id', 'text'],
    'properties': {
        'uuid': {'type': 'string'},
        'cluster_id': {'type': 'string'},
        'text': {'type': 'string'},
    },
}


@dataclass(frozen=True)
class Progress:
    """An operation, and how long such operations took."""

    operation: models.Operation
    estimated_s: float | None

    def __getattr__(self, name: str) -> Any:
        """What the row itself says."""
        return getattr(self.operation, name)

    @property
    def estimated_end_at(self) -> datetime.datetime | None:
        """When it ends if it takes as long as those did; in the past if it takes longer."""
        if self.estimated_s is None:
            return None
        return self.operation.created_at + datetime.timedelta(seconds=self.estimated_s)


def index(req: Request) -> dict[str, Any]:
    """The history of a cluster, oldest first unless asked otherwise."""
    scope, page = req.listing(models.Operation)
    rows = db.list_operations(req.services.db, scope, req.path['ident'], page)
    path = f'clusters/{rows[0].cluster_id}/{PLURAL}' if rows else ''
    return req.collection(OPERATION, PLURAL, rows, page, brief=True, path=path)


def get(req: Request) -> dict[str, Any]:
    """Show one operation, also of a cluster that is gone. Conductors count the resources of one
    that is looked at."""
    operation = db.get_operation(req.services.db, req.scope, req.path['ident'])
    estimated_s = None
    if operation.outcome is None:
        db.mark_polled(req.services.db, operation.cluster_id)
        estimated_s = db.estimate_s(req.services.db, operation)
    return OPERATION.show(Progress(operation, estimated_s), req.version) | {
        'links': req.links(PLURAL, operation.uuid)
    }


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
        req.location(operation),
    )


def nodes(req: Request) -> dict[str, Any]:
    """All nodes of a cluster."""
    rows = db.list_nodes(req.services.db, req.scope, req.path['ident'])
    return {'nodes': [NODE.show(row, req.version) for row in rows]}
