"""The messages between API and conductors, over oslo.messaging with native threads.

`nudge(uuid)` is a cast that says "this cluster wants a look". It carries no work: the row does. A
lost, doubled, late or forged nudge costs at most one look, so it is sent by a thread of its own,
after the commit, and a broker that is down or hangs neither delays nor fails a request.

`sign_certificate(...)` is a call: only conductors can open the keys of authorities. No private key
travels, and errors come back as data, `{"code": HTTP status, "text": sentence}`, so that nothing of
the other side is ever unpickled."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import amqp
import oslo_messaging
from oslo_config import cfg
from oslo_log import log
from oslo_messaging import opts

from magnum_lite import background, config, errors, outage

LOG = log.getLogger(__name__)

TOPIC = 'magnum-lite-conductor'
#: Of the nudge, and of what conductors of the first release do not know.
VERSION, SIGN_VERSION = '1.0', '1.1'
#: Calls of one process that may wait for conductors at a time.
MOST_CALLS = 32


def transport(conf: cfg.ConfigOpts) -> oslo_messaging.Transport:
    """The transport of this process, as `[DEFAULT] transport_url` says: rabbit://... or fake://
    within a process."""
    config.use_exchange()
    return oslo_messaging.get_rpc_transport(conf, allowed_remote_exmods=[])


def default_to_this_process(conf: cfg.ConfigOpts) -> None:
    """Use no broker where the operator has named none: for a process that is API and conductor at
    once."""
    oslo_messaging.TransportURL.parse(conf)  # this makes the option known
    conf.set_default('transport_url', 'fake://')


class _Client:
    """The client of one process, made anew after it has failed.

    Without retries oslo.messaging keeps a connection in its pool that has broken (18.3: seen after
    a broker hung in the middle of a message), and every later message fails on it."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._lock = threading.Lock()
        self._client: Any = None

    def get(self) -> Any:
        """The client that there is now."""
        with self._lock:
            if self._client is None:
                self._client = oslo_messaging.get_rpc_client(
                    transport(self._conf),
                    oslo_messaging.Target(topic=TOPIC, version=VERSION),
                    retry=0,
                )
            return self._client

    def drop(self, client: Any) -> None:
        """Do not use it again. Its connections are closed behind the caller's back, however long
        that takes."""
        with self._lock:
            if self._client is not client:
                return
            self._client = None
        threading.Thread(target=client.transport.cleanup, name='drop', daemon=True).start()


class Nudger:
    """Sends nudges in the background."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._client = _Client(conf)
        self._sender = background.Sender(
            'nudge',
            self._send,
            outage.Outage(
                'The broker',
                'No nudges are sent, so conductors find clusters at their next tick. See [DEFAULT] '
                'transport_url',
            ),
        )

    def nudge(self, uuid: str) -> None:
        """Have a nudge sent for a cluster. Never blocks and never raises."""
        self._sender.put(uuid)

    def _send(self, uuid: str) -> None:
        client = self._client.get()
        try:
            client.cast({}, 'nudge', uuid=uuid)
        except Exception:
            self._client.drop(client)
            raise


class Signer:
    """Has conductors sign requests for certificates."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._client = _Client(conf)
        #: The last client whose call was answered.
        self._worked: Any = None
        self._free = threading.BoundedSemaphore(MOST_CALLS)
        self._away = outage.Outage(
            'Signing by a conductor',
            'Requests for certificates are answered with 503 '
            'meanwhile. See [DEFAULT] transport_url, and whether a conductor runs',
        )

    def sign_certificate(self, **request: Any) -> dict[str, Any]:
        """What `conductor.endpoint.sign_certificate` answers to the request, in [certificates]
        sign_timeout seconds.

        Raises the HttpError that the answer tells of; Unavailable if none comes in time, or the
        broker is down."""
        timeout_s = float(self._conf.certificates.sign_timeout)
        if not self._free.acquire(blocking=False):
            raise errors.Unavailable(
                f'{MOST_CALLS} requests wait for a conductor already. Try again later.'
            )
        try:
            answer = self._bounded(lambda: self._call(request, timeout_s), timeout_s)
        except (futures.TimeoutError, oslo_messaging.MessagingTimeout) as e:
            self._away.failed(f'no answer within {timeout_s:.0f} s')
            raise errors.Unavailable(
                f'No conductor has answered within {timeout_s:.0f} s, and only they can sign. '
                'Try again later.'
            ) from e
        except (
            Exception
        ) as e:  # kombu's, amqp's, oslo.messaging's, a conductor that does not know the method
            self._away.failed(f'{type(e).__name__}: {e}')
            raise errors.Unavailable(
                'No conductor can be reached now, and only they can sign. Try again later.'
            ) from e
        self._away.works()
        if 'code' in answer:
            kinds = {kind.code: kind for kind in (errors.Invalid, errors.NotFound, errors.Conflict)}
            raise kinds.get(answer['code'], errors.Unavailable)(answer['text'])
        return answer

    def _bounded(self, call: Callable[[], dict[str, Any]], timeout_s: float) -> dict[str, Any]:
        """Wait for a call for so long. It goes on alone: oslo.messaging waits for a broker without
        end (18.3)."""
        future: futures.Future[dict[str, Any]] = futures.Future()

        def run() -> None:
            try:
                future.set_result(call())
            except Exception as e:
                future.set_exception(e)
            finally:
                self._free.release()

        threading.Thread(target=run, name='sign', daemon=True).start()
        return future.result(timeout_s)

    def _call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        client = self._client.get()
        try:
            if client is not self._worked:
                # Its first call makes the queue for answers, whatever `retry` says: a broker that
                # refuses is found out by what gives up at once, and does no harm.
                client.cast({}, 'nudge', uuid=request['cluster_uuid'])
            answer: dict[str, Any] = client.prepare(version=SIGN_VERSION, timeout=timeout_s).call(
                {}, 'sign_certificate', **request
            )
        except (oslo_messaging.MessagingTimeout, oslo_messaging.RemoteError):
            raise  # the broker is well
        except Exception:
            self._client.drop(client)
            raise
        self._worked = client
        return answer


def server(conf: cfg.ConfigOpts, endpoint: Any) -> oslo_messaging.MessageHandlingServer:
    """A server that calls the methods of `endpoint`, not yet started."""
    return oslo_messaging.get_rpc_server(
        transport(conf),
        oslo_messaging.Target(topic=TOPIC, server=conf.host),
        [endpoint],
        access_policy=oslo_messaging.ExplicitRPCAccessPolicy,
    )


def notification_listener(
    conf: cfg.ConfigOpts, endpoint: Any, *, url: str | None, exchange: str, topic: str, pool: str
) -> Any:
    """A listener to what another service notifies of, not yet started; None within one process,
    where none can be.

    `url` is that service's broker, default our own. All listeners of a `pool` share one queue: each
    message goes to one of them."""
    made = oslo_messaging.get_notification_transport(conf, url=url)
    if type(made._driver).__name__ == 'FakeDriver':
        return None
    return oslo_messaging.get_notification_listener(
        made,
        [oslo_messaging.Target(exchange=exchange, topic=topic)],
        [endpoint],
        executor='threading',
        pool=pool,
    )


def check(conf: cfg.ConfigOpts, *, timeout_s: float) -> None:
    """Have RabbitMQ greet us: log in, open the virtual host, leave. Another kind of broker is not
    asked.

    Raises what `amqp` or the socket raises if none of its hosts does so in this time.
    """
    url = oslo_messaging.TransportURL.parse(conf)
    if url.transport != 'rabbit':
        return
    conf.register_opts(
        dict(opts.list_opts())['oslo_messaging_rabbit'], group='oslo_messaging_rabbit'
    )
    hosts = url.hosts or [oslo_messaging.TransportHost('localhost', 5672, 'guest', 'guest')]
    error: Exception | None = None
    for host in hosts:
        try:
            _greet(
                conf.oslo_messaging_rabbit, host, url.virtual_host or '/', timeout_s / len(hosts)
            )
            return
        except (amqp.AMQPError, OSError) as e:
            error = e
    assert error is not None
    raise error


def _greet(
    rabbit: Any, host: oslo_messaging.TransportHost, virtual_host: str, timeout_s: float
) -> None:
    tls = {
        name: value
        for name, value in (
            ('ca_certs', rabbit.ssl_ca_file),
            ('certfile', rabbit.ssl_cert_file),
            ('keyfile', rabbit.ssl_key_file),
            ('cert_reqs', ssl.CERT_REQUIRED if rabbit.ssl_ca_file else None),
        )
        if value
    }
    connection = amqp.Connection(
        f'{host.hostname}:{host.port or 5672}',
        userid=host.username or '',
        password=host.password or '',
        virtual_host=virtual_host,
        ssl=(tls or True) if rabbit.ssl else False,
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        write_timeout=timeout_s,
    )
    with contextlib.closing(connection):
        connection.connect()
