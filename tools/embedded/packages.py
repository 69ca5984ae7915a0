"""Install packages into a virtual environment, for `tools/demo` and `tools/embedded/cloud`;
standard library only.

It uses uv, which takes a tenth of pip's time, or pip where uv does not run."""

import fcntl
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from processes import Failed, run


def install(
    venv: Path,
    arguments: Sequence[object],
    *,
    files: Sequence[Path],
    home: Path,
    uv: Path,
    say: Callable[[str], None],
) -> None:
    """Recreate `venv` and run `pip install ARGUMENTS` in it. Does nothing if the last call was the
    same.

    `files` are those whose content decides what is installed. `uv` is a folder for uv itself, which
    several venvs may share. The log is `home`/log/install.log. Raises Failed."""
    stamp = venv / '.installed'
    wanted = stamp_of(files, sys.version, venv, *arguments)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say(f'installing into {venv}')
    log = home / 'log' / 'install.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    python = venv / 'bin' / 'python'
    try:
        program = ensure_uv(uv, log, home=home)
        run(
            [program, 'venv', '--clear', '--python', sys.executable, venv],
            log,
            what='uv',
            home=home,
        )
        run([program, 'pip', 'install', '--python', python, *arguments], log, what='uv', home=home)
    except Failed:
        make_venv(venv, log, home=home)
        run(
            [python, '-m', 'pip', 'install', '-q', *arguments],
            log,
            what='Installing packages',
            home=home,
        )
    stamp.write_text(wanted)


def ensure_uv(folder: Path, log: Path, *, home: Path) -> Path:
    """Return the path of uv, which is installed into a venv of its own once. Raises Failed."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / 'bin' / 'uv'
    with (folder / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            make_venv(folder, log, home=home)
            run(
                [folder / 'bin' / 'python', '-m', 'pip', 'install', '-q', 'uv'],
                log,
                what='Installing uv',
                home=home,
            )
    return program


def make_venv(venv: Path, log: Path, *, home: Path) -> None:
    """Create a virtual environment with pip in it. Raises Failed."""
    try:
        run(
            [sys.executable, '-m', 'venv', venv],
            log,
            what='Making a virtual environment',
            home=home,
        )
    except Failed as error:
        raise Failed(
            f'{error} Some systems have it in a package of its own, such as python3-venv.', log
        ) from error


def stamp_of(files: Sequence[Path], *more: object) -> str:
    """Return a text that changes when a file's content, or one of `more`, does."""
    return hashlib.sha256(
        '\0'.join([*(file.read_text() for file in files), *map(str, more)]).encode()
    ).hexdigest()
