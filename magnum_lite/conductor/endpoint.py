"""What a conductor does when a message comes: as little as possible."""

from __future__ import annotations

import threading
from typing import Any

import oslo_messaging


class Endpoint:
    """The methods that `rpc` may call on a conductor."""

    target = oslo_messaging.Target(version='1.0')

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    @oslo_messaging.expose
    def nudge(self, context: Any, uuid: str) -> None:
        """A cluster wants a look. Which one, the database knows better."""
        self._wake.set()
