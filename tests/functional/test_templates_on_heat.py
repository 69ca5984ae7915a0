"""Every folder with any two options is a template that a real Heat accepts, and wants just the
parameters it is sent.

Heat validates templates and files without making anything. OS_CLOUD names the cloud.
"""

from __future__ import annotations

import functools
import json
import re
import time
from concurrent import futures
from typing import Any

import options
import pytest
from functional.cloud import ON_A_CLOUD, Project, Sandbox, Say
from heatclient import exc as heat_exc
from heatclient.v1 import client as heat_client
from oslo_config import cfg
from rendering import BIG, a_cluster, parse, read_yaml

from magnum_lite import config, drivers
from magnum_lite.api import offline

pytest_plugins = ('functional.fixtures',)
pytestmark = [pytest.mark.timeout(300), *ON_A_CLOUD]


#: What there is in the cloud, for what `options` names.
REAL = {
    '"IMAGE"': '"ubuntu"',
    '"another"': '"ubuntu"',
    '"FLAVOR"': '"m1.small"',
    '"huge"': '"m1.small"',
}
#: Of Heat: something that is named is not there.
UNKNOWN = re.compile(r"Error validating value '[^']*': [^']*")


@pytest.fixture(scope='module')
def conf() -> cfg.ConfigOpts:
    made = cfg.ConfigOpts()
    config.register(made)
    made([], default_config_files=[])
    return made


def alike(rendered: drivers.Rendered) -> str:
    """What tells one template from another: not who its members are."""
    text = json.dumps([rendered.template, rendered.files, sorted(rendered.parameters)])
    return re.sub(r'c-[0-9a-f]{8}-[a-z]+-\d+', 'NODE', text)


def test_templates_are_accepted_and_want_what_they_are_sent(
    sandbox: Sandbox, conf: cfg.ConfigOpts, say: Say
) -> None:
    found: dict[str, tuple[str, drivers.Rendered]] = {}
    for name, driver in drivers.load(conf).items():
        walk, secrets = options.Walk(conf, driver), offline.make_secrets(driver)
        for row in walk.rows:
            for rendered in walk.rendered(*walk.make(row), secrets):
                found.setdefault(alike(rendered), (f'{name} {walk.bodies(row)}', rendered))
    begun = time.monotonic()

    with sandbox.project() as project, futures.ThreadPoolExecutor(2) as pool:
        heat, network = heat_of(project), project.cloud.network.create_network(name='net')
        project.cloud.network.create_subnet(
            name='sub', network_id=network.id, cidr='10.8.0.0/24', ip_version=4
        )
        answers = list(pool.map(lambda item: validated(heat, item[1]), found.values()))
        previews = list(pool.map(lambda item: previewed(heat, item[1]), found.values()))

    assert [
        (what, answer)
        for (what, _), answer in zip(found.values(), answers, strict=True)
        if isinstance(answer, str)
    ] == []
    for (what, rendered), answer in zip(found.values(), answers, strict=True):
        assert (
            set(answer['Parameters'])
            == set(parse(rendered)['']['parameters'])
            >= set(rendered.parameters)
        ), what
        assert {
            name for name, spec in answer['Parameters'].items() if 'Default' not in spec
        } <= set(rendered.parameters), what
        assert all(
            answer['Parameters'][name]['NoEcho'] == 'true'
            for name in rendered.parameters
            if name.endswith('user_data')
        ), what
    strange = [said for said in previews if said and not UNKNOWN.search(said)]
    assert strange == []
    say(
        f'{len(found)} templates of {len(drivers.load(conf))} folders validated in '
        f'{time.monotonic() - begun:.0f} s, {previews.count("")} of them with all that is sent; '
        'others name what this cloud lacks: '
        f'{sorted({m[0] for said in previews if (m := UNKNOWN.search(said))})}'
    )


def heat_of(project: Project) -> heat_client.Client:
    """Heat as the user of the tests has it in a project."""
    return heat_client.Client(
        session=project.cloud.session,
        service_type='orchestration',
        region_name=project.cloud.config.get_region_name(),
    )


def validated(heat: heat_client.Client, rendered: drivers.Rendered) -> Any:
    """What Heat says of a template and its files: a dictionary, or why not."""
    try:
        return heat.stacks.validate(
            template=rendered.template, files=rendered.files, show_nested=True
        )
    except heat_exc.HTTPException as e:
        return str(e)


def previewed(heat: heat_client.Client, rendered: drivers.Rendered) -> str:
    """What Heat has against what would be made, of an image and a flavor that are there; '' if
    nothing."""
    files = {
        name: functools.reduce(lambda done, pair: done.replace(*pair), REAL.items(), text)
        for name, text in rendered.files.items()
    }
    there = {'network': 'net', 'subnet': 'sub', 'subnet_cidr': '10.8.0.0/24'}
    parameters = {name: there.get(name, value) for name, value in rendered.parameters.items()}
    try:
        heat.stacks.preview(
            stack_name='limits-preview',
            template=rendered.template,
            files=files,
            parameters=parameters,
        )
    except heat_exc.HTTPException as e:
        return str(e)
    return ''


def test_heat_refuses_what_is_longer_than_the_options_say(
    sandbox: Sandbox, conf: cfg.ConfigOpts, say: Say
) -> None:
    """So the defaults are Heat's, and what is weighed at a POST is what Heat weighs."""
    limits = conf.cluster_heat
    driver = drivers.load(conf)[sorted(drivers.load(conf))[0]]
    rendered = driver.render(
        conf, a_cluster(driver, workers=2, labels=BIG), offline.make_secrets(driver)
    )

    def padded(length: int) -> drivers.Rendered:
        return drivers.Rendered(rendered.template.ljust(length), rendered.files, {})

    with sandbox.project() as project:
        heat = heat_of(project)
        fits = validated(heat, padded(limits.max_template_size))
        beyond = validated(heat, padded(limits.max_template_size + 1))
        files = validated(
            heat,
            drivers.Rendered(
                rendered.template,
                rendered.files | {'more.yaml': 'x' * limits.max_json_body_size},
                {},
            ),
        )

    assert isinstance(fits, dict)
    assert isinstance(beyond, str) and str(limits.max_template_size) in beyond
    assert isinstance(files, str) and str(limits.max_json_body_size) in files
    assert read_yaml(rendered.template)
    say(f'Heat said: {beyond}; {files}')
