"""Why a stack failed: one walk through its nested stacks, from which a code and a sentence for the
user come.

Heat passes a failure upwards through every nested stack; the leaf is where it happened, and the
only place that says which server and which fault, and, if a node reported it, which step of its
script with the last lines. Codes are those of `errors.CODES`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from magnum_lite import clients, errors, models

if TYPE_CHECKING:
    from magnum_lite.conductor import steps

#: What a leaf's reason, type or name must match to have a code. The first that fits counts, so the
#: order matters.
SIGNS = (
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
LIMIT = re.compile(
    r'maximum (resources per stack|nested depth|stacks)|request limit exceeded', re.I
)
#: `status_reason` holds at most this much: a TEXT column of MariaDB has 64 KiB, and people read it.
LONGEST = 4000


@dataclass(frozen=True)
class Fault:
    """Why one member failed: a key of `errors.CODES`, and what its leaves say."""

    code: str
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """Why it failed: a key of `errors.CODES`, the sentence for the user, and the leaves.

    `members` are the leaves of each member, by its role and number.
    """

    code: str
    text: str
    leaves: Sequence[clients.FailedResource] = ()
    members: Mapping[tuple[str, int], Sequence[clients.FailedResource]] = field(
        default_factory=dict
    )

    def of(self, group: models.NodeGroup, node: models.Node) -> Fault | None:
        """What failed of a member: what is in its own stack, or names its server; None if nothing
        does."""
        found = [*self.members.get((group.stack_role, node.number), ())]
        found += [
            leaf
            for leaf in self.leaves
            if leaf not in found
            and (
                node.name in (leaf.name, leaf.stack_name)
                or re.search(rf'\b{re.escape(node.name)}\b', leaf.reason)
            )
        ]
        return (
            Fault(_code(found), '; '.join(dict.fromkeys(leaf.reason for leaf in found)))
            if found
            else None
        )


def code_of(text: str) -> str:
    """The code that a reason deserves, INTERNAL if nothing is known of it."""
    if LIMIT.search(text):
        return 'STACK_LIMIT'
    return next((code for code, sign in SIGNS if sign.search(text)), 'INTERNAL')


def explain(task: steps.Task, stack: clients.Stack) -> Diagnosis:
    """Walk the failed resources of a stack once. Raises `clients.CloudError`; a stack that is gone
    explains itself."""
    try:
        failed = task.stacks.failures(stack.id)
    except clients.NotFound:
        failed = []
    # A nested stack repeats what its members say. Its type is the name of a template file.
    leaves = [f for f in failed if '::' in f.type]
    # What only failed because its neighbour did is no reason.
    leaves = [f for f in leaves if 'aborted' not in f.reason.lower()] or leaves
    if not leaves:
        text = stack.reason or 'Heat gives no reason'
        code = code_of(text) if not re.search(r'timed out', text, re.I) else 'NODE_TIMEOUT'
        return Diagnosis(code, sentence(code, text))
    code = _code(leaves)
    reasons = list(dict.fromkeys(f'{leaf.name}: {leaf.reason}' for leaf in leaves))
    if stack.status == 'DELETE_FAILED':
        reasons += _blockers(task, leaves)
    return Diagnosis(
        code, sentence(code, '; '.join(reasons)), leaves, _by_member(task, failed, leaves)
    )


def _blockers(task: steps.Task, leaves: Sequence[clients.FailedResource]) -> list[str]:
    """Who uses what could not be deleted, as far as somebody can say."""
    found: dict[str, None] = {}
    for leaf in leaves:
        with contextlib.suppress(clients.CloudError):  # it is only said what is known
            found.update(
                dict.fromkeys(
                    task.services.cloud.blockers(
                        task.cluster.project_id, leaf.type, leaf.physical_id, as_admin=task.as_admin
                    )
                )
            )
    return list(found)


def _by_member(
    task: steps.Task,
    failed: Sequence[clients.FailedResource],
    leaves: Sequence[clients.FailedResource],
) -> dict[tuple[str, int], list[clients.FailedResource]]:
    """The leaves by role and number of the member in whose stack they are: a nested stack whose
    name is a number."""
    nested = {
        f.physical_id.rpartition('/')[2]: f for f in failed if '::' not in f.type and f.physical_id
    }
    members: dict[tuple[str, int], list[clients.FailedResource]] = {}
    for leaf in leaves:
        holder = nested.get(leaf.stack_id)
        while holder is not None and not holder.name.isdigit():
            holder = nested.get(holder.stack_id)
        role = task.driver.texts.role_of(holder.type) if holder else None
        if holder and role:
            members.setdefault((role, int(holder.name)), []).append(leaf)
    return members


def _code(leaves: Sequence[clients.FailedResource]) -> str:
    return min((code_of(f'{leaf.type} {leaf.reason}') for leaf in leaves), key=_rank)


def _rank(code: str) -> int:
    order = ['STACK_LIMIT', *(code for code, _ in SIGNS)]
    return order.index(code) if code in order else len(order)


def sentence(code: str | None, detail: str | None) -> str:
    """What the code means, and then the detail, in one line."""
    meaning, text = errors.CODES[code or 'INTERNAL'], ' '.join((detail or '').split())
    return (text if text.startswith(meaning) else f'{meaning}: {text}')[:LONGEST]
