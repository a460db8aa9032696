# SPDX-License-Identifier: Apache-2.0
"""Kinds of frames that a guest can send, and which of them a filter passes.

This is the one table: the test sends each kind through real taps, and docs/filter.md is
made of it. `python -m lab.kinds` writes that page.
"""

import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import NamedTuple

from lab import frames
from lab.frames import (
    ALL_NODES,
    ARP,
    BROADCAST,
    FRAGMENT,
    HOP_BY_HOP,
    ICMPV6,
    IPV4,
    IPV6,
    RARP,
    TCP,
    UDP,
    arp,
    ether,
    fragment,
    icmpv6,
    ipv6,
    llc,
    option,
    tagged,
    udp,
)

MINE4, OTHER4, ROUTER4 = "192.0.2.5", "192.0.2.6", "192.0.2.1"
MINE6, OTHER6 = "2001:db8::5", "2001:db8::6"
ROUTER6, STRANGE6 = "fe80::1", "fe80::6"
OTHER_MAC = "52:54:00:66:66:66"
ADDRESSES = (MINE4, MINE6)

YES, NO, OWN = (True, True), (False, False), (True, False)
"""Whether it passes with the MAC alone, and with MAC and addresses."""
IGMP, ICMP, AH, DESTINATION, ROUTING, PIM = 2, 1, 51, 60, 43, 103
PAGE = Path(__file__).parent.parent / "docs" / "filter.md"


class Kind(NamedTuple):
    """A kind of frame."""

    group: str
    name: str
    frame: bytes
    passes: tuple[bool, bool]
    bridged: bool = True
    """Without a filter the bridge forwards it to other ports."""
    request: bytes = bytes(10)
    """The virtio_net_hdr before it."""


def link_local(mac: str) -> str:
    raw = frames.mac(mac)
    interface = bytes([raw[0] ^ 2, *raw[1:3], 0xFF, 0xFE, *raw[3:]])
    return str(IPv6Address(bytes.fromhex("fe80000000000000") + interface))


def kinds(me: str) -> list[Kind]:
    """Return every kind, as a guest with this MAC sends it."""
    return [
        kind
        for group in (
            *(_others, _tags, _bridges, _snap, _arp, _rarp, _ipv4, _dhcp, _groups4),
            *(_fragments4, _ipv6, _dhcpv6, _groups6, _neighbours, _routers, _requests),
        )
        for kind in group(me)
    ]


def _others(me: str) -> Iterator[Kind]:
    group = "MAC and other protocols"
    yield Kind(
        group, "from another MAC", ether(OTHER_MAC, BROADCAST, 0x88B5, bytes(46)), NO
    )
    yield Kind(
        group,
        "from a multicast MAC",
        ether("53:54:00:66:66:66", BROADCAST, 0x88B5, bytes(46)),
        NO,
        bridged=False,
    )
    yield Kind(
        group,
        "from no MAC",
        ether("00:00:00:00:00:00", BROADCAST, 0x88B5, bytes(46)),
        NO,
        bridged=False,
    )
    yield Kind(
        group,
        "ARP from another MAC",
        ether(OTHER_MAC, BROADCAST, ARP, arp(me, MINE4, OTHER4)),
        NO,
    )
    protocols = {
        0x0842: "Wake-on-LAN",
        0x22F0: "AVTP",
        0x22F3: "TRILL",
        0x6003: "DECnet",
        0x809B: "AppleTalk",
        0x80F3: "AARP",
        0x8137: "IPX",
        0x8204: "QNX Qnet",
        0x8809: "slow protocols",
        0x8819: "CobraNet",
        0x8847: "MPLS",
        0x8848: "MPLS multicast",
        0x8863: "PPPoE discovery",
        0x8864: "PPPoE session",
        0x887B: "HomePlug",
        0x888E: "802.1X",
        0x8892: "PROFINET",
        0x889A: "HyperSCSI",
        0x88A2: "ATA over Ethernet",
        0x88A4: "EtherCAT",
        0x88AB: "POWERLINK",
        0x88B5: "experiments",
        0x88CC: "LLDP",
        0x88E3: "media redundancy",
        0x88E5: "MACsec",
        0x88F7: "PTP",
        0x8902: "CFM",
        0x8906: "FCoE",
        0x8914: "FIP",
        0x8915: "RoCE",
        0x891D: "TTEthernet",
        0x892F: "HSR",
        0x9000: "loopback test",
        0x4305: "batman-adv",
        0x894F: "NSH",
        0xCAFE: "anything else",
    }
    for ethertype, name in protocols.items():
        yield Kind(
            group,
            name,
            ether(me, BROADCAST, ethertype, bytes(46) + struct.pack("!H", ethertype)),
            OWN,
        )
    yield Kind(
        group, "LLC (NetBIOS)", llc(me, BROADCAST, b"\xf0\xf0\x03" + bytes(43)), OWN
    )
    yield Kind(
        group, "LLC (IS-IS)", llc(me, BROADCAST, b"\xfe\xfe\x03" + bytes(43)), OWN
    )
    yield Kind(group, "raw IPX", llc(me, BROADCAST, b"\xff\xff\0\x1e" + bytes(43)), OWN)


def _tags(me: str) -> Iterator[Kind]:
    group = "VLAN tags, on a port without trunks"
    honest = ether(me, BROADCAST, ARP, arp(me, MINE4, ROUTER4))
    for kind, name in ((0x8100, "802.1Q"), (0x88A8, "802.1ad")):
        for vlan in (0, 1, 7, 4094):
            yield Kind(group, f"{name}, VLAN {vlan}", tagged(honest, vlan, kind), NO)
        for inner, inner_name in ((0x8100, "802.1Q"), (0x88A8, "802.1ad")):
            double = tagged(tagged(honest, 8, inner), 7, kind)
            yield Kind(group, f"{inner_name} within {name}", double, NO)
    yield Kind(group, "a tag cut short", honest[:12] + b"\x81\0\0", NO, bridged=False)
    yield Kind(group, "priority tag, DHCP offer", tagged(_offer(me), 0), NO)


def _bridges(me: str) -> Iterator[Kind]:
    group = "to addresses that bridges keep to themselves"
    for last in range(16):
        to = f"01:80:c2:00:00:{last:02x}"
        forwarded = last == 0  # this bridge takes no part in spanning tree
        for name, frame in (
            ("LLC", llc(me, to, b"\x42\x42\x03" + bytes(35))),
            ("ARP", ether(me, to, ARP, arp(me, MINE4, ROUTER4))),
            ("IPv4", ether(me, to, IPV4, frames.ipv4(MINE4, OTHER4, udp(5000, 53)))),
        ):
            yield Kind(group, f"{name} to {to}", frame, NO, forwarded)
    yield Kind(
        group,
        "to 01:80:c2:00:00:10, which is beyond",
        ether(me, "01:80:c2:00:00:10", 0x88B5, bytes(46)),
        OWN,
    )


def _snap(me: str) -> Iterator[Kind]:
    group = "Ethernet types in SNAP"
    local = link_local(me)
    advert = ipv6(
        local, "ff02::1", icmpv6(local, "ff02::1", 134, bytes(12)), protocol=ICMPV6
    )
    payloads = {
        "ARP": (ARP, arp(me, MINE4, ROUTER4)),
        "ARP of another MAC": (ARP, arp(OTHER_MAC, MINE4, ROUTER4)),
        "IPv4": (IPV4, frames.ipv4(MINE4, OTHER4, udp(5000, 53))),
        "router advertisement": (IPV6, advert),
        "DHCP offer": (IPV4, frames.ipv4(MINE4, BROADCAST4, udp(67, 68))),
        "VLAN tag": (0x8100, b"\0\7\x08\6" + arp(me, MINE4, ROUTER4)),
    }
    for name, (ethertype, payload) in payloads.items():
        for oui, how in ((b"\0\0\0", "RFC 1042"), (b"\0\0\xf8", "802.1H")):
            header = b"\xaa\xaa\x03" + oui + struct.pack("!H", ethertype)
            yield Kind(
                group, f"{name} ({how})", llc(me, BROADCAST, header + payload), NO
            )
    for saps, how in ((b"\xab\xaa", "group bit"), (b"\xaa\xab", "response bit")):
        header = saps + b"\x03\0\0\0\x08\6"
        yield Kind(
            group,
            f"ARP, {how}",
            llc(me, BROADCAST, header + arp(me, MINE4, ROUTER4)),
            NO,
        )
    other = b"\xaa\xaa\x03\0\0\x0c\x20\0"
    yield Kind(
        group,
        "another vendor's protocol (CDP)",
        llc(me, BROADCAST, other + bytes(40)),
        OWN,
    )


BROADCAST4 = "255.255.255.255"


def _offer(me: str) -> bytes:
    return ether(me, BROADCAST, IPV4, frames.ipv4(MINE4, BROADCAST4, udp(67, 68)))


def _arp(me: str) -> Iterator[Kind]:
    group = "ARP"
    operations = {
        1: "request",
        2: "reply",
        3: "reverse request",
        8: "inverse request",
        25: "of another operation",
    }
    for number, name in operations.items():

        def on(sender: str, ip: str, target: str, number: int = number) -> bytes:
            return ether(me, BROADCAST, ARP, arp(sender, ip, target, operation=number))

        yield Kind(group, f"{name} from its address", on(me, MINE4, ROUTER4), YES)
        yield Kind(
            group, f"{name} from another's address", on(me, OTHER4, ROUTER4), OWN
        )
        yield Kind(
            group, f"{name} from the router's address", on(me, ROUTER4, OTHER4), OWN
        )
        yield Kind(
            group, f"{name} from another's MAC", on(OTHER_MAC, MINE4, ROUTER4), NO
        )
        yield Kind(
            group, f"{name}, probe of its address", on(me, "0.0.0.0", MINE4), YES
        )
        yield Kind(group, f"{name}, probe of another's", on(me, "0.0.0.0", OTHER4), OWN)
        yield Kind(group, f"{name}, announcement", on(me, MINE4, MINE4), YES)
        yield Kind(
            group, f"{name}, announcement of another's", on(me, OTHER4, OTHER4), OWN
        )
    plain = arp(me, MINE4, ROUTER4)
    for hardware in (0, 6, 15, 24, 32, 257):
        made = struct.pack("!H", hardware) + plain[2:]
        yield Kind(
            group, f"of hardware {hardware}", ether(me, BROADCAST, ARP, made), NO
        )
    for protocol in (0x86DD, 0x0806, 0):
        made = plain[:2] + struct.pack("!H", protocol) + plain[4:]
        yield Kind(
            group, f"for protocol {protocol:#06x}", ether(me, BROADCAST, ARP, made), NO
        )
    for sizes in ((8, 4), (6, 16), (0, 4), (6, 0)):
        made = plain[:4] + bytes(sizes) + plain[6:]
        yield Kind(
            group,
            f"with addresses of {sizes[0]} and {sizes[1]} bytes",
            ether(me, BROADCAST, ARP, made),
            NO,
        )
    for length in (1, 8, 20, 27):
        yield Kind(
            group,
            f"cut after {length} bytes",
            ether(me, BROADCAST, ARP, plain[:length]),
            NO,
            bridged=length >= 8,
        )


def _rarp(me: str) -> Iterator[Kind]:
    group = "RARP, as QEMU announces a VM that has moved"

    def on(sender: str, target: str, operation: int, ip: str = "0.0.0.0") -> bytes:
        return ether(
            me, BROADCAST, RARP, arp(sender, ip, ip, target=target, operation=operation)
        )

    yield Kind(group, "for its MAC", on(me, me, 3), YES)
    yield Kind(group, "for another's MAC", on(me, OTHER_MAC, 3), NO)
    yield Kind(group, "from another's MAC", on(OTHER_MAC, me, 3), NO)
    yield Kind(group, "reply", on(me, me, 4, MINE4), NO)
    yield Kind(group, "ARP's request in it", on(me, me, 1, MINE4), NO)
    yield Kind(group, "cut short", on(me, me, 3)[:30], NO)


def _on4(me: str, packet: bytes) -> bytes:
    return ether(me, BROADCAST, IPV4, packet)


def _ipv4(me: str) -> Iterator[Kind]:
    group = "IPv4"
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
            frame = _on4(
                me, frames.ipv4(address, "198.51.100.7", payload, protocol=protocol)
            )
            yield Kind(
                group, f"{name} from {source}", frame, NO if protocol == 255 else passes
            )
    packet = frames.ipv4(MINE4, OTHER4, udp(5000, 53))
    for version in (0, 5, 6, 15):
        yield Kind(
            group,
            f"of version {version}",
            _on4(me, bytes([version << 4 | 5]) + packet[1:]),
            NO,
        )
    for words in (0, 4, 15):
        yield Kind(
            group,
            f"with a header of {words} words",
            _on4(me, bytes([4 << 4 | words]) + packet[1:]),
            NO,
        )
    for length in (1, 10, 19):
        yield Kind(group, f"cut after {length} bytes", _on4(me, packet[:length]), NO)
    yield Kind(
        group,
        "shorter than it says",
        _on4(me, frames.ipv4(MINE4, OTHER4, udp(5, 5), missing=9)),
        NO,
    )
    yield Kind(group, "UDP with IP options", _on4(me, _options(packet)), YES)


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


def _bootp(mac: str, operation: int = 1) -> bytes:
    return (
        struct.pack("!BBBB", operation, 1, 6, 0)
        + bytes(24)
        + frames.mac(mac)
        + bytes(210)
    )


def _dhcp(me: str) -> Iterator[Kind]:
    group = "DHCP"

    def on(source: str, to: str, payload: bytes) -> bytes:
        return _on4(me, frames.ipv4(source, to, payload))

    ask, forged = _bootp(me), _bootp(OTHER_MAC)
    yield Kind(group, "discover", on("0.0.0.0", BROADCAST4, udp(68, 67, ask)), YES)
    yield Kind(
        group,
        "discover for another's MAC",
        on("0.0.0.0", BROADCAST4, udp(68, 67, forged)),
        NO,
    )
    yield Kind(
        group, "discover without a MAC", on("0.0.0.0", BROADCAST4, udp(68, 67)), NO
    )
    yield Kind(group, "renewal", on(MINE4, ROUTER4, udp(68, 67, ask)), YES)
    yield Kind(
        group, "release for another's MAC", on(MINE4, ROUTER4, udp(68, 67, forged)), NO
    )
    yield Kind(
        group,
        "renewal from another's address",
        on(OTHER4, ROUTER4, udp(68, 67, ask)),
        OWN,
    )
    yield Kind(
        group,
        "request from nowhere to a server",
        on("0.0.0.0", ROUTER4, udp(68, 67, ask)),
        OWN,
    )
    reply = _bootp(OTHER_MAC, 2)
    for source, to in ((67, 68), (67, 67), (6700, 68), (67, 5000), (68, 68), (0, 68)):
        for destination in (BROADCAST4, ROUTER4):
            frame = on(MINE4, destination, udp(source, to, reply))
            yield Kind(
                group, f"UDP from port {source} to {to}, to {destination}", frame, NO
            )
    offer = frames.ipv4(MINE4, BROADCAST4, udp(67, 68, reply))
    for words in (1, 5, 10):
        yield Kind(
            group,
            f"offer behind {4 * words} bytes of options",
            _on4(me, _options(offer, words)),
            NO,
        )
    yield Kind(
        group,
        "TCP with these ports",
        _on4(me, frames.ipv4(MINE4, OTHER4, udp(67, 68), protocol=TCP)),
        YES,
    )
    for following, name in ((UDP, "offer"), (AH, "another and an offer")):
        packet = frames.ipv4(
            MINE4, BROADCAST4, _ah(following, udp(67, 68)), protocol=AH
        )
        yield Kind(group, f"an authentication header and {name}", _on4(me, packet), NO)
    packet = frames.ipv4(MINE4, OTHER4, _ah(TCP, bytes(20)), protocol=AH)
    yield Kind(group, "an authentication header and TCP", _on4(me, packet), YES)


def _ah(following: int, payload: bytes) -> bytes:
    return struct.pack("!BBHII", following, 4, 0, 1, 1) + bytes(12) + payload


def _groups4(me: str) -> Iterator[Kind]:
    group = "multicast groups and routers (IPv4)"
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
        yield Kind(group, f"IGMP {name}", _on4(me, packet), passes)
        yield Kind(
            group, f"IGMP {name}, behind options", _on4(me, _options(packet)), passes
        )
    hello = frames.ipv4(MINE4, "224.0.0.13", b"\x20\0" + bytes(8), protocol=PIM)
    yield Kind(group, "PIM hello", _on4(me, hello), NO)


def _fragments4(me: str) -> Iterator[Kind]:
    group = "fragments (IPv4)"

    def on(payload: bytes, place: int, **more: int) -> bytes:
        return _on4(me, frames.ipv4(MINE4, OTHER4, payload, fragment=place, **more))

    yield Kind(group, "a DHCP offer's first", on(udp(67, 68), 0x2000), NO)
    yield Kind(group, "a DHCP offer's, of 8 bytes", on(udp(67, 68, b""), 0x2000), NO)
    yield Kind(group, "a UDP packet's first", on(udp(5000, 53), 0x2000), YES)
    yield Kind(group, "a UDP header cut in two", on(udp(67, 68)[:4], 0x2000), NO)
    for offset in (1, 8, 0x1FFF):
        yield Kind(
            group,
            f"a later one that looks like an offer, at {offset}",
            on(b"\0\x43\0\x44" + bytes(12), offset),
            YES,
        )
    frame = _on4(me, frames.ipv4(OTHER4, MINE4, bytes(16), fragment=8))
    yield Kind(group, "a later one from another's address", frame, OWN)


def _on6(me: str, source: str, to: str, payload: bytes, protocol: int = UDP) -> bytes:
    return ether(me, ALL_NODES, IPV6, ipv6(source, to, payload, protocol=protocol))


def _ipv6(me: str) -> Iterator[Kind]:
    group = "IPv6"
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
            yield Kind(
                group,
                f"{name} from {source}",
                _on6(me, address, "2001:db8::7", payload, protocol),
                passes,
            )
        ping = icmpv6(address, OTHER6, 128, bytes(4))
        yield Kind(
            group,
            f"ping from {source}",
            _on6(me, address, OTHER6, ping, ICMPV6),
            passes,
        )
    for header, name in (
        (HOP_BY_HOP, "hop-by-hop options"),
        (DESTINATION, "destination options"),
        (ROUTING, "a routing header"),
    ):
        behind = _header(UDP, udp(5000, 53))
        yield Kind(
            group, f"UDP behind {name}", _on6(me, MINE6, OTHER6, behind, header), YES
        )
    packet = ipv6(MINE6, OTHER6, udp(5, 5))
    for length in (1, 20, 39):
        yield Kind(
            group,
            f"cut after {length} bytes",
            ether(me, ALL_NODES, IPV6, packet[:length]),
            NO,
        )
    yield Kind(
        group, "of version 4", ether(me, ALL_NODES, IPV6, b"\x45" + packet[1:]), NO
    )
    yield Kind(
        group,
        "shorter than it says",
        ether(me, ALL_NODES, IPV6, ipv6(MINE6, OTHER6, udp(547, 546))[:50]),
        NO,
    )
    yield Kind(
        group,
        "an authentication header and TCP",
        _on6(me, MINE6, OTHER6, _ah(TCP, bytes(20)), AH),
        YES,
    )


def _header(following: int, payload: bytes) -> bytes:
    """Return an extension header of 8 bytes: options that say nothing, or a route of
    none."""
    return bytes([following, 0, 1, 4, 0, 0, 0, 0]) + payload


def _dhcpv6(me: str) -> Iterator[Kind]:
    group = "DHCPv6"
    local = link_local(me)
    yield Kind(group, "solicit", _on6(me, local, "ff02::1:2", udp(546, 547)), YES)
    yield Kind(
        group,
        "solicit from another's address",
        _on6(me, STRANGE6, "ff02::1:2", udp(546, 547)),
        OWN,
    )
    for source, to in ((547, 546), (547, 547), (5470, 546), (547, 5000)):
        yield Kind(
            group,
            f"UDP from port {source} to {to}",
            _on6(me, local, STRANGE6, udp(source, to)),
            NO,
        )
        for header, name in (
            (HOP_BY_HOP, "hop-by-hop options"),
            (DESTINATION, "destination options"),
        ):
            frame = _on6(me, local, STRANGE6, _header(UDP, udp(source, to)), header)
            yield Kind(
                group, f"the same, from {source} to {to}, behind {name}", frame, NO
            )
    yield Kind(
        group, "TCP with these ports", _on6(me, MINE6, OTHER6, udp(547, 546), TCP), YES
    )
    yield Kind(
        group,
        "an authentication header and advertise",
        _on6(me, local, STRANGE6, _ah(UDP, udp(547, 546)), AH),
        NO,
    )
    piece = fragment(UDP, udp(547, 546), offset=64, more=False)
    yield Kind(
        group,
        "a later fragment that looks like an advertise",
        ether(
            me, ALL_NODES, IPV6, ipv6(MINE6, OTHER6, piece, protocol=FRAGMENT, flow=546)
        ),
        YES,
    )
    piece = fragment(UDP, udp(547, 546), more=True)
    yield Kind(
        group,
        "an advertise's first fragment",
        _on6(me, local, STRANGE6, piece, FRAGMENT),
        NO,
    )


def _groups6(me: str) -> Iterator[Kind]:
    group = "multicast groups and routers (IPv6)"
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
        yield Kind(
            group,
            f"MLD {name}",
            _on6(me, local, "ff02::16", _header(ICMPV6, body), HOP_BY_HOP),
            passes,
        )
    body = icmpv6("::", "ff02::16", 143, bytes(4))
    yield Kind(
        group,
        "MLD report v2 from ::",
        _on6(me, "::", "ff02::16", _header(ICMPV6, body), HOP_BY_HOP),
        YES,
    )
    yield Kind(
        group, "PIM hello", _on6(me, local, "ff02::d", b"\x20\0" + bytes(8), PIM), NO
    )


def _neighbours(me: str) -> Iterator[Kind]:
    group = "neighbour discovery"
    local, mac, other = link_local(me), frames.mac(me), frames.mac(OTHER_MAC)
    nonce = option(14, b"nonce!")

    def icmp(source: str, to: str, kind: int, body: bytes) -> bytes:
        return _on6(me, source, to, icmpv6(source, to, kind, body), ICMPV6)

    def solicit(source: str, target: str, *options: bytes) -> bytes:
        return icmp(source, "ff02::1:ff00:5", 135, frames.solicitation(target, options))

    def advertise(source: str, target: str, *options: bytes) -> bytes:
        return icmp(source, "ff02::1", 136, frames.advertisement(target, options))

    yield Kind(
        group,
        "router solicitation",
        icmp(local, "ff02::2", 133, bytes(4) + option(1, mac)),
        YES,
    )
    yield Kind(
        group, "router solicitation from ::", icmp("::", "ff02::2", 133, bytes(4)), YES
    )
    yield Kind(
        group,
        "router solicitation for another's MAC",
        icmp(local, "ff02::2", 133, bytes(4) + option(1, other)),
        NO,
    )
    yield Kind(
        group,
        "router solicitation, another's MAC second",
        icmp(local, "ff02::2", 133, bytes(4) + nonce + option(1, other)),
        NO,
    )
    for number in (1, 2):
        for whose, (address, passes) in {
            "its MAC": (mac, YES),
            "another's MAC": (other, NO),
        }.items():
            yield Kind(
                group,
                f"solicitation, option {number} with {whose}",
                solicit(MINE6, OTHER6, option(number, address)),
                passes,
            )
            yield Kind(
                group,
                f"advertisement, option {number} with {whose}",
                advertise(MINE6, MINE6, option(number, address)),
                passes,
            )
    yield Kind(group, "is its address free?", solicit("::", MINE6), YES)
    yield Kind(
        group, "is its address free? with a nonce", solicit("::", MINE6, nonce), YES
    )
    yield Kind(group, "is its link-local address free?", solicit("::", local), YES)
    yield Kind(group, "is another's address free?", solicit("::", OTHER6), OWN)
    yield Kind(
        group,
        "solicitation from another's address",
        solicit(OTHER6, MINE6, option(1, mac)),
        OWN,
    )
    yield Kind(
        group,
        "solicitation, another's MAC second",
        solicit(MINE6, OTHER6, nonce, option(1, other)),
        NO,
    )
    yield Kind(group, "advertisement, short", advertise(local, MINE6), YES)
    yield Kind(
        group,
        "advertisement of another's address",
        advertise(MINE6, OTHER6, option(2, mac)),
        OWN,
    )
    yield Kind(
        group,
        "advertisement of the router's address",
        advertise(MINE6, ROUTER6, option(2, mac)),
        OWN,
    )
    yield Kind(
        group,
        "advertisement from another's address",
        advertise(OTHER6, MINE6, option(2, mac)),
        OWN,
    )
    yield Kind(
        group,
        "advertisement, another's MAC second",
        advertise(MINE6, MINE6, option(2, mac), option(2, other)),
        NO,
    )
    yield Kind(
        group,
        "advertisement, another's MAC after a nonce",
        advertise(MINE6, MINE6, nonce, option(2, other)),
        NO,
    )
    for kind, body in (
        (135, frames.solicitation(OTHER6)),
        (136, frames.advertisement(MINE6)),
    ):
        message = icmpv6(MINE6, "ff02::1", kind, body)
        yield Kind(
            group,
            f"type {kind} in fragments",
            _on6(me, MINE6, "ff02::1", fragment(ICMPV6, message, more=True), FRAGMENT),
            NO,
        )
        yield Kind(
            group,
            f"type {kind} in a fragment that is all",
            _on6(me, MINE6, "ff02::1", fragment(ICMPV6, message, more=False), FRAGMENT),
            NO,
        )
        yield Kind(
            group,
            f"type {kind} behind an authentication header",
            _on6(me, MINE6, "ff02::1", _ah(ICMPV6, message), AH),
            NO,
        )


def _routers(me: str) -> Iterator[Kind]:
    group = "router advertisement and redirect"
    local = link_local(me)
    for kind, name, to in (
        (134, "router advertisement", "ff02::1"),
        (137, "redirect", MINE6),
    ):
        message = icmpv6(local, to, kind, bytes(36))
        evasions: dict[str, tuple[int, bytes]] = {
            "plain": (ICMPV6, message),
            "behind hop-by-hop options": (HOP_BY_HOP, _header(ICMPV6, message)),
            "behind destination options": (DESTINATION, _header(ICMPV6, message)),
            "behind a routing header": (ROUTING, _header(ICMPV6, message)),
            "behind two headers": (
                HOP_BY_HOP,
                _header(DESTINATION, _header(ICMPV6, message)),
            ),
            "behind six headers": (DESTINATION, _nested(6, message)),
            "behind twenty headers": (DESTINATION, _nested(20, message)),
            "behind an authentication header": (AH, _ah(ICMPV6, message)),
            "behind options and an authentication header": (
                HOP_BY_HOP,
                _header(AH, _ah(ICMPV6, message)),
            ),
            "behind an authentication header and options": (
                AH,
                _ah(DESTINATION, _header(ICMPV6, message)),
            ),
            "in a first fragment": (FRAGMENT, fragment(ICMPV6, message, more=True)),
            "in a fragment that is all": (
                FRAGMENT,
                fragment(ICMPV6, message, more=False),
            ),
            "in a first fragment that ends in options": (
                FRAGMENT,
                fragment(HOP_BY_HOP, b"\x3a\0\1\4\0\0\0\0", more=True),
            ),
            "in a first fragment behind options": (
                DESTINATION,
                _header(FRAGMENT, fragment(ICMPV6, message, more=True)),
            ),
            "cut short": (ICMPV6, message[:2]),
        }
        for how, (protocol, payload) in evasions.items():
            if (how, kind) == ("in a first fragment that ends in options", 137):
                continue
            yield Kind(
                group, f"{name}, {how}", _on6(me, local, to, payload, protocol), NO
            )


def _nested(count: int, payload: bytes) -> bytes:
    for number in range(count):
        payload = _header(DESTINATION if number else ICMPV6, payload)
    return payload


def _requests(me: str) -> Iterator[Kind]:
    group = "requests to the host to write a checksum"
    tcp = _on4(me, frames.ipv4(MINE4, OTHER4, bytes(20) + b"hello!", protocol=TCP))
    datagram = _on4(me, frames.ipv4(MINE4, OTHER4, udp(1000, 2000, b"hello!")))
    tcp6 = _on6(me, MINE6, OTHER6, bytes(20) + b"hello!", TCP)
    datagram6 = _on6(me, MINE6, OTHER6, udp(1000, 2000, b"hello!"))
    announce = ether(me, BROADCAST, ARP, arp(me, MINE4, MINE4) + bytes(18))
    for name, frame, start, offset in (
        ("in TCP", tcp, 34, 16),
        ("in UDP", datagram, 34, 6),
        ("in TCP over IPv6", tcp6, 54, 16),
        ("in UDP over IPv6", datagram6, 54, 6),
        ("behind UDP, in a tunnel", datagram, 42, 2),
    ):
        yield Kind(group, name, frame, YES, request=_request(start, offset))
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
        yield Kind(group, name, frame, NO, request=_request(20, place - 20))
    frame = ether(me, BROADCAST, 0x88B5, bytes(60))
    yield Kind(group, "in another protocol", frame, NO, request=_request(20, 4))


def _request(start: int, offset: int) -> bytes:
    return struct.pack("BBHHHH", 1, 0, 0, 0, start, offset)


# The page

HEAD = """<!-- SPDX-License-Identifier: Apache-2.0 -->
# Which frames pass a filtered port

`--filter` asks for the first column, one or more `--address` for the second. The
filter is about frames from the guest; all frames to the guest pass. This page is made
of the table in `lab/kinds.py`, and `tests/backends/test_kinds.py` sends each of these
{count} kinds through real taps. In the second column the guest has one IPv4 and one
IPv6 address.

Ports that are isolated, and ports without learning, forward what a port without filter
does.
"""


def page() -> str:
    """Return the text of docs/filter.md."""
    every = kinds("52:54:00:12:34:56")
    lines = [HEAD.format(count=len(every))]
    for group in dict.fromkeys(kind.group for kind in every):
        lines.append(f"## {group[0].upper()}{group[1:]}\n")
        lines.append("| frame | MAC alone | MAC and addresses |\n| --- | --- | --- |")
        lines += _rows(kind for kind in every if kind.group == group)
        lines.append("")
    return "\n".join(lines)


def _rows(group: Iterable[Kind]) -> list[str]:
    return [
        f"| {kind.name} | {' | '.join('yes' if yes else 'no' for yes in kind.passes)} |"
        for kind in group
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
