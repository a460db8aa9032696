# SPDX-License-Identifier: Apache-2.0
"""What connects a device: one file a plane.

Each resolves and checks what a request names before anything is made, says
which changes put a device up, and which take it off again, by ifindex. Those that
keep their part outside the kernel's links have the face in plane.py.
"""

from tapster.wiring.filter import Filter
from tapster.wiring.inbound import Inbound
from tapster.wiring.outbound import Outbound
from tapster.wiring.ovs import Ovs
from tapster.wiring.plane import Plane


def planes(ledger: str) -> tuple[Plane, ...]:
    """Every plane but the links themselves, for the ledger of this id."""
    return (Filter(ledger), Ovs(ledger), Inbound(ledger), Outbound(ledger))
