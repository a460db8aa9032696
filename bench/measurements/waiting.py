# SPDX-License-Identifier: Apache-2.0
"""How long a start may have to wait while many devices are deleted."""

import math
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.floor import name_of
from bench.measurements import Run
from bench.result import Goal, Row, Table, interleave
from bench.ways import Way
from bench.ways.floor import BATCH, Releasing
from bench.ways.ip import Batch
from bench.ways.tapster import COMMAND, Library
from bench.world import SYSFS, BenchWorld, world

DEVICES = 2000
MOST = 300
"""Starts a round. Deleting them all one by one takes longer than can be waited for."""
GROUP = 7

QUIET = "Tapster, while no program deletes"
REAP = "Tapster, while tapster reaps"
GROUPED = "floor, while ip deletes a group"
SINGLES = "ip -batch, while ip deletes one by one"
NOTES = {
    QUIET: "for comparison",
    REAP: f"`tapster reap`: {BATCH} devices at a time",
    GROUPED: "`ip link del group`: all devices at once",
    SINGLES: "`ip -batch`: no start waits for it, and it takes most of a minute",
}


def measure(run: Run) -> Iterator[Table]:
    devices = run.size(DEVICES, 20)
    with world(run.program) as place:
        storm = ReapStorm(place, devices)
        with storm.library.host:
            found = interleave(
                {
                    QUIET: storm.quiet,
                    REAP: storm.reap,
                    GROUPED: storm.group,
                    SINGLES: storm.one_by_one,
                },
                run.rounds,
            )
    yield Table(
        "waiting",
        f"Acquire while {devices:,} devices are deleted",
        "ms",
        [Row(title, rounds, NOTES[title]) for title, rounds in found.items()],
        goals=[Goal(REAP, 15)],
        about="The 99th percentile of the time of a start. One start follows the other "
        "while another process deletes.",
    )


class ReapStorm:
    """Devices to delete, and ways to start others during the deletion."""

    def __init__(self, place: BenchWorld, devices: int) -> None:
        self._place = place
        self._devices = devices
        self._bridge = place.bridge("br0")
        self._ledger = place.directory / "ledger.db"
        self._floor = Releasing(place.floor, self._bridge)
        self._batch = Batch("br0")
        self.library = Library(self._ledger, "br0")

    def quiet(self) -> float:
        taken = [self.library.start() for _ in range(self._devices // 10)]
        return _end(self.library, taken)

    def reap(self) -> float:
        for _ in range(self._devices):
            self.library.start()
            self.library.stop()
        command = [COMMAND, "--ledger", str(self._ledger), "reap", "--now"]
        return _starts_during(command, self.library)

    def group(self) -> float:
        names = [name_of(ifindex) for ifindex in self._released()]
        script = self._script(f"link set {name} group {GROUP}" for name in names)
        subprocess.run(["ip", "-batch", script], check=True)
        return _starts_during(["ip", "link", "del", "group", str(GROUP)], self._floor)

    def one_by_one(self) -> float:
        left = self._released()
        script = self._script(f"link del {name_of(ifindex)}" for ifindex in left)
        found = _starts_during(["ip", "-batch", str(script)], self._batch)
        left = [
            ifindex for ifindex in left if SYSFS.joinpath(name_of(ifindex)).exists()
        ]
        self._place.floor.reap(left, BATCH)
        return found

    def _released(self) -> list[int]:
        """Devices that were in use and are not any more."""
        made = []
        for _ in range(self._devices):
            ifindex, _ = self._place.floor.acquire(self._bridge)
            self._place.floor.close(ifindex)
            self._place.floor.release(ifindex)
            made.append(ifindex)
        return made

    def _script(self, lines: Iterable[str]) -> Path:
        """Return the lines as a file for ip -batch."""
        script = self._place.directory / "batch"
        script.write_text("\n".join(lines) + "\n")
        return script


def _starts_during(command: Sequence[str], way: Way) -> float:
    """Return how long the slowest of a hundred starts takes while a command runs."""
    taken: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(taken) < MOST:
            taken.append(way.start())
        process.kill()
    return _end(way, taken)


def _end(way: Way, taken: Sequence[float]) -> float:
    """Stop what was started; the 99th percentile of what that took, in ms."""
    for _ in taken:
        way.stop()
    way.tidy()
    return sorted(taken)[math.ceil(0.99 * len(taken)) - 1] * 1e3
