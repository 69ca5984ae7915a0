"""Keystone of the embedded cloud: `keystone_server.py CONFIG_FILE PORT [prepare]`, run by `cloud`
in the cloud's venv.

`prepare` makes the database first, as `keystone-manage db_sync` and `bootstrap` would. Each of
these commands spends most of its time on importing Keystone, which this process does anyway. The
password of the first user, admin, is read from OS_BOOTSTRAP_PASSWORD."""

import os
import sys

import keystone.server
import sqlite_tuning
from keystone.cmd.bootstrap import Bootstrapper
from keystone.common.sql import upgrades
from keystone.server import backends
from keystone.server.flask import application, core
from wsgi_server import serve


def bootstrap() -> None:
    """Create the schema, the region, and the first domain, project, user and roles, with which all
    others are created."""
    upgrades.offline_sync_database_to_version()
    # This loads the backends, too.
    first = Bootstrapper()
    first.admin_username = first.project_name = first.admin_role_name = 'admin'
    first.admin_password = os.environ['OS_BOOTSTRAP_PASSWORD']
    first.service_name = 'keystone'
    first.region_id = 'RegionOne'
    first.immutable_roles = True
    first.bootstrap()


def main() -> None:
    config_file, port, *prepare = sys.argv[1:]
    del sys.argv[1:]  # Keystone reads the command line itself
    keystone.server.configure(config_files=[config_file])
    if prepare:
        bootstrap()
    else:
        backends.load_backends()
    sqlite_tuning.tune()
    serve(core.setup_app_middleware(application.application_factory('public')), int(port))


if __name__ == '__main__':
    main()
