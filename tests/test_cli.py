"""The command line: mistakes of the operator end in one line that says what to do."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

COMMAND = pathlib.Path(sys.executable).parent / 'magnum-lite'


@pytest.mark.parametrize(('text', 'argv', 'said'), [
    ('[api]\nport = abc\n', ['api'], '[api] port in {folder}/magnum-lite.conf must be a whole number from 0 to 65535'),
    ('[conductor]\nlease = 5\n', ['api'], '[conductor] lease in {folder}/magnum-lite.conf must be a whole number of '
     '10 or more'),
    ('[keystore]\nbackend = vault\n', ['db', 'version'], 'must be one of database'),
    ('[heat_notifications]\nenabled = perhaps\n', ['api'], 'must be true or false'),
    ('[database]\nmax_retries = many\n', ['db', 'version'], 'Value for option max_retries'),
    ('[api]\nauth_strategy = noauth\nhost = 0.0.0.0\n', ['api'], 'must be a loopback address and not 0.0.0.0'),
    ('[database]\nconnection = sqlite:////nowhere/at/all.sqlite\n', ['db', 'upgrade'],
     'unable to open database file. See [database] connection'),
    ('[drivers]\npath = /nowhere/at/all\n', ['drivers', 'check'], 'there is no such folder'),
    ('[DEFAULT]\nstate_path = {folder}\n', ['conductor'], '(umask 077; magnum-lite keystore-key > '),
])
def test_mistake_is_one_line(tmp_path: pathlib.Path, text: str, argv: list[str], said: str) -> None:
    conf = tmp_path / 'magnum-lite.conf'
    conf.write_text(text.format(folder=tmp_path))
    done = subprocess.run([COMMAND, '--config-file', conf, *argv], capture_output=True, text=True, check=False,
                          timeout=60)

    assert done.returncode == 1
    assert said.format(folder=tmp_path) in done.stderr
    assert 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('magnum-lite: ')


def test_drivers_are_listed_with_their_labels() -> None:
    done = subprocess.run([COMMAND, 'drivers', 'list'], capture_output=True, text=True, check=True, timeout=60)

    assert 'os_distro' in done.stdout and 'kube_tag (default ' in done.stdout
