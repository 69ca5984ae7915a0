"""The built wheel, in an environment that has never seen the checkout: it finds its templates and
migrations."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
UV = pathlib.Path(sys.executable).parent / 'uv'

RENDER = '''
import datetime, json, pathlib, sys
import magnum_lite
from oslo_config import cfg
from magnum_lite import certs, config, drivers, models

assert 'site-packages' in magnum_lite.__file__, magnum_lite.__file__
conf = cfg.ConfigOpts()
config.register(conf)
conf([], default_config_files=[])
driver = drivers.load(conf)['k8s_cloud_init']
life = datetime.timedelta(days=1)
secrets = {name: certs.make_ca(name, life=life) if key.kind == 'ca' else certs.make_keypair(algorithm=key.algorithm)
           for name, key in driver.keys.items()}
for name, spec in driver.certificates.items():
    secrets[name] = certs.issue_client(secrets[spec.signed_by], common_name=name, organization=None, life=life)
server_type, os_distro, coe = driver.provides[0]
cluster = models.Cluster(
    uuid='5d7e1b5c-0000-4000-8000-000000000009', name='c', driver=driver.name, floating_ip_enabled=True,
    master_lb_enabled=False, labels={}, template=models.ClusterTemplate(
        name='t', coe=coe, server_type=server_type, cluster_distro=os_distro, image_id='i',
        external_network_id='public'))
for role in ('master', 'worker'):
    cluster.nodegroups.append(models.NodeGroup(
        uuid='u-' + role, name='default-' + role, role=role, is_default=True, node_count=1, image_id='i',
        flavor_id='f', labels={}, nodes=[models.Node(number=0, name='c-' + role + '-0', image_id='i')]))
print(json.dumps({'template': driver.render(conf, cluster, secrets).template}))
'''  # noqa: E501


def run(*argv: str | pathlib.Path, cwd: pathlib.Path) -> str:
    done = subprocess.run(
        [str(arg) for arg in argv], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel, built from a copy, so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp('source') / 'checkout'
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns('.*', '__pycache__', '*.egg-info', 'build', 'dist'),
    )
    run(
        sys.executable,
        '-m',
        'build',
        '--wheel',
        '--no-isolation',
        '--outdir',
        copy / 'out',
        cwd=copy,
    )
    return next((copy / 'out').glob('*.whl'))


def test_wheel_holds_every_template_and_migration(wheel: pathlib.Path) -> None:
    package = ROOT / 'magnum_lite'
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }

    held = set(zipfile.ZipFile(wheel).namelist())
    assert wanted - held == set()


@pytest.mark.timeout(300)
def test_wheel_renders_in_an_empty_environment(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run(sys.executable, '-m', 'venv', tmp_path / 'venv', cwd=tmp_path)
    python = tmp_path / 'venv' / 'bin' / 'python'
    if UV.exists():
        install: list[str | pathlib.Path] = [UV, 'pip', 'install', '-q', '-p', python]
    else:
        install = [python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check']
    run(*install, '-c', ROOT / 'constraints.txt', wheel, cwd=tmp_path)

    assert 'heat_template_version' in run(python, '-c', RENDER, cwd=tmp_path)
    conf = tmp_path / 'm.conf'
    conf.write_text(f'[DEFAULT]\nstate_path = {tmp_path}\n')
    command = tmp_path / 'venv' / 'bin' / 'magnum-lite'
    run(command, '--config-file', conf, 'db', 'upgrade', cwd=tmp_path)
    assert '(head)' in run(command, '--config-file', conf, 'db', 'version', cwd=tmp_path)
    assert 'k8s_cloud_init: ok' in run(
        command, '--config-file', conf, 'drivers', 'check', cwd=tmp_path
    )
