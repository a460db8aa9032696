# SPDX-License-Identifier: Apache-2.0
"""Claims: the right of one manager to work on a lease in several steps.

A claim is the number of a manager in the lease's row. It ends when the manager
releases it, or when the manager dies: `is_alive` tells that. Every function runs
inside a transaction of the caller.
"""

from tapster.ledger import sqlite
from tapster.light import Callable, Sequence
from tapster.model import Lease

IsAlive = Callable[[int], bool]
"""Tells whether the manager with a number lives."""


def is_available(lease: Lease, manager: int, is_alive: IsAlive) -> bool:
    """Return whether no living manager except this one has claimed the lease."""
    return lease.manager in (None, manager) or not is_alive(lease.manager)


def claim(db: sqlite.Connection, leases: Sequence[Lease], manager: int) -> list[Lease]:
    """Record the manager's claim on each lease. Return the leases as they are now."""
    db.executemany(
        "UPDATE lease SET manager = ? WHERE id = ?",
        [(manager, lease.id) for lease in leases],
    )
    return [lease._replace(manager=manager) for lease in leases]


def release(db: sqlite.Connection, manager: int) -> None:
    """End every claim of a manager."""
    db.execute("UPDATE lease SET manager = NULL WHERE manager = ?", (manager,))


def release_due_of_the_dead(
    db: sqlite.Connection, boottime: float, is_alive: IsAlive
) -> None:
    """End the claims of dead managers on leases whose deadline has passed."""
    claimants = "SELECT DISTINCT manager FROM lease WHERE manager IS NOT NULL"
    for (manager,) in db.execute(claimants).fetchall():
        if not is_alive(manager):
            db.execute(
                "UPDATE lease SET manager = NULL WHERE manager = ? "
                "AND state = 'fin_wait' AND deadline <= ?",
                (manager, boottime),
            )
