"""For uWSGI and gunicorn: `magnum_lite.api.wsgi:application`, made from the configuration files when first imported.

MAGNUM_LITE_CONFIG names a file in another place than /etc/magnum-lite/magnum-lite.conf.
"""

from __future__ import annotations

import os

from magnum_lite import config
from magnum_lite.api import app

_FILE = os.environ.get('MAGNUM_LITE_CONFIG')
application = app.make_app(app.make_services(config.load([], default_files=[_FILE] if _FILE else None)))
