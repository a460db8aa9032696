# SPDX-License-Identifier: Apache-2.0
"""The calls on /dev/net/tun and on open taps and macvtaps.

Linux's Documentation/networking/tuntap.rst and drivers/net/tun.c. Traps:

- Without IFF_TUN_EXCL, TUNSETIFF on an idle persistent tap or on a multi-queue tap
  (or on its altname) attaches to that device. With the flag it fails with EBUSY.
- Only the first queue can be opened with that flag. A further queue is attached by
  name. So its device's name is compared with that of the first queue, which follows
  a rename.
- If no device has the name, TUNSETIFF makes one. With the index of a device that
  exists (TUNSETIFINDEX) it fails with EBUSY instead; to attach, it takes no notice of
  the index.
- TUNSETIFF cuts a name of 16 bytes and reports no error. Names are checked before.
- A tap that is not persistent goes with its last descriptor. So it is made persistent
  last: if the process dies before, the kernel deletes the tap.
"""

import fcntl
import os
import struct
from errno import EBADFD, EBUSY

from tapster.kernel.descriptors import closing_on_error

DEVICE = "/dev/net/tun"
REMEDY = (
    f"modprobe tun; in a container: mkdir -p /dev/net && mknod -m 666 {DEVICE} c 10 200"
)
"""What to do where the device is missing."""
LOOPBACK = 1
"""The index of `lo`, which each network namespace has: LOOPBACK_IFINDEX, net/flow.h."""

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
TUNGETVNETHDRSZ = 0x800454D7
TUNSETIFINDEX = 0x400454DA
TUNGETDEVNETNS = 0x54E3

_IFREQ = struct.Struct("16sH22x")  # ifr_name, ifr_flags
_INDEX = struct.Struct("I")
_RARP = bytes.fromhex("8035 0001 0800 06 04 0003")
"""The EtherType, and the start of a request for the address of an Ethernet MAC."""


def flags(*, queues: int, vnet_hdr: bool) -> int:
    """Return the flags of a tap or macvtap."""
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
    """Create a persistent tap. Return an open descriptor for each queue.

    The tap is created in the network namespace of the calling thread. The caller
    closes the descriptors. Raise OSError; then there is no tap.
    """
    with closing_on_error() as fds:
        first = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        fds.append(first)
        fcntl.ioctl(first, TUNSETIFINDEX, bytearray(_INDEX.pack(ifindex)))
        fcntl.ioctl(first, TUNSETIFF, _ifreq(name, flags | IFF_TUN_EXCL))
        # At once: until a tap has an owner or a group, any user may attach a queue. The
        # caller counts the queues afterwards.
        give(first, uid=uid, gid=gid)
        for _ in range(queues - 1):
            fds.append(join(name, flags))
            if name_of(fds[-1]) != name_of(first):
                raise OSError(EBADFD, "the tap was renamed while it was opened")
        fcntl.ioctl(first, TUNSETPERSIST, 1)
    return tuple(fds)


def join(name: str, flags: int) -> int:
    """Attach to the tap that has this name. The caller checks which tap that is.

    EBUSY: the tap has one queue, which is open; or no device has the name, for which
    EBADFD is raised where the kernel can mean nothing else.
    """
    with closing_on_error() as fds:
        fds.append(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        fcntl.ioctl(fds[0], TUNSETIFINDEX, bytearray(_INDEX.pack(LOOPBACK)))
        try:
            fcntl.ioctl(fds[0], TUNSETIFF, _ifreq(name, flags))
        except OSError as error:
            if error.errno == EBUSY and flags & IFF_MULTI_QUEUE:
                gone = f"{error.strerror}: no tap is called {name!r} any more"
                raise OSError(EBADFD, gone) from error
            raise
    return fds[0]


def restore(fd: int, *, uid: int | None, gid: int | None) -> None:
    """Give an open tap this owner and group, unless None, and make it persistent.

    The kernel has no call that takes an owner or a group away.
    """
    give(fd, uid=uid, gid=gid)
    fcntl.ioctl(fd, TUNSETPERSIST, 1)


def give(fd: int, *, uid: int | None, gid: int | None) -> None:
    """Give an open tap this owner and group, unless None."""
    if uid is not None:
        fcntl.ioctl(fd, TUNSETOWNER, _signed(uid))
    if gid is not None:
        fcntl.ioctl(fd, TUNSETGROUP, _signed(gid))


def _signed(id_: int) -> int:
    """Return a user or group id as Python's ioctl() takes it: ids have 32 bits, of
    which it takes the last for a sign."""
    return id_ - (id_ >> 31 << 32)


def name_of(fd: int) -> str:
    """Return the present name of the device behind a descriptor."""
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size))
    return os.fsdecode(_IFREQ.unpack(answer)[0].rstrip(b"\0"))


def set_flags(fd: int, flags: int) -> None:
    """Set the flags of an open macvtap. Its driver ignores the name."""
    fcntl.ioctl(fd, TUNSETIFF, _ifreq("", flags))


def _ifreq(name: str, flags: int) -> bytearray:
    # A bytearray: with bytes, ioctl() first raises an error inside.
    return bytearray(_IFREQ.pack(os.fsencode(name), flags))


def namespace_of(fd: int) -> int:
    """Return a descriptor of the network namespace that an open tap's device is in.

    The caller closes it. Raise OSError if the file is no tap yet.
    """
    return fcntl.ioctl(fd, TUNGETDEVNETNS)


def announce(fd: int, mac: str) -> bool:
    """Send a RARP request from this MAC, as a guest with this open tap or macvtap does.

    QEMU sends the same frame when a VM has moved. Return whether the frame was sent. A
    descriptor that is not non-blocking is left alone: the write could wait.
    """
    try:
        flags = _IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size)))[1]
        if os.get_blocking(fd) or not flags & IFF_NO_PI:
            return False
        header = 0
        if flags & IFF_VNET_HDR:
            size = fcntl.ioctl(fd, TUNGETVNETHDRSZ, bytes(_INDEX.size))
            (header,) = _INDEX.unpack(size)
        os.write(fd, bytes(header) + _rarp(bytes.fromhex(mac.replace(":", ""))))
    except OSError:
        return False
    return True


def _rarp(mac: bytes) -> bytes:
    pair = mac + bytes(4)  # a MAC, and the IPv4 address that is asked for
    return (b"\xff" * 6 + mac + _RARP + pair + pair).ljust(60, b"\0")
