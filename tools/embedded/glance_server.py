"""Glance of the embedded cloud: `glance_server.py CONFIG_FILE PORT [prepare]`, run by `cloud` in
the cloud's venv.

`prepare` makes the database first, as `glance-manage db_sync` would in a process of its own.
"""

import sys

import sqlite_tuning
from glance.cmd.manage import DbCommands
from glance.common import wsgi_app
from wsgi_server import serve


def main() -> None:
    config_file, port, *prepare = sys.argv[1:]
    # Glance searches a folder of the environment for files with fixed names; this is one file.
    wsgi_app._get_config_files = lambda: [config_file]
    app = wsgi_app.init_app()
    if prepare:
        DbCommands().sync()
    sqlite_tuning.tune()
    serve(app, int(port))


if __name__ == '__main__':
    main()
