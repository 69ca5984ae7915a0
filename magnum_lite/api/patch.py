"""The JSON-patch dialect of Magnum (api.md 2.8): pure functions from a document and a patch to what
changes.

A patch is a list of `add`, `replace` and `remove`, each with a path of one attribute, or of one key
in it. What is a dict or a list may come as such, or as text in JSON or as Python writes it, as
magnumclient and auto-healers send it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from typing import Any

from magnum_lite import errors, schema

#: Far more than any client sends.
MOST_OPERATIONS = 100
#: Characters of a dict or list that comes as text: room for the health of a thousand nodes.
LONGEST_TEXT = 2**17
#: What Python writes of a dict or a list, piece by piece, and how many pieces: 10,000 entries. To
#: compile more takes longer than a request may.
_PIECE = re.compile(
    r"""\s*(?:[uU]?'(?:[^'\\\n]|\\.)*'|[uU]?"(?:[^"\\\n]|\\.)*"|[-+]?\w[\w.]*|[][{}(),:])"""
)
_MOST_PIECES = 40_001
PATH = re.compile(r'/([\w-]{1,255})(?:/([\w-]{1,255}))?')
#: What an attribute of this type is when it was removed. Every other is None.
EMPTY: dict[str, Any] = {'object': {}, 'array': []}
#: What no patch can name although a POST may.
UNPATCHED = ('uuid', 'id', 'merge_labels')


def known(resource: schema.Resource) -> list[schema.Field]:
    """The fields that a patch may name. What only the service sets is not among them."""
    return [f for f in resource.fields if f.create != schema.REFUSED and f.name not in UNPATCHED]


def document(resource: schema.Resource, row: Any) -> dict[str, Any]:
    """The attributes of a row that a patch may name."""
    return {f.name: f.show(row) for f in known(resource)}


def changes(
    resource: schema.Resource,
    before: dict[str, Any],
    body: Any,
    settable: Collection[str],
    kept: Collection[str] = (),
) -> dict[str, Any]:
    """What a patch changes: the new values by attribute, typed and checked. `before` is left as it
    is.

    An attribute that is set to what it is does not change. Raises Invalid for what is no patch,
    cannot be applied, changes an attribute that is not in `settable`, or removes one of `kept`."""
    if not isinstance(body, list):
        raise errors.Invalid(
            'The body must be a list of operations, each an object with op, path and value.'
        )
    if len(body) > MOST_OPERATIONS:
        raise errors.Invalid(f'A patch may have {MOST_OPERATIONS} operations, not {len(body)}.')
    types = {f.name: f.type for f in resource.fields}
    after, touched = dict(before), {}
    for item in body:
        op, name, key, value = _read(item)
        if name not in before:
            raise errors.Invalid(
                f'Attribute {name!r} is internal and cannot be changed.'
                if name in types
                else f'There is no attribute {name!r}.'
            )
        if op == 'remove' and key is None and name in kept:
            raise errors.Invalid(f'Attribute {name!r} cannot be removed. Replace it.')
        kind = types[name].get('type')
        after[name] = (
            _whole(name, kind, op, after[name], value)
            if key is None
            else _part(name, op, after[name], key, value)
        )
        touched[name] = types[name]
    for name, fragment in touched.items():
        after[name] = (
            resource.check(name, after[name])
            if name in settable
            else schema.coerce(fragment, after[name])
        )
    changed = {name: after[name] for name in touched if after[name] != before[name]}
    if refused := sorted(changed.keys() - set(settable)):
        raise errors.Invalid(
            f'Cannot change {", ".join(refused)} of a {resource.name}. It can change: '
            f'{", ".join(settable)}.'
        )
    return changed


def _read(item: Any) -> tuple[str, str, str | None, Any]:
    """One operation: what to do, attribute, key in it, value."""
    if not isinstance(item, dict) or not item.keys() <= {'op', 'path', 'value'}:
        raise errors.Invalid(
            'Each operation must be an object with op, path and value, and nothing else.'
        )
    op, path, value = item.get('op'), item.get('path'), item.get('value')
    if op not in ('add', 'replace', 'remove'):
        raise errors.Invalid(f'The op of a patch must be add, replace or remove, not {op!r:.80}.')
    found = PATH.fullmatch(path) if isinstance(path, str) else None
    if not found:
        raise errors.Invalid(
            f'The path of a patch must be like /attribute or /attribute/key, not {path!r:.80}.'
        )
    if value is None and op != 'remove':
        raise errors.Invalid(f'The patch has no value for {path}. Use remove to unset it.')
    return op, found[1], found[2], value


def _whole(name: str, kind: Any, op: str, old: Any, value: Any) -> Any:
    if op == 'remove':
        return EMPTY.get(kind)
    if op == 'add' and old not in (None, {}, []):
        raise errors.Invalid(f'Attribute {name!r} has a value already. Use replace.')
    return _literal(name, value) if kind in EMPTY and isinstance(value, str) else value


def _part(name: str, op: str, old: Any, key: str, value: Any) -> Any:
    if not isinstance(old, dict):
        raise errors.Invalid(f'Attribute {name!r} has no keys. Set it as a whole.')
    if op != 'add' and key not in old:
        raise errors.Invalid(f'Attribute {name!r} has no key {key!r}.')
    if op == 'remove':
        return {k: v for k, v in old.items() if k != key}
    return old | {key: value}


def _python(text: str) -> Any:
    """The value of a Python literal. Raises what `ast.literal_eval` does, and ValueError for one of
    too many pieces."""
    rest, pieces = _PIECE.subn('', text)
    if rest.strip() or pieces > _MOST_PIECES:
        raise ValueError('no literal, or a long one')
    return ast.literal_eval(text)


def _literal(name: str, text: str) -> Any:
    """The dict or list that a text stands for, as JSON would hold it."""
    for read in (json.loads, _python) if len(text) <= LONGEST_TEXT else ():
        try:
            value = json.loads(json.dumps(read(text)))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict | list) and not schema.is_too_much(value):
            return value
    if (
        name == 'labels'
        and text
        and len(text) <= LONGEST_TEXT
        and all('=' in pair for pair in text.split(','))
    ):
        return dict(pair.split('=', 1) for pair in text.split(','))  # how terraform writes them
    raise errors.Invalid(
        f'The value of {name!r} must be an object, or a text of at most {LONGEST_TEXT} characters '
        'that is one in JSON or in Python.'
    )
