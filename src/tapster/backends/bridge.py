# SPDX-License-Identifier: Apache-2.0
"""Linux bridges: a tap as a port."""

from collections.abc import Mapping

from tapster.errors import BridgeFull, NoSuchLink
from tapster.kernel.port import LinkChange, Namespace, Vlans
from tapster.model import Lease, Link, Wiring

MAX_PORTS = 1023
"""`BR_MAX_PORTS` in net/bridge/br_private.h, less port number 0, which is reserved."""


def find(namespace: Namespace, name: str) -> Link:
    """The bridge called `name`. Raises NoSuchLink."""
    link = namespace.named(name)
    if link is None:
        raise NoSuchLink(
            f"there is no bridge {name!r}; make it with: "
            f"ip link add {name} type bridge && ip link set {name} up"
        )
    if link.kind != "bridge":
        kind = link.kind or "hardware"
        raise NoSuchLink(f"{name!r} is not a bridge but a device of kind {kind}")
    return link


def find_room(namespace: Namespace, name: str) -> Link:
    """The bridge called `name`, for one more port. Raises BridgeFull too."""
    bridge = find(namespace, name)
    if namespace.ports(bridge) >= MAX_PORTS:
        raise full(name)
    return bridge


def check(bridge: Link, wiring: Wiring) -> None:
    """Whether a bridge can do what is wanted of it. Raises NoSuchLink."""
    if vlans(wiring) is not None and not bridge.vlan_filtering:
        name = bridge.name
        raise NoSuchLink(
            f"bridge {name!r} does not tell VLANs apart; where the kernel can, let it: "
            f"ip link set {name} type bridge vlan_filtering 1"
        )


def full(name: str) -> BridgeFull:
    return BridgeFull(
        f"bridge {name!r} is full: Linux gives a bridge at most {MAX_PORTS} ports"
    )


def attach(lease: Lease, bridge: int) -> list[LinkChange]:
    """The changes that join a device to its bridge, if it has one, and bring it up.

    `bridge` is the bridge's ifindex, or 0.
    """
    ifindex, wiring = lease.ifindex, lease.wiring
    if not bridge:
        return [LinkChange(ifindex, up=wiring.up)]
    if not wiring.isolated and wiring.learning and vlans(wiring) is None:
        return [LinkChange(ifindex, master=bridge, up=wiring.up)]
    # These are properties of a port: they can only follow the joining.
    joined = _port(lease)._replace(master=bridge)
    return [joined, LinkChange(ifindex, up=wiring.up)]


def vlans(wiring: Wiring) -> Vlans | None:
    """The VLANs that a port is to be in; None leaves it to its bridge."""
    if wiring.vlan is None and not wiring.trunks:
        return None
    return Vlans(wiring.vlan, tuple(sorted(wiring.trunks)))


def _port(lease: Lease) -> LinkChange:
    """All that a port is to be."""
    wiring = lease.wiring
    return LinkChange(
        lease.ifindex,
        isolated=wiring.isolated,
        learning=wiring.learning,
        neighbour=None if wiring.learning else lease.mac,
        vlans=vlans(wiring),
    )


MIN_IPV6_MTU = 1280
"""`IPV6_MIN_MTU`: a device with less has no IPv6, and gets all of it with more."""


def leave(lease: Lease, was: Wiring, link: Link, bridge: int) -> list[LinkChange]:
    """The first changes of a device that is wired already, perhaps in another way."""
    ifindex, mtu = lease.ifindex, lease.wiring.mtu
    master = None if not link.master or _stays(lease, was, link, bridge) else 0
    gets_ipv6 = link.mtu < MIN_IPV6_MTU <= (mtu or link.mtu)
    if link.no_ipv6 and not gets_ipv6:
        return [LinkChange(ifindex, mtu=mtu, master=master)]
    # It may have made itself an address: that goes when it is taken down.
    down = LinkChange(ifindex, mtu=mtu, master=master, up=False)
    return [down, LinkChange(ifindex, no_ipv6=True)]


def rewire(lease: Lease, was: Wiring, link: Link, bridge: int) -> list[LinkChange]:
    """The changes that follow `leave`."""
    if not _stays(lease, was, link, bridge):
        return attach(lease, bridge)
    return [_port(lease), LinkChange(lease.ifindex, up=lease.wiring.up)]


def _stays(lease: Lease, was: Wiring, link: Link, bridge: int) -> bool:
    """Whether a port can become what it should be where it is."""
    # What the bridge was told of a port is forgotten only when that leaves.
    wiring = lease.wiring
    forgets = (wiring.learning and not link.learning) or (
        vlans(wiring) is None and vlans(was) is not None
    )
    return bool(bridge) and link.master == bridge and not forgets


def differs(
    lease: Lease, link: Link, namespace: Namespace, links: Mapping[int, Link]
) -> str | None:
    """How a leased device is not connected as its wiring wants.

    `links` are those that have been looked at already, by ifindex.
    """
    wiring = lease.wiring
    wanted: dict[str, object] = {"up": wiring.up, "IPv6 of the host": False}
    there: dict[str, object] = {"up": link.up, "IPv6 of the host": not link.no_ipv6}
    if wiring.mtu is not None:
        wanted["mtu"], there["mtu"] = wiring.mtu, link.mtu
    if wiring.bridge is not None:
        on = links.get(link.master) or namespace.link(link.master)
        wanted |= {
            "bridge": wiring.bridge,
            "isolated": wiring.isolated,
            "learning": (wiring.learning, wiring.learning),
        }
        there |= {
            "bridge": on and on.name,
            "isolated": link.isolated,
            "learning": (link.learning, link.flood),
        }
        if not wiring.learning:
            wanted["neighbour"] = True
            there["neighbour"] = lease.mac in namespace.neighbours(link.ifindex)
        if vlans(wiring) is not None:
            wanted["vlans"] = vlans(wiring)
            there["vlans"] = namespace.vlans(link.ifindex)
    wrong = [
        f"{key} is {_shown(there[key])}, not {_shown(value)}"
        for key, value in wanted.items()
        if there[key] != value
    ]
    return "; ".join(wrong) or None


def _shown(value: object) -> str:
    if isinstance(value, Vlans):
        return f"{value.native or '-'}/{','.join(map(str, value.tagged)) or '-'}"
    if isinstance(value, tuple):
        value = all(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def detach(ifindex: int) -> LinkChange:
    """The change that takes a device down, and off whatever bridge it is on."""
    return LinkChange(ifindex, master=0, up=False)
