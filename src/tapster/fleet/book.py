# SPDX-License-Identifier: Apache-2.0
"""The tables of a ledger for the fleet: records, blocks, segments.

Triggers keep the records in step with the leases (book.sql). So release, reap,
recover and set know nothing of a fleet. The file is the ledger's own, and each method
is one transaction.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence

from tapster.fleet import keys
from tapster.fleet.keys import BLOCK_SIZE, InventoryRow
from tapster.fleet.registration import (
    Epoch,
    PushAction,
    Record,
    RecordState,
)
from tapster.fleet.steps import Outcome
from tapster.ledger import Ledger
from tapster.light import Any, NamedTuple

REST = 86400.0
"""Seconds before another VM gets a MAC: neighbours remember the MAC. If the clock was
far ahead when the VM ended, the MAC does not rest until that time."""


UNASKED = "unasked: "
"""What the problem of a record begins with if the store could not be asked."""


class BookEntry(NamedTuple):
    """A record, with its line of the inventory and the number of its last change."""

    record: Record
    row: InventoryRow
    serial: int
    problem: str = ""
    changed: float = 0.0

    @property
    def conflicts(self) -> bool:
        """Whether another VM or another host has the MAC, as far as is known."""
        return bool(self.problem) and not self.problem.startswith(UNASKED)


_ENTRIES = """
SELECT fleet_record.lease, fleet_record.segment, fleet_record.mac, vm, term, step,
       fleet_record.state, since, sent, serial, problem, changed,
       coalesce(name, ''), coalesce(owner, ''), coalesce(kind, ''),
       coalesce(bridge, ovs, lower, '')
FROM fleet_record LEFT JOIN lease ON lease.id = fleet_record.lease
"""


class Book:
    """The part of a ledger that belongs to the fleet."""

    def __init__(self, ledger: Ledger) -> None:
        self._file = ledger.file
        self.ledger = ledger.id

    # Joining and leaving

    def open(self, segments: Mapping[str, str]) -> None:
        """Add the tables, unless they are there, and set the segments."""
        with self._file.changing() as db:
            known = db.execute(
                "SELECT 1 FROM sqlite_schema WHERE name = 'fleet_segment'"
            ).fetchone()
            if not known:
                statements = _statements()
                db.execute(statements[0])
                _set_segments(db, segments)  # the last statement needs them
                for statement in statements[1:]:
                    db.execute(statement)
            elif _set_segments(db, segments):
                for statement in _MOVE:
                    db.execute(statement)

    def remove(self) -> None:
        """Remove the tables and triggers: the host has left the fleet."""
        with self._file.changing() as db:
            names = db.execute(
                "SELECT type, name FROM sqlite_schema WHERE name LIKE 'fleet!_%' "
                "ESCAPE '!' AND type IN ('table', 'view', 'trigger') "
                "ORDER BY type = 'table', type = 'view'"
            ).fetchall()
            for kind, name in names:
                db.execute(f"DROP {kind} {name}")

    # Blocks

    def blocks(self) -> dict[str, bool]:
        """Return the blocks, and whether the store gives each to this host."""
        with self._file.reading() as db:
            rows = db.execute("SELECT block, lost FROM fleet_block").fetchall()
        return {block: not lost for block, lost in rows}

    def set_block(self, block: str, *, lost: bool = False) -> None:
        """Add a block, or change whose it is."""
        with self._file.changing() as db:
            db.execute(
                "INSERT INTO fleet_block VALUES (?, 0, ?) "
                "ON CONFLICT (block) DO UPDATE SET lost = excluded.lost",
                (block, lost),
            )

    def free_macs(self, now: float) -> int:
        """Return how many MACs of the blocks can be given out."""
        with self._file.reading() as db:
            return sum(
                not _in_use(db, mac, now)
                for (block,) in db.execute(
                    "SELECT block FROM fleet_block WHERE NOT lost"
                )
                for mac in keys.macs_of(block)
            )

    def next_mac(self, now: float) -> str | None:
        """Return a MAC of a block that no VM has, and none had recently; None if none
        is left.

        The MACs are given out in turn. A MAC that is not used comes again after all
        others.
        """
        with self._file.changing() as db:
            blocks = db.execute(
                "SELECT block, next FROM fleet_block WHERE NOT lost ORDER BY block"
            ).fetchall()
            for block, first in blocks:
                macs = keys.macs_of(block)
                for number in range(first, first + BLOCK_SIZE):
                    mac = macs[number % BLOCK_SIZE]
                    if not _in_use(db, mac, now):
                        db.execute(
                            "UPDATE fleet_block SET next = ? WHERE block = ?",
                            ((number + 1) % BLOCK_SIZE, block),
                        )
                        return mac
        return None

    def skip(self, block: str, macs: Collection[str], now: float) -> None:
        """Go on behind those of these MACs of a block that the ledger does not know.

        A ledger that was restored from a backup does not know the VMs that were started
        later. They have the MACs that come next. MACs that come much later were given
        out long ago, and their VMs have moved to other hosts.
        """
        with self._file.changing() as db:
            query = "SELECT next FROM fleet_block WHERE block = ?"
            (first,) = db.execute(query, (block,)).fetchone()
            given = [
                turn
                for number, mac in enumerate(keys.macs_of(block))
                if (turn := (number - first) % BLOCK_SIZE) < BLOCK_SIZE // 2
                and mac in macs
                and not _in_use(db, mac, now)
            ]
            if given:
                db.execute(
                    "UPDATE fleet_block SET next = ? WHERE block = ?",
                    ((first + max(given) + 1) % BLOCK_SIZE, block),
                )

    # Records

    def identify(self, lease: str, vm: str, epoch: Epoch | None, *, sent: bool) -> None:
        """Record the VM of a reserved lease, and the epoch that was handed over."""
        term, step = epoch or (None, None)
        with self._file.changing() as db:
            db.execute(
                "UPDATE fleet_record SET vm = ?, term = ?, step = ?, sent = ? "
                "WHERE lease = ? AND state = 'reserved'",
                (vm, term, step, sent, lease),
            )

    def entries(self, where: str = "", *values: object) -> list[BookEntry]:
        """Records, in the order of their changes; `where` is SQL."""
        with self._file.reading() as db:
            rows = db.execute(f"{_ENTRIES} {where} ORDER BY serial", values).fetchall()
        return [_entry(row) for row in rows]

    def dirty(self) -> list[BookEntry]:
        """Return the records that are to be pushed."""
        return self.entries(
            "WHERE dirty AND fleet_record.state NOT IN ('reserved', 'standby')"
        )

    def of_lease(self, lease: str) -> BookEntry | None:
        """Return the latest record of a lease."""
        return next(
            iter(self.entries("WHERE fleet_record.lease = ?", lease)[-1:]), None
        )

    def running(self) -> frozenset[str]:
        """Return the leases of this host that are not released."""
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT lease FROM fleet_record "
                "WHERE state IN ('reserved', 'standby', 'active')"
            ).fetchall()
        return frozenset(lease for (lease,) in rows)

    def all_dirty(self) -> None:
        """Let every record be pushed again."""
        with self._file.changing() as db:
            db.execute("UPDATE fleet_record SET dirty = 1")

    def sending(self, leases: Sequence[str]) -> None:
        """Remember that requests that activate these registrations may be under way."""
        with self._file.changing() as db:
            db.executemany(
                "UPDATE fleet_record SET sent = 1 WHERE lease = ?",
                [(lease,) for lease in leases],
            )

    def note(self, leases: Sequence[str], problem: str) -> None:
        """Note a problem with the records of these leases, for people."""
        with self._file.changing() as db:
            db.executemany(
                "UPDATE fleet_record SET problem = ? WHERE lease = ?",
                [(problem, lease) for lease in leases],
            )

    def record_outcomes(
        self, done: Iterable[tuple[BookEntry, Outcome]], now: float
    ) -> None:
        """Record the outcomes of pushes."""
        with self._file.changing() as db:
            for entry, outcome in done:
                _record_outcome(db, entry, outcome, now)

    def rested(self, now: float) -> list[BookEntry]:
        """Ended records whose MAC can be given to another VM."""
        return self.entries(
            "WHERE NOT dirty AND fleet_record.state = 'ended' AND abs(? - changed) > ?",
            *(now, REST),
        )

    def parked(self) -> list[BookEntry]:
        """Records of VMs that no host runs, as far as this host knows."""
        return self.entries("WHERE NOT dirty AND fleet_record.state = 'parked'")

    def forget(self, entry: BookEntry) -> None:
        """Remove a record, unless it has changed."""
        with self._file.changing() as db:
            db.execute(
                "DELETE FROM fleet_record "
                "WHERE lease = ? AND segment = ? AND serial = ?",
                (entry.record.lease, entry.record.segment, entry.serial),
            )


def _statements() -> list[str]:
    path = os.path.join(os.path.dirname(__file__), "book.sql")
    with open(path) as file:
        _, *statements = file.read().split("\n\n")
    return statements


def _set_segments(db: Any, segments: Mapping[str, str]) -> bool:
    """Set the segments. Return whether they have changed."""
    before = dict(db.execute("SELECT device, segment FROM fleet_segment").fetchall())
    if before == {**segments}:
        return False
    db.execute("DELETE FROM fleet_segment")
    db.executemany("INSERT INTO fleet_segment VALUES (?, ?)", [*segments.items()])
    return True


_MOVE = (
    """
    UPDATE fleet_record SET dirty = 1,
        state = CASE vm WHEN 'lease/' || lease THEN 'ended' ELSE 'parked' END,
        serial = (SELECT max(serial) + 1 FROM fleet_record),
        changed = CAST(strftime('%s', 'now') AS REAL)
    WHERE state IN ('reserved', 'standby', 'active') AND segment !=
        (SELECT segment FROM fleet_lease WHERE id = fleet_record.lease)
    """,
    """
    INSERT INTO fleet_record
        (lease, segment, mac, vm, state, since, dirty, serial, changed)
    SELECT id, segment, lower(mac),
        (SELECT vm FROM fleet_record WHERE lease = id ORDER BY serial DESC),
        CASE WHEN standby THEN 'standby' WHEN state = 'active' THEN 'active'
            ELSE 'reserved' END, created,
        1, (SELECT max(serial) + 1 FROM fleet_record), created
    FROM fleet_lease WHERE state IN ('reserved', 'active') AND NOT EXISTS
        (SELECT 1 FROM fleet_record WHERE lease = id AND segment = fleet_lease.segment
            AND fleet_record.state IN ('reserved', 'standby', 'active'))
    ON CONFLICT (lease, segment) DO UPDATE SET
        term = NULL, step = NULL, state = excluded.state, dirty = 1,
        serial = excluded.serial
    """,
)
"""The devices are on other segments now: registrations end there and begin here."""


def _in_use(db: Any, mac: str, now: float) -> bool:
    """Return whether a lease has a MAC or had it recently, or its VM may come back."""
    query = (
        "SELECT 1 FROM lease WHERE mac = ? UNION ALL SELECT 1 FROM stable WHERE mac = ?"
    )
    if db.execute(query, (mac, mac)).fetchone():
        return True
    query = (
        "SELECT 1 FROM fleet_record WHERE mac = ? "
        "AND (state != 'ended' OR abs(? - changed) <= ?)"
    )
    return db.execute(query, (mac, now, REST)).fetchone() is not None


def _record_outcome(db: Any, entry: BookEntry, outcome: Outcome, now: float) -> None:
    record = entry.record
    which = (record.lease, record.segment)
    if outcome.epoch is not None:
        db.execute(
            "UPDATE fleet_record SET term = ?, step = ? "
            "WHERE lease = ? AND segment = ? "
            "AND (term IS NULL OR (term, step) < (?, ?))",
            (*outcome.epoch, *which, *outcome.epoch),
        )
    if outcome.action is PushAction.REPORT:
        db.execute(
            "UPDATE fleet_record SET problem = ? WHERE lease = ? AND segment = ?",
            (describe(outcome), *which),
        )
        return
    db.execute(
        "UPDATE fleet_record SET dirty = 0, problem = '' "
        "WHERE lease = ? AND segment = ? AND serial = ?",
        (*which, entry.serial),
    )


def figures(book: Book, now: float) -> Mapping[str, float]:
    """Numbers for monitoring, from the ledger alone."""
    dirty = book.dirty()
    running = book.entries("WHERE fleet_record.state = 'active'")
    return {
        "dirty_rows": len(dirty),
        "dirty_oldest_seconds": max(
            (now - entry.changed for entry in dirty), default=0.0
        ),
        "conflicts": sum(entry.conflicts for entry in dirty),
        "unregistered": sum(entry.record.epoch is None for entry in running),
        "block_free": book.free_macs(now),
    }


def describe(outcome: Outcome) -> str:
    """Return the holder of the MAC, in words."""
    if outcome.block is not None:
        return (
            f"it is in a block of host {outcome.block.host}, which gives its MACs to "
            "its own VMs"
        )
    found = outcome.against
    if found is None:
        return ""
    if found.state is RecordState.ACTIVE:
        return f"VM {found.vm} has it on host {found.host} (epoch {found.epoch})"
    return f"it is reserved for VM {found.vm}, last on host {found.host}"


def _entry(row: Sequence[Any]) -> BookEntry:
    lease, segment, mac, vm, term, step, state, since, sent, serial, *others = row
    problem, changed, name, owner, kind, on = others
    record = Record(
        lease,
        segment,
        mac,
        vm,
        None if term is None else Epoch(term, step),
        RecordState(state),
        since,
        bool(sent),
    )
    row_ = InventoryRow(name, mac, segment, vm, owner, kind, on, state, since)
    return BookEntry(record, row_, serial, problem, changed)
