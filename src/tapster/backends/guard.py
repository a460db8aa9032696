# SPDX-License-Identifier: Apache-2.0
"""The guard of a port: it drops frames that nftables cannot judge or count.

The kernel runs it as a program at the ingress of the device: see kernel/guard.py.
"""

from tapster.backends.backend import Leftover, Observation
from tapster.errors import HostError, KernelError, MissingCapability
from tapster.kernel.port import GuardLimit, Namespace
from tapster.light import Sequence
from tapster.model import Lease, State, Wiring, stamp


class Guard:
    """The backend that guards filtered ports and limited ports."""

    name = "guard"

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger

    def concerns(self, wiring: Wiring) -> bool:
        return concerns(wiring)

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        """Do nothing: only loading the program shows whether the kernel can load it."""

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        judge, limits = _tasks(lease.wiring)
        try:
            namespace.guard(lease.ifindex, judge=judge, limits=limits)
        except MissingCapability:
            raise
        except KernelError as error:
            raise HostError(
                f"{error}. {_UNGUARDED if judge else _UNCOUNTED}"
            ) from error

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        """Do nothing: each device is attached by itself."""
        return frozenset()

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
                and not self._is_guarded(namespace, lease)
            }
        )

    def _is_guarded(self, namespace: Namespace, lease: Lease) -> bool:
        judge, limits = _tasks(lease.wiring)
        return namespace.is_guarded(lease.ifindex, judge=judge, limits=limits)

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        """Do nothing: the guard ends with its device, so nothing is left over."""

    def _exists(self, namespace: Namespace, lease: Lease) -> bool:
        """Say whether the lease's device, and no other, has the lease's ifindex."""
        link = namespace.link(lease.ifindex)
        return link is not None and link.alias == stamp(self._ledger, lease.id)


_UNGUARDED = (
    "A filtered port needs this program, which stops a guest from having frames "
    "changed after the filter. Where the kernel cannot load it, choose: --no-guard "
    "--no-vnet-hdr is safe and slower, --no-guard alone is fast and not safe"
)
_UNCOUNTED = (
    "A limit of what a guest sends needs this program, which counts the bytes on the "
    "wire. Where the kernel cannot load it, --no-guard counts a frame with "
    "segmentation offload once"
)

LARGEST = 80_000
"""Bytes on the wire of the largest frame with segmentation offload."""
MOST_SEGMENTS = 128
"""The segments of such a frame."""
MOST_FRAMES = (1 << 31) - 1
"""A second. A program takes no larger number, and no guest sends more."""


def concerns(wiring: Wiring) -> bool:
    """Say whether a port needs a guard: to judge its frames, or to count them."""
    limited = wiring.outbound is not None or wiring.outbound_pps is not None
    return wiring.guard and wiring.ovs is None and (wiring.filter or limited)


def _tasks(wiring: Wiring) -> tuple[bool, list[GuardLimit]]:
    """Return whether the guard judges frames, and which limits it enforces."""
    limits = []
    if (rate := wiring.outbound) is not None:
        burst = 1024 * (rate.average if rate.burst is None else rate.burst)
        average = GuardLimit("kilobytes", rate.average, max(burst, LARGEST))
        limits.append(average)
        if rate.peak is not None:
            limits.append(GuardLimit("kilobytes", rate.peak, LARGEST))
    if wiring.outbound_pps is not None:
        frames = min(wiring.outbound_pps, MOST_FRAMES)
        limits.append(GuardLimit("frames", frames, max(frames // 10, MOST_SEGMENTS)))
    return wiring.filter, limits
