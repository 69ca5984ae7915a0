"""Who asks: one frozen record per request, made from what keystonemiddleware put into the WSGI
environment.

And what the log says it was about: oslo.log puts the context of a thread beside each of its lines
(use_json)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from oslo_context import context


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The caller of one request.

    `auth` is a keystoneauth plugin that acts with the caller's own token, for the look-ups of
    `api.preflight` while the request lasts; None without Keystone. It is never stored and never
    sent."""

    user_id: str
    project_id: str
    roles: tuple[str, ...]
    request_id: str = ''
    is_admin: bool = False
    oslo: LogContext = field(repr=False)
    auth: Any = field(default=None, repr=False)


class LogContext(context.RequestContext):
    """What the lines of one thread are about: the request, its caller, and the cluster and
    operation once known."""

    cluster_uuid: str | None = None
    operation_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a line in JSON bears under `context`."""
        return {
            **super().to_dict(),
            'cluster_uuid': self.cluster_uuid,
            'operation_id': self.operation_id,
        }


@contextlib.contextmanager
def working_on(
    cluster_uuid: str, operation_id: str | None, request_id: str | None
) -> Iterator[None]:
    """Have what this thread logs meanwhile bear these: the work of a conductor for what a request
    asked for."""
    made = LogContext(request_id=request_id or '-')
    made.cluster_uuid, made.operation_id = cluster_uuid, operation_id
    try:
        yield
    finally:
        LogContext(request_id='-')  # takes its place: there is no way to have none again
