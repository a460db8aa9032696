# SPDX-License-Identifier: Apache-2.0
"""Claims: one manager at a time works on a lease."""

from math import inf
from pathlib import Path

import pytest

from tapster.errors import LeaseBusy
from tapster.ledger import Ledger
from tapster.model import Tap
from tests.ledger.making import (
    GONE,
    ME,
    OTHER,
    PROCESS,
    Clock,
    alive,
    dead,
    hold,
    release,
    reserve,
)


def test_a_lease_has_one_manager_at_a_time(ledger: Ledger) -> None:
    (lease,) = hold(ledger, Tap())
    assert ledger.claim(lease.id, ME, alive).manager == ME
    assert ledger.claim(lease.id, ME, dead).manager == ME
    with pytest.raises(LeaseBusy, match=rf"{lease.id} \(vnet0\)"):
        ledger.claim(lease.id, OTHER, alive)
    ledger.release_claims(OTHER)
    with pytest.raises(LeaseBusy, match=lease.id):
        ledger.claim(lease.id, OTHER, alive)
    ledger.release_claims(ME)
    assert ledger.claim(lease.id, OTHER, alive).manager == OTHER


def test_the_claim_of_a_dead_manager_is_taken_over(ledger: Ledger) -> None:
    (lease,) = hold(ledger, Tap())
    ledger.claim(lease.id, ME, dead)
    assert ledger.claim(lease.id, OTHER, dead).manager == OTHER


def test_free_leases_are_claimed(ledger: Ledger) -> None:
    mine, free, others, dropped, ended = hold(ledger, *[Tap()] * 5)
    ledger.claim(mine.id, ME, alive)
    ledger.claim(others.id, OTHER, alive)
    ledger.claim(dropped.id, GONE, alive)
    ledger.end([ended.id])
    ids = [lease.id for lease in (mine, free, others, dropped, ended)]
    claimed = ledger.claim_available(ids, ME, lambda manager: manager != GONE)
    assert [lease.id for lease in claimed] == [mine.id, free.id, dropped.id]
    assert {lease.manager for lease in claimed} == {ME}
    assert [lease.manager for lease in ledger.leases()] == [ME, ME, OTHER, ME]


def test_managers_have_numbers_that_never_come_again(path: Path) -> None:
    given = []
    for _ in range(3):
        ledger = Ledger(path, Clock())
        given += [ledger.new_manager(), ledger.new_manager()]
        ledger.close()
    assert given == list(range(given[0], given[0] + 6))


def test_due_leases_are_claimed_by_deadline(ledger: Ledger, clock: Clock) -> None:
    first, second, third, active = hold(ledger, *[Tap()] * 4)
    for lease, clock.boot in ((second, 10.0), (third, 11.0), (first, 12.0)):
        release(ledger, lease)
    assert ledger.next_deadline() == 15.0
    assert ledger.claim_due(ME, alive, boottime=14.9, limit=9) == []
    due = ledger.claim_due(ME, alive, boottime=16.0, limit=9)
    assert [lease.id for lease in due] == [second.id, third.id]
    assert [lease.manager for lease in ledger.leases()] == [None, ME, ME, None]
    assert active.id not in [lease.id for lease in due]
    ledger.end([second.id, third.id])
    assert ledger.next_deadline() == 17.0
    ledger.end([first.id])
    assert ledger.next_deadline() is None


def test_no_more_due_leases_are_claimed_than_asked_for(ledger: Ledger) -> None:
    release(ledger, *hold(ledger, *[Tap()] * 5))
    batches = [ledger.claim_due(ME, alive, boottime=inf, limit=2) for _ in range(4)]
    assert [len(batch) for batch in batches] == [2, 2, 1, 0]


def test_due_leases_of_a_living_manager_are_left_and_of_a_dead_one_taken(
    ledger: Ledger,
) -> None:
    leases = hold(ledger, Tap(), Tap())
    release(ledger, *leases)
    ledger.claim(leases[0].id, OTHER, dead)
    due = ledger.claim_due(ME, alive, boottime=inf, limit=9)
    assert [lease.id for lease in due] == [leases[1].id]
    again = ledger.claim_due(ME, lambda one: one == ME, boottime=inf, limit=9)
    assert [lease.id for lease in again] == [leases[0].id]


def test_suspects_are_claimed_or_bound_to_a_process_that_has_ended(
    ledger: Ledger,
) -> None:
    free, claimed, bound, waiting = hold(ledger, *[Tap()] * 4)
    (reserved,) = reserve(ledger, Tap())
    ledger.claim(claimed.id, ME, dead)
    ledger.bind([bound.id, waiting.id], PROCESS)
    release(ledger, waiting)
    suspects = {lease.id for lease in ledger.suspects("boot", lambda _: True)}
    assert suspects == {claimed.id, bound.id, reserved.id}
    assert free.id not in suspects
    suspects = {lease.id for lease in ledger.suspects("boot", lambda _: False)}
    assert suspects == {claimed.id, reserved.id}
    assert len(ledger.suspects("next boot", lambda _: True)) == 5
