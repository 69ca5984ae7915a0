"""What a node gets, in the form that its operating system reads: cloud-config, or Ignition.

Both are made of the same data, which a driver's template gives: `{files: [{path, mode, compress,
...}, ...], mask: [unit, ...], start: [unit, ...], ssh_authorized_keys: [...]}`. What is in a file
comes from `content`, a function of its item. Everything is serialised here and nothing is pasted,
so a value never becomes syntax. Placeholders like @@NODE_NAME@@ stay as they are; Heat puts
something in their place."""

from __future__ import annotations

import base64
import gzip
import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

#: What stands for itself in the data of a URL (RFC 2396, 2: reserved and mark). The @ of
#: placeholders is among it, and so is whatever Heat puts in their place: addresses, names of nodes,
#: ids, tokens, and URLs of its own.
URL_SAFE = "~!*'();:@&=+$,/"


def quote(value: Any) -> str:
    """Write `value` as JSON that is also YAML, in ASCII. Raises `jinja2.UndefinedError` for what is
    not defined."""

    def undefined(found: Any) -> Any:
        if isinstance(found, jinja2.Undefined):
            str(found)  # raises, with the name
        raise TypeError(f'{type(found).__name__} cannot be printed')

    # JSON's pairs of surrogates are two characters to YAML, so that characters beyond the basic
    # plane take YAML's form.
    text = json.dumps(value, ensure_ascii=False, default=undefined)
    return re.sub(
        r'[^ -~]',
        lambda m: f'\\u{ord(m[0]):04x}' if m[0] <= '\uffff' else f'\\U{ord(m[0]):08x}',
        text,
    )


def cloud_config(node: Mapping[str, Any], content: Callable[[dict[str, Any]], str]) -> str:
    """Make cloud-config. Units are started by it, and the others masked."""
    files = []
    for item in node['files']:
        text = content(item)
        entry = {'path': item['path'], 'permissions': item.get('mode', '0644'), 'content': text}
        if item.get('compress'):
            entry |= {'encoding': 'gz+b64', 'content': _packed(text)}
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


def ignition(node: Mapping[str, Any], content: Callable[[dict[str, Any]], str]) -> str:
    """Make Ignition, by version 3.3.0 of its specification: what reads any later one reads it.

    Units are enabled, because there is nothing yet that could start them: they must be wanted by a
    target."""
    files = []
    for item in node['files']:
        text = content(item)
        contents = {'source': 'data:,' + urllib.parse.quote(text, safe=URL_SAFE)}
        if '@@' not in text:  # Heat cannot reach into what is packed
            packed = {'source': 'data:;base64,' + _packed(text), 'compression': 'gzip'}
            contents = min(contents, packed, key=lambda form: len(str(form)))
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
        config['passwd'] = {
            'users': [{'name': 'core', 'sshAuthorizedKeys': node['ssh_authorized_keys']}]
        }
    config['systemd'] = {
        'units': [
            *({'name': unit, 'mask': True} for unit in node.get('mask', ())),
            *({'name': unit, 'enabled': True} for unit in node.get('start', ())),
        ]
    }
    return json.dumps(config, separators=(',', ':'))


def _packed(content: str) -> str:
    """gzip in base64. Without a time in it the same content gives the same text."""
    return base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()
