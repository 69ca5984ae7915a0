"""The exchange of a cluster's authorities, in three rounds over all nodes."""

from __future__ import annotations

import pytest
from conftest import Api, history_of
from stories import (
    ADMIN,
    ROUNDS,
    Story,
    check_nothing_is_doubled,
    failed_member,
    history,
    loaded,
    numbers,
    request,
    resize,
    rotate,
    workers,
)

from magnum_lite import db, models
from magnum_lite.api.request import Services


def trust(story: Story, cluster: str) -> tuple[str, str]:
    """The certificate of the authority that signs now, and of the one that is trusted beside it."""
    pair = story.conductor_services.keystore.load_pairs(
        story.conductor_services.db, loaded(story, cluster)
    )['ca']
    return pair.certificate, pair.beside


def test_rotation_replaces_all_nodes_three_times_so_that_each_trusts_the_others(
    story: Story, balanced: str
) -> None:
    old, _ = trust(story, balanced)
    request(story, balanced, rotate, 'rotate')
    phases = {}
    for _ in range(ROUNDS['rotate']):
        story.run(1)
        row = loaded(story, balanced)
        if row.rotation_phase and (row.rotation_phase not in phases):
            phases[row.rotation_phase] = (*trust(story, balanced), workers(row).rollout)
            assert history_of(story.conductor_services.db, balanced)[-1].text == (
                None if row.rotation_phase == 1 else f'Phase {row.rotation_phase} of 3'
            )

    row, (new, beside) = loaded(story, balanced), trust(story, balanced)
    assert phases == {1: (old, new, 2), 2: (new, old, 3), 3: (new, '', 4)}
    assert (row.status, row.rotation_phase, beside, new == old) == ('UPDATE_COMPLETE', 0, '', False)
    assert {node.rollout for group in row.nodegroups for node in group.nodes} == {4}
    assert history(story, balanced)[-1] == ('rotate', 'complete')
    assert story.count(models.Key) == len(story.conductor_services.drivers[row.driver].keys), (
        'the old ones are forgotten'
    )
    check_nothing_is_doubled(story, balanced)


def test_rotation_is_asked_for_once_by_a_member(story: Story, api: Api, balanced: str) -> None:
    path = f'/v1/certificates/{balanced}'

    assert api('PATCH', path, roles='reader').status_code == 403
    assert api('PATCH', path, project='p2').status_code == 404
    assert api('PATCH', path, {'ca': 'new'}).status_code == 400
    asked = api('PATCH', path, headers={'Content-Type': 'application/octet-stream'}, version=None)
    assert (asked.status_code, asked.json) == (202, {'uuid': balanced})
    assert '/v1/operations/' in asked.headers['Location']
    again = api('PATCH', path)
    assert again.status_code == 409 and 'phase 1 of 3' in again.text
    story.run(ROUNDS['rotate'])
    assert history(story, balanced)[-1] == ('rotate', 'complete')


def test_rotation_that_the_driver_cannot_do_is_refused(
    services: Services, story: Story, api: Api, balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(services.drivers['k8s_cloud_init'].manifest, 'rotation')

    refused = api('PATCH', f'/v1/certificates/{balanced}')

    assert refused.status_code == 400 and 'cannot exchange authorities' in refused.text
    assert loaded(story, balanced).status == 'CREATE_COMPLETE'


def test_rotation_that_fails_goes_on_where_it_was(story: Story, balanced: str) -> None:
    request(story, balanced, rotate, 'rotate')
    story.make_due()
    story.round()
    [stack] = story.cloud.all_stacks()
    stack.status, stack.failed = (
        'UPDATE_FAILED',
        failed_member(stack, 2, 'WaitConditionFailure: disk full'),
    )
    story.run(2)
    row = loaded(story, balanced)
    assert (row.status, row.rotation_phase) == ('UPDATE_FAILED', 1)
    signer, _ = trust(story, balanced)
    stack.failed = []
    request(story, balanced, lambda cluster: None, 'rotate')
    story.run(ROUNDS['rotate'])

    assert (loaded(story, balanced).status, loaded(story, balanced).rotation_phase) == (
        'UPDATE_COMPLETE',
        0,
    )
    assert trust(story, balanced)[0] != signer
    assert history(story, balanced)[-2:] == [('rotate', 'failed'), ('rotate', 'complete')]


def test_rotation_that_is_stopped_ends_after_a_step_and_goes_on_when_asked_again(
    story: Story, balanced: str
) -> None:
    operation = request(story, balanced, rotate, 'rotate')
    story.make_due()
    story.round()
    story.heat_works()
    db.request_cancel(story.conductor_services.db, ADMIN, operation.uuid)
    story.run(8)

    row = loaded(story, balanced)
    assert (row.status, row.error_code, row.rotation_phase) == ('UPDATE_FAILED', 'CANCELLED', 1)
    request(story, balanced, lambda cluster: None, 'rotate')
    story.run(ROUNDS['rotate'])
    assert (loaded(story, balanced).status, loaded(story, balanced).rotation_phase) == (
        'UPDATE_COMPLETE',
        0,
    )
    check_nothing_is_doubled(story, balanced)


def test_resize_in_a_rotation_waits_its_turn_and_both_are_done(story: Story, balanced: str) -> None:
    request(story, balanced, rotate, 'rotate')
    story.make_due()
    story.round()
    request(story, balanced, resize(3))
    story.run(ROUNDS['rotate'])

    row = loaded(story, balanced)
    assert (row.status, row.rotation_phase, len(numbers(story, balanced))) == (
        'UPDATE_COMPLETE',
        0,
        3,
    )
    assert history(story, balanced)[1:] == [('rotate', 'complete'), ('resize', 'complete')]
    check_nothing_is_doubled(story, balanced)


def test_delete_in_a_rotation_leaves_no_key(story: Story, api: Api, balanced: str) -> None:
    request(story, balanced, rotate, 'rotate')
    story.run(2)
    assert story.count(models.Key) > len(story.conductor_services.drivers['k8s_cloud_init'].keys)
    api('DELETE', f'/v1/clusters/{balanced}')
    story.run(4)

    assert (story.clusters(), story.count(models.Key)) == ([], 0)
