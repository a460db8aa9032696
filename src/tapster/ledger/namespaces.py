# SPDX-License-Identifier: Apache-2.0
"""The network namespaces that the ledger knows, one row each.

Every function runs inside a transaction of the caller.
"""

from tapster.ledger import sqlite
from tapster.light import NamedTuple
from tapster.model import Netns


class Row(NamedTuple):
    """A namespace, as the ledger has it."""

    id: int
    netns: Netns
    has_foreign: bool
    """Names of foreign devices are remembered there."""


def find(db: sqlite.Connection, netns: Netns) -> Row:
    """Return the row of a namespace. Add the namespace if it is new."""
    query = (
        "SELECT id, path, pidns, "
        "EXISTS (SELECT 1 FROM foreign_name WHERE netns = netns.id) "
        "FROM netns WHERE boot = ? AND cookie = ?"
    )
    known = db.execute(query, (netns.boot, netns.cookie)).fetchone()
    if known is None:
        add = "INSERT INTO netns (boot, cookie, path, pidns) VALUES (?, ?, ?, ?) "
        (id,) = db.execute(add + "RETURNING id", netns).fetchone()
        return Row(id, netns, has_foreign=False)
    id, path, pidns, has_foreign = known
    if netns.path and path != netns.path:
        # The namespace was recorded under another path, or under none.
        db.execute("UPDATE netns SET path = ? WHERE id = ?", (netns.path, id))
        path = netns.path
    if (path, pidns) != (netns.path, netns.pidns):
        netns = netns._replace(path=path, pidns=pidns)
    return Row(id, netns, has_foreign == 1)


def row_of(db: sqlite.Connection, netns: Netns) -> int:
    """Return the row id of a namespace. Add the namespace if it is new."""
    return find(db, netns).id


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
