# SPDX-License-Identifier: Apache-2.0
"""The ledger's methods. Each is one transaction.

A transaction happens wholly or not at all, also when its process is killed, and it
excludes the transactions of all other processes. Nothing here asks the kernel. The
caller passes in functions that do (`holder_of`, `is_alive`, ...).
"""

import os

from tapster.errors import LeaseBusy
from tapster.ledger import claims, history, leases, namespaces, settings
from tapster.ledger.claims import IsAlive
from tapster.ledger.database import Database
from tapster.ledger.leases import Reservation
from tapster.light import TYPE_CHECKING, Callable, Iterable, Protocol, Sequence
from tapster.model import (
    EVERY_EVENT,
    EventQuery,
    HistoryEntry,
    HistoryEvent,
    HistoryQuery,
    Lease,
    Macvtap,
    Netns,
    Process,
    Spec,
    State,
    Wiring,
)
from tapster.names import Template

if TYPE_CHECKING:
    from tapster.ledger.allocator import HolderOf, Holders, KeyShare

DEFAULT_PATH = "/var/lib/tapster/ledger.db"


class Clock(Protocol):
    """The two clocks that the ledger records.

    The ledger reads them inside transactions. So if the ledger says that one event
    happened after another, that is true.
    """

    def boottime(self) -> float:
        """Return `CLOCK_BOOTTIME` in seconds. It counts suspend; no user sets it."""

    def wallclock(self) -> float:
        """Return the seconds since the epoch, in whole milliseconds."""


class Ledger:
    """One open ledger. One thread at a time may use it.

    Every method raises LedgerDamaged, LedgerTooNew or LedgerError if the file cannot
    be used. Then nothing was changed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Clock,
        *,
        randomness: Callable[[int], bytes] = os.urandom,
        make: bool = True,
    ) -> None:
        """Open the ledger at `path`. Make it if it is missing, unless `make` is False.

        Only the directory of DEFAULT_PATH is made, too. A mistyped path must not lead
        to an empty ledger.
        """
        # One ledger has one lock file beside it, also if it is opened through links.
        self.path = os.path.realpath(path)
        self._clock = clock
        self._randomness = randomness
        self._schema: int | None = None
        """The schema's version when the ledger was last asked about a fleet."""
        self._has_fleet = False
        self.file = Database(
            self.path,
            lambda db: settings.populate(db, randomness),
            make=make,
            make_directory=os.fspath(path) == DEFAULT_PATH,
        )
        try:
            with self.file.reading() as db:
                self.id = str(settings.setting(db, "ledger"))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    # Reading

    def leases(self, *, all: bool = True) -> list[Lease]:
        """Return the leases, oldest first; without those in FIN WAIT if not `all`."""
        where = "" if all else "WHERE state != 'fin_wait'"
        with self.file.reading() as db:
            return leases.select(db, f"{where} ORDER BY lease.rowid")

    def lease(self, id: str) -> Lease | None:
        """Return the lease with this id, or None."""
        with self.file.reading() as db:
            return leases.find(db, id)

    def named(self, name: str) -> list[Lease]:
        """Return the leases that hold `name`, at most one in each namespace."""
        with self.file.reading() as db:
            return leases.select(db, "WHERE name = ?", name)

    def at(self, netns: Netns, ifindexes: Iterable[int]) -> list[Lease]:
        """Return the leases of a namespace that have one of these interface indexes."""
        where = "WHERE boot = ? AND cookie = ? AND ifindex = ?"
        with self.file.reading() as db:
            return [
                lease
                for ifindex in ifindexes
                for lease in leases.select(db, where, netns.boot, netns.cookie, ifindex)
            ]

    def redirected(self, netns: Netns) -> list[Lease]:
        """Return the leases of a namespace that take the place of another device."""
        where = "WHERE boot = ? AND cookie = ? AND redirect IS NOT NULL"
        with self.file.reading() as db:
            return leases.select(db, where, netns.boot, netns.cookie)

    def namespaces(self) -> list[Netns]:
        """Return the network namespaces in which there are leases."""
        with self.file.reading() as db:
            return namespaces.with_leases(db)

    def suspects(self, boot: str, has_ended: Callable[[Process], bool]) -> list[Lease]:
        """Return the leases that may need a repair.

        These are bound to a process that has ended, claimed by a manager, not yet
        active, or made in another boot than `boot`.
        """
        with self.file.reading() as db:
            # Thousands of leases may be bound to processes that live: they are not
            # read.
            bound = [
                lease
                for process in leases.processes(db)
                if has_ended(process)
                for lease in leases.bound_to(db, process)
            ]
            others = leases.select(
                db,
                "WHERE lease.rowid IN ("
                "SELECT rowid FROM lease WHERE manager IS NOT NULL UNION "
                "SELECT rowid FROM lease WHERE state = 'reserved' UNION "
                "SELECT rowid FROM lease WHERE netns IN "
                "(SELECT id FROM netns WHERE boot != ?))",
                boot,
            )
            return [*{lease.id: lease for lease in [*bound, *others]}.values()]

    def ended(self, id: str) -> bool:
        """Return whether the history has a lease of this id."""
        with self.file.reading() as db:
            return history.has(db, id)

    def next_deadline(self) -> float | None:
        """Return when the next FIN WAIT ends (`CLOCK_BOOTTIME`), or None."""
        with self.file.reading() as db:
            return leases.next_deadline(db)

    def asked(self, id: str) -> str | None:
        """Return what was asked for a lease, or None if that was not recorded."""
        with self.file.reading() as db:
            return leases.asked(db, id)

    def set_asked(self, id: str, text: str) -> None:
        """Record what is asked for a lease from now on."""
        with self.file.changing() as db:
            leases.set_asked(db, id, text)

    def page(
        self, *, after: int, limit: int, caller_uid: int | None, all: bool
    ) -> tuple[list[Lease], int | None]:
        """Return at most `limit` leases, and where the next page begins, or None."""
        with self.file.reading() as db:
            return leases.page(
                db, after=after, limit=limit, caller_uid=caller_uid, all=all
            )

    def entries(self, query: HistoryQuery) -> list[HistoryEntry]:
        """Return the leases that fit a query, active ones too, the latest first."""
        with self.file.reading() as db:
            return history.entries(db, query)

    def events(self, query: EventQuery = EVERY_EVENT) -> list[HistoryEvent]:
        """Return the events that fit a query, the earliest first."""
        with self.file.reading() as db:
            return history.events(db, query)

    def event_numbers(self, query: EventQuery) -> list[int]:
        """Return the numbers of the events that fit a query, the earliest first."""
        with self.file.reading() as db:
            return history.event_numbers(db, query)

    def numbered_events(self, numbers: Iterable[int]) -> list[HistoryEvent]:
        """Return the events with these numbers, as far as they are remembered."""
        with self.file.reading() as db:
            return history.numbered_events(db, numbers)

    def record_event(self, event: HistoryEvent) -> None:
        """Record something that happened to a device."""
        with self.file.changing() as db:
            history.record_event(db, event)

    def keep_history(
        self, rows: int | None = None, *, days: float | None = None
    ) -> None:
        """Set how many ended leases, and events, the ledger remembers, and how long.

        What is None stays as it is set.
        """
        with self.file.reading() as db:
            same_rows = rows in (None, settings.history_rows(db, history.HISTORY_ROWS))
            same_days = days in (None, settings.history_days(db))
        if same_rows and same_days:
            return
        with self.file.changing() as db:
            if rows is not None:
                settings.set_history_rows(db, rows)
            if days is not None:
                settings.set_history_days(db, days)

    def count(self, caller_uid: int | None = None) -> dict[State, int]:
        """Return how many leases are in each state: all, or those of one user."""
        with self.file.reading() as db:
            return leases.count(db, caller_uid)

    def count_labels(self) -> dict[tuple[str, str], int]:
        """Return how many active leases have each label."""
        with self.file.reading() as db:
            return leases.count_labels(db)

    def templates(self) -> list[str]:
        """Return the templates by which names were picked."""
        with self.file.reading() as db:
            return [
                text for (text,) in db.execute("SELECT DISTINCT text FROM template")
            ]

    def in_fleet(self) -> bool:
        """Return whether the host of this ledger has joined a fleet."""
        with self.file.reading() as db:
            (schema,) = db.execute("PRAGMA schema_version").fetchone()
            if schema != self._schema:
                # To look through the whole schema takes as long as to reserve a name.
                query = "SELECT 1 FROM sqlite_schema WHERE name = 'fleet_record'"
                self._has_fleet = db.execute(query).fetchone() is not None
                self._schema = schema
            return self._has_fleet

    def check(self) -> list[str]:
        """Return the faults that SQLite finds in the file. This reads all of it."""
        with self.file.reading() as db:
            rows = db.execute("PRAGMA quick_check").fetchall()
        return [row[0] for row in rows if row[0] != "ok"]

    # The life of a lease

    def reserve(
        self,
        netns: Netns,
        reservations: Sequence[Reservation],
        *,
        manager: int,
        holder_of: "HolderOf",
        changed_links: Callable[[], set[int] | None],
        list_holders: "Holders | None" = None,
    ) -> list[Lease]:
        """Reserve a name and an interface index for every reservation, or for none.

        `changed_links` is called only if foreign names are remembered. It returns
        the indexes of the devices that changed since its last call, or None if any
        device may have changed.
        """
        from tapster.ledger.allocator import Allocator  # late: to list needs none

        with self.file.changing() as db:
            row = namespaces.find(db, netns)
            allocator = Allocator(db, row.id)
            if row.has_foreign:
                allocator.recheck(changed_links(), holder_of, list_holders)
            reserved = []
            for reservation in reservations:
                spec = reservation.spec
                mac = reservation.mac
                given = mac is not None and not reservation.mac_is_any
                key = _key_of(reservation)
                if not given and key is not None:
                    mac = allocator.stable_mac(reservation.template, key) or mac
                if mac is not None:
                    leases.refuse_same_mac(
                        db,
                        row.id,
                        mac,
                        reservation.wiring,
                        spec.lower if isinstance(spec, Macvtap) else None,
                    )
                name = allocator.pick(
                    reservation.template,
                    spec.naming,
                    key,
                    holder_of,
                    _share_of(reservation),
                    list_holders,
                )
                mac = mac or leases.new_mac(db, self._randomness)
                if not given and key is not None:
                    allocator.remember_mac(reservation.template, key, mac)
                lease = leases.insert(
                    db,
                    row,
                    reservation,
                    name,
                    mac,
                    manager=manager,
                    created=self._clock.wallclock(),
                    randomness=self._randomness,
                )
                reserved.append(lease)
            return reserved

    def rename(
        self, id: str, template: Template, spec: Spec, holder_of: "HolderOf"
    ) -> Lease:
        """Give a reserved lease another name: a foreign device has taken its name."""
        from tapster.ledger.allocator import Allocator

        with self.file.changing() as db:
            lease = leases.get(db, id)
            allocator = Allocator(db, namespaces.row_of(db, lease.netns))
            if template.numbered:
                allocator.note_foreign(lease.name, holder_of(lease.name))
            name = allocator.pick(template, spec.naming, spec.key, holder_of)
            # The lease holds this name from now on. The history must not say that it
            # held the name for longer.
            db.execute(
                "UPDATE lease SET name = ?, created = ? WHERE id = ?",
                (name, self._clock.wallclock(), id),
            )
            return leases.get(db, id)

    def reindex(self, id: str) -> Lease:
        """Give a lease another interface index: another device has its index."""
        with self.file.changing() as db:
            row = namespaces.row_of(db, leases.get(db, id).netns)
            db.execute(
                "UPDATE lease SET ifindex = ? WHERE id = ?",
                (settings.next_ifindex(db, row), id),
            )
            return leases.get(db, id)

    def activate(
        self, reserved: Sequence[Lease], processes: Sequence[Process | None]
    ) -> list[Lease]:
        """Make reserved leases active, bind each to its process, and return them."""
        with self.file.changing() as db:
            return [
                leases.activate(db, lease, process)
                for lease, process in zip(reserved, processes, strict=True)
            ]

    def bind(self, ids: Sequence[str], process: Process | None) -> None:
        """Let active leases end with a process. None: with no process.

        Raise NoSuchLease, and bind no lease, if one is not active any more.
        """
        with self.file.changing() as db:
            for id in ids:
                leases.bind(db, id, process)

    def rewire(self, id: str, wiring: Wiring, backends: Iterable[str]) -> Lease:
        """Record a lease's wiring, and the backends that may hold a part of it."""
        with self.file.changing() as db:
            leases.set_wiring(db, id, wiring, backends)
            return leases.get(db, id)

    def refuse_same_mac(self, lease: Lease, wiring: Wiring) -> None:
        """Raise MacTaken if another lease has the MAC where `wiring` leads."""
        with self.file.reading() as db:
            query = "SELECT netns FROM lease WHERE id = ?"
            for (row,) in db.execute(query, (lease.id,)).fetchall():
                leases.refuse_same_mac(
                    db, row, lease.mac, wiring, lease.lower, besides=lease.id
                )

    def note_open(self, id: str) -> None:
        """Record that the VM had the tap open when the lease was released."""
        with self.file.changing() as db:
            db.execute("UPDATE lease SET open_at_release = 1 WHERE id = ?", (id,))

    def waiting_open(self) -> list[str]:
        """Return the ids of waiting leases whose taps belong to users, and were open
        at their release."""
        with self.file.reading() as db:
            return leases.waiting_open(db)

    def call_alone(self, ask: Callable[[], bool]) -> bool:
        """Return what `ask` says while no other process can change the ledger."""
        with self.file.changing():
            return ask()

    def processes(self) -> list[Process]:
        """Return the processes to which active leases are bound, each once."""
        with self.file.reading() as db:
            return leases.processes(db)

    def is_any_bound(self) -> bool:
        """Return whether an active lease ends with a process, or with its tap."""
        with self.file.reading() as db:
            return leases.is_any_bound(db)

    def clear_backends(self, id: str) -> None:
        """Record that no backend holds a part of a lease any more."""
        with self.file.changing() as db:
            db.execute("UPDATE lease SET backends = '' WHERE id = ?", (id,))

    def begin_release(
        self, id: str, check: Callable[[Lease], None] = lambda _: None
    ) -> Lease:
        """Begin a lease's FIN WAIT. Leave a lease that is in FIN WAIT as it is.

        Raise NoSuchLease; raise LeaseBusy if the lease is still being acquired. `check`
        gets the lease as it is before, and may raise; then nothing changes.
        """
        with self.file.changing() as db:
            lease = leases.get(db, id)
            check(lease)
            if lease.state is State.RESERVED:
                raise LeaseBusy(
                    f"lease {id} ({lease.name}) is still being acquired; "
                    "if its maker was killed, `tapster recover` removes it",
                    lease=id,
                )
            if lease.state is State.ACTIVE:
                lease = lease._replace(
                    state=State.FIN_WAIT,
                    deadline=self._clock.boottime() + lease.fin_wait,
                    released=self._clock.wallclock(),
                )
                db.execute(
                    "UPDATE lease SET state = 'fin_wait', deadline = ?, released = ? "
                    "WHERE id = ?",
                    (lease.deadline, lease.released, id),
                )
            return lease

    def abandon(self, id: str) -> Lease:
        """Put a lease that never became active into FIN WAIT, with no claim on it."""
        with self.file.changing() as db:
            db.execute(
                "UPDATE lease SET state = 'fin_wait', deadline = ?, released = ?, "
                "manager = NULL WHERE id = ? AND state = 'reserved'",
                (self._clock.boottime(), self._clock.wallclock(), id),
            )
            return leases.get(db, id)

    def postpone(self, ids: Iterable[str], boottime: float) -> None:
        """Let FIN WAIT last until `boottime` at least: a lease could not be ended."""
        with self.file.changing() as db:
            db.executemany(
                "UPDATE lease SET deadline = max(deadline, ?) "
                "WHERE id = ? AND state = 'fin_wait'",
                [(boottime, id) for id in ids],
            )

    def hold_name(self, id: str) -> Lease:
        """Record that a placeholder with a new interface index will hold the name."""
        with self.file.changing() as db:
            row = namespaces.row_of(db, leases.get(db, id).netns)
            db.execute(
                "UPDATE lease SET ifindex = ?, placeholder = 1 WHERE id = ?",
                (settings.next_ifindex(db, row), id),
            )
            return leases.get(db, id)

    def end(self, ids: Sequence[str]) -> None:
        """End leases and free their names. Keep those that were active as history."""
        with self.file.changing() as db:
            history.record(db, ids, self._clock.wallclock())
            leases.remove(db, ids)

    # Claims

    def new_manager(self) -> int:
        """Return a manager number that was never given out before."""
        with self.file.changing() as db:
            return settings.next_manager(db)

    def claim(self, id: str, manager: int, is_alive: IsAlive) -> Lease:
        """Claim a lease for an operation of several steps.

        Raise NoSuchLease; raise LeaseBusy if another living manager has claimed it.
        """
        with self.file.changing() as db:
            lease = leases.get(db, id)
            if not claims.is_available(lease, manager, is_alive):
                raise LeaseBusy(
                    f"another process works on lease {id} ({lease.name}); try again",
                    lease=id,
                )
            (claimed,) = claims.claim(db, [lease], manager)
            return claimed

    def claim_available(
        self, ids: Iterable[str], manager: int, is_alive: IsAlive
    ) -> list[Lease]:
        """Claim those of these leases that exist and that no other manager has.

        A dead manager has no claims.
        """
        with self.file.changing() as db:
            available = [
                lease
                for id in ids
                if (lease := leases.find(db, id))
                and claims.is_available(lease, manager, is_alive)
            ]
            return claims.claim(db, available, manager)

    def claim_due(
        self, manager: int, is_alive: IsAlive, *, boottime: float, limit: int
    ) -> list[Lease]:
        """Claim at most `limit` leases whose FIN WAIT was over at `boottime`.

        Leave out those that a living manager has claimed, this one included.
        """
        with self.file.changing() as db:
            claims.release_due_of_the_dead(db, boottime, is_alive)
            due = leases.select(
                db,
                "WHERE state = 'fin_wait' AND deadline <= ? AND manager IS NULL "
                "ORDER BY deadline LIMIT ?",
                boottime,
                limit,
            )
            claims.claim(db, due, manager)
            return due

    def release_claims(self, manager: int) -> None:
        """End every claim of this manager."""
        with self.file.changing() as db:
            claims.release(db, manager)

    def call_if_idle(
        self, action: Callable[[], None], *, since: float | None = None
    ) -> bool:
        """Call `action` if no lease is in FIN WAIT or bound. Return whether it was.

        With `since`, only if no active lease was created after that moment, either.
        No other process can release or bind a lease before `action` has returned.
        """
        with self.file.changing() as db:
            if leases.next_deadline(db) is not None or leases.is_any_bound(db):
                return False
            if since is not None and leases.is_any_new(db, since):
                return False
            namespaces.forget_unused(db)
            action()
            return True


def _key_of(reservation: Reservation) -> str | None:
    """Return the key of a stable name, as the ledger remembers it.

    Each user of the daemon has keys of its own. Otherwise a user could take the name
    and the MAC that belong to the key of another user's VM.
    """
    key = reservation.spec.key
    if key is None or (share := _share_of(reservation)) is None:
        return key
    from tapster.ledger.allocator import BETWEEN

    return f"{share.caller_uid}{BETWEEN}{key}"


def _share_of(reservation: Reservation) -> "KeyShare | None":
    if reservation.caller_uid is None or reservation.max_keys is None:
        return None
    from tapster.ledger.allocator import KeyShare

    return KeyShare(reservation.caller_uid, reservation.max_keys)
