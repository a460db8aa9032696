# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs beside the library, and how soon it answers after a restart."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.clients import Report, together
from bench.measurements import Run
from bench.result import Goal, Row, Table, interleave
from bench.world import BenchWorld, world
from tapster import AnyHost, Host, Tap, connect
from tapster.model import DEFAULT_FIN_WAIT

PAIRS = 400
LEASES = 4000
CLIENTS = (1, 8, 64)
LIBRARY = "library"
GOALS = {
    "rate": [
        Goal("daemon, 1 client", 0.75, to=LIBRARY, least=True),
        Goal("daemon, 8 clients", 0.85, to=LIBRARY, least=True),
        Goal("daemon, 64 clients", 0.85, to=LIBRARY, least=True),
    ],
    "middle": [Goal("daemon, 1 client", 1.6, to=LIBRARY)],
}
TAPSTERD = str(Path(sys.executable).with_name("tapsterd"))
SHORT = 0.2
"""Seconds of FIN WAIT after which devices are reaped while others are acquired."""
START = 60.0
"""Seconds that a daemon has to say that it is ready."""


class DaemonFigures(NamedTuple):
    """What a number of clients found, together."""

    rate: float
    middle: float
    slowest: float


def measure(run: Run) -> Iterator[Table]:
    pairs, leases = run.size(PAIRS, 10), run.size(LEASES, 20)
    spec = Tap(bridge="br0", fin_wait=SHORT if run.small else DEFAULT_FIN_WAIT)
    ways: dict[str, Callable[[], DaemonFigures]] = {}
    with world(run.program) as place, daemon(place) as path:
        place.bridge("br0")
        with Host(place.directory / "library.db") as host:
            ways[LIBRARY] = partial(_alone, host, pairs, spec)
            for number in CLIENTS:
                ways[_title(number)] = partial(
                    _together, partial(connect, path), number, pairs, spec
                )
            found = interleave(_each_for_itself(place, ways), run.rounds)
    for key, title, unit, field in (
        ("daemon-rate", "Acquire and release through the daemon", "pairs/s", "rate"),
        ("daemon-middle", "Acquire through the daemon, median", "ms", "middle"),
        ("daemon-slowest", "Acquire through the daemon, p99", "ms", "slowest"),
    ):
        rows = [
            Row(way, [getattr(figures, field) for figures in rounds])
            for way, rounds in found.items()
        ]
        about = (
            "Each client is a process and makes two calls a pair. The daemon, or the "
            "library's reaper, deletes the released devices before the next way begins."
        )
        yield Table(key, title, unit, rows, LIBRARY, GOALS.get(field, ()), about=about)
    yield from _reaped(run, pairs)
    with world(run.program) as place:
        recovered = interleave(
            {
                "library: recover": partial(_recover, place, leases),
                "daemon: killed, to its next answer": partial(_restart, place, leases),
            },
            run.rounds,
        )
    rows = [Row(title, rounds) for title, rounds in recovered.items()]
    title = f"Recover {leases:,} leases"
    yield Table("daemon-recover", title, "ms", rows)


def _each_for_itself(
    place: BenchWorld, ways: Mapping[str, Callable[[], DaemonFigures]]
) -> dict[str, Callable[[], DaemonFigures]]:
    """Let each way begin when the devices that the others released are deleted.

    Otherwise a way would wait for the deletions of others: in a round there are three
    times as many of the daemon's devices as of the library's.
    """
    own = place.devices()

    def measured(way: Callable[[], DaemonFigures]) -> DaemonFigures:
        place.wait_for(own)
        return way()

    return {title: partial(measured, way) for title, way in ways.items()}


def _reaped(run: Run, pairs: int) -> Iterator[Table]:
    """Measure acquires while devices of earlier ones are reaped."""
    spec = Tap(bridge="br0", fin_wait=SHORT)
    one, many = "library, 1 process", "library, 8 processes"
    asking, served = _title(1), _title(8)
    with world(run.program) as place, daemon(place) as path:
        place.bridge("br0")
        library = partial(Host, place.directory / "library.db")
        client = partial(connect, path)
        ways: dict[str, Callable[[], DaemonFigures]] = {
            one: partial(_together, library, 1, pairs, spec),
            asking: partial(_together, client, 1, pairs, spec),
            many: partial(_together, library, 8, pairs, spec),
            served: partial(_together, client, 8, pairs, spec),
        }
        found = interleave(_each_for_itself(place, ways), run.rounds)
    about = f"FIN WAIT is {SHORT} s, so the reaper or the daemon reaps all the time."
    yield Table(
        "daemon-reaping-rate",
        "Acquire and release while earlier devices are reaped",
        "pairs/s",
        [
            Row(way, [figures.rate for figures in rounds])
            for way, rounds in found.items()
        ],
        one,
        about=about,
    )
    yield Table(
        "daemon-reaping",
        "Acquire while earlier devices are reaped, p99",
        "ms",
        [
            Row(way, [figures.slowest for figures in rounds])
            for way, rounds in found.items()
        ],
        many,
        about=about,
        goals=[Goal(served, 2.0, to=many)],
    )


def _title(number: int) -> str:
    return f"daemon, {number} client{'s' if number > 1 else ''}"


@contextmanager
def daemon(place: BenchWorld) -> Iterator[Path]:
    """A daemon that is ready, on a ledger of its own; its socket."""
    process = _start(place)
    try:
        yield place.directory / "sock"
    finally:
        process.terminate()
        process.wait()


def _start(place: BenchWorld) -> subprocess.Popen[bytes]:
    folder = place.directory
    rules = folder / "tapster.toml"
    rules.touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(folder / "ready"))
        process = subprocess.Popen(
            [
                *(TAPSTERD, "--socket", str(folder / "sock")),
                *("--ledger", str(folder / "daemon.db"), "--config", str(rules)),
            ],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "ready")},
            stderr=subprocess.DEVNULL,
        )
        ready.settimeout(START)
        ready.recv(100)
    (folder / "ready").unlink()
    return process


def _pairs(host: AnyHost, number: int, spec: Tap) -> list[float]:
    """Acquire and release so often; the seconds of each acquire."""
    taken = []
    for _ in range(number):
        before = time.perf_counter()
        lease = host.acquire(spec)
        taken.append(time.perf_counter() - before)
        lease.close()
        host.release(lease)
    return taken


def _alone(host: Host, number: int, spec: Tap) -> DaemonFigures:
    before = time.perf_counter()
    return _found(_pairs(host, number, spec), time.perf_counter() - before)


def _together(
    opening: Callable[[], AbstractContextManager[AnyHost]],
    clients: int,
    pairs: int,
    spec: Tap,
) -> DaemonFigures:
    each = max(pairs // clients, 2)

    def work(host: AnyHost, report: Report) -> None:
        report(_pairs(host, each, spec))

    spent, found = together(opening, [work] * clients, spec)
    return _found([seconds for taken in found for seconds in taken], spent)


def _found(taken: list[float], spent: float) -> DaemonFigures:
    taken.sort()
    return DaemonFigures(
        len(taken) / spent,
        taken[len(taken) // 2] * 1000,
        taken[min(len(taken) - 1, len(taken) * 99 // 100)] * 1000,
    )


def _fill(place: BenchWorld, leases: int) -> None:
    """Let the daemon's ledger have so many leases, without bridges: they have room."""
    ledger = place.directory / "daemon.db"
    with Host(ledger, reaper=lambda _: None) as host:
        while (left := leases - len(host.leases())) > 0:
            for opened in host.acquire_all([Tap()] * min(left, 100)):
                opened.close()


def _recover(place: BenchWorld, leases: int) -> float:
    _fill(place, leases)
    ledger = place.directory / "daemon.db"
    before = time.perf_counter()
    with Host(ledger, reaper=lambda _: None) as host:
        assert host.recover() == []
    return (time.perf_counter() - before) * 1000


def _restart(place: BenchWorld, leases: int) -> float:
    _fill(place, leases)
    first = _start(place)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = time.perf_counter()
    second = _start(place)
    with connect(place.directory / "sock") as host:
        host.ping()
    taken = time.perf_counter() - before
    second.terminate()
    second.wait()
    return taken * 1000
