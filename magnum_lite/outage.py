"""Log lines about failing services: a few of them, however often a call fails.

An `Outage` stands for one thing outside this process: a service, or a kind of call. Whoever calls
that thing reports each result to it, from any thread. The log gets a warning at the first failure,
another once a minute, and a line when it works again. A thing that flaps is not reported more often
than that. `limit_library_logs` puts the same limit on libraries that log every try. Nothing here
calls or retries anything."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from oslo_log import log

LOG = log.getLogger(__name__)

#: Seconds between two warnings about the same thing.
REPEAT_S = 60
_NEVER = float('-inf')


class Outage:
    """The state of one thing outside, as far as the log is concerned. Safe for threads."""

    def __init__(
        self, what: str, advice: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`what` is the subject of a sentence, such as 'The broker' or 'Looking at stacks'
        (`clients.CloudError.what`).

        `advice` is a sentence or two without the last dot: what waits for the thing, and what the
        operator can do."""
        self._what = what
        self._advice = advice
        self._clock = clock
        self._lock = threading.Lock()
        #: Whether the last call failed. Read without the lock: after a call that succeeds, as
        #: nearly all do, there is nothing to record.
        self.is_failing = False
        self._since: float | None = None
        self._failures = 0
        self._warned_at = _NEVER
        self._is_reported = False

    def record_failure(self, error: str) -> None:
        """Count a failed call, and warn unless there was a warning within the last minute."""
        with self._lock:
            now = self._clock()
            is_first = self._since is None
            if self._since is None:
                self._since = now
                self.is_failing = True
            self._failures += 1
            if now - self._warned_at < REPEAT_S:
                return
            self._warned_at = now
            self._is_reported = True
            failures = self._failures
            away_s = now - self._since
        # Outside the lock: a log that blocks must not hold up the other threads.
        if is_first:
            LOG.warning('%s fails. %s (%s)', self._what, self._advice, error)
        else:
            LOG.warning(
                '%s has failed for %.0f s, calls: %d. %s (%s)',
                self._what,
                away_s,
                failures,
                self._advice,
                error,
            )

    def record_success(self) -> None:
        """End the outage, if there is one, and log that if its beginning was logged."""
        if not self.is_failing:
            return
        with self._lock:
            if self._since is None:
                return
            away_s = self._clock() - self._since
            failures = self._failures
            is_reported = self._is_reported
            self._since = None
            self.is_failing = False
            self._failures = 0
            self._is_reported = False
        if is_reported:
            LOG.info('%s works again after %.0f s, failed calls: %d', self._what, away_s, failures)


#: Loggers of libraries that log each failed try. Their lines hold what our own exceptions do not,
#: so they are limited and not dropped.
NOISY_LOGGERS = (
    'oslo.messaging._drivers.impl_rabbit',
    'keystoneauth.session',
    'keystoneauth.identity.generic.base',
    'keystonemiddleware.auth_token',
)


class OnceAMinute(logging.Filter):
    """Passes one warning a minute from each place in the code, whatever the values in its text."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed_at: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record. Records below WARNING always pass."""
        if record.levelno < logging.WARNING:
            return True
        place = (record.pathname, record.lineno)
        now = self._clock()
        if now - self._passed_at.get(place, _NEVER) < REPEAT_S:
            return False
        self._passed_at[place] = now
        return True


def limit_library_logs() -> None:
    """Limit the loggers of `NOISY_LOGGERS` to one warning a minute and place. Idempotent."""
    for name in NOISY_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(f, OnceAMinute) for f in logger.filters):
            logger.addFilter(OnceAMinute())
