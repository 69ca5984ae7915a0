"""Fill a fresh Keystone and Glance: users, roles, projects, catalogue, images. Called once by
`cloud`, over HTTP.

Nothing here is idempotent: when a step fails, `cloud` deletes the databases and starts over."""

import json
import urllib.error
import urllib.request

from processes import Failed

REGION = 'RegionOne'
# In addition to admin, member, reader and service, which Keystone's own bootstrap creates.
ROLES = ('heat_stack_owner', 'heat_stack_user', 'creator', 'load-balancer_member')
DEMO_ROLES = ('member', 'reader', *ROLES[:1], *ROLES[2:])
IMAGES = {'ubuntu': {'os_distro': 'ubuntu'}, 'no-distro': {}}
IMAGE_DATA = bytes(4096)


class Api:
    """A client of one service's JSON API, with an admin's token."""

    def __init__(self, url: str, token: str | None = None):
        self.url, self.token = url, token

    def call(self, method: str, path: str, body=None, *, content_type: str = 'application/json'):
        """Send one request; return the answer's headers and JSON. Raises Failed with the answer if
        it is an error."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {'Content-Type': content_type}, method=method
        )
        if self.token:
            request.add_header('X-Auth-Token', self.token)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                content = answer.read()
                return answer.headers, json.loads(content) if content else {}
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors='replace')
            raise Failed(
                f'Seeding: {method} {request.full_url} was answered {error.code}: {text}'
            ) from error

    def make(self, kind: str, path: str, **attributes) -> str:
        """Create one thing at Keystone and return its id."""
        return self.call('POST', path, {kind: attributes})[1][kind]['id']


def log_in(auth_url: str, password: str) -> str:
    """Return a token of user admin on project admin."""
    domain = {'name': 'Default'}
    user = {'name': 'admin', 'password': password, 'domain': domain}
    auth = {
        'identity': {'methods': ['password'], 'password': {'user': user}},
        'scope': {'project': {'name': 'admin', 'domain': domain}},
    }
    return Api(auth_url).call('POST', '/auth/tokens', {'auth': auth})[0]['X-Subject-Token']


def fill_identity(
    auth_url: str, endpoints: dict[str, tuple[str, str]], passwords: dict[str, str]
) -> str:
    """Create roles, projects, users, Heat's domain and the catalogue; return the admin's token.

    `endpoints` maps a service type to its name and URL; `passwords` has those of admin, demo,
    magnum, glance, heat and heat_domain_admin."""
    token = log_in(auth_url, passwords['admin'])
    keystone = Api(auth_url, token)
    for name in ROLES:
        keystone.make('role', '/roles', name=name)
    roles = {role['name']: role['id'] for role in keystone.call('GET', '/roles')[1]['roles']}
    projects = {
        name: keystone.make('project', '/projects', name=name, domain_id='default')
        for name in ('service', 'demo')
    }

    def make_user(name: str, domain_id: str, where: str, role_names: tuple[str, ...]) -> None:
        user_id = keystone.make(
            'user', '/users', name=name, password=passwords[name], domain_id=domain_id
        )
        for role in role_names:
            keystone.call('PUT', f'{where}/users/{user_id}/roles/{roles[role]}')

    make_user('demo', 'default', f"/projects/{projects['demo']}", DEMO_ROLES)
    for name in ('magnum', 'glance', 'heat'):
        make_user(name, 'default', f"/projects/{projects['service']}", ('admin', 'service'))
    # Heat creates users for the nodes, in a domain of its own.
    heat_domain = keystone.make('domain', '/domains', name='heat')
    make_user('heat_domain_admin', heat_domain, f'/domains/{heat_domain}', ('admin',))
    for kind, (name, url) in endpoints.items():
        service_id = keystone.make('service', '/services', type=kind, name=name)
        for interface in ('public', 'internal', 'admin'):
            keystone.make(
                'endpoint',
                '/endpoints',
                service_id=service_id,
                interface=interface,
                url=url,
                region_id=REGION,
            )
    return token


def fill_images(image_url: str, token: str) -> None:
    """Create the public images, of 4 KiB of zeros each: nothing ever boots from them."""
    glance = Api(image_url, token)
    for name, properties in IMAGES.items():
        image = {
            'name': name,
            'disk_format': 'raw',
            'container_format': 'bare',
            'visibility': 'public',
            **properties,
        }
        image_id = glance.call('POST', '/v2/images', image)[1]['id']
        glance.call(
            'PUT',
            f'/v2/images/{image_id}/file',
            IMAGE_DATA,
            content_type='application/octet-stream',
        )
