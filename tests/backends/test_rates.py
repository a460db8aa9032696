# SPDX-License-Identifier: Apache-2.0
"""Rates, tried with more frames than they allow; tc and nft show the rules."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tapster
from lab import guests, iproute, library, nftables, shell
from lab.frames import BROADCAST, ether
from lab.guests import GuestBridge
from tapster import Host, Rate, Tap
from tapster.backends import htb
from tapster.backends.inbound import Inbound
from tapster.kernel.port import LinkChange

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

SIZE = 1000
"""Bytes of a frame without its Ethernet header: what nftables counts."""


@pytest.fixture
def lab(ledger: Path) -> Iterator[GuestBridge]:
    with guests.lab(ledger) as lab:
        yield lab


def many(mac: str, count: int) -> list[bytes]:
    """Frames, each another."""
    return [
        ether(mac, BROADCAST, 0x88B5, number.to_bytes(SIZE, "big"))
        for number in range(count)
    ]


def limits(lab: GuestBridge) -> list[Any]:
    """The elements of nftables that limit anything."""
    ledger = lab.host.operations.context.ledger
    found = nftables.elements(f"tapster_{ledger.id}_outbound")
    return [*found.get("average", ()), *found.get("peak", ())]


def root(device: str) -> dict[str, Any]:
    """What tc shows at the root of a device."""
    found = json.loads(shell.sh(f"tc -s -j qdisc show dev {device}"))
    return next((one for one in found if one.get("root")), {})


def shaped(device: str) -> str:
    """What tc shows of the class of a device."""
    return shell.sh(f"tc class show dev {device}").strip()


def in_bytes(element: dict[str, Any]) -> tuple[int, int]:
    """The rate and the burst of an element of nftables."""
    limit = element["elem"]["limit"]
    assert (limit["per"], limit["inv"]) == ("second", True)
    units = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20}
    rate, burst = (
        limit[one] * units[limit[f"{one}_unit"]] for one in ("rate", "burst")
    )
    return rate, burst


# What libvirt's numbers become


def test_the_rates_of_libvirts_example(lab: GuestBridge) -> None:
    inbound, outbound = Rate(1000, 5000, 1024), Rate(128, 256, 256)
    lease = lab.guest(inbound=inbound, outbound=outbound).lease
    assert root(lease.name)["options"]["default"] == "0x1"
    figures = "rate 8Mbit ceil 40Mbit burst 1Mb cburst 6600b"
    assert shaped(lease.name) == f"class htb 1:1 root prio 0 {figures}"
    average, peak = limits(lab)
    assert average["elem"]["val"] == peak["elem"]["val"] == lease.name
    # nftables adds one second of the rate to the burst: together 256 KiB.
    assert in_bytes(average) == (128_000, 256 * 1024 - 128_000)
    assert in_bytes(peak) == (256_000, 1)
    assert lab.host.differences(lease) == {}


@pytest.mark.parametrize(
    ("rate", "passing"),
    [
        (Rate(1), 65),  # as much as the largest frame
        (Rate(1, burst=200), 201),
        (Rate(1, 2, 200), 65),
        (Rate(150), 151),
        (Rate(10**7), 300),
    ],
)
def test_frames_from_a_guest_are_dropped_beyond_its_burst(
    lab: GuestBridge, rate: Rate, passing: int
) -> None:
    guest = lab.guest(outbound=rate)
    arrived = lab.arrive(guest, many(guest.mac, 300), lab.peer)
    # More can only be what the rate allows during the test.
    assert passing <= len(arrived) <= passing + 10 * max(rate.average // SIZE, 1)
    assert arrived == many(guest.mac, len(arrived)) or rate.average > 1


@pytest.mark.parametrize(
    ("rate", "passing"),
    [(Rate(1), 2), (Rate(1, 10**6, 20), 21), (Rate(1, burst=20), 2)],
)
def test_frames_to_a_guest_are_held_back_beyond_its_burst(
    lab: GuestBridge, rate: Rate, passing: int
) -> None:
    """And a burst is what goes at the peak rate: without one it means nothing."""
    guest = lab.guest(inbound=rate)
    sent = many(lab.peer.mac, 100)
    for frame in sent:
        lab.peer.send(frame)
    passed = 100 - int(root(guest.lease.name)["qlen"])
    # More can only be what the rate allows during the test: one in a second. One less
    # may come if a frame of the bridge's own was the first.
    assert passing - 1 <= passed <= passing + 30
    received = [guest.receive(lab.peer.mac) for _ in range(passed)]
    assert received == sent[:passed]


def test_each_direction_is_left_alone_by_the_other(lab: GuestBridge) -> None:
    sender, receiver = lab.guest(outbound=Rate(1)), lab.guest(inbound=Rate(1))
    from_receiver = many(receiver.mac, 200)
    assert lab.arrive(receiver, from_receiver, sender) == from_receiver


def test_a_rate_beyond_32_bits(lab: GuestBridge) -> None:
    lease = lab.guest(
        inbound=Rate(5_000_000, 10_000_000), outbound=Rate(12_500_000)
    ).lease
    assert "rate 40Gbit ceil 80Gbit" in shaped(lease.name)
    assert lab.host.differences(lease) == {}


@pytest.mark.parametrize(
    ("wiring", "said"),
    [
        ({"inbound": Rate(1, burst=300)}, "at most 267"),
        ({"outbound": Rate(18_000_001)}, "average must be 1 to 18000000"),
        ({"outbound": Rate(1, 18_000_001)}, "peak must be"),
        ({"outbound": Rate(1, burst=1 << 22)}, "burst must be 1 to 4194303"),
    ],
)
def test_a_rate_that_nftables_cannot_count_is_refused(
    lab: GuestBridge, wiring: dict[str, Rate], said: str
) -> None:
    with pytest.raises(tapster.RequestError, match=said):
        lab.guest(**wiring)
    assert len(lab.host.leases()) == 2


def test_the_largest_accepted_rates_work(lab: GuestBridge) -> None:
    most = Rate(18_000_000, 18_000_000, (1 << 22) - 1)
    lease = lab.guest(inbound=Rate(1, burst=267), outbound=most).lease
    assert lab.host.differences(lease) == {}


# Coming and going


def test_the_rate_exists_before_the_device_is_up(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    namespace = lab.host.operations.context.namespace
    set_links = namespace.set_links

    def look_first(changes: Sequence[LinkChange]) -> None:
        if any(change.up for change in changes):
            seen.append(shaped("vnet2"))
        set_links(changes)

    monkeypatch.setattr(namespace, "set_links", look_first)
    lab.guest(inbound=Rate(1000))
    assert len(seen) == 1
    assert "rate 8Mbit" in seen[0]


def test_a_release_removes_the_rate(lab: GuestBridge) -> None:
    lease = lab.guest(inbound=Rate(1000)).lease
    lab.host.release(lease.id)
    assert lease.name in iproute.links()
    assert root(lease.name).get("kind") != "htb"
    assert shaped(lease.name) == ""
    assert lab.host.find(lease.id).backends == ()


def test_a_rate_is_set_wholly_or_not_at_all(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the qdisc without a class that it has for a moment."""
    lease = lab.guest().lease
    tc = htb.Queues.tc

    def refuse(queues: htb.Queues, command: str, *rest: Any, **more: Any) -> None:
        if command == "replace-class":
            assert root(lease.name)["kind"] == "htb"
            raise tapster.KernelError(22, "shaping")
        tc(queues, command, *rest, **more)

    monkeypatch.setattr(htb.Queues, "tc", refuse)
    wiring = lease.wiring._replace(inbound=Rate(1000))
    context = lab.host.operations.context
    with pytest.raises(tapster.KernelError, match="shaping"):
        Inbound(context.ledger.id).attach(
            context.namespace, lease._replace(wiring=wiring)
        )
    assert root(lease.name).get("kind") != "htb"


def test_a_change_keeps_what_is_waiting(lab: GuestBridge) -> None:
    guest = lab.guest(inbound=Rate(1, burst=20))
    for frame in many(lab.peer.mac, 100):
        lab.peer.send(frame)
    waiting = root(guest.lease.name)["qlen"]
    lab.host.set(guest.lease.id, inbound=Rate(2, burst=20))
    assert "rate 16Kbit" in shaped(guest.lease.name)
    assert waiting / 2 <= root(guest.lease.name)["qlen"] <= waiting + 10
    lab.host.set(guest.lease.id, inbound=None)
    assert shaped(guest.lease.name) == ""


def test_a_rate_can_be_given_to_a_lease_and_taken_away(lab: GuestBridge) -> None:
    lease = lab.guest(outbound=Rate(1000)).lease
    for inbound in (Rate(1000), Rate(500, 600), None, Rate(7)):
        changed = lab.host.set(lease.id, inbound=inbound)
        assert bool(shaped(lease.name)) is (inbound is not None)
        assert lab.host.differences(changed) == {}


def test_an_inbound_rate_needs_no_bridge(lab: GuestBridge) -> None:
    lease = library.acquire(lab.host, Tap(inbound=Rate(1000)))
    assert "rate 8Mbit" in shaped(lease.name)


def test_the_rate_is_in_the_network_namespace_of_the_lease(
    lab: GuestBridge, tmp_path: Path
) -> None:
    shell.sh("ip netns add blue")
    with Host(tmp_path / "b.db", netns="blue", reaper=library.no_reaper) as blue:
        lease = library.acquire(blue, Tap(inbound=Rate(1000)))
        assert "rate 8Mbit" in shell.sh(f"tc -n blue class show dev {lease.name}")
        blue.release(lease.id)
        assert shell.sh(f"tc -n blue class show dev {lease.name}") == ""


def test_the_flows_share_a_rate_where_the_kernel_can(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kernel has one of these; few have the first."""
    monkeypatch.setattr(htb, "LEAVES", ("fq_codel", "htb"))
    lease = lab.guest(inbound=Rate(1000)).lease
    shown = json.loads(shell.sh(f"tc -j qdisc show dev {lease.name}"))
    (leaf,) = (one for one in shown if one.get("parent") == "1:1")
    assert leaf["kind"] in ("fq_codel", "htb")


# What somebody does by hand

EDITS = {
    "gone": "tc qdisc del dev {} root",
    "another rate": "tc class change dev {} classid 1:1 htb rate 1mbit",
    "another burst": "tc class change dev {} classid 1:1 htb rate 8mbit ceil 16mbit "
    "burst 1k cburst 3600",
    "no class": "tc class del dev {} classid 1:1",
    "another kind": "tc qdisc replace dev {} root handle 7: pfifo",
    "another kind, called the same": "tc qdisc replace dev {} root handle 1: "
    "tbf rate 1mbit burst 10k latency 1s",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_change_by_hand_is_reported_and_repaired(lab: GuestBridge, edit: str) -> None:
    lease = lab.guest(inbound=Rate(1000, 2000, 512)).lease
    before = shaped(lease.name), root(lease.name)["handle"]
    if "replace" in edit:
        shell.sh(f"tc qdisc del dev {lease.name} root")
    shell.sh(edit.format(lease.name))
    assert (shaped(lease.name), root(lease.name).get("handle")) != before
    assert lab.host.differences(lease)["inbound"].startswith("the rate ")
    lab.host.recover()
    assert (shaped(lease.name), root(lease.name)["handle"]) == before
    assert lab.host.differences(lease) == {}
    assert lab.host.recover() == []


def test_the_queue_of_a_foreign_device_with_our_ifindex_is_left_alone(
    lab: GuestBridge,
) -> None:
    lease = lab.guest(inbound=Rate(1000)).lease
    shell.sh(f"ip link del {lease.name}")
    shell.sh(f"ip link add index {lease.ifindex} name foreign type veth")
    shell.sh("tc qdisc add dev foreign root handle 1: htb default 1")
    shell.sh("tc class add dev foreign parent 1: classid 1:1 htb rate 1mbit")
    lab.host.release(lease.id)
    lab.host.recover()
    lab.host.reap(now=True)
    assert "rate 1Mbit" in shaped("foreign")


# What it takes


def test_without_pyroute2_the_error_names_the_package(
    lab: GuestBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("pyroute2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyroute2", None)
    with pytest.raises(tapster.HostError, match=r"pip install 'tapster\[shape\]'"):
        lab.guest(inbound=Rate(1000))
    lease = lab.guest(outbound=Rate(1000)).lease
    assert lab.host.differences(lease) == {}
    lab.host.set(lease.id, outbound=Rate(500))
    assert lab.host.recover() == []
    lab.host.release(lease.id)
    assert lab.host.find(lease.id).backends == ()


def test_pyroute2_is_not_loaded_without_a_rate(lab: GuestBridge) -> None:
    code = """
import sys
from tapster import Host, Rate, Tap
with Host(sys.argv[1], reaper=lambda _: None) as host:
    host.acquire(Tap(bridge="br0"))
    assert "ctypes" not in sys.modules
    host.recover()
    lease = host.acquire(Tap(bridge="br0", outbound=Rate(1000)))
    host.release(lease.id)
assert "pyroute2" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, lab.ledger], check=True)
