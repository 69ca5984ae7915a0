"""Which image a node of testcloud/nodes boots: that of the Debian release which the server's Glance
image names, in a folder of its own."""

from __future__ import annotations

import importlib.util
import pathlib
from types import ModuleType

import pytest

NODES = pathlib.Path(__file__).parent.parent / 'testcloud' / 'nodes'


@pytest.fixture
def noded(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> ModuleType:
    """The watcher's program, with images of Debian 12, the default, and 13."""
    for folder in ('image', 'image-13'):
        (tmp_path / folder / 'rootfs').mkdir(parents=True)
    monkeypatch.setenv('NODES_HOME', str(tmp_path))
    spec = importlib.util.spec_from_file_location('noded', NODES / 'noded.py')
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ('release', 'folder'),
    [('', 'image'), ('13', 'image-13'), ('12', 'image'), ('14', None), ('13/../../image', None)],
)
def test_the_image_is_that_of_the_release(
    noded: ModuleType, tmp_path: pathlib.Path, release: str, folder: str | None
) -> None:
    wanted = str(tmp_path / folder / 'rootfs') if folder else None

    assert noded.image(release) == wanted


def test_overlays_lie_over_the_image_of_the_release(
    noded: ModuleType, tmp_path: pathlib.Path
) -> None:
    for name in ('kubernetes', 'more'):
        (tmp_path / 'overlay' / name).mkdir(parents=True)
    (tmp_path / 'overlay' / 'kubernetes.match').write_text('kubeadm\n')
    server = {'name': 'real-1', 'release': '13'}

    found = noded.layers(server, b'#!/bin/sh\n')

    assert found == [f'{tmp_path}/overlay/more', f'{tmp_path}/image-13/rootfs']
