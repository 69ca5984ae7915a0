"""What conductors do with the database: claim clusters, write under a lease, release them.

Called by the conductor, and by `requests` for `move()`. The protocol is described in
doc/contributor/protocol.md. In short: a claim is an UPDATE that is guarded by the clock of the
database, so two conductors never hold one cluster, and no conductor needs a correct clock. The
holder of a lease is a name that is new for each claim. What a conductor writes on a cluster goes
through `lease_transaction()` or `move()`, which fail when the lease is lost. The clock `now` and
the guarded `update_rows()` are here, because leases are made of them; `requests` and `inventory`
use them too.

A function that takes a `Database` is one transaction of its own. One that takes a `session` is a
part of the caller's."""

from __future__ import annotations

import contextlib
import datetime
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext import compiler

from magnum_lite import errors, models, states
from magnum_lite.db.engine import (
    WITH_NODES,
    WITH_TEMPLATE,
    Database,
    retry_on_deadlock,
    row_exists,
)
from magnum_lite.models import Cluster, Key, NodeGroup, Operation, Service

# -- the clock of the database, and the guarded UPDATE ---------------------------------------------


class now(sa.sql.functions.FunctionElement[Any]):
    """SQL expression: the clock of the database server in UTC, plus `plus_s` seconds."""

    type = models.UTCDateTime()
    inherit_cache = True

    def __init__(self, plus_s: float = 0) -> None:
        super().__init__(sa.bindparam(None, round(plus_s, 3), type_=sa.Float, unique=True))


@compiler.compiles(now, 'sqlite')
def _compile_now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds'))"


@compiler.compiles(now, 'mysql')
@compiler.compiles(now, 'mariadb')
def _compile_now_mysql(element: now, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f'(UTC_TIMESTAMP(6) + INTERVAL CAST({seconds} * 1000000 AS SIGNED) MICROSECOND)'


@compiler.compiles(now, 'postgresql')
def _compile_now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(timezone('UTC', clock_timestamp()) + make_interval(secs => {seconds}))"


def update_rows(
    session: orm.Session,
    model: type[models.Base],
    *conditions: sa.ColumnElement[bool],
    **columns: Any,
) -> int:
    """Write columns of the rows that meet all conditions. Returns how many rows that are.

    Objects of the session are not updated, so the caller must not read these columns from them."""
    result = session.execute(
        sa.update(model)
        .where(*conditions)
        .values(**columns)
        .execution_options(synchronize_session=False)
    )
    return cast('sa.CursorResult[Any]', result).rowcount


# -- status ----------------------------------------------------------------------------------------


def move(
    session: orm.Session, cluster: Cluster, event: str, *, holder: str | None = None, **columns: Any
) -> None:
    """Move a cluster along one transition of `states.TRANSITIONS`: the only writer of its status.

    One UPDATE, guarded by the status and the generation with which `cluster` was read, and by the
    lease if `holder` is given. `columns` are written along. The object `cluster` stays as it is.

    Raises Conflict for a transition that the table does not have. If the row has changed, raises
    LeaseLost when there is a holder, else Conflict."""
    status = states.TRANSITIONS[event].get(cluster.status)
    if status is None:
        raise errors.Conflict(
            f'Cluster {cluster.uuid} is {cluster.status}, which does not allow this.'
        )
    guard = [
        Cluster.uuid == cluster.uuid,
        Cluster.status == cluster.status,
        Cluster.generation == cluster.generation,
    ]
    if holder is not None:
        guard.append(Cluster.leased_by == holder)
    is_moved = update_rows(
        session, Cluster, *guard, status=status, updated_at=models.utcnow(), **columns
    )
    if is_moved:
        return
    if holder is not None:
        raise errors.LeaseLost(cluster.uuid)
    raise errors.Conflict(f'Cluster {cluster.uuid} has changed meanwhile. Look again.')


# -- claims ----------------------------------------------------------------------------------------

#: Rows with work, waiting or leased. The others are idle: no conductor looks at them.
HAS_WORK = sa.or_(Cluster.check_at.is_not(None), Cluster.leased_by.is_not(None))
#: Rows that are due now or later. Repeated beside each comparison with `now()`: PostgreSQL cannot
#: use an index to compare with a volatile function, but can for IS NOT NULL.
_IS_SCHEDULED = sa.or_(Cluster.check_at.is_not(None), Cluster.leased_until.is_not(None))
#: Rows that may be claimed: due and held by no conductor, or held by one that let its lease expire.
_IS_DUE = sa.and_(
    _IS_SCHEDULED,
    sa.or_(
        sa.and_(Cluster.check_at <= now(), Cluster.leased_until.is_(None)),
        Cluster.leased_until < now(),
    ),
)


def _lease_rows(
    db: Database,
    holder: str,
    ids: Sequence[int],
    condition: sa.ColumnElement[bool],
    lease_s: float,
) -> None:
    """Lease those of these rows that still meet the condition.

    The rows are found by id, as in every other write. Found by the index of a column that other
    writes change, they would be locked in another order: a deadlock."""
    with db.write() as session:
        update_rows(
            session,
            Cluster,
            Cluster.id.in_(ids),
            condition,
            leased_by=holder,
            leased_until=now(lease_s),
            check_at=None,
        )


@retry_on_deadlock
def claim_unstarted(db: Database, holder: str, *, limit: int, lease_s: float) -> Sequence[str]:
    """Lease up to `limit` due clusters without a stack, longest overdue first; return their uuids.

    `holder` must be new for each call, because it is the fence. A conductor that claims a cluster
    again after its own lease has expired must not pass for its thread that still believes in the
    first lease. A claim sets `check_at` to null: it is set again when a request makes the cluster
    due."""
    is_claimable = sa.and_(_IS_DUE, Cluster.stack_id.is_(None))
    with db.read() as session:
        ids = session.scalars(
            sa.select(Cluster.id).where(is_claimable).order_by(Cluster.check_at).limit(limit)
        ).all()
    if not ids:
        return []
    _lease_rows(db, holder, ids, is_claimable, lease_s)
    with db.read() as session:
        return session.scalars(sa.select(Cluster.uuid).where(Cluster.leased_by == holder)).all()


@dataclass(frozen=True)
class StackWatch:
    """What a conductor must know to look at the stacks of a cluster. There may be thousands.

    `is_polled`: a client polls the progress of the operation. `requested_at`: when that was
    requested, or when its newest batch or phase began. `groups`: for each nodegroup the id of its
    stack (or None) and its status."""

    uuid: str
    project_id: str
    status: str
    generation: int
    sent_generation: int
    cancelled_generation: int
    failures: int
    create_timeout: int | None
    is_polled: bool
    requested_at: datetime.datetime
    groups: list[tuple[str | None, str]] = field(default_factory=list)


#: The columns of a StackWatch in the order of its fields, then those of one nodegroup. A cluster
#: has one row for each nodegroup; without any it has one row, with nulls for the nodegroup.
_SELECT_WATCHES = sa.select(
    Cluster.uuid,
    Cluster.project_id,
    Cluster.status,
    Cluster.generation,
    Cluster.sent_generation,
    Cluster.cancelled_generation,
    Cluster.failures,
    Cluster.create_timeout,
    sa.func.coalesce(Cluster.polled_until > now(), sa.false()),
    sa.func.coalesce(Cluster.updated_at, Cluster.created_at),
    NodeGroup.stack_id,
    NodeGroup.status,
).outerjoin(NodeGroup, NodeGroup.cluster_id == Cluster.uuid)


@retry_on_deadlock
def claim_watched(
    db: Database, holder: str, *, projects: int, lease_s: float, horizon_s: float
) -> list[StackWatch]:
    """Lease the clusters with a stack of up to `projects` projects in which one is due.

    Clusters of these projects that become due within `horizon_s` are leased with them: one call
    to Heat shows all stacks of a project, so its clusters should be due together. Four statements
    at any number of clusters."""
    has_stack = Cluster.stack_id.is_not(None)
    is_due_soon = sa.and_(Cluster.check_at <= now(horizon_s), Cluster.leased_until.is_(None))
    is_claimable = sa.and_(has_stack, sa.or_(_IS_DUE, is_due_soon))
    with db.read() as session:
        due_projects = session.scalars(
            sa.select(Cluster.project_id)
            .where(_IS_DUE, has_stack)
            .group_by(Cluster.project_id)
            .order_by(sa.func.min(Cluster.check_at))
            .limit(projects)
        ).all()
        if not due_projects:
            return []
        ids = session.scalars(
            sa.select(Cluster.id).where(Cluster.project_id.in_(due_projects), is_claimable)
        ).all()
    if not ids:
        return []
    _lease_rows(db, holder, ids, is_claimable, lease_s)
    with db.read() as session:
        rows = session.execute(_SELECT_WATCHES.where(Cluster.leased_by == holder)).all()
    watches: dict[str, StackWatch] = {}
    for *columns, stack_id, group_status in rows:
        uuid = columns[0]
        if uuid not in watches:
            watches[uuid] = StackWatch(*columns)
        # A cluster without nodegroups is returned as well, with no groups.
        if group_status is not None:
            watches[uuid].groups.append((stack_id, group_status))
    return list(watches.values())


#: When the first cluster without a stack is due, and the first with one; the clock beside both.
#: Built once, because every conductor sends it again and again.
_SELECT_NEXT_DUE = (
    sa.select(
        Cluster.stack_id.is_(None),
        sa.func.min(sa.func.coalesce(Cluster.leased_until, Cluster.check_at)),
        now(),
    )
    .where(_IS_SCHEDULED)
    .group_by(Cluster.stack_id.is_(None))
)


@retry_on_deadlock
def get_due_in_s(db: Database) -> tuple[float, float]:
    """Seconds until the next cluster without a stack is due, and until the next with a stack.

    0 or less if one is due, infinity if there is none. A leased cluster is due when its lease ends.
    One statement, which tells whether `claim_unstarted` and `claim_watched` would find anything."""
    due_in_s = {True: float('inf'), False: float('inf')}
    with db.read() as session:
        for is_unstarted, due_at, clock in session.execute(_SELECT_NEXT_DUE):
            due_in_s[bool(is_unstarted)] = (due_at - clock).total_seconds()
    return due_in_s[True], due_in_s[False]


@retry_on_deadlock
def make_due_by_stack(db: Database, stack_ids: Sequence[str]) -> int:
    """Make the clusters with these stacks due now, unless they are idle. Returns how many.

    Called for the notifications of Heat. Most are about stacks that no row knows, so these cost
    one read."""
    with db.read() as session:
        uuids = session.scalars(
            sa.select(NodeGroup.cluster_id).where(NodeGroup.stack_id.in_(stack_ids))
        ).all()
    if not uuids:
        return 0
    with db.write() as session:
        return update_rows(session, Cluster, Cluster.uuid.in_(uuids), HAS_WORK, check_at=now())


# -- work under a lease ----------------------------------------------------------------------------


@retry_on_deadlock
def list_leased(db: Database, holder: str, uuids: Sequence[str] | None = None) -> list[Cluster]:
    """List the clusters that `holder` has leased, all of them or those with these uuids.

    With template, nodegroups, nodes and the texts of their stacks."""
    query = sa.select(Cluster).where(Cluster.leased_by == holder)
    if uuids is not None:
        query = query.where(Cluster.uuid.in_(uuids))
    with_groups = orm.selectinload(Cluster.nodegroups).options(
        orm.undefer(NodeGroup.stack_text), orm.selectinload(NodeGroup.nodes)
    )
    with db.read() as session:
        return list(
            session.scalars(
                query.order_by(Cluster.id).options(
                    WITH_TEMPLATE, orm.undefer(Cluster.stack_text), with_groups
                )
            )
        )


@contextlib.contextmanager
def lease_transaction(
    db: Database,
    cluster: Cluster,
    holder: str,
    *,
    lease_s: float,
    guarded: bool = False,
    **columns: Any,
) -> Iterator[orm.Session]:
    """A transaction of a conductor: it renews the lease, writes `columns`, then yields its session.

    Raises LeaseLost, with nothing written, if `holder` no longer holds the cluster, or, if
    `guarded`, when another change was requested since `cluster` was read. After the commit
    `cluster` shows those columns that are plain values, not SQL expressions."""
    guard = [Cluster.uuid == cluster.uuid, Cluster.leased_by == holder]
    if guarded:
        guard.append(Cluster.generation == cluster.generation)
    with db.write() as session:
        is_renewed = update_rows(session, Cluster, *guard, leased_until=now(lease_s), **columns)
        if not is_renewed:
            raise errors.LeaseLost(cluster.uuid)
        yield session
    for name, value in columns.items():
        if not isinstance(value, sa.ClauseElement):
            orm.attributes.set_committed_value(cluster, name, value)


#: Delay before a cluster is looked at again whose conductor lost its lease while it worked: time
#: for Heat to accept what that conductor sent.
RECHECK_S = 3


@retry_on_deadlock
def release(db: Database, cluster: Cluster, holder: str, *, check_in_s: float | None) -> None:
    """Give a cluster back, due again in so many seconds (None: when something is requested).

    If it was made due while it was held, it is due now.

    A lost lease is not an error here. But this conductor may have been suspended between its last
    write and a call to Heat, and so have sent an outdated template. The cluster is then looked at
    soon, even if it is idle or another conductor holds it."""
    check_at = sa.null() if check_in_s is None else now(check_in_s)
    with db.write() as session:
        is_released = update_rows(
            session,
            Cluster,
            Cluster.uuid == cluster.uuid,
            Cluster.leased_by == holder,
            leased_by=None,
            leased_until=None,
            check_at=sa.func.coalesce(Cluster.check_at, check_at),
        )
        if is_released:
            return
        # A cluster that waits for its turn without a holder keeps its own time.
        update_rows(
            session,
            Cluster,
            Cluster.uuid == cluster.uuid,
            sa.or_(Cluster.check_at.is_(None), Cluster.leased_by.is_not(None)),
            check_at=now(RECHECK_S),
        )


@retry_on_deadlock
def release_unchanged(
    db: Database, holder: str, uuids: Sequence[str], *, check_in_s: float
) -> None:
    """Give back clusters of which nothing new is known, due in `check_in_s`. One statement.

    Those that were made due while they were held are due now."""
    with db.write() as session:
        update_rows(
            session,
            Cluster,
            Cluster.leased_by == holder,
            Cluster.uuid.in_(uuids),
            leased_by=None,
            leased_until=None,
            check_at=sa.func.coalesce(Cluster.check_at, now(check_in_s)),
        )


@retry_on_deadlock
def release_all(db: Database, holder: str) -> int:
    """Give back all clusters of `holder`, due now. Called when it stops. Returns how many."""
    with db.write() as session:
        return update_rows(
            session,
            Cluster,
            Cluster.leased_by == holder,
            leased_by=None,
            leased_until=None,
            check_at=now(),
        )


@retry_on_deadlock
def is_stack_wanted(db: Database, owner: Cluster | NodeGroup) -> bool:
    """Whether this cluster or nodegroup still exists and is to have a stack, whoever holds it."""
    model = type(owner)
    with db.read() as session:
        return row_exists(
            session, model.id, model.uuid == owner.uuid, model.stack_text.is_not(None)
        )


@retry_on_deadlock
def has_other_clusters(db: Database, project_id: str, cluster_uuid: str) -> bool:
    """Whether the project has a cluster besides this one that has or may get a stack.

    That is every cluster but one that is being deleted and has no stack any more."""
    may_have_stack = sa.or_(
        Cluster.status != states.DELETE_IN_PROGRESS, Cluster.stack_id.is_not(None)
    )
    with db.read() as session:
        return row_exists(
            session,
            Cluster.id,
            Cluster.project_id == project_id,
            Cluster.uuid != cluster_uuid,
            may_have_stack,
        )


def delete_cluster_row(session: orm.Session, cluster: Cluster) -> None:
    """Delete the row with its nodegroups, nodes and keys. Its operations stay."""
    session.execute(sa.delete(Cluster).where(Cluster.uuid == cluster.uuid))


# -- operations ------------------------------------------------------------------------------------


def match_running(cluster_uuid: str) -> sa.ColumnElement[bool]:
    """Build the condition for the operations of a cluster that have not ended."""
    return sa.and_(Operation.cluster_id == cluster_uuid, Operation.outcome.is_(None))


def find_newest_running(session: orm.Session, cluster: Cluster) -> Operation | None:
    """Find the newest operation of a cluster that has not ended."""
    return session.scalars(
        sa.select(Operation)
        .where(match_running(cluster.uuid))
        .order_by(Operation.id.desc())
        .limit(1)
    ).first()


@retry_on_deadlock
def find_running_operation(db: Database, cluster: Cluster) -> tuple[str | None, str | None]:
    """Find the uuid of the newest operation of a cluster that has not ended, and its request's id.

    Both are None if there is none."""
    with db.read() as session:
        operation = find_newest_running(session, cluster)
    if operation is None:
        return None, None
    return operation.uuid, operation.request_id


def begin_operation(session: orm.Session, cluster: Cluster) -> None:
    """Record, once for each operation, that work on what the row asks for has begun."""
    session.execute(
        sa.update(Operation)
        .where(
            Operation.cluster_id == cluster.uuid,
            Operation.generation <= cluster.generation,
            Operation.begun_at.is_(None),
        )
        .values(begun_at=models.utcnow())
    )


def end_operations(
    session: orm.Session,
    cluster: Cluster,
    outcome: str,
    *,
    through: int | None = None,
    code: str | None = None,
    text: str | None = None,
) -> Sequence[Operation]:
    """End the running operations up to generation `through`, default the one of `cluster`.

    Returns those that this has ended."""
    last = cluster.generation if through is None else through
    operations = session.scalars(
        sa.select(Operation).where(match_running(cluster.uuid), Operation.generation <= last)
    ).all()
    for operation in operations:
        operation.outcome = outcome
        operation.ended_at = models.utcnow()
        operation.code = code
        operation.text = text
    return operations


@retry_on_deadlock
def store_progress(db: Database, cluster_uuid: str, done: int, total: int) -> None:
    """Store at the running operations how many resources of the cluster's stacks are complete."""
    with db.write() as session:
        session.execute(
            sa.update(Operation)
            .where(match_running(cluster_uuid))
            .values(resources_done=done, resources_total=total)
        )


# -- keys and their rotation -----------------------------------------------------------------------


@retry_on_deadlock
def list_keys(db: Database, cluster_uuid: str) -> Sequence[Key]:
    """List the keys of a cluster with their private parts; the next key of a purpose comes last."""
    with db.read() as session:
        return session.scalars(
            sa.select(Key)
            .where(Key.cluster_id == cluster_uuid)
            .order_by(Key.is_next, Key.id)
            .options(orm.undefer(Key.private_key))
        ).all()


def advance_rotation(session: orm.Session, cluster: Cluster) -> None:
    """Begin the next phase of the rotation of a cluster's authorities: replace every member again.

    The caller's transaction holds the lease. The time limit of the operation starts again, and its
    text shows the phase."""
    phase = cluster.rotation_phase + 1
    session.execute(
        sa.update(Cluster)
        .where(Cluster.uuid == cluster.uuid)
        .values(rotation_phase=phase, updated_at=models.utcnow())
    )
    session.execute(
        sa.update(NodeGroup)
        .where(NodeGroup.cluster_id == cluster.uuid)
        .values(rollout=NodeGroup.rollout + 1, status=states.UPDATE_IN_PROGRESS)
    )
    session.execute(
        sa.update(Operation)
        .where(match_running(cluster.uuid), Operation.kind == 'rotate')
        .values(text=f'Phase {phase} of {models.ROTATION_PHASES}')
    )


def end_rotation(session: orm.Session, cluster: Cluster) -> None:
    """Replace the authorities of a cluster by the next ones, and delete the old ones."""
    of_cluster = Key.cluster_id == cluster.uuid
    next_keys = session.scalars(sa.select(Key).where(of_cluster, Key.is_next)).all()
    session.execute(
        sa.delete(Key).where(
            of_cluster,
            sa.not_(Key.is_next),
            Key.purpose.in_([key.purpose for key in next_keys]),
        )
    )
    session.execute(sa.update(Key).where(of_cluster).values(is_next=False))


# -- health ----------------------------------------------------------------------------------------


@retry_on_deadlock
def claim_health_checks(
    db: Database, *, limit: int, interval_s: float
) -> list[tuple[Cluster, datetime.datetime]]:
    """Claim the health checks of up to `limit` engines, longest overdue first.

    Returns each cluster with template, nodegroups and nodes, and a token for `report_health`. The
    token is the time of the next check, about `interval_s` from now, as stored in `health_at`. The
    conductor that moves that column on has the check, so no other makes it, and nothing has to be
    released afterwards."""
    is_due = sa.and_(
        Cluster.health_at <= now(),
        Cluster.api_address.is_not(None),
        Cluster.status.not_in(
            [states.DELETE_IN_PROGRESS, states.DELETE_COMPLETE, states.DELETE_FAILED]
        ),
    )
    with db.read() as session:
        rows = session.execute(
            sa.select(Cluster.id, Cluster.health_at, now())
            .where(is_due)
            .order_by(Cluster.health_at)
            .limit(limit)
        ).all()
    if not rows:
        return []
    tokens: dict[int, datetime.datetime] = {}
    with db.write() as session:
        for cluster_id, due_at, clock in rows:
            token = clock + datetime.timedelta(seconds=interval_s * random.uniform(0.9, 1.1))
            is_claimed = update_rows(
                session,
                Cluster,
                Cluster.id == cluster_id,
                Cluster.health_at == due_at,
                health_at=token,
            )
            if is_claimed:
                tokens[cluster_id] = token
    with db.read() as session:
        clusters = session.scalars(
            sa.select(Cluster)
            .where(Cluster.id.in_(list(tokens)))
            .order_by(Cluster.id)
            .options(WITH_TEMPLATE, WITH_NODES)
        ).all()
    return [(cluster, tokens[cluster.id]) for cluster in clusters]


@retry_on_deadlock
def report_health(
    db: Database,
    cluster_uuid: str,
    token: datetime.datetime,
    *,
    status: str | None,
    reason: dict[str, str],
) -> bool:
    """Store the health of an engine if `token` is still current; return whether it was.

    Status None: the engine cannot be checked at all. It is not checked again until `health_at` is
    set again."""
    values: dict[str, Any] = {'health_status': status, 'health_status_reason': reason}
    if status is None:
        values = {'health_at': None}
    with db.write() as session:
        return bool(
            update_rows(
                session, Cluster, Cluster.uuid == cluster_uuid, Cluster.health_at == token, **values
            )
        )


# -- conductors ------------------------------------------------------------------------------------


@retry_on_deadlock
def report_service(db: Database, host: str, binary: str) -> None:
    """Record that a conductor is alive, with the time of the database."""
    with db.write() as session:
        is_known = update_rows(
            session,
            Service,
            Service.host == host,
            Service.binary == binary,
            last_seen_up=now(),
            report_count=Service.report_count + 1,
        )
        if not is_known:
            session.add(Service(host=host, binary=binary, last_seen_up=now(), report_count=1))
