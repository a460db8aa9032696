# SPDX-License-Identifier: Apache-2.0
"""Rounds of start and stop that a host sustains, with 500 devices in use."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from bench.measurements import Run
from bench.result import Goal, Row, Table, best, interleave
from bench.ways import Way
from bench.ways.cni import Cni
from bench.ways.floor import BATCH, Deleting, Releasing
from bench.ways.helper import Helper
from bench.ways.ip import Batch, ByHand
from bench.ways.pyroute2 import Pyroute2
from bench.ways.tapster import Library
from bench.world import BenchWorld, world
from tapster.model import DEFAULT_FIN_WAIT
from tapster.reaper import LONGEST_NAP

LIVE = 500


class Times(NamedTuple):
    """How long to go on, in seconds."""

    window: float = 3.0
    """A round, of each way."""
    fin_wait: float = DEFAULT_FIN_WAIT


def measure(run: Run) -> Iterator[Table]:
    live = run.size(LIVE, 5)
    times = Times(0.2, 0.2) if run.small else Times()
    with world(run.program) as place, ExitStack() as stack:
        bridge = place.bridge("br0")
        library = Library(
            place.directory / "ledger.db", "br0", reaper=None, fin_wait=times.fin_wait
        )
        stack.enter_context(library.host)
        for _ in range(live):
            library.start()
        pyroute2 = Pyroute2(bridge)
        stack.callback(pyroute2.close)
        peers: list[Way] = [
            Batch("br0"),
            ByHand("br0"),
            pyroute2,
            Helper("br0"),
            Cni("br0"),
        ]
        floor, deleting = Releasing(place.floor, bridge), Deleting(place.floor, bridge)
        measured: dict[str, Callable[[], float]] = {
            way.title: _deleting(way, times) for way in [*peers, deleting]
        }
        measured[Library.title] = lambda: _reaped(library, place, times)
        measured[floor.title] = _in_groups(floor, times)
        found = interleave(measured, run.rounds)
    rows = [
        Row(Library.title, found[Library.title], Library.note + REAPED),
        *(Row(way.title, found[way.title], way.note) for way in peers),
        Row(deleting.title, found[deleting.title], deleting.note),
        Row(floor.title, found[floor.title], floor.note + GROUPED),
    ]
    yield Table(
        "sustained",
        f"Rounds of start and stop, sustained, with {live} devices in use",
        "rounds a second",
        rows,
        base=Library.title,
        goals=[
            Goal(Library.title, 0.8, to=floor.title, least=True),
            Goal(Library.title, 10, to=best(rows[1:-2], most=True), least=True),
        ],
        about="Each round starts a device and stops the oldest. One program makes one "
        "round after the other. A round whose device still waits to be deleted is not "
        "counted.",
    )


GROUPED = f"; after {BATCH} rounds it deletes what it stopped, as a group"
REAPED = "; its reaper, a process of its own, deletes at the same time"


def _deleting(way: Way, times: Times) -> Callable[[], float]:
    def measured() -> float:
        for _ in range(3):
            way.start()
        rounds, seconds = _go_on(way, times.window)
        for _ in range(3):
            way.stop()
        return rounds / seconds

    return measured


def _in_groups(way: Releasing, times: Times) -> Callable[[], float]:
    def measured() -> float:
        rounds, begin = 0, time.perf_counter()
        while (taken := time.perf_counter() - begin) < times.window:
            for _ in range(BATCH):
                way.start()
                way.stop()
            way.reap()
            rounds += BATCH
        return rounds / taken

    return measured


def _reaped(library: Library, place: BenchWorld, times: Times) -> float:
    _go_on(library, times.fin_wait + LONGEST_NAP)  # from then on the reaper has work
    before = place.devices()
    rounds, seconds = _go_on(library, times.window)
    left = max(place.devices() - before, 0)
    while library.host.operations.reap.next_deadline() is not None:
        library.tidy()
    return (rounds - left) / seconds


def _go_on(way: Way, seconds: float) -> tuple[int, float]:
    """Start and stop for some time; the rounds, and the time it was in the end."""
    rounds, begin = 0, time.perf_counter()
    while (taken := time.perf_counter() - begin) < seconds:
        way.start()
        way.stop()
        rounds += 1
    return rounds, taken
