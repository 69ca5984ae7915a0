"""The schema that migrations make is the one that the models describe, on every database that
answers."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from conftest import AVAILABLE, scratch_database

from magnum_lite import models

VERSIONS = pathlib.Path(models.__file__).parent / 'alembic' / 'versions'


@pytest.fixture(params=AVAILABLE)
def url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    with scratch_database(request.param, tmp_path) as made:
        yield made


def run(url: str, folder: pathlib.Path, *argv: str) -> str:
    """The command as an operator calls it. Returns what it printed."""
    conf = folder / 'magnum-lite.conf'
    conf.write_text(f'[database]\nconnection = {url}\n')
    done = subprocess.run(
        [pathlib.Path(sys.executable).parent / 'magnum-lite', '--config-file', conf, *argv],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def differences(url: str) -> list[object]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={'compare_type': True})
        found = compare_metadata(context, models.Base.metadata)
    engine.dispose()
    return found


def tables(url: str) -> set[str]:
    engine = sa.create_engine(url)
    names = set(sa.inspect(engine).get_table_names())
    engine.dispose()
    return names


def test_migrations_make_what_the_models_say(url: str, tmp_path: pathlib.Path) -> None:
    run(url, tmp_path, 'db', 'upgrade')

    assert differences(url) == []
    assert tables(url) == {table.name for table in models.Base.metadata.sorted_tables} | {
        'alembic_version'
    }


def test_version_is_shown_and_a_second_upgrade_does_nothing(tmp_path: pathlib.Path) -> None:
    with scratch_database('sqlite', tmp_path) as url:
        for _ in range(2):
            run(url, tmp_path, 'db', 'upgrade')
        newest = max(path.name for path in VERSIONS.glob('*.py'))[:4]
        assert f'{newest} (head)' in run(url, tmp_path, 'db', 'version')


def test_stamp_changes_nothing_but_the_version(tmp_path: pathlib.Path) -> None:
    with scratch_database('sqlite', tmp_path) as url:
        run(url, tmp_path, 'db', 'stamp')

        assert tables(url) == {'alembic_version'}


def test_every_migration_goes_back(url: str) -> None:
    """Operators never need it; a migration that is tried out twice while it is written does."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        made = alembic.config.Config()
        made.set_main_option(
            'script_location', str(pathlib.Path(models.__file__).parent / 'alembic')
        )
        made.attributes['connection'] = connection
        alembic.command.upgrade(made, 'head')
        alembic.command.downgrade(made, 'base')
    engine.dispose()

    assert tables(url) == {'alembic_version'}
