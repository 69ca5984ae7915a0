"""The health of clusters: each engine is probed at intervals, and the result is written into
columns of the cluster.

`service` runs a `Prober` in a thread beside the loop that reconciles. Probes need no lease: the
process that moves `health_at` on has the turn. They write the health columns and nothing else. The
driver folder says what to request and what the responses mean; here is how it is done.

A probe is a few requests within one time limit, whatever the other side does. It is answered by the
users' own machines, so no response is trusted: only what is small is read and kept, no redirect is
followed, and no proxy of the environment is used. That is why HTTP is written by hand on top of
`http.client`: requests and urllib3 bound the time between two bytes but not that of a whole
response, and follow proxies of the environment.
"""

from __future__ import annotations

import contextlib
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
from magnum_lite.conductor.task import Services

LOG = log.getLogger(__name__)

STATUSES = {True: 'HEALTHY', False: 'UNHEALTHY', None: 'UNKNOWN'}
#: Seconds between two queries for clusters whose probe is due.
TICK_S = 1
#: Least seconds between two lines about errors in the log.
WARNING_INTERVAL_S = 60
#: The life of a client certificate that is issued for one probe.
CERTIFICATE_LIFE = datetime.timedelta(minutes=10)
#: Bytes of a body that are read.
MAX_BODY = 2 * 1024 * 1024
#: Characters of a body that the driver gets as text.
MAX_TEXT = 4000


class Prober:
    """Probes engines as long as it runs. Several, in one process or many, share the work."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._conf = services.conf.health
        self._pool = futures.ThreadPoolExecutor(self._conf.workers, thread_name_prefix='health')
        self._probes: set[futures.Future[None]] = set()
        self._warned_at = float('-inf')
        self._errors_since = 0

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping` is set, which takes effect within a second. Probes in progress end
        by themselves.

        Returns at once if [health] interval is 0. While the database is away, waits for it.
        """
        while self._conf.interval and not stopping.is_set():
            try:
                may_be_more = self.run_round()
            except Exception as e:
                self._warn('No engine is asked how it is, as none could be looked for', e)
                may_be_more = False
            if may_be_more:
                futures.wait(
                    self._probes.copy(), timeout=TICK_S, return_when=futures.FIRST_COMPLETED
                )
            else:
                stopping.wait(TICK_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def run_round(self) -> bool:
        """Begin probes that are due, as far as workers are free. Returns whether more may be
        due."""
        self._probes = {probe for probe in self._probes if not probe.done()}
        free = self._conf.workers - len(self._probes)
        if free <= 0:
            return True
        claimed = db.claim_health_checks(
            self._services.db, limit=free, interval_s=self._conf.interval
        )
        for cluster, token in claimed:
            self._probes.add(self._pool.submit(self.probe, cluster, token))
        return len(claimed) == free

    def probe(self, cluster: models.Cluster, token: datetime.datetime) -> None:
        """Probe one engine and record its health. Raises nothing.

        `token` is the turn from `db.claim_health_checks`. Nothing is written with an older one."""
        try:
            health = self._request_health(cluster)
        except Exception as e:
            self._warn(f'Cluster {cluster.uuid}: how its engine is could not be found out', e)
            health = _make_unknown(errors.CODES['INTERNAL'])
        status = STATUSES[health.healthy] if health else None
        reason = health.reason if health else {}
        if status and (status, reason) == (cluster.health_status, cluster.health_status_reason):
            return
        try:
            db.report_health(self._services.db, cluster.uuid, token, status=status, reason=reason)
        except Exception as e:
            self._warn(f'Cluster {cluster.uuid}: how its engine is could not be written down', e)

    def _request_health(self, cluster: models.Cluster) -> drivers.Health | None:
        """Return the health that the engine reports; None if the driver has no check for it."""
        conf = self._services.conf
        driver = self._services.drivers.get(cluster.driver)
        if driver is None:
            return _make_unknown(f'The driver {cluster.driver} of this cluster is not installed')
        check = driver.build_health_check(conf, cluster)
        if check is None:
            return None
        keys = self._services.keystore.load_pairs(self._services.db, cluster)
        needed = {check.authority}
        if check.certificate:
            needed.add(check.certificate.signed_by)
        missing = sorted(purpose for purpose in needed if purpose and purpose not in keys)
        if missing:
            return _make_unknown(f'The authority {", ".join(missing)} of this cluster is missing')
        context = make_tls_context(check, keys)
        deadline = time.monotonic() + self._conf.timeout
        answers = {
            name: send_request(request, context, deadline)
            for name, request in check.requests.items()
        }
        health = driver.read_health(conf, cluster, answers)
        # Requests for which no time is left are sent at the next probe.
        for path in health.stale_paths:
            request = drivers.HealthRequest(check.url + path, method='DELETE')
            answer = send_request(request, context, deadline)
            LOG.info(
                'Cluster %s: its engine is to forget %s of a member that was removed, and answers '
                '%s',
                cluster.uuid,
                path,
                answer.status or answer.text,
            )
        return health

    def _warn(self, text: str, error: Exception) -> None:
        """Log an error on our side, at most once a minute: while the database is away there is one
        each second."""
        self._errors_since += 1
        if time.monotonic() - self._warned_at < WARNING_INTERVAL_S:
            return
        LOG.warning(
            '%s (%s: %s). It is tried again; %s such errors since the last line.',
            text,
            type(error).__name__,
            error,
            self._errors_since,
        )
        self._warned_at = time.monotonic()
        self._errors_since = 0


def _make_unknown(reason: str) -> drivers.Health:
    return drivers.Health(None, {'api': reason})


def make_tls_context(check: drivers.HealthCheck, keys: Mapping[str, certs.Pair]) -> ssl.SSLContext:
    """Return a context that trusts the cluster's own authority and no other, and presents a client
    certificate issued for this probe."""
    # This protocol checks the chain, and the name or address.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if check.authority:
        context.load_verify_locations(cadata=keys[check.authority].trusted)
    spec = check.certificate
    if spec:
        client = certs.issue_client(
            keys[spec.signed_by],
            common_name=spec.common_name,
            organization=spec.organization,
            life=CERTIFICATE_LIFE,
        )
        # OpenSSL loads from a file only. This one is in memory and has no name, so nothing is left
        # of it if the process is killed.
        with os.fdopen(os.memfd_create('client'), 'w') as file:
            file.write(client.certificate + client.private_key)
            file.flush()
            context.load_cert_chain(f'/proc/self/fd/{file.fileno()}')
    return context


def send_request(
    request: drivers.HealthRequest, context: ssl.SSLContext, deadline: float
) -> drivers.HealthResponse:
    """Send a request and read the response, until `deadline` of the monotonic clock.

    Raises nothing that a peer can cause. Only the look-up of a host's name is not bounded by the
    deadline. Of several addresses the first one is used."""
    try:
        url = parse.urlsplit(request.url)
        host = url.hostname or ''
        port = url.port or {'http': 80, 'https': 443}[url.scheme]
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
        timeout_s = get_time_left_s(deadline)
        with socket.create_connection((str(address[0]), port), timeout=timeout_s) as plain:
            if url.scheme == 'http':
                return _exchange(plain, request, url, deadline)
            plain.settimeout(get_time_left_s(deadline))
            with context.wrap_socket(plain, server_hostname=host) as secure:
                return _exchange(secure, request, url, deadline)
    except (OSError, http.client.HTTPException, ValueError) as e:
        return drivers.HealthResponse(None, _explain_error(e))


def _exchange(
    connected: socket.socket,
    request: drivers.HealthRequest,
    url: parse.SplitResult,
    deadline: float,
) -> drivers.HealthResponse:
    """Exchange one request and response on a connected socket."""
    connection = http.client.HTTPConnection(url.hostname or '', url.port)
    connection.sock = _BoundedSocket(connected, deadline)  # type: ignore[assignment]
    path = url.path + (f'?{url.query}' if url.query else '')
    connection.request(
        request.method, path, headers={'Accept': request.accept or '*/*', 'Connection': 'close'}
    )
    with connection.getresponse() as response:
        body = response.read(MAX_BODY + 1)
        parsed: Any = None
        if len(body) <= MAX_BODY:
            # Else it is plain text, or no text at all.
            with contextlib.suppress(ValueError, RecursionError):
                parsed = json.loads(body)
        return drivers.HealthResponse(
            response.status, body[:MAX_TEXT].decode(errors='replace'), parsed
        )


class _BoundedSocket(io.RawIOBase):
    """A socket for `http.client` that works until a deadline. A socket's own time-out begins again
    with each byte, so a slow peer could hold it for ever."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def readable(self) -> bool:
        """Tell io.BufferedReader that it may read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive what has arrived. Raises TimeoutError at the deadline."""
        self._socket.settimeout(get_time_left_s(self._deadline))
        return self._socket.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        """Send all of it. Raises TimeoutError at the deadline."""
        self._socket.settimeout(get_time_left_s(self._deadline))
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return what http.client reads the response from."""
        return io.BufferedReader(self)

    def close(self) -> None:
        """Do nothing: http.client closes its socket before it has read the body."""


def get_time_left_s(deadline: float) -> float:
    """Return the seconds until the deadline. Raises TimeoutError if there are none."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _explain_error(error: Exception) -> str:
    """Return the sentence for the user: why there is no response."""
    if isinstance(error, TimeoutError):
        return 'It does not answer in time'
    if isinstance(error, ssl.SSLCertVerificationError):
        return f'Its certificate is not to be trusted: {error.verify_message}'
    if isinstance(error, ssl.SSLError):
        return f'TLS failed: {error.reason or "the connection was cut"}'
    if isinstance(error, OSError):
        return f'It cannot be reached: {error.strerror or "the connection was cut"}'
    return f'Its answer cannot be read: {type(error).__name__}'
