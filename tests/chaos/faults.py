"""Breaks conductors and the cloud as the plan says, and mends them again, whatever happens
meanwhile.

The cloud is broken by `testcloud/cloud/fault`, so nobody else may be using that cloud.
"""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

from chaos import plan
from functional.cloud import TOOLS
from functional.service import Process, Service

FAULT = TOOLS / 'fault'
#: The pid file of the test cloud's Heat: what is not there cannot be broken.
HEAT = pathlib.Path(os.environ.get('CLOUD_HOME', '/opt/testcloud')) / 'run' / 'heat-engine.pid'
#: After these Heat itself may have lost what it was doing: it keeps that in the memory of its
#: engine and in messages.
HARMFUL = ('heat-engine stop', 'heat-engine pause', 'mq stop')
#: Seconds after such a fault within which its consequences may still begin.
AFTERMATH_S = 10
#: Seconds between two restarts of an engine at least.
RESTART_S = 60
MENDS = {'stop': 'start', 'pause': 'resume'}


class Faults:
    """All faults of a plan, one thread for each conductor and one for the cloud. Times are of
    time.monotonic()."""

    def __init__(
        self,
        service: Service,
        faults: list[plan.Fault],
        killed: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self._service, self._killed, self._say = service, killed, say
        self._lock, self._heat = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()
        self.counts: collections.Counter[str] = collections.Counter()
        #: When Heat was harmed: from -> until.
        self.harm: dict[float, float] = {}
        self.problems: list[str] = []
        self._slots: list[Process] = list(service.conductors)
        self._begun = time.monotonic()
        self._threads = [
            threading.Thread(
                target=self._run,
                name=f'faults {track}',
                args=([f for f in faults if f.track == track],),
            )
            for track in range(-1, len(self._slots))
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Wait until all is broken and mended."""
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Break nothing more, and wait until all is mended."""
        self._stopping.set()
        self.wait()

    def restart_heat(self) -> None:
        """Restart Heat's engine, once a minute at most: what a dead engine held can be taken over,
        by no one else's."""
        with self._heat:
            began = time.monotonic()
            if began - max(self.harm, default=0) > RESTART_S:
                self.harm[began] = float('inf')
                self.counts['heat-engine restarted for lost stacks'] += 1
                self._tool('heat-engine', 'stop')
                self._tool('heat-engine', 'start')
                self.harm[began] = time.monotonic()

    def is_excuse(self, begin: float, end: float) -> bool:
        """Whether Heat was harmed while something ran that took so long."""
        return any(
            begin < until + AFTERMATH_S and since < end for since, until in list(self.harm.items())
        )

    def _run(self, faults: list[plan.Fault]) -> None:
        for fault in faults:
            if self._stopping.wait(max(0, self._begun + fault.at_s - time.monotonic())):
                return
            self._say(
                f'{time.monotonic() - self._begun:5.0f} s: {fault.kind} '
                f'{fault.track if fault.track >= 0 else ""} for {fault.for_s:.0f} s'
            )
            self.counts[fault.kind] += 1
            try:
                with self._broken(fault):
                    self._stopping.wait(fault.for_s)
            except Exception as e:
                self.problems.append(f'{fault}: {type(e).__name__} {e}')

    @contextlib.contextmanager
    def _broken(self, fault: plan.Fault) -> Iterator[None]:
        if fault.track >= 0:
            broken = {'kill': self._kill, 'term': self._term, 'freeze': self._freeze}[fault.kind]
            with broken(fault.track):
                yield
            return
        name, action = fault.kind.split()
        began = time.monotonic()
        if fault.kind in HARMFUL:
            self.harm[began] = float('inf')
        with self._heat:
            self._tool(name, action)
        try:
            yield
        finally:
            self._tool(name, MENDS[action])
            if fault.kind in HARMFUL:
                self.harm[began] = time.monotonic()

    @staticmethod
    def _tool(*words: str) -> None:
        done = subprocess.run(
            [str(FAULT), *words], capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            raise AssertionError(f'fault {" ".join(words)}: {done.stdout}{done.stderr}')

    @contextlib.contextmanager
    def _kill(self, slot: int) -> Iterator[None]:
        process = self._slots[slot]
        with self._lock:
            self._service.kill_conductor(process)
        self._killed(process.popen.pid)
        yield
        self._start(slot)

    @contextlib.contextmanager
    def _term(self, slot: int) -> Iterator[None]:
        try:
            self._service.stop_conductor(self._slots[slot])
        except AssertionError as e:
            self.problems.append(str(e)[:300])
        yield
        self._start(slot)

    @contextlib.contextmanager
    def _freeze(self, slot: int) -> Iterator[None]:
        process = self._slots[slot]
        process.popen.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.popen.send_signal(signal.SIGCONT)

    def _start(self, slot: int) -> None:
        with self._lock:
            self._slots[slot] = self._service.start_conductor(wait=False)
