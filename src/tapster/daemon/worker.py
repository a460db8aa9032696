# SPDX-License-Identifier: Apache-2.0
"""The one thread that works on devices, while another serves the sockets."""

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from tapster.errors import TapsterError

Job = Callable[[], Any]
Then = Callable[[Any], None]


class Worker:
    """Does jobs, one after the other; what becomes of them is handed back.

    `results`, in the thread that serves, calls each job's `then` with what it
    returned or raised; `wake` can be read when there is something to hand back.
    """

    def __init__(self, unforeseen: Callable[[Exception], TapsterError]) -> None:
        """`unforeseen` makes a result of an error that nobody foresaw."""
        self.after: Callable[[], None] | None = None
        """Called after each job, before its result is handed back."""
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._unforeseen = unforeseen
        self._jobs: SimpleQueue[tuple[Job, Then] | None] = SimpleQueue()
        self._done: deque[tuple[Then, Any]] = deque()
        self._thread = threading.Thread(target=self._run, name="worker")

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job, then: Then) -> None:
        self._jobs.put((job, then))

    def hand_back(self, then: Then, value: Any) -> None:
        """Let the thread that serves call `then`. May be called by any thread."""
        self._done.append((then, value))
        os.eventfd_write(self.wake, 1)

    def results(self) -> None:
        os.eventfd_read(self.wake)
        self._hand_over()

    def finish(self) -> None:
        """Do what is left to do, and end."""
        self._jobs.put(None)
        self._thread.join()
        self._hand_over()
        os.close(self.wake)

    def _hand_over(self) -> None:
        while self._done:
            then, value = self._done.popleft()
            try:
                then(value)
            except Exception as error:  # noqa: BLE001 - nor may one answer
                self._unforeseen(error)

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, then = entry
            try:
                result = job()
            except TapsterError as error:
                result = error
            except Exception as error:  # noqa: BLE001 - one call must not end all
                result = self._unforeseen(error)
            if self.after is not None:
                try:
                    self.after()
                except Exception as error:  # noqa: BLE001 - its result is still good
                    self._unforeseen(error)
            self.hand_back(then, result)
