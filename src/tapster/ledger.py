# SPDX-License-Identifier: Apache-2.0
"""The durable record of who owns which device, in SQLite.

Every public method is one transaction: it happens wholly or not at all, also
when the process is killed, and it excludes every other process's. Nothing here
looks at the kernel; what must be known of it is passed in.

The file is in WAL mode with `synchronous=NORMAL`: a transaction survives any
death of the process. A power cut may lose the last ones, and takes the devices
with it.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from tapster.allocator import Allocator, Taken
from tapster.errors import (
    LeaseBusy,
    LedgerDamaged,
    LedgerError,
    LedgerTooNew,
    NoSuchLease,
)
from tapster.model import (
    Kind,
    Lease,
    Macvtap,
    Mode,
    Netns,
    Process,
    Spec,
    State,
    Tap,
    Tenure,
    format_mac,
)
from tapster.names import Template

DEFAULT_PATH = "/var/lib/tapster/ledger.db"
APPLICATION_ID = 0x54415053
SCHEMA_VERSION = 1
HISTORY_ROWS = 100_000
"""How many ended leases are remembered."""
FIRST_IFINDEX = 1 << 30
"""Where our interface indexes begin: the kernel counts its own up from 1."""
LAST_IFINDEX = (1 << 31) - 1
BUSY_SECONDS = 30.0

_MIGRATIONS: dict[int, str] = {}
"""SQL that brings schema version n to n + 1. None has been needed yet."""

_LEASE = """
SELECT lease.id, name, ifindex, kind, state, owner, mac, bridge, link, mode, mtu,
       queues, isolated, boot, cookie, path, created, fin_wait, deadline, released,
       pid, pid_start, pidns, placeholder, manager
FROM lease JOIN netns ON netns.id = lease.netns
"""

_TENURES = """
SELECT lease, owner, kind, mac, ifindex, netns, created, released, ended
FROM history WHERE name = ?
UNION ALL
SELECT lease.id, owner, kind, mac, ifindex, path, created, released, NULL
FROM lease JOIN netns ON netns.id = lease.netns WHERE name = ?
ORDER BY created DESC
"""


class Reservation(NamedTuple):
    """One device to reserve: a checked request, with what it was resolved to."""

    spec: Spec
    template: Template
    mac: str | None
    mtu: int | None


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
        self.path = os.path.abspath(path)
        self._clock = clock
        self._randomness = randomness
        with _translated(self.path):
            self._db = _open(self.path)
            try:
                self._prepare()
                (self.id,) = self._db.execute(
                    "SELECT value FROM meta WHERE key = 'ledger'"
                ).fetchone()
            except BaseException:
                self._db.close()
                raise
        self._inode = os.stat(self.path).st_ino

    def close(self) -> None:
        self._db.close()

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

    def suspects(self) -> list[Lease]:
        """The leases that are bound to a process, or claimed by a manager."""
        return self._leases(
            "WHERE manager IS NOT NULL OR (pid IS NOT NULL AND state = 'active')"
        )

    def ended(self, id: str) -> bool:
        """Whether the history has a lease of this id."""
        with _translated(self.path):
            query = "SELECT 1 FROM history WHERE lease = ?"
            return self._db.execute(query, (id,)).fetchone() is not None

    def next_deadline(self) -> float | None:
        """When the next FIN WAIT ends (`CLOCK_BOOTTIME`), if any."""
        with _translated(self.path):
            (deadline,) = self._db.execute(
                "SELECT min(deadline) FROM lease WHERE state = 'fin_wait'"
            ).fetchone()
        return None if deadline is None else float(deadline)

    def tenures(self, name: str) -> list[Tenure]:
        """Who holds and held `name`, latest first."""
        with _translated(self.path):
            rows = self._db.execute(_TENURES, (name, name)).fetchall()
        return [
            Tenure(
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
            ) in rows
        ]

    def templates(self) -> list[str]:
        """The templates that names were picked by."""
        with _translated(self.path):
            rows = self._db.execute("SELECT DISTINCT text FROM template").fetchall()
        return [text for (text,) in rows]

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file; reads all of it."""
        with _translated(self.path):
            rows = self._db.execute("PRAGMA quick_check").fetchall()
        return [row[0] for row in rows if row[0] != "ok"]

    # Writing

    def new_manager(self) -> int:
        """A number for a manager that no other ever had."""
        with self._transaction():
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
        with self._transaction():
            row = self._netns_row(netns)
            allocator = Allocator(self._db, row)
            if allocator.has_foreign():
                allocator.recheck(changed(), taken)
            ids = [self._insert(row, allocator, one, manager, taken) for one in wanted]
            return [self._get(id) for id in ids]

    def rename(self, id: str, template: Template, spec: Spec, taken: Taken) -> Lease:
        """Give a reserved lease another name: a foreign device has taken its own."""
        with self._transaction():
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
        with self._transaction():
            lease = self._get(id)
            self._db.execute(
                "UPDATE lease SET ifindex = ? WHERE id = ?",
                (self._next_ifindex(self._netns_row(lease.netns)), id),
            )
            return self._get(id)

    def activate(self, ids: Sequence[str], process: Process | None) -> list[Lease]:
        """Make reserved leases active, bound to `process`, and give them back."""
        with self._transaction():
            for id in ids:
                self._db.execute(
                    "UPDATE lease SET state = 'active', manager = NULL, "
                    "pid = ?, pid_start = ?, pidns = ? WHERE id = ?",
                    (*(process or (None, None, None)), id),
                )
            return [self._get(id) for id in ids]

    def bind(self, ids: Sequence[str], process: Process) -> None:
        """Bind active leases to a process: they end with it."""
        with self._transaction():
            self._db.executemany(
                "UPDATE lease SET pid = ?, pid_start = ?, pidns = ? "
                "WHERE id = ? AND state = 'active'",
                [(*process, id) for id in ids],
            )

    def begin_release(self, id: str) -> Lease:
        """Let a lease's FIN WAIT begin; one that is in it already stays as it is.

        Raises NoSuchLease, and LeaseBusy if it is still being acquired.
        """
        with self._transaction():
            lease = self._get(id)
            if lease.state is State.RESERVED:
                raise LeaseBusy(
                    f"lease {id} ({lease.name}) is still being acquired; "
                    "if its maker was killed, recover removes it"
                )
            if lease.state is State.ACTIVE:
                self._db.execute(
                    "UPDATE lease SET state = 'fin_wait', deadline = ?, released = ? "
                    "WHERE id = ?",
                    (
                        self._clock.boottime() + lease.fin_wait,
                        self._clock.wallclock(),
                        id,
                    ),
                )
            return self._get(id)

    def claim(self, id: str, manager: int, alive: Callable[[int], bool]) -> Lease:
        """Claim a lease for an operation of several steps.

        Raises NoSuchLease, and LeaseBusy while another living manager has it.
        """
        with self._transaction():
            lease = self._get(id)
            if lease.manager not in (None, manager) and alive(lease.manager):
                raise LeaseBusy(
                    f"another process works on lease {id} ({lease.name}); try again"
                )
            self._db.execute("UPDATE lease SET manager = ? WHERE id = ?", (manager, id))
            return self._get(id)

    def give_back(self, ids: Iterable[str]) -> None:
        """End claims."""
        with self._transaction():
            self._db.executemany(
                "UPDATE lease SET manager = NULL WHERE id = ?", [(id,) for id in ids]
            )

    def claim_due(
        self, manager: int, alive: Callable[[int], bool], *, boottime: float, limit: int
    ) -> list[Lease]:
        """Claim at most `limit` leases whose FIN WAIT was over at `boottime`.

        Those that a living manager has claimed, this one included, are left out.
        """
        with self._transaction():
            due: list[Lease] = []
            for row in self._db.execute(
                _LEASE + "WHERE state = 'fin_wait' AND deadline <= ? ORDER BY deadline",
                (boottime,),
            ):
                lease = _lease(row)
                if lease.manager is None or not alive(lease.manager):
                    due.append(lease)
                if len(due) == limit:
                    break
            self._db.executemany(
                "UPDATE lease SET manager = ? WHERE id = ?",
                [(manager, lease.id) for lease in due],
            )
            return due

    def replant(self, id: str) -> Lease:
        """Record that a placeholder, of a new ifindex, is to hold the name."""
        with self._transaction():
            row = self._netns_row(self._get(id).netns)
            self._db.execute(
                "UPDATE lease SET ifindex = ?, placeholder = 1 WHERE id = ?",
                (self._next_ifindex(row), id),
            )
            return self._get(id)

    def forget(self, ids: Iterable[str]) -> None:
        """Remove leases that were never active; their names are free at once."""
        with self._transaction():
            for id in ids:
                if lease := next(iter(self._leases("WHERE lease.id = ?", id)), None):
                    self._remove(lease)

    def finish(self, ids: Iterable[str]) -> None:
        """End leases: only their history stays."""
        with self._transaction():
            now = self._clock.wallclock()
            for id in ids:
                if lease := next(iter(self._leases("WHERE lease.id = ?", id)), None):
                    self._db.execute(
                        "INSERT INTO history (name, lease, owner, kind, mac, ifindex, "
                        "netns, created, released, ended) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            lease.name,
                            lease.id,
                            lease.owner,
                            lease.kind,
                            lease.mac,
                            lease.ifindex,
                            lease.netns.path,
                            lease.created,
                            lease.released or now,
                            now,
                        ),
                    )
                    self._remove(lease)
            self._db.execute(
                "DELETE FROM history WHERE seq <= (SELECT max(seq) FROM history) - ?",
                (HISTORY_ROWS,),
            )

    def quit_if_idle(self, quit: Callable[[], None]) -> bool:
        """Call `quit` if no lease waits, while no other process can change that."""
        with self._transaction():
            if self.next_deadline() is not None:
                return False
            # What is known of a namespace without leases can be found out anew.
            self._db.execute(
                "DELETE FROM netns WHERE id NOT IN (SELECT netns FROM lease)"
            )
            quit()
            return True

    # Inside a transaction

    def _get(self, id: str) -> Lease:
        if lease := self.lease(id):
            return lease
        raise NoSuchLease(f"no lease has the id {id!r}")

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
        tap = spec if isinstance(spec, Tap) else None
        macvtap = spec if isinstance(spec, Macvtap) else None
        self._db.execute(
            "INSERT INTO lease (id, netns, name, ifindex, kind, state, owner, mac, "
            "bridge, link, mode, mtu, queues, isolated, created, fin_wait, manager) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                id,
                row,
                allocator.pick(one.template, spec.naming, spec.key, taken),
                self._next_ifindex(row),
                spec.kind,
                State.RESERVED,
                spec.owner,
                one.mac or self._new_mac(),
                tap and tap.bridge,
                macvtap and macvtap.link,
                macvtap and macvtap.mode,
                one.mtu,
                spec.queues,
                tap.isolated if tap else False,
                self._clock.wallclock(),
                spec.fin_wait,
                manager,
            ),
        )
        return id

    def _remove(self, lease: Lease) -> None:
        row = self._netns_row(lease.netns)
        self._db.execute("DELETE FROM lease WHERE id = ?", (lease.id,))
        Allocator(self._db, row).give_back(lease.name)

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
        (value,) = self._db.execute(
            "SELECT value FROM meta WHERE key = ?", (key,)
        ).fetchone()
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
                "INSERT INTO netns (boot, cookie, path) VALUES (?, ?, ?) "
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
        with _translated(self.path):
            return [_lease(row) for row in self._db.execute(_LEASE + where, values)]

    # The file

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _translated(self.path):
            self._refuse_another_file()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite itself rolls back after some errors, a full disk say.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _refuse_another_file(self) -> None:
        """A ledger deleted or replaced under us would take writes and lose them."""
        try:
            inode = os.stat(self.path).st_ino
        except FileNotFoundError:
            inode = None
        if inode != self._inode:
            raise LedgerError(
                f"ledger {self.path!r} was deleted or replaced while in use"
            )

    def _prepare(self) -> None:
        version = _version(self._db)
        if version == SCHEMA_VERSION:
            return
        self._db.execute("BEGIN EXCLUSIVE")
        try:
            version = _version(self._db)
            if version == 0:
                self._create()
            else:
                for step in range(version, SCHEMA_VERSION):
                    _run(self._db, _MIGRATIONS[step])
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        # After the schema is there, so that whoever reads the file's header
        # finds the version in it and not only in the write-ahead log.
        self._db.execute("PRAGMA journal_mode = WAL")

    def _create(self) -> None:
        _run(self._db, _schema())
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        room = LAST_IFINDEX - FIRST_IFINDEX + 1
        start = int.from_bytes(self._randomness(4), "big") % room
        self._db.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [
                ("ledger", self._randomness(4).hex()),
                # A random start keeps two ledgers of one host apart.
                ("next_ifindex", FIRST_IFINDEX + start),
                ("next_manager", 1),
            ],
        )


def _open(path: str) -> sqlite3.Connection:
    _refuse_unknown(path)
    # Only root may read it: owners and MACs are nobody else's business.
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    # isolation_level None: transactions begin and end where the code says so.
    # A Host may be shared by threads; it lets one in at a time.
    db = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _refuse_unknown(path: str) -> None:
    """Refuse a file that is not ours by its header, before SQLite can touch it.

    The header's layout is at https://www.sqlite.org/fileformat2.html: user
    version at byte 60, application id at byte 68, both big-endian.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    if not header:
        return
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise LedgerDamaged(f"{path!r} is not a ledger, or a damaged one")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise LedgerDamaged(f"{path!r} is a database, but not a ledger")
    version = int.from_bytes(header[60:64], "big")
    if version > SCHEMA_VERSION:
        raise LedgerTooNew(
            f"ledger {path!r} has schema {version}; "
            f"this release knows schemas up to {SCHEMA_VERSION}"
        )


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Errors of SQLite and of the file as errors of the ledger."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise LedgerError(f"ledger {path!r}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise LedgerDamaged(f"ledger {path!r}: {error}") from error
    except OSError as error:
        raise LedgerError(f"ledger {path!r}: {error.strerror}") from error


def _schema() -> str:
    with open(os.path.join(os.path.dirname(__file__), "schema.sql")) as file:
        return file.read()


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _run(db: sqlite3.Connection, script: str) -> None:
    """Run a script inside the open transaction (`executescript` would end it)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""


def _lease(row: tuple[Any, ...]) -> Lease:
    (
        id,
        name,
        ifindex,
        kind,
        state,
        owner,
        mac,
        bridge,
        link,
        mode,
        mtu,
        queues,
        isolated,
        boot,
        cookie,
        path,
        created,
        fin_wait,
        deadline,
        released,
        pid,
        pid_start,
        pidns,
        placeholder,
        manager,
    ) = row
    return Lease(
        id=id,
        name=name,
        ifindex=ifindex,
        kind=Kind(kind),
        state=State(state),
        owner=owner,
        mac=mac,
        bridge=bridge,
        link=link,
        mode=None if mode is None else Mode(mode),
        mtu=mtu,
        queues=queues,
        isolated=bool(isolated),
        netns=Netns(boot, cookie, path),
        created=created,
        fin_wait=fin_wait,
        deadline=deadline,
        released=released,
        process=None if pid is None else Process(pid, pid_start, pidns),
        placeholder=bool(placeholder),
        manager=manager,
    )
