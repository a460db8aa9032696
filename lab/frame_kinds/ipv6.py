# SPDX-License-Identifier: Apache-2.0
"""Kinds of frames with IPv6: sources, headers, DHCPv6 and groups."""

from collections.abc import Iterator

from lab.frame_kinds.kind import (
    AH,
    DESTINATION,
    MINE6,
    NO,
    OTHER6,
    OWN,
    PIM,
    ROUTING,
    STRANGE6,
    YES,
    FrameKind,
    authenticated,
    link_local,
)
from lab.frames import (
    ALL_NODES,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    IPV6,
    TCP,
    UDP,
    ether,
    fragment,
    icmpv6,
    ipv6,
    udp,
)


def multicast6(
    me: str, source: str, to: str, payload: bytes, protocol: int = UDP
) -> bytes:
    """Send a packet of IPv6 to the MAC of all nodes."""
    return ether(me, ALL_NODES, IPV6, ipv6(source, to, payload, protocol=protocol))


def _sources(me: str) -> Iterator[FrameKind]:
    local = link_local(me)
    sources = {
        "its address": (MINE6, YES),
        "its link-local address": (local, YES),
        "another's": (OTHER6, OWN),
        "another link-local address": (STRANGE6, OWN),
        "::": ("::", OWN),
        "::1": ("::1", OWN),
        "a multicast address": ("ff02::1", OWN),
    }
    protocols = {
        "TCP": (TCP, bytes(20)),
        "UDP": (UDP, udp(5000, 53)),
        "SCTP": (132, bytes(20)),
        "ESP": (50, bytes(20)),
        "GRE": (47, bytes(20)),
        "OSPF": (89, bytes(20)),
        "no next header": (59, bytes(8)),
    }
    for source, (address, passes) in sources.items():
        for name, (protocol, payload) in protocols.items():
            yield FrameKind(
                f"{name} from {source}",
                multicast6(me, address, "2001:db8::7", payload, protocol),
                passes,
            )
        ping = icmpv6(address, OTHER6, 128, bytes(4))
        yield FrameKind(
            f"ping from {source}", multicast6(me, address, OTHER6, ping, ICMPV6), passes
        )


def _headers(me: str) -> Iterator[FrameKind]:
    for header, name in (
        (HOP_BY_HOP, "hop-by-hop options"),
        (DESTINATION, "destination options"),
        (ROUTING, "a routing header"),
    ):
        behind = extension(UDP, udp(5000, 53))
        yield FrameKind(
            f"UDP behind {name}", multicast6(me, MINE6, OTHER6, behind, header), YES
        )
    packet = ipv6(MINE6, OTHER6, udp(5, 5))
    for length in (1, 20, 39):
        yield FrameKind(
            f"cut after {length} bytes", ether(me, ALL_NODES, IPV6, packet[:length]), NO
        )
    yield FrameKind(
        "of version 4", ether(me, ALL_NODES, IPV6, b"\x45" + packet[1:]), NO
    )
    yield FrameKind(
        "shorter than it says",
        ether(me, ALL_NODES, IPV6, ipv6(MINE6, OTHER6, udp(547, 546))[:50]),
        NO,
    )
    yield FrameKind(
        "an authentication header and TCP",
        multicast6(me, MINE6, OTHER6, authenticated(TCP, bytes(20)), AH),
        YES,
    )


def extension(following: int, payload: bytes) -> bytes:
    """Return an extension header of 8 bytes: options that say nothing, or a route of
    none."""
    return bytes([following, 0, 1, 4, 0, 0, 0, 0]) + payload


def _dhcpv6(me: str) -> Iterator[FrameKind]:
    local = link_local(me)
    yield FrameKind("solicit", multicast6(me, local, "ff02::1:2", udp(546, 547)), YES)
    yield FrameKind(
        "solicit from another's address",
        multicast6(me, STRANGE6, "ff02::1:2", udp(546, 547)),
        OWN,
    )
    for source, to in ((547, 546), (547, 547), (5470, 546), (547, 5000)):
        yield FrameKind(
            f"UDP from port {source} to {to}",
            multicast6(me, local, STRANGE6, udp(source, to)),
            NO,
        )
        for header, name in (
            (HOP_BY_HOP, "hop-by-hop options"),
            (DESTINATION, "destination options"),
        ):
            frame = multicast6(
                me, local, STRANGE6, extension(UDP, udp(source, to)), header
            )
            yield FrameKind(
                f"the same, from {source} to {to}, behind {name}", frame, NO
            )
    yield FrameKind(
        "TCP with these ports", multicast6(me, MINE6, OTHER6, udp(547, 546), TCP), YES
    )
    yield FrameKind(
        "an authentication header and advertise",
        multicast6(me, local, STRANGE6, authenticated(UDP, udp(547, 546)), AH),
        NO,
    )
    piece = fragment(UDP, udp(547, 546), offset=64, more=False)
    yield FrameKind(
        "a later fragment that looks like an advertise",
        ether(
            me, ALL_NODES, IPV6, ipv6(MINE6, OTHER6, piece, protocol=FRAGMENT, flow=546)
        ),
        YES,
    )
    piece = fragment(UDP, udp(547, 546), more=True)
    yield FrameKind(
        "an advertise's first fragment",
        multicast6(me, local, STRANGE6, piece, FRAGMENT),
        NO,
    )


def _groups(me: str) -> Iterator[FrameKind]:
    local = link_local(me)
    types = {
        131: ("report", YES),
        143: ("report v2", YES),
        132: ("done", YES),
        130: ("query", NO),
        151: ("router advertisement (MRD)", NO),
        153: ("router termination (MRD)", NO),
    }
    for number, (name, passes) in types.items():
        body = icmpv6(local, "ff02::16", number, bytes(20))
        yield FrameKind(
            f"MLD {name}",
            multicast6(me, local, "ff02::16", extension(ICMPV6, body), HOP_BY_HOP),
            passes,
        )
    body = icmpv6("::", "ff02::16", 143, bytes(4))
    yield FrameKind(
        "MLD report v2 from ::",
        multicast6(me, "::", "ff02::16", extension(ICMPV6, body), HOP_BY_HOP),
        YES,
    )
    yield FrameKind(
        "PIM hello", multicast6(me, local, "ff02::d", b"\x20\0" + bytes(8), PIM), NO
    )


GROUPS = {
    "IPv6": (_sources, _headers),
    "DHCPv6": (_dhcpv6,),
    "multicast groups and routers (IPv6)": (_groups,),
}
