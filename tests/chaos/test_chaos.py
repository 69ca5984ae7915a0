"""Clusters are made, changed and deleted while conductors, broker and Heat are killed, frozen and
restarted.

    CHAOS_SEED=7 CHAOS_CLUSTERS=100 CHAOS_SECONDS=600 pytest tests/chaos -s

Without these it is the short form. Everything is derived from the seed (`plan.py`): what is asked
of each cluster, what its nodes report, what breaks when, and what each cluster must be at the end.
The clusters are those of the driver folder beside this file: real stacks, nested as those of the
real drivers, with handles to report to and no servers.

It breaks services of the cloud, so nobody else may be using it. OS_CLOUD names the cloud,
CLOUD_HOME the test cloud of `testcloud/cloud` that is broken: another one cannot be.
CHAOS_LEASE is the lease in seconds.

What is demanded: every cluster ends in its state, with exactly its stacks and members. Heat keeps
work in the memory of its engine and in messages; what it was doing when one of those was lost it
may fail, or never end. Only for a cluster that it was working on then another end is allowed: one
that Heat says the same of, and, where Heat never ends, the one that stopping the operation leads
to."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import re
import secrets
import statistics
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import pytest
from chaos import nodes, plan, players
from chaos.faults import HEAT, Faults
from functional import service as services
from functional.cloud import Project, Sandbox
from functional.service import Service, poll, start_service

from magnum_lite import states

needs_cloud = [
    pytest.mark.functional,
    pytest.mark.timeout(7200),
    pytest.mark.filterwarnings('ignore::PendingDeprecationWarning'),  # the SDK's, of its own code
    pytest.mark.skipif(not os.environ.get('OS_CLOUD'), reason='OS_CLOUD names no cloud'),
    pytest.mark.skipif(
        not HEAT.exists(), reason=f'no test cloud of this machine to break: there is no {HEAT}'
    ),
]

SEED = int(os.environ.get('CHAOS_SEED', '1'))
CLUSTERS = int(os.environ.get('CHAOS_CLUSTERS', '12'))
SECONDS = float(os.environ.get('CHAOS_SECONDS', '60'))
IS_LONG = CLUSTERS > 20
LEASE_S = int(os.environ.get('CHAOS_LEASE', '20' if IS_LONG else '12'))
PROJECTS = 5 if IS_LONG else 3
#: Seconds for everything to settle after the last request, and to be deleted at the end.
SETTLE_S = 1500 if IS_LONG else 240
#: Seconds without a change in Heat after which it has lost a stack; a node that never reports is
#: waited for so long.
QUIET_S = 150 if IS_LONG else plan.SILENCE_S + 15
#: Seconds for the cloud to tidy up behind a stack.
TIDY_S = 60
DRIVERS = pathlib.Path(__file__).with_name('drivers')
#: Of the users of clusters.
DOMAIN = 'magnum'
TEMPLATE = {
    'name': 'chaos',
    'coe': 'chaos',
    'image_id': 'debian',
    'flavor_id': 'm1.tiny',
    'master_flavor_id': 'm1.tiny',
}

Say = Callable[[str], None]


def test_the_plan_comes_from_the_seed_alone() -> None:
    def make(seed: int) -> plan.Plan:
        return plan.make(seed, clusters=100, seconds=600, projects=5, lease_s=12)

    assert make(1) == make(1) and make(1).digest == make(1).digest != make(2).digest
    kinds = {event.kind for story in make(1).stories for event in story.events}
    assert kinds == {'create', 'resize', 'add', 'drop', 'delete'}
    assert {fault.kind for fault in make(1).faults} == {
        'kill',
        'freeze',
        'term',
        *plan.CLOUD_FAULTS,
    }


@pytest.mark.parametrize(
    ('in_heat', 'losses', 'is_right'),
    [
        ('UPDATE_FAILED', 0, True),
        ('UPDATE_COMPLETE', 0, False),
        ('UPDATE_COMPLETE', 1, True),
        (None, 0, False),
    ],
)
def test_failed_end_is_right_only_if_heat_says_the_same(
    in_heat: str | None, losses: int, is_right: bool
) -> None:
    """Also of a cluster under which Heat was harmed; not of one that was stopped because Heat had
    lost it."""
    row = {
        'status': 'UPDATE_FAILED',
        'error_code': 'NODE_FAILED',
        'leased_by': None,
        'check_at': None,
    }
    stacks = [types.SimpleNamespace(id='s', status=in_heat)] if in_heat else []
    world: Any = types.SimpleNamespace(
        watch=types.SimpleNamespace(rows={'u': row}),
        projects=[types.SimpleNamespace(stacks=lambda: stacks)],
        service=types.SimpleNamespace(
            rows=lambda *_, **__: [{'stack_id': 's', 'name': 'g', 'node_count': 1}]
        ),
    )
    story = plan.Story('c', 0, 0, (), 'UPDATE_COMPLETE', {'g': 1})

    found = differences(players.Player(world, story, 'u', excused=True, losses=losses))

    assert (found == []) == is_right


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Say:
    """Write a line to the terminal, from any thread."""
    plugins = request.config.pluginmanager
    lock = threading.Lock()

    def write(line: str) -> None:
        with lock, plugins.get_plugin('capturemanager').global_and_fixture_disabled():
            plugins.get_plugin('terminalreporter').write_line(f'  {line}')

    return write


@pytest.fixture
def sandbox(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    made = Sandbox(os.environ['OS_CLOUD'], tmp_path)
    monkeypatch.setenv('OS_CLIENT_CONFIG_FILE', str(made.clouds_file))
    made.remove_leftovers()
    yield made
    made.close()


@pytest.fixture
def projects(sandbox: Sandbox) -> Iterator[list[Project]]:
    with contextlib.ExitStack() as undo:
        yield [undo.enter_context(sandbox.project()) for _ in range(PROJECTS)]


@pytest.fixture
def service(sandbox: Sandbox, tmp_path: pathlib.Path) -> Iterator[Service]:
    """Three conductors that listen to Heat."""
    pool = f'chaos-{secrets.token_hex(4)}'
    made = start_service(
        sandbox.cloud_name,
        tmp_path / 'service',
        conductors=plan.CONDUCTORS,
        extra={
            'conductor': {'lease': LEASE_S, 'tick': 1, 'watch_interval': 1.5},
            'heat_notifications': {'transport_url': services.RABBITMQ, 'pool': pool},
            'drivers': {'path': DRIVERS},
            'quotas': {'max_clusters_per_project': 1000},
            'trust': {'trustee_domain_name': DOMAIN},
            'oslo_messaging_rabbit': {'heartbeat_timeout_threshold': 10},
        },
    )
    try:
        yield made
    finally:
        try:
            made.stop()
        finally:
            services._rabbitmqctl('delete_queue', pool)


@contextlib.contextmanager
def playing(
    service: Service, projects: list[Project], made: plan.Plan, say: Say
) -> Iterator[players.World]:
    """Nodes that report, faults that begin, and an eye on the rows. All is mended when it ends."""
    headers = [project.headers for project in projects]
    templates = []
    for one in headers:
        status, body = service.request('POST', '/v1/clustertemplates', TEMPLATE, headers=one)
        assert status == 201, body
        templates.append(body['uuid'])
    watch = players.Watch(service)
    crowd = nodes.Nodes(projects)
    faults = Faults(service, list(made.faults), watch.killed, say)
    try:
        yield players.World(
            service,
            projects,
            templates,
            crowd,
            watch,
            faults,
            QUIET_S,
            time.monotonic() + SECONDS + SETTLE_S,
            headers,
            say,
        )
    finally:
        faults.stop()
        crowd.stop()
        watch.stop()


@pytest.mark.parametrize('seed', [pytest.param(SEED, marks=needs_cloud)])
def test_chaos(
    service: Service, projects: list[Project], sandbox: Sandbox, say: Say, seed: int
) -> None:
    made = plan.make(seed, clusters=CLUSTERS, seconds=SECONDS, projects=PROJECTS, lease_s=LEASE_S)
    say(
        f'seed {seed}, {CLUSTERS} clusters, {SECONDS:.0f} s, lease {LEASE_S} s: plan '
        f'{made.digest}, {made.events} requests, {len(made.faults)} faults'
    )
    began = time.monotonic()
    with playing(service, projects, made, say) as world:
        everybody = [players.Player(world, story) for story in made.stories]
        problems = play(everybody, began, say)
        world.faults.wait()
        settled_s = time.monotonic() - began
        ends = collections.Counter(player.status for player in everybody)
        say(
            f'ends: {dict(ends)}; {sum(p.status != p.story.status for p in everybody)} other than '
            'planned'
        )

        problems += world.faults.problems
        # Who wakes up last has what he may have done looked at.
        problems += after_tidying(
            lambda: [problem for player in everybody for problem in differences(player)]
        )
        problems += [
            problem
            for project in projects
            for problem in leaks(service, project, everybody, sandbox)
        ]
        problems += untidy(service, everybody, sandbox)
        deleted_at = time.monotonic()
        problems += delete_all(everybody)
        say_figures(
            world,
            everybody,
            settled_s,
            time.monotonic() - deleted_at,
            time.monotonic() - began,
            say,
        )
        problems += left(service, projects)
        problems += check_takeovers(world)
        problems += complaints(service)
        problems += drowned(world)
    for problem in problems:
        say(f'WRONG: {problem}')
    if problems:
        service.print_logs()
    assert not problems


def play(everybody: list[players.Player], began: float, say: Say) -> list[str]:
    """Have all stories played. Returns what went wrong."""

    def one(player: players.Player) -> str | None:
        threading.Event().wait(max(0, began + player.story.at_s - time.monotonic()))
        try:
            player.play()
        except Exception as e:
            return f'{player.story.name} {player.uuid}: {type(e).__name__} {e}'
        return None

    with futures.ThreadPoolExecutor(len(everybody)) as pool:
        return [problem for problem in pool.map(one, everybody) if problem]


# -- what must be ----------------------------------------------------------------------------------


def differences(player: players.Player) -> list[str]:
    """What of a cluster's rows is not as its story says."""
    story, row = player.story, player.world.watch.rows.get(player.uuid)
    status = player.status
    who = f'{story.name} {player.uuid} (excused: {player.excused}, lost: {player.losses})'
    if status != story.status:
        if not player.excused:
            return [f'{who} is {status} and must be {story.status}: {row}']
        if not (states.is_failed(status) or player.losses or player.left_out):
            return [
                f'{who} is {status} and must be {story.status}, which no harm of Heat explains: '
                f'{row}'
            ]
    if row is None:
        return []
    found = [
        f'{who} is {status}, but {name} is {row[name]}'
        for name in ('leased_by', 'check_at')
        if row[name]
    ]
    if states.is_failed(status) != bool(row['error_code']):
        found.append(f'{who} is {status} with code {row["error_code"]}')
    if states.is_failed(status) and not player.losses:
        ours = player.stack_ids()
        in_heat = {stack.id: stack.status for stack in player.project.stacks() if stack.id in ours}
        if not any(map(states.is_failed, in_heat.values())):
            found.append(f'{who} is {status}, but Heat says of its stacks {in_heat}: {row}')
    groups = {
        r['name']: r['node_count']
        for r in player.world.service.rows(
            "SELECT name, node_count FROM nodegroups WHERE cluster_id = :uuid AND role = 'worker'",
            uuid=player.uuid,
        )
    }
    if status.endswith('_COMPLETE') and not player.left_out and groups != story.groups:
        found.append(f'{who} has the nodegroups {groups} and must have {story.groups}')
    return found


def leaks(
    service: Service, project: Project, everybody: list[players.Player], sandbox: Sandbox
) -> list[str]:
    """What there is in a project of the cloud that no row owns, or the other way round."""
    owners = service.rows(
        'SELECT IF(g.is_default, c.uuid, g.uuid) AS owner, c.status, g.status AS group_status, '
        'g.stack_id, g.uuid, '
        "g.node_count FROM nodegroups g JOIN clusters c ON c.uuid = g.cluster_id WHERE "
        "c.project_id = :project AND "
        "g.role = 'worker'",
        project=project.id,
    )
    stacks = {s.id: s for s in project.stacks()}
    known = {o['stack_id']: o for o in owners if o['stack_id']}
    found = [
        f'no row owns the stack {s.name} {s.status}' for i, s in stacks.items() if i not in known
    ]
    found += [f'the stack of {o} is not there' for i, o in known.items() if i not in stacks]
    members: dict[str, dict[int, str]] = collections.defaultdict(dict)
    for member in nodes.members(project):
        members[member.owner][member.number] = member.status
    for stack_id, owner in known.items():
        if stack_id in stacks:
            found += _differs(service, stacks[stack_id], owner, members[owner['owner']])
    found += after_tidying(lambda: _users(project, set(known) & set(stacks), sandbox))
    roles = list(
        sandbox.admin.identity.role_assignments(
            scope_project_id=project.id, user_id=sandbox.service_user_id
        )
    )
    if (len(roles) == 1) != bool(owners) or len(roles) > 1:
        found.append(f'{len(owners)} nodegroups and the roles of the service {roles}')
    return [f'project {project.name}: {problem}' for problem in found]


def after_tidying(look: Callable[[], list[str]]) -> list[str]:
    """What is still wrong after the cloud had its time to tidy up."""
    found: list[str] = []

    def fine() -> bool:
        found[:] = look()
        return not found

    with contextlib.suppress(AssertionError):
        poll(fine, TIDY_S, 'it is tidy', every_s=3)
    return found


def _differs(
    service: Service, stack: Any, owner: dict[str, Any], members: dict[int, str]
) -> list[str]:
    """Whether a stack bears its owner's name, and has the members that the rows have."""
    found = [] if stack.name.endswith(owner['owner']) else [f'{stack.name} is the stack of {owner}']
    if not owner['group_status'].endswith('_COMPLETE'):
        return found
    rows = {
        r['number']: r['status']
        for r in service.rows(
            'SELECT number, status FROM nodes WHERE nodegroup_id = :uuid', uuid=owner['uuid']
        )
    }
    if not stack.status.endswith('_COMPLETE') and owner['status'].endswith('_COMPLETE'):
        found.append(f'{owner} but its stack is {stack.status}')
    if (
        set(rows) != set(members)
        or len(rows) != owner['node_count']
        or set(rows.values()) - {'CREATE_COMPLETE'}
    ):
        found.append(f'{owner} has the nodes {rows} and Heat the members {members}')
    return found


def _users(project: Project, stack_ids: set[str], sandbox: Sandbox) -> list[str]:
    """Whether Heat has a project for each stack, with a user for each handle, and no others."""
    identity, heat = sandbox.admin.identity, project.cloud.orchestration
    wanted = {f'{project.id}-{stack_id}'[:64]: stack_id for stack_id in stack_ids}
    made = {p.name: p for p in identity.projects() if p.name.startswith(f'{project.id}-')}
    found = [f'no stack has the stack users\' project {name}' for name in set(made) - set(wanted)]
    found += [
        f'stack {wanted[name]} has no project for its users' for name in set(wanted) - set(made)
    ]
    users: dict[str, int] = collections.Counter()
    for domain_id in {p.domain_id for p in made.values()}:
        users.update(u.default_project_id for u in identity.users(domain_id=domain_id))
    for name in set(made) & set(wanted):
        answer = heat.get(f'/stacks/{wanted[name]}/resources?nested_depth=5')
        handles = [
            r
            for r in answer.json()['resources']
            if r['resource_type'] == 'OS::Heat::WaitConditionHandle' and r['physical_resource_id']
        ]
        if len(handles) != users[made[name].id]:
            found.append(
                f'stack {wanted[name]} has {len(handles)} handles and {users[made[name].id]} users'
            )
    return found


def untidy(service: Service, everybody: list[players.Player], sandbox: Sandbox) -> list[str]:
    """What in the database is not as it must be when all is done; and whose users are not in the
    cloud, or are."""
    keys: dict[str, list[str]] = collections.defaultdict(list)
    for row in service.rows('SELECT cluster_id, purpose FROM cluster_keys ORDER BY purpose'):
        keys[row['cluster_id']].append(row['purpose'])
    sent = {r['uuid'] for r in service.rows('SELECT uuid FROM clusters WHERE stack_id IS NOT NULL')}
    found = [
        f'cluster {uuid} has the keys {keys[uuid]}'
        for uuid in sent | set(keys)
        if keys[uuid] != ['ca', *(['cloud-user'] if uuid in sent else [])]
    ]
    identity = sandbox.admin.identity
    users = {
        u.name
        for u in identity.users(domain_id=identity.find_domain(DOMAIN, ignore_missing=False).id)
    }
    found += [
        f'cluster {uuid} has a user in the cloud or should have: {uuid in users}'
        for uuid in (users & {player.uuid for player in everybody}) ^ sent
    ]
    found += [
        f'operation has not ended: {row}'
        for row in service.rows(
            'SELECT cluster_id, kind, generation, begun_at FROM operations WHERE outcome IS NULL'
        )
    ]
    for player in everybody:
        kinds = [
            row['kind']
            for row in service.rows(
                'SELECT kind FROM operations WHERE cluster_id = :uuid ORDER BY id', uuid=player.uuid
            )
        ]
        if kinds != player.asked:
            found.append(
                f'{player.story.name} {player.uuid}: asked for {player.asked}, operations {kinds}'
            )
    found += [
        f'a node without a nodegroup: {row}'
        for row in service.rows(
            'SELECT id, name FROM nodes WHERE nodegroup_id NOT IN (SELECT uuid FROM nodegroups)'
        )
    ]
    return found


def delete_all(everybody: list[players.Player]) -> list[str]:
    """Delete what there still is, as a user does. Returns what did not go."""

    def one(player: players.Player) -> str | None:
        player.world.deadline = time.monotonic() + SETTLE_S
        if player.uuid not in player.world.watch.rows:
            return None
        player.delete()
        try:
            player.settle()
        except AssertionError as e:
            return str(e)
        row = player.world.watch.rows.get(player.uuid)
        return f'{player.story.name} does not go: {row}' if row else None

    with futures.ThreadPoolExecutor(len(everybody)) as pool:
        return [problem for problem in pool.map(one, everybody) if problem]


def left(service: Service, projects: list[Project]) -> list[str]:
    """What there is in the cloud and the database when every cluster has been deleted."""

    def look() -> list[str]:
        found = [
            f'left in {project.name}: {things}'
            for project in projects
            if (things := project.leftovers())
        ]
        for table in ('clusters', 'nodegroups', 'nodes', 'cluster_keys'):
            count = service.rows(f'SELECT COUNT(*) AS n FROM {table}')[0]['n']
            found += [f'{count} rows are left in {table}'] if count else []
        return found

    return after_tidying(look)


def check_takeovers(world: players.World) -> list[str]:
    """Within two lease times somebody else has the clusters of a conductor that died."""
    found = [
        f'a cluster of a killed conductor was taken over after {s:.1f} s'
        for s in world.watch.takeovers_s
        if s > 2 * LEASE_S
    ]
    return found + [f'nobody took over {uuid}' for uuid in world.watch.orphans]


def drowned(world: players.World) -> list[str]:
    """Whether Heat was too slow for the lease, a share of which is all that a conductor waits for
    an answer."""
    usual_s, bearable_s = (
        statistics.median(world.nodes.answers_s or [float('inf')]),
        LEASE_S * 0.4 / 2,
    )
    return (
        []
        if usual_s < bearable_s
        else [
            f'Heat usually took {usual_s:.1f} s to list stacks, so nothing here tells of us: run '
            f'it with a CHAOS_LEASE of {usual_s / 0.4 * 4:.0f}, or on a machine that is not so busy'
        ]
    )


def complaints(service: Service) -> list[str]:
    """Lines of conductors that tell of a mistake of ours."""
    found = []
    for process in {*service.past, *service.conductors}:
        lines = process.text.splitlines()
        for number, line in enumerate(lines):
            if re.search(r'Traceback|unexpected error|visit broke off', line):
                found.append(
                    f'{process.log.name}: '
                    f'{" | ".join(lines[max(0, number - 1) : number + 2])[:400]}'
                )
    return found[:20]


def say_figures(
    world: players.World,
    everybody: list[players.Player],
    settled_s: float,
    deleted_s: float,
    all_s: float,
    say: Say,
) -> None:
    """Print what was seen."""
    texts = [process.text for process in {*world.service.past, *world.service.conductors}]
    takeovers = world.watch.takeovers_s
    say('faults: ' + ', '.join(f'{kind} {n}' for kind, n in sorted(world.faults.counts.items())))
    say(
        f'clusters that Heat was harmed under {sum(p.excused for p in everybody)}, that it lost '
        f'{sum(p.losses > 0 for p in everybody)}; requests left out '
        f'{sum(p.left_out for p in everybody)}'
    )
    say(f'"somebody else has it now": {sum(t.count("somebody else has it now") for t in texts)}')
    if takeovers:
        say(
            f'clusters taken over from killed conductors: {len(takeovers)}, median '
            f'{statistics.median(takeovers):.1f} s, longest {max(takeovers):.1f} s'
        )
    say(
        f'nodes reported {len(world.nodes.sent)}, tries that failed '
        f'{sum(world.nodes.problems.values())}'
    )
    answers_s = world.nodes.answers_s or [float('inf')]
    say(
        f'lists of stacks {len(answers_s)}: median {statistics.median(answers_s):.2f} s, '
        f'longest {max(answers_s):.1f} s'
    )
    say(f'settled after {settled_s:.0f} s, deleted in {deleted_s:.0f} s, all {all_s:.0f} s')
