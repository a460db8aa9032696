# SPDX-License-Identifier: Apache-2.0
"""The kernel's reports of changed devices: rtnetlink(7), read without Tapster."""

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from lab.namespaces import inside

RTMGRP_LINK = 1
RTM_NEWLINK, RTM_DELLINK = 16, 17
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFLA_IFALIAS, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 20, 52, 53
IFF_UP = 1
SO_RCVBUFFORCE = 33
ROOM = 128 << 20
"""Bytes of reports that may wait to be read."""

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_INFO = struct.Struct("=BxHiII")  # ifinfomsg
_ATTRIBUTE = struct.Struct("=HH")


class LinkLook(NamedTuple):
    """The attributes of a device whose changes must have an author."""

    name: str
    up: bool
    master: int
    mac: str
    mtu: int
    alias: str


class LinkEvent(NamedTuple):
    """A device as it is after a change, or as it was when it went."""

    ifindex: int
    gone: bool
    look: LinkLook
    altnames: tuple[str, ...]


class Listener:
    """Hears of every change in one network namespace from now on."""

    def __init__(self, netns: str) -> None:
        with inside(f"/run/netns/{netns}"):
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC
            )
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        self._socket.bind((0, RTMGRP_LINK))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def heard(self) -> Iterator[LinkEvent]:
        """What has been reported so far. Raises OSError if some of it is lost."""
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            yield from decode(data)


def decode(data: bytes) -> Iterator[LinkEvent]:
    """The reports in one datagram."""
    start = 0
    while start < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, start)
        family, _, ifindex, flags, _ = _INFO.unpack_from(data, start + _HEADER.size)
        # A bridge reports of its ports too, in a family of its own.
        if kind in (RTM_NEWLINK, RTM_DELLINK) and family == socket.AF_UNSPEC:
            message = data[start + _HEADER.size + _INFO.size : start + length]
            yield _event(ifindex, kind == RTM_DELLINK, flags, message)
        start += -(-length // 4) * 4


def _event(ifindex: int, gone: bool, flags: int, message: bytes) -> LinkEvent:
    found = dict(_attributes(message))
    (mtu,) = struct.unpack("=I", found[IFLA_MTU])
    (master,) = struct.unpack("=I", found.get(IFLA_MASTER, bytes(4)))
    alternatives = _attributes(found.get(IFLA_PROP_LIST, b""))
    return LinkEvent(
        ifindex,
        gone,
        LinkLook(
            name=_text(found[IFLA_IFNAME]),
            up=bool(flags & IFF_UP),
            master=master,
            mac=found.get(IFLA_ADDRESS, b"").hex(":"),
            mtu=mtu,
            alias=_text(found.get(IFLA_IFALIAS, b"")),
        ),
        tuple(_text(name) for kind, name in alternatives if kind == IFLA_ALT_IFNAME),
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        yield kind & 0x3FFF, data[start + _ATTRIBUTE.size : start + length]
        start += -(-length // 4) * 4


def _text(value: bytes) -> str:
    return os.fsdecode(value.rstrip(b"\0"))
