# SPDX-License-Identifier: Apache-2.0
"""Lower devices: the devices that macvtaps sit on."""

from tapster.errors import NoSuchLink, RequestError
from tapster.kernel.port import Namespace
from tapster.light import NamedTuple
from tapster.model import Macvtap, Mode, parse_stamp, place_of

LOOPBACK = 1
"""`LOOPBACK_IFINDEX` in include/net/net_namespace.h: the ifindex of each `lo`."""


class Lower(NamedTuple):
    """A lower device that can carry the requested macvtap."""

    ifindex: int
    name: str
    mac: str
    mtu: int


def find(namespace: Namespace, spec: Macvtap) -> Lower:
    """Return the lower device of a request. Raises NoSuchLink or RequestError."""
    name = spec.lower
    link = namespace.named(name)
    if link is None:
        raise NoSuchLink(
            f"there is no device {name!r}{place_of(namespace.netns)} for a macvtap to "
            "sit on",
            name=name,
        )
    if parse_stamp(link.alias):
        # It may be another VM's, and would take this macvtap with it.
        raise RequestError(
            f"device {name!r} belongs to a VM: name the device that leads elsewhere"
        )
    if link.ifindex == LOOPBACK or len(link.mac) != len("52:54:00:12:34:56"):
        raise RequestError(
            f"device {name!r} is not an Ethernet device, so it cannot carry a macvtap: "
            "name the device that leads to the VMs' network"
        )
    if not link.up:
        raise NoSuchLink(
            f"device {name!r} is down; bring it up with: ip link set {name} up",
            name=name,
        )
    if link.master:
        above = namespace.link(link.master)
        instead = f"; put the macvtap on {above.name!r}" if above else ""
        raise NoSuchLink(
            f"device {name!r} is a port of another device, so it cannot carry a "
            f"macvtap{instead}",
            name=name,
        )
    if spec.mtu is not None and spec.mtu > link.mtu:
        raise RequestError(
            f"mtu {spec.mtu} exceeds the mtu of the lower device {name!r}, {link.mtu}"
        )
    if spec.mode == Mode.PASSTHRU and spec.mac and spec.mac.lower() != link.mac:
        raise RequestError(
            f"in mode passthru the guest has the MAC of {name!r}, {link.mac}; "
            f"to use {spec.mac}, set it on {name!r} first"
        )
    return Lower(link.ifindex, link.name, link.mac, link.mtu)
