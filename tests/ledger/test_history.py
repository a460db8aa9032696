# SPDX-License-Identifier: Apache-2.0
"""The history: what a query finds, and what that costs among many rows."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapster.ledger import Ledger
from tapster.ledger.history import DAY, USERS
from tapster.model import EventQuery, HistoryEvent, HistoryQuery, Tap
from tests.ledger.making import Clock, hold, reserve

ROWS = (1_000, 200_000)


def fill(ledger: Ledger, rows: int) -> None:
    """Add ended leases. No two of them share a name, an owner or a MAC."""
    ledger.file.connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO history (name, lease, owner, kind, mac, ifindex, netns, created, "
        "released, ended, labels) SELECT 'v' || i, 'id' || i, 'owner' || i, 'tap', "
        "'mac' || i, i, '', i, i + 1, i + 2, 'n=' || i FROM n",
        (rows,),
    )


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Ledger]]:
    made = {}
    for rows in ROWS:
        made[rows] = Ledger(tmp_path_factory.mktemp("history") / "ledger.db", Clock())
        fill(made[rows], rows)
    yield made
    for ledger in made.values():
        ledger.close()


def steps(ledger: Ledger, query: HistoryQuery) -> int:
    """Return how many steps SQLite's machine takes for a query."""
    taken = 0

    def step() -> int:
        nonlocal taken
        taken += 1
        return 0

    ledger.file.connection.set_progress_handler(step, 1)
    ledger.entries(query)
    ledger.file.connection.set_progress_handler(None, 1)
    return taken


@pytest.mark.parametrize(
    "query",
    [
        HistoryQuery("v7"),
        HistoryQuery(owner="owner7"),
        HistoryQuery(mac="mac7"),
        HistoryQuery(lease="id7"),
        HistoryQuery(limit=5),
        HistoryQuery("v7", at=8.0),
        HistoryQuery(until=5.0),
    ],
    ids=str,
)
def test_rows_that_do_not_match_cost_nothing(
    ledgers: dict[int, Ledger], query: HistoryQuery
) -> None:
    few, many = (steps(ledgers[rows], query) for rows in ROWS)
    assert 0 < many <= 1.2 * few
    assert ledgers[ROWS[0]].entries(query) == ledgers[ROWS[1]].entries(query) or (
        query.limit
    )


def test_a_recent_moment_costs_only_what_came_later(
    ledgers: dict[int, Ledger],
) -> None:
    few, many = (steps(ledgers[rows], HistoryQuery(at=rows - 5.0)) for rows in ROWS)
    assert 0 < many <= 1.2 * few


def test_a_query_finds_what_fits_all_its_conditions(ledgers: dict[int, Ledger]) -> None:
    def names(query: HistoryQuery) -> list[str]:
        return [entry.name for entry in ledgers[ROWS[0]].entries(query)]

    assert names(HistoryQuery(at=10.5)) == ["v10", "v9"]
    assert names(HistoryQuery(since=998.0)) == ["v1000", "v999", "v998", "v997"]
    assert names(HistoryQuery(since=5.0, until=6.0)) == ["v6", "v5", "v4"]
    assert names(HistoryQuery(label=("n", "12"))) == ["v12"]
    assert names(HistoryQuery("v12", label=("n", "13"))) == []
    assert names(HistoryQuery(limit=2)) == ["v1000", "v999"]


def test_labels_are_kept_with_the_lease_and_after_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", Clock())
    labels = (("role", "web"), ("note", "a=b"))
    (lease,) = hold(ledger, Tap(labels=labels))
    assert lease.labels == labels
    assert ledger.leases()[0].labels == labels
    ledger.end([lease.id])
    (entry,) = ledger.entries(HistoryQuery(label=("note", "a=b")))
    assert (entry.lease, entry.labels) == (lease.id, labels)
    ledger.close()


def test_the_ledger_remembers_as_much_as_its_setting_says(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", Clock())
    ledger.keep_history(2)
    for _ in range(4):
        (lease,) = hold(ledger, Tap())
        ledger.end([lease.id])
        ledger.record_event(HistoryEvent(1.0, "lost", lease.id, lease.name, "", None))
    assert len(ledger.entries(HistoryQuery())) == 2
    assert len(ledger.events()) == 2
    assert ledger.events(EventQuery(since=2.0)) == []
    ledger.close()


def test_events_are_found_by_each_of_their_fields(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db", Clock())
    events = [
        HistoryEvent(1.0, "lost", "id1", "vnet0", "web", None),
        HistoryEvent(2.0, "moved", "id2", "vnet0", "db", 1000),
        HistoryEvent(3.0, "refused", "", "vnet%d", "db", 1000, "no bridges 'br1'"),
        HistoryEvent(4.0, "lost", "id2", "vnet0", "db", 1000),
    ]
    for event in events:
        ledger.record_event(event)

    def times(**fields: Any) -> list[float]:
        return [event.time for event in ledger.events(EventQuery(**fields))]

    assert ledger.events() == events
    assert times(since=2.0, until=3.0) == [2.0, 3.0]
    assert times(event="lost") == [1.0, 4.0]
    assert times(name="vnet0", owner="db") == [2.0, 4.0]
    assert times(lease="id2") == times(lease="id2", caller_uid=1000) == [2.0, 4.0]
    assert times(caller_uid=1000) == [2.0, 3.0, 4.0]
    assert times(caller_uid=1000, limit=2) == times(limit=2) == [3.0, 4.0]
    ledger.close()


def test_the_ledger_forgets_after_as_many_days_as_its_setting_says(
    tmp_path: Path,
) -> None:
    clock = Clock()
    ledger = Ledger(tmp_path / "ledger.db", clock)
    ledger.keep_history(days=1.5)

    def one() -> str:
        (lease,) = hold(ledger, Tap())
        ledger.end([lease.id])
        event = HistoryEvent(clock.wall, "lost", lease.id, lease.name, "", None)
        ledger.record_event(event)
        return lease.id

    first = one()
    clock.wall += DAY
    second = one()
    assert {entry.lease for entry in ledger.entries(HistoryQuery())} == {first, second}
    clock.wall += 0.6 * DAY
    third = one()
    assert {entry.lease for entry in ledger.entries(HistoryQuery())} == {second, third}
    assert {event.lease for event in ledger.events()} == {second, third}
    ledger.keep_history(100)
    clock.wall += DAY
    assert one()
    assert len(ledger.entries(HistoryQuery())) == 2, "the days stay as they were set"
    ledger.close()


def test_a_user_makes_no_entries_of_others_go(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(tmp_path / "ledger.db", clock)
    ledger.keep_history(100)
    mallory, alice, root = 61003, 61001, None
    for caller_uid, count in ((alice, 5), (root, 5), (mallory, 300)):
        for _ in range(count):
            clock.wall += 1
            reserved = reserve(ledger, Tap(), caller_uid=caller_uid)
            (lease,) = ledger.activate(reserved, [None])
            ledger.record_event(
                HistoryEvent(clock.wall, "moved", lease.id, lease.name, "", caller_uid)
            )
            ledger.end([lease.id])
    for kept in (ledger.entries(HistoryQuery()), ledger.events()):
        users = Counter(item.caller_uid for item in kept)
        assert (users[alice], users[root]) == (5, 5)
        assert users[mallory] <= 100 // USERS
    ledger.close()
