# SPDX-License-Identifier: Apache-2.0
"""How much longer one user of the daemon waits while another user attacks it."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from bench.measurements import Run
from bench.result import Goal, Row, Table, interleave
from lab import shell
from lab.daemon import ALICE, Daemon
from lab.mallory import ATTACKS, METRICS, POLICY, Target, attacked
from lab.namespaces import namespaces
from tapster import Client, Tap

CALLS = 40
"""Acquires and releases a round, of each attack."""
IDLE = "no attack"
FEW = 3
"""Attacks that a small run tries."""


class Wait(NamedTuple):
    """How long both calls took together, in ms."""

    middle: float
    slowest: float


def measure(run: Run) -> Iterator[Table]:
    calls = run.size(CALLS, 2)
    names = [*ATTACKS][: run.size(len(ATTACKS), FEW)]
    with namespaces():
        shell.sh("ip link set lo up")
        for bridge in ("br0", "br1"):
            shell.sh(f"ip link add {bridge} type bridge")
            shell.sh(f"ip link set {bridge} up")
        with Daemon(policy=POLICY) as daemon:
            daemon.start()
            with daemon.connect(ALICE) as client:
                kept = client.acquire(Tap(bridge="br0"))
                kept.close()
                target = Target(str(daemon.socket), METRICS, kept.id)
                ways: dict[str, Callable[[], Wait]] = {
                    IDLE: partial(use, client, calls)
                }
                for name in names:
                    ways[_title(name)] = partial(
                        _use_under, client, calls, name, target
                    )
                found = interleave(ways, run.rounds)
    goals = [Goal(_title(name), 3, to=IDLE) for name in names]
    for key, title, what, field in (
        ("attacks", "", "The median", "middle"),
        ("attacks-slowest", ", the slowest", f"The slowest of {calls}", "slowest"),
    ):
        yield Table(
            key,
            f"Acquire and release by one user while another user attacks{title}",
            "ms",
            [
                Row(way, [getattr(wait, field) for wait in waits])
                for way, waits in found.items()
            ],
            base=IDLE,
            goals=goals,
            about=f"{what} of both calls together, through the daemon. The attacker "
            "also takes a processor.",
        )


def _title(name: str) -> str:
    return name.replace("_", " ")


def _use_under(client: Client, calls: int, name: str, target: Target) -> Wait:
    with attacked(ATTACKS[name], target):
        return use(client, calls)


def use(client: Client, calls: int) -> Wait:
    """Acquire and release so often; return how long that takes."""
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        opened = client.acquire(Tap(bridge="br0", fin_wait=0))
        opened.close()
        client.release(opened)
        taken.append(time.perf_counter() - start)
    return Wait(statistics.median(taken) * 1e3, max(taken) * 1e3)
