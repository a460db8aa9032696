# SPDX-License-Identifier: Apache-2.0
"""Use the library in a test: start no reaper, close the descriptors of a lease."""

import os
from collections.abc import Iterable

from lab import shell
from tapster import AnyHost, Host, Lease, OpenDevice, Spec, Tap


def no_reaper(_: str) -> None:
    """Start no reaper: the test decides when to reap."""


def acquire(host: AnyHost, spec: Spec, *, pid: int | None = None) -> Lease:
    """Acquire a device and close its descriptors; the lease."""
    with host.acquire(spec, pid=pid) as opened:
        return opened.lease


def close(fds: Iterable[int]) -> None:
    """Close these descriptors."""
    for fd in fds:
        os.close(fd)


def close_all(*devices: OpenDevice) -> None:
    """Close the descriptors of these devices."""
    for opened in devices:
        opened.close()


def abandon(ledger: str | os.PathLike[str]) -> Lease:
    """Return a lease whose manager died while it changed the lease, and whose bridge is
    deleted: nobody can repair it."""
    shell.sh("ip link add gone type bridge")
    with Host(ledger, reaper=no_reaper) as host:
        lease = acquire(host, Tap(bridge="gone", owner="gone"))
        host.operations.context.claims.claim(lease.id)
    shell.sh("ip link del gone")
    return lease
