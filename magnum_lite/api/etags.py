"""Tags of clusters and nodegroups, for `ETag` and `If-Match` (RFC 9110, 8.8.3 and 13.1.1).

A tag stands for what is wanted of a thing, not for how it is shown: a status, an address or a
health that changes by itself leaves it as it is, and whatever somebody asks for changes it. So a
caller who read a cluster an hour ago can tell whether anybody has decided something since. A tag is
made from rows that are read anyway."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable

from magnum_lite import errors, models

#: The tag of a cluster, or of something in it.
Tag = Callable[[models.Cluster], str]
ANY = '*'
_TAG = r'(?:W/)?"[!#-~]*"'
#: What the header may be.
PATTERN = rf'^(\*|{_TAG}( *, *{_TAG})*)$'


def of_cluster(cluster: models.Cluster) -> str:
    """The tag of a cluster. Another one that has the name later has another tag."""
    return f'"{cluster.uuid[:8]}-{cluster.generation}"'


def of_group(group: models.NodeGroup) -> str:
    """The tag of a nodegroup, from all that a request can change of it.

    The number of the next member is a part, so that a nodegroup that grew and shrank again has
    another tag."""
    wanted = [
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
    return f'"{hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]}"'


def parse(header: str) -> tuple[str, ...]:
    """The tags of an `If-Match` header. Raises Invalid for what is no list of tags."""
    if len(header) > 4096 or not re.fullmatch(PATTERN, header.strip(' \t')):
        raise errors.Invalid('If-Match must be * or the ETag that an answer had, in its quotes.')
    return tuple(re.findall(_TAG, header)) or (ANY,)


def check(wanted: tuple[str, ...], tag: str) -> None:
    """Raise PreconditionFailed unless the tag is one of those. A weak tag never is."""
    if wanted != (ANY,) and tag not in wanted:
        raise errors.PreconditionFailed(
            f'It has changed since it was read, and its tag is now {tag}. '
            'Read it again before you change it.'
        )
