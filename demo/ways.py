# SPDX-License-Identifier: Apache-2.0
"""Two ways to give a VM its tap: the kernel picks the name, or Tapster does."""

import fcntl
import os
import struct
from typing import Protocol

from lab import vm
from lab.shell import TAPSTER
from lab.vm import QemuVm
from lab.vm_network import BRIDGE, VmNetwork, wait_until_ended

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000

_NOTICE_SECONDS = 10.0
"""Seconds in which the host surely notices that a VM is dead."""


class TapProvider(Protocol):
    """What differs between the two runs."""

    def start(self, name: str, mac: str) -> QemuVm:
        """Start a VM on a tap that is a port of the bridge; return when it runs."""
        ...

    def wait_until_gone(self, dead: QemuVm, tap: str) -> str:
        """Wait until the killed VM's tap is handled; return a sentence about it."""
        ...


class KernelNames:
    """Without Tapster: ask the kernel for `vnet%d`, configure the tap by its name."""

    def __init__(self, lab: VmNetwork) -> None:
        self._lab = lab
        self._changes = lab.watch("ip", "-o", "monitor", "link")

    def start(self, name: str, mac: str) -> QemuVm:
        """Open a tap that lives as long as the VM, and hand it over."""
        fd, tap = open_tap("vnet%d")
        try:
            self._lab.call("ip", "link", "set", "dev", tap, "master", BRIDGE, "up")
            argv = vm.command(name, mac, str(fd))
            return vm.start(self._lab, name, mac, argv, pass_fds=[fd])
        finally:
            os.close(fd)

    def wait_until_gone(self, dead: QemuVm, tap: str) -> str:
        """The kernel deletes the tap as soon as nobody holds it open."""
        self._changes.wait_for(f"Deleted [0-9]+: {tap}:", _NOTICE_SECONDS)
        return f"the kernel has deleted {tap}: its name is free"


class TapsterNames:
    """With Tapster: `tapster run` gives the VM its tap."""

    def __init__(self, lab: VmNetwork) -> None:
        self._lab = lab

    def start(self, name: str, mac: str) -> QemuVm:
        """Start QEMU below ``tapster run``."""
        argv = [
            *(TAPSTER, "run", "--nic", f"bridge={BRIDGE},mac={mac},owner={name}", "--"),
            *vm.command(name, "{mac}", "{fd}"),
        ]
        return vm.start(self._lab, name, mac, argv)

    def wait_until_gone(self, dead: QemuVm, tap: str) -> str:
        """``tapster run`` ends after its VM, when it has released the tap."""
        wait_until_ended(dead.process, _NOTICE_SECONDS)
        state = self._lab.leases()[tap]["state"]
        return f"Tapster has released {tap}, and holds its name: {state}"


def open_tap(template: str) -> tuple[int, str]:
    """Open a new tap; return its descriptor, which the caller closes, and its name."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    request = struct.pack("16sH22x", template.encode(), _IFF_TAP | _IFF_NO_PI)
    try:
        answer: bytes = fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError:
        os.close(fd)
        raise
    return fd, answer[:16].rstrip(b"\0").decode()
