# SPDX-License-Identifier: Apache-2.0
"""The processes that leases are bound to. The loop reports the end of each."""

import os
from collections.abc import Callable
from functools import partial

from tapster.daemon.log import WARNING, Log
from tapster.daemon.loop import READ, Loop
from tapster.errors import TapsterError
from tapster.kernel.port import System
from tapster.model import Process

RETRY = 1.0
"""Seconds until the next attempt to watch a process after descriptors ran out."""


class WatchedProcesses:
    """One descriptor for each process that is watched."""

    def __init__(
        self, loop: Loop, system: System, on_end: Callable[[Process], None], log: Log
    ) -> None:
        """`on_end` is called once for each watched process that has ended."""
        self._loop = loop
        self._system = system
        self._on_end = on_end
        self._log = log
        self._watched: dict[Process, int] = {}
        self._retried: set[Process] = set()

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, process: Process) -> None:
        """Report the end of this process, also if it has ended already."""
        if process in self._watched:
            return
        try:
            pidfd = self._system.open_process(process)
        except TapsterError as error:
            if not self._retried:  # not once more for each process and attempt
                self._log(WARNING, "process-not-watched", error=error)
            self._retried.add(process)
            self._loop.at(self._loop.now() + RETRY, partial(self._retry, process))
            return
        self._retried.discard(process)
        if pidfd is None:
            self._on_end(process)
            return
        self._watched[process] = pidfd
        self._loop.add(pidfd, READ, lambda _: self._ended(process))

    def forget(self, process: Process) -> None:
        """Stop watching this process: no lease is bound to it any more."""
        self._retried.discard(process)
        pidfd = self._watched.pop(process, None)
        if pidfd is not None:
            self._loop.remove(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Stop watching every process."""
        for process in list(self._watched):
            self.forget(process)

    def _ended(self, process: Process) -> None:
        self.forget(process)
        self._on_end(process)

    def _retry(self, process: Process) -> None:
        if process in self._retried:
            self.watch(process)
