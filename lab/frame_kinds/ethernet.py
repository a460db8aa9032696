# SPDX-License-Identifier: Apache-2.0
"""Kinds of frames below IP: MACs, protocols, VLAN tags, LLC, ARP and RARP."""

import struct
from collections.abc import Iterator

from lab import frames
from lab.frame_kinds.kind import (
    BROADCAST4,
    MINE4,
    NO,
    OTHER4,
    OTHER_MAC,
    OWN,
    ROUTER4,
    YES,
    FrameKind,
    link_local,
)
from lab.frames import (
    ARP,
    BROADCAST,
    ICMPV6,
    IPV4,
    IPV6,
    RARP,
    arp,
    ether,
    icmpv6,
    ipv6,
    llc,
    tagged,
    udp,
)

PROTOCOLS = {
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


def _wrong_sources(me: str) -> Iterator[FrameKind]:
    yield FrameKind(
        "from another MAC", ether(OTHER_MAC, BROADCAST, 0x88B5, bytes(46)), NO
    )
    yield FrameKind(
        "from a multicast MAC",
        ether("53:54:00:66:66:66", BROADCAST, 0x88B5, bytes(46)),
        NO,
        bridged=False,
    )
    yield FrameKind(
        "from no MAC",
        ether("00:00:00:00:00:00", BROADCAST, 0x88B5, bytes(46)),
        NO,
        bridged=False,
    )
    yield FrameKind(
        "ARP from another MAC",
        ether(OTHER_MAC, BROADCAST, ARP, arp(me, MINE4, OTHER4)),
        NO,
    )


def _protocols(me: str) -> Iterator[FrameKind]:
    for ethertype, name in PROTOCOLS.items():
        yield FrameKind(
            name,
            ether(me, BROADCAST, ethertype, bytes(46) + struct.pack("!H", ethertype)),
            OWN,
        )
    yield FrameKind(
        "LLC (NetBIOS)", llc(me, BROADCAST, b"\xf0\xf0\x03" + bytes(43)), OWN
    )
    yield FrameKind("LLC (IS-IS)", llc(me, BROADCAST, b"\xfe\xfe\x03" + bytes(43)), OWN)
    yield FrameKind("raw IPX", llc(me, BROADCAST, b"\xff\xff\0\x1e" + bytes(43)), OWN)


def _tags(me: str) -> Iterator[FrameKind]:
    honest = ether(me, BROADCAST, ARP, arp(me, MINE4, ROUTER4))
    for kind, name in ((0x8100, "802.1Q"), (0x88A8, "802.1ad")):
        for vlan in (0, 1, 7, 4094):
            yield FrameKind(f"{name}, VLAN {vlan}", tagged(honest, vlan, kind), NO)
        for inner, inner_name in ((0x8100, "802.1Q"), (0x88A8, "802.1ad")):
            double = tagged(tagged(honest, 8, inner), 7, kind)
            yield FrameKind(f"{inner_name} within {name}", double, NO)
    for kind in (0x9100, 0x9200, 0x9300):
        name = f"a tag of type {kind:#x}"
        yield FrameKind(name, tagged(honest, 7, kind), NO)
        yield FrameKind(f"802.1Q within {name}", tagged(tagged(honest, 8), 7, kind), NO)
    yield FrameKind("a tag cut short", honest[:12] + b"\x81\0\0", NO, bridged=False)
    yield FrameKind("priority tag, DHCP offer", tagged(_offer(me), 0), NO)


def _offer(me: str) -> bytes:
    return ether(me, BROADCAST, IPV4, frames.ipv4(MINE4, BROADCAST4, udp(67, 68)))


def _bridges(me: str) -> Iterator[FrameKind]:
    for last in range(16):
        to = f"01:80:c2:00:00:{last:02x}"
        forwarded = last == 0  # this bridge takes no part in spanning tree
        for name, frame in (
            ("LLC", llc(me, to, b"\x42\x42\x03" + bytes(35))),
            ("ARP", ether(me, to, ARP, arp(me, MINE4, ROUTER4))),
            ("IPv4", ether(me, to, IPV4, frames.ipv4(MINE4, OTHER4, udp(5000, 53)))),
        ):
            yield FrameKind(f"{name} to {to}", frame, NO, forwarded)
    for to, what in (("02:00:00:00:00:01", "a device"), (BROADCAST, "all")):
        pause = ether(me, to, 0x8808, b"\0\1\xff\xff" + bytes(42))
        yield FrameKind(f"PAUSE to {what}", pause, NO, to == BROADCAST)
    switches = "01:80:c2:00:00:21"
    for name, frame in (
        ("GVRP", llc(me, switches, b"\x42\x42\x03\0\1\1" + bytes(37))),
        ("MVRP", ether(me, switches, 0x88F5, bytes(46))),
    ):
        yield FrameKind(f"{name}, which asks a switch for VLANs", frame, NO)
    yield FrameKind(
        "to 01:80:c2:00:00:10, which is beyond",
        ether(me, "01:80:c2:00:00:10", 0x88B5, bytes(46)),
        OWN,
    )


def _snap(me: str) -> Iterator[FrameKind]:
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
            yield FrameKind(f"{name} ({how})", llc(me, BROADCAST, header + payload), NO)
    for saps, how in ((b"\xab\xaa", "group bit"), (b"\xaa\xab", "response bit")):
        header = saps + b"\x03\0\0\0\x08\6"
        yield FrameKind(
            f"ARP, {how}", llc(me, BROADCAST, header + arp(me, MINE4, ROUTER4)), NO
        )
    # A switch of Cisco shuts a port for the first, and learns VLANs from the second.
    for name, to, kind in (
        ("spanning tree of Cisco (PVST+)", "01:00:0c:cc:cc:cd", 0x010B),
        ("VTP", "01:00:0c:cc:cc:cc", 0x2003),
        ("DTP", "01:00:0c:cc:cc:cc", 0x2004),
        ("CDP", "01:00:0c:cc:cc:cc", 0x2000),
    ):
        header = b"\xaa\xaa\x03\0\0\x0c" + struct.pack("!H", kind)
        yield FrameKind(name, llc(me, to, header + bytes(40)), NO)
    other = b"\xaa\xaa\x03\x00\xe0\x2b\x00\xbb"
    yield FrameKind(
        "another vendor's protocol (EDP)", llc(me, BROADCAST, other + bytes(40)), OWN
    )


def _arp(me: str) -> Iterator[FrameKind]:
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

        yield FrameKind(f"{name} from its address", on(me, MINE4, ROUTER4), YES)
        yield FrameKind(f"{name} from another's address", on(me, OTHER4, ROUTER4), OWN)
        yield FrameKind(
            f"{name} from the router's address", on(me, ROUTER4, OTHER4), OWN
        )
        yield FrameKind(f"{name} from another's MAC", on(OTHER_MAC, MINE4, ROUTER4), NO)
        yield FrameKind(f"{name}, probe of its address", on(me, "0.0.0.0", MINE4), YES)
        yield FrameKind(f"{name}, probe of another's", on(me, "0.0.0.0", OTHER4), OWN)
        yield FrameKind(f"{name}, announcement", on(me, MINE4, MINE4), YES)
        yield FrameKind(
            f"{name}, announcement of another's", on(me, OTHER4, OTHER4), OWN
        )
    plain = arp(me, MINE4, ROUTER4)
    for hardware in (0, 6, 15, 24, 32, 257):
        made = struct.pack("!H", hardware) + plain[2:]
        yield FrameKind(f"of hardware {hardware}", ether(me, BROADCAST, ARP, made), NO)
    for protocol in (0x86DD, 0x0806, 0):
        made = plain[:2] + struct.pack("!H", protocol) + plain[4:]
        yield FrameKind(
            f"for protocol {protocol:#06x}", ether(me, BROADCAST, ARP, made), NO
        )
    for sizes in ((8, 4), (6, 16), (0, 4), (6, 0)):
        made = plain[:4] + bytes(sizes) + plain[6:]
        yield FrameKind(
            f"with addresses of {sizes[0]} and {sizes[1]} bytes",
            ether(me, BROADCAST, ARP, made),
            NO,
        )
    for length in (1, 8, 20, 27):
        yield FrameKind(
            f"cut after {length} bytes",
            ether(me, BROADCAST, ARP, plain[:length]),
            NO,
            bridged=length >= 8,
        )


def _rarp(me: str) -> Iterator[FrameKind]:

    def on(sender: str, target: str, operation: int, ip: str = "0.0.0.0") -> bytes:
        return ether(
            me, BROADCAST, RARP, arp(sender, ip, ip, target=target, operation=operation)
        )

    yield FrameKind("for its MAC", on(me, me, 3), YES)
    yield FrameKind("for another's MAC", on(me, OTHER_MAC, 3), NO)
    yield FrameKind("from another's MAC", on(OTHER_MAC, me, 3), NO)
    yield FrameKind("reply", on(me, me, 4, MINE4), NO)
    yield FrameKind("ARP's request in it", on(me, me, 1, MINE4), NO)
    yield FrameKind("cut short", on(me, me, 3)[:30], NO)


GROUPS = {
    "MAC and other protocols": (_wrong_sources, _protocols),
    "VLAN tags, on a port without trunks": (_tags,),
    "to addresses that bridges keep to themselves": (_bridges,),
    "Ethernet types in SNAP": (_snap,),
    "ARP": (_arp,),
    "RARP, as QEMU announces a VM that has moved": (_rarp,),
}
