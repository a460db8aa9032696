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

    def __init__(
        self, lab: VmNetwork, libvirt: Libvirt, tapsterd: Daemon | None
    ) -> None:
        self.lab = lab
        self.libvirt = libvirt
        self.tapsterd = tapsterd
        self.ledger = tapsterd.ledger if tapsterd else LEDGER

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

    def released(self, name: str) -> bool:
        """Return whether the lease of this name is released; FIN WAIT may be over."""
        lease = self.leases().get(name)
        return lease is None or lease["state"] == "fin_wait"


@contextmanager
def place(*, daemon: bool) -> Iterator[Place]:
    """Be on such a host, alone."""
    with ExitStack() as stack:
        lab = stack.enter_context(open_lab())
        libvirt = Libvirt()
        LEDGER.parent.mkdir(exist_ok=True)
        tapsterd = stack.enter_context(Daemon()) if daemon else None
        if tapsterd:
            tapsterd.start()
        stack.callback(libvirt.close)
        made = Place(lab, libvirt, tapsterd)
        made.tapster("libvirt install")
        libvirt.start()
        yield made
