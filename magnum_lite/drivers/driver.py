"""Render one driver folder to Heat templates, and read what its stacks and its engine answer.

The API asks what a folder accepts (`check_cluster` here, the other checks in `labels`). The
conductor calls `render`, edits texts that run with `texts` (`stacktext`), and reads with
`read_outputs` and `read_health`. All knowledge of an engine is in the folder; this module knows no
engine. It reads files of the folder and does no other I/O: who calls it sends what it returns.

Jinja decides which resources exist. Values travel as Heat parameters. What a node gets is rendered
as data and serialised by `userdata`, so that a value never becomes syntax.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import functools
import json
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jinja2
import yaml
from jinja2 import sandbox
from oslo_config import cfg

from magnum_lite import clients, errors, members, stacktext, userdata
from magnum_lite.drivers import limits
from magnum_lite.drivers.labels import LabelRules, Manifest, find_unsafe_fields, make_error
from magnum_lite.models import Cluster, Node, NodeGroup

#: A wait condition gives up this long before its stack, so that the user reads its reason and not
#: the stack's time-out. At least three quarters of a short timeout remain. Heat takes 1 to
#: 43,200 s.
TIMEOUT_MARGIN_S = 300
MAX_WAIT_S = 43200
#: Characters kept of all reasons in one health result, enough for a thousand nodes.
MAX_REASON = 100_000
#: Characters kept of one reason, and of its name.
MAX_REASON_LINE = 300

#: What templates and expressions see, by name.
Context = dict[str, Any]


class Secret(Protocol):
    """A key pair: PEM texts. `certificate` is the public key where there is no certificate."""

    @property
    def certificate(self) -> str: ...

    @property
    def private_key(self) -> str: ...

    @property
    def trusted(self) -> str:
        """The certificate, and the other one that is trusted while an authority is replaced."""


@dataclass(frozen=True)
class KeySpec:
    """Key material that is made once for a cluster: `kind` is `ca` or `keypair`."""

    kind: str
    algorithm: str
    common_name: str


@dataclass(frozen=True)
class CertificateSpec:
    """A client certificate that is issued for each rendering.

    The authority of purpose `signed_by` signs it. It expires soon, or with that authority if it is
    `lasting`.
    """

    signed_by: str
    common_name: str
    organization: str | None = None
    lasting: bool = False


@dataclass(frozen=True)
class Rendered:
    """What is sent to Heat.

    Template and files hold no secret and may be stored. Parameters hold secrets and are never
    shown.
    """

    template: str
    files: dict[str, str]
    parameters: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ObservedNode:
    """What the outputs of a stack say of one member; each value may be null."""

    server_id: str | None
    address: str | None
    private_address: str | None


@dataclass(frozen=True)
class Observed:
    """What the outputs of a stack say. `nodes` are by (name of nodegroup, number)."""

    api_address: str | None = None
    coe_version: str | None = None
    nodes: dict[tuple[str, int], ObservedNode] = field(default_factory=dict)

    @property
    def addresses(self) -> dict[str, list[str]]:
        """Known addresses by name of nodegroup, in the order of the members' numbers."""
        addresses: dict[str, list[str]] = {name: [] for name, _ in self.nodes}
        for (name, _), node in sorted(self.nodes.items()):
            if node.address:
                addresses[name].append(node.address)
        return addresses


@dataclass(frozen=True)
class HealthRequest:
    """One HTTP request without a body: the whole URL, and the value of its Accept header."""

    url: str
    accept: str | None = None
    method: str = 'GET'


@dataclass(frozen=True)
class HealthCheck:
    """The requests, by name, that tell the health of an engine.

    `authority` is the purpose of the key that has signed the engine's own certificate.
    """

    url: str
    requests: dict[str, HealthRequest]
    authority: str | None
    certificate: CertificateSpec | None


@dataclass(frozen=True)
class HealthResponse:
    """The result of a request: HTTP status, or None if there was no response.

    `text` is the beginning of the body, or the reason why there is none. `json` is the parsed body.
    """

    status: int | None
    text: str
    json: Any = None


@dataclass(frozen=True)
class Health:
    """The health that responses mean; `healthy` is None where they do not tell.

    `stale_paths`: what the engine still knows of removed members. Each path is to be DELETEd.
    """

    healthy: bool | None
    reason: dict[str, str]
    stale_paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signing:
    """Which authorities users may see and have sign.

    `types` is the purpose of an authority by the `ca_cert_type` of a request.
    """

    types: Mapping[str, str] = field(default_factory=dict)
    takes_ed25519: bool = False

    #: The authority for any other type, and for a request without a type.
    DEFAULT = 'ca'

    def get_purpose(self, ca_cert_type: str | None) -> str:
        """The purpose of the authority that a request means."""
        return self.types.get(ca_cert_type or '', self.DEFAULT)

    @property
    def purposes(self) -> set[str]:
        """All purposes that a request can mean."""
        return {self.DEFAULT, *self.types.values()}


@dataclass(frozen=True)
class Access:
    """How users get into a cluster.

    `groups` are groups of the engine by policy rule; the first rule that allows the caller decides.
    """

    authority: str
    groups: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class StackGroup:
    """A nodegroup as templates and expressions see it.

    `row` and `select_members` are for this module. Templates use the other fields and the
    properties.
    """

    uuid: str
    name: str
    role: str
    is_default: bool
    image_id: str | None
    flavor_id: str | None
    docker_volume_size: int | None
    labels: Mapping[str, str]
    node_count: int
    node_labels: Mapping[str, str]
    node_taints: list[dict[str, str]]
    row: NodeGroup
    select_members: Callable[[], list[Node]]

    @functools.cached_property
    def nodes(self) -> list[Node]:
        """The members of the next version of the stack, without those of a later wave.

        They are read on first use, because some callers have not loaded the members.
        """
        return self.select_members()

    @property
    def to_replace(self) -> list[Node]:
        """Members that others are to replace, in the order in which they go."""
        return members.list_to_replace(self.row)

    @property
    def up_to_date(self) -> list[Node]:
        """Members that are complete and stay."""
        return members.list_up_to_date(self.row)


def _parse_options(text: str | None) -> dict[str, str]:
    """Read `--a=1 --b=2` as {'a': '1', 'b': '2'}."""
    parts = (part.removeprefix('--').partition('=') for part in (text or '').split())
    return {name: value for name, _, value in parts}


def _write_ini(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Write {section: {key: text}} as an INI file with quoted values, without nulls."""
    lines = []
    for section, options in sections.items():
        lines.append(f'[{section}]\n')
        for key, value in options.items():
            if value is not None:
                lines.append(f'{key}={json.dumps(value, ensure_ascii=False)}\n')
    return ''.join(lines)


#: Filters for templates, beside Jinja's own.
FILTERS: dict[str, Callable[..., Any]] = {
    'b64': lambda text: base64.b64encode(text.encode()).decode(),
    # {a: 1} to [{key: a, value: 1}]
    'pairs': lambda mapping, key, value: [{key: k, value: v} for k, v in mapping.items()],
    'without': lambda text, beginning: text.removeprefix(beginning),
    'options': _parse_options,
    'ini': _write_ini,
    # A word that engines take as the value of a label.
    'word': lambda text: re.sub('[^A-Za-z0-9_.-]+', '-', text).strip('-_.')[:63].strip('-_.'),
}

_Loader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class Driver(LabelRules):
    """A driver folder. `driver.py` of a folder may subclass it, for what data cannot say."""

    def __init__(self, name: str, manifest: Manifest, path: Sequence[Path]) -> None:
        """`path`: where templates and files are looked for, beginning with the driver's folder."""
        super().__init__(name, path[0], manifest)
        self._path = path
        self._env = sandbox.ImmutableSandboxedEnvironment(
            loader=jinja2.FileSystemLoader(path),
            undefined=jinja2.StrictUndefined,
            finalize=userdata.quote,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,
        )
        self._env.filters.update(FILTERS)
        self._compile = functools.cache(
            functools.partial(self._env.compile_expression, undefined_to_none=False)
        )
        self.keys = {key: KeySpec(**spec) for key, spec in manifest.get('keys', {}).items()}
        self.certificates = {
            key: CertificateSpec(**spec) for key, spec in manifest.get('certificates', {}).items()
        }
        self.signing = Signing(**manifest.get('signing', {}))
        access = manifest.get('access')
        self.access = Access(access['authority'], access['groups']) if access else None
        self._version_label: str | None = manifest.get('upgrade', {}).get('version')
        version = self.labels_known[self._version_label] if self._version_label else {}
        stacks = (manifest.get('nodegroup_stack', {}), manifest['stack'])
        self.texts = stacktext.Texts(stacks, version.get('parameter'))

    def __repr__(self) -> str:
        return f'<Driver {self.name} in {self.folder}>'

    @property
    def provides(self) -> list[tuple[str, str, str]]:
        """What the folder makes: (server type, os_distro of the image, engine)."""
        return [
            (item['server_type'], item['os_distro'], item['coe'])
            for item in self.manifest['provides']
        ]

    def _error(self, place: str, problem: object) -> errors.DriverError:
        return make_error(self.folder, place, problem)

    # Checks that need a context or a rendering.

    def check_cluster(
        self, conf: cfg.ConfigOpts, cluster: Cluster, changed: NodeGroup | None = None
    ) -> list[str]:
        """Say in sentences which limits a cluster would exceed: addresses, Heat's, Nova's.

        Only one stack is checked: that of the `changed` nodegroup, or without one the cluster's.
        Needs `template` and `nodegroups` with their counts. Their members need not exist yet, and
        their number costs no time.
        """
        context = self._make_context(conf, cluster)
        has_login = self._wants_cloud_user(context)
        problems = self._list_failed(self.manifest.get('checks', ()), context)
        texts = {
            name: value
            for name, value in vars(cluster.template).items()
            # Templates do not see these two.
            if isinstance(value, str) and name not in ('name', 'tags')
        }
        texts['The public key'] = (cluster.public_key or '').strip()
        problems += find_unsafe_fields(texts)
        nodes = sum(group.node_count for group in cluster.nodegroups)
        problems += limits.check_ranges(self._list_ranges(context), context['labels'], nodes)
        stack = self.manifest['stack']
        if changed is not None and not changed.is_default:
            stack = self.manifest['nodegroup_stack']
            context = self._make_context(conf, cluster, changed)
            context['outputs'] = collections.defaultdict(str)
        return problems + self._check_stack(conf, cluster, stack, context, has_login)

    def _list_ranges(self, context: Context) -> list[dict[str, Any]]:
        """The items of the manifest's `ranges` that apply to a cluster."""
        return [
            item
            for item in self.manifest.get('ranges', ())
            if context['labels'][item['label']] is not None
            and ('when' not in item or self._evaluate(item['when'], context))
        ]

    def _check_stack(
        self,
        conf: cfg.ConfigOpts,
        cluster: Cluster,
        stack: Manifest,
        context: Context,
        has_login: bool,
    ) -> list[str]:
        """Compare one stack with the limits. What is sent for it is rendered once.

        `has_login`: the cluster has a user of its own in the cloud."""
        files = stack.get('files', {})
        counts = {role: group.node_count for role, group in context['groups'].items()}
        keeps_masters = self.explain_irreplaceable(cluster, 'master') is not None
        # A new master comes before an old one goes.
        extra_masters = 1 if 'master' in counts and not keeps_masters else 0
        return limits.check_stack(
            self.manifest['resources'],
            counts,
            extra_masters,
            {name: item['role'] for name, item in files.items() if 'role' in item},
            self._render_samples(cluster, stack, context, keeps_masters),
            self._render_sample_user_data(stack, context, has_login=has_login),
            conf.cluster_heat,
        )

    def _render_samples(
        self,
        cluster: Cluster,
        stack: Manifest,
        context: Context,
        keeps_masters: bool,
    ) -> dict[str, limits.SampleText]:
        """Render the templates of a stack, by name, with one member in each nodegroup.

        A text that lists members is rendered with a second one, too. An update of a running stack
        edits only files that list members (`stacktext`), so no other text may depend on them. But
        a root template may list masters, if they are never replaced.
        """
        root = stack['template']
        files = stack.get('files', {})
        listed_roles = {name: item['role'] for name, item in files.items() if item.get('members')}
        if keeps_masters:
            listed_roles[root] = 'master'
        groups = context['groups']
        nodes = {role: _make_sample_nodes(cluster, group) for role, group in groups.items()}
        one = {role: _replace_nodes(group, nodes[role][:1]) for role, group in groups.items()}
        samples = {}
        for name, item in ({root: {'template': root}} | files).items():
            text = self._render_file(item, context | {'groups': one})
            role = listed_roles.get(name)
            count = groups[role].node_count if role in groups else 1
            second = None
            if count > 1:
                two = one | {role: _replace_nodes(groups[role], nodes[role])}
                second = self._render_file(item, context | {'groups': two})
            samples[name] = limits.SampleText(text, second, count)
        return samples

    def _render_sample_user_data(
        self, stack: Manifest, context: Context, *, has_login: bool
    ) -> list[str]:
        """Render user-data with keys and a login that are as long as real ones."""
        algorithms = {purpose: spec.algorithm for purpose, spec in self.keys.items()}
        algorithms |= dict.fromkeys(self.certificates, 'ecdsa-p256')
        secrets = limits.make_sample_secrets(algorithms)
        login = limits.SAMPLE_LOGIN if has_login else None
        return [*self._render_user_data(stack, context, secrets, login).values()]

    def check_rotation(self, cluster: Cluster) -> list[str]:
        """Say in sentences why the authorities of a cluster cannot be replaced.

        Needs `template` and `nodegroups`.
        """
        if cluster.template.tls_disabled:
            return [f'Cluster {cluster.uuid} is without TLS, so it has no authorities']
        if not self.manifest.get('rotation'):
            return [
                f'Driver {self.name} of cluster {cluster.uuid} cannot exchange authorities; make a '
                'new cluster'
            ]
        roles = dict.fromkeys(group.stack_role for group in cluster.nodegroups)
        reasons = (self.explain_irreplaceable(cluster, role) for role in roles)
        return [reason for reason in reasons if reason]

    def explain_irreplaceable(self, cluster: Cluster, role: str) -> str | None:
        """Say in a sentence why members of a role cannot be replaced; None if they can."""
        item = self.manifest.get('replaceable', {}).get(role)
        if item is None or self._evaluate(item['that'], {'cluster': cluster}):
            return None
        return f'The {role}s of cluster {cluster.uuid} cannot be replaced: {item["else"]}.'

    def find_engine_version(self, conf: cfg.ConfigOpts, labels: Mapping[str, str]) -> Any:
        """The version of the engine that labels ask for; None if no label of the driver says it."""
        if self._version_label is None:
            return None
        return self.read_labels(conf, labels)[self._version_label]

    def check_upgrade(
        self, conf: cfg.ConfigOpts, old: Mapping[str, str], new: Mapping[str, str]
    ) -> list[str]:
        """Say in sentences why members cannot go from the labels `old` to the labels `new`."""
        context = {'old': self.read_labels(conf, old), 'new': self.read_labels(conf, new)}
        return self._list_failed(self.manifest.get('upgrade', {}).get('checks', ()), context)

    def _list_failed(self, checks: Collection[Mapping[str, str]], context: Context) -> list[str]:
        """The sentences of those checks of the manifest that do not hold."""
        return [item['else'] for item in checks if not self._evaluate(item['that'], context)]

    # Renderings for Heat.

    def render(
        self,
        conf: cfg.ConfigOpts,
        cluster: Cluster,
        secrets: Mapping[str, Secret],
        login: clients.Login | None = None,
    ) -> Rendered:
        """Render the root stack of a cluster, with the members of its default nodegroups.

        Needs `template` and `nodegroups` with their nodes. `secrets` holds all of `keys` and
        `certificates`; `login` is that of the cluster's user in the cloud, if it has one. The same
        rows always give the same template. Raises `DriverError` with the place in the folder.
        """
        context = self._make_context(conf, cluster)
        return self._render_stack(self.manifest['stack'], context, secrets, login)

    def render_nodegroup(
        self,
        conf: cfg.ConfigOpts,
        cluster: Cluster,
        group: NodeGroup,
        secrets: Mapping[str, Secret],
        *,
        outputs: Mapping[str, Any],
        login: clients.Login | None = None,
    ) -> Rendered:
        """Render the root stack of a further nodegroup, as `render` does a cluster's.

        `outputs` are those of the cluster's stack. Raises `DriverError` also if the driver has no
        such stack.
        """
        if 'nodegroup_stack' not in self.manifest:
            raise errors.DriverError(
                f'driver {self.name} makes no nodegroups beside the default ones'
            )
        context = self._make_context(conf, cluster, group) | {'outputs': outputs}
        return self._render_stack(self.manifest['nodegroup_stack'], context, secrets, login)

    def wants_cloud_user(self, conf: cfg.ConfigOpts, cluster: Cluster) -> bool:
        """Whether a cluster that is created now gets a user of its own in the cloud."""
        return self._wants_cloud_user(self._make_context(conf, cluster))

    def _wants_cloud_user(self, context: Context) -> bool:
        expression = self.manifest.get('cloud_user')
        return expression is not None and bool(self._evaluate(expression, context))

    def find_load_balancer_text(self, cluster: Cluster) -> str | None:
        """The text by which load balancers that the engine has made are recognised.

        It is part of their description. None: the engine makes no load balancers.
        """
        expression = self.manifest.get('load_balancers')
        return None if expression is None else str(self._evaluate(expression, {'cluster': cluster}))

    def _make_context(
        self, conf: cfg.ConfigOpts, cluster: Cluster, further: NodeGroup | None = None
    ) -> Context:
        """What templates and expressions see. It holds no secret.

        `groups` are those of the stack by role: of the `further` nodegroup, or without one of the
        cluster.
        """
        labels = cluster.labels or {}
        owner = cluster if further is None else further
        wave = conf.cluster_heat.nodes_per_wave

        @functools.cache
        def list_numbers() -> dict[str, set[int]]:
            return self.texts.list_numbers(owner.stack_text or {}) if wave else {}

        if further is None:
            # If two have one role, the first one counts.
            groups = {
                group.role: _view_group(group, list_numbers, wave)
                for group in reversed(cluster.nodegroups)
                if group.is_default
            }
        else:
            groups = {'worker': _view_group(further, list_numbers, wave)}
            labels = labels | (further.labels or {})
        context = {
            'cluster': cluster,
            'template': cluster.template,
            'labels': self.read_labels(conf, labels),
            'groups': groups,
            'node_timeout_s': compute_node_timeout_s(conf, cluster),
            'has_cluster_users': has_cluster_users(conf),
        }
        for name, expression in self.manifest.get('facts', {}).items():
            context[name] = self._evaluate(expression, context)
        return context

    def _render_stack(
        self,
        stack: Manifest,
        context: Context,
        secrets: Mapping[str, Secret],
        login: clients.Login | None,
    ) -> Rendered:
        missing = sorted({*self.keys, *self.certificates} - set(secrets))
        if missing:
            raise errors.DriverError(
                f'driver {self.name}: no secrets given for {", ".join(missing)}'
            )
        template, content = self._read_template(stack['template'], context)
        files = {}
        for name, item in stack.get('files', {}).items():
            files[name] = self._render_file(item, context)
            # What is no YAML is to fail here, and not in Heat.
            self._parse(item['template'], files[name])
        declared = content.get('parameters') or {}
        parameters: dict[str, Any] = {
            label['parameter']: context['labels'][name]
            for name, label in self.labels_known.items()
            if 'parameter' in label
        }
        for name, expression in self.manifest.get('parameters', {}).items():
            if name in declared:
                parameters[name] = self._evaluate(expression, context)
        parameters |= self._render_user_data(stack, context, secrets, login)
        parameters = {
            name: value
            for name, value in parameters.items()
            if name in declared and value is not None
        }
        return Rendered(template, files, parameters)

    def _render_file(self, item: Manifest, context: Context) -> str:
        """Render one of the `files` of a stack for its role."""
        role = item.get('role')
        inner = context | {'role': role, 'group': context['groups'].get(role)}
        return self._render_text(item['template'], inner)

    def _render_user_data(
        self,
        stack: Manifest,
        context: Context,
        secrets: Mapping[str, Secret],
        login: clients.Login | None,
    ) -> dict[str, str]:
        """Render the user-data of each role, by the name of its Heat parameter."""
        is_ignition = self.manifest.get('envelope') == 'ignition'
        write = userdata.write_ignition if is_ignition else userdata.write_cloud_config
        texts = {}
        for parameter, item in stack.get('user_data', {}).items():
            role, template = item['role'], item['template']
            inner = context | {
                'role': role,
                'group': context['groups'][role],
                'secrets': secrets,
                'login': login,
            }
            _, node = self._read_template(template, inner)
            try:
                node['files'] = [self._render_node_file(inner, item) for item in node['files']]
                texts[parameter] = write(node)
            except (KeyError, TypeError, ValueError, AttributeError, OSError) as exc:
                problem = f'{type(exc).__name__} {exc} in what a node gets'
                raise self._error(template, problem) from exc
        return texts

    def _render_node_file(self, context: Context, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item of a node's file as `userdata` takes it: what stands in a `file` of a
        folder, or comes of a `template`, is read."""
        if 'file' in item:
            for folder in self._path:
                file = folder / 'files' / item['file']
                if file.is_file():
                    return item | {'text': file.read_text(encoding='utf-8')}
            raise FileNotFoundError(item['file'])
        if 'template' in item:
            text = self._render_text(item['template'], context)
            return item | {'documents': [*yaml.load_all(text, Loader=_Loader)]}
        return item

    def _read_template(self, name: str, context: Context) -> tuple[str, Any]:
        """Render a template that gives YAML: (text, content)."""
        text = self._render_text(name, context)
        return text, self._parse(name, text)

    def _parse(self, name: str, text: str) -> Any:
        """Read the YAML that the template `name` has given."""
        try:
            return yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as exc:
            mark = getattr(exc, 'problem_mark', None)
            place = f'{name}, line {mark.line + 1} of the result' if mark else name
            raise self._error(place, getattr(exc, 'problem', exc)) from exc

    def _render_text(self, name: str, context: Context) -> str:
        try:
            return self._env.get_template(name).render(context)
        except jinja2.TemplateSyntaxError as exc:
            raise self._error(f'{exc.name}, line {exc.lineno}', exc.message) from exc
        except jinja2.TemplateNotFound as exc:
            raise self._error(name, f'there is no {exc.name}') from exc
        # An expression of a template can raise anything.
        except Exception as exc:
            place = name
            for frame in traceback.extract_tb(exc.__traceback__):
                if frame.filename.endswith('.j2'):
                    place = f'{Path(frame.filename).name}, line {frame.lineno}'
            raise self._error(place, f'{type(exc).__name__}: {exc}') from exc

    def _evaluate(self, expression: str, context: Context) -> Any:
        """Evaluate an expression of the manifest to a value."""
        try:
            value = self._compile(expression)(**context)
            if isinstance(value, jinja2.Undefined):
                # Raises UndefinedError, which says the name.
                str(value)
            return value
        except Exception as exc:
            raise self._error(f'manifest.yaml, expression {expression!r}', exc) from exc

    # What stacks and engines answer.

    def read_outputs(self, outputs: Mapping[str, Any]) -> Observed:
        """Read the outputs of a stack.

        Any of them may be missing or null. In a cloud where Heat puts stand-ins for servers all
        are.
        """
        names = self.manifest['outputs']
        nodes = {}
        for name in names.get('nodes', ()):
            for item in outputs.get(name) or ():
                node = ObservedNode(
                    item.get('server_id'), item.get('address'), item.get('private_address')
                )
                nodes[item['nodegroup'], int(item['number'])] = node
        return Observed(
            api_address=outputs.get(names.get('api_address')),
            coe_version=outputs.get(names.get('coe_version')),
            nodes=nodes,
        )

    def build_health_check(self, conf: cfg.ConfigOpts, cluster: Cluster) -> HealthCheck | None:
        """Build the requests for the health of a cluster's engine; None if the folder has none.

        Needs `template` and `nodegroups`. Raises `DriverError` for a URL that cannot be requested.
        """
        item = self.manifest.get('health')
        if item is None:
            return None
        context = self._make_context(conf, cluster)
        base = self._evaluate_url(item.get('url', 'cluster.api_address'), context)
        if base.startswith('https:') and 'authority' not in item:
            raise self._error('manifest.yaml $.health', 'https needs an authority')
        requests = {}
        for name, request in item['requests'].items():
            url = self._evaluate_url(request['url'], context) if 'url' in request else base
            requests[name] = HealthRequest(url + request['path'], request.get('accept'))
        certificate = CertificateSpec(**item['certificate']) if 'certificate' in item else None
        return HealthCheck(base, requests, item.get('authority'), certificate)

    def _evaluate_url(self, expression: str, context: Context) -> str:
        url = str(self._evaluate(expression, context))
        if not re.fullmatch(r'https?://[^\s/@]+(/[!-~]*)?', url):
            raise self._error('manifest.yaml $.health.url', f'{url!r} is no URL to ask')
        return url.rstrip('/')

    def read_health(
        self,
        conf: cfg.ConfigOpts,
        cluster: Cluster,
        responses: Mapping[str, HealthResponse],
    ) -> Health:
        """Tell the health of a cluster from the engine's responses.

        Needs `template` and `nodegroups` with their nodes: an engine may still know members that
        were removed, and the template tells them by their names. Raises `DriverError` if the
        folder's template fails on the responses.
        """
        name = self.manifest['health']['template']
        context = self._make_context(conf, cluster) | {
            'answers': responses,
            'member_names': [
                node.name for group in cluster.nodegroups for node in members.list_wanted(group)
            ],
            'name_prefix': members.make_name_prefix(cluster),
        }
        _, content = self._read_template(name, context)
        try:
            healthy = content['healthy']
            lines = content['reason'].items()
            stale_paths = tuple(content.get('forget') or ())
        except (KeyError, TypeError, AttributeError) as exc:
            raise self._error(name, f'{type(exc).__name__} {exc} in what the answers mean') from exc
        if healthy not in (True, False, None):
            raise self._error(name, f'healthy is {healthy!r}')
        for path in stale_paths:
            if not re.fullmatch('/[!-~]*', str(path)):
                raise self._error(name, f'{path!r} is no path to forget')
        return Health(healthy, _limit_reason(lines), stale_paths)

    def render_access(
        self,
        cluster: Cluster,
        *,
        authority: str,
        user: str,
        certificate: str,
        private_key: str,
    ) -> str:
        """Render the file that a user's client reads, such as a kubeconfig.

        `authority`, `certificate` and `private_key` are PEM texts: the cluster's authority, and the
        user's own pair. Only for drivers with `access`. Needs `template`. Raises `DriverError`.
        """
        text, _ = self._read_template(
            self.manifest['access']['template'],
            {
                'cluster': cluster,
                'template': cluster.template,
                'authority': authority,
                'user': user,
                'certificate': certificate,
                'private_key': private_key,
            },
        )
        return text


def _limit_reason(lines: Collection[tuple[Any, Any]]) -> dict[str, str]:
    """Limit the reasons that are stored: users of nodes can make an engine answer anything."""
    reason: dict[str, str] = {}
    room = MAX_REASON
    for name, text in lines:
        name = str(name)[:MAX_REASON_LINE]
        text = str(text).strip()[:MAX_REASON_LINE]
        room -= len(name) + len(text)
        if room < 0:
            reason['...'] = f'{len(lines) - len(reason)} more'
            break
        reason[name] = text
    return reason


def _view_group(
    group: NodeGroup, list_numbers: Callable[[], dict[str, set[int]]], wave: int
) -> StackGroup:
    """A nodegroup as templates see it. `list_numbers` reads the stored text of its stack."""

    def select_members() -> list[Node]:
        numbers = list_numbers().get(group.stack_role, ())
        return members.next_members(group, numbers, wave)

    return StackGroup(
        uuid=group.uuid,
        name=group.name,
        role=group.role,
        is_default=group.is_default,
        image_id=group.image_id,
        flavor_id=group.flavor_id,
        docker_volume_size=group.docker_volume_size,
        labels=group.labels,
        node_count=group.node_count,
        node_labels=group.node_labels,
        node_taints=group.node_taints,
        row=group,
        select_members=select_members,
    )


def _make_sample_nodes(cluster: Cluster, group: StackGroup) -> list[Node]:
    """At most two members of a nodegroup. Their names are as long as its longest name."""
    number = (group.row.next_number or 0) + group.node_count
    name = members.make_node_name(cluster, group.row, number)
    return [Node(number=number + n, name=name, rollout=1) for n in range(min(group.node_count, 2))]


def _replace_nodes(group: StackGroup, nodes: list[Node]) -> StackGroup:
    return dataclasses.replace(group, select_members=lambda: nodes)


def compute_node_timeout_s(conf: cfg.ConfigOpts, cluster: Cluster) -> int:
    """Return how many seconds a node has to report: fewer than its stack has."""
    stack_s = (cluster.create_timeout or conf.cluster_heat.create_timeout) * 60
    return min(max(stack_s - TIMEOUT_MARGIN_S, stack_s * 3 // 4), MAX_WAIT_S)


def has_cluster_users(conf: cfg.ConfigOpts) -> bool:
    """Whether clusters can have users in the cloud: a domain for them and roles are configured."""
    domain = conf.trust.trustee_domain_id or conf.trust.trustee_domain_name
    return bool(domain and (conf.trust.roles or conf.identity.project_roles))


class Drivers(dict[str, Driver]):
    """The drivers by name. A former name of a folder, as old rows have it, gives its driver, too.

    Iteration gives current names only.
    """

    def __init__(self, drivers: Mapping[str, Driver], disabled: Iterable[str] = ()) -> None:
        """`disabled`: names of drivers, or their former names, that `find` does not choose."""
        super().__init__(drivers)
        self._current_names = {
            former: name
            for name, driver in drivers.items()
            for former in driver.manifest.get('former_names', ())
        }
        self._disabled = {self.resolve_name(name) for name in disabled}

    def __missing__(self, name: str) -> Driver:
        """Return the driver of a former name. Raises KeyError for a name that never was."""
        return self[self._current_names[name]]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._current_names

    def get(self, name: str, default: Any = None) -> Any:
        """Return the driver of a current or former name, else `default`."""
        return super().get(self.resolve_name(name), default)

    def resolve_name(self, name: str) -> str:
        """Return the current name of a driver; any other name is returned as it is."""
        return self._current_names.get(name, name)

    def is_disabled(self, name: str) -> bool:
        """Whether the operator has disabled this driver for new clusters and templates."""
        return self.resolve_name(name) in self._disabled

    def find(
        self, *, server_type: str, os_distro: str, coe: str, name: str | None = None
    ) -> Driver:
        """Find the enabled driver for an engine on an image; of several, the first by name.

        Raises `Invalid` if there is none. With a `name` only that driver is considered.
        """
        enabled = {key: self[key] for key in sorted(self) if not self.is_disabled(key)}
        if name is not None:
            current_name = self.resolve_name(name)
            if current_name not in enabled:
                state = 'is disabled here' if current_name in self else 'does not exist'
                raise errors.Invalid(
                    f'Driver {name!r} {state}. There are: {", ".join(enabled) or "none"}.'
                )
            enabled = {name: enabled[current_name]}
        for driver in enabled.values():
            if (server_type, os_distro, coe) in driver.provides:
                return driver
        subject = f'Driver {name} does not make' if name else 'No driver makes'
        offers = '; '.join(_describe_offer(key, driver) for key, driver in enabled.items())
        raise errors.Invalid(
            f'{subject} {coe} clusters from an image with os_distro {os_distro!r} on server_type '
            f'{server_type!r}. {offers or "No driver is enabled"}.'
        )


def _describe_offer(name: str, driver: Driver) -> str:
    offers = (f'{coe} on {distro} ({server})' for server, distro, coe in driver.provides)
    return f'{name} makes {", ".join(offers)}'
