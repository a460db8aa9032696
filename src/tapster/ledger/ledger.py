# SPDX-License-Identifier: Apache-2.0
"""The durable record of who owns which device, in SQLite.

Every public method is one transaction: it happens wholly or not at all, also
when the process is killed, and it excludes every other process's. Nothing here
looks at the kernel; what must be known of it is passed in.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from tapster.errors import (
    LeaseBusy,
    LedgerDamaged,
    NoSuchLease,
)
from tapster.ledger import rows
from tapster.ledger.allocator import Allocator, Taken
from tapster.ledger.database import Database
from tapster.model import (
    HistoryEntry,
    Kind,
    Lease,
    Macvtap,
    Netns,
    Process,
    Spec,
    State,
    Wiring,
    format_mac,
)
from tapster.names import Template

DEFAULT_PATH = "/var/lib/tapster/ledger.db"
HISTORY_ROWS = 100_000
"""How many ended leases are remembered."""
FIRST_IFINDEX = 1 << 30
"""Where our interface indexes begin: the kernel counts its own up from 1."""
LAST_IFINDEX = (1 << 31) - 1

_ENTRIES = """
SELECT lease, owner, kind, mac, ifindex, netns, created, released, ended, caller_uid
FROM history WHERE name = ?
UNION ALL
SELECT lease.id, owner, kind, mac, ifindex, path, created, released, NULL, caller_uid
FROM lease JOIN netns ON netns.id = lease.netns WHERE name = ?
ORDER BY created DESC
"""

_END = """
INSERT INTO history (name, lease, owner, kind, mac, ifindex, netns, created, released,
                     ended, caller_uid)
SELECT name, lease.id, owner, kind, mac, ifindex, path, created,
       coalesce(released, ?), ?, caller_uid
FROM lease JOIN netns ON netns.id = lease.netns
WHERE lease.id = ? AND state != 'reserved'
"""


class Reservation(NamedTuple):
    """One device to reserve: a checked request, with what it was resolved to."""

    spec: Spec
    template: Template
    mac: str | None
    wiring: Wiring
    backends: tuple[str, ...] = ()
    """As in `Lease`."""
    caller_uid: int | None = None
    """As in `Lease`; so is the next."""
    on_close: bool = False


class Clock(Protocol):
    """The two clocks. They are read inside transactions, so that what the ledger
    says happened later did."""

    def boottime(self) -> float:
        """`CLOCK_BOOTTIME` in seconds: it counts suspend, and nobody sets it."""

    def wallclock(self) -> float:
        """Seconds since the epoch, in whole milliseconds."""


class Ledger:
    """One open ledger. May be used by one thread at a time.

    Raises LedgerDamaged, LedgerTooNew or LedgerError from any method when the
    file cannot be used; then nothing was changed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Clock,
        *,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Open the ledger at `path`; make it, and its directory, if missing."""
        # One ledger, one lock file beside it, by whatever path they are reached.
        self.path = os.path.realpath(path)
        self._clock = clock
        self._randomness = randomness
        self._file = Database(self.path, self._populate)
        self._db = self._file.connection
        try:
            self.id = self._setting("ledger")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    # Reading

    def leases(self, *, all: bool = True) -> list[Lease]:
        """Every lease, oldest first; without those in FIN WAIT if not `all`."""
        where = "" if all else "WHERE state != 'fin_wait'"
        return self._leases(f"{where} ORDER BY lease.rowid")

    def lease(self, id: str) -> Lease | None:
        """The lease with this id."""
        return next(iter(self._leases("WHERE lease.id = ?", id)), None)

    def named(self, name: str) -> list[Lease]:
        """The leases that hold `name`, at most one in each network namespace."""
        return self._leases("WHERE name = ?", name)

    def at(self, netns: Netns, ifindexes: Iterable[int]) -> list[Lease]:
        """The leases of a namespace that have one of these ifindexes."""
        query = "WHERE boot = ? AND cookie = ? AND ifindex = ?"
        return [
            lease
            for ifindex in ifindexes
            for lease in self._leases(query, netns.boot, netns.cookie, ifindex)
        ]

    def namespaces(self) -> list[Netns]:
        """The network namespaces in which there are leases."""
        query = (
            "SELECT boot, cookie, path, pidns FROM netns "
            "WHERE EXISTS (SELECT 1 FROM lease WHERE lease.netns = netns.id)"
        )
        with self._file.translated():
            return [Netns(*row) for row in self._db.execute(query)]

    def suspects(self, boot: str) -> list[Lease]:
        """The leases that may be in need of mending.

        They are bound to a process, worked on by a manager, not yet active, or
        of another boot than `boot`.
        """
        return self._leases(
            "WHERE lease.rowid IN ("
            "SELECT rowid FROM lease WHERE manager IS NOT NULL UNION "
            "SELECT rowid FROM lease WHERE state = 'reserved' UNION "
            "SELECT rowid FROM lease WHERE pid IS NOT NULL AND state = 'active' UNION "
            "SELECT rowid FROM lease WHERE netns IN "
            "(SELECT id FROM netns WHERE boot != ?))",
            boot,
        )

    def ended(self, id: str) -> bool:
        """Whether the history has a lease of this id."""
        with self._file.translated():
            query = "SELECT 1 FROM history WHERE lease = ?"
            return self._db.execute(query, (id,)).fetchone() is not None

    def next_deadline(self) -> float | None:
        """When the next FIN WAIT ends (`CLOCK_BOOTTIME`), if any."""
        with self._file.translated():
            (deadline,) = self._db.execute(
                "SELECT min(deadline) FROM lease WHERE state = 'fin_wait'"
            ).fetchone()
        return None if deadline is None else float(deadline)

    def entries(self, name: str) -> list[HistoryEntry]:
        """Who holds and held `name`, latest first."""
        with self._file.translated():
            rows = self._db.execute(_ENTRIES, (name, name)).fetchall()
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
            ) in rows
        ]

    def count(self, caller_uid: int | None = None) -> dict[State, int]:
        """How many leases are in each state: of one user, or all there are."""
        query = "SELECT state, count(*) FROM lease GROUP BY state"
        if caller_uid is not None:
            query = (
                "SELECT state, count(*) FROM lease WHERE caller_uid = ? GROUP BY state"
            )
        with self._file.translated():
            rows = self._db.execute(
                query, () if caller_uid is None else (caller_uid,)
            ).fetchall()
        found = {State(state): number for state, number in rows}
        return {state: found.get(state, 0) for state in State}

    def templates(self) -> list[str]:
        """The templates that names were picked by."""
        with self._file.translated():
            rows = self._db.execute("SELECT DISTINCT text FROM template").fetchall()
        return [text for (text,) in rows]

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file; reads all of it."""
        with self._file.translated():
            rows = self._db.execute("PRAGMA quick_check").fetchall()
        return [row[0] for row in rows if row[0] != "ok"]

    # Writing

    def new_manager(self) -> int:
        """A number for a manager that no other ever had."""
        with self._file.transaction():
            return self._count("next_manager")

    def reserve(
        self,
        netns: Netns,
        wanted: Sequence[Reservation],
        *,
        manager: int,
        taken: Taken,
        changed: Callable[[], set[int] | None],
    ) -> list[Lease]:
        """Reserve a name and an ifindex for each of `wanted`, or for none.

        `changed` is asked only if foreign names are remembered: which devices
        changed since it was last asked, None for "any may have".
        """
        with self._file.transaction():
            row = self._netns_row(netns)
            allocator = Allocator(self._db, row)
            if allocator.has_foreign():
                allocator.recheck(changed(), taken)
            ids = [self._insert(row, allocator, one, manager, taken) for one in wanted]
            return [self._get(id) for id in ids]

    def rename(self, id: str, template: Template, spec: Spec, taken: Taken) -> Lease:
        """Give a reserved lease another name: a foreign device has taken its own."""
        with self._file.transaction():
            lease = self._get(id)
            row = self._netns_row(lease.netns)
            allocator = Allocator(self._db, row)
            if template.numbered:
                allocator.note_foreign(lease.name, taken(lease.name))
            name = allocator.pick(template, spec.naming, spec.key, taken)
            # It holds this name from now on: the history must not say longer.
            self._db.execute(
                "UPDATE lease SET name = ?, created = ? WHERE id = ?",
                (name, self._clock.wallclock(), id),
            )
            return self._get(id)

    def reindex(self, id: str) -> Lease:
        """Give a lease another ifindex: another device has its own."""
        with self._file.transaction():
            lease = self._get(id)
            self._db.execute(
                "UPDATE lease SET ifindex = ? WHERE id = ?",
                (self._next_ifindex(self._netns_row(lease.netns)), id),
            )
            return self._get(id)

    def activate(self, leases: Iterable[Lease], process: Process | None) -> list[Lease]:
        """Make reserved leases active, bound to `process`, and give them back."""
        with self._file.transaction():
            return [self._activate(lease, process) for lease in leases]

    def bind(self, ids: Sequence[str], process: Process | None) -> None:
        """Bind active leases to a process: they end with it. None: with nothing.

        Raises NoSuchLease, and binds none, if one is not active any more.
        """
        with self._file.transaction():
            for id in ids:
                bound = self._db.execute(
                    "UPDATE lease SET pid = ?, pid_start = ?, pid_pidns = ? "
                    "WHERE id = ? AND state = 'active'",
                    (*(process or (None, None, None)), id),
                )
                if not bound.rowcount:
                    raise NoSuchLease(f"lease {id} was released meanwhile")

    def rewire(self, id: str, wiring: Wiring, backends: Iterable[str]) -> Lease:
        """Record what a lease's device is connected to, and by which backends."""
        with self._file.transaction():
            columns = rows.columns_of(wiring) | {"backends": " ".join(backends)}
            self._db.execute(
                f"UPDATE lease SET {', '.join(f'{one} = ?' for one in columns)} "  # noqa: S608 - our names
                "WHERE id = ?",
                (*columns.values(), id),
            )
            return self._get(id)

    def unwired(self, id: str) -> None:
        """Record that no backend has anything of a lease any more."""
        with self._file.transaction():
            self._db.execute("UPDATE lease SET backends = '' WHERE id = ?", (id,))

    def postpone(self, ids: Iterable[str], boottime: float) -> None:
        """Let FIN WAIT last until `boottime` at least: something is in the way."""
        with self._file.transaction():
            self._db.executemany(
                "UPDATE lease SET deadline = max(deadline, ?) "
                "WHERE id = ? AND state = 'fin_wait'",
                [(boottime, id) for id in ids],
            )

    def begin_release(self, id: str) -> Lease:
        """Let a lease's FIN WAIT begin; one that is in it already stays as it is.

        Raises NoSuchLease, and LeaseBusy if it is still being acquired.
        """
        with self._file.transaction():
            lease = self._get(id)
            if lease.state is State.RESERVED:
                raise LeaseBusy(
                    f"lease {id} ({lease.name}) is still being acquired; "
                    "if its maker was killed, recover removes it"
                )
            if lease.state is State.ACTIVE:
                lease = lease._replace(
                    state=State.FIN_WAIT,
                    deadline=self._clock.boottime() + lease.fin_wait,
                    released=self._clock.wallclock(),
                )
                self._db.execute(
                    "UPDATE lease SET state = ?, deadline = ?, released = ? "
                    "WHERE id = ?",
                    (lease.state, lease.deadline, lease.released, id),
                )
            return lease

    def abandon(self, id: str) -> Lease:
        """Let a lease that never became active wait as a released one does."""
        with self._file.transaction():
            self._db.execute(
                "UPDATE lease SET state = 'fin_wait', deadline = ?, released = ?, "
                "manager = NULL WHERE id = ? AND state = 'reserved'",
                (self._clock.boottime(), self._clock.wallclock(), id),
            )
            return self._get(id)

    def claim(self, id: str, manager: int, alive: Callable[[int], bool]) -> Lease:
        """Claim a lease for an operation of several steps.

        Raises NoSuchLease, and LeaseBusy while another living manager has it.
        """
        with self._file.transaction():
            lease = self._get(id)
            if not _free(lease, manager, alive):
                raise LeaseBusy(
                    f"another process works on lease {id} ({lease.name}); try again"
                )
            return self._claim(lease, manager)

    def claim_free(
        self, ids: Iterable[str], manager: int, alive: Callable[[int], bool]
    ) -> list[Lease]:
        """Claim those of these leases that are there, and no other's who lives."""
        with self._file.transaction():
            return [
                self._claim(lease, manager)
                for id in ids
                if (lease := self.lease(id)) and _free(lease, manager, alive)
            ]

    def give_back(self, manager: int) -> None:
        """End every claim of this manager, and nobody else's."""
        with self._file.transaction():
            self._db.execute(
                "UPDATE lease SET manager = NULL WHERE manager = ?", (manager,)
            )

    def claim_due(
        self, manager: int, alive: Callable[[int], bool], *, boottime: float, limit: int
    ) -> list[Lease]:
        """Claim at most `limit` leases whose FIN WAIT was over at `boottime`.

        Those that a living manager has claimed, this one included, are left out.
        """
        with self._file.transaction():
            claimants = "SELECT DISTINCT manager FROM lease WHERE manager IS NOT NULL"
            for (other,) in self._db.execute(claimants).fetchall():
                if not alive(other):
                    self._db.execute(
                        "UPDATE lease SET manager = NULL WHERE manager = ? "
                        "AND state = 'fin_wait' AND deadline <= ?",
                        (other, boottime),
                    )
            due = self._leases(
                "WHERE state = 'fin_wait' AND deadline <= ? AND manager IS NULL "
                "ORDER BY deadline LIMIT ?",
                boottime,
                limit,
            )
            self._db.executemany(
                "UPDATE lease SET manager = ? WHERE id = ?",
                [(manager, lease.id) for lease in due],
            )
            return due

    def hold_name(self, id: str) -> Lease:
        """Record that a placeholder, of a new ifindex, is to hold the name."""
        with self._file.transaction():
            row = self._netns_row(self._get(id).netns)
            self._db.execute(
                "UPDATE lease SET ifindex = ?, placeholder = 1 WHERE id = ?",
                (self._next_ifindex(row), id),
            )
            return self._get(id)

    def end(self, ids: Sequence[str]) -> None:
        """End leases: their names are free. Of one that ever was active its history
        stays."""
        with self._file.transaction():
            now = self._clock.wallclock()
            self._db.executemany(_END, [(now, now, id) for id in ids])
            self._remove(ids)
            self._db.execute(
                "DELETE FROM history WHERE seq <= (SELECT max(seq) FROM history) - ?",
                (HISTORY_ROWS,),
            )

    def quit_if_idle(self, quit: Callable[[], None]) -> bool:
        """Call `quit` if no lease waits, while no other process can change that."""
        with self._file.transaction():
            if self.next_deadline() is not None:
                return False
            # What is known of a namespace without leases can be found out anew.
            self._db.execute(
                "DELETE FROM netns WHERE id NOT IN (SELECT netns FROM lease)"
            )
            quit()
            return True

    # Inside a transaction

    def _claim(self, lease: Lease, manager: int) -> Lease:
        self._db.execute(
            "UPDATE lease SET manager = ? WHERE id = ?", (manager, lease.id)
        )
        return lease._replace(manager=manager)

    def _get(self, id: str) -> Lease:
        if lease := self.lease(id):
            return lease
        raise _no_such(id)

    def _insert(
        self,
        row: int,
        allocator: Allocator,
        one: Reservation,
        manager: int,
        taken: Taken,
    ) -> str:
        spec = one.spec
        id = self._randomness(8).hex()
        macvtap = spec if isinstance(spec, Macvtap) else None
        columns = {
            "id": id,
            "netns": row,
            "name": allocator.pick(one.template, spec.naming, spec.key, taken),
            "ifindex": self._next_ifindex(row),
            "kind": spec.kind,
            "state": State.RESERVED,
            "owner": spec.owner,
            "mac": one.mac or self._new_mac(),
            "lower": macvtap and macvtap.lower,
            "mode": macvtap and macvtap.mode,
            "queues": spec.queues,
            **rows.columns_of(one.wiring),
            "backends": " ".join(one.backends),
            "vnet_hdr": spec.vnet_hdr,
            "caller_uid": one.caller_uid,
            "on_close": one.on_close,
            "created": self._clock.wallclock(),
            "fin_wait": spec.fin_wait,
            "manager": manager,
        }
        self._db.execute(
            f"INSERT INTO lease ({', '.join(columns)}) "  # noqa: S608 - our names
            f"VALUES ({', '.join('?' * len(columns))})",
            [*columns.values()],
        )
        return id

    def _activate(self, lease: Lease, process: Process | None) -> Lease:
        found = self._db.execute(
            "UPDATE lease SET state = 'active', manager = NULL, "
            "pid = ?, pid_start = ?, pid_pidns = ? WHERE id = ?",
            (*(process or (None, None, None)), lease.id),
        )
        if not found.rowcount:
            raise _no_such(lease.id)
        return lease._replace(state=State.ACTIVE, manager=None, process=process)

    def _remove(self, ids: Iterable[str]) -> None:
        """Remove those leases that are there; their names are free."""
        freed: dict[int, list[str]] = {}
        query = "DELETE FROM lease WHERE id = ? RETURNING netns, name"
        for id in ids:
            for row, name in self._db.execute(query, (id,)).fetchall():
                freed.setdefault(row, []).append(name)
        for row, names in freed.items():
            Allocator(self._db, row).give_back(names)

    def _next_ifindex(self, row: int) -> int:
        """An ifindex that no lease of the namespace has.

        They are given out in turn, so none comes again before 2^30 others have.
        """
        query = "SELECT 1 FROM lease WHERE netns = ? AND ifindex = ?"
        while True:
            ifindex = self._count(
                "next_ifindex", first=FIRST_IFINDEX, last=LAST_IFINDEX
            )
            if not self._db.execute(query, (row, ifindex)).fetchone():
                return ifindex

    def _new_mac(self) -> str:
        query = "SELECT 1 FROM lease WHERE mac = ?"
        while True:
            mac = format_mac(b"\x52\x54\x00" + self._randomness(3))
            if not self._db.execute(query, (mac,)).fetchone():
                return mac

    def _count(self, key: str, first: int = 1, last: int = (1 << 63) - 1) -> int:
        value = self._setting(key)
        self._db.execute(
            "UPDATE meta SET value = ? WHERE key = ?",
            (value + 1 if value < last else first, key),
        )
        return int(value)

    def _netns_row(self, netns: Netns) -> int:
        found = self._db.execute(
            "SELECT id, path FROM netns WHERE boot = ? AND cookie = ?",
            (netns.boot, netns.cookie),
        ).fetchone()
        if found is None:
            found = self._db.execute(
                "INSERT INTO netns (boot, cookie, path, pidns) VALUES (?, ?, ?, ?) "
                "RETURNING id, path",
                netns,
            ).fetchone()
        elif netns.path and found[1] != netns.path:
            # Known before under another path, or under none.
            self._db.execute(
                "UPDATE netns SET path = ? WHERE id = ?", (netns.path, found[0])
            )
        return int(found[0])

    def _leases(self, where: str, *values: object) -> list[Lease]:
        with self._file.translated():
            found = self._db.execute(rows.SELECT + where, values).fetchall()
        try:
            return [rows.lease_of(row) for row in found]
        except ValueError as error:
            raise LedgerDamaged(f"ledger {self.path!r} is damaged: {error}") from error

    def _setting(self, key: str) -> Any:
        with self._file.translated():
            query = "SELECT value FROM meta WHERE key = ?"
            row = self._db.execute(query, (key,)).fetchone()
        if row is None:
            raise LedgerDamaged(f"ledger {self.path!r} is damaged: it has no {key!r}")
        return row[0]

    def _populate(self, db: sqlite3.Connection) -> None:
        room = LAST_IFINDEX - FIRST_IFINDEX + 1
        start = int.from_bytes(self._randomness(4), "big") % room
        db.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [
                ("ledger", self._randomness(4).hex()),
                # A random start keeps two ledgers of one host apart.
                ("next_ifindex", FIRST_IFINDEX + start),
                # So does one here: a new ledger may find an old one's lock file.
                ("next_manager", 1 + int.from_bytes(self._randomness(5), "big")),
            ],
        )


def _free(lease: Lease, manager: int, alive: Callable[[int], bool]) -> bool:
    """Whether no living manager but this one has claimed the lease."""
    return lease.manager in (None, manager) or not alive(lease.manager)


def _no_such(id: str) -> NoSuchLease:
    return NoSuchLease(f"no lease has the id {id!r}")
