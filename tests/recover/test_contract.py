# SPDX-License-Identifier: Apache-2.0
"""Recover, on the fake kernel and on the real one."""

import pytest

from lab.fake_and_real import ContractLab
from lab.library import acquire, no_reaper
from tapster import Action, Host, Macvtap, State, Tap
from tapster.testing import Stranger


@pytest.fixture
def host(lab_host: Host) -> Host:
    return lab_host


def test_recover_changes_nothing_when_all_is_well_I7(
    lab: ContractLab, host: Host
) -> None:
    acquire(host, Tap(bridge="br0"))
    host.release(acquire(host, Macvtap(lower="low")).id)
    before = lab.show()
    assert host.recover() == []
    assert lab.show() == before


def test_recover_takes_a_waiting_device_down_again(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    lease = acquire(host, Tap(bridge="br0"))
    host.release(lease.id)
    before = lab.show()
    others.set_by_name("vnet0", master="br0", up=True, alias="")
    (repairs,) = host.recover()
    assert (repairs.lease.id, repairs.action) == (lease.id, Action.FINISH)
    assert lab.show() == before


def test_settle_undoes_the_change_of_a_manager_that_was_killed(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    lease = acquire(host, Tap(bridge="br0", standby=True))
    before = lab.show()
    with Host(
        host.operations.context.ledger.path, system=lab.system, reaper=no_reaper
    ) as other:
        other.operations.context.claims.claim(lease.id)
        others.set_by_name("vnet0", master="br0", up=True)
        assert host.settle() == [], "the other manager lives"
    (repair,) = host.settle()
    assert (repair.lease.id, repair.action) == (lease.id, Action.REWIRE)
    assert lab.show() == before


def test_a_lease_ends_with_its_process(lab: ContractLab, host: Host) -> None:
    pid = lab.start()
    lease = host.acquire(Tap(bridge="br0"), pid=pid)
    lease.close()
    assert host.settle() == []
    lab.end(pid)
    (repairs,) = host.settle()
    assert (repairs.lease.id, repairs.action) == (lease.id, Action.RELEASE)
    assert host.find("vnet0").state is State.FIN_WAIT
    assert lab.show()["vnet0"].master == ""


def test_a_lease_lasts_while_a_child_of_its_process_has_the_tap_open(
    lab: ContractLab, host: Host
) -> None:
    pid = lab.start()
    device = host.acquire(Tap(bridge="br0"), pid=pid)
    lab.end(pid)
    assert host.recover() == []
    assert host.find("vnet0").state is State.ACTIVE
    device.close()
    (repairs,) = host.recover()
    assert (repairs.lease.id, repairs.action) == (device.id, Action.RELEASE)
    assert host.recover() == []


def test_a_repair_is_in_the_history(host: Host, others: Stranger) -> None:
    first = acquire(host, Tap(bridge="br0", owner="web"))
    acquire(host, Tap(bridge="br0"))
    assert host.recover() == []
    assert host.events() == []
    others.set_by_name("vnet0", up=False)
    others.delete_by_name("vnet1")
    host.recover(dry_run=True)
    assert host.events() == []
    host.recover()
    repaired, held = host.events()
    assert (repaired.event, repaired.lease, repaired.owner) == (
        "repaired",
        first.id,
        "web",
    )
    assert (held.event, held.name) == ("held", "vnet1")
