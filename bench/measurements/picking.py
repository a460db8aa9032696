# SPDX-License-Identifier: Apache-2.0
"""What it costs to pick a name, by the number of leases and of foreign devices.

One pick is one transaction of the ledger: choose name, ifindex and MAC, insert
the row. Foreign devices are real ones, asked about by real system calls.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median

from bench.clock import timed
from bench.measurements import Run
from bench.result import Goal, Row, Table, interleave
from bench.world import BenchWorld, world
from tapster.kernel.linux import LinuxNamespace, LinuxSystem
from tapster.ledger import Ledger, Reservation
from tapster.model import DEFAULT_TEMPLATE, Lease, Naming, Tap
from tapster.names import parse

SIZES = (10, 1_000, 100_000, 1_000_000)
FOREIGN = 10_000
PICKS = 200
"""A round, of each policy and ledger."""
AT_ONCE = 10_000
"""Leases in one transaction while a ledger is filled."""
HOLES = 10
"""Every tenth lease of a filled ledger is over, so free numbers are in many places."""
FLAT = 1.5
EMPTY = "empty"


def measure(run: Run) -> Iterator[Table]:
    sizes = [run.size(size, 10 * number) for number, size in enumerate(SIZES, start=1)]
    picks, foreign = run.size(PICKS, 2), run.size(FOREIGN, 20)
    with world(run.program) as place, ExitStack() as stack:
        shelves = Shelves(place, stack, foreign)
        by_size = {size: shelves.make(size) for size in sizes}
        crowded = shelves.make(sizes[0], crowded=True)
        ways: dict[str, Callable[[], float]] = {}
        for naming in Naming:
            for size, shelf in by_size.items():
                ways[_leases(naming, size)] = _picking(shelf, naming, picks)
            ways[_foreign(naming, foreign)] = _picking(crowded, naming, picks)
        ways[_first(foreign)] = lambda: _first_pick(shelves)
        found = interleave(ways, run.rounds)
    yield Table(
        "pick",
        "Pick a name",
        "us",
        [
            Row(_leases(naming, size), found[_leases(naming, size)], "", naming, size)
            for naming in Naming
            for size in sizes
        ]
        + [
            Row(_foreign(naming, foreign), found[_foreign(naming, foreign)])
            for naming in Naming
        ]
        + [Row(_first(foreign), found[_first(foreign)], "it meets them all")],
        base=_leases(Naming.LOWEST, sizes[0]),
        goals=[
            Goal(crowd, FLAT, to=_leases(naming, sizes[0]))
            for naming in Naming
            for crowd in (_leases(naming, sizes[-1]), _foreign(naming, foreign))
        ]
        + [Goal(_first(foreign), 60_000)],
        axis="leases",
        about="The median time of one transaction. A tenth of the leases, spread over "
        "all numbers, has ended, so that free numbers are in many places.",
    )


def _leases(naming: Naming, size: int) -> str:
    return f"{naming}, {size:,} leases"


def _foreign(naming: Naming, foreign: int) -> str:
    return f"{naming}, {foreign:,} foreign names in the way"


def _first(foreign: int) -> str:
    return f"the very first, {foreign:,} foreign names in the way"


class Shelf:
    """A ledger with some leases in it."""

    def __init__(self, path: str, namespace: LinuxNamespace, leases: int) -> None:
        self.ledger = Ledger(path, LinuxSystem())
        self._namespace = namespace
        self._keys = 0
        for start in range(0, leases, AT_ONCE):
            made = self._reserve(Naming.LOWEST, min(AT_ONCE, leases - start))
            self.ledger.end([lease.id for lease in made[::HOLES]])

    def pick(self, naming: Naming) -> float:
        """Return the microseconds that one pick takes."""
        taken, (lease,) = timed(lambda: self._reserve(naming))
        self.ledger.end([lease.id])
        return taken * 1e6

    def _reserve(self, naming: Naming, count: int = 1) -> list[Lease]:
        key = None
        if naming is Naming.STABLE:
            self._keys += 1
            key = str(self._keys)
        spec = Tap(naming=naming, key=key)
        return self.ledger.reserve(
            self._namespace.netns,
            [Reservation(spec, parse(spec.name), None, spec.wiring)] * count,
            manager=1,
            holder_of=self._namespace.ifindex,
            changed_links=self._namespace.changed_links,
            list_holders=self._namespace.names,
        )


class Shelves:
    """Makes ledgers, for a namespace with many foreign devices and for an empty one."""

    def __init__(self, place: BenchWorld, stack: ExitStack, foreign: int) -> None:
        self._directory = place.directory
        self._stack = stack
        self._made = 0
        subprocess.run(["ip", "netns", "add", EMPTY], check=True)
        for number in range(foreign):
            name = parse(DEFAULT_TEMPLATE).name(number)
            place.floor.close(place.floor.make(name))
        self._empty, self._crowded = self._namespace(EMPTY), self._namespace(None)

    def make(self, leases: int, *, crowded: bool = False) -> Shelf:
        """Return a ledger with that many leases."""
        self._made += 1
        path = f"{self._directory}/{self._made}.db"
        shelf = Shelf(path, self._crowded if crowded else self._empty, leases)
        self._stack.callback(shelf.ledger.close)
        return shelf

    def _namespace(self, netns: str | None) -> LinuxNamespace:
        namespace = LinuxSystem().netns(netns)
        self._stack.callback(namespace.close)
        return namespace


def _picking(shelf: Shelf, naming: Naming, picks: int) -> Callable[[], float]:
    return lambda: median(shelf.pick(naming) for _ in range(picks))


def _first_pick(shelves: Shelves) -> float:
    """As a host's first pick, in a new ledger."""
    return shelves.make(0, crowded=True).pick(Naming.LOWEST)
