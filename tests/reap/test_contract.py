# SPDX-License-Identifier: Apache-2.0
"""Reap, on the fake kernel and on the real one."""

import pytest

from lab.fake_and_real import ContractLab
from lab.library import acquire
from tapster import (
    ConflictError,
    Host,
    LeaseBusy,
    NoSuchLease,
    RequestError,
    State,
    Tap,
)
from tapster.testing import Stranger


@pytest.fixture
def host(lab_host: Host) -> Host:
    return lab_host


def test_reap_deletes_many_in_batches_and_nothing_else(
    lab: ContractLab, host: Host, others: Stranger
) -> None:
    others.add_tap("bystander")
    before = set(lab.show())
    # More than one batch, which has 64.
    kept, *gone = [acquire(host, Tap(bridge="br0")) for _ in range(70)]
    for lease in gone:
        host.release(lease.id)
    assert host.reap(now=True) == 69
    assert set(lab.show()) == before | {kept.name}


def test_the_wait_of_one_lease_is_ended_and_no_other(
    lab: ContractLab, host: Host
) -> None:
    first, second, active = (acquire(host, Tap(bridge="br0")) for _ in range(3))
    for lease in (first, second):
        host.release(lease.id)
    assert host.reap([first]) == 1
    assert set(lab.show()) & {"vnet0", "vnet1", "vnet2"} == {"vnet1", "vnet2"}
    assert host.look_up("vnet1").state is State.FIN_WAIT
    assert acquire(host, Tap(name="vnet0")).ifindex != first.ifindex
    assert host.reap([first.id]) == 0, "it may be repeated, and hits no other lease"
    assert "vnet0" in lab.show()
    with pytest.raises(ConflictError, match=r"vnet2.* is active"):
        host.reap([second, active])
    assert "vnet1" in lab.show(), "none of them"
    with pytest.raises(NoSuchLease):
        host.reap(["0" * 16])
    with pytest.raises(NoSuchLease, match="owner="):
        host.reap(["vnet1"])
    with pytest.raises(RequestError, match="must be several"):
        host.reap("vnet1")
    assert host.reap([]) == 0
    assert host.reap(now=True) == 1


def test_a_lease_that_another_manager_works_on_is_busy(
    lab: ContractLab, host: Host
) -> None:
    lease = acquire(host, Tap(bridge="br0"))
    host.release(lease)
    claims = host.operations.context.claims
    number = claims.take_number() + 1
    ledger = host.operations.context.ledger
    ledger.claim_available([lease.id], number, lambda _: False)
    claims.is_alive = lambda manager: True  # type: ignore[method-assign]
    with pytest.raises(LeaseBusy, match="vnet0"):
        host.reap([lease])
    assert "vnet0" in lab.show()
