"""Serve one WSGI application on the loopback until SIGTERM: the last step of each of the three
servers of the embedded cloud."""

import os
import signal
import sys
import threading

from cheroot import wsgi

# More than the longest chain of requests that wait for each other: Heat calls Keystone, which calls
# no other service.
THREADS = 16
STOP_WITHIN_S = 5


def serve(app, port: int, on_stop=None) -> None:
    """Serve `app` on 127.0.0.1:`port`; on SIGTERM run `on_stop` and leave within `STOP_WITHIN_S`
    seconds.

    Raises OSError if the port is taken.
    """
    server = wsgi.Server(
        ('127.0.0.1', port), app, numthreads=THREADS, request_queue_size=128, shutdown_timeout=1
    )
    server.prepare()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.serve()
    except SystemExit:
        # Threads of the service may still work. The databases survive a process that ends there.
        threading.Timer(STOP_WITHIN_S, os._exit, args=(0,)).start()
        server.stop()
        if on_stop:
            on_stop()
        os._exit(0)
