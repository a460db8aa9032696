# SPDX-License-Identifier: Apache-2.0
"""The program that drops, at a filtered port, what nftables cannot judge. Pure.

**Checksum requests.** A guest may leave a checksum to its host: the header before each
frame says where the checksum begins and where the kernel is to write it. The kernel
does so when the frame leaves through a device without checksum offload, after every
hook of nftables. So a guest can have the kernel replace any two bytes that the
rules have judged: in an address, a port, a type. The program passes a frame without a
request, and a request that writes to the checksum of a TCP or UDP header. nftables does
not judge what follows a UDP header, except DHCP. So a request for a checksum inside a
tunnel passes.

**Frames to 01:80:c2:00:00:00 to 0f.** A bridge hands some of them to the port itself
before nftables sees them: LLDP, and spanning tree where the bridge takes part in it.

The program runs before the bridge and its hooks. The kernel deletes it with the device.
"""

import struct
import sys

from tapster.kernel.bpf import (
    MEMBER_OFFSET,
    SHIFT_LEFT,
    SHIFT_RIGHT,
    Member,
    Program,
    Reference,
    offset_of,
)
from tapster.light import Self

NAME = "tapster_guard"

PASS, DROP = -1, 2
"""TC_ACT_UNSPEC, which lets further filters decide, and TC_ACT_SHOT."""

CHECKSUM_PARTIAL = 3
IPV4, IPV6 = 0x0800, 0x86DD
TCP, UDP = 6, 17
EXTENSIONS = (0, 43, 60)
"""Hop-by-hop options, routing, destination options."""
MOST_EXTENSIONS = 6
ETHERNET, IPV6_HEADER = 14, 40
LINK_LOCAL = 0x0180C200
"""The first four bytes of 01:80:c2:00:00:00 to 0f."""
DHCP_SERVER = 67

_MEMBERS = (
    Member("ip_summed", 2),
    Member("csum_start", 16),
    Member("csum_offset", 16),
    Member("mac_header", 16),
)
_IP_SUMMED, _START, _OFFSET, _MAC_HEADER = range(4)
_PROTOCOL = 16
"""The offset of `protocol` in struct __sk_buff."""

# Instructions: linux/bpf.h and Documentation/bpf/standardization/instruction-set.rst.
_ADD, _SUB, _AND, _LSH, _RSH, _MOV = 0x07, 0x17, 0x57, 0x67, 0x77, 0xB7
_BY_REGISTER = 0x08
_BIG_ENDIAN = 0xDC
_LOAD = {1: 0x71, 2: 0x69, 4: 0x61}
_STORE_DOUBLE = 0x7A
_JUMP, _EQ, _NE, _LESS_SIGNED, _LESS = 0x05, 0x15, 0x55, 0xC5, 0xA5
_CALL, _EXIT = 0x85, 0x95
_LOAD_BYTES, _READ_KERNEL = 26, 113
"""The helpers bpf_skb_load_bytes and bpf_probe_read_kernel."""

# Registers. The first six do not survive a call.
_R0, _R1, _R2, _R3, _R4 = range(5)
_SKB, _PLACE, _TRANSPORT, _NEXT, _STACK = range(6, 11)
_BUFFER = -16
"""Where on the stack bytes are read to."""


class _Assembler:
    """Instructions under way, with jumps to labels that come later."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}
        self.references: list[Reference] = []

    def do(self, code: int, to: int = 0, value: int = 0) -> Self:
        self._code.append((code, to, 0, 0, value))
        return self

    def by(self, code: int, to: int, register: int) -> Self:
        self._code.append((code | _BY_REGISTER, to, register, 0, 0))
        return self

    def refer(self, code: int, to: int, member: int, kind: int, value: int = 0) -> Self:
        """Add an instruction whose value the kernel fills in, or checks."""
        self.references.append(Reference(len(self._code), member, kind))
        return self.do(code, to, value)

    def load(self, to: int, size: int, at: int, base: int = _STACK) -> Self:
        self._code.append((_LOAD[size], to, base, at, 0))
        return self

    def jump(
        self, label: str, code: int = _JUMP, register: int = 0, to: int = 0
    ) -> Self:
        """Jump, or jump if a register compares so to a value."""
        self._jumps.append((len(self._code), label))
        return self.do(code, register, to)

    def label(self, name: str) -> Self:
        self._labels[name] = len(self._code)
        return self

    def read_member(self, member: int, size: int) -> Self:
        """Read a member of the kernel's structure to R0."""
        self._code.append((_STORE_DOUBLE, _STACK, 0, _BUFFER, 0))
        self.refer(_MOV, _R3, member, MEMBER_OFFSET, offset_of(member))
        self.by(_ADD, _R3, _SKB)
        self.by(_MOV, _R1, _STACK).do(_ADD, _R1, _BUFFER).do(_MOV, _R2, size)
        return self.do(_CALL, 0, _READ_KERNEL).load(_R0, size, _BUFFER)

    def read_frame(self, size: int) -> Self:
        """Read bytes of the frame from the offset in R2; drop a shorter frame."""
        self.by(_MOV, _R1, _SKB).by(_MOV, _R3, _STACK).do(_ADD, _R3, _BUFFER)
        self.do(_MOV, _R4, size).do(_CALL, 0, _LOAD_BYTES)
        return self.jump("drop", _NE, _R0, 0)

    def instructions(self) -> bytes:
        code = [list(each) for each in self._code]
        for at, label in self._jumps:
            code[at][3] = self._labels[label] - at - 1
        little = sys.byteorder == "little"
        return b"".join(
            struct.pack(
                "=BBhi",
                operation,
                to | register << 4 if little else to << 4 | register,
                offset,
                value,
            )
            for operation, to, register, offset, value in code
        )


def program() -> Program:
    """Return the program for the kernel to load."""
    a = _Assembler()
    a.by(_MOV, _SKB, _R1)
    a.do(_MOV, _R2, 0).read_frame(6)
    a.load(_R0, 4, _BUFFER).do(_BIG_ENDIAN, _R0, 32)
    a.jump("others", _NE, _R0, LINK_LOCAL)
    a.load(_R0, 2, _BUFFER + 4).do(_BIG_ENDIAN, _R0, 16).do(_RSH, _R0, 4)
    a.jump("drop", _EQ, _R0, 0)
    a.label("others")
    _judge_request(a)
    a.label("drop").do(_MOV, _R0, DROP).do(_EXIT)
    a.label("pass").do(_MOV, _R0, PASS).do(_EXIT)
    return Program(NAME, a.instructions(), "sk_buff", _MEMBERS, tuple(a.references))


def _judge_request(a: _Assembler) -> None:
    a.read_member(_IP_SUMMED, 1)
    a.refer(_LSH, _R0, _IP_SUMMED, SHIFT_LEFT)
    a.refer(_RSH, _R0, _IP_SUMMED, SHIFT_RIGHT, 64 - 2)
    a.jump("pass", _NE, _R0, CHECKSUM_PARTIAL)
    _read_place(a)
    a.load(_R0, 4, _PROTOCOL, _SKB).do(_BIG_ENDIAN, _R0, 16)
    a.jump("ipv4", _EQ, _R0, IPV4).jump("drop", _NE, _R0, IPV6)
    _read_ipv6(a)
    a.jump("transport").label("ipv4")
    _read_ipv4(a)
    a.label("transport")
    _judge_place(a)


def _read_place(a: _Assembler) -> None:
    """Find where in the frame the checksum is to be written."""
    a.read_member(_START, 2).by(_MOV, _PLACE, _R0)
    a.read_member(_OFFSET, 2).by(_ADD, _PLACE, _R0)
    a.read_member(_MAC_HEADER, 2).by(_SUB, _PLACE, _R0)


def _read_ipv4(a: _Assembler) -> None:
    a.do(_MOV, _R2, ETHERNET).read_frame(10)
    a.load(_TRANSPORT, 1, _BUFFER).by(_MOV, _R1, _TRANSPORT).do(_RSH, _R1, 4)
    a.jump("drop", _NE, _R1, 4)
    a.do(_AND, _TRANSPORT, 0xF).jump("drop", _LESS, _TRANSPORT, 5)
    a.do(_LSH, _TRANSPORT, 2).do(_ADD, _TRANSPORT, ETHERNET)
    a.load(_R0, 2, _BUFFER + 6).do(_BIG_ENDIAN, _R0, 16).do(_AND, _R0, 0x3FFF)
    a.jump("drop", _NE, _R0, 0)  # a fragment
    a.load(_NEXT, 1, _BUFFER + 9)


def _read_ipv6(a: _Assembler) -> None:
    a.do(_MOV, _R2, ETHERNET).read_frame(7)
    a.load(_NEXT, 1, _BUFFER + 6)
    a.do(_MOV, _TRANSPORT, ETHERNET + IPV6_HEADER)
    for number in range(MOST_EXTENSIONS):
        for kind in EXTENSIONS:
            a.jump(f"extension {number}", _EQ, _NEXT, kind)
        a.jump("transport").label(f"extension {number}")
        a.by(_MOV, _R2, _TRANSPORT).read_frame(2)
        a.load(_NEXT, 1, _BUFFER).load(_R1, 1, _BUFFER + 1)
        a.do(_ADD, _R1, 1).do(_LSH, _R1, 3).by(_ADD, _TRANSPORT, _R1)


def _judge_place(a: _Assembler) -> None:
    """Compare the place with those of the checksum in the transport header."""
    a.by(_SUB, _PLACE, _TRANSPORT)
    a.jump("udp", _NE, _NEXT, TCP)
    a.jump("pass", _EQ, _PLACE, 16).jump("drop")
    a.label("udp").jump("drop", _NE, _NEXT, UDP)
    a.jump("pass", _EQ, _PLACE, 6).jump("drop", _LESS_SIGNED, _PLACE, 8)
    a.by(_MOV, _R2, _TRANSPORT).do(_ADD, _R2, 2).read_frame(2)
    a.load(_R0, 2, _BUFFER).do(_BIG_ENDIAN, _R0, 16)
    a.jump("drop", _EQ, _R0, DHCP_SERVER).jump("pass")
