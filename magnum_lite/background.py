"""Messages that are sent behind the caller's back, by a thread of their own: see
doc/decisions/0002.

A broker that is down answers at once, one that hangs does not. Neither may hold up a request or a
conductor, so what `rpc` and `notify` have to say goes through here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from magnum_lite import outage

T = TypeVar('T')
#: Messages that may wait for the broker; the next one is dropped.
BACKLOG = 1000


class Sender(Generic[T]):
    """Sends messages one after the other. Its thread starts with the first one: after a WSGI server
    has forked."""

    def __init__(
        self,
        name: str,
        send: Callable[[T], None],
        away: outage.Outage,
        *,
        try_again_s: float | None = None,
    ) -> None:
        """`send` sends one message and raises whatever it likes. `name` is the thread's.

        `try_again_s`: seconds until a message is tried again that could not be sent, without end;
        None: it is dropped."""
        self._name, self._send, self._away, self._try_again_s = name, send, away, try_again_s
        self._queue: queue.Queue[T] = queue.Queue(BACKLOG)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._never = threading.Event()

    def put(self, message: T) -> None:
        """Have a message sent. Never blocks and never raises."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._away.failed(f'{BACKLOG} messages wait for the broker, so this one is dropped')

    def _run(self) -> None:
        while True:
            message = self._queue.get()
            while not self._is_sent(message) and self._try_again_s is not None:
                self._never.wait(self._try_again_s)

    def _is_sent(self, message: T) -> bool:
        try:
            self._send(message)
        except Exception as e:
            self._away.failed(str(e))
            return False
        self._away.works()
        return True
