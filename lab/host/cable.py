# SPDX-License-Identifier: Apache-2.0
"""Virtual networks between hosts: a cable has two ends, and a host a card for each."""

from pathlib import Path
from typing import NamedTuple

from lab.host import cache


class End(NamedTuple):
    """One end of a cable."""

    here: Path
    there: Path

    def options(self, number: int) -> list[str]:
        """QEMU's options for the network card of a host at this end."""
        six = cache.digest([str(self.here)])[:6]
        mac = ":".join(("52:54:01", six[:2], six[2:4], six[4:]))
        local = f"local.type=unix,local.path={self.here}"
        remote = f"remote.type=unix,remote.path={self.there}"
        return [
            *("-netdev", f"dgram,id=cable{number},{local},{remote}"),
            *("-device", f"virtio-net-pci,netdev=cable{number},mac={mac}"),
        ]


def cable(folder: Path, name: str = "cable") -> tuple[End, End]:
    """Return the two ends of a cable, whose sockets are in this folder."""
    left, right = (folder / f"{name}-{side}" for side in ("left", "right"))
    return End(left, right), End(right, left)
