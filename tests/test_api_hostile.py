"""Hostile callers: bodies, addresses, queries, headers and patches, and the limits of values."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
import webob
from conftest import TEMPLATE, Api
from rows import TEMPLATE_UUID, store_cluster, store_template
from watched import VERSIONED, stage

from magnum_lite import models
from magnum_lite.api import resources
from magnum_lite.api.request import Services


@pytest.fixture
def api(watched_api: Api) -> Api:
    """Sends requests whose responses `Watched` checks."""
    return watched_api


# -- hostile callers -------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """A JSON value of that depth: objects in each other, and a number in the innermost."""
    inner = b'{"a":' * (depth - 2) + b'1' + b'}' * (depth - 2)
    return b'{"cluster_template_id": "k8s", "health_status_reason": %s}' % inner


def posted(**values: Any) -> bytes:
    return json.dumps({'cluster_template_id': 'k8s'} | values).encode()


HOSTILE_BODIES = {
    'nested 26 deep': (nested(26), 'nested more than 25 deep'),
    'nested 100,000 deep': (nested(100_000), 'more than 10000 objects and lists'),
    'nested 9,000 deep': (nested(9_000), 'not JSON'),
    'never closed': (b'[' * 9_000, 'not JSON'),
    'NaN': (b'{"cluster_template_id": "k8s", "node_count": NaN}', 'NaN is not a JSON value'),
    'Infinity': (
        b'{"cluster_template_id": "k8s", "node_count": Infinity}',
        'Infinity is not a JSON value',
    ),
    '-Infinity': (
        b'{"cluster_template_id": "k8s", "labels": {"a": -Infinity}}',
        '-Infinity is not a JSON value',
    ),
    'beyond a float': (
        b'{"cluster_template_id": "k8s", "node_count": 1e400}',
        '1e400 is too large',
    ),
    'a label beyond a float': (
        b'{"cluster_template_id": "k8s", "labels": {"a": 1e400}}',
        'is too large',
    ),
    'a name twice': (
        b'{"cluster_template_id": "k8s", "name": "a", "name": "b"}',
        'has a name twice',
    ),
    'a label twice': (
        b'{"cluster_template_id": "k8s", "labels": {"a": 1, "a": 1}}',
        'has a name twice',
    ),
    '100,000 labels': (
        b'{"cluster_template_id": "k8s", "labels": {%s}}'
        % b','.join(b'"%x":1' % n for n in range(100_000)),
        'holds more than 50000 values',
    ),
    '100,000 values': (
        b'{"cluster_template_id": [%s0]}' % (b'0,' * 100_000),
        'holds more than 50000 values',
    ),
    '100,000 objects': (b'[%s{}]' % (b'{},' * 100_000), 'more than 10000 objects and lists'),
    'a huge integer': (posted(node_count=10**4000), "'node_count'"),
    'an integer too long to read': (b'{"node_count": ' + b'9' * 5000 + b'}', 'not JSON'),
    'a huge integer as text': (posted(node_count='9' * 5000), "'node_count'"),
    'more than 31 bits': (posted(node_count=2**31), "'node_count'"),
    'a timeout of more than 31 bits': (posted(create_timeout=2**31), "'create_timeout'"),
    '31 bits of nodes': (posted(node_count=2**31 - 1), 'has room for'),
    '31 bits of masters': (posted(master_count=2**31 - 1, master_lb_enabled=True), 'has room for'),
    'a huge float of nodes': (posted(node_count=1e300), "'node_count'"),
    'half a pair in a name': (posted(name='a\ud800'), 'cannot be stored'),
    'half a pair in a template': (posted(cluster_template_id='\udfff'), 'cannot be stored'),
    'half a pair in a label': (posted(labels={'kube_tag': '\ud800'}), 'cannot be stored'),
    'half a pair in the name of a label': (posted(labels={'\ud800': 'x'}), 'cannot be stored'),
    'half a pair in an attribute': (posted(**{'\ud800': 1}), 'Unknown attribute'),
    'NUL in a text': (posted(discovery_url='a\0b'), 'cannot be stored'),
    'NUL in a template': (posted(cluster_template_id='k8s\0'), 'cannot be stored'),
    'NUL in the name of a label': (posted(labels={'a\0': 'x'}), 'cannot be stored'),
    'NUL in what is ignored': (posted(status_reason='\0'), 'cannot be stored'),
    '10,000 labels': (posted(labels={f'l{n}': 'x' for n in range(10_000)}), "'labels'"),
    'a long label': (posted(labels={'kube_tag': 'v' * 5000}), 'labels/kube_tag'),
    'a long name of a label': (posted(labels={'k' * 256: 'x'}), "'labels'"),
    '40,000 attributes': (posted(**{f'a{n}': 1 for n in range(40_000)}), 'Unknown attribute'),
    'not UTF-8': (b'{"cluster_template_id": "k8s", "name": "\xff"}', 'not JSON'),
    'a pair in UTF-8': (
        b'{"cluster_template_id": "k8s", "name": "\xed\xa0\x80"}',
        'cannot be stored',
    ),
    'a byte of nothing': (b'\0', 'not JSON'),
    'a name of 243 letters': (posted(name='a' * 243), "'name'"),
}


class Unread:
    """A body that nobody may touch."""

    def read(self, *_: Any) -> bytes:
        raise AssertionError('the body was read')

    readline = readlines = __iter__ = read


def send(api: Api, body: Any, **headers: str) -> webob.Response:
    """POST a cluster from a file or the like; `headers` as in a WSGI environment."""
    environ = {
        'REMOTE_ADDR': '127.0.0.1',
        'HTTP_X_PROJECT_ID': 'p1',
        'HTTP_X_USER_ID': 'u1',
        'HTTP_X_ROLES': 'member',
        'CONTENT_TYPE': 'application/json',
        'wsgi.input': body,
    } | headers
    return webob.Request.blank('/v1/clusters', method='POST', environ=environ).get_response(
        api.application
    )


class TestHostile:
    """None of these leaves a trace, so that one application, with a template and a cluster, does
    for all."""

    @pytest.fixture(scope='class')
    @classmethod
    def api(cls) -> Iterator[Api]:
        with stage() as staged:
            store_template(staged.database)
            store_cluster(staged.database, 1)
            yield Api(staged.application)

    @pytest.mark.parametrize('case', HOSTILE_BODIES)
    def test_body_is_refused(self, api: Api, case: str) -> None:
        raw, reason = HOSTILE_BODIES[case]

        response = api('POST', '/v1/clusters', raw=raw)

        assert response.status_code == 400
        assert reason in response.json['errors'][0]['detail']
        assert len(response.body) < 20_000, 'a small request has a small answer'

    @pytest.mark.parametrize(
        'kind',
        [
            'application/json',
            '',
            'application/x-www-form-urlencoded',
            'multipart/form-data; boundary=x',
        ],
    )
    def test_too_large_body_is_refused_unread(self, api: Api, kind: str) -> None:
        response = send(api, Unread(), CONTENT_LENGTH=str(1024 * 1024 + 1), CONTENT_TYPE=kind)

        assert response.status_code == 413
        assert (
            response.json['errors'][0]['title'] == 'The body has 1048577 bytes and may have 1048576'
        )

    def test_body_of_no_known_length_is_read_up_to_the_limit(self, api: Api) -> None:
        body = io.BytesIO(b' ' * 3 * 1024 * 1024)
        environ: dict[str, Any] = {'wsgi.input_terminated': True}

        response = send(api, body, **environ)

        assert response.status_code == 413
        assert body.tell() <= 1024 * 1024 + 64 * 1024

    def test_body_of_a_forbidden_request_is_not_read(self, api: Api) -> None:
        assert send(api, Unread(), CONTENT_LENGTH='100', HTTP_X_ROLES='reader').status_code == 403

    def test_body_that_ends_too_early_is_refused(self, api: Api) -> None:
        response = send(api, io.BytesIO(b'{"cluster_template_id"'), CONTENT_LENGTH='100')

        assert response.status_code == 400
        assert response.json['errors'][0]['title'] == 'The body is shorter than its Content-Length'

    @pytest.mark.parametrize(
        'path',
        [
            '%ff',
            '%ed%a0%80',
            '%00',
            'c1%00',
            'a%2Fb',
            '%2F',
            '..',
            '%2e%2e%2fclusters',
            'a' * 20_000,
            '%F0%9F%92%A5',
            '%0A',
            '%25',
            '%27%20OR%201=1',
            '{ident}',
            'c_',
            'c%25',
            'c1%20',
            ';',
            'c1;x=1',
        ],
        ids=lambda path: path[:20],
    )
    @pytest.mark.parametrize('noun', ['clusters', 'clustertemplates'])
    def test_address_is_not_found(self, api: Api, noun: str, path: str) -> None:
        for method in ('GET', 'DELETE'):
            assert api(method, f'/v1/{noun}/{path}').status_code == 404, method

    @pytest.mark.parametrize('path', ['/v1/clusters/%00', '/v1/clustertemplates/k8s%00'])
    def test_nul_in_an_address_does_not_reach_the_database(self, api: Api, path: str) -> None:
        """PostgreSQL's client raises ValueError for it; SQLite takes it, and would answer with the
        name."""
        assert api('GET', path).json['faultstring'] == ''

    @pytest.mark.parametrize(
        'path', ['/%ff', '/v1/%ff/x', '/v1%00', '/%00', '/v1/clusters%ff', '/v1/clusters/%ff/x']
    )
    def test_path_without_a_route_is_not_found(self, api: Api, path: str) -> None:
        for method in ('GET', 'POST', 'DELETE', 'PATCH', 'OPTIONS', 'BREW'):
            assert api(method, path).status_code == 404, method

    @pytest.mark.parametrize(
        'query',
        [
            'limit=%ff',
            '%ff=1',
            'limit=1&limit=1',
            'sort_key=id&sort_key=id',
            'all_tenants=false&all_tenants=true',
            'limit=%00',
            'marker=%00',
            'sort_key=%00',
            'sort_dir=%00',
            'all_tenants=%00',
            'limit=1%00',
            'marker=',
            'sort_key=',
            'limit=' + '9' * 10_000 + 'x',
            'limit=1e3',
            'limit=0x10',
            'limit=%20',
            'marker=' + 'a' * 10_000,
            '&&x',
            '=1',
            'sort_key=__class__',
            'sort_key=id;drop',
            'sort_key=id,name',
            'sort_key=public_key',
            'sort_key=nodegroups',
            'limit[]=1',
            'limit',
            'all_tenants=2',
        ],
        ids=lambda query: query[:24],
    )
    def test_query_is_refused(self, api: Api, query: str) -> None:
        for path in (
            '/v1/clusters',
            '/v1/clusters/detail',
            '/v1/clustertemplates',
            '/v1/clustertemplates/detail',
        ):
            assert api('GET', f'{path}?{query}', roles='admin').status_code == 400, path

    @pytest.mark.parametrize(
        'version',
        [
            'container-infra 1.' + '9' * 10_000,
            'container-infra 1.\xb2',
            'container-infra 1.9 1.9',
            'container-infra 1.9.1',
            'container-infra -1.9',
            'container-infra 1.9, compute 2.1',
            '',
            ' ',
            'latest',
            'container-infra 1.9\x00',
        ],
        ids=lambda version: repr(version[:32]),
    )
    def test_version_is_not_acceptable(self, api: Api, version: str) -> None:
        response = api(
            'GET', '/v1/clusters', version=None, headers={'OpenStack-API-Version': version}
        )

        assert response.status_code == 406
        assert not any(name in response.headers for name in VERSIONED)

    @pytest.mark.parametrize(
        'headers',
        [
            {'Accept': ';' * 1000},
            {'Accept': 'application/json;q=nan'},
            {'Accept': 'a/b, ' * 200 + '*/*'},
            {'Accept': '\xff'},
            {'Content-Length': '-5'},
            {'Content-Length': 'many'},
            {'Content-Type': '\xff'},
        ],
    )
    def test_odd_header_does_no_harm(self, api: Api, headers: dict[str, str]) -> None:
        assert api('GET', '/v1/clusters', headers=headers).status_code == 200

    def test_limit_of_ten_thousand_digits_is_cut(self, api: Api) -> None:
        assert len(api('GET', '/v1/clusters?limit=' + '9' * 10_000).json['clusters']) == 1


def test_body_may_be_nested_25_deep(api: Api, template: dict[str, Any]) -> None:
    response = api('POST', '/v1/clusters', raw=nested(25))

    assert "'health_status_reason/a' is wrong" in response.json['faultstring']


def test_body_of_exactly_the_limit_is_read(api: Api) -> None:
    raw = json.dumps(TEMPLATE).encode().ljust(1024 * 1024)

    assert api('POST', '/v1/clustertemplates', raw=raw).status_code == 201


def test_unknown_charset_is_ignored(api: Api) -> None:
    response = api(
        'POST',
        '/v1/clustertemplates',
        TEMPLATE,
        headers={'Content-Type': 'application/json; charset=x'},
    )

    assert response.status_code == 201


def test_name_may_have_242_letters(api: Api, template: dict[str, Any]) -> None:
    name = 'a' * 242

    assert (
        api('POST', '/v1/clusters', {'cluster_template_id': 'k8s', 'name': name}).status_code == 202
    )

    assert api('GET', f'/v1/clusters/{name}').json['name'] == name


@pytest.mark.parametrize('field', ['name', 'tags', 'http_proxy', 'keypair_id'])
def test_texts_of_a_template_have_255_characters(api: Api, field: str) -> None:
    assert (
        api('POST', '/v1/clustertemplates', TEMPLATE | {field: 'ä' * 255}).json[field] == 'ä' * 255
    )
    assert api('POST', '/v1/clustertemplates', TEMPLATE | {field: 'ä' * 256}).status_code == 400


ODD_VALUES: list[Any] = [
    None,
    '',
    'x' * 300,
    '\0',
    '\ud800',
    '\n',
    '💥',
    -1,
    2**31 - 1,
    10**30,
    1.0,
    1e308,
    True,
    ['x'],
    {'x': 'y'},
    {'x': None},
]


@pytest.mark.parametrize(
    ('path', 'resource', 'given'),
    [
        ('/v1/clustertemplates', resources.CLUSTER_TEMPLATE, TEMPLATE | {'name': 'other'}),
        ('/v1/clusters', resources.CLUSTER, {'cluster_template_id': TEMPLATE_UUID}),
    ],
    ids=['templates', 'clusters'],
)
def test_no_value_of_any_attribute_gives_a_500(
    api: Api, services: Services, path: str, resource: Any, given: dict[str, Any]
) -> None:
    """Each is either stored, and then shown, or refused; `Watched` sees that what is refused is not
    stored."""
    store_template(services.db)
    stored = 0

    for name in [*(field.name for field in resource.fields), 'links', 'faults', 'nothing']:
        for value in ODD_VALUES:
            response = api('POST', path, given | {name: value})
            assert response.status_code in (201, 202, 400, 403, 404, 409), (
                name,
                value,
                response.text,
            )
            if response.status_code in (201, 202):
                stored += 1
                shown = api('GET', f'{path}/{response.json["uuid"]}').json
                for key in {
                    'node_count',
                    'master_count',
                    'docker_volume_size',
                    'apiserver_port',
                } & shown.keys():
                    assert type(shown[key]) in (int, type(None)), (name, value)
                with services.db.write() as session:
                    session.execute(sa.delete(models.Cluster))
                    session.execute(
                        sa.delete(models.ClusterTemplate).where(
                            models.ClusterTemplate.uuid != TEMPLATE_UUID
                        )
                    )

    assert stored > 30


# -- what a change leaves in the database ----------------------------------------------------------


HOSTILE_PATCHES = {
    '10,000 operations': [{'op': 'replace', 'path': '/node_count', 'value': 3}] * 10_000,
    'a deep text': [{'op': 'replace', 'path': '/health_status_reason', 'value': '{"a":' * 5000}],
    'a deep sum': [
        {'op': 'replace', 'path': '/health_status_reason', 'value': '-' * 100_000 + '1'}
    ],
    'code': [
        {'op': 'replace', 'path': '/health_status_reason', 'value': "__import__('os').abort()"}
    ],
    'half a pair': [{'op': 'replace', 'path': '/health_status_reason', 'value': {'a': '\ud800'}}],
    'half a pair in a path': [{'op': 'replace', 'path': '/\ud800', 'value': 1}],
    'half a pair in an op': [{'op': '\ud800', 'path': '/node_count', 'value': 1}],
    '20,000 reasons': [
        {
            'op': 'replace',
            'path': '/health_status_reason',
            'value': dict.fromkeys(map(str, range(20_000)), ''),
        }
    ],
    'a long reason': [
        {'op': 'replace', 'path': '/health_status_reason', 'value': {'a': 'x' * 100_000}}
    ],
    'a deep list': [
        {'op': 'replace', 'path': '/health_status_reason', 'value': json.loads('[' * 20 + ']' * 20)}
    ],
    'a deep list of taints': [
        {'op': 'replace', 'path': '/node_taints', 'value': [[[[[[[['a']]]]]]]]}
    ],
    'half a pair in a key': [{'op': 'add', 'path': '/health_status_reason/a\ud800', 'value': 'x'}],
    'too many nodes': [{'op': 'replace', 'path': '/node_count', 'value': 2**31 - 1}],
    'more than nodes': [{'op': 'replace', 'path': '/node_count', 'value': 10**4000}],
}


@pytest.mark.parametrize('case', HOSTILE_PATCHES)
@pytest.mark.parametrize('path', ['', '/nodegroups/default-worker'])
def test_hostile_patch_is_refused(api: Api, complete: str, path: str, case: str) -> None:
    response = api('PATCH', complete + path, HOSTILE_PATCHES[case])

    assert response.status_code == 400
    assert len(response.body) < 3000


@pytest.mark.parametrize(
    ('op', 'value'),
    # `remove` has no use for a value.
    [('remove', None), *itertools.product(('add', 'replace'), ODD_VALUES)],
    ids=lambda value: repr(value)[:20],
)
def test_no_patch_of_a_template_gives_a_500(
    api: Api, services: Services, op: str, value: Any
) -> None:
    for field in [
        *(field.name for field in resources.CLUSTER_TEMPLATE.fields),
        'links',
        'labels/x',
        'nothing',
    ]:
        with services.db.write() as session:
            session.execute(sa.delete(models.ClusterTemplate))
        store_template(services.db)

        response = api(
            'PATCH',
            f'/v1/clustertemplates/{TEMPLATE_UUID}',
            [{'op': op, 'path': f'/{field}', 'value': value}],
            roles='admin',
        )

        assert response.status_code in (200, 400), (field, response.text)
        if response.status_code == 200:
            assert api('GET', f'/v1/clustertemplates/{TEMPLATE_UUID}').json == response.json


@pytest.mark.parametrize('value', ODD_VALUES, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize(
    'field', ['project_id', 'resource', 'hard_limit', 'id', 'created_at', 'links']
)
def test_no_quota_gives_a_500(api: Api, field: str, value: Any) -> None:
    body = {'project_id': 'p1', 'hard_limit': 3} | {field: value}

    assert api('POST', '/v1/quotas', body, roles='admin').status_code in (201, 400, 404)
    assert api('PATCH', '/v1/quotas/p1/Cluster', body, roles='admin').status_code in (202, 400, 404)


@pytest.mark.parametrize(
    'ident', ['%00', '%ff', 'x' * 10_000, '9' * 100, '-1', '0', '%F0%9F%98%80', "'", ' ']
)
def test_odd_identifiers_are_not_found(api: Api, complete: str, ident: str) -> None:
    for path in (
        f'{complete}/nodegroups/{ident}',
        f'/v1/operations/{ident}',
        f'/v1/clusters/{ident}/nodes',
    ):
        assert api('GET', path).status_code == 404
    assert api('DELETE', f'/v1/operations/{ident}').status_code == 404
    assert api('DELETE', f'/v1/quotas/{ident}/{ident}', roles='admin').status_code == 404
    assert api('GET', f'/v1/federations/{ident}').status_code == 404
