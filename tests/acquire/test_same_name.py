# SPDX-License-Identifier: Apache-2.0
"""A VM that starts again gets its fixed name again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fake_and_real import ContractLab
from lab.library import acquire, no_reaper
from tapster import Host, NameTaken, Naming, RequestError, Tap
from tapster.testing import Stranger

WEB = Tap(name="web", owner="vm1", fin_wait=60.0)


@pytest.fixture
def host(lab: ContractLab, others: Stranger, tmp_path: Path) -> Iterator[Host]:
    others.add_bridge("br0", mac="02:00:00:00:00:01")
    with Host(tmp_path / "ledger.db", system=lab.system, reaper=no_reaper) as host:
        yield host


@pytest.mark.parametrize(
    "spec",
    [WEB, WEB._replace(name="vnet%d", naming=Naming.STABLE, key="vm1")],
    ids=["plain", "stable"],
)
def test_its_owner_reclaims_a_waiting_name_with_a_new_device(
    lab: ContractLab, host: Host, spec: Tap
) -> None:
    first = acquire(host, spec)
    host.release(first)
    second = acquire(host, spec._replace(reclaim=True))
    assert (second.name, second.owner) == (first.name, "vm1")
    assert second.ifindex != first.ifindex
    assert lab.show()[first.name].ifindex == second.ifindex
    assert [lease.id for lease in host.leases()] == [second.id]


def test_another_owner_cannot_reclaim_it(host: Host) -> None:
    first = acquire(host, WEB)
    host.release(first)
    with pytest.raises(NameTaken, match="'vm1'"):
        host.acquire(WEB._replace(owner="vm2", reclaim=True))
    assert [lease.id for lease in host.leases()] == [first.id]


def test_an_active_lease_is_never_reclaimed(host: Host) -> None:
    first = acquire(host, WEB)
    with pytest.raises(NameTaken):
        host.acquire(WEB._replace(reclaim=True))
    assert [lease.id for lease in host.leases(all=False)] == [first.id]


def test_a_reclaim_needs_an_owner(host: Host) -> None:
    with pytest.raises(RequestError, match="owner"):
        host.acquire(WEB._replace(owner="", reclaim=True))


def test_the_error_says_who_has_the_name_and_until_when(host: Host) -> None:
    first = acquire(host, WEB)
    host.release(first)
    with pytest.raises(NameTaken, match="reclaim it as its owner") as caught:
        host.acquire(WEB)
    error = caught.value
    assert (error.name, error.lease, error.owner) == ("web", first.id, "vm1")
    assert error.until is not None


@pytest.mark.kernel
def test_a_wait_lasts_until_the_name_is_free(world: None, tmp_path: Path) -> None:
    with Host(tmp_path / "ledger.db", reaper=no_reaper) as host:
        spec = WEB._replace(fin_wait=0.3)
        first = acquire(host, spec)
        host.release(first)
        (second,) = host.acquire_waiting([spec], wait=30.0)
        second.close()
        assert second.name == "web"
        assert second.id != first.id


@pytest.mark.kernel
def test_a_wait_that_is_too_short_fails_with_the_reason(
    world: None, tmp_path: Path
) -> None:
    with Host(tmp_path / "ledger.db", reaper=no_reaper) as host:
        host.release(acquire(host, WEB))
        with pytest.raises(NameTaken):
            host.acquire_waiting([WEB], wait=0.05)
