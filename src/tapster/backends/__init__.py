# SPDX-License-Identifier: Apache-2.0
"""The backends, one in each file: they connect, filter and limit devices.

Each backend checks what a request names before anything is made. It says which
changes connect a device, and which disconnect it, by ifindex. Backends that keep
state outside the kernel's links implement the protocol in backend.py.
"""

from tapster.backends.lazy import LazyBackend
from tapster.light import TYPE_CHECKING, Callable, Iterable, Sequence
from tapster.model import Lease

if TYPE_CHECKING:
    from tapster.backends.backend import Backend

Leases = Callable[[], Iterable[Lease]]
MakeBackends = Callable[[str, Leases], Sequence["Backend"]]
"""Makes backends, from a ledger's id and a function that lists its leases."""


def make(ledger: str, leases: Leases = tuple) -> "tuple[Backend, ...]":
    """Make every backend that keeps state outside the links, for the ledger's id.

    `leases` lists the ledger's leases.
    """
    return (
        LazyBackend(
            "filter", lambda wiring: wiring.filter, lambda: _filter(ledger, leases)
        ),
        LazyBackend(
            "guard",
            lambda wiring: (
                wiring.guard
                and wiring.ovs is None
                and (
                    wiring.filter
                    or (wiring.outbound or wiring.outbound_pps) is not None
                )
            ),
            lambda: _guard(ledger),
        ),
        LazyBackend(
            "redirect",
            lambda wiring: wiring.redirect is not None,
            lambda: _redirect(ledger),
        ),
        LazyBackend("ovs", lambda wiring: wiring.ovs is not None, lambda: _ovs(ledger)),
        LazyBackend(
            "inbound",
            lambda wiring: wiring.ovs is None and wiring.inbound is not None,
            lambda: _inbound(ledger),
        ),
        LazyBackend(
            "outbound",
            lambda wiring: (
                wiring.ovs is None
                and (wiring.outbound or wiring.outbound_pps) is not None
            ),
            lambda: _outbound(ledger, leases),
        ),
    )


def _filter(ledger: str, leases: Leases) -> "Backend":
    from tapster.backends import filter
    from tapster.backends.table import TableBackend

    return TableBackend(ledger, filter.PURPOSE, leases)


def _guard(ledger: str) -> "Backend":
    from tapster.backends.guard import Guard

    return Guard(ledger)


def _ovs(ledger: str) -> "Backend":
    from tapster.backends.ovs import Ovs

    return Ovs(ledger)


def _redirect(ledger: str) -> "Backend":
    from tapster.backends.redirect import Redirect

    return Redirect(ledger)


def _inbound(ledger: str) -> "Backend":
    from tapster.backends.inbound import Inbound

    return Inbound(ledger)


def _outbound(ledger: str, leases: Leases) -> "Backend":
    from tapster.backends import outbound
    from tapster.backends.table import TableBackend

    return TableBackend(ledger, outbound.PURPOSE, leases)
