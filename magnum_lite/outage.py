"""One thing outside that may be away, and what the log says of it: once when it goes, once a
minute, once at its end.

Whoever calls the thing says `failed()` or `works()` after each call, from any thread. A thing that
comes and goes is not said more often either, so that a log of a bad night can be read."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from oslo_log import log

LOG = log.getLogger(__name__)

#: Seconds between two warnings about the same thing.
REPEAT_S = 60


class Outage:
    """One thing outside, such as a service or a kind of call. Safe for threads."""

    def __init__(
        self, what: str, advice: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`what` is the subject of a sentence, such as 'The broker' or 'Looking at stacks'
        (`clients.CloudError.what`).

        `advice` is a sentence or two without the last dot: what waits meanwhile, and what the
        reader can do."""
        self._what, self._advice, self._clock = what, advice, clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._failures = 0
        self._said_at = float('-inf')
        self._is_said = False

    def failed(self, error: str) -> None:
        """Note that a call failed. Warns at once, unless there was a warning within the last
        minute."""
        with self._lock:
            now = self._clock()
            first = self._since is None
            self._since = now if self._since is None else self._since
            self._failures += 1
            if now - self._said_at < REPEAT_S:
                return
            self._said_at, self._is_said = now, True
            failures, away_s = self._failures, now - self._since
        if first:
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

    def works(self) -> None:
        """Note that a call succeeded. Says so if a warning said that it did not. Costs nothing
        otherwise."""
        if self._since is None:
            return
        with self._lock:
            if self._since is None:
                return
            away_s, failures, is_said = self._clock() - self._since, self._failures, self._is_said
            self._since, self._failures, self._is_said = None, 0, False
        if is_said:
            LOG.info('%s works again after %.0f s, failed calls: %d', self._what, away_s, failures)


#: Libraries that say of every try that it failed; what they say is not known to our callers, so it
#: is not dropped.
CHATTERERS = (
    'oslo.messaging._drivers.impl_rabbit',
    'keystoneauth.session',
    'keystoneauth.identity.generic.base',
    'keystonemiddleware.auth_token',
)


class OnceAMinute(logging.Filter):
    """Lets through what a place in the code says once a minute, whatever the numbers and names in
    it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said_at: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be written. Below warnings all are: whoever wants them wants all
        of them."""
        place, now = (record.pathname, record.lineno), self._clock()
        if record.levelno >= logging.WARNING:
            if now - self._said_at.get(place, float('-inf')) < REPEAT_S:
                return False
            self._said_at[place] = now
        return True


def quieten() -> None:
    """Have the libraries that repeat themselves in an outage do so once a minute."""
    for name in CHATTERERS:
        logger = logging.getLogger(name)
        if not any(isinstance(f, OnceAMinute) for f in logger.filters):
            logger.addFilter(OnceAMinute())
