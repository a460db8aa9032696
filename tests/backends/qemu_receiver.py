# SPDX-License-Identifier: Apache-2.0
"""What a VM receives through a network card of QEMU, as the card's model gets it.

The boot ROM enables the card: see lab/vm.py.
"""

import os
import select
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from lab.frames import mac as raw
from tapster import Host, Tap

TIMEOUT = 60.0
SHORTEST = 60
"""QEMU pads frames for cards that would do so."""
_FILE, _RECORD = 24, struct.Struct("IIII")
"""The header of a capture, and of each frame in it: pcap-savefile(5)."""


class QemuReceiver:
    """A VM with a card on a tap of br0."""

    def __init__(self, host: Host, card: str, folder: Path) -> None:
        """Start the VM, and wait until its ROM has enabled the card."""
        packets = folder / f"{card}.pcap"
        os.mkfifo(packets)
        self._fd = os.open(packets, os.O_RDWR)  # so that QEMU finds a reader
        self._buffer = b""
        with host.acquire(Tap(bridge="br0")) as device:
            (tap,) = device.fds
            self._qemu = subprocess.Popen(
                [
                    *("qemu-system-x86_64", "-no-user-config", "-nodefaults"),
                    *("-display", "none", "-machine", "pc", "-accel", "tcg"),
                    *("-m", "32", "-netdev", f"tap,id=n0,fd={tap}"),
                    *("-device", f"{card},netdev=n0,mac={device.mac}"),
                    *("-object", f"filter-dump,id=d0,netdev=n0,file={packets}"),
                ],
                pass_fds=[tap],
            )
            sender = raw(device.mac)
        try:
            self._take(_FILE)
            while self._next()[6:12] != sender:
                pass
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self._qemu.kill()
        self._qemu.wait()
        os.close(self._fd)

    def until(self, last: bytes) -> list[bytes]:
        """Return the frames that arrive before the last one."""
        arrived = []
        while (frame := self._next()) != last.ljust(SHORTEST, b"\0"):
            arrived.append(frame)
        return arrived

    def _next(self) -> bytes:
        _, _, size, _ = _RECORD.unpack(self._take(_RECORD.size))
        return self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            ready, _, _ = select.select([self._fd], [], [], TIMEOUT)
            assert ready, "the card received nothing more"
            self._buffer += os.read(self._fd, 1 << 16)
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken
