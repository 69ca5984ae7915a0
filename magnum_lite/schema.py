"""The field engine: one `Field` line says all there is to say about an attribute on the wire.

A `Resource` is a list of fields. From it come the check of a request body, the body of an answer,
and the columns that a list may be sorted by. No noun of the API is known here; those stand in
`api.resources`.

`type` is a JSON Schema fragment, the language of OpenAPI 3.1. Two leniencies that every client
relies on are built in (api.md 0.1): a null stands for "not given" in every field that may be left
out, and numbers and booleans may come as strings."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

from magnum_lite import errors

#: Nesting at which no value of ours is any more, and a parser is still far from its limits.
DEEPEST = 25
#: Values in one body: five times what the longest list of ours has. What is beyond takes too long
#: to look at.
MOST_VALUES = 50_000
#: What one answer tells of: a body of a megabyte may have a hundred thousand mistakes.
MOST_FINDINGS = 20
#: `create`: what a POST does with the field.
OPTIONAL, REQUIRED, IGNORED, REFUSED = 'optional', 'required', 'ignored', 'refused'

TRUE = frozenset(('1', 't', 'true', 'y', 'yes', 'on'))
FALSE = frozenset(('0', 'f', 'false', 'n', 'no', 'off'))


def text(maximum: int = 255, minimum: int = 1, pattern: str | None = None) -> dict[str, Any]:
    """A string of so many characters."""
    fragment = {'type': 'string', 'minLength': minimum, 'maxLength': maximum}
    return fragment | ({'pattern': pattern} if pattern else {})


def integer(minimum: int = 0, maximum: int = 2**31 - 1) -> dict[str, Any]:
    """A whole number that fits a database column."""
    return {'type': 'integer', 'minimum': minimum, 'maximum': maximum}


def one_of(*values: str) -> dict[str, Any]:
    """One of these strings."""
    return {'type': 'string', 'enum': list(values)}


BOOLEAN: dict[str, Any] = {'type': 'boolean'}
TIME: dict[str, Any] = {'type': 'string', 'format': 'date-time'}
STRINGS: dict[str, Any] = {'type': 'array', 'items': {'type': 'string'}}
#: Label values may be any scalar and are stored as text: Go clients decode them as strings.
LABELS: dict[str, Any] = {
    'type': 'object',
    'maxProperties': 200,
    'propertyNames': {'minLength': 1, 'maxLength': 255},
    'additionalProperties': {'type': ['string', 'number', 'boolean'], 'maxLength': 4096},
}


@dataclass(frozen=True)
class Field:
    """One attribute of a resource.

    `since`/`until` are the microversions (minor numbers, inclusive) between which it is in answers;
    `brief` whether the short listing has it; `read` where the value comes from if not from the
    row's attribute of that name."""

    name: str
    type: dict[str, Any]
    doc: str
    create: str = REFUSED
    default: Any = None
    brief: bool = False
    since: int = 1
    until: int = 10_000
    read: Callable[[Any], Any] | None = None

    def show(self, row: Any) -> Any:
        """The value as JSON can hold it."""
        value = self.read(row) if self.read else getattr(row, self.name)
        return value.isoformat() if isinstance(value, datetime.datetime) else value


def coerce(fragment: Mapping[str, Any], value: Any) -> Any:
    """Turn the spellings that clients send into the JSON type, where that cannot be mistaken; else
    leave it."""
    kind = fragment.get('type')
    if kind == 'integer' and isinstance(value, str) and value.strip().lstrip('-').isascii():
        digits = value.strip()
        if digits.removeprefix('-').isdigit() and len(digits) < 20:
            return int(digits)
    if kind == 'integer' and isinstance(value, float) and value.is_integer():  # to JSON, 3.0 is 3
        return int(value)
    if kind == 'boolean':
        word = str(value).lower() if isinstance(value, str | int) else ''
        if word in TRUE | FALSE:
            return word in TRUE
    if fragment.get('additionalProperties') is LABELS['additionalProperties'] and isinstance(
        value, dict
    ):
        return {k: str(v) if isinstance(v, int | float) else v for k, v in value.items()}
    return value


def nul_in(value: Any) -> bool:
    """Whether a text in `value` holds a character that no database column takes: NUL or half a
    surrogate pair."""
    if isinstance(value, str):
        try:
            return '\0' in value or (not value.isascii() and value.encode() is None)
        except UnicodeEncodeError:
            return True
    if isinstance(value, dict):
        return any(nul_in(k) or nul_in(v) for k, v in value.items())
    return isinstance(value, list) and any(nul_in(v) for v in value)


def is_too_much(value: Any) -> str | None:
    """Why a JSON value is more than we look at: nested more than `DEEPEST` deep, or of too many
    values; else None.

    Without recursion, and without touching what is too many.
    """
    level, values = [value], 0
    for _ in range(DEEPEST):
        inner = [item for item in level if isinstance(item, dict | list)]
        values += sum(map(len, inner))
        if values > MOST_VALUES:
            return f'holds more than {MOST_VALUES} values'
        level = [
            child for item in inner for child in (item.values() if isinstance(item, dict) else item)
        ]
    return f'is nested more than {DEEPEST} deep' if level else None


class Resource:
    """The fields of one noun of the API."""

    def __init__(self, name: str, fields: Iterable[Field]) -> None:
        self.name = name
        self.fields = tuple(fields)
        self._by_name = {f.name: f for f in self.fields}
        self._checks = {
            f.name: jsonschema.Draft202012Validator(f.type)
            for f in self.fields
            if f.create != REFUSED
        }

    def parse(self, body: Any) -> dict[str, Any]:
        """Check the body of a POST and return the value of every field that a POST may set.

        A field that was not given, or was null, has its default. Raises `errors.Invalid` with all
        findings at once."""
        if not isinstance(body, dict):
            raise errors.Invalid(f'The body must be a JSON object that describes a {self.name}.')
        problems: list[str] = []
        for name in body:
            field = self._by_name.get(name)
            if field is None:
                problems.append(f'Unknown attribute {name!r:.80}.')
            elif field.create == REFUSED:
                problems.append(f'Attribute {name!r} cannot be set.')
            if len(problems) >= MOST_FINDINGS:
                break
        values = {
            f.name: self._value(f, body, problems)
            for f in self.fields
            if f.create in (OPTIONAL, REQUIRED)
        }
        for (
            field
        ) in self.fields:  # an ignored field is dropped, yet what is no status must not pass as one
            if field.create == IGNORED:
                self._value(field, body, problems)
        if problems:
            raise errors.Invalid(' '.join(problems[:MOST_FINDINGS]))
        return values

    def _value(self, field: Field, body: Mapping[str, Any], problems: list[str]) -> Any:
        given = body.get(field.name)
        if given is None:
            if field.create == REQUIRED:
                problems.append(f'Attribute {field.name!r} is mandatory.')
            return field.default() if callable(field.default) else field.default
        most = field.type.get('maxProperties' if isinstance(given, dict) else 'maxItems')
        if (
            isinstance(given, dict | list) and most is not None and len(given) > most
        ):  # it is not even looked at
            problems.append(
                f'Attribute {field.name!r} has {len(given)} entries and may have {most}.'
            )
            return given
        value = coerce(field.type, given)
        if nul_in(value):
            problems.append(f'Attribute {field.name!r} holds a character that cannot be stored.')
        for error in self._checks[field.name].iter_errors(value):
            where = '/'.join([field.name, *map(str, error.absolute_path)])
            problems.append(f'Attribute {where!r:.120} is wrong: {error.message:.200}.')
            break
        return value

    def check(self, name: str, value: Any) -> Any:
        """The value of one attribute as a PATCH may set it; a null is its default. Raises
        `errors.Invalid`."""
        problems: list[str] = []
        checked = self._value(self._by_name[name], {name: value}, problems)
        if problems:
            raise errors.Invalid(' '.join(problems))
        return checked

    def shown(self, version: int, *, brief: bool = False) -> list[Field]:
        """The fields that an answer has at this microversion, in order."""
        return [f for f in self.fields if f.since <= version <= f.until and (f.brief or not brief)]

    def show(self, row: Any, version: int, *, brief: bool = False) -> dict[str, Any]:
        """The body for one row, without links."""
        return {f.name: f.show(row) for f in self.shown(version, brief=brief)}


# -- what stands in the document -------------------------------------------------------------------
# A fragment with a `title` is shared by all that name it: the document has it once,
# under that name.

_LINKS = {
    'title': 'Links',
    'type': 'array',
    'items': {
        'type': 'object',
        'required': ['href', 'rel'],
        'additionalProperties': False,
        'properties': {'href': {'type': 'string'}, 'rel': {'type': 'string'}},
    },
}
#: The answer to most changes.
UUID_ONLY: dict[str, Any] = {
    'title': 'Uuid',
    'type': 'object',
    'required': ['uuid'],
    'additionalProperties': False,
    'properties': {'uuid': {'type': 'string', 'format': 'uuid'}},
}
#: Of a POST or PATCH that needs no body.
NO_BODY: dict[str, Any] = {}
#: What bounds a request and says nothing of what is stored.
_BOUNDS = frozenset(
    (
        'minLength',
        'maxLength',
        'pattern',
        'minimum',
        'maximum',
        'maxItems',
        'maxProperties',
        'propertyNames',
    )
)


def posted(resource: Resource, *, name: str = '') -> dict[str, Any]:
    """The schema of the body of a POST that `Resource.parse` reads. It says no word of the
    leniencies."""
    fields = [f for f in resource.fields if f.create != REFUSED]
    return {
        'title': (name or _title(resource)) + 'Request',
        'type': 'object',
        'additionalProperties': False,
        'required': [f.name for f in fields if f.create == REQUIRED],
        'properties': {
            f.name: _property(f, f.type if f.create == REQUIRED else _nullable(f.type))
            for f in fields
        },
    }


def patched(resource: Resource, settable: Iterable[str]) -> dict[str, Any]:
    """The schema of a patch that may set these attributes: as a whole, and by key where the
    attribute has keys."""
    fields = [f for f in resource.fields if f.name in set(settable)]
    ways = [_way(fields, remove=True), *(_way([f], remove=False) for f in fields)]
    return {
        'title': f'{_title(resource)}Patch',
        'type': 'array',
        'maxItems': 100,
        'items': {'anyOf': ways},
    }


def _way(fields: list[Field], *, remove: bool) -> dict[str, Any]:
    """One kind of operation in a patch: to unset these attributes or their keys, or to set this one
    or a key of it."""
    paths = [
        f'{f.name}(/[A-Za-z0-9_-]+)?' if f.type.get('type') == 'object' else f.name for f in fields
    ]
    made: dict[str, Any] = {
        'op': one_of('remove') if remove else one_of('add', 'replace'),
        'path': {'type': 'string', 'pattern': f'^/({"|".join(paths)})$'},
    }
    if not remove:
        fragment = fields[0].type
        scalars = (
            [{'type': ['string', 'number', 'boolean']}] if fragment.get('type') == 'object' else []
        )
        made['value'] = {'anyOf': [fragment, *scalars], 'description': fields[0].doc}
    return {
        'type': 'object',
        'required': list(made),
        'additionalProperties': False,
        'properties': made,
    }


def one(
    resource: Resource, *, brief: bool = False, linked: bool = True, **more: dict[str, Any]
) -> dict[str, Any]:
    """The schema of a body that shows one row; `more` are properties that it need not have.

    What a version does not show need not be there either, and says so.
    """
    fields = [f for f in resource.fields if f.brief or not brief]
    always = [f.name for f in fields if f.since == 1 and f.until == Field.until]
    links = {'links': _LINKS} if linked else {}
    kind = 'Brief' if brief else 'InFull' if more else ''
    return {
        'title': _title(resource) + kind,
        'type': 'object',
        'additionalProperties': False,
        'required': [*always, *links],
        'properties': {f.name: _property(f, _nullable(_unbound(f.type))) for f in fields}
        | links
        | more,
    }


def many(
    resource: Resource, plural: str, *, brief: bool = False, linked: bool = True
) -> dict[str, Any]:
    """The schema of a listing; `next` leads to the next page if there is one."""
    return {
        'type': 'object',
        'required': [plural],
        'additionalProperties': False,
        'properties': {
            plural: {'type': 'array', 'items': one(resource, brief=brief, linked=linked)},
            'next': {
                'type': 'string',
                'format': 'uri',
                'description': 'The next page, if there is one.',
            },
        },
    }


def _title(resource: Resource) -> str:
    return resource.name.title().replace(' ', '')


def _property(field: Field, fragment: dict[str, Any]) -> dict[str, Any]:
    made = fragment | {'description': field.doc}
    if field.create != REFUSED and field.default is not None:
        made['default'] = field.default() if callable(field.default) else field.default
    if field.since > 1:
        made['x-since'] = f'1.{field.since}'
    if field.until < Field.until:
        made['x-until'] = f'1.{field.until}'
    return made


def _nullable(fragment: dict[str, Any]) -> dict[str, Any]:
    made = fragment | {'type': [fragment['type'], 'null']}
    return made | {'enum': [*fragment['enum'], None]} if 'enum' in fragment else made


def _unbound(fragment: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _unbound(value) if isinstance(value, dict) else value
        for key, value in fragment.items()
        if key not in _BOUNDS
    }
