# SPDX-License-Identifier: Apache-2.0
"""A filtered guest cannot lead a bridge that snoops multicast astray."""

import json
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from lab import frames, guests, shell
from lab.frame_kinds.ipv4 import SNOOPED
from lab.frames import IPV4, IPV6, ether, ipv4, ipv6
from lab.guests import GuestBridge

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

MINE, MINE6 = "192.0.2.5", "2001:db8::5"
FILTER = {"filter": True, "addresses": (MINE, MINE6)}
Reports = Callable[[str, range], Iterator[bytes]]
ROOM = 4096
"""The groups that a bridge has room for, unless it was made with another number."""


@pytest.fixture
def lab(ledger: Path) -> Iterator[GuestBridge]:
    with guests.lab(ledger) as lab:
        shell.sh("ip link set br0 type bridge mcast_snooping 1 mcast_querier 0")
        yield lab


def snoops() -> bool:
    (bridge,) = json.loads(shell.sh("ip -json -detail link show br0"))
    return bool(bridge["linkinfo"]["info_data"]["mcast_snooping"])


def group_mac(group: IPv4Address | IPv6Address) -> str:
    """Return the MAC to which frames for a group go (RFC 1112, RFC 2464)."""
    if group.version == 4:
        low = int(group) & 0x7FFFFF
        return (bytes.fromhex("01005e") + low.to_bytes(3)).hex(":")
    return (b"\x33\x33" + group.packed[-4:]).hex(":")


def router_ports() -> str:
    """Return the ports to which the bridge sends all multicast."""
    shown = shell.sh("bridge -details mdb show").splitlines()
    return "".join(line for line in shown if "router" in line)


@pytest.mark.parametrize("kind", SNOOPED)
@pytest.mark.parametrize("fragment", [0, 1, 0x2001])
def test_no_filtered_guest_becomes_a_multicast_router(
    lab: GuestBridge, kind: str, fragment: int
) -> None:
    protocol, to, message = SNOOPED[kind]
    packet = ipv4(MINE, to, message, protocol=protocol, fragment=fragment)
    guest, free = lab.guest(**FILTER), lab.guest()
    guest.send(ether(guest.mac, group_mac(IPv4Address(to)), IPV4, packet))
    assert router_ports() == ""
    free.send(ether(free.mac, group_mac(IPv4Address(to)), IPV4, packet))
    assert (free.lease.name in router_ports()) is (kind != "an IGMP report")


def igmp(me: str, groups: range) -> Iterator[bytes]:
    """Yield reports of IGMPv2, one for each group."""
    for number in groups:
        group = IPv4Address(0xEF000000 + number)
        message = frames.summed(struct.pack("!BBH", 0x16, 0, 0) + group.packed)
        packet = ipv4(MINE, str(group), message, protocol=2)
        yield ether(me, group_mac(group), IPV4, packet)


def igmpv3(me: str, groups: range) -> Iterator[bytes]:
    """Yield reports of IGMPv3, each with as many groups as possible."""
    for start in range(groups.start, groups.stop, 180):
        some = range(start, min(start + 180, groups.stop))
        message = struct.pack("!BBHHH", 0x22, 0, 0, 0, len(some))
        for number in some:
            message += struct.pack("!BBHI", 4, 0, 0, 0xEF000000 + number)
        packet = ipv4(MINE, "224.0.0.22", frames.summed(message), protocol=2)
        yield ether(me, "01:00:5e:00:00:16", IPV4, packet)


def mldv2(me: str, groups: range) -> Iterator[bytes]:
    """Yield reports of MLDv2, each with as many groups as possible."""
    for start in range(groups.start, groups.stop, 70):
        some = range(start, min(start + 70, groups.stop))
        body = struct.pack("!HH", 0, len(some))
        for number in some:
            group = int(IPv6Address("ff0e::")) + number
            body += struct.pack("!BBH", 4, 0, 0) + group.to_bytes(16)
        report = frames.icmpv6("::", "ff02::16", 143, body)
        yield ether(me, "33:33:00:00:00:16", IPV6, routed6("::", "ff02::16", report))


def mldv1(me: str, groups: range) -> Iterator[bytes]:
    """Yield reports of MLDv1, one for each group."""
    for number in groups:
        group = IPv6Address(int(IPv6Address("ff0e::")) + number)
        report = frames.icmpv6("::", str(group), 131, bytes(4) + group.packed)
        yield ether(me, group_mac(group), IPV6, routed6("::", str(group), report))


def routed6(source: str, to: str, report: bytes) -> bytes:
    """Put a report behind the option for routers that a bridge expects."""
    options = bytes([frames.ICMPV6, 0, 5, 2, 0, 0, 1, 0])
    packet = bytearray(ipv6(source, to, options + report, protocol=0))
    packet[7] = 1  # the hop limit
    return bytes(packet)


@pytest.mark.parametrize("reports", [igmp, igmpv3, mldv1, mldv2])
def test_no_filtered_guest_uses_up_the_groups_of_its_bridge(
    lab: GuestBridge, reports: Reports
) -> None:
    """The bridge would stop to snoop, and send all multicast to every VM."""
    guest = lab.guest(**FILTER)
    for frame in reports(guest.mac, range(1, ROOM + 2)):
        guest.send(frame)
    assert snoops()
    free = lab.guest()
    for frame in reports(free.mac, range(1, ROOM + 2)):
        free.send(frame)
    assert not snoops()


@pytest.mark.parametrize(("reports", "most"), [(igmpv3, 180), (mldv2, 190)])
def test_a_filtered_guest_can_be_in_many_groups(
    lab: GuestBridge, reports: Reports, most: int
) -> None:
    guest = lab.guest(**FILTER)
    for frame in reports(guest.mac, range(1, most + 1)):
        guest.send(frame)
    groups = shell.sh("bridge mdb show dev br0").splitlines()
    assert len([group for group in groups if guest.lease.name in group]) == most
