"""Fixtures of the tests on a real cloud, and what these tests need to run at all."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest
from functional.cloud import LONG_TICK_S, Project, Sandbox, Say, Start, starting
from functional.service import Service


@pytest.fixture(scope='module')
def say(request: pytest.FixtureRequest) -> Say:
    """Write a line to the terminal, whether the test fails or not."""
    plugins = request.config.pluginmanager

    def write(line: str) -> None:
        with plugins.get_plugin('capturemanager').global_and_fixture_disabled():
            plugins.get_plugin('terminalreporter').write_line(f'\n  {line}')

    return write


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """The cloud, cleaned of what killed runs left behind. While the tests run, its projects are in
    clouds.yaml."""
    made = Sandbox(os.environ['OS_CLOUD'], tmp_path_factory.mktemp('cloud'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('OS_CLIENT_CONFIG_FILE', str(made.clouds_file))
        made.remove_leftovers()
        yield made
        made.close()


@pytest.fixture(scope='module')
def running() -> list[Service]:
    """The services that run now."""
    return []


@pytest.fixture(scope='module')
def start(
    sandbox: Sandbox, running: list[Service], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Start services for all tests of a file."""
    with starting(sandbox, running, tmp_path_factory.mktemp('services')) as made:
        yield made


@pytest.fixture
def lone(sandbox: Sandbox, running: list[Service], tmp_path: pathlib.Path) -> Iterator[Start]:
    """Start services without conductors for one test: those that end processes have one of their
    own."""
    with starting(sandbox, running, tmp_path / 'services', conductors=0) as made:
        yield made


@pytest.fixture(scope='module')
def service(start: Start) -> Service:
    """One API, one conductor."""
    return start(extra={'conductor': {'tick': LONG_TICK_S}})


@pytest.fixture(autouse=True)
def logs(running: list[Service]) -> Iterator[None]:
    """Print what the services logged during a test: pytest shows it when the test fails."""
    yield
    for made in running:
        made.print_logs()


@pytest.fixture
def project(sandbox: Sandbox) -> Iterator[Project]:
    with sandbox.project() as made:
        yield made
