"""The API with a cloud that does not answer, lacks a service, or has changed since the template."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import fakes
import pytest
from conftest import TEMPLATE, Api

from magnum_lite import clients, db, drivers
from magnum_lite.api import app as api_app
from magnum_lite.api.request import Services


@pytest.fixture
def api(watched_api: Api) -> Api:
    """Sends requests whose responses `Watched` checks."""
    return watched_api


CREATIONS = [
    ('/v1/clustertemplates', TEMPLATE | {'name': 'other'}),
    ('/v1/clusters', {'cluster_template_id': 'k8s'}),
]


def fail(what: str, error: Exception) -> Callable[[str, str], None]:
    """A hook for the fake cloud: look-ups of that name end so."""

    def hook(name: str, when: str) -> None:
        if name == what:
            raise error

    return hook


@pytest.mark.parametrize(('path', 'body'), CREATIONS, ids=['template', 'cluster'])
@pytest.mark.parametrize('what', ['image', 'flavor', 'network'])
def test_service_that_does_not_answer_is_told_apart_from_a_mistake(
    api: Api,
    template: dict[str, Any],
    cloud: fakes.FakeCloud,
    path: str,
    body: dict[str, Any],
    what: str,
) -> None:
    cloud.hook = fail(what, clients.Unreachable('connection refused by 192.0.2.7'))

    response = api('POST', path, body)

    assert response.status_code == 503
    assert 'does not answer' in response.json['faultstring'] and '192.0.2.7' not in response.text


@pytest.mark.parametrize(('path', 'body'), CREATIONS, ids=['template', 'cluster'])
def test_image_that_the_caller_may_not_use(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud, path: str, body: dict[str, Any]
) -> None:
    cloud.hook = fail('image', clients.Rejected('HTTP 403'))

    response = api('POST', path, body)

    assert response.status_code == 403
    assert response.json['faultstring'] == 'You may not use image ubuntu.'


def test_key_that_is_there_twice(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud
) -> None:
    cloud.ambiguous.add('testkey')

    assert api('POST', '/v1/clusters', {'cluster_template_id': 'k8s'}).status_code == 409


@pytest.mark.parametrize('gone', ['images', 'flavors', 'external_networks', 'keypairs'])
def test_what_the_template_names_is_looked_up_again_for_a_cluster(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud, gone: str
) -> None:
    getattr(cloud, gone).clear()

    response = api('POST', '/v1/clusters', {'cluster_template_id': 'k8s'})

    assert response.status_code == (404 if gone == 'keypairs' else 400)


def test_service_that_the_catalog_does_not_have_is_told(api: Api, cloud: fakes.FakeCloud) -> None:
    cloud.missing = {'compute', 'network'}

    made = api('POST', '/v1/clustertemplates', TEMPLATE | {'flavor_id': 'nobody-looks'})
    response = api('POST', '/v1/clusters', {'cluster_template_id': 'k8s'})

    assert (made.status_code, response.status_code) == (201, 202)
    assert response.headers['Warning'] == (
        '199 magnum-lite "The catalog has no compute service: flavor, master flavor, keypair not '
        'checked.", 199 magnum-lite "The catalog has no network service: external network not '
        'checked."'
    )


@pytest.mark.parametrize(
    ('what', 'path', 'value'),
    [
        ('image', '/image_id', 'ubuntu-2'),
        ('flavor', '/flavor_id', 'm1.other'),
        ('network', '/external_network_id', 'other'),
    ],
)
def test_service_that_does_not_answer_keeps_a_template_as_it_is(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud, what: str, path: str, value: str
) -> None:
    cloud.hook = fail(what, clients.Unreachable('connection refused by 192.0.2.7'))
    change, rename = (
        [{'op': 'replace', 'path': path, 'value': value}]
        for path, value in ((path, value), ('/name', 'renamed'))
    )

    response = api('PATCH', '/v1/clustertemplates/k8s', change)

    assert response.status_code == 503 and '192.0.2.7' not in response.text
    assert api('PATCH', '/v1/clustertemplates/k8s', rename).status_code == 200


def test_change_of_what_the_catalog_has_no_service_for_is_told(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud
) -> None:
    cloud.missing = {'compute', 'image'}

    response = api(
        'PATCH',
        '/v1/clustertemplates/k8s',
        [{'op': 'replace', 'path': '/flavor_id', 'value': 'other'}],
    )

    assert response.headers['Warning'] == (
        '199 magnum-lite "The catalog has no compute service: flavor not checked."'
    )
    assert (
        api(
            'PATCH',
            '/v1/clustertemplates/k8s',
            [{'op': 'replace', 'path': '/image_id', 'value': 'other'}],
        ).status_code
        == 503
    )


def test_image_that_names_its_driver_does_so_for_a_template_without_one(
    api: Api, template: dict[str, Any], cloud: fakes.FakeCloud
) -> None:
    cloud.images['own'] = clients.Image(
        '5d7e1b5c-0000-4000-8000-000000000007', 'own', 'ubuntu', 'k8s_cloud_init'
    )

    response = api(
        'PATCH',
        '/v1/clustertemplates/k8s',
        [{'op': 'replace', 'path': '/image_id', 'value': 'own'}],
    )

    assert (response.json['driver'], response.json['image_id']) == ('k8s_cloud_init', 'own')


@pytest.mark.parametrize('os_distro', ['fedora-coreos', 'flatcar'])
def test_nodes_come_from_images_that_the_driver_of_their_cluster_is_for(
    api: Api, template: dict[str, Any], cluster: str, cloud: fakes.FakeCloud, os_distro: str
) -> None:
    cloud.images['next'] = clients.Image(
        '5d7e1b5c-0000-4000-8000-000000000007', 'next', os_distro, None
    )
    assert (
        api(
            'POST', '/v1/clustertemplates', TEMPLATE | {'name': 'next', 'image_id': 'next'}
        ).status_code
        == 201
    )

    added = api('POST', f'/v1/clusters/{cluster}/nodegroups', {'name': 'more', 'image_id': 'next'})
    upgraded = api('POST', f'/v1/clusters/{cluster}/actions/upgrade', {'cluster_template': 'next'})

    assert (added.status_code, upgraded.status_code) == (400, 400)
    assert added.json['faultstring'] == (
        f'Driver k8s_cloud_init of cluster {cluster} makes no nodes from image next, whose '
        'os_distro '
        f'is {os_distro}. It makes them from ubuntu, debian, opensuse or fedora-atomic.'
    )
    assert upgraded.json['faultstring'].startswith(
        "Driver k8s_cloud_init does not make kubernetes clusters from an image with os_distro "
        f"'{os_distro}'"
    )


def test_template_whose_driver_was_taken_away_can_still_be_renamed(
    template: dict[str, Any], services: Services
) -> None:
    services.conf.set_override('disabled_drivers', ['k8s_cloud_init'], 'drivers')
    restarted = dataclasses.replace(services, drivers=drivers.load(services.conf))
    api = Api(api_app.make_app(restarted))

    assert (
        api(
            'PATCH',
            '/v1/clustertemplates/k8s',
            [
                {
                    'op': 'replace',
                    'path': '/image_id',
                    'value': '5d7e1b5c-0000-4000-8000-000000000001',
                }
            ],
        ).status_code
        == 400
    )
    assert (
        api(
            'PATCH',
            '/v1/clustertemplates/k8s',
            [{'op': 'replace', 'path': '/name', 'value': 'renamed'}],
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (clients.Unreachable('connection refused by 192.0.2.7'), 'it does not answer'),
        (clients.Rejected('HTTP 403'), 'it does not let this service see projects'),
    ],
)
def test_quota_is_not_set_while_keystone_cannot_say_whose_it_is(
    api: Api, services: Services, cloud: fakes.FakeCloud, error: Exception, reason: str
) -> None:
    cloud.hook = fail('get_project_state', error)

    response = api('POST', '/v1/quotas', {'project_id': 'p1', 'hard_limit': 3}, roles='admin')

    assert response.status_code == 503
    assert reason in response.json['faultstring'] and '192.0.2.7' not in response.text
    assert db.find_quota(services.db, 'p1', db.CLUSTER_RESOURCE) is None


def test_without_an_image_service_there_are_no_templates(api: Api, cloud: fakes.FakeCloud) -> None:
    cloud.missing = {'image'}

    assert api('POST', '/v1/clustertemplates', TEMPLATE).status_code == 503
