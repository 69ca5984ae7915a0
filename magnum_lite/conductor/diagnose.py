"""Why a stack failed: one walk through its nested stacks, which yields a code and a sentence for
the user.

`stacks` calls `explain` for a stack that Heat reports as failed, and `reconcile` words reasons with
`write_sentence`. Only reads from the cloud; writes nothing.

Heat passes a failure upwards through every nested stack. The leaf is where it happened, and the
only place that names the server and the fault and, if a node reported it, the step of its script
with the last lines. Codes are those of `errors.CODES`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from magnum_lite import clients, errors, models
from magnum_lite.conductor.task import Task

#: The patterns of a leaf's type and reason, and the code that each means. The first that matches
#: counts, so the order matters; of several leaves, that of the earliest pattern.
SIGNS = (
    # Limits of Heat itself.
    (
        'STACK_LIMIT',
        re.compile(
            r'maximum (resources per stack|nested depth|stacks)|request limit exceeded', re.I
        ),
    ),
    ('NO_VALID_HOST', re.compile(r'no valid host', re.I)),
    ('QUOTA_EXCEEDED', re.compile(r'quota|maximum number of|exceeds the limit', re.I)),
    ('NODE_TIMEOUT', re.compile(r'WaitConditionTimeout|of \d+ received', re.I)),
    ('NODE_FAILED', re.compile(r'WaitConditionFailure', re.I)),
    ('IMAGE_NOT_FOUND', re.compile(r'image .*(not found|could not be found)', re.I)),
    (
        'IN_USE',
        re.compile(
            r'\bin use\b|still in use|has active ports|ports have an IP allocation|has interfaces|'
            r'required by one or more floating',
            re.I,
        ),
    ),
    ('LOADBALANCER', re.compile(r'OS::Octavia::')),
    ('NETWORK', re.compile(r'OS::Neutron::|networks? .*(not found|could not be found)', re.I)),
)
#: Codes in the order in which they count. INTERNAL, which no pattern has, is last.
RANKS = (*(code for code, _ in SIGNS), 'INTERNAL')
#: Characters of a stored reason. A TEXT column of MariaDB holds 64 KiB, but people read this.
MAX_REASON = 4000


@dataclass(frozen=True)
class Fault:
    """Why one member failed: a key of `errors.CODES`, and what its leaves say."""

    code: str
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """Why a stack failed: a key of `errors.CODES`, the sentence for the user, and the leaves.

    `members` are the leaves of each member, by its role and number.
    """

    code: str
    text: str
    leaves: Sequence[clients.FailedResource] = ()
    members: Mapping[tuple[str, int], Sequence[clients.FailedResource]] = field(
        default_factory=dict
    )

    def list_faults(self, group: models.NodeGroup) -> list[tuple[models.Node, Fault]]:
        """List the members of a nodegroup that failed, each with its fault, in their order.

        A member failed if a leaf is in its own stack, or names its server."""
        faults = []
        for node in group.nodes:
            leaves = list(self.members.get((group.stack_role, node.number), ()))
            for leaf in self.leaves:
                if leaf not in leaves and _is_named(node.name, leaf):
                    leaves.append(leaf)
            if leaves:
                reasons = dict.fromkeys(leaf.reason for leaf in leaves)
                faults.append((node, Fault(_find_first_code(leaves), '; '.join(reasons))))
        return faults


def _is_named(name: str, leaf: clients.FailedResource) -> bool:
    """Whether a leaf has the name of a server, or mentions it."""
    is_its_name = name in (leaf.name, leaf.stack_name)
    return is_its_name or bool(re.search(rf'\b{re.escape(name)}\b', leaf.reason))


def find_code(text: str) -> str:
    """Return the code that a reason means, INTERNAL if no pattern matches."""
    for code, sign in SIGNS:
        if sign.search(text):
            return code
    return 'INTERNAL'


def explain(task: Task, stack: clients.Stack) -> Diagnosis:
    """Walk the failed resources of a stack once. Raises `clients.CloudError`.

    Of a stack without failed resources, or that does not exist any more, the reason that was listed
    has to do."""
    try:
        failed = task.stacks.list_failures(stack.id)
    except clients.NotFound:
        failed = []
    # A nested stack, whose type is the name of a template file, repeats what its members report.
    leaves = [resource for resource in failed if '::' in resource.type]
    # A resource that was aborted failed only because its neighbour did.
    leaves = [leaf for leaf in leaves if 'aborted' not in leaf.reason.lower()] or leaves
    if not leaves:
        text = stack.reason or 'Heat gives no reason'
        code = 'NODE_TIMEOUT' if re.search(r'timed out', text, re.I) else find_code(text)
        return Diagnosis(code, write_sentence(code, text))
    code = _find_first_code(leaves)
    reasons = list(dict.fromkeys(f'{leaf.name}: {leaf.reason}' for leaf in leaves))
    if stack.status == 'DELETE_FAILED':
        reasons += _list_blockers(task, leaves)
    text = write_sentence(code, '; '.join(reasons))
    return Diagnosis(code, text, leaves, _sort_by_member(task, failed, leaves))


def _list_blockers(task: Task, leaves: Sequence[clients.FailedResource]) -> list[str]:
    """List what uses the resources that could not be deleted, as far as the cloud can tell."""
    blockers: list[str] = []
    for leaf in leaves:
        with contextlib.suppress(clients.CloudError):
            blockers += task.services.cloud.list_blockers(
                task.cluster.project_id, leaf.type, leaf.physical_id, as_admin=task.as_admin
            )
    return list(dict.fromkeys(blockers))


def _sort_by_member(
    task: Task,
    failed: Sequence[clients.FailedResource],
    leaves: Sequence[clients.FailedResource],
) -> dict[tuple[str, int], list[clients.FailedResource]]:
    """Sort the leaves by role and number of the member in whose stack they are.

    A member's stack is the nearest nested stack whose name is a number."""
    nested_stacks = {}
    for resource in failed:
        if '::' not in resource.type and resource.physical_id:
            nested_stacks[resource.physical_id.rpartition('/')[2]] = resource
    members: dict[tuple[str, int], list[clients.FailedResource]] = {}
    for leaf in leaves:
        parent = nested_stacks.get(leaf.stack_id)
        while parent is not None and not parent.name.isdigit():
            parent = nested_stacks.get(parent.stack_id)
        role = task.driver.texts.find_role(parent.type) if parent else None
        if parent and role:
            members.setdefault((role, int(parent.name)), []).append(leaf)
    return members


def _find_first_code(leaves: Sequence[clients.FailedResource]) -> str:
    """Return the code that counts most among those of the leaves."""
    codes = [find_code(f'{leaf.type} {leaf.reason}') for leaf in leaves]
    return min(codes, key=RANKS.index)


def write_sentence(code: str | None, detail: str | None) -> str:
    """Return what the code means, followed by the detail, in one line."""
    meaning = errors.CODES[code or 'INTERNAL']
    text = ' '.join((detail or '').split())
    if not text.startswith(meaning):
        text = f'{meaning}: {text}'
    return text[:MAX_REASON]
