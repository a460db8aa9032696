# SPDX-License-Identifier: Apache-2.0
"""Wait until a VM has arrived from another host, then take its devices off standby.

libvirt calls no hook when a VM that migrated begins to run. So the hook starts this
program, as `python -m tapster.libvirt.arrival DOMAIN-UUID`. It is a process of its own,
and may call libvirt. It ends when the devices are in use or the domain is gone.
"""

import sys
from contextlib import suppress

from tapster.errors import HostError, TapsterError
from tapster.host import Host
from tapster.libvirt import virsh
from tapster.libvirt.hook import leases_of, owner_of

LONGEST_WATCH = "1"
"""Seconds to wait for an event before looking again: an event may come just before."""


def wait(uuid: str) -> None:
    """Wait for the VM, then take its devices. Return at once if none is on standby."""
    while True:
        with Host() as host:
            waiting = [
                lease
                for lease in leases_of(host, owner_of(uuid))
                if lease.wiring.standby
            ]
            if not waiting:
                return
            # Ask for the domain's state after reading the ledger: leases end with the
            # domain.
            if virsh.state(uuid) == "running":
                for lease in waiting:
                    with suppress(TapsterError):  # the domain has just ended
                        host.set(lease, standby=False)
                return
        # virsh fails if no event comes in time.
        with suppress(HostError):
            virsh.call(
                *("event", "--domain", uuid, "--event", "lifecycle"),
                *("--timeout", LONGEST_WATCH),
            )


if __name__ == "__main__":
    with suppress(TapsterError):  # libvirtd, or the domain, is gone
        wait(sys.argv[1])
