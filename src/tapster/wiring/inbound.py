# SPDX-License-Identifier: Apache-2.0
"""How much goes to a guest: more than that is held back, see htb.py."""

from collections.abc import Sequence

from tapster.kernel.port import Kernel
from tapster.model import Lease, State, Wiring, stamp
from tapster.wiring import htb
from tapster.wiring.plane import Observed, Stray


class Inbound:
    """The plane of inbound rates. Open vSwitch has its own."""

    name = "inbound"

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger
        self._leaves = list(htb.LEAVES)

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.ovs is None and wiring.inbound is not None

    def check(self, kernel: Kernel, wiring: Wiring) -> None:
        if wiring.inbound is not None:
            htb.Class.of(wiring.inbound)
            htb.load()

    def wire(self, kernel: Kernel, lease: Lease) -> None:
        assert lease.wiring.inbound is not None
        wanted = htb.Class.of(lease.wiring.inbound)
        with htb.queues(kernel, self._leaves) as queues:
            try:
                queues.put(lease.ifindex, wanted)
            except BaseException:
                queues.drop(lease.ifindex)
                raise

    def unwire(self, kernel: Kernel | None, lease: Lease) -> None:
        if kernel is not None and self._is_there(kernel, lease):
            with htb.queues(kernel, self._leaves) as queues:
                queues.drop(lease.ifindex)

    def observe(self, kernel: Kernel, leases: Sequence[Lease]) -> Observed:
        shaped = [
            lease
            for lease in leases
            if self.name in lease.wired
            and lease.state is not State.RESERVED
            and self._is_there(kernel, lease)
        ]
        if not shaped:
            return Observed({})
        wrong = {}
        with htb.queues(kernel, self._leaves) as queues:
            for lease in shaped:
                rate = lease.wiring.inbound if lease.state is State.ACTIVE else None
                wanted = rate and htb.Class.of(rate)
                if said := queues.differs(lease.ifindex, wanted):
                    wrong[lease.id] = f"the rate {said}"
        return Observed(wrong)

    def remove(self, kernel: Kernel, stray: Stray) -> None:
        """There are none: a queue ends with its device."""

    def _is_there(self, kernel: Kernel, lease: Lease) -> bool:
        """Whether the lease's device is there, and not another with its ifindex."""
        link = kernel.link(lease.ifindex)
        return link is not None and link.alias == stamp(self._ledger, lease.id)
