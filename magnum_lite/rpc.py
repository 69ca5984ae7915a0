"""Messages between API and conductors, over oslo.messaging with native threads.

The API sends with `Nudger` and `Signer`; a conductor makes its servers with `make_server` and
`make_notification_listener`; the readiness check calls `check_broker`. Notifications to other
services are in `notify`.

`nudge(uuid)` is a cast that means "reconcile this cluster soon". It carries no work: the row does.
A lost, doubled, late or forged nudge costs at most one look at the row. So it is sent by a thread
of its own, after the commit, and a broker that is down or hangs neither delays nor fails a request.

`sign_certificate(...)` is a call, because only conductors can open the keys of authorities. No
private key travels. Errors come back as data, `{"code": HTTP status, "text": sentence}`, so that no
exception of the other process is ever unpickled."""

from __future__ import annotations

import contextlib
import ssl
import threading
from concurrent import futures
from typing import Any

import amqp
import oslo_messaging
from oslo_config import cfg
from oslo_messaging import opts

from magnum_lite import background, config, errors, outage

TOPIC = 'magnum-lite-conductor'
#: RPC version of `nudge`, which every release knows.
VERSION = '1.0'
#: RPC version of `sign_certificate`, which conductors of the first release do not know.
SIGN_VERSION = '1.1'
#: Calls of one process that may wait for conductors at the same time.
MAX_CALLS = 32


def get_transport(conf: cfg.ConfigOpts) -> oslo_messaging.Transport:
    """Return the transport of `[DEFAULT] transport_url`, rabbit://... or fake:// in one process."""
    config.use_exchange()
    return oslo_messaging.get_rpc_transport(conf, allowed_remote_exmods=[])


def set_default_transport(conf: cfg.ConfigOpts) -> None:
    """Use the in-memory transport where no broker is configured: for a process that is API and
    conductor at once."""
    # As a side effect this registers the option transport_url.
    oslo_messaging.TransportURL.parse(conf)
    conf.set_default('transport_url', 'fake://')


class _Client:
    """The RPC client of a process, replaced after it has failed.

    With `retry=0` oslo.messaging returns a broken connection to its pool, and every later message
    fails on it. Seen with 18.3, after a broker hung in the middle of a message."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._lock = threading.Lock()
        self._client: Any = None

    def get(self) -> Any:
        """Return the current client; make one if there is none."""
        with self._lock:
            if self._client is None:
                self._client = oslo_messaging.get_rpc_client(
                    get_transport(self._conf),
                    oslo_messaging.Target(topic=TOPIC, version=VERSION),
                    retry=0,
                )
            return self._client

    def drop(self, client: Any) -> None:
        """Stop using a client. A thread closes its connections, however long that takes."""
        with self._lock:
            if self._client is not client:
                return
            self._client = None
        threading.Thread(target=client.transport.cleanup, name='drop', daemon=True).start()


class Nudger:
    """Sends nudges from a background thread."""

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
        """Queue a nudge for a cluster. Never blocks and never raises."""
        self._sender.put(uuid)

    def _send(self, uuid: str) -> None:
        client = self._client.get()
        try:
            client.cast({}, 'nudge', uuid=uuid)
        except Exception:
            self._client.drop(client)
            raise


class Signer:
    """Asks conductors to sign requests for certificates. Safe for threads."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._client = _Client(conf)
        #: The last client that got an answer.
        self._proven_client: Any = None
        self._slots = threading.BoundedSemaphore(MAX_CALLS)
        self._outage = outage.Outage(
            'Signing by a conductor',
            'Requests for certificates are answered with 503 '
            'meanwhile. See [DEFAULT] transport_url, and whether a conductor runs',
        )

    def sign_certificate(self, **request: Any) -> dict[str, Any]:
        """Return the answer of `conductor.endpoint.sign_certificate` to the request.

        Waits for at most [certificates] sign_timeout. Raises the HttpError that the answer names;
        Unavailable if no answer comes in time, the broker is down, or `MAX_CALLS` calls wait."""
        timeout_s = float(self._conf.certificates.sign_timeout)
        if not self._slots.acquire(blocking=False):
            raise errors.Unavailable(
                f'{MAX_CALLS} requests wait for a conductor already. Try again later.'
            )
        try:
            answer = self._call_in_thread(request, timeout_s)
        except (futures.TimeoutError, oslo_messaging.MessagingTimeout) as e:
            self._outage.record_failure(f'no answer within {timeout_s:.0f} s')
            raise errors.Unavailable(
                f'No conductor has answered within {timeout_s:.0f} s, and only they can sign. '
                'Try again later.'
            ) from e
        except Exception as e:
            # Of kombu, amqp or oslo.messaging, or from a conductor without this method.
            self._outage.record_failure(f'{type(e).__name__}: {e}')
            raise errors.Unavailable(
                'No conductor can be reached now, and only they can sign. Try again later.'
            ) from e
        self._outage.record_success()
        if 'code' in answer:
            by_code = {e.code: e for e in (errors.Invalid, errors.NotFound, errors.Conflict)}
            raise by_code.get(answer['code'], errors.Unavailable)(answer['text'])
        return answer

    def _call_in_thread(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Make the call in a thread, which is left behind after `timeout_s`: oslo.messaging 18.3
        waits for a broker without a limit. Raises futures.TimeoutError then."""
        future: futures.Future[dict[str, Any]] = futures.Future()

        def run() -> None:
            try:
                future.set_result(self._call(request, timeout_s))
            except Exception as e:
                future.set_exception(e)
            finally:
                self._slots.release()

        threading.Thread(target=run, name='sign', daemon=True).start()
        return future.result(timeout_s)

    def _call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        client = self._client.get()
        try:
            if client is not self._proven_client:
                # The first call of a client declares its reply queue, which ignores `retry` and
                # does not give up. So send a harmless cast first, which fails at once if the broker
                # refuses the connection.
                client.cast({}, 'nudge', uuid=request['cluster_uuid'])
            answer = client.prepare(version=SIGN_VERSION, timeout=timeout_s).call(
                {}, 'sign_certificate', **request
            )
        except (oslo_messaging.MessagingTimeout, oslo_messaging.RemoteError):
            # The broker works, so the client stays.
            raise
        except Exception:
            self._client.drop(client)
            raise
        self._proven_client = client
        return dict(answer)


def make_server(conf: cfg.ConfigOpts, endpoint: Any) -> oslo_messaging.MessageHandlingServer:
    """Make a server that calls the methods of `endpoint`. It is not started."""
    return oslo_messaging.get_rpc_server(
        get_transport(conf),
        oslo_messaging.Target(topic=TOPIC, server=conf.host),
        [endpoint],
        access_policy=oslo_messaging.ExplicitRPCAccessPolicy,
    )


def make_notification_listener(
    conf: cfg.ConfigOpts, endpoint: Any, *, url: str | None, exchange: str, topic: str, pool: str
) -> Any:
    """Make a listener to the notifications of another service. It is not started.

    `url` is that service's broker; None: the one of [DEFAULT] transport_url. All listeners of a
    `pool` share one queue: each message goes to one of them. Returns None with the in-memory
    transport, which cannot have listeners in pools."""
    transport = oslo_messaging.get_notification_transport(conf, url=url)
    if type(transport._driver).__name__ == 'FakeDriver':
        return None
    return oslo_messaging.get_notification_listener(
        transport,
        [oslo_messaging.Target(exchange=exchange, topic=topic)],
        [endpoint],
        executor='threading',
        pool=pool,
    )


def check_broker(conf: cfg.ConfigOpts, *, timeout_s: float) -> None:
    """Log in to RabbitMQ, open the virtual host, and disconnect. Other brokers are not checked.

    The hosts share `timeout_s`. Raises the last host's error, of `amqp` or the socket, if none of
    them works."""
    url = oslo_messaging.TransportURL.parse(conf)
    if url.transport != 'rabbit':
        return
    conf.register_opts(
        dict(opts.list_opts())['oslo_messaging_rabbit'], group='oslo_messaging_rabbit'
    )
    hosts = url.hosts or [oslo_messaging.TransportHost('localhost', 5672, 'guest', 'guest')]
    for host in hosts:
        try:
            _connect(
                conf.oslo_messaging_rabbit, host, url.virtual_host or '/', timeout_s / len(hosts)
            )
            return
        except (amqp.AMQPError, OSError) as e:
            error = e
    # There is at least one host, so there is an error.
    raise error


def _connect(
    rabbit: Any, host: oslo_messaging.TransportHost, virtual_host: str, timeout_s: float
) -> None:
    tls = {
        'ca_certs': rabbit.ssl_ca_file,
        'certfile': rabbit.ssl_cert_file,
        'keyfile': rabbit.ssl_key_file,
        'cert_reqs': ssl.CERT_REQUIRED if rabbit.ssl_ca_file else None,
    }
    # An option that is not set is '', which py-amqp would open as a file.
    tls = {name: value for name, value in tls.items() if value}
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
