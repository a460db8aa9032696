# SPDX-License-Identifier: Apache-2.0
"""What it costs to pick a name, by the number of leases and of foreign devices.

One pick is one transaction of the ledger: choose name, ifindex and MAC, insert
the row. Foreign devices are real ones, asked about by real system calls.
"""

import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.private import namespaces
from tapster.kernel.linux import LinuxKernel, LinuxSystem
from tapster.ledger import Ledger, Reservation
from tapster.model import Lease, Naming, Tap
from tapster.names import parse

SIZES = (10, 1_000, 100_000)
FOREIGN = 1_000
PICKS = 300
ROUNDS = 5


class Bench:
    """A ledger with some leases in it, in a namespace with some devices."""

    def __init__(self, directory: Path, leases: int, kernel: LinuxKernel) -> None:
        self.ledger = Ledger(directory / "ledger.db", LinuxSystem())
        self._kernel = kernel
        for start in range(0, leases, 10_000):
            self._reserve(min(10_000, leases - start), Naming.LOWEST)

    def pick(self, naming: Naming, number: int) -> float:
        """Seconds that one pick takes."""
        key = str(number) if naming is Naming.STABLE else None
        before = time.perf_counter()
        (lease,) = self._reserve(1, naming, key)
        taken = time.perf_counter() - before
        self.ledger.forget([lease.id])
        return taken

    def _reserve(
        self, count: int, naming: Naming, key: str | None = None
    ) -> list[Lease]:
        spec = Tap(naming=naming, key=key)
        return self.ledger.reserve(
            self._kernel.netns,
            [Reservation(spec, parse(spec.name), None, spec.wiring)] * count,
            manager=1,
            taken=self._kernel.ifindex,
            changed=self._kernel.changed_links,
        )


@contextmanager
def benches() -> Iterator[dict[str, Bench]]:
    """One bench for each row; the last is in a namespace with foreign devices."""
    subprocess.run(["ip", "netns", "add", "plain"], check=True)
    for number in range(FOREIGN):
        tap = ["ip", "tuntap", "add", f"vnet{number}", "mode", "tap"]
        subprocess.run(tap, check=True)
    system = LinuxSystem()
    plain, crowded = system.netns("plain"), system.netns(None)
    with tempfile.TemporaryDirectory() as directory:
        found = {
            f"{size:,} leases": Bench(Path(directory, str(size)), size, plain)
            for size in SIZES
        }
        foreign = Bench(Path(directory, "foreign"), SIZES[0], crowded)
        found[f"{SIZES[0]} leases, {FOREIGN:,} foreign devices"] = foreign
        yield found


def main() -> None:
    """Print the medians, and each as a ratio to the first row's."""
    with namespaces(), benches() as rows:
        print(f"{'pick a name':<32}" + "".join(f"{one:>18}" for one in Naming))
        first: dict[Naming, float] = {}
        for title, medians in measure(rows).items():
            cells = []
            for naming, seconds in medians.items():
                ratio = seconds / first.setdefault(naming, seconds)
                cells.append(f"{seconds * 1e6:8.0f} us x {ratio:4.2f}")
            print(f"{title:<32}" + "".join(f"{cell:>18}" for cell in cells))


def measure(rows: dict[str, Bench]) -> dict[str, dict[Naming, float]]:
    """The median of each row and policy, over interleaved rounds."""
    times: dict[str, dict[Naming, list[float]]] = {
        title: {naming: [] for naming in Naming} for title in rows
    }
    for round_ in range(ROUNDS):
        for title, bench in rows.items():
            for naming in Naming:
                times[title][naming] += [
                    bench.pick(naming, round_ * PICKS + number)
                    for number in range(PICKS)
                ]
    return {
        title: {naming: statistics.median(all_) for naming, all_ in of.items()}
        for title, of in times.items()
    }
