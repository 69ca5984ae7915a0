"""What the doctor reads and mends: all rows at one moment, and which of them nothing explains.

Called by `doctor` and its command. It looks at the rows of every project, and the key rows that it
returns carry their (encrypted) private parts, so the API must not use it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import orm

from magnum_lite.db.engine import Database, retry_on_deadlock, row_exists
from magnum_lite.db.leases import now, update_rows
from magnum_lite.models import Cluster, Key, NodeGroup, Operation, Service


@dataclass(frozen=True)
class Inventory:
    """All rows at one moment, which is `clock` of the database.

    `known_clusters` and `known_projects` are ids of every cluster that was ever requested here,
    and of its project: the history of operations outlives the rows."""

    clock: datetime.datetime
    clusters: Sequence[Cluster]
    keys: Sequence[Key]
    stray_keys: Sequence[Key]
    services: Sequence[Service]
    known_clusters: frozenset[str]
    known_projects: frozenset[str]


@retry_on_deadlock
def take_inventory(db: Database) -> Inventory:
    """Read clusters with nodegroups, keys with private parts, conductors, and what history knows.

    A stray key is one whose cluster is not there."""
    with db.read() as session:
        clusters = session.scalars(
            sa.select(Cluster).order_by(Cluster.id).options(orm.selectinload(Cluster.nodegroups))
        ).all()
        keys = session.scalars(
            sa.select(Key).order_by(Key.id).options(orm.undefer(Key.private_key))
        ).all()
        history = session.execute(
            sa.select(Operation.cluster_id, Operation.project_id).distinct()
        ).all()
        clock = session.execute(sa.select(now())).scalar_one()
        services = session.scalars(sa.select(Service).order_by(Service.id)).all()
    uuids = {cluster.uuid for cluster in clusters}
    return Inventory(
        clock=clock,
        clusters=clusters,
        keys=[key for key in keys if key.cluster_id in uuids],
        stray_keys=[key for key in keys if key.cluster_id not in uuids],
        services=services,
        known_clusters=frozenset(uuids.union(row.cluster_id for row in history)),
        known_projects=frozenset(row.project_id for row in history),
    )


@retry_on_deadlock
def list_projects(db: Database) -> Sequence[str]:
    """List the ids of the projects that have clusters."""
    with db.read() as session:
        return session.scalars(sa.select(Cluster.project_id).distinct()).all()


@retry_on_deadlock
def has_stack(db: Database, stack_id: str) -> bool:
    """Whether a cluster or a nodegroup has this stack."""
    with db.read() as session:
        return any(
            row_exists(session, model.id, model.stack_id == stack_id)
            for model in (Cluster, NodeGroup)
        )


@retry_on_deadlock
def make_due(db: Database, cluster_uuid: str) -> None:
    """Make an idle cluster due now, so a conductor looks at it; leave one with work alone."""
    with db.write() as session:
        update_rows(
            session,
            Cluster,
            Cluster.uuid == cluster_uuid,
            Cluster.check_at.is_(None),
            Cluster.leased_by.is_(None),
            check_at=now(),
        )


@retry_on_deadlock
def delete_row(db: Database, row: Key | Service) -> None:
    """Delete one row."""
    with db.write() as session:
        session.execute(sa.delete(type(row)).where(type(row).id == row.id))
