"""Nudges: over the in-process transport, over RabbitMQ where it answers, and over a broker that is
not there."""

from __future__ import annotations

import logging
import socket
import threading
import time

import pytest
from conftest import BROKERS, use
from oslo_config import cfg

from magnum_lite import background, rpc
from magnum_lite.conductor import endpoint
from magnum_lite.conductor.task import Services


@pytest.mark.parametrize('url', BROKERS)
def test_nudge_wakes_a_conductor(
    conf: cfg.ConfigOpts, topic: None, url: str, conductor_services: Services
) -> None:
    use(conf, url)
    wake = threading.Event()
    server = rpc.make_server(conf, endpoint.Endpoint(wake, conductor_services))
    server.start()
    try:
        rpc.Nudger(conf).nudge('5d7e1b5c-0000-4000-8000-000000000001')
        assert wake.wait(20)
    finally:
        server.stop()
        server.wait()


@pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnhandledThreadExceptionWarning', 'ignore::ResourceWarning'
)
def test_broker_that_hangs_delays_no_request(conf: cfg.ConfigOpts, silent_broker: str) -> None:
    use(conf, silent_broker)
    nudger = rpc.Nudger(conf)

    began = time.monotonic()
    for _ in range(background.BACKLOG + 10):
        nudger.nudge('5d7e1b5c-0000-4000-8000-000000000001')
    assert time.monotonic() - began < 1, 'a request would have waited'
    # Nothing is left to send when the broker of a later test is named.
    nudger._sender._queue.queue.clear()


def test_broker_that_refuses_is_logged_and_not_raised(
    conf: cfg.ConfigOpts, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))  # bound and not listening: a connection is refused
        use(conf, f'rabbit://guest:guest@127.0.0.1:{taken.getsockname()[1]}/')
        said = threading.Event()

        def notice(record: logging.LogRecord) -> bool:
            if 'The broker fails' in record.getMessage():
                said.set()
            return True

        caplog.handler.addFilter(notice)
        rpc.Nudger(conf).nudge('5d7e1b5c-0000-4000-8000-000000000001')
        assert said.wait(60), caplog.text
    assert 'conductors find clusters at their next tick' in caplog.text


def test_serve_needs_no_broker_unless_one_is_named(conf: cfg.ConfigOpts) -> None:
    conf.clear_override('transport_url')
    assert conf.transport_url == 'rabbit://'
    rpc.set_default_transport(conf)
    assert conf.transport_url == 'fake://'

    conf.set_override('transport_url', 'rabbit://example')
    rpc.set_default_transport(conf)
    assert conf.transport_url == 'rabbit://example'


def test_client_that_has_failed_is_made_anew_once(conf: cfg.ConfigOpts) -> None:
    """A connection that broke while a broker hung stayed in the pool, and every later message
    failed on it."""
    use(conf, 'fake://')
    clients = rpc._Client(conf)
    first = clients.get()
    assert clients.get() is first

    clients.drop(first)
    second = clients.get()
    clients.drop(first)  # somebody else who failed on it

    assert second is not first and clients.get() is second
