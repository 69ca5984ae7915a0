"""The install guide: every command block is run as it stands, and the service that comes of it
makes a cluster."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from conftest import AVAILABLE, SERVERS
from devstack.scratch import ROOT, Installed, Scratch, processes, registered, run, scratch
from functional.cloud import ON_A_CLOUD, Project, Sandbox, Say, ask
from functional.service import poll

pytest_plugins = ('functional.fixtures',)
HERE = pathlib.Path(__file__).parent
TOOLS = (
    'mysql',
    'rabbitmqctl',
    'openstack',
    'curl',
    'openssl',
    'unshare',
    'setpriv',
    'systemd-analyze',
)
pytestmark = [
    pytest.mark.timeout(1800),
    *ON_A_CLOUD,
    *(
        pytest.mark.skipif(not shutil.which(tool), reason=f'{tool} is not installed')
        for tool in TOOLS
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason='needs root'),
]
BLOCK = re.compile(r'^```(\w+)(?: (\w+))?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    """The command blocks of the guide, in their order, for one of the two databases."""
    guide = (ROOT / 'doc' / 'install.md').read_text()
    found = BLOCK.findall(guide)
    assert {language for language, _, _ in found} == {'sh'}
    other = {'mariadb': 'postgresql', 'postgresql': 'mariadb'}[kind]
    return [
        text
        for _, only, text in found
        if (only or ('mariadb' if text.startswith('mysql') else kind)) != other
    ]


@pytest.fixture(scope='module')
def made() -> Iterator[Scratch]:
    with scratch() as one:
        # The guide's port may be taken on this machine.
        for file in (one.folder / 'dest' / 'magnum-lite' / 'etc').glob('*.ini'):
            file.write_text(file.read_text().replace('9511', str(one.apache_port)))
        yield one


@pytest.fixture(scope='module')
def region(sandbox: Sandbox) -> Iterator[str]:
    with sandbox.region({}) as name:
        yield name


def remove(name: str, kind: str, sandbox: Sandbox) -> None:
    """What the guide has made, as far as it got."""
    with sa.create_engine(
        SERVERS[kind], isolation_level='AUTOCOMMIT', poolclass=sa.NullPool
    ).connect() as connection:
        user = f"'{name}'@'%%'" if kind == 'mariadb' else name
        connection.exec_driver_sql(f'DROP DATABASE IF EXISTS {name}')
        connection.exec_driver_sql(f'DROP USER IF EXISTS {user}')
    for what in ('vhost', 'user'):
        subprocess.run(['rabbitmqctl', '-q', f'delete_{what}', name], check=False)
    identity = sandbox.admin.identity
    for account in identity.users(name=name):
        identity.delete_user(account)
    for service in [one for one in identity.services() if one.name == name]:
        identity.delete_service(service)


@pytest.mark.parametrize('kind', [kind for kind in ('mariadb', 'postgresql') if kind in AVAILABLE])
def test_what_the_guide_says_ends_with_a_cluster_and_leaves_nothing(
    made: Scratch, region: str, kind: str, sandbox: Sandbox, project: Project, say: Say
) -> None:
    folder, name = made.folder, f'{made.database}_{kind[:5]}'
    go_on, waits = folder / 'go-on', folder / 'waits'
    said = [text.replace('9511', str(made.apache_port)) for text in blocks(kind)]
    last = next(i for i, text in enumerate(said) if 'systemctl stop' in text)
    # In the middle: the test makes a cluster, and tells the script to go on.
    said.insert(
        last,
        f'echo "$DATABASE_URL" >{waits}\n'
        f'timeout 900 bash -c "until [ -e {go_on} ]; do sleep 0.5; done"\nrm {go_on} {waits}\n',
    )
    (folder / 'guide.sh').write_text('\n'.join(said))
    env = {
        **os.environ,
        'OS_CLOUD': f'{sandbox.cloud_name}-admin',
        'REGION': region,
        'NAME': name,
        'KEYSTONE_URL': sandbox.admin.config.get_auth_args()['auth_url'],
        'PATH': f'/usr/sbin:/usr/bin:/sbin:/bin:{os.environ["PATH"]}',
    }
    log = folder / 'log' / f'guide-{kind}.log'
    with log.open('wb') as out:
        guide = subprocess.Popen(
            [
                'unshare',
                '--mount',
                'bash',
                str(HERE / 'host.sh'),
                str(folder),
                str(folder / 'guide.sh'),
            ],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env=env,
        )
    try:
        poll(
            lambda: waits.exists() or guide.poll() is not None,
            1200,
            lambda: f'the guide: {log.read_text()[-3000:]}',
        )
        assert guide.poll() is None, log.read_text()[-5000:]
        service = Installed(
            sandbox.cloud_name, f'http://127.0.0.1:{made.apache_port}', waits.read_text().strip()
        )
        cluster = ask(service, project, name='fn-install')
        cluster.play_nodes()
        say(f'installed as the guide says, on {kind}: {cluster.wait("CREATE_COMPLETE")["status"]}')
        cluster.delete()
        cluster.wait('GONE')
        cluster.assert_nothing_is_left()
        service.close()
        go_on.touch()
        assert guide.wait(300) == 0, log.read_text()[-5000:]
    except BaseException:
        for one in sorted((folder / 'log').iterdir()):
            print(f'--- {one.name}\n{one.read_text(errors="replace")[-5000:]}')
        raise
    finally:
        if guide.poll() is None:
            guide.terminate()
            guide.wait(100)
        if guide.returncode:
            remove(name, kind, sandbox)

    text = log.read_text()
    assert '"ready":true' in text and 'Result: Success' in text
    assert registered(sandbox, made, region) == {}
    assert poll(
        lambda: processes(folder) == [], 20, lambda: f'no process is left: {processes(folder)}'
    )
    with sa.create_engine(SERVERS[kind], poolclass=sa.NullPool).connect() as connection:
        listed = 'SHOW DATABASES' if kind == 'mariadb' else 'SELECT datname FROM pg_database'
        assert name not in [row[0] for row in connection.exec_driver_sql(listed)]
    assert name not in run('rabbitmqctl', '-q', 'list_vhosts', 'name').split()
    assert not pathlib.Path('/etc/magnum-lite').exists()
