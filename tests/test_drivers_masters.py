"""Masters that are replaced one by one, and what changes for the nodes beside them."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import pytest
from oslo_config import cfg
from rendering import a_cluster, in_every_shape, unpacked, user_data, with_new_master

from magnum_lite import certs, drivers, models


@in_every_shape
def test_nothing_in_the_root_stack_rests_on_a_master_that_can_be_replaced(
    driver: drivers.Driver,
    conf: cfg.ConfigOpts,
    secrets: dict[str, certs.Pair],
    shape: dict[str, Any],
) -> None:
    cluster = a_cluster(driver, **shape)
    before = driver.render(conf, cluster, secrets)
    if driver.explain_irreplaceable(cluster, 'master'):
        return
    with_new_master(cluster)

    after = driver.render(conf, cluster, secrets)

    assert after.template == before.template
    changed = {name for name in before.files if before.files[name] != after.files[name]}
    masters = {
        name
        for name, item in driver.manifest['stack']['files'].items()
        if item.get('role') == 'master' and item.get('members')
    }
    assert (
        masters
        <= changed
        <= masters | {n for n in before.files if driver.texts.find_role(n) == 'master'}
    )


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
def test_new_master_knows_whose_place_it_takes_and_the_first_ones_take_nobodys(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    def environment(cluster: models.Cluster) -> dict[str, str]:
        texts = user_data(driver, driver.render(conf, cluster, secrets))
        [text] = [
            unpacked(text)['/etc/magnum-lite/node.env']
            for text in texts.values()
            if 'NODE_ROLE=master' in text
        ]
        return dict(line.split('=', 1) for line in text.splitlines())

    cluster = a_cluster(driver, masters=3)
    first = environment(cluster)
    group = with_new_master(cluster)
    of_three = environment(cluster)
    for node in group.nodes[1:]:
        node.rollout, node.status = 2, 'CREATE_COMPLETE'
    of_last = environment(cluster)

    assert (first['NODE_REPLACES'], first['NODE_STAYS']) == ("''", "''")
    assert (of_three['NODE_REPLACES'], of_three['NODE_REPLACES_LAST'], of_three['NODE_STAYS']) == (
        'c-master-0',
        "''",
        "''",
    )
    assert (of_last['NODE_REPLACES'], of_last['NODE_REPLACES_LAST']) == ('c-master-0', 'yes')
    assert of_last['NODE_STAYS'] == f"'{' '.join(node.name for node in group.nodes[1:])}'"


@pytest.mark.parametrize('driver', ['k8s_cloud_init', 'swarm_cloud_init'], indirect=True)
def test_masters_are_replaceable_behind_a_load_balancer_only(driver: drivers.Driver) -> None:
    assert driver.explain_irreplaceable(a_cluster(driver, master_lb_enabled=True), 'master') is None
    alone = a_cluster(driver, master_lb_enabled=False)
    assert driver.explain_irreplaceable(alone, 'worker') is None
    assert f'The masters of cluster {alone.uuid} cannot be replaced: There is no load' in str(
        driver.explain_irreplaceable(alone, 'master')
    )


@pytest.mark.parametrize('driver', ['k8s_cloud_init'], indirect=True)
def test_whatever_trusts_an_authority_trusts_the_next_one_beside_it(
    driver: drivers.Driver, conf: cfg.ConfigOpts, secrets: dict[str, certs.Pair]
) -> None:
    authorities = {name for name, key in driver.keys.items() if key.kind == 'ca'}
    both = {
        name: dataclasses.replace(pair, beside=f'the next {name}\n')
        if name in authorities
        else pair
        for name, pair in secrets.items()
    }

    for text in user_data(driver, driver.render(conf, a_cluster(driver), both)).values():
        files = unpacked(text)
        is_master = 'NODE_ROLE=master' in text
        for name in authorities:
            found = [t for t in files.values() if f'the next {name}' in t]
            assert [t.startswith(secrets[name].certificate) for t in found] == (
                [True] if is_master else []
            )
        trusted = base64.b64encode(both['ca'].trusted.encode()).decode()
        assert trusted in files['/etc/kubernetes/discovery.conf']
        assert (
            not is_master or files['/etc/magnum-lite/pki/signing.crt'] == secrets['ca'].certificate
        )


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        ('v1.35.9', 'v1.36.0', []),
        ('v1.35.9', 'v1.35.10', []),
        ('v1.35.9', 'v1.35.9', []),
        ('v1.20.2', 'v1.20.4', []),
        ('v1.35.9', 'v1.35.8', ['older']),
        ('v1.35.9', 'v1.34.12', ['older', 'leaves none out']),
        ('v1.35.9', 'v1.37.0', ['leaves none out']),
        ('v1.28.0', 'v1.29.0', ['before v1.29']),
    ],
)
def test_steps_of_the_version_that_the_engine_does_not_allow(
    conf: cfg.ConfigOpts, old: str, new: str, words: list[str]
) -> None:
    driver = drivers.load(conf)['k8s_cloud_init']

    problems = driver.check_upgrade(conf, {'kube_tag': old}, {'kube_tag': new})

    assert [word in problem for word, problem in zip(words, problems, strict=True)] == [True] * len(
        words
    )
    assert driver.find_engine_version(conf, {'kube_tag': new}) == new
