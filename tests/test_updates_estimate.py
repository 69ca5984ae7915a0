"""How far an operation is, and how long it will take."""

from __future__ import annotations

import datetime
import uuid

from stories import ADMIN, Story, request, resize

from magnum_lite import db, models
from magnum_lite.models import Operation


def test_resources_are_counted_only_while_a_client_polls(story: Story, running: str) -> None:
    operation = request(story, running, resize(3))
    story.make_due()
    story.round()
    story.make_due()
    story.round()
    assert 'get_progress' not in story.cloud.calls
    db.mark_polled(story.conductor_services.db, running)
    story.make_due()
    story.round()

    assert story.cloud.calls.count('get_progress') == 1
    found = db.get_operation(story.conductor_services.db, ADMIN, operation.uuid)
    assert (found.resources_done, found.resources_total) == (3, 10)


def test_estimate_is_of_operations_of_that_size(story: Story, running: str) -> None:
    with story.conductor_services.db.write() as session:
        for nodes, seconds in ((3, 30), (3, 32), (3, 34), *[(50, 900)] * 20):
            asked = models.utcnow()
            session.add(
                Operation(
                    uuid=str(uuid.uuid4()),
                    cluster_id=running,
                    project_id='p1',
                    user_id='u',
                    kind='resize',
                    generation=1,
                    driver='k8s_cloud_init',
                    node_count=nodes,
                    outcome='complete',
                    created_at=asked,
                    ended_at=asked + datetime.timedelta(seconds=seconds),
                )
            )
    operation = request(story, running, resize(45))
    estimate_s = db.estimate_duration_s(story.conductor_services.db, operation)
    assert estimate_s is not None and 600 < estimate_s < 1000
    small = Operation(driver='k8s_cloud_init', kind='upgrade', node_count=3)
    assert db.estimate_duration_s(story.conductor_services.db, small) is None
