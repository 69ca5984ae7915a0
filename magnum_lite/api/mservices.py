"""Handler of /v1/mservices: the conductors, as their own reports in the database say.

Called by `app` through the route table."""

from __future__ import annotations

from typing import Any

from magnum_lite import db
from magnum_lite.api.request import Request
from magnum_lite.api.resources import SERVICE


def index(req: Request) -> dict[str, Any]:
    """List all conductors that ever reported; there are no pages."""
    rows = db.list_services(req.services.db, req.services.conf.service_down_time)
    return {'mservices': [SERVICE.show(row, req.version) for row in rows]}
