"""`Route`: one line of the table in `routes`, which `app` serves and `openapi` describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from magnum_lite.api.request import Request


@dataclass(frozen=True)
class Route:
    """One operation of the API.

    `rule`: its policy rule; None if it needs no token. `since`: the first minor version that has
    it. `app` obeys these, and `tagged` and `keyed`. The rest is for the OpenAPI document.

    `tagged`: a GET has an `ETag`, a change takes `If-Match`. `keyed`: whether a POST takes an
    `Idempotency-Key`, for which its handler gives `changes.make_receipt` to `db`; False where the
    answer holds a secret, which must not be stored. `takes`: the schema of the body; a POST or
    PATCH without one has `schema.NO_BODY`. `gives`: the schema of the answer, None if that has no
    body. `media`: the media type of the answer."""

    method: str
    path: str
    handler: Callable[[Request], Any]
    rule: str | None
    status: int = 200
    query: tuple[str, ...] = ()
    since: int = 1
    takes: Mapping[str, Any] | None = None
    gives: Mapping[str, Any] | None = None
    tagged: bool = False
    keyed: bool | None = None
    media: str = 'application/json'
