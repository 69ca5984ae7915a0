"""Each microversion gates what Magnum's does, and no more (doc/contributor/wire-contract.md)."""

from __future__ import annotations

import pytest
from conftest import Api

from magnum_lite.api import resources, routes, versions
from magnum_lite.api.route import Route

#: A part of the addresses that are not there before a version. All others are there from 1.1 on,
#: also those that came later in Magnum's history: it has never refused them.
GATES = {'/actions/': 7, '/nodegroups': 9, '/credentials': 12}


def test_versions_are_magnums_and_one_of_our_own() -> None:
    assert list(versions.VERSIONS) == [*range(1, 15), 100]
    assert (versions.MINIMUM, versions.MAXIMUM) == (1, 100)


@pytest.mark.parametrize('route', routes.ROUTES, ids=lambda route: f'{route.method} {route.path}')
def test_route_is_there_from_this_version_on(route: Route) -> None:
    assert route.since == next((since for part, since in GATES.items() if part in route.path), 1)


def test_only_these_fields_come_later() -> None:
    later = {
        (resource.name, field.name): field.since
        for resource in vars(resources).values()
        if isinstance(resource, resources.Resource)
        for field in resource.fields
        if field.since > 1
    }

    assert later == {
        ('cluster', 'cluster_id'): 13,
        ('cluster', 'error_code'): 100,
        ('cluster', 'description'): 100,
        ('nodegroup', 'error_code'): 100,
    }


@pytest.mark.parametrize('minor', versions.VERSIONS)
def test_version_is_offered(api: Api, cluster: str, minor: int) -> None:
    def status(method: str, path: str, body: object = None, roles: str = 'member,reader') -> int:
        response = api(method, path, body, version=f'container-infra 1.{minor}', roles=roles)
        assert (
            response.headers['OpenStack-API-Version']
            == f'container-infrastructure-management 1.{minor}'
        )
        return response.status_code

    path = f'/v1/clusters/{cluster}'
    assert status('GET', '/v1/stats') == status('GET', '/v1/mservices', roles='admin') == 200
    assert status('GET', '/v1/quotas/p1/Cluster') == status('GET', '/v1/federations') == 200
    assert status('GET', f'{path}/nodegroups') == (200 if minor >= 9 else 406)
    assert status('POST', f'{path}/actions/resize', {'node_count': 0}) == (
        406 if minor < 7 else 400 if minor < 10 else 409
    )
    assert status('POST', f'{path}/actions/upgrade', {}) == (406 if minor < 7 else 400)
    assert status('PATCH', f'{path}?rollback=true', []) == (400 if minor < 3 else 202)
    assert status('POST', '/v1/clusters', {'cluster_template_id': 'nothing'}) == (
        400 if minor < 10 else 404
    )
