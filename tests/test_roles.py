"""Who gets which answer from every route: the whole of who may do what, in one table.

A new line in `routes` needs a line here. Its callers ask for what belongs to project p1; `ADMIN` is
of project p3 and `OTHER` a member of p2. Without a token nobody gets past keystonemiddleware, but
to what is public."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import TEMPLATE, Api
from oslo_config import cfg
from oslo_policy import _checks as policy
from rows import (
    NEWER_UUID,
    TEMPLATE_UUID,
    group_uuid,
    store_cluster,
    store_operation,
    store_template,
    uuid_of,
)
from watched import Stage, stage

from magnum_lite import certs, db, keystore, models
from magnum_lite.api import routes
from magnum_lite.api.request import Services

READER, MEMBER, ADMIN, OTHER = 'a reader', 'a member', 'an admin', "another project's member"
CALLERS: dict[str, dict[str, Any]] = {
    READER: {'roles': 'reader'},
    MEMBER: {'roles': 'member,reader'},
    ADMIN: {'roles': 'admin', 'project': 'p3'},
    OTHER: {'roles': 'member,reader', 'project': 'p2'},
}

#: What others must not read in any answer: it is in the name of all that p1 has.
SECRET = 'treasure'
GROUP_UUID = group_uuid(1, 'worker').replace('b', 'd', 1)
OPERATION_UUID = 'e0000002-0000-4000-8000-000000000001'
NAMES = {
    '/v1/clustertemplates/{ident}': NEWER_UUID,
    '/v1/clusters/{ident}': uuid_of(1),
    '/v1/certificates/{ident}': uuid_of(1),
    '/v1/credentials/{ident}': uuid_of(1),
    '{type}': 'etcd',
    '{group}': GROUP_UUID,
    '/v1/operations/{ident}': OPERATION_UUID,
    '{project_id}': 'p1',
    '{resource}': 'Cluster',
    '{ident}': 'nobody',
}

PATCH_NAME = [{'op': 'replace', 'path': '/name', 'value': 'renamed'}]
PATCH_COUNT = [{'op': 'replace', 'path': '/node_count', 'value': 3}]
CSR = certs.make_request(common_name='u', organization='o').certificate
CA = certs.make_ca('ca', life=datetime.timedelta(days=400))
PATCH_BOUND = [{'op': 'replace', 'path': '/max_node_count', 'value': 9}]

#: Method and address -> what is sent, and the status for a reader, a member, an admin, another
#: project's member.
TABLE: dict[tuple[str, str], tuple[Any, int, int, int, int]] = {
    ('GET', '/'): (None, 200, 200, 200, 200),
    ('GET', '/v1'): (None, 200, 200, 200, 200),
    ('GET', '/v1/openapi.json'): (None, 200, 200, 200, 200),
    ('GET', '/docs'): (None, 200, 200, 200, 200),
    ('GET', '/v1/clustertemplates'): (None, 200, 200, 200, 200),
    ('GET', '/v1/clustertemplates/detail'): (None, 200, 200, 200, 200),
    ('POST', '/v1/clustertemplates'): (TEMPLATE, 403, 201, 201, 201),
    ('GET', '/v1/clustertemplates/{ident}'): (None, 200, 200, 200, 404),
    ('PATCH', '/v1/clustertemplates/{ident}'): (PATCH_NAME, 403, 200, 200, 404),
    ('DELETE', '/v1/clustertemplates/{ident}'): (None, 403, 204, 204, 404),
    ('GET', '/v1/clusters'): (None, 200, 200, 200, 200),
    ('GET', '/v1/clusters/detail'): (None, 200, 200, 200, 200),
    ('POST', '/v1/clusters'): (
        {'cluster_template_id': TEMPLATE_UUID, 'keypair': 'testkey'},
        403,
        202,
        202,
        404,
    ),
    ('GET', '/v1/clusters/{ident}'): (None, 200, 200, 200, 404),
    ('PATCH', '/v1/clusters/{ident}'): (PATCH_COUNT, 403, 202, 202, 404),
    ('DELETE', '/v1/clusters/{ident}'): (None, 403, 204, 204, 404),
    ('POST', '/v1/clusters/{ident}/actions/resize'): ({'node_count': 3}, 403, 202, 202, 404),
    ('POST', '/v1/clusters/{ident}/actions/upgrade'): (
        {'cluster_template': NEWER_UUID},
        403,
        202,
        202,
        404,
    ),
    ('GET', '/v1/clusters/{ident}/nodegroups'): (None, 200, 200, 200, 404),
    ('POST', '/v1/clusters/{ident}/nodegroups'): ({'name': 'new'}, 403, 202, 202, 404),
    ('GET', '/v1/clusters/{ident}/nodegroups/{group}'): (None, 200, 200, 200, 404),
    ('PATCH', '/v1/clusters/{ident}/nodegroups/{group}'): (PATCH_BOUND, 403, 202, 202, 404),
    ('DELETE', '/v1/clusters/{ident}/nodegroups/{group}'): (None, 403, 204, 204, 404),
    ('GET', '/v1/clusters/{ident}/nodes'): (None, 200, 200, 200, 404),
    ('GET', '/v1/clusters/{ident}/operations'): (None, 200, 200, 200, 404),
    ('GET', '/v1/operations/{ident}'): (None, 200, 200, 200, 404),
    ('DELETE', '/v1/operations/{ident}'): (None, 403, 202, 202, 404),
    ('POST', '/v1/certificates'): ({'cluster_uuid': uuid_of(1), 'csr': CSR}, 403, 201, 201, 400),
    ('GET', '/v1/certificates/{ident}'): (None, 200, 200, 200, 404),
    ('GET', '/v1/certificates/{ident}/{type}'): (None, 200, 200, 200, 404),
    ('PATCH', '/v1/certificates/{ident}'): (None, 403, 202, 202, 404),
    ('PATCH', '/v1/credentials/{ident}'): (None, 403, 400, 400, 404),
    ('POST', '/v1/clusters/{ident}/kubeconfig'): (None, 201, 201, 201, 404),
    ('GET', '/v1/quotas'): (None, 403, 403, 200, 403),
    ('POST', '/v1/quotas'): ({'project_id': 'p1'}, 403, 403, 201, 403),
    ('GET', '/v1/quotas/{project_id}/{resource}'): (None, 200, 200, 200, 403),
    ('PATCH', '/v1/quotas/{project_id}/{resource}'): ({'hard_limit': 3}, 403, 403, 202, 403),
    ('DELETE', '/v1/quotas/{project_id}/{resource}'): (None, 403, 403, 204, 403),
    ('GET', '/v1/stats'): (None, 200, 200, 200, 200),
    ('GET', '/v1/mservices'): (None, 403, 403, 200, 403),
    ('GET', '/v1/federations'): (None, 200, 200, 200, 200),
    ('GET', '/v1/federations/detail'): (None, 200, 200, 200, 200),
    ('POST', '/v1/federations'): ({}, 403, 400, 400, 400),
    ('GET', '/v1/federations/{ident}'): (None, 404, 404, 404, 404),
    ('PATCH', '/v1/federations/{ident}'): ([], 403, 404, 404, 404),
    ('DELETE', '/v1/federations/{ident}'): (None, 403, 404, 404, 404),
}
PUBLIC = {(route.method, route.path) for route in routes.ROUTES if route.rule is None}


def address(path: str) -> str:
    for name, value in NAMES.items():
        path = path.replace(name, name.replace('{ident}', value) if '/' in name else value)
    return path


def furnish(conf: cfg.ConfigOpts, database: db.Database, *, quota: bool) -> None:
    """Take all away, and give p1 a template in use and one that is not, a cluster with an
    operation, and a quota."""
    keystore.create_key_file(conf.keystore.key_file)
    store = keystore.KeyStore(conf)
    with database.write() as session:
        for table in reversed(models.Base.metadata.sorted_tables):
            session.execute(sa.delete(table))
    store_template(database, name=f'{SECRET}-1')
    store_template(database, uuid=NEWER_UUID, name=f'{SECRET}-2')
    store_cluster(
        database,
        1,
        name=SECRET,
        stack_id=f'{SECRET}-stack',
        api_address='https://192.0.2.1:6443',
        master_lb_enabled=True,
    )
    store_operation(database, 1, 2, f'{SECRET}', ended=False)
    with database.write() as session:
        session.add(
            models.NodeGroup(
                uuid=GROUP_UUID,
                project_id='p1',
                cluster_id=uuid_of(1),
                name=f'{SECRET}-group',
                role='worker',
                node_count=0,
                next_number=0,
                labels={},
                status='CREATE_COMPLETE',
            )
        )
        for purpose in ('ca', 'etcd'):
            store.store_pair(session, uuid_of(1), purpose, CA)
        if quota:
            session.add(models.Quota(project_id='p1', resource=db.CLUSTER_RESOURCE, hard_limit=7))


@pytest.fixture(scope='module')
def staged() -> Iterator[Stage]:
    with stage() as made:
        yield made


def test_every_route_has_a_line() -> None:
    assert TABLE.keys() == {(route.method, route.path) for route in routes.ROUTES}
    assert PUBLIC == {('GET', path) for path in ('/', '/v1', '/v1/openapi.json', '/docs')}
    assert not re.search(r'[{}]', ' '.join(address(path) for _, path in TABLE))


@pytest.mark.parametrize('caller', CALLERS)
@pytest.mark.parametrize(('method', 'path'), TABLE)
def test_each_caller_gets_the_response_of_the_table(
    staged: Stage, method: str, path: str, caller: str
) -> None:
    body, *expected = TABLE[method, path]
    furnish(staged.conf.conf, staged.database, quota=(method, path) != ('POST', '/v1/quotas'))

    response = Api(staged.application)(method, address(path), body, **CALLERS[caller])

    assert response.status_code == expected[list(CALLERS).index(caller)], response.text
    if caller == OTHER:
        assert SECRET not in response.text


@pytest.mark.parametrize(('method', 'path'), TABLE)
def test_role_that_nobody_knows_gets_nothing(staged: Stage, method: str, path: str) -> None:
    furnish(staged.conf.conf, staged.database, quota=True)

    response = Api(staged.application)(
        method, address(path), TABLE[method, path][0], roles='gardener'
    )

    assert response.status_code == (200 if (method, path) in PUBLIC else 403)


@pytest.mark.parametrize(('method', 'path'), TABLE)
def test_request_without_a_token_is_refused_unless_public(
    with_keystone: Api, method: str, path: str
) -> None:
    response = with_keystone(method, address(path), TABLE[method, path][0], roles='admin')

    assert response.status_code == (200 if (method, path) in PUBLIC else 401)


# -- what operators may change ---------------------------------------------------------------------


@pytest.fixture
def narrowed(services: Services) -> Services:
    """Admins, who by their policy do nothing to what belongs to other projects."""
    services.enforcer.load_rules()
    services.enforcer.set_rules(
        {
            rule: policy.FalseCheck()
            for rule in services.enforcer.registered_rules
            if rule.endswith('_all_projects')
        },
        overwrite=False,
    )
    furnish(services.conf, services.db, quota=True)
    return services


@pytest.mark.parametrize(
    ('method', 'path', 'status'),
    [
        ('GET', '/v1/clusters/{ident}', 404),
        ('PATCH', '/v1/clusters/{ident}', 404),
        ('DELETE', '/v1/clusters/{ident}', 404),
        ('POST', '/v1/clusters/{ident}/actions/upgrade', 404),
        ('GET', '/v1/clustertemplates/{ident}', 404),
        ('PATCH', '/v1/clustertemplates/{ident}', 404),
        ('DELETE', '/v1/clustertemplates/{ident}', 404),
        ('GET', '/v1/clusters/{ident}/nodegroups', 404),
        ('GET', '/v1/clusters/{ident}/nodegroups/{group}', 404),
        ('POST', '/v1/clusters/{ident}/actions/resize', 202),
    ],
)
def test_admin_whose_reach_was_taken_away(
    narrowed: Services, api: Api, method: str, path: str, status: int
) -> None:
    response = api(method, address(path), TABLE[method, path][0], **CALLERS[ADMIN])

    assert response.status_code == status


@pytest.mark.parametrize(
    'path',
    ['/v1/clusters', '/v1/clusters/detail', '/v1/clustertemplates', '/v1/clustertemplates/detail'],
)
def test_admin_whose_reach_was_taken_away_lists_the_own(
    narrowed: Services, api: Api, path: str
) -> None:
    assert SECRET not in api('GET', path, **CALLERS[ADMIN]).text
    assert api('GET', f'{path}?all_tenants=true', **CALLERS[ADMIN]).status_code == 403


def test_admin_whose_reach_was_taken_away_leaves_public_templates_alone(
    narrowed: Services, api: Api
) -> None:
    with narrowed.db.write() as session:
        session.execute(sa.update(models.ClusterTemplate).values(public=True))

    assert api('GET', f'/v1/clustertemplates/{NEWER_UUID}', **CALLERS[ADMIN]).status_code == 200
    assert (
        api('PATCH', f'/v1/clustertemplates/{NEWER_UUID}', PATCH_NAME, **CALLERS[ADMIN]).status_code
        == 403
    )
    assert api('DELETE', f'/v1/clustertemplates/{NEWER_UUID}', **CALLERS[ADMIN]).status_code == 403
