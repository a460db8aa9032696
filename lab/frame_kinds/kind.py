# SPDX-License-Identifier: Apache-2.0
"""A kind of frame, and the addresses in frames."""

import struct
from ipaddress import IPv6Address
from typing import NamedTuple

from lab import frames

MINE4, OTHER4, ROUTER4 = "192.0.2.5", "192.0.2.6", "192.0.2.1"
BROADCAST4 = "255.255.255.255"
MINE6, OTHER6 = "2001:db8::5", "2001:db8::6"
ROUTER6, STRANGE6 = "fe80::1", "fe80::6"
OTHER_MAC = "52:54:00:66:66:66"
ADDRESSES = (MINE4, MINE6)

YES, NO, OWN = (True, True), (False, False), (True, False)
"""Whether it passes with the MAC alone, and with MAC and addresses."""
IGMP, ICMP, AH, DESTINATION, ROUTING, PIM = 2, 1, 51, 60, 43, 103
"""Numbers of protocols, and of IPv6's extension headers."""


class FrameKind(NamedTuple):
    """A kind of frame."""

    name: str
    frame: bytes
    passes: tuple[bool, bool]
    bridged: bool = True
    """Without a filter the bridge forwards it to other ports."""
    request: bytes = bytes(10)
    """The virtio_net_hdr before it."""
    group: str = ""
    """The heading under which docs/filter.md lists it."""


def link_local(mac: str) -> str:
    raw = frames.mac(mac)
    interface = bytes([raw[0] ^ 2, *raw[1:3], 0xFF, 0xFE, *raw[3:]])
    return str(IPv6Address(bytes.fromhex("fe80000000000000") + interface))


def authenticated(following: int, payload: bytes) -> bytes:
    """Put an authentication header before what follows it."""
    return struct.pack("!BBHII", following, 4, 0, 1, 1) + bytes(12) + payload
