# SPDX-License-Identifier: Apache-2.0
"""Instructions of a verb, of an acquire and of a release: no load changes them."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.callgrind import instructions
from bench.install import ROOT
from bench.measurements import Run
from bench.measurements.daemon import daemon
from bench.processes import run as run_process
from bench.result import Goal, Row, Table
from bench.world import BenchWorld, world

PYTHON = (sys.executable, "-I", "-S")
BARE = "python3 -I -S -c pass"
VERBS = {
    "ls": ("ls",),
    "add": ("add", "--bridge", "br0", "--fin-wait", "3600", "--name"),
    "rm": ("rm",),
}
FEW, MANY = 40, 80
"""Acquires, and releases: the difference of two runs is that of the calls alone."""
START = "import sys; sys.path.append(sys.argv.pop(1)); {}"
COMMAND = START.format(
    """
try:
    from tapster.__main__ import command
except ImportError:  # an early commit
    from tapster.cli import command
command()
"""
)
LOOP = START.format(
    """import gc, os
gc.disable()  # the collector of garbage comes at random
from tapster.host import Host
from tapster.model import Tap
host = Host(sys.argv[1], reaper=lambda _: None)
names = sys.argv[4]  # no device of another loop is in the way
def acquire():
    opened = host.acquire(Tap(name=names, bridge="br0", owner="x", fin_wait=3600))
    opened.close() if hasattr(opened, "close") else [os.close(fd) for fd in opened.fds]
    return opened.id
ids = [acquire() for _ in range(int(sys.argv[2]))]
for id in ids[:int(sys.argv[3])]:
    host.release(id)
os._exit(0)
"""
)


def measure(run: Run) -> Iterator[Table]:
    trees = {"": ROOT} | ({", previous": run.previous} if run.previous else {})
    with world(run.program) as place, daemon(place) as path:
        place.bridge("br0")
        rows = [Row(BARE, [_python("-c", "pass") / 1e6])]
        for suffix, tree in trees.items():
            ledger = place.directory / f"verbs{len(rows)}.db"
            rows += _verbs(suffix, tree, "--ledger", str(ledger))
        rows += _verbs(", asking tapsterd", ROOT, "--socket", str(path))
        pairs = [
            row for suffix, tree in trees.items() for row in _pairs(place, suffix, tree)
        ]
    yield Table(
        "instructions-verbs",
        "Instructions of a verb",
        "million",
        rows,
        base=BARE,
        goals=[Goal(verb, 3.2, to=BARE) for verb in VERBS]
        + [Goal(f"{verb}, asking tapsterd", 1.8, to=BARE) for verb in VERBS],
        about="Of the process itself, in user mode: `python3 -I -S`, as an "
        "installed program starts.",
    )
    yield Table(
        "instructions-pair",
        "Instructions of an acquire and of a release",
        "thousand",
        pairs,
        about="Of the library, in user mode, in a loop.",
    )


def _python(*arguments: str) -> int:
    return instructions(*PYTHON, *arguments)


def _verbs(suffix: str, tree: Path, *options: str) -> list[Row]:
    def words(verb: str, *name: str) -> tuple[str, ...]:
        return "-c", COMMAND, str(tree / "src"), *options, *VERBS[verb], *name

    # Then everything is compiled, and a reaper runs: valgrind cannot start one.
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}  # the reaper's
    for verb in VERBS:
        name = () if verb == "ls" else ("first",)
        run_process(*PYTHON, *words(verb, *name), environment=environment)
    rows = [
        Row(f"{verb}{suffix}", [_python(*words(verb, *name)) / 1e6])
        for verb, *name in (("ls",), ("add", "second"), ("rm", "second"))
    ]
    run_process(*PYTHON, *words("ls")[:-1], "reap", "--now")  # the reaper ends
    return rows


def _pairs(place: BenchWorld, suffix: str, tree: Path) -> list[Row]:
    made = 0

    def loop(acquires: int, releases: int) -> int:
        nonlocal made
        made += 1
        ledger = place.directory / f"loop{suffix}{made}.db"
        counts = str(acquires), str(releases)
        names = f"l{made}x{len(suffix)}n%d"
        return _python("-c", LOOP, str(tree / "src"), str(ledger), *counts, names)

    def each(more: Callable[[], int], less: Callable[[], int]) -> float:
        return (more() - less()) / (MANY - FEW) / 1e3

    loop(1, 1)
    acquire = each(lambda: loop(MANY, FEW), lambda: loop(FEW, FEW))
    release = each(lambda: loop(MANY, MANY), lambda: loop(MANY, FEW))
    return [Row(f"acquire{suffix}", [acquire]), Row(f"release{suffix}", [release])]
