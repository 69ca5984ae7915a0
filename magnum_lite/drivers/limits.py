"""Compare a cluster with the limits of Heat, Nova and its address ranges, before it is accepted.

`Driver.check_cluster` renders a small sample of the stack once and calls these functions. They are
pure: they get numbers and rendered texts, and return sentences for the user. A real member adds as
many characters as a sample member, so a thousand nodes cost no more time than two.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from oslo_config import cfg

from magnum_lite import clients

#: Nova takes 65,535 characters of base64 (nova/api/openstack/compute/schemas/servers.py).
MAX_USER_DATA = 65535 // 4 * 3
#: Bytes in the body of a request to Heat beside templates, files and user-data.
REQUEST_OVERHEAD = 16384
#: Growth of files whose members are edited (`stacktext`): they are serialised again, as JSON.
EDIT_GROWTH = 1.05
#: Room for what Heat puts in place of placeholders (a Fernet token, a URL, addresses). Its length
#: is not known before.
PLACEHOLDER_ROOM = 1536
#: Addresses of a subnet that no node gets: its two ends, gateway, DHCP, load balancer.
RESERVED_ADDRESSES = 8
#: PEM sizes (public part, private part) at the upper end, to weigh user-data before a key exists.
KEY_SIZES = {'ecdsa-p256': (750, 250), 'rsa-2048': (1300, 1720)}


def _make_noise(length: int) -> str:
    """Text that compresses as badly as a key does. The same length always gives the same text."""
    return base64.b64encode(hashlib.shake_128(b'').digest(length)).decode()[:length]


#: A login of a cluster's user in the cloud, as long as a real one.
SAMPLE_LOGIN = clients.Login(
    _make_noise(64), _make_noise(50), _make_noise(200), _make_noise(40), _make_noise(4000)
)


def make_sample_secrets(algorithms: Mapping[str, str]) -> dict[str, Any]:
    """Key pairs as long as real ones, by purpose. `algorithms` are keys of `KEY_SIZES` by purpose.

    `trusted` holds two certificates, as while an authority is replaced.
    """
    secrets = {}
    for purpose, algorithm in algorithms.items():
        public, private = KEY_SIZES[algorithm]
        secrets[purpose] = types.SimpleNamespace(
            certificate=_make_noise(public),
            trusted=_make_noise(public * 2),
            private_key=_make_noise(private),
        )
    return secrets


@dataclass(frozen=True)
class SampleText:
    """A template that was rendered with one member and, if it lists more, also with two."""

    one: str
    two: str | None = None
    count: int = 1

    def estimate(self, measure: Callable[[str], int]) -> int:
        """Its length by `measure` with all `count` members. Each member adds the same."""
        length = measure(self.one)
        if self.two is None:
            return length
        return length + (measure(self.two) - length) * (self.count - 1)


def check_ranges(
    ranges: Iterable[Mapping[str, Any]], labels: Mapping[str, Any], nodes: int
) -> list[str]:
    """Find address ranges that overlap, or that are too small for the nodes.

    `ranges`: items of the manifest's `ranges` that apply. `labels`: typed, with a value for each.
    """
    problems: list[str] = []
    checked: dict[str, ipaddress.IPv4Network] = {}
    for item in ranges:
        name = item['label']
        network = ipaddress.IPv4Network(labels[name])
        problems += [
            f'{name} {network} overlaps {other_name} {other}'
            for other_name, other in checked.items()
            if network.overlaps(other)
        ]
        checked[name] = network
        room = nodes
        if 'per_node' in item:
            bits = labels[item['per_node']] - network.prefixlen
            # A node that takes more than the whole range: Python does not shift by less than 0.
            room = 1 << bits if bits >= 0 else 0
        elif item.get('hosts'):
            room = network.num_addresses - RESERVED_ADDRESSES
        if room < nodes:
            problems.append(
                f'{name} {network} has room for {max(room, 0)} nodes, and {nodes} are asked for'
            )
    return problems


def check_stack(
    sizes: Mapping[str, int],
    counts: Mapping[str, int],
    extra_masters: int,
    roles: Mapping[str, str],
    samples: Mapping[str, SampleText],
    user_data: Sequence[str],
    heat: cfg.ConfigOpts.GroupAttr,
) -> list[str]:
    """Find what of one stack Heat or Nova would not take.

    `sizes`: resources of the stack (`base`) and of one member by role. `counts`: members by role.
    `extra_masters`: how many more masters there are while masters are replaced. `roles`: the role
    of each file of the stack that has one. `samples`: the texts that are sent, by name.
    """
    return [
        *_check_resources(sizes, counts, extra_masters, heat.max_resources_per_stack),
        *_check_server_groups(roles, samples, counts, extra_masters, heat.max_server_group_members),
        *_check_user_data(user_data, heat),
        *_check_sizes([*samples.values()], user_data, sum(counts.values()), heat),
    ]


def _check_resources(
    sizes: Mapping[str, int], counts: Mapping[str, int], extra_masters: int, limit: int
) -> list[str]:
    """Find a stack with more resources than Heat allows; a limit below 0 is none."""
    resources = sizes['base'] + sizes.get('master', 0) * extra_masters
    resources += sum(sizes.get(role, 0) * count for role, count in counts.items())
    if limit < 0 or resources <= limit:
        return []
    when = ' while a master is replaced' if extra_masters else ''
    return [
        f'{sum(counts.values())} nodes need {resources} resources in one stack{when}, and Heat '
        f'allows {limit}; use fewer nodes here and further nodegroups for the rest'
    ]


def _check_server_groups(
    roles: Mapping[str, str],
    samples: Mapping[str, SampleText],
    counts: Mapping[str, int],
    extra_masters: int,
    limit: int,
) -> list[str]:
    """Find more servers in one server group than Nova allows; a limit below 0 is none.

    Only a text of a role with too many members is read.
    """
    problems = []
    for file, role in roles.items():
        extra = extra_masters if role == 'master' else 0
        servers = counts[role] + extra
        if not 0 <= limit < servers or not _uses_server_group(samples[file].one):
            continue
        when = ' while one is replaced' if extra else ''
        problems.append(
            f'{counts[role]} {role}s need {servers} members in one server group{when}, and Nova '
            f'allows {limit}; use fewer {role}s'
        )
    return problems


def _uses_server_group(text: str) -> bool:
    """Whether a template puts a server into a server group."""
    content = yaml.safe_load(text)
    resources = (content.get('resources') or {}).values()
    hints = (item.get('properties', {}).get('scheduler_hints') for item in resources)
    return any('group' in (hint or {}) for hint in hints)


def _check_user_data(texts: Iterable[str], heat: cfg.ConfigOpts.GroupAttr) -> list[str]:
    """Find user-data that is longer than Nova takes."""
    limit = min(heat.max_user_data, MAX_USER_DATA)
    lengths = (len(text) + PLACEHOLDER_ROOM for text in texts)
    return [
        f'The user-data of a node would have {length} bytes, and Nova takes {limit}; '
        'shorten labels, keys or proxy settings'
        for length in lengths
        if length > limit
    ]


def _check_sizes(
    texts: Sequence[SampleText],
    user_data: Sequence[str],
    nodes: int,
    heat: cfg.ConfigOpts.GroupAttr,
) -> list[str]:
    """Find templates, or a request with all of them, that are longer than Heat takes."""
    lengths = [text.estimate(len) for text in texts]
    bodies = sum(text.estimate(_measure_json) for text in texts)
    request = int(bodies * EDIT_GROWTH) + _measure_json(user_data) + REQUEST_OVERHEAD
    problems = [
        f'a template of {length} bytes, and Heat takes {heat.max_template_size}'
        for length in lengths
        if length > heat.max_template_size
    ]
    if request > heat.max_json_body_size:
        problems.append(f'a request of {request} bytes, and Heat takes {heat.max_json_body_size}')
    return [
        f'{nodes} nodes make {problem}; use fewer nodes here and further nodegroups for the rest'
        for problem in problems
    ]


def _measure_json(value: Any) -> int:
    return len(json.dumps(value))
