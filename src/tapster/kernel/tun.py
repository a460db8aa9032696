# SPDX-License-Identifier: Apache-2.0
"""The calls on /dev/net/tun and on open taps and macvtaps.

Linux's Documentation/networking/tuntap.rst and drivers/net/tun.c. Traps:

- Without IFF_TUN_EXCL, TUNSETIFF on an idle persistent tap, on a multi-queue
  tap, or on either's altname silently attaches to that device. With it, EBUSY.
- Only the first queue can be opened so. A further queue is attached by name,
  the one thing here that is; what it was attached to is therefore compared
  with the first queue, whose name follows a rename.
- TUNSETIFF cuts a name of 16 bytes without a word: names are checked before.
- A tap that is not persistent goes with its last descriptor. So persistence
  comes last: until then, dying undoes everything.
"""

import fcntl
import os
import struct
from errno import EBADFD

from tapster.kernel.descriptors import closing_on_error

DEVICE = "/dev/net/tun"

IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_MULTI_QUEUE = 0x0100
IFF_TUN_EXCL = 0x8000

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
TUNSETGROUP = 0x400454CE
TUNGETIFF = 0x800454D2
TUNSETIFINDEX = 0x400454DA

_IFREQ = struct.Struct("16sH22x")  # ifr_name, ifr_flags


def flags(*, queues: int, vnet_hdr: bool) -> int:
    """The flags of a tap or macvtap."""
    return (
        IFF_TAP
        | IFF_NO_PI
        | (IFF_VNET_HDR if vnet_hdr else 0)
        | (IFF_MULTI_QUEUE if queues > 1 else 0)
    )


def create(
    name: str,
    ifindex: int,
    *,
    queues: int,
    flags: int,
    uid: int | None,
    gid: int | None,
) -> tuple[int, ...]:
    """Make a persistent tap; return an open descriptor for each queue.

    It is made in the network namespace of the calling thread. The caller closes
    the descriptors. Raises OSError; then there is no device.
    """
    with closing_on_error() as fds:
        first = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        fds.append(first)
        fcntl.ioctl(first, TUNSETIFINDEX, struct.pack("I", ifindex))
        fcntl.ioctl(first, TUNSETIFF, _ifreq(name, flags | IFF_TUN_EXCL))
        for _ in range(queues - 1):
            fds.append(join(name, flags))
            if name_of(fds[-1]) != name_of(first):
                raise OSError(EBADFD, "the tap was renamed while it was opened")
        if uid is not None:
            fcntl.ioctl(first, TUNSETOWNER, uid)
        if gid is not None:
            fcntl.ioctl(first, TUNSETGROUP, gid)
        fcntl.ioctl(first, TUNSETPERSIST, 1)
    return tuple(fds)


def join(name: str, flags: int) -> int:
    """A descriptor of the tap that has this name; the caller looks which it is."""
    with closing_on_error() as fds:
        fds.append(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        fcntl.ioctl(fds[0], TUNSETIFF, _ifreq(name, flags))
    return fds[0]


def name_of(fd: int) -> str:
    """The name that the device behind a descriptor has now."""
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size))
    return os.fsdecode(_IFREQ.unpack(answer)[0].rstrip(b"\0"))


def set_flags(fd: int, flags: int) -> None:
    """Set the flags of an open macvtap; the name does not matter there."""
    fcntl.ioctl(fd, TUNSETIFF, _ifreq("", flags))


def _ifreq(name: str, flags: int) -> bytes:
    return _IFREQ.pack(os.fsencode(name), flags)
