"""The caller of a request, and the context that oslo.log writes beside each line of a thread.

`Caller` is made once per request by `api.app`, from what keystonemiddleware left in the WSGI
environment; everything that decides what a caller may do reads it. `LogContext` is made by the API
for a request and by conductors for the work on a cluster. Nothing here calls the cloud or the
database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from oslo_context import context


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The caller of one request.

    `auth` is a keystoneauth plugin that acts with the caller's own token. `api.preflight` looks
    things up with it while the request lasts. It is None without Keystone. It is never stored and
    never sent to another process."""

    user_id: str
    project_id: str
    roles: tuple[str, ...]
    request_id: str = ''
    is_admin: bool = False
    oslo: LogContext = field(repr=False)
    auth: Any = field(default=None, repr=False)


class LogContext(context.RequestContext):
    """What the log lines of a thread are about: request, caller, and, once known, the cluster and
    its operation."""

    cluster_uuid: str | None = None
    operation_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what a line in JSON (`use_json`) has under `context`."""
        return {
            **super().to_dict(),
            'cluster_uuid': self.cluster_uuid,
            'operation_id': self.operation_id,
        }


@contextlib.contextmanager
def tag_logs(cluster_uuid: str, operation_id: str | None, request_id: str | None) -> Iterator[None]:
    """Tag this thread's log lines with a cluster, its operation, and the request behind it."""
    tagged = LogContext(request_id=request_id or '-')
    tagged.cluster_uuid = cluster_uuid
    tagged.operation_id = operation_id
    try:
        yield
    finally:
        # oslo.context can replace a thread's context, but not clear it.
        LogContext(request_id='-')
