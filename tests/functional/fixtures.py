"""Fixtures of the tests on a real cloud, and what these tests need to run at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from functional.cloud import LONG_TICK_S, Project, Sandbox, Say
from functional.service import Service, start_service


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
    """The cloud, cleaned of what killed runs left behind. While the tests run, its projects are in clouds.yaml."""
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
def service(sandbox: Sandbox, running: list[Service], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One API, one conductor."""
    made = start_service(sandbox.cloud_name, tmp_path_factory.mktemp('service'),
                         extra={'conductor': {'tick': LONG_TICK_S}})
    running.append(made)
    yield made
    running.remove(made)
    made.stop()


@pytest.fixture
def lone(sandbox: Sandbox, running: list[Service], tmp_path: pathlib.Path) -> Iterator[Callable[..., Service]]:
    """Start services without conductors: tests that end processes have one of their own."""
    with contextlib.ExitStack() as undo:
        def start(**options: Any) -> Service:
            made = start_service(sandbox.cloud_name, tmp_path / str(len(running)), conductors=0, **options)
            running.append(made)
            undo.callback(made.stop)
            undo.callback(running.remove, made)
            return made
        yield start


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
