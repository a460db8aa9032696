# SPDX-License-Identifier: Apache-2.0
"""A process or a device that nothing tells of: its lease stays, hinders no other."""

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest

from lab.fake_and_real import FakeLab
from lab.library import no_reaper
from tapster import Host, HostError, Macvtap, OpenDevice, State, Tap
from tapster.testing.fake import FakeNamespace


@pytest.fixture
def lab() -> FakeLab:
    return FakeLab()


@pytest.fixture
def host(lab: FakeLab, tmp_path: Path) -> Iterator[Host]:
    lab.others().add_bridge("br0", mac="02:00:00:00:00:01")
    path = tmp_path / "ledger.db"
    with Host(path, system=lab.system, reaper=no_reaper) as host:
        yield host


@pytest.fixture
def unknown(lab: FakeLab, host: Host, tmp_path: Path) -> OpenDevice:
    """A lease that a process of a container took, and that ends without a trace."""
    opened = host.acquire(Tap(bridge="br0"), pid=lab.start())
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db, db:
        db.execute("UPDATE lease SET pid_pidns = pid_pidns + 1")
    return opened


def test_it_stays_and_hinders_no_other(
    lab: FakeLab, host: Host, unknown: OpenDevice
) -> None:
    pid = lab.start()
    host.acquire(Tap(bridge="br0"), pid=pid).close()
    unknown.close()
    lab.end(pid)
    assert [repair.lease.name for repair in host.settle()] == ["vnet1"]
    assert host.recover() == []
    assert host.find(unknown.id).state is State.ACTIVE


def test_it_is_shown_and_can_be_released(host: Host, unknown: OpenDevice) -> None:
    assert host.differences(host.find(unknown.id)) == {}, "its tap is open"
    assert host.differing([host.find(unknown.id)]) == frozenset()
    unknown.close()
    (wrong,) = host.differences(host.find(unknown.id)).items()
    assert wrong == ("process", "whether its process 1 lives cannot be told from here")
    assert host.differing([host.find(unknown.id)]) == {unknown.id}
    (problem,) = [one for one in host.examine() if unknown.id in one.description]
    assert "cannot be told from here" in problem.description
    assert problem.remedy.endswith(f"tapster rm {unknown.id}")
    host.release(unknown)
    assert host.find(unknown.id).state is State.FIN_WAIT


def test_a_lost_device_that_may_be_elsewhere_hinders_no_other(
    lab: FakeLab, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, other = (host.acquire(Tap(bridge="br0")) for _ in range(2))
    for opened in (lost, other):
        opened.close()
        host.release(opened)
    lab.others().delete_by_name(lost.name)
    host.recover()

    def refuse() -> NoReturn:
        raise HostError("other namespaces cannot be seen")

    with monkeypatch.context() as hidden:
        hidden.setattr(lab.system, "namespaces", refuse)
        with pytest.raises(HostError, match="cannot be seen"):
            host.reap(now=True)
        assert [lease.id for lease in host.leases()] == [lost.id]
    assert host.reap(now=True) == 1
    assert host.leases() == []


def test_a_macvtap_whose_process_ends_during_the_look_keeps_its_lease(
    lab: FakeLab, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have left its macvtap to a VM in the background, and the search
    for VMs is over."""
    lab.others().add_veth("low", "far")
    pids = [lab.start(), lab.start()]
    over, starts = (host.acquire(Macvtap(lower="low"), pid=pid) for pid in pids)
    lab.end(pids[0])

    def find(namespace: FakeNamespace, ifindexes: Collection[int]) -> dict[int, int]:
        assert [*ifindexes] == [over.lease.ifindex]
        lab.end(pids[1])
        return {}

    monkeypatch.setattr(FakeNamespace, "macvtap_holders", find)
    host.recover()
    active = [lease.id for lease in host.leases(all=False)]
    assert active == [starts.lease.id]
    over.close()
    starts.close()


def test_a_macvtap_of_which_nothing_tells_who_has_it_open_keeps_its_lease(
    lab: FakeLab, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.others().add_veth("low", "far")
    pid = lab.start()
    opened = host.acquire(Macvtap(lower="low"), pid=pid)
    lab.end(pid)

    def fail(*_: object) -> NoReturn:
        raise HostError("/proc cannot be read")

    monkeypatch.setattr(FakeNamespace, "macvtap_holders", fail)
    with pytest.raises(HostError, match="/proc cannot be read"):
        host.recover()
    assert [lease.id for lease in host.leases(all=False)] == [opened.lease.id]
    opened.close()
