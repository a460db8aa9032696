# SPDX-License-Identifier: Apache-2.0
"""Which thread serves the sockets: the worker's between jobs, or one that stands in.

To hand a request to another thread, and its answer back, takes longer than the work on
both: Python lets one thread run at a time, and each system call of one thread lets the
other in. So the worker's thread takes requests and sends answers itself, between two
jobs. While a job takes long, because the kernel or a service lets it wait, the main
thread stands in for it.
"""

import threading
import time
from collections.abc import Callable
from math import inf

from tapster.daemon.worker import Worker

PATIENCE = 0.005
"""Seconds that a job may take before the main thread serves the sockets. The main
thread looks as often, so clients wait for at most twice as long."""
DROWSY = 4
"""Looks without a job in between, after which the main thread sleeps until the next
job."""

Serve = Callable[[float], None]
"""Waits for events for at most so many seconds, and handles them."""


class Shifts:
    """Runs a worker's thread, which serves too, and stands in for it."""

    def __init__(self, worker: Worker, serve: Serve) -> None:
        """One thread at a time calls `serve`."""
        self._worker = worker
        self._serve = serve
        self._duty = threading.Lock()
        """The thread that holds it serves."""
        self._begun: float | None = None
        """When the worker's thread began what may take long, if it has begun."""
        self._jobs = 0
        self._sleeps = False
        """Whether the main thread sleeps until it is woken."""
        self._awake = threading.Event()
        self._over = False
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Serve until `end` is called. Raises what `serve` raises."""
        self._worker.start(self._work)
        try:
            jobs = quiet = 0
            while not self._over:
                if self._is_late():
                    self._stand_in()
                else:
                    quiet = quiet + 1 if jobs == self._jobs else 0
                    jobs = self._jobs
                    self._rest(sleep=quiet >= DROWSY)
        finally:
            self.end()
            with self._duty:
                pass  # the worker's thread serves no more from here on
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Let no thread serve any more. The worker does the jobs that wait, and ends.
        Any thread may call this method."""
        self._over = True
        self._awake.set()
        self._worker.poke()

    # The main thread

    def _is_late(self) -> bool:
        """Return whether the worker's thread takes long."""
        begun = self._begun
        return begun is not None and time.monotonic() - begun >= PATIENCE

    def _stand_in(self) -> None:
        with self._duty:
            if self._is_late() and not self._over:
                self._serve(PATIENCE)

    def _rest(self, *, sleep: bool) -> None:
        """Wait until it is time to look again."""
        # The worker's thread says that it begins, and then looks whether this thread
        # sleeps. This thread does both in the other order, so one sees the other.
        self._sleeps = sleep
        self._awake.wait(None if sleep and self._begun is None else PATIENCE)
        self._sleeps = False
        self._awake.clear()

    # The worker's thread

    def _work(self) -> None:
        try:
            while not self._over:
                self._on_duty(self._take_requests)
                if self._worker.waiting:
                    self._do_next()
            while self._worker.do_next():
                pass
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._failure = error
            self.end()

    def _do_next(self) -> None:
        self._jobs += 1
        self._do(self._worker.do_next)
        self._on_duty(self._worker.hand_over)
        self._do(self._worker.follow_up)

    def _do(self, work: Callable[[], object]) -> None:
        """Do what may take long. The main thread stands in if it does."""
        self._begun = time.monotonic()
        if self._sleeps:
            self._awake.set()
        try:
            work()
        finally:
            self._begun = None

    def _take_requests(self) -> None:
        self._serve(0.0 if self._worker.waiting else inf)

    def _on_duty(self, work: Callable[[], None]) -> None:
        if not self._duty.acquire(blocking=False):
            self._worker.poke()  # the other thread may wait for events
            self._duty.acquire()
        try:
            if not self._over:
                work()
        finally:
            self._duty.release()
