"""What the log says while something is away. The clock is the test's."""

from __future__ import annotations

import logging
import threading

import pytest

from magnum_lite import background, outage


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heat(clock: Clock, caplog: pytest.LogCaptureFixture) -> outage.Outage:
    caplog.set_level(logging.INFO)
    return outage.Outage('Heat', 'Clusters wait', clock=clock)


def test_first_failure_is_said_at_once(
    heat: outage.Outage, caplog: pytest.LogCaptureFixture
) -> None:
    heat.record_failure('refused')

    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ('WARNING', 'Heat fails. Clusters wait (refused)')
    ]


def test_more_failures_are_said_once_a_minute(
    heat: outage.Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for second in range(150):
        clock.now = second
        heat.record_failure('refused')

    assert caplog.messages == [
        'Heat fails. Clusters wait (refused)',
        'Heat has failed for 60 s, calls: 61. Clusters wait (refused)',
        'Heat has failed for 120 s, calls: 121. Clusters wait (refused)',
    ]


def test_end_is_said_once(
    heat: outage.Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    heat.record_failure('refused')
    clock.now = 90
    heat.record_success()
    heat.record_success()

    assert [(r.levelname, r.getMessage()) for r in caplog.records][1:] == [
        ('INFO', 'Heat works again after 90 s, failed calls: 1')
    ]


def test_nothing_is_said_of_what_works(
    heat: outage.Outage, caplog: pytest.LogCaptureFixture
) -> None:
    heat.record_success()

    assert caplog.messages == []


def test_what_comes_and_goes_is_said_no_more_than_once_a_minute(
    heat: outage.Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for second in range(60):
        clock.now = second
        heat.record_failure('refused')
        heat.record_success()

    assert len(caplog.messages) == 2

    clock.now = 61
    heat.record_failure('refused')

    assert caplog.messages[2:] == ['Heat fails. Clusters wait (refused)']


def test_many_threads_warn_once(heat: outage.Outage, caplog: pytest.LogCaptureFixture) -> None:
    threads = [threading.Thread(target=heat.record_failure, args=('refused',)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(caplog.messages) == 1


def test_library_that_repeats_itself_is_heard_once_a_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger('test.chatterer')
    logger.addFilter(outage.OnceAMinute(clock=clock))
    for second in range(0, 150, 5):
        clock.now = second
        logger.warning('try %d failed', second)
        logger.info('try %d', second)

    warnings = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
    assert warnings == ['try 0 failed', 'try 60 failed', 'try 120 failed']


def test_other_things_that_a_library_says_are_heard(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger('test.chatterer.other')
    logger.addFilter(outage.OnceAMinute(clock=clock))
    logger.warning('refused')
    logger.error('cut')

    assert caplog.messages == ['refused', 'cut']


def test_message_is_tried_again_until_it_is_sent(heat: outage.Outage) -> None:
    tries: list[str] = []
    sent = threading.Event()

    def send(message: str) -> None:
        tries.append(message)
        if len(tries) < 3:
            raise OSError('refused')
        if message == 'b':
            sent.set()

    sender = background.Sender('test', send, heat, retry_after_s=0.001)
    sender.put('a')
    sender.put('b')

    assert sent.wait(20)
    assert tries == ['a', 'a', 'a', 'b']
