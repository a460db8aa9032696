# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch: a tap as a port of a bridge.

Open vSwitch knows devices by name only: a row that outlives its device takes in the
next device of that name. So each row carries the lease's stamp and is found by the
stamp alone, and Tapster holds the name until the rows are gone.

One transaction makes, repairs or deletes a port. It fails if the rows have changed
since they were read. Then Tapster waits for ovs-vswitchd, as ovs-vsctl does:
ovs-vswitchd copies `next_cfg` to `cur_cfg` when it has done what the database says.
"""

import os

from tapster import model
from tapster.backends import ovsport
from tapster.backends.backend import Leftover, Observation
from tapster.backends.ovsdb import (
    Condition,
    Inserted,
    Operation,
    OvsdbRefusal,
    Row,
    TooLate,
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
from tapster.backends.ovsport import COLUMNS, KEY, REQUESTED, Port
from tapster.errors import (
    ConflictError,
    HostError,
    NoSuchLink,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel.port import Namespace
from tapster.light import (
    TYPE_CHECKING,
    Callable,
    Iterator,
    Sequence,
    TypeVar,
    contextmanager,
    suppress,
)
from tapster.model import Lease, State, Wiring

if TYPE_CHECKING:
    from tapster.backends.ovsrpc import OvsdbConnection

T = TypeVar("T")

RUNDIR = "/run/openvswitch"
ATTEMPTS = 5
"""How often Tapster tries a change while others change the same rows."""
PATIENT_SECONDS = 4.5
"""How long ovs-vswitchd may take, together with ovsdb-server about as long as libvirt
gives ovs-vsctl."""
HURRIED_SECONDS = 0.2
"""How long ovs-vswitchd may take after it has once taken too long: other users of
tapsterd wait for it."""


class Ovs:
    """The ports of one ledger's leases."""

    name = "ovs"

    def __init__(self, ledger: str, rundir: str | None = None) -> None:
        """`rundir` holds Open vSwitch's sockets. The default is `OVS_RUNDIR`."""
        self._ledger = ledger
        self._rundir = rundir or os.environ.get("OVS_RUNDIR") or RUNDIR
        self._socket = f"{self._rundir}/db.sock"
        self._late = False
        """Whether Open vSwitch took too long, and has kept up with no change since."""

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.ovs is not None

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        """Check a wiring. Raises RequestError for what Open vSwitch cannot do."""
        ovsport.check(wiring)
        name = wiring.ovs or ""
        here = select("Interface", _named(name), "ifindex", "mac_in_use")
        unused: list[Condition] = [*_named(name), ("ifindex", "==", frozenset())]
        with self.connected() as db:
            bridges, local = db.transact(select("Bridge", _named(name), "name"), here)
            if not bridges:
                raise _no_bridge(name)
            if local and not members(local[0]["ifindex"]):
                # The database has restarted and ovs-vswitchd is about to reconnect.
                _wait(db, "Interface", unused)
                (local,) = db.transact(here)
        link = namespace.named(name)
        # In another namespace a port would take in another device of this name.
        if not link or local != [{"ifindex": link.ifindex, "mac_in_use": link.mac}]:
            raise NoSuchLink(
                f"Open vSwitch's bridge {name!r} is not in this network namespace",
                name=name,
            )

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        """Insert or repair the lease's port, and wait until it works."""
        with self.connected() as db:
            inserted, config = _retry(lambda: self.write_port(db, lease))
            try:
                wait_done(db, config)
                _check_in_use(db, lease)
            except BaseException:
                if inserted:
                    with suppress(TapsterError):
                        self._delete(db, lease.id, [])
                raise

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        """Do nothing: each device is attached by itself."""
        return frozenset()

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        """Delete the rows with the lease's stamp; return when the device is free."""
        if lease.state is State.ACTIVE and namespace is not None:
            self._unlimit(lease.id)
        # Of a name that never was the lease's, a stranger may have made the port.
        by_hand = [] if lease.state is State.RESERVED else [lease]
        self._delete_port(lease.id, by_hand)

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observation:
        needed = any(
            self.concerns(lease.wiring) or self.name in lease.backends
            for lease in leases
        )
        if not needed and not self.is_installed:
            return Observation({})
        try:
            with self.connected() as db:
                rows = db.transact(
                    *(select(table, [], *columns) for table, columns in COLUMNS.items())
                )
        except ServiceUnavailable:
            if needed:
                raise
            return Observation({})
        present = ovsport.present(dict(zip(COLUMNS, rows, strict=True)), self._ledger)
        differences = {
            lease.id: difference
            for lease in leases
            if (difference := self._differences(lease, present.pop(lease.id, [])))
        }
        leftovers = [Leftover(id, "a port of Open vSwitch") for id in present]
        return Observation(differences, tuple(leftovers))

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        self._delete_port(leftover.lease, [])

    @property
    def is_installed(self) -> bool:
        """Whether Open vSwitch's database has run since the boot."""
        return os.path.exists(self._socket)

    # Attach

    def write_port(self, db: "OvsdbConnection", lease: Lease) -> tuple[bool, int]:
        """Insert or repair a port; return whether it is new, and the new `next_cfg`."""
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
        if port and ovsport.owner(port) == (self._ledger, lease.id):
            changes.append(_unchanged(port))
        elif port:
            changes += removal_of(port)
            owners += [port["external_ids"][KEY]] if ovsport.owner(port) else []
            port = interface = None
        changes += _connect(lease, wanted, port, interface)
        return port is None, _commit(db, owners, changes)

    def _may_change(
        self, lease: Lease, port: Row | None, interface: Row | None
    ) -> bool:
        """Say whether the rows under the lease's name may be changed."""
        if port is None:
            return interface is None
        if interface and interface["_uuid"] not in members(port["interfaces"]):
            return False
        if owner := ovsport.owner(port):
            # A name is held until its port is gone, so another lease of ours has ended.
            return owner.ledger == self._ledger
        return lease.state is State.ACTIVE and _is_by_hand(lease, port, interface)

    # Detach

    def _unlimit(self, lease: str) -> None:
        """Remove the rates from a device that will be used elsewhere.

        Open vSwitch does not reset the queueing of a device whose port is deleted.
        """
        stamp = self._stamp(lease)
        policed: list[Condition] = [*_stamped(stamp), ("ingress_policing_rate", ">", 0)]
        with self.connected() as db:
            qos, interfaces = db.transact(
                select("QoS", _stamped(stamp), "_uuid"),
                select("Interface", policed, "_uuid"),
            )
            if not (qos or interfaces):
                return
            changes = [
                update("Port", _stamped(stamp), {"qos": frozenset()}),
                update("Interface", _stamped(stamp), _policed(0, 0)),
            ]
            wait_done(db, _commit(db, [stamp], changes))

    def _delete_port(self, lease: str, leases: Sequence[Lease]) -> None:
        with self.connected() as db:
            config = _retry(lambda: self._delete(db, lease, leases))
            try:
                if self._vswitchd_runs():
                    wait_done(db, config)
            except ServiceUnavailable:
                # An ovs-vswitchd that has died holds no device.
                if self._vswitchd_runs():
                    raise

    def _delete(
        self, db: "OvsdbConnection", lease: str, leases: Sequence[Lease]
    ) -> int:
        """Delete the rows with a lease's stamp; return the new `next_cfg`.

        Also delete the ports that somebody made by hand of the devices of `leases`:
        each would take in the next device of its name, and so another VM's.
        """
        stamp = self._stamp(lease)
        ports, qos, queues, config = db.transact(
            select("Port", _stamped(stamp), "_uuid", "name", "external_ids"),
            select("QoS", _stamped(stamp), "_uuid"),
            select("Queue", _stamped(stamp), "_uuid"),
            select("Open_vSwitch", [], "next_cfg"),
        )
        ports += [port for one in leases for port in self._by_hand(db, one)]
        if not (ports or qos or queues):
            # An earlier attempt deleted them and was not told so.
            return _number(config)
        changes = [change for port in ports for change in removal_of(port)]
        return _commit(db, [stamp], changes)

    def _by_hand(self, db: "OvsdbConnection", lease: Lease) -> list[Row]:
        """Return the port that somebody made by hand of a lease's device, if any."""
        named = _named(lease.name)
        ports, interfaces = db.transact(
            select("Port", named, "_uuid", "name", "interfaces", "external_ids"),
            select("Interface", named, "_uuid", "ifindex", "external_ids"),
        )
        interface = interfaces[0] if interfaces else None
        return [
            port
            for port in ports
            if interface is not None
            and members(port["interfaces"]) == {interface["_uuid"]}
            and _is_by_hand(lease, port, interface)
        ]

    def _vswitchd_runs(self) -> bool:
        """Say whether ovs-vswitchd listens: if killed, it leaves its socket behind."""
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
        return "Open vSwitch still has its port" if ports else ""

    def _stamp(self, lease: str) -> str:
        return model.stamp(self._ledger, lease)

    @contextmanager
    def connected(self) -> Iterator["OvsdbConnection"]:
        """Connect to the database. Wait less if Open vSwitch is known to hang."""
        try:
            from tapster.backends.ovsrpc import OvsdbConnection
        except ModuleNotFoundError as error:
            if error.name != "ovs":
                raise
            raise ServiceUnavailable(
                "ports of Open vSwitch need its Python library; install it with: "
                "apt-get install python3-openvswitch, or: pip install 'tapster[ovs]'"
            ) from error
        seconds = HURRIED_SECONDS if self._late else PATIENT_SECONDS
        try:
            with OvsdbConnection(self._socket, seconds) as db:
                yield db
        except TooLate:
            self._late = True
            raise
        if db.kept_up:
            self._late = False


def unstamped_ports() -> dict[str, str]:
    """Return the ports that no Tapster has made: the bridge of each, by the name of
    the device that it takes in. {} if Open vSwitch cannot be asked."""
    switch = Ovs("")
    found: dict[str, str] = {}
    with suppress(ServiceUnavailable):
        if not switch.is_installed:
            return {}
        with switch.connected() as db:
            bridges, ports, interfaces = db.transact(
                select("Bridge", [], "name", "ports"),
                select("Port", [], "_uuid", "interfaces", "external_ids"),
                select("Interface", [("type", "==", "")], "_uuid", "name"),
            )
        names = {row["_uuid"]: row["name"] for row in interfaces}
        rows = {row["_uuid"]: row for row in ports if not ovsport.owner(row)}
        for bridge in bridges:
            for port in members(bridge["ports"]) & rows.keys():
                for interface in members(rows[port]["interfaces"]) & names.keys():
                    found[names[interface]] = bridge["name"]
    return found


def _is_by_hand(lease: Lease, port: Row, interface: Row | None) -> bool:
    """Say whether somebody deleted a lease's port, and added its device by hand."""
    return (
        interface is not None
        and interface["ifindex"] == lease.ifindex
        and not port["external_ids"]
        and not interface["external_ids"]
    )


def _retry(change: Callable[[], T]) -> T:
    """Make a change; retry while it is refused because others change the rows."""
    for _ in range(ATTEMPTS - 1):
        with suppress(OvsdbRefusal):
            return change()
    return change()


def _commit(
    db: "OvsdbConnection", owners: Sequence[str], changes: Sequence[Operation]
) -> int:
    """Make changes, and delete the limits of these stamps; return `next_cfg`."""
    limits = [
        (table, _stamped(owner)) for owner in owners for table in ("QoS", "Queue")
    ]
    try:
        return _do(db, [*(delete(*limit) for limit in limits), *changes])
    except OvsdbRefusal as error:
        if error.error != "referential integrity violation":
            raise
    # Another owner's port uses our limits too. Leave them to that port.
    unstamp = ("external_ids", "delete", frozenset([KEY]))
    return _do(db, [*(mutate(*limit, unstamp) for limit in limits), *changes])


def _do(db: "OvsdbConnection", changes: Sequence[Operation]) -> int:
    *_, config = db.transact(
        *changes,
        mutate("Open_vSwitch", [], ("next_cfg", "+=", 1)),
        select("Open_vSwitch", [], "next_cfg"),
    )
    return _number(config)


def _number(config: Sequence[Row]) -> int:
    """Return the `next_cfg` of a database; 0 if it has none."""
    return max((row["next_cfg"] for row in config), default=0)


def wait_done(db: "OvsdbConnection", config: int) -> None:
    """Wait until ovs-vswitchd has done what the database said at this `next_cfg`."""
    _wait(db, "Open_vSwitch", [("cur_cfg", "<", config)])


def _wait(db: "OvsdbConnection", table: str, undone: Sequence[Condition]) -> None:
    """Wait until ovs-vswitchd has left no row that fits."""
    try:
        db.transact(wait(table, undone, seconds=db.seconds))
        db.kept_up = True
    except OvsdbRefusal as error:
        if error.error != "timed out":
            raise
        raise TooLate(
            f"ovs-vswitchd has not done what Open vSwitch's database says in "
            f"{db.seconds:g} s: is it running?"
        ) from error


def _check_in_use(db: "OvsdbConnection", lease: Lease) -> None:
    """Check that Open vSwitch uses the device. Raises HostError, ConflictError."""
    (rows,) = db.transact(
        select("Interface", _named(lease.name), "ofport", "error", "ifindex")
    )
    if not any(number > 0 for row in rows for number in members(row["ofport"])):
        errors = [error for row in rows for error in members(row["error"])]
        raise HostError(
            f"Open vSwitch cannot use port {lease.name!r}: "
            f"{', '.join(errors) or 'it has no port number'}"
        )
    if any(members(row["ifindex"]) - {lease.ifindex} for row in rows):
        raise ConflictError(
            f"Open vSwitch uses another device that is called {lease.name!r}"
        )


# Parts of transactions


def _connect(
    lease: Lease, wanted: Port, port: Row | None, interface: Row | None
) -> list[Operation]:
    """Insert or update the rows of a port, and put it on its bridge."""
    ids = {KEY: wanted.external_ids[KEY]}
    write_interface, interface_id = _write(
        "Interface",
        lease.name,
        interface,
        ovsport.requested_keys(port) if port else [],
        external_ids=wanted.external_ids,
        type=wanted.type,
        mtu_request=wanted.mtu_request,
        **_policed(*wanted.outbound),
    )
    requested = "=".join(dict(lease.wiring.external_ids))
    write_port, port_id = _write(
        "Port",
        lease.name,
        port,
        [REQUESTED],
        interfaces=frozenset([interface_id]),
        tag=wanted.tag,
        trunks=wanted.trunks,
        vlan_mode=wanted.vlan_mode,
        protected=wanted.protected,
        qos=frozenset([Inserted("qos")] if wanted.inbound else []),
        external_ids=ids | ({REQUESTED: requested} if requested else {}),
        other_config={"transient": wanted.transient},
    )
    (bridge,) = wanted.bridge
    ids_of_port = frozenset([port_id])
    others = [("name", "!=", bridge), ("ports", "includes", ids_of_port)]
    return [
        *(_limit(wanted.inbound, ids) if wanted.inbound else []),
        *write_interface,
        *write_port,
        *([mutate("Bridge", others, ("ports", "delete", ids_of_port))] if port else []),
        wait("Bridge", _named(bridge), {"name": bridge}),
        mutate("Bridge", _named(bridge), ("ports", "insert", ids_of_port)),
    ]


def _write(
    table: str, name: str, present: Row | None, stale: Sequence[str], **columns: object
) -> tuple[list[Operation], Uuid | Inserted]:
    """Insert a row, or update it and drop stale keys; return a reference to it."""
    if present is None:
        handle = table.lower()
        return [insert(table, handle, {"name": name, **columns})], Inserted(handle)
    uuid: Uuid = present["_uuid"]
    row = [("_uuid", "==", uuid)]
    maps = {key: value for key, value in columns.items() if isinstance(value, dict)}
    rest = {key: value for key, value in columns.items() if key not in maps}
    merging = [mutation for key in maps for mutation in merge(key, maps[key], stale)]
    return [update(table, row, rest), mutate(table, row, *merging)], uuid


def _policed(rate: int, burst: int) -> Row:
    """Return the columns of an Interface that limit what its guest sends."""
    return {"ingress_policing_rate": rate, "ingress_policing_burst": burst}


def _limit(queue: dict[str, str], ids: dict[str, str]) -> list[Operation]:
    """Insert a QoS with one queue for all frames."""
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


def removal_of(port: Row) -> list[Operation]:
    """Delete a port if its owner is unchanged; its Interface goes with it."""
    ids_of_port = frozenset([port["_uuid"]])
    return [
        _unchanged(port),
        # A Port that waits to be garbage-collected still refers to its QoS.
        update("Port", [("_uuid", "==", port["_uuid"])], {"qos": frozenset()}),
        mutate(
            "Bridge",
            [("ports", "includes", ids_of_port)],
            ("ports", "delete", ids_of_port),
        ),
    ]


def _unchanged(port: Row) -> Operation:
    """Let the transaction go on only if a port's owner is unchanged."""
    ids = port["external_ids"]
    where = [("_uuid", "==", port["_uuid"]), ("external_ids", "==", ids)]
    return wait("Port", where, {"name": port["name"]})


def _named(name: str) -> list[Condition]:
    return [("name", "==", name)]


def _stamped(stamp: str) -> list[Condition]:
    return [("external_ids", "includes", {KEY: stamp})]


# Messages


def _no_bridge(name: str) -> NoSuchLink:
    return NoSuchLink(
        f"Open vSwitch has no bridge {name!r}; make it with: "
        f"ovs-vsctl add-br {name} && ip link set {name} up",
        name=name,
    )


def _taken(name: str, *rows: Row | None) -> ConflictError:
    ids = {key: id for row in rows if row for key, id in row["external_ids"].items()}
    owner = ", ".join(f"{key}={id}" for key, id in sorted(ids.items()))
    return ConflictError(
        f"Open vSwitch has a port for {name!r} that is not ours "
        f"({owner or 'it names no owner'}); "
        f"if nobody needs it, delete it with: ovs-vsctl del-port {name}"
    )
