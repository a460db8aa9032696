# SPDX-License-Identifier: Apache-2.0
"""A lease's port in the terms of Open vSwitch's database: as wanted, as found. Pure.

Open vSwitch's HTB lends a queue whatever rate the port has left. So `min-rate`
alone limits nothing, and a `max-rate` of libvirt's `peak` lets the peak last for
ever. Here both are the average: that is what the guest gets in the long run. A
burst goes as fast as the device can, and `peak` is not used; nor can Linux use it
for what comes from the guest.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tapster.backends.ovsdb import Row, Uuid, members
from tapster.errors import RequestError
from tapster.model import Lease, Rate, Stamp, Wiring, parse_stamp

KEY = "tapster"
"""The key in `external_ids` under which a row carries its lease's stamp."""
GIVEN = "tapster-keys"
"""The key in a Port's `external_ids` that tells which of its Interface's are ours."""
MAX_AVERAGE = ((1 << 32) - 1) // 1000
"""KB/s: up to version 3.1 Open vSwitch takes a rate of bytes into 32 bits."""
MAX_BURST = ((1 << 32) - 1) // (8 * 1024)
"""KiB: it takes the bits of a burst into as many, and tells the kernel ..."""
LONGEST_BURST = 268
"""... how many seconds it lasts, in 32 bits that count 64 ns."""

COLUMNS = {
    "Bridge": ("_uuid", "name", "ports"),
    "Port": (
        *("_uuid", "name", "interfaces", "tag", "trunks", "vlan_mode", "qos"),
        *("external_ids", "other_config"),
    ),
    "Interface": (
        *("_uuid", "name", "ingress_policing_rate", "ingress_policing_burst"),
        "external_ids",
    ),
    "QoS": ("_uuid", "type", "queues", "external_ids", "other_config"),
    "Queue": ("_uuid", "external_ids", "other_config"),
}
"""What `found` needs of each table."""


class Port(NamedTuple):
    """A port as it is, or as it should be."""

    bridge: frozenset[str] = frozenset()
    interfaces: frozenset[str] = frozenset()
    tag: frozenset[int] = frozenset()
    trunks: frozenset[int] = frozenset()
    vlan_mode: frozenset[str] = frozenset()
    transient: str | None = None
    """"true": it goes with `ovs-ctl delete-transient-ports`, as hosts do at boot."""
    external_ids: dict[str, str] = {}  # noqa: RUF012 - nobody changes it
    """Of the Interface, those that are ours."""
    inbound: dict[str, str] = {}  # noqa: RUF012 - nobody changes it
    """`other_config` of the Queue that all frames go through; {} is none."""
    outbound: tuple[int, int] = (0, 0)
    """`ingress_policing_rate` and `_burst` of the Interface; 0 is none."""


def mark(row: Row) -> Stamp | None:
    """The stamp that a row carries."""
    return parse_stamp(row["external_ids"].get(KEY, ""))


def given(port: Row) -> list[str]:
    """Which keys in `external_ids` a port's Interface has from its lease's request."""
    return [key for key in port["external_ids"].get(GIVEN, "").split("=") if key]


def check(wiring: Wiring) -> None:
    """Whether Open vSwitch can have it. Raises RequestError."""
    if KEY in dict(wiring.external_ids):
        raise RequestError(f"external id {KEY!r} is Tapster's own")
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
    """The port of an active lease."""
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
    # A second's worth, as libvirt gives it, but a frame of any size.
    burst = rate.burst or max(rate.average, 64)
    return rate.average * 8, -(-burst * 8 * 1024 // 1000)


def found(tables: dict[str, list[Row]], ledger: str) -> dict[str, list[Port]]:
    """What carries a ledger's stamp, by lease.

    A QoS or Queue that its lease's port does not use counts as a port on no bridge.
    """
    rows = {row["_uuid"]: row for name in COLUMNS for row in tables[name]}
    ours: dict[str, list[Port]] = {}
    used: set[Uuid] = set()
    for port in tables["Port"]:
        if (owner := mark(port)) and owner.ledger == ledger:
            ours.setdefault(owner.lease, []).append(_port(port, tables["Bridge"], rows))
            for qos in members(port["qos"]):
                used |= {qos, *rows[qos]["queues"].values()}
    for row in [*tables["QoS"], *tables["Queue"]]:
        if (owner := mark(row)) and owner.ledger == ledger and row["_uuid"] not in used:
            ours.setdefault(owner.lease, []).append(Port())
    return ours


def _port(port: Row, bridges: Sequence[Row], rows: dict[Uuid, Row]) -> Port:
    interfaces = [rows[uuid] for uuid in members(port["interfaces"])]
    first = interfaces[0]
    ours = {"attached-mac", *given(port), KEY}
    qos = [rows[uuid] for uuid in members(port["qos"])]
    return Port(
        bridge=frozenset(
            one["name"] for one in bridges if port["_uuid"] in members(one["ports"])
        ),
        interfaces=frozenset(one["name"] for one in interfaces),
        tag=members(port["tag"]),
        trunks=members(port["trunks"]),
        vlan_mode=members(port["vlan_mode"]),
        transient=port["other_config"].get("transient"),
        external_ids={
            key: one for key, one in first["external_ids"].items() if key in ours
        },
        inbound=_limit(qos[0], rows) if qos else {},
        outbound=(first["ingress_policing_rate"], first["ingress_policing_burst"]),
    )


def _limit(qos: Row, rows: dict[Uuid, Row]) -> dict[str, str]:
    """What all frames go through, if it is as we make it; else what is there."""
    shown = {"type": qos["type"], **qos["other_config"]}
    if list(qos["queues"]) == [0]:
        queue: dict[str, str] = rows[qos["queues"][0]]["other_config"]
        if shown == {"type": "linux-htb", "max-rate": queue.get("max-rate")}:
            return queue
    return shown


def differences(there: Sequence[Port], wanted: Port) -> str:
    """How there is not exactly the port that is wanted; "" if there is."""
    if not there:
        return "Open vSwitch has no port of it"
    if len(there) > 1:
        return "Open vSwitch has more of it than its port"
    return "; ".join(
        f"{field} is {_shown(value)}, not {_shown(getattr(wanted, field))}"
        for field, value in there[0]._asdict().items()
        if value != getattr(wanted, field)
    )


def _shown(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{key}={one}" for key, one in sorted(value.items())]
    if isinstance(value, frozenset):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return ",".join(str(one) for one in value) or "none"
    return str(value)
