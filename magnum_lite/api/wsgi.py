"""The entry point for uWSGI and gunicorn: `magnum_lite.api.wsgi:application`.

The application is made from the configuration files when this module is imported. The environment
variable MAGNUM_LITE_CONFIG names a file in another place than /etc/magnum-lite/magnum-lite.conf. A
faulty configuration ends the process with one line. A server may fork after the import, so threads
and connections are made when they are first needed."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from oslo_config import cfg

from magnum_lite import config, errors
from magnum_lite.api import app


def _make_application() -> Callable[..., Iterable[bytes]]:
    file = os.environ.get('MAGNUM_LITE_CONFIG')
    try:
        conf = config.load([], default_files=[file] if file else None)
        application: Any = app.make_app(app.make_services(conf))
    except (errors.DriverError, cfg.Error) as e:
        sys.exit(f'magnum-lite: {e}')
    config.report_on_signal(conf)
    # A fork does not copy threads, and one of them waits for the file that requests a report.
    os.register_at_fork(after_in_child=functools.partial(config.report_on_signal, conf))
    return application


application = _make_application()
