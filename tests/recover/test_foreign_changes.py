# SPDX-License-Identifier: Apache-2.0
"""What other programs change on a leased device is seen and put back."""

from collections.abc import Iterator

import pytest

from lab.fake_and_real import ContractLab
from tapster import Action, Host, Lease, Macvtap, Mode, Tap
from tapster.testing import Stranger

VICTIM = "52:54:00:00:00:99"


@pytest.fixture
def host(contract_host: Host) -> Host:
    return contract_host


@pytest.fixture(
    params=[Tap(bridge="br0"), Macvtap(lower="low")], ids=["tap", "macvtap"]
)
def lease(host: Host, request: pytest.FixtureRequest) -> Iterator[Lease]:
    with host.acquire(request.param) as device:
        yield device.lease


def test_a_foreign_mac_is_reported_and_put_back(
    lab: ContractLab, others: Stranger, host: Host, lease: Lease
) -> None:
    before = lab.show()[lease.name].mac
    others.set_by_name(lease.name, mac=VICTIM)
    wrong = host.differences(lease)["link"]
    assert wrong == f"MAC of the host's side is {VICTIM}, not {before}"
    assert [repair.action for repair in host.recover()] == [Action.REWIRE]
    assert lab.show()[lease.name].mac == before
    assert host.differences(lease) == {}
    assert host.recover() == []


def test_the_mode_of_a_macvtap_is_reported_and_put_back(
    lab: ContractLab, others: Stranger, host: Host
) -> None:
    with host.acquire(Macvtap(lower="low", mode=Mode.PRIVATE)) as device:
        others.set_by_name(device.name, mode=Mode.BRIDGE)
        assert host.differences(device) == {"link": "mode is bridge, not private"}
        assert host.differing([device.lease]) == {device.id}
        assert [repair.action for repair in host.recover()] == [Action.REWIRE]
        assert lab.show()[device.name].mode == "private"
        assert host.differences(device) == {}


def test_a_macvtap_follows_the_mtu_of_its_lower_device(
    lab: ContractLab, others: Stranger, host: Host
) -> None:
    """The kernel lowers it too, and refuses to raise it alone."""
    with host.acquire(Macvtap(lower="low")) as device:
        before = lab.show()[device.name]
        others.set_by_name("low", mtu=1300)
        assert lab.show()[device.name].mtu == 1300
        assert host.differences(device) == {}
        assert host.recover() == []
        others.set_by_name(device.name, mac=VICTIM)
        assert [repair.action for repair in host.recover()] == [Action.REWIRE]
        assert lab.show()[device.name] == before._replace(mtu=1300)
        others.set_by_name("low", mtu=1500)
        assert host.differences(device) == {"link": "mtu is 1300, not 1500"}
        assert [repair.action for repair in host.recover()] == [Action.REWIRE]
        assert lab.show()[device.name] == before


def test_a_device_of_no_bridge_that_is_put_on_one_is_reported(
    lab: ContractLab, others: Stranger, host: Host
) -> None:
    with host.acquire(Tap()) as device:
        others.set_by_name(device.name, master="br0")
        wrong = host.differences(device)["device"]
        assert wrong.startswith("it is on a bridge, and none was requested")
        assert host.differing([device.lease]) == {device.id}
        assert host.recover() == []
        assert lab.show()[device.name].master == "br0", "somebody may want it there"


def test_a_bridge_by_its_altname_is_the_same_bridge(
    others: Stranger, host: Host
) -> None:
    others.add_altname("br0", "lan")
    with host.acquire(Tap(bridge="lan")) as device:
        assert device.lease.wiring.bridge == "br0"
        assert host.differences(device) == {}
        assert host.recover() == []


def test_a_renamed_bridge_that_keeps_its_former_name_is_the_same_bridge(
    others: Stranger, host: Host
) -> None:
    with host.acquire(Tap(bridge="br0")) as device:
        others.rename("br0", "lan")
        others.add_altname("lan", "br0")
        assert host.differences(device) == {}
        assert host.differing([device.lease]) == frozenset()
        assert host.recover() == []


def test_a_repair_does_not_change_what_was_requested(
    lab: ContractLab, others: Stranger, host: Host
) -> None:
    """Another bridge may have the name for a time, as an alternative one."""
    with host.acquire(Tap(bridge="br0")) as device:
        others.delete_by_name("br0")
        others.add_bridge("spare")
        others.add_altname("spare", "br0")
        host.recover()
        assert lab.show()[device.name].master == "spare"
        assert host.find(device.id).wiring.bridge == "br0"
        others.del_altname("spare", "br0")
        others.add_bridge("br0")
        host.recover()
        assert lab.show()[device.name].master == "br0"
        assert host.differences(device) == {}


def test_a_change_to_a_bridge_by_its_altname_records_its_name(
    others: Stranger, host: Host
) -> None:
    others.add_bridge("lan")
    others.add_altname("lan", "office")
    with host.acquire(Tap(bridge="br0")) as device:
        assert host.set(device, bridge="office").wiring.bridge == "lan"
        assert host.differences(device) == {}
