# SPDX-License-Identifier: Apache-2.0
"""The backends of a host in memory: what is attached is a dictionary.

So a program can be tested with filters, rates, redirections and ports of Open vSwitch.
These backends hold what a lease asks for; they judge and count no frame.
"""

from collections.abc import Callable, Sequence

from tapster import backends
from tapster.backends import Leases
from tapster.backends.backend import Leftover, Observation
from tapster.errors import NoSuchLink
from tapster.kernel.port import Namespace
from tapster.model import Lease, State, Wiring

Attached = dict[tuple[str, str, str], Wiring]
"""A wiring, by the name of the backend, the ledger's id, and the lease's id."""


def make_backends(
    attached: Attached,
    begin: Callable[[str], None],
    ledger: str,
    leases: Leases = tuple,
) -> tuple["FakeBackend", ...]:
    """Make a backend in memory for each real one."""
    return tuple(
        FakeBackend(real.name, real.concerns, attached, begin, ledger, leases)
        for real in backends.make(ledger, leases)
    )


class FakeBackend:
    """One backend."""

    def __init__(
        self,
        name: str,
        concerns: Callable[[Wiring], bool],
        attached: Attached,
        begin: Callable[[str], None],
        ledger: str,
        leases: Leases,
    ) -> None:
        """`begin` is called before each step."""
        self.name = name
        self.concerns = concerns
        self._attached = attached
        self._begin = begin
        self._ledger = ledger
        self._leases = leases

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        """As in `Backend`."""
        if self.name == "ovs" and not namespace.ifindex(wiring.ovs or ""):
            raise NoSuchLink(
                f"there is no Open vSwitch bridge {wiring.ovs!r}", name=wiring.ovs or ""
            )

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        """As in `Backend`."""
        self._begin(f"attach {self.name} of {lease.name}")
        self._attached[self._key(lease.id)] = lease.wiring

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        """As in `Backend`."""
        return frozenset()

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        """As in `Backend`."""
        self._begin(f"detach {self.name} of {lease.name}")
        self._attached.pop(self._key(lease.id), None)

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observation:
        """As in `Backend`."""
        self._begin(f"observe {self.name}")
        differences = {}
        for lease in leases:
            has = self._attached.get(self._key(lease.id))
            active = lease.state is State.ACTIVE and self.concerns(lease.wiring)
            if active and has != lease.wiring:
                differences[lease.id] = "differs" if has else "is missing"
            elif not active and has:
                differences[lease.id] = "is left"
        known = {lease.id for lease in self._leases()}
        return Observation(
            differences,
            tuple(
                Leftover(id, f"{self.name} of lease {id}")
                for name, ledger, id in self._attached
                if (name, ledger) == (self.name, self._ledger) and id not in known
            ),
        )

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        """As in `Backend`."""
        self._attached.pop(self._key(leftover.lease), None)

    def _key(self, id: str) -> tuple[str, str, str]:
        return self.name, self._ledger, id
