"""How the engines of clusters are: each is asked once in a while, and the answer is written into
columns of its own.

Beside the loop that works on clusters, and independent of leases: whoever moves `health_at` on has
the turn. What is asked, and what the answers mean, the driver folder says; here is only how: a few
GETs within one budget, whatever the other side does. It is the users' own machines that answer, so
nothing of an answer is believed or kept that is not small, no redirect is followed, and no proxy of
our environment is used."""

from __future__ import annotations

import datetime
import http.client
import io
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from typing import Any
from urllib import parse

from oslo_log import log

from magnum_lite import certs, db, drivers, errors, models
from magnum_lite.conductor import steps

LOG = log.getLogger(__name__)

STATUSES = {True: 'HEALTHY', False: 'UNHEALTHY', None: 'UNKNOWN'}
#: Seconds between looks for engines that are due, and between two lines about errors in the log.
TICK_S, COMPLAINT_INTERVAL_S = 1, 60
#: How long a certificate is good that is made for one look.
CERTIFICATE_LIFE = datetime.timedelta(minutes=10)
#: Bytes of a body that are read, and characters that are shown to the driver as text.
MAX_BODY, MAX_TEXT = 2 * 1024 * 1024, 4000


class Prober:
    """Looks at engines as long as it runs. Several, in one process or many, share the work."""

    def __init__(self, services: steps.Services) -> None:
        self._services = services
        self._conf = services.conf.health
        self._pool = futures.ThreadPoolExecutor(self._conf.workers, thread_name_prefix='health')
        self._looks: set[futures.Future[None]] = set()
        self._complained_at, self._unsaid = float('-inf'), 0

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping` is set, which takes effect within a second. A look under way ends
        by itself.

        Returns at once if [health] interval is 0. A database that is away is waited for.
        """
        while self._conf.interval and not stopping.is_set():
            try:
                more = self.round()
            except Exception as e:
                self._complain('No engine is asked how it is, as none could be looked for', e)
                more = False
            if more:
                futures.wait(
                    self._looks.copy(), timeout=TICK_S, return_when=futures.FIRST_COMPLETED
                )
            else:
                stopping.wait(TICK_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def round(self) -> bool:
        """Begin a look at engines that are due, as far as workers are free; whether there may be
        more of them."""
        self._looks = {look for look in self._looks if not look.done()}
        free = self._conf.workers - len(self._looks)
        if free <= 0:
            return True
        claimed = db.claim_health(self._services.db, limit=free, interval_s=self._conf.interval)
        self._looks |= {self._pool.submit(self.look, cluster, token) for cluster, token in claimed}
        return len(claimed) == free

    def look(self, cluster: models.Cluster, token: datetime.datetime) -> None:
        """Ask one engine and write down how it is. Raises nothing."""
        try:
            health = self._ask(cluster)
        except Exception as e:
            self._complain(f'Cluster {cluster.uuid}: how its engine is could not be found out', e)
            health = drivers.Health(None, {'api': errors.CODES['INTERNAL']})
        status = STATUSES[health.healthy] if health else None
        reason = health.reason if health else {}
        if status and (status, reason) == (cluster.health_status, cluster.health_status_reason):
            return
        try:
            db.report_health(self._services.db, cluster.uuid, token, status=status, reason=reason)
        except Exception as e:
            self._complain(
                f'Cluster {cluster.uuid}: how its engine is could not be written down', e
            )

    def _ask(self, cluster: models.Cluster) -> drivers.Health | None:
        """What the engine answers; None if its driver does not say what to ask."""
        driver = self._services.drivers.get(cluster.driver)
        if driver is None:
            return drivers.Health(
                None, {'api': f'The driver {cluster.driver} of this cluster is not installed'}
            )
        check = driver.health_check(self._services.conf, cluster)
        if check is None:
            return None
        keys = self._services.keystore.load(self._services.db, cluster)
        needed = {check.authority, check.certificate and check.certificate.signed_by} - {None}
        if missing := sorted(str(purpose) for purpose in needed - set(keys)):
            return drivers.Health(
                None, {'api': f'The authority {", ".join(missing)} of this cluster is missing'}
            )
        context = tls_context(check, keys)
        deadline = time.monotonic() + self._conf.timeout
        seen = driver.read_health(
            self._services.conf,
            cluster,
            {name: get(request, context, deadline) for name, request in check.requests.items()},
        )
        for path in seen.forget:  # what there is no time for comes at the next look
            answer = get(
                drivers.HealthRequest(check.url + path, method='DELETE'), context, deadline
            )
            LOG.info(
                'Cluster %s: its engine is to forget %s of a member that was removed, and answers '
                '%s',
                cluster.uuid,
                path,
                answer.status or answer.text,
            )
        return seen

    def _complain(self, text: str, error: Exception) -> None:
        """Log an error that is not the engine's, once a minute: when the database is away there is
        one each second."""
        self._unsaid += 1
        if time.monotonic() - self._complained_at < COMPLAINT_INTERVAL_S:
            return
        LOG.warning(
            '%s (%s: %s). It is tried again; %s such errors since the last line.',
            text,
            type(error).__name__,
            error,
            self._unsaid,
        )
        self._complained_at, self._unsaid = time.monotonic(), 0


def tls_context(check: drivers.HealthCheck, keys: Mapping[str, certs.Pair]) -> ssl.SSLContext:
    """A context that trusts the cluster's own authority and no other, and presents a certificate
    made for this look."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks chain and name, or address
    if check.authority:
        context.load_verify_locations(cadata=keys[check.authority].trusted)
    if spec := check.certificate:
        made = certs.issue_client(
            keys[spec.signed_by],
            common_name=spec.common_name,
            organization=spec.organization,
            life=CERTIFICATE_LIFE,
        )
        # OpenSSL takes a file only. This one has no name and is in memory: nothing is left if we
        # are killed.
        with os.fdopen(os.memfd_create('client'), 'w') as file:
            file.write(made.certificate + made.private_key)
            file.flush()
            context.load_cert_chain(f'/proc/self/fd/{file.fileno()}')
    return context


def get(request: drivers.HealthRequest, context: ssl.SSLContext, deadline: float) -> drivers.Answer:
    """Send a request and read the answer, until `deadline` of the monotonic clock. Raises nothing
    that a peer causes.

    Only the look-up of a host's name is beyond the deadline's reach; of several addresses the first
    is taken."""
    try:
        url = parse.urlsplit(request.url)
        host, port = url.hostname or '', url.port or {'http': 80, 'https': 443}[url.scheme]
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
        with socket.create_connection((str(address[0]), port), timeout=left_s(deadline)) as plain:
            if url.scheme == 'http':
                return _exchange(plain, request, url, deadline)
            plain.settimeout(left_s(deadline))
            with context.wrap_socket(plain, server_hostname=host) as secure:
                return _exchange(secure, request, url, deadline)
    except (OSError, http.client.HTTPException, ValueError) as e:
        return drivers.Answer(None, _words(e))


def _exchange(
    connected: socket.socket,
    request: drivers.HealthRequest,
    url: parse.SplitResult,
    deadline: float,
) -> drivers.Answer:
    connection = http.client.HTTPConnection(url.hostname or '', url.port)
    connection.sock = _Wire(connected, deadline)  # type: ignore[assignment]
    path = url.path + (f'?{url.query}' if url.query else '')
    connection.request(
        request.method, path, headers={'Accept': request.accept or '*/*', 'Connection': 'close'}
    )
    with connection.getresponse() as response:
        body = response.read(MAX_BODY + 1)
        parsed: Any = None
        if len(body) <= MAX_BODY:
            try:
                parsed = json.loads(body)
            except (ValueError, RecursionError):
                pass  # plain text, as likely as not
        return drivers.Answer(response.status, body[:MAX_TEXT].decode(errors='replace'), parsed)


class _Wire(io.RawIOBase):
    """A socket that is used until a deadline, however slowly the other side goes: a time-out of its
    own lasts from byte to byte."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket, self._deadline = connected, deadline

    def readable(self) -> bool:
        """As io.BufferedReader wants to know."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive what is there. Raises TimeoutError at the deadline."""
        self._socket.settimeout(left_s(self._deadline))
        return self._socket.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        """Send it all. Raises TimeoutError at the deadline."""
        self._socket.settimeout(left_s(self._deadline))
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Where http.client reads the answer from."""
        return io.BufferedReader(self)

    def close(self) -> None:
        """Do nothing: http.client closes before it reads the body."""


def left_s(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _words(error: Exception) -> str:
    """Why there is no answer."""
    if isinstance(error, TimeoutError):
        return 'It does not answer in time'
    if isinstance(error, ssl.SSLCertVerificationError):
        return f'Its certificate is not to be trusted: {error.verify_message}'
    if isinstance(error, ssl.SSLError):
        return f'TLS failed: {error.reason or "the connection was cut"}'
    if isinstance(error, OSError):
        return f'It cannot be reached: {error.strerror or "the connection was cut"}'
    return f'Its answer cannot be read: {type(error).__name__}'
