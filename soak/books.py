# SPDX-License-Identifier: Apache-2.0
"""Read a ledger as any program can: with plain SQL, and without Tapster."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from soak.part import ledger_path


class LeaseRow(NamedTuple):
    """A lease."""

    id: str
    owner: str
    name: str
    ifindex: int
    state: str
    netns: str
    fin_wait: float


_ROWS = (
    "SELECT lease.id, owner, name, ifindex, state, path, fin_wait "
    "FROM lease JOIN netns ON netns.id = lease.netns "
)


def rows(ledger: str) -> list[LeaseRow]:
    """Return all leases."""
    with closing(_open(ledger)) as db:
        return [LeaseRow(*row) for row in db.execute(_ROWS)]


def rows_of(ledger: str, owner: str) -> list[LeaseRow]:
    """Return the leases of the owners whose names begin so."""
    with closing(_open(ledger)) as db:
        query = _ROWS + "WHERE owner GLOB ?"
        return [LeaseRow(*row) for row in db.execute(query, (owner + "*",))]


def shared_names(ledger: str) -> Iterator[str]:
    """Each name that two leases had at one time, by the history."""
    with closing(_open(ledger)) as db:
        entries = db.execute(
            "SELECT netns, name, owner, created, ended FROM history "
            "ORDER BY netns, name, created"
        ).fetchall()
    before: tuple[str, str, str, float, float] | None = None
    for entry in entries:
        netns, name, owner, created, _ = entry
        if before and before[:2] == (netns, name) and created < before[4]:
            had = f"{name} in {netns} was {before[2]}'s until {before[4]}"
            yield f"{had}, and {owner}'s from {created}"
        before = entry


def _open(ledger: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{ledger_path(ledger)}?mode=ro", uri=True, timeout=30)
