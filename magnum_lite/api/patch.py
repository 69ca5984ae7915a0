"""The JSON-patch dialect of Magnum: which attributes a patch changes, and to what.

Handlers of PATCH call `read_document` and `read_changes`. Pure functions: they change no row.

A patch is a list of `add`, `replace` and `remove`, each with the path of one attribute, or of one
key in it. A dict or a list may come as such, or as text in JSON or in Python syntax, as
magnumclient and the auto-healer send it (doc/contributor/wire-contract.md)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from typing import Any

from magnum_lite import errors, schema
from magnum_lite.schema import Values

#: Operations of one patch: far more than any client sends.
MAX_OPERATIONS = 100
#: Characters of a dict or list that comes as text: room for the health of a thousand nodes.
MAX_TEXT = 2**17
#: One token of a dict or a list in Python syntax.
_TOKEN = re.compile(
    r"""\s*(?:[uU]?'(?:[^'\\\n]|\\.)*'|[uU]?"(?:[^"\\\n]|\\.)*"|[-+]?\w[\w.]*|[][{}(),:])"""
)
#: Tokens of one text: 10,000 entries. To compile more takes longer than a request may.
_MAX_TOKENS = 40_001
PATH = re.compile(r'/([\w-]{1,255})(?:/([\w-]{1,255}))?')
#: The value of a removed attribute by its type. For every other type it is None.
EMPTY: dict[str, Any] = {'object': {}, 'array': []}
#: Fields that a POST may set and no patch may name.
UNPATCHED = ('uuid', 'id', 'merge_labels')


def list_patchable(resource: schema.Resource, version: int) -> list[schema.Field]:
    """The fields that a patch may name. Those that only the service sets are not among them."""
    return [
        field
        for field in resource.list_shown(version)
        if field.create != schema.REFUSED and field.name not in UNPATCHED
    ]


def read_document(resource: schema.Resource, row: Any, version: int) -> Values:
    """The attributes of a row that a patch may name at this microversion."""
    return {field.name: field.show(row) for field in list_patchable(resource, version)}


def read_changes(
    resource: schema.Resource,
    before: Values,
    body: Any,
    version: int,
    settable: Collection[str],
    kept: Collection[str] = (),
) -> Values:
    """The attributes that a patch changes, with their new values, typed and checked.

    `before` is the document that the patch applies to; it stays as it is. An attribute that is set
    to the value that it has does not change. Raises Invalid for a body that is no patch, that
    cannot be applied, that changes an attribute outside `settable`, or removes one of `kept`."""
    if not isinstance(body, list):
        raise errors.Invalid(
            'The body must be a list of operations, each an object with op, path and value.'
        )
    if len(body) > MAX_OPERATIONS:
        raise errors.Invalid(f'A patch may have {MAX_OPERATIONS} operations, not {len(body)}.')
    types = {field.name: field.type for field in resource.list_shown(version)}
    after = dict(before)
    # A dict, to keep the order of the patch.
    touched = dict.fromkeys(_apply_operation(after, item, types, kept) for item in body)
    for name in touched:
        if name in settable:
            after[name] = resource.check(name, after[name])
        else:
            after[name] = schema.coerce(types[name], after[name])
    changed = {name: after[name] for name in touched if after[name] != before[name]}
    refused = sorted(changed.keys() - set(settable))
    if refused:
        raise errors.Invalid(
            f'Cannot change {", ".join(refused)} of a {resource.name}. It can change: '
            f'{", ".join(name for name in settable if name in types)}.'
        )
    return changed


def _apply_operation(
    document: Values, item: Any, types: dict[str, schema.Schema], kept: Collection[str]
) -> str:
    """Apply one operation to a document. Returns the name of the attribute."""
    op, name, key, value = _read_operation(item)
    if name not in document:
        raise errors.Invalid(
            f'Attribute {name!r} is internal and cannot be changed.'
            if name in types
            else f'There is no attribute {name!r}.'
        )
    if key is not None:
        document[name] = _apply_to_key(name, op, document[name], key, value)
    elif op == 'remove' and name in kept:
        raise errors.Invalid(f'Attribute {name!r} cannot be removed. Replace it.')
    else:
        kind = types[name].get('type')
        document[name] = _apply_to_whole(name, kind, op, document[name], value)
    return name


def _read_operation(item: Any) -> tuple[str, str, str | None, Any]:
    """One operation of a patch: op, attribute, key in the attribute, value."""
    if not isinstance(item, dict) or not item.keys() <= {'op', 'path', 'value'}:
        raise errors.Invalid(
            'Each operation must be an object with op, path and value, and nothing else.'
        )
    op = item.get('op')
    path = item.get('path')
    value = item.get('value')
    if op not in ('add', 'replace', 'remove'):
        raise errors.Invalid(f'The op of a patch must be add, replace or remove, not {op!r:.80}.')
    match = PATH.fullmatch(path) if isinstance(path, str) else None
    if not match:
        raise errors.Invalid(
            f'The path of a patch must be like /attribute or /attribute/key, not {path!r:.80}.'
        )
    if value is None and op != 'remove':
        raise errors.Invalid(f'The patch has no value for {path}. Use remove to unset it.')
    return op, match[1], match[2], value


def _apply_to_whole(name: str, kind: Any, op: str, old: Any, value: Any) -> Any:
    if op == 'remove':
        return EMPTY.get(kind)
    if op == 'add' and old not in (None, {}, []):
        raise errors.Invalid(f'Attribute {name!r} has a value already. Use replace.')
    if kind in EMPTY and isinstance(value, str):
        return _parse_literal(name, value)
    return value


def _apply_to_key(name: str, op: str, old: Any, key: str, value: Any) -> Any:
    if not isinstance(old, dict):
        raise errors.Invalid(f'Attribute {name!r} has no keys. Set it as a whole.')
    if op != 'add' and key not in old:
        raise errors.Invalid(f'Attribute {name!r} has no key {key!r}.')
    if op == 'remove':
        return {k: v for k, v in old.items() if k != key}
    return old | {key: value}


def _parse_literal(name: str, text: str) -> Any:
    """The dict or list that a text stands for, as JSON would hold it. Raises Invalid."""
    if len(text) <= MAX_TEXT:
        for parse in (json.loads, _parse_python):
            try:
                # Through JSON, so that tuples become lists, and what JSON cannot hold is refused.
                value = json.loads(json.dumps(parse(text)))
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(value, dict | list) and not schema.find_excess(value):
                return value
        pairs = text.split(',')
        # Terraform sends labels as k=v,k=v.
        if name == 'labels' and all('=' in pair for pair in pairs):
            return dict(pair.split('=', 1) for pair in pairs)
    raise errors.Invalid(
        f'The value of {name!r} must be an object, or a text of at most {MAX_TEXT} characters '
        'that is one in JSON or in Python.'
    )


def _parse_python(text: str) -> Any:
    """The value of a Python literal.

    Raises ValueError for too many tokens, and what `ast.literal_eval` raises."""
    rest, tokens = _TOKEN.subn('', text)
    if rest.strip() or tokens > _MAX_TOKENS:
        raise ValueError('no literal, or a long one')
    return ast.literal_eval(text)
