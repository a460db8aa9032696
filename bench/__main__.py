# SPDX-License-Identifier: Apache-2.0
"""Measure, print, and write docs/performance.md with its pictures. Needs root."""

import argparse
import os
import resource
import tempfile
import time
from importlib import import_module
from pathlib import Path

from bench import report
from bench.floor import compile_floor
from bench.measurements import Run
from bench.previous import checked_out

MEASUREMENTS = (
    "startstop",
    "reaping",
    "waiting",
    "sustained",
    "instructions",
    "command",
    "reading",
    "picking",
    "bookkeeping",
    "growth",
    "backends",
    "filters",
    "frames",
    "limits",
    "storms",
    "daemon",
    "attacks",
    "looking",
    "pods",
    "domains",
    "drift",
)
LONG = {"drift": "15 minutes"}
"""Long measurements, which run only when they are named."""
DOCS = Path(__file__).parent.parent / "docs"
ROUNDS = 5
PRIORITY = -10
"""The priority of the measurement, ahead of other processes; all ways inherit it."""
FILES = 20_000
"""Descriptors that a measurement may have open: one a device."""


def main() -> None:
    options = _options()
    # A process that is measured starts as a user's does.
    for variable in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
        os.environ.pop(variable, None)
    os.nice(PRIORITY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    with (
        tempfile.TemporaryDirectory() as directory,
        checked_out(options.previous, Path(directory)) as previous,
    ):
        floor = compile_floor(Path(directory))
        run = Run(options.rounds, floor, options.small, previous)
        usual = [name for name in MEASUREMENTS if name not in LONG]
        for name in options.measurements or usual:
            module = import_module(f"bench.measurements.{name}")
            begin = time.monotonic()
            tables = []
            for table in module.measure(run):
                tables.append(table)
                print(report.text(table), flush=True)
            report.write(options.out, name, tables, run.rounds)
            print(f"{name} took {time.monotonic() - begin:.0f} s\n", flush=True)
    report.write_page(options.out, MEASUREMENTS)
    if not options.measurements:
        for name, duration in LONG.items():
            print(f"left out, as it takes {duration}: make bench ARGS={name}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    option = parser.add_argument
    option("measurements", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    option("--rounds", type=int, default=ROUNDS, metavar="N", help="default: 5")
    option("--small", action="store_true", help="test the bench: tiny sizes")
    option("--previous", metavar="COMMIT", help="an earlier commit to measure, too")
    option("--out", type=Path, default=DOCS, metavar="DIR", help="default: docs")
    options = parser.parse_args()
    for name in options.measurements:
        if name not in MEASUREMENTS:
            parser.error(f"there is no measurement {name!r}")
    return options


if __name__ == "__main__":
    main()
