"""Messages sent from a background thread, so that no broker delays the work that they tell of.

`rpc.Nudger` and `notify.Notifier` use it. A broker that is down fails at once, but one that hangs
does not answer at all; neither may hold up a request or a conductor. The reasons are in
doc/decisions/0002. Nothing here knows what a message is."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from magnum_lite import outage

T = TypeVar('T')
#: Messages that may wait for the broker. Further ones are dropped.
BACKLOG = 1000


class Sender(Generic[T]):
    """Sends messages in order, from one thread. The thread starts with the first message, which is
    after a WSGI server has forked."""

    def __init__(
        self,
        name: str,
        send: Callable[[T], None],
        broker: outage.Outage,
        *,
        retry_after_s: float | None = None,
    ) -> None:
        """`name` is the thread's. `send` sends one message; any exception means that it failed.

        `retry_after_s`: seconds until a failed message is sent again, without a limit of tries;
        None: it is dropped."""
        self._name = name
        self._send = send
        self._broker = broker
        self._retry_after_s = retry_after_s
        self._queue: queue.Queue[T] = queue.Queue(BACKLOG)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Never set: waiting for it is a sleep.
        self._never = threading.Event()

    def put(self, message: T) -> None:
        """Queue a message for sending. Never blocks and never raises."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._broker.record_failure(
                f'{BACKLOG} messages wait for the broker, so this one is dropped'
            )

    def _run(self) -> None:
        while True:
            message = self._queue.get()
            while not self._try_to_send(message) and self._retry_after_s is not None:
                self._never.wait(self._retry_after_s)

    def _try_to_send(self, message: T) -> bool:
        try:
            self._send(message)
        except Exception as e:
            self._broker.record_failure(str(e))
            return False
        self._broker.record_success()
        return True
