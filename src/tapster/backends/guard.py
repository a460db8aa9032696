# SPDX-License-Identifier: Apache-2.0
"""The guard of a filtered port: it drops what the rules of nftables cannot judge.

The kernel runs it as a program at the ingress of the device: see kernel/guard.py.
"""

from collections.abc import Sequence

from tapster.backends.backend import Leftover, Observation
from tapster.errors import HostError, KernelError, MissingCapability
from tapster.kernel.port import Namespace
from tapster.model import Lease, State, Wiring, stamp


class Guard:
    """The backend that guards filtered ports."""

    name = "guard"

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.filter and wiring.guard

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        """Do nothing: whether the kernel can load the program shows when it does."""

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        try:
            namespace.guard(lease.ifindex)
        except MissingCapability:
            raise
        except KernelError as error:
            raise HostError(
                f"{error}. A filtered port needs this program, which stops a guest "
                "from having frames changed after the filter. Where the kernel cannot "
                "load it, choose: --no-guard --no-vnet-hdr is safe and slower, "
                "--no-guard alone is fast and not safe"
            ) from error

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        if namespace is not None and self._exists(namespace, lease):
            namespace.unguard(lease.ifindex)

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observation:
        return Observation(
            {
                lease.id: "the guard does not run before all other filters"
                for lease in leases
                if lease.state is State.ACTIVE
                and self.concerns(lease.wiring)
                and self._exists(namespace, lease)
                and not namespace.is_guarded(lease.ifindex)
            }
        )

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        """Do nothing: the guard ends with its device, so nothing is left over."""

    def _exists(self, namespace: Namespace, lease: Lease) -> bool:
        """Say whether the lease's device, and no other, has the lease's ifindex."""
        link = namespace.link(lease.ifindex)
        return link is not None and link.alias == stamp(self._ledger, lease.id)
