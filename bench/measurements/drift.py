# SPDX-License-Identifier: Apache-2.0
"""A million rounds of start and stop, on a host in memory, to find what drifts.

Tapster and its ledger are real. The time is that of the processor, so that other
programs of the host do not count.
"""

import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from bench.measurements import Run
from bench.result import Goal, Row, Table
from bench.ways.tapster import no_reaper
from tapster import Host, Lease, Naming, Tap
from tapster.ledger.history import HISTORY_ROWS
from tapster.names import MAX_BYTES
from tapster.testing import FakeSystem

ROUNDS = 1_000_000
LOOKS = 10
LIVE = 50
KEYS = 200
"""VMs that return, each under its key, with naming `stable`."""
STEP = 0.1
"""Seconds from one round to the next."""
REAP_EVERY = 20
NAMES = {Naming.LOWEST: "low%d", Naming.NEXT: "next%d", Naming.STABLE: "key%d"}

TIME, SIZE, HISTORY = "time", "size", "history"
PICTURES = {
    "time": ("time of a round", "ms of the processor", [TIME]),
    "size": ("size of the ledger", "MiB", [SIZE]),
    "history": ("ended leases that are remembered", "rows", [HISTORY]),
    "names": ("longest name", "characters", [*Naming]),
}


class LedgerLook(NamedTuple):
    """What was seen after some rounds, by curve."""

    rounds: int
    found: dict[str, float]


def measure(run: Run) -> Iterator[Table]:
    rounds = run.size(ROUNDS, LOOKS * 6)
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(DriftStorm(Path(directory) / "ledger.db")) as storm,
    ):
        looks = [storm.go_on(rounds // LOOKS) for _ in range(LOOKS)]
    goals = _goals(looks)
    for key, (title, unit, curves) in PICTURES.items():
        yield Table(
            f"drift-{key}",
            f"{rounds:,} simulated rounds: {title}",
            unit,
            [
                Row(_title(curve, look), [look.found[curve]], "", curve, look.rounds)
                for curve in curves
                for look in looks
            ],
            goals=[goals[curve] for curve in curves],
            axis="rounds",
            about="The host is simulated in memory. Each round starts a device and "
            f"stops the oldest of {LIVE}. The three namings take turns.",
        )


def _goals(looks: list[LedgerLook]) -> dict[str, Goal]:
    first, middle, last = looks[0], looks[LOOKS // 2], looks[-1]
    return {
        TIME: Goal(_title(TIME, last), 1.5, to=_title(TIME, first)),
        SIZE: Goal(_title(SIZE, last), 1.1, to=_title(SIZE, middle)),
        HISTORY: Goal(_title(HISTORY, last), HISTORY_ROWS),
    } | {naming: Goal(_title(naming, last), MAX_BYTES) for naming in Naming}


def _title(curve: str, look: LedgerLook) -> str:
    return f"{curve}, after {look.rounds:,} rounds"


class DriftStorm:
    """Rounds of start and stop, with the three namings in turn."""

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._system = FakeSystem()
        self._host = Host(ledger, system=self._system, reaper=no_reaper)
        self._specs = _specs()
        self._live: deque[Lease] = deque()
        self._rounds = 0

    def close(self) -> None:
        self._host.close()

    def go_on(self, rounds: int) -> LedgerLook:
        """Go on for some rounds, and look."""
        found: dict[str, float] = dict.fromkeys(Naming, 0)
        before = time.process_time()
        for _ in range(rounds):
            naming, name = self._round()
            found[naming] = max(found[naming], len(name))
        found[TIME] = (time.process_time() - before) / rounds * 1e3
        found[SIZE] = self._size()
        found[HISTORY] = self._history()
        return LedgerLook(self._rounds, found)

    def _round(self) -> tuple[Naming, str]:
        self._rounds += 1
        spec = next(self._specs)
        with self._host.acquire(spec) as opened:
            self._live.append(opened.lease)
        if len(self._live) > LIVE:
            self._host.release(self._live.popleft().id)
        self._system.advance(STEP)
        if self._rounds % REAP_EVERY == 0:
            self._host.reap()
        return spec.naming, opened.name

    def _size(self) -> float:
        files = self._ledger.parent.glob(f"{self._ledger.name}*")
        return sum(file.stat().st_size for file in files) / 2**20

    def _history(self) -> int:
        with closing(sqlite3.connect(self._ledger)) as db:
            (rows,) = db.execute("SELECT count(*) FROM history").fetchone()
        return int(rows)


def _specs() -> Iterator[Tap]:
    keys = cycle(str(number) for number in range(KEYS))
    while True:
        for naming, template in NAMES.items():
            key = next(keys) if naming is Naming.STABLE else None
            yield Tap(name=template, naming=naming, key=key)
