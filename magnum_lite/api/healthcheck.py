"""`/healthcheck` and `/healthcheck/ready`: whether this process lives, and what it needs answers.

`app.make_app` puts `Healthcheck` in front of the application, outside of the token check. The first
address is oslo.middleware's, for load balancers: it queries nothing, and answers 503 only while the
operator's file exists. The second is for monitoring: it reports which of database, broker, Keystone
and Heat does not answer, and a policy file that cannot be used. Callers have no token, so errors,
which contain addresses and user names, go into the log and not into the answer."""

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

#: Seconds that all checks of one report may take. They run in parallel.
TIMEOUT_S = 5
#: Seconds for which a report is reused.
CACHE_S = 2
#: Seconds for which a due cluster may wait. Longer means that no conductor runs, or that all hang.
OVERDUE_S = 300
LIVE = '/healthcheck'
READY = '/healthcheck/ready'


class Readiness:
    """Checks all dependencies. Thread-safe. Its own threads start with the first report, so after
    a server has forked."""

    def __init__(
        self,
        checks: Mapping[str, Callable[[], Any]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`checks` are functions by the name of a dependency, which is down if its function raises
        or takes too long."""
        self._checks = checks
        self._clock = clock
        self._outages = {
            name: outage.Outage(f'The look of {READY} at the {name}', 'It is told to be down')
            for name in checks
        }
        self._pool = futures.ThreadPoolExecutor(len(checks), thread_name_prefix='ready')
        self._running: dict[str, futures.Future[Any]] = {}
        self._lock = threading.Lock()
        self._reported_at = float('-inf')
        self._report: dict[str, Any] = {}

    def get_report(self) -> dict[str, Any]:
        """The body of the answer. Takes `TIMEOUT_S` seconds at most.

        While another thread makes a new report, the last one is returned at once."""
        if not self._lock.acquire(blocking=not self._report):
            return self._report
        try:
            if self._clock() - self._reported_at > CACHE_S:
                self._report = self._make_report()
                self._reported_at = self._clock()
            return self._report
        finally:
            self._lock.release()

    def _make_report(self) -> dict[str, Any]:
        # A check that still hangs is not started again, so it costs one thread and not one for each
        # report.
        self._running = {
            name: future for name, future in self._running.items() if not future.done()
        }
        for name in self._checks.keys() - self._running.keys():
            self._running[name] = self._pool.submit(self._checks[name])
        futures.wait(self._running.values(), TIMEOUT_S)
        outcomes = {name: self._read_outcome(name) for name in self._checks}
        down = [name for name, text in outcomes.items() if text != 'ok']
        due_s = None
        if outcomes.get('database') == 'ok':
            due_s = self._running['database'].result()
        if due_s is not None and due_s > OVERDUE_S:
            outcomes['conductor'] = f'a cluster has waited for {due_s:.0f} s'
            down.append('conductor')
        return {'ready': not down, 'down': down, 'checks': outcomes, 'oldest_due_s': due_s}

    def _read_outcome(self, name: str) -> str:
        """`ok`, or what is wrong with a dependency. Logs when that changes."""
        future = self._running[name]
        if not future.done():
            self._outages[name].record_failure(f'no answer within {TIMEOUT_S} s')
            return f'no answer within {TIMEOUT_S} s'
        error = future.exception()
        if error is not None:
            self._outages[name].record_failure(str(error))
            return 'it fails, and the log says why'
        self._outages[name].record_success()
        return 'ok'


def make_checks(services: Services) -> dict[str, Callable[[], Any]]:
    """The checks for `Readiness`. `database` returns the age of the oldest due row in seconds, or
    0."""

    @functools.cache
    def connect() -> db.Database:
        # A pool of its own, because the pool of the requests may be used up while the database is
        # fine.
        return db.Database(services.conf, connection=db.add_timeouts(services.db.url, TIMEOUT_S))

    return {
        'database': lambda: round(max(0.0, -min(db.get_due_in_s(connect()))), 1),
        'broker': lambda: rpc.check_broker(services.conf, timeout_s=TIMEOUT_S),
        'keystone': lambda: services.cloud.check_identity(timeout_s=TIMEOUT_S),
        'heat': lambda: services.cloud.check_orchestration(timeout_s=TIMEOUT_S),
        'policy': services.enforcer.check_file,
    }


class Healthcheck:
    """The application that answers the two addresses. `app` hands it their requests."""

    def __init__(self, conf: cfg.ConfigOpts, readiness: Readiness) -> None:
        self._readiness = readiness
        config.use_healthcheck_file()
        self._live = oslo_middleware.Healthcheck(None, conf)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request for one of the two addresses."""
        path = environ.get('PATH_INFO', '').removesuffix('/')
        answer: Any
        if environ['REQUEST_METHOD'] not in ('GET', 'HEAD'):
            answer = webob.Response(status=405, headers={'Allow': 'GET, HEAD'})
        elif path == LIVE:
            answer = self._live
            # Older releases of oslo.middleware compare the whole path.
            environ = environ | {'SCRIPT_NAME': '', 'PATH_INFO': LIVE}
        else:
            report = self._readiness.get_report()
            answer = webob.Response(
                status=200 if report['ready'] else 503, json_body=report, cache_control='no-store'
            )
        result: Iterable[bytes] = answer(environ, start_response)
        return result
