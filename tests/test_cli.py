"""The command line: mistakes of the operator end in one line that says what to do."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap

import pytest

COMMAND = pathlib.Path(sys.executable).parent / 'magnum-lite'


@pytest.mark.parametrize(('text', 'argv', 'said'), [
    ('[api]\nport = abc\n', ['api'], 'Value for option port'),
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
    assert said in done.stderr
    assert 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('magnum-lite: ')


def test_drivers_are_listed_with_their_labels() -> None:
    done = subprocess.run([COMMAND, 'drivers', 'list'], capture_output=True, text=True, check=True, timeout=60)

    assert 'os_distro' in done.stdout and 'kube_tag (default ' in done.stdout


def test_signals_while_a_signal_is_handled_stop_a_process_all_the_same() -> None:
    """At every call on the way of the first one, another one comes."""
    done = subprocess.run([sys.executable, '-c', textwrap.dedent("""
        import signal, sys, threading
        from oslo_config import cfg
        from magnum_lite import cli, config

        left = [None] * 100
        def again(*_):
            if left:
                left.pop()
                signal.raise_signal(signal.SIGTERM)

        config.register(cfg.CONF)
        cfg.CONF([], project='magnum-lite', default_config_files=[])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.setprofile(again)
        cli._until_told(cfg.CONF, None, None)
        """)], timeout=60, check=False)

    assert done.returncode == 0
