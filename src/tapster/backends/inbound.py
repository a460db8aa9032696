# SPDX-License-Identifier: Apache-2.0
"""The limit of traffic to a guest. The kernel holds the excess back: see htb.py."""

from tapster.backends import htb
from tapster.backends.backend import Leftover, Observation
from tapster.kernel.port import Namespace
from tapster.light import Sequence
from tapster.model import Lease, State, Wiring, stamp


class Inbound:
    """The backend of inbound rates. Ports of Open vSwitch have their own."""

    name = "inbound"

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger
        self.leaves = list(htb.LEAVES)

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.ovs is None and wiring.inbound is not None

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        if wiring.inbound is not None:
            htb.Class.of(wiring.inbound)
            htb.load()

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        assert lease.wiring.inbound is not None
        wanted = htb.Class.of(lease.wiring.inbound)
        with htb.queues(namespace, self.leaves) as queues:
            try:
                queues.set(lease.ifindex, wanted)
            except BaseException:
                queues.clear(lease.ifindex)
                raise

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        """Do nothing: each device is attached by itself."""
        return frozenset()

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        if namespace is not None and self._exists(namespace, lease):
            with htb.queues(namespace, self.leaves) as queues:
                queues.clear(lease.ifindex)

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observation:
        limited = [
            lease
            for lease in leases
            if self.name in lease.backends
            and lease.state is not State.RESERVED
            and self._exists(namespace, lease)
        ]
        if not limited:
            return Observation({})
        differences = {}
        with htb.queues(namespace, self.leaves) as queues:
            for lease in limited:
                rate = lease.wiring.inbound if lease.state is State.ACTIVE else None
                wanted = rate and htb.Class.of(rate)
                if difference := queues.difference(lease.ifindex, wanted):
                    differences[lease.id] = f"the rate {difference}"
        return Observation(differences)

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        """Do nothing: a queue ends with its device, so nothing is left over."""

    def _exists(self, namespace: Namespace, lease: Lease) -> bool:
        """Say whether the lease's device, and no other, has the lease's ifindex."""
        link = namespace.link(lease.ifindex)
        return link is not None and link.alias == stamp(self._ledger, lease.id)
