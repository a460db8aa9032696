# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs beside the library, and how soon it answers after a restart."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tapster
from bench.measurements import Run
from bench.result import Row, Table, interleave
from bench.world import BenchWorld, world
from tapster import Host, Manager, Tap

PAIRS = 400
LEASES = 4000
CLIENTS = (1, 8, 64)
TAPSTERD = str(Path(sys.executable).with_name("tapsterd"))
LIBRARY = "library"


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
        with Host(place.directory / "library.db", reaper=lambda _: None) as host:
            ways[LIBRARY] = partial(_alone, host, pairs)
            for number in CLIENTS:
                ways[_title(number)] = partial(_together, path, number, pairs)
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
        about = "Each client is a process and makes two calls a pair."
        yield Table(key, title, unit, rows, LIBRARY, about=about)
    with world(run.program) as place:
        recovered = interleave(
            {
                "library: recover": partial(_recover, place, leases),
                "daemon: killed, to its next answer": partial(_restart, place, leases),
            },
            run.rounds,
        )
    rows = [Row(title, rounds) for title, rounds in recovered.items()]
    title = f"Back in agreement with {leases:,} leases"
    yield Table("daemon-recover", title, "ms", rows)


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
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(folder / "ready"))
        process = subprocess.Popen(
            [
                *(TAPSTERD, "--socket", str(folder / "sock")),
                *(
                    "--ledger",
                    str(folder / "daemon.db"),
                    "--config",
                    str(folder / "no"),
                ),
            ],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "ready")},
            stderr=subprocess.DEVNULL,
        )
        ready.recv(100)
    (folder / "ready").unlink()
    return process


def _pairs(host: Manager, number: int) -> list[float]:
    """Acquire and release so often; the seconds of each acquire."""
    taken = []
    for _ in range(number):
        before = time.perf_counter()
        lease = host.acquire(Tap(bridge="br0"))
        taken.append(time.perf_counter() - before)
        lease.close()
        host.release(lease)
    return taken


def _alone(host: Host, number: int) -> DaemonFigures:
    before = time.perf_counter()
    return _found(_pairs(host, number), time.perf_counter() - before)


def _together(path: Path, clients: int, pairs: int) -> DaemonFigures:
    each = max(pairs // clients, 2)
    before = time.perf_counter()
    pipes = [_client(path, each) for _ in range(clients)]
    taken: list[float] = []
    for pipe in pipes:
        with os.fdopen(pipe) as answer:
            taken += json.load(answer)
    spent = time.perf_counter() - before
    for _ in pipes:
        os.wait()
    return _found(taken, spent)


def _client(path: Path, pairs: int) -> int:
    """Start a client; a pipe on which it says how long each acquire took."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return reader
    try:
        with tapster.connect(path) as host:
            answer = json.dumps(_pairs(host, pairs)).encode()
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


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
    with tapster.connect(place.directory / "sock") as host:
        host.ping()
    taken = time.perf_counter() - before
    second.terminate()
    second.wait()
    return taken * 1000
