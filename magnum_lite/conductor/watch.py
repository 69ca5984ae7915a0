"""Looking at stacks: all due ones of a project in one Heat call, whatever their number."""

from __future__ import annotations

import random
from collections.abc import Sequence

from magnum_lite import clients, models


def look(cloud: clients.Cloud, clusters: Sequence[models.Cluster]) -> dict[str, clients.Stack | None]:
    """The stacks of clusters of one project, by cluster uuid: None where the stack is gone.

    Clusters without a stack id are left out, and without any no call is made. Raises `clients.CloudError`.
    """
    ids = {cluster.uuid: cluster.stack_id for cluster in clusters if cluster.stack_id}
    if not ids:
        return {}
    project_id = clusters[0].project_id
    found = cloud.stacks(project_id).look(set(ids.values()))
    return {uuid: found.get(stack_id) for uuid, stack_id in ids.items()}


def interval_s(base_s: float, age_s: float) -> float:
    """How long to wait before the next look: often while work is young, seldom when it drags on, never in step."""
    return min(base_s * (1 + max(age_s, 0) / 120), base_s * 10) * random.uniform(0.85, 1.15)
