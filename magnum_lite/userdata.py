"""Serialise what a node gets, for its operating system: as cloud-config or as Ignition.

`Driver` calls this with the data that a folder's template gives: `{files: [{path, mode, compress,
...}, ...], mask: [unit, ...], start: [unit, ...], ssh_authorized_keys: [...]}`. The content of a
file is `text`, a mapping `environment` of variables, or a list `documents` for YAML. Everything is
serialised here and nothing is pasted, so a value never becomes syntax. Placeholders like
@@NODE_NAME@@ stay as they are, and Heat replaces them. All functions are pure.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
import urllib.parse
from collections.abc import Mapping
from typing import Any

import jinja2

#: Characters that need no escape in a data URL (RFC 2396, 2: reserved and mark). They include the @
#: of placeholders, and whatever Heat puts in their place: addresses, names of nodes, ids, tokens,
#: and its own URLs.
URL_SAFE = "~!*'();:@&=+$,/"


def quote(value: Any) -> str:
    """Write `value` as JSON that is also YAML, in ASCII. Raises `jinja2.UndefinedError`."""
    text = json.dumps(value, ensure_ascii=False, default=_refuse)
    return re.sub(r'[^ -~]', _escape, text)


def _refuse(value: Any) -> Any:
    if isinstance(value, jinja2.Undefined):
        # Raises UndefinedError, which says the name.
        str(value)
    raise TypeError(f'{type(value).__name__} cannot be printed')


def _escape(match: re.Match[str]) -> str:
    # JSON writes a character beyond the basic plane as a pair of surrogates, which YAML reads as
    # two characters. So these have YAML's own form.
    code = ord(match[0])
    return f'\\u{code:04x}' if code <= 0xFFFF else f'\\U{code:08x}'


def write_cloud_config(node: Mapping[str, Any]) -> str:
    """Write cloud-config. It starts units, and masks others."""
    files = []
    for item in node['files']:
        text = _write_content(item)
        entry = {'path': item['path'], 'permissions': item.get('mode', '0644'), 'content': text}
        if item.get('compress'):
            entry |= {'encoding': 'gz+b64', 'content': _compress(text)}
        files.append(entry)
    config: dict[str, Any] = {'write_files': files}
    if node.get('ssh_authorized_keys'):
        config['ssh_authorized_keys'] = node['ssh_authorized_keys']
    config['runcmd'] = [
        ['systemctl', 'daemon-reload'],
        *(['systemctl', 'mask', '--now', unit] for unit in node.get('mask', ())),
        *(['systemctl', 'start', '--no-block', unit] for unit in node.get('start', ())),
    ]
    return f'#cloud-config\n{quote(config)}\n'


def write_ignition(node: Mapping[str, Any]) -> str:
    """Write Ignition by version 3.3.0 of its specification, which all later versions read.

    It enables units, because nothing can start them yet. So a target must want them.
    """
    files = []
    for item in node['files']:
        text = _write_content(item)
        contents = {'source': 'data:,' + urllib.parse.quote(text, safe=URL_SAFE)}
        # Heat cannot replace a placeholder in a compressed text.
        if '@@' not in text:
            compressed = {
                'source': 'data:;base64,' + _compress(text),
                'compression': 'gzip',
            }
            contents = min(contents, compressed, key=_measure)
        files.append(
            {
                'path': item['path'],
                'mode': int(item.get('mode', '0644'), 8),
                'overwrite': True,
                'contents': contents,
            }
        )
    config: dict[str, Any] = {'ignition': {'version': '3.3.0'}, 'storage': {'files': files}}
    if node.get('ssh_authorized_keys'):
        user = {'name': 'core', 'sshAuthorizedKeys': node['ssh_authorized_keys']}
        config['passwd'] = {'users': [user]}
    config['systemd'] = {
        'units': [
            *({'name': unit, 'mask': True} for unit in node.get('mask', ())),
            *({'name': unit, 'enabled': True} for unit in node.get('start', ())),
        ]
    }
    return json.dumps(config, separators=(',', ':'))


def _write_content(item: Mapping[str, Any]) -> str:
    """Write the content of one file. Raises KeyError if its item has none."""
    if 'text' in item:
        return str(item['text'])
    if 'environment' in item:
        texts = {
            name: '' if value is None else str(value) for name, value in item['environment'].items()
        }
        return ''.join(f'{name}={shlex.quote(text)}\n' for name, text in texts.items())
    return ''.join(f'---\n{quote(document)}\n' for document in item['documents'])


def _measure(contents: Mapping[str, str]) -> int:
    return len(str(contents))


def _compress(content: str) -> str:
    """gzip in base64. It holds no time stamp, so the same content always gives the same text."""
    return base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()
