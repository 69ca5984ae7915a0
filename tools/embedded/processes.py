"""Run servers in the background for `tools/demo` and `tools/embedded/cloud`; only the standard
library.

A server inherits an open, locked pid file, so the lock is held for as long as it lives. Whether it
runs is therefore a question to the kernel, and a pid that the system has given to another process
is never signalled."""

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.1
STOP_S = 15
TAIL_LINES = 15


class Failed(Exception):
    """A step failed. The text says which one and what to do next; the file `log` says why."""

    def __init__(self, text: str, log: Path | None = None):
        super().__init__(text)
        self.log = log

    def report(self) -> str:
        """Return the text with the last lines of the log."""
        if not self.log or not self.log.exists():
            return str(self)
        lines = self.log.read_text(errors='replace').splitlines()[-TAIL_LINES:]
        return '\n'.join([str(self), f'The end of {self.log}:', *(f'  {line}' for line in lines)])


def environment(home: Path) -> dict[str, str]:
    """Return the environment of servers and installers: this process's without the caller's cloud,
    with caches of entry points in `home`."""
    # With PYTHONDONTWRITEBYTECODE every start would compile some 3,000 modules again.
    unwanted = ('OS_', 'PYTHONDONTWRITEBYTECODE', 'PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return kept | {
        'PYTHONWARNINGS': 'ignore',
        'PYTHONUNBUFFERED': '1',
        'XDG_CACHE_HOME': str(home / 'cache'),
    }


def run(argv: Sequence[object], log: Path, *, what: str, home: Path) -> None:
    """Run a command to its end and append its output to `log`. Raises Failed, which names `what`,
    if its exit status is not 0."""
    command = [str(word) for word in argv]
    with log.open('ab') as output:
        output.write(f'$ {shlex.join(command)}\n'.encode())
        output.flush()
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(home),
            )
        except OSError as error:
            raise Failed(f'{what} failed: {error}') from error
    if done.returncode:
        raise Failed(f'{what} failed with exit code {done.returncode}.', log)


@dataclass(frozen=True)
class Server:
    """A program in the background: `home`/run/`name`.pid, `home`/log/`name`.log."""

    name: str
    home: Path

    @property
    def pid_file(self) -> Path:
        return self.home / 'run' / f'{self.name}.pid'

    @property
    def log(self) -> Path:
        return self.home / 'log' / f'{self.name}.log'

    def pid(self) -> int | None:
        """Return the process id if the server runs, else None."""
        with suppress(FileNotFoundError), self.pid_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
        return None

    def start(self, argv: Sequence[object], *, variables: Mapping[str, str] | None = None) -> None:
        """Start it in a process group of its own, so that Ctrl-C in the terminal does not reach it;
        no-op if it runs.

        `variables` are added to its environment, which, unlike its command line, only its owner can
        read."""
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.pid_file.open('a') as file, self.log.open('ab') as output:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            child = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(self.home) | dict(variables or {}),
                pass_fds=[file.fileno()],
                start_new_session=True,
            )
            file.truncate(0)
            file.write(str(child.pid))

    def wait_for(self, url: str, *, within_s: float) -> None:
        """Wait until `url` answers with anything but a server error. Raises Failed when it dies or
        takes too long."""
        end = time.monotonic() + within_s
        while not answers(url):
            if not self.pid():
                raise Failed(f'{self.name} stopped while starting.', self.log)
            if time.monotonic() > end:
                raise Failed(
                    f'{self.name} does not answer at {url} after {within_s:.0f} s.', self.log
                )
            time.sleep(POLL_S)

    def stop(self) -> bool:
        """Stop it: SIGTERM, after `STOP_S` seconds SIGKILL. Return whether it ran."""
        pid = self.pid()
        if not pid:
            return False
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.pid() == pid:
                with suppress(ProcessLookupError):
                    os.killpg(pid, number)
            end = time.monotonic() + STOP_S
            while self.pid() == pid and time.monotonic() < end:
                time.sleep(POLL_S)
        return True


def bypass_proxies() -> None:
    """Make this process and its children connect to the loopback without the user's proxy."""
    for name in ('no_proxy', 'NO_PROXY'):
        os.environ[name] = ','.join(filter(None, (os.environ.get(name), '127.0.0.1', 'localhost')))


def is_taken(port: int) -> bool:
    """Whether a program listens on a port of 127.0.0.1."""
    with socket.socket() as client:
        return client.connect_ex(('127.0.0.1', port)) == 0


def answers(url: str) -> bool:
    """Whether an HTTP GET of `url` is answered by anything but a server error."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
