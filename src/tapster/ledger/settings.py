# SPDX-License-Identifier: Apache-2.0
"""The settings of a ledger: its id, and the numbers that it gives out in turn.

Every function runs inside a transaction of the caller.
"""

from tapster.ledger import sqlite
from tapster.ledger.database import Damage
from tapster.light import Any, Callable

FIRST_IFINDEX = 1 << 30
"""The lowest interface index that Tapster uses. The kernel counts its own up from 1."""
LAST_IFINDEX = (1 << 31) - 1


def setting(db: sqlite.Connection, key: str) -> Any:
    """Return the value of a setting. Raise Damage if the ledger has none."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise _missing(key)
    return row[0]


def next_manager(db: sqlite.Connection) -> int:
    """Return a manager number that was never given out before."""
    return _count(db, "next_manager", first=1, last=(1 << 63) - 1)


def next_ifindex(db: sqlite.Connection, netns: int) -> int:
    """Return an interface index that no lease in the namespace has.

    The indexes are given out in turn. So an index comes again only after 2^30
    others.
    """
    query = "SELECT 1 FROM lease WHERE netns = ? AND ifindex = ?"
    while True:
        ifindex = _count(db, "next_ifindex", first=FIRST_IFINDEX, last=LAST_IFINDEX)
        if not db.execute(query, (netns, ifindex)).fetchone():
            return ifindex


def history_rows(db: sqlite.Connection, default: int) -> int:
    """Return how many entries the history keeps."""
    query = "SELECT value FROM meta WHERE key = 'history_rows'"
    row = db.execute(query).fetchone()
    return default if row is None else int(row[0])


def set_history_rows(db: sqlite.Connection, rows: int) -> None:
    """Set how many entries the history keeps."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('history_rows', ?)", (rows,))


def history_days(db: sqlite.Connection) -> float | None:
    """Return how many days entries of the history are kept; None for any number."""
    query = "SELECT value FROM meta WHERE key = 'history_days'"
    row = db.execute(query).fetchone()
    return None if row is None else float(row[0])


def set_history_days(db: sqlite.Connection, days: float) -> None:
    """Set how many days entries of the history are kept."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('history_days', ?)", (days,))


def populate(db: sqlite.Connection, randomness: Callable[[int], bytes]) -> None:
    """Write the settings of a new ledger."""
    room = LAST_IFINDEX - FIRST_IFINDEX + 1
    start = int.from_bytes(randomness(4), "big") % room
    db.executemany(
        "INSERT INTO meta VALUES (?, ?)",
        [
            ("ledger", randomness(4).hex()),
            # A random start keeps the indexes of two ledgers on one host apart.
            ("next_ifindex", FIRST_IFINDEX + start),
            # A new ledger may find the lock file of an old ledger. A random start
            # keeps their manager numbers apart.
            ("next_manager", 1 + int.from_bytes(randomness(5), "big")),
        ],
    )


def _count(db: sqlite.Connection, key: str, first: int, last: int) -> int:
    """Return a number that is given out in turn; after `last` comes `first` again."""
    query = (
        "UPDATE meta SET value = iif(value < ?, value + 1, ?) WHERE key = ? "
        "RETURNING value"
    )
    row = db.execute(query, (last, first, key)).fetchone()
    if row is None:
        raise _missing(key)
    following = int(row[0])
    return following - 1 if following > first else last


def _missing(key: str) -> Damage:
    return Damage(f"the setting {key!r} is missing")
