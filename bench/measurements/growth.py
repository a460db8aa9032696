# SPDX-License-Identifier: Apache-2.0
"""Tapster's own share of an acquire and a release, as the number of devices grows."""

import os
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from bench.measurements import Run
from bench.result import Goal, Row, Table
from bench.ways import Way
from bench.ways.floor import ReleasingWithoutIpv6
from bench.ways.tapster import Library
from bench.world import BenchWorld, world
from tapster import Tap

SIZES = (100, 1_000, 4_000, 10_000)
PORTS = 500
"""Of each further bridge. The one that is measured on has as many as at the start."""
SAMPLES = 40
FLAT = 1.5
OWN = "Tapster's own share"
CURVES = (Library.title, ReleasingWithoutIpv6.title, OWN)


class Point(NamedTuple):
    """The medians of one round at one size, in ms: of each curve."""

    acquire: tuple[float, float, float]
    release: tuple[float, float, float]


def measure(run: Run) -> Iterator[Table]:
    sizes = (2, 4, 6, 8) if run.small else SIZES
    samples = run.size(SAMPLES, 2)
    rounds = [_grow(run, sizes, samples) for _ in range(run.rounds)]
    for verb in Point._fields:
        yield Table(
            f"growth-{verb}",
            f"{verb.capitalize()}, as the number of devices grows",
            "ms",
            [
                Row(
                    _title(curve, size),
                    [getattr(points[size], verb)[number] for points in rounds],
                    curve=curve,
                    at=size,
                )
                for number, curve in enumerate(CURVES)
                for size in sizes
            ],
            base=_title(OWN, sizes[0]),
            goals=[Goal(_title(OWN, sizes[-1]), FLAT, to=_title(OWN, sizes[0]))],
            axis="devices",
            about="Each device is a lease, on one of several bridges. Tapster's own "
            "share is what it takes beyond the floor.",
        )


def _title(curve: str, size: int) -> str:
    return f"{curve}, {size:,} devices"


def _grow(run: Run, sizes: Sequence[int], samples: int) -> dict[int, Point]:
    """Let the devices become more and more, and measure at each size."""
    points = {}
    with world(run.program) as place:
        bridge = place.bridge("br0")
        library = Library(place.directory / "ledger.db", "br0")
        floor = ReleasingWithoutIpv6(place.floor, bridge)
        with library.host:
            held: list[int] = []
            for size in sizes:
                held += _fill(place, library, len(held), size)
                points[size] = _point([library, floor], samples)
            for fd in held:
                os.close(fd)
    return points


def _fill(place: BenchWorld, library: Library, live: int, size: int) -> list[int]:
    """Acquire leases, from `live` of them to `size`; their descriptors."""
    bridge = "br0"
    fds: list[int] = []
    for number in range(live, size):
        if live and (number - live) % PORTS == 0:
            bridge = f"br{number}"
            place.bridge(bridge)
        fds += library.host.acquire(Tap(bridge=bridge)).detach_fds()
    return fds


def _point(ways: Sequence[Way], samples: int) -> Point:
    started = [[way.start() for way in ways] for _ in range(samples)]
    stopped = [[way.stop() for way in ways] for _ in range(samples)]
    for way in ways:
        way.tidy()
    return Point(_medians(started), _medians(stopped))


def _medians(pairs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    whole, below = (median(taken) * 1e3 for taken in zip(*pairs, strict=True))
    return whole, below, whole - below
