"""The field engine: one `Field` line says all there is to say about an attribute on the wire.

`api.resources` defines the nouns of the API with it, handlers parse bodies and build answers by it,
`api.openapi` describes both. A `Resource` is a list of fields. Fields have a second axis, the
microversion: the check of a body, a patch, an answer and the sort keys know only the fields of the
request's version. This module knows no noun of the API and does no I/O.

`type` is a JSON Schema fragment, the language of OpenAPI 3.1. Two leniencies that every client
relies on are built in (doc/contributor/wire-contract.md): a null means "not given" in every field
that may be left out, and numbers and booleans may come as strings."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

from magnum_lite import errors

#: Levels of nesting in one body: more than any field needs, and far below the limits of a parser.
MAX_DEPTH = 25
#: Values in one body: five times as many as the longest list that a field allows. To inspect more
#: takes too long.
MAX_VALUES = 50_000
#: Problems that one answer reports: a body of a megabyte may have a hundred thousand.
MAX_PROBLEMS = 20
#: Values of `Field.create`: what a POST does with the field.
OPTIONAL, REQUIRED, IGNORED, REFUSED = 'optional', 'required', 'ignored', 'refused'

TRUE = frozenset(('1', 't', 'true', 'y', 'yes', 'on'))
FALSE = frozenset(('0', 'f', 'false', 'n', 'no', 'off'))


#: A JSON Schema fragment, such as the type of a field.
Schema = dict[str, Any]
#: Attributes of a resource by name, as in the body of a request or an answer.
Values = dict[str, Any]


def text(maximum: int = 255, minimum: int = 1, pattern: str | None = None) -> Schema:
    """A string of `minimum` to `maximum` characters."""
    fragment = {'type': 'string', 'minLength': minimum, 'maxLength': maximum}
    return fragment | ({'pattern': pattern} if pattern else {})


def integer(minimum: int = 0, maximum: int = 2**31 - 1) -> Schema:
    """A whole number that fits a database column."""
    return {'type': 'integer', 'minimum': minimum, 'maximum': maximum}


def one_of(*values: str) -> Schema:
    """One of these strings."""
    return {'type': 'string', 'enum': list(values)}


BOOLEAN: Schema = {'type': 'boolean'}
TIME: Schema = {'type': 'string', 'format': 'date-time'}
STRINGS: Schema = {'type': 'array', 'items': {'type': 'string'}}
#: Values of labels may be any scalar, and are stored as text: Go clients decode them as strings.
LABELS: Schema = {
    'type': 'object',
    'maxProperties': 200,
    'propertyNames': {'minLength': 1, 'maxLength': 255},
    'additionalProperties': {'type': ['string', 'number', 'boolean'], 'maxLength': 4096},
}


@dataclass(frozen=True)
class Field:
    """One attribute of a resource.

    `since` and `until` are the first and the last microversion (minor numbers) that know the field;
    to any other it is an unknown attribute. `brief` says whether the short listing shows it. `read`
    takes the value from the row where that has no attribute of the field's name. `is_note` marks
    what a PATCH may set without giving a conductor work: it is stored at once, in any status, and
    is a part of the ETag."""

    name: str
    type: Schema
    doc: str
    create: str = REFUSED
    default: Any = None
    brief: bool = False
    since: int = 1
    until: int = 10_000
    read: Callable[[Any], Any] | None = None
    is_note: bool = False

    def show(self, row: Any) -> Any:
        """The value in a form that JSON can hold."""
        value = self.read(row) if self.read else getattr(row, self.name)
        return value.isoformat() if isinstance(value, datetime.datetime) else value


def coerce(fragment: Mapping[str, Any], value: Any) -> Any:
    """Convert a value as clients spell it to its JSON type where only one reading is possible.

    Any other value is returned as it is."""
    kind = fragment.get('type')
    if kind == 'integer':
        return _coerce_integer(value)
    if kind == 'boolean' and isinstance(value, str | int):
        word = str(value).lower()
        return word in TRUE if word in TRUE | FALSE else value
    has_labels = fragment.get('additionalProperties') is LABELS['additionalProperties']
    if has_labels and isinstance(value, dict):
        return {k: str(v) if isinstance(v, int | float) else v for k, v in value.items()}
    return value


def _coerce_integer(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # JSON does not tell 3.0 from 3
    if isinstance(value, str):
        text = value.strip()
        digits = text.removeprefix('-')
        # isdigit() alone also takes the digits of other scripts.
        if digits.isascii() and digits.isdigit() and len(text) < 20:
            return int(text)
    return value


def has_unstorable_text(value: Any) -> bool:
    """Whether `value` holds text that no database column takes: NUL, or half a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return True
        return '\0' in value
    if isinstance(value, dict):
        return any(has_unstorable_text(k) or has_unstorable_text(v) for k, v in value.items())
    return isinstance(value, list) and any(has_unstorable_text(v) for v in value)


def find_excess(value: Any) -> str | None:
    """Why a JSON value is too large to inspect, as the end of a sentence; None if it is not.

    Counts level by level, without recursion, and stops before it touches too many values."""
    level = [value]
    values = 0
    for _ in range(MAX_DEPTH):
        containers = [item for item in level if isinstance(item, dict | list)]
        values += sum(map(len, containers))
        if values > MAX_VALUES:
            return f'holds more than {MAX_VALUES} values'
        level = []
        for item in containers:
            level.extend(item.values() if isinstance(item, dict) else item)
    return f'is nested more than {MAX_DEPTH} deep' if level else None


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

    def list_shown(self, version: int, *, brief: bool = False) -> list[Field]:
        """The fields that an answer has at this microversion, in order."""
        return [f for f in self.fields if f.since <= version <= f.until and (f.brief or not brief)]

    def parse(self, body: Any, version: int) -> Values:
        """Check the body of a POST and return the value of every field that a POST may set.

        A field that was not given, or was null, has its default. So has a field that this
        microversion does not know, which is an unknown attribute in the body. Raises
        `errors.Invalid` with all problems."""
        if not isinstance(body, dict):
            raise errors.Invalid(f'The body must be a JSON object that describes a {self.name}.')
        known = {field.name: field for field in self.list_shown(version)}
        problems: list[str] = []
        for name in body:
            if name not in known:
                problems.append(f'Unknown attribute {name!r:.80}.')
            elif known[name].create == REFUSED:
                problems.append(f'Attribute {name!r} cannot be set.')
            if len(problems) >= MAX_PROBLEMS:
                break
        values = {
            f.name: self._read(f, body, problems)
            for f in self.fields
            if f.create in (OPTIONAL, REQUIRED)
        }
        # The value of an ignored field is dropped, but it must be a valid one.
        for field in self.fields:
            if field.create == IGNORED:
                self._read(field, body, problems)
        if problems:
            raise errors.Invalid(' '.join(problems[:MAX_PROBLEMS]))
        return values

    def check(self, name: str, value: Any) -> Any:
        """The value of one attribute as a PATCH may set it; a null is its default.

        Raises `errors.Invalid`."""
        problems: list[str] = []
        checked = self._read(self._by_name[name], {name: value}, problems)
        if problems:
            raise errors.Invalid(' '.join(problems))
        return checked

    def _read(self, field: Field, body: Mapping[str, Any], problems: list[str]) -> Any:
        """The value of a field in a body. Adds to `problems` what is wrong with it."""
        value = body.get(field.name)
        if value is None:
            if field.create == REQUIRED:
                problems.append(f'Attribute {field.name!r} is mandatory.')
            return _get_default(field)
        # The length is checked first, so that too long a container is not inspected.
        if isinstance(value, dict | list):
            limit = field.type.get('maxProperties' if isinstance(value, dict) else 'maxItems')
            if limit is not None and len(value) > limit:
                problems.append(
                    f'Attribute {field.name!r} has {len(value)} entries and may have {limit}.'
                )
                return value
        value = coerce(field.type, value)
        if has_unstorable_text(value):
            problems.append(f'Attribute {field.name!r} holds a character that cannot be stored.')
        error = next(self._checks[field.name].iter_errors(value), None)
        if error is not None:
            where = '/'.join([field.name, *map(str, error.absolute_path)])
            problems.append(f'Attribute {where!r:.120} is wrong: {error.message:.200}.')
        return value

    def show(self, row: Any, version: int, *, brief: bool = False) -> Values:
        """The body for one row, without links."""
        return {f.name: f.show(row) for f in self.list_shown(version, brief=brief)}


def _get_default(field: Field) -> Any:
    return field.default() if callable(field.default) else field.default


# -- schemas for the OpenAPI document --------------------------------------------------------------
# A fragment with a `title` is shared: the document has it once, under that name.

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
UUID_ONLY: Schema = {
    'title': 'Uuid',
    'type': 'object',
    'required': ['uuid'],
    'additionalProperties': False,
    'properties': {'uuid': {'type': 'string', 'format': 'uuid'}},
}
#: `Route.takes` of a POST or PATCH that needs no body.
NO_BODY: Schema = {}
#: Keywords that bound a request. Stored values may lie outside, so answers do not promise them.
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


def describe_post(resource: Resource, *, name: str = '') -> Schema:
    """The schema of the body of a POST that `Resource.parse` reads, without the leniencies."""
    fields = [f for f in resource.fields if f.create != REFUSED]
    return {
        'title': (name or _make_title(resource)) + 'Request',
        'type': 'object',
        'additionalProperties': False,
        'required': [f.name for f in fields if f.create == REQUIRED],
        'properties': {
            f.name: _describe_field(f, f.type if f.create == REQUIRED else _allow_null(f.type))
            for f in fields
        },
    }


def describe_patch(resource: Resource, settable: Collection[str]) -> Schema:
    """The schema of a patch that may set these attributes, or one key of those that have keys."""
    fields = [f for f in resource.fields if f.name in settable]
    # One kind of operation unsets any of them; one kind for each sets it or one of its keys.
    ways = [_describe_operation(one_of('remove'), fields), *map(_describe_set, fields)]
    return {
        'title': f'{_make_title(resource)}Patch',
        'type': 'array',
        'maxItems': 100,
        'items': {'anyOf': ways},
    }


def _describe_set(field: Field) -> Schema:
    """The patch operations that set this attribute or one of its keys."""
    types = [field.type]
    if field.type.get('type') == 'object':
        types.append({'type': ['string', 'number', 'boolean']})
    value = {'anyOf': types, 'description': field.doc}
    return _describe_operation(one_of('add', 'replace'), [field], value=value)


#: The path of one key of an attribute, in a pattern.
_KEY = '(/[A-Za-z0-9_-]+)?'


def _describe_operation(op: Schema, fields: list[Field], **more: Any) -> Schema:
    paths = [f.name + (_KEY if f.type.get('type') == 'object' else '') for f in fields]
    properties = {
        'op': op,
        'path': {'type': 'string', 'pattern': f'^/({"|".join(paths)})$'},
        **more,
    }
    return {
        'type': 'object',
        'required': list(properties),
        'additionalProperties': False,
        'properties': properties,
    }


def list_paths(pattern: str) -> list[str]:
    """The paths that a pattern of `describe_patch` matches, `{key}` for any key."""
    names = pattern.removeprefix('^/(').removesuffix(')$').split('|')
    return [f'/{name.replace(_KEY, "[/{key}]")}' for name in names]


def describe_row(
    resource: Resource, *, brief: bool = False, linked: bool = True, **more: Schema
) -> Schema:
    """The schema of a body that shows one row. `more` are optional properties.

    A field that some versions do not show is optional as well, and names its versions."""
    fields = [f for f in resource.fields if f.brief or not brief]
    always = [f.name for f in fields if f.since == 1 and f.until == Field.until]
    links = {'links': _LINKS} if linked else {}
    kind = 'Brief' if brief else 'InFull' if more else ''
    return {
        'title': _make_title(resource) + kind,
        'type': 'object',
        'additionalProperties': False,
        'required': [*always, *links],
        'properties': {
            f.name: _describe_field(f, _allow_null(_drop_bounds(f.type))) for f in fields
        }
        | links
        | more,
    }


def describe_listing(
    resource: Resource, plural: str, *, brief: bool = False, linked: bool = True
) -> Schema:
    """The schema of a listing. `next` is the address of the next page, if there is one."""
    return {
        'type': 'object',
        'required': [plural],
        'additionalProperties': False,
        'properties': {
            plural: {'type': 'array', 'items': describe_row(resource, brief=brief, linked=linked)},
            'next': {
                'type': 'string',
                'format': 'uri',
                'description': 'The next page, if there is one.',
            },
        },
    }


def _make_title(resource: Resource) -> str:
    return resource.name.title().replace(' ', '')


def _describe_field(field: Field, fragment: Schema) -> Schema:
    fragment = fragment | {'description': field.doc}
    if field.create != REFUSED and field.default is not None:
        fragment['default'] = _get_default(field)
    if field.since > 1:
        fragment['x-since'] = f'1.{field.since}'
    if field.until < Field.until:
        fragment['x-until'] = f'1.{field.until}'
    return fragment


def _allow_null(fragment: Schema) -> Schema:
    fragment = fragment | {'type': [fragment['type'], 'null']}
    if 'enum' in fragment:
        fragment['enum'] = [*fragment['enum'], None]
    return fragment


def _drop_bounds(fragment: Schema) -> Schema:
    return {
        key: _drop_bounds(value) if isinstance(value, dict) else value
        for key, value in fragment.items()
        if key not in _BOUNDS
    }
