"""The DevStack plugin, through all its phases, against the Keystone, the database and the broker of
a real cloud.

`run.sh` calls the plugin as stack.sh, unstack.sh and clean.sh do, and `standins.sh` is as much of
DevStack as the plugin uses. The service that the plugin has configured then does the main job,
under uWSGI behind Apache. At the end nothing is left: no process, no file, no database, no virtual
host, no entry in Keystone."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
import yaml
from devstack.scratch import (
    ROOT,
    Installed,
    Scratch,
    get,
    processes,
    registered,
    run,
    scratch,
    stop_apache,
)
from functional import service as services
from functional.cloud import ON_A_CLOUD, Project, Sandbox, Say, ask
from functional.service import poll

pytest_plugins = ('functional.fixtures',)
HERE = pathlib.Path(__file__).parent
TOOLS = ('apache2', 'mysql', 'rabbitmqctl', 'openstack', 'curl')
pytestmark = [
    pytest.mark.timeout(1800),
    *ON_A_CLOUD,
    *(
        pytest.mark.skipif(not shutil.which(tool), reason=f'{tool} is not installed')
        for tool in TOOLS
    ),
]
SCRIPTS = [
    ROOT / 'devstack' / 'plugin.sh',
    ROOT / 'devstack' / 'settings',
    ROOT / 'devstack' / 'lib' / 'magnum-lite',
    HERE / 'run.sh',
    HERE / 'standins.sh',
]


@pytest.fixture(scope='module')
def made() -> Iterator[Scratch]:
    with scratch() as one:
        yield one
        stop_apache(one)


@pytest.fixture(scope='module')
def region(sandbox: Sandbox) -> Iterator[str]:
    with sandbox.region({}) as name:
        yield name


@pytest.fixture(scope='module')
def stack(made: Scratch, region: str, sandbox: Sandbox) -> Iterator[dict[str, str]]:
    """What local.conf and stackrc set; the environment of the phases. Whatever happens, the plugin
    cleans up."""
    folder, admin = made.folder, sandbox.cloud_name + '-admin'
    clouds = yaml.safe_load(pathlib.Path(os.environ['OS_CLIENT_CONFIG_FILE']).read_text())
    (folder / 'clouds.yaml').write_text(
        yaml.safe_dump(
            {
                'clouds': {
                    'devstack-system-admin': {**clouds['clouds'][admin], 'region_name': region}
                }
            }
        )
    )
    bin_folder = pathlib.Path(sys.executable).parent
    broker = sa.make_url(services.RABBITMQ)
    values = {
        'DEST': folder / 'dest',
        'DATA_DIR': folder / 'data',
        'STACK_USER': 'root',
        'SERVICE_HOST': '127.0.0.1',
        'SERVICE_PROTOCOL': 'http',
        'SERVICE_TIMEOUT': 60,
        'API_WORKERS': 2,
        'WORKER_TIMEOUT': 80,
        'ENABLE_DEBUG_LOG_LEVEL': 'False',
        'REGION_NAME': region,
        'ENABLED_SERVICES': 'key,mysql,rabbit,h-eng',
        'DATABASE_BACKENDS': ' mysql postgresql',
        'DATABASE_TYPE': 'mysql',
        'DATABASE_USER': made.database,
        'DATABASE_PASSWORD': made.password,
        'DATABASE_HOST': '127.0.0.1',
        'RABBIT_USERID': broker.username,
        'RABBIT_PASSWORD': broker.password,
        'RABBIT_HOST': broker.host,
        'SERVICE_PASSWORD': made.password,
        'SERVICE_PROJECT_NAME': 'service',
        'SERVICE_DOMAIN_NAME': 'Default',
        'SSL_BUNDLE_FILE': '',
        'IMAGE_URLS': '',
        'KEYSTONE_SERVICE_URI': sandbox.admin.config.get_auth_args()['auth_url'],
        'MEMCACHE_SERVERS': '',
        'PYTHON': sys.executable,
        'UV': bin_folder / 'uv',
        'MAGNUM_LITE_CONF_DIR': folder / 'etc' / 'magnum-lite',
        'MAGNUM_LITE_USER': made.name,
        'MAGNUM_LITE_DOMAIN': made.name,
        'MAGNUM_LITE_DATABASE': made.database,
        'MAGNUM_LITE_VHOST': made.name,
        'MAGNUM_LITE_URL': f'http://127.0.0.1:{made.apache_port}/container-infra',
    }
    (folder / 'localrc').write_text(
        ''.join(f'{name}={shlex.quote(str(value))}\n' for name, value in values.items())
    )
    # As local.conf's [[post-config|...]] has it: the broker's notifications of Heat belong to
    # others here.
    (folder / 'post-config').write_text(
        'heat_notifications enabled False\nconductor tick 5\n'
        'conductor watch_interval 2\nDEFAULT use_json True\n'
    )
    run(bin_folder / 'uv', 'venv', '-q', '-p', sys.executable, folder / 'venv')
    run(
        bin_folder / 'uv',
        'pip',
        'install',
        '-q',
        '-p',
        folder / 'venv' / 'bin' / 'python',
        'pyuwsgi',
        'PyMySQL',
        '-c',
        ROOT / 'constraints.txt',
    )
    env = {
        'OS_CLIENT_CONFIG_FILE': str(folder / 'clouds.yaml'),
        'PATH': f'{folder}/venv/bin:{os.environ["PATH"]}',
    }
    yield env
    phases(made, env, 'unstack', 'clean')


def phases(made: Scratch, env: dict[str, str], *names: str) -> str:
    return run('bash', HERE / 'run.sh', made.folder, *names, env=env)


def has_report(log: pathlib.Path) -> bool:
    """Whether a process has written into its log what its threads do."""
    return 'Guru Meditation' in log.read_text()


def test_the_scripts_are_clean() -> None:
    bin_folder = pathlib.Path(sys.executable).parent

    run(bin_folder / 'shellcheck', '-S', 'style', '-x', '-P', ROOT, *SCRIPTS)
    run(bin_folder / 'bashate', '--max-line-length', '120', *SCRIPTS[:3])


def test_the_plugin_installs_a_service_that_makes_clusters_and_removes_all_of_it(
    made: Scratch, stack: dict[str, str], region: str, sandbox: Sandbox, project: Project, say: Say
) -> None:
    folder = made.folder
    url = f'http://127.0.0.1:{made.apache_port}/container-infra'
    try:
        phases(
            made, stack, 'stack install', 'stack post-config', 'stack extra', 'stack test-config'
        )
        found = registered(sandbox, made, region)
        assert sorted(found['endpoints']) == [
            f'{kind} {url}/v1' for kind in ('admin', 'internal', 'public')
        ]
        assert sorted(found) == ['domains', 'endpoints', 'users']
        run(
            folder / 'venv' / 'bin' / 'oslo-config-validator',
            '--config-file',
            ROOT / 'etc' / 'config-generator.conf',
            '--input-file',
            folder / 'etc' / 'magnum-lite' / 'magnum-lite.conf',
        )
        poll(
            lambda: get(f'{url}/healthcheck/ready').status_code == 200,
            60,
            lambda: f'it is ready: {get(f"{url}/healthcheck/ready").text}',
        )
        assert get(url).json()['versions'][0]['links'][0]['href'] == f'{url}/v1/'

        service = Installed(sandbox.cloud_name, url, made.database_url)
        cluster = ask(service, project, name='fn-devstack')
        cluster.play_nodes()
        shown = cluster.wait('CREATE_COMPLETE')
        say(
            f'{shown["name"]} under uWSGI behind Apache: {shown["status"]}, '
            f'{shown["links"][0]["href"]}'
        )
        assert shown['links'][0]['href'] == f'{url}/v1/clusters/{cluster.uuid}'
        (folder / 'data' / 'magnum-lite' / 'report').touch()
        for log in ('magnum-lite-api', 'magnum-lite-cond'):
            path = folder / 'log' / f'{log}.log'
            poll(functools.partial(has_report, path), 60, f'{log} reports')
        lines = [
            json.loads(line)
            for line in (folder / 'log' / 'magnum-lite-cond.log').read_text().splitlines()
            if line.startswith('{')
        ]
        [done] = [
            line['context'] for line in lines if line['message'].endswith('is CREATE_COMPLETE')
        ]
        [asked] = service.rows('SELECT uuid, request_id FROM operations')
        assert done['cluster_uuid'] == cluster.uuid
        assert (done['operation_id'], done['request_id']) == (asked['uuid'], asked['request_id'])
        cluster.delete()
        cluster.wait('GONE')
        cluster.assert_nothing_is_left()
        service.close()
    except BaseException:
        for path in sorted((folder / 'log').iterdir()):
            print(f'--- {path.name}\n{path.read_text(errors="replace")[-6000:]}')
        raise

    # The second run of a plugin finds what the first one has made.
    phases(made, stack, 'unstack')
    assert [line for line in processes(folder) if 'magnum' in line.replace(str(folder), '')] == []
    key = (folder / 'data' / 'magnum-lite' / 'keystore.key').read_text()
    phases(made, stack, 'stack install', 'stack post-config', 'stack extra')
    assert get(f'{url}/healthcheck').text == 'OK'
    assert (folder / 'data' / 'magnum-lite' / 'keystore.key').read_text() == key
    assert registered(sandbox, made, region) == found
    phases(made, stack, 'unstack', 'clean')
    stop_apache(made)

    assert registered(sandbox, made, region) == {}
    assert poll(
        lambda: processes(folder) == [], 20, lambda: f'no process is left: {processes(folder)}'
    )
    assert [
        path.name for name in ('etc', 'data', 'apache/sites') for path in (folder / name).iterdir()
    ] == []
    with sa.create_engine(services.MARIADB, poolclass=sa.NullPool).connect() as connection:
        assert made.database not in sa.inspect(connection).get_schema_names()
    assert made.name not in run('rabbitmqctl', '-q', 'list_vhosts', 'name').split()


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        (
            {'ENABLED_SERVICES': 'key,mysql,rabbit,magnum-api'},
            'Magnum and magnum-lite are both enabled',
        ),
        ({'DISABLED_SERVICES': 'magnum-lite-api'}, 'Set MAGNUM_LITE_KEYSTORE_KEY'),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_installed(
    made: Scratch, stack: dict[str, str], settings: dict[str, str], said: str
) -> None:
    localrc = made.folder / 'localrc'
    text = localrc.read_text()
    localrc.write_text(text + ''.join(f'{k}={v}\n' for k, v in settings.items()))

    with pytest.raises(AssertionError, match=said):
        phases(made, stack, 'stack install')
    localrc.write_text(text)
