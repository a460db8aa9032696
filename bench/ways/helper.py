# SPDX-License-Identifier: Apache-2.0
"""qemu-bridge-helper, driven as QEMU drives it (net_bridge_run_helper in net/tap.c).

QEMU starts it with one end of a socket pair, gets the tap's descriptor through that,
and waits for its end. The tap is not persistent: it goes when QEMU does.
"""

import array
import os
import socket
from collections import deque
from pathlib import Path

from bench.clock import timed
from lab.overlay import overlay

HELPER = "/usr/lib/qemu/qemu-bridge-helper"
ACL = Path("/etc/qemu/bridge.conf")


class Helper:
    """A process to start; the end of the VM to stop."""

    title = "qemu-bridge-helper"
    note = (
        "the kernel picks the name, tap%d; no MAC or alias is set; nothing is recorded "
        "or held; it is stopped by closing it, as QEMU's end does"
    )

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge
        self._live: deque[int] = deque()
        _allow(bridge)

    def start(self) -> float:
        taken, fd = timed(self._start)
        self._live.append(fd)
        return taken

    def stop(self) -> float:
        fd = self._live.popleft()
        return timed(lambda: os.close(fd))[0]

    def tidy(self) -> None:
        """Nothing is left."""

    def _start(self) -> int:
        ours, its = socket.socketpair()
        with ours, its:
            number = its.fileno()
            command = [HELPER, "--use-vnet", f"--fd={number}", f"--br={self._bridge}"]
            os.set_inheritable(number, True)
            pid = os.posix_spawn(HELPER, command, os.environ)
            its.close()
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
            os.waitpid(pid, 0)
        ((_, _, sent),) = ancillary
        return array.array("i", sent)[0]


def _allow(bridge: str) -> None:
    """Let the helper use the bridge, in this mount namespace alone."""
    overlay("/etc")
    ACL.parent.mkdir(exist_ok=True)
    ACL.write_text(f"allow {bridge}\n")
