"""How far a reader has to go: the files that a request enters, and the hops between them.

Four journeys are traced with `sys.setprofile`: GET of the list, and create, resize and rotation of
the authorities, each from its request to the end of the work. They go through the application, the
database and the conductor in one thread; only the cloud, the broker and the conductor's loop are
stand-ins. A journey is made once before it is counted, so caches are warm.

A file is entered when a function of it is called. The files behind the stand-ins are added to each
journey that crosses them.

A hop is a call from one file of the package into another, also of a property. The caller is the
nearest function of the package on the stack, whatever library lies between. Not counted, as a
reader does not stop at them: comprehensions, generator expressions and lambdas; a generator that is
resumed; what Jinja and SQLAlchemy call (filters of templates, types of columns).

`pytest -s` prints the figures, and the pairs of files with the most hops. A first count, at commit
d63939c, gave create 24 files (27 with those behind the stand-ins) and 263 hops, list 10 and 47,
resize 24 and 269, rotation 25 and 2,133. By the rules above the same code has: create 28 and 263
(267 with the load balancer that a rotation needs), list 10 and 30, resize 28 and 285, rotation 29
and 1,393. So create compares hop by hop; how many rows the first count had in the other journeys is
not known. The files of the loop and of the stand-ins account for 28 instead of 24.
"""

from __future__ import annotations

import collections
import inspect
import pathlib
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import fakes
import pytest
from conftest import Api
from stories import Story

import magnum_lite
from magnum_lite.conductor.task import Services

PACKAGE = str(pathlib.Path(magnum_lite.__file__).parent) + '/'
#: The files behind the stand-ins: the seam to the cloud, the sender of the nudge, its receiver, the
#: loop of the conductor.
BEHIND_FAKES = frozenset(('clients.py', 'rpc.py', 'conductor/endpoint.py', 'conductor/service.py'))
#: Libraries whose calls into the package are not followed by a reader.
CALLBACKS = ('/jinja2/', '/sqlalchemy/')
#: The most files and hops of each journey. One file and two hops of each are the enforcer in
#: `api/policies.py`, which looks whether the operator's policy file can still be used.
LIMITS = {
    'list': (11, 34),
    'create': (33, 182),
    'resize': (33, 214),
    'rotate': (33, 1188),
}


class Trace:
    """Counts files, and hops by pair of files, while it is entered as a context."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.hops: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> Trace:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, _: Any) -> None:
        if event != 'call' or not is_function(frame.f_code) or is_resumed(frame):
            return
        caller = frame.f_back
        if caller is None or not is_read(caller):
            return
        file = find_file(frame.f_code)
        self.files.add(file)
        while caller is not None and not find_file(caller.f_code):
            caller = caller.f_back
        if caller is not None and find_file(caller.f_code) != file:
            self.hops[f'{find_file(caller.f_code)} -> {file}'] += 1


def find_file(code: CodeType) -> str:
    """The file of the package that code stands in, '' for all other code. A template is data."""
    name = code.co_filename
    is_ours = name.startswith(PACKAGE) and name.endswith('.py')
    return name[len(PACKAGE) :] if is_ours else ''


def is_function(code: CodeType) -> bool:
    """Whether code is a named function of the package."""
    return bool(find_file(code)) and not code.co_name.startswith('<')


def is_resumed(frame: FrameType) -> bool:
    """Whether a generator goes on behind a `yield`: RESUME has an argument other than 0 there."""
    is_generator = bool(frame.f_code.co_flags & inspect.CO_GENERATOR)
    return is_generator and frame.f_code.co_code[frame.f_lasti + 1] != 0


def is_read(caller: FrameType) -> bool:
    """Whether a reader follows a call from here: not from a template or these libraries."""
    name = caller.f_code.co_filename
    return not any(library in name for library in CALLBACKS) and not is_template(name)


def is_template(name: str) -> bool:
    """Whether a file is one of a driver folder's, which Jinja compiles under its own name."""
    return name.startswith(PACKAGE) and not name.endswith('.py')


@pytest.fixture
def story(conductor_services: Services, cloud: fakes.FakeCloud) -> Story:
    """The rounds of the conductor, and Heat.

    A stack is never due again within its round, as it would be on a machine that is slow."""
    conductor_services.conf.set_override('watch_interval', 600, 'conductor')
    return Story(conductor_services, cloud)


@pytest.fixture
def create(api: Api, template: dict[str, Any], story: Story) -> Callable[[], str]:
    """Create a cluster of one master and two workers. Returns its uuid."""

    def create() -> str:
        body = {
            'name': 'c1',
            'cluster_template_id': template['uuid'],
            'node_count': 2,
            'master_lb_enabled': True,
        }
        uuid: str = api('POST', '/v1/clusters', body).json['uuid']
        story.run(4)
        return uuid

    return create


def check(journey: str, trace: Trace, *, with_cloud: bool = True) -> None:
    """Print what a journey took (`pytest -s` shows it) and hold it to its limits."""
    files = sorted(trace.files | (BEHIND_FAKES if with_cloud else frozenset()))
    hops = trace.hops.total()
    print(f'{journey}: {len(files)} files, {hops} hops: {" ".join(files)}')
    for pair, count in trace.hops.most_common(12):
        print(f'{count:6} {pair}')

    most_files, most_hops = LIMITS[journey]
    assert len(files) <= most_files, ' '.join(files)
    assert hops <= most_hops, trace.hops.most_common(12)


def test_list_enters_few_files(api: Api, create: Callable[[], str]) -> None:
    create()
    api('GET', '/v1/clusters')

    with Trace() as trace:
        clusters = api('GET', '/v1/clusters').json['clusters']

    assert [c['status'] for c in clusters] == ['CREATE_COMPLETE']
    check('list', trace, with_cloud=False)


def test_create_enters_few_files(api: Api, create: Callable[[], str]) -> None:
    create()

    with Trace() as trace:
        uuid = create()

    assert api('GET', f'/v1/clusters/{uuid}').json['status'] == 'CREATE_COMPLETE'
    check('create', trace)


def test_resize_enters_few_files(api: Api, create: Callable[[], str], story: Story) -> None:
    uuid = create()

    def resize(count: int) -> None:
        api('POST', f'/v1/clusters/{uuid}/actions/resize', {'node_count': count})
        story.run(4)

    resize(3)
    with Trace() as trace:
        resize(4)

    cluster = api('GET', f'/v1/clusters/{uuid}').json
    assert (cluster['status'], cluster['node_count']) == ('UPDATE_COMPLETE', 4)
    check('resize', trace)


def test_rotation_enters_few_files(api: Api, create: Callable[[], str], story: Story) -> None:
    """All three phases, each of which replaces every member."""
    uuid = create()

    def rotate() -> None:
        response = api('PATCH', f'/v1/certificates/{uuid}')
        assert response.status_code == 202, response.text
        story.run(40)

    rotate()
    with Trace() as trace:
        rotate()

    assert api('GET', f'/v1/clusters/{uuid}').json['status'] == 'UPDATE_COMPLETE'
    check('rotate', trace)
