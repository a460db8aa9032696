# SPDX-License-Identifier: Apache-2.0
"""/dev/vhost-net: the kernel's own back end for virtio network cards."""

import os

from tapster.kernel.descriptors import closing_on_error


def open_vhost(count: int) -> tuple[int, ...]:
    """So many descriptors, for the caller to close; none if the host has no vhost."""
    with closing_on_error() as fds:
        try:
            for _ in range(count):
                fds.append(os.open("/dev/vhost-net", os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            return ()
    return tuple(fds)
