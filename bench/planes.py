# SPDX-License-Identifier: Apache-2.0
"""What filters and rates add to an acquire and a release, and how exact rates are.

A row of the first table is a wiring, with what it takes as a multiple of a tap that
is only on its bridge; the rounds are interleaved. The second repeats one of them
among more and more leases, and beside a firewall of other programs.
"""

import os
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from demo.private import namespaces
from tapster import Host, Lease, Rate, Tap

ROUNDS = 30
WIRINGS: dict[str, dict[str, Any]] = {
    "bridge alone": {},
    "filter": {"filter": True},
    "filter, 2 addresses": {"filter": True, "addresses": ("192.0.2.5", "2001:db8::5")},
    "outbound rate": {"outbound": Rate(10_000, 20_000)},
    "inbound rate": {"inbound": Rate(10_000, 20_000)},
    "all of it": {
        "filter": True,
        "addresses": ("192.0.2.5", "2001:db8::5"),
        "outbound": Rate(10_000, 20_000),
        "inbound": Rate(10_000, 20_000),
    },
}
CROWDS = (1, 100, 900)
FOREIGN = 10_000

ASKED = 5_000
"""Kilobytes a second."""
WARM, MEASURED = 1.5, 3.0
"""Seconds until the first burst is over, and of the measurement."""
FRAME = bytes.fromhex("ffffffffffff") + bytes.fromhex("020000000001") + b"\x88\xb5"
SIZE = 1500

Times = tuple[float, float]
"""Seconds of an acquire and a release."""


@contextmanager
def host() -> Iterator[Host]:
    """A Host in namespaces of its own, with br0."""
    with namespaces(), tempfile.TemporaryDirectory() as directory:
        for command in (
            "ip link add br0 address 02:00:00:00:00:01 type bridge mcast_snooping 0",
            "ip link set br0 up",
        ):
            subprocess.run(command.split(), check=True)
        with Host(Path(directory, "ledger.db"), reaper=lambda _: None) as host:
            yield host


def once(host: Host, wiring: Mapping[str, Any]) -> Times:
    """Acquire a tap and release it."""
    start = time.perf_counter()
    lease = host.acquire(Tap(bridge="br0", **wiring))
    acquired = time.perf_counter()
    _close(lease)
    closed = time.perf_counter()
    host.release(lease.id)
    return acquired - start, time.perf_counter() - closed


def measure(host: Host, wirings: Mapping[str, Mapping[str, Any]]) -> dict[str, Times]:
    """The medians of each, over interleaved rounds."""
    times: dict[str, list[Times]] = {title: [] for title in wirings}
    for round_ in range(ROUNDS + 1):
        for title, wiring in wirings.items():
            taken = once(host, wiring)
            if round_:  # in the first, libraries are loaded
                times[title].append(taken)
        host.reap(now=True)
    return {
        title: tuple(map(statistics.median, zip(*of, strict=True)))
        for title, of in times.items()
    }


def show(rows: Mapping[str, Times], base: Times) -> None:
    for title, times in rows.items():
        cells = [
            f"{seconds * 1e3:9.2f} ms x {seconds / of:5.2f}"
            for seconds, of in zip(times, base, strict=True)
        ]
        print(f"{title:<34}" + "".join(f"{cell:>22}" for cell in cells))


def crowds(host: Host) -> Iterator[tuple[str, dict[str, Times]]]:
    """The same again among more leases, and then beside a foreign firewall."""
    chosen = {title: WIRINGS[title] for title in ("bridge alone", "all of it")}
    there = 0
    for crowd in CROWDS:
        for number in range(there, crowd):
            wiring = {**WIRINGS["all of it"], "inbound": None}
            wiring["addresses"] = (
                f"198.51.{number // 250}.{number % 250}",
                f"::{number}",
            )
            _close(host.acquire(Tap(bridge="br0", **wiring)))
        there = crowd
        yield f"among {crowd} leases", measure(host, chosen)
    rules = "\n".join(
        f"ip saddr 10.{n >> 16}.{n >> 8 & 255}.{n & 255} accept" for n in range(FOREIGN)
    )
    table = f"table inet firewall {{\nchain input {{\n{rules}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True)
    yield f"and {FOREIGN:,} foreign rules", measure(host, chosen)


def rate(host: Host, sender: Mapping[str, Any], receiver: Mapping[str, Any]) -> float:
    """Bytes a second from one guest that sends what it can to another."""
    from_, to = (host.acquire(Tap(bridge="br0", **w)) for w in (sender, receiver))
    (out,), (in_,) = from_.fds, to.fds
    for fd in (out, in_):
        os.set_blocking(fd, False)
    frame = bytes(10) + FRAME + bytes(SIZE - len(FRAME))
    start = time.perf_counter() + WARM
    received = 0
    for _ in cycle([None]):
        now = time.perf_counter()
        if now > start + MEASURED:
            break
        for _ in range(32):
            os.write(out, frame)
        while select.select([in_], [], [], 0)[0]:
            size = len(os.read(in_, 65536)) - 10
            received += size if now > start and size == SIZE else 0
    for lease in (from_, to):
        _close(lease)
        host.release(lease.id)
    host.reap(now=True)
    return received / MEASURED


def _close(lease: Lease) -> None:
    for fd in lease.fds:
        os.close(fd)


def main() -> None:
    """Print the medians, each as a multiple of the first row's; then the rates."""
    print(f"{'':<34}{'acquire':>22}{'release':>22}")
    with host() as one:
        rows = measure(one, WIRINGS)
        show(rows, rows["bridge alone"])
        for title, among in crowds(one):
            there = {f"all of it, {title}": among["all of it"]}
            show(there, among["bridge alone"])
    asked = Rate(ASKED)
    with host() as one:
        free = rate(one, {}, {})
        print(f"\n{'free':<34}{free / 1e3:14,.0f} kB/s")
        for title, wirings in (
            ("outbound", ({"outbound": asked}, {})),
            ("inbound", ({}, {"inbound": asked})),
        ):
            found = rate(one, *wirings)
            print(
                f"{title + f' {ASKED:,} kB/s':<34}{found / 1e3:14,.0f} kB/s"
                f"   x {found / 1e3 / ASKED:4.2f} of what was asked,"
                f" x {found / free:5.3f} of free"
            )


if __name__ == "__main__":
    main()
