# SPDX-License-Identifier: Apache-2.0
"""Use the library in a test: start no reaper, close what a lease opened."""

import os
from collections.abc import Iterable

from tapster import Host, Lease, Macvtap, Tap


def no_reaper(_: str) -> None:
    """For a Host: start none."""


def close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def acquired(host: Host, spec: Tap | Macvtap) -> Lease:
    """Acquire for a VM that is not started: keep no descriptor open."""
    lease = host.acquire(spec)
    close(lease.fds)
    return lease
