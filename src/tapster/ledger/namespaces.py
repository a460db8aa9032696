# SPDX-License-Identifier: Apache-2.0
"""The network namespaces that the ledger knows, one row each.

Every function runs inside a transaction of the caller.
"""

from tapster.ledger import sqlite
from tapster.model import Netns


def row_of(db: sqlite.Connection, netns: Netns) -> int:
    """Return the row id of a namespace. Add the namespace if it is new."""
    known = db.execute(
        "SELECT id, path FROM netns WHERE boot = ? AND cookie = ?",
        (netns.boot, netns.cookie),
    ).fetchone()
    if known is None:
        known = db.execute(
            "INSERT INTO netns (boot, cookie, path, pidns) VALUES (?, ?, ?, ?) "
            "RETURNING id, path",
            netns,
        ).fetchone()
    elif netns.path and known[1] != netns.path:
        # The namespace was recorded under another path, or under none.
        db.execute("UPDATE netns SET path = ? WHERE id = ?", (netns.path, known[0]))
    return int(known[0])


def with_leases(db: sqlite.Connection) -> list[Netns]:
    """Return the namespaces in which there are leases."""
    rows = db.execute(
        "SELECT boot, cookie, path, pidns FROM netns "
        "WHERE EXISTS (SELECT 1 FROM lease WHERE lease.netns = netns.id)"
    )
    return [Netns(*row) for row in rows]


def forget_unused(db: sqlite.Connection) -> None:
    """Forget the namespaces without leases, with their templates and foreign names.

    The allocator can find all of that out again.
    """
    db.execute("DELETE FROM netns WHERE id NOT IN (SELECT netns FROM lease)")
