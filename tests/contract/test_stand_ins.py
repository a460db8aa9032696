# SPDX-License-Identifier: Apache-2.0
"""A host in memory touches nothing real, whatever its caller leaves out."""

import gc
from pathlib import Path

import pytest

from tapster import Host, Lease, NoSuchLink, Rate, Tap
from tapster.kernel import detached
from tapster.testing import FakeSystem


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    """A host in memory; what is real must not be used."""

    def refuse(*_: object) -> None:
        raise AssertionError("the real reaper is started")

    monkeypatch.setattr(detached, "start", refuse)
    monkeypatch.setenv("TAPSTER_LEDGER", "/proc/a ledger that cannot be made")
    system = FakeSystem()
    system.stranger().add_bridge("br0")
    return system


def acquire(host: Host, spec: Tap) -> Lease:
    with host.acquire(spec) as device:
        return device.lease


def test_it_has_a_ledger_and_a_reaper_of_its_own(system: FakeSystem) -> None:
    with Host(system=system) as host:
        lease = acquire(host, Tap(bridge="br0"))
        host.release(lease)
    with Host(system=system) as again:
        assert [one.id for one in again.leases()] == [lease.id], "it is the same ledger"


def test_its_ledger_is_deleted_with_it() -> None:
    system = FakeSystem()
    with Host(system=system):
        folder = Path(system.stand_ins.ledger).parent
        assert folder.is_dir()
    del system
    gc.collect()
    assert not folder.exists()


FILTERED = Tap(
    bridge="br0",
    filter=True,
    addresses=("10.0.0.2",),
    inbound=Rate(1000),
    outbound=Rate(2000),
)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (FILTERED, {"filter", "guard", "inbound", "outbound"}),
        (Tap(ovs="sw0", vlan=5), {"ovs"}),
    ],
    ids=["a filter and rates", "a port of Open vSwitch"],
)
def test_backends_hold_what_a_lease_asks_for_until_its_end(
    system: FakeSystem, spec: Tap, names: set[str]
) -> None:
    system.stranger().add_bridge("sw0")
    with Host(system=system) as host:
        lease = acquire(host, spec)
        assert {name for name, _, id in system.attached if id == lease.id} == names
        assert host.differences(lease) == {}
        system.attached.clear()  # another program flushes everything
        assert host.differences(lease).keys() == names
        assert [repair.lease.id for repair in host.recover()] == [lease.id]
        assert {name for name, _, _ in system.attached} == names
        host.release(lease)
        assert system.attached == {}


def test_a_switch_that_is_not_there_is_refused(system: FakeSystem) -> None:
    with Host(system=system) as host:
        with pytest.raises(NoSuchLink, match="'sw9'"):
            acquire(host, Tap(ovs="sw9"))
        assert host.leases() == []
