"""Check what users set for a driver: fields of cluster templates, labels, and labels of nodes.

`Driver` inherits from `LabelRules`; the API calls its checks before it stores anything, and the
conductor has labels converted to typed values. What is allowed comes from the folder's manifest and
from `[drivers] label_defaults`. This module renders nothing and does no I/O.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
from oslo_config import cfg

from magnum_lite import errors

#: Spellings of a boolean label, in lower case.
BOOLEANS = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}

#: A manifest, or a part of one, as YAML gives it.
Manifest = Mapping[str, Any]

FORMATS = jsonschema.FormatChecker(formats=())


@FORMATS.checks('ipv4-network', raises=ValueError)
def _is_network(value: object) -> bool:
    # Python also accepts a netmask after the slash, which no engine does.
    return not isinstance(value, str) or str(ipaddress.IPv4Network(value)) == value


@FORMATS.checks('url')
def _is_url(value: object) -> bool:
    if not isinstance(value, str):
        return True
    return re.fullmatch(r'(https?://[^\s/@]+|file://)/[!-~]+', value) is not None


def make_error(folder: Path, place: str, problem: object) -> errors.DriverError:
    """The error for a fault of a driver folder: `place` is a file, or a path in the manifest."""
    return errors.DriverError(f'driver folder {folder}: {place}: {problem}')


def find_unsafe_text(text: str) -> str | None:
    """Say why a text must not be passed on to nodes; None if it may."""
    if re.search(r'[\x00-\x1f\x7f]', text):
        return 'it must not hold control characters'
    placeholder = re.search('@@[A-Z_]+@@', text)
    if placeholder is None:
        return None
    return (
        f'it must not hold {placeholder[0]:.80}, which Heat would put something else in the place '
        'of'
    )


def find_unsafe_fields(fields: Mapping[str, Any]) -> list[str]:
    """Say in a sentence each which texts must not be passed on to nodes. Other values may be."""
    problems = []
    for name, value in fields.items():
        problem = find_unsafe_text(value) if isinstance(value, str) else None
        if problem:
            problems.append(f'{name} cannot be {value!r:.80}: {problem}')
    return problems


def find_problem(schema: Mapping[str, Any], value: Any) -> str | None:
    """Say what a value must be, in words that follow from its JSON Schema; None if it is valid."""
    if jsonschema.Draft202012Validator(schema, format_checker=FORMATS).is_valid(value):
        return None
    kind = schema.get('type')
    if 'enum' in schema:
        return f'it must be one of {", ".join(map(str, schema["enum"]))}'
    if 'const' in schema:
        return f'it must be {schema["const"]!r}'
    if kind == 'boolean':
        return 'it must be true or false'
    if kind == 'integer':
        lowest, highest = schema.get('minimum', 'any'), schema.get('maximum', 'any')
        return f'it must be a whole number from {lowest} to {highest}'
    example = schema.get('examples', [None])[0]
    if isinstance(example, list):
        example = ','.join(example)
    if kind == 'array':
        return f'it must be a list with commas like {example}'
    return f'it must be like {example}'


def _explain(problem: str, item: Manifest) -> str:
    """Append the manifest's explanation of a field or label, if it has one."""
    return f'{problem} ({item["text"]})' if item.get('text') else problem


class LabelRules:
    """What a manifest lets users set: the part of a driver that needs no templates."""

    def __init__(self, name: str, folder: Path, manifest: Manifest) -> None:
        """`manifest` has passed `folders.check_manifest`."""
        self.name = name
        self.folder = folder
        self.manifest = manifest
        self.labels_known: dict[str, dict[str, Any]] = manifest['labels']
        self._aliases = {
            alias: label
            for label, item in self.labels_known.items()
            for alias in item.get('aliases', ())
        }

    @property
    def template_defaults(self) -> dict[str, Any]:
        """Values for fields of a cluster template that its creator left out."""
        return {
            name: item['default']
            for name, item in self.manifest.get('template_fields', {}).items()
            if 'default' in item
        }

    def check_template(
        self, values: Mapping[str, Any], conf: cfg.ConfigOpts | None = None
    ) -> list[str]:
        """Say in sentences which fields of a cluster template this driver cannot serve.

        Null counts as not given. A label that a field needs may be in `values`, or among the
        operator's defaults in `conf`.
        """
        problems = find_unsafe_fields(values)
        labels = {*(values.get('labels') or ())}
        if conf:
            labels |= conf.drivers.label_defaults.keys()
        for name, item in self.manifest.get('template_fields', {}).items():
            value = values.get(name)
            if value is None:
                continue
            problem = find_problem(item['schema'], value)
            if problem:
                problem = f'{name} cannot be {value!r} with driver {self.name}: {problem}'
                problems.append(_explain(problem, item))
                continue
            needed_label = item.get('needs_label', {}).get(value)
            if needed_label and needed_label not in labels:
                problems.append(_explain(f'{name} {value} needs the label {needed_label}', item))
        return problems

    def check_labels(self, labels: Mapping[str, str], conf: cfg.ConfigOpts) -> list[str]:
        """Say in sentences which labels are unknown or wrong. An empty value is none."""
        problems = (self._find_label_problem(labels, given) for given in labels)
        return [problem for problem in problems if problem]

    def _find_label_problem(self, labels: Mapping[str, str], given: str) -> str | None:
        """Say what is wrong with the label `given`, one of `labels`."""
        name = self._aliases.get(given, given)
        value = labels[given]
        if name not in self.labels_known:
            return self._find_unknown_label_problem(name, value)
        if name != given and name in labels:
            return f'Label {given} is another name of {name}; give one of them'
        problem = self._convert(name, value)[1] if value != '' else None
        if problem is None:
            return None
        return _explain(f'Label {given} cannot be {value!r}: {problem}', self.labels_known[name])

    def _find_unknown_label_problem(self, name: str, value: str) -> str | None:
        """The hint for a label that the driver does not have; None if it can be ignored."""
        for retired in self.manifest.get('retired_labels', ()):
            if not re.fullmatch(retired['names'], name, re.VERBOSE):
                continue
            harmless = retired.get('harmless', '')
            if value == '' or re.fullmatch(harmless, value, re.VERBOSE | re.IGNORECASE):
                return None
            return (
                f'Driver {self.name} does nothing for the label {name}={value!s:.80}: '
                f'{retired["text"]}'
            )
        near = difflib.get_close_matches(name, [*self.labels_known, *self._aliases], n=1)
        if near:
            hint = f'did you mean {near[0]}?'
        else:
            hint = f'it knows {", ".join(sorted(self.labels_known))}'
        return f'Driver {self.name} has no label {name!r}; {hint}'

    def check_node_labels(self, labels: Mapping[str, str]) -> list[str]:
        """Say in sentences which labels of nodes the engine reserves. Syntax is not checked."""
        reserved = self.manifest.get('node_labels')
        if reserved is None:
            return []
        return [
            f'A node cannot have the label {key!r:.80}: {reserved["text"]}'
            for key in labels
            if re.fullmatch(reserved['refused'], key, re.VERBOSE)
        ]

    def read_labels(self, conf: cfg.ConfigOpts, labels: Mapping[str, str]) -> dict[str, Any]:
        """Return every label of the driver, typed.

        The value given wins over the operator's default, and that over the manifest's. Raises
        `DriverError` for a wrong value; `check_labels` finds those of users earlier.
        """
        typed = {name: label.get('default') for name, label in self.labels_known.items()}
        sources = {'[drivers] label_defaults': conf.drivers.label_defaults, 'cluster': labels}
        for source, values in sources.items():
            for given, text in values.items():
                name = self._aliases.get(given, given)
                if name not in self.labels_known or text == '':
                    continue
                typed[name], problem = self._convert(name, text)
                if problem:
                    raise make_error(
                        self.folder, source, f'label {given} cannot be {text!r}: {problem}'
                    )
        return typed

    def _convert(self, name: str, text: str) -> tuple[Any, str | None]:
        """Convert the text of a label: (typed value, what is wrong with it or None)."""
        problem = find_unsafe_text(text)
        if problem:
            return None, problem
        schema = self.labels_known[name]['schema']
        value: Any = text
        if schema['type'] == 'boolean':
            value = BOOLEANS.get(text.lower(), text)
        elif schema['type'] == 'integer' and re.fullmatch(r'-?[0-9]{1,9}', text):
            value = int(text)
        elif schema['type'] == 'array':
            parts = (part.strip() for part in text.split(','))
            value = [part for part in parts if part]
        return value, find_problem(schema, value)
