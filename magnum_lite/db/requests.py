"""What the API reads and requests: templates, clusters, nodegroups, operations, quotas, receipts.

Called by the handlers of `api`. (Conductors call `delete_expired_receipts` and, for a certificate,
`get_cluster`; the doctor calls `request_delete`.) A request for work writes the wanted state on the
rows, stores an operation and makes the cluster due; a conductor does the rest. Each query filters
by the caller's `Scope`, so rows of other projects are not found. No function here reads the private
part of a key, or takes a lease.

Each public function that takes a `Database` is one transaction. One that takes a `session` is a
part of the caller's."""

from __future__ import annotations

import contextlib
import statistics
import uuid as uuidlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from oslo_db import exception as db_exc
from oslo_utils import uuidutils
from sqlalchemy import orm

from magnum_lite import errors, models, states
from magnum_lite.db.engine import (
    WITH_NODES,
    WITH_TEMPLATE,
    Database,
    Page,
    Scope,
    T,
    get_by_ident,
    match_visible,
    retry_on_deadlock,
    row_exists,
    select_page,
)
from magnum_lite.db.leases import (
    HAS_WORK,
    find_newest_running,
    match_running,
    move,
    now,
    update_rows,
)
from magnum_lite.models import (
    Cluster,
    ClusterTemplate,
    Key,
    Node,
    NodeGroup,
    Operation,
    Quota,
    Receipt,
    Service,
)

# -- receipts of idempotent requests ---------------------------------------------------------------

#: Makes the receipt of a request from the row that its transaction has written. None: the caller
#: wants no receipt.
MakeReceipt = Callable[[T], Receipt] | None
#: Checks a locked cluster before anything is written; may raise an HttpError. None: no check.
Guard = Callable[[Cluster], None] | None


def store_receipt(session: orm.Session, receipt: MakeReceipt[T], written: T) -> None:
    """Store the receipt of a request as the last statement of the transaction that carries it out.

    Raises Repeated if the same request was committed first. A concurrent duplicate waits here, on
    the unique index, until the first one is committed or rolled back."""
    if receipt is None:
        return
    # Integrity errors of the other rows must not look like a duplicate receipt.
    session.flush()
    session.add(receipt(written))
    try:
        session.flush()
    except db_exc.DBDuplicateEntry as e:
        raise errors.Repeated from e


@retry_on_deadlock
def find_receipt(db: Database, digest: str) -> Receipt | None:
    """Find the receipt of a request. One statement, and another to delete it if it has expired."""
    with db.read() as session:
        receipt = session.scalars(sa.select(Receipt).where(Receipt.digest == digest)).first()
    if receipt is None or receipt.expires_at > models.utcnow():
        return receipt
    with db.write() as session:
        session.execute(sa.delete(Receipt).where(Receipt.id == receipt.id))
    return None


@retry_on_deadlock
def delete_expired_receipts(db: Database, *, limit: int) -> int:
    """Delete up to `limit` expired receipts, oldest first. Returns how many.

    The time is this process's own, because PostgreSQL uses no index to compare with its clock. A
    receipt is kept for a day, so seconds do not matter."""
    with db.read() as session:
        ids = session.scalars(
            sa.select(Receipt.id)
            .where(Receipt.expires_at <= models.utcnow())
            .order_by(Receipt.expires_at)
            .limit(limit)
        ).all()
    if ids:
        with db.write() as session:
            session.execute(sa.delete(Receipt).where(Receipt.id.in_(ids)))
    return len(ids)


# -- cluster templates -----------------------------------------------------------------------------


@retry_on_deadlock
def create_template(
    db: Database, template: ClusterTemplate, *, receipt: MakeReceipt[ClusterTemplate] = None
) -> None:
    """Store a new template. Raises Conflict if its uuid exists, and what `store_receipt` raises."""
    try:
        with db.write() as session:
            session.add(template)
            store_receipt(session, receipt, template)
    except db_exc.DBDuplicateEntry as e:
        raise errors.Conflict(
            f'A cluster template with the uuid {template.uuid} exists already.'
        ) from e


@retry_on_deadlock
def list_templates(db: Database, scope: Scope, page: Page) -> Sequence[ClusterTemplate]:
    """List one page of the visible templates. One statement, and another for a marker."""
    with db.read() as session:
        return session.scalars(select_page(session, ClusterTemplate, scope, page)).all()


@retry_on_deadlock
def get_template(db: Database, scope: Scope, ident: str) -> ClusterTemplate:
    """Get a template by uuid or name. Raises NotFound, or Conflict for an ambiguous name."""
    with db.read() as session:
        return get_by_ident(session, ClusterTemplate, scope, ident)


@retry_on_deadlock
def delete_template(db: Database, scope: Scope, template_uuid: str) -> None:
    """Delete a template. Raises NotFound, or Invalid if a cluster uses it (as Magnum: 400)."""
    try:
        with db.write() as session:
            session.delete(get_by_ident(session, ClusterTemplate, scope, template_uuid))
    except db_exc.DBReferenceError as e:
        raise errors.Invalid(
            f'Cluster template {template_uuid} is referenced by one or multiple clusters. '
            'Delete these first.'
        ) from e


#: Columns of a template that no cluster takes anything from. Only these may change while clusters
#: use the template.
CLUSTER_INDEPENDENT_COLUMNS = frozenset(('name', 'tags', 'public', 'hidden'))


def _may_change_in_use(changed: Mapping[str, Any]) -> bool:
    """Whether these columns of a template may change while clusters use it.

    One at a time, `public` only to true and `tags` not to null, as with Magnum: see
    doc/contributor/wire-contract.md."""
    if len(changed) != 1 or not changed.keys() <= CLUSTER_INDEPENDENT_COLUMNS:
        return False
    return changed.get('public', True) is True and changed.get('tags', '') is not None


@retry_on_deadlock
def update_template(
    db: Database, scope: Scope, seen: ClusterTemplate, changed: Mapping[str, Any]
) -> ClusterTemplate:
    """Write these columns of a template if it still is as it was `seen`. Returns it.

    The row is locked before its clusters are looked for. `create_cluster` takes the same lock, so
    no cluster can be stored in between. Raises NotFound, Conflict if the template has changed since
    it was seen, Invalid (as Magnum: 400) if clusters use it and forbid the change."""
    with db.write() as session:
        template = session.scalars(
            sa.select(ClusterTemplate)
            .where(ClusterTemplate.id == seen.id, match_visible(ClusterTemplate, scope))
            .with_for_update()
        ).first()
        if template is None:
            raise errors.NotFound(f'Cluster template {seen.uuid} could not be found.')
        if template.updated_at != seen.updated_at:
            raise errors.Conflict(
                f'Cluster template {seen.uuid} has changed meanwhile. Look again.'
            )
        if not _may_change_in_use(changed) and row_exists(
            session, Cluster.id, Cluster.cluster_template_id == template.uuid
        ):
            raise errors.Invalid(
                f'Cluster template {template.uuid} is referenced by one or multiple clusters. Of '
                'such a one only name, tags and hidden can be changed, or public be set to true, '
                'and only one of them at a time.'
            )
        for name, value in changed.items():
            setattr(template, name, value)
        template.updated_at = models.utcnow()
        return template


def _check_template(session: orm.Session, seen: ClusterTemplate) -> None:
    """Raise Conflict if what a cluster takes from its template has changed since it was `seen`.

    The template is locked against changes until the transaction ends. Raises NotFound if it was
    deleted."""
    with session.no_autoflush:
        template = session.scalars(
            sa.select(ClusterTemplate)
            .where(ClusterTemplate.id == seen.id)
            .with_for_update(read=True)
        ).first()
    if template is None:
        raise errors.NotFound(f'Cluster template {seen.uuid} could not be found.')
    for column in sa.inspect(ClusterTemplate).columns:
        name = column.key
        if name in CLUSTER_INDEPENDENT_COLUMNS or name == 'updated_at':
            continue
        if getattr(template, name) != getattr(seen, name):
            raise errors.Conflict(f'Cluster template {seen.uuid} has changed meanwhile. Ask again.')


# -- clusters --------------------------------------------------------------------------------------


def _build_node_count(role: sa.ColumnElement[bool], name: str) -> sa.ColumnElement[int]:
    """Build a column beside each cluster: how many nodes its nodegroups of a role have together."""
    total = (
        sa.select(sa.func.coalesce(sa.func.sum(NodeGroup.node_count), 0))
        .where(NodeGroup.cluster_id == Cluster.uuid, role)
        .correlate(Cluster)
        .scalar_subquery()
    )
    return sa.cast(total, sa.Integer).label(name)


#: Columns of the short listing.
BRIEF_COLUMNS = (
    Cluster.uuid,
    Cluster.name,
    Cluster.cluster_template_id,
    Cluster.keypair,
    Cluster.docker_volume_size,
    Cluster.labels,
    Cluster.flavor_id,
    Cluster.master_flavor_id,
    Cluster.create_timeout,
    Cluster.stack_id,
    Cluster.status,
    Cluster.health_status,
    _build_node_count(NodeGroup.role == 'master', 'master_count'),
    _build_node_count(NodeGroup.role != 'master', 'node_count'),
)


@retry_on_deadlock
def list_clusters_brief(db: Database, scope: Scope, page: Page) -> Sequence[sa.Row[Any]]:
    """List one page of clusters as rows of `BRIEF_COLUMNS`. One statement, another for a marker.

    Plain rows, because objects take three times as long to make, and some clients list a thousand
    clusters every minute."""
    with db.read() as session:
        return session.execute(
            select_page(session, Cluster, scope, page).with_only_columns(*BRIEF_COLUMNS)
        ).all()


@retry_on_deadlock
def list_clusters(db: Database, scope: Scope, page: Page) -> Sequence[Cluster]:
    """List one page of clusters with their nodegroups and templates.

    Two statements at any page size, and another for a marker. (`selectinload` would send one for
    each 500 rows.)"""
    with db.read() as session:
        clusters = session.scalars(
            select_page(session, Cluster, scope, page).options(WITH_TEMPLATE)
        ).all()
        groups: dict[str, list[NodeGroup]] = {cluster.uuid: [] for cluster in clusters}
        if groups:
            for group in session.scalars(
                sa.select(NodeGroup)
                .where(NodeGroup.cluster_id.in_(list(groups)))
                .order_by(NodeGroup.id)
            ):
                groups[group.cluster_id].append(group)
        for cluster in clusters:
            orm.attributes.set_committed_value(cluster, 'nodegroups', groups[cluster.uuid])
        return clusters


@retry_on_deadlock
def get_cluster(db: Database, scope: Scope, ident: str) -> Cluster:
    """Get a cluster by uuid or name, with nodegroups and template.

    Raises NotFound, or Conflict for an ambiguous name."""
    with db.read() as session:
        return get_by_ident(
            session, Cluster, scope, ident, orm.selectinload(Cluster.nodegroups), WITH_TEMPLATE
        )


@retry_on_deadlock
def create_cluster(
    db: Database,
    cluster: Cluster,
    operation: Operation,
    *,
    default_quota: int,
    receipt: MakeReceipt[Cluster] = None,
) -> None:
    """Store a new cluster with its nodegroups, nodes and operation, if the quota allows one more.

    Count and insert are one transaction under a lock on the project's quota row, so parallel
    requests cannot exceed the quota. Raises OverQuota, NotFound if the template was deleted since
    it was read, Conflict if it has changed, and what `store_receipt` raises."""
    _ensure_quota_row(db, cluster.project_id, CLUSTER_RESOURCE)
    try:
        with db.write() as session:
            quota = _lock_quota(session, cluster.project_id, CLUSTER_RESOURCE)
            limit = default_quota if quota.hard_limit is None else quota.hard_limit
            count = sa.select(sa.func.count()).where(Cluster.project_id == cluster.project_id)
            used = session.scalar(count) or 0
            if used >= limit:
                raise errors.OverQuota(
                    f'The project has {used} clusters and its quota is {limit}. Delete a cluster '
                    'or ask an operator for a larger quota.'
                )
            # The template as the caller has read it. The relationship itself raises unless loaded.
            template = sa.inspect(cluster).dict.get('template')
            if template is not None:
                _check_template(session, template)
            cluster.check_at = now()
            _describe_target(operation, cluster, 1)
            operation.node_count = sum(group.node_count for group in cluster.nodegroups)
            session.add(cluster)
            session.add(operation)
            store_receipt(session, receipt, cluster)
    except db_exc.DBReferenceError as e:
        raise errors.NotFound(
            f'Cluster template {cluster.cluster_template_id} could not be found.'
        ) from e


def _describe_target(operation: Operation, cluster: Cluster, generation: int) -> None:
    """Write on an operation what only the row knows of its cluster, and its generation."""
    operation.cluster_id = cluster.uuid
    operation.project_id = cluster.project_id
    operation.driver = cluster.driver
    operation.generation = generation


@contextlib.contextmanager
def _lock_cluster(
    db: Database, scope: Scope, ident: str, guard: Guard = None
) -> Iterator[tuple[orm.Session, Cluster]]:
    """A transaction with a cluster, its template, nodegroups and nodes; its row stays locked.

    `guard` checks the cluster first. Raises NotFound, Conflict for an ambiguous name, and what
    `guard` raises.

    The lock is the first statement. MariaDB fixes what a transaction sees at its first plain
    SELECT, so a SELECT before the lock would hide what the previous holder of the lock has written
    on nodegroups and nodes."""
    with db.read() as session:
        cluster_id = get_by_ident(session, Cluster, scope, ident).id
    with db.write() as session:
        cluster = session.get(
            Cluster,
            cluster_id,
            with_for_update=True,
            options=[orm.selectinload(Cluster.template), WITH_NODES],
        )
        if cluster is None:
            raise errors.NotFound(f'Cluster {ident} could not be found.')
        if guard is not None:
            guard(cluster)
        yield session, cluster


def _record_request(
    session: orm.Session, cluster: Cluster, event: str, operation: Operation, **columns: Any
) -> None:
    """Store a request for work: its operation, and a new generation of the cluster that is due."""
    generation = cluster.generation + 1
    _describe_target(operation, cluster, generation)
    operation.node_count = sum(group.node_count for group in cluster.nodegroups)
    session.add(operation)
    move(
        session,
        cluster,
        event,
        generation=generation,
        check_at=now(),
        failures=0,
        status_reason=None,
        error_code=None,
        **columns,
    )
    # `move` leaves the object as it was, and callers return it to the client.
    orm.attributes.set_committed_value(cluster, 'status', states.TRANSITIONS[event][cluster.status])
    orm.attributes.set_committed_value(cluster, 'generation', generation)


@retry_on_deadlock
def request_update(
    db: Database,
    scope: Scope,
    ident: str,
    operation: Operation,
    change: Callable[[Cluster], T],
    *,
    guard: Guard = None,
    receipt: MakeReceipt[tuple[Cluster, T]] = None,
) -> tuple[Cluster, T]:
    """Request a change of a cluster; if another change runs, this one is applied after it.

    `change` gets the locked cluster with template, nodegroups and nodes. It writes the wanted state
    on them, sets the status of each nodegroup that has work to *_IN_PROGRESS, and may raise an
    HttpError, which rolls everything back. It is called again when the database aborts the
    transaction for a deadlock. Nodegroups that have failed before are tried again. `operation` is
    completed here.

    Returns the cluster and what `change` returned.

    Raises NotFound, also for a template that was deleted since it was read; Conflict for a template
    that has changed, and where the cluster's status allows no change; and what `guard` and
    `store_receipt` raise."""
    with _lock_cluster(db, scope, ident, guard) as (session, cluster):
        if cluster.status not in states.TRANSITIONS['update']:
            raise errors.Conflict(
                f'Cluster {cluster.uuid} is {cluster.status}, which allows no change. '
                f'{states.ADVICE.get(cluster.status, "")}'.strip()
            )
        before = cluster.cluster_template_id
        result = change(cluster)
        if cluster.cluster_template_id != before:
            _check_template(session, cluster.template)
        for group in cluster.nodegroups:
            if states.is_failed(group.status):
                group.status = states.to_in_progress(group.status)
            if states.is_busy(group.status):
                group.status_reason = None
                group.error_code = None
        _record_request(session, cluster, 'update', operation)
        store_receipt(session, receipt, (cluster, result))
        return cluster, result


@retry_on_deadlock
def edit_cluster(
    db: Database,
    scope: Scope,
    ident: str,
    change: Callable[[Cluster], object],
    *,
    guard: Guard = None,
) -> Cluster:
    """Change columns that give a conductor no work: no operation, no generation, in any status.

    `change` is as for `request_update`. Raises NotFound, and what `guard` raises."""
    with _lock_cluster(db, scope, ident, guard) as (_, cluster):
        change(cluster)
        return cluster


#: Seconds for which the health that a client has reported is kept before it is checked again.
CLIENT_HEALTH_S = 300


@retry_on_deadlock
def set_health(
    db: Database,
    scope: Scope,
    ident: str,
    *,
    status: str | None,
    reason: dict[str, str],
    guard: Guard = None,
) -> None:
    """Store the health of an engine as a client reports it, in any status of the cluster.

    It is no change of the cluster: `updated_at` stays. The row is locked only for a `guard`. Raises
    NotFound, and what `guard` raises."""
    with db.write() as session:
        cluster = get_by_ident(session, Cluster, scope, ident)
        if guard is not None:
            session.refresh(cluster, with_for_update=True)
            guard(cluster)
        # Moving `health_at` on makes the result of a check that is under way void: see
        # `leases.claim_health_checks`.
        next_check = sa.case((Cluster.health_at.is_not(None), now(CLIENT_HEALTH_S)), else_=None)
        update_rows(
            session,
            Cluster,
            Cluster.id == cluster.id,
            health_status=status,
            health_status_reason=reason,
            health_at=next_check,
        )


#: A repeated request for a delete has it sent to Heat again no sooner than so many seconds after
#: the first request, then after twice, three times as many.
RESEND_S = 60


@retry_on_deadlock
def request_delete(
    db: Database,
    scope: Scope,
    ident: str,
    operation: Operation,
    *,
    force: bool = False,
    guard: Guard = None,
) -> tuple[Cluster, Operation | None]:
    """Request that a cluster be deleted, whatever it is doing.

    `force`: what cannot be deleted in the cloud is left there. `operation` is completed here.
    Returns the cluster and the operation that deletes it: `operation`, or the one that runs
    already, because a repeated request is no second operation. Raises NotFound, Conflict for an
    ambiguous name, and what `guard` raises."""
    with _lock_cluster(db, scope, ident, guard) as (session, cluster):
        delete_forced = cluster.delete_forced or force
        if cluster.status == states.DELETE_IN_PROGRESS:
            return cluster, _repeat_delete(session, cluster, delete_forced)
        session.execute(
            sa.update(Operation)
            .where(match_running(cluster.uuid))
            .values(
                outcome='superseded',
                ended_at=models.utcnow(),
                text='A request to delete the cluster came in.',
            )
        )
        _record_request(
            session, cluster, 'delete', operation, delete_forced=delete_forced, health_at=None
        )
        session.execute(
            sa.update(NodeGroup)
            .where(NodeGroup.cluster_id == cluster.uuid)
            .values(status=states.DELETE_IN_PROGRESS, status_reason=None, error_code=None)
        )
        return cluster, operation


def _repeat_delete(session: orm.Session, cluster: Cluster, delete_forced: bool) -> Operation | None:
    """Make a cluster that is being deleted due now. Returns the operation that deletes it.

    A delete that has run for long gets a new generation, for which a conductor sends it to Heat
    again: Heat may have lost it."""
    running = find_newest_running(session, cluster)
    # Each generation since that of the operation is one time that the delete was sent again.
    times_sent = 1
    if running is not None:
        times_sent += cluster.generation - running.generation
    age_s = (models.utcnow() - (cluster.updated_at or cluster.created_at)).total_seconds()
    generation = cluster.generation
    if age_s > times_sent * RESEND_S:
        generation += 1
    update_rows(
        session,
        Cluster,
        Cluster.id == cluster.id,
        check_at=now(),
        delete_forced=delete_forced,
        generation=generation,
    )
    return running


# -- operations ------------------------------------------------------------------------------------


@retry_on_deadlock
def get_operation(db: Database, scope: Scope, uuid: str) -> Operation:
    """Get an operation by uuid, also of a cluster that was deleted. Raises NotFound."""
    with db.read() as session:
        return _get_operation(session, scope, uuid)


def _get_operation(session: orm.Session, scope: Scope, uuid: str) -> Operation:
    operation = None
    if uuidutils.is_uuid_like(uuid):
        operation = session.scalars(
            sa.select(Operation).where(
                Operation.uuid == str(uuidlib.UUID(uuid)), match_visible(Operation, scope)
            )
        ).first()
    if operation is None:
        raise errors.NotFound(f'Operation {uuid} could not be found.')
    return operation


@retry_on_deadlock
def list_operations(db: Database, scope: Scope, ident: str, page: Page) -> Sequence[Operation]:
    """List one page of the history of a cluster. Two statements, and another for a marker.

    Raises NotFound."""
    with db.read() as session:
        cluster = get_by_ident(session, Cluster, scope, ident)
        return session.scalars(
            select_page(session, Operation, scope, page, Operation.cluster_id == cluster.uuid)
        ).all()


@retry_on_deadlock
def request_cancel(db: Database, scope: Scope, uuid: str) -> Operation:
    """Request that a running operation be stopped.

    Raises NotFound; Conflict, with the reason, if it cannot be stopped."""
    with db.read() as session:
        operation = _get_operation(session, scope, uuid)
    if operation.outcome is not None:
        raise errors.Conflict(f'Operation {uuid} has ended already, as {operation.outcome}.')
    if operation.kind == 'delete':
        raise errors.Conflict(
            f'Operation {uuid} deletes its cluster, which cannot be stopped half-way.'
        )
    with _lock_cluster(db, scope, operation.cluster_id) as (session, cluster):
        # Read it again under the lock.
        operation = _get_operation(session, scope, uuid)
        if operation.outcome is not None:
            raise errors.Conflict(f'Operation {uuid} has ended meanwhile, as {operation.outcome}.')
        others = session.scalars(
            sa.select(Operation.uuid)
            .where(match_running(cluster.uuid), Operation.uuid != uuid)
            .limit(5)
        ).all()
        if others:
            raise errors.Conflict(
                f'Operation {uuid} is not the only one: {", ".join(others)} of the same cluster is '
                'not done either, and they are carried out together. Ask for another change '
                'instead.'
            )
        update_rows(
            session,
            Cluster,
            Cluster.id == cluster.id,
            cancelled_generation=cluster.generation,
            check_at=now(),
        )
        return operation


@retry_on_deadlock
def record_finished(db: Database, cluster: Cluster, operation: Operation, text: str) -> None:
    """Store an operation that the request itself has carried out, without changing the cluster."""
    _describe_target(operation, cluster, cluster.generation)
    operation.created_at = operation.begun_at = operation.ended_at = models.utcnow()
    operation.outcome = 'complete'
    operation.text = text
    with db.write() as session:
        session.add(operation)


#: Seconds for which conductors count resources after a client has polled an operation.
POLL_S = 60


@retry_on_deadlock
def mark_polled(db: Database, cluster_uuid: str) -> None:
    """Record that a client polls the operation of a cluster: conductors then count its resources.

    A mark that lasts for at least half of `POLL_S` is left as it is, to save writes."""
    with db.write() as session:
        update_rows(
            session,
            Cluster,
            Cluster.uuid == cluster_uuid,
            HAS_WORK,
            sa.or_(Cluster.polled_until.is_(None), Cluster.polled_until < now(POLL_S / 2)),
            polled_until=now(POLL_S),
            check_at=now(),
        )


#: How many of the newest operations of a driver an estimate reads.
PAST_OPERATIONS = 200
#: How many of these, nearest in size, it takes the median of.
NEAREST_OPERATIONS = 15


@retry_on_deadlock
def estimate_duration_s(db: Database, operation: Operation) -> float | None:
    """Estimate the seconds from request to end of an operation, from earlier ones of its kind.

    It is the median of those with the same driver that are nearest in number of nodes. None if
    there are none."""
    with db.read() as session:
        past = session.execute(
            sa.select(Operation.node_count, Operation.created_at, Operation.ended_at)
            .where(
                Operation.driver == operation.driver,
                Operation.kind == operation.kind,
                Operation.outcome == 'complete',
            )
            .order_by(Operation.id.desc())
            .limit(PAST_OPERATIONS)
        ).all()
    if not past:
        return None

    def compare_size(row: sa.Row[Any]) -> int:
        return abs((row.node_count or 0) - (operation.node_count or 0))

    nearest = sorted(past, key=compare_size)[:NEAREST_OPERATIONS]
    return statistics.median((row.ended_at - row.created_at).total_seconds() for row in nearest)


# -- nodegroups, nodes, certificates ---------------------------------------------------------------


@retry_on_deadlock
def list_nodegroups(
    db: Database, scope: Scope, ident: str, page: Page, role: str | None
) -> Sequence[NodeGroup]:
    """List one page of the nodegroups of a cluster, of one role if given. Raises NotFound.

    Two statements, and another for a marker."""
    with db.read() as session:
        cluster = get_by_ident(session, Cluster, scope, ident)
        conditions = [NodeGroup.cluster_id == cluster.uuid]
        if role is not None:
            conditions.append(NodeGroup.role == role)
        return session.scalars(select_page(session, NodeGroup, scope, page, *conditions)).all()


@retry_on_deadlock
def list_nodes(db: Database, scope: Scope, ident: str) -> Sequence[sa.Row[Any]]:
    """List all nodes of a cluster as plain rows, with `nodegroup` and `role`. Two statements.

    Raises NotFound."""
    with db.read() as session:
        cluster = get_by_ident(session, Cluster, scope, ident)
        return session.execute(
            sa.select(
                Node.name,
                NodeGroup.name.label('nodegroup'),
                NodeGroup.role,
                Node.number,
                Node.status,
                Node.status_reason,
                Node.error_code.label('code'),
                Node.server_id,
                Node.address,
                Node.private_address,
                Node.image_id,
                Node.version,
            )
            .join(NodeGroup, NodeGroup.uuid == Node.nodegroup_id)
            .where(NodeGroup.cluster_id == cluster.uuid)
            .order_by(NodeGroup.id, Node.number)
        ).all()


@retry_on_deadlock
def get_certificates(db: Database, scope: Scope, ident: str) -> tuple[Cluster, dict[str, str]]:
    """Get a cluster with its template, and the public parts of its keys by purpose, as PEM.

    Two statements, neither of which reads a private part. The text of a purpose with several keys
    has all of them, oldest first. Raises NotFound, Conflict for an ambiguous name."""
    with db.read() as session:
        cluster = get_by_ident(session, Cluster, scope, ident, WITH_TEMPLATE)
        certificates: dict[str, str] = {}
        for purpose, pem in session.execute(
            sa.select(Key.purpose, Key.certificate)
            .where(Key.cluster_id == cluster.uuid)
            .order_by(Key.id)
        ):
            certificates[purpose] = certificates.get(purpose, '') + pem
        return cluster, certificates


# -- quotas ----------------------------------------------------------------------------------------

#: The only resource that has a quota, as Magnum names it.
CLUSTER_RESOURCE = 'Cluster'


def _match_quota(project_id: str, resource: str) -> sa.ColumnElement[bool]:
    """Build the condition for a quota that an operator has set.

    A row without a limit is no quota: it is there to be locked."""
    return sa.and_(
        Quota.project_id == project_id, Quota.resource == resource, Quota.hard_limit.is_not(None)
    )


def _ensure_quota_row(db: Database, project_id: str, resource: str) -> None:
    """Ensure that there is a row to lock while the clusters of a project are counted.

    In a transaction of its own: see `models.Quota`."""
    with db.read() as session:
        if row_exists(
            session, Quota.id, Quota.project_id == project_id, Quota.resource == resource
        ):
            return
    with contextlib.suppress(db_exc.DBDuplicateEntry), db.write() as session:
        session.add(Quota(project_id=project_id, resource=resource, hard_limit=None))


def _lock_quota(session: orm.Session, project_id: str, resource: str) -> Quota:
    """Lock the row that `_ensure_quota_row` has ensured, and return it."""
    return session.scalars(
        sa.select(Quota)
        .where(Quota.project_id == project_id, Quota.resource == resource)
        .with_for_update()
    ).one()


@retry_on_deadlock
def list_quotas(db: Database, scope: Scope, page: Page) -> Sequence[Quota]:
    """List one page of the quotas that were set. One statement, and another for a marker."""
    with db.read() as session:
        return session.scalars(
            select_page(session, Quota, scope, page, Quota.hard_limit.is_not(None))
        ).all()


@retry_on_deadlock
def find_quota(db: Database, project_id: str, resource: str) -> Quota | None:
    """Find the quota that was set for a project. None: the configured default applies."""
    with db.read() as session:
        return session.scalars(sa.select(Quota).where(_match_quota(project_id, resource))).first()


@retry_on_deadlock
def create_quota(db: Database, quota: Quota, *, receipt: MakeReceipt[Quota] = None) -> Quota:
    """Store a quota, in the row that exists to be locked for it. Returns that row.

    Raises Conflict if a quota was set already, and what `store_receipt` raises."""
    _ensure_quota_row(db, quota.project_id, quota.resource)
    with db.write() as session:
        row = _lock_quota(session, quota.project_id, quota.resource)
        if row.hard_limit is not None:
            raise errors.Conflict(
                f'Project {quota.project_id} has a quota for {quota.resource} already. Change that.'
            )
        row.hard_limit = quota.hard_limit
        row.created_at = models.utcnow()
        row.updated_at = None
        store_receipt(session, receipt, row)
        return row


@retry_on_deadlock
def update_quota(db: Database, project_id: str, resource: str, hard_limit: int | None) -> Quota:
    """Set the limit of a quota that was set before. None: the default applies again.

    The row stays, to be locked. A limit below what the project has deletes nothing. Raises
    NotFound."""
    with db.write() as session:
        row = session.scalars(
            sa.select(Quota).where(_match_quota(project_id, resource)).with_for_update()
        ).first()
        if row is None:
            raise errors.NotFound(f'Project {project_id} has no quota for {resource} of its own.')
        row.hard_limit = hard_limit
        row.updated_at = models.utcnow()
        return row


# -- statistics and services -----------------------------------------------------------------------


@retry_on_deadlock
def count_usage(db: Database, project_id: str | None) -> tuple[int, int]:
    """Count clusters and nodes, masters included, of a project or (None) of all. One statement."""

    def select_total(total: Any, model: type[Cluster] | type[NodeGroup]) -> Any:
        query = sa.select(total)
        if project_id is not None:
            query = query.where(model.project_id == project_id)
        return query.scalar_subquery()

    clusters = select_total(sa.func.count(Cluster.id), Cluster)
    nodes = select_total(sa.func.coalesce(sa.func.sum(NodeGroup.node_count), 0), NodeGroup)
    with db.read() as session:
        cluster_count, node_count = session.execute(sa.select(clusters, nodes)).one()
    return int(cluster_count), int(node_count)


@retry_on_deadlock
def list_services(db: Database, down_time_s: float) -> Sequence[sa.Row[Any]]:
    """List all conductors that ever reported, as plain rows. One statement.

    `state` is up if the last report, shown as `updated_at`, is at most `down_time_s` old by the
    clock of the database."""
    reported_at = sa.func.coalesce(Service.last_seen_up, Service.created_at)
    is_down = sa.or_(Service.forced_down, reported_at < now(-down_time_s))
    with db.read() as session:
        return session.execute(
            sa.select(
                Service.id,
                Service.host,
                Service.binary,
                sa.case((is_down, 'down'), else_='up').label('state'),
                Service.report_count,
                Service.disabled,
                Service.disabled_reason,
                Service.created_at,
                Service.last_seen_up.label('updated_at'),
            ).order_by(Service.id)
        ).all()
