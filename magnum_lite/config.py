"""The options of the service, and how a process reads its configuration.

`cli` and `api.wsgi` call `load` at the start of a process. The help of each option says its unit,
its effect and when to change it; etc/magnum-lite.conf.sample is generated from it.

The configuration is oslo.config's global `cfg.CONF`, because oslo.messaging registers its own
options only there and fails on a private object. Only this module and the starts of processes may
use the global; everything else gets `conf` as an argument. Names that operators know from
magnum.conf are kept where the meaning is the same."""

from __future__ import annotations

import importlib.metadata
import re
import signal
import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from keystoneauth1 import loading
from oslo_config import cfg, types
from oslo_log import log

from magnum_lite import outage

CONF = cfg.CONF
PROJECT = 'magnum-lite'

default_opts = [
    cfg.StrOpt(
        'host',
        default=socket.gethostname(),
        sample_default='the host name',
        help='Name of this conductor in leases, in `openstack coe service list` and in the log. '
        'It must differ between machines; several conductors on one machine add their process '
        'number.',
    ),
    cfg.StrOpt(
        'state_path',
        default='/var/lib/magnum-lite',
        help='Folder for what must outlive a restart: the SQLite database and the key file, where '
        'their own options do not name another place. Change it where /var/lib is not kept.',
    ),
    cfg.IntOpt(
        'service_down_time',
        default=180,
        min=1,
        help='Seconds without a report after which `openstack coe service list` shows a conductor '
        'as down. They report every 30 s. Nothing else depends on it.',
    ),
]

api_opts = [
    cfg.HostAddressOpt(
        'host',
        default='127.0.0.1',
        help='Address on which `magnum-lite api` and `magnum-lite serve` listen. An API under '
        'uWSGI or gunicorn has its address from there.',
    ),
    cfg.PortOpt(
        'port',
        default=9511,
        help='TCP port on which `magnum-lite api` and `magnum-lite serve` listen; endpoints must '
        'name the same.',
    ),
    cfg.IntOpt(
        'threads',
        default=16,
        min=1,
        max=256,
        help='Requests that `magnum-lite api` and `magnum-lite serve` work on at once. Raise it '
        'when requests wait while the machine is idle; uWSGI and gunicorn have threads of their '
        'own.',
    ),
    cfg.IntOpt(
        'max_limit',
        default=1000,
        min=1,
        help='Most items of one page of a listing; a larger `limit` is taken as this. Lower it '
        'when pages take long.',
    ),
    cfg.IntOpt(
        'max_body',
        default=1024 * 1024,
        min=1024,
        help='Largest request body in bytes; a larger one is refused unread. No request of a '
        'client comes near it.',
    ),
    cfg.StrOpt(
        'auth_strategy',
        default='keystone',
        choices=[
            ('keystone', 'tokens are checked by Keystone'),
            (
                'noauth',
                'the caller is believed what it says in X-Project-Id, X-User-Id and X-Roles; for '
                'tests, and refused unless the service listens on, and is called from, a loopback '
                'address',
            ),
        ],
        help='How callers prove who they are. Change it for tests only.',
    ),
]

conductor_opts = [
    cfg.IntOpt(
        'workers',
        default=8,
        min=1,
        max=128,
        help='Clusters that one conductor process works on at once. Each worker mostly waits for '
        'the cloud; raise it when clusters stay due for long while the machine is idle.',
    ),
    cfg.FloatOpt(
        'tick',
        default=5,
        min=0.05,
        help='Seconds between looks for due clusters when no message comes. A lost message costs '
        'one tick.',
    ),
    cfg.IntOpt(
        'lease',
        default=60,
        min=10,
        help='Seconds for which a conductor holds a cluster it works on. When a conductor dies, '
        'another takes its clusters over after this time. No call to the cloud may take half of '
        'it, so the time-out of calls follows from it: two fifths, unless [keystone_auth] timeout '
        'says less.',
    ),
    cfg.FloatOpt(
        'watch_interval',
        default=4,
        min=0.05,
        help='Seconds between looks at a stack in its first minutes; old stacks are looked at '
        'more seldom. Raise it when Heat is slow and its notifications come.',
    ),
    cfg.FloatOpt(
        'retry_interval',
        default=2,
        min=0.01,
        help='Seconds before a failed call to the cloud is tried again; doubled each time. Raise '
        'it to spare a cloud that is often overloaded.',
    ),
    cfg.FloatOpt(
        'retry_interval_max',
        default=60,
        min=0.01,
        help='Longest pause between two tries of a failed call, in seconds: how late the end of '
        'an outage is noticed.',
    ),
    cfg.FloatOpt(
        'graceful_shutdown_timeout',
        default=8,
        min=0,
        help='Seconds that a process told to stop gives to calls and requests under way; a '
        'conductor then hands its clusters back. Keep it below the time after which your process '
        'manager kills.',
    ),
]

cluster_heat_opts = [
    cfg.IntOpt(
        'create_timeout',
        default=60,
        min=1,
        help='Minutes a stack may take when the cluster does not say. Raise it where images boot '
        'slowly.',
    ),
    cfg.IntOpt(
        'update_timeout',
        default=60,
        min=1,
        help='Minutes that one change of a stack may take. Raise it where large nodegroups are '
        'resized.',
    ),
    cfg.IntOpt(
        'delete_timeout',
        default=60,
        min=1,
        help='Minutes after which a cluster that is still being deleted counts as failed. It may '
        'be deleted again.',
    ),
    cfg.IntOpt(
        'max_resources_per_stack',
        default=1000,
        min=-1,
        help='Resources that Heat allows in a stack, nested ones included; -1: any number. Set it '
        'to what heat.conf says. A larger cluster is refused when it is asked for.',
    ),
    cfg.IntOpt(
        'nodes_per_wave',
        default=100,
        min=0,
        help='Workers of a nodegroup that are asked for at once; more come in waves, each when '
        'all of the one before have reported, and each with the time limit of the operation for '
        'itself. Heat looks at all that is there with every wave, so small waves cost time. 0: '
        'all at once.',
    ),
    cfg.IntOpt(
        'max_template_size',
        default=524288,
        min=1024,
        help='Bytes that Heat takes as one template. Set it to what heat.conf says. A cluster '
        'that needs more is refused when it is asked for.',
    ),
    cfg.IntOpt(
        'max_json_body_size',
        default=1048576,
        min=1024,
        help='Bytes that Heat takes as one request, with templates, files and user-data. Set it '
        'to what heat.conf says. A cluster that needs more is refused when it is asked for.',
    ),
    cfg.IntOpt(
        'max_user_data',
        default=49149,
        min=1024,
        help='Bytes of user-data that Nova takes for a server. The default is its own limit, '
        '65,535 characters of base64; lower it where a deployer of bare metal takes less.',
    ),
    cfg.IntOpt(
        'max_server_group_members',
        default=10,
        min=-1,
        help='Servers that Nova allows in a server group, which the masters of a cluster share; '
        '-1: any number. Set it to what [quota] server_group_members of nova.conf says. More '
        'masters are refused when they are asked for.',
    ),
]

heat_notifications_opts = [
    cfg.BoolOpt(
        'enabled',
        default=True,
        help='Whether conductors listen to the notifications that Heat sends '
        '(orchestration.stack.*), so that a stack that is done is seen at once and not at the '
        'next look. Without them everything works, up to [conductor] watch_interval later.',
    ),
    cfg.StrOpt(
        'transport_url',
        secret=True,
        help='Broker to which Heat sends them, when it is not the one of [DEFAULT] transport_url '
        'or another virtual host.',
    ),
    cfg.StrOpt(
        'exchange',
        default='heat',
        help='Exchange that Heat sends to: control_exchange of heat.conf, if that is set.',
    ),
    cfg.StrOpt(
        'topic',
        default='notifications',
        help='Topic that Heat sends to: topics of [oslo_messaging_notifications] in heat.conf.',
    ),
    cfg.StrOpt(
        'pool',
        default='magnum-lite',
        help='Name of the queue that all conductors share, so that other listeners get their own '
        'copy. It stays in the broker when no conductor runs: delete it when the service is '
        'removed.',
    ),
]

health_opts = [
    cfg.IntOpt(
        'interval',
        default=60,
        min=0,
        help='Seconds between two looks at the engine of a cluster, which is what health_status '
        'says; 0: never, and only clients set it.',
    ),
    cfg.FloatOpt(
        'timeout',
        default=5,
        min=0.1,
        help='Seconds that one look may take, all its requests together. An engine that does not '
        'answer in this time is UNHEALTHY.',
    ),
    cfg.IntOpt(
        'workers',
        default=8,
        min=1,
        max=128,
        help='Engines that one conductor looks at at once. With N clusters and an interval of I '
        'seconds, N * timeout / I workers over all conductors suffice even if no engine answers.',
    ),
]

identity_opts = [
    cfg.ListOpt(
        'project_roles',
        default=['member'],
        help='Roles that the service user is granted on a project when its first cluster is made, '
        'and that are taken back after its last one. They must cover what the templates make: add '
        'load-balancer_member where the cloud has that role, and creator for Barbican. Empty: the '
        'operator has granted what is needed, for example inherited from the domain.',
    ),
]

trust_opts = [
    cfg.StrOpt(
        'trustee_domain_id',
        help='Id of the domain in which a cluster that wants access to the cloud gets a user of '
        'its own, with roles on its project; the service user needs the role admin there. Without '
        'it, or trustee_domain_name, no cluster gets such a user. The name of the group is '
        'history: no trust is made.',
    ),
    cfg.StrOpt('trustee_domain_name', help='Name of that domain, where the id is not given.'),
    cfg.ListOpt(
        'roles',
        default=[],
        help='Roles that the user of a cluster is granted on its project, for load balancers and '
        'volumes that are made inside the cluster. Empty: those of [identity] project_roles.',
    ),
    cfg.StrOpt(
        'trustee_keystone_interface',
        default='public',
        choices=['public', 'internal', 'admin'],
        help='Interface of Keystone that is named to clusters. Change it where nodes cannot reach '
        'the public one.',
    ),
]

keystore_opts = [
    cfg.StrOpt(
        'backend',
        default='database',
        choices=[('database', 'encrypted in the database with the keys of key_file')],
        help='Where the private keys of clusters rest.',
    ),
    cfg.StrOpt(
        'key_file',
        default='$state_path/keystore.key',
        help='File with the keys that encrypt private keys, one Fernet key a line, newest first; '
        'all conductors need the same. `magnum-lite keystore-key` makes a line. The file must be '
        'readable by the conductor only; the API does not need it.',
    ),
]

certificates_opts = [
    cfg.IntOpt(
        'ca_days',
        deprecated_name='ca_days',
        deprecated_group='cluster',
        default=3650,
        min=1,
        help='Days for which the authorities of a new cluster are valid; those of others stay as '
        'they are.',
    ),
    cfg.IntOpt(
        'term_of_validity',
        deprecated_name='term_of_validity',
        deprecated_group='x509',
        default=365,
        min=1,
        help='Days for which a certificate is valid that a user has asked for with a CSR. It '
        'never outlives its authority. Engines cannot take a certificate back, so do not make it '
        'longer than needed.',
    ),
    cfg.IntOpt(
        'kubeconfig_hours',
        default=8,
        min=1,
        max=168,
        help='Hours for which the certificate in a kubeconfig is valid that the service issues.',
    ),
    cfg.IntOpt(
        'sign_timeout',
        default=10,
        min=1,
        max=60,
        help='Seconds that a request for a certificate waits for a conductor, before it is '
        'answered with 503.',
    ),
]

drivers_opts = [
    cfg.MultiStrOpt(
        'path',
        default=[],
        help='Folders that hold driver folders, beside the built-in ones. A driver found here '
        'takes the place of a built-in one of the same name. May be given several times.',
    ),
    cfg.ListOpt(
        'disabled_drivers',
        default=[],
        help='Names of drivers that must not be used for new clusters; `magnum-lite drivers list` '
        'prints them all.',
    ),
    cfg.DictOpt(
        'label_defaults',
        default={},
        help='Defaults for labels of all drivers, as name:value pairs, before those of the '
        'manifests.',
    ),
    cfg.StrOpt(
        'openstack_ca_file',
        help='File with the CA certificates that the services of the cloud are known by, in PEM, '
        'for what runs inside clusters. Needed where they are not among those that everybody '
        'trusts.',
    ),
]

quota_opts = [
    cfg.IntOpt(
        'max_clusters_per_project',
        default=20,
        min=0,
        help='Clusters that a project may have if it has no quota of its own. 0: none without one.',
    ),
]

cloud_opts = [
    cfg.StrOpt(
        'region_name',
        help='Region whose services are used. Needed where the catalog has more than one.',
    ),
    cfg.StrOpt(
        'interface',
        default='public',
        choices=['public', 'internal', 'admin'],
        help='Interface of the cloud services that is called. Change it where the public ones '
        'cannot be reached from here.',
    ),
]

GROUPS: dict[str, Sequence[cfg.Opt]] = {
    'DEFAULT': default_opts,
    'api': api_opts,
    'conductor': conductor_opts,
    'cluster_heat': cluster_heat_opts,
    'heat_notifications': heat_notifications_opts,
    'health': health_opts,
    'identity': identity_opts,
    'trust': trust_opts,
    'keystore': keystore_opts,
    'drivers': drivers_opts,
    'quotas': quota_opts,
    'certificates': certificates_opts,
}
#: Group of keystoneauth's options for the service user. Magnum names it so, too.
AUTH_GROUP = 'keystone_auth'


def register(conf: cfg.ConfigOpts) -> None:
    """Register all options on `conf`. Idempotent."""
    for group, opts in GROUPS.items():
        conf.register_opts(opts, group=None if group == 'DEFAULT' else group)
    loading.register_auth_conf_options(conf, AUTH_GROUP)
    loading.register_session_conf_options(conf, AUTH_GROUP)
    conf.register_opts(cloud_opts, group=AUTH_GROUP)


def load(argv: Sequence[str], *, default_files: list[str] | None = None) -> cfg.ConfigOpts:
    """Read the command line and the files, set up the log, and return the configuration.

    Without --config-file oslo.config searches its usual places, such as
    /etc/magnum-lite/magnum-lite.conf. For a wrong value on the command line oslo.config raises
    SystemExit; for one in a file this raises cfg.Error, of which `WrongValue` is a subclass."""
    register(CONF)
    log.register_options(CONF)
    log.set_defaults(
        default_log_levels=[
            *log.get_default_log_levels(),
            'keystoneauth.identity=WARN',
            'alembic=WARN',
            'openstack=WARN',
            'oslo_service.backend=WARN',
        ]
    )
    CONF(
        list(argv),
        project=PROJECT,
        version=importlib.metadata.version(PROJECT),
        default_config_files=default_files,
    )
    # Such as keystone_authtoken, which is registered by itself only in an API process.
    section = CONF[AUTH_GROUP].auth_section
    if section:
        loading.register_auth_conf_options(CONF, section)
    log.setup(CONF, PROJECT)
    outage.limit_library_logs()
    _check_values(CONF)
    return CONF


class WrongValue(cfg.Error):
    """An option has a value that it cannot have. The text names the option, its file, and the
    values that it can have."""


def _check_values(conf: cfg.ConfigOpts) -> None:
    """Read every option once: oslo.config checks a value when it is used, which may be weeks after
    the start."""
    for group, opts in (GROUPS | {AUTH_GROUP: cloud_opts}).items():
        for opt in opts:
            try:
                getattr(conf if group == 'DEFAULT' else conf[group], opt.dest)
            except (cfg.Error, ValueError) as e:
                # The text of oslo.config's error is the only place with the name of the file.
                file = re.search(r"detail='([^']*)'", str(e))
                raise WrongValue(
                    f'[{group}] {opt.name}{f" in {file[1]}" if file else ""} must be '
                    f'{_describe_values(opt.type)}: {str(e).rpartition("is not valid: ")[2]}'
                ) from e


def _describe_values(kind: Any) -> str:
    """Say which values an option of a type can have."""
    if isinstance(kind, types.Integer | types.Float):
        number = 'a whole number' if isinstance(kind, types.Integer) else 'a number'
        if kind.min is None:
            return number
        if kind.max is None:
            return f'{number} of {kind.min} or more'
        return f'{number} from {kind.min} to {kind.max}'
    if getattr(kind, 'choices', None):
        return f'one of {", ".join(map(str, kind.choices))}'
    descriptions: dict[type, str] = {
        types.Boolean: 'true or false',
        types.HostAddress: 'the name or the address of a host',
        types.Dict: 'pairs of name:value',
    }
    return descriptions.get(type(kind), 'text')


def report_on_signal(conf: cfg.ConfigOpts) -> None:
    """Print oslo.reports' guru report on SIGUSR2: the stacks of all threads, and the configuration
    without its secrets.

    For a server that handles the signal itself, such as uWSGI, [oslo_reports] file_event_handler
    names a file; touching it has the same effect."""
    # This import takes a fifth of a second, so only processes that serve pay for it.
    from oslo_reports import guru_meditation_report, opts

    opts.set_defaults(conf)
    reports = guru_meditation_report.TextGuruMeditation
    version = SimpleNamespace(
        vendor_string=lambda: PROJECT,
        product_string=lambda: PROJECT,
        version_string_with_package=lambda: importlib.metadata.version(PROJECT),
    )
    if conf.oslo_reports.file_event_handler:
        reports.setup_autorun(version, conf=conf)
    reports.setup_autorun(version, log_dir=conf.oslo_reports.log_dir, signum=signal.SIGUSR2)


def use_exchange() -> None:
    """Send messages to Magnum's exchange, which other services listen to, unless control_exchange
    names one."""
    # This import takes a third of a second, and most commands do not need it.
    import oslo_messaging

    oslo_messaging.set_transport_defaults('magnum')


def use_healthcheck_file() -> None:
    """Set Magnum's default of [healthcheck]: /healthcheck answers 503 while a file exists."""
    from oslo_middleware.healthcheck import opts

    cfg.set_defaults(opts.HEALTHCHECK_OPTS, backends=['disable_by_file'])
    cfg.set_defaults(
        opts.DISABLE_BY_FILE_OPTS, disable_by_file_path='/etc/magnum-lite/healthcheck_disable'
    )


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return (group, options) pairs, for oslo-config-generator and oslo-config-validator."""
    use_exchange()
    use_healthcheck_file()
    auth = [
        *loading.get_auth_common_conf_options(),
        *loading.get_auth_plugin_conf_options('password'),
        *loading.get_session_conf_options(),
        *cloud_opts,
    ]
    return [*GROUPS.items(), (AUTH_GROUP, auth)]
