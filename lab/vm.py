# SPDX-License-Identifier: Apache-2.0
"""Real VMs with no guest image: QEMU, whose boot ROM asks for an address.

A VM starts in about two seconds without KVM. Its ROM sends DHCP requests as any guest
does, then stays and answers pings.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.dhcp import Wire, in_file
from lab.vm_network import FILES, VmNetwork

_MACHINE = (
    *("qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none"),
    *("-machine", "pc", "-accel", "tcg", "-m", "32"),
)

# QEMU writes a virtio card's packets with a header that tcpdump cannot read.
CARD = "rtl8139"

START = 20.0
"""Seconds in which a VM surely starts, even on a busy host."""


@dataclass(frozen=True)
class QemuVm:
    """A running VM."""

    name: str
    mac: str
    process: subprocess.Popen[bytes]
    """The command that was started: QEMU, or the program that started QEMU."""
    nic: Wire
    """The traffic of the VM's own network card, whatever happens to its tap."""

    @property
    def pid(self) -> int:
        """Return the pid of QEMU itself."""
        return _child_of(self.process.pid) or self.process.pid

    def tap(self) -> str:
        """Return the current name of the VM's open tap, from the kernel."""
        for info in Path(f"/proc/{self.pid}/fdinfo").iterdir():
            with suppress(FileNotFoundError):  # QEMU may close others
                if match := re.search(r"^iff:\s+(\S+)", info.read_text(), re.MULTILINE):
                    return match[1]
        raise LookupError(f"VM {self.name} holds no tap")


def command(name: str, mac: str, fd: str, card: str = CARD) -> list[str]:
    """Return QEMU's command line for a VM on the tap with this descriptor."""
    return [
        *_MACHINE,
        *("-netdev", f"tap,id=n0,fd={fd}"),
        *("-device", f"{card},netdev=n0,mac={mac}"),
        *("-object", f"filter-dump,id=d0,netdev=n0,file={_packets(name)}"),
    ]


def start(
    lab: VmNetwork,
    name: str,
    mac: str,
    argv: Sequence[str],
    pass_fds: Sequence[int] = (),
) -> QemuVm:
    """Start a VM by a command line that ends in `command`; return when it runs."""
    # A named pipe: the VM waits for its reader, and the reader knows when it runs.
    os.mkfifo(_packets(name))
    nic = Wire(lab.watch(*in_file(_packets(name))))
    vm = QemuVm(name, mac, lab.spawn(*argv, pass_fds=pass_fds), nic)
    nic.wait_until_listening(START)
    return vm


def _packets(name: str) -> Path:
    return FILES / f"{name}.pcap"


def _child_of(parent: int) -> int | None:
    """Return a child of this process."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The fields after the command's name, which may contain anything.
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            return int(status.parent.name)
    return None
