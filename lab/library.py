# SPDX-License-Identifier: Apache-2.0
"""Use the library in a test: start no reaper, close the descriptors of a lease."""

import os
from collections.abc import Iterable

from tapster import AnyHost, Lease, OpenDevice, Spec


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
