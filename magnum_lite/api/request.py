"""What a handler of the API is given and what it returns: `Services`, `Request`, `Answer`.

`app` makes one `Services` for the process and one `Request` for each HTTP request. Handlers read
both and write neither. Nothing here queries the database or the cloud: `changes` requests changes
of clusters, `paging` builds listings."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oslo_config import cfg
from oslo_utils import strutils, uuidutils

from magnum_lite import clients, context, db, drivers, errors, models, notify, rpc
from magnum_lite.api import policies

#: For made-up names.
GREEK = (
    'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma '
    'tau upsilon phi chi psi omega'
).split()


@dataclass(frozen=True)
class Documents:
    """The description of this API, which `docs.build` makes once: OpenAPI, and the page of /docs.

    `page_policy` is the Content-Security-Policy of the page."""

    openapi: Mapping[str, Any] = field(default_factory=dict)
    page: str = ''
    page_policy: str = ''


@dataclass(frozen=True)
class Services:
    """What the handlers act on. One per process; `app.make_app` adds the documents."""

    conf: cfg.ConfigOpts
    db: db.Database
    cloud: clients.Cloud
    drivers: drivers.Drivers
    nudger: rpc.Nudger
    notifier: notify.Notifier
    enforcer: policies.Enforcer
    signer: rpc.Signer
    documents: Documents = Documents()


@dataclass(frozen=True)
class Key:
    """An `Idempotency-Key` and its request, each as a hash (see `idempotency`).

    `digest` is of the key with its user and project. `fingerprint` is of the request."""

    digest: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, after its version, its caller and its body were checked.

    `path` holds the variable parts of the address by name, `query` the query parameters, `version`
    the minor version, `rule` the policy rule that the caller has passed. `if_match` holds the tags
    of the `If-Match` header and is None without that header."""

    services: Services
    caller: context.Caller
    version: int
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    app_url: str
    rule: str | None = None
    if_match: tuple[str, ...] | None = None
    key: Key | None = None

    @property
    def scope(self) -> db.Scope:
        """Whose rows exist for the caller. The policy says how far an admin reaches."""
        all_projects = self.caller.is_admin
        rule = policies.ALL_PROJECTS.get(self.rule or '')
        if rule is not None:
            all_projects = all_projects and self.is_allowed(rule)
        return db.Scope(self.caller.project_id, all_projects=all_projects)

    def is_allowed(self, rule: str) -> bool:
        """Whether the policy allows `rule` to the caller."""
        return bool(self.services.enforcer.authorize(rule, {}, self.caller.oslo))

    def authorize(self, rule: str) -> None:
        """Raise Forbidden unless the policy allows `rule` to the caller."""
        if not self.is_allowed(rule):
            raise errors.Forbidden(
                f'Policy does not allow {rule} to be performed. Your roles on this project are: '
                f'{", ".join(self.caller.roles) or "none"}.'
            )

    def build_links(self, collection: str, uuid: str) -> list[dict[str, str]]:
        """The two links of a resource, with and without the API version in the address."""
        return [
            {'href': f'{self.app_url}/v1/{collection}/{uuid}', 'rel': 'self'},
            {'href': f'{self.app_url}/{collection}/{uuid}', 'rel': 'bookmark'},
        ]

    def read_flag(self, name: str, default: bool = False) -> bool:
        """The value of a boolean query parameter. Raises Invalid for anything else."""
        text = self.query.get(name)
        if text is None:
            return default
        try:
            return strutils.bool_from_string(text, strict=True)
        except ValueError:
            raise errors.Invalid(f'{name} must be true or false, not {text!r:.80}.') from None

    def new_operation(self, kind: str) -> models.Operation:
        """A record of this request. `db` completes it with the facts of the row and stores it."""
        return models.Operation(
            uuid=uuidutils.generate_uuid(),
            user_id=self.caller.user_id,
            request_id=self.caller.request_id,
            kind=kind,
        )

    def locate(self, operation: models.Operation) -> dict[str, str]:
        """The `Location` header that leads to an operation."""
        return {'Location': f'{self.app_url}/v1/operations/{operation.uuid}'}


@dataclass(frozen=True)
class Answer:
    """What a handler returns that sets headers: body and headers. Else it returns the body alone.

    A body of None is an empty one. A body of bytes is sent as it is."""

    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


def raise_problems(problems: list[str]) -> None:
    """Raise Invalid with all problems, if there are any."""
    if problems:
        raise errors.Invalid(' '.join(p if p.endswith('.') else f'{p}.' for p in problems))


def build_warning(sentences: list[str]) -> dict[str, str]:
    """A `Warning` header that tells what was not checked (RFC 7234, 5.5: code 199, for people)."""
    if not sentences:
        return {}
    return {'Warning': ', '.join(f'199 magnum-lite "{s}"' for s in sentences)}


def make_name(kind: str) -> str:
    """A random name for a resource that was not given one, such as `gamma-17-cluster`."""
    return f'{random.choice(GREEK)}-{random.randint(1, 24)}-{kind}'
