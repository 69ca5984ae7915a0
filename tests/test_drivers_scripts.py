"""The shell scripts that run on nodes: reports to Heat, retries, and etcd."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess

import pytest

from magnum_lite import drivers

SCRIPTS = sorted(drivers.BUILT_IN.glob('*/files/*.sh'))


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda p: p.name)
def test_script_has_sound_syntax(script: pathlib.Path) -> None:
    subprocess.run(['sh', '-n', str(script)], check=True)
    if checker := shutil.which('shellcheck'):
        subprocess.run([checker, '-s', 'sh', '-e', 'SC1091', str(script)], check=True)


@dataclasses.dataclass
class Node:
    """The node script in a folder of its own, with a `curl` that notes what was posted."""

    folder: pathlib.Path
    engine: str = ''

    def run(self, *arguments: str, **environment: str) -> tuple[int, list[dict[str, str]]]:
        script = (drivers.BUILT_IN / '_shared' / 'files' / 'node.sh').read_text()
        for place in ('/etc/magnum-lite', '/opt/magnum-lite', '/var/lib/magnum-lite', '/var/log'):
            (self.folder / place[1:]).mkdir(parents=True, exist_ok=True)
            script = script.replace(place, f'{self.folder}{place}')
        script = script.replace('PATH=', f'PATH={self.folder}:')
        (self.folder / 'node.sh').write_text(script)
        (self.folder / 'opt/magnum-lite/engine.sh').write_text(
            'set_up_node() {\n' + self.engine + '\n}\n'
        )
        (self.folder / 'etc/magnum-lite/node.env').write_text(
            "NODE_NAME=n-0\nSIGNAL_URL=http://heat/signal\nSIGNAL_TOKEN='the token'\n"
        )
        (self.folder / 'sleep').write_text('#!/bin/sh\n')
        (self.folder / 'curl').write_text(
            '#!/bin/sh\ncat >>"$0.in"; while [ "$1" != --data-binary ]; do shift; done\nprintf '
            '"%s\\n" "$2" "$3" >>"$0.out"\n[ ! -e "$0.away" ] || { rm "$0.away"; exit 22; }\n'
        )
        for name in ('curl', 'sleep'):
            (self.folder / name).chmod(0o755)
        with (self.folder / 'var/log/magnum-lite-node.log').open('a') as log:
            code = subprocess.run(
                ['sh', str(self.folder / 'node.sh'), *arguments],
                stdout=log,
                stderr=log,
                env=os.environ | environment,
                check=False,
            ).returncode
        lines = (
            (self.folder / 'curl.out').read_text().splitlines()
            if (self.folder / 'curl.out').exists()
            else []
        )
        assert set(lines[1::2]) <= {'http://heat/signal'}
        return code, [json.loads(line) for line in lines[::2]]


@pytest.fixture
def node(tmp_path: pathlib.Path) -> Node:
    return Node(tmp_path)


def test_a_node_reports_success_with_its_token(node: Node) -> None:
    node.engine = "step 'do it'; echo done"

    assert node.run() == (0, [{'status': 'SUCCESS', 'reason': 'n-0 is ready'}])
    assert (node.folder / 'curl.in').read_text() == 'header = "X-Auth-Token: the token"\n'


def test_a_node_reports_the_step_that_failed_and_its_last_words(node: Node) -> None:
    node.engine = (
        "step 'first thing'; echo 'not this'\nstep 'second thing'\n"
        "printf 'say \"it\" \\\\ \\001 http://me:secret@proxy:3128\\n'; sh -c 'exit 7'; echo not "
        "reached"
    )

    code, [report] = node.run()

    assert code == 7
    assert report == {
        'status': 'FAILURE',
        'reason': "n-0: step 'second thing' failed (exit code 7): "
        'say "it" \\ ? http://***@proxy:3128',
    }


def test_a_report_is_cut_and_tried_again(node: Node) -> None:
    node.engine = "step 'talk'; head -c 5000 /dev/zero | tr '\\0' x; exit 1"
    node.folder.mkdir(exist_ok=True)
    (node.folder / 'curl.away').touch()

    _, reports = node.run()

    assert [r['status'] for r in reports] == ['FAILURE', 'FAILURE']
    assert 700 <= len(reports[1]['reason']) <= 1024


def test_a_step_that_takes_too_long_is_named(node: Node) -> None:
    node.engine = "step 'wait for ever'; kill -TERM $$; echo not reached"

    code, [report] = node.run()

    assert code == 124
    assert report['reason'].startswith(
        "n-0: step 'wait for ever, which was still running when the time was up' failed"
    )


def test_a_set_up_that_died_silently_is_reported_afterwards(node: Node) -> None:
    node.engine = "step 'die'; kill -KILL $$"

    assert node.run() == (-9, [])
    code, [report] = node.run('--if-silent', SERVICE_RESULT='signal', EXIT_STATUS='KILL')
    assert code == 0
    assert 'the set-up ended without a report (signal KILL)' in report['reason']
    assert node.run('--if-silent')[1] == [report]


def test_until_ok_tries_until_it_works(node: Node) -> None:
    node.engine = (
        "step 'wait'\ntries() { echo . >>$STATE/tries; echo same words; [ $(wc -l <$STATE/tries) = "
        "3 ]; }\n"
        'until_ok tries'
    )

    assert node.run()[0] == 0
    assert (node.folder / 'var/log/magnum-lite-node.log').read_text().count('same words') == 2


@pytest.mark.parametrize('engine', ['kubeadm', 'docker'])
def test_an_image_that_lacks_programs_and_has_no_package_manager_is_told_which_label_helps(
    node: Node, engine: str
) -> None:
    [line] = [
        line
        for line in (drivers.BUILT_IN / '_shared' / 'files' / f'{engine}.sh')
        .read_text()
        .splitlines()
        if line.startswith('INSTEAD=')
    ]
    node.engine = f"{line}\nhave() {{ [ $1 = curl ]; }}\nstep 'install'; packages socat openssl"

    code, [report] = node.run()

    assert code == 1
    assert (
        'the image lacks socat openssl and has no package manager that is known here; use an image '
        'that has this, '
        'or name the label ' in report['reason']
    )


def test_a_failed_node_is_made_harmless_before_it_reports(node: Node) -> None:
    node.engine = "step 'join'; exit 3\n}\ngive_up() { echo 'the report: '$(cat $0/../curl.out 2>/dev/null); false"  # noqa: E501

    code, reports = node.run()

    assert (code, [r['status'] for r in reports]) == (3, ['FAILURE'])
    assert 'the report: \n' in (node.folder / 'var/log/magnum-lite-node.log').read_text()


def test_a_node_that_succeeded_and_could_not_say_so_says_it_afterwards(node: Node) -> None:
    (node.folder / 'var/lib/magnum-lite').mkdir(parents=True)
    (node.folder / 'var/lib/magnum-lite/succeeded').touch()

    assert node.run('--if-silent') == (0, [{'status': 'SUCCESS', 'reason': 'n-0 is ready'}])


@dataclasses.dataclass
class Etcd:
    """The functions of kubeadm.sh that deal with members of etcd, and an `etcdctl` that knows
    some."""

    folder: pathlib.Path
    #: Lines as `member list` prints them, of `id` or `id, started, name, peer, client, false`.
    members: list[str]
    #: Names, and addresses of clients, that answer.
    healthy: tuple[str, ...]

    def call(self, function: str, **environment: str) -> tuple[int, list[str]]:
        """Its exit code, and the ids of the members that are left."""
        (self.folder / 'list').write_text(''.join(f'{line}\n' for line in self.members))
        script = drivers.BUILT_IN / '_shared' / 'files' / 'kubeadm.sh'
        (self.folder / 'run.sh').write_text(f"""
            . {script}
            kubeadm() {{ :; }}; rm() {{ :; }}; trust_all() {{ :; }}
            etcd() {{
                case "$2 $3" in
                'endpoint health') echo " {' '.join(self.healthy)} " | grep " ${{ENDPOINT:-$1}} " >/dev/null ;;
                'member list') cat {self.folder}/list ;;
                'member remove') grep -v "^$4," {self.folder}/list >{self.folder}/left
                                 cp {self.folder}/left {self.folder}/list ;;
                esac
            }}
            {function}
            """)  # noqa: E501
        done = subprocess.run(
            ['sh', '-eu', str(self.folder / 'run.sh')],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, [
            line.split(',')[0] for line in (self.folder / 'list').read_text().splitlines()
        ]


def member(number: int, state: str = 'started') -> str:
    """A line of etcd's list."""
    known = state == 'started'
    return (
        f'{number}{number}, {state}, {f"m-{number}" if known else ""}, '
        f'https://10.0.0.{number}:2380, {f"https://10.0.0.{number}:2379" if known else ""}, false'
    )


@pytest.mark.parametrize(
    ('members', 'healthy', 'left'),
    [
        ([member(0)], ('m-0', 'https://10.0.0.0:2379'), ['00']),
        ([member(0), member(1, 'unstarted')], ('m-0', 'https://10.0.0.0:2379'), ['00']),
        ([member(0), member(2), member(5)], ('m-2', 'https://10.0.0.2:2379'), ['22']),
        (
            [member(0), member(2), member(5)],
            ('m-0', 'https://10.0.0.0:2379', 'https://10.0.0.5:2379'),
            ['00', '22', '55'],
        ),
    ],
    ids=[
        'nothing to do',
        'half-made',
        'gone, of those that go and of nobody',
        'who stays is left, and who answers',
    ],
)
def test_what_does_not_answer_and_does_not_stay_leaves_etcd_before_a_master_joins(
    tmp_path: pathlib.Path, members: list[str], healthy: tuple[str, ...], left: list[str]
) -> None:
    etcd = Etcd(tmp_path, members, healthy)

    assert etcd.call('make_room', NODE_NAME='m-9', NODE_REPLACES='m-0', NODE_STAYS='m-2 m-3') == (
        0,
        left,
    )


def test_etcd_member_that_does_not_answer_is_not_asked(tmp_path: pathlib.Path) -> None:
    etcd = Etcd(tmp_path, [member(0)], ())

    assert etcd.call('make_room', NODE_NAME='m-9', NODE_REPLACES='m-0', NODE_STAYS='') == (
        1,
        ['00'],
    )


@pytest.mark.parametrize(
    ('members', 'code', 'left'),
    [
        ([member(0), member(9)], 0, ['99']),
        ([member(9)], 0, ['99']),
        ([member(0), member(9, 'unstarted')], 1, ['00', '99']),
    ],
    ids=['it goes', 'it is gone already', 'not before the new one counts'],
)
def test_the_old_master_leaves_etcd(
    tmp_path: pathlib.Path, members: list[str], code: int, left: list[str]
) -> None:
    etcd = Etcd(tmp_path, members, ())

    assert etcd.call('leave_etcd m-0', NODE_NAME='m-9') == (code, left)
