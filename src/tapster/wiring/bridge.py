# SPDX-License-Identifier: Apache-2.0
"""Linux bridges: a tap as a port."""

from typing import NamedTuple

from tapster.errors import BridgeFull, NoSuchLink
from tapster.kernel.port import Kernel, LinkChange
from tapster.model import Tap

MAX_PORTS = 1023
"""`BR_MAX_PORTS` in net/bridge/br_private.h, less port number 0, which is reserved."""


class Bridge(NamedTuple):
    """A bridge that has room, as it was found."""

    name: str
    ifindex: int
    mtu: int


def find(kernel: Kernel, name: str) -> Bridge:
    """The bridge called `name`. Raises NoSuchLink or BridgeFull."""
    link = kernel.link(kernel.ifindex(name))
    if link is None:
        raise NoSuchLink(
            f"there is no bridge {name!r}; make it with: "
            f"ip link add {name} type bridge && ip link set {name} up"
        )
    if link.kind != "bridge":
        kind = link.kind or "hardware"
        raise NoSuchLink(f"{name!r} is not a bridge but a device of kind {kind}")
    if kernel.ports(link) >= MAX_PORTS:
        raise full(name)
    return Bridge(name, link.ifindex, link.mtu)


def full(name: str) -> BridgeFull:
    return BridgeFull(
        f"bridge {name!r} is full: Linux gives a bridge at most {MAX_PORTS} ports"
    )


def wire(ifindex: int, spec: Tap, bridge: Bridge | None) -> list[LinkChange]:
    """The changes that join a tap to its bridge, if it has one, and bring it up."""
    if bridge is None:
        return [LinkChange(ifindex, up=True)]
    if spec.isolated:
        # Isolation is a property of a port: it can only follow the joining.
        joined = LinkChange(ifindex, master=bridge.ifindex, isolated=True)
        return [joined, LinkChange(ifindex, up=True)]
    return [LinkChange(ifindex, master=bridge.ifindex, up=True)]


def unwire(ifindex: int) -> LinkChange:
    """The change that takes a device down, and off whatever bridge it is on."""
    return LinkChange(ifindex, master=0, up=False)
