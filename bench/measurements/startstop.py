# SPDX-License-Identifier: Apache-2.0
"""Start and stop a device, on a bridge with many ports: every way."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench.install import ROOT
from bench.measurements import Run
from bench.result import Goal, Row, Table, best
from bench.ways import Way, floor
from bench.ways.apart import Apart
from bench.ways.cni import Cni
from bench.ways.helper import Helper
from bench.ways.ip import Batch, ByHand
from bench.ways.libvirt import Attached, AttachedToNothing, guest
from bench.ways.pyroute2 import Pyroute2
from bench.ways.tapster import Library
from bench.world import BenchWorld, world

PORTS = {200: 1.6, 1000: 1.25}
"""How many ports the bridge has, and how near to the floor an acquire is to be."""
SAMPLES = 20
"""A round, of each way."""

TAPSTER, FLOOR, DELETING = Library.title, floor.Releasing.title, floor.Deleting.title
LIBVIRT, NO_DEVICE = Attached.title, AttachedToNothing.title
HOSTS_PART = "libvirt, the host's part"
HOSTS_NOTE = (
    "what it takes beyond the same for a guest's card that has nothing on the host"
)
RECORDED = floor.Recording.title
APART, PREVIOUS = "Tapster, a process of its own", "the previous release, likewise"
OURS = (TAPSTER, APART, PREVIOUS)
NO_PEERS = (FLOOR, floor.ReleasingWithoutIpv6.title, RECORDED, *OURS, NO_DEVICE)

Figures = dict[str, tuple[float, float]]
"""The milliseconds of a start and of a stop, by way."""


def measure(run: Run) -> Iterator[Table]:
    for ports, bound in PORTS.items():
        with world(run.program) as place, ExitStack() as stack:
            ways = make(place, stack, run.size(ports, ports // 100))
            if run.previous is not None:
                ways += beside(place, stack, run.previous)
            rounds = [_round(ways, run.size(SAMPLES, 2)) for _ in range(run.rounds)]
        notes = {way.title: way.note for way in ways}
        del notes[NO_DEVICE]
        notes[HOSTS_PART] = HOSTS_NOTE
        starts = [
            Row(title, [round_[title][0] for round_ in rounds], note)
            for title, note in notes.items()
            if title != DELETING  # it starts as the floor does
        ]
        stops = [
            Row(title, [round_[title][1] for round_ in rounds], note)
            for title, note in notes.items()
        ]
        peers = [row for row in starts if row.title not in (*NO_PEERS, HOSTS_PART)]
        yield Table(
            f"acquire-{ports}",
            f"Acquire: start a device on a bridge with {ports:,} ports",
            "ms",
            starts,
            base=FLOOR,
            goals=[
                Goal(TAPSTER, bound, to=FLOOR),
                Goal(TAPSTER, 1.5, to=RECORDED),
                Goal(TAPSTER, 1, to=best(peers)),
            ],
            about="The median time until the device exists, is wired and is up.",
        )
        yield Table(
            f"release-{ports}",
            f"Release: stop a device on a bridge with {ports:,} ports",
            "ms",
            stops,
            base=FLOOR,
            goals=[
                Goal(TAPSTER, 1.2, to=FLOOR),
                Goal(TAPSTER, 1.35, to=RECORDED),
                Goal(DELETING, 15, to=TAPSTER, least=True),
            ],
            about="The median time until the call returns. The program that stops the "
            "VM waits for it.",
        )


def make(place: BenchWorld, stack: ExitStack, ports: int) -> list[Way]:
    """Return every way, on one bridge."""
    bridge = place.bridge("br0", ports)
    library = Library(place.directory / "ledger.db", "br0")
    stack.enter_context(library.host)
    pyroute2 = Pyroute2(bridge)
    stack.callback(pyroute2.close)
    libvirt = stack.enter_context(guest("br0"))
    return [
        floor.Releasing(place.floor, bridge),
        floor.ReleasingWithoutIpv6(place.floor, bridge),
        floor.Recording(place.floor, bridge, place.directory / "floor.db"),
        library,
        Batch("br0"),
        ByHand("br0"),
        pyroute2,
        Helper("br0"),
        Cni("br0"),
        Attached(libvirt),
        AttachedToNothing(libvirt),
        floor.Deleting(place.floor, bridge),
    ]


def beside(place: BenchWorld, stack: ExitStack, previous: Path) -> list[Way]:
    """Return this tree and an earlier one, each in a process of its own."""
    ways: list[Way] = []
    for title, tree in ((APART, ROOT), (PREVIOUS, previous)):
        way = Apart(title, tree, place.directory / f"{title}.db", "br0")
        stack.callback(way.close)
        ways.append(way)
    return ways


def _round(ways: Sequence[Way], samples: int) -> Figures:
    """Return the medians of some starts and stops by each way."""
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
    found = {
        title: (median(started[title]), median(stopped[title])) for title in started
    }
    pairs = zip(found[LIBVIRT], found[NO_DEVICE], strict=True)
    start, stop = (whole - without for whole, without in pairs)
    return found | {HOSTS_PART: (start, stop)}
