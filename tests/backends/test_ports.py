# SPDX-License-Identifier: Apache-2.0
"""What a bridge port lets through, whatever frames its guest and others send."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tapster
from lab import guests, iproute, library, shell
from lab.frames import ARP, BROADCAST, arp, ether
from lab.guests import GuestBridge
from tapster import Host, Tap

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

MINE, HOST, OTHER_MAC = "192.0.2.5", "192.0.2.200", "52:54:00:66:66:66"
LLDP = "01:80:c2:00:00:0e"


@pytest.fixture
def lab(ledger: Path) -> Iterator[GuestBridge]:
    with guests.lab(ledger) as lab:
        yield lab


def port(name: str) -> dict[str, Any]:
    """The properties of a bridge port, as `ip` shows them."""
    properties: dict[str, Any] = iproute.links()[name]["linkinfo"]["info_slave_data"]
    return properties


# Whose traffic a port gets


def test_a_frame_from_another_port_does_not_take_a_guests_traffic(
    lab: GuestBridge,
) -> None:
    victim = lab.guest(filter=True)
    attacker = lab.guest()
    attacker.send(ether(victim.mac, BROADCAST, 0x88B5, bytes(46)))
    frame = ether(lab.peer.mac, victim.mac, 0x88B5, b"for the victim".ljust(46))
    assert lab.arrive(lab.peer, [frame], victim) == [frame]


def test_a_filter_implies_that_the_bridge_learns_nothing(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True)
    assert (port(guest.lease.name)["learning"], port(guest.lease.name)["flood"]) == (
        False,
        False,
    )
    assert iproute.neighbours()[guest.lease.name] == {guest.mac}
    lab.host.set(guest.lease.id, filter=False)
    assert port(guest.lease.name)["learning"]
    assert guest.lease.name not in iproute.neighbours()


def test_a_static_entry_of_another_program_is_left_alone(lab: GuestBridge) -> None:
    shell.sh("ip link add other type veth peer name end")
    shell.sh("ip link set other master br0")
    entry = f"{OTHER_MAC} dev other master static"
    shell.sh(f"bridge fdb add {entry}")
    with pytest.raises(tapster.HostError, match="a static entry for it on other"):
        lab.host.acquire(Tap(bridge="br0", mac=OTHER_MAC, learning=False))
    assert len(lab.host.leases()) == 2
    shown = shell.sh("bridge fdb show dev other")
    assert f"{OTHER_MAC} master br0 static" in shown


def test_an_entry_that_the_bridge_has_learnt_gives_way(lab: GuestBridge) -> None:
    lab.peer.send(ether(OTHER_MAC, BROADCAST, 0x88B5, bytes(46)))
    lease = library.acquire(lab.host, Tap(bridge="br0", mac=OTHER_MAC, filter=True))
    assert iproute.neighbours()[lease.name] == {OTHER_MAC}


# The host


@pytest.mark.parametrize("to", [LLDP, BROADCAST])
def test_the_host_answers_no_guest_on_its_port(lab: GuestBridge, to: str) -> None:
    """Frames to LLDP's address reach the port's own IP stack."""
    shell.sh(f"ip address add {HOST}/24 dev br0")
    guest = lab.guest(filter=True, guard=False)
    guest.send(ether(guest.mac, to, ARP, arp(guest.mac, MINE, HOST)))
    known = {entry["dev"] for entry in json.loads(shell.sh("ip -j neighbour"))}
    assert guest.lease.name not in known
    assert ("br0" in known) is (to == BROADCAST)


def test_a_tap_without_bridge_is_for_routing(host: Host) -> None:
    lease = library.acquire(host, Tap())
    settings = Path(f"/proc/sys/net/ipv4/conf/{lease.name}")
    assert read(settings) == ("0", "0")
    host.set(lease.id, bridge="br0")
    assert read(settings) == ("1", "8")
    assert host.differences(lease) == {}
    (settings / "rp_filter").write_text("0")
    assert host.differences(host.find(lease.id)) == {
        "link": "IPv4 of the host is on, not off"
    }
    host.recover()
    assert read(settings) == ("1", "8")
    host.set(lease.id, bridge=None)
    assert read(settings) == ("0", "0")


def read(settings: Path) -> tuple[str, str]:
    rp_filter, arp_ignore = (
        (settings / name).read_text().strip() for name in ("rp_filter", "arp_ignore")
    )
    return rp_filter, arp_ignore


# Spanning tree


def test_a_port_is_guarded_against_spanning_tree(host: Host) -> None:
    lease = library.acquire(host, Tap(bridge="br0", root_guard=True, bpdu_guard=True))
    shown = port(lease.name)
    assert (shown["root_block"], shown["guard"]) == (True, True)
    shell.sh(f"bridge link set dev {lease.name} root_block off")
    assert host.differences(lease) == {"link": "root_guard is off, not on"}
    host.set(lease.id, bpdu_guard=False)
    shown = port(lease.name)
    assert (shown["root_block"], shown["guard"]) == (True, False)


# Frames a second


@pytest.mark.parametrize(("limit", "passing"), [(1, 2), (100, 110)])
def test_frames_beyond_the_limit_are_dropped(
    lab: GuestBridge, limit: int, passing: int
) -> None:
    guest = lab.guest(outbound_pps=limit)
    sent = [
        ether(guest.mac, BROADCAST, 0x88B5, number.to_bytes(46, "big"))
        for number in range(300)
    ]
    arrived = lab.arrive(guest, sent, lab.peer)
    assert limit // 10 <= len(arrived) <= passing + limit
    assert lab.host.differences(guest.lease) == {}
