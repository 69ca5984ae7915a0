"""Tags of clusters and nodegroups, for `ETag` and `If-Match` (RFC 9110, 8.8.3 and 13.1.1).

Handlers put a tag into their answers; `changes.make_guard` compares the tags of `If-Match` with the
tag of the locked row. A tag is made from rows that are read anyway.

A tag identifies the wanted state of a resource, not the observed one. Every change that a client
requests changes the tag; a status, an address or a health that changes by itself does not. So a
client that read a cluster an hour ago can tell whether anybody has changed its definition since.
A change of a note, such as `description`, makes no new generation, so the notes themselves are a
part of a cluster's tag."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from magnum_lite import errors, models
from magnum_lite.api.resources import CLUSTER_NOTES

#: Makes the tag of a cluster, or of something in it.
Tag = Callable[[models.Cluster], str]
ANY = '*'
_TAG = r'(?:W/)?"[!#-~]*"'
#: The form of the `If-Match` header.
PATTERN = rf'^(\*|{_TAG}( *, *{_TAG})*)$'


def of_cluster(cluster: models.Cluster) -> str:
    """The tag of a cluster: generation and notes. It starts with a part of the uuid, so a later
    cluster of the same name has another tag."""
    tag = f'{cluster.uuid[:8]}-{cluster.generation}'
    notes = [getattr(cluster, name) for name in CLUSTER_NOTES]
    if any(note is not None for note in notes):
        tag += f'-{_hash(notes)[:8]}'
    return f'"{tag}"'


def of_group(group: models.NodeGroup) -> str:
    """The tag of a nodegroup, from all that a request can change of it.

    The number of the next member is a part, so that a nodegroup that grew and shrank again has
    another tag."""
    state = [
        group.uuid,
        group.node_count,
        group.next_number,
        group.rollout,
        group.batch_size,
        group.min_node_count,
        group.max_node_count,
        group.node_labels,
        group.node_taints,
        group.labels,
        group.image_id,
    ]
    return f'"{_hash(state)[:16]}"'


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def parse(header: str) -> tuple[str, ...]:
    """The tags of an `If-Match` header. Raises Invalid for anything but a list of tags."""
    if len(header) > 4096 or not re.fullmatch(PATTERN, header.strip(' \t')):
        raise errors.Invalid('If-Match must be * or the ETag that an answer had, in its quotes.')
    return tuple(re.findall(_TAG, header)) or (ANY,)


def check_match(tags: tuple[str, ...], tag: str) -> None:
    """Raise PreconditionFailed unless `tag` is one of `tags`. A weak tag never matches."""
    if tags != (ANY,) and tag not in tags:
        raise errors.PreconditionFailed(
            f'It has changed since it was read, and its tag is now {tag}. '
            'Read it again before you change it.'
        )
