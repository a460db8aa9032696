# SPDX-License-Identifier: Apache-2.0
"""Leases as rows of the ledger's tables, and back."""

from tapster.light import Any, Iterable, remembered
from tapster.model import (
    MAX_QUEUES,
    Kind,
    Lease,
    Mode,
    Netns,
    Process,
    Rate,
    State,
    Wiring,
)
from tapster.names import MAX_BYTES

MAX_IFINDEX = (1 << 31) - 1
MAX_MTU = (1 << 31) - 1
MAX_VLAN = 4094
MAC_LENGTH = len("52:54:00:12:34:56")

SELECT = f"""
SELECT lease.id, name, ifindex, kind, state, owner, mac, lower, mode, queues, backends,
       created, fin_wait, deadline, released, placeholder, manager, caller_uid,
       on_close, vnet_hdr, tap_owner, tap_group, open_at_release, labels,
       boot, cookie, path, pidns, pid, pid_start, pid_pidns,
       {", ".join(Wiring._fields)}
FROM lease JOIN netns ON netns.id = lease.netns
"""  # noqa: S608 - our names
"""A query for leases, to which WHERE and ORDER BY can be added."""

_WIRING = 31
"""The place of the first column of the wiring."""


def lease_of(row: tuple[Any, ...]) -> Lease:
    """Return the lease of a row of SELECT.

    Raise ValueError if a value is not one that a release writes: the kernel's
    interfaces have no room for it.
    """
    (
        id,
        name,
        ifindex,
        kind,
        state,
        owner,
        mac,
        lower,
        mode,
        queues,
        backends,
        created,
        fin_wait,
        deadline,
        released,
        placeholder,
        manager,
        caller_uid,
        on_close,
        vnet_hdr,
        tap_owner,
        tap_group,
        open_at_release,
        labels,
        boot,
        cookie,
        path,
        pidns,
        pid,
        pid_start,
        pid_pidns,
    ) = row[:_WIRING]
    if not 0 < ifindex <= MAX_IFINDEX:
        raise ValueError(f"lease {id} has the ifindex {ifindex}")
    if not 0 < len(name.encode()) <= MAX_BYTES or "/" in name or "\0" in name:
        raise ValueError(f"lease {id} has the name {name!r}")
    if not 0 < queues <= MAX_QUEUES:
        raise ValueError(f"lease {id} has {queues} queues")
    if len(mac) != MAC_LENGTH or len(bytes.fromhex(mac.replace(":", ""))) != 6:
        raise ValueError(f"lease {id} has the MAC {mac!r}")
    try:
        wiring = _wiring_of(row[_WIRING:])
    except ValueError as error:
        raise ValueError(f"lease {id} has {error}") from error
    return Lease(
        id,
        name,
        ifindex,
        Kind(kind),
        State(state),
        owner,
        mac,
        lower,
        None if mode is None else Mode(mode),
        queues,
        wiring,
        tuple(backends.split()) if backends else (),
        netns_of((boot, cookie, path, pidns)),
        created,
        fin_wait,
        deadline,
        released,
        None if pid is None else Process(pid, pid_start, pid_pidns),
        placeholder == 1,
        manager,
        caller_uid,
        on_close == 1,
        vnet_hdr == 1,
        tap_owner,
        tap_group,
        open_at_release == 1,
        pairs_of(labels),
    )


# A host has few namespaces.
netns_of = remembered(Netns._make)


def columns_of(wiring: Wiring) -> dict[str, Any]:
    """Return the columns of a wiring, by name, as plain numbers and texts.

    For any other type Python's SQLite looks for an adapter, which takes as long as to
    store ten numbers.
    """
    columns = wiring._asdict() | {
        "trunks": " ".join(map(str, wiring.trunks)),
        "external_ids": text_of_pairs(wiring.external_ids),
        "addresses": " ".join(wiring.addresses),
        "inbound": _text_of(wiring.inbound),
        "outbound": _text_of(wiring.outbound),
    }
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in columns.items()
    }


# Most leases of a host are wired alike.
@remembered
def given_columns(wiring: Wiring) -> dict[str, Any]:
    """Return the columns of a wiring that differ from the table's defaults."""
    columns = columns_of(wiring)
    return {name: columns[name] for name in columns if columns[name] != _DEFAULTS[name]}


@remembered
def _wiring_of(columns: tuple[Any, ...]) -> Wiring:
    (
        bridge,
        ovs,
        isolated,
        learning,
        root_guard,
        bpdu_guard,
        vlan,
        trunks,
        external_ids,
        filter,
        addresses,
        guard,
        inbound,
        outbound,
        outbound_pps,
        redirect,
        mtu,
        up,
        standby,
    ) = columns
    if not 0 <= (mtu or 0) <= MAX_MTU:
        raise ValueError(f"the MTU {mtu}")
    tagged = tuple(map(int, trunks.split()))
    if any(
        not 0 < number <= MAX_VLAN for number in ((vlan, *tagged) if vlan else tagged)
    ):
        raise ValueError(f"the VLANs {vlan}, {tagged}")
    return Wiring(
        bridge=bridge,
        ovs=ovs,
        isolated=bool(isolated),
        learning=bool(learning),
        root_guard=bool(root_guard),
        bpdu_guard=bool(bpdu_guard),
        vlan=vlan,
        trunks=tagged,
        external_ids=pairs_of(external_ids),
        filter=bool(filter),
        addresses=tuple(addresses.split()),
        guard=bool(guard),
        inbound=_rate_of(inbound),
        outbound=_rate_of(outbound),
        outbound_pps=outbound_pps,
        redirect=redirect,
        mtu=mtu,
        up=bool(up),
        standby=bool(standby),
    )


def text_of_pairs(pairs: Iterable[tuple[str, str]]) -> str:
    """Return KEY=VALUE pairs as a column holds them: one a line."""
    return "\n".join(f"{key}={value}" for key, value in pairs)


def pairs_of(text: str) -> tuple[tuple[str, str], ...]:
    """Return the KEY=VALUE pairs of a column."""
    if not text:
        return ()
    pairs = [line.partition("=") for line in text.split("\n") if line]
    return tuple((key, value) for key, _, value in pairs)


def _text_of(rate: Rate | None) -> str | None:
    if rate is None:
        return None
    return " ".join("-" if figure is None else str(figure) for figure in rate)


def _rate_of(text: str | None) -> Rate | None:
    if text is None:
        return None
    average, peak, burst = (
        None if figure == "-" else int(figure) for figure in text.split()
    )
    if average is None:
        raise ValueError(f"a rate without an average: {text!r}")
    return Rate(average, peak, burst)


_DEFAULTS = columns_of(Wiring())
