# SPDX-License-Identifier: Apache-2.0
"""Storms: many clients want devices at once, and many VMs stop at once."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tapster
from bench.clients import Report, together
from bench.measurements import Run
from bench.measurements.daemon import daemon
from bench.measurements.limits import PORTS, TOGETHER
from bench.result import Goal, Row, Table, interleave
from bench.ways.tapster import COMMAND, no_reaper
from bench.world import BenchWorld, world
from tapster import AnyHost, Host, State, Tap

CLIENTS, DEVICES = 64, 1000
VMS = 300
LIBRARY, DAEMON = "library, one process", "daemon, 64 clients"
RUNS, BOUND = "SIGTERM to each `tapster run`", "daemon, processes with a lease each"


class Storm(NamedTuple):
    """How long a storm took."""

    last: float
    """Seconds until all was done."""
    longest: float
    """Seconds that the slowest call, or the slowest process, took."""


def measure(run: Run) -> Iterator[Table]:
    clients, devices = run.size(CLIENTS, 2), run.size(DEVICES, 4)
    with world(run.program) as place, daemon(place) as path:
        for number in range(devices // PORTS + 1):
            place.bridge(f"br{number}")
        ways: dict[str, Callable[[], Storm]] = {
            LIBRARY: partial(_alone, place, devices),
            DAEMON: partial(_boot, path, clients, devices),
        }
        found = interleave(ways, run.rounds)
        lost = _overruns(path)
    rows = [Row(way, [storm.last for storm in storms]) for way, storms in found.items()]
    waits = [storm.longest * 1e3 for storm in found[DAEMON]]
    yield Table(
        "boot-storm",
        f"{clients} clients ask for {devices:,} devices at once",
        "s",
        rows,
        base=LIBRARY,
        goals=[Goal(DAEMON, 1.3, to=LIBRARY)],
        about="The time until the last device exists.",
    )
    yield Table(
        "boot-storm-wait",
        f"{clients} clients ask for {devices:,} devices at once: the longest wait",
        "ms",
        [Row(DAEMON, waits)],
        about=f"The kernel's reports of links were lost {lost} times.",
    )
    vms = run.size(VMS, 3)
    with world(run.program) as place, daemon(place) as path:
        place.bridge("br0")
        stopped = interleave(
            {
                RUNS: partial(_stop_runs, place, vms),
                BOUND: partial(_stop_bound, path, vms),
            },
            run.rounds,
        )
    yield Table(
        "stop-storm",
        f"{vms} VMs stop at once",
        "s",
        [Row(way, [storm.last for storm in storms]) for way, storms in stopped.items()],
        about="The time until every device is down and off its bridge. All VMs are "
        "told to stop at once, so this is the longest wait of a VM, too.",
    )


# Boot


def _alone(place: BenchWorld, devices: int) -> Storm:
    with Host(place.directory / "library.db", reaper=no_reaper) as host:
        before = time.perf_counter()
        longest = 0.0
        made = []
        for number in range(devices):
            start = time.perf_counter()
            made.append(host.acquire(Tap(bridge=f"br{number // PORTS}", fin_wait=0.5)))
            longest = max(longest, time.perf_counter() - start)
        storm = Storm(time.perf_counter() - before, longest)
        for opened in made:
            opened.close()
            host.release(opened)
        host.reap(now=True)
    return storm


def _boot(path: Path, clients: int, devices: int) -> Storm:
    """Let clients ask at once; they release their devices when all have theirs."""
    works = [
        partial(
            _boot_one, [number // PORTS for number in range(client, devices, clients)]
        )
        for client in range(clients)
    ]
    storm = together(partial(tapster.connect, path), works, tapster.Tap())
    with tapster.connect(path) as host:
        host.reap(now=True)
    return Storm(storm.seconds, max(storm.found))


def _boot_one(bridges: Sequence[int], host: AnyHost, report: Report) -> None:
    """Acquire a device on each of these bridges; report how long the slowest took."""
    made = []
    longest = 0.0
    for bridge in bridges:
        start = time.perf_counter()
        made.append(host.acquire(Tap(bridge=f"br{bridge}", fin_wait=0.5)))
        longest = max(longest, time.perf_counter() - start)
    report(longest)
    for opened in made:
        opened.close()
        host.release(opened)


def _overruns(path: Path) -> int:
    with tapster.connect(path) as host:
        counts = {one.name: one.value for one in host.statistics()}
    return int(counts.get("overruns", 0))


# Stop


def _stop_runs(place: BenchWorld, vms: int) -> Storm:
    ledger = place.directory / "runs.db"
    command = [COMMAND, "run", "--ledger", str(ledger), "--bridge", "br0", "--"]
    runs = [
        subprocess.Popen([*command, "sleep", "infinity"], stdin=subprocess.DEVNULL)
        for _ in range(vms)
    ]
    with Host(ledger, reaper=no_reaper) as host:
        _wait_for(host, vms, State.ACTIVE)
        before = time.perf_counter()
        for one in runs:
            one.send_signal(signal.SIGTERM)
        for one in runs:
            one.wait()
        last = time.perf_counter() - before
        _wait_for(host, 0, State.ACTIVE)
        host.reap(now=True)
    return Storm(last, last)


def _stop_bound(path: Path, vms: int) -> Storm:
    """Stop processes that the daemon watches."""
    sleepers = [subprocess.Popen(["sleep", "infinity"]) for _ in range(vms)]
    with tapster.connect(path) as host:
        for start in range(0, vms, TOGETHER):
            for sleeper in sleepers[start : start + TOGETHER]:
                host.acquire(Tap(bridge="br0", fin_wait=60), pid=sleeper.pid).close()
        with tapster.connect(path) as watcher:
            events = watcher.watch()
            next(events)
            before = time.perf_counter()
            for sleeper in sleepers:
                sleeper.terminate()
            released = (event for event in events if event.event == "released")
            for _ in zip(sleepers, released, strict=False):
                last = time.perf_counter() - before
        for sleeper in sleepers:
            sleeper.wait()
        host.reap(now=True)
    return Storm(last, last)


def _wait_for(host: tapster.AnyHost, number: int, state: State) -> None:
    while sum(lease.state is state for lease in host.leases()) != number:
        pass
