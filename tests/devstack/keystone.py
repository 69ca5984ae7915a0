"""What DevStack's functions ask Keystone for, without the seconds that each call of `openstack`
takes to load.

    keystone.py ensure KIND NAME [key=value...]     make a thing unless it is there, and print its id
    keystone.py grant ROLE USER project|domain NAME

Names stand for ids wherever Keystone wants one. The cloud is devstack-system-admin of
OS_CLIENT_CONFIG_FILE."""  # noqa: E501

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

import requests
import yaml


class Keystone:
    """One session of the admin."""

    def __init__(self) -> None:
        text = pathlib.Path(os.environ['OS_CLIENT_CONFIG_FILE']).read_text()
        auth = yaml.safe_load(text)['clouds']['devstack-system-admin']['auth']
        self.url = auth['auth_url'].rstrip('/').removesuffix('/v3') + '/v3'
        user = {
            'name': auth['username'],
            'password': auth['password'],
            'domain': {'name': 'Default'},
        }
        answer = requests.post(
            f'{self.url}/auth/tokens',
            timeout=60,
            json={
                'auth': {
                    'identity': {'methods': ['password'], 'password': {'user': user}},
                    'scope': {
                        'project': {'name': auth['project_name'], 'domain': {'name': 'Default'}}
                    },
                }
            },
        )
        answer.raise_for_status()
        self.headers = {'X-Auth-Token': answer.headers['X-Subject-Token']}

    def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """What it answers. Raises HTTPError."""
        answer = requests.request(
            method, f'{self.url}/{path}', json=body, params=query, headers=self.headers, timeout=60
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def find(self, kind: str, **query: str) -> str | None:
        """The id of the thing with these attributes, None if there is none."""
        found = self.ask('GET', f'{kind}s', **query)[f'{kind}s']
        return str(found[0]['id']) if found else None

    def ensure(self, kind: str, **values: str) -> str:
        """Its id. A service is looked for by its type alone, as DevStack does; another region's
        endpoint is another."""
        for name in ('domain', 'service'):
            if name in values:
                of = {'type': values.pop(name)} if name == 'service' else {'name': values.pop(name)}
                values[f'{name}_id'] = str(self.find(name, **of))
        keys = {'service': ('type',), 'endpoint': ('service_id', 'interface', 'region_id')}.get(
            kind, ('name', 'domain_id')
        )
        found = self.find(kind, **{key: values[key] for key in keys if key in values})
        return found or str(self.ask('POST', f'{kind}s', {kind: values})[kind]['id'])

    def grant(self, role: str, user: str, kind: str, name: str) -> None:
        """Give a user, by name or id, a role on a project or a domain, by name or id."""
        role_id = self.find('role', name=role)
        user_id, on = self.find('user', name=user) or user, self.find(kind, name=name) or name
        self.ask('PUT', f'{kind}s/{on}/users/{user_id}/roles/{role_id}')


def main(verb: str, *words: str) -> None:
    """Do what the command line says."""
    if verb == 'ensure':
        kind, name, *pairs = words
        values = dict(pair.split('=', 1) for pair in pairs) | (
            {} if name == '-' else {'name': name}
        )
        print(Keystone().ensure(kind, **values))
    else:
        Keystone().grant(*words)


if __name__ == '__main__':
    main(*sys.argv[1:])
