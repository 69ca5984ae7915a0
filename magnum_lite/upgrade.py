"""`magnum-lite status upgrade check`: whether this release can be started on this deployment.

`cli` calls `run`. The command has the form that other OpenStack services have. Each check reads the
database, the configuration or the cloud, and its details say what to do. None changes anything, and
none needs a running conductor or API."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from alembic import script
from alembic.runtime import migration
from oslo_config import cfg
from oslo_upgradecheck import common_checks, upgradecheck
from oslo_upgradecheck.upgradecheck import Code, Result

from magnum_lite import clients, config, db, drivers, errors, keystore

#: Sections of magnum.conf with options that have no effect here, and why.
WITHOUT_EFFECT = {
    'trust': 'no trusts are made: the service acts with a role of its own on each project, see '
    '[identity], and a cluster as a user of its own, where trustee_domain_id names a domain',
}


class Checks(upgradecheck.UpgradeCommands):
    """The checks, in the order in which their results are printed."""

    def __init__(self, conf: cfg.ConfigOpts, database: db.Database, cloud: clients.Cloud) -> None:
        self._conf = conf
        self._db = database
        self._cloud = cloud

    def _check_schema(self) -> Result:
        scripts = script.ScriptDirectory(str(pathlib.Path(__file__).parent / 'alembic'))
        with self._db.engine.connect() as connection:
            current = migration.MigrationContext.configure(connection).get_current_heads()
        newest = tuple(scripts.get_heads())
        if current == newest:
            return Result(Code.SUCCESS)
        return Result(
            Code.FAILURE,
            f'The schema is at {", ".join(current) or "nothing"} and has to be at '
            f'{", ".join(newest)}. Run: magnum-lite db upgrade',
        )

    def _check_service_user(self) -> Result:
        try:
            roles, unknown = self._cloud.list_service_roles()
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

    def _check_unused_options(self) -> Result:
        sections: dict[str, dict[str, list[str]]] = {}
        for file in self._conf.config_file:
            cfg.ConfigParser(file, sections).parse()
        messages = []
        for name, reason in WITHOUT_EFFECT.items():
            known = {opt.name for opt in config.GROUPS.get(name, ())}
            unused = sorted(set(sections.get(name, ())) - known)
            if unused:
                messages.append(f'[{name}] {", ".join(unused)} without effect: {reason}')
        return Result(Code.WARNING, '. '.join(messages)) if messages else Result(Code.SUCCESS)

    def _check_loads(
        self, load: Callable[[cfg.ConfigOpts], object], error: type[Exception]
    ) -> Result:
        try:
            load(self._conf)
        except error as e:
            return Result(Code.FAILURE, str(e))
        return Result(Code.SUCCESS)

    _upgrade_checks = (
        ('Schema of the database', _check_schema),
        ('Key file', lambda self: self._check_loads(keystore.KeyStore, keystore.KeyStoreError)),
        ('Roles of the service user', _check_service_user),
        ('Options of Magnum without effect', _check_unused_options),
        ('Driver folders', lambda self: self._check_loads(drivers.load, errors.DriverError)),
        ('Policy file', lambda self: common_checks.check_policy_json(self, self._conf)),
    )


def run(conf: cfg.ConfigOpts, database: db.Database, cloud: clients.Cloud) -> int:
    """Print a table of the results, or JSON with --json, and return the worst: the exit status."""
    # The library reads --json from this global. Its own `main`, which sets it, parses a command
    # line of another form.
    upgradecheck.CONF = conf
    return int(Checks(conf, database, cloud).check())
