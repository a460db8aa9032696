# SPDX-License-Identifier: Apache-2.0
"""A host with libvirt for the system, Tapster's hook, and perhaps tapsterd."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lab import shell
from lab.daemon import Daemon
from lab.libvirt import Libvirt
from lab.shell import TAPSTER
from lab.vm_network import VmNetwork, open_lab

LEDGER = Path("/var/lib/tapster/ledger.db")


class Place:
    """The host."""

    def __init__(self, lab: VmNetwork, libvirt: Libvirt, ledger: Path) -> None:
        self.lab = lab
        self.libvirt = libvirt
        self.ledger = ledger

    def tapster(self, arguments: str) -> str:
        """Run the command; its output."""
        return shell.sh(f"{TAPSTER} --ledger {self.ledger} {arguments}")

    def refused(self, arguments: str) -> str:
        """Run the command, which must fail; what it complains of."""
        return shell.refused(f"{TAPSTER} --ledger {self.ledger} {arguments}")

    def leases(self) -> dict[str, dict[str, Any]]:
        """Return every lease by the name of its device."""
        found = json.loads(self.tapster("ls --all --json"))
        return {lease["name"]: lease for lease in found["leases"]}

    def state(self, name: str) -> str:
        """Return the state of the lease of this name."""
        return str(self.leases()[name]["state"])


@contextmanager
def place(*, daemon: bool) -> Iterator[Place]:
    """Be on such a host, alone."""
    with ExitStack() as stack:
        lab = stack.enter_context(open_lab())
        libvirt = Libvirt()
        ledger = LEDGER
        LEDGER.parent.mkdir(exist_ok=True)
        if daemon:
            tapsterd = stack.enter_context(Daemon())
            tapsterd.start()
            ledger = tapsterd.ledger
        stack.callback(libvirt.close)
        made = Place(lab, libvirt, ledger)
        made.tapster("libvirt install")
        libvirt.start()
        yield made
