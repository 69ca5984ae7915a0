"""Requests to change a cluster: one transaction, then a message to the conductors.

Handlers of clusters, nodegroups, actions and certificates call `request_change`. Handlers that need
another transaction of `db` call the parts: `make_guard`, `make_receipt`, `announce`. Only `db`
writes; nothing here talks to the cloud."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TypeVar

from oslo_log import log

from magnum_lite import db, models, notify
from magnum_lite.api import etags
from magnum_lite.api.request import Answer, Request
from magnum_lite.models import Cluster, Operation, Receipt

LOG = log.getLogger(__name__)

T = TypeVar('T')
#: How long a repeated request with the same `Idempotency-Key` gets the stored answer.
RECEIPT_LIFE = datetime.timedelta(hours=24)


def request_change(
    req: Request,
    ident: str,
    kind: str,
    change: Callable[[Cluster], T],
    *,
    answer: Callable[[Cluster, T], Answer] | None = None,
    tag: etags.Tag = etags.of_cluster,
) -> Answer:
    """Apply `change` to a locked cluster, store an operation of this kind, notify the conductors.

    `change` gets the cluster as `db.request_update` says. `answer` gets the changed cluster and
    what `change` has returned; without it the answer is the cluster's uuid. The operation's address
    is added. `If-Match` is compared with `tag` of the locked cluster. Raises what `change` and
    `db.request_update` raise, and PreconditionFailed.

    `change` is a callback and not the body of a `with`, because the transaction runs again after a
    deadlock, on rows that are read again. It must therefore have no effect but on these rows, and
    return what it has made instead of keeping it."""
    operation = req.new_operation(kind)

    def respond(changed: tuple[Cluster, T]) -> Answer:
        cluster, result = changed
        response = answer(cluster, result) if answer else Answer({'uuid': cluster.uuid})
        return Answer(response.body, {**response.headers, **req.locate(operation)})

    changed = db.request_update(
        req.services.db,
        req.scope,
        ident,
        operation,
        change,
        guard=make_guard(req, tag),
        receipt=make_receipt(req, respond),
    )
    announce(req, changed[0], operation)
    return respond(changed)


def make_guard(req: Request, tag: etags.Tag) -> db.Guard:
    """A check of `If-Match` against `tag` of the locked cluster. None without that header."""
    tags = req.if_match
    if tags is None:
        return None
    return lambda cluster: etags.check_match(tags, tag(cluster))


def check_tag(req: Request, tag: str) -> None:
    """Raise PreconditionFailed unless `If-Match` fits the tag of what this request leaves as is."""
    if req.if_match is not None:
        etags.check_match(req.if_match, tag)


def make_receipt(req: Request, respond: Callable[[T], Answer]) -> db.MakeReceipt[T]:
    """A function that makes the receipt of this request, to be stored in the same transaction.

    None without `Idempotency-Key`. `respond` builds the answer from what the transaction wrote."""
    key = req.key
    if key is None:
        return None

    def make(written: T) -> Receipt:
        response = respond(written)
        return Receipt(
            digest=key.digest,
            fingerprint=key.fingerprint,
            headers=dict(response.headers),
            body=response.body,
            expires_at=models.utcnow() + RECEIPT_LIFE,
        )

    return make


def announce(req: Request, cluster: Cluster, operation: Operation) -> None:
    """Log a stored operation, nudge the conductors, and send its notification."""
    req.caller.oslo.cluster_uuid = cluster.uuid
    req.caller.oslo.operation_id = operation.uuid
    LOG.info('Cluster %s: %s was asked for', cluster.uuid, operation.kind)
    req.services.nudger.nudge(cluster.uuid)
    req.services.notifier.send_cluster_event(
        cluster,
        operation.kind,
        notify.PENDING,
        user_id=operation.user_id,
        project_id=operation.project_id,
        request_id=operation.request_id or '',
    )
