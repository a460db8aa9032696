# SPDX-License-Identifier: Apache-2.0
"""Leases as rows of the ledger's tables, and back."""

from typing import Any

from tapster.model import (
    Kind,
    Lease,
    Mode,
    Netns,
    Process,
    Rate,
    State,
    Wiring,
)

SELECT = f"""
SELECT lease.id, name, ifindex, kind, state, owner, mac, lower, mode, queues, vnet_hdr,
       backends, caller_uid, on_close, created, fin_wait, deadline, released,
       placeholder, manager, boot, cookie, path, pidns, pid, pid_start, pid_pidns,
       {", ".join(Wiring._fields)}
FROM lease JOIN netns ON netns.id = lease.netns
"""  # noqa: S608 - our names
"""A query for leases, to which a WHERE can be added."""


def lease_of(row: tuple[Any, ...]) -> Lease:
    """The lease that a row of SELECT is. Raises ValueError if it is none."""
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
        *others,
    ) = row
    netns, process, wiring = others[:4], others[4:7], others[7:]
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
        wiring=_wiring_of(wiring),
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
    )


def columns_of(wiring: Wiring) -> dict[str, Any]:
    """What the columns of a wiring hold."""
    return wiring._asdict() | {
        "trunks": " ".join(map(str, wiring.trunks)),
        "external_ids": "\n".join(f"{k}={v}" for k, v in wiring.external_ids),
        "addresses": " ".join(wiring.addresses),
        "inbound": _text_of(wiring.inbound),
        "outbound": _text_of(wiring.outbound),
    }


def _wiring_of(columns: list[Any]) -> Wiring:
    (
        bridge,
        ovs,
        isolated,
        learning,
        vlan,
        trunks,
        external_ids,
        filter,
        addresses,
        inbound,
        outbound,
        mtu,
        up,
    ) = columns
    pairs = [line.partition("=") for line in external_ids.split("\n") if line]
    return Wiring(
        bridge=bridge,
        ovs=ovs,
        isolated=bool(isolated),
        learning=bool(learning),
        vlan=vlan,
        trunks=tuple(map(int, trunks.split())),
        external_ids=tuple((key, value) for key, _, value in pairs),
        filter=bool(filter),
        addresses=tuple(addresses.split()),
        inbound=_rate_of(inbound),
        outbound=_rate_of(outbound),
        mtu=mtu,
        up=bool(up),
    )


def _text_of(rate: Rate | None) -> str | None:
    if rate is None:
        return None
    return " ".join("-" if figure is None else str(figure) for figure in rate)


def _rate_of(text: str | None) -> Rate | None:
    if text is None:
        return None
    average, peak, burst = (None if one == "-" else int(one) for one in text.split())
    if average is None:
        raise ValueError(f"a rate without an average: {text!r}")
    return Rate(average, peak, burst)
