# SPDX-License-Identifier: Apache-2.0
"""A tap in the place of another device: frames go from each to the other.

A container runtime has made a veth in a pod, say, and the VM in the pod is to have its
traffic. What comes in at the veth goes to the tap, and what the guest sends goes out
of the veth.
"""

from errno import EEXIST, ENOENT, EOPNOTSUPP

from tapster.backends.backend import Leftover, Observation
from tapster.errors import (
    ConflictError,
    HostError,
    KernelError,
    NoSuchLink,
    RequestError,
)
from tapster.kernel.port import Namespace
from tapster.light import Sequence
from tapster.model import Lease, Link, State, Wiring, parse_stamp


def find(namespace: Namespace, name: str) -> Link:
    """Return the device whose place a tap is to take. Raises NoSuchLink."""
    link = namespace.named(name)
    if link is None:
        raise NoSuchLink(
            f"there is no device {name!r} to redirect in this namespace", name=name
        )
    if link.master:
        raise NoSuchLink(
            f"device {name!r} is a port of a bridge, which takes its frames first: "
            "put the tap on the bridge instead",
            name=name,
        )
    if link.name == "lo" or parse_stamp(link.alias):
        raise RequestError(
            f"{name!r} cannot be redirected: name a device that leads elsewhere, "
            "such as the veth of a pod"
        )
    return link


class Redirect:
    """The backend of redirections. Each carries its lease's stamp as its cookie."""

    name = "redirect"

    def __init__(self, ledger: str) -> None:
        self._ledger = bytes.fromhex(ledger)

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.redirect is not None

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        if wiring.redirect is not None:
            find(namespace, wiring.redirect)

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        assert lease.wiring.redirect is not None
        outer = find(namespace, lease.wiring.redirect)
        stamp = self._stamp(lease.id)
        wanted = self._wanted(namespace, lease)
        if (
            lease.state is State.ACTIVE
            and self._there(namespace).get(lease.id) == wanted
        ):
            return  # without a redirection, even for a moment, the VM loses frames
        # Another device may have been redirected before, or this one elsewhere.
        self._delete(namespace, lease)
        try:
            namespace.redirect(lease.ifindex, outer.ifindex, stamp)
            namespace.redirect(outer.ifindex, lease.ifindex, stamp)
        except KernelError as error:
            self._delete(namespace, lease)
            if error.errno == EEXIST:
                raise ConflictError(
                    f"device {outer.name!r} is redirected already: see "
                    f"tc filter show dev {outer.name} ingress"
                ) from error
            # The kernel's interface knows the devices by their indexes alone.
            named = KernelError(
                error.errno, f"redirecting {outer.name!r}", error.args[2]
            )
            if error.errno in (ENOENT, EOPNOTSUPP):
                raise HostError(
                    f"{named}. A redirection needs cls_matchall and act_mirred: "
                    "modprobe -a sch_ingress cls_matchall act_mirred"
                ) from error
            raise named from error

    def restore(self, namespace: Namespace, leases: Sequence[Lease]) -> frozenset[str]:
        """Do nothing: each device is attached by itself."""
        return frozenset()

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        if namespace is not None:
            self._delete(namespace, lease)

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observation:
        concerned = {
            lease.id: lease
            for lease in leases
            if self.name in lease.backends or self.concerns(lease.wiring)
        }
        if not concerned:
            # No look at each device of the host for the sake of a feature of pods.
            return Observation({})
        there = self._there(namespace)
        differences = {}
        for lease in concerned.values():
            if lease.state is State.RESERVED:
                continue
            wanted = self._wanted(namespace, lease)
            if isinstance(wanted, str):
                differences[lease.id] = wanted
            elif there.get(lease.id, {}) != wanted:
                shown = ", ".join(
                    f"{a} to {b}" for a, b in there.get(lease.id, {}).items()
                )
                differences[lease.id] = f"redirections by ifindex: {shown or 'none'}"
        known = {lease.id for lease in leases}
        leftovers = tuple(
            Leftover(id, f"a redirection of lease {id}") for id in there.keys() - known
        )
        return Observation(differences, leftovers)

    def remove(self, namespace: Namespace, leftover: Leftover) -> None:
        for link in namespace.links():
            namespace.unredirect(link.ifindex, self._stamp(leftover.lease))

    def _wanted(self, namespace: Namespace, lease: Lease) -> dict[int, int] | str:
        """Return which device should be redirected to which, or what is missing."""
        wiring = lease.wiring.in_force
        if lease.state is not State.ACTIVE or wiring.redirect is None:
            return {}
        outer = namespace.named(wiring.redirect)
        if outer is None:
            return f"there is no device {wiring.redirect!r}"
        return {lease.ifindex: outer.ifindex, outer.ifindex: lease.ifindex}

    def _there(self, namespace: Namespace) -> dict[str, dict[int, int]]:
        """Return every redirection of the ledger: by lease, which device to which."""
        there: dict[str, dict[int, int]] = {}
        for link in namespace.links():
            found = namespace.redirection(link.ifindex)
            if found is not None and found.stamp.startswith(self._ledger):
                id = found.stamp[len(self._ledger) :].hex()
                there.setdefault(id, {})[link.ifindex] = found.to
        return there

    def _delete(self, namespace: Namespace, lease: Lease) -> None:
        """Delete the redirections of a lease, whatever the devices are called now."""
        stamp = self._stamp(lease.id)
        for link in namespace.links():
            namespace.unredirect(link.ifindex, stamp)

    def _stamp(self, lease: str) -> bytes:
        return self._ledger + bytes.fromhex(lease)
