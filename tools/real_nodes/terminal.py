"""What the demo prints, and the commands that it runs as a person would type them; standard library
only.

`tools/demo` and everything in this folder print with `say`, so that all lines carry the seconds
since the start."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from processes import Failed

BEGUN = time.monotonic()
#: Between two looks at something that is waited for.
POLL_S = 1.0
#: How much of what a command prints is shown.
SHOWN_LINES = 40


def say(text: str) -> None:
    """Print a line, or several, behind the seconds since the start."""
    print(f'[{time.monotonic() - BEGUN:4.0f} s] ' + text.replace('\n', '\n         '), flush=True)


def relay(lines: Iterable[str], prefix: str = '') -> str:
    """Print lines as they come, without times of their own; return the last 15."""
    kept: list[str] = []
    for line in filter(str.strip, lines):
        text = re.sub(r'^\[ *\d+ ?s\] ', '', line.rstrip())
        say(prefix + text)
        kept = [*kept[-14:], text]
    return '\n'.join(kept)


class Terminal:
    """Runs commands with bash, in the checkout, and prints each before it runs it.

    `variables` are the environment that a person needs to run the same; `secrets` are in it, too,
    so that a command names them and does not show them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}
        self.secrets: dict[str, str] = {}

    def set(self, **variables: str) -> None:
        """Set variables for the commands that follow, and print that."""
        for name, value in variables.items():
            say(f'$ export {name}={value}')
            self.variables[name] = os.path.expandvars(value)

    def environment(self) -> dict[str, str]:
        """The environment of commands: nothing of the caller's cloud or Python."""
        unwanted = ('OS_', 'PYTHON', 'VIRTUAL_ENV', 'DOCKER_', 'KUBECONFIG')
        kept = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        # Clients ask for the kind of shell, and have no default.
        return {'SHELL': '/bin/bash', **kept, **self.variables, **self.secrets}

    def ask(self, line: str, *, timeout_s: float = 60) -> tuple[int, str]:
        """Run a command without a word and return its exit code and all that it printed; 124 if it
        took too long."""
        try:
            done = subprocess.run(
                ['bash', '-c', f'set -o pipefail; {line}'],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b''
            return 124, said.decode(errors='replace') if isinstance(said, bytes) else said
        return done.returncode, done.stdout

    def run(self, line: str, *, timeout_s: float = 300, shown: bool = True) -> str:
        """Print a command, run it, print and return what it prints. Raises Failed with that if it
        fails; `shown`: False for what holds a key."""
        say(f'$ {line}')
        code, text = self.ask(line, timeout_s=timeout_s)
        if code:
            name = line.split('\n')[0]
            raise Failed(f'This command ended with {code}: {name}\n{text.strip()}')
        if shown and text.strip():
            lines = text.rstrip().splitlines()
            more = (
                [f'... {len(lines) - SHOWN_LINES} more lines'] if len(lines) > SHOWN_LINES else []
            )
            say('\n'.join([*lines[:SHOWN_LINES], *more]))
        return text

    def stream(self, argv: list[object], *, what: str, prefix: str = '') -> None:
        """Run a program that takes long and print its lines as they come. Raises Failed, which
        names `what` did not work."""
        with subprocess.Popen(
            [str(word) for word in argv],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        ) as process:
            assert process.stdout
            said = relay(process.stdout, prefix)
        if process.returncode:
            raise Failed(f'{what} (exit code {process.returncode}):\n{said}')


def wait_until(look: Callable[[], bool], *, within_s: float, what: Callable[[], str]) -> None:
    """Look once a second until it is so. Raises Failed, which says `what` was waited for."""
    end = time.monotonic() + within_s
    while not look():
        if time.monotonic() > end:
            raise Failed(f'Not within {within_s:.0f} s: {what()}')
        time.sleep(POLL_S)
