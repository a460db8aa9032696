# SPDX-License-Identifier: Apache-2.0
"""Changing a live lease, repairing foreign changes of it: in memory and for real."""

from collections.abc import Iterator
from contextlib import closing
from errno import EOPNOTSUPP
from pathlib import Path
from typing import Any

import pytest

from lab import library
from lab.fake_and_real import ContractLab
from lab.library import no_reaper
from tapster import (
    Action,
    Changes,
    Host,
    Lease,
    Macvtap,
    NoSuchLease,
    NoSuchLink,
    RequestError,
    Tap,
    TapsterError,
    hazards,
)
from tapster.kernel.port import LinkChange, Vlans
from tapster.testing import Stranger


@pytest.fixture
def host(lab: ContractLab, others: Stranger, tmp_path: Path) -> Iterator[Host]:
    """A Host that reaps only on request, on a host with br0, br1 and low."""
    others.add_bridge("br0", mac="02:00:00:00:00:01")
    others.add_bridge("br1", mac="02:00:00:00:00:02")
    others.add_veth("low", "far")
    with Host(tmp_path / "ledger.db", system=lab.system, reaper=no_reaper) as host:
        yield host


@pytest.fixture
def lease(host: Host) -> Iterator[Lease]:
    """A lease of a running VM."""
    with host.acquire(Tap(bridge="br0", owner="vm")) as opened:
        yield opened.lease


# Changing


def test_a_device_that_moves_takes_its_bridges_mtu_and_lowers_none(
    lab: ContractLab, others: Stranger, host: Host, lease: Lease
) -> None:
    others.set_by_name("br1", mtu=9000)
    assert host.set(lease.id, bridge="br1").wiring.mtu == 9000
    assert lab.show()["vnet0"].mtu == 9000
    assert host.set(lease.id, bridge="br0", mtu=1400).wiring.mtu == 1400
    moved = host.set(lease.id, bridge="br1", isolated=True)
    assert host.differences(moved) == {}


def test_a_device_that_asks_for_no_mtu_any_more_takes_its_bridges(
    lab: ContractLab, others: Stranger, host: Host, lease: Lease
) -> None:
    others.set_by_name("br1", mtu=9000)
    host.set(lease.id, bridge="br1", mtu=1400)
    assert host.set(lease.id, mtu=None).wiring.mtu == lab.show()["br1"].mtu
    assert lab.show()["vnet0"].mtu == lab.show()["br1"].mtu
    alone = host.set(lease.id, bridge=None, mtu=None)
    assert lab.show()["vnet0"].mtu == alone.wiring.mtu == lab.show()["br1"].mtu


def test_a_vm_moves_to_another_bridge_and_keeps_its_descriptor(
    lab: ContractLab, host: Host, lease: Lease
) -> None:
    before = lab.show()["vnet0"]
    moved = host.set(lease.id, bridge="br1")
    assert lab.show()["vnet0"] == before._replace(master="br1")
    assert moved == host.look_up("vnet0") == lease._replace(wiring=moved.wiring)
    assert moved.wiring == lease.wiring._replace(bridge="br1")
    assert host.set(lease.id, bridge=None).wiring.bridge is None
    assert lab.show()["vnet0"] == before._replace(master="")


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"up": False}, {"up": False, "carrier": False}),
        ({"mtu": 1400}, {"mtu": 1400}),
        ({"isolated": True}, {"isolated": True}),
        ({"learning": False}, {"learning": False}),
        ({"isolated": True, "learning": False}, {"isolated": True, "learning": False}),
    ],
    ids=str,
)
def test_a_change_can_be_made_repeated_and_taken_back(
    lab: ContractLab,
    host: Host,
    lease: Lease,
    changes: Changes,
    shown: dict[str, object],
) -> None:
    before = lab.show()["vnet0"]
    old: Any = {field: getattr(lease.wiring, field) for field in changes}
    for _ in range(2):
        host.set(lease.id, **changes)
        there = lab.show()["vnet0"]
        assert {field: getattr(there, field) for field in shown} == shown
        assert not host.differences(host.look_up("vnet0"))
    for _ in range(2):
        host.set(lease.id, **old)
        assert lab.show()["vnet0"] == before


def test_an_impossible_change_leaves_everything_as_it_was(
    lab: ContractLab, host: Host, lease: Lease
) -> None:
    before = lab.show()
    cannot: list[tuple[Any, type[TapsterError]]] = [
        ({"bridge": "br7", "up": False}, NoSuchLink),
        ({"bridge": "low"}, NoSuchLink),
        ({"bridge": None, "isolated": True}, RequestError),
        ({"mtu": 67}, RequestError),
        ({"name": "vnet7"}, RequestError),
    ]
    for changes, error in cannot:
        with pytest.raises(error):
            host.set(lease.id, **changes)
        assert lab.show() == before
        assert host.look_up("vnet0") == lease


def test_a_change_that_the_kernel_refuses_is_taken_back(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    macvtap = library.acquire(host, Macvtap(lower="low"))
    before = lab.show()["vnet0"]
    with pytest.raises(RequestError, match="macvtap"):
        host.set(macvtap.id, bridge="br0")
    host.set(macvtap.id, mtu=1400, up=False)
    with pytest.raises(Exception, match="configuring"):
        host.set(macvtap.id, mtu=1501, up=True)
    assert lab.show()["vnet0"] == before._replace(mtu=1400, up=False)
    assert host.look_up("vnet0").wiring.mtu == 1400


def test_only_an_active_lease_can_be_changed(host: Host, lease: Lease) -> None:
    host.release(lease.id)
    with pytest.raises(NoSuchLease, match="released"):
        host.set(lease.id, up=False)
    with pytest.raises(NoSuchLease):
        host.set("0000", up=False)


def test_a_lost_device_is_not_changed(
    host: Host, lease: Lease, others: Stranger
) -> None:
    others.delete_by_name("vnet0")
    others.add_tap("vnet0")
    with pytest.raises(NoSuchLink, match="recover"):
        host.set(lease.id, up=False)


# VLANs


@pytest.fixture
def filtering(lab: ContractLab, others: Stranger) -> None:
    """A bridge brv that tells VLANs apart."""
    reason = "CONFIG_BRIDGE_VLAN_FILTERING: no bridge of this kernel tells VLANs apart"
    try:
        others.add_bridge("brv", vlan_filtering=True)
    except OSError as error:
        if error.errno != EOPNOTSUPP:
            raise
        pytest.skip(reason)
    namespace = lab.system.netns(None)
    link = namespace.link(namespace.ifindex("brv"))
    namespace.close()
    assert link is not None
    assert link.vlan_filtering


@pytest.mark.usefixtures("filtering")
def test_a_port_is_in_the_vlans_of_its_lease_and_in_no_other(
    lab: ContractLab, host: Host
) -> None:
    access = host.acquire(Tap(bridge="brv", vlan=7))
    trunk = host.acquire(Tap(bridge="brv", trunks=(30, 20)))
    both = host.acquire(Tap(bridge="brv", vlan=4094, trunks=(1, 2)))
    plain = host.acquire(Tap(bridge="brv"))
    shown = lab.show()
    assert shown[access.name].vlans == Vlans(7, ())
    assert shown[trunk.name].vlans == Vlans(None, (20, 30))
    assert shown[both.name].vlans == Vlans(4094, (1, 2))
    assert shown[plain.name].vlans == Vlans(1, ())
    host.set(access.id, vlan=8, trunks=(9,))
    host.set(both.id, vlan=None, trunks=())
    host.set(trunk.id, bridge="br0", trunks=())
    shown = lab.show()
    assert shown[access.name].vlans == Vlans(8, (9,))
    assert shown[both.name].vlans == Vlans(1, ())
    assert shown[trunk.name].master == "br0"
    assert not any(host.differences(lease) for lease in host.leases())
    for lease in (access, trunk, both, plain):
        lease.close()


@pytest.mark.usefixtures("filtering")
def test_vlans_that_others_changed_are_put_back(lab: ContractLab, host: Host) -> None:
    lease = library.acquire(host, Tap(bridge="brv", vlan=7))
    namespace = lab.system.netns(None)
    namespace.set_links([LinkChange(lease.ifindex, vlans=Vlans(8, (9,)))])
    namespace.close()
    assert host.differences(lease) == {"link": "vlans is 8/9, not 7/-"}
    host.recover()
    assert lab.show()["vnet0"].vlans == Vlans(7, ())


@pytest.mark.usefixtures("filtering")
def test_a_bridge_that_stops_to_tell_vlans_apart_is_a_difference(
    host: Host, others: Stranger
) -> None:
    """The VMs of all its VLANs meet."""
    lease = library.acquire(host, Tap(bridge="brv", vlan=7))
    others.filter_vlans("brv", False)
    said = "VLAN filtering of the bridge is off, not on"
    assert host.differences(lease) == {"link": said}
    with pytest.raises(NoSuchLink, match="vlan_filtering 1"):
        host.recover()
    others.filter_vlans("brv", True)
    assert host.recover() == []
    assert host.differences(lease) == {}


@pytest.mark.usefixtures("filtering")
def test_a_port_in_no_vlan_is_a_problem(lab: ContractLab, host: Host) -> None:
    """As on a bridge whose vlan_default_pvid is 0: no frame passes."""
    lease = library.acquire(host, Tap(bridge="brv"))
    asked = library.acquire(host, Tap(bridge="brv", vlan=7))
    with closing(lab.system.netns(None)) as namespace:

        def problems() -> list[str]:
            checks = hazards.checks(namespace, namespace.links(), host.leases())
            found = [one.description for check in checks for one in check]
            return [text for text in found if "VLAN" in text]

        assert problems() == []
        for each in (lease, asked):
            namespace.set_links([LinkChange(each.ifindex, vlans=Vlans(None, ()))])
        assert [problem.split(",")[0] for problem in problems()] == [
            f"port {lease.name} is in no VLAN of bridge brv"
        ]


def test_a_bridge_that_tells_no_vlans_apart_is_refused(
    host: Host, lease: Lease
) -> None:
    with pytest.raises(NoSuchLink, match="vlan_filtering 1"):
        host.acquire(Tap(bridge="br0", vlan=7))
    with pytest.raises(NoSuchLink, match="vlan_filtering 1"):
        host.set(lease.id, vlan=7)
    assert host.leases() == [lease]


# Repairing


def taken_off(others: Stranger) -> None:
    others.set_by_name("vnet0", master="")


def moved(others: Stranger) -> None:
    others.set_by_name("vnet0", master="br1")


def taken_down(others: Stranger) -> None:
    others.set_by_name("vnet0", up=False)


def other_mtu(others: Stranger) -> None:
    others.set_by_name("vnet0", mtu=1000)


@pytest.mark.parametrize("meddle", [taken_off, moved, taken_down, other_mtu])
@pytest.mark.parametrize(
    "spec",
    [Tap(bridge="br0"), Tap(bridge="br0", isolated=True, learning=False)],
    ids=["plain", "guarded"],
)
def test_recover_puts_back_what_others_took_away(
    lab: ContractLab, host: Host, others: Stranger, meddle: object, spec: Tap
) -> None:
    lease = library.acquire(host, spec)
    before = lab.show()
    assert host.differences(lease) == {}
    assert callable(meddle)
    meddle(others)
    assert host.differences(lease).keys() == {"link"}
    (would,) = host.recover(dry_run=True)
    assert would == (lease, Action.REWIRE)
    assert host.recover() == [would]
    assert lab.show() == before
    assert host.recover() == []


def test_a_bridge_may_be_named_by_a_long_alternative_name(
    host: Host, others: Stranger
) -> None:
    """Linux takes 15 bytes for a name, and 127 for an alternative one."""
    long = "the-bridge-of-the-storage-network"
    others.add_altname("br1", long)
    made = library.acquire(host, Tap(bridge=long))
    assert made.wiring.bridge == "br1"
    assert host.set(made.id, bridge="br0").wiring.bridge == "br0"
    assert host.set(made.id, bridge=long).wiring.bridge == "br1"
    assert host.recover() == []
    with pytest.raises(NoSuchLink):
        host.set(made.id, bridge="x" * 127)
    with pytest.raises(RequestError, match="Linux takes at most 127"):
        host.set(made.id, bridge="x" * 128)


def test_a_renamed_bridge_is_named_and_not_to_be_made_again(
    lab: ContractLab, host: Host, lease: Lease, others: Stranger
) -> None:
    """With another bridge of the former name, recover would cut the VM off."""
    others.rename("br0", "lan0")
    before = lab.show()
    said = f"is on 'lan0'; .* tapster set {lease.id} --bridge lan0"
    with pytest.raises(NoSuchLink, match=said):
        host.recover()
    with pytest.raises(NoSuchLink, match=said):
        host.set(lease.id, isolated=True)
    assert lab.show() == before
    host.set(lease.id, bridge="lan0")
    assert host.recover() == []
    assert lab.show() == before


def test_recover_leaves_a_cable_that_was_pulled_out(
    lab: ContractLab, host: Host, lease: Lease
) -> None:
    host.set(lease.id, up=False)
    assert host.recover() == []
    assert not lab.show()["vnet0"].up


def test_a_bridge_that_is_gone_is_named_and_hinders_no_other(
    lab: ContractLab, host: Host, lease: Lease, others: Stranger
) -> None:
    library.acquire(host, Tap(bridge="br1"))
    others.delete_by_name("br0")
    others.set_by_name("vnet1", up=False)
    with pytest.raises(NoSuchLink, match="br0"):
        host.recover()
    assert lab.show()["vnet1"].up
    others.add_bridge("br0")
    host.recover()
    assert lab.show()["vnet0"].master == "br0"
