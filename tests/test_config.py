"""Options that were moved are still read from where old files have them."""

from __future__ import annotations

import pathlib

import pytest
from oslo_config import cfg

from magnum_lite import config


@pytest.mark.parametrize('group', ['cluster', 'certificates'])
def test_ca_days_is_read_from_both_groups(tmp_path: pathlib.Path, group: str) -> None:
    conf = read(tmp_path, f'[{group}]\nca_days = 7\n')

    assert conf.certificates.ca_days == 7


@pytest.mark.parametrize('group', ['x509', 'certificates'])
def test_term_of_validity_is_read_from_both_groups(tmp_path: pathlib.Path, group: str) -> None:
    conf = read(tmp_path, f'[{group}]\nterm_of_validity = 7\n')

    assert conf.certificates.term_of_validity == 7


def read(folder: pathlib.Path, text: str) -> cfg.ConfigOpts:
    """Read a configuration file of this text into an object of its own."""
    file = folder / 'magnum-lite.conf'
    file.write_text(text)
    conf = cfg.ConfigOpts()
    config.register(conf)
    conf([], project=config.PROJECT, default_config_files=[str(file)])
    return conf
