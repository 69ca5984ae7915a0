"""The JSON-patch dialect: what changes, what is refused, and documents that were made to hurt."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from magnum_lite import errors, models, schema
from magnum_lite.api import patch, versions
from magnum_lite.api.resources import CLUSTER, CLUSTER_TEMPLATE, NODEGROUP, TAINTS

SETTABLE = ('node_count', 'health_status', 'health_status_reason')
BEFORE = {
    'name': 'c1',
    'node_count': 2,
    'health_status': None,
    'health_status_reason': {},
    'labels': {'a': '1'},
    'docker_volume_size': None,
    'master_lb_enabled': False,
}
GROUP = {
    'name': 'g',
    'min_node_count': 1,
    'max_node_count': 5,
    'node_labels': {'a': 'b'},
    'node_taints': [],
}
GROUP_SETTABLE = ('min_node_count', 'max_node_count', 'node_labels', 'node_taints')


def changes(*operations: Any, **before: Any) -> dict[str, Any]:
    return patch.read_changes(
        CLUSTER, BEFORE | before, list(operations), versions.MAXIMUM, SETTABLE
    )


def group_changes(*operations: Any, **before: Any) -> dict[str, Any]:
    return patch.read_changes(
        NODEGROUP, GROUP | before, list(operations), versions.MAXIMUM, GROUP_SETTABLE
    )


def put(path: str, value: Any, op: str = 'replace') -> dict[str, Any]:
    return {'op': op, 'path': path, 'value': value}


@pytest.mark.parametrize(
    ('operation', 'changed'),
    [
        (put('/node_count', 5), {'node_count': 5}),
        (put('/node_count', '5'), {'node_count': 5}),
        (put('/node_count', 5.0), {'node_count': 5}),
        (put('/node_count', 0), {'node_count': 0}),
        (put('/node_count', 2), {}),
        ({'op': 'remove', 'path': '/node_count'}, {'node_count': 1}),
        (put('/health_status', 'HEALTHY'), {'health_status': 'HEALTHY'}),
        (put('/health_status', 'HEALTHY', 'add'), {'health_status': 'HEALTHY'}),
        ({'op': 'remove', 'path': '/health_status'}, {}),
        (
            put('/health_status_reason', "{'api': 'ok', 'n.Ready': True}"),
            {'health_status_reason': {'api': 'ok', 'n.Ready': 'True'}},
        ),
        (put('/health_status_reason', '{"api": "ok"}'), {'health_status_reason': {'api': 'ok'}}),
        (
            put('/health_status_reason', {'api': 'ok', 'nodes': 3}),
            {'health_status_reason': {'api': 'ok', 'nodes': '3'}},
        ),
        (
            put('/health_status_reason', {'api': 'ok'}, 'add'),
            {'health_status_reason': {'api': 'ok'}},
        ),
        (put('/health_status_reason', '{}'), {}),
        (put('/health_status_reason/api', 'ok', 'add'), {'health_status_reason': {'api': 'ok'}}),
        (put('/name', 'c1'), {}),
        (put('/labels', "{'a': '1'}"), {}),
        (put('/labels/a', '1'), {}),
        (put('/master_lb_enabled', 'no'), {}),
    ],
)
def test_patch_of_a_cluster_gives_the_changed_fields(
    operation: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert changes(operation) == changed


@pytest.mark.parametrize(
    ('operation', 'changed'),
    [
        ({'op': 'remove', 'path': '/max_node_count'}, {'max_node_count': None}),
        ({'op': 'remove', 'path': '/min_node_count'}, {'min_node_count': 0}),
        ({'op': 'remove', 'path': '/node_labels'}, {'node_labels': {}}),
        ({'op': 'remove', 'path': '/node_labels/a'}, {'node_labels': {}}),
        (put('/node_labels/c', 'd', 'add'), {'node_labels': {'a': 'b', 'c': 'd'}}),
        (put('/node_labels', "{'x': 'y'}"), {'node_labels': {'x': 'y'}}),
        (
            put('/node_taints', "[{'key': 'k', 'effect': 'NoSchedule'}]"),
            {'node_taints': [{'key': 'k', 'effect': 'NoSchedule'}]},
        ),
        (
            put('/node_taints', [{'key': 'k', 'value': 'v', 'effect': 'NoExecute'}], 'add'),
            {'node_taints': [{'key': 'k', 'value': 'v', 'effect': 'NoExecute'}]},
        ),
    ],
)
def test_patch_of_a_nodegroup_gives_the_changed_fields(
    operation: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert group_changes(operation) == changed


def test_labels_are_taken_as_terraform_writes_them_and_nothing_else_is() -> None:
    def labels(text: str) -> Any:
        return patch.read_changes(
            CLUSTER_TEMPLATE, {'labels': {}}, [put('/labels', text)], versions.MAXIMUM, ['labels']
        )['labels']

    assert labels('a=1') == {'a': '1'}
    assert labels('a=1,b=x=y,c=') == {'a': '1', 'b': 'x=y', 'c': ''}
    for text in ('', 'a', 'a=1,', 'a=1,b', '=1', '[1]'):
        with pytest.raises(errors.Invalid):
            labels(text)


def test_what_is_kept_is_not_removed_and_its_parts_are() -> None:
    before = {'labels': {'a': '1'}, 'name': 'x'}

    def remove(path: str) -> dict[str, Any]:
        return patch.read_changes(
            CLUSTER_TEMPLATE,
            before,
            [{'op': 'remove', 'path': path}],
            versions.MAXIMUM,
            before,
            ['labels', 'name'],
        )

    assert remove('/labels/a') == {'labels': {}}
    for path in ('/labels', '/name'):
        with pytest.raises(errors.Invalid, match='cannot be removed'):
            remove(path)


def test_later_operations_see_the_earlier_ones() -> None:
    assert changes(
        put('/health_status_reason/api', 'x', 'add'),
        put('/health_status_reason/api', 'ok'),
        {'op': 'remove', 'path': '/node_count'},
        put('/node_count', 7),
    ) == {'health_status_reason': {'api': 'ok'}, 'node_count': 7}
    assert changes(put('/node_count', 9), put('/node_count', 2)) == {}


def test_nothing_is_a_patch() -> None:
    assert changes() == {}


def test_the_document_stays_as_it_is() -> None:
    before = BEFORE | {'health_status_reason': {'api': 'ok'}}

    patch.read_changes(
        CLUSTER,
        before,
        [put('/health_status_reason/n', '1', 'add'), put('/node_count', 3)],
        versions.MAXIMUM,
        SETTABLE,
    )

    assert before == BEFORE | {'health_status_reason': {'api': 'ok'}}


@pytest.mark.parametrize(
    ('operation', 'reason'),
    [
        (put('/node_count', None), 'no value'),
        ({'op': 'replace', 'path': '/node_count'}, 'no value'),
        (put('/node_count', -1), "'node_count' is wrong"),
        (put('/node_count', True), "'node_count' is wrong"),
        (put('/node_count', 2.5), "'node_count' is wrong"),
        (put('/node_count', 'many'), "'node_count' is wrong"),
        (put('/node_count', {}), "'node_count' is wrong"),
        (put('/node_count', 2**31), "'node_count' is wrong"),
        (put('/node_count', 3, 'add'), 'Use replace'),
        (put('/node_count/0', 3), 'has no keys'),
        (put('/health_status', 'FINE'), "'health_status' is wrong"),
        (put('/health_status_reason', 'api=ok'), 'must be an object'),
        (put('/health_status_reason', 3), "'health_status_reason' is wrong"),
        (put('/health_status_reason', '[1]'), "'health_status_reason' is wrong"),
        (put('/health_status_reason', {'a': {'b': 'c'}}), "'health_status_reason/a' is wrong"),
        (put('/health_status_reason', "{'a': None}"), "'health_status_reason/a' is wrong"),
        (put('/health_status_reason', {'a': '\0'}), 'cannot be stored'),
        (put('/health_status_reason', "{'a': '\\ud800'}"), 'cannot be stored'),
        (put('/health_status_reason/missing', 'x'), "no key 'missing'"),
        ({'op': 'remove', 'path': '/health_status_reason/missing'}, "no key 'missing'"),
        (put('/health_status_reason/a/b', 'x', 'add'), 'must be like'),
        (put('/name', 'c2'), 'Cannot change name of a cluster'),
        (put('/labels/b', '2', 'add'), 'Cannot change labels'),
        (put('/labels', "{'a': '2'}"), 'Cannot change labels'),
        (put('/master_lb_enabled', 'yes'), 'Cannot change master_lb_enabled'),
        (put('/docker_volume_size', 5, 'add'), 'Cannot change docker_volume_size'),
        (put('/uuid', 'x'), 'is internal'),
        (put('/stack_id', 'x'), 'is internal'),
        (put('/api_address', 'x'), 'is internal'),
        (put('/created_at', 'x'), 'is internal'),
        (put('/nothing', 'x'), "no attribute 'nothing'"),
        (put('/links', []), "no attribute 'links'"),
        (put('/__class__', 'x'), "no attribute '__class__'"),
        (put('', 'x'), 'must be like'),
        (put('/', 'x'), 'must be like'),
        (put('node_count', 3), 'must be like'),
        (put('/node_count/', 3), 'must be like'),
        (put('/a b', 3), 'must be like'),
        (put('/node_count\n', 3), 'be like'),
        (put('/' + 'x' * 300, 3), 'must be like'),
        (put(3, 3), 'must be like'),  # type: ignore[arg-type]
        (put('/health_status_reason/a.b', 'x', 'add'), 'must be like'),
        (put('/labels/~1', 'x', 'add'), 'must be like'),
        (put('/node_count', 3, 'test'), 'must be add, replace or remove'),
        (put('/node_count', 3, 'move'), 'must be add, replace or remove'),
        ({'op': 'copy', 'from': '/a', 'path': '/b'}, 'nothing else'),
        (put('/node_count', 3, ['add']), 'must be add, replace or remove'),  # type: ignore[arg-type]
        ({'path': '/node_count', 'value': 3}, 'must be add, replace or remove'),
        ({'op': 'replace', 'value': 3}, 'must be like'),
        ({}, 'must be add'),
        ('x', 'must be an object'),
        (None, 'must be an object'),
        ([], 'must be an object'),
    ],
)
def test_wrong_operation_of_a_patch_is_refused(operation: Any, reason: str) -> None:
    with pytest.raises(errors.Invalid, match=reason):
        changes(operation)


@pytest.mark.parametrize('body', [None, {}, {'op': 'replace'}, 'x', 3, True])
def test_body_that_is_no_list_is_refused(body: Any) -> None:
    with pytest.raises(errors.Invalid, match='must be a list'):
        patch.read_changes(CLUSTER, BEFORE, body, versions.MAXIMUM, SETTABLE)


@pytest.mark.parametrize('name', ['description', 'error_code'])
def test_attribute_of_a_later_version_is_unknown(name: str) -> None:
    before = patch.read_document(CLUSTER, models.Cluster(health_status_reason={}), 14)

    assert 'description' not in before
    with pytest.raises(errors.Invalid, match=f'There is no attribute {name!r}'):
        patch.read_changes(CLUSTER, before, [put(f'/{name}', 'x')], 14, [name])


def test_attributes_of_a_later_version_are_not_offered() -> None:
    with pytest.raises(errors.Invalid, match=r'It can change: node_count\.$'):
        patch.read_changes(CLUSTER, BEFORE, [put('/name', 'x')], 14, ('node_count', 'description'))


def test_one_wrong_operation_spoils_all() -> None:
    with pytest.raises(errors.Invalid, match='Cannot change labels, name of a cluster'):
        changes(put('/node_count', 3), put('/name', 'x'), put('/labels/a', '2'))


@pytest.mark.parametrize(('count', 'right'), [(100, True), (101, False), (10_000, False)])
def test_a_patch_has_a_limit(count: int, right: bool) -> None:
    operations = [put('/node_count', number) for number in range(count)]

    if right:
        assert changes(*operations) == {'node_count': count - 1}
    else:
        with pytest.raises(errors.Invalid, match='may have 100 operations'):
            changes(*operations)


@pytest.mark.parametrize(
    'text',
    [
        '{' * 100_000,
        '[' * 5000,
        '(' * 150,
        '-' * 50_000 + '1',
        '{' + "'a':{" * 90 + '}' * 91,
        '9' * 5000,
        "{'a': " + '9' * 5000 + '}',
        "{'a': __import__('os')}",
        "{'a': open}",
        '{1, 2}',
        "{b'a': 'x'}",
        "{(1,): 'x'}",
        '{[]: 1}',
        "{'a': 1j}",
        "{'a': b'x'}",
        '',
        ' ',
        'null',
        'None',
        '3',
        "'text'",
        "{'a': 'x'",
        '\0',
        '{' + ' ' * 2**17,
        '{"a": ' + '[' * 900 + ']' * 900 + '}',
        "{'a': 'x'}; import os",
        "{'a': f'{1}'}",
        "lambda: 0",
        '{"\\ud800"',
    ],
)
def test_text_that_stands_for_nothing(text: str) -> None:
    with pytest.raises(errors.Invalid) as raised:
        changes(put('/health_status_reason', text))

    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    'taints',
    [
        {},
        'x',
        ['x'],
        [{}],
        [{'key': 'k'}],
        [{'key': 'k', 'effect': 'Never'}],
        [{'key': '', 'effect': 'NoSchedule'}],
        [{'key': 'k', 'effect': 'NoSchedule', 'more': 1}],
        [{'key': 'k', 'value': {}, 'effect': 'NoSchedule'}],
        [{'key': 'k', 'effect': 'NoSchedule'}] * 51,
    ],
)
def test_taints_that_are_none(taints: Any) -> None:
    with pytest.raises(errors.Invalid):
        group_changes(put('/node_taints', taints))
    assert TAINTS['maxItems'] == 50


def test_health_of_a_thousand_nodes_fits() -> None:
    reason = {f'cluster-1-worker-{number}.Ready': 'True' for number in range(1000)}

    assert changes(put('/health_status_reason', str(reason))) == {'health_status_reason': reason}


def test_depth_is_told_without_recursion() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]

    assert schema.find_excess(deep) == 'is nested more than 25 deep'
    assert schema.find_excess([[[{'a': [1]}]]]) is None


LITERALS = [
    """{'a': 'it\\'s', "b": u'x', 'c': (1, 2.5, -3), 'd': True, 'e': None, 'f': []}""",
    """ {'a' 'b': 1} """,
    """{'a': '''}""",
    """{'a': 1 - 1}""",
    """{'a': b''}""",
    """{'a': x}""",
    """{'a': [1](2)}""",
    """{'a': 1 if x}""",
]


@pytest.mark.parametrize('text', LITERALS)
def test_text_is_read_as_python_reads_it(text: str) -> None:
    try:
        expected = json.loads(json.dumps(ast.literal_eval(text)))
    except (SyntaxError, ValueError, TypeError):
        with pytest.raises(errors.Invalid):
            patch._parse_literal('x', text)
    else:
        assert patch._parse_literal('x', text) == expected


def test_text_of_more_pieces_than_ten_thousand_entries_is_not_compiled() -> None:
    entries = {f'{number}': 'x' for number in range(10_000)}

    assert patch._parse_literal('x', str(entries)) == entries
    with pytest.raises(errors.Invalid):
        patch._parse_literal('x', '[' + '1,' * 40_000 + ']')
