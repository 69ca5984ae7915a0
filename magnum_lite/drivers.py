"""Find, check and render driver folders: one folder makes one engine on one operating system, as
Heat templates.

The API asks what a folder accepts (`find`, `check_template`, `check_labels`, `check_cluster`), the
conductor renders it and reads its outputs (`render`, `read_outputs`). All knowledge of an engine is
in the folder: `manifest.yaml` (`templates/manifest.schema.yaml` says what may stand in it), Jinja
templates, `files/`, and seldom a `driver.py` with a subclass of `Driver`. Folders whose name begins
with `_` hold what others include. A folder may extend another one, wherever that lies, and then
says only what is different.

Jinja decides which resources exist; values travel as Heat parameters; what a node gets is read back
as data, which `userdata` writes down, so a value never becomes syntax. What runs is never rendered
anew: `texts` edits what Heat has (`stacktext`). Nothing in this file knows an engine, and nothing
here does I/O but reading folders. A folder of an operator is trusted as the service's own code is.
"""

from __future__ import annotations

import base64
import collections
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import ipaddress
import json
import re
import shlex
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jsonschema
import yaml
from jinja2 import sandbox
from oslo_config import cfg

from magnum_lite import clients, errors, members, models, stacktext, userdata

BUILT_IN = Path(__file__).with_name('templates')
ENTRY_POINTS = 'magnum_lite.drivers'

#: Nova takes 65,535 characters of base64 (nova/api/openstack/compute/schemas/servers.py).
MAX_USER_DATA = 65535 // 4 * 3
#: What the body of a request has beside templates, files and user-data, and how much longer texts
#: get when members are edited: they are written anew then, as JSON.
BODY_ROOM, EDITED = 16384, 1.05
#: What Heat puts in for placeholders (a Fernet token, a URL, addresses) is not known before; it
#: fits into this.
PLACEHOLDER_ROOM = 1536
#: Parts of a manifest of which a folder that extends another one changes single entries; any other
#: it replaces.
MERGED = ('labels', 'facts', 'parameters', 'template_fields')
#: A wait condition gives up this long before its stack, so that its reason is what the user reads;
#: at least three quarters of a short timeout remain. Heat takes 1 to 43,200 s.
TIMEOUT_MARGIN_S = 300
MAX_WAIT_S = 43200
#: Most characters of all that is kept of the reasons of one look, and of one of them. A thousand
#: nodes fit.
MAX_REASON, MAX_REASON_LINE = 100_000, 300
#: PEM sizes (public part, private part) at the upper end, to weigh user-data before a key exists.
KEY_SIZES = {'ecdsa-p256': (750, 250), 'rsa-2048': (1300, 1720)}


class Secret(Protocol):
    """A key pair: PEM texts. `certificate` is the public key where there is no certificate."""

    @property
    def certificate(self) -> str: ...

    @property
    def private_key(self) -> str: ...

    @property
    def trusted(self) -> str:
        """The certificate, and those that are trusted beside it while authorities are exchanged."""


@dataclass(frozen=True)
class KeySpec:
    """Key material that is made once for a cluster: `kind` is `ca` or `keypair`."""

    kind: str
    algorithm: str
    common_name: str


@dataclass(frozen=True)
class CertificateSpec:
    """A client certificate that is signed anew for every rendering, by the authority of purpose
    `signed_by`.

    It soon expires, or ends with its authority if it is `lasting`.
    """

    signed_by: str
    common_name: str
    organization: str | None = None
    lasting: bool = False


@dataclass(frozen=True)
class Rendered:
    """What is sent to Heat. Template and files hold no secret and may be stored; parameters are
    never shown."""

    template: str
    files: dict[str, str]
    parameters: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ObservedNode:
    """What a stack knows of one member; each value may be null."""

    server_id: str | None
    address: str | None
    private_address: str | None


@dataclass(frozen=True)
class Observed:
    """What a stack told: `nodes` by (nodegroup name, number), `addresses` by nodegroup name, in
    number order."""

    api_address: str | None = None
    coe_version: str | None = None
    nodes: dict[tuple[str, int], ObservedNode] = field(default_factory=dict)

    @property
    def addresses(self) -> dict[str, list[str]]:
        """Addresses that are known, by nodegroup name."""
        found: dict[str, list[str]] = {name: [] for name, _ in self.nodes}
        for (name, _), node in sorted(self.nodes.items()):
            if node.address:
                found[name].append(node.address)
        return found


@dataclass(frozen=True)
class HealthRequest:
    """One request without a body: the whole URL, and the content type that is asked for."""

    url: str
    accept: str | None = None
    method: str = 'GET'


@dataclass(frozen=True)
class HealthCheck:
    """What an engine is asked to see how it is, by name. `authority` is the purpose of the key it
    is known by."""

    url: str
    requests: dict[str, HealthRequest]
    authority: str | None
    certificate: CertificateSpec | None


@dataclass(frozen=True)
class Answer:
    """What came of a request: HTTP status or None, the beginning of the body or why there is none,
    the body's JSON."""

    status: int | None
    text: str
    json: Any = None


@dataclass(frozen=True)
class Health:
    """What the answers mean; `healthy` is None where that cannot be told.

    `forget`: paths of what the engine goes on to know of members that were removed, to be DELETEd.
    """

    healthy: bool | None
    reason: dict[str, str]
    forget: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signing:
    """Which authorities users see and may have sign: `types` from the ca_cert_type of a request to
    the purpose."""

    types: Mapping[str, str] = field(default_factory=dict)
    takes_ed25519: bool = False

    #: The authority for every other type, and for none.
    DEFAULT = 'ca'

    def purpose(self, ca_cert_type: str | None) -> str:
        """The purpose of the authority that is meant."""
        return self.types.get(ca_cert_type or '', self.DEFAULT)

    @property
    def purposes(self) -> set[str]:
        """All that may be meant."""
        return {self.DEFAULT, *self.types.values()}


@dataclass(frozen=True)
class Access:
    """How a user gets into a cluster: `groups` of the engine by policy rule, of which the first
    that holds decides."""

    authority: str
    groups: Mapping[str, str]


FORMATS = jsonschema.FormatChecker(formats=())


@FORMATS.checks('ipv4-network', raises=ValueError)
def _is_network(value: object) -> bool:
    # Python also takes masks after the slash, which no engine does.
    return not isinstance(value, str) or str(ipaddress.IPv4Network(value)) == value


@FORMATS.checks('url')
def _is_url(value: object) -> bool:
    return not isinstance(value, str) or bool(
        re.fullmatch(r'(https?://[^\s/@]+|file://)/[!-~]+', value)
    )


def _unfit(text: str) -> str | None:
    """Say why a text cannot be handed on to nodes; None if it can."""
    if re.search(r'[\x00-\x1f\x7f]', text):
        return 'it must not hold control characters'
    found = re.search('@@[A-Z_]+@@', text)
    return (
        f'it must not hold {found[0]:.80}, which Heat would put something else in the place of'
        if found
        else None
    )


#: Filters for templates, beside Jinja's own: to base64; {a: 1} to [{key: a, value: 1}]; without a
#: beginning; '--a=1 --b=2' to {a: '1', b: '2'}; {section: {key: text}} to an INI file with quoted
#: values, without nulls; to a word that engines take as the value of a label.
FILTERS: dict[str, Callable[..., Any]] = {
    'b64': lambda text: base64.b64encode(text.encode()).decode(),
    'pairs': lambda mapping, key, value: [{key: k, value: v} for k, v in mapping.items()],
    'without': lambda text, beginning: text.removeprefix(beginning),
    'options': lambda text: dict(
        part.removeprefix('--').partition('=')[::2] for part in (text or '').split()
    ),
    'ini': lambda sections: ''.join(
        f'[{name}]\n'
        + ''.join(
            f'{key}={json.dumps(value, ensure_ascii=False)}\n'
            for key, value in options.items()
            if value is not None
        )
        for name, options in sections.items()
    ),
    'word': lambda text: re.sub('[^A-Za-z0-9_.-]+', '-', text).strip('-_.')[:63].strip('-_.'),
}


class Driver:
    """A driver folder. A `driver.py` may hold a subclass of the same name, for what data cannot
    say."""

    def __init__(self, manifests: Mapping[Path, dict[str, Any]], shared: Iterable[Path]) -> None:
        """Check what was read: the manifest of the folder, then of those that it extends, by
        folder.

        Templates and files are looked for in these folders and then in those of `shared`.
        """
        self.folder = next(iter(manifests))
        self.name = self.folder.name
        self._path = [*manifests, *shared]
        self._env = sandbox.ImmutableSandboxedEnvironment(
            loader=jinja2.FileSystemLoader(self._path),
            undefined=jinja2.StrictUndefined,
            finalize=userdata.quote,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,
        )
        self._env.filters.update(FILTERS)
        self._compiled = functools.cache(
            functools.partial(self._env.compile_expression, undefined_to_none=False)
        )
        self.manifest = self._merged(manifests)
        self.labels_known: dict[str, dict[str, Any]] = self.manifest['labels']
        self._aliases = {
            old: name
            for name, label in self.labels_known.items()
            for old in label.get('aliases', ())
        }
        self.keys = {name: KeySpec(**spec) for name, spec in self.manifest.get('keys', {}).items()}
        self.certificates = {
            name: CertificateSpec(**spec)
            for name, spec in self.manifest.get('certificates', {}).items()
        }
        self.signing = Signing(**self.manifest.get('signing', {}))
        access = self.manifest.get('access')
        self.access = Access(access['authority'], access['groups']) if access else None
        stacks = (self.manifest.get('nodegroup_stack', {}), self.manifest['stack'])
        version = self.labels_known.get(
            self.manifest.get('upgrade', {}).get('version', ''), {}
        ).get('parameter')
        self.texts = stacktext.Texts(stacks, version)
        self._cross_check()

    def __repr__(self) -> str:
        return f'<Driver {self.name} in {self.folder}>'

    # What the folder is.

    def _merged(self, manifests: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
        """One manifest of several, of which the first wins; there null takes away what those behind
        it say."""
        result: dict[str, Any] = {}
        for own in reversed(list(manifests.values())):
            for key, value in own.items():
                if key in MERGED and isinstance(value, dict) and isinstance(result.get(key), dict):
                    result[key] = {k: v for k, v in (result[key] | value).items() if v is not None}
                elif value is None and key in result:
                    del result[key]
                else:
                    result[key] = value
        problem = jsonschema.exceptions.best_match(_manifest_schema().iter_errors(result))
        if problem is not None:
            raise self._error(f'manifest.yaml {problem.json_path}', problem.message)
        return result

    def _cross_check(self) -> None:
        """What a schema cannot say: names that stand in two places, and defaults that are what
        their schema asks."""
        for name, spec in self.certificates.items():
            if name in self.keys or self.keys.get(spec.signed_by, spec) is spec:
                raise self._error(
                    f'manifest.yaml $.certificates.{name}',
                    'no such authority, or a name used twice',
                )
        health = self.manifest.get('health', {})
        named = {
            'signing': self.signing.types.values(),
            'access': [self.access.authority if self.access else None],
            'health': [health.get('authority'), health.get('certificate', {}).get('signed_by')],
        }
        authorities = {name for name, spec in self.keys.items() if spec.kind == 'ca'}
        for place, purposes in named.items():
            if unknown := sorted({name for name in purposes if name is not None} - authorities):
                raise self._error(
                    f'manifest.yaml $.{place}', f'there is no authority {", ".join(unknown)}'
                )
        self._cross_check_labels()

    def _cross_check_labels(self) -> None:
        for name, label in self.labels_known.items():
            default = label.get('default')
            if default is not None and (problem := self._problem(label['schema'], default)):
                raise self._error(f'manifest.yaml $.labels.{name}.default', problem)
        patterns = [
            ('node_labels.refused', self.manifest.get('node_labels', {}).get('refused', '')),
            *(
                (f'retired_labels.{key}', item.get(key, ''))
                for item in self.manifest.get('retired_labels', ())
                for key in ('names', 'harmless')
            ),
        ]
        for place, pattern in patterns:
            try:
                re.compile(pattern, re.VERBOSE)
            except re.error as e:
                raise self._error(f'manifest.yaml $.{place}', e) from e
        for item in self.manifest.get('ranges', ()):
            for label in {item['label'], item.get('per_node', item['label'])} - set(
                self.labels_known
            ):
                raise self._error('manifest.yaml $.ranges', f'there is no label {label}')
        if (version := self.manifest.get('upgrade', {}).get('version')) not in (
            None,
            *self.labels_known,
        ):
            raise self._error('manifest.yaml $.upgrade', f'there is no label {version}')

    def _error(self, place: str, problem: object) -> errors.DriverError:
        return _wrong(self.folder, place, problem)

    @property
    def provides(self) -> list[tuple[str, str, str]]:
        """What the folder makes: (server type, os_distro of the image, engine)."""
        return [(p['server_type'], p['os_distro'], p['coe']) for p in self.manifest['provides']]

    @property
    def template_defaults(self) -> dict[str, Any]:
        """Values for fields of a cluster template that its creator left out."""
        return {
            name: item['default']
            for name, item in self.manifest.get('template_fields', {}).items()
            if 'default' in item
        }

    # What a user may ask.

    def check_template(
        self, values: Mapping[str, Any], conf: cfg.ConfigOpts | None = None
    ) -> list[str]:
        """Say in sentences what of a cluster template's fields this driver cannot do. Null counts
        as not given.

        A label that a field needs may be in `values`, or among the operator's defaults in `conf`.
        """
        problems = [
            f'{name} cannot be {value!r:.80}: {problem}'
            for name, value in values.items()
            if isinstance(value, str) and (problem := _unfit(value))
        ]
        labels = {*(values.get('labels') or ()), *(conf.drivers.label_defaults if conf else ())}
        for name, item in self.manifest.get('template_fields', {}).items():
            if (value := values.get(name)) is not None and (
                problem := self._problem(item['schema'], value)
            ):
                problems.append(
                    self._sentence(
                        f'{name} cannot be {value!r} with driver {self.name}: {problem}', item
                    )
                )
            elif (needed := item.get('needs_label', {}).get(value)) and needed not in labels:
                problems.append(self._sentence(f'{name} {value} needs the label {needed}', item))
        return problems

    def check_labels(self, labels: Mapping[str, str], conf: cfg.ConfigOpts) -> list[str]:
        """Say in sentences which labels are unknown or wrong. A label with an empty value counts as
        not given."""
        problems, known = [], [*self.labels_known, *self._aliases]
        for given, value in labels.items():
            name = self._aliases.get(given, given)
            if name not in self.labels_known and (retired := self._retired(name)):
                if value != '' and not re.fullmatch(
                    retired.get('harmless', ''), value, re.VERBOSE | re.IGNORECASE
                ):
                    problems.append(
                        f'Driver {self.name} does nothing for the label {given}={value!s:.80}: '
                        f'{retired["text"]}'
                    )
            elif name not in self.labels_known:
                near = difflib.get_close_matches(given, known, n=1)
                hint = (
                    f'did you mean {near[0]}?'
                    if near
                    else f'it knows {", ".join(sorted(self.labels_known))}'
                )
                problems.append(f'Driver {self.name} has no label {given!r}; {hint}')
            elif name != given and name in labels:
                problems.append(f'Label {given} is another name of {name}; give one of them')
            elif value != '' and (problem := self._convert(name, value)[1]):
                problem = f'Label {given} cannot be {value!r}: {problem}'
                problems.append(self._sentence(problem, self.labels_known[name]))
        return problems

    def _retired(self, name: str) -> dict[str, Any] | None:
        """What the manifest says of a label that others know and this driver does not."""
        return next(
            (
                item
                for item in self.manifest.get('retired_labels', ())
                if re.fullmatch(item['names'], name, re.VERBOSE)
            ),
            None,
        )

    def check_node_labels(self, labels: Mapping[str, str]) -> list[str]:
        """Say in sentences which labels of nodes the engine keeps for itself. Their spelling is not
        looked at."""
        kept = self.manifest.get('node_labels')
        return [
            f'A node cannot have the label {key!r:.80}: {kept["text"]}'
            for key in labels
            if kept and re.fullmatch(kept['refused'], key, re.VERBOSE)
        ]

    def labels(self, conf: cfg.ConfigOpts, labels: Mapping[str, str]) -> dict[str, Any]:
        """Return every label of the driver, typed: the manifest's default, the operator's, the
        given value.

        Raises `DriverError` if a value is wrong; `check_labels` finds that earlier for those of
        users."""
        effective = {name: label.get('default') for name, label in self.labels_known.items()}
        for source, values in (
            ('[drivers] label_defaults', conf.drivers.label_defaults),
            ('cluster', labels),
        ):
            for given, text in values.items():
                name = self._aliases.get(given, given)
                if name not in self.labels_known or text == '':
                    continue
                effective[name], problem = self._convert(name, text)
                if problem:
                    raise self._error(source, f'label {given} cannot be {text!r}: {problem}')
        return effective

    def _convert(self, name: str, text: str) -> tuple[Any, str | None]:
        """Make the typed value of a label's text: (value, what is wrong with it)."""
        schema = self.labels_known[name]['schema']
        if problem := _unfit(text):
            return None, problem
        value: Any = text
        if schema['type'] == 'boolean':
            value = {
                'true': True,
                '1': True,
                'yes': True,
                'false': False,
                '0': False,
                'no': False,
            }.get(text.lower(), text)
        elif schema['type'] == 'integer' and re.fullmatch(r'-?[0-9]{1,9}', text):
            value = int(text)
        elif schema['type'] == 'array':
            value = [part.strip() for part in text.split(',') if part.strip()]
        return value, self._problem(schema, value)

    def _problem(self, schema: dict[str, Any], value: Any) -> str | None:
        """Say what a value must be, from its schema; None if it is that."""
        if jsonschema.Draft202012Validator(schema, format_checker=FORMATS).is_valid(value):
            return None
        if 'enum' in schema:
            return f'it must be one of {", ".join(map(str, schema["enum"]))}'
        if 'const' in schema:
            return f'it must be {schema["const"]!r}'
        if schema.get('type') == 'boolean':
            return 'it must be true or false'
        if schema.get('type') == 'integer':
            return (
                f'it must be a whole number from {schema.get("minimum", "any")} to '
                f'{schema.get("maximum", "any")}'
            )
        example = schema.get('examples', [None])[0]
        example = ','.join(example) if isinstance(example, list) else example
        return (
            'it must be '
            + ('a list with commas ' if schema.get('type') == 'array' else '')
            + f'like {example}'
        )

    @staticmethod
    def _sentence(problem: str, item: Mapping[str, Any]) -> str:
        return f'{problem} ({item["text"]})' if item.get('text') else problem

    def check_cluster(
        self, conf: cfg.ConfigOpts, cluster: models.Cluster, changed: models.NodeGroup | None = None
    ) -> list[str]:
        """Say in sentences which limits a cluster would run into: addresses, Heat's, Nova's.

        Of its stacks this weighs the one that holds the `changed` nodegroup; without one, the
        cluster's. Needs `template` and `nodegroups` with their counts; their nodes need not exist
        yet, and their number costs no time."""
        context = self._context(conf, cluster)
        problems = [
            item['else']
            for item in self.manifest.get('checks', ())
            if not self._evaluate(item['that'], context)
        ]
        texts = {
            name: value
            for name, value in vars(cluster.template).items()  # templates do not see the others
            if isinstance(value, str) and name not in ('name', 'tags')
        }
        problems += [
            f'{name} cannot be {value!r:.80}: {problem}'
            for name, value in (
                texts | {'The public key': (cluster.public_key or '').strip()}
            ).items()
            if (problem := _unfit(value))
        ]
        problems += self._check_ranges(
            context, sum(group.node_count for group in cluster.nodegroups)
        )
        stack = self.manifest['stack']
        if changed is not None and not changed.is_default:
            stack = self.manifest['nodegroup_stack']
            context = self._context(conf, cluster, changed) | {
                'outputs': collections.defaultdict(str)
            }
        problems += self._check_resources(conf, cluster, context)
        problems += self._check_server_groups(conf, cluster, stack, context)
        sizes = {name: KEY_SIZES[spec.algorithm] for name, spec in self.keys.items()}
        sizes |= dict.fromkeys(self.certificates, KEY_SIZES['ecdsa-p256'])
        secrets = {
            name: types.SimpleNamespace(
                certificate=_noise(public), trusted=_noise(public * 2), private_key=_noise(private)
            )
            for name, (public, private) in sizes.items()
        }
        login = LOGIN_SIZE if self.wants_cloud_user(conf, cluster) else None
        user_data = self._user_data(stack, context, secrets, login).values()
        most = min(conf.cluster_heat.max_user_data, MAX_USER_DATA)
        for text in user_data:
            if (length := len(text) + PLACEHOLDER_ROOM) > most:
                problems.append(
                    f'The user-data of a node would have {length} bytes, and Nova takes {most}; '
                    'shorten labels, keys or proxy settings'
                )
        return problems + self._check_sizes(
            conf, cluster, stack, context, len(json.dumps([*user_data]))
        )

    def check_rotation(self, cluster: models.Cluster) -> list[str]:
        """Say in sentences why the authorities of a cluster cannot be exchanged. Needs `template`
        and `nodegroups`."""
        if cluster.template.tls_disabled:
            return [f'Cluster {cluster.uuid} is without TLS, so it has no authorities']
        if not self.manifest.get('rotation'):
            return [
                f'Driver {self.name} of cluster {cluster.uuid} cannot exchange authorities; make a '
                'new cluster'
            ]
        reasons = (self.replaceable(cluster, group.stack_role) for group in cluster.nodegroups)
        return list(dict.fromkeys(reason for reason in reasons if reason))

    def replaceable(self, cluster: models.Cluster, role: str) -> str | None:
        """Say in a sentence why members of a role cannot be replaced by new ones; None if they
        can."""
        item = self.manifest.get('replaceable', {}).get(role)
        if item is None or self._evaluate(item['that'], {'cluster': cluster}):
            return None
        return f'The {role}s of cluster {cluster.uuid} cannot be replaced: {item["else"]}.'

    def engine_version(self, conf: cfg.ConfigOpts, labels: Mapping[str, str]) -> Any:
        """The version of the engine that labels ask for; None if no label says that."""
        name = self.manifest.get('upgrade', {}).get('version')
        return None if name is None else self.labels(conf, labels)[name]

    def check_upgrade(
        self, conf: cfg.ConfigOpts, old: Mapping[str, str], new: Mapping[str, str]
    ) -> list[str]:
        """Say in sentences why members with the labels `old` cannot be followed by such with the
        labels `new`."""
        context = {'old': self.labels(conf, old), 'new': self.labels(conf, new)}
        return [
            item['else']
            for item in self.manifest.get('upgrade', {}).get('checks', ())
            if not self._evaluate(item['that'], context)
        ]

    def _one_more(self, cluster: models.Cluster, context: dict[str, Any]) -> int:
        """How many masters more a stack has while its masters are replaced."""
        return int('master' in context['groups'] and self.replaceable(cluster, 'master') is None)

    def _check_resources(
        self, conf: cfg.ConfigOpts, cluster: models.Cluster, context: dict[str, Any]
    ) -> list[str]:
        """Find a stack that is larger than Heat allows, by its nodes of each role."""
        size, most = self.manifest['resources'], conf.cluster_heat.max_resources_per_stack
        counts = {role: group.node_count for role, group in context['groups'].items()}
        more = self._one_more(cluster, context)
        resources = size['base'] + sum(
            size.get(role, 0) * count for role, count in (*counts.items(), ('master', more))
        )
        when = ' while a master is replaced' if more else ''
        return (
            [
                f'{sum(counts.values())} nodes need {resources} resources in one stack{when}, and '
                f'Heat allows {most}; use fewer nodes here and further nodegroups for the rest'
            ]
            if 0 <= most < resources
            else []
        )

    def _check_server_groups(
        self,
        conf: cfg.ConfigOpts,
        cluster: models.Cluster,
        stack: dict[str, Any],
        context: dict[str, Any],
    ) -> list[str]:
        """Find more servers in one server group than Nova allows."""
        problems, most = [], conf.cluster_heat.max_server_group_members
        for item in stack.get('files', {}).values():
            role = item.get('role')
            count = context['groups'][role].node_count if role else 0
            wanted = count + (self._one_more(cluster, context) if role == 'master' else 0)
            if not 0 <= most < wanted:
                continue
            _, read = self._template(
                item['template'],
                context | {'role': role, 'group': _Sample(context['groups'][role], [])},
            )
            if any(
                'group' in (resource.get('properties', {}).get('scheduler_hints') or {})
                for resource in (read.get('resources') or {}).values()
            ):
                problems.append(
                    f'{count} {role}s need {wanted} members in one server group'
                    f'{" while one is replaced" if wanted > count else ""}, and Nova allows '
                    f'{most}; use fewer {role}s'
                )
        return problems

    def _check_sizes(
        self,
        conf: cfg.ConfigOpts,
        cluster: models.Cluster,
        stack: dict[str, Any],
        context: dict[str, Any],
        user_data: int,
    ) -> list[str]:
        """Find templates, or a request with all of them, that are longer than Heat takes.

        A member more makes them longer by always the same, which is seen at two of them.
        """
        groups = context['groups']
        names = {stack['template']: (stack['template'], None)} | {
            name: (item['template'], item.get('role'))
            for name, item in stack.get('files', {}).items()
        }

        def lengths(**counts: int) -> dict[str, int]:
            inner = context | {
                'groups': {
                    role: _sample(cluster, group, min(group.node_count, counts.get(role, 1)))
                    for role, group in groups.items()
                }
            }
            texts = {
                name: self._text(
                    template, inner | {'role': role, 'group': inner['groups'].get(role)}
                )
                for name, (template, role) in names.items()
            }
            return {name: len(text) for name, text in texts.items()} | {
                '': sum(len(json.dumps(text)) for text in texts.values())
            }

        one = lengths()
        each = {
            role: lengths(**{role: 2}) for role, group in groups.items() if group.node_count > 1
        }
        total = {
            name: length
            + sum((each[role][name] - length) * (groups[role].node_count - 1) for role in each)
            for name, length in one.items()
        }
        body = int(total.pop('') * EDITED) + user_data + BODY_ROOM
        nodes, heat = sum(group.node_count for group in groups.values()), conf.cluster_heat
        end = '; use fewer nodes here and further nodegroups for the rest'
        return [
            f'{nodes} nodes make a template of {length} bytes, and Heat takes '
            f'{heat.max_template_size}{end}'
            for length in total.values()
            if length > heat.max_template_size
        ] + (
            [
                f'{nodes} nodes make a request of {body} bytes, and Heat takes '
                f'{heat.max_json_body_size}{end}'
            ]
            if body > heat.max_json_body_size
            else []
        )

    def _check_ranges(self, context: dict[str, Any], nodes: int) -> list[str]:
        """Find ranges that overlap, or that are too small for the nodes."""
        problems: list[str] = []
        seen: dict[str, ipaddress.IPv4Network] = {}
        for item in self.manifest.get('ranges', ()):
            name, text = item['label'], context['labels'][item['label']]
            if text is None or ('when' in item and not self._evaluate(item['when'], context)):
                continue
            network = ipaddress.IPv4Network(text)
            problems += [
                f'{name} {network} overlaps {other} {taken}'
                for other, taken in seen.items()
                if network.overlaps(taken)
            ]
            seen[name] = network
            room = (
                network.num_addresses - 8 if item.get('hosts') else None
            )  # ends, gateway, DHCP, load balancer
            if 'per_node' in item:
                room = (
                    1 << (context['labels'][item['per_node']] - network.prefixlen)
                    if context['labels'][item['per_node']] >= network.prefixlen
                    else 0
                )
            if room is not None and room < nodes:
                problems.append(
                    f'{name} {network} has room for {max(room, 0)} nodes, and {nodes} are asked for'
                )
        return problems

    # What Heat gets.

    def render(
        self,
        conf: cfg.ConfigOpts,
        cluster: models.Cluster,
        secrets: Mapping[str, Secret],
        login: clients.Login | None = None,
    ) -> Rendered:
        """Render the root stack of a cluster, with all members of its default nodegroups.

        Needs `template` and `nodegroups` with their nodes; `secrets` holds all of `keys` and
        `certificates`, `login` is of the cluster's user in the cloud, if it has one. The same rows
        always give the same template. Raises `DriverError` with the place in the folder."""
        return self._render(self.manifest['stack'], self._context(conf, cluster), secrets, login)

    def render_nodegroup(
        self,
        conf: cfg.ConfigOpts,
        cluster: models.Cluster,
        group: models.NodeGroup,
        secrets: Mapping[str, Secret],
        *,
        outputs: Mapping[str, Any],
        login: clients.Login | None = None,
    ) -> Rendered:
        """Render the root stack of one further nodegroup; `outputs` are those of the cluster's
        stack.

        Otherwise as `render`. Raises `DriverError` if the driver has no such stack, too.
        """
        if 'nodegroup_stack' not in self.manifest:
            raise errors.DriverError(
                f'driver {self.name} makes no nodegroups beside the default ones'
            )
        context = self._context(conf, cluster, group) | {'outputs': outputs}
        return self._render(self.manifest['nodegroup_stack'], context, secrets, login)

    def wants_cloud_user(self, conf: cfg.ConfigOpts, cluster: models.Cluster) -> bool:
        """Whether a cluster that is made now gets a user of its own in the cloud."""
        wanted = self.manifest.get('cloud_user')
        return wanted is not None and bool(self._evaluate(wanted, self._context(conf, cluster)))

    def load_balancers_text(self, cluster: models.Cluster) -> str | None:
        """What the description of a load balancer holds that was made inside the cluster; None:
        nothing makes any."""
        expression = self.manifest.get('load_balancers')
        return None if expression is None else str(self._evaluate(expression, {'cluster': cluster}))

    def _context(
        self, conf: cfg.ConfigOpts, cluster: models.Cluster, further: models.NodeGroup | None = None
    ) -> dict[str, Any]:
        """Collect what templates and expressions see; `groups` are those of the stack, by role. No
        secret is in it."""

        def seen(group: models.NodeGroup) -> _Wanted:
            return _Wanted(
                group,
                lambda: self.texts.numbers((further or cluster).stack_text or {}),
                conf.cluster_heat.nodes_per_wave,
            )

        groups = {
            group.role: seen(group) for group in reversed(cluster.nodegroups) if group.is_default
        }
        labels = cluster.labels or {}
        if further is not None:
            groups, labels = {'worker': seen(further)}, labels | (further.labels or {})
        context = {
            'cluster': cluster,
            'template': cluster.template,
            'labels': self.labels(conf, labels),
            'groups': groups,
            'node_timeout_s': node_timeout_s(conf, cluster),
            'has_cluster_users': has_cluster_users(conf),
        }
        for name, expression in self.manifest.get('facts', {}).items():
            context[name] = self._evaluate(expression, context)
        return context

    def _render(
        self,
        stack: dict[str, Any],
        context: dict[str, Any],
        secrets: Mapping[str, Secret],
        login: clients.Login | None,
    ) -> Rendered:
        if missing := sorted({*self.keys, *self.certificates} - set(secrets)):
            raise errors.DriverError(
                f'driver {self.name}: no secrets given for {", ".join(missing)}'
            )
        template, read = self._template(stack['template'], context)
        files = {}
        for name, item in stack.get('files', {}).items():
            role = item.get('role')
            files[name], _ = self._template(
                item['template'], {**context, 'role': role, 'group': context['groups'].get(role)}
            )
        declared = read.get('parameters') or {}
        values: dict[str, Any] = {
            label['parameter']: context['labels'][name]
            for name, label in self.labels_known.items()
            if 'parameter' in label
        }
        values |= {
            name: self._evaluate(expression, context)
            for name, expression in self.manifest.get('parameters', {}).items()
            if name in declared
        }
        values |= self._user_data(stack, context, secrets, login)
        return Rendered(
            template,
            files,
            {
                name: value
                for name, value in values.items()
                if name in declared and value is not None
            },
        )

    def _user_data(
        self,
        stack: dict[str, Any],
        context: dict[str, Any],
        secrets: Mapping[str, Secret],
        login: clients.Login | None,
    ) -> dict[str, str]:
        """Make the user-data of each role, by parameter name."""
        texts = {}
        envelope = (
            userdata.ignition
            if self.manifest.get('envelope') == 'ignition'
            else userdata.cloud_config
        )
        for parameter, item in stack.get('user_data', {}).items():
            inner = {
                **context,
                'role': item['role'],
                'group': context['groups'][item['role']],
                'secrets': secrets,
                'login': login,
            }
            _, node = self._template(item['template'], inner)
            try:
                texts[parameter] = envelope(node, functools.partial(self._content, inner))
            except (KeyError, TypeError, ValueError, AttributeError, OSError) as exc:
                raise self._error(
                    item['template'], f'{type(exc).__name__} {exc} in what a node gets'
                ) from exc
        return texts

    def _content(self, context: dict[str, Any], item: dict[str, Any]) -> str:
        """Make the content of a node's file: `text`, `file`, `environment`, `documents` or
        `template` says of what."""
        if 'text' in item:
            return str(item['text'])
        if 'file' in item:
            for folder in self._path:
                if (found := folder / 'files' / item['file']).is_file():
                    return found.read_text(encoding='utf-8')
            raise FileNotFoundError(item['file'])
        if 'environment' in item:
            return ''.join(
                f'{name}={shlex.quote("" if value is None else str(value))}\n'
                for name, value in item['environment'].items()
            )
        if 'template' in item:
            documents = list(yaml.load_all(self._text(item['template'], context), Loader=_Loader))
        else:
            documents = item['documents']
        return ''.join(f'---\n{userdata.quote(document)}\n' for document in documents)

    def _template(self, name: str, context: dict[str, Any]) -> tuple[str, Any]:
        """Render a template and read it as YAML: (text, data)."""
        text = self._text(name, context)
        try:
            return text, yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as exc:
            mark = getattr(exc, 'problem_mark', None)
            place = f'{name}, line {mark.line + 1} of the result' if mark else name
            raise self._error(place, getattr(exc, 'problem', exc)) from exc

    def _text(self, name: str, context: dict[str, Any]) -> str:
        try:
            return self._env.get_template(name).render(context)
        except jinja2.TemplateSyntaxError as exc:
            raise self._error(f'{exc.name}, line {exc.lineno}', exc.message) from exc
        except jinja2.TemplateNotFound as exc:
            raise self._error(name, f'there is no {exc.name}') from exc
        except Exception as exc:  # whatever an expression of a template may raise
            lines = [
                f for f in traceback.extract_tb(exc.__traceback__) if f.filename.endswith('.j2')
            ]
            place = f'{Path(lines[-1].filename).name}, line {lines[-1].lineno}' if lines else name
            raise self._error(place, f'{type(exc).__name__}: {exc}') from exc

    def _evaluate(self, expression: str, context: dict[str, Any]) -> Any:
        """Evaluate an expression of the manifest to a value."""
        try:
            value = self._compiled(expression)(**context)
            if isinstance(value, jinja2.Undefined):
                str(value)  # raises, with the name
            return value
        except Exception as exc:
            raise self._error(f'manifest.yaml, expression {expression!r}', exc) from exc

    # What comes back.

    def read_outputs(self, outputs: Mapping[str, Any]) -> Observed:
        """Read what a stack says. Any output may be missing or null, on a cloud with stand-ins all
        are."""
        names = self.manifest['outputs']
        nodes = {}
        for name in names.get('nodes', ()):
            for item in outputs.get(name) or ():
                nodes[item['nodegroup'], int(item['number'])] = ObservedNode(
                    item.get('server_id'), item.get('address'), item.get('private_address')
                )
        return Observed(
            api_address=outputs.get(names.get('api_address')),
            coe_version=outputs.get(names.get('coe_version')),
            nodes=nodes,
        )

    # How it is.

    def health_check(self, conf: cfg.ConfigOpts, cluster: models.Cluster) -> HealthCheck | None:
        """Say what to ask of a cluster's engine, or None if the folder does not.

        Needs `template` and `nodegroups`. Raises `DriverError` if the address is none that can be
        asked."""
        item = self.manifest.get('health')
        if item is None:
            return None
        context = self._context(conf, cluster)
        base = self._health_url(item.get('url', 'cluster.api_address'), context)
        if base.startswith('https:') and 'authority' not in item:
            raise self._error('manifest.yaml $.health', 'https needs an authority')
        certificate = CertificateSpec(**item['certificate']) if 'certificate' in item else None
        requests = {
            name: HealthRequest(
                (self._health_url(request['url'], context) if 'url' in request else base)
                + request['path'],
                request.get('accept'),
            )
            for name, request in item['requests'].items()
        }
        return HealthCheck(base, requests, item.get('authority'), certificate)

    def _health_url(self, expression: str, context: dict[str, Any]) -> str:
        url = str(self._evaluate(expression, context))
        if not re.fullmatch(r'https?://[^\s/@]+(/[!-~]*)?', url):
            raise self._error('manifest.yaml $.health.url', f'{url!r} is no URL to ask')
        return url.rstrip('/')

    def read_health(
        self, conf: cfg.ConfigOpts, cluster: models.Cluster, answers: Mapping[str, Answer]
    ) -> Health:
        """Say what the answers mean. Needs nodes, too. Raises `DriverError` if the folder does not
        understand them.

        An engine may go on to know members that were removed; the template can tell them by their
        names."""
        name = self.manifest['health']['template']
        names = [node.name for group in cluster.nodegroups for node in members.list_wanted(group)]
        _, data = self._template(
            name,
            self._context(conf, cluster)
            | {
                'answers': answers,
                'member_names': names,
                'name_prefix': members.name_prefix(cluster),
            },
        )
        try:
            healthy, lines, forget = (
                data['healthy'],
                data['reason'].items(),
                list(data.get('forget') or ()),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise self._error(name, f'{type(exc).__name__} {exc} in what the answers mean') from exc
        if healthy not in (True, False, None):
            raise self._error(name, f'healthy is {healthy!r}')
        for path in forget:
            if not re.fullmatch('/[!-~]*', str(path)):
                raise self._error(name, f'{path!r} is no path to forget')
        # Whoever owns the nodes can have them answer anything.
        reason: dict[str, str] = {}
        room = MAX_REASON
        for key, text in (
            (str(k)[:MAX_REASON_LINE], str(v).strip()[:MAX_REASON_LINE]) for k, v in lines
        ):
            room -= len(key) + len(text)
            if room < 0:
                reason['...'] = f'{len(lines) - len(reason)} more'
                break
            reason[key] = text
        return Health(healthy, reason, tuple(forget))

    # How a user gets in.

    def render_access(
        self,
        cluster: models.Cluster,
        *,
        authority: str,
        user: str,
        certificate: str,
        private_key: str,
    ) -> str:
        """Render what a user's client reads, of PEM texts: the cluster's authority, and the user's
        own pair.

        Only where there is `access`. Needs `template`. Raises `DriverError`.
        """
        text, _ = self._template(
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


class _Wanted:
    """A nodegroup as templates see it: without the members that are to go, and those that come in a
    later wave."""

    def __init__(
        self, group: models.NodeGroup, there: Callable[[], dict[str, set[int]]], most: int
    ) -> None:
        self._group, self._there, self._most = group, there, most

    @functools.cached_property
    def nodes(self) -> list[models.Node]:
        """Read when asked for: not everybody who evaluates an expression has loaded the nodes."""
        there = self._there().get(self._group.stack_role, set()) if self._most else set()
        return members.next_members(self._group, there, self._most)

    @property
    def leaving(self) -> list[models.Node]:
        """Those that others are to take the place of, in the order in which they go."""
        return members.list_to_replace(self._group)

    @property
    def staying(self) -> list[models.Node]:
        """Those that are there and stay."""
        return members.list_up_to_date(self._group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


def _noise(length: int) -> str:
    """Text that takes the room of a key, packed or not; always the same."""
    return base64.b64encode(hashlib.shake_128(b'').digest(length)).decode()[:length]


#: As large as a login of a cluster is, for the same purpose.
LOGIN_SIZE = clients.Login(_noise(64), _noise(50), _noise(200), _noise(40), _noise(4000))


class _Sample:
    """A nodegroup as templates see it, with other members."""

    def __init__(self, group: Any, nodes: list[models.Node]) -> None:
        self._group, self.nodes = group, nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)


def _sample(cluster: models.Cluster, group: Any, count: int) -> _Sample:
    """A nodegroup with so many members, whose names are as long as its last one's."""
    number = (group.next_number or 0) + group.node_count
    return _Sample(
        group,
        [
            models.Node(
                number=number + n, name=members.node_name(cluster, group, number), rollout=1
            )
            for n in range(count)
        ],
    )


@functools.cache
def _manifest_schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        yaml.safe_load((BUILT_IN / 'manifest.schema.yaml').read_text(encoding='utf-8'))
    )


_Loader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


def node_timeout_s(conf: cfg.ConfigOpts, cluster: models.Cluster) -> int:
    """Return the seconds a node has to report, which are fewer than its stack has."""
    stack_s = (cluster.create_timeout or conf.cluster_heat.create_timeout) * 60
    return min(max(stack_s - TIMEOUT_MARGIN_S, stack_s * 3 // 4), MAX_WAIT_S)


def has_cluster_users(conf: cfg.ConfigOpts) -> bool:
    """Whether the operator has provided for clusters to get users of their own: a domain, and
    roles."""
    return bool(
        (conf.trust.trustee_domain_id or conf.trust.trustee_domain_name)
        and (conf.trust.roles or conf.identity.project_roles)
    )


def load(conf: cfg.ConfigOpts) -> dict[str, Driver]:
    """Return all drivers by name. Folders of `[drivers] path` win over entry points, those over the
    built-in ones.

    Folders are read once in a process. Raises `DriverError` for the first folder that is wrong,
    naming the place."""
    return dict(_load(tuple(conf.drivers.path)))


@functools.lru_cache(maxsize=8)
def _load(path: tuple[str, ...]) -> dict[str, Driver]:
    homes = [BUILT_IN]
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda e: e.name):
        homes += [Path(place) for place in entry.load().__path__]
    for place in reversed(path):
        if not Path(place).is_dir():
            raise errors.DriverError(f'[drivers] path {place}: there is no such folder')
        homes.append(Path(place))
    known: dict[str, list[Path]] = {}
    for home in homes:
        for folder in sorted(home.iterdir()):
            if (folder / 'manifest.yaml').is_file() and not folder.name.startswith('_'):
                known.setdefault(folder.name, []).append(folder)
    found = {}
    chains = (_manifests(folders[-1], known) for folders in known.values())
    for manifests in sorted(chains, key=len):  # so that what is wrong is found where it stands
        name = next(iter(manifests)).name
        homes_of = dict.fromkeys([*(folder.parent for folder in manifests), BUILT_IN])
        shared = [home / '_shared' for home in homes_of if (home / '_shared').is_dir()]
        found[name] = _class_of(manifests)(manifests, shared)
    return found


def _wrong(folder: Path, place: str, problem: object) -> errors.DriverError:
    return errors.DriverError(f'driver folder {folder}: {place}: {problem}')


def _manifests(folder: Path, known: Mapping[str, list[Path]]) -> dict[Path, dict[str, Any]]:
    """What the manifests say of a folder and those that it extends, by folder.

    `known`: folders by name, each behind those that it hides. A folder that extends its own name
    means what it hides."""
    found: dict[Path, dict[str, Any]] = {}
    while True:
        try:
            manifest = yaml.safe_load((folder / 'manifest.yaml').read_text(encoding='utf-8'))
        except (OSError, UnicodeError, yaml.YAMLError) as exc:
            raise _wrong(folder, 'manifest.yaml', exc) from exc
        if not isinstance(manifest, dict):
            raise _wrong(folder, 'manifest.yaml $', f'{manifest!r:.80} is not a mapping')
        found[folder] = manifest
        if (name := manifest.get('extends')) is None:
            return found
        others = known.get(str(name), [])
        if name == folder.name:
            others = others[: others.index(folder)]
        if not others or others[-1] in found:
            raise _wrong(
                folder,
                'manifest.yaml $.extends',
                f'{name} extends this folder itself'
                if others
                else f'there is no other driver folder {name}',
            )
        folder = others[-1]


def _class_of(folders: Iterable[Path]) -> type[Driver]:
    """Return the class in the first `driver.py` of these folders, or the plain one."""
    folder = next((folder for folder in folders if (folder / 'driver.py').is_file()), None)
    if folder is None:
        return Driver
    source = folder / 'driver.py'
    spec = importlib.util.spec_from_file_location(f'magnum_lite_driver_{folder.name}', source)
    assert spec is not None and spec.loader is not None  # it is a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        raise errors.DriverError(
            f'driver folder {folder}: driver.py: {type(exc).__name__}: {exc}'
        ) from exc
    if not (isinstance(own := getattr(module, 'Driver', None), type) and issubclass(own, Driver)):
        raise errors.DriverError(
            f'driver folder {folder}: driver.py has no class Driver that is a drivers.Driver'
        )
    return own


def find(
    conf: cfg.ConfigOpts, *, server_type: str, os_distro: str, coe: str, name: str | None = None
) -> Driver:
    """Find the driver for an engine on an image; of several, the first by name. Raises `Invalid` if
    there is none."""
    drivers = load(conf)
    enabled = {
        key: drivers[key] for key in sorted(drivers) if key not in conf.drivers.disabled_drivers
    }
    wanted = (server_type, os_distro, coe)
    if name is not None:
        if name not in enabled:
            state = 'is disabled here' if name in drivers else 'does not exist'
            raise errors.Invalid(
                f'Driver {name!r} {state}. There are: {", ".join(enabled) or "none"}.'
            )
        enabled = {name: enabled[name]}
    for driver in enabled.values():
        if wanted in driver.provides:
            return driver
    offered = '; '.join(
        f'{key} makes ' + ', '.join(f'{c} on {o} ({s})' for s, o, c in driver.provides)
        for key, driver in enabled.items()
    )
    who = f'Driver {name} does not make' if name else 'No driver makes'
    raise errors.Invalid(
        f'{who} {coe} clusters from an image with os_distro {os_distro!r} on server_type '
        f'{server_type!r}. {offered or "No driver is enabled"}.'
    )
