"""What a handler is given, and what it gives back."""

from __future__ import annotations

import datetime
import random
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from oslo_config import cfg
from oslo_log import log
from oslo_policy import policy
from oslo_utils import strutils, uuidutils

from magnum_lite import clients, context, db, drivers, errors, models, notify, rpc, schema
from magnum_lite.api import etags, policies

if TYPE_CHECKING:
    from magnum_lite.api import idempotency

LOG = log.getLogger(__name__)

T = TypeVar('T')
#: How long the answer to a request with an `Idempotency-Key` is given again.
KEPT = datetime.timedelta(hours=24)

#: The query parameters of what belongs to a cluster, and those of every other listing.
PAGES = ('limit', 'marker', 'sort_key', 'sort_dir')
PAGING = (*PAGES, 'all_tenants')

GREEK = (
    'alpha',
    'beta',
    'gamma',
    'delta',
    'epsilon',
    'zeta',
    'eta',
    'theta',
    'iota',
    'kappa',
    'lambda',
    'mu',
    'nu',
    'xi',
    'omicron',
    'pi',
    'rho',
    'sigma',
    'tau',
    'upsilon',
    'phi',
    'chi',
    'psi',
    'omega',
)


@dataclass(frozen=True)
class Services:
    """What the handlers act on. One per process."""

    conf: cfg.ConfigOpts
    db: db.Database
    cloud: clients.Cloud
    drivers: Mapping[str, drivers.Driver]
    nudger: rpc.Nudger
    notifier: notify.Notifier
    enforcer: policy.Enforcer
    signer: rpc.Signer


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, after its version, its caller and its body were checked.

    `path` holds the variable parts of the address by name, `query` its parameters, `version` the
    minor number, `rule` what the caller was found to be allowed. `if_match` are the tags of the
    header of that name, None without it; `key` is what an `Idempotency-Key` stands for."""

    services: Services
    caller: context.Caller
    version: int
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    app_url: str
    rule: str | None = None
    if_match: tuple[str, ...] | None = None
    key: idempotency.Key | None = None

    @property
    def conf(self) -> cfg.ConfigOpts:
        """The configuration."""
        return self.services.conf

    @property
    def scope(self) -> db.Scope:
        """Whose rows exist for the caller: an admin's reach to other projects as far as the policy
        says."""
        beyond = policies.ALL_PROJECTS.get(self.rule or '')
        return db.Scope(
            self.caller.project_id,
            all_projects=self.caller.is_admin
            and (beyond is None or self.services.enforcer.authorize(beyond, {}, self.caller.oslo)),
        )

    def allows(self, rule: str) -> bool:
        """Whether the policy allows `rule` to the caller."""
        return bool(self.services.enforcer.authorize(rule, {}, self.caller.oslo))

    def authorize(self, rule: str) -> None:
        """Raise Forbidden unless the policy allows `rule` to the caller."""
        if not self.allows(rule):
            raise errors.Forbidden(
                f'Policy does not allow {rule} to be performed. Your roles on this project are: '
                f'{", ".join(self.caller.roles) or "none"}.'
            )

    def links(self, collection: str, uuid: str) -> list[dict[str, str]]:
        """The two addresses of a resource."""
        return [
            {'href': f'{self.app_url}/v1/{collection}/{uuid}', 'rel': 'self'},
            {'href': f'{self.app_url}/{collection}/{uuid}', 'rel': 'bookmark'},
        ]

    def flag(self, name: str, default: bool = False) -> bool:
        """A query parameter that is true or false. Raises Invalid for anything else."""
        given = self.query.get(name)
        try:
            return default if given is None else strutils.bool_from_string(given, strict=True)
        except ValueError:
            raise errors.Invalid(f'{name} must be true or false, not {given!r:.80}.') from None

    def operation(self, kind: str) -> models.Operation:
        """A record of what the caller asks for, yet to be completed and stored by `db`."""
        return models.Operation(
            uuid=uuidutils.generate_uuid(),
            user_id=self.caller.user_id,
            request_id=self.caller.request_id,
            kind=kind,
        )

    def location(self, operation: models.Operation) -> dict[str, str]:
        """The header that leads to an operation that was stored."""
        return {'Location': f'{self.app_url}/v1/operations/{operation.uuid}'}

    def ask(
        self,
        ident: str,
        kind: str,
        change: Callable[[models.Cluster], None],
        *,
        answer: Callable[[models.Cluster], Answer] | None = None,
        tag: etags.Tag = etags.of_cluster,
    ) -> Answer:
        """Have `change` made to a cluster under its lock, as `db.request_update` says, and a
        conductor told.

        `answer` makes the answer from the changed cluster, default its uuid; the operation's
        address is added. `tag` gives the tag that `If-Match` is held against."""
        operation = self.operation(kind)

        def answered(cluster: models.Cluster) -> Answer:
            made = answer(cluster) if answer else Answer({'uuid': cluster.uuid})
            return Answer(made.body, {**made.headers, **self.location(operation)})

        cluster = db.request_update(
            self.services.db,
            self.scope,
            ident,
            operation,
            change,
            guard=self.guard(tag),
            receipt=self.receipt(answered),
        )
        self.asked(cluster, operation)
        return answered(cluster)

    def guard(self, tag: etags.Tag) -> db.Guard:
        """What holds `If-Match` against the tag of a cluster, or of something in it; None without
        that header."""
        wanted = self.if_match
        return None if wanted is None else lambda cluster: etags.check(wanted, tag(cluster))

    def check(self, tag: str) -> None:
        """Hold `If-Match` against the tag of what is not going to be written. Raises
        PreconditionFailed."""
        if self.if_match is not None:
            etags.check(self.if_match, tag)

    def receipt(self, answer: Callable[[T], Answer]) -> db.MakeReceipt[T]:
        """What stores the answer in the transaction that does what is asked for; None without
        `Idempotency-Key`."""
        key = self.key
        if key is None:
            return None

        def make(written: T) -> models.Receipt:
            made = answer(written)
            return models.Receipt(
                digest=key.digest,
                fingerprint=key.fingerprint,
                headers=dict(made.headers),
                body=made.body,
                expires_at=models.utcnow() + KEPT,
            )

        return make

    def asked(self, cluster: models.Cluster, operation: models.Operation) -> dict[str, str]:
        """Have everybody told of an operation that was stored. Returns the header that leads to
        it."""
        self.caller.oslo.cluster_uuid, self.caller.oslo.operation_id = cluster.uuid, operation.uuid
        LOG.info('Cluster %s: %s was asked for', cluster.uuid, operation.kind)
        self.services.nudger.nudge(cluster.uuid)
        self.services.notifier.cluster(
            cluster,
            operation.kind,
            notify.PENDING,
            user_id=operation.user_id,
            project_id=operation.project_id,
            request_id=operation.request_id or '',
        )
        return self.location(operation)

    def listing(self, model: type[db.Listed]) -> tuple[db.Scope, db.Page]:
        """What the query asks of a listing. Raises Invalid, and Forbidden for `all_tenants` without
        being admin."""
        keys, sort_key = db.sort_keys(model), self.query.get('sort_key', 'id')
        direction, marker = self.query.get('sort_dir', 'asc'), self.query.get('marker')
        if sort_key not in keys:
            raise errors.Invalid(
                f'The sort_key {sort_key!r:.80} is invalid. It must be one of: {", ".join(keys)}.'
            )
        if direction not in ('asc', 'desc'):
            raise errors.Invalid(
                f'Invalid sort direction: {direction!r:.80}. It must be asc or desc.'
            )
        if marker is not None and not (
            marker.isascii() and marker.isdigit() and len(marker) < 19
            if model is models.Quota
            else uuidutils.is_uuid_like(marker)
        ):
            raise errors.Invalid(
                f'Expected {"an id" if model is models.Quota else "a uuid"} as marker but received '
                f'{marker!r:.80}.'
            )
        page = db.Page(self._limit(), marker, sort_key, direction == 'desc')
        return db.Scope(self.caller.project_id, all_projects=self._all_projects()), page

    def _limit(self) -> int:
        given, most = self.query.get('limit'), int(self.conf.api.max_limit)
        if given is None:
            return most
        digits = given.lstrip('0')
        if not digits.isascii() or not digits.isdigit():
            raise errors.Invalid(f'The limit must be a positive number, not {given!r:.80}.')
        return min(int(digits[:18]), most)

    def _all_projects(self) -> bool:
        wanted = self.flag('all_tenants', self.scope.all_projects)
        if wanted and not self.scope.all_projects:
            raise errors.Forbidden('Policy does not allow to list what belongs to other projects.')
        return wanted

    def collection(
        self,
        resource: schema.Resource,
        plural: str,
        rows: Sequence[Any],
        page: db.Page,
        *,
        brief: bool,
        path: str = '',
        items: str = '',
    ) -> dict[str, Any]:
        """The body of a listing, with `next` when the page is full.

        `path` is the address of the listing, `items` that above its items, each without the
        beginning that all have and where it differs from `plural`. The fields are looked up once
        for all rows: a page of a thousand is the common case of some callers."""
        fields = resource.shown(self.version, brief=brief)
        body: dict[str, Any] = {
            plural: [
                {f.name: f.show(row) for f in fields}
                | {'links': self.links(items or plural, row.uuid)}
                for row in rows
            ]
        }
        if rows and len(rows) == page.limit:
            body['next'] = self.next(path or plural, page, rows[-1].uuid)
        return body

    def next(self, path: str, page: db.Page, marker: str) -> str:
        """The address of the page of this listing that begins after the row `marker`."""
        query = {
            'sort_key': page.sort_key,
            'sort_dir': 'desc' if page.descending else 'asc',
            'limit': str(page.limit),
            'marker': marker,
        }
        query |= {name: self.query[name] for name in ('all_tenants', 'role') if name in self.query}
        return f'{self.app_url}/v1/{path}?{urllib.parse.urlencode(query)}'


@dataclass(frozen=True)
class Answer:
    """What a handler returns when it says more than a body."""

    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


def refuse(problems: list[str]) -> None:
    """Raise Invalid with all problems, if there are any."""
    if problems:
        raise errors.Invalid(' '.join(p if p.endswith('.') else f'{p}.' for p in problems))


def warnings(sentences: list[str]) -> dict[str, str]:
    """A header that tells what was not checked (RFC 7234, 5.5: code 199, for a person to read)."""
    return {'Warning': ', '.join(f'199 magnum-lite "{s}"' for s in sentences)} if sentences else {}


def random_name(kind: str) -> str:
    """A name for what was not given one, such as `gamma-17-cluster`."""
    return f'{random.choice(GREEK)}-{random.randint(1, 24)}-{kind}'
