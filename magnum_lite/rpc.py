"""The messages between API and conductors, over oslo.messaging with native threads.

There is one so far: `nudge(uuid)`, a cast that says "this cluster wants a look". It carries no work: the row does. A
lost, doubled, late or forged nudge costs at most one look, so it is sent by a thread of its own, after the commit,
and a broker that is down or hangs neither delays nor fails a request.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_log import log

LOG = log.getLogger(__name__)

TOPIC = 'magnum-lite-conductor'
VERSION = '1.0'
#: Nudges that may wait for the broker; the next one is dropped, and its cluster is found at the next tick.
BACKLOG = 1000


def transport(conf: cfg.ConfigOpts) -> oslo_messaging.Transport:
    """The transport of this process, as `[DEFAULT] transport_url` says: rabbit://... or fake:// within a process."""
    return oslo_messaging.get_rpc_transport(conf, allowed_remote_exmods=[])


def default_to_this_process(conf: cfg.ConfigOpts) -> None:
    """Use no broker where the operator has named none: for a process that is API and conductor at once."""
    oslo_messaging.TransportURL.parse(conf)  # this makes the option known
    conf.set_default('transport_url', 'fake://')


class Nudger:
    """Sends nudges in the background. Its thread starts with the first one: after a WSGI server has forked."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._queue: queue.Queue[str] = queue.Queue(BACKLOG)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def nudge(self, uuid: str) -> None:
        """Have a nudge sent for a cluster. Never blocks and never raises."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name='nudge', daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(uuid)
        except queue.Full:
            LOG.warning('The broker is too slow: no nudge for cluster %s. A conductor finds it at its next tick.', uuid)

    def _run(self) -> None:
        client: Any = None
        while True:
            uuid = self._queue.get()
            try:
                if client is None:
                    client = oslo_messaging.get_rpc_client(
                        transport(self._conf), oslo_messaging.Target(topic=TOPIC, version=VERSION), retry=0)
                client.cast({}, 'nudge', uuid=uuid)
            except Exception as e:
                LOG.warning('The nudge for cluster %s was not sent (%s). A conductor finds it at its next tick.',
                            uuid, e)


def server(conf: cfg.ConfigOpts, endpoint: Any) -> oslo_messaging.MessageHandlingServer:
    """A server that calls the methods of `endpoint`, not yet started."""
    return oslo_messaging.get_rpc_server(
        transport(conf), oslo_messaging.Target(topic=TOPIC, server=conf.host), [endpoint],
        access_policy=oslo_messaging.ExplicitRPCAccessPolicy)
