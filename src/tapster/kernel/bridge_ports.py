# SPDX-License-Identifier: Apache-2.0
"""How many ports a bridge has: the request that brctl(8) made.

It copies 4 KiB (net/bridge/br_ioctl.c). To list the ports by netlink takes as long as
to create a device.
"""

import array
import fcntl
import os
import struct

SIOCDEVPRIVATE = 0x89F0
BRCTL_GET_PORT_LIST = 7
BR_MAX_PORTS = 1024
"""Size of the kernel's table of ports; number 0 is reserved, so 1,023 fit."""

_IFREQ_DATA = struct.Struct("16sQ16x")  # ifr_name, ifr_data


def count(socket: int, bridge: str) -> int:
    """Return how many ports a bridge has, by any socket of its namespace.

    The device must be a bridge: other drivers give the request another meaning.
    """
    ports = array.array("i", bytes(4 * BR_MAX_PORTS))
    request = array.array(
        "L", [BRCTL_GET_PORT_LIST, ports.buffer_info()[0], BR_MAX_PORTS, 0]
    )
    name = os.fsencode(bridge)
    data = _IFREQ_DATA.pack(name, request.buffer_info()[0])
    fcntl.ioctl(socket, SIOCDEVPRIVATE, data)
    return BR_MAX_PORTS - ports.count(0)
