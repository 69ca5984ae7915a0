"""The document is made from the tables, is whole, and is what is served. `contract` holds each
answer against it."""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest
import webob
from conftest import Api

from magnum_lite import schema
from magnum_lite.api import app as api_app
from magnum_lite.api import docs, openapi, resources, routes, versions
from magnum_lite.api.request import Services
from magnum_lite.api.route import Route

FILE = pathlib.Path(__file__).parent.parent / 'doc' / 'openapi.json'
DOCUMENT = openapi.build(routes.ROUTES)
METHODS = [
    (path, method, operation)
    for path, methods in DOCUMENT['paths'].items()
    for method, operation in methods.items()
]


def lacks(route: Route) -> list[str]:
    """What a line of the table does not say and the document needs."""
    found = []
    if not (route.handler.__doc__ or '').strip():
        found.append('a docstring of its handler')
    if route.gives is None and route.status != 204:
        found.append(
            'gives: the schema of its answer (schema.describe_row, schema.describe_listing)'
        )
    if route.method in ('POST', 'PATCH', 'PUT') and route.takes is None:
        found.append(
            'takes: the schema of its body (schema.describe_post, schema.describe_patch, '
            'schema.NO_BODY)'
        )
    if route.method == 'POST' and route.keyed is None:
        found.append(
            'keyed: True if the handler gives changes.make_receipt to db, False if the answer is a '
            'secret'
        )
    found += [f'openapi.QUERY: what {name} is' for name in route.query if name not in openapi.QUERY]
    found += [
        f'openapi.PATH: what {name} is'
        for name in re.findall(r'\{(\w+)\}', route.path)
        if name not in openapi.PATH
    ]
    return found


@pytest.mark.parametrize('route', routes.ROUTES, ids=lambda route: f'{route.method} {route.path}')
def test_every_line_says_all_there_is_to_say(route: Route) -> None:
    assert lacks(route) == [], f'{route.method} {route.path} lacks these'


def test_line_that_says_nothing_is_told_what_it_lacks() -> None:
    def handler(req: Any) -> None:
        pass

    found = lacks(Route('POST', '/v1/things/{thing}', handler, 'x', query=('unheard',)))

    assert [text.split(':')[0].split('.')[-1] for text in found] == [
        'a docstring of its handler',
        'gives',
        'takes',
        'keyed',
        'QUERY',
        'PATH',
    ]


def test_line_that_says_nothing_is_in_the_document_all_the_same() -> None:
    def handler(req: Any) -> None:
        """Do a thing. It may fail."""

    made = openapi.build(
        [Route('POST', '/v1/things/{thing}', handler, 'x:y', since=9, query=('unheard',))]
    )

    operation = made['paths']['/v1/things/{thing}']['post']
    assert (operation['summary'], operation['description']) == ('Do a thing', 'It may fail.')
    assert (operation['x-policy-rule'], operation['x-microversion']) == ('x:y', '1.9')
    assert {parameter['name'] for parameter in operation['parameters']} == {
        'thing',
        'unheard',
        versions.HEADER,
    }


def test_file_is_fresh() -> None:
    """If this fails: magnum-lite openapi > doc/openapi.json"""
    assert FILE.read_text() == json.dumps(DOCUMENT, indent=1) + '\n'


def test_all_lines_are_there() -> None:
    assert {(path, method.upper()) for path, method, _ in METHODS} == {
        (route.path, route.method) for route in routes.ROUTES
    }


def test_names_of_operations_are_unique() -> None:
    names = [operation['operationId'] for _, _, operation in METHODS]

    assert len(names) == len(set(names))


def test_handler_of_two_lines_has_two_names() -> None:
    lines = [
        Route(method, '/v1/a', docs.serve_document, 'x') for method in ('GET', 'POST', 'PATCH')
    ]

    assert openapi.list_operation_ids(lines) == [
        'docs.serve_document',
        'docs.serve_document.2',
        'docs.serve_document.3',
    ]


def test_schemas_are_json_schema() -> None:
    for name, described in DOCUMENT['components']['schemas'].items():
        jsonschema.Draft202012Validator.check_schema(described)
        assert described['title'] == name


def test_references_lead_somewhere() -> None:
    references = set(re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', json.dumps(DOCUMENT)))

    assert references
    for kind, name in references:
        assert name in DOCUMENT['components'][kind]


def test_titles_are_unique() -> None:
    """Two fragments with one title and not the same content would be one in the document."""
    one, other = (
        schema.describe_row(resources.NODE),
        schema.describe_row(resources.NODE, brief=True) | {'title': 'Node'},
    )
    lines = [
        Route('GET', f'/v1/{name}', docs.serve_document, 'x', gives=gives)
        for name, gives in (('a', one), ('b', other))
    ]

    with pytest.raises(ValueError, match='two schemas have the title Node'):
        openapi.build(lines)


@pytest.mark.parametrize(
    ('resource', 'body'),
    [
        (
            resources.CLUSTER,
            {
                'cluster_template_id': 't',
                'node_count': None,
                'labels': {'a': 1, 'b': True, 'c': 'd'},
            },
        ),
        (resources.RESIZE, {'node_count': 3, 'nodes_to_remove': ['a'], 'nodegroup': None}),
        (
            resources.NODEGROUP,
            {'name': 'n', 'node_taints': [{'key': 'a', 'effect': 'NoSchedule', 'value': None}]},
        ),
    ],
)
def test_body_that_the_document_has_is_taken(
    resource: schema.Resource, body: dict[str, Any]
) -> None:
    jsonschema.validate(body, schema.describe_post(resource))

    resource.parse(body, versions.MAXIMUM)


@pytest.mark.parametrize(
    ('path', 'fits'),
    [
        ('/node_count', True),
        ('/health_status_reason/n-0', True),
        ('/name', False),
        ('/node_count/a', False),
        ('node_count', False),
    ],
)
def test_patch_has_the_paths_that_can_be_set(path: str, fits: bool) -> None:
    patch = jsonschema.Draft202012Validator(
        schema.describe_patch(resources.CLUSTER, ('node_count', 'health_status_reason'))
    )

    assert patch.is_valid([{'op': 'replace', 'path': path, 'value': 1}]) == fits
    assert patch.is_valid([{'op': 'remove', 'path': path}]) == fits
    assert not patch.is_valid([{'op': 'replace', 'path': path}])
    assert not patch.is_valid([{'op': 'replace', 'path': '/node_count', 'value': 'many'}])


def test_versions_are_said_where_they_gate() -> None:
    shown = DOCUMENT['components']['schemas']['Cluster']

    assert shown['properties']['cluster_id']['x-since'] == '1.13'
    assert 'stack_id' in shown['required'] and 'cluster_id' not in shown['required']


# -- served ----------------------------------------------------------------------------------------


def test_document_is_served_and_names_its_server(api: Api) -> None:
    response = api('GET', '/v1/openapi.json', version=None)

    assert response.json.pop('servers') == [{'url': 'http://localhost'}]
    assert {k: v for k, v in response.json.items() if k != 'servers'} == json.loads(
        FILE.read_text()
    )


def test_server_is_where_the_api_is_mounted(services: Services) -> None:
    request = webob.Request.blank(
        '/v1/openapi.json',
        base_url='https://cloud.example/container-infra',
        environ={'REMOTE_ADDR': '127.0.0.1'},
    )

    response = request.get_response(api_app.make_app(services))

    assert response.json['servers'] == [{'url': 'https://cloud.example/container-infra'}]


class Page(HTMLParser):
    """What a page loads, where it leads, and what can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ('meta', 'br'):
            self.open.append(tag)
        for name, value in attrs:
            assert name not in ('src', 'style') and not name.startswith('on')
            if name == 'href':
                self.links.append(value or '')
            if name == 'id':
                self.places.add(value or '')

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(services: Services, base_url: str) -> webob.Response:
    request = webob.Request.blank('/docs', base_url=base_url, environ={'REMOTE_ADDR': '127.0.0.1'})
    request.headers['Accept'] = 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8'
    return request.get_response(api_app.make_app(services))


def test_page_needs_nothing_from_outside(services: Services) -> None:
    response = page(services, 'https://cloud.example/container-infra')

    found = Page(response.text)
    assert found.open == []
    assert found.tags.isdisjoint({'script', 'link', 'img', 'iframe', 'object', 'form', 'base'})
    outside = [link for link in found.links if not link.startswith('#')]
    assert outside == ['https://cloud.example/container-infra/v1/openapi.json']
    assert {link[1:] for link in found.links if link.startswith('#')} <= found.places


def test_policy_of_the_page_allows_its_style_and_nothing_else(services: Services) -> None:
    response = page(services, 'http://localhost')

    style = re.search('<style>(.*?)</style>', response.text, re.S)
    assert style
    known = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = response.headers['Content-Security-Policy'].split('; ')
    assert policy[:2] == ["default-src 'none'", f"style-src 'sha256-{known}'"]
    assert response.headers['X-Content-Type-Options'] == 'nosniff'


def test_page_tells_of_every_operation(services: Services) -> None:
    found = Page(page(services, 'http://localhost').text)

    assert set(openapi.list_operation_ids(routes.ROUTES)) <= found.places


def test_page_fits_a_narrow_window(services: Services) -> None:
    """No table is wider than the page, and no word in it is unbreakable."""
    text = page(services, 'http://localhost').text

    style = re.search('<style>(.*?)</style>', text, re.S)
    assert style
    assert 'body{overflow-wrap:anywhere}' in style[1]
    assert 'white-space' not in style[1] and 'nowrap' not in style[1]
    assert re.search(r'table{[^}]*width:100%;table-layout:fixed', style[1])
    longest = max(len(name) for name in re.findall('<th><code>(.*?)</code></th>', text))
    assert longest < 40, 'the pattern of all paths of a patch in one cell'


def test_page_has_a_row_for_each_attribute_of_a_patch(services: Services) -> None:
    text = page(services, 'http://localhost').text

    section = text.partition('id="schema-ClusterPatch"')[2].partition('</section>')[0]
    assert re.findall('<code>(/.*?)</code></th><td>(.*?)</td>', section) == [
        (path, 'remove or add or replace')
        for path in (
            '/node_count',
            '/health_status',
            '/health_status_reason[/{key}]',
            '/description',
        )
    ]


def test_host_that_is_code_is_text(services: Services) -> None:
    request = webob.Request.blank(
        '/docs', environ={'REMOTE_ADDR': '127.0.0.1', 'HTTP_HOST': '"><script>x</script>'}
    )

    response = request.get_response(api_app.make_app(services))

    assert '<script' not in response.text


@pytest.mark.parametrize(
    ('path', 'accept', 'status'),
    [
        ('/docs', 'text/html', 200),
        ('/docs', 'application/json', 406),
        ('/docs/', '*/*', 200),
        ('/docs?x=1', '*/*', 400),
        ('/v1/openapi.json', 'text/html', 406),
        ('/v1/openapi.json', 'application/json', 200),
        ('/v1/docs', '*/*', 404),
        ('/openapi.json', '*/*', 200),
    ],
)
def test_documents_are_of_one_kind(api: Api, path: str, accept: str, status: int) -> None:
    assert api('GET', path, headers={'Accept': accept}).status_code == status


@pytest.mark.parametrize('path', ['/docs', '/v1/openapi.json'])
def test_documents_are_only_read(api: Api, path: str) -> None:
    response = api('POST', path, {})

    assert (response.status_code, response.headers['Allow']) == (405, 'GET')
