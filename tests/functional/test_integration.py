"""What runs inside clusters and acts on the cloud, on a real cloud: the user that it acts as, from
beginning to end.

The cluster of this test has what else takes part of the cloud as well: load balancer, volumes, an
availability zone, the rules of another pod network."""

from __future__ import annotations

import pytest
from functional.cloud import ON_A_CLOUD, TEMPLATE, Project, Sandbox, Say, Start, ask
from functional.service import Service
from keystoneauth1 import exceptions, session
from keystoneauth1.identity import v3

from magnum_lite import certs, keystore

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD

#: As the test cloud, and devstack/ of this repository, have it.
DOMAIN = 'magnum'


@pytest.fixture(scope='module')
def integrated(start: Start) -> Service:
    """A service whose operator has provided for users of clusters."""
    return start(
        extra={
            'trust': {'trustee_domain_name': DOMAIN},
            'identity': {'project_roles': 'member,load-balancer_member'},
        }
    )


def session_of(project: Project, login: certs.Pair, project_id: str) -> session.Session:
    """A session of the user in a project."""
    return session.Session(
        auth=v3.Password(
            auth_url=project.cloud.config.get_auth_args()['auth_url'],
            user_id=login.certificate,
            password=login.private_key,
            project_id=project_id,
        )
    )


def test_cluster_acts_on_the_cloud_as_a_user_of_its_own(
    integrated: Service, sandbox: Sandbox, project: Project, say: Say
) -> None:
    cluster = ask(
        integrated,
        project,
        name='fn-integrated',
        node_count=1,
        docker_volume_size=1,
        template={
            'master_lb_enabled': True,
            'volume_driver': 'cinder',
            'network_driver': 'calico',
            'labels': {
                'network_manifest_url': 'file:///opt/calico.yaml',
                'etcd_volume_size': '1',
                'availability_zone': 'nova',
            },
        },
    )
    cluster.play_nodes()
    cluster.wait('CREATE_COMPLETE')

    identity = sandbox.admin.identity
    domain = identity.find_domain(DOMAIN, ignore_missing=False)
    user = identity.find_user(cluster.uuid, domain_id=domain.id)
    login = integrated.pair(cluster.uuid, keystore.CLOUD_USER)
    assert user is not None and user.id == login.certificate
    own = session_of(project, login, project.id)
    balancers = own.get(
        '/v2.0/lbaas/loadbalancers', endpoint_filter={'service_type': 'load-balancer'}
    ).json()
    assert len(balancers['loadbalancers']) == 1
    assert own.get('/servers', endpoint_filter={'service_type': 'compute'}).json()['servers']
    assert (
        len(
            own.get('/volumes', endpoint_filter={'service_type': 'block-storage'}).json()['volumes']
        )
        == 3
    )
    roles = own.auth.get_access(own).role_names
    say(f'the user of a cluster has the roles {", ".join(sorted(roles))}')
    assert 'admin' not in roles
    stack = project.cloud.orchestration.get(f'/stacks/{cluster.stack_id()}').json()['stack']
    assert login.private_key not in str(stack)
    with pytest.raises(exceptions.http.HttpError):  # of no other project
        session_of(project, login, sandbox.user.current_project_id).get_token()

    cluster.delete()
    cluster.wait('GONE')
    cluster.assert_nothing_is_left()
    assert identity.find_user(cluster.uuid, domain_id=domain.id) is None
    assert not list(identity.role_assignments(user_id=login.certificate))
    with pytest.raises(
        exceptions.http.HttpError
    ):  # services go on to know the token that it has, for minutes
        session_of(project, login, project.id).get_token()


def test_clusters_of_a_service_without_a_domain_have_no_user(
    service: Service, project: Project
) -> None:
    status, body = service.request(
        'POST',
        '/v1/clustertemplates',
        {**TEMPLATE, 'labels': {'cloud_provider_enabled': 'true'}},
        headers=project.headers,
    )
    assert status == 201, body

    status, body = service.request(
        'POST',
        '/v1/clusters',
        {'cluster_template_id': body['uuid'], 'name': 'fn-plain'},
        headers=project.headers,
    )

    assert status == 400 and 'trustee_domain_id' in str(body)
