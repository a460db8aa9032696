# SPDX-License-Identifier: Apache-2.0
"""Lower devices: what a macvtap sits on."""

from typing import NamedTuple

from tapster.errors import NoSuchLink, RequestError
from tapster.kernel.port import Namespace
from tapster.model import Macvtap, Mode


class Lower(NamedTuple):
    """A lower device that can carry the macvtap asked for."""

    ifindex: int
    mac: str
    mtu: int


def find(namespace: Namespace, spec: Macvtap) -> Lower:
    """The lower device of a request. Raises NoSuchLink or RequestError."""
    name = spec.lower
    link = namespace.named(name)
    if link is None:
        raise NoSuchLink(f"there is no device {name!r} to put a macvtap on")
    if not link.up:
        raise NoSuchLink(f"{name!r} is down; bring it up with: ip link set {name} up")
    if link.master:
        raise NoSuchLink(f"{name!r} is a port of a bridge: no macvtap can be on it")
    if spec.mtu is not None and spec.mtu > link.mtu:
        raise RequestError(
            f"mtu {spec.mtu} is more than the {link.mtu} of the lower device {name!r}"
        )
    if spec.mode == Mode.PASSTHRU and spec.mac and spec.mac.lower() != link.mac:
        raise RequestError(
            f"in mode passthru the guest has the MAC of {name!r}, {link.mac}; "
            f"{spec.mac} would have to be set on {name!r} first"
        )
    return Lower(link.ifindex, link.mac, link.mtu)
