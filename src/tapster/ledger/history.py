# SPDX-License-Identifier: Apache-2.0
"""The leases that have ended, and what happened to devices: for `who` and `report`.

Every function runs inside a transaction of the caller.
"""

import sqlite3
from collections.abc import Iterable

from tapster.ledger import rows, settings
from tapster.model import HistoryEntry, HistoryEvent, HistoryQuery, Kind

HISTORY_ROWS = 100_000
"""How many ended leases the ledger remembers, unless a setting says otherwise."""
HISTORY_SHARE = 10_000
"""How many of these one user of the daemon may have acquired."""
PRUNE_EVERY = 64
"""Entries after which a user's share is enforced: counting takes a while."""
_PRUNE = """
DELETE FROM history WHERE caller_uid = ?1 AND created <= (
    SELECT created FROM history WHERE caller_uid = ?1
    ORDER BY created DESC LIMIT 1 OFFSET ?2
)
"""

# Each SELECT finds its rows in order by an index, and SQLite merges the two: so a
# limit bounds the work. An entry of one lease in both tables cannot be seen, because
# a lease ends in one transaction.
_ENTRIES = """
SELECT name, lease, owner, kind, mac, ifindex, netns, created, released, ended,
       caller_uid, labels
FROM history {indexed} WHERE {ended}
UNION ALL
SELECT name, lease.id, owner, kind, mac, ifindex, path, created, released, NULL,
       caller_uid, labels
FROM lease JOIN netns ON netns.id = lease.netns WHERE {live}
ORDER BY created DESC LIMIT {limit}
"""

_CONDITIONS = {
    "name": "name = :name",
    "owner": "owner = :owner",
    "mac": "mac = :mac",
    "label": "instr(char(10) || labels || char(10), :label)",
    "caller_uid": "caller_uid = :caller_uid",
    "until": "created <= :until",
    "at": "created <= :at",
}
"""The conditions of a query's fields that are equal for both tables."""

_RECORD = """
INSERT INTO history (name, lease, owner, kind, mac, ifindex, netns, created, released,
                     ended, caller_uid, labels)
SELECT name, lease.id, owner, kind, mac, ifindex, path, created,
       coalesce(released, ?), ?, caller_uid, labels
FROM lease JOIN netns ON netns.id = lease.netns
WHERE lease.id = ? AND state != 'reserved'
"""


def entries(db: sqlite3.Connection, query: HistoryQuery) -> list[HistoryEntry]:
    """Return the leases that fit a query, active ones too, the latest first."""
    values = {key: value for key, value in query._asdict().items() if value is not None}
    if query.label is not None:
        values["label"] = "\n" + rows.text_of_pairs([query.label]) + "\n"
    both = ["1", *(sql for key, sql in _CONDITIONS.items() if key in values)]
    ended, live = list(both), list(both)
    if query.lease is not None:
        ended.append("lease = :lease")
        live.append("lease.id = :lease")
    ended += [f"ended > :{key}" for key in ("since", "at") if key in values]
    narrowed = {"name", "owner", "mac", "lease"} & values.keys()
    # Without a name the time is what narrows best; SQLite cannot know that. A user's
    # entries are few (HISTORY_SHARE), where those of a name may be many.
    indexed = ""
    if query.caller_uid is not None and query.lease is None:
        indexed = "INDEXED BY history_caller"
    elif {"since", "at"} & values.keys() and not narrowed:
        indexed = "INDEXED BY history_ended"
    text = _ENTRIES.format(
        indexed=indexed,
        ended=" AND ".join(ended),
        live=" AND ".join(live),
        limit=-1 if query.limit is None else int(query.limit),
    )
    found = db.execute(text, values)
    return [
        HistoryEntry._make([*row[:3], Kind(row[3]), *row[4:11], rows.pairs_of(row[11])])
        for row in found
    ]


def has(db: sqlite3.Connection, id: str) -> bool:
    """Return whether a lease of this id has ended."""
    query = "SELECT 1 FROM history WHERE lease = ?"
    return db.execute(query, (id,)).fetchone() is not None


def record(db: sqlite3.Connection, ids: Iterable[str], wallclock: float) -> None:
    """Record the end of leases, apart from those that never became active.

    Forget the oldest entries beyond the limit, and now and then a user's oldest beyond
    HISTORY_SHARE: no user can make the entries of others go.
    """
    ids = list(ids)
    users = {
        uid
        for id in ids
        for (uid,) in db.execute("SELECT caller_uid FROM lease WHERE id = ?", (id,))
        if uid is not None
    }
    db.executemany(_RECORD, [(wallclock, wallclock, id) for id in ids])
    (last,) = db.execute("SELECT max(seq) FROM history").fetchone()
    if users and last and last // PRUNE_EVERY != (last - len(ids)) // PRUNE_EVERY:
        db.executemany(_PRUNE, [(uid, HISTORY_SHARE) for uid in users])
    db.execute(
        "DELETE FROM history WHERE seq <= (SELECT max(seq) FROM history) - ?",
        (settings.history_rows(db, HISTORY_ROWS),),
    )


def record_event(db: sqlite3.Connection, event: HistoryEvent) -> None:
    """Record something that happened to a device; forget the oldest events."""
    db.execute(
        "INSERT INTO event (time, event, lease, name, owner, caller_uid, detail) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        event,
    )
    db.execute(
        "DELETE FROM event WHERE seq <= (SELECT max(seq) FROM event) - ?",
        (settings.history_rows(db, HISTORY_ROWS),),
    )


def events(
    db: sqlite3.Connection,
    since: float | None,
    until: float | None,
    caller_uid: int | None = None,
    limit: int | None = None,
) -> list[HistoryEvent]:
    """Return what happened to devices in a time, the earliest first.

    At most `limit` events, the latest ones. Only events of leases of the user
    `caller_uid`, if given.
    """
    indexed, whose = "", ""
    if caller_uid is not None:
        indexed, whose = "INDEXED BY event_caller ", "AND caller_uid = :caller_uid "
    found = db.execute(
        "SELECT time, event, lease, name, owner, caller_uid, detail "  # noqa: S608 - our names
        f"FROM event {indexed}WHERE time >= :since AND time <= :until {whose}"
        "ORDER BY time DESC LIMIT :limit",
        {
            "since": 0.0 if since is None else since,
            "until": 1e18 if until is None else until,
            "caller_uid": caller_uid,
            "limit": -1 if limit is None else limit,
        },
    )
    return [HistoryEvent(*row) for row in found][::-1]
