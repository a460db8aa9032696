# SPDX-License-Identifier: Apache-2.0
"""The leases that have ended, and what happened to devices: for `who` and `report`.

Every function runs inside a transaction of the caller.
"""

from tapster.ledger import rows, settings, sqlite
from tapster.light import Any, Iterable
from tapster.model import EventQuery, HistoryEntry, HistoryEvent, HistoryQuery, Kind

HISTORY_ROWS = 100_000
"""How many ended leases the ledger remembers, unless a setting says otherwise."""
DAY = 86400.0
USERS = 10
"""One user of the daemon may have one in this many of the entries."""
PRUNE_EVERY = 64
"""Entries after which the limits are enforced: counting takes a while."""
_PRUNE_USER = """
DELETE FROM {table} WHERE caller_uid = ? AND {time} <= (
    SELECT {time} FROM {table} WHERE caller_uid = ?
    ORDER BY {time} DESC LIMIT 1 OFFSET ?
)
"""
_PRUNE = """
DELETE FROM {table} WHERE seq IN (SELECT seq FROM {table} ORDER BY seq LIMIT ?)
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

_EVENT_CONDITIONS = {
    "since": "time >= :since",
    "until": "time <= :until",
    "event": "event = :event",
    "name": "name = :name",
    "owner": "owner = :owner",
    "lease": "lease = :lease",
    "caller_uid": "caller_uid = :caller_uid",
}

_RECORD = """
INSERT INTO history (name, lease, owner, kind, mac, ifindex, netns, created, released,
                     ended, caller_uid, labels)
SELECT name, lease.id, owner, kind, mac, ifindex, path, created,
       coalesce(released, ?), ?, caller_uid, labels
FROM lease JOIN netns ON netns.id = lease.netns
WHERE lease.id = ? AND state != 'reserved'
"""


def entries(db: sqlite.Connection, query: HistoryQuery) -> list[HistoryEntry]:
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
    # entries are few (a part of USERS), where those of a name may be many.
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


def has(db: sqlite.Connection, id: str) -> bool:
    """Return whether a lease of this id has ended."""
    query = "SELECT 1 FROM history WHERE lease = ?"
    return db.execute(query, (id,)).fetchone() is not None


def record(db: sqlite.Connection, ids: Iterable[str], wallclock: float) -> None:
    """Record the end of leases, apart from those that never became active.

    Forget what exceeds the limits.
    """
    ids = list(ids)
    db.executemany(_RECORD, [(wallclock, wallclock, id) for id in ids])
    if _is_prunable(db, "history", len(ids)):
        users = {
            uid
            for id in ids
            for (uid,) in db.execute("SELECT caller_uid FROM lease WHERE id = ?", (id,))
            if uid is not None
        }
        _prune(db, "history", "created", users)
    _forget_old(db, "history", "ended", wallclock)


def record_event(db: sqlite.Connection, event: HistoryEvent) -> None:
    """Record something that happened to a device. Forget what exceeds the limits."""
    db.execute(
        "INSERT INTO event (time, event, lease, name, owner, caller_uid, detail) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        event,
    )
    if _is_prunable(db, "event", 1):
        users = () if event.caller_uid is None else (event.caller_uid,)
        _prune(db, "event", "time", users)
    _forget_old(db, "event", "time", event.time)


def _is_prunable(db: sqlite.Connection, table: str, added: int) -> bool:
    """Return whether the limits are to be enforced after so many rows were added."""
    limit = settings.history_rows(db, HISTORY_ROWS)
    every = max(1, min(PRUNE_EVERY, limit // 100))
    (last,) = db.execute(f"SELECT max(seq) FROM {table}").fetchone()  # noqa: S608
    return last is not None and last // every != (last - added) // every


def _prune(db: sqlite.Connection, table: str, time: str, users: Iterable[int]) -> None:
    """Forget the oldest rows beyond a user's share, and beyond the limit.

    Rows are counted; their row numbers do not decide. Each row that a user adds raises
    the numbers, which would make the rows of other users seem old. So no user can push
    out the rows of another.
    """
    limit = settings.history_rows(db, HISTORY_ROWS)
    share = max(1, limit // USERS)
    prune_user = _PRUNE_USER.format(table=table, time=time)
    db.executemany(prune_user, [(uid, uid, share) for uid in users])
    (rows,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
    if rows > limit:
        db.execute(_PRUNE.format(table=table), (rows - limit,))


def _forget_old(db: sqlite.Connection, table: str, time: str, now: float) -> None:
    """Forget the rows that are older than the setting, if there is one."""
    days = settings.history_days(db)
    if days is not None:
        oldest = now - days * DAY
        db.execute(f"DELETE FROM {table} WHERE {time} < ?", (oldest,))  # noqa: S608


_EVENT = "time, event, lease, name, owner, caller_uid, detail"


def events(db: sqlite.Connection, query: EventQuery) -> list[HistoryEvent]:
    """Return the events that fit a query, the earliest first."""
    return [HistoryEvent(*row) for row in _latest_events(db, _EVENT, query)][::-1]


def event_numbers(db: sqlite.Connection, query: EventQuery) -> list[int]:
    """Return the numbers of the events that fit a query, the earliest first."""
    return [number for (number,) in _latest_events(db, "seq", query)][::-1]


def numbered_events(
    db: sqlite.Connection, numbers: Iterable[int]
) -> list[HistoryEvent]:
    """Return the events with these numbers, as far as they are remembered."""
    found = f"SELECT {_EVENT} FROM event WHERE seq = ?"  # noqa: S608 - our names
    rows = (db.execute(found, (number,)).fetchone() for number in numbers)
    return [HistoryEvent(*row) for row in rows if row is not None]


def _latest_events(
    db: sqlite.Connection, columns: str, query: EventQuery
) -> Iterable[tuple[Any, ...]]:
    """Return columns of the events that fit a query, the latest first."""
    values = {key: value for key, value in query._asdict().items() if value is not None}
    conditions = [
        "1",
        *(sql for key, sql in _EVENT_CONDITIONS.items() if key in values),
    ]
    # SQLite cannot know that a user's events are few (a part of USERS).
    by_user = "caller_uid" in values and "lease" not in values
    indexed = "INDEXED BY event_caller" if by_user else ""
    return db.execute(
        f"SELECT {columns} "  # noqa: S608 - our names
        f"FROM event {indexed} WHERE {' AND '.join(conditions)} "
        "ORDER BY time DESC LIMIT :limit",
        {"limit": -1, **values},
    )
