# SPDX-License-Identifier: Apache-2.0
"""Whole processes: start and stop a device from a shell."""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from bench.install import install
from bench.measurements import Run
from bench.measurements.daemon import daemon
from bench.processes import run as run_process
from bench.result import Goal, Row, Table, interleave
from bench.ways import Way
from bench.ways.ip import ByHand
from bench.ways.tapster import Command
from bench.world import world

SAMPLES = 10
"""A round, of each way."""
BARE = "python3 -I -S -c pass"
VERBS = ("ls", "add", "rm")
ASKING = ", asking tapsterd"
BEFORE = ", previous release"


def measure(run: Run) -> Iterator[Table]:
    samples = run.size(SAMPLES, 1)
    with world(run.program) as place, daemon(place) as path:
        programs = install(place.directory / "this")
        place.bridge("br0", run.size(200, 2))
        ledger = place.directory / "ledger.db"
        tapster = str(programs / "tapster")
        commands = {
            "": Command([tapster, "--ledger", str(ledger)], "br0"),
            ASKING: Command([tapster, "--socket", str(path)], "br0"),
        }
        if run.previous is not None:
            former = install(place.directory / "former", run.previous) / "tapster"
            old = str(place.directory / "former.db")
            commands[BEFORE] = Command([str(former), "--ledger", old], "br0")
        python = str(programs / "python")
        ways: dict[str, Callable[[], dict[str, float]]] = {
            BARE: lambda: {"": _median(partial(_bare, python), samples)},
            ByHand.title: partial(_both, ByHand("br0"), samples),
        }
        for suffix, command in commands.items():
            ways[suffix] = partial(_verbs, command, samples)
        found = interleave(ways, run.rounds)
    verbs = [Row(BARE, [figures[""] for figures in found[BARE]])]
    both = [Row(ByHand.title, [sum(x.values()) for x in found[ByHand.title]])]
    both[0] = both[0]._replace(note=ByHand.note)
    for suffix, command in commands.items():
        rounds = found[suffix]
        verbs += [
            Row(f"{verb}{suffix}", [figures[verb] for figures in rounds])
            for verb in VERBS
        ]
        sums = [figures["add"] + figures["rm"] for figures in rounds]
        both.append(Row(f"{command.title}{suffix}", sums, command.note))
    yield Table(
        "verbs",
        "A verb as a process",
        "ms",
        verbs,
        base=BARE,
        goals=[
            Goal(f"{verb}{suffix}", bound, to=BARE)
            for suffix, bound in (("", 3.2), (ASKING, 1.8))
            for verb in VERBS
        ],
        about="The median wall time of a process.",
    )
    yield Table(
        "command",
        "Start and stop by command",
        "ms",
        both,
        base=ByHand.title,
        goals=[
            Goal(Command.title, 3, to=ByHand.title),
            Goal(f"{Command.title}{ASKING}", 2, to=ByHand.title),
        ],
        about="The wall time of all processes together.",
    )


def _verbs(command: Command, samples: int) -> dict[str, float]:
    found = _both(command, samples)
    return {**found, "ls": _median(command.list, samples)}


def _both(way: Way, samples: int) -> dict[str, float]:
    started = [way.start() for _ in range(samples)]
    stopped = [way.stop() for _ in range(samples)]
    way.tidy()
    return {"add": median(started) * 1e3, "rm": median(stopped) * 1e3}


def _bare(python: str) -> float:
    return run_process(python, "-I", "-S", "-c", "pass")


def _median(measured: Callable[[], float], samples: int) -> float:
    return median(measured() for _ in range(samples)) * 1e3
