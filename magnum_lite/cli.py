"""The command `magnum-lite`: the database, the driver folders, the doctor, the processes.

`main` is its entry point: it reads the configuration and calls the function of one command. The
docstring of that function is the text of its --help. A mistake of the operator ends in one line
that says what to do, and not in a traceback.

Modules that only the processes need are imported where those start: clients of a cloud and web
frameworks take seconds to load, which `magnum-lite db upgrade` should not pay for."""

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

    from magnum_lite import doctor
    from magnum_lite.conductor import service

LOG = log.getLogger(__name__)


class Mistake(Exception):
    """Something that the operator has to correct. Only the text is printed."""


# -- database --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_alembic(conf: cfg.ConfigOpts) -> Iterator[alembic.config.Config]:
    """Yield Alembic's configuration, with a connection to the database in a transaction."""
    database = db.Database(conf)
    settings = alembic.config.Config()
    settings.set_main_option('script_location', str(pathlib.Path(__file__).parent / 'alembic'))
    with database.engine.begin() as connection:
        settings.attributes['connection'] = connection
        yield settings


def upgrade_schema(conf: cfg.ConfigOpts) -> None:
    """Bring the schema to the newest version, or to --revision."""
    with _open_alembic(conf) as settings:
        alembic.command.upgrade(settings, conf.command.revision or 'head')


def print_schema_version(conf: cfg.ConfigOpts) -> None:
    """Print the version of the schema."""
    with _open_alembic(conf) as settings:
        alembic.command.current(settings)


def stamp_schema(conf: cfg.ConfigOpts) -> None:
    """Note a version without changing anything: for a schema that was made in another way."""
    with _open_alembic(conf) as settings:
        alembic.command.stamp(settings, conf.command.revision or 'head')


# -- drivers, keys ---------------------------------------------------------------------------------


def list_drivers(conf: cfg.ConfigOpts) -> None:
    """Print every driver folder: where it was found, what it makes, whether it is disabled. With a
    name or --labels also its rules for fields of cluster templates, and its labels: default, the
    operator's default, meaning, type as JSON Schema, older names."""
    by_name = drivers.load(conf)
    only = conf.command.driver
    if only and only not in by_name:
        raise Mistake(f'There is no driver {only}; there are: {", ".join(sorted(by_name))}')
    names = [only] if only else sorted(by_name)
    descriptions = [_describe_driver(conf, by_name[name]) for name in names]
    if conf.command.json:
        print(json.dumps(descriptions, indent=1))
        return
    for description in descriptions:
        _print_driver(description, with_labels=bool(only or conf.command.labels))


def _describe_driver(conf: cfg.ConfigOpts, driver: drivers.Driver) -> dict[str, Any]:
    origins = {pathlib.Path(folder): '[drivers] path' for folder in conf.drivers.path}
    origins.setdefault(drivers.BUILT_IN, 'built-in')
    labels = {name: dict(spec) for name, spec in driver.labels_known.items()}
    for name, value in driver.read_labels(conf, {}).items():
        if value != labels[name].get('default'):
            labels[name]['operator_default'] = value
    return {
        'name': driver.name,
        'disabled': drivers.load(conf).is_disabled(driver.name),
        'labels': labels,
        'folder': str(driver.folder),
        'origin': origins.get(driver.folder.parent, 'from an entry point'),
        'text': driver.manifest['text'],
        'provides': driver.manifest['provides'],
        'template_fields': driver.manifest.get('template_fields', {}),
    }


def _print_driver(driver: dict[str, Any], *, with_labels: bool) -> None:
    disabled = ' (disabled)' if driver['disabled'] else ''
    print(f'{driver["name"]}{disabled}: {driver["text"].strip()}')
    print('  {origin}, {folder}'.format(**driver))
    for provided in driver['provides']:
        print(
            '  makes {coe} on images with os_distro {os_distro}, server_type {server_type}'.format(
                **provided
            )
        )
    if not with_labels:
        return
    words = {'default': 'default', 'operator_default': 'here', 'aliases': 'also'}
    for name, spec in [*driver['template_fields'].items(), *sorted(driver['labels'].items())]:
        facts = [f'{word} {spec[key]}' for key, word in words.items() if spec.get(key) is not None]
        shown = f' ({", ".join(facts)})' if facts else ''
        print(f'  {name}{shown}: {spec.get("text", "a field of cluster templates").strip()}')
        print(f'      {json.dumps(spec["schema"])}')


def check_drivers(conf: cfg.ConfigOpts) -> int:
    """Load driver folders and render each in many shapes: with its defaults, with everything, with
    nothing, and with each value of a field or a label. The exit status is 1 if one cannot be loaded
    or rendered; the place is named. A folder that is named need not be configured."""
    from magnum_lite.api import offline

    folders = [pathlib.Path(folder).resolve() for folder in conf.command.folder]
    for folder in folders:
        if not (folder / 'manifest.yaml').is_file():
            raise Mistake(f'{folder} is no driver folder: it has no manifest.yaml')
    # A folder that is named takes the place of a configured one of the same name.
    paths = [str(folder.parent) for folder in folders] + conf.drivers.path
    conf.set_override('path', paths, 'drivers')
    conf.set_override('disabled_drivers', [], 'drivers')
    by_name = drivers.load(conf)
    exit_status = 0
    for name in [folder.name for folder in folders] or sorted(by_name):
        try:
            count, refusals = offline.check_folder(conf, by_name[name])
        except errors.DriverError as e:
            exit_status = 1
            print(f'{name}: {e}')
            continue
        print(f'{name}: ok, {count} shapes rendered, {len(refusals)} refused by its own rules')
        for refusal in refusals if conf.command.verbose else ():
            print(f'  {refusal}')
    return exit_status


def render_driver(conf: cfg.ConfigOpts) -> None:
    """Print what would be sent to Heat for a cluster, or for a further nodegroup of it: template,
    files, parameters. Nothing is asked of a cloud or a database, so what is named there is not
    looked up. The files hold the bodies of POSTs, as YAML or JSON. Hidden parameters are shown as
    ***; --user-data prints what nodes get, with keys that are made for this and thrown away. What
    stands between @@ is filled in by Heat."""
    from magnum_lite.api import offline

    command = conf.command
    template = _read_body(command.of_template)
    cluster_body = _read_body(command.of_cluster)
    group_body = _read_body(command.of_nodegroup)
    if template is None:
        by_name = drivers.load(conf)
        if command.driver not in by_name:
            raise Mistake(
                'Use --template FILE, or --driver with one of ' + ', '.join(sorted(by_name))
            )
        server_type, _, coe = by_name[command.driver].provides[0]
        template = offline.TEMPLATE | {'server_type': server_type, 'coe': coe}
    if command.driver:
        template = template | {'driver': command.driver}
    row = offline.make_template(conf, template, command.os_distro)
    driver, cluster = offline.make_cluster(conf, row, cluster_body or {})
    group = None
    if group_body is not None:
        group = offline.make_nodegroup(conf, driver, cluster, group_body)
    rendered = offline.render(conf, driver, cluster, offline.make_secrets(driver), group)
    if command.user_data:
        stack = driver.manifest['stack' if group is None else 'nodegroup_stack']
        _print_user_data(rendered, stack, command.user_data)
    else:
        _print_stack(rendered)


def _print_user_data(rendered: drivers.Rendered, stack: dict[str, Any], role: str) -> None:
    # `stack` is the part of the manifest with the parameters that hold user-data.
    names = {item['role']: name for name, item in stack.get('user_data', {}).items()}
    if role not in names:
        raise Mistake(f'There is no user-data of the role {role}; there are: {", ".join(names)}')
    print(rendered.parameters[names[role]], end='')


def _print_stack(rendered: drivers.Rendered) -> None:
    """Print template, files and parameters as YAML documents, hidden parameters as ***."""
    declared = yaml.safe_load(rendered.template)['parameters']
    shown = dict(rendered.parameters)
    for name in shown:
        if declared.get(name, {}).get('hidden'):
            shown[name] = '***'
    print(f'# template\n{rendered.template}')
    for name, text in rendered.files.items():
        print(f'---\n# file {name}\n{text}')
    print(f'---\n# parameters\n{yaml.safe_dump(shown, sort_keys=False)}', end='')


def _read_body(place: str | None) -> dict[str, Any] | None:
    """Read a request body from a file, or from stdin for `-`. None has no body."""
    if place is None:
        return None
    try:
        text = sys.stdin if place == '-' else pathlib.Path(place).read_text(encoding='utf-8')
        body = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeError) as e:
        raise Mistake(f'{place} is neither YAML nor JSON: {e}') from e
    if not isinstance(body, dict):
        raise Mistake(f'{place} must hold the body of a POST')
    return body


def print_new_key(conf: cfg.ConfigOpts) -> None:
    """Print a new line for [keystore] key_file."""
    print(keystore.generate_key())


def print_openapi(conf: cfg.ConfigOpts) -> None:
    """Print the description of the API, which it serves at /v1/openapi.json: doc/openapi.json is
    this."""
    from magnum_lite.api import openapi, routes

    print(json.dumps(openapi.build(routes.ROUTES), indent=1))


# -- doctor ----------------------------------------------------------------------------------------


def run_doctor(conf: cfg.ConfigOpts) -> int:
    """List what is in the cloud or in the key store without a row, and rows without their stack.
    Run it on the host of a conductor, with its configuration. The exit status is 0 if nothing was
    found or all was mended. Another installation on the same cloud: its stacks have the same tag,
    and look like orphans. They are named as stacks that may be of another installation, and --yes
    leaves them alone; do not delete them when you are asked."""
    from magnum_lite import clients, doctor

    confirm = None
    if conf.command.fix:
        if conf.command.yes:
            confirm = _agree_if_ours
        elif sys.stdin.isatty():
            confirm = _ask_operator
        else:
            print(
                'There is no terminal to ask at, so nothing is changed. Use --yes to agree to '
                'everything.'
            )
    audit = doctor.Audit(conf, db.Database(conf), clients.Cloud(conf))
    return doctor.run(audit, confirm=confirm)


def _agree_if_ours(finding: doctor.Finding) -> bool:
    if not finding.is_ours:
        print('  Left alone. Run this without --yes to be asked.')
    return finding.is_ours


def _ask_operator(finding: doctor.Finding) -> bool:
    try:
        answer = input(f'  {finding.remedy}? [y/N] ')
    except EOFError:
        return False
    return answer.strip().lower() in ('y', 'yes')


def check_upgrade(conf: cfg.ConfigOpts) -> int:
    """Look whether this release can be started on what there is. Run it with the new code and the
    configuration of a conductor, before the services are started again. The exit status is 0 if all
    is well, 1 if something should be looked at or the database does not answer, 2 if it must not be
    started."""
    from magnum_lite import clients, upgrade

    return upgrade.run(conf, db.Database(conf), clients.Cloud(conf))


# -- processes -------------------------------------------------------------------------------------


def run_api(conf: cfg.ConfigOpts) -> None:
    """Serve the API from threads of this process. Larger sites run
    `magnum_lite.api.wsgi:application` under uWSGI."""
    _run_until_signal(conf, _make_server(conf), None)


def run_conductor(conf: cfg.ConfigOpts) -> None:
    """Work on clusters until told to stop. Any number of these share the work."""
    _run_until_signal(conf, None, _make_conductor(conf))


def serve(conf: cfg.ConfigOpts) -> None:
    """API and conductor in one process: for one machine, with SQLite and without a broker if none
    is configured."""
    from magnum_lite import rpc

    rpc.set_default_transport(conf)
    if keystore.create_key_file(conf.keystore.key_file):
        LOG.warning(
            'Made a key file, %s. Keep a copy: without it the keys of clusters are lost.',
            conf.keystore.key_file,
        )
    if db.Database(conf).engine.dialect.name == 'sqlite':
        with _open_alembic(conf) as settings:
            alembic.command.upgrade(settings, 'head')
    _run_until_signal(conf, _make_server(conf), _make_conductor(conf))


def _make_server(conf: cfg.ConfigOpts) -> wsgi.Server:
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


def _make_conductor(conf: cfg.ConfigOpts) -> service.Conductor:
    from magnum_lite import clients, notify
    from magnum_lite.conductor import service
    from magnum_lite.conductor.task import Services

    return service.Conductor(
        Services(
            conf=conf,
            db=db.Database(conf),
            cloud=clients.Cloud(conf),
            keystore=keystore.KeyStore(conf),
            drivers=drivers.load(conf),
            notifier=notify.Notifier(conf),
        )
    )


def _run_until_signal(
    conf: cfg.ConfigOpts, server: wsgi.Server | None, worker: service.Conductor | None
) -> None:
    """Run until SIGTERM, SIGINT or a failure of either, then stop within [conductor]
    graceful_shutdown_timeout and end the process."""
    config.report_on_signal(conf)
    # Not an Event: that holds a lock while it is set, and a second signal, which interrupts the
    # handler of the first, would wait for that lock for ever.
    stop = queue.SimpleQueue[None]()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.put(None))
    failed: list[str] = []
    threads: list[threading.Thread] = []

    def start(name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception:
                LOG.exception('The %s has ended, and this process with it', name)
                failed.append(name)
            finally:
                stop.put(None)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()

    if worker is not None:
        start('conductor', worker.run)
    if server is not None:
        LOG.info('The API listens on http://%s:%s/v1', conf.api.host, conf.api.port)
        start('API', server.serve)
    stop.get()
    if worker is not None:
        worker.stop()
    if server is not None:
        # In a thread: cheroot 11.1 waits without a limit for a request that hangs.
        start('API', server.stop)
    deadline = time.monotonic() + conf.conductor.graceful_shutdown_timeout + 1
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a call that hangs has a thread that would keep the interpreter from its end. The
    # conductor has released that cluster already.
    os._exit(bool(failed))


# -- command line ----------------------------------------------------------------------------------


def _add_command(parent: Any, name: str, function: Callable[[cfg.ConfigOpts], int | None]) -> Any:
    """Add a command and return its parser. The function's docstring is the help."""
    text = (function.__doc__ or '').strip()
    parser = parent.add_parser(name, help=text.split('. ')[0].rstrip('.'), description=text)
    parser.set_defaults(function=function)
    return parser


def _add_group(parent: Any, name: str, text: str) -> Any:
    """Add a command that has only further commands, and return what they are added to."""
    parser = parent.add_parser(name, help=text, description=text)
    return parser.add_subparsers(required=True, metavar='COMMAND')


def _add_commands(subparsers: Any) -> None:
    database = _add_group(subparsers, 'db', 'The schema of the database')
    upgrade = _add_command(database, 'upgrade', upgrade_schema)
    _add_command(database, 'version', print_schema_version)
    stamp = _add_command(database, 'stamp', stamp_schema)
    for parser in (upgrade, stamp):
        parser.add_argument('--revision', help='version of the schema; default: the newest')
    _add_driver_commands(_add_group(subparsers, 'drivers', 'The driver folders'))
    _add_command(subparsers, 'keystore-key', print_new_key)
    _add_command(subparsers, 'openapi', print_openapi)
    status = _add_group(subparsers, 'status', 'What has to be seen to before an upgrade')
    upgrade = status.add_parser('upgrade', help='Look before an upgrade')
    checks = upgrade.add_subparsers(required=True, metavar='COMMAND')
    _add_command(checks, 'check', check_upgrade).add_argument(
        '--json', action='store_true', help='print JSON'
    )
    doctor = _add_command(subparsers, 'doctor', run_doctor)
    doctor.add_argument(
        '--fix',
        action='store_true',
        help='mend what can be mended, asking before each; without a '
        'terminal and without --yes nothing is changed',
    )
    doctor.add_argument(
        '--yes', action='store_true', help='with --fix: yes to everything that is surely ours'
    )
    _add_command(subparsers, 'api', run_api)
    _add_command(subparsers, 'conductor', run_conductor)
    _add_command(subparsers, 'serve', serve)


def _add_driver_commands(parent: Any) -> None:
    listing = _add_command(parent, 'list', list_drivers)
    listing.add_argument('driver', nargs='?', help='only this driver, with its labels')
    listing.add_argument('--labels', action='store_true', help='with the labels of all')
    listing.add_argument('--json', action='store_true', help='print JSON, with everything')
    checking = _add_command(parent, 'check', check_drivers)
    checking.add_argument(
        'folder', nargs='*', help='a folder with a manifest.yaml; default: all that are found'
    )
    checking.add_argument(
        '--verbose', action='store_true', help='say what a folder refuses by its own rules'
    )
    rendering = _add_command(parent, 'render', render_driver)
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


def main(argv: list[str] | None = None) -> int:
    """Run the command `magnum-lite` and return its exit status. `argv` None: the process's own."""
    command = cfg.SubCommandOpt(
        'command',
        title='commands',
        help='what to do; each has a --help of its own',
        handler=_add_commands,
    )
    # Its value refers to the whole configuration, which oslo.reports would print within itself.
    command.secret = True
    config.CONF.register_cli_opt(command)
    try:
        conf = config.load(sys.argv[1:] if argv is None else argv)
        return conf.command.function(conf) or 0
    except BrokenPipeError:
        # The reader of a listing, such as `head`, has closed the pipe. Without the next line the
        # interpreter would fail once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except db_exc.DBError as e:
        print(
            f'magnum-lite: The database cannot be used: {db.say_first(e)}. '
            'See [database] connection',
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
