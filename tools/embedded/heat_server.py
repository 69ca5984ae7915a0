"""Heat of the embedded cloud, engine and API in one process: `heat_server.py CONFIG_FILE PORT
[prepare]`.

Both are in one process, so that they can exchange messages by `transport_url = fake://`, without
a broker. Run by `cloud` in the cloud's venv. `prepare` makes the database first, as
`heat-manage db_sync` would."""

import sys

from oslo_service import backend

# This must precede the first import of oslo_service.service, which would choose eventlet.
backend.init_backend(backend.BackendType.THREADING)

import sqlite_tuning  # noqa: E402
from heat.common import config, messaging  # noqa: E402
from heat.db import migration  # noqa: E402
from heat.engine.service import EngineService  # noqa: E402
from heat.rpc.api import ENGINE_TOPIC  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_log import log  # noqa: E402
from wsgi_server import serve  # noqa: E402


def main() -> None:
    config_file, port, *prepare = sys.argv[1:]
    log.register_options(cfg.CONF)
    # `prog` chooses the pipeline in api-paste.ini.
    cfg.CONF(['--config-file', config_file], project='heat', prog='heat-api')
    log.setup(cfg.CONF, 'heat')
    config.set_config_defaults()
    if prepare:
        migration.db_sync()
    sqlite_tuning.tune()
    messaging.setup()
    engine = EngineService(cfg.CONF.host, ENGINE_TOPIC)
    engine.start()
    serve(config.load_paste_app(), int(port), on_stop=engine.stop)


if __name__ == '__main__':
    main()
