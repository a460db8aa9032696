# SPDX-License-Identifier: Apache-2.0
"""The leases that have ended, so that `tapster who` can say who had a name.

Every function runs inside a transaction of the caller.
"""

import sqlite3
from collections.abc import Iterable

from tapster.model import HistoryEntry, Kind

HISTORY_ROWS = 100_000
"""How many ended leases the ledger remembers."""

_ENTRIES = """
SELECT lease, owner, kind, mac, ifindex, netns, created, released, ended, caller_uid
FROM history WHERE name = ?
UNION ALL
SELECT lease.id, owner, kind, mac, ifindex, path, created, released, NULL, caller_uid
FROM lease JOIN netns ON netns.id = lease.netns WHERE name = ?
ORDER BY created DESC
"""

_RECORD = """
INSERT INTO history (name, lease, owner, kind, mac, ifindex, netns, created, released,
                     ended, caller_uid)
SELECT name, lease.id, owner, kind, mac, ifindex, path, created,
       coalesce(released, ?), ?, caller_uid
FROM lease JOIN netns ON netns.id = lease.netns
WHERE lease.id = ? AND state != 'reserved'
"""


def entries(db: sqlite3.Connection, name: str) -> list[HistoryEntry]:
    """Return the leases that have or had a name, the latest first."""
    return [
        HistoryEntry(
            name=name,
            lease=lease,
            owner=owner,
            kind=Kind(kind),
            mac=mac,
            ifindex=ifindex,
            netns=netns,
            created=created,
            released=released,
            ended=ended,
            caller_uid=caller_uid,
        )
        for (
            lease,
            owner,
            kind,
            mac,
            ifindex,
            netns,
            created,
            released,
            ended,
            caller_uid,
        ) in db.execute(_ENTRIES, (name, name))
    ]


def has(db: sqlite3.Connection, id: str) -> bool:
    """Return whether a lease of this id has ended."""
    query = "SELECT 1 FROM history WHERE lease = ?"
    return db.execute(query, (id,)).fetchone() is not None


def record(db: sqlite3.Connection, ids: Iterable[str], wallclock: float) -> None:
    """Record the end of leases, apart from those that never became active.

    Forget the oldest entries beyond HISTORY_ROWS.
    """
    db.executemany(_RECORD, [(wallclock, wallclock, id) for id in ids])
    db.execute(
        "DELETE FROM history WHERE seq <= (SELECT max(seq) FROM history) - ?",
        (HISTORY_ROWS,),
    )
