"""`magnum-lite status upgrade check`: whether a release can be started on what there is, as in
other services.

Each check says in its details what to do. None changes anything, and none needs a conductor or an
API that runs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from alembic import script
from alembic.runtime import migration
from oslo_config import cfg
from oslo_upgradecheck import common_checks, upgradecheck
from oslo_upgradecheck.upgradecheck import Code, Result

from magnum_lite import clients, config, db, drivers, errors, keystore

#: Sections of magnum.conf of which options mean nothing here, with what takes their place.
WITHOUT_EFFECT = {
    'trust': 'no trusts are made: the service acts with a role of its own on each project, see '
    '[identity], and a cluster as a user of its own, where trustee_domain_id names a domain',
}


class Checks(upgradecheck.UpgradeCommands):
    """The checks, in the order in which their results are printed."""

    def __init__(self, conf: cfg.ConfigOpts, database: db.Database, cloud: clients.Cloud) -> None:
        self._conf, self._db, self._cloud = conf, database, cloud

    def _migrations(self) -> Result:
        scripts = script.ScriptDirectory(str(pathlib.Path(__file__).parent / 'alembic'))
        with self._db.engine.connect() as connection:
            has = migration.MigrationContext.configure(connection).get_current_heads()
        wanted = tuple(scripts.get_heads())
        if has == wanted:
            return Result(Code.SUCCESS)
        return Result(
            Code.FAILURE,
            f'The schema is at {", ".join(has) or "nothing"} and has to be at '
            f'{", ".join(wanted)}. Run: magnum-lite db upgrade',
        )

    def _service_user(self) -> Result:
        try:
            roles, unknown = self._cloud.service_roles()
        except clients.CloudError as e:
            return Result(Code.FAILURE, f'{e}. See [keystone_auth]')
        if unknown:
            return Result(
                Code.FAILURE,
                f'[identity] project_roles names roles that do not exist: {", ".join(unknown)}',
            )
        if 'admin' in roles or not self._conf.identity.project_roles:
            return Result(Code.SUCCESS)
        return Result(
            Code.WARNING,
            'The service user has no role admin, so it may not be able to grant itself roles on '
            f'projects. Its roles are {", ".join(roles)}. Grant it admin on its project, or grant '
            'what is needed yourself and empty [identity] project_roles',
        )

    def _leftovers(self) -> Result:
        sections: dict[str, dict[str, list[str]]] = {}
        for file in self._conf.config_file:
            cfg.ConfigParser(file, sections).parse()
        said = [
            f'[{name}] {", ".join(unknown)} without effect: {instead}'
            for name, instead in WITHOUT_EFFECT.items()
            if (
                unknown := sorted(
                    set(sections.get(name, ())) - {o.name for o in config.GROUPS.get(name, ())}
                )
            )
        ]
        return Result(Code.WARNING, '. '.join(said)) if said else Result(Code.SUCCESS)

    def _tried(self, load: Callable[[cfg.ConfigOpts], object], mistake: type[Exception]) -> Result:
        try:
            load(self._conf)
        except mistake as e:
            return Result(Code.FAILURE, str(e))
        return Result(Code.SUCCESS)

    _upgrade_checks = (
        ('Schema of the database', _migrations),
        ('Key file', lambda self: self._tried(keystore.KeyStore, keystore.KeyStoreError)),
        ('Roles of the service user', _service_user),
        ('Options of Magnum without effect', _leftovers),
        ('Driver folders', lambda self: self._tried(drivers.load, errors.DriverError)),
        ('Policy file', lambda self: common_checks.check_policy_json(self, self._conf)),
    )


def run(conf: cfg.ConfigOpts, database: db.Database, cloud: clients.Cloud) -> int:
    """Print a table of the results, or JSON with --json, and return the worst one, which is the
    exit status."""
    # The library looks for --json there; its own `main` reads command lines of another kind.
    upgradecheck.CONF = conf
    return int(Checks(conf, database, cloud).check())
