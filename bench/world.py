# SPDX-License-Identifier: Apache-2.0
"""A network for measurements, with bridges that have any number of ports."""

import select
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench.floor import Floor
from lab.namespaces import namespaces
from lab.reapers import kill_reapers
from tapster.kernel.watch import LinkWatch

SYSFS = Path("/sys/class/net")
GROUP = 200
"""Devices deleted at a time when all is over."""
DELETED = 60.0
"""Seconds in which the next one of released devices has to be deleted."""


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
        """Return how many devices there are.

        /sys/class/net still shows a device for a moment after the kernel has reported
        its end.
        """
        return len(socket.if_nameindex())

    def wait_for(self, devices: int) -> None:
        """Wait until there are no more devices than this."""
        with closing(LinkWatch()) as watch:
            while (left := self.devices() - devices) > 0:
                heard, _, _ = select.select([watch], [], [], DELETED)
                assert heard, f"{left} devices were not deleted"
                watch.changed()

    def clear(self) -> None:
        """Delete every device, so that the next measurement does not wait for
        deletions.

        The kernel may delete some of them meanwhile, with the namespace of a pod.
        """
        names = [name for _, name in socket.if_nameindex() if name != "lo"]
        for first in range(0, len(names), GROUP):
            lines = [f"link set {name} group 1" for name in names[first:][:GROUP]]
            subprocess.run(
                ["ip", "-force", "-batch", "-"],
                input="\n".join([*lines, "link delete group 1"]),
                text=True,
                stderr=subprocess.DEVNULL,
                check=False,  # it fails if a device has ended
            )


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
