"""Every option of every driver folder, pairwise: two options go together or are refused."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import options
import pytest
import yaml
from oslo_config import cfg
from rendering import assert_sound, brings_templates

from magnum_lite import certs, config, drivers, errors


@pytest.fixture
def walk(driver: drivers.Driver) -> options.Walk:
    """Every option of a driver folder, pairwise."""
    return find_pairs(driver.name)


@functools.cache
def find_pairs(folder: str) -> options.Walk:
    conf = cfg.ConfigOpts()
    config.register(conf)
    conf([], default_config_files=[])
    return options.Walk(conf, drivers.load(conf)[folder])


def test_any_two_options_go_together_or_are_refused(
    driver: drivers.Driver, secrets: dict[str, certs.Pair], walk: options.Walk
) -> None:
    seen = set()

    for row in walk.rows:
        cluster, group = walk.make(row)
        for rendered in walk.rendered(cluster, group, secrets):
            assert_sound(rendered)
            for text in (
                value for name, value in rendered.parameters.items() if name.endswith('user_data')
            ):
                assert len(text) + drivers.PLACEHOLDER_ROOM < drivers.MAX_USER_DATA
        seen |= {(name, number) for name, number in zip(walk.factors, row, strict=True)}

    left = {
        (name, number) for name, choices in walk.factors.items() for number in range(len(choices))
    } - seen
    for name, number in left:
        with pytest.raises((errors.Invalid, errors.Conflict)):
            walk.make(tuple(number if name == factor else 0 for factor in walk.factors))


def test_every_label_changes_what_is_sent_to_some_cluster(
    driver: drivers.Driver, secrets: dict[str, certs.Pair], walk: options.Walk
) -> None:
    """But for those that are informative, which never do.

    A folder that uses the templates of another one is asked about the labels of its own manifest.
    """
    labels = set(driver.labels_known)
    if not brings_templates(driver.name):
        manifest = yaml.safe_load((driver.folder / 'manifest.yaml').read_text())
        labels &= set(manifest.get('labels', {}))

    def changes(row: options.Row, label: str) -> bool:
        cluster, group = walk.make(row)
        before = walk.rendered(cluster, group, secrets)
        rows: list[Any] = [cluster, *cluster.nodegroups]
        for owner in rows:
            owner.labels = {key: value for key, value in owner.labels.items() if key != label}
        return walk.rendered(cluster, group, secrets) != before

    idle = set()
    for place, factor in enumerate(walk.factors):
        name = factor.removeprefix('label ')
        if name in labels:
            # Alone, with each value of each field, and as it comes in the walk.
            values = [(place, number) for number in range(1, len(walk.factors[factor]))]
            fields = [
                (other, number)
                for other, (field, choices) in enumerate(walk.factors.items())
                for number in range(len(choices))
                if field.startswith('field ')
            ]
            rows = [
                *filter(
                    walk.is_taken, (walk.only(*pair) for pair in itertools.product(values, fields))
                ),
                *(row for row in walk.rows if row[place]),
            ]
            assert rows, name
            informative = driver.labels_known[name].get('informative')
            if not any(changes(row, name) for row in (rows[:8] if informative else rows)):
                idle.add(name)

    assert idle == {name for name in labels if driver.labels_known[name].get('informative')}
