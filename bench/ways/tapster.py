# SPDX-License-Identifier: Apache-2.0
"""Tapster: the library, and the command."""

import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.clock import timed
from bench.processes import run
from tapster import Host, OpenDevice, Tap
from tapster.model import DEFAULT_FIN_WAIT

COMMAND = str(Path(sys.executable).with_name("tapster"))


def no_reaper(_: str) -> None:
    """Start no reaper: the measurement says when to reap."""


class Library:
    """A Host that lives as long as its program."""

    title = "Tapster"
    note = (
        "picks the name, records who owns it, makes and wires the device; when it "
        "returns from a stop, the name is held for 5 s more"
    )

    def __init__(
        self,
        ledger: Path,
        bridge: str,
        *,
        reaper: Callable[[str], None] | None = no_reaper,
        fin_wait: float = DEFAULT_FIN_WAIT,
    ) -> None:
        self.host = Host(ledger, reaper=reaper)
        self._spec = Tap(bridge=bridge, owner="bench", fin_wait=fin_wait)
        self._live: deque[OpenDevice] = deque()

    def start(self) -> float:
        taken, lease = timed(lambda: self.host.acquire(self._spec))
        self._live.append(lease)
        return taken

    def stop(self) -> float:
        lease = self._live.popleft()
        lease.close()
        self.host.device(lease)  # the kernel has noticed the close: see the floor
        return timed(lambda: self.host.release(lease.id))[0]

    def tidy(self) -> None:
        self.reap()

    def reap(self) -> float:
        """Delete what was released; the seconds."""
        return timed(lambda: self.host.reap(now=True))[0]


class Command:
    """The command: a process that starts, does one thing and ends."""

    title = "tapster add, tapster rm"
    note = "two processes, of Tapster as it is installed"

    def __init__(self, command: Sequence[str], bridge: str) -> None:
        """`command` is the program with the options before the verb."""
        self._command = command
        self._bridge = bridge
        self._live: deque[str] = deque()
        self._started = 0

    def start(self) -> float:
        self._started += 1
        name = f"cmd{self._started}"
        self._live.append(name)
        return run(*self._command, "add", "--bridge", self._bridge, "--name", name)

    def stop(self) -> float:
        return run(*self._command, "rm", self._live.popleft())

    def list(self) -> float:
        """List the leases; the seconds."""
        return run(*self._command, "ls")

    def tidy(self) -> None:
        run(*self._command, "reap", "--now")
