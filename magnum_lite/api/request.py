"""What a handler is given, and what it gives back."""

from __future__ import annotations

import random
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oslo_config import cfg
from oslo_log import log
from oslo_policy import policy
from oslo_utils import strutils, uuidutils

from magnum_lite import clients, context, db, drivers, errors, models, notify, rpc, schema

LOG = log.getLogger(__name__)

#: The query parameters of what belongs to a cluster, and those of every other listing.
PAGES = ('limit', 'marker', 'sort_key', 'sort_dir')
PAGING = (*PAGES, 'all_tenants')

GREEK = ('alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta', 'eta', 'theta', 'iota', 'kappa', 'lambda', 'mu', 'nu',
         'xi', 'omicron', 'pi', 'rho', 'sigma', 'tau', 'upsilon', 'phi', 'chi', 'psi', 'omega')


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


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, after its version, its caller and its body were checked.

    `path` holds the variable parts of the address by name, `query` its parameters, `version` the minor number.
    """

    services: Services
    caller: context.Caller
    version: int
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    app_url: str

    @property
    def conf(self) -> cfg.ConfigOpts:
        """The configuration."""
        return self.services.conf

    @property
    def scope(self) -> db.Scope:
        """Whose rows exist for the caller."""
        return db.Scope(self.caller.project_id, all_projects=self.caller.is_admin)

    def authorize(self, rule: str) -> None:
        """Raise Forbidden unless the policy allows `rule` to the caller."""
        if not self.services.enforcer.authorize(rule, {}, self.caller.oslo):
            raise errors.Forbidden(f'Policy does not allow {rule} to be performed. Your roles on this project are: '
                                   f'{", ".join(self.caller.roles) or "none"}.')

    def links(self, collection: str, uuid: str) -> list[dict[str, str]]:
        """The two addresses of a resource."""
        return [{'href': f'{self.app_url}/v1/{collection}/{uuid}', 'rel': 'self'},
                {'href': f'{self.app_url}/{collection}/{uuid}', 'rel': 'bookmark'}]

    def flag(self, name: str, default: bool = False) -> bool:
        """A query parameter that is true or false. Raises Invalid for anything else."""
        given = self.query.get(name)
        try:
            return default if given is None else strutils.bool_from_string(given, strict=True)
        except ValueError:
            raise errors.Invalid(f'{name} must be true or false, not {given!r:.80}.') from None

    def operation(self, kind: str) -> models.Operation:
        """A record of what the caller asks for, yet to be completed and stored by `db`."""
        return models.Operation(uuid=uuidutils.generate_uuid(), user_id=self.caller.user_id,
                                request_id=self.caller.request_id, kind=kind)

    def location(self, operation: models.Operation) -> dict[str, str]:
        """The header that leads to an operation that was stored."""
        return {'Location': f'{self.app_url}/v1/operations/{operation.uuid}'}

    def ask(self, ident: str, kind: str, change: Callable[[models.Cluster], None]) -> Answer:
        """Have `change` made to a cluster under its lock, as `db.request_update` says, and a conductor told."""
        operation = self.operation(kind)
        cluster = db.request_update(self.services.db, self.scope, ident, operation, change)
        return Answer({'uuid': cluster.uuid}, self.asked(cluster, operation))

    def asked(self, cluster: models.Cluster, operation: models.Operation) -> dict[str, str]:
        """Have everybody told of an operation that was stored. Returns the header that leads to it."""
        self.caller.oslo.cluster_uuid, self.caller.oslo.operation_id = cluster.uuid, operation.uuid
        LOG.info('Cluster %s: %s was asked for', cluster.uuid, operation.kind)
        self.services.nudger.nudge(cluster.uuid)
        self.services.notifier.cluster(
            cluster, operation.kind, notify.PENDING, user_id=operation.user_id, project_id=operation.project_id,
            request_id=operation.request_id or '')
        return self.location(operation)

    def listing(self, model: type[db.Listed]) -> tuple[db.Scope, db.Page]:
        """What the query asks of a listing. Raises Invalid, and Forbidden for `all_tenants` without being admin."""
        keys, sort_key = db.sort_keys(model), self.query.get('sort_key', 'id')
        direction, marker = self.query.get('sort_dir', 'asc'), self.query.get('marker')
        if sort_key not in keys:
            raise errors.Invalid(f'The sort_key {sort_key!r:.80} is invalid. It must be one of: {", ".join(keys)}.')
        if direction not in ('asc', 'desc'):
            raise errors.Invalid(f'Invalid sort direction: {direction!r:.80}. It must be asc or desc.')
        if marker is not None and not uuidutils.is_uuid_like(marker):
            raise errors.Invalid(f'Expected a uuid as marker but received {marker!r:.80}.')
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
        wanted = self.flag('all_tenants', self.caller.is_admin)
        if wanted and not self.caller.is_admin:
            raise errors.Forbidden('Policy does not allow to list what belongs to other projects.')
        return wanted

    def collection(self, resource: schema.Resource, plural: str, rows: Sequence[Any], page: db.Page, *,
                   brief: bool, path: str = '', items: str = '') -> dict[str, Any]:
        """The body of a listing, with `next` when the page is full.

        `path` is the address of the listing, `items` that above its items, each without the beginning that all have
        and where it differs from `plural`. The fields are looked up once for all rows: a page of a thousand is the
        common case of some callers.
        """
        fields = resource.shown(self.version, brief=brief)
        body: dict[str, Any] = {plural: [
            {f.name: f.show(row) for f in fields} | {'links': self.links(items or plural, row.uuid)} for row in rows]}
        if rows and len(rows) == page.limit:
            query = {'sort_key': page.sort_key, 'sort_dir': 'desc' if page.descending else 'asc',
                     'limit': str(page.limit), 'marker': rows[-1].uuid}
            query |= {name: self.query[name] for name in ('all_tenants', 'role') if name in self.query}
            body['next'] = f'{self.app_url}/v1/{path or plural}?{urllib.parse.urlencode(query)}'
        return body


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
