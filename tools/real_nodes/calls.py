"""Calls of magnum-lite's API for which the stock client has no command, printed as curl would send
them. Standard library only."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from processes import Failed
from terminal import say

VERSION = ('OpenStack-API-Version', 'container-infra latest')


class Api:
    """magnum-lite at an address. `make_token` is called again when a token is not taken any
    more."""

    def __init__(self, url: str, make_token: Callable[[], str]) -> None:
        self.url = url
        self._make_token = make_token
        self._token = ''

    def call(self, method: str, path: str, *, shown: bool = False) -> Any:
        """Send a request and return its JSON. Raises Failed for anything but success; `find` does
        not for what is not there."""
        status, content = self._send(method, path, shown)
        if status >= 400:
            raise Failed(f'magnum-lite answers {status} to {method} {path}: {json.dumps(content)}')
        return content

    def find(self, path: str) -> Any:
        """GET, or None if there is no such thing."""
        status, content = self._send('GET', path, False)
        if status == 404:
            return None
        if status >= 400:
            raise Failed(f'magnum-lite answers {status} to GET {path}: {json.dumps(content)}')
        return content

    def _send(self, method: str, path: str, shown: bool) -> tuple[int, Any]:
        if shown:
            name, value = VERSION
            say(
                f'$ curl -s -X {method} {self.url}{path} \\\n'
                '    -H "X-Auth-Token: $(openstack token issue -f value -c id)" '
                f'-H "{name}: {value}"'
            )
        for _ in range(2):
            self._token = self._token or self._make_token()
            headers = {'X-Auth-Token': self._token, VERSION[0]: VERSION[1]}
            request = urllib.request.Request(self.url + path, None, headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    text = answer.read().decode()
                    return answer.status, json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                text = error.read().decode(errors='replace')
                if error.code != 401:
                    try:
                        return error.code, json.loads(text)
                    except ValueError:
                        return error.code, text[:500]
                self._token = ''
            except OSError as error:
                raise Failed(
                    f'{method} {self.url}{path} failed: {error}. Is magnum-lite running? '
                    'tools/demo --nodes starts it.'
                ) from error
        raise Failed(f"Keystone's tokens are not taken by magnum-lite: 401 to {method} {path}")
