# SPDX-License-Identifier: Apache-2.0
"""What connects a device, guards it and limits its rates: one file for each backend.

Each backend checks what a request names before anything is made. It says which
changes connect a device, and which disconnect it, by ifindex. Backends that keep
state outside the kernel's links implement the protocol in backend.py.
"""

from tapster.backends import filter, outbound
from tapster.backends.backend import Backend
from tapster.backends.guard import Guard
from tapster.backends.inbound import Inbound
from tapster.backends.ovs import Ovs
from tapster.backends.table import TableBackend


def make(ledger: str) -> tuple[Backend, ...]:
    """Make every backend that keeps state outside the links, for the ledger's id."""
    return (
        TableBackend(ledger, filter.PURPOSE),
        Guard(ledger),
        Ovs(ledger),
        Inbound(ledger),
        TableBackend(ledger, outbound.PURPOSE),
    )
