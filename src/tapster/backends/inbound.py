# SPDX-License-Identifier: Apache-2.0
"""How much goes to a guest: more than that is held back, see htb.py."""

from collections.abc import Sequence

from tapster.backends import htb
from tapster.backends.backend import Observed, Stray
from tapster.kernel.port import Namespace
from tapster.model import Lease, State, Wiring, stamp


class Inbound:
    """The backend of inbound rates. Open vSwitch has its own."""

    name = "inbound"

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger
        self._leaves = list(htb.LEAVES)

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.ovs is None and wiring.inbound is not None

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        if wiring.inbound is not None:
            htb.Class.of(wiring.inbound)
            htb.load()

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        assert lease.wiring.inbound is not None
        wanted = htb.Class.of(lease.wiring.inbound)
        with htb.queues(namespace, self._leaves) as queues:
            try:
                queues.put(lease.ifindex, wanted)
            except BaseException:
                queues.drop(lease.ifindex)
                raise

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        if namespace is not None and self._is_there(namespace, lease):
            with htb.queues(namespace, self._leaves) as queues:
                queues.drop(lease.ifindex)

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observed:
        shaped = [
            lease
            for lease in leases
            if self.name in lease.backends
            and lease.state is not State.RESERVED
            and self._is_there(namespace, lease)
        ]
        if not shaped:
            return Observed({})
        wrong = {}
        with htb.queues(namespace, self._leaves) as queues:
            for lease in shaped:
                rate = lease.wiring.inbound if lease.state is State.ACTIVE else None
                wanted = rate and htb.Class.of(rate)
                if said := queues.differs(lease.ifindex, wanted):
                    wrong[lease.id] = f"the rate {said}"
        return Observed(wrong)

    def remove(self, namespace: Namespace, stray: Stray) -> None:
        """There are none: a queue ends with its device."""

    def _is_there(self, namespace: Namespace, lease: Lease) -> bool:
        """Whether the lease's device is there, and not another with its ifindex."""
        link = namespace.link(lease.ifindex)
        return link is not None and link.alias == stamp(self._ledger, lease.id)
