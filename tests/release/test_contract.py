# SPDX-License-Identifier: Apache-2.0
"""Release, on the fake kernel and on the real one."""

from errno import EBUSY

import pytest

import tapster
from lab.fake_and_real import ContractLab
from lab.library import acquire
from tapster import Host, Macvtap, Mode, State, Tap
from tapster.testing import Stranger
from tests.contract.makers import refused


@pytest.fixture
def host(lab_host: Host) -> Host:
    return lab_host


def test_a_released_device_reserves_its_name_until_it_is_reaped_I2(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    lease = host.acquire(Tap(bridge="br0"))
    host.release(lease.id)
    host.release(lease.id)
    shown = lab.show()["vnet0"]
    assert (shown.ifindex, shown.up, shown.master) == (lease.ifindex, False, "")
    assert host.find("vnet0").state is State.FIN_WAIT
    lease.close()
    assert "vnet0" in lab.show(), "although its VM has ended"
    with refused(EBUSY, OSError):
        others.add_tap("vnet0")
    with pytest.raises(tapster.NameTaken, match=r"vnet0.*FIN WAIT"):
        host.acquire(Tap(name="vnet0"))
    assert others.add_tap("vnet%d") == "vnet1", "the kernel skips the name, too"
    assert acquire(host, Tap()).name == "vnet2"
    assert host.reap() == 0, "it is not due"
    assert host.reap(now=True) == 1
    assert "vnet0" not in lab.show()
    assert acquire(host, Tap()).name == "vnet0"


def test_a_late_cleanup_by_name_never_hits_the_next_vm_I2(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    old = acquire(host, Tap(bridge="br0"))
    host.release(old.id)
    new = acquire(host, Tap(bridge="br0"))
    before = lab.show()[new.name]
    others.set_by_name(old.name, master="", up=False)
    others.delete_by_name(old.name)
    assert lab.show()[new.name] == before


def test_a_placeholder_holds_the_name_of_a_deleted_device_I2(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    lease = acquire(host, Tap(bridge="br0"))
    others.delete_by_name("vnet0")
    host.release(lease.id)
    for _ in range(2):
        shown = lab.show()["vnet0"]
        assert shown.alias.endswith(lease.id)
        assert (shown.ifindex == lease.ifindex, shown.up, shown.master) == (
            False,
            False,
            "",
        )
        others.delete_by_name("vnet0")
        host.recover()
    assert host.reap() == 0, "it is not due"
    assert host.reap(now=True) == 1
    assert "vnet0" not in lab.show()


def test_release_leaves_a_foreign_device_that_took_the_name_I4(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    lease = acquire(host, Tap(bridge="br0"))
    others.delete_by_name("vnet0")
    others.add_tap("vnet0")
    before = lab.show()
    host.release(lease.id)
    host.recover()
    assert host.reap(now=True) == 1
    assert lab.show() == before


def test_a_renamed_device_is_still_ours(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    lease = acquire(host, Tap(bridge="br0"))
    others.rename("vnet0", "renamed")
    host.release(lease.id)
    assert lab.show()["renamed"].master == ""
    host.reap(now=True)
    assert "renamed" not in lab.show()


def test_a_released_passthru_frees_its_lower_device_at_once(
    lab: ContractLab, host: Host
) -> None:
    spec = Macvtap(lower="low", mode=Mode.PASSTHRU)
    lease = acquire(host, spec)
    assert lease.mac == lab.show()["low"].mac
    with pytest.raises(tapster.ConflictError, match=r"vnet0.* passthru"):
        host.acquire(Macvtap(lower="low"))
    assert [held.name for held in host.leases()] == ["vnet0"]
    assert "vnet1" not in lab.show()
    host.release(lease.id)
    assert lab.show()["vnet0"].kind == "tun", "a placeholder"
    assert acquire(host, spec).name == "vnet1"
    assert host.reap(now=True) == 1
    assert "vnet0" not in lab.show()
    assert lab.show()["vnet1"].kind == "macvtap"


def test_a_name_is_found_to_be_changed_only_with_its_owner(host: Host) -> None:
    lease = acquire(host, Tap(bridge="br0", owner="B"))
    free = acquire(host, Tap(bridge="br0"))
    with pytest.raises(tapster.OwnerRequired, match=f"owner 'B'.*{lease.id}") as raised:
        host.find("vnet0")
    error = raised.value
    assert (error.name, error.lease, error.owner) == ("vnet0", lease.id, "B")
    with pytest.raises(tapster.NoSuchLease, match="owner 'B', not to 'A'"):
        host.find("vnet0", owner="A")
    with pytest.raises(tapster.NoSuchLease, match="owner 'B', not to ''"):
        host.find("vnet0", owner="")
    assert host.find("vnet0", owner="B") == lease
    assert host.find(lease.id) == host.look_up("vnet0") == lease
    assert host.find("vnet1") == host.find("vnet1", owner="") == free
    for change in (host.release, host.set, host.reopen):
        with pytest.raises(tapster.NoSuchLease, match="owner="):
            change("vnet0")
