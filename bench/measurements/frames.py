# SPDX-License-Identifier: Apache-2.0
"""What a filter adds to a frame of a guest, with few and with many leases.

A guest's VMM writes frames to its tap. The kernel carries each frame through the filter
and to the port of another guest before the call returns. So the time of a write has
the filter in it.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from select import select
from statistics import median
from typing import Any

from bench.measurements import Run
from bench.result import Row, Table, interleave
from bench.ways.tapster import no_reaper
from bench.world import world
from lab import frames
from lab.frames import IPV4, ether, udp
from tapster import Host, Tap

LEASES = 2_000
SLICES, FRAMES = 100, 200
"""A round has so many slices of so many frames, of each way."""
PORTS = 1_000
"""Ports of a bridge, of at most 1,024."""
NONE = "no filter"
GUEST4, PEER4, PEER_MAC = "192.0.2.5", "192.0.2.6", "52:54:00:00:00:02"
WAYS: dict[str, dict[str, Any]] = {
    NONE: {},
    "MAC": {"filter": True},
    "MAC and addresses": {"filter": True, "addresses": (GUEST4, "2001:db8::5")},
    "MAC and addresses, no guard": {
        "filter": True,
        "addresses": (GUEST4, "2001:db8::5"),
        "guard": False,
    },
}


def measure(run: Run) -> Iterator[Table]:
    slices, count = run.size(SLICES, 2), run.size(FRAMES, 10)
    sizes = (1, run.size(LEASES, 3))
    with world(run.program) as place, ExitStack() as ending:
        ways = {}
        for size in sizes:
            guests = _guests(ending, place.directory, f"among{size}", size)
            for title, (fd, mac) in guests.items():
                ways[_name(size, title)] = partial(_send, fd, _frame(mac), count)
        for send in ways.values():
            send()  # the receiver's queue is full afterwards
        # Other processes disturb the processor's caches: a slice is as short as their
        # turn, and the median slice counts.
        all_ = interleave(ways, run.rounds * slices)
    found = {
        way: [median(values[at : at + slices]) for at in range(0, len(values), slices)]
        for way, values in all_.items()
    }
    yield Table(
        "frames-write",
        "What a write of one frame takes",
        "ns",
        [Row(way, rounds) for way, rounds in found.items()],
        base=_name(1, NONE),
        about="Processor time of an IPv4 packet to another guest, whose queue is full. "
        f"With {sizes[1]:,} leases, all others have a filter with an address too, on "
        "several bridges.",
    )
    yield Table(
        "frames-added",
        "What a filter adds to one frame",
        "ns",
        [
            Row(
                _name(size, title),
                _differences(found[_name(size, title)], found[_name(size, NONE)]),
            )
            for size in sizes
            for title in WAYS
            if title != NONE
        ],
        about="The difference from no filter, in the same round with as many leases.",
    )


def _name(size: int, title: str) -> str:
    return f"{title}, {size:,} lease{'s' if size > 1 else ''}"


def _differences(those: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(those, others, strict=True)]


def _guests(
    ending: ExitStack, directory: Path, netns: str, leases: int
) -> dict[str, tuple[int, str]]:
    """Make a namespace with so many filtered leases beside the guests that send.

    Return a descriptor and the MAC of each guest.
    """
    _ip("netns", "add", netns)
    ending.callback(_ip, "netns", "del", netns)
    host = Host(directory / f"{netns}.db", netns=netns, reaper=no_reaper)
    ending.enter_context(host)
    bridges = [f"br{number}" for number in range(leases // PORTS + 1)]
    for bridge in bridges:
        _ip("-n", netns, "link", "add", bridge, "type", "bridge")
        _ip("-n", netns, "link", "set", bridge, "up")
    for number in range(leases - 1):
        address = f"198.18.{number // 250}.{number % 250}"
        spec = Tap(bridges[-1 - number // PORTS], filter=True, addresses=(address,))
        host.acquire(spec).close()
    receiver = host.acquire(Tap("br0", mac=PEER_MAC))
    ending.callback(receiver.close)
    (queue,) = receiver.fds
    os.write(queue, bytes(10) + _frame(PEER_MAC, "ff:ff:ff:ff:ff:ff"))
    guests = {}
    for title, wiring in WAYS.items():
        guest = host.acquire(Tap("br0", **wiring))
        ending.callback(guest.close)
        guests[title] = (guest.fds[0], guest.mac)
        _check_passing(guest.fds[0], queue, _frame(guest.mac))
    return guests


def _check_passing(fd: int, receiver: int, frame: bytes) -> None:
    """Check that the other guest gets a frame. The host sends some of its own."""
    os.write(fd, bytes(10) + frame)
    while select([receiver], [], [], 10)[0]:
        if os.read(receiver, 65536)[10:] == frame:
            return
    raise AssertionError("the frame did not arrive")


def _frame(mac: str, to: str = PEER_MAC) -> bytes:
    return ether(mac, to, IPV4, frames.ipv4(GUEST4, PEER4, udp(5000, 5001)))


def _send(fd: int, frame: bytes, count: int) -> float:
    """Return the nanoseconds of processor time of a write, on average."""
    data, write = bytes(10) + frame, os.write
    start = time.thread_time_ns()
    for _ in range(count):
        write(fd, data)
    return (time.thread_time_ns() - start) / count


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
