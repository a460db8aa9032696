# SPDX-License-Identifier: Apache-2.0
"""Whole processes: start and stop a device from a shell."""

from collections.abc import Iterator

from bench.install import install
from bench.measurements import Run
from bench.processes import run as run_process
from bench.result import Goal, Row, Table, interleave
from bench.ways import Way
from bench.ways.ip import ByHand
from bench.ways.tapster import Command
from bench.world import world

SAMPLES = 10
"""A round, of each way."""
PYTHON, LOADED = "Python, twice", "Python with its modules, twice"
MODULES = "argparse, socket, sqlite3, typing"
NOTES = {
    Command.title: Command.note,
    ByHand.title: ByHand.note,
    PYTHON: "for comparison: two processes that do nothing",
    LOADED: f"for comparison: they import {MODULES}, and do nothing",
}


def measure(run: Run) -> Iterator[Table]:
    samples = run.size(SAMPLES, 1)
    with world(run.program) as place:
        programs = install(place.directory)
        place.bridge("br0", run.size(200, 2))
        ledger = place.directory / "ledger.db"
        command = Command(str(programs / "tapster"), ledger, "br0")
        by_hand = ByHand("br0")
        python = str(programs / "python")
        found = interleave(
            {
                Command.title: lambda: _both(command, samples),
                ByHand.title: lambda: _both(by_hand, samples),
                PYTHON: lambda: _python(python, "", samples),
                LOADED: lambda: _python(python, f"import {MODULES}", samples),
            },
            run.rounds,
        )
    yield Table(
        "command",
        "Start and stop by command",
        "ms",
        [Row(title, rounds, NOTES[title]) for title, rounds in found.items()],
        base=ByHand.title,
        goals=[Goal(Command.title, 3, to=ByHand.title)],
        about="The wall time of all processes together.",
    )


def _both(way: Way, samples: int) -> float:
    taken = sum(way.start() + way.stop() for _ in range(samples))
    way.tidy()
    return taken / samples * 1e3


def _python(python: str, code: str, samples: int) -> float:
    taken = sum(run_process(python, "-c", code) for _ in range(2 * samples))
    return taken / samples * 1e3
