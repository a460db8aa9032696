# SPDX-License-Identifier: Apache-2.0
"""Build Ethernet frames byte by byte: honest ones and forged ones."""

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "33:33:00:00:00:01"
ARP, RARP, IPV4, IPV6, VLAN, QINQ = 0x0806, 0x8035, 0x0800, 0x86DD, 0x8100, 0x88A8
TCP, UDP, ICMPV6 = 6, 17, 58
HOP_BY_HOP, FRAGMENT = 0, 44


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ether(source: str, to: str, kind: int, payload: bytes) -> bytes:
    return mac(to) + mac(source) + struct.pack("!H", kind) + payload


def tagged(frame: bytes, vlan: int, kind: int = VLAN) -> bytes:
    """Add a VLAN tag to a frame."""
    return frame[:12] + struct.pack("!HH", kind, vlan) + frame[12:]


def llc(source: str, to: str, payload: bytes) -> bytes:
    """Build an 802.3 frame: it has a length where other frames have a type."""
    return ether(source, to, len(payload), payload)


def arp(
    sender: str,
    sender_ip: str,
    target_ip: str,
    *,
    target: str = "00:00:00:00:00:00",
    operation: int = 1,
) -> bytes:
    fixed = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    parts = mac(sender), IPv4Address(sender_ip).packed, mac(target)
    return fixed + b"".join(parts) + IPv4Address(target_ip).packed


def ipv4(
    source: str,
    to: str,
    payload: bytes,
    *,
    protocol: int = UDP,
    fragment: int = 0,
    missing: int = 0,
) -> bytes:
    """Build a packet whose header promises `missing` bytes that do not follow."""
    length = 20 + len(payload) + missing
    head = struct.pack("!BBHHHBB", 0x45, 0, length, 7, fragment, 64, protocol)
    addresses = IPv4Address(source).packed + IPv4Address(to).packed
    checksum = struct.pack("!H", internet_checksum(head + b"\0\0" + addresses))
    return head + checksum + addresses + payload


def ipv6(
    source: str, to: str, payload: bytes, *, protocol: int = UDP, flow: int = 0
) -> bytes:
    head = struct.pack("!IHBB", 6 << 28 | flow, len(payload), protocol, 255)
    return head + IPv6Address(source).packed + IPv6Address(to).packed + payload


def udp(source: int, to: int, payload: bytes = b"hello") -> bytes:
    return struct.pack("!HHHH", source, to, 8 + len(payload), 0) + payload


def icmpv6(source: str, to: str, kind: int, body: bytes) -> bytes:
    """Build an ICMPv6 message; its checksum covers the IPv6 addresses."""
    pseudo = IPv6Address(source).packed + IPv6Address(to).packed
    pseudo += struct.pack("!II", 4 + len(body), ICMPV6)
    checksum = internet_checksum(pseudo + struct.pack("!BBH", kind, 0, 0) + body)
    return struct.pack("!BBH", kind, 0, checksum) + body


def summed(message: bytes) -> bytes:
    """Give a message of IGMP or PIM its checksum."""
    checksum = struct.pack("!H", internet_checksum(message))
    return message[:2] + checksum + message[4:]


def option(kind: int, content: bytes) -> bytes:
    """Build an option of neighbour discovery."""
    return bytes([kind, (2 + len(content)) // 8]) + content


def solicitation(target: str, options: Sequence[bytes] = ()) -> bytes:
    """Build the body of a neighbour solicitation."""
    return bytes(4) + IPv6Address(target).packed + b"".join(options)


def advertisement(target: str, options: Sequence[bytes] = ()) -> bytes:
    """Build the body of a neighbour advertisement: solicited, override."""
    return b"\x60\0\0\0" + IPv6Address(target).packed + b"".join(options)


def hop_by_hop(protocol: int, payload: bytes) -> bytes:
    """Put an extension header before the payload: routers must look at it."""
    return bytes([protocol, 0, 5, 2, 0, 0, 1, 0]) + payload


def fragment(protocol: int, payload: bytes, *, offset: int = 0, more: bool) -> bytes:
    """Build a fragment of IPv6; the offset is in bytes."""
    return struct.pack("!BxHI", protocol, offset | more, 7) + payload


def internet_checksum(data: bytes) -> int:
    """Compute the checksum of RFC 1071."""
    total = sum(
        int.from_bytes(data[at : at + 2].ljust(2, b"\0"))
        for at in range(0, len(data), 2)
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
