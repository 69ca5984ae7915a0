"""An HTTP proxy in front of a service of the cloud that can break, for those who know only its
address.

It stands behind a `Forwarder`, which can refuse connections. What else can go wrong is a mode, for
all requests or for those with a word in their address, such as the id of a project: with one mode a
project all can be tried at once."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from functional.cloud import Forwarder

PAGE = b'<!DOCTYPE html><html><head><title>Sorry</title></head><body><h1>We are busy</h1></body></html>'  # noqa: E501
#: Modes that answer without asking the service: status, content type and body.
CANNED: dict[str, tuple[int, str, bytes]] = {
    'html 200': (200, 'text/html', PAGE),
    'html 502': (502, 'text/html', PAGE),
    '429': (429, 'application/json', b'{"error": {"message": "Too many requests", "code": 429}}'),
    '503': (503, 'application/json', b'{"error": {"message": "Come back later", "code": 503}}'),
}
#: cut: the connection ends without an answer. slow: done at once, answered late. late: held back,
#: then done, although the caller may have given up. 504: done, and the answer is that of a proxy
#: that lost patience.
MODES = ('cut', 'slow', 'late', *CANNED, '504')
HOP = ('connection', 'transfer-encoding', 'content-length', 'keep-alive')


@dataclass(frozen=True)
class Hit:
    """A request that came. `text` is its address and its body."""

    at: float
    method: str
    text: str
    mode: str


class Proxy:
    """`url` is where it stands, `modes` what is broken: word in the address -> mode; '' stands for
    all."""

    def __init__(self, host: str, port: int, *, slow_s: float, retry_after_s: int) -> None:
        self.target, self.slow_s, self.retry_after_s = (host, port), slow_s, retry_after_s
        self.modes: dict[str, str] = {}
        self.hits: list[Hit] = []
        self._never = threading.Event()
        outer = self

        class Handler(_Handler):
            proxy = outer

        self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        #: What refuses connections: `connections.down()`.
        self.connections = Forwarder('127.0.0.1', self._server.server_address[1])
        self.url = f'http://127.0.0.1:{self.connections.port}'

    def close(self) -> None:
        """End it."""
        self.connections.down()
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def broken(self, modes: dict[str, str]) -> Iterator[None]:
        """Have it broken so meanwhile; 'refuse' for '' is that of the connections."""
        if modes.get('') == 'refuse':
            self.connections.down()
        else:
            self.modes = modes
        try:
            yield
        finally:
            self.modes = {}
            self.connections.up()

    def mode(self, path: str) -> str:
        """What happens to a request."""
        return next((mode for word, mode in self.modes.items() if word in path), 'pass')

    def wait(self) -> None:
        """Stand still for the time of a slow answer."""
        self._never.wait(self.slow_s)


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = 'HTTP/1.1'

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `hits` has it all."""

    def _serve(self) -> None:
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        mode = proxy.mode(self.path)
        proxy.hits.append(
            Hit(
                time.monotonic(), self.command, f'{self.path} {body.decode(errors="replace")}', mode
            )
        )
        if mode == 'cut':
            self.close_connection = True
            return
        if mode in CANNED:
            status, kind, text = CANNED[mode]
            headers = [
                ('Content-Type', kind),
                *([('Retry-After', str(proxy.retry_after_s))] if mode == '429' else []),
            ]
            self._answer(status, headers, text)
            return
        if mode == 'late':
            proxy.wait()
        status, headers, text = self._ask(body)
        if mode == 'slow':
            proxy.wait()
        if mode == '504':
            status, headers, text = 504, [('Content-Type', 'text/html')], PAGE
        self._answer(status, headers, text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with contextlib.closing(
            http.client.HTTPConnection(*self.proxy.target, timeout=120)
        ) as service:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            service.request(self.command, self.path, body or None, headers)
            answer = service.getresponse()
            return (
                answer.status,
                [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP],
                answer.read(),
            )

    def _answer(self, status: int, headers: list[tuple[str, str]], text: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody waits any more
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if status not in (204, 304):
                self.send_header('Content-Length', str(len(text)))
            self.end_headers()
            if self.command != 'HEAD' and status not in (204, 304):
                self.wfile.write(text)
