# SPDX-License-Identifier: Apache-2.0
"""How many ports a bridge has: the request that brctl(8) made.

It copies 4 KiB (net/bridge/br_ioctl.c). To list the ports by netlink takes as long as
to create a device.
"""

# The module `array`, which also tells addresses, imports `collections`: a fifteenth of
# a verb's time.
import fcntl
import os
import struct
from _ctypes import _SimpleCData, addressof

SIOCDEVPRIVATE = 0x89F0
BRCTL_GET_PORT_LIST = 7
BR_MAX_PORTS = 1024
"""Size of the kernel's table of ports; number 0 is reserved, so 1,023 fit."""

_IFREQ_DATA = struct.Struct("16sQ16x")  # ifr_name, ifr_data


class _Int(_SimpleCData):  # type: ignore[type-arg] # it cannot be subscripted
    _type_ = "i"


class _UnsignedLong(_SimpleCData):  # type: ignore[type-arg] # as above
    _type_ = "L"


_Ports = _Int * BR_MAX_PORTS
_Request = _UnsignedLong * 4


def count(socket: int, bridge: str) -> int:
    """Return how many ports a bridge has, by any socket of its namespace.

    The device must be a bridge: other drivers give the request another meaning.
    """
    ports = _Ports()
    request = _Request(BRCTL_GET_PORT_LIST, addressof(ports), BR_MAX_PORTS, 0)
    name = os.fsencode(bridge)
    fcntl.ioctl(socket, SIOCDEVPRIVATE, _IFREQ_DATA.pack(name, addressof(request)))
    return BR_MAX_PORTS - memoryview(ports).cast("B").cast("i").tolist().count(0)
