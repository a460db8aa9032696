# SPDX-License-Identifier: Apache-2.0
"""Wait until a VM has arrived from another host, then take its devices off standby.

libvirt calls no hook when a VM that migrated begins to run. So the hook starts this
program, as `python -m tapster.libvirt.arrival DOMAIN-UUID LEDGER`. It is a process of
its own, and may call libvirt. It ends when the devices are in use or the domain is
gone.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress

from tapster.errors import (
    LASTING,
    OF_ONE_LEASE,
    HostError,
    LedgerError,
    NoSuchLease,
    TapsterError,
)
from tapster.host import Host
from tapster.libvirt import virsh
from tapster.libvirt.hook import leases_of, owner_of
from tapster.model import Lease

LONGEST_WATCH = "1"
"""Seconds to wait for an event before looking again: an event may come just before."""


def wait(uuid: str, ledger: str) -> None:
    """Wait for the VM, then take its devices. Return at once if none is on standby."""
    while not _is_done(uuid, ledger):
        # virsh fails if no event comes in time.
        with suppress(HostError):
            virsh.call(
                *("event", "--domain", uuid, "--event", "lifecycle"),
                *("--timeout", LONGEST_WATCH),
            )


def _is_done(uuid: str, ledger: str) -> bool:
    """Take the devices if the VM runs; return whether none is on standby.

    Raises HostError if the domain is gone, and LedgerError if the ledger is damaged.
    """
    try:
        with Host(ledger) as host:
            waiting = [
                lease
                for lease in leases_of(host, owner_of(uuid))
                if lease.wiring.standby
            ]
            if not waiting:
                return True
            # Ask for the domain's state after reading the ledger: leases end with the
            # domain.
            return virsh.state(uuid) == "running" and _take(host, waiting)
    except LASTING:
        raise
    except LedgerError:
        virsh.state(uuid)  # try again while there is the domain
        return False


def _take(host: Host, leases: Sequence[Lease]) -> bool:
    """Take devices off standby; return False if one must be tried again.

    Another process may work on its lease at this moment, or its bridge be missing.
    """
    all_taken = True
    for lease in leases:
        try:
            host.set(lease, standby=False)
        except NoSuchLease:
            pass  # the domain has just ended
        except OF_ONE_LEASE:
            all_taken = False
    return all_taken


if __name__ == "__main__":
    with suppress(TapsterError):  # libvirtd, or the domain, is gone
        wait(*sys.argv[1:])
