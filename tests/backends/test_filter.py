# SPDX-License-Identifier: Apache-2.0
"""What a guest whose port is filtered can send, tried with real frames."""

import json
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import NamedTuple

import pytest

from lab import frames, guests, shell
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
    hop_by_hop,
    icmpv6,
    ipv4,
    ipv6,
    llc,
    option,
    tagged,
    udp,
)
from lab.guests import GuestBridge, Leased
from tapster.backends import filter
from tapster.backends.table import TableBackend

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

MINE4, OTHER4, ROUTER4 = "192.0.2.5", "192.0.2.6", "192.0.2.1"
MINE6, OTHER6 = "2001:db8::5", "2001:db8::6"
ROUTER6, STRANGE6 = "fe80::1", "fe80::6"
OTHER_MAC = "52:54:00:66:66:66"
ADDRESSES = (MINE4, MINE6)


@pytest.fixture
def lab(ledger: Path) -> Iterator[GuestBridge]:
    with guests.lab(ledger) as lab:
        yield lab


class Case(NamedTuple):
    """A frame, and whether it passes."""

    frame: bytes
    from_mac: bool
    """With nothing but the MAC given."""
    from_addresses: bool
    """With addresses given too."""


def link_local(mac: str) -> str:
    raw = frames.mac(mac)
    interface = bytes([raw[0] ^ 2, *raw[1:3], 0xFF, 0xFE, *raw[3:]])
    return str(IPv6Address(bytes.fromhex("fe80000000000000") + interface))


def cases(me: str) -> dict[str, Case]:
    """Frames of a guest with this MAC, honest and forged."""
    yes, no, own = (True, True), (False, False), (True, False)
    local = link_local(me)

    def on4(source: str, to: str, payload: bytes, **more: int) -> bytes:
        return ether(me, BROADCAST, IPV4, ipv4(source, to, payload, **more))

    def on6(source: str, to: str, payload: bytes, protocol: int = 17) -> bytes:
        return ether(me, ALL_NODES, IPV6, ipv6(source, to, payload, protocol=protocol))

    def icmp(source: str, to: str, kind: int, body: bytes) -> bytes:
        return on6(source, to, icmpv6(source, to, kind, body), ICMPV6)

    def solicit(source: str, target: str, *options: bytes) -> bytes:
        body = frames.solicitation(target, options)
        return icmp(source, "ff02::1:ff00:5", 135, body)

    def advertise(source: str, target: str, *options: bytes) -> bytes:
        return icmp(source, "ff02::1", 136, frames.advertisement(target, options))

    mac, other = frames.mac(me), frames.mac(OTHER_MAC)
    mine, forged, nonce = option(2, mac), option(2, other), option(14, b"nonce!")
    advert = icmpv6(local, "ff02::1", 134, bytes(12))
    request = arp(me, MINE4, ROUTER4)
    rarp = arp(me, "0.0.0.0", "0.0.0.0", target=me, operation=3)
    return {
        # MAC, VLAN tags, other protocols
        "another MAC": Case(ether(OTHER_MAC, BROADCAST, ARP, request), *no),
        "VLAN tag": Case(tagged(ether(me, BROADCAST, ARP, request), 7), *no),
        "802.1ad tag": Case(
            tagged(ether(me, BROADCAST, ARP, request), 7, frames.QINQ), *no
        ),
        "priority tag": Case(tagged(ether(me, BROADCAST, ARP, request), 0), *no),
        "PPPoE": Case(ether(me, BROADCAST, 0x8863, bytes(46)), *own),
        "LLC": Case(llc(me, BROADCAST, b"\xaa\xaa\x03" + bytes(43)), *own),
        "spanning tree": Case(
            llc(me, "01:80:c2:00:00:00", b"\x42\x42\x03" + bytes(35)), *no
        ),
        # ARP
        "ARP request": Case(ether(me, BROADCAST, ARP, request), *yes),
        "ARP reply": Case(
            ether(me, BROADCAST, ARP, arp(me, MINE4, OTHER4, operation=2)), *yes
        ),
        "ARP probe": Case(ether(me, BROADCAST, ARP, arp(me, "0.0.0.0", MINE4)), *yes),
        "ARP probe of another's": Case(
            ether(me, BROADCAST, ARP, arp(me, "0.0.0.0", OTHER4)), *own
        ),
        "ARP for another's address": Case(
            ether(me, BROADCAST, ARP, arp(me, OTHER4, OTHER4)), *own
        ),
        "ARP for another's MAC": Case(
            ether(me, BROADCAST, ARP, arp(OTHER_MAC, MINE4, ROUTER4)), *no
        ),
        "ARP of other hardware": Case(
            ether(me, BROADCAST, ARP, arp(me, MINE4, ROUTER4, hardware=6)), *no
        ),
        "ARP cut short": Case(ether(me, BROADCAST, ARP, request[:20]), *no),
        "RARP as QEMU announces": Case(ether(me, BROADCAST, RARP, rarp), *yes),
        "RARP for another's MAC": Case(
            ether(
                me,
                BROADCAST,
                RARP,
                arp(me, "0.0.0.0", "0.0.0.0", target=OTHER_MAC, operation=3),
            ),
            *no,
        ),
        "RARP from another's MAC": Case(
            ether(
                me,
                BROADCAST,
                RARP,
                arp(OTHER_MAC, "0.0.0.0", "0.0.0.0", target=me, operation=3),
            ),
            *no,
        ),
        "RARP cut short": Case(ether(me, BROADCAST, RARP, rarp[:10]), *no),
        "RARP reply": Case(
            ether(me, BROADCAST, RARP, arp(me, MINE4, MINE4, target=me, operation=4)),
            *no,
        ),
        # IPv4
        "IPv4": Case(on4(MINE4, OTHER4, udp(5000, 53)), *yes),
        "IPv4 from another's": Case(on4(OTHER4, MINE4, udp(5000, 53)), *own),
        "IPv4 from nowhere": Case(on4("0.0.0.0", MINE4, udp(5000, 53)), *own),
        "IGMP": Case(on4(MINE4, "224.0.0.22", bytes(8), protocol=2), *yes),
        "DHCP discover": Case(on4("0.0.0.0", "255.255.255.255", udp(68, 67)), *yes),
        "DHCP renewal": Case(on4(MINE4, ROUTER4, udp(68, 67)), *yes),
        "DHCP offer": Case(on4(MINE4, "255.255.255.255", udp(67, 68)), *no),
        "DHCP offer to a relay": Case(on4(MINE4, ROUTER4, udp(67, 67)), *no),
        "TCP with these ports": Case(
            on4(MINE4, OTHER4, udp(67, 68), protocol=TCP), *yes
        ),
        "DHCP offer from another port": Case(
            on4(MINE4, "255.255.255.255", udp(6700, 68)), *no
        ),
        "DHCP offer, its first fragment": Case(
            on4(MINE4, "255.255.255.255", udp(67, 68), fragment=0x2000), *no
        ),
        "fragment that looks like a DHCP offer": Case(
            on4(MINE4, OTHER4, b"\0\x43\0\x44" + bytes(12), fragment=8), *yes
        ),
        "IPv4 cut short": Case(on4(MINE4, OTHER4, udp(67, 68), missing=9), *no),
        "IPv4 of another version": Case(
            ether(me, BROADCAST, IPV4, b"\x65" + ipv4(MINE4, OTHER4, udp(5, 5))[1:]),
            *no,
        ),
        # IPv6
        "IPv6": Case(on6(MINE6, OTHER6, udp(5000, 53)), *yes),
        "IPv6 link-local": Case(on6(local, ROUTER6, udp(5000, 53)), *yes),
        "IPv6 from another's": Case(on6(OTHER6, MINE6, udp(5000, 53)), *own),
        "IPv6 from another link-local": Case(
            on6(STRANGE6, ROUTER6, udp(5000, 53)), *own
        ),
        "IPv6 from nowhere": Case(on6("::", OTHER6, udp(5000, 53)), *own),
        "IPv6 cut short": Case(
            ether(me, ALL_NODES, IPV6, ipv6(MINE6, OTHER6, udp(547, 546))[:50]), *no
        ),
        "DHCPv6 solicit": Case(on6(local, "ff02::1:2", udp(546, 547)), *yes),
        "DHCPv6 advertise": Case(on6(local, STRANGE6, udp(547, 546)), *no),
        "DHCPv6 advertise to a relay": Case(on6(local, STRANGE6, udp(547, 547)), *no),
        "TCP over IPv6 with these ports": Case(
            on6(MINE6, OTHER6, udp(547, 546), TCP), *yes
        ),
        # Where there are no ports, the kernel takes a part of this header for them.
        "fragment that looks like a DHCPv6 advertise": Case(
            ether(
                me,
                ALL_NODES,
                IPV6,
                ipv6(
                    MINE6,
                    OTHER6,
                    fragment(UDP, udp(547, 546), offset=64, more=False),
                    protocol=FRAGMENT,
                    flow=546,
                ),
            ),
            *yes,
        ),
        "DHCPv6 advertise from another port": Case(
            on6(local, STRANGE6, udp(5470, 546)), *no
        ),
        "multicast report": Case(
            on6(
                "::",
                "ff02::16",
                hop_by_hop(ICMPV6, icmpv6("::", "ff02::16", 143, bytes(4))),
                HOP_BY_HOP,
            ),
            *yes,
        ),
        "ping": Case(icmp(MINE6, OTHER6, 128, bytes(4)), *yes),
        "ping from nowhere": Case(icmp("::", OTHER6, 128, bytes(4)), *own),
        # Neighbour discovery
        "router solicitation": Case(
            icmp(local, "ff02::2", 133, bytes(4) + option(1, mac)), *yes
        ),
        "router solicitation from nowhere": Case(
            icmp("::", "ff02::2", 133, bytes(4)), *yes
        ),
        "router solicitation for another's MAC": Case(
            icmp(local, "ff02::2", 133, bytes(4) + option(1, other)), *no
        ),
        "router solicitation, another's MAC second": Case(
            icmp(local, "ff02::2", 133, bytes(4) + nonce + option(1, other)), *no
        ),
        "router advertisement": Case(on6(local, "ff02::1", advert, ICMPV6), *no),
        "router advertisement after a header": Case(
            on6(local, "ff02::1", hop_by_hop(ICMPV6, advert), HOP_BY_HOP), *no
        ),
        "router advertisement in fragments": Case(
            on6(local, "ff02::1", fragment(ICMPV6, advert, more=True), FRAGMENT), *no
        ),
        "router advertisement behind a fragment": Case(
            on6(
                local,
                "ff02::1",
                fragment(HOP_BY_HOP, b"\x3a\0\5\2\0\0\1\0", more=True),
                FRAGMENT,
            ),
            *no,
        ),
        "redirect": Case(icmp(local, MINE6, 137, bytes(36)), *no),
        "neighbour solicitation": Case(solicit(MINE6, OTHER6, option(1, mac)), *yes),
        "is my address free?": Case(solicit("::", MINE6), *yes),
        "is my address free? with a nonce": Case(solicit("::", MINE6, nonce), *yes),
        "is another's address free?": Case(solicit("::", OTHER6), *own),
        "neighbour solicitation from another's": Case(
            solicit(OTHER6, MINE6, option(1, mac)), *own
        ),
        "neighbour solicitation for another's MAC": Case(
            solicit(MINE6, OTHER6, option(1, other)), *no
        ),
        "neighbour solicitation, another's MAC second": Case(
            solicit(MINE6, OTHER6, nonce, option(1, other)), *no
        ),
        "neighbour solicitation in fragments": Case(
            on6(
                MINE6,
                "ff02::1",
                fragment(
                    ICMPV6,
                    icmpv6(MINE6, "ff02::1", 135, frames.solicitation(OTHER6)),
                    more=True,
                ),
                FRAGMENT,
            ),
            *no,
        ),
        "neighbour advertisement": Case(advertise(MINE6, MINE6, mine), *yes),
        "neighbour advertisement, short": Case(advertise(local, MINE6), *yes),
        "advertisement of another's address": Case(
            advertise(MINE6, OTHER6, mine), *own
        ),
        "advertisement of another's MAC": Case(advertise(MINE6, MINE6, forged), *no),
        "advertisement, another's MAC second": Case(
            advertise(MINE6, MINE6, mine, forged), *no
        ),
        "advertisement, another's MAC after a nonce": Case(
            advertise(MINE6, MINE6, nonce, forged), *no
        ),
    }


def verdicts(lab: GuestBridge, guest: Leased) -> dict[str, bool]:
    return {
        name: lab.passes(guest, case.frame) for name, case in cases(guest.mac).items()
    }


def test_only_its_mac(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True)
    expected = {name: case.from_mac for name, case in cases(guest.mac).items()}
    assert verdicts(lab, guest) == expected


def test_only_its_addresses(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True, addresses=ADDRESSES)
    expected = {name: case.from_addresses for name, case in cases(guest.mac).items()}
    assert verdicts(lab, guest) == expected


def test_without_the_filter_each_of_these_frames_passes(lab: GuestBridge) -> None:
    stopped = [
        name for name, passed in verdicts(lab, lab.guest()).items() if not passed
    ]
    assert stopped == []


def test_all_of_them_get_to_a_guest_that_is_filtered(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True, addresses=ADDRESSES)
    sent = [case.frame for case in cases(lab.peer.mac).values()]
    assert lab.arrive(lab.peer, sent, guest) == sent


def learnt(lab: GuestBridge, guest: Leased, to: str) -> bool:
    """Whether the bridge believes the source of a frame that a guest has forged."""
    forged = f"52:54:01:{guest.mac[9:]}"
    guest.send(ether(forged, to, 0x88CC, bytes(46)))
    known = json.loads(shell.sh("bridge -j fdb show br br0"))
    return forged in {entry["mac"] for entry in known}


EAPOL, LLDP = "01:80:c2:00:00:03", "01:80:c2:00:00:0e"
"""Addresses whose frames a bridge keeps to itself."""


@pytest.mark.parametrize("to", [BROADCAST, EAPOL])
def test_the_bridge_does_not_learn_from_what_is_dropped(
    lab: GuestBridge, to: str
) -> None:
    assert not learnt(lab, lab.guest(filter=True), to)
    assert learnt(lab, lab.guest(), to)


def test_from_lldp_the_bridge_learns_unless_it_is_told_not_to(lab: GuestBridge) -> None:
    """The kernel asks no hook of nftables about these."""
    assert learnt(lab, lab.guest(filter=True, guard=False), LLDP)
    assert not learnt(lab, lab.guest(filter=True), LLDP)
    assert not learnt(lab, lab.guest(filter=True, guard=False, learning=False), LLDP)
    shell.sh("ip link set br0 type bridge no_linklocal_learn 1")
    assert not learnt(lab, lab.guest(filter=True, guard=False), LLDP)


def test_tags_pass_on_a_trunk_with_the_same_care_for_what_is_in_them(
    lab: GuestBridge,
) -> None:
    guest = lab.guest(filter=True, addresses=ADDRESSES)
    # This bridge need not tell VLANs apart: the filter is asked for by itself.
    trunk = guest.lease._replace(wiring=guest.lease.wiring._replace(trunks=(7,)))
    context = lab.host.operations.context
    TableBackend(context.ledger.id, filter.PURPOSE).attach(context.namespace, trunk)
    untagged = cases(guest.mac)
    outcome = {
        name: lab.passes(guest, tagged(case.frame, 7))
        for name, case in untagged.items()
        if name not in ("LLC", "spanning tree")
    }
    wrong = [
        name
        for name, passed in outcome.items()
        if passed != (untagged[name].from_addresses and "tag" not in name)
    ]
    assert wrong == []
    assert verdicts(lab, guest) == {
        name: case.from_addresses or name in ("VLAN tag", "802.1ad tag", "priority tag")
        for name, case in untagged.items()
    }


def test_a_tag_within_a_tag_passes_nowhere(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True)
    trunk = guest.lease._replace(wiring=guest.lease.wiring._replace(trunks=(7,)))
    context = lab.host.operations.context
    TableBackend(context.ledger.id, filter.PURPOSE).attach(context.namespace, trunk)
    once = tagged(ether(guest.mac, BROADCAST, 0x88B5, bytes(46)), 7)
    assert lab.passes(guest, once)
    for kind in (frames.VLAN, frames.QINQ):
        assert not lab.passes(guest, tagged(once, 7, kind))
        assert lab.passes(lab.guest(), tagged(once, 7, kind))


def test_more_addresses_of_each_kind(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True, addresses=(MINE4, OTHER4, MINE6, STRANGE6))
    passes = [name for name, passed in verdicts(lab, guest).items() if passed]
    assert {"IPv4", "IPv4 from another's", "ARP for another's address"} <= set(passes)
    assert {"IPv6", "IPv6 link-local", "IPv6 from another link-local"} <= set(passes)
    assert "IPv6 from another's" not in passes


@pytest.mark.parametrize("only", [MINE4, MINE6])
def test_addresses_of_one_kind_leave_none_of_the_other(
    lab: GuestBridge, only: str
) -> None:
    guest = lab.guest(filter=True, addresses=(only,))
    outcome = verdicts(lab, guest)
    assert (outcome["IPv4"], outcome["ARP request"]) == (only == MINE4, only == MINE4)
    assert outcome["IPv6"] == outcome["IPv6 link-local"] == (only == MINE6)
    assert outcome["neighbour advertisement"] == (only == MINE6)
