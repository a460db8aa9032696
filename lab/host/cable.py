# SPDX-License-Identifier: Apache-2.0
"""Virtual networks between hosts: a cable has two ends, and a host a card for each."""

from pathlib import Path
from typing import Any, NamedTuple

from lab.host import cache

SLOTS = 2
"""Cards that a host has room for."""


class CableEnd(NamedTuple):
    """One end of a cable."""

    here: Path
    there: Path

    def network(self, number: int) -> dict[str, Any]:
        """QEMU's description of this end, for the card of this number."""
        return {
            "type": "dgram",
            "id": f"cable{number}",
            "local": {"type": "unix", "path": str(self.here)},
            "remote": {"type": "unix", "path": str(self.there)},
        }

    def card(self, number: int) -> dict[str, Any]:
        """QEMU's description of the network card of this number."""
        six = cache.digest([str(self.here)])[:6]
        return {
            "driver": "virtio-net-pci",
            "id": f"card{number}",
            "bus": f"slot{number}",
            "netdev": f"cable{number}",
            "mac": ":".join(("52:54:01", six[:2], six[2:4], six[4:])),
        }


def slots() -> list[str]:
    """QEMU's options for the places of network cards, in which none is yet."""
    options: list[str] = []
    for number in range(SLOTS):
        port = f"pcie-root-port,id=slot{number},chassis={number + 1},slot={number + 1}"
        options += ["-device", port]
    return options


def cable(folder: Path) -> tuple[CableEnd, CableEnd]:
    """Return the two ends of a cable, whose sockets are in this folder."""
    left, right = (folder / f"cable-{side}" for side in ("left", "right"))
    return CableEnd(left, right), CableEnd(right, left)
