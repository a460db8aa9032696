# SPDX-License-Identifier: Apache-2.0
"""Start and stop a device, on a bridge with many ports: every way."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from statistics import median

from bench.measurements import Run
from bench.result import Goal, Row, Table, best
from bench.ways import Way, floor
from bench.ways.cni import Cni
from bench.ways.helper import Helper
from bench.ways.ip import Batch, ByHand
from bench.ways.pyroute2 import Pyroute2
from bench.ways.tapster import Library
from bench.world import World, world

PORTS = {200: 1.6, 1000: 1.25}
"""How many ports the bridge has, and how near to the floor an acquire is to be."""
SAMPLES = 20
"""A round, of each way."""

TAPSTER, FLOOR, DELETING = Library.title, floor.Releasing.title, floor.Deleting.title
FLOORS = (FLOOR, floor.ReleasingWithoutIpv6.title)


def measure(run: Run) -> Iterator[Table]:
    for ports, bound in PORTS.items():
        with world(run.program) as place, ExitStack() as stack:
            ways = make(place, stack, run.size(ports, ports // 100))
            rounds = [_round(ways, run.size(SAMPLES, 2)) for _ in range(run.rounds)]
        yield from _tables(ports, bound, ways, rounds)


def make(place: World, stack: ExitStack, ports: int) -> list[Way]:
    """Every way, on one bridge."""
    bridge = place.bridge("br0", ports)
    library = Library(place.directory / "ledger.db", "br0")
    stack.enter_context(library.host)
    pyroute2 = Pyroute2(bridge)
    stack.callback(pyroute2.close)
    return [
        floor.Releasing(place.floor, bridge),
        floor.ReleasingWithoutIpv6(place.floor, bridge),
        library,
        Batch("br0"),
        ByHand("br0"),
        pyroute2,
        Helper("br0"),
        Cni("br0"),
        floor.Deleting(place.floor, bridge),
    ]


def _round(ways: Sequence[Way], samples: int) -> dict[str, tuple[float, float]]:
    """The milliseconds of a start and of a stop by each way, the medians of some."""
    started: dict[str, list[float]] = {way.title: [] for way in ways}
    stopped: dict[str, list[float]] = {way.title: [] for way in ways}
    order = deque(ways)
    for _ in range(samples):
        for way in order:
            started[way.title].append(way.start() * 1e3)
            stopped[way.title].append(way.stop() * 1e3)
        order.rotate()  # what one leaves the kernel to do may hold up the next
    for way in ways:
        way.tidy()
    return {
        title: (median(started[title]), median(stopped[title])) for title in started
    }


def _tables(
    ports: int,
    bound: float,
    ways: Sequence[Way],
    rounds: Sequence[dict[str, tuple[float, float]]],
) -> Iterator[Table]:
    starts = {
        way.title: Row(way.title, [round_[way.title][0] for round_ in rounds], way.note)
        for way in ways
    }
    stops = [
        Row(way.title, [round_[way.title][1] for round_ in rounds], way.note)
        for way in ways
    ]
    del starts[DELETING]  # it starts as the floor does
    peers = [row for title, row in starts.items() if title not in (TAPSTER, *FLOORS)]
    yield Table(
        f"acquire-{ports}",
        f"Acquire: start a device on a bridge with {ports:,} ports",
        "ms",
        [*starts.values()],
        base=FLOOR,
        goals=[Goal(TAPSTER, bound, to=FLOOR), Goal(TAPSTER, 1, to=best(peers))],
        about="Until the device is there, wired and up. The median.",
    )
    yield Table(
        f"release-{ports}",
        f"Release: stop a device on a bridge with {ports:,} ports",
        "ms",
        stops,
        base=FLOOR,
        goals=[
            Goal(TAPSTER, 1.2, to=FLOOR),
            Goal(DELETING, 15, to=TAPSTER, least=True),
        ],
        about="Until it has returned: so long a machine's manager waits. The median.",
    )
