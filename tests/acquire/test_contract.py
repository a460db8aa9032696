# SPDX-License-Identifier: Apache-2.0
"""Acquire, on the fake kernel and on the real one."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tapster
from lab.fake_and_real import ContractLab
from lab.library import acquire, close, no_reaper
from tapster import ConflictError, Host, Macvtap, Mode, Naming, State, Tap
from tapster.testing import Stranger


@pytest.fixture
def host(lab_host: Host) -> Host:
    return lab_host


def test_a_tap_is_completely_configured_when_acquire_returns_I6(
    lab: ContractLab, host: Host
) -> None:
    spec = Tap(bridge="br0", isolated=True, queues=2, owner="vm1")
    opened = host.acquire(spec)
    lease = opened.lease
    shown = lab.show()[lease.name]
    assert (shown.ifindex, shown.kind, shown.master) == (lease.ifindex, "tun", "br0")
    assert (shown.mtu, shown.isolated, shown.no_ipv6) == (1400, True, True)
    assert (shown.up, shown.carrier, shown.queues) == (True, True, 2)
    assert shown.mac == f"fe{lease.mac[2:]}"
    assert shown.alias.endswith(lease.id)
    assert (shown.persist, shown.vnet_hdr) == (True, True)
    assert lab.show()["br0"].mac == "02:00:00:00:00:01"
    opened.close()
    assert lab.show()[lease.name].carrier is False
    assert host.leases() == [lease]
    assert (lease.state, lease.owner) == (State.ACTIVE, "vm1")


def test_taps_and_macvtaps_share_one_list_of_names(
    lab: ContractLab, host: Host
) -> None:
    specs = Tap(), Macvtap(lower="low"), Tap(bridge="br0")
    leases = [acquire(host, spec) for spec in specs]
    assert [lease.name for lease in leases] == ["vnet0", "vnet1", "vnet2"]
    assert [lab.show()[lease.name].kind for lease in leases] == [
        "tun",
        "macvtap",
        "tun",
    ]


SQUATS: dict[str, Callable[[Stranger], object]] = {
    "tap": lambda others: others.add_tap("vnet0"),
    "open tap": lambda others: others.open_tap("vnet0"),
    "multi-queue tap": lambda others: others.add_tap("vnet0", multi_queue=True),
    "macvtap": lambda others: others.add_macvtap("vnet0", "low"),
    "bridge": lambda others: others.add_bridge("vnet0"),
    "altname": lambda others: others.add_altname("far", "vnet0"),
}


@pytest.mark.parametrize("squat", SQUATS.values(), ids=SQUATS)
@pytest.mark.parametrize("spec", [Tap(bridge="br0", queues=2), Macvtap(lower="low")])
def test_a_foreign_device_is_stepped_over_I4(
    lab: ContractLab,
    host: Host,
    others: Stranger,
    squat: Callable[[Stranger], object],
    spec: Tap | Macvtap,
) -> None:
    squat(others)
    before = lab.show()
    lease = acquire(host, spec)
    assert lease.name == "vnet1"
    with pytest.raises(tapster.NameTaken, match="foreign"):
        host.acquire(spec._replace(name="vnet0"))
    host.release(lease.id)
    assert host.reap(now=True) == 1
    assert lab.show() == before


def test_a_taken_ifindex_is_replaced_by_another(lab: ContractLab, host: Host) -> None:
    first = acquire(host, Tap())
    namespace = lab.system.netns(None)
    close(
        namespace.create_tap(
            "squat", first.ifindex + 1, queues=1, vnet_hdr=True, uid=None, gid=None
        )
    )
    for spec in (Tap(), Macvtap(lower="low")):
        lease = acquire(host, spec)
        assert lab.show()[lease.name].ifindex == lease.ifindex != first.ifindex + 1
    namespace.close()


def test_many_are_acquired_together_or_not_at_all(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    mac = "52:54:00:00:00:07"
    others.add_macvtap("other", "low", mac=mac)
    others.set_by_name("other", up=True)
    before = lab.show()
    with pytest.raises(tapster.KernelError, match="in use"):
        host.acquire_all([Tap(bridge="br0"), Macvtap(lower="low", mac=mac)])
    assert lab.show() == before
    assert host.leases() == []


def test_the_ledger_remembers_the_next_number(
    lab: ContractLab, host: Host, ledger: Path
) -> None:
    spec = Tap(naming=Naming.NEXT, fin_wait=0)
    names = []
    for _ in range(2):
        lease = acquire(host, spec)
        names.append(lease.name)
        host.release(lease.id)
    with Host(ledger, system=lab.system, reaper=no_reaper) as other:
        names.append(acquire(other, spec).name)
    assert names == ["vnet0", "vnet1", "vnet2"]


def test_the_holder_of_a_lower_device_is_named(lab: ContractLab, host: Host) -> None:
    """The kernel says "Invalid argument"; the ledger knows who is in the way."""
    passthru = Macvtap(lower="low", mode=Mode.PASSTHRU, owner="a", fin_wait=0)
    first = acquire(host, passthru)
    for spec in (passthru, Macvtap(lower="low")):
        with pytest.raises(ConflictError, match=f"lease {first.id} .*'a'.* passthru"):
            host.acquire(spec)
    host.release(first)
    second = acquire(host, Macvtap(lower="low"))
    with pytest.raises(ConflictError, match=rf"{second.id}.*in mode bridge"):
        host.acquire(passthru)
    assert {"vnet0", "vnet1", "vnet2"} & set(lab.show()) == {second.name}
