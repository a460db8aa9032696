# SPDX-License-Identifier: Apache-2.0
"""What connects a device, guards it and limits its rates: one file for each backend.

Each backend checks what a request names before anything is made. It says which
changes connect a device, and which disconnect it, by ifindex. Backends that keep
state outside the kernel's links implement the protocol in backend.py.
"""

from tapster.backends.backend import Backend
from tapster.backends.lazy import LazyBackend


def make(ledger: str) -> tuple[Backend, ...]:
    """Make every backend that keeps state outside the links, for the ledger's id."""
    return (
        LazyBackend("filter", lambda wiring: wiring.filter, lambda: _filter(ledger)),
        LazyBackend(
            "guard",
            lambda wiring: wiring.filter and wiring.guard,
            lambda: _guard(ledger),
        ),
        LazyBackend("ovs", lambda wiring: wiring.ovs is not None, lambda: _ovs(ledger)),
        LazyBackend(
            "inbound",
            lambda wiring: wiring.ovs is None and wiring.inbound is not None,
            lambda: _inbound(ledger),
        ),
        LazyBackend(
            "outbound",
            lambda wiring: wiring.ovs is None and wiring.outbound is not None,
            lambda: _outbound(ledger),
        ),
    )


def _filter(ledger: str) -> Backend:
    from tapster.backends import filter
    from tapster.backends.table import TableBackend

    return TableBackend(ledger, filter.PURPOSE)


def _guard(ledger: str) -> Backend:
    from tapster.backends.guard import Guard

    return Guard(ledger)


def _ovs(ledger: str) -> Backend:
    from tapster.backends.ovs import Ovs

    return Ovs(ledger)


def _inbound(ledger: str) -> Backend:
    from tapster.backends.inbound import Inbound

    return Inbound(ledger)


def _outbound(ledger: str) -> Backend:
    from tapster.backends import outbound
    from tapster.backends.table import TableBackend

    return TableBackend(ledger, outbound.PURPOSE)
