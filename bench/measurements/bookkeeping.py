# SPDX-License-Identifier: Apache-2.0
"""What leases cost beside their devices: in memory, on disk, in a recover."""

import gc
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from bench.clock import timed
from bench.measurements import Run
from bench.result import Goal, Row, Table, interleave
from bench.ways.tapster import no_reaper
from bench.world import world
from tapster import Host

LEASES = 4000
BRIDGES = [f"br{number}" for number in range(8)]
MODULES = ("tapster.host", "pyroute2")
"""The library, and a peer: `tapster` alone imports what is used of it."""


def measure(run: Run) -> Iterator[Table]:
    imports = interleave({module: _importing(module) for module in MODULES}, run.rounds)
    yield Table(
        "import",
        "Memory of the library",
        "MiB over bare Python",
        [Row(f"import {module}", rounds) for module, rounds in imports.items()],
        goals=[Goal("import tapster.host", 15)],
    )
    leases = run.size(LEASES, 20)
    costs = [_costs(run.program, leases) for _ in range(run.rounds)]
    yield Table(
        "lease",
        f"What each of {leases:,} leases takes without its device",
        "KiB a lease",
        [
            Row(
                "memory", [cost.memory for cost in costs], "of the process that has it"
            ),
            Row("ledger", [cost.disk for cost in costs], "of the file"),
        ],
        goals=[Goal("memory", 2), Goal("ledger", 1)],
    )
    yield Table(
        "recover",
        f"Recover, with {leases:,} leases",
        "ms",
        [
            Row(
                "all sound",
                [cost.sound for cost in costs],
                "without Python's garbage collector, as in the command",
            ),
            Row("after a reboot", [cost.reboot for cost in costs], "it ends them all"),
            Row("ip -j link", [cost.listing for cost in costs], "for comparison"),
        ],
        goals=[
            Goal("all sound", 3, to="ip -j link"),
            Goal("all sound", 1000),
            Goal("after a reboot", 1000),
        ],
    )


class Costs(NamedTuple):
    """What some leases cost: KiB each, and milliseconds for all."""

    memory: float
    disk: float
    sound: float
    listing: float
    reboot: float


def _costs(program: Path, leases: int) -> Costs:
    with world(program) as place:
        for bridge in BRIDGES:
            place.bridge(bridge)
        ledger = place.directory / "ledger.db"
        memory = _python("-m", "bench.hoard", str(ledger), str(leases), *BRIDGES)
        disk = ledger.stat().st_size / 1024
        sound = _recover(ledger)
        listing, _ = timed(lambda: _output("ip", "-j", "link"))
        _let_another_boot_begin(ledger)
        reboot = _recover(ledger)
    return Costs(memory / leases, disk / leases, sound, listing * 1e3, reboot)


def _recover(ledger: Path) -> float:
    with Host(ledger, reaper=no_reaper) as host:
        gc.disable()  # as in the command
        taken, _ = timed(host.recover)
        gc.enable()
    return taken * 1e3


def _let_another_boot_begin(ledger: Path) -> None:
    """Let every lease be of an earlier boot, as a reboot would."""
    with closing(sqlite3.connect(ledger)) as db, db:
        db.execute("UPDATE netns SET boot = 'an earlier one'")


def _importing(module: str) -> Callable[[], float]:
    """Return the MiB of memory that it takes to import a module."""
    code = (
        f"from bench.memory import resident; before = resident(); import {module}; "
        "print(resident() - before)"
    )
    return lambda: _python("-c", code) / 1024


def _python(*words: str) -> int:
    """Return the number that a Python prints."""
    return int(_output(sys.executable, *words))


def _output(*command: str) -> str:
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ
    ).stdout
