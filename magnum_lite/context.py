"""Who asks: one frozen record per request, made from what keystonemiddleware put into the WSGI environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from oslo_context import context


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The caller of one request.

    `auth` is a keystoneauth plugin that acts with the caller's own token, for the look-ups of `api.preflight` while
    the request lasts; None without Keystone. It is never stored and never sent.
    """

    user_id: str
    project_id: str
    roles: tuple[str, ...]
    request_id: str = ''
    is_admin: bool = False
    oslo: context.RequestContext = field(repr=False)
    auth: Any = field(default=None, repr=False)
