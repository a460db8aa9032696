# SPDX-License-Identifier: Apache-2.0
"""A device on standby is connected to nothing until it is taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fake_and_real import ContractLab
from lab.library import no_reaper
from tapster import Host, Lease, Macvtap, Rate, Tap
from tapster.testing import Stranger

MAC = "52:54:00:00:00:42"


@pytest.fixture
def host(contract_host: Host) -> Host:
    return contract_host


@pytest.fixture(
    params=[
        Tap(bridge="br0", mac=MAC, learning=False, isolated=True, standby=True),
        Macvtap(lower="low", mac=MAC, standby=True),
    ],
    ids=["tap", "macvtap"],
)
def standby(host: Host, request: pytest.FixtureRequest) -> Iterator[Lease]:
    with host.acquire(request.param) as device:
        yield device.lease


def test_a_device_on_standby_is_down_and_on_no_bridge(
    lab: ContractLab, standby: Lease
) -> None:
    shown = lab.show()[standby.name]
    assert (shown.up, shown.master) == (False, "")


def test_recover_leaves_it_on_standby(
    lab: ContractLab, host: Host, standby: Lease
) -> None:
    assert host.differences(standby) == {}
    assert host.recover() == []
    assert lab.show()[standby.name].up is False


def test_taking_it_connects_it_as_requested(
    lab: ContractLab, host: Host, standby: Lease
) -> None:
    taken = host.set(standby.id, standby=False)
    shown = lab.show()[standby.name]
    assert shown.up
    if taken.wiring.bridge:
        assert (shown.master, shown.isolated) == ("br0", True)
        assert shown.neighbours >= {MAC}
    assert host.differences(taken) == {}
    assert (taken.id, taken.ifindex) == (standby.id, standby.ifindex)


def test_a_taken_device_can_go_back_to_standby(
    lab: ContractLab, host: Host, standby: Lease
) -> None:
    host.set(standby.id, standby=False)
    host.set(standby.id, standby=True)
    shown = lab.show()[standby.name]
    assert (shown.up, shown.master) == (False, "")
    assert host.recover() == []


def test_recover_takes_a_standby_device_off_a_bridge(
    lab: ContractLab, others: Stranger, host: Host
) -> None:
    lease = host.acquire(Tap(bridge="br0", standby=True))
    lease.close()
    others.set_by_name(lease.name, master="br0", up=True)
    assert "bridge is br0, not None" in host.differences(lease)["link"]
    host.recover()
    shown = lab.show()[lease.name]
    assert (shown.up, shown.master) == (False, "")


def test_a_released_standby_waits_as_any_device(host: Host, standby: Lease) -> None:
    host.release(standby.id)
    assert host.leases(all=False) == []


@pytest.mark.kernel
def test_backends_hold_nothing_of_it_until_it_is_taken(
    world: None, tmp_path: Path
) -> None:
    with Host(tmp_path / "ledger.db", reaper=no_reaper) as host:
        rate = Rate(1000)
        request = Tap("br0", filter=True, inbound=rate, outbound=rate, standby=True)
        with host.acquire(request) as device:
            lease = device.lease
        assert lease.backends == ()
        assert host.differences(lease) == {}
        assert host.recover() == []
        taken = host.set(lease.id, standby=False)
        assert set(taken.backends) >= {"filter", "inbound", "outbound"}
        assert host.differences(taken) == {}
        back = host.set(lease.id, standby=True)
        assert back.backends == ()
        assert host.differences(back) == {}
        assert host.recover() == []
