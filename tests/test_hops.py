"""How many of our files a create goes through: what a newcomer must open to follow it."""

from __future__ import annotations

import pathlib
import sys
from types import FrameType
from typing import Any

import fakes
from conftest import Api
from stories import Story

import magnum_lite
from magnum_lite.conductor import steps

PACKAGE = str(pathlib.Path(magnum_lite.__file__).parent)
MOST = 27  # doc/decisions/0016


def test_create_enters_few_files(
    api: Api, template: dict[str, Any], conductor_services: steps.Services, cloud: fakes.FakeCloud
) -> None:
    """From the POST to CREATE_COMPLETE, in the API and in the conductor; the second request, so
    caches are warm."""
    story = Story(conductor_services, cloud)
    body = {'name': 'c1', 'cluster_template_id': template['uuid']}
    api('POST', '/v1/clusters', body)
    story.run(4)
    # The fakes stand in for these: the seam to the cloud, the nudge's sender and its receiver.
    entered = {'clients.py', 'rpc.py', 'conductor/endpoint.py'}

    def note(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if (
            event == 'call' and name.startswith(PACKAGE) and name.endswith('.py')
        ):  # a Jinja template is data
            entered.add(name[len(PACKAGE) + 1 :])

    sys.setprofile(note)
    try:
        uuid = api('POST', '/v1/clusters', body).json['uuid']
        story.run(4)
    finally:
        sys.setprofile(None)

    assert api('GET', f'/v1/clusters/{uuid}').json['status'] == 'CREATE_COMPLETE'
    assert len(entered) <= MOST, ' '.join(sorted(entered))
