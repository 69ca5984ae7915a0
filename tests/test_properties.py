"""Whatever text a user sends in any field: it is refused in words, or it comes through to nodes as
that text.

For each example the same cluster is rendered twice: with hostile texts and with plain words. Read
back as Heat and a node read them (YAML, cloud-config, env files through a shell, JSON, embedded
documents), the one must be the other with each word replaced by the text: so the structure is the
same, and all data is what went in.

The examples are the same at each run. HYPOTHESIS_PROFILE=explore looks for new ones, for minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oslo_config import cfg
from rendering import functions, is_ignition, parse, read_yaml, unpacked, walk

from magnum_lite import certs, config, drivers, errors, models, userdata
from magnum_lite.api import nodegroups, offline, resources, versions

settings.register_profile(
    'repeatable',
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=15,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
settings.register_profile(
    'explore',
    settings.get_profile('repeatable'),
    derandomize=False,
    max_examples=1500,
    phases=tuple(Phase),
    print_blob=True,
)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'repeatable'))

PIECES = [
    '"',
    "'",
    '\\',
    '\n',
    '\r',
    '\t',
    '\0',
    '\x1b[31m',
    '\x7f',
    '\x85',
    '\u2028',
    '\ufeff',
    '\u202e',
    '\ud800',
    '\ufffe',
    '\U0001f600',
    '\U000e0041',
    'é',
    '{{ 7*7 }}',
    '{% if x %}',
    '{#',
    '$(id)',
    '`id`',
    '${HOME}',
    '$$',
    '&a ',
    '*a',
    '!!python/object:os.x ',
    '<<: *a',
    '- ',
    ': ',
    ' #',
    '---',
    '...',
    '|',
    '> ',
    '%',
    '? ',
    '[',
    ']',
    '{',
    '}',
    'null',
    '~',
    'yes',
    '0x1',
    '1e3',
    '@@NODE_NAME@@',
    '@@SIGNAL_TOKEN@@',
    '@@',
    '@',
    '=',
    ',',
    '/',
    '../',
    ';',
    '&&',
    ' ',
    '!',
    'get_param',
    'A' * 200,
]
HOSTILE = (
    st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=5)
    .map(''.join)
    .filter(bool)
)  # an empty label counts as not given
URL = HOSTILE.map('https://mirror.example/{}'.format)
#: Texts by where they are sent to, and what goes around them. Every other field is tried with
#: `test_any_field`.
TEMPLATE = (
    'image_id',
    'flavor_id',
    'master_flavor_id',
    'external_network_id',
    'fixed_network',
    'fixed_subnet',
    'http_proxy',
    'https_proxy',
    'no_proxy',
    'insecure_registry',
    'keypair_id',
)
CLUSTER = ('flavor_id', 'master_flavor_id', 'fixed_network', 'fixed_subnet')
GROUP = ('image_id', 'flavor_id', 'role')
FOLDERS = sorted(drivers.folders.read_folders(()))


def configuration() -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    config.register(conf)
    conf([], default_config_files=[])
    return conf


CONF = configuration()


@pytest.fixture(scope='module', params=FOLDERS)
def driver(request: pytest.FixtureRequest) -> drivers.Driver:
    return drivers.load(CONF)[request.param]


@pytest.fixture(scope='module')
def secrets(driver: drivers.Driver) -> dict[str, certs.Pair]:
    return offline.make_secrets(driver)


def words(schema: dict[str, Any]) -> Callable[[str], str] | None:
    """How a text is made one that a label may take; None if only a few texts are taken anyway."""
    schema = schema.get('items', schema)
    if schema.get('format') == 'url':
        return 'https://mirror.example/{}'.format
    return (
        str
        if schema['type'] == 'string' and re.search(schema.get('pattern', '(?!)'), 'a "text"')
        else None
    )


def body_of(
    driver: drivers.Driver, texts: dict[tuple[str, str], str]
) -> tuple[dict[str, Any], ...]:
    """Bodies of a template, a cluster and a further nodegroup with these texts in them."""
    server_type, _, coe = driver.provides[0]
    plain = offline.TEMPLATE | {
        'coe': coe,
        'server_type': server_type,
        'driver': driver.name,
        'name': 't',
    }
    bodies: dict[str, dict[str, Any]] = {
        'template': plain,
        'cluster': {'name': 'c'},
        'group': {'name': 'g'},
        'labels': {},
        'node_labels': {},
    }
    for (place, name), text in texts.items():
        bodies[place] |= {name: text}
    bodies['template'] |= {'labels': bodies['labels']}
    bodies['group'] |= {'node_labels': bodies['node_labels']}
    return bodies['template'], bodies['cluster'], bodies['group']


def rows(
    driver: drivers.Driver, texts: dict[tuple[str, str], str]
) -> tuple[drivers.Driver, models.Cluster, models.NodeGroup] | None:
    """(driver, cluster, further nodegroup), or None if that was refused as a request would have
    been."""
    template, cluster, group = body_of(driver, texts)
    try:
        row = offline.make_template(CONF, template)
        found, made = offline.make_cluster(CONF, row, cluster)
        return found, made, offline.make_nodegroup(CONF, found, made, group)
    except (errors.Invalid, errors.Conflict) as e:
        str(e).encode('utf-8', 'backslashreplace')
        return None


def is_taken(driver: drivers.Driver, place: tuple[str, str], text: str) -> bool:
    """Whether a text passes the checks of its field, without anything being rendered."""
    template, cluster, group = body_of(driver, {place: text})
    try:
        if place[0] in ('template', 'labels'):
            row = offline.make_template(CONF, template)
            return driver.check_labels(row.labels, CONF) == []
        resources.CLUSTER.parse(cluster | {'cluster_template_id': 't'}, versions.MAXIMUM)
        values = resources.NODEGROUP.parse(group, versions.MAXIMUM)
        nodegroups._check_consistent(values, driver.check_node_labels(values['node_labels']))
    except (errors.Invalid, errors.Conflict):
        return False
    return True


def by_heat(text: str, trees: dict[str, Any]) -> str:
    """User-data as Heat hands it on: what its templates say is put in the place of placeholders."""
    keys = {
        key
        for tree in trees.values()
        for call in functions(tree, 'str_replace')
        for key in call['params']
    }
    return re.sub(
        '|'.join(map(re.escape, sorted(keys, key=len, reverse=True))) or '(?!)', 'HEAT', text
    )


def by_shell(text: str) -> dict[str, str]:
    """What a shell makes of an env file."""
    done = subprocess.run(
        ['sh', '-c', 'set -a; eval "$0"; exec env -0', text],
        env={},
        capture_output=True,
        check=True,
    )
    return dict(
        item.split('=', 1)
        for item in done.stdout.decode().split('\0')
        if item[:4] not in ('PWD=', '')
    )


def content(path: str, text: str) -> Any:
    """What a program on a node reads in a file."""
    if path.endswith('.env'):
        return by_shell(text)
    if text.startswith('---\n'):
        return list(yaml.load_all(text, Loader=yaml.CSafeLoader))
    return json.loads(text) if path.endswith('.json') else text


def told(
    driver: drivers.Driver,
    cluster: models.Cluster,
    group: models.NodeGroup | None,
    secrets: dict[str, certs.Pair],
) -> Any:
    """Everything that is sent for a cluster and its nodegroup, read back."""
    everything: dict[str, Any] = {}
    for stack, further in (('cluster', None), ('further', group)):
        rendered = offline.render(CONF, driver, cluster, secrets, further)
        trees = parse(rendered)
        texts = {
            name: by_heat(value, trees)
            for name, value in rendered.parameters.items()
            if name.endswith('user_data')
        }
        # A pair of surrogates is one character in JSON, and none in YAML.
        nodes = {
            name: (json.loads if is_ignition(text) else read_yaml)(text)
            for name, text in texts.items()
        }
        everything[stack] = {
            'templates': trees,
            'parameters': {
                name: value for name, value in rendered.parameters.items() if name not in texts
            },
            'nodes': {
                name: {
                    key: item for key, item in node.items() if key not in ('write_files', 'storage')
                }
                for name, node in nodes.items()
            },
            'files': {
                name: {path: content(path, inner) for path, inner in unpacked(text).items()}
                for name, text in texts.items()
            },
        }
    return everything


def replaced(tree: Any, texts: dict[str, str]) -> Any:
    """A tree with words replaced in all its texts, and lists of labels as lists."""
    if isinstance(tree, dict):
        return {
            replaced(key, texts) if isinstance(key, str) else key: replaced(value, texts)
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [replaced(item, texts) for item in tree]
    if not isinstance(tree, str):
        return tree
    if tree.startswith('magnum.openstack.org/role='):
        return [replaced(item, texts) for item in tree.removeprefix('magnum.').split(',')]
    return re.sub('|'.join(map(re.escape, texts)), lambda m: texts[m[0]], tree)


def differences(one: Any, other: Any, place: str = '') -> Iterator[str]:
    """Where two trees differ, to be read by a person."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from differences(one[key], other[key], f'{place}/{key}')
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f'{place}/{number}')
    elif isinstance(one, dict) and isinstance(other, dict):
        yield f'{place}: {sorted(set(one) ^ set(other), key=str)}'
    elif one != other:
        yield f'{place}: {one!r:.300} is {other!r:.300}'


def places(driver: drivers.Driver) -> dict[tuple[str, str], Callable[[str], str]]:
    """Where a text may be sent to that reaches Heat, and how it is made one that might be taken
    there."""
    found: dict[tuple[str, str], Callable[[str], str]] = {
        **{('template', name): str for name in TEMPLATE},
        **{('cluster', name): str for name in CLUSTER},
        **{('group', name): str for name in GROUP},
        ('node_labels', 'tier'): str,
    }
    # What a provider of keys would refuse is in the middle.
    found['template', 'keypair_id'] = 'k{}k'.format
    labels = {
        name: words(label['schema'])
        for name, label in driver.labels_known.items()
        if not label['schema']['type'] == 'array' and not label.get('informative')
    }
    return found | {('labels', name): made for name, made in labels.items() if made}


@given(data=st.data())
def test_text_is_refused_or_comes_through_as_data(
    driver: drivers.Driver, secrets: dict[str, certs.Pair], data: st.DataObject
) -> None:
    known = places(driver)
    needed = {
        ('labels', name): 'f' * 64 for name in driver.labels_known if name.endswith('_sha256')
    }
    plain = {place: made(f'w{number:03d}w') for number, (place, made) in enumerate(known.items())}
    sent = {place: made(data.draw(HOSTILE, label='/'.join(place))) for place, made in known.items()}
    sent = {place: text for place, text in sent.items() if is_taken(driver, place, text)}

    one, other = rows(driver, plain | needed), rows(driver, plain | needed | sent)

    assert one and other
    both = zip(
        (one[1], one[2], one[1].nodegroups[0]),
        (other[1], other[2], other[1].nodegroups[0]),
        strict=True,
    )
    replacing = {word: sent.get(place, word) for place, word in plain.items()}
    here: Any
    there: Any
    for here, there in both:
        replacing |= {here.uuid: there.uuid, here.uuid[:8]: there.uuid[:8]}
    expected = replaced(told(*one, secrets), replacing)
    assert (
        list(differences(expected, replaced(told(*other, secrets), {other[1].uuid: other[1].uuid})))
        == []
    )


@given(
    texts=st.dictionaries(
        st.sampled_from(
            [
                field.name
                for field in resources.CLUSTER_TEMPLATE.fields
                if field.type.get('type') == 'string'
            ]
        ),
        HOSTILE,
        min_size=1,
        max_size=2,
    ),
    labels=st.dictionaries(
        HOSTILE | st.sampled_from(['kube_tag', 'fixed_subnet_cidr', 'availability_zone']),
        HOSTILE,
        max_size=2,
    ),
)
@settings(max_examples=100)
def test_any_field_is_taken_or_refused_in_words(
    driver: drivers.Driver, texts: dict[str, str], labels: dict[str, str]
) -> None:
    template, _, _ = body_of(driver, {})

    try:
        row = offline.make_template(CONF, template | texts | {'labels': labels})
    except (errors.Invalid, errors.Conflict) as e:
        assert str(e)
    else:
        values = {
            name: getattr(row, name) for name in texts if name not in ('uuid', 'cluster_distro')
        }
        assert values == {name: text for name, text in texts.items() if name in values}
        for text in (*values.values(), *row.labels.values()):
            assert not re.search('[\x00-\x1f\x7f\ud800-\udfff]|@@[A-Z_]+@@', text)


def test_no_text_that_is_taken_is_more_than_a_text(driver: drivers.Driver) -> None:
    """Each piece by itself, in each field that reaches a node."""
    for place, made in places(driver).items():
        if place[0] in ('template', 'labels'):
            for piece in PIECES:
                taken = is_taken(driver, place, made(f'a{piece}b'))
                assert not (taken and re.search('[\x00-\x1f\x7f\ud800]|@@[A-Z_]+@@', piece)), (
                    place,
                    piece,
                )


@given(name=HOSTILE)
def test_name_of_a_nodegroup_is_one_label(
    driver: drivers.Driver, secrets: dict[str, certs.Pair], name: str
) -> None:
    found = rows(driver, {('group', 'name'): name})
    if found is None:
        return

    everything = told(*found, secrets)

    assert name in [
        text for text in walk(everything['further']['templates']) if isinstance(text, str)
    ]
    labels = [
        text
        for text in walk(everything)
        if isinstance(text, str) and re.match(r'magnum\.openstack\.org', text)
    ]
    for text in labels:
        for label in text.split(','):
            assert nodegroups.LABEL_VALUE.fullmatch(label.partition('=')[2]), label


@given(key=HOSTILE, value=HOSTILE)
def test_labels_and_taints_of_nodes_are_words(driver: drivers.Driver, key: str, value: str) -> None:
    template, cluster, _ = body_of(driver, {})
    found, made = offline.make_cluster(CONF, offline.make_template(CONF, template), cluster)
    for tried in (
        {'node_labels': {key: 'v'}},
        {'node_labels': {'k': value}},
        {'node_taints': [{'key': key, 'value': value, 'effect': 'NoExecute'}]},
    ):
        try:
            group = offline.make_nodegroup(
                CONF, found, made, {'name': f'g{len(made.nodegroups)}', **tried}
            )
        except (errors.Invalid, errors.Conflict) as e:
            assert str(e)
        else:
            texts = [
                *group.node_labels,
                *group.node_labels.values(),
                *(t['key'] for t in group.node_taints),
            ]
            assert all(re.fullmatch('[A-Za-z0-9./_-]*', text) for text in texts)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text(max_size=20)
    | HOSTILE.filter(lambda text: '\ud800' not in text),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(value=VALUES)
@settings(max_examples=150)
def test_quoted_value_reads_back_as_itself(value: Any) -> None:
    text = userdata.quote(value)

    assert (
        yaml.load(text, Loader=yaml.SafeLoader) == yaml.load(text, Loader=yaml.CSafeLoader) == value
    )
    assert text.isascii() and '\n' not in text
