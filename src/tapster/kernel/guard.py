# SPDX-License-Identifier: Apache-2.0
"""The program that drops, at a port, what nftables cannot judge or count. Pure.

**Checksum requests.** A guest may leave a checksum to its host: the header before each
frame says where the checksum begins and where the kernel is to write it. The kernel
does so when the frame leaves through a device without checksum offload, after every
hook of nftables. So a guest can have the kernel replace any two bytes that the
rules have judged: in an address, a port, a type. The program passes a frame without a
request, and a request that writes to the checksum of a TCP or UDP header. nftables does
not judge what follows a UDP header, except DHCP. So a request for a checksum inside a
tunnel passes.

**Segmentation of DHCP.** A frame with UDP segmentation offload is many datagrams, and
nftables judges the first. The others could be DHCP requests for other MACs. So such a
frame to a DHCP server is dropped: no client sends one.

**Frames to 01:80:c2:00:00:00 to 0f.** A bridge hands some of them to the port itself
before nftables sees them: LLDP, and spanning tree where the bridge takes part in it.

**Rates.** nftables counts a frame with segmentation offload once, and no Ethernet
header. With small segments, 80 times as many bytes go on the wire. The program counts
the segments and their headers. A limit is a virtual clock (GCRA): each frame moves the
clock on by the time that the frame takes at the rate. A frame is dropped if the clock
is then ahead by more than the burst takes.

The program runs before the bridge and its hooks. The kernel deletes it with the device.
"""

import struct
import sys

from tapster.kernel.bpf import (
    MEMBER_OFFSET,
    SHIFT_LEFT,
    SHIFT_RIGHT,
    Program,
    Reference,
    StructMember,
    offset_of,
)
from tapster.kernel.port import GuardLimit
from tapster.light import Self, Sequence

NAME = "tapster_guard"

PASS, DROP = -1, 2
"""TC_ACT_UNSPEC, which lets further filters decide, and TC_ACT_SHOT."""

CHECKSUM_PARTIAL = 3
IPV4, IPV6 = 0x0800, 0x86DD
TCP, UDP = 6, 17
EXTENSIONS = (0, 43, 60)
"""Hop-by-hop options, routing, destination options."""
MOST_EXTENSIONS = 6
ETHERNET, IPV4_HEADER, IPV6_HEADER = 14, 20, 40
LINK_LOCAL = 0x0180C200
"""The first four bytes of 01:80:c2:00:00:00 to 0f."""
DHCP_SERVER = 67

_MEMBERS = (
    StructMember("ip_summed", 2),
    StructMember("csum_start", 16),
    StructMember("csum_offset", 16),
    StructMember("mac_header", 16),
    StructMember("transport_header", 16),
    StructMember("encapsulation", 1),
)
_IP_SUMMED, _START, _OFFSET, _MAC_HEADER, _TRANSPORT_HEADER, _ENCAPSULATION = range(6)
_LEN, _PROTOCOL, _GSO_SIZE = 0, 16, 176
"""The offsets of members in struct __sk_buff."""

UDP_HEADER, TCP_LENGTH, TCP_CHECKSUM = 8, 12, 16
"""The bytes of a UDP header. Where a TCP header has its length, and its checksum."""
SECOND = 10**9
"""Nanoseconds."""
TRIES = 3
"""How often a limit is tried while other processors count frames."""


# Instructions: linux/bpf.h and Documentation/bpf/standardization/instruction-set.rst.
_ADD, _SUB, _AND, _LSH, _RSH, _MOV = 0x07, 0x17, 0x57, 0x67, 0x77, 0xB7
_MUL, _DIV = 0x27, 0x37
_BY_REGISTER = 0x08
_BIG_ENDIAN = 0xDC
_LOAD = {1: 0x71, 2: 0x69, 4: 0x61, 8: 0x79}
_STORE_DOUBLE = 0x7A
_LOAD_WIDE, _OF_STATE = 0x18, 2
_COMPARE_EXCHANGE = (0xDB, 0xF1)
_JUMP, _EQ, _NE, _LESS_SIGNED, _LESS = 0x05, 0x15, 0x55, 0xC5, 0xA5
_GREATER, _NOT_LESS = 0x25, 0x35
_CALL, _EXIT = 0x85, 0x95
_TIME, _LOAD_BYTES, _READ_KERNEL = 5, 26, 113
"""The helpers bpf_ktime_get_ns, bpf_skb_load_bytes and bpf_probe_read_kernel."""

# Registers. The first six do not survive a call.
_R0, _R1, _R2, _R3, _R4, _R5 = range(6)
_SKB, _PLACE, _TRANSPORT, _NEXT, _STACK = range(6, 11)
_BYTES, _SEGMENTS, _NOW = 7, 8, 9
_BUFFER = -16
"""Where on the stack bytes are read to."""


class _Assembler:
    """Instructions under way, with jumps to labels that come later."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}
        self.references: list[Reference] = []
        self.state_uses: list[int] = []

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

    def jump_by(self, label: str, code: int, register: int, other: int) -> Self:
        """Jump if two registers compare so."""
        self._jumps.append((len(self._code), label))
        return self.by(code, register, other)

    def load_constant(self, to: int, value: int) -> Self:
        """Load 64 bits."""
        low, high = struct.unpack("=ii", struct.pack("=Q", value))
        if sys.byteorder == "big":
            low, high = high, low
        self._code += [(_LOAD_WIDE, to, 0, 0, low), (0, 0, 0, 0, high)]
        return self

    def load_state(self, to: int, offset: int) -> Self:
        """Load the address of a part of the state."""
        self.state_uses.append(len(self._code))
        self._code += [(_LOAD_WIDE, to, _OF_STATE, 0, 0), (0, 0, 0, 0, offset)]
        return self

    def compare_exchange(self, at: int, new: int) -> Self:
        """Write a register to memory if that is as R0; R0 becomes what it was."""
        code, operation = _COMPARE_EXCHANGE
        self._code.append((code, at, new, 0, operation))
        return self

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


def program(*, judge: bool, limits: Sequence[GuardLimit] = ()) -> Program:
    """Return the program that judges frames, or counts them, or both."""
    a = _Assembler()
    a.by(_MOV, _SKB, _R1)
    if judge:
        _judge_destination(a)
        _judge_request(a)
    a.label("judged")
    if limits:
        _count(a)
        for number, limit in enumerate(limits):
            _limit(a, number, limit)
    a.do(_MOV, _R0, PASS).do(_EXIT)
    a.label("drop").do(_MOV, _R0, DROP).do(_EXIT)
    return Program(
        NAME,
        a.instructions(),
        "sk_buff",
        _MEMBERS,
        tuple(a.references),
        8 * len(limits),
        tuple(a.state_uses),
    )


def _count(a: _Assembler) -> None:
    """Count the bytes on the wire, and the frames that a large frame becomes."""
    a.load(_BYTES, 4, _LEN, _SKB).load(_NOW, 4, _GSO_SIZE, _SKB)
    a.jump("one frame", _EQ, _NOW, 0)
    _read_headers(a)
    a.jump("one frame", _LESS_SIGNED, _R1, 1).by(_MOV, _R2, _SEGMENTS)
    a.by(_ADD, _R1, _NOW).do(_SUB, _R1, 1).by(_DIV, _R1, _NOW)
    a.by(_MOV, _SEGMENTS, _R1).do(_SUB, _R1, 1).by(_MUL, _R1, _R2)
    a.by(_ADD, _BYTES, _R1).jump("counted")
    a.label("one frame").do(_MOV, _SEGMENTS, 1)
    a.label("counted").do(_CALL, 0, _TIME).by(_MOV, _NOW, _R0)


def _read_headers(a: _Assembler) -> None:
    """Find the length of the headers, and in R1 that of the rest, which is cut. Each
    segment of the frame gets a copy of the headers.

    A frame that is cut inside a UDP tunnel (Linux 6.17) has the outer transport header
    where the guest says. The kernel compares with the packet only where the checksum
    of each segment of TCP begins. It cuts a UDP packet into fragments of IP wherever
    the guest says that the checksum begins. So the rest of such a frame is taken to be
    as long as can be, and the headers to be no shorter than can be.
    """
    _read_summed(a)
    a.jump("summed", _EQ, _R0, CHECKSUM_PARTIAL)
    a.read_member(_TRANSPORT_HEADER, 2).by(_MOV, _SEGMENTS, _R0)
    a.read_member(_MAC_HEADER, 2).by(_SUB, _SEGMENTS, _R0).jump("shortest")
    a.label("summed").read_member(_START, 2).by(_MOV, _SEGMENTS, _R0)
    a.read_member(_MAC_HEADER, 2).by(_SUB, _SEGMENTS, _R0)
    a.read_member(_OFFSET, 2).jump("shortest", _NE, _R0, TCP_CHECKSUM)
    _read_bits(a, _ENCAPSULATION, 1)
    a.jump("tcp", _NE, _R0, 0)
    a.load(_R0, 4, _PROTOCOL, _SKB).do(_BIG_ENDIAN, _R0, 16)
    a.do(_MOV, _R2, ETHERNET + 6).jump("next header", _EQ, _R0, IPV6)
    a.do(_MOV, _R2, ETHERNET + 9).label("next header").read_frame(1)
    a.load(_R0, 1, _BUFFER).jump("shortest", _NE, _R0, TCP).label("tcp")
    a.by(_MOV, _R2, _SEGMENTS).do(_ADD, _R2, TCP_LENGTH).read_frame(1)
    a.load(_R0, 1, _BUFFER).do(_RSH, _R0, 4).do(_LSH, _R0, 2).by(_ADD, _SEGMENTS, _R0)
    a.by(_MOV, _R1, _BYTES).by(_SUB, _R1, _SEGMENTS).jump("headers")
    a.label("shortest").do(_ADD, _SEGMENTS, UDP_HEADER)
    a.load(_R0, 4, _PROTOCOL, _SKB).do(_BIG_ENDIAN, _R0, 16)
    a.do(_MOV, _R2, ETHERNET + IPV6_HEADER + UDP_HEADER)
    a.jump("ipv6 headers", _EQ, _R0, IPV6)
    a.do(_MOV, _R2, ETHERNET + IPV4_HEADER + UDP_HEADER).label("ipv6 headers")
    a.by(_MOV, _R1, _BYTES).by(_SUB, _R1, _R2)
    a.jump_by("headers", _NOT_LESS, _SEGMENTS, _R2).by(_MOV, _SEGMENTS, _R2)
    a.label("headers")


def _limit(a: _Assembler, number: int, limit: GuardLimit) -> None:
    """Move one limit's clock on, or drop the frame."""
    kilobytes = limit.unit == "kilobytes"
    a.by(_MOV, _R1, _BYTES if kilobytes else _SEGMENTS)
    a.do(_MUL, _R1, SECOND // 1000 if kilobytes else SECOND)
    a.do(_DIV, _R1, limit.rate)
    a.load_state(_R2, 8 * number).load(_R0, 8, 0, _R2)
    for attempt in range(TRIES):
        a.by(_MOV, _R4, _R0).jump_by(f"{number}, {attempt}", _NOT_LESS, _R4, _NOW)
        a.by(_MOV, _R4, _NOW).label(f"{number}, {attempt}").by(_ADD, _R4, _R1)
        a.by(_MOV, _R5, _R4).by(_SUB, _R5, _NOW)
        a.load_constant(_R3, _burst_time(limit)).jump_by("drop", _GREATER, _R5, _R3)
        a.by(_MOV, _R5, _R0).compare_exchange(_R2, _R4)
        a.jump_by(f"{number} done", _EQ, _R0, _R5)
    a.jump("drop").label(f"{number} done")


def _burst_time(limit: GuardLimit) -> int:
    """Return how long a burst takes at the rate, in nanoseconds."""
    units = limit.rate * (1000 if limit.unit == "kilobytes" else 1)
    return limit.burst * SECOND // units


def _judge_destination(a: _Assembler) -> None:
    """Drop a frame to an address that bridges keep to themselves."""
    a.do(_MOV, _R2, 0).read_frame(6)
    a.load(_R0, 4, _BUFFER).do(_BIG_ENDIAN, _R0, 32)
    a.jump("others", _NE, _R0, LINK_LOCAL)
    a.load(_R0, 2, _BUFFER + 4).do(_BIG_ENDIAN, _R0, 16).do(_RSH, _R0, 4)
    a.jump("drop", _EQ, _R0, 0)
    a.label("others")


def _read_summed(a: _Assembler) -> None:
    """Read which checksum the kernel is to write, if any."""
    _read_bits(a, _IP_SUMMED, 2)


def _read_bits(a: _Assembler, member: int, bits: int) -> None:
    """Read a member that is a part of a byte."""
    a.read_member(member, 1)
    a.refer(_LSH, _R0, member, SHIFT_LEFT)
    a.refer(_RSH, _R0, member, SHIFT_RIGHT, 64 - bits)


def _judge_request(a: _Assembler) -> None:
    _read_summed(a)
    a.jump("judged", _NE, _R0, CHECKSUM_PARTIAL)
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
    a.jump("judged", _EQ, _PLACE, TCP_CHECKSUM).jump("drop")
    a.label("udp").jump("drop", _NE, _NEXT, UDP)
    a.jump("inside", _NE, _PLACE, 6)
    a.load(_R0, 4, _GSO_SIZE, _SKB).jump("judged", _EQ, _R0, 0).jump("datagrams")
    a.label("inside").jump("drop", _LESS_SIGNED, _PLACE, 8)
    a.label("datagrams").by(_MOV, _R2, _TRANSPORT).do(_ADD, _R2, 2).read_frame(2)
    a.load(_R0, 2, _BUFFER).do(_BIG_ENDIAN, _R0, 16)
    a.jump("drop", _EQ, _R0, DHCP_SERVER).jump("judged")
