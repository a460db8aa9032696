# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: finding, entering and telling them apart.

A namespace belongs to a thread, and a tap is made in the one of the thread
that opens /dev/net/tun. An inode number of /proc/PID/ns/net can be reused by a
later namespace; the cookie cannot.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

SO_NETNS_COOKIE = 71
OWN = "/proc/thread-self/ns/net"
NAMED = "/run/netns"
"""Where `ip netns` keeps its names: ip-netns(8)."""


def path_of(where: str) -> str:
    """The path of a namespace given by name or path."""
    return where if "/" in where else f"{NAMED}/{where}"


def open_netns(path: str) -> int:
    """A descriptor of the namespace at `path`; the caller closes it."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def cookie() -> int:
    """The cookie of the calling thread's namespace."""
    with socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    ) as probe:
        raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    (value,) = struct.unpack("Q", raw)
    return int(value)


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Be in the namespace `fd` for a moment; other threads stay where they are."""
    own = open_netns(OWN)
    try:
        there, here = os.fstat(fd), os.fstat(own)
        if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
            yield
            return
        from tapster.kernel.libc import CLONE_NEWNET, setns

        setns(fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)


def everywhere() -> Iterator[int]:
    """A descriptor of each namespace that a process is in, closed when passed.

    Raises PermissionError at the end if there is one that may not be opened.
    """
    # Opening /proc/PID/ns/net asks for more than root may have: every capability
    # of the process. Looking at /proc/PID/net does not, and the inode of a file
    # there is one for each namespace. So one process of each that can be opened
    # is enough.
    opened: set[int] = set()
    refused: dict[int, PermissionError] = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            inode = os.stat(f"/proc/{pid}/net/dev").st_ino
            if inode in opened:
                continue
            fd = open_netns(f"/proc/{pid}/ns/net")
        except PermissionError as error:
            refused.setdefault(inode, error)
            continue
        except OSError:
            continue  # it has ended meanwhile
        opened.add(inode)
        try:
            yield fd
        finally:
            os.close(fd)
    for inode, refusal in refused.items():
        if inode not in opened:
            raise refusal
