# SPDX-License-Identifier: Apache-2.0
"""The cost of a transaction does not depend on the number of leases."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tapster import names
from tapster.ledger import Ledger
from tapster.model import HistoryQuery, Lease, Naming, Tap
from tests.ledger.making import ME, PROCESS, Clock, dead, hold, nobody_has, reserve


def populated(path: Path, leases: int) -> Ledger:
    """A ledger whose leases have every other number, half of them in FIN WAIT."""
    ledger = Ledger(path, Clock())
    hold(ledger, Tap())
    db = ledger.file.connection
    db.execute("BEGIN")
    db.execute(
        "CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i FROM n",
        (leases,),
    )
    db.execute(
        "INSERT INTO lease (id, netns, name, ifindex, kind, state, owner, mac, queues,"
        " isolated, created, fin_wait, deadline) "
        "SELECT printf('%016x', i), netns, 'vnet' || (2 * i), i, kind,"
        " iif(i % 2, 'active', 'fin_wait'), owner,"
        " printf('52:54:00:%02x:%02x:%02x', i >> 16, i >> 8 & 255, i & 255), queues,"
        " isolated, created, fin_wait, iif(i % 2, NULL, 1000.0 + i) "
        "FROM n JOIN (SELECT * FROM lease)"
    )
    db.execute("UPDATE free SET first = ?", (2 * leases + 1,))
    db.execute(
        "INSERT INTO free SELECT template.id, 2 * i - 1, 2 * i - 1 FROM template, n"
    )
    # Keys of another template: half are root's, some one user's, the rest another's.
    db.execute(
        "INSERT INTO stable (template, key, number, caller_uid)"
        " SELECT 'k%d', printf('key%d', i), i,"
        " iif(i % 2, NULL, iif(i < 9, 1001, 1000)) FROM n"
    )
    db.execute("COMMIT")
    return ledger


class Two(NamedTuple):
    """A ledger, and two of its leases."""

    ledger: Ledger
    active: str
    reserved: Lease


VERBS: dict[str, Callable[[Two], object]] = {
    "new_manager": lambda two: two.ledger.new_manager(),
    "reserve lowest": lambda two: reserve(two.ledger, Tap()),
    "reserve next": lambda two: reserve(two.ledger, Tap(naming=Naming.NEXT)),
    "reserve stable": lambda two: reserve(
        two.ledger, Tap(name="s%d", naming=Naming.STABLE, key="k")
    ),
    "reserve a new key of many": lambda two: reserve(
        two.ledger, Tap(name="k%d", naming=Naming.STABLE, key="new"), caller_uid=1001
    ),
    "reserve plain": lambda two: reserve(two.ledger, Tap(name="plain")),
    "rename": lambda two: two.ledger.rename(
        two.reserved.id, names.parse("vnet%d"), Tap(), nobody_has
    ),
    "reindex": lambda two: two.ledger.reindex(two.reserved.id),
    "activate": lambda two: two.ledger.activate([two.reserved], [None]),
    "bind": lambda two: two.ledger.bind([two.reserved.id], PROCESS),
    "lease": lambda two: two.ledger.lease(two.active),
    "named": lambda two: two.ledger.named("vnet4"),
    "entries": lambda two: two.ledger.entries(HistoryQuery("vnet4")),
    "entries of a MAC": lambda two: two.ledger.entries(
        HistoryQuery(mac="52:54:00:00:00:04")
    ),
    "entries of a lease": lambda two: two.ledger.entries(
        HistoryQuery(lease=two.active)
    ),
    "suspects": lambda two: two.ledger.suspects("boot", lambda _: True),
    "begin_release": lambda two: two.ledger.begin_release(two.active),
    "claim": lambda two: two.ledger.claim(two.active, ME, dead),
    "claim_available": lambda two: two.ledger.claim_available([two.active], ME, dead),
    "hold_name": lambda two: two.ledger.hold_name(two.active),
    "release_claims": lambda two: two.ledger.release_claims(ME),
    "next_deadline": lambda two: two.ledger.next_deadline(),
    "claim_due": lambda two: two.ledger.claim_due(ME, dead, boottime=100, limit=32),
    "end": lambda two: two.ledger.end([two.active]),
    "ended": lambda two: two.ledger.ended(two.active),
    "end, never active": lambda two: two.ledger.end([two.reserved.id]),
    "call_if_idle": lambda two: two.ledger.call_if_idle(lambda: None),
}
"""What is done with a lease from its VM's start to its end, in that order."""


def costs(ledger: Ledger) -> dict[str, int]:
    """How many steps SQLite's machine takes for each of VERBS."""
    (active,), (reserved,) = hold(ledger, Tap()), reserve(ledger, Tap())
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    found = {}
    ledger.file.connection.set_progress_handler(step, 1)
    for verb, call in VERBS.items():
        steps = 0
        call(Two(ledger, active.id, reserved))
        found[verb] = steps
    ledger.file.connection.set_progress_handler(None, 1)
    return found


@pytest.fixture(scope="module")
def cost_with(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, dict[str, int]]:
    found = {}
    for leases in (10, 100_000):
        ledger = populated(tmp_path_factory.mktemp("cost") / "ledger.db", leases)
        found[leases] = costs(ledger)
        ledger.close()
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_the_cost_does_not_grow_with_the_number_of_leases(
    cost_with: dict[int, dict[str, int]], verb: str
) -> None:
    assert 0 < cost_with[100_000][verb] <= 2 * cost_with[10][verb]
