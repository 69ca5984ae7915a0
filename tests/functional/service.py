"""Start magnum-lite as an operator does: one API process, conductors, a database and a broker, on a
real cloud.

    service = start_service('mycloud', folder)
    status, body = service.request('POST', '/v1/clusters', {...})
    service.wait(body['uuid'], 'CREATE_COMPLETE', timeout_s=300)
    service.stop()

The cloud is an entry of clouds.yaml, and the service's own identity the entry of the same name with
`-magnum` behind it; MAGNUM_LITE_OS_CLOUD names another. A database on MariaDB and a virtual host on
RabbitMQ are made for the service and removed when it stops, so that several can run beside each
other without taking each other's messages."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import openstack.connection
import requests
import sqlalchemy as sa
from openstack import config as cloud_config
from oslo_config import cfg

from magnum_lite import certs, config, db, keystore, models

MARIADB = os.environ.get('TEST_MARIADB', 'mysql+pymysql://root@127.0.0.1:3306/?charset=utf8mb4')
RABBITMQ = os.environ.get('TEST_RABBITMQ', 'rabbit://guest:guest@127.0.0.1:5672/')
#: Beginning of every name that is made outside the folder: what a killed run leaves behind can be
#: told by it.
PREFIX = 'fn-'
#: Seconds that a process may take to come up; the machine may be busy.
START_S = 90
#: Seconds that a process may take to stop. This one is a promise of the product.
STOP_S = 10
#: Seconds for a process to write down what its threads do.
REPORT_S = 3
VERSION = {'OpenStack-API-Version': 'container-infra latest'}

Extra = Mapping[str, Mapping[str, Any]]


def unique_name() -> str:
    """A name that tells what made it, and when: see `is_old`."""
    return f'{PREFIX}{int(time.time())}-{secrets.token_hex(3)}'


def is_old(name: str) -> bool:
    """Whether a name is one of ours from more than an hour ago, so that no run can be using it any
    more."""
    parts = name.replace('_', '-').split('-')
    return (
        name.replace('_', '-').startswith(PREFIX)
        and parts[1].isdigit()
        and time.time() - int(parts[1]) > 3600
    )


def poll(
    look: Callable[[], Any],
    timeout_s: float,
    what: str | Callable[[], str],
    *,
    every_s: float = 0.5,
) -> Any:
    """Look until something true comes, and return it. Raises AssertionError with `what` was waited
    for."""
    end = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(
                f'not within {timeout_s:.0f} s: {what if isinstance(what, str) else what()}'
            )
        time.sleep(every_s)


def answers(url: str) -> bool:
    """Whether something listens at the address of a database or broker."""
    parsed = sa.make_url(url)
    with (
        contextlib.suppress(OSError),
        socket.create_connection((parsed.host or '', parsed.port or 0), timeout=2),
    ):
        return True
    return False


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.create_server(('127.0.0.1', 0)) as made:
        return int(made.getsockname()[1])


def connect(
    cloud_name: str, clouds_file: pathlib.Path | None = None
) -> openstack.connection.Connection:
    """A connection to a cloud that clouds.yaml has."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the SDK's own settings
        files = [str(clouds_file)] if clouds_file else None
        region = cloud_config.OpenStackConfig(config_files=files, load_envvars=not files).get_one(
            cloud_name
        )
        return openstack.connection.Connection(config=region)


# -- what a service stands on ----------------------------------------------------------------------


@contextlib.contextmanager
def own_database(folder: pathlib.Path) -> Iterator[str]:
    """The URL of an empty database on MariaDB, or of a SQLite file where none answers."""
    if not answers(MARIADB):
        yield f'sqlite:///{folder}/magnum-lite.sqlite'
        return
    server = sa.create_engine(MARIADB, isolation_level='AUTOCOMMIT', poolclass=sa.NullPool)
    name = unique_name().replace('-', '_')
    with server.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE {name}'))
    try:
        yield sa.make_url(MARIADB).set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            connection.execute(sa.text(f'DROP DATABASE IF EXISTS {name}'))


def _rabbitmqctl(*words: str) -> str | None:
    """What RabbitMQ's own command says, None if it cannot or may not."""
    found = shutil.which('rabbitmqctl')
    if not found:
        return None
    done = subprocess.run([found, '-q', *words], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


@contextlib.contextmanager
def own_vhost() -> Iterator[str]:
    """The URL of a virtual host of the broker; of the default one where we may not make any."""
    if not answers(RABBITMQ):
        raise RuntimeError('No RabbitMQ answers. Start one, or name it with TEST_RABBITMQ.')
    name = unique_name()
    if _rabbitmqctl('add_vhost', name) is None:
        yield RABBITMQ
        return
    try:
        _rabbitmqctl(
            'set_permissions',
            '-p',
            name,
            sa.make_url(RABBITMQ).username or 'guest',
            '.*',
            '.*',
            '.*',
        )
        yield RABBITMQ.rstrip('/') + f'/{name}'
    finally:
        _rabbitmqctl('delete_vhost', name)


def remove_leftovers() -> None:
    """Remove databases and virtual hosts of runs that were killed more than an hour ago."""
    for name in filter(is_old, (_rabbitmqctl('list_vhosts', 'name') or '').split()):
        _rabbitmqctl('delete_vhost', name)
    if answers(MARIADB):
        server = sa.create_engine(MARIADB, isolation_level='AUTOCOMMIT', poolclass=sa.NullPool)
        with server.connect() as connection:
            for name in filter(is_old, sa.inspect(connection).get_schema_names()):
                connection.execute(sa.text(f'DROP DATABASE {name}'))


def _identity(cloud_name: str) -> dict[str, Any]:
    """keystoneauth's options of an entry of clouds.yaml, as they stand in a section of
    oslo.config."""
    region = connect(cloud_name).config
    options: dict[str, Any] = {'auth_type': 'password', **region.get_auth_args()}
    verify, _ = region.get_requests_verify_args()
    if isinstance(verify, str):
        options['cafile'] = verify
    elif not verify:
        options['insecure'] = True
    if region.get_region_name():
        options['region_name'] = region.get_region_name()
    return options


def _write_conf(path: pathlib.Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
    lines = []
    for section, options in sections.items():
        lines.append(f'[{section}]')
        for name, value in options.items():
            for one in value if isinstance(value, list) else [value]:
                lines.append(f'{name} = {str(one).replace("$", "$$")}')
        lines.append('')
    path.write_text('\n'.join(lines))
    path.chmod(0o600)


def command(*words: str) -> list[str]:
    """How to run `magnum-lite` of the environment that runs the tests."""
    script = pathlib.Path(sys.executable).with_name('magnum-lite')
    if script.exists():
        return [sys.executable, str(script), *words]
    return [
        sys.executable,
        '-c',
        'from magnum_lite import cli; raise SystemExit(cli.main())',
        *words,
    ]


# -- the service -----------------------------------------------------------------------------------


class Process:
    """One process of the service, with its log."""

    def __init__(self, kind: str, log: pathlib.Path, conf_file: pathlib.Path) -> None:
        self.kind, self.log = kind, log
        self.shown = 0
        with log.open('ab') as out:
            self.popen = subprocess.Popen(
                command('--config-file', str(conf_file), kind),
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )

    @property
    def text(self) -> str:
        """All that it has logged."""
        return self.log.read_text(errors='replace')

    def fresh_log(self) -> str:
        """What it has logged since this was last asked, the last 200 lines of it."""
        text = self.text
        fresh, self.shown = text[self.shown :], len(text)
        return '\n'.join(fresh.splitlines()[-200:])

    def kill(self) -> None:
        """End it as a power cut does."""
        self.popen.kill()
        self.popen.wait()

    def terminate(self) -> float:
        """Tell it to stop, and return how many seconds that took. Raises AssertionError if it is
        too slow or fails."""
        begun = time.monotonic()
        self.popen.terminate()
        try:
            status = self.popen.wait(STOP_S + 20)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGUSR2)  # it says what its threads do
            time.sleep(REPORT_S)
            self.kill()
            raise AssertionError(f'the {self.kind} did not stop at all:\n{self.text}') from None
        took_s = time.monotonic() - begun
        assert took_s <= STOP_S, f'the {self.kind} took {took_s:.1f} s to stop:\n{self.fresh_log()}'
        assert status == 0, f'the {self.kind} ended with status {status}:\n{self.fresh_log()}'
        return took_s


class Service:
    """magnum-lite that runs. Made by `start_service`."""

    def __init__(
        self,
        cloud_name: str,
        folder: pathlib.Path,
        *,
        database_url: str,
        transport_url: str,
        extra: Extra,
        undo: contextlib.ExitStack,
    ) -> None:
        self.cloud_name, self.folder = cloud_name, folder
        self.database_url, self.transport_url = database_url, transport_url
        self.service_cloud = os.environ.get('MAGNUM_LITE_OS_CLOUD') or f'{cloud_name}-magnum'
        self.conf_file = folder / 'magnum-lite.conf'
        self.api: Process | None = None
        self.conductors: list[Process] = []
        self._past: list[Process] = []
        self._undo = undo
        port = free_port()
        self.url = f'http://127.0.0.1:{port}'
        self._connection = connect(cloud_name)
        undo.callback(self._connection.close)
        self.engine = sa.create_engine(database_url, poolclass=sa.NullPool)
        identity = _identity(self.service_cloud)
        sections: dict[str, dict[str, Any]] = {
            'DEFAULT': {'host': 'functional', 'state_path': folder, 'transport_url': transport_url},
            'database': {'connection': database_url},
            'api': {'host': '127.0.0.1', 'port': port},
            'conductor': {'tick': 5, 'watch_interval': 2},
            'keystore': {'key_file': folder / 'keystore.key'},
            'keystone_auth': identity,
            'keystone_authtoken': identity | {'www_authenticate_uri': identity['auth_url']},
        }
        for section, options in extra.items():
            sections.setdefault(section, {}).update(options)
        _write_conf(self.conf_file, sections)

    # Processes.

    def run(self, *words: str) -> str:
        """Run a command of magnum-lite and return what it prints. Raises AssertionError with the
        text if it fails."""
        done = subprocess.run(
            command('--config-file', str(self.conf_file), *words),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f'magnum-lite {" ".join(words)}:\n{done.stdout}{done.stderr}'
        return done.stdout

    def prepare(self) -> None:
        """Make the key file and the schema, beside each other: most of the time goes into starting
        Python."""
        key_file = self.folder / 'keystore.key'
        with futures.ThreadPoolExecutor(2) as pool:
            key = pool.submit(self.run, 'keystore-key') if not key_file.exists() else None
            pool.submit(self.run, 'db', 'upgrade').result()
            if key:
                key_file.touch(0o600)
                key_file.write_text(key.result())

    def start_api(self) -> Process:
        """Start the API, which answers a while later: see `wait_ready`."""
        self.api = Process('api', self.folder / 'api.log', self.conf_file)
        return self.api

    def start_conductor(self, *, wait: bool = True) -> Process:
        """Start one more conductor; `wait`: until it looks for clusters."""
        number = len(self.conductors) + len(self._past) + 1
        process = Process('conductor', self.folder / f'conductor-{number}.log', self.conf_file)
        self.conductors.append(process)
        if wait:
            self.wait_ready()
        return process

    def wait_ready(self) -> None:
        """Wait until the API answers and every conductor looks for clusters."""

        def ready(process: Process) -> bool:
            assert process.popen.poll() is None, f'the {process.kind} ended:\n{process.text}'
            if process.kind == 'conductor':
                return 'has started' in process.text
            with contextlib.suppress(requests.ConnectionError):
                return requests.get(f'{self.url}/', timeout=10).status_code == 200
            return False

        for process in [*([self.api] if self.api else []), *self.conductors]:
            poll(
                functools.partial(ready, process),
                START_S,
                functools.partial('the {0.kind} is ready:\n{0.text}'.format, process),
                every_s=0.1,
            )

    @property
    def past(self) -> list[Process]:
        """The processes that have ended."""
        return list(self._past)

    def kill_conductor(self, process: Process | None = None) -> None:
        """End a conductor, default the oldest, with SIGKILL."""
        process = self._take(process)
        process.kill()

    def _take(self, process: Process | None) -> Process:
        process = process or self.conductors[0]
        self.conductors.remove(process)
        self._past.append(process)
        return process

    def freeze_conductor(self) -> None:
        """Have the oldest conductor stand still, so that it never hears the answer to a call under
        way."""
        self.conductors[0].popen.send_signal(signal.SIGSTOP)

    def stop_conductor(self, process: Process | None = None) -> float:
        """End a conductor, default the oldest, with SIGTERM; returns the seconds it took, which are
        at most STOP_S."""
        return self._take(process).terminate()

    def stop(self) -> None:
        """Stop everything, and remove database and virtual host. Raises AssertionError if a process
        is too slow."""
        processes = [*self.conductors, *([self.api] if self.api else [])]
        self.conductors, self.api = [], None
        self._past += processes
        with self._undo:
            for process in processes:
                if process.popen.poll() is None:
                    process.popen.send_signal(signal.SIGTERM)
            problems = []
            for process in processes:
                try:
                    process.terminate()
                except AssertionError as e:
                    problems.append(str(e))
            assert not problems, '\n'.join(problems)

    def print_logs(self) -> None:
        """Print what the processes have logged since the last time."""
        for process in [*self._past, *self.conductors, *([self.api] if self.api else [])]:
            fresh = process.fresh_log()
            if fresh:
                print(f'--- {process.log.name} in {self.folder} ---\n{fresh}')

    # What one does with it.

    @property
    def token(self) -> str:
        """A token of the cloud's user."""
        return str(self._connection.auth_token)

    def request(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        headers: Mapping[str, str | None] | None = None,
    ) -> tuple[int, Any]:
        """Send a request and return status and body, None if there is none.

        It speaks the newest version with the user's token, unless `headers` say otherwise.
        """
        sent = {**VERSION, **(headers or {})}
        if 'X-Auth-Token' not in sent:
            sent['X-Auth-Token'] = self.token
        answer = requests.request(method, self.url + path, json=json, headers=sent, timeout=120)
        return answer.status_code, answer.json() if answer.content else None

    def wait(
        self,
        uuid: str,
        status: str,
        timeout_s: float = 300,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Wait until a cluster has this status, and return it; GONE: until it is not there any
        more.

        Raises AssertionError with the reason as soon as it has another final status, or when the
        time is over."""
        found: dict[str, Any] = {}

        def look() -> bool:
            code, body = self.request('GET', f'/v1/clusters/{uuid}', headers=headers)
            if status == 'GONE' and code == 404:
                return True
            assert code == 200, f'GET of the cluster: {code} {body}'
            found.clear()
            found.update(body)
            if found['status'] == status:
                return True
            # A delete that was just asked for, or an update, leaves a final status behind: those
            # are waited out.
            other = found['status'].endswith('_FAILED') or (
                status != 'GONE' and found['status'].endswith('_COMPLETE')
            )
            assert not other, story()
            return False

        def story() -> str:
            return (
                f'cluster {uuid} is {status}; it is {found.get("status")}: '
                f'{found.get("status_reason")} {json.dumps(found.get("faults", {}))}'
            )

        poll(look, timeout_s, story)
        return found

    def rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """What the service's database answers to a statement."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.text(statement), values).mappings()]

    def pair(self, cluster_uuid: str, purpose: str, rotation: int = 0) -> certs.Pair:
        """A key pair of a cluster as conductors read it; `rotation`: in this phase of the exchange
        of authorities."""
        conf = cfg.ConfigOpts()
        config.register(conf)
        conf(['--config-file', str(self.conf_file)], project='magnum-lite')
        database = db.Database(conf)
        try:
            row = models.Cluster(uuid=cluster_uuid, rotation_phase=rotation)
            return keystore.KeyStore(conf).load_pairs(database, row)[purpose]
        finally:
            database.engine.dispose()


def start_service(
    cloud_name: str,
    folder: str | os.PathLike[str],
    *,
    database_url: str | None = None,
    transport_url: str | None = None,
    conductors: int = 1,
    extra: Extra | None = None,
) -> Service:
    """Start magnum-lite on a cloud and return when it answers.

    `folder` gets the configuration, the key file and the logs, which stay. `extra` is laid over the
    configuration, as {section: {option: value}}. Database and broker that are not given are made,
    and removed by `stop()`."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        service = Service(
            cloud_name,
            path,
            database_url=database_url or undo.enter_context(own_database(path)),
            transport_url=transport_url or undo.enter_context(own_vhost()),
            extra=extra or {},
            undo=undo,
        )
        try:
            service.prepare()
            service.start_api()
            for _ in range(conductors):
                service.start_conductor(wait=False)
            service.wait_ready()
        except BaseException:
            for process in [*service.conductors, *([service.api] if service.api else [])]:
                process.kill()
            raise
        service._undo = undo.pop_all()
    return service
