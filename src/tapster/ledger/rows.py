# SPDX-License-Identifier: Apache-2.0
"""Leases as rows of the ledger's tables, and back."""

from collections.abc import Iterable
from functools import lru_cache

from tapster.light import Any
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
SELECT lease.id, name, ifindex, kind, state, owner, mac, lower, mode, queues, vnet_hdr,
       backends, caller_uid, on_close, created, fin_wait, deadline, released,
       placeholder, manager, tap_owner, tap_group, open_at_release, labels,
       boot, cookie, path, pidns, pid, pid_start, pid_pidns,
       {", ".join(Wiring._fields)}
FROM lease JOIN netns ON netns.id = lease.netns
"""  # noqa: S608 - our names
"""A query for leases, to which WHERE and ORDER BY can be added."""


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
        vnet_hdr,
        backends,
        caller_uid,
        on_close,
        created,
        fin_wait,
        deadline,
        released,
        placeholder,
        manager,
        tap_owner,
        tap_group,
        open_at_release,
        labels,
        *others,
    ) = row
    netns, process = others[:4], others[4:7]
    wiring = _wiring_of(tuple(others[7:]))
    if not 0 < ifindex <= MAX_IFINDEX:
        raise ValueError(f"lease {id} has the ifindex {ifindex}")
    if not 0 < len(name.encode()) <= MAX_BYTES or "/" in name or "\0" in name:
        raise ValueError(f"lease {id} has the name {name!r}")
    if not 0 < queues <= MAX_QUEUES:
        raise ValueError(f"lease {id} has {queues} queues")
    if not 0 <= (wiring.mtu or 0) <= MAX_MTU:
        raise ValueError(f"lease {id} has the MTU {wiring.mtu}")
    vlans = (wiring.vlan, *wiring.trunks) if wiring.vlan else wiring.trunks
    if vlans and any(not 0 < vlan <= MAX_VLAN for vlan in vlans):
        raise ValueError(f"lease {id} has the VLANs {wiring.vlan}, {wiring.trunks}")
    if len(mac) != MAC_LENGTH or len(bytes.fromhex(mac.replace(":", ""))) != 6:
        raise ValueError(f"lease {id} has the MAC {mac!r}")
    return Lease(
        id=id,
        name=name,
        ifindex=ifindex,
        kind=Kind(kind),
        state=State(state),
        owner=owner,
        mac=mac,
        lower=lower,
        mode=None if mode is None else Mode(mode),
        queues=queues,
        vnet_hdr=bool(vnet_hdr),
        wiring=wiring,
        backends=tuple(backends.split()),
        caller_uid=caller_uid,
        on_close=bool(on_close),
        netns=Netns(*netns),
        created=created,
        fin_wait=fin_wait,
        deadline=deadline,
        released=released,
        process=None if process[0] is None else Process(*process),
        placeholder=bool(placeholder),
        manager=manager,
        tap_owner=tap_owner,
        tap_group=tap_group,
        open_at_release=bool(open_at_release),
        labels=pairs_of(labels),
    )


def columns_of(wiring: Wiring) -> dict[str, Any]:
    """Return the columns of a wiring, by name."""
    return wiring._asdict() | {
        "trunks": " ".join(map(str, wiring.trunks)),
        "external_ids": text_of_pairs(wiring.external_ids),
        "addresses": " ".join(wiring.addresses),
        "inbound": _text_of(wiring.inbound),
        "outbound": _text_of(wiring.outbound),
    }


# Most leases of a host are wired alike.
@lru_cache(maxsize=64)
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
    return Wiring(
        bridge=bridge,
        ovs=ovs,
        isolated=bool(isolated),
        learning=bool(learning),
        root_guard=bool(root_guard),
        bpdu_guard=bool(bpdu_guard),
        vlan=vlan,
        trunks=tuple(map(int, trunks.split())),
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
