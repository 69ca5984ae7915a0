"""The API under uWSGI and gunicorn with several workers, loaded before the fork and after it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures

import pytest
import requests
from conftest import AVAILABLE, scratch_database

BIN = pathlib.Path(sys.executable).parent
ROOT = pathlib.Path(__file__).parent.parent
UWSGI: list[str | pathlib.Path] = [
    BIN / 'uwsgi',
    '--master',
    '--need-app',
    '--threads',
    '2',
    '--processes',
    '2',
    '--die-on-term',
    # As in the installed file, but shorter: a worker that does not end by itself is killed then.
    '--worker-reload-mercy',
    '8',
    '--module',
    'magnum_lite.api.wsgi:application',
]
GUNICORN: list[str | pathlib.Path] = [
    BIN / 'gunicorn',
    '--workers',
    '2',
    '--threads',
    '2',
    'magnum_lite.api.wsgi:application',
]
INSTALLED = ROOT / 'etc' / 'magnum-lite-api-uwsgi.ini'
SERVERS: dict[str, list[str | pathlib.Path]] = {
    'uwsgi': [*UWSGI, '--lazy-apps', '--http-socket'],
    'uwsgi loaded before the fork': [*UWSGI, '--http-socket'],
    'uwsgi as installed': [BIN / 'uwsgi', '--ini', 'magnum-lite-api-uwsgi.ini', '--http-socket'],
    'gunicorn': [*GUNICORN, '--bind'],
    'gunicorn loaded before the fork': [*GUNICORN, '--preload', '--bind'],
}
Start = Callable[[str], tuple[str, subprocess.Popen[bytes], pathlib.Path]]


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Start]:
    """Start a server with an API that believes its callers; return its address, its process and its
    log."""
    kind = 'mariadb' if 'mariadb' in AVAILABLE else 'sqlite'
    running: list[subprocess.Popen[bytes]] = []
    with scratch_database(kind, tmp_path) as url:
        conf = tmp_path / 'magnum-lite.conf'
        conf.write_text(
            f'[DEFAULT]\nstate_path = {tmp_path}\ntransport_url = fake://\n[api]\nauth_strategy = '
            f'noauth\n[database]\nconnection = {url}\n[oslo_reports]\nfile_event_handler = '
            f'{tmp_path}/report\nfile_event_handler_interval = 1\n'
        )
        (tmp_path / 'report').touch()
        (tmp_path / INSTALLED.name).write_text(
            re.sub('^http-socket.*\n', '', INSTALLED.read_text(), flags=re.MULTILINE)
        )
        subprocess.run(
            [BIN / 'magnum-lite', '--config-file', conf, 'db', 'upgrade'], check=True, timeout=100
        )

        def begin(name: str) -> tuple[str, subprocess.Popen[bytes], pathlib.Path]:
            with socket.create_server(('127.0.0.1', 0)) as free:
                address, log = f'127.0.0.1:{free.getsockname()[1]}', tmp_path / 'server.log'
            with log.open('wb') as out:
                process = subprocess.Popen(
                    [*SERVERS[name], address],
                    stdout=out,
                    stderr=out,
                    cwd=tmp_path,
                    env={**os.environ, 'MAGNUM_LITE_CONFIG': str(conf)},
                )
            running.append(process)
            return f'http://{address}', process, log

        yield begin
        for process in running:
            process.terminate()
            process.wait(30)


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: pathlib.Path) -> None:
    pause = threading.Event()
    for _ in range(900):
        try:
            requests.get(f'{url}/healthcheck', timeout=60)
            return
        except requests.ConnectionError:
            assert process.poll() is None, log.read_text()
            pause.wait(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.timeout(300)
@pytest.mark.parametrize('name', SERVERS)
def test_all_workers_answer(start: Start, name: str) -> None:
    url, process, log = start(name)
    wait_until_it_answers(url, process, log)
    asked = {'X-Project-Id': 'p1', 'X-User-Id': 'u1', 'X-Roles': 'member'}

    with futures.ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: requests.get(f'{url}/v1/clusters', headers=asked, timeout=60), range(80)
            )
        )

    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].json()['clusters'] == []
    ready = requests.get(f'{url}/healthcheck/ready', timeout=60).json()
    assert (ready['checks']['database'], ready['oldest_due_s']) == ('ok', 0.0)
    assert {'keystone', 'heat'} <= set(ready['down'])  # the configuration names none
    text = log.read_text()
    assert 'Traceback' not in text, text
    if 'uwsgi' in name:  # the second may come up when the first has answered all
        assert (
            len(set(re.findall(r'(?:spawned uWSGI worker \d+ \(pid: |\[pid: )(\d+)', text))) == 2
        ), text


@pytest.mark.timeout(300)
def test_a_worker_prints_what_it_does_and_no_secret(start: Start) -> None:
    url, process, log = start('gunicorn')
    wait_until_it_answers(url, process, log)
    pause = threading.Event()

    for number in range(600):
        # One that has not loaded the application yet dies of it; the one that answers does not.
        for worker in (
            re.findall(r'Booting worker with pid: (\d+)', log.read_text()) if number == 0 else ()
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGUSR2)
        if 'Configuration  ' in log.read_text():
            break
        pause.wait(0.1)

    text = log.read_text()
    assert 'Guru Meditation' in text and 'magnum-lite' in text
    assert re.search(r'connection = \*\*\*', text)


@pytest.mark.timeout(300)
def test_the_uwsgi_file_has_every_process_report_and_all_end_at_once(
    start: Start, tmp_path: pathlib.Path
) -> None:
    url, process, log = start('uwsgi as installed')
    wait_until_it_answers(url, process, log)
    pause = threading.Event()

    pause.wait(1.1)  # the handler compares times of whole clocks
    (tmp_path / 'report').touch()
    for _ in range(300):
        if log.read_text().count('Guru Meditation') == 3:
            break
        pause.wait(0.1)
    process.terminate()

    assert process.wait(20) == 0
    text = log.read_text()
    assert text.count('Guru Meditation') == 3, text  # the master and its two workers
    assert re.search(r'connection = \*\*\*', text) and text.count('Gracefully killing worker') == 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize('name', ['uwsgi', 'gunicorn'])
def test_a_wrong_value_ends_the_server_with_the_name_of_the_option(
    start: Start, name: str, tmp_path: pathlib.Path
) -> None:
    conf = tmp_path / 'magnum-lite.conf'
    conf.write_text(conf.read_text() + '[conductor]\nworkers = many\n')
    log = start(name)[2]

    pause = threading.Event()
    for _ in range(600):
        if '[conductor] workers' in log.read_text():
            break
        pause.wait(0.1)

    assert '[conductor] workers in ' in log.read_text()
    assert 'must be a whole number from 1 to 128' in log.read_text()
