"""The messages between API and conductors, over oslo.messaging with native threads.

There is one so far: `nudge(uuid)`, a cast that says "this cluster wants a look". It carries no work: the row does. A
lost, doubled, late or forged nudge costs at most one look, so it is sent by a thread of its own, after the commit,
and a broker that is down or hangs neither delays nor fails a request.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
from typing import Any

import amqp
import oslo_messaging
from oslo_config import cfg
from oslo_messaging import opts

from magnum_lite import background, config, outage

TOPIC = 'magnum-lite-conductor'
VERSION = '1.0'


def transport(conf: cfg.ConfigOpts) -> oslo_messaging.Transport:
    """The transport of this process, as `[DEFAULT] transport_url` says: rabbit://... or fake:// within a process."""
    config.use_exchange()
    return oslo_messaging.get_rpc_transport(conf, allowed_remote_exmods=[])


def default_to_this_process(conf: cfg.ConfigOpts) -> None:
    """Use no broker where the operator has named none: for a process that is API and conductor at once."""
    oslo_messaging.TransportURL.parse(conf)  # this makes the option known
    conf.set_default('transport_url', 'fake://')


class Nudger:
    """Sends nudges in the background."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._sender = background.Sender('nudge', self._send, outage.Outage(
            'The broker', 'No nudges are sent, so conductors find clusters at their next tick. See [DEFAULT] '
            'transport_url'))

    def nudge(self, uuid: str) -> None:
        """Have a nudge sent for a cluster. Never blocks and never raises."""
        self._sender.put(uuid)

    @functools.cached_property
    def _client(self) -> Any:
        return oslo_messaging.get_rpc_client(
            transport(self._conf), oslo_messaging.Target(topic=TOPIC, version=VERSION), retry=0)

    def _send(self, uuid: str) -> None:
        self._client.cast({}, 'nudge', uuid=uuid)


def server(conf: cfg.ConfigOpts, endpoint: Any) -> oslo_messaging.MessageHandlingServer:
    """A server that calls the methods of `endpoint`, not yet started."""
    return oslo_messaging.get_rpc_server(
        transport(conf), oslo_messaging.Target(topic=TOPIC, server=conf.host), [endpoint],
        access_policy=oslo_messaging.ExplicitRPCAccessPolicy)


def notification_listener(conf: cfg.ConfigOpts, endpoint: Any, *, url: str | None, exchange: str, topic: str,
                          pool: str) -> Any:
    """A listener to what another service notifies of, not yet started; None within one process, where none can be.

    `url` is that service's broker, default our own. All listeners of a `pool` share one queue: each message goes to
    one of them.
    """
    made = oslo_messaging.get_notification_transport(conf, url=url)
    if type(made._driver).__name__ == 'FakeDriver':
        return None
    return oslo_messaging.get_notification_listener(
        made, [oslo_messaging.Target(exchange=exchange, topic=topic)], [endpoint], executor='threading', pool=pool)


def check(conf: cfg.ConfigOpts, *, timeout_s: float) -> None:
    """Have RabbitMQ greet us: log in, open the virtual host, leave. Another kind of broker is not asked.

    Raises what `amqp` or the socket raises if none of its hosts does so in this time.
    """
    url = oslo_messaging.TransportURL.parse(conf)
    if url.transport != 'rabbit':
        return
    conf.register_opts(dict(opts.list_opts())['oslo_messaging_rabbit'], group='oslo_messaging_rabbit')
    hosts = url.hosts or [oslo_messaging.TransportHost('localhost', 5672, 'guest', 'guest')]
    error: Exception | None = None
    for host in hosts:
        try:
            _greet(conf.oslo_messaging_rabbit, host, url.virtual_host or '/', timeout_s / len(hosts))
            return
        except (amqp.AMQPError, OSError) as e:
            error = e
    assert error is not None
    raise error


def _greet(rabbit: Any, host: oslo_messaging.TransportHost, virtual_host: str, timeout_s: float) -> None:
    tls = {name: value for name, value in (
        ('ca_certs', rabbit.ssl_ca_file), ('certfile', rabbit.ssl_cert_file), ('keyfile', rabbit.ssl_key_file),
        ('cert_reqs', ssl.CERT_REQUIRED if rabbit.ssl_ca_file else None)) if value}
    connection = amqp.Connection(
        f'{host.hostname}:{host.port or 5672}', userid=host.username or '', password=host.password or '',
        virtual_host=virtual_host, ssl=(tls or True) if rabbit.ssl else False, connect_timeout=timeout_s,
        read_timeout=timeout_s, write_timeout=timeout_s)
    with contextlib.closing(connection):
        connection.connect()
