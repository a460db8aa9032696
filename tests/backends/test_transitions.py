# SPDX-License-Identifier: Apache-2.0
"""While anything changes, no forbidden frame arrives: it is sent all the time."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import guests, nftables, shell
from lab.frames import BROADCAST, ether
from lab.guests import MARK, NO_OFFLOAD, Guest, GuestBridge, Leased
from tapster import Rate, Tap

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

MINE, OTHER = "192.0.2.5", "192.0.2.6"
ROUNDS = 8
FORGED = ether("52:54:00:66:66:66", BROADCAST, 0x88B5, b"forged".ljust(46))


@pytest.fixture
def lab(ledger: Path) -> Iterator[GuestBridge]:
    shell.sh("ip link add br1 address 02:00:00:00:00:02 type bridge mcast_snooping 0")
    shell.sh("ip link set br1 up addrgenmode none")
    with guests.lab(ledger) as lab:
        yield lab


@contextmanager
def sending(guest: Leased, frame: bytes) -> Iterator[list[int]]:
    """Send a frame all the time; count how often."""
    over = threading.Event()
    sent = [0]

    def send() -> None:
        while not over.is_set():
            try:
                os.write(guest.fd, NO_OFFLOAD + frame)
            except OSError:  # the device is down
                continue
            sent[0] += 1

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield sent
    finally:
        over.set()
        sender.join()


def listener(lab: GuestBridge, bridge: str, **wiring: Any) -> Leased:
    """A VM that gets all that is flooded on a bridge."""
    return lab.guest(**{"bridge": bridge, **wiring})


def heard(listener: Guest, frame: bytes) -> int:
    """How many of these frames a VM has received so far."""
    count = 0
    os.set_blocking(listener.fd, False)
    try:
        while True:
            count += os.read(listener.fd, 1 << 16).endswith(frame)
    except BlockingIOError:
        return count
    finally:
        os.set_blocking(listener.fd, True)


Change = Callable[[GuestBridge, Leased], object]


def _wiring(*changes: dict[str, Any]) -> Change:
    def change(lab: GuestBridge, guest: Leased) -> None:
        for each in changes:
            lab.host.set(guest.lease.id, **each)

    return change


def _others_come_and_go(lab: GuestBridge, _: Leased) -> None:
    with lab.host.acquire(Tap(bridge="br0", filter=True, outbound=Rate(1000))) as other:
        lab.host.set(other.lease.id, filter=False)
        lab.host.release(other.lease.id)
    lab.host.reap(now=True)


def _recover(lab: GuestBridge, guest: Leased) -> None:
    shell.sh(f"ip link set {guest.lease.name} nomaster")
    lab.host.recover()


def _others_reload_their_rules(_: GuestBridge, __: Leased) -> None:
    nftables.nft(
        "add table bridge firewall; delete table bridge firewall; "
        "add table bridge firewall; add chain bridge firewall prerouting "
        "{ type filter hook prerouting priority 0; policy accept; }"
    )


FILTERED: dict[str, Change] = {
    "addresses": _wiring({"addresses": (OTHER,)}, {"addresses": (MINE,)}),
    "isolation": _wiring({"isolated": True}, {"isolated": False}),
    "guards": _wiring({"root_guard": True}, {"root_guard": False}),
    "rates": _wiring({"outbound": Rate(10**6)}, {"outbound": None}),
    "another bridge": _wiring({"bridge": "br1"}, {"bridge": "br0"}),
    "bridge and isolation": _wiring(
        {"bridge": "br1", "isolated": True}, {"bridge": "br0", "isolated": False}
    ),
    "up and down": _wiring({"up": False}, {"up": True}),
    "others": _others_come_and_go,
    "recover": _recover,
    "rules of others": _others_reload_their_rules,
}


@pytest.mark.parametrize("change", FILTERED.values(), ids=FILTERED)
def test_no_forged_frame_arrives_while_a_filtered_port_changes(
    lab: GuestBridge, change: Change
) -> None:
    guest = lab.guest(filter=True, addresses=(MINE,))
    everywhere = [listener(lab, "br0"), listener(lab, "br1")]
    with sending(guest, FORGED) as sent:
        for _ in range(ROUNDS):
            change(lab, guest)
    assert sent[0] > ROUNDS
    assert [heard(each, FORGED) for each in everywhere] == [0, 0]


def test_no_forged_frame_reaches_the_bridge_where_a_port_is_filtered(
    lab: GuestBridge,
) -> None:
    """It is filtered on br0 and open on br1."""
    guest = lab.guest(filter=True)
    guarded, open_ = listener(lab, "br0"), listener(lab, "br1")
    with sending(guest, FORGED):
        for _ in range(ROUNDS):
            lab.host.set(guest.lease.id, filter=False, bridge="br1")
            lab.host.set(guest.lease.id, filter=True, bridge="br0")
    assert heard(guarded, FORGED) == 0
    assert heard(open_, FORGED) > 0


@pytest.mark.parametrize("change", ["set", "recover", "swap"])
def test_no_frame_gets_from_one_isolated_port_to_another(
    lab: GuestBridge, change: str
) -> None:
    guest = lab.guest(isolated=True)
    others = [
        listener(lab, "br0", isolated=True),
        listener(lab, "br1", isolated=True),
    ]
    with sending(guest, FORGED) as sent:
        for _ in range(ROUNDS):
            if change == "set":
                lab.host.set(guest.lease.id, bridge="br1")
                lab.host.set(guest.lease.id, bridge="br0")
            elif change == "swap":
                # Isolated or filtered, but never neither.
                lab.host.set(guest.lease.id, filter=True, isolated=False)
                lab.host.set(guest.lease.id, filter=False, isolated=True)
            else:
                _recover(lab, guest)
    assert sent[0] > ROUNDS
    assert [heard(each, FORGED) for each in others] == [0, 0]


def test_a_frame_that_is_sent_is_heard(lab: GuestBridge) -> None:
    """So the tests above can fail."""
    guest = lab.guest()
    other = listener(lab, "br0")
    with sending(guest, FORGED):
        assert other.receive() in (FORGED, MARK)
