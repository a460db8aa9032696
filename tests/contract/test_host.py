# SPDX-License-Identifier: Apache-2.0
"""The main promises of a Host, kept on the machine in memory and on the real one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tapster
from lab.fake_and_real import Lab
from lab.library import close, no_reaper
from tapster import Action, Host, Macvtap, Mode, Naming, State, Tap
from tapster.testing import Stranger


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def host(lab: Lab, others: Stranger, ledger: Path) -> Iterator[Host]:
    """A Host that reaps only when told to, on a machine with br0 and low."""
    others.add_bridge("br0", mac="02:00:00:00:00:01")
    others.set_by_name("br0", mtu=1400)
    others.add_veth("low", "far")
    with Host(ledger, system=lab.system, reaper=no_reaper) as host:
        yield host


def acquire(host: Host, spec: Tap | Macvtap) -> tapster.Lease:
    """Acquire, for a machine that is not started."""
    lease = host.acquire(spec)
    close(lease.fds)
    return lease


# Acquire


def test_a_tap_is_wired_wholly_when_acquire_returns_I6(lab: Lab, host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0", isolated=True, queues=2))
    shown = lab.show()[lease.name]
    assert (shown.ifindex, shown.kind, shown.master) == (lease.ifindex, "tun", "br0")
    assert (shown.mtu, shown.isolated, shown.no_ipv6) == (1400, True, True)
    assert (shown.up, shown.carrier, shown.queues) == (True, True, 2)
    assert shown.mac == f"fe{lease.mac[2:]}"
    assert shown.alias.endswith(lease.id)
    assert lab.show()["br0"].mac == "02:00:00:00:00:01"
    close(lease.fds)
    assert lab.show()[lease.name].carrier is False
    assert host.leases() == [lease._replace(fds=())]


def test_taps_and_macvtaps_share_one_list_of_names_S6(lab: Lab, host: Host) -> None:
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
    lab: Lab,
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


def test_an_ifindex_that_is_taken_is_replaced_by_another(lab: Lab, host: Host) -> None:
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
    lab: Lab, host: Host, others: Stranger
) -> None:
    mac = "52:54:00:00:00:07"
    others.add_macvtap("other", "low", mac=mac)
    others.set_by_name("other", up=True)
    before = lab.show()
    with pytest.raises(tapster.KernelError, match="in use"):
        host.acquire_all([Tap(bridge="br0"), Macvtap(lower="low", mac=mac)])
    assert lab.show() == before
    assert host.leases() == []


# Release and reap


def test_a_released_device_waits_holding_its_name_I2(
    lab: Lab, host: Host, others: Stranger
) -> None:
    lease = host.acquire(Tap(bridge="br0"))
    host.release(lease.id)
    host.release(lease.id)
    shown = lab.show()["vnet0"]
    assert (shown.ifindex, shown.up, shown.master) == (lease.ifindex, False, "")
    close(lease.fds)
    assert "vnet0" in lab.show(), "although its machine has ended"
    assert others.add_tap("vnet%d") == "vnet1", "nobody else gets it"
    assert acquire(host, Tap()).name == "vnet2"
    assert host.reap() == 0, "it is not due"
    assert host.reap(now=True) == 1
    assert "vnet0" not in lab.show()
    assert acquire(host, Tap()).name == "vnet0"


def test_a_late_cleanup_by_name_hits_a_dead_device_S1(
    lab: Lab, host: Host, others: Stranger
) -> None:
    old = acquire(host, Tap(bridge="br0"))
    host.release(old.id)
    new = acquire(host, Tap(bridge="br0"))
    before = lab.show()[new.name]
    others.set_by_name(old.name, master="", up=False)
    others.delete_by_name(old.name)
    assert lab.show()[new.name] == before


def test_a_lost_name_is_held_by_a_placeholder_I2(
    lab: Lab, host: Host, others: Stranger
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
    assert host.reap(now=True) == 1
    assert "vnet0" not in lab.show()


def test_a_name_lost_to_a_foreign_device_is_not_fought_for_I4(
    lab: Lab, host: Host, others: Stranger
) -> None:
    lease = acquire(host, Tap(bridge="br0"))
    others.delete_by_name("vnet0")
    others.add_tap("vnet0")
    before = lab.show()
    host.release(lease.id)
    host.recover()
    assert host.reap(now=True) == 1
    assert lab.show() == before


def test_a_renamed_device_is_still_ours(lab: Lab, host: Host, others: Stranger) -> None:
    lease = acquire(host, Tap(bridge="br0"))
    others.rename("vnet0", "renamed")
    host.release(lease.id)
    assert lab.show()["renamed"].master == ""
    host.reap(now=True)
    assert "renamed" not in lab.show()


def test_only_what_waits_is_reaped_in_batches(
    lab: Lab, host: Host, others: Stranger
) -> None:
    others.add_tap("bystander")
    before = set(lab.show())
    kept, *gone = [acquire(host, Tap(bridge="br0")) for _ in range(70)]
    for lease in gone:
        host.release(lease.id)
    assert host.reap(now=True) == 69
    assert set(lab.show()) == before | {kept.name}


def test_passthru_lets_go_of_its_lower_device_at_once(lab: Lab, host: Host) -> None:
    spec = Macvtap(lower="low", mode=Mode.PASSTHRU)
    lease = acquire(host, spec)
    assert lease.mac == lab.show()["low"].mac
    with pytest.raises(tapster.KernelError, match="vnet1"):
        host.acquire(Macvtap(lower="low"))
    host.release(lease.id)
    assert lab.show()["vnet0"].kind == "tun", "a placeholder"
    assert acquire(host, spec).name == "vnet1"


# Recover


def test_recover_finds_nothing_to_do_when_all_is_well_I7(lab: Lab, host: Host) -> None:
    acquire(host, Tap(bridge="br0"))
    host.release(acquire(host, Macvtap(lower="low")).id)
    before = lab.show()
    assert host.recover() == []
    assert lab.show() == before


def test_recover_brings_a_disturbed_waiting_device_to_rest(
    lab: Lab, host: Host, others: Stranger
) -> None:
    lease = acquire(host, Tap(bridge="br0"))
    host.release(lease.id)
    before = lab.show()
    others.set_by_name("vnet0", master="br0", up=True, alias="")
    (repairs,) = host.recover()
    assert (repairs.lease.id, repairs.action) == (lease.id, Action.FINISH)
    assert lab.show() == before


def test_a_lease_ends_with_its_process(lab: Lab, host: Host) -> None:
    pid = lab.start()
    lease = host.acquire(Tap(bridge="br0"), pid=pid)
    close(lease.fds)
    assert host.settle() == []
    lab.end(pid)
    (repairs,) = host.settle()
    assert (repairs.lease.id, repairs.action) == (lease.id, Action.RELEASE)
    assert host.find("vnet0").state is State.FIN_WAIT
    assert lab.show()["vnet0"].master == ""


def test_a_lease_elsewhere_is_worked_on_from_here(
    lab: Lab, host: Host, ledger: Path
) -> None:
    lab.add_netns("blue")
    lab.others("blue").add_bridge("br0")
    with Host(ledger, netns="blue", system=lab.system, reaper=no_reaper) as there:
        theirs = acquire(there, Tap(bridge="br0"))
    ours = acquire(host, Tap(bridge="br0"))
    assert theirs.name == ours.name == "vnet0"
    host.release(theirs.id)
    assert lab.show("blue")["vnet0"].master == ""
    assert lab.show()["vnet0"].master == "br0", "ours is untouched"
    assert host.reap(now=True) == 1
    assert "vnet0" not in lab.show("blue")
    assert "vnet0" in lab.show()


def test_a_namespace_that_is_gone_closes_its_leases(
    lab: Lab, host: Host, ledger: Path
) -> None:
    lab.add_netns("blue")
    with Host(ledger, netns="blue", system=lab.system, reaper=no_reaper) as there:
        lease = acquire(there, Tap())
    lab.delete_netns("blue")
    (repairs,) = host.recover()
    assert (repairs.lease.id, repairs.action) == (lease.id, Action.CLOSE)
    assert host.leases() == []


def test_the_next_number_is_kept_by_the_ledger(
    lab: Lab, host: Host, ledger: Path
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
