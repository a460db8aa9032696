# SPDX-License-Identifier: Apache-2.0
"""Kinds of frames that ask the host to write a checksum into them."""

import struct
from collections.abc import Iterator

from lab import frames
from lab.frame_kinds.ipv4 import broadcast4
from lab.frame_kinds.ipv6 import multicast6
from lab.frame_kinds.kind import MINE4, MINE6, NO, OTHER4, OTHER6, YES, FrameKind
from lab.frames import ARP, BROADCAST, TCP, arp, ether, udp


def _requests(me: str) -> Iterator[FrameKind]:
    tcp = broadcast4(
        me, frames.ipv4(MINE4, OTHER4, bytes(20) + b"hello!", protocol=TCP)
    )
    datagram = broadcast4(me, frames.ipv4(MINE4, OTHER4, udp(1000, 2000, b"hello!")))
    tcp6 = multicast6(me, MINE6, OTHER6, bytes(20) + b"hello!", TCP)
    datagram6 = multicast6(me, MINE6, OTHER6, udp(1000, 2000, b"hello!"))
    announce = ether(me, BROADCAST, ARP, arp(me, MINE4, MINE4) + bytes(18))
    for name, frame, start, offset in (
        ("in TCP", tcp, 34, 16),
        ("in UDP", datagram, 34, 6),
        ("in TCP over IPv6", tcp6, 54, 16),
        ("in UDP over IPv6", datagram6, 54, 6),
        ("behind UDP, in a tunnel", datagram, 42, 2),
    ):
        yield FrameKind(name, frame, YES, request=_request(start, offset))
    for name, frame, place in (
        ("in ARP, the sender's address", announce, 30),
        ("in ARP, the sender's MAC", announce, 24),
        ("in IPv4, the source", tcp, 28),
        ("in IPv4, the protocol", tcp, 22),
        ("in TCP, a port", tcp, 34),
        ("in TCP, the payload", tcp, 54),
        ("in UDP, a port", datagram, 36),
        ("in IPv6, the source", tcp6, 24),
        ("in IPv6, the next header", tcp6, 20),
        ("in UDP over IPv6, a port", datagram6, 56),
    ):
        yield FrameKind(name, frame, NO, request=_request(20, place - 20))
    frame = ether(me, BROADCAST, 0x88B5, bytes(60))
    yield FrameKind("in another protocol", frame, NO, request=_request(20, 4))


def _request(start: int, offset: int) -> bytes:
    return struct.pack("BBHHHH", 1, 0, 0, 0, start, offset)


GROUPS = {"requests to the host to write a checksum": (_requests,)}
