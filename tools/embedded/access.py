"""Print how entries of clouds.yaml log in: `access.py NAME...` prints a JSON list, one object for
each name.

Run by `tools/demo` in the venv of magnum-lite, because only openstacksdk knows how to read
clouds.yaml. Each object has the options of the login and a fresh token, so the output is secret."""

import json
import sys

import openstack


def describe(name: str) -> dict:
    """Log in and return what `tools/demo` needs to know. Raises what openstacksdk raises."""
    cloud = openstack.connect(cloud=name, app_name='magnum-lite-demo')
    config = cloud.config.config
    return {
        'auth_type': config['auth_type'],
        'auth': config['auth'],
        'region_name': config.get('region_name'),
        'interface': config.get('interface'),
        'cafile': config.get('cacert'),
        'insecure': config.get('verify') is False,
        'token': cloud.auth_token,
    }


if __name__ == '__main__':
    try:
        json.dump([describe(name) for name in sys.argv[1:]], sys.stdout)
    except Exception as error:
        # One line for the reader, and not a traceback through three libraries.
        sys.exit(f'{type(error).__name__}: {error}')
