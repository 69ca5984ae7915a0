"""Why a stack failed: one walk through its nested stacks, from which a code and a sentence for the user come.

Heat passes a failure upwards through every nested stack; the leaf is where it happened, and the only place that says
which server and which fault. Codes are those of `errors.CODES`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from magnum_lite import clients, errors

#: What a leaf's reason, type or name must match to have a code. The first that fits counts, so the order matters.
SIGNS = (
    ('NO_VALID_HOST', re.compile(r'no valid host', re.I)),
    ('QUOTA_EXCEEDED', re.compile(r'quota|maximum number of|exceeds the limit', re.I)),
    ('NODE_TIMEOUT', re.compile(r'WaitConditionTimeout|of \d+ received', re.I)),
    ('NODE_FAILED', re.compile(r'WaitConditionFailure', re.I)),
    ('IMAGE_NOT_FOUND', re.compile(r'image .*(not found|could not be found)', re.I)),
    ('LOADBALANCER', re.compile(r'OS::Octavia::')),
    ('NETWORK', re.compile(r'OS::Neutron::|networks? .*(not found|could not be found)', re.I)),
)
LIMIT = re.compile(r'maximum (resources per stack|nested depth|stacks)|request limit exceeded', re.I)
#: `status_reason` holds at most this much: a TEXT column of MariaDB has 64 KiB, and people read it.
LONGEST = 4000


@dataclass(frozen=True)
class Diagnosis:
    """Why it failed: a key of `errors.CODES`, the sentence for the user, and reasons by name of the leaf's stack."""

    code: str
    text: str
    leaves: Sequence[clients.FailedResource] = ()

    def reason_for(self, server_name: str) -> str | None:
        """What failed of the member with this server name, or None."""
        found = [leaf.reason for leaf in self.leaves if server_name in (leaf.name, leaf.stack_name)
                 or re.search(rf'\b{re.escape(server_name)}\b', leaf.reason)]
        return '; '.join(found) or None


def code_of(text: str) -> str:
    """The code that a reason deserves, INTERNAL if nothing is known of it."""
    if LIMIT.search(text):
        return 'STACK_LIMIT'
    return next((code for code, sign in SIGNS if sign.search(text)), 'INTERNAL')


def explain(stacks: clients.Stacks, stack: clients.Stack) -> Diagnosis:
    """Walk the failed resources of a stack once. Raises `clients.CloudError`; a stack that is gone explains itself."""
    try:
        failed = stacks.failures(stack.id)
    except clients.Gone:
        failed = []
    # A nested stack repeats what its members say. Its type is the name of a template file.
    leaves = [f for f in failed if '::' in f.type]
    # What only failed because its neighbour did is no reason.
    leaves = [f for f in leaves if 'aborted' not in f.reason.lower()] or leaves
    if not leaves:
        text = stack.reason or 'Heat gives no reason'
        code = code_of(text) if not re.search(r'timed out', text, re.I) else 'NODE_TIMEOUT'
        return Diagnosis(code, _sentence(code, text))
    code = min((code_of(f'{leaf.type} {leaf.reason}') for leaf in leaves), key=_rank)
    reasons = dict.fromkeys(f'{leaf.name}: {leaf.reason}' for leaf in leaves)
    return Diagnosis(code, _sentence(code, '; '.join(reasons)), leaves)


def _rank(code: str) -> int:
    order = ['STACK_LIMIT', *(code for code, _ in SIGNS)]
    return order.index(code) if code in order else len(order)


def _sentence(code: str, detail: str) -> str:
    return f'{errors.CODES[code]}: {" ".join(detail.split())}'[:LONGEST]
