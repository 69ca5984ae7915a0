"""Whether this process lives, and whether what it needs is there: `/healthcheck` and
`/healthcheck/ready`.

The first is oslo.middleware's, for load balancers: it asks nobody, and says 503 only while the
operator's file is there. The second says what does not answer of database, broker, Keystone and
Heat, for those who watch. Both are outside of the token check, so errors, which have addresses and
names of users in them, go into the log."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from typing import Any

import oslo_middleware
import webob
from oslo_config import cfg

from magnum_lite import config, db, outage, rpc
from magnum_lite.api.request import Services

#: Seconds that all checks of one look may take; they are made beside each other.
TIMEOUT_S = 5
#: Seconds for which a look is good.
CACHE_S = 2
#: A cluster that has waited so many seconds for a conductor tells that there is none, or that it
#: hangs.
OVERDUE_S = 300
LIVE, READY = '/healthcheck', '/healthcheck/ready'


class Readiness:
    """Looks at everything that is needed. Safe for threads; its own start with the first look,
    after a fork."""

    def __init__(
        self,
        checks: Mapping[str, Callable[[], Any]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`checks` are functions by the name of what they ask; one that raises, or takes too long,
        says it is down."""
        self._checks, self._clock = checks, clock
        self._away = {
            name: outage.Outage(f'The look of {READY} at the {name}', 'It is told to be down')
            for name in checks
        }
        self._pool = futures.ThreadPoolExecutor(len(checks), thread_name_prefix='ready')
        self._running: dict[str, futures.Future[Any]] = {}
        self._lock = threading.Lock()
        self._at = float('-inf')
        self._report: dict[str, Any] = {}

    def look(self) -> dict[str, Any]:
        """What is there and what is not. Takes `TIMEOUT_S` seconds at most, none if somebody else
        looks right now."""
        if not self._lock.acquire(blocking=not self._report):
            return self._report
        try:
            if self._clock() - self._at > CACHE_S:
                self._report = self._ask()
                self._at = self._clock()
            return self._report
        finally:
            self._lock.release()

    def _ask(self) -> dict[str, Any]:
        # One that hangs is not asked a second time, so that it costs one thread and not one for
        # each look.
        self._running = {
            name: future for name, future in self._running.items() if not future.done()
        }
        for name in self._checks.keys() - self._running.keys():
            self._running[name] = self._pool.submit(self._checks[name])
        futures.wait(self._running.values(), TIMEOUT_S)
        said = {name: self._outcome(name) for name in self._checks}
        down = [name for name, text in said.items() if text != 'ok']
        due_s = self._running['database'].result() if said.get('database') == 'ok' else None
        if due_s is not None and due_s > OVERDUE_S:
            said['conductor'] = f'a cluster has waited for {due_s:.0f} s'
            down.append('conductor')
        return {'ready': not down, 'down': down, 'checks': said, 'oldest_due_s': due_s}

    def _outcome(self, name: str) -> str:
        future = self._running[name]
        if not future.done():
            self._away[name].failed(f'no answer within {TIMEOUT_S} s')
            return f'no answer within {TIMEOUT_S} s'
        error = future.exception()
        if error is not None:
            self._away[name].failed(str(error))
            return 'it fails, and the log says why'
        self._away[name].works()
        return 'ok'


def checks(services: Services) -> dict[str, Callable[[], Any]]:
    """How each thing outside is asked. `database` returns the age of the oldest due row in seconds,
    or 0."""

    @functools.cache
    def database() -> db.Database:
        # A pool of its own: a request that waits for the database must not make it look as if that
        # were away.
        return db.Database(services.conf, connection=db.add_timeouts(services.db.url, TIMEOUT_S))

    return {
        'database': lambda: round(max(0.0, -min(db.due_in_s(database()))), 1),
        'broker': lambda: rpc.check(services.conf, timeout_s=TIMEOUT_S),
        'keystone': lambda: services.cloud.check_identity(timeout_s=TIMEOUT_S),
        'heat': lambda: services.cloud.check_orchestration(timeout_s=TIMEOUT_S),
    }


class Healthcheck:
    """The two documents in front of an application."""

    def __init__(
        self, app: Callable[..., Iterable[bytes]], conf: cfg.ConfigOpts, readiness: Readiness
    ) -> None:
        self._app, self._readiness = app, readiness
        config.use_healthcheck_file()
        self._live = oslo_middleware.Healthcheck(None, conf)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer, or leave it to the application."""
        path = environ.get('PATH_INFO', '').removesuffix('/')
        if path not in (LIVE, READY):
            return self._app(environ, start_response)
        answer: Any
        if environ['REQUEST_METHOD'] not in ('GET', 'HEAD'):
            answer = webob.Response(status=405, headers={'Allow': 'GET, HEAD'})
        elif path == LIVE:  # older releases of the library compare the whole path
            answer, environ = self._live, environ | {'SCRIPT_NAME': '', 'PATH_INFO': LIVE}
        else:
            report = self._readiness.look()
            answer = webob.Response(
                status=200 if report['ready'] else 503, json_body=report, cache_control='no-store'
            )
        result: Iterable[bytes] = answer(environ, start_response)
        return result
