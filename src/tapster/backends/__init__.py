# SPDX-License-Identifier: Apache-2.0
"""What connects a device: one file a backend.

Each resolves and checks what a request names before anything is made, says
which changes put a device up, and which take it off again, by ifindex. Those that
keep their part outside the kernel's links have the face in backend.py.
"""

from tapster.backends.backend import Backend
from tapster.backends.filter import Filter
from tapster.backends.inbound import Inbound
from tapster.backends.outbound import Outbound
from tapster.backends.ovs import Ovs


def make(ledger: str) -> tuple[Backend, ...]:
    """Every backend but the links themselves, for the ledger of this id."""
    return (Filter(ledger), Ovs(ledger), Inbound(ledger), Outbound(ledger))
