"""The command `magnum-lite`: the database, the drivers, the processes.

Each command is one function below; `main` reads the configuration and calls it. A mistake of the
operator ends in one line that says what to do, never in a traceback.

What only the processes need is imported where they start: clients of a cloud and web frameworks
take seconds to load, and `magnum-lite db upgrade` should not."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import alembic.command
import alembic.config
import yaml
from oslo_config import cfg
from oslo_db import exception as db_exc
from oslo_log import log

from magnum_lite import config, db, drivers, errors, keystore

if TYPE_CHECKING:
    from cheroot import wsgi

    from magnum_lite.conductor import service

LOG = log.getLogger(__name__)

Command = Callable[[cfg.ConfigOpts], int | None]


class Mistake(Exception):
    """Something that the operator has to mend. The text is all that is printed."""


# -- database --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alembic(conf: cfg.ConfigOpts) -> Iterator[alembic.config.Config]:
    """Alembic's own configuration, over one connection to our database."""
    database = db.Database(conf)
    made = alembic.config.Config()
    made.set_main_option('script_location', str(pathlib.Path(__file__).parent / 'alembic'))
    with database.engine.begin() as connection:
        made.attributes['connection'] = connection
        yield made


def db_upgrade(conf: cfg.ConfigOpts) -> None:
    """Bring the schema to the newest version, or to --revision."""
    with _alembic(conf) as made:
        alembic.command.upgrade(made, conf.command.revision or 'head')


def db_version(conf: cfg.ConfigOpts) -> None:
    """Print the version of the schema."""
    with _alembic(conf) as made:
        alembic.command.current(made)


def db_stamp(conf: cfg.ConfigOpts) -> None:
    """Note a version without changing anything: for a schema that was made in another way."""
    with _alembic(conf) as made:
        alembic.command.stamp(made, conf.command.revision or 'head')


# -- drivers, keys ---------------------------------------------------------------------------------


def drivers_list(conf: cfg.ConfigOpts) -> None:
    """Print every driver folder: where it was found, what it makes, whether it is disabled. With a
    name or --labels also its rules for fields of cluster templates, and its labels: default, the
    operator's default, meaning, type as JSON Schema, older names."""
    found, only = drivers.load(conf), conf.command.driver
    if only and only not in found:
        raise Mistake(f'There is no driver {only}; there are: {", ".join(sorted(found))}')
    told = [_described(conf, found[name]) for name in ([only] if only else sorted(found))]
    if conf.command.json:
        print(json.dumps(told, indent=1))
        return
    for driver in told:
        print(
            f'{driver["name"]}{" (disabled)" if driver["disabled"] else ""}: '
            f'{driver["text"].strip()}\n  {driver["origin"]}, {driver["folder"]}'
        )
        for made in driver['provides']:
            print(
                '  makes {coe} on images with os_distro {os_distro}, '
                'server_type {server_type}'.format(**made)
            )
        for name, spec in (
            [*driver['template_fields'].items(), *sorted(driver['labels'].items())]
            if (only or conf.command.labels)
            else ()
        ):
            said = [
                f'{word} {spec[key]}'
                for key, word in (
                    ('default', 'default'),
                    ('operator_default', 'here'),
                    ('aliases', 'also'),
                )
                if spec.get(key) is not None
            ]
            print(
                f'  {name}{" (" * bool(said)}{", ".join(said)}{")" * bool(said)}: '
                f'{spec.get("text", "a field of cluster templates").strip()}\n      '
                f'{json.dumps(spec["schema"])}'
            )


def _described(conf: cfg.ConfigOpts, driver: drivers.Driver) -> dict[str, Any]:
    homes = {
        drivers.BUILT_IN: 'built-in',
        **{pathlib.Path(place): '[drivers] path' for place in conf.drivers.path},
    }
    here = driver.labels(conf, {})
    labels = {
        name: spec | ({'operator_default': here[name]} if here[name] != spec.get('default') else {})
        for name, spec in driver.labels_known.items()
    }
    return {
        'name': driver.name,
        'disabled': driver.name in conf.drivers.disabled_drivers,
        'labels': labels,
        'folder': str(driver.folder),
        'origin': homes.get(driver.folder.parent, 'from an entry point'),
        'text': driver.manifest['text'],
        'provides': driver.manifest['provides'],
        'template_fields': driver.manifest.get('template_fields', {}),
    }


def drivers_check(conf: cfg.ConfigOpts) -> int:
    """Load driver folders and render each in many shapes: with its defaults, with everything, with
    nothing, and with each value of a field or a label. The exit status is 1 if one cannot be loaded
    or rendered; the place is named. A folder that is named need not be configured."""
    from magnum_lite.api import offline

    places = [pathlib.Path(place).resolve() for place in conf.command.folder]
    for place in places:
        if not (place / 'manifest.yaml').is_file():
            raise Mistake(f'{place} is no driver folder: it has no manifest.yaml')
    conf.set_override(
        'path', [str(place.parent) for place in places] + conf.drivers.path, 'drivers'
    )
    conf.set_override('disabled_drivers', [], 'drivers')
    found, wrong = drivers.load(conf), 0
    for name in [place.name for place in places] or sorted(found):
        try:
            count, refused = offline.check(conf, found[name])
        except errors.DriverError as e:
            wrong = 1
            print(f'{name}: {e}')
        else:
            print(f'{name}: ok, {count} shapes rendered, {len(refused)} refused by its own rules')
            print(*(f'  {line}\n' for line in refused if conf.command.verbose), sep='', end='')
    return wrong


def drivers_render(conf: cfg.ConfigOpts) -> None:
    """Print what would be sent to Heat for a cluster, or for a further nodegroup of it: template,
    files, parameters. Nothing is asked of a cloud or a database, so what is named there is not
    looked up. The files hold the bodies of POSTs, as YAML or JSON. Hidden parameters are shown as
    ***; --user-data prints what nodes get, with keys that are made for this and thrown away. What
    stands between @@ is filled in by Heat."""
    from magnum_lite.api import offline

    asked = conf.command
    template, cluster, group = (
        _body(place) for place in (asked.of_template, asked.of_cluster, asked.of_nodegroup)
    )
    if template is None:
        driver = drivers.load(conf).get(asked.driver or '')
        if driver is None:
            raise Mistake(
                'Use --template FILE, or --driver with one of '
                + ', '.join(sorted(drivers.load(conf)))
            )
        template = offline.TEMPLATE | {
            'server_type': driver.provides[0][0],
            'coe': driver.provides[0][2],
        }
    row = offline.template(
        conf, template | ({'driver': asked.driver} if asked.driver else {}), asked.os_distro
    )
    driver, made = offline.cluster(conf, row, cluster or {})
    further = None if group is None else offline.nodegroup(conf, driver, made, group)
    rendered = offline.render(conf, driver, made, offline.throwaway_secrets(driver), further)
    if asked.user_data:
        stack = driver.manifest['stack' if further is None else 'nodegroup_stack']
        names = {item['role']: name for name, item in stack.get('user_data', {}).items()}
        if asked.user_data not in names:
            raise Mistake(
                f'There is no user-data of the role {asked.user_data}; there are: '
                f'{", ".join(names)}'
            )
        print(rendered.parameters[names[asked.user_data]], end='')
        return
    hidden = {
        name
        for name, spec in yaml.safe_load(rendered.template)['parameters'].items()
        if spec.get('hidden')
    }
    shown = {
        name: '***' if name in hidden else value for name, value in rendered.parameters.items()
    }
    print(f'# template\n{rendered.template}')
    for name, text in rendered.files.items():
        print(f'---\n# file {name}\n{text}')
    print(f'---\n# parameters\n{yaml.safe_dump(shown, sort_keys=False)}', end='')


def _body(place: str | None) -> dict[str, Any] | None:
    """What a file, or `-`, holds."""
    if place is None:
        return None
    try:
        body = yaml.safe_load(
            sys.stdin if place == '-' else pathlib.Path(place).read_text(encoding='utf-8')
        )
    except (yaml.YAMLError, UnicodeError) as e:
        raise Mistake(f'{place} is neither YAML nor JSON: {e}') from e
    if not isinstance(body, dict):
        raise Mistake(f'{place} must hold the body of a POST')
    return body


def keystore_key(conf: cfg.ConfigOpts) -> None:
    """Print a new line for [keystore] key_file."""
    print(keystore.new_key())


def openapi(conf: cfg.ConfigOpts) -> None:
    """Print the description of the API, which it serves at /v1/openapi.json: doc/openapi.json is
    this."""
    from magnum_lite.api import openapi as described

    print(json.dumps(described.document(), indent=1))


# -- doctor ----------------------------------------------------------------------------------------


def doctor(conf: cfg.ConfigOpts) -> int:
    """List what is in the cloud or in the key store without a row, and rows without their stack.
    Run it on the host of a conductor, with its configuration. The exit status is 0 if nothing was
    found or all was mended. Another installation on the same cloud: its stacks have the same tag,
    and look like orphans. They are named as stacks that may be of another installation, and --yes
    leaves them alone; do not delete them when you are asked."""
    from magnum_lite import clients
    from magnum_lite import doctor as doctors

    def ask(finding: doctors.Finding) -> bool:
        with contextlib.suppress(EOFError):
            return input(f'  {finding.remedy}? [y/N] ').strip().lower() in ('y', 'yes')
        return False

    def agree(finding: doctors.Finding) -> bool:
        if not finding.is_ours:
            print('  Left alone. Run this without --yes to be asked.')
        return finding.is_ours

    answer = None
    if conf.command.fix and conf.command.yes:
        answer = agree
    elif conf.command.fix and sys.stdin.isatty():
        answer = ask
    elif conf.command.fix:
        print(
            'There is no terminal to ask at, so nothing is changed. Use --yes to agree to '
            'everything.'
        )
    return doctors.run(doctors.Audit(conf, db.Database(conf), clients.Cloud(conf)), answer=answer)


def upgrade_check(conf: cfg.ConfigOpts) -> int:
    """Look whether this release can be started on what there is. Run it with the new code and the
    configuration of a conductor, before the services are started again. The exit status is 0 if all
    is well, 1 if something should be looked at or the database does not answer, 2 if it must not be
    started."""
    from magnum_lite import clients, upgrade

    return upgrade.run(conf, db.Database(conf), clients.Cloud(conf))


# -- processes -------------------------------------------------------------------------------------


def api(conf: cfg.ConfigOpts) -> None:
    """Serve the API from threads of this process. Larger sites run
    `magnum_lite.api.wsgi:application` under uWSGI."""
    _until_told(conf, _api_server(conf), None)


def conductor(conf: cfg.ConfigOpts) -> None:
    """Work on clusters until told to stop. Any number of these share the work."""
    _until_told(conf, None, _conductor(conf))


def serve(conf: cfg.ConfigOpts) -> None:
    """API and conductor in one process: for one machine, with SQLite and without a broker if none
    is configured."""
    from magnum_lite import rpc

    rpc.default_to_this_process(conf)
    if keystore.create_key_file(conf.keystore.key_file):
        LOG.warning(
            'Made a key file, %s. Keep a copy: without it the keys of clusters are lost.',
            conf.keystore.key_file,
        )
    if db.Database(conf).engine.dialect.name == 'sqlite':
        with _alembic(conf) as made:
            alembic.command.upgrade(made, 'head')
    _until_told(conf, _api_server(conf), _conductor(conf))


def _api_server(conf: cfg.ConfigOpts) -> wsgi.Server:
    from cheroot import wsgi

    from magnum_lite.api import app

    if conf.api.auth_strategy == 'noauth' and not app.is_loopback(conf.api.host):
        raise Mistake(
            f'[api] auth_strategy = noauth believes every caller, so [api] host must be a loopback '
            f'address and not {conf.api.host}'
        )
    server = wsgi.Server(
        (conf.api.host, conf.api.port),
        app.make_app(app.make_services(conf)),
        numthreads=conf.api.threads,
        max=conf.api.threads * 4,
        server_name='magnum-lite',
        request_queue_size=128,
        timeout=60,
        shutdown_timeout=conf.conductor.graceful_shutdown_timeout,
    )
    try:
        server.prepare()
    except OSError as e:
        raise Mistake(
            f'Cannot listen on {conf.api.host} port {conf.api.port}: {e}. '
            'Set [api] host and port, or stop what is there'
        ) from e
    return server


def _conductor(conf: cfg.ConfigOpts) -> service.Conductor:
    from magnum_lite import clients, notify
    from magnum_lite.conductor import service, steps

    return service.Conductor(
        steps.Services(
            conf=conf,
            db=db.Database(conf),
            cloud=clients.Cloud(conf),
            keystore=keystore.KeyStore(conf),
            drivers=drivers.load(conf),
            notifier=notify.Notifier(conf),
        )
    )


def _until_told(
    conf: cfg.ConfigOpts, server: wsgi.Server | None, worker: service.Conductor | None
) -> None:
    """Run until SIGTERM, SIGINT or a failure of either, then stop within the grace that is
    configured."""
    config.report_on_signal(conf)
    # An Event holds a lock while it is set: a signal that comes while another is handled would wait
    # for it for ever.
    told: queue.SimpleQueue[None] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.put(None))
    failed: list[str] = []

    def run(name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            LOG.exception('The %s has ended, and this process with it', name)
            failed.append(name)
        finally:
            told.put(None)

    threads = []
    if worker is not None:
        threads.append(threading.Thread(target=run, args=('conductor', worker.run), daemon=True))
    if server is not None:
        threads.append(threading.Thread(target=run, args=('API', server.serve), daemon=True))
        LOG.info('The API listens on http://%s:%s/v1', conf.api.host, conf.api.port)
    for thread in threads:
        thread.start()
    told.get()
    if worker is not None:
        worker.stop()
    if server is not None:
        # Of a request that hangs cheroot would wait for the end (11.1).
        threads.append(threading.Thread(target=server.stop, daemon=True))
        threads[-1].start()
    enough = time.monotonic() + conf.conductor.graceful_shutdown_timeout + 1
    for thread in threads:
        thread.join(max(enough - time.monotonic(), 0))
    sys.stdout.flush()
    sys.stderr.flush()
    # A call that hangs has a thread that would hold up the interpreter. The cluster of a
    # conductor's was handed back.
    os._exit(1 if failed else 0)


# -- command line ----------------------------------------------------------------------------------


def _add_commands(subparsers: Any) -> None:
    def add(parent: Any, name: str, function: Command, *, revision: bool = False) -> Any:
        text = (function.__doc__ or '').strip()
        parser = parent.add_parser(name, help=text.split('. ')[0].rstrip('.'), description=text)
        parser.set_defaults(function=function)
        if revision:
            parser.add_argument('--revision', help='version of the schema; default: the newest')
        return parser

    def group(name: str, text: str) -> Any:
        return subparsers.add_parser(name, help=text, description=text).add_subparsers(
            required=True, metavar='COMMAND'
        )

    database = group('db', 'The schema of the database')
    add(database, 'upgrade', db_upgrade, revision=True)
    add(database, 'version', db_version)
    add(database, 'stamp', db_stamp, revision=True)
    folders = group('drivers', 'The driver folders')
    listing = add(folders, 'list', drivers_list)
    listing.add_argument('driver', nargs='?', help='only this driver, with its labels')
    listing.add_argument('--labels', action='store_true', help='with the labels of all')
    listing.add_argument('--json', action='store_true', help='print JSON, with everything')
    checking = add(folders, 'check', drivers_check)
    checking.add_argument(
        'folder', nargs='*', help='a folder with a manifest.yaml; default: all that are found'
    )
    checking.add_argument(
        '--verbose', action='store_true', help='say what a folder refuses by its own rules'
    )
    rendering = add(folders, 'render', drivers_render)
    for thing in ('template', 'cluster', 'nodegroup'):
        rendering.add_argument(
            f'--{thing}',
            dest=f'of_{thing}',
            metavar='FILE',
            help=f'body of the POST for a {thing}; -: stdin',
        )
    rendering.add_argument(
        '--driver', metavar='NAME', help='driver to use; alone it gives a template, too'
    )
    rendering.add_argument(
        '--os-distro', help='what the image would say; default: what the driver makes'
    )
    rendering.add_argument(
        '--user-data', metavar='ROLE', help='print only the user-data of nodes of this role'
    )
    add(subparsers, 'keystore-key', keystore_key)
    add(subparsers, 'openapi', openapi)
    upgrade = (
        group('status', 'What has to be seen to before an upgrade')
        .add_parser('upgrade', help='Look before an upgrade')
        .add_subparsers(required=True, metavar='COMMAND')
    )
    add(upgrade, 'check', upgrade_check).add_argument(
        '--json', action='store_true', help='print JSON'
    )
    check = add(subparsers, 'doctor', doctor)
    check.add_argument(
        '--fix',
        action='store_true',
        help='mend what can be mended, asking before each; without a '
        'terminal and without --yes nothing is changed',
    )
    check.add_argument(
        '--yes', action='store_true', help='with --fix: yes to everything that is surely ours'
    )
    add(subparsers, 'api', api)
    add(subparsers, 'conductor', conductor)
    add(subparsers, 'serve', serve)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `magnum-lite`: returns the exit status."""
    command = cfg.SubCommandOpt(
        'command',
        title='commands',
        help='what to do; each has a --help of its own',
        handler=_add_commands,
    )
    command.secret = (
        True  # it refers to the whole configuration, which oslo.reports would print within itself
    )
    config.CONF.register_cli_opt(command)
    try:
        conf = config.load(sys.argv[1:] if argv is None else argv)
        return conf.command.function(conf) or 0
    except BrokenPipeError:  # the reader of a listing has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except db_exc.DBError as e:
        print(
            'magnum-lite: The database cannot be used: '
            f'{str(e.inner_exception or e).splitlines()[0]}. See [database] connection',
            file=sys.stderr,
        )
        return 1
    except (
        Mistake,
        errors.DriverError,
        errors.HttpError,
        keystore.KeyStoreError,
        cfg.Error,
        OSError,
    ) as e:
        print(f'magnum-lite: {e}', file=sys.stderr)
        return 1
