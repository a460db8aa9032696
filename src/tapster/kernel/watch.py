# SPDX-License-Identifier: Apache-2.0
"""Reports of links that change, in one network namespace and in numbered others.

A netlink socket of one namespace also hears of the namespaces to which its own has
given a number, a nsid (ip-netns(8)). The socket holds none of them open: a namespace
may end, and the kernel reports that too. To hear of other namespaces a process needs
CAP_NET_BROADCAST (do_one_broadcast() in net/netlink/af_netlink.c).
"""

import array
import struct
import sys
from errno import ENOBUFS
from functools import partial

from tapster.kernel import rtnl, sockets
from tapster.kernel.port import HERE, WatchReport
from tapster.light import Iterator, Sequence, suppress

RTMGRP_LINK = 1 << 0
RTMGRP_NSID = 1 << 27
RTM_DELNSID = 89
NETLINK_LISTEN_ALL_NSID = 8
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
LINKS = (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK)

_NSID = struct.Struct("i")
_BUFFER = 1 << 16
"""Bytes that one message may have. The buffer is kept: allocating takes longer than
reading."""
_QUEUE = 4 << 20
"""Bytes of reports that may wait: a batch of devices makes hundreds of reports."""
HIGH = 1 << 30
"""The `first` for which the kernel filters: from here on one bit tells."""
_INSTRUCTION = struct.Struct("HBBI")
_LINKS = (
    (0x28, 0, 0, 4),  # load nlmsg_type, 16 bits, which comes in the wrong order
    (0x15, 1, 0, rtnl.RTM_NEWLINK << 8),
    (0x15, 0, 4, rtnl.RTM_DELLINK << 8),  # another message passes
    (0x30, 0, 0, 16),  # load ifi_family
    (0x15, 0, 3, 0),  # a bridge's report of its port does not pass
    (0x30, 0, 0, 23),  # load the highest byte of ifi_index
    (0x45, 0, 1, HIGH >> 24),
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
    (0x06, 0, 0, 0),  # drop
)
"""Classic BPF: lets pass what `LinkWatch` reports, so that the other links of a busy
host do not wake the reader (bpf(4), net/core/filter.c)."""
_CONTROL = sockets.CMSG_SPACE(_NSID.size)


Program = Sequence[tuple[int, int, int, int]]


class NetlinkWatch:
    """A netlink socket, and what the kernel sends to it by itself.

    Each kind of watch says what it makes of the messages.
    """

    def __init__(
        self,
        opened: sockets.socket,
        first: int,
        *,
        elsewhere: bool,
        program: Program = (),
    ) -> None:
        """Read from a socket, which this owns from now on.

        `first` is the lowest ifindex that the watch reports. The kernel may drop what
        `program` does not let pass. With `elsewhere`, hear of the numbered namespaces
        and not of the socket's own.

        Raises PermissionError if that needs CAP_NET_BROADCAST.
        """
        # Two sockets are needed. Up to Linux 7.0, a socket that hears of others also
        # hears of its own namespace under a number, once that has one.
        self._elsewhere = elsewhere
        self._buffer = memoryview(bytearray(_BUFFER))
        self._first = first
        self._socket = opened
        try:
            if program:
                self._filter_high(program)
            if elsewhere:
                self._socket.setsockopt(rtnl.SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
        except BaseException:
            self._socket.close()
            raise
        with suppress(PermissionError):  # then reports are lost sooner
            self._socket.setsockopt(sockets.SOL_SOCKET, SO_RCVBUFFORCE, _QUEUE)

    def _filter_high(self, program: Program) -> None:
        """Let the kernel drop what a program in classic BPF does not let pass.

        Such a program tests one bit of the ifindex, so the kernel gets it only if
        `first` is HIGH. Each ifindex is compared with `first` in any case.
        """
        if self._first == HIGH and sys.byteorder == "little":
            packed = b"".join(_INSTRUCTION.pack(*each) for each in program)
            code = array.array("B", packed)
            address, _ = code.buffer_info()
            wanted = struct.pack("HxxxxxxP", len(program), address)
            self._socket.setsockopt(sockets.SOL_SOCKET, SO_ATTACH_FILTER, wanted)

    def fileno(self) -> int:
        """Return the descriptor to wait for: it is readable when there are reports."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> list[tuple[int, int, bytes]] | None:
        """Return the messages since the last call, each as the number of its namespace,
        its type and its body; None if some were lost."""
        try:
            return list(self._receive())
        except OSError as error:
            if error.errno != ENOBUFS:
                raise
            rtnl.drain(self._socket)
            return None

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        # A busy host reports thousands of changes a second.
        receive = self._receive_elsewhere if self._elsewhere else self._receive_here
        while True:
            try:
                length, number = receive()
            except BlockingIOError:
                return
            if length:
                for type_, _, _, body in rtnl.messages(bytes(self._buffer[:length])):
                    yield number, type_, body

    def _receive_here(self) -> tuple[int, int]:
        """Receive a datagram. Return its length, and the number of its namespace."""
        return self._socket.recv_into(self._buffer, 0, sockets.MSG_DONTWAIT), HERE

    def _receive_elsewhere(self) -> tuple[int, int]:
        """As `_receive_here`. The length is 0 if it is the socket's own namespace."""
        length, control, _, _ = self._socket.recvmsg_into(
            [self._buffer], _CONTROL, sockets.MSG_DONTWAIT
        )
        for level, type_, value in control:
            if (level, type_) == (rtnl.SOL_NETLINK, NETLINK_LISTEN_ALL_NSID):
                return length, _NSID.unpack(value)[0]
        return 0, HERE


class LinkWatch(NetlinkWatch):
    """Hears of links, from the namespace of the thread that makes it."""

    def __init__(self, *, first: int = 0, elsewhere: bool = False) -> None:
        """Hear of links with an ifindex from `first`; see NetlinkWatch."""
        opened = rtnl.connect(RTMGRP_LINK | (0 if elsewhere else RTMGRP_NSID))
        super().__init__(opened, first, elsewhere=elsewhere, program=_LINKS)

    def changed(self) -> set[int] | None:
        """Return the ifindexes of the links that changed since the last call; None if
        reports were lost."""
        reports = self.read()
        if reports is None:
            return None
        links = [body for _, type_, body in reports if type_ in LINKS]
        return {rtnl.IFINFO.unpack_from(body)[2] for body in links}

    def changes(self) -> WatchReport | None:
        """Return what changed since the last call; None if reports were lost."""
        reports = self.read()
        if reports is None:
            return None
        changes = WatchReport({}, set(), {}, {})
        for number, type_, body in reports:
            if type_ in LINKS:
                family, _, ifindex, _, _ = rtnl.IFINFO.unpack_from(body)
                # A bridge's report of its own port does not describe the link.
                if family == sockets.AF_UNSPEC and ifindex >= self._first:
                    decode = partial(rtnl.link_of, body)
                    new = type_ == rtnl.RTM_NEWLINK
                    links = changes.links.setdefault(number, {})
                    links[ifindex] = decode if new else None
            elif type_ == RTM_DELNSID:
                changes.ended.add(rtnl.nsid_of(body))
        return changes
