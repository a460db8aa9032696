# SPDX-License-Identifier: Apache-2.0
"""A network for measurements, with bridges that have any number of ports."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.floor import Floor
from lab.namespaces import namespaces
from lab.reapers import kill_reapers

SYSFS = Path("/sys/class/net")
GROUP = 200
"""Devices deleted at a time when all is over."""


class BenchWorld:
    """A namespace in which ways are measured."""

    def __init__(self, directory: Path, floor: Floor) -> None:
        self.directory = directory
        """For files; it goes with the world."""
        self.floor = floor
        self._bridges = 0

    def bridge(self, name: str, ports: int = 0) -> int:
        """Make a bridge with that many ports, each held open; its ifindex."""
        self._bridges += 1
        # A MAC of its own: otherwise it would be looked for at each change of a port.
        mac = f"02:00:00:00:00:{self._bridges:02x}"
        _ip("link", "add", name, "address", mac, "type", "bridge")
        _ip("link", "set", name, "up")
        ifindex = int(SYSFS.joinpath(name, "ifindex").read_text())
        for _ in range(ports):
            self.floor.acquire(ifindex)
        return ifindex

    def devices(self) -> int:
        """Return how many devices there are."""
        return len(list(SYSFS.iterdir()))

    def clear(self) -> None:
        """Delete every device, so that the next measurement does not wait for
        deletions."""
        found = [
            int(device.joinpath("ifindex").read_text())
            for device in SYSFS.iterdir()
            if device.name != "lo"
        ]
        self.floor.reap(found, GROUP)


@contextmanager
def world(program: Path) -> Iterator[BenchWorld]:
    """Enter a network of our own for a block; `program` is the compiled floor."""
    with namespaces(), tempfile.TemporaryDirectory() as directory:
        _ip("link", "set", "lo", "up")
        with Floor(program) as floor:
            made = BenchWorld(Path(directory), floor)
            try:
                yield made
            finally:
                # A reaper would make files where the directory is being deleted.
                for ledger in made.directory.glob("*.db"):
                    kill_reapers(ledger)
            made.clear()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
