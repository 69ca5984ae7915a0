"""What happens in a chaos run: who is asked for what, which nodes fail, and what breaks when. All
of it from one seed.

Times are seconds since the beginning. What the machine makes of the plan differs from run to run;
what every cluster must be at the end does not, and is derived here."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Seconds for which a node that never reports is waited for.
SILENCE_S = 30
#: Conductors that run; at any time one of them is left alone.
CONDUCTORS = 3
#: Seconds that a conductor takes to come up again on a busy machine.
START_S = 15


@dataclass(frozen=True)
class Event:
    """One request. `after_s`: seconds after the one before, which may still run; None: once that
    one is done.

    `nodes` is what the new nodes do: `ok` all report, `fail` one reports a failure, `silent` none
    reports."""

    kind: str
    count: int = 0
    group: str = 'default-worker'
    nodes: str = 'ok'
    after_s: float | None = None


@dataclass(frozen=True)
class Story:
    """A cluster: when it is asked for and in which project, what then is asked of it, and what it
    must be at the end.

    `status` is GONE for a cluster that must be gone; `groups` are the workers by nodegroup.
    """

    name: str
    project: int
    at_s: float
    events: Sequence[Event]
    status: str
    groups: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """Something that breaks and is mended. `track`: the number of a conductor, or -1 for the
    cloud."""

    track: int
    kind: str
    at_s: float
    for_s: float


@dataclass(frozen=True)
class Plan:
    """All of a run."""

    seed: int
    stories: Sequence[Story]
    faults: Sequence[Fault]

    @property
    def digest(self) -> str:
        """What two runs of the same plan have in common."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    @property
    def events(self) -> int:
        """How many requests there are."""
        return sum(len(story.events) for story in self.stories)


def make(seed: int, *, clusters: int, seconds: float, projects: int, lease_s: float) -> Plan:
    """The plan of a seed. `seconds`: the time within which clusters are asked for and things
    break."""
    chance = random.Random(seed)
    stories = tuple(
        _story(chance, f'chaos-{n}', chance.randrange(projects), chance.uniform(0, seconds * 0.7))
        for n in range(clusters)
    )
    return Plan(
        seed,
        stories,
        (*_conductor_faults(chance, seconds, lease_s), *_cloud_faults(chance, seconds)),
    )


# -- clusters --------------------------------------------------------------------------------------


def _story(chance: random.Random, name: str, project: int, at_s: float) -> Story:
    nodes = chance.choices(('ok', 'fail', 'silent'), (80, 12, 8))[0]
    groups = {
        'default-worker': chance.choice((0, 1, 1, 2, 2, 3))
        if nodes == 'ok'
        else chance.choice((1, 2))
    }
    events = [Event('create', groups['default-worker'], nodes=nodes)]
    status = 'CREATE_COMPLETE' if nodes == 'ok' else 'CREATE_FAILED'
    if chance.random() < 0.15:
        return Story(
            name, project, at_s, (*events, Event('delete', after_s=chance.uniform(0, 15))), 'GONE'
        )
    if nodes == 'ok':
        for number in range(chance.choice((0, 1, 1, 2, 3))):
            change = _change(
                chance, groups, f'pool{number}', alone=len(events) == 1 or events[-1].nodes != 'ok'
            )
            events.append(change)
            status = 'UPDATE_COMPLETE' if change.nodes == 'ok' else 'UPDATE_FAILED'
    if chance.random() < 0.3:
        after_s = None if chance.random() < 0.5 else chance.uniform(0, 6)
        return Story(name, project, at_s, (*events, Event('delete', after_s=after_s)), 'GONE')
    return Story(name, project, at_s, tuple(events), status, groups)


def _change(chance: random.Random, groups: dict[str, int], new_group: str, *, alone: bool) -> Event:
    """A change of a cluster, which is written into `groups`. `alone`: only when the one before is
    done.

    One that fails is always alone: if another one were carried out together with it, it would be
    chance which fails."""
    pools = [name for name in groups if name != 'default-worker']
    kind = chance.choices(('resize', 'add', 'drop'), (60, 25, 15 if pools else 0))[0]
    fails = chance.random() < 0.15
    after_s = None if alone or fails or chance.random() < 0.5 else chance.uniform(0, 5)
    if kind == 'drop':
        group = chance.choice(pools)
        del groups[group]
        return Event('drop', group=group, after_s=after_s)
    if kind == 'add':
        groups[new_group] = chance.choice((1, 2))
        return Event('add', groups[new_group], new_group, 'fail' if fails else 'ok', after_s)
    group = chance.choice(sorted(groups))
    before = groups[group]
    groups[group] = (
        before + chance.choice((1, 2))
        if fails or before == 0
        else chance.choice([n for n in range(4) if n != before])
    )
    return Event('resize', groups[group], group, 'fail' if fails else 'ok', after_s)


# -- what breaks -----------------------------------------------------------------------------------


def _conductor_faults(chance: random.Random, seconds: float, lease_s: float) -> list[Fault]:
    """Conductors that are killed, frozen for longer than a lease, or told to stop; one is always
    left to work."""
    faults: list[Fault] = []
    for _ in range(max(3, round(seconds / 12))):
        kind = chance.choices(('kill', 'freeze', 'term'), (50, 30, 20))[0]
        for_s = (
            chance.uniform(1.2, 2) * lease_s
            if kind == 'freeze'
            else chance.uniform(0, lease_s * 1.5)
        )
        fault = Fault(chance.randrange(CONDUCTORS), kind, chance.uniform(5, seconds), for_s)
        beside = {f.track for f in faults if _overlap(f, fault)}
        if fault.track not in beside and len(beside) < CONDUCTORS - 1:
            faults.append(fault)
    return sorted(faults, key=lambda fault: fault.at_s)


def _overlap(one: Fault, other: Fault) -> bool:
    return (one.at_s < other.at_s + other.for_s + START_S) and (
        other.at_s < one.at_s + one.for_s + START_S
    )


#: Kind of fault -> (how often, seconds at least, seconds at most). The database of Heat is left
#: alone: a thread of its engine that dies of that keeps the lock of its resource until the engine
#: is restarted.
CLOUD_FAULTS = {
    'heat-api stop': (25, 3, 15),
    'heat-api pause': (25, 3, 12),
    'heat-engine pause': (25, 3, 12),
    'heat-engine stop': (5, 1, 6),
    'mq stop': (15, 2, 6),
}


def _cloud_faults(chance: random.Random, seconds: float) -> list[Fault]:
    """The cloud breaks in one place after the other, with time between to recover a little."""
    faults, at_s = [], chance.uniform(8, 15)
    kinds = [*CLOUD_FAULTS]
    chance.shuffle(kinds)  # each of them once, before chance has its way
    while at_s < seconds:
        kind = (
            kinds.pop()
            if kinds
            else chance.choices([*CLOUD_FAULTS], [often for often, _, _ in CLOUD_FAULTS.values()])[
                0
            ]
        )
        _, least_s, most_s = CLOUD_FAULTS[kind]
        faults.append(Fault(-1, kind, at_s, chance.uniform(least_s, most_s)))
        at_s += faults[-1].for_s + chance.uniform(8, 20) * (2 if seconds > 300 else 1)
    return faults
