# SPDX-License-Identifier: Apache-2.0
"""A lease's port in Open vSwitch's database, as wanted and as present. Pure.

Open vSwitch's HTB lends a queue the rate that the port does not use. So `min-rate`
alone limits nothing, and with a `max-rate` of libvirt's `peak` the guest could send at
its peak for ever. Tapster sets both to the average, which the guest gets in the long
run. A burst goes at the device's full speed. `peak` is not used, and Linux could not
use it for what the guest sends.
"""

from tapster.backends.ovsdb import Row, Uuid, members
from tapster.errors import RequestError
from tapster.light import NamedTuple, Sequence
from tapster.model import Lease, Rate, Stamp, Wiring, parse_stamp

KEY = "tapster"
"""The key in `external_ids` under which a row carries its lease's stamp."""
REQUESTED = "tapster-keys"
"""The key in a Port's `external_ids` that lists which of its Interface's keys the
lease's request named."""
MAX_AVERAGE = ((1 << 32) - 1) // 1000
"""KB/s: up to version 3.1 Open vSwitch keeps a rate of bytes in 32 bits."""
MAX_BURST = ((1 << 32) - 1) // (8 * 1024)
"""KiB: Open vSwitch keeps the bits of a burst in 32 bits too."""
LONGEST_BURST = 268
"""Seconds that a burst may last: the kernel counts units of 64 ns in 32 bits."""

COLUMNS = {
    "Bridge": ("_uuid", "name", "ports"),
    "Port": (
        *("_uuid", "name", "interfaces", "tag", "trunks", "vlan_mode", "qos"),
        *("protected", "external_ids", "other_config"),
    ),
    "Interface": (
        *("_uuid", "name", "type", "mtu_request", "ingress_policing_rate"),
        *("ingress_policing_burst", "external_ids"),
    ),
    "QoS": ("_uuid", "type", "queues", "external_ids", "other_config"),
    "Queue": ("_uuid", "external_ids", "other_config"),
}
"""The columns that `present` needs of each table."""


class Port(NamedTuple):
    """A port, as it is or as it should be."""

    bridge: frozenset[str] = frozenset()
    interfaces: frozenset[str] = frozenset()
    tag: frozenset[int] = frozenset()
    trunks: frozenset[int] = frozenset()
    vlan_mode: frozenset[str] = frozenset()
    protected: bool = False
    """It exchanges no frames with other ports that are protected."""
    type: str = ""
    """The type of the Interface: "" takes in the device of its name."""
    mtu_request: frozenset[int] = frozenset()
    """The MTU that Open vSwitch gives the device, whatever MTU it has."""
    transient: str | None = None
    """If "true", `ovs-ctl delete-transient-ports` deletes it, as hosts do at boot."""
    external_ids: dict[str, str] = {}  # noqa: RUF012 - never changed
    """The keys of the Interface that are Tapster's."""
    inbound: dict[str, str] = {}  # noqa: RUF012 - never changed
    """`other_config` of the Queue for all frames; {} for no Queue."""
    outbound: tuple[int, int] = (0, 0)
    """`ingress_policing_rate` and `_burst` of the Interface; 0 for no limit."""


def owner(row: Row) -> Stamp | None:
    """Return the stamp that a row carries."""
    return parse_stamp(row["external_ids"].get(KEY, ""))


def requested_keys(port: Row) -> list[str]:
    """List the keys in `external_ids` that a port's lease asked for."""
    return [key for key in port["external_ids"].get(REQUESTED, "").split("=") if key]


def check(wiring: Wiring) -> None:
    """Check that Open vSwitch supports what a wiring asks. Raises RequestError."""
    if KEY in dict(wiring.external_ids):
        raise RequestError(f"external id {KEY!r} is reserved for Tapster")
    for rate in (wiring.inbound, wiring.outbound):
        if rate is not None:
            _check_rate(rate)


def _check_rate(rate: Rate) -> None:
    if rate.average > MAX_AVERAGE:
        raise RequestError(
            f"on a port of Open vSwitch the average can be {MAX_AVERAGE} KB/s at "
            f"most, not {rate.average}"
        )
    most = min(MAX_BURST, LONGEST_BURST * rate.average * 1000 // 1024)
    if rate.burst is not None and rate.burst > most:
        raise RequestError(
            f"on a port of Open vSwitch the burst can be {most} KiB at most with an "
            f"average of {rate.average} KB/s, not {rate.burst}"
        )


def wanted(lease: Lease, stamp: str) -> Port:
    """Return the port that an active lease should have."""
    wiring = lease.wiring
    ids = {"attached-mac": lease.mac} | dict(wiring.external_ids) | {KEY: stamp}
    return Port(
        bridge=frozenset([wiring.ovs or ""]),
        interfaces=frozenset([lease.name]),
        tag=frozenset([] if wiring.vlan is None else [wiring.vlan]),
        trunks=frozenset(wiring.trunks),
        vlan_mode=_vlan_mode(wiring),
        transient="true",
        external_ids=ids,
        inbound=_queue(wiring.inbound),
        outbound=_police(wiring.outbound),
    )


def _vlan_mode(wiring: Wiring) -> frozenset[str]:
    if wiring.vlan is not None:
        return frozenset(["native-untagged" if wiring.trunks else "access"])
    return frozenset(["trunk"] if wiring.trunks else [])


def _queue(rate: Rate | None) -> dict[str, str]:
    if rate is None:
        return {}
    bits = str(rate.average * 8000)
    burst = {} if rate.burst is None else {"burst": str(rate.burst * 8 * 1024)}
    return {"min-rate": bits, "max-rate": bits, **burst}


def _police(rate: Rate | None) -> tuple[int, int]:
    if rate is None:
        return 0, 0
    # The bytes of a second, as libvirt sets it, but at least the largest frame.
    burst = rate.burst or max(rate.average, 64)
    return rate.average * 8, -(-burst * 8 * 1024 // 1000)


def present(tables: dict[str, list[Row]], ledger: str) -> dict[str, list[Port]]:
    """Return the ports that carry a ledger's stamp, by lease id.

    A QoS or Queue that the lease's port does not use counts as a port on no bridge.
    """
    rows = {row["_uuid"]: row for name in COLUMNS for row in tables[name]}
    ours: dict[str, list[Port]] = {}
    used: set[Uuid] = set()
    for port in tables["Port"]:
        if (stamp := owner(port)) and stamp.ledger == ledger:
            ours.setdefault(stamp.lease, []).append(_port(port, tables["Bridge"], rows))
            for qos in members(port["qos"]):
                used |= {qos, *rows[qos]["queues"].values()}
    for row in [*tables["QoS"], *tables["Queue"]]:
        if (
            (stamp := owner(row))
            and stamp.ledger == ledger
            and row["_uuid"] not in used
        ):
            ours.setdefault(stamp.lease, []).append(Port())
    return ours


def _port(port: Row, bridges: Sequence[Row], rows: dict[Uuid, Row]) -> Port:
    interfaces = [rows[uuid] for uuid in members(port["interfaces"])]
    first = interfaces[0]
    ours = {"attached-mac", *requested_keys(port), KEY}
    qos = [rows[uuid] for uuid in members(port["qos"])]
    return Port(
        bridge=frozenset(
            bridge["name"]
            for bridge in bridges
            if port["_uuid"] in members(bridge["ports"])
        ),
        interfaces=frozenset(interface["name"] for interface in interfaces),
        tag=members(port["tag"]),
        trunks=members(port["trunks"]),
        vlan_mode=members(port["vlan_mode"]),
        protected=port["protected"],
        type=first["type"],
        mtu_request=members(first["mtu_request"]),
        transient=port["other_config"].get("transient"),
        external_ids={
            key: id for key, id in first["external_ids"].items() if key in ours
        },
        inbound=_limit(qos[0], rows) if qos else {},
        outbound=(first["ingress_policing_rate"], first["ingress_policing_burst"]),
    )


def _limit(qos: Row, rows: dict[Uuid, Row]) -> dict[str, str]:
    """Return the Queue for all frames if it is as Tapster makes it, else the QoS."""
    shown = {"type": qos["type"], **qos["other_config"]}
    if list(qos["queues"]) == [0]:
        queue: dict[str, str] = rows[qos["queues"][0]]["other_config"]
        if shown == {"type": "linux-htb", "max-rate": queue.get("max-rate")}:
            return queue
    return shown


def differences(ports: Sequence[Port], wanted: Port) -> str:
    """Say how the ports of a lease differ from the one wanted port; "" if not."""
    if not ports:
        return "Open vSwitch has no port for it"
    if len(ports) > 1:
        return "Open vSwitch has more than its port"
    return "; ".join(
        f"{field} is {_shown(value)}, not {_shown(getattr(wanted, field))}"
        for field, value in ports[0]._asdict().items()
        if value != getattr(wanted, field)
    )


def _shown(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{key}={entry}" for key, entry in sorted(value.items())]
    if isinstance(value, frozenset):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return str(value) or "none"
