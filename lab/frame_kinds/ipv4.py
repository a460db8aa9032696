# SPDX-License-Identifier: Apache-2.0
"""Kinds of frames with IPv4: sources, headers, DHCP, groups and fragments."""

import struct
from collections.abc import Iterator

from lab import frames
from lab.frame_kinds.kind import (
    AH,
    BROADCAST4,
    ICMP,
    IGMP,
    MINE4,
    NO,
    OTHER4,
    OTHER_MAC,
    OWN,
    PIM,
    ROUTER4,
    YES,
    FrameKind,
    authenticated,
)
from lab.frames import BROADCAST, IPV4, TCP, UDP, ether, summed, udp


def broadcast4(me: str, packet: bytes) -> bytes:
    """Send a packet of IPv4 to every host."""
    return ether(me, BROADCAST, IPV4, packet)


def _sources(me: str) -> Iterator[FrameKind]:
    sources = {
        "its address": (MINE4, YES),
        "another's": (OTHER4, OWN),
        "the router's": (ROUTER4, OWN),
        "0.0.0.0": ("0.0.0.0", OWN),
        "127.0.0.1": ("127.0.0.1", OWN),
        "a multicast address": ("224.0.0.1", OWN),
        "255.255.255.255": (BROADCAST4, OWN),
        "a link-local address": ("169.254.1.1", OWN),
    }
    protocols = {
        "TCP": (TCP, bytes(20)),
        "UDP": (UDP, udp(5000, 53)),
        "ICMP": (ICMP, b"\x08\0" + bytes(10)),
        "SCTP": (132, bytes(20)),
        "GRE": (47, bytes(20)),
        "ESP": (50, bytes(20)),
        "IP in IP": (4, frames.ipv4(OTHER4, ROUTER4, udp(1, 2))),
        "VRRP": (112, bytes(20)),
        "UDP-Lite": (136, udp(1, 2)),
        "protocol 255": (255, bytes(20)),
    }
    for source, (address, passes) in sources.items():
        for name, (protocol, payload) in protocols.items():
            if protocol in (4, 112, 136, 255) and source not in (
                "its address",
                "another's",
            ):
                continue
            frame = broadcast4(
                me, frames.ipv4(address, "198.51.100.7", payload, protocol=protocol)
            )
            yield FrameKind(
                f"{name} from {source}", frame, NO if protocol == 255 else passes
            )


def _headers(me: str) -> Iterator[FrameKind]:
    packet = frames.ipv4(MINE4, OTHER4, udp(5000, 53))
    for version in (0, 5, 6, 15):
        yield FrameKind(
            f"of version {version}",
            broadcast4(me, bytes([version << 4 | 5]) + packet[1:]),
            NO,
        )
    for words in (0, 4, 15):
        yield FrameKind(
            f"with a header of {words} words",
            broadcast4(me, bytes([4 << 4 | words]) + packet[1:]),
            NO,
        )
    for length in (1, 10, 19):
        yield FrameKind(
            f"cut after {length} bytes", broadcast4(me, packet[:length]), NO
        )
    yield FrameKind(
        "shorter than it says",
        broadcast4(me, frames.ipv4(MINE4, OTHER4, udp(5, 5), missing=9)),
        NO,
    )
    yield FrameKind("UDP with IP options", broadcast4(me, _options(packet)), YES)


def _options(packet: bytes, words: int = 1) -> bytes:
    """Return the packet with options that say nothing."""
    header = bytes([0x40 | 5 + words]) + packet[1:2]
    header += (
        struct.pack("!H", len(packet) + 4 * words)
        + packet[4:10]
        + b"\0\0"
        + packet[12:20]
    )
    header += b"\1" * (4 * words)
    checksum = struct.pack("!H", frames.internet_checksum(header))
    return header[:10] + checksum + header[12:] + packet[20:]


def _icmp(me: str) -> Iterator[FrameKind]:
    types = {
        0: ("echo reply", YES),
        3: ("destination unreachable", YES),
        5: ("redirect", NO),
        9: ("router advertisement", NO),
        10: ("router solicitation", YES),
        11: ("time exceeded", YES),
    }
    for number, (name, passes) in types.items():
        message = summed(bytes([number, 1]) + bytes(34))
        packet = frames.ipv4(MINE4, OTHER4, message, protocol=ICMP)
        yield FrameKind(name, broadcast4(me, packet), passes)
        yield FrameKind(
            f"{name}, behind options", broadcast4(me, _options(packet)), passes
        )
        first = frames.ipv4(MINE4, OTHER4, message, protocol=ICMP, fragment=0x2000)
        yield FrameKind(f"{name}, in fragments", broadcast4(me, first), passes)
    hidden = authenticated(ICMP, summed(b"\5\1" + bytes(34)))
    packet = frames.ipv4(MINE4, OTHER4, hidden, protocol=AH)
    yield FrameKind(
        "redirect, behind an authentication header", broadcast4(me, packet), NO
    )


def _dhcp(me: str) -> Iterator[FrameKind]:

    def on(source: str, to: str, payload: bytes) -> bytes:
        return broadcast4(me, frames.ipv4(source, to, payload))

    ask, forged = _bootp(me), _bootp(OTHER_MAC)
    yield FrameKind("discover", on("0.0.0.0", BROADCAST4, udp(68, 67, ask)), YES)
    yield FrameKind(
        "discover for another's MAC", on("0.0.0.0", BROADCAST4, udp(68, 67, forged)), NO
    )
    yield FrameKind(
        "discover without a MAC", on("0.0.0.0", BROADCAST4, udp(68, 67)), NO
    )
    yield FrameKind("renewal", on(MINE4, ROUTER4, udp(68, 67, ask)), YES)
    yield FrameKind(
        "release for another's MAC", on(MINE4, ROUTER4, udp(68, 67, forged)), NO
    )
    for port in (0, 69, 5000):
        where = f"from port {port}"
        yield FrameKind(
            f"discover for another's MAC, {where}",
            on("0.0.0.0", BROADCAST4, udp(port, 67, forged)),
            NO,
        )
        yield FrameKind(
            f"release for another's MAC, {where}",
            on(MINE4, ROUTER4, udp(port, 67, forged)),
            NO,
        )
    yield FrameKind(
        "renewal from port 5000", on(MINE4, ROUTER4, udp(5000, 67, ask)), YES
    )
    yield FrameKind(
        "renewal from another's address", on(OTHER4, ROUTER4, udp(68, 67, ask)), OWN
    )
    yield FrameKind(
        "request from nowhere to a server",
        on("0.0.0.0", ROUTER4, udp(68, 67, ask)),
        OWN,
    )
    reply = _bootp(OTHER_MAC, 2)
    for source, to in ((67, 68), (67, 67), (6700, 68), (67, 5000), (68, 68), (0, 68)):
        for destination in (BROADCAST4, ROUTER4):
            frame = on(MINE4, destination, udp(source, to, reply))
            yield FrameKind(
                f"UDP from port {source} to {to}, to {destination}", frame, NO
            )
    offer = frames.ipv4(MINE4, BROADCAST4, udp(67, 68, reply))
    for words in (1, 5, 10):
        yield FrameKind(
            f"offer behind {4 * words} bytes of options",
            broadcast4(me, _options(offer, words)),
            NO,
        )
    yield FrameKind(
        "TCP with these ports",
        broadcast4(me, frames.ipv4(MINE4, OTHER4, udp(67, 68), protocol=TCP)),
        YES,
    )
    for following, name in ((UDP, "offer"), (AH, "another and an offer")):
        packet = frames.ipv4(
            MINE4, BROADCAST4, authenticated(following, udp(67, 68)), protocol=AH
        )
        yield FrameKind(
            f"an authentication header and {name}", broadcast4(me, packet), NO
        )
    packet = frames.ipv4(MINE4, OTHER4, authenticated(TCP, bytes(20)), protocol=AH)
    yield FrameKind("an authentication header and TCP", broadcast4(me, packet), YES)


def _bootp(mac: str, operation: int = 1) -> bytes:
    return (
        struct.pack("!BBBB", operation, 1, 6, 0)
        + bytes(24)
        + frames.mac(mac)
        + bytes(210)
    )


def _groups(me: str) -> Iterator[FrameKind]:
    types = {
        0x12: ("report v1", YES),
        0x16: ("report v2", YES),
        0x17: ("leave", YES),
        0x22: ("report v3", YES),
        0x11: ("query", NO),
        0x30: ("router advertisement (MRD)", NO),
        0x32: ("router termination (MRD)", NO),
        0x13: ("DVMRP", YES),
    }
    for number, (name, passes) in types.items():
        packet = frames.ipv4(
            MINE4, "224.0.0.22", bytes([number]) + bytes(7), protocol=IGMP
        )
        yield FrameKind(f"IGMP {name}", broadcast4(me, packet), passes)
        yield FrameKind(
            f"IGMP {name}, behind options", broadcast4(me, _options(packet)), passes
        )
    hello = frames.ipv4(MINE4, "224.0.0.13", b"\x20\0" + bytes(8), protocol=PIM)
    yield FrameKind("PIM hello", broadcast4(me, hello), NO)


SNOOPED = {
    "an IGMP query": (IGMP, "224.0.0.1", summed(b"\x11\x64" + bytes(6))),
    "an IGMP advertisement": (IGMP, "224.0.0.106", summed(b"\x30\x14" + bytes(6))),
    "an IGMP report": (IGMP, "239.1.2.3", summed(b"\x16\0\0\0\xef\1\2\3")),
    "a PIM hello": (PIM, "224.0.0.13", summed(b"\x20" + bytes(11))),
}
"""What a bridge reads that snoops multicast, in a later fragment too: the protocol, the
destination and the message."""


def _fragments(me: str) -> Iterator[FrameKind]:

    def on(payload: bytes, place: int, **more: int) -> bytes:
        return broadcast4(
            me, frames.ipv4(MINE4, OTHER4, payload, fragment=place, **more)
        )

    yield FrameKind("a DHCP offer's first", on(udp(67, 68), 0x2000), NO)
    yield FrameKind("a DHCP offer's, of 8 bytes", on(udp(67, 68, b""), 0x2000), NO)
    yield FrameKind("a UDP packet's first", on(udp(5000, 53), 0x2000), YES)
    yield FrameKind("a UDP header cut in two", on(udp(67, 68)[:4], 0x2000), NO)
    for offset in (1, 8, 0x1FFF):
        yield FrameKind(
            f"a later one that looks like an offer, at {offset}",
            on(b"\0\x43\0\x44" + bytes(12), offset),
            YES,
        )
    frame = broadcast4(me, frames.ipv4(OTHER4, MINE4, bytes(16), fragment=8))
    yield FrameKind("a later one from another's address", frame, OWN)
    for name, (protocol, to, message) in SNOOPED.items():
        for offset in (1, 0x2001):
            packet = frames.ipv4(MINE4, to, message, protocol=protocol, fragment=offset)
            yield FrameKind(
                f"{name} in a later one, {'not ' * (offset > 1)}the last",
                broadcast4(me, packet),
                NO,
            )


GROUPS = {
    "IPv4": (_sources, _headers),
    "ICMP": (_icmp,),
    "DHCP": (_dhcp,),
    "multicast groups and routers (IPv4)": (_groups,),
    "fragments (IPv4)": (_fragments,),
}
