"""The user that a cluster has in the cloud: made before its stack, removed before it."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib

import fakes
import pytest
from conftest import Api, history_of
from oslo_config import cfg
from stories import DiesInTheDatabase, Story, dying, with_time_passing

from magnum_lite import clients, keystore, models


@pytest.fixture
def integrated(conf: cfg.ConfigOpts) -> None:
    """An operator has provided for users of clusters, so clusters get one. Ask for it before the
    cluster."""
    conf.set_override('trustee_domain_id', 'users', 'trust')


def password(story: Story, cluster: str) -> tuple[str, str]:
    """Id and password of the cluster's user as the key store has them."""
    pairs = story.conductor_services.keystore.load_pairs(
        story.conductor_services.db, models.Cluster(uuid=cluster, rotation_phase=0)
    )
    return pairs[keystore.CLOUD_USER].certificate, pairs[keystore.CLOUD_USER].private_key


@pytest.mark.usefixtures('integrated')
def test_cluster_gets_a_user_before_its_stack_and_loses_it_first(
    story: Story, api: Api, cluster: str
) -> None:
    story.run(4)

    [(user_id, secret)] = story.cloud.cluster_logins.values()
    assert password(story, cluster) == (user_id, secret)
    assert story.cloud.user_grants == {user_id: {'p1'}}
    [stack] = story.cloud.all_stacks()
    assert (
        secret in stack.parameters['master_user_data']
        and user_id in stack.parameters['master_user_data']
    )
    assert secret not in stack.parameters['worker_user_data'] + stack.template + ''.join(
        stack.files.values()
    )

    assert 'whose password is not rotated' in api('PATCH', f'/v1/credentials/{cluster}').text

    story.cloud.calls.clear()
    api('DELETE', f'/v1/clusters/{cluster}')
    story.run(4)
    assert (story.clusters(), story.cloud.cluster_logins, story.cloud.user_grants) == ([], {}, {})
    assert story.cloud.calls.index('remove_user') < story.cloud.calls.index('list_load_balancers')


def test_cluster_that_wants_no_user_gets_none(story: Story, cluster: str) -> None:
    story.run(4)

    assert story.clusters()[0].status == 'CREATE_COMPLETE'
    assert not {'make_user', 'grant_user', 'build_login'} & set(story.cloud.calls)


@pytest.mark.usefixtures('integrated')
@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize('victim', ['make_user', 'grant_user', 'build_login', 'create'])
def test_conductor_that_dies_while_a_user_is_made(
    story: Story, cluster: str, victim: str, moment: str
) -> None:
    deaths = dying(story.cloud, victim, moment)
    story.run()

    assert deaths, 'the call was never made, so this shows nothing'
    [row] = story.clusters()
    [(user_id, secret)] = story.cloud.cluster_logins.values()
    [stack] = story.cloud.all_stacks()
    assert row.status == 'CREATE_COMPLETE' and list(story.cloud.cluster_logins) == [cluster]
    assert (
        password(story, cluster) == (user_id, secret)
        and secret in stack.parameters['master_user_data']
    )
    assert story.cloud.user_grants == {user_id: {'p1'}}


@pytest.mark.usefixtures('integrated')
@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize('victim', ['remove_user', 'list_load_balancers', 'delete', 'revoke_roles'])
def test_conductor_that_dies_while_a_user_goes(
    story: Story, api: Api, cluster: str, victim: str, moment: str
) -> None:
    story.run(3)
    api('DELETE', f'/v1/clusters/{cluster}')
    deaths = dying(story.cloud, victim, moment)
    story.run()

    assert deaths, 'the call was never made, so this shows nothing'
    assert (story.clusters(), story.cloud.cluster_logins, story.cloud.all_stacks()) == ([], {}, [])
    assert story.count(models.Key) == 0


@pytest.mark.usefixtures('integrated')
@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize('call', ['make_user', 'grant_user'])
def test_delete_after_a_conductor_died_while_it_made_the_user(
    story: Story, api: Api, cluster: str, call: str, moment: str
) -> None:
    dying(story.cloud, call, moment)
    story.make_due()
    story.round()
    api('DELETE', f'/v1/clusters/{cluster}')
    story.run()

    assert (story.clusters(), story.cloud.cluster_logins) == ([], {})


@pytest.mark.usefixtures('integrated')
@pytest.mark.parametrize('number', range(1, 14))
@pytest.mark.parametrize('moment', ['before', 'after'])
def test_conductor_that_dies_at_a_write_leaves_no_user(
    story: Story, api: Api, cluster: str, number: int, moment: str
) -> None:
    for phase in ('create', 'delete'):
        if phase == 'delete':
            api('DELETE', f'/v1/clusters/{cluster}')
        with (
            contextlib.suppress(fakes.Died),
            DiesInTheDatabase(story.conductor_services.db, number, moment) as killer,
        ):
            for _ in range(5):
                story.look()
                with_time_passing(story, killer)
        story.run()
        assert list(story.cloud.cluster_logins) == ([cluster] if phase == 'create' else [])
        if phase == 'create':
            assert password(story, cluster) == story.cloud.cluster_logins[cluster]


@pytest.mark.usefixtures('integrated')
def test_conductor_that_slept_through_a_delete_removes_the_user_it_made(
    story: Story, api: Api, cluster: str
) -> None:
    def sleep(call: str, when: str) -> None:
        if (call, when) == ('make_user', 'before'):
            story.cloud.hook = None
            api('DELETE', f'/v1/clusters/{cluster}')
            story.run(3)
            assert story.clusters() == []

    story.cloud.hook = sleep
    story.run(4)

    assert (story.clusters(), story.cloud.cluster_logins) == ([], {})


@pytest.mark.usefixtures('integrated')
def test_conductor_that_slept_while_another_made_the_user_leaves_it(
    story: Story, cluster: str
) -> None:
    def sleep(call: str, when: str) -> None:
        if (call, when) == ('grant_user', 'after'):
            story.cloud.hook = None
            story.run(4)

    story.cloud.hook = sleep
    story.run(4)

    assert story.clusters()[0].status == 'CREATE_COMPLETE'
    assert password(story, cluster) == story.cloud.cluster_logins[cluster]


@pytest.mark.usefixtures('integrated')
def test_create_that_is_stopped_leaves_no_user(story: Story, api: Api, cluster: str) -> None:
    story.make_due()
    story.round()
    [operation] = history_of(story.conductor_services.db, cluster)
    assert len(story.cloud.cluster_logins) == 1
    assert api('DELETE', f'/v1/operations/{operation.uuid}').status_code == 202
    story.run(6)

    assert (story.clusters()[0].status, story.cloud.cluster_logins) == ('CREATE_FAILED', {})


@pytest.mark.usefixtures('integrated')
@pytest.mark.parametrize('state', ['disabled', 'gone'])
def test_user_goes_although_the_project_is_closed_and_no_key_opens(
    story: Story, api: Api, cluster: str, state: str
) -> None:
    story.run(4)
    story.cloud.project_states['p1'] = state
    pathlib.Path(story.conductor_services.conf.keystore.key_file).write_text(
        keystore.generate_key()
    )
    story.conductor_services = dataclasses.replace(
        story.conductor_services, keystore=keystore.KeyStore(story.conductor_services.conf)
    )

    api('DELETE', f'/v1/clusters/{cluster}')
    story.run(8)

    assert (story.clusters(), story.cloud.cluster_logins) == ([], {})


@pytest.mark.usefixtures('integrated')
def test_user_that_the_service_may_not_make_fails_the_create(story: Story, cluster: str) -> None:
    def refuse(call: str, when: str) -> None:
        if call == 'make_user':
            raise clients.Rejected(
                'Making the user of the cluster: You are not authorized (HTTP 403)'
            )

    story.cloud.hook = refuse
    story.run(2)

    [row] = story.clusters()
    assert row.status == 'CREATE_FAILED' and 'role admin on the domain that [trust] names' in str(
        row.status_reason
    )


@pytest.mark.usefixtures('integrated')
def test_worker_that_comes_later_knows_of_the_user_and_not_its_password(
    story: Story, api: Api, cluster: str, conf: cfg.ConfigOpts
) -> None:
    story.run(4)
    conf.clear_override('trustee_domain_id', 'trust')

    api('POST', f'/v1/clusters/{cluster}/actions/resize', {'node_count': 3})
    story.run(4)

    [stack] = story.cloud.all_stacks()
    assert story.clusters()[0].status == 'UPDATE_COMPLETE'
    assert '"external"' in stack.parameters['worker_user_data'].replace('\\', '')
    assert password(story, cluster)[1] not in stack.parameters['worker_user_data']
