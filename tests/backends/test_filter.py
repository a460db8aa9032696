# SPDX-License-Identifier: Apache-2.0
"""What a filter is for: the bridge's memory, trunks, and several addresses.

Which frames pass is in test_kinds.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapster
from lab import frames, guests, shell
from lab.frame_kinds import frame_kinds
from lab.frame_kinds.kind import ADDRESSES, MINE4, MINE6, OTHER4, STRANGE6, FrameKind
from lab.frames import BROADCAST, ether, tagged
from lab.guests import GuestBridge, Leased
from tapster import Tap
from tapster.backends import filter
from tapster.backends.table import TableBackend

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture
def lab(ledger: Path) -> Iterator[GuestBridge]:
    with guests.lab(ledger) as lab:
        yield lab


def cases(me: str) -> dict[str, FrameKind]:
    """The kinds of frames whose bytes do not change on their way."""
    return {
        f"{kind.group}: {kind.name}": kind
        for kind in frame_kinds(me)
        if not any(kind.request)
    }


def verdicts(lab: GuestBridge, guest: Leased) -> dict[str, bool]:
    return {
        name: lab.passes(guest, kind.frame) for name, kind in cases(guest.mac).items()
    }


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


def test_from_lldp_the_bridge_learns_only_behind_a_port_without_filter(
    lab: GuestBridge,
) -> None:
    """The kernel asks no hook of nftables about these frames."""
    assert learnt(lab, lab.guest(), LLDP)
    assert not learnt(lab, lab.guest(filter=True), LLDP)
    assert not learnt(lab, lab.guest(filter=True, guard=False), LLDP)


def test_tags_pass_on_a_trunk_with_the_same_care_for_what_is_in_them(
    lab: GuestBridge,
) -> None:
    guest = lab.guest(filter=True, addresses=ADDRESSES)
    # This bridge need not tell VLANs apart: the filter is asked for by itself.
    trunk = guest.lease._replace(wiring=guest.lease.wiring._replace(trunks=(7,)))
    context = lab.host.operations.context
    TableBackend(context.ledger.id, filter.PURPOSE).attach(context.namespace, trunk)
    wrong = [
        name
        for name, kind in cases(guest.mac).items()
        if kind.bridged
        and len(kind.frame) >= 18
        and not name.startswith(("VLAN", "to addresses"))
        and lab.passes(guest, tagged(kind.frame, 7)) != kind.passes[True]
    ]
    assert wrong == []


def test_a_tag_within_a_tag_passes_nowhere(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True)
    trunk = guest.lease._replace(wiring=guest.lease.wiring._replace(trunks=(7,)))
    context = lab.host.operations.context
    TableBackend(context.ledger.id, filter.PURPOSE).attach(context.namespace, trunk)
    once = tagged(ether(guest.mac, BROADCAST, 0x88B5, bytes(46)), 7)
    assert lab.passes(guest, once)
    for kind in (frames.VLAN, frames.QINQ, 0x9100):
        assert not lab.passes(guest, tagged(once, 7, kind))
        assert lab.passes(lab.guest(), tagged(once, 7, kind))


def test_more_addresses_of_each_kind(lab: GuestBridge) -> None:
    guest = lab.guest(filter=True, addresses=(MINE4, OTHER4, MINE6, STRANGE6))
    outcome = verdicts(lab, guest)
    for name in (
        "IPv4: UDP from its address",
        "IPv4: UDP from another's",
        "ARP: request from another's address",
        "IPv6: UDP from its address",
        "IPv6: UDP from its link-local address",
        "IPv6: UDP from another link-local address",
    ):
        assert outcome[name], name
    assert not outcome["IPv6: UDP from another's"]


def test_a_network_admits_its_addresses_and_no_others(lab: GuestBridge) -> None:
    networks = ("192.0.2.0/29", "192.0.2.4/30", "2001:db8::/64", "198.51.100.9/32")
    guest = lab.guest(filter=True, addresses=networks)
    outcome = verdicts(lab, guest)
    for name in (
        "IPv4: UDP from its address",
        "IPv4: UDP from another's",
        "ARP: request from another's address",
        "ARP: request, probe of another's",
        "IPv6: UDP from another's",
        "IPv6: UDP from its link-local address",
        "neighbour discovery: advertisement of another's address",
        "neighbour discovery: is another's address free?",
    ):
        assert outcome[name], name
    for name in (
        "IPv4: UDP from a link-local address",
        "IPv6: UDP from another link-local address",
        "neighbour discovery: advertisement of the router's address",
    ):
        assert not outcome[name], name
    assert lab.host.differences(guest.lease) == {}
    lab.host.set(guest.lease.id, addresses=("2001:db8::/48",))
    assert not lab.passes(guest, cases(guest.mac)["IPv4: UDP from another's"].frame)
    assert lab.host.differences(lab.host.find(guest.lease.id)) == {}
    lab.host.release(guest.lease.id)
    assert guest.lease.id not in shell.sh("nft list ruleset")


@pytest.mark.parametrize("only", [MINE4, MINE6])
def test_addresses_of_one_kind_leave_none_of_the_other(
    lab: GuestBridge, only: str
) -> None:
    guest = lab.guest(filter=True, addresses=(only,))
    outcome = verdicts(lab, guest)
    for name in ("IPv4: UDP from its address", "ARP: request from its address"):
        assert outcome[name] is (only == MINE4), name
    for name in (
        "IPv6: UDP from its address",
        "IPv6: UDP from its link-local address",
        "neighbour discovery: advertisement, short",
    ):
        assert outcome[name] is (only == MINE6), name


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "fe80::1%br0"],
)
def test_an_address_that_no_guest_can_have_is_refused(
    lab: GuestBridge, address: str
) -> None:
    with pytest.raises(tapster.RequestError, match=address):
        lab.host.acquire(Tap(bridge="br0", filter=True, addresses=(address,)))
