# SPDX-License-Identifier: Apache-2.0
"""A VM that starts again gets its fixed name again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime

import pytest

from lab.fake_and_real import ContractLab
from lab.library import acquire, no_reaper
from tapster import Host, Lease, NameTaken, Naming, RequestError, Tap
from tapster.operations.acquire import Plan
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


def test_its_owner_reclaims_a_name_whose_wait_has_just_been_ended(
    lab: ContractLab, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.release(acquire(host, WEB))
    operation = host.operations.acquire
    reserve = operation.reserve
    with Host(tmp_path / "ledger.db", system=lab.system, reaper=no_reaper) as other:

        def reserve_then_reap(plans: Sequence[Plan]) -> list[Lease]:
            try:
                return reserve(plans)
            except NameTaken:
                assert other.reap(now=True) == 1
                raise

        monkeypatch.setattr(operation, "reserve", reserve_then_reap)
        again = acquire(host, WEB._replace(reclaim=True))
    assert [lease.id for lease in host.leases()] == [again.id]


@pytest.mark.kernel
def test_its_owner_gets_a_name_whose_wait_another_manager_ends(
    world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    with Host(path, reaper=no_reaper) as host, Host(path, reaper=no_reaper) as other:
        first = acquire(host, WEB)
        host.release(first)
        claims = other.operations.context.claims
        claims.claim(first.id)
        with pytest.raises(NameTaken) as caught:
            host.acquire(WEB._replace(reclaim=True))
        assert caught.value.until
        assert caught.value.until <= clock_gettime(CLOCK_BOOTTIME), "it is free soon"

        def reap() -> int:
            claims.release()
            return other.reap(now=True)

        monkeypatch.setattr(host, "reap", reap)  # what is done while it waits
        spec = WEB._replace(reclaim=True)
        (second,) = host.acquire_waiting([spec], wait=0.0)
        second.close()
        assert [lease.id for lease in host.leases()] == [second.id]


@pytest.mark.kernel
def test_a_name_whose_wait_is_over_is_waited_for_in_any_case(
    world: None, tmp_path: Path
) -> None:
    with Host(tmp_path / "ledger.db", reaper=no_reaper) as host:
        spec = WEB._replace(fin_wait=1e-6)
        host.release(acquire(host, spec))
        (second,) = host.acquire_waiting([spec._replace(owner="vm2")], wait=0.0)
        second.close()
        assert (second.name, second.lease.owner) == ("web", "vm2")


def test_the_error_says_who_has_the_name_and_until_when(host: Host) -> None:
    first = acquire(host, WEB)
    host.release(first)
    with pytest.raises(NameTaken, match="reclaim it as its owner") as caught:
        host.acquire(WEB)
    error = caught.value
    assert (error.name, error.lease, error.owner) == ("web", first.id, "vm1")
    assert error.until is not None


def test_the_error_names_no_owner_of_a_lease_without_one(host: Host) -> None:
    first = acquire(host, WEB._replace(owner=""))
    host.release(first)
    said = f"lease {first.id}, without an owner; wait, or end its wait: tapster reap"
    with pytest.raises(NameTaken, match=said):
        host.acquire(WEB)


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
