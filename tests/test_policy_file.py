"""The operator's policy file: what a process does with one that is broken, misspelt, or gone."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib

import pytest
from conftest import Api
from oslo_config import cfg

from magnum_lite import outage
from magnum_lite.api import app as api_app
from magnum_lite.api import healthcheck, policies
from magnum_lite.api.request import Services

READER = {'X-User-Id': 'u1', 'X-Project-Id': 'p1', 'X-Roles': 'reader'}


@pytest.fixture
def file(services: Services, tmp_path: pathlib.Path) -> pathlib.Path:
    """Return the path of a policy file that the configuration names. It is not there yet."""
    path = tmp_path / 'policy.yaml'
    services.conf.set_override('policy_file', str(path), 'oslo_policy')
    return path


def write(path: pathlib.Path, text: str, age_s: int) -> None:
    """Write a version of the file; oslo.policy tells versions by their time, in whole seconds."""
    path.write_text(text)
    os.utime(path, (1e9 - age_s, 1e9 - age_s))


@pytest.mark.parametrize(
    'text',
    ['"cluster:get": [', '- cluster:get', 'just a word', '\x00', '"cluster:get": 1'],
    ids=['not YAML', 'list', 'text', 'binary', 'number'],
)
def test_broken_file_stops_the_start(services: Services, file: pathlib.Path, text: str) -> None:
    file.write_text(text)

    with pytest.raises(policies.PolicyFileError, match=str(file)):
        policies.make_enforcer(services.conf)


def test_file_that_is_named_and_not_there_stops_the_start(
    conf: cfg.ConfigOpts, tmp_path: pathlib.Path
) -> None:
    settings = tmp_path / 'magnum-lite.conf'
    settings.write_text(f'[oslo_policy]\npolicy_file = {tmp_path}/policy.yaml\n')
    conf([], project='magnum-lite', default_config_files=[str(settings)])

    with pytest.raises(policies.PolicyFileError, match=r'policy\.yaml, which is not there'):
        policies.make_enforcer(conf)


def test_forgotten_letter_is_told_with_the_name_that_was_meant(
    services: Services, file: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text('"cluster:creat": "!"\n"team": "role:team"\n"cluster:get": "rule:team"\n')

    policies.make_enforcer(services.conf)

    [line] = [r.getMessage() for r in caplog.records if 'nothing asks' in r.getMessage()]
    assert 'cluster:creat,' in line and line.endswith('Did you mean cluster:create?')


@pytest.mark.parametrize('damage', ['broken', 'gone'])
def test_last_good_rules_stay_until_the_file_is_mended(
    services: Services,
    file: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    monkeypatch.setattr(policies, '_FILE', outage.Outage('Reading the policy file', 'Mend it'))
    closed = '"cluster:get_all": "!"'
    write(file, closed, age_s=30)
    enforcer = policies.make_enforcer(services.conf)
    services = dataclasses.replace(services, enforcer=enforcer)
    api = Api(api_app.make_app(services))
    ready = healthcheck.make_checks(services)['policy']
    caplog.set_level(logging.INFO)
    assert api('GET', '/v1/clusters', headers=READER).status_code == 403

    if damage == 'gone':
        file.unlink()
    else:
        write(file, '"cluster:get_all": [', age_s=20)
    during = [api('GET', '/v1/clusters', headers=READER).status_code for _ in range(3)]
    with pytest.raises(policies.PolicyFileError, match=str(file)):
        ready()
    write(file, closed if damage == 'gone' else '{}', age_s=30 if damage == 'gone' else 10)
    after = api('GET', '/v1/clusters', headers=READER).status_code

    assert during == [403, 403, 403]
    assert after == (403 if damage == 'gone' else 200)
    ready()
    assert [r.levelname for r in caplog.records if 'policy file' in r.getMessage()] == [
        'WARNING',
        'INFO',
    ]
