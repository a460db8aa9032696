# SPDX-License-Identifier: Apache-2.0
"""The table of leases: reading rows and changing them.

Every function runs inside a transaction of the caller.
"""

from tapster.errors import MacTaken, NoSuchLease
from tapster.ledger import rows, settings, sqlite
from tapster.ledger.database import Damage
from tapster.ledger.namespaces import Row
from tapster.light import Any, Callable, Iterable, NamedTuple, remembered
from tapster.model import (
    Lease,
    Macvtap,
    Mode,
    Process,
    Spec,
    State,
    Tap,
    Wiring,
    format_mac,
)
from tapster.names import Template


class Reservation(NamedTuple):
    """One device to reserve: a checked request, with the values it resolved to."""

    spec: Spec
    template: Template
    mac: str | None
    """The MAC of the guest; None for any."""
    wiring: Wiring
    backends: tuple[str, ...] = ()
    """As in `Lease`."""
    caller_uid: int | None = None
    """As in `Lease`."""
    on_close: bool = False
    """As in `Lease`."""
    asked: str | None = None
    """The request as the daemon's policy judges it, to judge later changes by."""
    mac_is_any: bool = False
    """The request accepts any MAC: if its key had a MAC before, it gets that one."""
    max_keys: int | None = None
    """How many keys of stable names to remember for `caller_uid`."""


def select(db: sqlite.Connection, where: str, *values: object) -> list[Lease]:
    """Return the leases for which the SQL text `where` holds."""
    found = db.execute(rows.SELECT + where, values).fetchall()
    try:
        return [rows.lease_of(row) for row in found]
    except ValueError as error:
        raise Damage(str(error)) from error


def find(db: sqlite.Connection, id: str) -> Lease | None:
    """Return the lease with this id, or None."""
    return next(iter(select(db, "WHERE lease.id = ?", id)), None)


def get(db: sqlite.Connection, id: str) -> Lease:
    """Return the lease with this id. Raise NoSuchLease if there is none."""
    if lease := find(db, id):
        return lease
    raise _no_such(id)


def insert(
    db: sqlite.Connection,
    netns: Row,
    reservation: Reservation,
    name: str,
    mac: str,
    *,
    manager: int,
    created: float,
    randomness: Callable[[int], bytes],
) -> Lease:
    """Insert a reserved lease, claimed by `manager`, and return it.

    It is not read again: it is made of the values that are written.
    """
    spec = reservation.spec
    macvtap = spec if isinstance(spec, Macvtap) else None
    tap = spec if isinstance(spec, Tap) else None
    id, ifindex = randomness(8).hex(), settings.next_ifindex(db, netns.id)
    kind, queues, vnet_hdr, labels = spec.kind, spec.queues, spec.vnet_hdr, spec.labels
    owner, fin_wait, on_close = spec.owner, float(spec.fin_wait), reservation.on_close
    wiring, backends = reservation.wiring, reservation.backends
    optional: dict[str, Any] = {
        "lower": macvtap and macvtap.lower,
        "mode": macvtap and str(macvtap.mode),
        "tap_owner": tap and tap.uid,
        "tap_group": tap and tap.gid,
        "caller_uid": reservation.caller_uid,
        "asked": reservation.asked,
    }
    given = {name: value for name, value in optional.items() if value is not None}
    given |= rows.given_columns(wiring)
    db.execute(
        _insertion(tuple(given)),
        (
            id,
            netns.id,
            name,
            ifindex,
            str(kind),
            owner,
            mac,
            queues,
            " ".join(backends),
            int(vnet_hdr),
            int(on_close),
            created,
            fin_wait,
            rows.text_of_pairs(labels),
            manager,
            *given.values(),
        ),
    )
    return Lease(
        id,
        name,
        ifindex,
        kind,
        State.RESERVED,
        owner,
        mac,
        macvtap and macvtap.lower,
        macvtap and Mode(macvtap.mode),
        queues,
        wiring,
        backends,
        netns.netns,
        created,
        fin_wait,
        deadline=None,
        released=None,
        process=None,
        placeholder=False,
        manager=manager,
        caller_uid=reservation.caller_uid,
        on_close=on_close,
        vnet_hdr=vnet_hdr,
        tap_owner=tap and tap.uid,
        tap_group=tap and tap.gid,
        labels=labels,
    )


@remembered
def _insertion(given: tuple[str, ...]) -> str:
    """Return the statement that inserts a reserved lease with these further columns."""
    columns = (
        "id, netns, name, ifindex, kind, owner, mac, queues, backends, vnet_hdr, "
        "on_close, created, fin_wait, labels, manager"
    )
    further, places = "".join(f", {name}" for name in given), ", ?" * len(given)
    return (
        f"INSERT INTO lease (state, {columns}{further}) "  # noqa: S608 - our names
        f"VALUES ('reserved'{', ?' * 15}{places})"
    )


def refuse_same_mac(
    db: sqlite.Connection,
    netns: int,
    mac: str,
    wiring: Wiring,
    lower: str | None,
    *,
    besides: str = "",
) -> None:
    """Raise MacTaken if an active lease has this MAC on the same segment.

    Of two devices with one MAC on one segment, each takes the other's frames. A
    segment is a bridge, or what the macvtaps of one lower device share. A device
    on standby is connected to no segment. The lease with the id `besides` does
    not count. Nor does a passthru macvtap: it has its lower device's MAC, and the
    kernel allows no second device there.
    """
    in_force = wiring.in_force
    segment = (in_force.bridge, in_force.ovs, None if wiring.standby else lower)
    if segment == (None, None, None):
        return
    taken = db.execute(
        "SELECT id, name, owner FROM lease WHERE mac = ? AND netns = ? "
        "AND state != 'fin_wait' AND NOT standby "
        "AND bridge IS ? AND ovs IS ? AND lower IS ? AND id != ? "
        "AND mode IS NOT 'passthru'",
        (mac, netns, *segment, besides),
    ).fetchone()
    if taken is not None:
        id, name, owner = taken
        whose = f"owner {owner!r}" if owner else "without an owner"
        raise MacTaken(
            f"MAC {mac} is in use on {next(filter(None, segment))!r}: lease {id} "
            f"({name}), {whose}; give this VM another MAC, or acquire the device on "
            "standby if the VM is to move here",
            mac=mac,
            lease=id,
            owner=owner,
        )


def activate(db: sqlite.Connection, lease: Lease, process: Process | None) -> Lease:
    """Make a reserved lease active, bound to `process`, and end its claim."""
    query = "UPDATE lease SET state = 'active', manager = NULL WHERE id = ?"
    if not db.execute(query, (lease.id,)).rowcount:
        raise _no_such(lease.id)
    if process is not None:
        bind(db, lease.id, process)
    return lease._replace(state=State.ACTIVE, manager=None, process=process)


def bind(db: sqlite.Connection, id: str, process: Process | None) -> None:
    """Bind an active lease to a process, or to none. Raise NoSuchLease."""
    changed = db.execute(
        "UPDATE lease SET pid = ?, pid_start = ?, pid_pidns = ? "
        "WHERE id = ? AND state = 'active'",
        (*(process or (None, None, None)), id),
    )
    if not changed.rowcount:
        raise NoSuchLease(f"lease {id} was released in the meantime", reference=id)


def set_wiring(
    db: sqlite.Connection, id: str, wiring: Wiring, backends: Iterable[str]
) -> None:
    """Record a lease's wiring and the backends that may hold a part of it."""
    columns = rows.columns_of(wiring) | {"backends": " ".join(backends)}
    db.execute(
        f"UPDATE lease SET {', '.join(f'{column} = ?' for column in columns)} "  # noqa: S608 - our names
        "WHERE id = ?",
        (*columns.values(), id),
    )


def asked(db: sqlite.Connection, id: str) -> str | None:
    """Return what was asked for a lease, or None if the daemon did not record it."""
    query = "SELECT asked FROM lease WHERE id = ?"
    row: tuple[str | None] | None = db.execute(query, (id,)).fetchone()
    return row[0] if row else None


def set_asked(db: sqlite.Connection, id: str, text: str) -> None:
    """Record what is asked for a lease from now on."""
    db.execute("UPDATE lease SET asked = ? WHERE id = ?", (text, id))


def page(
    db: sqlite.Connection,
    *,
    after: int,
    limit: int,
    caller_uid: int | None,
    all: bool,
) -> tuple[list[Lease], int | None]:
    """Return at most `limit` leases, oldest first, and where the next page begins.

    `after` is 0 or where the page begins. Leases of other users than `caller_uid` are
    left out, unless that is None; so are those in FIN WAIT if not `all`.
    """
    where = "rowid > ?" + ("" if all else " AND state != 'fin_wait'")
    values: list[object] = [after]
    if caller_uid is not None:
        where += " AND caller_uid = ?"
        values.append(caller_uid)
    numbers = [
        number
        for (number,) in db.execute(
            f"SELECT rowid FROM lease WHERE {where} ORDER BY rowid LIMIT ?",  # noqa: S608 - our names
            (*values, limit + 1),
        )
    ]
    shown = ", ".join(map(str, numbers[:limit]))
    found = select(db, f"WHERE lease.rowid IN ({shown}) ORDER BY lease.rowid")
    return found, numbers[limit - 1] if len(numbers) > limit else None


def remove(db: sqlite.Connection, ids: Iterable[str]) -> None:
    """Remove the leases with these ids, if they exist, and free their names."""
    from tapster.ledger.allocator import Allocator  # late: to list needs none

    freed: dict[int, list[str]] = {}
    query = "DELETE FROM lease WHERE id = ? RETURNING netns, name"
    for id in ids:
        for netns, name in db.execute(query, (id,)).fetchall():
            freed.setdefault(netns, []).append(name)
    for netns, names in freed.items():
        Allocator(db, netns).free_names(names)


def waiting_open(db: sqlite.Connection) -> list[str]:
    """Return the ids of waiting leases whose users' taps were open at their release."""
    query = (
        "SELECT id FROM lease WHERE state = 'fin_wait' AND open_at_release "
        "AND NOT placeholder AND (tap_owner IS NOT 0 OR tap_group IS NOT NULL)"
    )
    return [id for (id,) in db.execute(query)]


def processes(db: sqlite.Connection) -> list[Process]:
    """Return the processes to which active leases are bound, each once."""
    query = (
        "SELECT DISTINCT pid, pid_start, pid_pidns FROM lease "
        "WHERE pid IS NOT NULL AND state = 'active'"
    )
    return [Process(*row) for row in db.execute(query)]


def bound_to(db: sqlite.Connection, process: Process) -> list[Lease]:
    """Return the active leases that are bound to a process."""
    where = "WHERE pid = ? AND pid_start = ? AND lease.pid_pidns = ? "
    return select(db, where + "AND state = 'active'", *process)


def is_any_bound(db: sqlite.Connection) -> bool:
    """Return whether an active lease ends with a process, or with its tap."""
    query = "SELECT EXISTS (SELECT 1 FROM lease WHERE pid IS NOT NULL), "
    query += "EXISTS (SELECT 1 FROM lease WHERE on_close AND state = 'active')"
    return any(db.execute(query).fetchone())


def is_any_new(db: sqlite.Connection, since: float) -> bool:
    """Return whether an active lease was created after a moment of the wall clock."""
    query = "SELECT EXISTS (SELECT 1 FROM lease WHERE state = 'active' AND created > ?)"
    return any(db.execute(query, (since,)).fetchone())


def next_deadline(db: sqlite.Connection) -> float | None:
    """Return when the next FIN WAIT ends, or None if no lease waits."""
    query = "SELECT min(deadline) FROM lease WHERE state = 'fin_wait'"
    (deadline,) = db.execute(query).fetchone()
    return None if deadline is None else float(deadline)


def count(db: sqlite.Connection, caller_uid: int | None) -> dict[State, int]:
    """Return how many leases are in each state: all leases, or those of one user."""
    whose = "" if caller_uid is None else "WHERE caller_uid = ? "
    counted = db.execute(
        f"SELECT state, count(*) FROM lease {whose}GROUP BY state",  # noqa: S608 - our names
        () if caller_uid is None else (caller_uid,),
    )
    numbers = {State(state): number for state, number in counted}
    return {state: numbers.get(state, 0) for state in State}


def count_labels(db: sqlite.Connection) -> dict[tuple[str, str], int]:
    """Return how many active leases have each label."""
    counted = db.execute(
        "SELECT labels, count(*) FROM lease WHERE state = 'active' AND labels != '' "
        "GROUP BY labels"
    )
    numbers: dict[tuple[str, str], int] = {}
    for text, number in counted:
        for label in rows.pairs_of(text):
            numbers[label] = numbers.get(label, 0) + number
    return numbers


def new_mac(db: sqlite.Connection, randomness: Callable[[int], bytes]) -> str:
    """Return a MAC that no lease has, of the range that KVM uses."""
    query = (
        "SELECT 1 FROM lease WHERE mac = ? UNION ALL SELECT 1 FROM stable WHERE mac = ?"
    )
    while True:
        mac = format_mac(b"\x52\x54\x00" + randomness(3))
        if not db.execute(query, (mac, mac)).fetchone():
            return mac


def _no_such(id: str) -> NoSuchLease:
    return NoSuchLease(f"no lease has the id {id!r}", reference=id)
