"""What `tools/demo --nodes` decides, says and cleans up, without a cloud: the machine is looked at
through the same functions, commands are real ones of bash, and files are those of a folder.

The whole story, with a cloud and nodes, is the command itself."""

from __future__ import annotations

import http.server
import importlib.machinery
import importlib.util
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / 'tools' / 'embedded'), str(ROOT / 'tools' / 'real_nodes')]

import calls  # noqa: E402
import engines  # noqa: E402
import installation  # noqa: E402
import machine  # noqa: E402
import terminal  # noqa: E402
import walk  # noqa: E402
from made import Made  # noqa: E402
from processes import Failed  # noqa: E402

CLUSTER = {'uuid': 'u-1', 'name': 'demo-swarm'}


@pytest.fixture
def made(tmp_path: pathlib.Path) -> Made:
    return Made(tmp_path / 'made.json')


class Recorded(terminal.Terminal):
    """A terminal that runs nothing: it keeps what it was told, and answers by the beginning of a
    line."""

    def __init__(self, answers: dict[str, tuple[int, str]] | None = None) -> None:
        super().__init__(ROOT)
        self.answers = answers or {}
        self.lines: list[str] = []

    def ask(self, line: str, *, timeout_s: float = 60) -> tuple[int, str]:
        self.lines.append(line)
        return next(
            (said for start, said in self.answers.items() if line.startswith(start)), (0, '')
        )

    def stream(self, argv: list[object], *, what: str, prefix: str = '') -> None:
        self.lines.append(' '.join(str(word).removeprefix(f'{ROOT}/') for word in argv))


# -- options ---------------------------------------------------------------------------------------


def demo(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'demo'), *words],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--engine', 'kubernetes'], '--engine: only with --nodes'),
        (['--keep-cluster'], '--keep-cluster: only with --nodes'),
        (['--nodes', '--node-count', '5'], '--node-count: not with --nodes'),
        (['--nodes', '--engine', 'mesos'], "invalid choice: 'mesos'"),
    ],
)
def test_an_option_that_would_be_without_effect_is_refused(words: list[str], said: str) -> None:
    done = demo(*words)

    assert done.returncode == 2
    assert said in done.stderr


def test_the_help_says_that_there_are_nodes() -> None:
    assert 'tools/demo --nodes' in demo('--help').stdout


# -- the machine -----------------------------------------------------------------------------------


def test_all_that_a_machine_lacks_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(machine.os, 'geteuid', lambda: 1000)
    monkeypatch.setattr(machine, 'read_release', lambda: {'ID': 'arch', 'PRETTY_NAME': 'Arch'})
    monkeypatch.setattr(machine, 'CLOUD_HOME', tmp_path / 'cloud')
    monkeypatch.setattr(machine, 'MEMORY_GIB', 1 << 20)

    with pytest.raises(Failed) as failure:
        machine.check('swarm')

    said = str(failure.value)
    assert 'it must run as root' in said and 'sudo tools/demo --nodes' in said
    assert 'this is Arch' in said
    assert 'GiB of free memory are needed' in said


def test_a_cloud_that_runs_needs_no_more_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / 'clouds.yaml').touch()
    monkeypatch.setattr(machine.os, 'geteuid', lambda: 0)
    monkeypatch.setattr(machine, 'read_release', lambda: {'ID': 'debian'})
    monkeypatch.setattr(machine.shutil, 'which', lambda name: f'/usr/bin/{name}')
    monkeypatch.setattr(machine, 'CLOUD_HOME', tmp_path)
    monkeypatch.setattr(machine, 'is_taken', lambda port: port == machine.KEYSTONE_PORT)
    monkeypatch.setattr(machine, 'MEMORY_GIB', 1 << 20)

    machine.check('swarm')


@pytest.mark.parametrize(
    ('words', 'takes'),
    [
        (['python', 'noded.py', 'watch'], True),
        (['python', 'noded.py', 'watch', '--match', '^(real|demo|rn)-'], True),
        (['python', 'noded.py', 'watch', '--match', '^real-'], False),
    ],
)
def test_whether_a_watcher_boots_our_nodes(words: list[str], takes: bool) -> None:
    assert machine.takes_names(words, machine.PREFIX) is takes


def test_a_watcher_of_others_only_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, made: Made
) -> None:
    words = ['python', 'noded.py', 'watch', '--match', '^real-']
    monkeypatch.setattr(machine, 'find_watcher', lambda: (7, words))

    with pytest.raises(Failed, match=r"\(pid 7\) .*nodes/up --match '\^demo-'"):
        machine.bring_up_watcher(Recorded(), made)
    assert made.entries() == []


def test_a_port_of_somebody_else_is_not_taken_for_the_cloud(
    monkeypatch: pytest.MonkeyPatch, made: Made, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(machine, 'CLOUD_HOME', tmp_path / 'none')
    monkeypatch.setattr(machine, 'is_taken', lambda port: True)

    with pytest.raises(Failed, match='Port 5000 is taken'):
        machine.bring_up_cloud(Recorded(), made)
    assert made.entries() == []


# -- what was made ---------------------------------------------------------------------------------


def test_what_runs_already_is_neither_recorded_nor_stopped(
    monkeypatch: pytest.MonkeyPatch, made: Made
) -> None:
    monkeypatch.setattr(machine, 'is_cloud_up', lambda: True)
    monkeypatch.setattr(machine, 'find_watcher', lambda: (7, ['noded.py']))
    used = Recorded()
    machine.bring_up_cloud(used, made)
    machine.bring_up_watcher(used, made)

    machine.stop(used, made)
    machine.remove(used, made)

    assert used.lines == []
    assert made.entries() == []


def test_what_was_started_is_stopped_and_what_was_made_is_removed(
    monkeypatch: pytest.MonkeyPatch, made: Made, tmp_path: pathlib.Path
) -> None:
    cloud, nodes = tmp_path / 'cloud', tmp_path / 'nodes'
    monkeypatch.setattr(machine, 'CLOUD_HOME', cloud)
    monkeypatch.setattr(machine, 'NODES_HOME', nodes)
    monkeypatch.setattr(machine, 'is_taken', lambda port: False)
    monkeypatch.setattr(machine, 'find_watcher', lambda: None)
    started = Recorded()
    machine.bring_up_cloud(started, made)
    machine.build_image(started, made)
    machine.bring_up_watcher(started, made)
    assert started.lines == [
        'testcloud/cloud/up',
        'testcloud/nodes/build-image',
        'testcloud/nodes/up --match ^demo-',
    ]
    (nodes / 'image').mkdir(parents=True)
    stopped = Recorded()

    machine.stop(stopped, made)
    assert stopped.lines == ['testcloud/nodes/down', 'testcloud/cloud/down']
    assert nodes.exists()
    machine.remove(stopped, made)

    assert stopped.lines[2:] == ['testcloud/cloud/down --purge']
    assert not nodes.exists()
    assert made.entries() == []


def test_what_a_demo_had_begun_when_it_was_killed_is_recorded(
    monkeypatch: pytest.MonkeyPatch, made: Made, tmp_path: pathlib.Path
) -> None:
    class Killed(Recorded):
        def stream(self, argv: list[object], *, what: str, prefix: str = '') -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(machine, 'CLOUD_HOME', tmp_path / 'cloud')
    monkeypatch.setattr(machine, 'is_taken', lambda port: False)

    with pytest.raises(KeyboardInterrupt):
        machine.bring_up_cloud(Killed(), made)

    assert Made(made.file).names('cloud home') == [str(tmp_path / 'cloud')]


def test_servers_of_packages_are_not_started_by_their_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    rule = tmp_path / 'policy-rc.d'
    monkeypatch.setattr(machine, 'NO_SERVERS', rule)

    with pytest.raises(KeyboardInterrupt), machine.no_servers_start():
        assert subprocess.run([str(rule)], check=False).returncode == 101
        raise KeyboardInterrupt
    assert not rule.exists()


def test_passwords_are_made_once_and_for_their_owner_only(
    made: Made, tmp_path: pathlib.Path
) -> None:
    first = installation.Installation(tmp_path, made)._read_secrets()

    assert installation.Installation(tmp_path, made)._read_secrets() == first
    assert (tmp_path / 'etc' / 'secrets.json').stat().st_mode & 0o777 == 0o600
    assert len(set(first.values())) == 3


@pytest.mark.parametrize('is_new', [True, False])
def test_what_runs_is_stopped_before_its_package_is_replaced(
    monkeypatch: pytest.MonkeyPatch, made: Made, tmp_path: pathlib.Path, is_new: bool
) -> None:
    events: list[str] = []

    def install(venv: pathlib.Path, arguments: list[Any], **options: Any) -> None:
        if is_new:
            options['say']('installing')
        events.append(f'{len(options["files"]) > 100} {arguments[-2]}')

    monkeypatch.setattr(installation, 'install', install)
    monkeypatch.setattr(installation.Installation, 'stop', lambda self: events.append('stop'))

    installation.Installation(tmp_path, made).install_package()

    assert events == [*(['stop'] if is_new else []), f'True {tmp_path}/source[mysql]']


def test_a_taken_port_is_said_before_magnum_lite_is_started(
    monkeypatch: pytest.MonkeyPatch, made: Made, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(installation, 'is_taken', lambda port: True)

    with pytest.raises(Failed, match=r'Port 9511, .* is taken by another program'):
        installation.Installation(tmp_path, made).start(Recorded())


# -- commands --------------------------------------------------------------------------------------


def test_a_command_is_printed_before_it_runs_and_its_secrets_are_not(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    shell = terminal.Terminal(tmp_path)
    shell.secrets['PASSWORD'] = 'hush'

    said = shell.run('echo ${#PASSWORD} $PWD')

    printed = capsys.readouterr().out
    assert printed.index('$ echo ${#PASSWORD} $PWD') < printed.index(f'4 {tmp_path}')
    assert 'hush' not in printed
    assert said == f'4 {tmp_path}\n'


def test_a_command_that_fails_says_which_and_why(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Failed, match=r'(?s)ended with 3: echo no; exit 3 \| cat.*\nno'):
        terminal.Terminal(tmp_path).run('echo no; exit 3 | cat')


def test_a_command_that_hangs_is_given_up(tmp_path: pathlib.Path) -> None:
    code, said = terminal.Terminal(tmp_path).ask('echo begun; sleep 60', timeout_s=0.5)

    assert (code, said) == (124, 'begun\n')


def test_the_caller_s_cloud_is_not_seen_by_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv('OS_CLOUD', 'production')
    monkeypatch.setenv('KUBECONFIG', '/root/production')

    assert terminal.Terminal(tmp_path).ask('echo "<$OS_CLOUD$KUBECONFIG>"') == (0, '<>\n')


def test_a_program_that_fails_says_its_last_lines(tmp_path: pathlib.Path) -> None:
    program = ['bash', '-c', 'echo "[  3s] ERROR: no disk"; exit 1']

    with pytest.raises(Failed, match=r'It did not come up \(exit code 1\):\nERROR: no disk'):
        terminal.Terminal(tmp_path).stream(list(program), what='It did not come up')


# -- the story -------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> walk.Walk:
    monkeypatch.setattr(machine, 'NODES_HOME', tmp_path)
    monkeypatch.setattr(walk, 'POLL_S', 0)
    return walk.Walk(tmp_path / 'home')


def write_node(home: pathlib.Path, name: str, log: str | None) -> pathlib.Path:
    folder = home / 'nodes' / name
    (folder / 'up/var/log').mkdir(parents=True, exist_ok=True)
    (folder / 'spec.json').write_text(json.dumps({'name': name, 'ip': '10.0.0.9'}))
    if log is not None:
        (folder / 'up/var/log/magnum-lite-node.log').write_text(log)
    return folder


def test_each_step_of_each_node_is_told_once(
    told: walk.Walk, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_node(tmp_path, 'demo-swarm-1-worker-0', None)
    write_node(tmp_path, 'real-7-worker-0', '== 101112Z install docker\n')
    told.tell_nodes('demo-swarm')
    log = 'x\n== 101112Z install docker\nGet:1\n== 101113Z join the swarm\n'
    folder = write_node(tmp_path, 'demo-swarm-1-worker-0', log)
    told.tell_nodes('demo-swarm')
    told.tell_nodes('demo-swarm')
    (folder / 'up/var/log/magnum-lite-node.log').unlink()  # as when it is being removed
    told.tell_nodes('demo-swarm')
    (folder / 'spec.json').unlink()
    told.tell_nodes('demo-swarm')

    lines = [line.partition('] ')[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        'node demo-swarm-1-worker-0: boots, 10.0.0.9',
        'node demo-swarm-1-worker-0: join the swarm',
        'node demo-swarm-1-worker-0: its server is gone',
    ]


def follow_statuses(told: walk.Walk, *found: Any, wanted: str) -> dict[str, Any]:
    answers = iter(found)
    told.api = SimpleNamespace(find=lambda path: next(answers))  # type: ignore[assignment]
    return told.follow(CLUSTER, wanted, within_s=60)


def test_a_cluster_is_followed_to_its_end(told: walk.Walk) -> None:
    complete = CLUSTER | {'status': 'CREATE_COMPLETE'}
    begun = CLUSTER | {'status': 'CREATE_IN_PROGRESS'}
    assert follow_statuses(told, begun, complete, wanted='CREATE_COMPLETE') == complete

    going = CLUSTER | {'status': 'DELETE_IN_PROGRESS'}
    assert follow_statuses(told, complete, going, None, wanted='GONE') == CLUSTER


def test_a_cluster_that_fails_says_why(told: walk.Walk) -> None:
    failed = CLUSTER | {'status': 'CREATE_FAILED', 'status_reason': 'No valid host'}

    with pytest.raises(Failed, match=r'demo-swarm is CREATE_FAILED: No valid host'):
        follow_statuses(told, failed, wanted='CREATE_COMPLETE')


def test_a_cluster_that_stays_is_given_up(told: walk.Walk) -> None:
    with pytest.raises(Failed, match=r'demo-swarm is still None after 0 s'):
        told.follow(CLUSTER, 'CREATE_COMPLETE', within_s=0)


@pytest.mark.parametrize('kept', [True, False])
def test_access_to_a_cluster_that_is_gone_is_not_shown(
    told: walk.Walk, capsys: pytest.CaptureFixture[str], kept: bool
) -> None:
    told.terminal.variables = {'OS_CLOUD': 'testcloud', 'DOCKER_HOST': 'tcp://1.2.3.4:2376'}
    options: Any = SimpleNamespace(engine='swarm', keep_cluster=kept)

    walk.show_next(told, options)

    printed = capsys.readouterr().out
    assert 'export OS_CLOUD=testcloud\n' in printed
    assert ('export DOCKER_HOST=' in printed) is kept
    assert 'tools/demo --down\n' in printed


def test_a_token_is_not_in_the_text_of_a_failure(told: walk.Walk) -> None:
    told.terminal = Recorded({'openstack token issue': (124, 'gAAAAAsecret\n')})

    with pytest.raises(Failed, match=r'no token \(exit code 124\)') as failure:
        told._make_token()
    assert 'secret' not in str(failure.value)


def test_stopping_what_never_ran_does_nothing(tmp_path: pathlib.Path) -> None:
    walk.stop(tmp_path, down=True)

    assert list(tmp_path.iterdir()) == []


# -- the engines -----------------------------------------------------------------------------------


def test_where_tasks_run_is_read_of_docker() -> None:
    said = 'a Running 3 seconds ago\nb Preparing 1 second ago\n Pending 2 seconds ago\n'

    assert engines.Swarm().places(Recorded({'docker service ps': (0, said)})) == {'a'}
    assert engines.Swarm().places(Recorded({'docker service ps': (1, 'no such service')})) == set()


def test_how_a_node_is_is_read_of_docker() -> None:
    docker = Recorded({'docker node ls': (0, 'a Ready\nb Down\n')})

    found = [engines.Swarm().knows(docker, name) for name in ('a', 'b', 'c')]

    assert found == ['Ready', 'Down', None]


def test_docker_s_access_is_what_the_stock_client_says(tmp_path: pathlib.Path) -> None:
    said = 'export DOCKER_HOST=tcp://1.2.3.4:2376\nexport DOCKER_CERT_PATH=/x\n'
    docker = Recorded({'openstack coe cluster config': (0, said)})
    unused: Any = None

    engines.Swarm().let_in(docker, unused, CLUSTER, tmp_path)

    assert docker.variables == {'DOCKER_HOST': 'tcp://1.2.3.4:2376', 'DOCKER_CERT_PATH': '/x'}
    with pytest.raises(Failed, match='did not say how to get in'):
        engines.Swarm().let_in(Recorded(), unused, CLUSTER, tmp_path)


# -- the API ---------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, list[str | None]]]:
    """An API that takes the token `fresh` only, and has one thing."""
    tokens: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers['X-Auth-Token'])
            status = 401 if tokens[-1] != 'fresh' else 200 if self.path == '/there' else 404
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"a": 1}' if status != 401 else b'Authentication required')

        def log_message(self, *args: Any) -> None:
            pass

    made = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield f'http://127.0.0.1:{made.server_port}', tokens
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_token_that_has_run_out_is_replaced_once(server: tuple[str, list[str | None]]) -> None:
    url, tokens = server
    fresh = iter(['old', 'fresh'])

    one = calls.Api(url, lambda: next(fresh))
    assert one.find('/there') == {'a': 1}
    assert one.find('/elsewhere') is None

    assert tokens == ['old', 'fresh', 'fresh']
    with pytest.raises(Failed, match='tokens are not taken by magnum-lite: 401 to GET /there'):
        calls.Api(url, lambda: 'old').find('/there')
    with pytest.raises(Failed, match='answers 404 to GET /elsewhere'):
        one.call('GET', '/elsewhere')


def test_an_api_that_is_away_is_said_with_what_to_do() -> None:
    with pytest.raises(Failed, match=r'Is magnum-lite running\? tools/demo --nodes starts it'):
        calls.Api('http://127.0.0.1:1', lambda: 'fresh').find('/there')


# -- what is left ----------------------------------------------------------------------------------


def test_whose_stack_a_name_is() -> None:
    loader = importlib.machinery.SourceFileLoader(
        'inventory', str(ROOT / 'tools/real_nodes/inventory.py')
    )
    spec = importlib.util.spec_from_loader('inventory', loader)
    assert spec
    inventory = importlib.util.module_from_spec(spec)
    loader.exec_module(inventory)

    found = [
        inventory.is_ours(name, 'demo-swarm')
        for name in ('demo-swarm-1a2b-kube_minions', 'demo-swarms', 'real-demo-swarm-1')
    ]

    assert found == [True, False, False]
