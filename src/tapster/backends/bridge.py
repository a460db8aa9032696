# SPDX-License-Identifier: Apache-2.0
"""Linux bridges: a tap as a port."""

from tapster.errors import BridgeFull, NoSuchLink
from tapster.kernel.port import LinkChange, Namespace, Vlans
from tapster.light import Any, Mapping, remembered
from tapster.model import Kind, Lease, Link, Wiring, host_mac, place_of

MAX_PORTS = 1023
"""`BR_MAX_PORTS` in net/bridge/br_private.h, without the reserved port number 0."""


def find(namespace: Namespace, name: str) -> Link:
    """Return the bridge called `name`. Raises NoSuchLink."""
    link = namespace.named(name)
    if link is None:
        where = place_of(namespace.netns)
        remedy = f"ip link add {name} type bridge && ip link set {name} up"
        raise NoSuchLink(
            f"there is no bridge {name!r}{where}; make it "
            f"{'there' if where else 'with'}: {remedy}",
            name=name,
        )
    if link.kind != "bridge":
        kind = link.kind or "hardware"
        raise NoSuchLink(
            f"{name!r} is not a bridge but a device of kind {kind}", name=name
        )
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
            f"where the kernel can: ip link set {name} type bridge vlan_filtering 1",
            name=name,
        )


def full(name: str) -> BridgeFull:
    return BridgeFull(
        f"bridge {name!r} is full: Linux gives a bridge at most {MAX_PORTS} ports",
        bridge=name,
    )


def gone(name: str) -> NoSuchLink:
    return NoSuchLink(
        f"bridge {name!r} was deleted while the device joined it; try again when there "
        "is a bridge of this name",
        name=name,
    )


def attach(lease: Lease, bridge: int) -> list[LinkChange]:
    """Return the changes that join a device to its bridge, if any, and bring it up.

    `bridge` is the bridge's ifindex, or 0. The device is down if its port gets any
    property: only a port has these, so they follow the joining.
    """
    ifindex, wiring = lease.ifindex, lease.wiring.in_force
    if not bridge or wiring.standby:
        return [LinkChange(ifindex, up=wiring.up)]
    if not _has_properties(wiring):
        return [LinkChange(ifindex, master=bridge, up=wiring.up)]
    joined = _port(lease)._replace(master=bridge)
    return [joined, LinkChange(ifindex, up=wiring.up)]


def vlans(wiring: Wiring) -> Vlans | None:
    """Return the VLANs that a port should be in; None leaves them to its bridge."""
    if wiring.vlan is None and not wiring.trunks:
        return None
    return Vlans(wiring.vlan, tuple(sorted(wiring.trunks)))


def learns(wiring: Wiring) -> bool:
    """Say whether the bridge learns MACs behind a port. A filtered guest has one."""
    return wiring.learning and not wiring.filter


def _has_properties(wiring: Wiring) -> bool:
    """Say whether a port differs from the kernel's defaults."""
    flags = wiring.isolated, wiring.root_guard, wiring.bpdu_guard
    return any(flags) or not learns(wiring) or vlans(wiring) is not None


def _port(lease: Lease) -> LinkChange:
    """Return the change that gives a port all its properties."""
    wiring = lease.wiring
    return LinkChange(
        lease.ifindex,
        isolated=wiring.isolated,
        learning=learns(wiring),
        root_guard=wiring.root_guard,
        bpdu_guard=wiring.bpdu_guard,
        neighbour=None if learns(wiring) else lease.mac,
        vlans=vlans(wiring),
    )


def is_routed(lease: Lease) -> bool:
    """Say whether a device leads to the host alone: its IPv6 may have an address there.

    Frames of any other device go past the host's IP.
    """
    wiring = lease.wiring
    joined = wiring.bridge, wiring.ovs, wiring.redirect
    return lease.kind is Kind.TAP and not any(joined)


MIN_IPV6_MTU = 1280
"""`IPV6_MIN_MTU`: a device with a smaller MTU has no IPv6. When the MTU grows, the
kernel enables IPv6 with its defaults."""


def possible_mtu(
    namespace: Namespace, lease: Lease, link: Link, links: Mapping[int, Link]
) -> int | None:
    """Return the MTU that a lease's device should have, as far as it can.

    A macvtap's is at most its lower device's: the kernel lowers the one with the
    other, and refuses to raise it alone. `links` are devices that have been read.
    """
    mtu = lease.wiring.mtu
    if lease.kind is not Kind.MACVTAP or mtu is None or link.mtu >= mtu:
        return mtu
    below = links.get(link.lower) or (link.lower and namespace.link(link.lower))
    # A lower device in another namespace is not looked for.
    return min(mtu, below.mtu if below else link.mtu)


def leave(lease: Lease, was: Wiring, link: Link, bridge: int) -> list[LinkChange]:
    """Return the changes that prepare a connected device for its new wiring.

    After them the device is off its bridge, unless it can stay there. It is down if a
    running port would otherwise join before it has its properties.
    """
    ifindex, wiring = lease.ifindex, lease.wiring.in_force
    stay = stays(lease, was, link, bridge)
    disabled = not is_routed(lease)
    first = LinkChange(
        ifindex,
        mtu=wiring.mtu,
        mode=None if link.mode == lease.mode else lease.mode,
        no_ipv4=None if link.no_ipv4 == bool(bridge) else bool(bridge),
        disable_ipv6=None if link.ipv6_disabled == disabled else disabled,
        master=0 if link.master and not stay else None,
        up=False if not wiring.up or (not stay and _has_properties(wiring)) else None,
    )
    gets_ipv6 = link.mtu < MIN_IPV6_MTU <= (wiring.mtu or link.mtu)
    if link.no_ipv6 and not gets_ipv6:
        return [first]
    # The device may have an IPv6 address, which goes when it goes down.
    off = LinkChange(ifindex, no_ipv6=True, disable_ipv6=disabled or None)
    return [first._replace(up=False), off]


def rewire(lease: Lease, was: Wiring, link: Link, bridge: int) -> list[LinkChange]:
    """Return the changes that follow `leave`: they bring the new wiring about.

    Between any two of them a port that stays is as strict as before or as after, or
    stricter: isolation is the first to come and the last to go.
    """
    if not stays(lease, was, link, bridge):
        return attach(lease, bridge)
    ifindex, wiring = lease.ifindex, lease.wiring.in_force
    strict = _port(lease)._replace(isolated=wiring.isolated or None)
    return [strict, LinkChange(ifindex, isolated=wiring.isolated, up=wiring.up)]


def stays(lease: Lease, was: Wiring, link: Link, bridge: int) -> bool:
    """Say whether a port can get its new properties without leaving its bridge."""
    # The bridge forgets a neighbour and the VLANs only when the port leaves.
    wiring = lease.wiring
    forgets = (learns(wiring) and not link.learning) or (
        vlans(wiring) is None and vlans(was) is not None
    )
    return bool(bridge) and link.master == bridge and not forgets


def differs(
    lease: Lease,
    stamp: str,
    link: Link,
    namespace: Namespace,
    links: Mapping[int, Link],
) -> str | None:
    """Say how a leased device differs from what its wiring asks.

    `links` are the devices that have been read already, by ifindex.
    """
    if _is_sound(lease, stamp, link, links):
        return None
    mtu = possible_mtu(namespace, lease, link, links)
    wiring = lease.wiring.in_force._replace(mtu=mtu)
    pairs: dict[str, tuple[object, object]] = {
        "up": (wiring.up, link.up),
        "MAC of the host's side": (_mac_of(lease), link.mac),
        "alias": (stamp, link.alias),
        "mode": (lease.mode, link.mode),
        **_pairs_of_link(wiring, link),
    }
    if wiring.standby or wiring.bridge is not None:
        master = links.get(link.master) or (
            namespace.link(link.master) if link.master else None
        )
        name = master and master.name
        # A bridge that was renamed may keep its former name as an alternative one.
        asked = wiring.bridge
        if asked and master and asked != name:
            name = asked if namespace.ifindex(asked) == link.master else name
        pairs["bridge"] = (wiring.bridge, name)
    if wiring.bridge is not None:
        pairs |= _pairs_of_port(wiring, link)
        pairs |= _pairs_of_bridge(lease, link, namespace, master)
    return _compared(pairs)


def unreported(lease: Lease, link: Link, namespace: Namespace) -> str | None:
    """Say what differs of a port that no report of its device shows.

    That is in the tables of its bridge.
    """
    if lease.wiring.in_force.bridge is None or not link.master:
        return None
    master = namespace.link(link.master)
    return _compared(_pairs_of_bridge(lease, link, namespace, master))


def changed(lease: Lease, link: Link) -> str | None:
    """Say what a report of a device shows to differ, apart from the device's place.

    Whether the device is up, and where, is for the caller to compare.
    """
    wiring = lease.wiring.in_force
    pairs = {"mode": (lease.mode, link.mode), **_pairs_of_link(wiring, link)}
    if wiring.bridge is not None and link.master:
        pairs |= _pairs_of_port(wiring, link)
    return _compared(pairs)


def _is_sound(lease: Lease, stamp: str, link: Link, links: Mapping[int, Link]) -> bool:
    """Say whether a bridge port is as requested, if that is quickly told.

    Most ports of a bridge are wired alike, and have all but a few values in common:
    these are compared once. False says nothing.
    """
    wiring, master = lease.wiring, links.get(link.master)
    if master is None or wiring.standby or wiring.bridge != master.name:
        return False
    if (link.alias, link.mac, link.up) != (stamp, _mac_of(lease), wiring.up):
        return False
    return _agrees((wiring, link.mtu, link[_FROM_CARRIER:]))


_FROM_CARRIER = Link._fields.index("carrier")


@remembered
def _agrees(asked: tuple[Wiring, int, tuple[Any, ...]]) -> bool:
    """Say whether the values that ports have in common are all that a wiring asks.

    They are the MTU, and the fields of a Link from `carrier` on.
    """
    wiring, mtu, others = asked
    if not learns(wiring) or vlans(wiring) is not None:
        return False
    link = Link(0, "", "", "", "", mtu, wiring.up, 0, *others)
    pairs = _pairs_of_link(wiring, link) | _pairs_of_port(wiring, link)
    return _compared(pairs) is None


def _compared(pairs: Mapping[str, tuple[object, object]]) -> str | None:
    differences = [
        f"{key} is {_shown(present)}, not {_shown(wanted)}"
        for key, (wanted, present) in pairs.items()
        if present != wanted
    ]
    return "; ".join(differences) or None


def _pairs_of_link(wiring: Wiring, link: Link) -> dict[str, tuple[object, object]]:
    """Return what a device should be, and is, by the name of each property."""
    pairs: dict[str, tuple[object, object]] = {
        "IPv6 of the host": (False, not link.no_ipv6)
    }
    if wiring.mtu is not None:
        pairs["mtu"] = (wiring.mtu, link.mtu)
    return pairs


def _pairs_of_port(wiring: Wiring, link: Link) -> dict[str, tuple[object, object]]:
    """Return the same of a bridge port's properties."""
    learning = learns(wiring)
    return {
        "isolated": (wiring.isolated, link.isolated),
        "learning": (learning, link.learning),
        "flood": (learning, link.flood),
        "root_guard": (wiring.root_guard, link.root_guard),
        "bpdu_guard": (wiring.bpdu_guard, link.bpdu_guard),
        "IPv4 of the host": (False, not link.no_ipv4),
    }


def lacks_entry(lease: Lease, link: Link, namespace: Namespace) -> bool:
    """Say whether a bridge has lost the static, sticky entry of a port."""
    wiring = lease.wiring.in_force
    if wiring.bridge is None or not link.master or learns(wiring):
        return False
    return lease.mac not in namespace.neighbours(link.ifindex)


def _pairs_of_bridge(
    lease: Lease, link: Link, namespace: Namespace, bridge: Link | None
) -> dict[str, tuple[object, object]]:
    """Return the same of what a bridge has of its port."""
    pairs: dict[str, tuple[object, object]] = {}
    wiring = lease.wiring
    if not learns(wiring):
        pairs["neighbour"] = (True, not lacks_entry(lease, link, namespace))
    if vlans(wiring) is not None:
        filtering = bridge is not None and bridge.vlan_filtering
        pairs["VLAN filtering of the bridge"] = (True, filtering)
        pairs["vlans"] = (vlans(wiring), namespace.vlans(link.ifindex))
    return pairs


def _shown(value: object) -> str:
    if isinstance(value, Vlans):
        return f"{value.native or '-'}/{','.join(map(str, value.tagged)) or '-'}"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _mac_of(lease: Lease) -> str:
    """Return the MAC that a lease's device has in the host."""
    return host_mac(lease.mac) if lease.kind is Kind.TAP else lease.mac


def misidentified(lease: Lease, stamp: str, link: Link) -> str | None:
    """Say how a device's MAC or stamp was changed: `identify` restores both."""
    if link.mac != _mac_of(lease):
        return f"its MAC in the host is {link.mac}, not {_mac_of(lease)}"
    if link.alias != stamp:
        return f"its alias is {link.alias!r}, not {stamp!r}"
    return None


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
