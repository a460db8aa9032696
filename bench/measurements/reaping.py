# SPDX-License-Identifier: Apache-2.0
"""Delete devices that were released: in groups, and one by one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from bench.measurements import Run
from bench.result import Goal, Row, Table, interleave
from bench.ways import Way, floor
from bench.ways.ip import Batch
from bench.ways.pyroute2 import Pyroute2
from bench.ways.tapster import Library
from bench.world import world

GROUPS = 8
"""Batches a round."""
SINGLES = 16
"""Devices a round, where they are deleted one by one."""


def measure(run: Run) -> Iterator[Table]:
    devices = run.size(GROUPS, 1) * floor.BATCH
    singles = run.size(SINGLES, 2)
    with world(run.program) as place, ExitStack() as stack:
        bridge = place.bridge("br0", run.size(100, 2))
        library = Library(place.directory / "ledger.db", "br0")
        stack.enter_context(library.host)
        pyroute2 = Pyroute2(bridge)
        stack.callback(pyroute2.close)
        releasing = floor.Releasing(place.floor, bridge)
        deleting = floor.Deleting(place.floor, bridge)
        found = interleave(
            {
                releasing.title: _reaping(releasing, devices),
                library.title: _reaping(library, devices),
                deleting.title: _stopping(deleting, singles),
                Batch.title: _stopping(Batch("br0"), singles),
                pyroute2.title: _stopping(pyroute2, singles),
            },
            run.rounds,
        )
    yield Table(
        "reap",
        "Reap: delete a device",
        "ms a device",
        [Row(title, rounds, NOTES[title]) for title, rounds in found.items()],
        base=floor.Releasing.title,
        goals=[
            Goal(Library.title, 1.3, to=floor.Releasing.title),
            Goal(floor.Deleting.title, 20, to=Library.title, least=True),
        ],
        about=f"Tapster and the floor delete groups of {floor.BATCH} devices, which "
        "are down and off their bridge. The others delete devices in use, one by one.",
    )


NOTES = {
    floor.Releasing.title: "for each group: its devices join it, then it is deleted",
    Library.title: "finds what is due, proves that each device is its own and is gone "
    "afterwards, frees the name and writes the history",
    floor.Deleting.title: "one by one, from C",
    Batch.title: "one by one, a process each",
    Pyroute2.title: "one by one",
}


def _reaping(way: floor.Releasing | Library, devices: int) -> Callable[[], float]:
    def measured() -> float:
        _start(way, devices)
        for _ in range(devices):
            way.stop()
        return way.reap() / devices * 1e3

    return measured


def _stopping(way: Way, devices: int) -> Callable[[], float]:
    def measured() -> float:
        _start(way, devices)
        return sum(way.stop() for _ in range(devices)) / devices * 1e3

    return measured


def _start(way: Way, devices: int) -> None:
    for _ in range(devices):
        way.start()
