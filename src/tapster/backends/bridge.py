# SPDX-License-Identifier: Apache-2.0
"""Linux bridges: a tap as a port."""

from collections.abc import Mapping

from tapster.errors import BridgeFull, NoSuchLink
from tapster.kernel.port import LinkChange, Namespace, Vlans
from tapster.model import Kind, Lease, Link, Wiring, host_mac

MAX_PORTS = 1023
"""`BR_MAX_PORTS` in net/bridge/br_private.h, without the reserved port number 0."""


def find(namespace: Namespace, name: str) -> Link:
    """Return the bridge called `name`. Raises NoSuchLink."""
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
    """Return the bridge called `name` if a port is free. Raises BridgeFull too."""
    bridge = find(namespace, name)
    if namespace.ports(bridge) >= MAX_PORTS:
        raise full(name)
    return bridge


def check(bridge: Link, wiring: Wiring) -> None:
    """Check that a bridge supports what a wiring asks. Raises NoSuchLink."""
    if vlans(wiring) is not None and not bridge.vlan_filtering:
        name = bridge.name
        raise NoSuchLink(
            f"bridge {name!r} does not filter VLANs; switch this on, "
            f"where the kernel can: ip link set {name} type bridge vlan_filtering 1"
        )


def full(name: str) -> BridgeFull:
    return BridgeFull(
        f"bridge {name!r} is full: Linux gives a bridge at most {MAX_PORTS} ports",
        bridge=name,
    )


def attach(lease: Lease, bridge: int) -> list[LinkChange]:
    """Return the changes that join a device to its bridge, if any, and bring it up.

    `bridge` is the bridge's ifindex, or 0.
    """
    ifindex, wiring = lease.ifindex, lease.wiring.in_force
    if not bridge or wiring.standby:
        return [LinkChange(ifindex, up=wiring.up)]
    if not wiring.isolated and wiring.learning and vlans(wiring) is None:
        return [LinkChange(ifindex, master=bridge, up=wiring.up)]
    # A device that is not a port has no such properties: it must join first.
    joined = _port(lease)._replace(master=bridge)
    return [joined, LinkChange(ifindex, up=wiring.up)]


def vlans(wiring: Wiring) -> Vlans | None:
    """Return the VLANs that a port should be in; None leaves them to its bridge."""
    if wiring.vlan is None and not wiring.trunks:
        return None
    return Vlans(wiring.vlan, tuple(sorted(wiring.trunks)))


def _port(lease: Lease) -> LinkChange:
    """Return the change that gives a port all its properties."""
    wiring = lease.wiring
    return LinkChange(
        lease.ifindex,
        isolated=wiring.isolated,
        learning=wiring.learning,
        neighbour=None if wiring.learning else lease.mac,
        vlans=vlans(wiring),
    )


MIN_IPV6_MTU = 1280
"""`IPV6_MIN_MTU`: a device with a smaller MTU has no IPv6. When the MTU grows, the
kernel enables IPv6 with its defaults."""


def leave(lease: Lease, was: Wiring, link: Link, bridge: int) -> list[LinkChange]:
    """Return the changes that prepare a connected device for its new wiring."""
    ifindex, mtu = lease.ifindex, lease.wiring.mtu
    master = None if not link.master or _stays(lease, was, link, bridge) else 0
    gets_ipv6 = link.mtu < MIN_IPV6_MTU <= (mtu or link.mtu)
    if link.no_ipv6 and not gets_ipv6:
        return [LinkChange(ifindex, mtu=mtu, master=master)]
    # The device may have an IPv6 address, which goes when it goes down.
    down = LinkChange(ifindex, mtu=mtu, master=master, up=False)
    return [down, LinkChange(ifindex, no_ipv6=True)]


def rewire(lease: Lease, was: Wiring, link: Link, bridge: int) -> list[LinkChange]:
    """Return the changes that follow `leave`: they bring the new wiring about."""
    if not _stays(lease, was, link, bridge):
        return attach(lease, bridge)
    return [_port(lease), LinkChange(lease.ifindex, up=lease.wiring.in_force.up)]


def _stays(lease: Lease, was: Wiring, link: Link, bridge: int) -> bool:
    """Say whether a port can get its new properties without leaving its bridge."""
    # The bridge forgets a neighbour and the VLANs only when the port leaves.
    wiring = lease.wiring
    forgets = (wiring.learning and not link.learning) or (
        vlans(wiring) is None and vlans(was) is not None
    )
    return bool(bridge) and link.master == bridge and not forgets


def differs(
    lease: Lease, link: Link, namespace: Namespace, links: Mapping[int, Link]
) -> str | None:
    """Say how a leased device is not connected as its wiring asks.

    `links` are the devices that have been read already, by ifindex.
    """
    wiring = lease.wiring.in_force
    wanted: dict[str, object] = {
        "up": wiring.up,
        "IPv6 of the host": False,
        "MAC of the host's side": _mac_of(lease),
    }
    present: dict[str, object] = {
        "up": link.up,
        "IPv6 of the host": not link.no_ipv6,
        "MAC of the host's side": link.mac,
    }
    if wiring.mtu is not None:
        wanted["mtu"], present["mtu"] = wiring.mtu, link.mtu
    if wiring.standby:
        wanted["bridge"], present["bridge"] = None, None
        if link.master:
            master = links.get(link.master) or namespace.link(link.master)
            present["bridge"] = master and master.name
    if wiring.bridge is not None:
        master = links.get(link.master) or namespace.link(link.master)
        wanted |= {
            "bridge": wiring.bridge,
            "isolated": wiring.isolated,
            "learning": (wiring.learning, wiring.learning),
        }
        present |= {
            "bridge": master and master.name,
            "isolated": link.isolated,
            "learning": (link.learning, link.flood),
        }
        if not wiring.learning:
            wanted["neighbour"] = True
            present["neighbour"] = lease.mac in namespace.neighbours(link.ifindex)
        if vlans(wiring) is not None:
            wanted["vlans"] = vlans(wiring)
            present["vlans"] = namespace.vlans(link.ifindex)
    differences = [
        f"{key} is {_shown(present[key])}, not {_shown(value)}"
        for key, value in wanted.items()
        if present[key] != value
    ]
    return "; ".join(differences) or None


def _shown(value: object) -> str:
    if isinstance(value, Vlans):
        return f"{value.native or '-'}/{','.join(map(str, value.tagged)) or '-'}"
    if isinstance(value, tuple):
        value = all(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _mac_of(lease: Lease) -> str:
    """Return the MAC that a lease's device has in the host."""
    return host_mac(lease.mac) if lease.kind is Kind.TAP else lease.mac


def identify(lease: Lease, stamp: str, link: Link) -> LinkChange | None:
    """Return the change that restores a device's MAC and stamp, if one is needed.

    Other programs change them: udev by its MACAddressPolicy, a VMM by SIOCSIFHWADDR
    on its own tap. With another VM's MAC in the host, a bridge delivers that VM's
    frames to the host.
    """
    mac = _mac_of(lease)
    if (link.mac, link.alias) == (mac, stamp):
        return None
    return LinkChange(lease.ifindex, mac=mac, alias=stamp)


def detach(ifindex: int) -> LinkChange:
    """Return the change that takes a device down and off its bridge."""
    return LinkChange(ifindex, master=0, up=False)
