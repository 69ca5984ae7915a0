"""magnum-lite as doc/install.md has an operator install it: a virtual environment of its own with
the package and uWSGI, a database and a user on MariaDB, a virtual host on RabbitMQ, a user in
Keystone, a configuration, the API under uWSGI and a conductor. Standard library only.

Other than there: everything is in one folder and runs as root, since a container has no systemd;
it listens on the loopback; and the catalogue has an entry for it already, at port 9511."""

import json
import secrets
import shutil
import subprocess
from pathlib import Path

from made import Made
from packages import install
from processes import Failed, Server, is_taken
from terminal import Terminal, say, wait_until

ROOT = Path(__file__).resolve().parents[2]
#: Of the database, the virtual host and the users there and in Keystone.
NAME = 'demo_magnum'
PORT = 9511
URL = f'http://127.0.0.1:{PORT}'
#: To come up, and until all that it stands on answers within its time: the machine may be busy.
START_S, READY_S = 120, 600
CONFIGURATION = """\
[DEFAULT]
transport_url = rabbit://{name}:{rabbit_password}@127.0.0.1:5672/{name}
state_path = {home}

[database]
connection = mysql+pymysql://{name}:{database_password}@127.0.0.1/{name}?charset=utf8mb4

[keystore]
key_file = {home}/keystore.key

[conductor]
watch_interval = 2

[health]
# Sooner than in a service with many clusters: the demo breaks a node and shows that it is seen.
interval = 5

[keystone_authtoken]
auth_type = password
auth_url = http://127.0.0.1:5000
www_authenticate_uri = http://127.0.0.1:5000
username = {name}
password = {service_password}
project_name = service
user_domain_id = default
project_domain_id = default

[keystone_auth]
auth_section = keystone_authtoken
region_name = RegionOne
"""


class Installation:
    """magnum-lite in a folder: `venv`, `etc`, `log`, `run`."""

    def __init__(self, home: Path, made: Made) -> None:
        self.home, self.made = home, made
        self.venv = home / 'venv'
        self.conf = home / 'etc' / 'magnum-lite.conf'
        self.ini = home / 'etc' / 'magnum-lite-api-uwsgi.ini'
        self.api = Server('magnum-lite-api', home)
        self.conductor = Server('magnum-lite-conductor', home)

    def install_package(self) -> None:
        """Make the virtual environment; does nothing if this source is in it. What runs of another
        one is stopped first. Raises Failed."""

        def begin(text: str) -> None:
            self.stop()
            say(f'magnum-lite: {text} (the package, PyMySQL and uWSGI)')

        # A copy, because a build writes into the folder that it builds.
        source = self.home / 'source'
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir(parents=True)
        for name in ('setup.cfg', 'pyproject.toml', 'constraints.txt', 'README.md', 'LICENSE'):
            shutil.copy(ROOT / name, source)
        ignored = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / 'magnum_lite', source / 'magnum_lite', ignore=ignored)
        install(
            self.venv,
            ['-c', source / 'constraints.txt', f'{source}[mysql]', 'pyuwsgi'],
            files=sorted(path for path in source.rglob('*') if path.is_file()),
            home=self.home,
            uv=self.home / 'uv',
            say=begin,
        )

    def set_up(self, terminal: Terminal) -> None:
        """Make database, virtual host, user and configuration once, and bring the schema up to
        date. Raises Failed."""
        terminal.secrets |= self._read_secrets()
        if not self.conf.exists():
            self._make_accounts(terminal)
            self._configure(terminal.secrets)
        terminal.run(f'{self._command("db upgrade")} && {self._command("status upgrade check")}')

    def _read_secrets(self) -> dict[str, str]:
        file = self.home / 'etc' / 'secrets.json'
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            kinds = ('DATABASE_PASSWORD', 'RABBIT_PASSWORD', 'SERVICE_PASSWORD')
            file.write_text(json.dumps({kind: secrets.token_hex(16) for kind in kinds}))
        return dict(json.loads(file.read_text()))

    def _make_accounts(self, terminal: Terminal) -> None:
        if self.made.names('database'):
            forget(terminal)  # what an attempt that was interrupted has left
        for kind in ('database', 'vhost', 'account'):
            self.made.add(kind, NAME)
        terminal.run(
            'mariadb -h 127.0.0.1 -u root <<END\n'
            f'CREATE DATABASE {NAME} CHARACTER SET utf8mb4;\n'
            f"CREATE USER '{NAME}'@'%' IDENTIFIED BY '$DATABASE_PASSWORD';\n"
            f"GRANT ALL ON {NAME}.* TO '{NAME}'@'%';\n"
            'END'
        )
        terminal.run(
            f'rabbitmqctl -q add_vhost {NAME} && '
            f'rabbitmqctl -q add_user {NAME} <<<"$RABBIT_PASSWORD" && '
            f"rabbitmqctl -q set_permissions -p {NAME} {NAME} '.*' '.*' '.*'",
            shown=False,
        )
        openstack = 'openstack --os-cloud testcloud-admin'
        add = f'role add --user {NAME} --user-domain default --project service'
        terminal.run(
            f'{openstack} user create --domain default --password "$SERVICE_PASSWORD" {NAME} && '
            '\\\n'
            f'{openstack} {add} admin && \\\n'
            f'{openstack} {add} service',
            shown=False,
        )

    def _configure(self, passwords: dict[str, str]) -> None:
        text = CONFIGURATION.format(
            name=NAME,
            home=self.home,
            **{kind.lower(): value for kind, value in passwords.items()},
        )
        ini = (ROOT / 'etc' / 'magnum-lite-api-uwsgi.ini').read_text()
        self.ini.write_text(ini.replace(f':{PORT}', f'127.0.0.1:{PORT}'))
        key = subprocess.run(
            [self.venv / 'bin' / 'magnum-lite', 'keystore-key'],
            capture_output=True,
            text=True,
            check=True,
        )
        for path, content in ((self.home / 'keystore.key', key.stdout), (self.conf, text)):
            path.touch(mode=0o600)
            path.write_text(content)
        say(f'magnum-lite: configured in {self.conf} (access is kept to root: it holds passwords)')

    def _command(self, words: str) -> str:
        return f'{self.venv}/bin/magnum-lite --config-file {self.conf} {words}'

    def start(self, terminal: Terminal) -> None:
        """Start API and conductor, which run on when the demo ends. Raises Failed."""
        if not self.api.pid():
            if is_taken(PORT):
                raise Failed(
                    f'Port {PORT}, where the catalogue says that magnum-lite is, is taken by '
                    f'another program. Find it with `ss -ltnp sport = :{PORT}` and stop it.'
                )
            say(f'$ MAGNUM_LITE_CONFIG={self.conf} {self.venv}/bin/uwsgi --ini {self.ini} &')
            self.api.start(
                [self.venv / 'bin' / 'uwsgi', '--ini', self.ini],
                variables={'MAGNUM_LITE_CONFIG': str(self.conf)},
            )
        if not self.conductor.pid():
            say(f'$ {self._command("conductor")} &')
            self.conductor.start(self._command('conductor').split())
        self.api.wait_for(URL, within_s=START_S)
        ready = f'curl -s --fail-with-body {URL}/healthcheck/ready'
        wait_until(
            lambda: terminal.ask(ready)[0] == 0,
            within_s=READY_S,
            what=lambda: f'magnum-lite is ready: {terminal.ask(ready)[1]}',
        )
        terminal.run(ready)

    def stop(self) -> None:
        """Stop API and conductor."""
        for server in (self.api, self.conductor):
            if server.stop():
                say(f'stopped {server.name}')

    def remove(self, terminal: Terminal) -> None:
        """Remove what was made of it in the cloud, the database and the broker, after `stop`."""
        if self.made.names('database'):
            forget(terminal)
            for kind in ('database', 'vhost', 'account'):
                self.made.remove(kind, NAME)
            say(f'removed database, virtual host and users {NAME}')


def forget(terminal: Terminal) -> None:
    """Remove database, virtual host and users as far as they are there, and MariaDB, RabbitMQ and
    Keystone, too."""
    drop = f"DROP DATABASE IF EXISTS {NAME}; DROP USER IF EXISTS '{NAME}'@'%'"
    for line in (
        f'mariadb -h 127.0.0.1 -u root -e "{drop}"',
        f'rabbitmqctl -q delete_vhost {NAME}',
        f'rabbitmqctl -q delete_user {NAME}',
        f'openstack --os-cloud testcloud-admin user delete {NAME}',
    ):
        terminal.ask(line)
