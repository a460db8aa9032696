# SPDX-License-Identifier: Apache-2.0
"""libvirt: a real daemon, and a network device of a real guest that comes and goes.

The daemon lives in the network and mount namespaces of the measurement.
"""

import os
import socket
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.libvirt import configure

PYTHON = "/usr/bin/python3"
GUEST = Path(__file__).parent.parent / "guest.py"
READY = "/run/libvirtd.ready"
READY_SECONDS = 60.0
"""Seconds for the daemon to be ready."""


class LibvirtGuest:
    """A guest of libvirt, and the program that orders devices for it."""

    def __init__(self, bridge: str) -> None:
        self._program = subprocess.Popen(
            [PYTHON, GUEST, bridge],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._answer() != "ready":
            raise RuntimeError("the guest does not run")

    def order(self, *words: str) -> float:
        """Attach or detach a device; the seconds that it took."""
        assert self._program.stdin is not None
        self._program.stdin.write(" ".join(words) + "\n")
        self._program.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._program.communicate()

    def _answer(self) -> str:
        assert self._program.stdout is not None
        return self._program.stdout.readline().strip()


class Attached:
    """The API's attachDevice and detachDevice, with a tap on the bridge."""

    title = "libvirt"
    note = (
        "tap, MAC, bridge, up, and QEMU's part: the guest gets and loses a network "
        "card; the name, vnet%d, is counted up by the daemon; nothing is held"
    )
    kind = "bridge"

    def __init__(self, guest: LibvirtGuest) -> None:
        self._guest = guest
        self._live: deque[str] = deque()
        self._started = 0

    def start(self) -> float:
        self._started += 1
        mac = "52:54:" + self._started.to_bytes(4, "big").hex(":")
        self._live.append(mac)
        return self._guest.order("attach", self.kind, mac)

    def stop(self) -> float:
        return self._guest.order("detach", self.kind, self._live.popleft())

    def tidy(self) -> None:
        """Nothing is left."""


class AttachedToNothing(Attached):
    """The same, of a device that QEMU itself is the network of."""

    title = "libvirt, nothing on the host"
    note = "QEMU's part alone"
    kind = "user"


@contextmanager
def guest(bridge: str) -> Iterator[LibvirtGuest]:
    """A guest on a bridge, and a daemon for it."""
    with _daemon():
        made = LibvirtGuest(bridge)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def _daemon() -> Iterator[None]:
    configure("root")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(READY)
        ready.settimeout(READY_SECONDS)
        daemon = subprocess.Popen(
            ["libvirtd"],
            stdin=subprocess.DEVNULL,
            # It complains about everything that this host lacks.
            stderr=subprocess.DEVNULL,
            env=os.environ | {"NOTIFY_SOCKET": READY},
        )
        try:
            ready.recv(64)
            yield
        finally:
            daemon.terminate()
            daemon.wait()
