# SPDX-License-Identifier: Apache-2.0
"""Foreign programs that take and free names of our templates, also as altnames.

A squatter deletes its devices by ifindex or by closing them. A squatter that deletes by
name could hit a VM, if an outsider had freed the name. The storm does not try that
here.
"""

import os
from itertools import count
from pathlib import Path
from threading import Event

from demo.ways import open_tap
from lab.namespaces import inside
from soak import ground
from soak.marks import Marker
from soak.messages import Free, Take
from soak.part import Part, given, stop_at_end_of_input

MOST = 8
"""Devices at a time."""
NAP = 0.25
"""Seconds at most between two of its acts."""
NAMES = (
    *(f"vnet{number}" for number in range(12)),
    *(f"ci{number}" for number in range(6)),
    *(f"vm{number}-t" for number in range(6)),
    "web",
    "db",
)


class Squatter:
    """The foreign programs of one namespace."""

    def __init__(self, part: Part, stop: Event) -> None:
        self._netns = part.netns
        self._stop = stop
        self._marker = Marker(f"{part.process}/")
        self._random = part.random()
        self._held: list[tuple[int, int]] = []
        """The ifindex and, if it is open, the descriptor of each device."""
        self._ifindexes = count(10_000_000)

    def work(self) -> None:
        while not self._stop.wait(self._random.random() * NAP):
            if len(self._held) < MOST and self._random.random() < 0.6:
                self._take()
            elif self._held:
                self._free(self._random.randrange(len(self._held)))
        while self._held:
            self._free(0)

    def _take(self) -> None:
        kind = self._random.choice(("bridge", "altname", "tap"))
        name = self._random.choice(NAMES)
        use = self._random.random() < 0.5
        if kind == "tap":
            self._open(use=use)
            return
        ifindex = next(self._ifindexes)
        device = f"if{ifindex}"  # so it is called for `ip`
        own = name if kind == "bridge" else f"own{ifindex}"
        add = f"link add name {own} index {ifindex} type bridge"
        if not ground.ip(self._netns, *add.split()):
            return
        self._held.append((ifindex, -1))
        prop = f"link property add dev {own} altname {name}"
        also = own != name and ground.ip(self._netns, *prop.split())
        up = use and ground.ip(self._netns, "link", "set", "dev", device, "up")
        self._say_taken(ifindex, own, up=up, on="", also=name if also else "")

    def _open(self, *, use: bool) -> None:
        """A tap as other programs make it: the kernel picks the name."""
        with inside(f"/run/netns/{self._netns}"):
            fd, name = open_tap("vnet%d")
        links = ground.links(self._netns)
        ifindex = next(
            (link["ifindex"] for link in links if link["ifname"] == name), None
        )
        if ifindex is None or _name_of(fd) != name:  # an outsider was quicker
            os.close(fd)
            return
        self._held.append((ifindex, fd))
        join = f"link set dev if{ifindex} master br0 up"
        used = use and ground.ip(self._netns, *join.split())
        on = "br0" if used else ""
        self._say_taken(ifindex, name, up=used, on=on, also="")

    def _say_taken(
        self, ifindex: int, name: str, *, up: bool, on: str, also: str
    ) -> None:
        self._marker.say(self._netns, Take(ifindex, name, up, on, also))

    def _free(self, place: int) -> None:
        ifindex, fd = self._held.pop(place)
        self._marker.say(self._netns, Free(ifindex))
        if fd >= 0:
            os.close(fd)
        else:
            ground.ip(self._netns, "link", "del", "dev", f"if{ifindex}")


def _name_of(tap: int) -> str:
    """Return the name of an open tap; nothing if it has been deleted."""
    text = Path(f"/proc/self/fdinfo/{tap}").read_text()
    return text.partition("iff:\t")[2].partition("\n")[0]


def main() -> None:
    Squatter(given(), stop_at_end_of_input()).work()


if __name__ == "__main__":
    main()
