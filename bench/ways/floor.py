# SPDX-License-Identifier: Apache-2.0
"""The floor: the system calls alone, from C."""

from collections import deque
from pathlib import Path

from bench.floor import Floor
from tapster import Host, Tap
from tapster.operations.reap import REAP_BATCH

BATCH = REAP_BATCH
"""As many devices at a time as Tapster reaps."""


class Releasing:
    """As Tapster stops a device: down and off the bridge, deleted later.

    The VM has ended before. After the close of a tap the kernel works in the
    background, for as long as a release takes. So the measurement begins when this work
    is over.
    """

    title = "floor"
    note = (
        "a C program that makes the system calls and nothing else: it looks for no "
        "name, checks, records and proves nothing"
    )

    def __init__(self, floor: Floor, bridge: int) -> None:
        self._floor = floor
        self._bridge = bridge
        self._live: deque[int] = deque()
        self._released: list[int] = []

    def start(self) -> float:
        ifindex, taken = self._acquire()
        self._live.append(ifindex)
        return taken

    def stop(self) -> float:
        ifindex = self._live.popleft()
        self._floor.close(ifindex)
        self._released.append(ifindex)
        return self._floor.release(ifindex)

    def tidy(self) -> None:
        self.reap()

    def reap(self) -> float:
        """Delete what was released, as groups; the seconds."""
        taken = self._floor.reap(self._released, BATCH)
        self._released.clear()
        return taken

    def _acquire(self) -> tuple[int, float]:
        return self._floor.acquire(self._bridge)


class ReleasingWithoutIpv6(Releasing):
    """The same, and the host makes itself no IPv6 address, as with Tapster."""

    title = "floor, no IPv6"
    note = (
        "the same with a message before it that keeps the host from giving itself an "
        "IPv6 address on the tap, as Tapster does: that makes the rest cheaper"
    )

    def _acquire(self) -> tuple[int, float]:
        return self._floor.acquire(self._bridge, ipv6=False)


class Recording(Releasing):
    """As Tapster does it: with its system calls and its transactions."""

    title = "floor, recorded"
    note = (
        "a C program that makes the same system calls as Tapster, and the same "
        "transactions in a ledger of its own, with statements prepared once: it picks "
        "no name, checks nothing, and undoes nothing"
    )

    def __init__(self, floor: Floor, bridge: int, ledger: Path) -> None:
        super().__init__(floor, bridge)
        with Host(ledger, reaper=lambda _: None) as host:  # the tables, and a template
            host.acquire(Tap(name="floor%d")).close()
        floor.record_in(ledger)

    def stop(self) -> float:
        ifindex = self._live.popleft()
        self._floor.close(ifindex)
        self._released.append(ifindex)
        return self._floor.release_recorded(ifindex)

    def _acquire(self) -> tuple[int, float]:
        return self._floor.acquire_recorded(self._bridge)


class Deleting(Releasing):
    """The device is deleted at once, alone."""

    title = "floor, deleting"
    note = "the same C program; it stops a device by deleting it"

    def stop(self) -> float:
        ifindex = self._live.popleft()
        self._floor.close(ifindex)
        return self._floor.delete(ifindex)
