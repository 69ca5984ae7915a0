"""What a handler is given, and what it gives back."""

from __future__ import annotations

import random
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oslo_config import cfg
from oslo_policy import policy
from oslo_utils import strutils, uuidutils

from magnum_lite import clients, context, db, drivers, errors, models, rpc, schema

#: The query parameters of every listing.
PAGING = ('limit', 'marker', 'sort_key', 'sort_dir', 'all_tenants')

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

    def listing(self, model: type[models.Cluster] | type[models.ClusterTemplate]) -> tuple[db.Scope, db.Page]:
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
        given = self.query.get('all_tenants')
        if given is None:
            return self.caller.is_admin
        try:
            wanted = strutils.bool_from_string(given, strict=True)
        except ValueError:
            raise errors.Invalid(f'all_tenants must be true or false, not {given!r:.80}.') from None
        if wanted and not self.caller.is_admin:
            raise errors.Forbidden('Policy does not allow to list what belongs to other projects.')
        return wanted

    def collection(self, resource: schema.Resource, plural: str, rows: Sequence[Any], page: db.Page, *,
                   brief: bool, detail: bool = False) -> dict[str, Any]:
        """The body of a listing, with `next` when the page is full.

        The fields are looked up once for all rows: a page of a thousand is the common case of some callers.
        """
        fields = resource.shown(self.version, brief=brief)
        items = [{f.name: f.show(row) for f in fields} | {'links': self.links(plural, row.uuid)} for row in rows]
        body: dict[str, Any] = {plural: items}
        if rows and len(rows) == page.limit:
            query = {'sort_key': page.sort_key, 'sort_dir': 'desc' if page.descending else 'asc',
                     'limit': str(page.limit), 'marker': rows[-1].uuid}
            if 'all_tenants' in self.query:
                query['all_tenants'] = self.query['all_tenants']
            path = f'{plural}/detail' if detail else plural
            body['next'] = f'{self.app_url}/v1/{path}?{urllib.parse.urlencode(query)}'
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
