# SPDX-License-Identifier: Apache-2.0
"""Which links change: in one network namespace, and in others that it has numbers for.

The kernel tells a socket of one namespace what happens in the others to which that
one has given a number, a nsid (ip-netns(8)). Nothing is held open for it: the others
may end, and that is told too. Who asks for it needs CAP_NET_BROADCAST
(do_one_broadcast() in net/netlink/af_netlink.c).
"""

import socket
import struct
from collections.abc import Iterator
from errno import ENOBUFS
from typing import NamedTuple

from tapster.kernel import rtnl
from tapster.kernel.port import HERE

RTMGRP_LINK = 1 << 0
RTMGRP_NSID = 1 << 27
RTM_DELNSID = 89
NETLINK_LISTEN_ALL_NSID = 8
LINKS = (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK)

_NSID = struct.Struct("i")
_BUFFER = 1 << 16
"""Bytes that one message may have. Kept: to get so many takes longer than to read."""
_CONTROL = socket.CMSG_SPACE(_NSID.size)


class Changes(NamedTuple):
    """What happened."""

    links: dict[int, dict[int, bytes | None]]
    """What was said last of each link that changed, for `rtnl.link_of`; None if it is
    gone. By the number of its namespace, and by its ifindex."""
    over: set[int]
    """The numbers of the namespaces that have ended: nobody has these any more, or
    another."""


class Watch:
    """Notes which links change, in the namespace of the thread that made it."""

    def __init__(self, *, elsewhere: bool = False) -> None:
        """`elsewhere`: not there, but in the namespaces that have numbers there. Then
        it raises PermissionError without CAP_NET_BROADCAST."""
        # Not in one socket: up to Linux 7.0 one that hears of others hears of its own
        # namespace under a number, too, once that has one.
        self._elsewhere = elsewhere
        self._buffer = memoryview(bytearray(_BUFFER))
        self._socket = rtnl.connect(RTMGRP_LINK | (0 if elsewhere else RTMGRP_NSID))
        if elsewhere:
            try:
                self._socket.setsockopt(rtnl.SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
            except BaseException:
                self._socket.close()
                raise

    def fileno(self) -> int:
        """To wait for: it can be read when something has changed."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def changed(self) -> set[int] | None:
        """The ifindexes seen since the last call; None if some were missed."""
        said = self._said()
        if said is None:
            return None
        links = [body for _, type_, body in said if type_ in LINKS]
        return {rtnl.IFINFO.unpack_from(body)[2] for body in links}

    def changes(self, first: int) -> Changes | None:
        """What happened since the last call, to links whose ifindex is `first` or more;
        None if some of it was missed."""
        said = self._said()
        if said is None:
            return None
        found = Changes({}, set())
        for number, type_, body in said:
            if type_ in LINKS:
                family, _, ifindex, _, _ = rtnl.IFINFO.unpack_from(body)
                # What a bridge says of a port of its own is not what the link is.
                if family == socket.AF_UNSPEC and ifindex >= first:
                    new = type_ == rtnl.RTM_NEWLINK
                    found.links.setdefault(number, {})[ifindex] = body if new else None
            elif type_ == RTM_DELNSID:
                found.over.add(rtnl.nsid_of(body))
        return found

    def _said(self) -> list[tuple[int, int, bytes]] | None:
        """The messages that came since the last call: whence, type and body; None if
        some were missed."""
        try:
            return list(self._receive())
        except OSError as error:
            if error.errno != ENOBUFS:
                raise
            rtnl.drain(self._socket)
            return None

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        while True:
            try:
                length, control, _, _ = self._socket.recvmsg_into(
                    [self._buffer], _CONTROL, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            number = HERE
            for level, type_, value in control:
                if (level, type_) == (rtnl.SOL_NETLINK, NETLINK_LISTEN_ALL_NSID):
                    (number,) = _NSID.unpack(value)
            if self._elsewhere == (number != HERE):
                for type_, _, _, body in rtnl.messages(bytes(self._buffer[:length])):
                    yield number, type_, body
