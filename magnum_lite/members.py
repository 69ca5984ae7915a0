"""Which members a nodegroup is to have: pure functions on loaded rows, no database, no cloud.

A member is a `Node` row. Its number is its name in the stack and never changes. A member that is no
longer wanted is marked DELETE_IN_PROGRESS, and its row is deleted when Heat has deleted its server.
The API changes the wanted members with these functions, and the conductor replaces failed members
and those of an older rollout. Both call them inside a transaction and write the rows afterwards."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from magnum_lite import errors, states
from magnum_lite.models import Cluster, Node, NodeGroup


def make_node_name(cluster: Cluster, group: NodeGroup, number: int) -> str:
    """Make the unique name of a member's server: a DNS label of at most 53 characters.

    53 is Heat's limit. The engine's node has the same name, because volumes and load balancers are
    looked up by it."""
    kind = _make_slug(group.name.removeprefix('default-'), 15)
    # Names of two nodegroups can have the same slug, so a further one is told apart by its uuid.
    owner = cluster.uuid[:8] if group.is_default else group.uuid[:8]
    return f'{make_name_prefix(cluster)}{owner}-{kind or "n"}-{number}'


def make_name_prefix(cluster: Cluster) -> str:
    """Make the prefix of the names of all members that a cluster has or ever had."""
    return f'{_make_slug(cluster.name, 20) or "c"}-'


def _make_slug(value: str, length: int) -> str:
    return re.sub(r'[^a-z0-9]+', '-', value.lower())[:length].strip('-')


def add(cluster: Cluster, group: NodeGroup, count: int) -> None:
    """Append `count` new members, numbered from the nodegroup's counter."""
    for _ in range(count):
        number = group.next_number
        group.next_number = number + 1
        group.nodes.append(
            Node(
                nodegroup_id=group.uuid,
                number=number,
                name=make_node_name(cluster, group, number),
                image_id=group.image_id,
                rollout=group.rollout or 1,
                status=states.CREATE_IN_PROGRESS,
            )
        )


def list_wanted(group: NodeGroup) -> list[Node]:
    """List the members that are wanted, in the order of their numbers."""
    return [node for node in group.nodes if node.status != states.DELETE_IN_PROGRESS]


def next_members(group: NodeGroup, in_stack: Collection[int], limit: int) -> list[Node]:
    """List the members of the next version of the stack: those that it has, and new ones.

    `in_stack`: the numbers that the stack has now. At most `limit` workers start at the same time,
    including those of the stack that are still starting; 0: no limit. A compute service that is
    asked for hundreds of servers at once cannot serve anything else."""
    nodes = list_wanted(group)
    if not limit or group.role == 'master':
        return nodes
    new = [node for node in nodes if node.number not in in_stack]
    starting = [
        node
        for node in nodes
        if node.number in in_stack and node.status == states.CREATE_IN_PROGRESS
    ]
    room = max(limit - len(starting), 0)
    postponed = {node.number for node in new[room:]}
    return [node for node in nodes if node.number not in postponed]


def mark_unwanted(nodes: Iterable[Node]) -> None:
    """Mark members as no longer wanted."""
    for node in nodes:
        node.status = states.DELETE_IN_PROGRESS
        node.status_reason = None
        node.error_code = None


def resize(cluster: Cluster, group: NodeGroup, count: int, remove: Sequence[str] = ()) -> None:
    """Change the wanted members to `count`, without those that `remove` names.

    `remove` holds numbers, names or ids of servers. Of what is still too many, failed members are
    removed first, then outdated ones, then the newest. Raises Invalid for a name without member."""
    by_name: dict[str, Node] = {}
    for node in list_wanted(group):
        for name in (str(node.number), node.name, node.server_id):
            if name:
                by_name[name] = node
    unknown = ', '.join(repr(name) for name in remove if name not in by_name)
    if unknown:
        raise errors.Invalid(
            f'Nodegroup {group.name} has no node {unknown:.200}. Its nodes '
            'have a number, a name and the id of their server.'
        )
    mark_unwanted(by_name[name] for name in remove)
    remaining = sorted(
        list_wanted(group),
        key=lambda node: (not _has_failed(node), node.rollout, -node.number),
    )
    excess = len(remaining) - count
    mark_unwanted(remaining[: max(excess, 0)])
    add(cluster, group, max(-excess, 0))
    group.node_count = count


def is_outdated(node: Node, group: NodeGroup) -> bool:
    """Whether a member is of an older rollout than its nodegroup."""
    # The default of a column is set when its row is stored, so a new row has None.
    return (node.rollout or 1) < (group.rollout or 1)


def _has_failed(node: Node) -> bool:
    return states.is_failed(node.status or '')


def _list_failed(group: NodeGroup) -> list[Node]:
    return [node for node in list_wanted(group) if _has_failed(node)]


def _list_outdated(group: NodeGroup) -> list[Node]:
    """List the outdated members that have not failed, oldest first."""
    return [
        node for node in list_wanted(group) if is_outdated(node, group) and not _has_failed(node)
    ]


def list_to_replace(group: NodeGroup) -> list[Node]:
    """List the members to replace in the order in which masters are: failed ones, then outdated.

    The newest failed one comes first, because it may never have worked; the oldest outdated one
    comes first."""
    return _list_failed(group)[::-1] + _list_outdated(group)


def list_up_to_date(group: NodeGroup) -> list[Node]:
    """List the members that are complete and not to be replaced."""
    return [
        node
        for node in list_wanted(group)
        if node.status == states.CREATE_COMPLETE and not is_outdated(node, group)
    ]


def has_outdated_masters(cluster: Cluster) -> bool:
    """Whether a master is outdated. Engines allow no node newer than its masters: workers wait."""
    return any(
        is_outdated(node, group)
        for group in cluster.nodegroups
        if group.role == 'master'
        for node in list_wanted(group)
    )


def replace(cluster: Cluster, group: NodeGroup, room: int | None = None) -> None:
    """Replace the failed members, and of the outdated ones so many that `batch_size` go at once.

    `room`: how many new members can start now, None for any number. More outdated members than
    that would be removed before their successors come.

    The successor of a failed member has a new number: what the failed one has reported to its stack
    would fail any member in its place. Masters are replaced before workers and one at a time: a new
    one is added, and one is removed when it is complete, so that there is never one too few."""
    if group.role == 'master':
        _replace_next_master(cluster, group)
        return
    if has_outdated_masters(cluster):
        return
    failed = _list_failed(group)
    batch_size = group.batch_size if room is None else min(group.batch_size, room)
    outdated = _list_outdated(group)[: max(batch_size - len(failed), 0)]
    mark_unwanted(failed + outdated)
    add(cluster, group, len(failed) + len(outdated))


def _replace_next_master(cluster: Cluster, group: NodeGroup) -> None:
    """Take the next step towards the wanted number of masters, none failed or outdated.

    No step while a master is starting."""
    masters = list_wanted(group)
    if any(node.status == states.CREATE_IN_PROGRESS for node in masters):
        return
    to_replace = list_to_replace(group)
    if len(masters) > group.node_count:
        mark_unwanted((to_replace or masters)[:1])
    elif to_replace or len(masters) < group.node_count:
        add(cluster, group, 1)
