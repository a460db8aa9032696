# SPDX-License-Identifier: Apache-2.0
"""The face of a backend that keeps its part outside the kernel's links.

Rules, ports of a switch, rates: whatever refers to a device, and could outlive
it. What a backend puts up carries the lease's stamp, or is keyed by its ifindex,
and is taken down by that, never by the device's name alone.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tapster.kernel.port import Namespace
from tapster.model import Lease, Wiring


class Stray(NamedTuple):
    """Something that carries our ledger's stamp, but belongs to no lease looked at."""

    lease: str
    """The id in the stamp."""
    what: str
    """It, for people."""


class Observed(NamedTuple):
    """What a backend has of some leases."""

    wrong: dict[str, str]
    """For each lease, by id, of which it is not as its wiring wants: how."""
    strays: tuple[Stray, ...] = ()


class Backend(Protocol):
    """One backend, for the leases of one ledger.

    Every verb may be repeated. They raise ServiceUnavailable when whoever keeps
    the backend cannot be reached, and otherwise HostError or ConflictError.
    """

    @property
    def name(self) -> str: ...

    def concerns(self, wiring: Wiring) -> bool:
        """Whether this wiring wants anything of the backend."""

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        """Whether it can be had: before anything is made. Raises NoSuchLink too."""

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        """Put up what the lease wants, all of it or nothing.

        Its device is there, and may be wired already, in this way or another.
        """

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        """Take down whatever there is of the lease; return when it is gone.

        `kernel` is None when the lease's network namespace is gone.
        """

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observed:
        """Compare what there is with what active leases want, and others do not."""

    def remove(self, namespace: Namespace, stray: Stray) -> None:
        """Take down a stray."""
