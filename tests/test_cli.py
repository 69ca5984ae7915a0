"""The command line: mistakes of the operator end in one line that says what to do."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import fakes
import pytest
import yaml

from magnum_lite import drivers, upgrade
from magnum_lite.conductor.task import Services

ROOT = pathlib.Path(__file__).parent.parent
COMMAND = pathlib.Path(sys.executable).parent / 'magnum-lite'


@pytest.mark.parametrize(
    ('text', 'argv', 'said'),
    [
        (
            '[api]\nport = abc\n',
            ['api'],
            '[api] port in {folder}/magnum-lite.conf must be a whole number from 0 to 65535',
        ),
        (
            '[conductor]\nlease = 5\n',
            ['api'],
            '[conductor] lease in {folder}/magnum-lite.conf must be a whole number of 10 or more',
        ),
        ('[keystore]\nbackend = vault\n', ['db', 'version'], 'must be one of database'),
        ('[heat_notifications]\nenabled = perhaps\n', ['api'], 'must be true or false'),
        ('[database]\nmax_retries = many\n', ['db', 'version'], 'Value for option max_retries'),
        (
            '[api]\nauth_strategy = noauth\nhost = 0.0.0.0\n',
            ['api'],
            'must be a loopback address and not 0.0.0.0',
        ),
        (
            '[database]\nconnection = sqlite:////nowhere/at/all.sqlite\n',
            ['db', 'upgrade'],
            'unable to open database file. See [database] connection',
        ),
        ('[drivers]\npath = /nowhere/at/all\n', ['drivers', 'check'], 'there is no such folder'),
        (
            '[DEFAULT]\nstate_path = {folder}\n',
            ['conductor'],
            '(umask 077; magnum-lite keystore-key > ',
        ),
    ],
)
def test_mistake_is_one_line(tmp_path: pathlib.Path, text: str, argv: list[str], said: str) -> None:
    conf = tmp_path / 'magnum-lite.conf'
    conf.write_text(text.format(folder=tmp_path))
    done = subprocess.run(
        [COMMAND, '--config-file', conf, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 1
    assert said.format(folder=tmp_path) in done.stderr
    assert 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('magnum-lite: ')


@pytest.mark.parametrize(
    'command',
    ['db version', 'doctor', 'status upgrade check', 'api', 'conductor', 'serve', 'under WSGI'],
)
def test_each_command_says_in_one_line_that_the_connection_is_wrong(
    tmp_path: pathlib.Path, command: str
) -> None:
    conf, key = tmp_path / 'magnum-lite.conf', tmp_path / 'keystore.key'
    conf.write_text(f'[DEFAULT]\nstate_path = {tmp_path}\n[database]\nconnection = u:geheim@h/x\n')
    key.touch(0o600)
    argv = [str(COMMAND), '--config-file', str(conf), *command.split()]
    if command == 'under WSGI':
        argv = [sys.executable, '-c', 'import magnum_lite.api.wsgi']
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {'MAGNUM_LITE_CONFIG': str(conf)},
    )

    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith('magnum-lite: The database cannot be used: [database] connection is not')
    assert 'geheim' not in line


def test_drivers_are_listed_with_their_labels(tmp_path: pathlib.Path) -> None:
    conf = tmp_path / 'conf'
    conf.write_text(
        '[drivers]\nlabel_defaults = fixed_network_cidr:10.9.0.0/24\ndisabled_drivers = '
        'swarm_cloud_init\n'
    )

    short, one = run(conf, 'drivers', 'list'), run(conf, 'drivers', 'list', 'k8s_cloud_init')
    [told] = json.loads(run(conf, 'drivers', 'list', 'k8s_cloud_init', '--json').stdout)

    assert (
        'os_distro' in short.stdout
        and '  built-in, ' in short.stdout
        and 'kube_tag' not in short.stdout
    )
    assert '\nswarm_cloud_init (disabled): ' in short.stdout
    assert '  kube_tag (default v' in one.stdout
    assert '  fixed_subnet_cidr (default 10.0.0.0/24, here 10.9.0.0/24, also ' in one.stdout
    assert told['labels']['fixed_subnet_cidr']['operator_default'] == '10.9.0.0/24'
    assert told['template_fields']['network_driver']['default'] == 'flannel'


def test_folder_that_is_not_configured_yet_is_checked(tmp_path: pathlib.Path) -> None:
    conf, mine = tmp_path / 'conf', tmp_path / 'own' / 'mine'
    conf.write_text('')
    shutil.copytree(drivers.BUILT_IN / 'k8s_cloud_init', mine)

    good = run(conf, 'drivers', 'check', str(mine))
    path = mine / 'cluster.yaml.j2'
    path.write_text(
        path.read_text().replace(
            'resources:\n', 'resources:\n{% if labels.octavia_flavor and typo %}{% endif %}\n', 1
        )
    )
    bad = run(conf, 'drivers', 'check', str(mine))
    none = run(conf, 'drivers', 'check', str(tmp_path))

    assert (good.returncode, good.stdout[:10]) == (0, 'mine: ok, '), good.stderr
    assert bad.returncode == 1
    assert bad.stdout.startswith(f'mine: driver folder {mine}: cluster.yaml.j2, line ')
    assert bad.stdout.endswith(": UndefinedError: 'typo' is undefined\n")
    assert (none.returncode, none.stderr) == (
        1,
        f'magnum-lite: {tmp_path} is no driver folder: it has no manifest.yaml\n',
    )


def test_what_would_be_sent_is_shown_without_secrets(tmp_path: pathlib.Path) -> None:
    conf = tmp_path / 'conf'
    conf.write_text('')
    (tmp_path / 'template').write_text(
        'coe: swarm\nimage_id: i\nflavor_id: f\nmaster_flavor_id: f\nexternal_network_id: public\n'
    )
    (tmp_path / 'cluster').write_text('{"master_count": 2, "node_count": 3}')
    (tmp_path / 'nodegroup').write_text('{"name": "big", "flavor_id": "huge"}')

    plain = run(conf, 'drivers', 'render', '--driver', 'k8s_cloud_init')
    node = run(conf, 'drivers', 'render', '--driver', 'k8s_cloud_init', '--user-data', 'worker')
    group = run(
        conf,
        'drivers',
        'render',
        '--template',
        str(tmp_path / 'template'),
        '--nodegroup',
        str(tmp_path / 'nodegroup'),
    )
    refused = run(
        conf,
        'drivers',
        'render',
        '--template',
        str(tmp_path / 'template'),
        '--cluster',
        str(tmp_path / 'cluster'),
    )

    *texts, parameters = plain.stdout.split('\n---\n')
    assert [text.splitlines()[0] for text in texts] == [
        '# template',
        *(f'# file {name}.yaml' for name in ('kube_masters', 'kube_minions', 'master', 'worker')),
    ]
    assert yaml.safe_load(parameters)['worker_user_data'] == '***'
    assert yaml.safe_load(texts[0])['parameters'].keys() >= yaml.safe_load(parameters).keys()
    assert '@@NODE_NAME@@' in node.stdout and 'write_files' in yaml.safe_load(node.stdout)
    assert 'flavor: "huge"' in group.stdout and 'network: OUTPUT network' in group.stdout
    assert (refused.returncode, refused.stderr) == (
        1,
        'magnum-lite: master_count must be odd, not 2. master_count must be 1 when '
        'master_lb_enabled is false.\n',
    )


def test_signals_while_a_signal_is_handled_stop_a_process_all_the_same() -> None:
    """At every call on the way of the first one, another one comes."""
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            textwrap.dedent("""
        import signal, sys, threading
        from oslo_config import cfg
        from magnum_lite import cli, config

        left = [None] * 100
        def again(*_):
            if left and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
                left.pop()
                signal.raise_signal(signal.SIGTERM)

        config.register(cfg.CONF)
        cfg.CONF([], project='magnum-lite', default_config_files=[])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.setprofile(again)
        cli._run_until_signal(cfg.CONF, None, None)
        """),
        ],
        timeout=60,
        check=False,
    )

    assert done.returncode == 0


def test_request_that_hangs_does_not_keep_a_process_from_its_end() -> None:
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            textwrap.dedent("""
        import os, signal, socket, sys, threading
        from cheroot import wsgi
        from oslo_config import cfg
        from magnum_lite import cli, config

        def hang(environ, start_response):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()

        config.register(cfg.CONF)
        cfg.CONF([], project='magnum-lite', default_config_files=[])
        cfg.CONF.set_override('graceful_shutdown_timeout', 0.5, 'conductor')
        server = wsgi.Server(('127.0.0.1', 0), hang, numthreads=2, shutdown_timeout=0.5)
        server.prepare()
        client = socket.create_connection(server.bind_addr)
        client.sendall(b'GET / HTTP/1.1\\r\\nHost: here\\r\\n\\r\\n')
        cli._run_until_signal(cfg.CONF, server, None)
        """),
        ],
        timeout=30,
        check=False,
    )

    assert done.returncode == 0


def run(conf: pathlib.Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, '--config-file', conf, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_upgrade_check_says_what_is_to_be_done_first(tmp_path: pathlib.Path) -> None:
    conf = tmp_path / 'magnum-lite.conf'
    conf.write_text(
        f'[DEFAULT]\nstate_path = {tmp_path}\n[trust]\ncluster_user_trust = '
        f'True\ntrustee_domain_id = x\n[oslo_policy]\npolicy_file = {tmp_path}/policy.json\n'
        '[keystone_auth]\nauth_section = keystone_authtoken\n[keystone_authtoken]\nauth_type = '
        'password\nauth_url = http://127.0.0.1:9\nusername = u\npassword = very-secret\n'
    )
    (tmp_path / 'policy.json').write_text('{"cluster:get": ""}')

    before = run(conf, 'status', 'upgrade', 'check', '--json')
    run(conf, 'db', 'upgrade')
    after = run(conf, 'status', 'upgrade', 'check', '--json')

    said = {
        check['check']: (check['result'], check['details'])
        for check in json.loads(before.stdout.splitlines()[-1])['checks']
    }
    assert before.returncode == 2, before.stderr
    assert said['Schema of the database'][1].endswith('Run: magnum-lite db upgrade')
    assert 'magnum-lite keystore-key' in said['Key file'][1]
    assert (
        said['Roles of the service user'][0] == 2
        and 'See [keystone_auth]' in said['Roles of the service user'][1]
    )
    assert said['Options of Magnum without effect'][0] == 1
    assert said['Options of Magnum without effect'][1].startswith(
        '[trust] cluster_user_trust without effect'
    )
    assert 'no such option' not in said['Roles of the service user'][1], (
        'a conductor shares that section, too'
    )
    assert said['Driver folders'] == (0, None)
    assert said['Policy file'][0] == 2
    assert 'very-secret' not in before.stdout + before.stderr
    assert json.loads(after.stdout.splitlines()[-1])['checks'][0]['result'] == 0


def test_upgrade_check_is_content_with_what_is_right(
    conductor_services: Services, cloud: fakes.FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = upgrade.Checks(
        conductor_services.conf, conductor_services.db, conductor_services.cloud
    )
    monkeypatch.setattr(cloud, 'list_service_roles', lambda: (['member'], []))

    results = {
        name: check(checks)
        for name, check in checks._upgrade_checks
        if name != 'Schema of the database'
    }

    assert results.pop('Roles of the service user').code == 1, (
        'it may not be able to grant itself roles'
    )
    assert {result.code for result in results.values()} == {0}, results


def test_the_samples_are_valid() -> None:
    validator = COMMAND.with_name('oslo-config-validator')
    for sample in sorted((ROOT / 'etc').glob('*.conf.sample')):
        done = subprocess.run(
            [
                validator,
                '--config-file',
                'etc/config-generator.conf',
                '--input-file',
                sample,
                '--fatal-warnings',
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which('systemd-analyze'), reason='systemd-analyze is not installed')
def test_the_units_are_hardened(tmp_path: pathlib.Path) -> None:
    for unit in sorted((ROOT / 'etc' / 'systemd').glob('*.service')):
        text = re.sub(r'/opt/magnum-lite/bin/\S+', '/bin/true', unit.read_text())
        (tmp_path / unit.name).write_text(text)
        subprocess.run(['systemd-analyze', 'verify', '--man=no', tmp_path / unit.name], check=True)
        subprocess.run(
            [
                'systemd-analyze',
                'security',
                '--offline=true',
                '--threshold=20',
                tmp_path / unit.name,
            ],
            check=True,
            capture_output=True,
        )
