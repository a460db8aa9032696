# SPDX-License-Identifier: Apache-2.0
"""A guest cannot have the host change its frames after the filter."""

import fcntl
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import tapster
from lab import frames, guests, shell
from lab.frames import ARP, BROADCAST, IPV4, IPV6, TCP, UDP, arp, ether, ipv4, ipv6, udp
from lab.guests import MARK, GuestBridge, Leased, checksum_request
from lab.veth import Receiver
from tapster import Action, Host
from tapster.backends.guard import MOST_SEGMENTS
from tapster.errors import KernelError
from tapster.kernel import linux
from tapster.kernel.port import LinkChange
from tests.backends.qemu_receiver import SHORTEST, QemuReceiver

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

MINE, VICTIM = "192.0.2.5", "192.0.2.6"
MINE6, VICTIM6 = "2001:db8::5", "2001:db8::6"
WIRING = {"filter": True, "addresses": (MINE, MINE6)}


@pytest.fixture
def lab(ledger: Path) -> Iterator[GuestBridge]:
    with guests.lab(ledger) as lab:
        yield lab


def tuned(frame: bytes, start: int, wanted: int) -> bytes:
    """Choose a frame's last two bytes so that its checksum from `start` is `wanted`."""
    assert (len(frame) - start) % 2 == 0
    words = struct.unpack(f"!{(len(frame) - start - 2) // 2}H", frame[start:-2])
    total = sum(words)
    last = (-wanted - total) % 0xFFFF  # in ones' complement
    return frame[:-2] + struct.pack("!H", last)


def written(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + struct.pack("!H", value) + frame[at + 2 :]


def attack(frame: bytes, at: int, value: int) -> tuple[bytes, bytes, bytes]:
    """A frame, the request that has two bytes of it changed, and what should arrive."""
    frame += bytes(len(frame) % 2 + 2)
    start = 20
    frame = tuned(frame, start, value)
    return frame, checksum_request(start, at - start), written(frame, at, value)


def attacks(me: str) -> dict[str, tuple[bytes, bytes, bytes]]:
    """Frames that the filter passes, and the forged frames that they become."""
    announce = ether(me, BROADCAST, ARP, arp(me, MINE, MINE))
    packet = ether(me, BROADCAST, IPV4, ipv4(MINE, VICTIM, udp(1067, 1068)))
    packet6 = ether(me, frames.ALL_NODES, IPV6, ipv6(MINE6, VICTIM6, udp(1, 2)))
    tcp = bytes(20)
    segment = ether(me, BROADCAST, IPV4, ipv4(MINE, VICTIM, tcp, protocol=TCP))
    body = icmpv6_of_no_meaning()
    icmp = ether(me, frames.ALL_NODES, IPV6, ipv6(MINE6, "ff02::1", body, protocol=58))
    return {
        "ARP, sender's address": attack(announce, 14 + 16, 0x0201),
        "ARP, sender's MAC": attack(announce, 14 + 8, 0x6666),
        "IPv4, source": attack(packet, 14 + 14, 0x0201),
        "IPv4, protocol": attack(segment, 14 + 8, 0x4011),
        "UDP, to a DHCP client": attack(packet, 14 + 22, 68),
        "UDP over IPv6, to a DHCPv6 client": attack(packet6, 14 + 42, 546),
        "IPv6, source": attack(packet6, 14 + 22, 0x0001),
        "ICMPv6, a router advertisement": attack(icmp, 14 + 40, 134 << 8),
        "TCP, a port": attack(segment, 14 + 20, 67),
        "another protocol": attack(
            ether(me, BROADCAST, 0x88B5, bytes(60)), 14 + 8, 0x0806
        ),
    }


def icmpv6_of_no_meaning() -> bytes:
    return struct.pack("!BBH", 212, 0, 0) + bytes(12)


def arrivals(lab: GuestBridge, receiver: Receiver | QemuReceiver) -> list[bytes]:
    lab.peer.send(MARK)
    return receiver.until(MARK)


def forged(
    lab: GuestBridge, guest: Leased, receiver: Receiver | QemuReceiver
) -> list[str]:
    """The attacks that succeed."""
    successes = []
    for name, (frame, request, becomes) in attacks(guest.mac).items():
        guest.send(frame, request)
        arrived = [frame.ljust(SHORTEST, b"\0") for frame in arrivals(lab, receiver)]
        if becomes.ljust(SHORTEST, b"\0") in arrived:
            successes.append(name)
    return successes


def test_no_checksum_request_changes_a_judged_frame(lab: GuestBridge) -> None:
    with Receiver("plain", offload=False) as receiver:
        assert forged(lab, lab.guest(**WIRING), receiver) == []


def test_without_the_guard_each_request_changes_a_judged_frame(
    lab: GuestBridge,
) -> None:
    """The filter alone sees the honest frame; so the test above can fail."""
    guest = lab.guest(**WIRING, guard=False)
    wanted = [name for name in attacks(guest.mac) if name != "another protocol"]
    with Receiver("plain", offload=False) as receiver:
        assert forged(lab, guest, receiver) == wanted


@pytest.mark.parametrize("card", ["rtl8139", "e1000"])
def test_a_vm_whose_card_has_no_offload(
    lab: GuestBridge, card: str, tmp_path: Path
) -> None:
    """QEMU leaves no checksum to such a card, so the kernel writes it."""
    unguarded, guarded = lab.guest(**WIRING, guard=False), lab.guest(**WIRING)
    wanted = [name for name in attacks(guarded.mac) if name != "another protocol"]
    with QemuReceiver(lab.host, card, tmp_path) as receiver:
        assert forged(lab, unguarded, receiver) == wanted
        assert forged(lab, guarded, receiver) == []


def test_a_tap_without_the_header_asks_for_nothing(lab: GuestBridge) -> None:
    opened = lab.host.acquire(
        tapster.Tap(bridge="br0", vnet_hdr=False, guard=False, **WIRING)  # type: ignore[arg-type]
    )
    frame, request, becomes = attacks(opened.mac)["ARP, sender's address"]
    guest = guests.Guest(opened.fds[0], opened.mac)
    with Receiver("plain", offload=False) as receiver:
        guest.send(frame, request)  # its first bytes are no MAC of the guest's
        guest.send(frame, b"")
        assert becomes not in (arrived := arrivals(lab, receiver))
        assert frame in arrived
    opened.close()


# Honest requests


class Honest(NamedTuple):
    """A frame whose checksum a guest leaves to the host."""

    frame: bytes
    transport: int
    """Where its TCP or UDP header begins."""
    place: int
    """Where the checksum is written."""
    payload: bool = False
    """The filter does not judge what follows the header."""


def honest(me: str) -> dict[str, Honest]:
    tcp, datagram = bytes(20) + b"hello!", udp(1000, 2000, b"hello!")
    inner = ether(me, BROADCAST, IPV4, ipv4("198.51.100.1", "198.51.100.2", tcp))
    bootp = bytes(28) + frames.mac(me) + bytes(210)
    tunnel = udp(3000, 4789, bytes(8) + inner)
    options = frames.hop_by_hop(TCP, tcp)
    discover = ipv4("0.0.0.0", "255.255.255.255", udp(68, 67, bootp))

    def on4(packet: bytes, place: int, **more: bool) -> Honest:
        return Honest(ether(me, BROADCAST, IPV4, packet), 34, 34 + place, **more)

    def on6(payload: bytes, protocol: int, before: int, place: int) -> Honest:
        packet = ipv6(MINE6, VICTIM6, payload, protocol=protocol)
        frame, start = ether(me, BROADCAST, IPV6, packet), 54 + before
        return Honest(frame, start, start + place, payload=protocol == UDP)

    return {
        "TCP": on4(ipv4(MINE, VICTIM, tcp, protocol=TCP), 16),
        "UDP": on4(ipv4(MINE, VICTIM, datagram), 6, payload=True),
        "DHCP": on4(discover, 6),
        "TCP in a tunnel": on4(ipv4(MINE, VICTIM, tunnel), 66, payload=True),
        "TCP over IPv6": on6(tcp, TCP, 0, 16),
        "TCP over IPv6 with options": on6(options, 0, 8, 16),
        "UDP over IPv6": on6(datagram, UDP, 0, 6),
    }


@pytest.mark.parametrize("offload", [True, False])
def test_honest_requests_pass(lab: GuestBridge, offload: bool) -> None:
    guest = lab.guest(**WIRING)
    with Receiver("far", offload=offload) as receiver:
        for name, (frame, start, place, _) in honest(guest.mac).items():
            guest.send(frame, checksum_request(start, place - start))
            (arrived,) = arrivals(lab, receiver)
            assert arrived[:place] == frame[:place], name
            assert arrived[place + 2 :] == frame[place + 2 :], name
            assert (arrived == frame) is offload, name


def test_no_checksum_request_for_another_place_passes(lab: GuestBridge) -> None:
    guest = lab.guest(**WIRING)
    with Receiver("far", offload=True) as receiver:
        for name, (frame, start, place, payload) in honest(guest.mac).items():
            allowed = {start + 6 if payload else place}
            if payload:
                allowed |= set(range(start + 8, len(frame) - 1))
            passing = set()
            for at in range(20, len(frame) - 1):
                guest.send(frame, checksum_request(20, at - 20))
                if arrivals(lab, receiver):
                    passing.add(at)
            assert passing == allowed, name


def test_a_frame_cut_short_is_dropped(lab: GuestBridge) -> None:
    guest = lab.guest(**WIRING)
    frame = honest(guest.mac)["TCP over IPv6 with options"][0]
    with Receiver("far", offload=True) as receiver:
        for length in range(24, 58):
            guest.send(frame[:length], checksum_request(20, 2))
        assert arrivals(lab, receiver) == []


# Frames that bridges keep to themselves


@pytest.mark.parametrize("last", range(16))
def test_no_frame_to_a_bridge_reaches_the_host(lab: GuestBridge, last: int) -> None:
    shell.sh("ip address add 192.0.2.200/24 dev br0")
    to = f"01:80:c2:00:00:{last:02x}"
    guest = lab.guest(filter=True)
    guest.send(ether(guest.mac, to, ARP, arp(guest.mac, MINE, "192.0.2.200")))
    guest.send(ether("52:54:00:66:66:66", to, 0x88CC, bytes(46)))
    known = json.loads(shell.sh("ip -j neighbour"))
    assert MINE not in {entry["dst"] for entry in known}
    learnt = json.loads(shell.sh("bridge -j fdb show br br0"))
    assert "52:54:00:66:66:66" not in {entry["mac"] for entry in learnt}


# What is in one frame with segmentation offload


VIRTIO_NET_HDR_GSO_UDP_L4 = 5
DATAGRAM = 300


def dhcp(client: str) -> bytes:
    """A request of a DHCP client, as far as the filter judges it."""
    return (bytes(28) + frames.mac(client)).ljust(DATAGRAM, b"\0")


def datagrams(guest: Leased, port: int) -> tuple[bytes, bytes]:
    """Two datagrams in one frame, the second one for another MAC; and the request."""
    both = dhcp(guest.mac) + dhcp("52:54:00:66:66:66")
    packet = ipv4("0.0.0.0", "255.255.255.255", udp(68, port, both))
    request = struct.pack("BBHHHH", 1, VIRTIO_NET_HDR_GSO_UDP_L4, 42, DATAGRAM, 34, 6)
    return ether(guest.mac, BROADCAST, IPV4, packet), request


@pytest.mark.parametrize(
    ("port", "guard", "number"),
    [
        pytest.param(67, True, 0, id="to a DHCP server"),
        pytest.param(67, False, 2, id="without the guard"),
        pytest.param(1067, True, 2, id="to another server"),
    ],
)
def test_no_dhcp_request_for_another_mac_comes_behind_an_honest_one(
    lab: GuestBridge, port: int, guard: bool, number: int
) -> None:
    """The filter judges the first datagram of a frame."""
    guest = lab.guest(filter=True, guard=guard)
    with Receiver("plain", offload=False) as receiver:
        guest.send(*datagrams(guest, port))
        assert len(arrivals(lab, receiver)) == number


# What goes on the wire


def lengths(lab: GuestBridge, receiver: Receiver, guest: Leased) -> list[int]:
    """Return the lengths of a guest's frames that arrive: the host sends some, too."""
    sender = frames.mac(guest.mac)
    arrived = arrivals(lab, receiver)
    return [len(frame) for frame in arrived if frame[6:12] == sender]


def large(me: str, payload: int) -> bytes:
    """A TCP segment that the host is to cut."""
    header = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 1000, 0, 0)
    return ether(
        me, BROADCAST, IPV4, ipv4(MINE, VICTIM, header + bytes(payload), protocol=TCP)
    )


def segmentation(size: int) -> bytes:
    """A virtio_net_hdr: cut this into segments of TCP over IPv4 of this size."""
    return struct.pack("BBHHHH", 1, VIRTIO_NET_HDR_GSO_TCPV4, 54, size, 34, 16)


VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_UDP = 1, 3


@pytest.mark.parametrize("size", [1, 8, 100, 1400])
def test_a_limit_counts_the_segments_of_a_large_frame(
    lab: GuestBridge, size: int
) -> None:
    guest = lab.guest(outbound=tapster.Rate(1))
    with Receiver("plain", offload=False) as receiver:
        for _ in range(200):
            guest.send(large(guest.mac, 5 * size), segmentation(size))
        arrived = lengths(lab, receiver, guest)
    assert len(arrived) >= 5
    # 80,000 bytes at once, and 1,000 a second for as long as the test takes.
    assert sum(arrived) <= 100_000
    assert len(arrived) % 5 == 0


TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454D0, 0x400454D8
TUN_F_UDP_TUNNEL_GSO = 0x80
VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 = 0x20
TUNNEL_HEADER = 24
"""Bytes of a struct virtio_net_hdr_v1_hash_tunnel."""


def in_tunnel(me: str, before: int, payload: int) -> tuple[bytes, bytes]:
    """A TCP segment in a tunnel, for the host to cut into bytes; and the request.

    The tunnel's own header has `before` bytes. The request says that the outer
    transport header is where it is.
    """
    segment = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 1000, 0, 0)
    inner = ipv4("198.51.100.1", "198.51.100.2", segment + bytes(payload), protocol=TCP)
    packet = ipv4(MINE, VICTIM, udp(3000, 4789, bytes(before) + inner))
    kind = VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4
    network = 42 + before
    request = struct.pack("<BBHHHHH", 1, kind, 0, 1, network + 20, 16, 0)
    request += struct.pack("<IHHHH", 0, 0, 0, 34, network)
    return ether(me, BROADCAST, IPV4, packet), request


@pytest.mark.parametrize("before", [0, 1000])
def test_a_limit_counts_the_segments_inside_a_tunnel(
    lab: GuestBridge, before: int
) -> None:
    """Each segment gets a copy of all headers, the tunnel's too."""
    guest = lab.guest(outbound=tapster.Rate(1, None, 1000))
    size = struct.pack("i", TUNNEL_HEADER)
    fcntl.ioctl(guest.fd, TUNSETVNETHDRSZ, size)
    try:
        fcntl.ioctl(guest.fd, TUNSETOFFLOAD, 0x07 | TUN_F_UDP_TUNNEL_GSO)
    except OSError:
        pytest.skip("taps of this kernel cut no frames inside a tunnel")
    frame, request = in_tunnel(guest.mac, before, 100)
    with Receiver("plain", offload=False) as receiver:
        for _ in range(200):
            guest.send(frame, request)
        arrived = lengths(lab, receiver, guest)
    assert len(arrived) >= 500
    # 1,024,000 bytes at once, and 1,000 a second for as long as the test takes.
    assert 900_000 <= sum(arrived) <= 1_050_000


@pytest.mark.parametrize("payload", [2, 12])
def test_a_limit_counts_the_segments_of_a_small_frame(
    lab: GuestBridge, payload: int
) -> None:
    """Its headers are much of it: the guard reads how long they are."""
    guest = lab.guest(outbound=tapster.Rate(1))
    with Receiver("plain", offload=False) as receiver:
        for _ in range(2000):
            guest.send(large(guest.mac, payload), segmentation(1))
        arrived = lengths(lab, receiver, guest)
    assert 75_000 <= sum(arrived) <= 100_000


@pytest.mark.parametrize(
    ("start", "offset"), [(20, 6), (34, 6), (-10, 6), (34, 16), (-40, 16)]
)
@pytest.mark.parametrize("wiring", [{}, {"filter": True}])
def test_a_limit_counts_the_fragments_of_a_datagram(
    lab: GuestBridge, wiring: dict[str, bool], start: int, offset: int
) -> None:
    """The kernel cuts it wherever the guest says that the checksum begins."""
    guest = lab.guest(outbound_pps=1, **wiring)
    packet = ipv4(MINE, VICTIM, udp(1000, 2000, bytes(3 * MOST_SEGMENTS * 8)))
    frame = ether(guest.mac, BROADCAST, IPV4, packet)
    start %= len(frame)
    request = struct.pack("BBHHHH", 1, VIRTIO_NET_HDR_GSO_UDP, 42, 8, start, offset)
    with Receiver("plain", offload=False) as receiver:
        guest.send(frame, request)
        assert lengths(lab, receiver, guest) == []


def test_frames_a_second_are_those_on_the_wire(lab: GuestBridge) -> None:
    guest = lab.guest(outbound_pps=1)
    with Receiver("plain", offload=False) as receiver:
        for _ in range(3):
            guest.send(large(guest.mac, 100 * 100), segmentation(100))
        assert len(lengths(lab, receiver, guest)) == 100


def test_a_limit_of_more_frames_than_a_program_counts(lab: GuestBridge) -> None:
    guest = lab.guest(outbound_pps=(1 << 32) - 1)
    assert lab.host.differences(guest.lease) == {}
    with Receiver("plain", offload=False) as receiver:
        guest.send(large(guest.mac, 100 * 100), segmentation(100))
        assert len(lengths(lab, receiver, guest)) == 100


def test_without_the_guard_a_large_frame_counts_once(lab: GuestBridge) -> None:
    """So the test above can fail."""
    guest = lab.guest(outbound_pps=20, guard=False)
    with Receiver("plain", offload=False) as receiver:
        for _ in range(2):
            guest.send(large(guest.mac, 100 * 100), segmentation(100))
        assert len(lengths(lab, receiver, guest)) == 200


def test_the_largest_frame_passes_at_any_rate(lab: GuestBridge) -> None:
    guest = lab.guest(outbound=tapster.Rate(1, 1), outbound_pps=1)
    with Receiver("plain", offload=False) as receiver:
        guest.send(large(guest.mac, 65_000), segmentation(536))
        assert len(lengths(lab, receiver, guest)) == 122


def test_a_limit_that_changes_is_another_guard(lab: GuestBridge) -> None:
    guest = lab.guest(outbound=tapster.Rate(1000))
    before = ingress(guest.lease.name)
    lab.host.set(guest.lease.id, outbound=tapster.Rate(2000))
    assert "tapster-guard" in ingress(guest.lease.name) != before
    assert lab.host.differences(lab.host.find(guest.lease.id)) == {}
    lab.host.set(guest.lease.id, outbound=None)
    assert ingress(guest.lease.name) == ""


# Its life


def ingress(name: str) -> str:
    return shell.sh(f"tc filter show dev {name} ingress")


def test_the_guard_is_there_before_the_port(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    set_links = linux.LinuxNamespace.set_links

    def look_first(namespace: linux.LinuxNamespace, changes: list[LinkChange]) -> None:
        if any(change.up or change.master for change in changes):
            seen.append("tapster-guard" in ingress("vnet2"))
        set_links(namespace, changes)

    monkeypatch.setattr(linux.LinuxNamespace, "set_links", look_first)
    lab.guest(filter=True)
    assert seen == [True]


def test_the_guard_comes_and_goes_with_the_filter(lab: GuestBridge) -> None:
    guest = lab.guest()
    name = guest.lease.name
    assert ingress(name) == ""
    for wanted in (True, False, True):
        lab.host.set(guest.lease.id, filter=wanted)
        assert ("tapster-guard" in ingress(name)) is wanted
    assert "clsact" in shell.sh(f"tc qdisc show dev {name}")
    lab.host.set(guest.lease.id, guard=False)
    assert "clsact" not in shell.sh(f"tc qdisc show dev {name}")


def test_filters_of_others_stay(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True)
    name = guest.lease.name
    shell.sh(
        f"tc filter add dev {name} egress pref 7 protocol all u32 match u32 0 0 "
        "action mirred egress mirror dev lo"
    )
    lab.host.set(guest.lease.id, filter=False)
    assert "pref 7" in shell.sh(f"tc filter show dev {name} egress")


EDITS = {
    "deleted": "tc filter del dev {} ingress",
    "without its qdisc": "tc qdisc del dev {} clsact",
    "replaced": "tc filter del dev {0} ingress && "
    "tc filter add dev {0} ingress pref 1 protocol ip u32 match u32 0 0",
}


@pytest.mark.parametrize("edit", ["deleted", "without its qdisc"])
def test_a_removed_guard_is_reported_and_restored(lab: GuestBridge, edit: str) -> None:
    guest = lab.guest(**WIRING)
    shell.sh(EDITS[edit].format(guest.lease.name))
    said = "the guard does not run before all other filters"
    assert lab.host.differences(guest.lease) == {"guard": said}
    assert Action.REWIRE in {action for _, action in lab.host.recover()}
    assert lab.host.differences(guest.lease) == {}
    with Receiver("plain", offload=False) as receiver:
        assert forged(lab, guest, receiver) == []


def test_a_filtered_port_is_refused_if_the_kernel_cannot_load_the_guard(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KernelError(22, "loading the guard of device 7")

    monkeypatch.setattr(linux.LinuxNamespace, "guard", refuse)
    with pytest.raises(tapster.HostError, match="--no-guard --no-vnet-hdr is safe"):
        lab.guest(filter=True)
    assert len(lab.host.leases()) == 2
    lab.guest(filter=True, guard=False)


def test_a_guard_alone_needs_a_bridge(host: Host) -> None:
    with pytest.raises(tapster.RequestError, match="guard works on a port of a Linux"):
        host.acquire(tapster.Tap(guard=False))
