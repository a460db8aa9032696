# SPDX-License-Identifier: Apache-2.0
"""Ping an address: one ICMP packet each way."""

import socket
import struct

_ECHO_REPLY, _ECHO = 0, 8


def answers(address: str, timeout: float = 5.0) -> bool:
    """Say whether the address answers a ping in time."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
        icmp.settimeout(timeout)
        icmp.sendto(_echo(), (address, 0))
        try:
            return any(_is_reply(icmp.recv(1024)) for _ in range(10))
        except TimeoutError:
            return False


def _echo() -> bytes:
    # The checksum is the complement of the sum of the 16-bit words, here just one.
    return struct.pack("!BBHI", _ECHO, 0, 0xFFFF - (_ECHO << 8), 0)


def _is_reply(packet: bytes) -> bool:
    header = (packet[0] & 0x0F) * 4
    return packet[header] == _ECHO_REPLY
