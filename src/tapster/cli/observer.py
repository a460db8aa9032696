# SPDX-License-Identifier: Apache-2.0
"""Report events without the daemon: from the kernel's reports, and the ledger.

Nearly every change of a lease changes its device, and the kernel reports that at once.
Then the leases are read, and compared with those of the look before. Between reports
only the times of the ledger's files are looked at.
"""

import os
import select
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from tapster.errors import HostError, MissingCapability, NoSuchLease, TapsterError
from tapster.host import Host
from tapster.ledger import FIRST_IFINDEX
from tapster.light import Self
from tapster.model import Lease, State
from tapster.rpc.interface import Event, event_of

PAUSE = 0.05
"""Seconds until leases that a process works on are looked at again."""
REST = 1.0
"""Seconds between two looks at the ledger's file: a release of a device that is down
changes the ledger alone."""


class Observer:
    """The events of a host's leases. Use it as a context manager."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._look_at = host.operations.look
        system = host.operations.context.system
        self._watches = [system.watch(first=FIRST_IFINDEX)]
        with suppress(MissingCapability):  # then only this namespace is watched
            self._watches.append(system.watch(first=FIRST_IFINDEX, elsewhere=True))
        self._poll = select.poll()
        for watch in self._watches:
            self._poll.register(watch.fileno(), select.POLLIN)
        self._path = host.operations.context.ledger.path
        self._written: list[int] = []
        self._followed: set[int] = set()
        self._leases: dict[str, Lease] = {}
        self._differing: frozenset[str] = frozenset()
        self._events: deque[Event] = deque()
        self._busy = False
        """Whether a process works on a lease: look again soon."""

    def __enter__(self) -> Self:
        self._look(report=False)
        self._events.append(Event(round(time.time(), 3), "watching"))
        return self

    def __exit__(self, *_: object) -> None:
        for watch in self._watches:
            watch.close()

    def watch(self) -> Iterator[Event]:
        """Yield what happens, as it happens; the first event is "watching"."""
        while True:
            while not self._events:
                self.ready(None)
            yield self._events.popleft()

    def ready(self, seconds: float | None) -> bool:
        """Return whether there is an event, or one comes within so many seconds."""
        if self._events:
            return True
        longest = PAUSE if self._busy else REST
        wait = longest if seconds is None else min(seconds, longest)
        if self._poll.poll(wait * 1000) or self._busy or self._is_written():
            for watch in self._watches:
                watch.changes()
            self._look()
        return bool(self._events)

    def _is_written(self) -> bool:
        """Return whether the ledger was changed since the look before."""
        return self._times() != self._written

    def _times(self) -> list[int]:
        times = []
        for path in (self._path, f"{self._path}-wal"):
            with suppress(OSError):
                times.append(os.stat(path).st_mtime_ns)
        return times

    def _look(self, *, report: bool = True) -> None:
        """Compare the leases, and their devices, with those of the look before."""
        self._written = self._times()
        leases = {lease.id: lease for lease in self._host.leases()}
        self._follow(leases)
        # A lease that a process works on is between two states.
        busy = {id for id, lease in leases.items() if lease.manager is not None}
        self._busy = bool(busy)
        for id in busy:
            if id in self._leases:
                leases[id] = self._leases[id]
            else:
                del leases[id]
        differing = self._host.differing(leases.values()) - busy
        differing |= self._differing & busy
        # A lease that was released, or changed, after it was read looks wrong.
        stale = {id for id in differing - self._differing if self._is_stale(leases[id])}
        self._busy |= bool(stale)
        differing -= stale
        if report:
            self._compare(leases, differing)
        self._leases, self._differing = leases, differing

    def _is_stale(self, lease: Lease) -> bool:
        """Return whether a lease has changed since it was read."""
        try:
            return self._host.look_up(lease.id) != lease
        except NoSuchLease:
            return True

    def _compare(self, leases: dict[str, Lease], differing: frozenset[str]) -> None:
        for id, lease in leases.items():
            before = self._leases.get(id)
            if before is None and lease.state is not State.RESERVED:
                self._report("acquired", lease)
            if before is None or before.state is State.ACTIVE:
                if lease.state is State.FIN_WAIT:
                    self._report("released", lease)
                elif before is not None and before.wiring != lease.wiring:
                    self._report("set", lease)
        for id, lease in self._leases.items():
            if id not in leases:
                if lease.state is State.ACTIVE:
                    self._report("released", lease)
                self._report("ended", lease)
        for id in sorted(differing - self._differing):
            self._report(*self._difference(leases[id]))
        for id in sorted(self._differing - differing):
            if id in leases and leases[id].state is State.ACTIVE:
                self._report("sound", leases[id])

    def _difference(self, lease: Lease) -> tuple[str, Lease, str]:
        """Return the event for a device that is not as requested."""
        try:
            link = self._host.device(lease)
            if link is None:
                return "lost", lease, "the device is gone"
            if link.name != lease.name:
                return "renamed", lease, f"the device is called {link.name!a} now"
            wiring = lease.wiring.in_force
            if wiring.up and not link.up:
                return "down", lease, "another program took the device down"
            if wiring.bridge and not self._look_at.joined(link, lease):
                return "moved", lease, f"the device is not on {wiring.bridge}"
            found = self._host.differences(lease)
        except TapsterError as error:
            return "changed", lease, str(error)
        return "changed", lease, "; ".join(found.values())

    def _follow(self, leases: dict[str, Lease]) -> None:
        """Let the kernel report the devices of other namespaces, too."""
        for netns in {lease.netns for lease in leases.values()}:
            if netns.cookie not in self._followed:
                with suppress(HostError):
                    self._look_at.number(netns)
                    self._followed.add(netns.cookie)

    def _report(self, event: str, lease: Lease, detail: str | None = None) -> None:
        self._events.append(event_of(lease, time.time(), event, detail))
