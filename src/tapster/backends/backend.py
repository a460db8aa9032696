# SPDX-License-Identifier: Apache-2.0
"""The protocol of a backend that keeps state outside the kernel's links.

Rules, switch ports and rates refer to a device and could outlive it. Everything
that a backend makes carries the lease's stamp or is keyed by the device's ifindex.
The backend finds its things by these, never by the device's name alone.
"""

from tapster.kernel.port import Namespace
from tapster.light import NamedTuple, Protocol, Sequence
from tapster.model import Lease, Wiring


class Leftover(NamedTuple):
    """Something that carries the ledger's stamp and belongs to no known lease."""

    lease: str
    """The lease id in the stamp."""
    description: str
    """The leftover, described for people."""


class Observation(NamedTuple):
    """How a backend's state differs from what the leases want."""

    differences: dict[str, str]
    """By lease id: how the state of that lease differs. Other leases are as wanted."""
    leftovers: tuple[Leftover, ...] = ()


class Backend(Protocol):
    """One backend, for the leases of one ledger.

    Every verb may be repeated. A verb raises ServiceUnavailable if the service that
    keeps the state cannot be reached, and HostError or ConflictError otherwise.
    """

    @property
    def name(self) -> str: ...

    def concerns(self, wiring: Wiring) -> bool:
        """Say whether a wiring needs this backend."""

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        """Check that the backend can do what a wiring asks, before anything is made.

        Raises NoSuchLink and RequestError too.
        """

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        """Make everything that the lease's wiring asks of this backend, or nothing.

        The lease's device exists. It may be connected already, in any way.
        """

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        """Attach active leases again, all in one step; return the ids of these leases.

        A backend that needs a step for each lease does nothing, and returns no id:
        `attach` does it.
        """

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        """Remove everything that the backend has of the lease; return when it is gone.

        `namespace` is None if the lease's network namespace is gone.
        """

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observation:
        """Report how the backend's state differs from what it should be.

        An active lease should have what its wiring asks; every other lease, nothing.
        """

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        """Remove a leftover."""
