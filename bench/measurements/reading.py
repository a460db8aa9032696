# SPDX-License-Identifier: Apache-2.0
"""What it costs to read: `ls` with many leases, `who` with a long history."""

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.install import install
from bench.measurements import Run
from bench.result import Row, Table, interleave
from bench.world import BenchWorld, world
from lab.library import no_reaper
from tapster import Host, Tap

LEASES = 1_000
HISTORY = 1_000_000
SAMPLES = 5
"""Processes a round, of each way."""
FEW = 1_000
"""The entries of a short history."""
BASE = "tapster ls, 1 lease"
LISTS = {
    "tapster ls": ("ls",),
    "tapster ls -q": ("ls", "-q"),
    "tapster ls NAME": ("ls", "vnet1"),
}
HISTORIES = {
    "tapster who NAME": ("who", "v500"),
    "tapster who --owner": ("who", "--owner", "v500"),
    "tapster who --mac": ("who", "--mac", "mac500"),
    "tapster who --lease": ("who", "--lease", "id500"),
    "tapster who --at": ("who", "--at", "{late}"),
    "tapster who --limit 10": ("who", "--limit", "10"),
}
"""Each finds a few entries, however many there are."""


USE = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
used = os.wait4(pid, 0)[2]
print((used.ru_utime + used.ru_stime) * 1000, used.ru_maxrss / 1024)
"""
"""Print the milliseconds of processor time and the most MiB of memory that a command
had. The kernel counts the memory of the starter too, so this small program starts the
command."""


class Cost(NamedTuple):
    """What a process took."""

    milliseconds: float
    mib: float


def measure(run: Run) -> Iterator[Table]:
    leases = run.size(LEASES, 5)
    few, many = run.size(FEW, 600), run.size(HISTORY, 1_000)
    with world(run.program) as place:
        programs = install(place.directory)
        cost = partial(
            _cost, run.size(SAMPLES, 1), str(programs / "python"), programs / "tapster"
        )
        one, all_ = (place.directory / f"{size}.db" for size in ("one", "all"))
        _acquire(place, one, 1)
        _acquire(place, all_, leases)
        ways = {BASE: partial(cost, one, "ls")}
        for title, words in LISTS.items():
            ways[f"{title}, {leases:,} leases"] = partial(cost, all_, *words)
        for rows in (few, many):
            ledger = place.directory / f"{rows}.db"
            _acquire(place, ledger, 1)
            _remember(ledger, rows)
            for title, words in HISTORIES.items():
                asked = (word.format(late=rows) for word in words)
                ways[f"{title}, {rows:,} entries"] = partial(cost, ledger, *asked)
        found = interleave(ways, run.rounds)
    about = (
        "Processor time and memory of the whole process, in a namespace with "
        f"{leases + 3:,} devices. Each `who` finds at most 10 entries: an entry that "
        "does not fit must cost nothing, however many there are."
    )
    for field, title, unit in (
        ("milliseconds", "Reading leases and history by command", "ms"),
        ("mib", "The memory of a command that reads", "MiB"),
    ):
        yield Table(
            f"reading-{unit.lower()}",
            title,
            unit,
            [
                Row(way, [getattr(cost, field) for cost in rounds])
                for way, rounds in found.items()
            ],
            base=BASE,
            about=about,
        )


def _acquire(place: BenchWorld, path: Path, leases: int) -> None:
    name = f"b{path.stem}"
    place.bridge(name)
    with Host(path, reaper=no_reaper) as host:
        for _ in range(leases):
            host.acquire(Tap(bridge=name)).close()


def _remember(path: Path, rows: int) -> None:
    """Put ended leases into the history of a ledger."""
    with Host(path, reaper=no_reaper) as host:
        file = host.operations.context.ledger.file
        with file.changing() as db:
            db.execute(
                "WITH RECURSIVE n(i) AS "
                "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
                "INSERT INTO history (name, lease, owner, kind, mac, ifindex, netns, "
                "created, released, ended) SELECT 'v' || i, 'id' || i, 'v' || i, "
                "'tap', 'mac' || i, i, '', i, i + 1, i + 2 FROM n",
                (rows,),
            )


def _cost(samples: int, python: str, program: Path, ledger: Path, *words: str) -> Cost:
    """Return the median of the processor time and of the memory of a process."""
    command = [str(program), "--ledger", str(ledger), *words]
    used = [
        map(
            float,
            subprocess.check_output([python, "-I", "-S", "-c", USE, *command]).split(),
        )
        for _ in range(samples)
    ]
    times, sizes = zip(*used, strict=True)
    return Cost(median(times), median(sizes))
