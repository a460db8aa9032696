# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch: a tap as a port of a bridge.

Open vSwitch knows devices by name only: a row that is left behind takes in
whatever device gets that name next. So rows carry the lease's stamp and are
deleted by it alone, and the name must be held until they are gone.

A port is put up, mended or taken down in one transaction, which fails if what was
read before it has changed. Then ovs-vswitchd is waited for, as ovs-vsctl does: it
copies `next_cfg` to `cur_cfg` when it has done what the database says.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from tapster import model
from tapster.backends import ovsport
from tapster.backends.backend import Observed, Stray
from tapster.backends.ovsdb import (
    Condition,
    Inserted,
    Operation,
    Refused,
    Row,
    Uuid,
    delete,
    insert,
    members,
    merge,
    mutate,
    select,
    update,
    wait,
)
from tapster.backends.ovsport import COLUMNS, GIVEN, KEY, Port
from tapster.errors import (
    ConflictError,
    HostError,
    NoSuchLink,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel.port import Namespace
from tapster.model import Lease, State, Wiring

if TYPE_CHECKING:
    from tapster.backends.ovsrpc import Connection

T = TypeVar("T")

RUNDIR = "/run/openvswitch"
ATTEMPTS = 5
"""How often a change is tried while others change the same rows."""
PATIENCE = 4.5
"""Seconds that ovs-vswitchd may take: fewer than ovsrpc waits for an answer."""


class Ovs:
    """The ports of one ledger's leases."""

    name = "ovs"

    def __init__(self, ledger: str, rundir: str | None = None) -> None:
        """`rundir` is where Open vSwitch has its sockets; by default `OVS_RUNDIR`."""
        self._ledger = ledger
        self._rundir = rundir or os.environ.get("OVS_RUNDIR") or RUNDIR
        self._socket = f"{self._rundir}/db.sock"

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.ovs is not None

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        """As in `Backend`. Raises RequestError for what Open vSwitch cannot do."""
        ovsport.check(wiring)
        name = wiring.ovs or ""
        here = select("Interface", _named(name), "ifindex", "mac_in_use")
        unused: list[Condition] = [*_named(name), ("ifindex", "==", frozenset())]
        with self._open() as db:
            bridges, local = db.transact(select("Bridge", _named(name), "name"), here)
            if not bridges:
                raise _no_bridge(name)
            if local and not members(local[0]["ifindex"]):
                # ovs-vswitchd comes back to a database that was started anew.
                _wait(db, "Interface", unused)
                (local,) = db.transact(here)
        link = namespace.named(name)
        # Elsewhere a port would take in whatever has the device's name there.
        if not link or local != [{"ifindex": link.ifindex, "mac_in_use": link.mac}]:
            raise NoSuchLink(
                f"Open vSwitch's bridge {name!r} is not in this network namespace"
            )

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        """Insert the lease's port or mend it, and wait until it works."""
        with self._open() as db:
            fresh, config = _insist(lambda: self._put(db, lease))
            try:
                _wait_done(db, config)
                _check_taken_up(db, lease)
            except BaseException:
                if fresh:
                    with suppress(TapsterError):
                        self._delete(db, lease.id)
                raise

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        """Delete what carries the lease's stamp; return when it is let go."""
        if lease.state is State.ACTIVE and namespace is not None:
            self._unlimit(lease.id)
        self._take_down(lease.id)

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observed:
        needed = any(
            self.concerns(lease.wiring) or self.name in lease.backends
            for lease in leases
        )
        if not needed and not os.path.exists(self._socket):
            return Observed({})
        try:
            with self._open() as db:
                rows = db.transact(
                    *(select(table, [], *columns) for table, columns in COLUMNS.items())
                )
        except ServiceUnavailable:
            if needed:
                raise
            return Observed({})
        found = ovsport.found(dict(zip(COLUMNS, rows, strict=True)), self._ledger)
        wrong = {
            lease.id: differences
            for lease in leases
            if (differences := self._differences(lease, found.pop(lease.id, [])))
        }
        strays = [Stray(id, "a port of Open vSwitch") for id in found]
        return Observed(wrong, tuple(strays))

    def remove(self, namespace: Namespace, stray: Stray) -> None:
        self._take_down(stray.lease)

    # Up

    def _put(self, db: "Connection", lease: Lease) -> tuple[bool, int]:
        """Insert or mend a port: whether it is a new one, and the new `next_cfg`."""
        stamp = self._stamp(lease.id)
        wanted = ovsport.wanted(lease, stamp)
        (bridge,) = wanted.bridge
        named = _named(lease.name)
        bridges, ports, interfaces = db.transact(
            select("Bridge", _named(bridge), "name"),
            select("Port", named, "_uuid", "name", "interfaces", "external_ids"),
            select("Interface", named, "_uuid", "ifindex", "external_ids"),
        )
        if not bridges:
            raise _no_bridge(bridge)
        port = ports[0] if ports else None
        interface = interfaces[0] if interfaces else None
        if not self._may_change(lease, port, interface):
            raise _taken(lease.name, port, interface)
        owners, changes = [stamp], []
        if port and ovsport.mark(port) == (self._ledger, lease.id):
            changes.append(_unchanged(port))
        elif port:
            changes += _remove(port)
            owners += [port["external_ids"][KEY]] if ovsport.mark(port) else []
            port = interface = None
        changes += _connect(lease, wanted, port, interface)
        return port is None, _commit(db, owners, changes)

    def _may_change(
        self, lease: Lease, port: Row | None, interface: Row | None
    ) -> bool:
        """Whether what Open vSwitch has under the lease's name is ours."""
        if port is None:
            return interface is None
        if interface and interface["_uuid"] not in members(port["interfaces"]):
            return False
        if owner := ovsport.mark(port):
            # A name is held until its port is gone: another lease of ours is over.
            return owner.ledger == self._ledger
        # Somebody took our port away, and put our device where it is now.
        return (
            lease.state is State.ACTIVE
            and interface is not None
            and interface["ifindex"] == lease.ifindex
            and not port["external_ids"]
            and not interface["external_ids"]
        )

    # Down

    def _unlimit(self, lease: str) -> None:
        """Take the rates off a device that will be used elsewhere.

        Open vSwitch leaves the queueing of a device as it is when it lets it go.
        """
        stamp = self._stamp(lease)
        policed: list[Condition] = [*_marked(stamp), ("ingress_policing_rate", ">", 0)]
        with self._open() as db:
            qos, interfaces = db.transact(
                select("QoS", _marked(stamp), "_uuid"),
                select("Interface", policed, "_uuid"),
            )
            if not (qos or interfaces):
                return
            changes = [
                update("Port", _marked(stamp), {"qos": frozenset()}),
                update("Interface", _marked(stamp), _policed(0, 0)),
            ]
            _wait_done(db, _commit(db, [stamp], changes))

    def _take_down(self, lease: str) -> None:
        with self._open() as db:
            config = _insist(lambda: self._delete(db, lease))
            try:
                if self._vswitchd_runs():
                    _wait_done(db, config)
            except ServiceUnavailable:
                # Not if it has died meanwhile: then it holds nothing.
                if self._vswitchd_runs():
                    raise

    def _delete(self, db: "Connection", lease: str) -> int:
        """Delete all that carries a lease's stamp; the `next_cfg` that says so."""
        stamp = self._stamp(lease)
        ports, qos, queues, config = db.transact(
            select("Port", _marked(stamp), "_uuid", "name", "external_ids"),
            select("QoS", _marked(stamp), "_uuid"),
            select("Queue", _marked(stamp), "_uuid"),
            select("Open_vSwitch", [], "next_cfg"),
        )
        if not (ports or qos or queues):
            # Done by an attempt that did not see its end.
            return _number(config)
        changes = [change for port in ports for change in _remove(port)]
        return _commit(db, [stamp], changes)

    def _vswitchd_runs(self) -> bool:
        """Whether ovs-vswitchd listens: a killed one leaves its socket behind."""
        from tapster.backends.ovsrpc import listens

        return any(
            listens(f"{self._rundir}/{file}")
            for file in os.listdir(self._rundir)
            if file.startswith("ovs-vswitchd.") and file.endswith(".ctl")
        )

    # Helpers

    def _differences(self, lease: Lease, ports: Sequence[Port]) -> str:
        if lease.state is State.ACTIVE and self.concerns(lease.wiring):
            wanted = ovsport.wanted(lease, self._stamp(lease.id))
            return ovsport.differences(ports, wanted)
        return "Open vSwitch still has a port of it" if ports else ""

    def _stamp(self, lease: str) -> str:
        return model.stamp(self._ledger, lease)

    def _open(self) -> "Connection":
        try:
            from tapster.backends.ovsrpc import Connection
        except ModuleNotFoundError as error:
            if error.name != "ovs":
                raise
            raise ServiceUnavailable(
                "a port of Open vSwitch takes its Python library; install it with: "
                "apt-get install python3-openvswitch, or: pip install 'tapster[ovs]'"
            ) from error
        return Connection(self._socket)


def _insist(change: Callable[[], T]) -> T:
    """Make a change that is refused when others change the same rows meanwhile."""
    for _ in range(ATTEMPTS - 1):
        with suppress(Refused):
            return change()
    return change()


def _commit(
    db: "Connection", owners: Sequence[str], changes: Sequence[Operation]
) -> int:
    """Make changes, and remove what limited the rates of these stamps; `next_cfg`."""
    limits = [(table, _marked(owner)) for owner in owners for table in ("QoS", "Queue")]
    try:
        return _do(db, [*(delete(*one) for one in limits), *changes])
    except Refused as error:
        if error.error != "referential integrity violation":
            raise
    # Somebody else's port has our limits too: from now on they are that port's.
    unmark = ("external_ids", "delete", frozenset([KEY]))
    return _do(db, [*(mutate(*one, unmark) for one in limits), *changes])


def _do(db: "Connection", changes: Sequence[Operation]) -> int:
    *_, config = db.transact(
        *changes,
        mutate("Open_vSwitch", [], ("next_cfg", "+=", 1)),
        select("Open_vSwitch", [], "next_cfg"),
    )
    return _number(config)


def _number(config: Sequence[Row]) -> int:
    """The `next_cfg` of a database, if it is in use at all."""
    return max((row["next_cfg"] for row in config), default=0)


def _wait_done(db: "Connection", config: int) -> None:
    """Wait until ovs-vswitchd has done what the database says as of `next_cfg`."""
    _wait(db, "Open_vSwitch", [("cur_cfg", "<", config)])


def _wait(db: "Connection", table: str, undone: Sequence[Condition]) -> None:
    """Wait until ovs-vswitchd has left no such row."""
    try:
        db.transact(wait(table, undone, seconds=PATIENCE))
    except Refused as error:
        if error.error != "timed out":
            raise
        raise ServiceUnavailable(
            f"ovs-vswitchd has not done in {PATIENCE:g} s what Open vSwitch's "
            "database says: is it running?"
        ) from error


def _check_taken_up(db: "Connection", lease: Lease) -> None:
    """Whether Open vSwitch uses the device. Raises HostError, ConflictError."""
    (rows,) = db.transact(
        select("Interface", _named(lease.name), "ofport", "error", "ifindex")
    )
    if not any(number > 0 for row in rows for number in members(row["ofport"])):
        errors = [error for row in rows for error in members(row["error"])]
        raise HostError(
            f"Open vSwitch cannot use port {lease.name!r}: "
            f"{', '.join(errors) or 'it has given it no number'}"
        )
    if any(members(row["ifindex"]) - {lease.ifindex} for row in rows):
        raise ConflictError(
            f"Open vSwitch has taken up another device that is called {lease.name!r}"
        )


# Parts of transactions


def _connect(
    lease: Lease, wanted: Port, port: Row | None, interface: Row | None
) -> list[Operation]:
    """Write the rows of a port, those that are there or new ones, and join a bridge."""
    ids = {KEY: wanted.external_ids[KEY]}
    write_interface, interface_id = _write(
        "Interface",
        lease.name,
        interface,
        ovsport.given(port) if port else [],
        external_ids=wanted.external_ids,
        **_policed(*wanted.outbound),
    )
    given = "=".join(dict(lease.wiring.external_ids))
    write_port, port_id = _write(
        "Port",
        lease.name,
        port,
        [GIVEN],
        interfaces=frozenset([interface_id]),
        tag=wanted.tag,
        trunks=wanted.trunks,
        vlan_mode=wanted.vlan_mode,
        qos=frozenset([Inserted("qos")] if wanted.inbound else []),
        external_ids=ids | ({GIVEN: given} if given else {}),
        other_config={"transient": wanted.transient},
    )
    (bridge,) = wanted.bridge
    it = frozenset([port_id])
    elsewhere = [("name", "!=", bridge), ("ports", "includes", it)]
    return [
        *(_limit(wanted.inbound, ids) if wanted.inbound else []),
        *write_interface,
        *write_port,
        *([mutate("Bridge", elsewhere, ("ports", "delete", it))] if port else []),
        wait("Bridge", _named(bridge), {"name": bridge}),
        mutate("Bridge", _named(bridge), ("ports", "insert", it)),
    ]


def _write(
    table: str, name: str, there: Row | None, stale: Sequence[str], **columns: object
) -> tuple[list[Operation], Uuid | Inserted]:
    """Insert a row, or change it and drop stale keys of its maps; what refers to it."""
    if there is None:
        handle = table.lower()
        return [insert(table, handle, {"name": name, **columns})], Inserted(handle)
    uuid: Uuid = there["_uuid"]
    it = [("_uuid", "==", uuid)]
    maps = {column: one for column, one in columns.items() if isinstance(one, dict)}
    rest = {column: one for column, one in columns.items() if column not in maps}
    merging = [one for column in maps for one in merge(column, maps[column], stale)]
    return [update(table, it, rest), mutate(table, it, *merging)], uuid


def _policed(rate: int, burst: int) -> Row:
    """The columns of an Interface that limit what comes from the guest."""
    return {"ingress_policing_rate": rate, "ingress_policing_burst": burst}


def _limit(queue: dict[str, str], ids: dict[str, str]) -> list[Operation]:
    """Insert a QoS with one queue, for all frames."""
    qos = {
        "type": "linux-htb",
        "other_config": {"max-rate": queue["max-rate"]},
        "queues": {0: Inserted("queue")},
        "external_ids": ids,
    }
    return [
        insert("Queue", "queue", {"other_config": queue, "external_ids": ids}),
        insert("QoS", "qos", qos),
    ]


def _remove(port: Row) -> list[Operation]:
    """Delete a port, if it is still whose it was; its Interface goes with it."""
    it = frozenset([port["_uuid"]])
    return [
        _unchanged(port),
        # A row that is only left to be collected still keeps what it refers to.
        update("Port", [("_uuid", "==", port["_uuid"])], {"qos": frozenset()}),
        mutate("Bridge", [("ports", "includes", it)], ("ports", "delete", it)),
    ]


def _unchanged(port: Row) -> Operation:
    """Go on only if a port is still whose it was."""
    ids = port["external_ids"]
    where = [("_uuid", "==", port["_uuid"]), ("external_ids", "==", ids)]
    return wait("Port", where, {"name": port["name"]})


def _named(name: str) -> list[Condition]:
    return [("name", "==", name)]


def _marked(stamp: str) -> list[Condition]:
    return [("external_ids", "includes", {KEY: stamp})]


# Messages


def _no_bridge(name: str) -> NoSuchLink:
    return NoSuchLink(
        f"Open vSwitch has no bridge {name!r}; make it with: "
        f"ovs-vsctl add-br {name} && ip link set {name} up"
    )


def _taken(name: str, *rows: Row | None) -> ConflictError:
    ids = {key: one for row in rows if row for key, one in row["external_ids"].items()}
    noted = ", ".join(f"{key}={one}" for key, one in sorted(ids.items()))
    return ConflictError(
        f"Open vSwitch has a port for {name!r} that is not ours "
        f"({noted or 'no owner is noted'}); "
        f"if nobody needs it: ovs-vsctl del-port {name}"
    )
