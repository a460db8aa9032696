# SPDX-License-Identifier: Apache-2.0
"""Finished waits are reaped without anybody remembering."""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tapster import Host, Tap
from tapster.kernel.lock import REAPER, LockFile
from tests.kernel import tools

PATIENCE = 20.0


class Monitor:
    """`ip monitor link`, listening from when it is entered."""

    def __enter__(self) -> Self:
        self._seen = b""
        self._process = subprocess.Popen(
            ["ip", "-o", "monitor", "link"], stdout=subprocess.PIPE
        )
        # It does not say when it is ready; that it reports a change does.
        deadline = time.monotonic() + PATIENCE
        number = 0
        while b"canary" not in self._seen and time.monotonic() < deadline:
            number += 1
            tools.sh(f"ip link add canary{number} type bridge")
            self._read(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_deleted(self, name: str) -> None:
        """Wait until the device is deleted."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(rb"Deleted \d+: " + name.encode(), self._seen):
            assert time.monotonic() < deadline, self._seen
            self._read(PATIENCE)

    def _read(self, patience: float) -> None:
        assert self._process.stdout
        if select.select([self._process.stdout], [], [], patience)[0]:
            self._seen += os.read(self._process.stdout.fileno(), 65536)


def reapers(ledger: Path) -> list[int]:
    """The processes that reap for this ledger, oldest first."""
    done = subprocess.run(
        ["pgrep", "-f", f"tapster.reaper {ledger}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return sorted(int(pid) for pid in done.stdout.split())


def wait_dead(pids: list[int]) -> None:
    for pid in pids:
        try:
            ended = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([ended], [], [], PATIENCE)[0], pid
        os.close(ended)


@pytest.fixture
def released(ledger: Path) -> Iterator[Host]:
    """A Host that has just released vnet0, which waits for a second."""
    with Host(ledger) as host:
        lease = host.acquire(Tap(bridge="br0", fin_wait=1.0))
        tools.close(lease.fds)
        host.release(lease.id)
        wait_reaping(ledger)
        yield host


def wait_reaping(ledger: Path) -> None:
    """Wait until a leader has the lock and a standby is forked."""
    locks = LockFile(str(ledger))
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if locks.alive(REAPER) and len(reapers(ledger)) == 2:
            locks.leave()
            return
        select.select([], [], [], 0.01)
    raise AssertionError("no reaper came up")


def test_a_release_is_reaped_by_itself_and_the_reaper_ends(
    released: Host, ledger: Path
) -> None:
    both = reapers(ledger)
    with Monitor() as monitor:
        monitor.wait_deleted("vnet0")
    wait_dead(both)
    assert released.leases() == []
    assert reapers(ledger) == []


def test_what_recover_lets_wait_is_reaped_by_itself_too(ledger: Path) -> None:
    with Host(ledger) as host:
        tools.close(host.acquire(Tap(bridge="br0", fin_wait=1.0)).fds)
        tools.sh("ip link del vnet0")
        host.recover()
        wait_reaping(ledger)
        both = reapers(ledger)
        with Monitor() as monitor:
            monitor.wait_deleted("vnet0")
        wait_dead(both)
        assert host.leases() == []


def test_it_survives_the_death_of_its_leader(released: Host, ledger: Path) -> None:
    leader, standby = reapers(ledger)
    with Monitor() as monitor:
        os.kill(leader, signal.SIGKILL)
        monitor.wait_deleted("vnet0")
    wait_dead([standby])
    assert released.leases() == []


def test_it_survives_the_death_of_both_by_the_next_command(
    released: Host, ledger: Path
) -> None:
    both = reapers(ledger)
    with Monitor() as monitor:
        for pid in both:
            os.kill(pid, signal.SIGKILL)
        wait_dead(both)
        tools.sh(f"{tools.TAPSTER} ls --ledger {ledger}")
        monitor.wait_deleted("vnet0")


def test_one_reaper_is_enough(released: Host, ledger: Path) -> None:
    before = reapers(ledger)
    for _ in range(5):
        lease = released.acquire(Tap(bridge="br0", fin_wait=1.0))
        tools.close(lease.fds)
        released.release(lease.id)
    assert reapers(ledger) == before
    with Monitor() as monitor:
        monitor.wait_deleted("vnet5")


def test_it_does_not_outlive_a_deleted_ledger(released: Host, ledger: Path) -> None:
    both = reapers(ledger)
    for file in ledger.parent.glob("ledger.db*"):
        file.unlink()
    wait_dead(both)
