"""A service for which Heat, Keystone, the broker and the database can be broken, and for nobody
else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from functional.cloud import Forwarder, Sandbox, starting
from functional.proxy import Proxy
from functional.service import Service, own_database, own_vhost


@dataclass
class Broken:
    """A service, and what can be broken for it."""

    service: Service
    heat: Proxy
    keystone: Proxy
    broker: Forwarder
    database: Forwarder


def through(url: str) -> tuple[Forwarder, str]:
    """A forwarder to the server of a URL, and the URL that leads through it."""
    parsed = sa.make_url(url)
    made = Forwarder(parsed.host or '', parsed.port or 0)
    return made, parsed.set(host='127.0.0.1', port=made.port).render_as_string(hide_password=False)


@contextlib.contextmanager
def breakable(
    sandbox: Sandbox,
    running: list[Service],
    folder: Path,
    extra: Mapping[str, Mapping[str, Any]],
    *,
    slow_s: float = 15,
    retry_after_s: int = 5,
) -> Iterator[Broken]:
    """Start one API and one conductor, which reach everything through something that can break.

    `slow_s`: how long a slow answer takes; `retry_after_s`: what a 429 asks for.
    """
    with contextlib.ExitStack() as undo:

        def proxy(service_type: str) -> Proxy:
            found = sa.make_url(sandbox.admin.endpoint_for(service_type))
            made = Proxy(
                found.host or '', found.port or 80, slow_s=slow_s, retry_after_s=retry_after_s
            )
            undo.callback(made.close)
            return made

        heat, keystone = proxy('orchestration'), proxy('identity')
        region = undo.enter_context(
            sandbox.region({'orchestration': heat.url, 'identity': keystone.url})
        )
        database, database_url = through(undo.enter_context(own_database(folder)))
        broker, broker_url = through(undo.enter_context(own_vhost()))
        identity = {'auth_url': keystone.url, 'region_name': region}
        start = undo.enter_context(
            starting(sandbox, running, folder)
        )  # last: it stops while all is there
        service = start(
            database_url=database_url,
            transport_url=broker_url,
            extra={
                'drivers': {'path': Path(__file__).with_name('drivers')},
                'keystone_auth': identity,
                'keystone_authtoken': identity | {'interface': 'public'},
                **extra,
            },
        )
        yield Broken(service, heat, keystone, broker, database)
