# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs beside the library, and how soon it answers after a restart."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.clients import Report, together
from bench.measurements import Run
from bench.result import Goal, Row, Table, interleave
from bench.world import BenchWorld, world
from tapster import AnyHost, Host, Tap, connect

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
SPEC = Tap(bridge="br0")
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
    ways: dict[str, Callable[[], DaemonFigures]] = {}
    with world(run.program) as place, daemon(place) as path:
        place.bridge("br0")
        with Host(place.directory / "library.db") as host:
            ways[LIBRARY] = partial(_alone, host, pairs)
            for number in CLIENTS:
                ways[_title(number)] = partial(
                    _together, partial(connect, path), number, pairs, SPEC
                )
            found = interleave(ways, run.rounds)
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
            "library's reaper, deletes the released devices."
        )
        yield Table(key, title, unit, rows, LIBRARY, GOALS.get(field, ()), about=about)
    yield _reaped(run, pairs)
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


def _reaped(run: Run, pairs: int) -> Table:
    """Return how long acquires wait while devices of earlier ones are reaped."""
    spec = Tap(bridge="br0", fin_wait=SHORT)
    with world(run.program) as place, daemon(place) as path:
        place.bridge("br0")
        ledger = place.directory / "library.db"
        alone, served = "library, 8 processes", "daemon, 8 clients"
        found = interleave(
            {
                alone: partial(_together, partial(Host, ledger), 8, pairs, spec),
                served: partial(_together, partial(connect, path), 8, pairs, spec),
            },
            run.rounds,
        )
    rows = [
        Row(way, [figures.slowest for figures in rounds])
        for way, rounds in found.items()
    ]
    return Table(
        "daemon-reaping",
        "Acquire while earlier devices are reaped, p99",
        "ms",
        rows,
        alone,
        about=f"FIN WAIT is {SHORT} s, so the reaper or the daemon reaps all the time.",
        goals=[Goal(served, 2.0, to=alone)],
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


def _alone(host: Host, number: int) -> DaemonFigures:
    before = time.perf_counter()
    return _found(_pairs(host, number, SPEC), time.perf_counter() - before)


def _together(
    opening: Callable[[], AbstractContextManager[AnyHost]],
    clients: int,
    pairs: int,
    spec: Tap,
) -> DaemonFigures:
    each = max(pairs // clients, 2)

    def work(host: AnyHost, report: Report) -> None:
        report(_pairs(host, each, spec))

    spent, found = together(opening, [work] * clients)
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
