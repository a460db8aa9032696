# SPDX-License-Identifier: Apache-2.0
"""/dev/vhost-net: the kernel's own back end for virtio network devices."""

import os

from tapster.kernel.descriptors import closing_on_error


def open_vhost(count: int) -> tuple[int, ...]:
    """Open /dev/vhost-net `count` times. The caller closes the descriptors.

    Return none if the host has no vhost-net.
    """
    with closing_on_error() as fds:
        try:
            for _ in range(count):
                fds.append(os.open("/dev/vhost-net", os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            return ()
    return tuple(fds)
