# SPDX-License-Identifier: Apache-2.0
"""Find the reapers of a ledger; wait until they come up, delete devices, and end."""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from lab import shell
from tapster.kernel.lock import REAPER, LockFile

REAP_SECONDS = 20.0
"""Seconds for a reaper to delete a device, or to end."""


class Monitor:
    """`ip monitor link`, which listens once the context is entered."""

    def __enter__(self) -> Self:
        self._seen = b""
        self._process = subprocess.Popen(
            ["ip", "-o", "monitor", "link"], stdout=subprocess.PIPE
        )
        # It does not say when it is ready; that it reports a change does.
        deadline = time.monotonic() + REAP_SECONDS
        number = 0
        while b"canary" not in self._seen and time.monotonic() < deadline:
            number += 1
            shell.sh(f"ip link add canary{number} type bridge")
            self._read(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_deleted(self, name: str) -> None:
        """Wait until the device is deleted."""
        self._wait(rb"Deleted \d+: " + name.encode())

    def wait_index_deleted(self, ifindex: int) -> None:
        """Wait until the device with this index is deleted."""
        self._wait(b"Deleted %d: " % ifindex)

    def wait_replaced(self, name: str) -> None:
        """Wait until the device is deleted, and another has its name."""
        again = rb"(?s:.*)\n\d+: "
        self._wait(rb"Deleted \d+: " + name.encode() + again + name.encode())

    def _wait(self, report: bytes) -> None:
        deadline = time.monotonic() + REAP_SECONDS
        while not re.search(report, self._seen):
            assert time.monotonic() < deadline, self._seen
            self._read(REAP_SECONDS)

    def _read(self, patience: float) -> None:
        assert self._process.stdout
        if select.select([self._process.stdout], [], [], patience)[0]:
            self._seen += os.read(self._process.stdout.fileno(), 65536)


def reapers(ledger: Path) -> list[int]:
    """Return the pids of a ledger's reapers: the leader, then its standby."""
    done = subprocess.run(
        ["pgrep", "-f", f"tapster.reaper {ledger}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return sorted((int(pid) for pid in done.stdout.split()), reverse=True)


def kill_reapers(ledger: Path) -> None:
    """Kill the reapers of a ledger, and any standby that a reaper forks during that."""
    while pids := reapers(ledger):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_dead(pids)


def wait_dead(pids: list[int]) -> None:
    for pid in pids:
        try:
            ended = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([ended], [], [], REAP_SECONDS)[0], pid
        os.close(ended)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so that no event reports."""
    deadline = time.monotonic() + REAP_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.01)


def wait_reaping(ledger: Path) -> None:
    """Wait until a leader has the lock and a standby is forked."""
    locks = LockFile(str(ledger))
    try:
        wait_for(
            lambda: locks.alive(REAPER) and len(reapers(ledger)) == 2,
            "a reaper comes up",
        )
    finally:
        locks.leave()
