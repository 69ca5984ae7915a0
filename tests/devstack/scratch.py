"""A scratch environment in which installations are tried: folders, Apache, names in Keystone, a
database, a broker.

The cloud is real, and shared with others: all that is made in it has a name of its own, and a
region of its own holds the endpoints. `Installed` is what `functional.cloud` needs of a service
that was installed in another way than by `functional.service`."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import requests
import sqlalchemy as sa
from functional import service as services
from functional.cloud import Sandbox
from functional.service import Service, connect, free_port, unique_name

ROOT = pathlib.Path(__file__).parents[2]
MODULES = ('mpm_event', 'authz_core', 'proxy', 'proxy_uwsgi')


class Installed(Service):
    """A service at an address, with its database."""

    def __init__(self, cloud_name: str, url: str, database_url: str) -> None:
        self.url, self.cloud_name = url, cloud_name
        self._connection = connect(cloud_name)
        self.engine = sa.create_engine(database_url, poolclass=sa.NullPool)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()


@dataclass(frozen=True)
class Scratch:
    """Where everything is. `name` begins all names that are made outside the folder."""

    folder: pathlib.Path
    name: str
    password: str
    apache_port: int

    @property
    def database(self) -> str:
        """The name of the database, and of its user."""
        return self.name.replace('-', '_')

    @property
    def database_url(self) -> str:
        """Where the service's database is."""
        return f'mysql+pymysql://{self.database}:{self.password}@127.0.0.1/{self.database}?charset=utf8'


@contextlib.contextmanager
def scratch() -> Iterator[Scratch]:
    """A folder that Apache's user may enter, with a checkout, an Apache that does not run, and a
    database user."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix='magnum-lite-scratch-'))
    folder.chmod(0o755)
    made = Scratch(folder, unique_name(), secrets.token_hex(8), free_port())
    for name in ('apache/sites', 'run', 'log', 'etc', 'data', 'dest'):
        (folder / name).mkdir(parents=True)
    ignored = shutil.ignore_patterns(
        '.git', '.test', '.demo', '.venv', '__pycache__', '*.egg-info', 'build'
    )
    shutil.copytree(ROOT, folder / 'dest' / 'magnum-lite', ignore=ignored)
    write_apache(made)
    with _database_user(made):
        try:
            yield made
        finally:
            shutil.rmtree(folder)


def write_apache(made: Scratch) -> None:
    """An Apache for the folder, as a distribution has one for /etc/apache2."""
    home = made.folder / 'apache'
    modules = pathlib.Path('/usr/lib/apache2/modules')
    (home / 'apache2.conf').write_text(
        '\n'.join(
            [
                f'ServerRoot {home}',
                'ServerName localhost',
                f'Listen 127.0.0.1:{made.apache_port}',
                f'PidFile {home}/pid',
                f'ErrorLog {made.folder}/log/apache.log',
                'User www-data',
                'Group www-data',
                *(f'LoadModule {name}_module {modules}/mod_{name}.so' for name in MODULES),
                f'IncludeOptional {home}/sites/*.conf',
                '',
            ]
        )
    )


@contextlib.contextmanager
def _database_user(made: Scratch) -> Iterator[None]:
    server = sa.create_engine(services.MARIADB, isolation_level='AUTOCOMMIT', poolclass=sa.NullPool)

    def run(*statements: str) -> None:
        with server.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    user = f"'{made.database}'@'%%'"
    run(
        f"CREATE USER {user} IDENTIFIED BY '{made.password}'",
        f'GRANT ALL ON `{made.database}`.* TO {user}',
    )
    try:
        yield
    finally:
        run(f'DROP USER {user}', f'DROP DATABASE IF EXISTS {made.database}')


def run(
    *words: str | pathlib.Path, env: dict[str, str] | None = None, timeout_s: float = 600
) -> str:
    """Run a command and return what it prints. Raises AssertionError with that if it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f'{" ".join(map(str, words))}: {done.returncode}\n{done.stdout}'
    return done.stdout


def stop_apache(made: Scratch) -> None:
    """End Apache, if it runs."""
    if (made.folder / 'apache' / 'pid').exists():
        subprocess.run(
            ['apache2', '-f', str(made.folder / 'apache' / 'apache2.conf'), '-k', 'stop'],
            check=False,
        )
        services.poll(lambda: not (made.folder / 'apache' / 'pid').exists(), 30, 'Apache ends')


def registered(sandbox: Sandbox, made: Scratch, region: str) -> dict[str, list[str]]:
    """What there is in Keystone under our names."""
    identity = sandbox.admin.identity
    kinds = {s.id: s.type for s in identity.services()}
    found = {
        'users': [u.name for u in identity.users() if made.name in u.name],
        'domains': [d.name for d in identity.domains() if made.name in d.name],
        'endpoints': sorted(
            f'{e.interface} {e.url}'
            for e in identity.endpoints()
            if e.region_id == region and kinds.get(e.service_id) == 'container-infra'
        ),
    }
    return {kind: things for kind, things in found.items() if things}


def processes(folder: pathlib.Path) -> list[str]:
    """Command lines of the processes that name the folder."""
    found = []
    for entry in pathlib.Path('/proc').iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (
                    (entry / 'cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace')
                )
                if str(folder) in line:
                    found.append(line)
    return found


def get(url: str, timeout_s: float = 20) -> requests.Response:
    """What an address answers."""
    return requests.get(url, timeout=timeout_s)
