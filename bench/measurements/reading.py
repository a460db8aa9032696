# SPDX-License-Identifier: Apache-2.0
"""What it costs to read: `ls` with many leases, `who` with a long history."""

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.install import install
from bench.measurements import Run
from bench.processes import run as run_process
from bench.result import Row, Table, interleave
from bench.world import BenchWorld, world
from lab.library import no_reaper
from tapster import Host, Tap

LEASES = 1_000
HISTORY = 1_000_000
SAMPLES = 5
"""Processes a round, of each way."""
BASE = "tapster ls, 1 lease"
QUESTIONS = {
    "tapster ls": ("ls",),
    "tapster ls -q": ("ls", "-q"),
    "tapster ls NAME": ("ls", "vnet1"),
    "tapster who NAME": ("who", "vnet1"),
    "tapster who --owner": ("who", "--owner", "v500"),
    "tapster who --mac": ("who", "--mac", "mac500"),
    "tapster who --at": ("who", "--at", "500"),
}


MEMORY = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
print(os.wait4(pid, 0)[2].ru_maxrss)
"""
"""Print the most KiB of memory that a command had. The kernel counts those of the
starter too, so this small program starts the command."""


class Cost(NamedTuple):
    """What a process took."""

    milliseconds: float
    mib: float


def measure(run: Run) -> Iterator[Table]:
    leases, rows = run.size(LEASES, 5), run.size(HISTORY, 1_000)
    samples = run.size(SAMPLES, 1)
    with world(run.program) as place:
        programs = install(place.directory)
        tapster, python = str(programs / "tapster"), str(programs / "python")
        few, many = (place.directory / f"{size}.db" for size in ("few", "many"))
        _fill(place, few, 1, 1)
        _fill(place, many, leases, rows)
        ways = {
            BASE: partial(_cost, samples, python, tapster, "--ledger", str(few), "ls")
        }
        for title, words in QUESTIONS.items():
            ways[title] = partial(
                _cost, samples, python, tapster, "--ledger", str(many), *words
            )
        found = interleave(ways, run.rounds)
    about = (
        f"With {leases:,} leases and {rows:,} entries of the history; most of them do "
        "not match; the first row has 1 and 1."
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


def _fill(place: BenchWorld, ledger: Path, leases: int, rows: int) -> None:
    name = f"b{ledger.stem}"
    place.bridge(name)
    with Host(ledger, reaper=no_reaper) as host:
        for _ in range(leases):
            with host.acquire(Tap(bridge=name)):
                pass
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


def _cost(samples: int, python: str, *command: str) -> Cost:
    """Return the median time and the memory of a process."""
    times = sorted(run_process(*command) for _ in range(samples))
    memory = subprocess.check_output([python, "-I", "-S", "-c", MEMORY, *command])
    return Cost(times[len(times) // 2] * 1e3, int(memory) / 1024)
