"""Which members a nodegroup is to have: pure functions on rows that are loaded, with no database
and no cloud.

A member is a `Node` row. Its number is its name in the stack for ever, so nothing is ever
renumbered: a member that is not wanted any more is marked DELETE_IN_PROGRESS, and its row goes when
Heat has let it go. The API changes what is wanted with these functions, the conductor replaces
members of an older rollout, both inside a transaction of theirs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from magnum_lite import errors, states
from magnum_lite.models import Cluster, Node, NodeGroup


def node_name(cluster: Cluster, group: NodeGroup, number: int) -> str:
    """The name of a member's server: a DNS label of at most 53 characters (Heat's limit), unlike
    any other's.

    The engine's node has the same name, because volumes and load balancers are found by it.
    """
    kind = _slug(group.name.removeprefix('default-'), 15)
    # Two names of nodegroups can have one slug, so the uuid of a further one is in it.
    owner = cluster.uuid[:8] if group.is_default else group.uuid[:8]
    return f'{name_prefix(cluster)}{owner}-{kind or "n"}-{number}'


def name_prefix(cluster: Cluster) -> str:
    """What the names of all members that a cluster has, or ever had, begin with."""
    return f'{_slug(cluster.name, 20) or "c"}-'


def _slug(value: str, length: int) -> str:
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
                name=node_name(cluster, group, number),
                image_id=group.image_id,
                rollout=group.rollout or 1,
                status=states.CREATE_IN_PROGRESS,
            )
        )


def list_wanted(group: NodeGroup) -> list[Node]:
    """The members that are to be, in the order of their numbers."""
    return [node for node in group.nodes if node.status != states.DELETE_IN_PROGRESS]


def next_members(group: NodeGroup, there: Collection[int], most: int) -> list[Node]:
    """The members that a stack is to have next: those that it has (`there`), and the first of the
    others.

    Of workers at most `most` come at once, counted with those that are still coming; 0: all. A
    compute service that is asked for hundreds of servers at once has no room for others' requests.
    """
    nodes = list_wanted(group)
    if not most or group.role == 'master':
        return nodes
    coming = [node for node in nodes if node.number not in there]
    room = most - sum(
        node.number in there and node.status == states.CREATE_IN_PROGRESS for node in nodes
    )
    later = {node.number for node in coming[max(room, 0) :]}
    return [node for node in nodes if node.number not in later]


def mark_unwanted(nodes: Iterable[Node]) -> None:
    """Want these members no more."""
    for node in nodes:
        node.status, node.status_reason, node.error_code = states.DELETE_IN_PROGRESS, None, None


def resize(cluster: Cluster, group: NodeGroup, count: int, remove: Sequence[str] = ()) -> None:
    """Want `count` members, and not those that `remove` names by number, by name or by the id of
    their server.

    What is still too many goes too: first what has failed, then what is outdated, then the newest.
    Raises Invalid for a name that no member has."""
    known = {
        name: node
        for node in list_wanted(group)
        for name in (str(node.number), node.name, node.server_id)
        if name
    }
    unknown = [name for name in remove if name not in known]
    if unknown:
        raise errors.Invalid(
            f'Nodegroup {group.name} has no node {", ".join(map(repr, unknown))!s:.200}. Its nodes '
            'have a number, a name and the id of their server.'
        )
    mark_unwanted(known[name] for name in remove)
    left = sorted(
        list_wanted(group),
        key=lambda node: (not states.is_failed(node.status), node.rollout, -node.number),
    )
    mark_unwanted(left[: max(len(left) - count, 0)])
    add(cluster, group, max(count - len(left), 0))
    group.node_count = count


def list_to_replace(group: NodeGroup) -> list[Node]:
    """The members that are to be replaced, in the order in which masters go: failed, then outdated,
    oldest first.

    Of failed ones the newest goes first: it may never have come to be.
    """
    return sorted(
        (node for node in list_wanted(group) if _has_failed(node) or is_outdated(node, group)),
        key=lambda node: (
            not _has_failed(node),
            -node.number if _has_failed(node) else node.number,
        ),
    )


def list_up_to_date(group: NodeGroup) -> list[Node]:
    """The members that are there and are not to be replaced."""
    return [
        node
        for node in list_wanted(group)
        if node.status == states.CREATE_COMPLETE and not is_outdated(node, group)
    ]


def is_outdated(node: Node, group: NodeGroup) -> bool:
    """Whether a member is of an older rollout than its nodegroup."""
    return (node.rollout or 1) < (group.rollout or 1)


def _has_failed(node: Node) -> bool:
    return states.is_failed(node.status or '')


def has_outdated_masters(cluster: Cluster) -> bool:
    """Whether a master is outdated: engines allow no node that is newer than their masters, so
    workers come later."""
    return any(
        is_outdated(node, group)
        for group in cluster.nodegroups
        if group.role == 'master'
        for node in list_wanted(group)
    )


def replace(cluster: Cluster, group: NodeGroup, room: int | None = None) -> None:
    """Have the members replaced that have failed, and of those of an older rollout `batch_size` at
    most.

    `room`: as many can come now, if that is limited; more that are outdated would be gone before
    others have come.

    A failed one has a new number then: what it has reported to its stack would fail whatever takes
    its place there. Masters come before workers, one at a time: a new one comes, and when it is
    there one goes, so that there is never one too few."""
    if group.role == 'master':
        _replace_next_master(cluster, group)
        return
    if has_outdated_masters(cluster):
        return
    failed = [node for node in list_wanted(group) if _has_failed(node)]
    old = [node for node in list_wanted(group) if is_outdated(node, group) and node not in failed]
    most = group.batch_size if room is None else min(group.batch_size, room)
    gone = failed + old[: max(most - len(failed), 0)]
    mark_unwanted(gone)
    add(cluster, group, len(gone))


def _replace_next_master(cluster: Cluster, group: NodeGroup) -> None:
    """The next step towards as many masters as there are to be, none of them outdated; none while
    one is to come."""
    there, out = list_wanted(group), list_to_replace(group)
    if any(node.status == states.CREATE_IN_PROGRESS for node in there):
        return
    if len(there) > group.node_count:
        mark_unwanted((out or there)[:1])
    elif out or len(there) < group.node_count:
        add(cluster, group, 1)
