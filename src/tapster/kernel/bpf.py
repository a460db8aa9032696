# SPDX-License-Identifier: Apache-2.0
"""Loading of programs that the kernel runs for each frame: bpf(2).

A program may refer to members of the kernel's own structures, whose offsets differ from
kernel to kernel. So the program names the members, in its own description of types
(BTF), and the kernel fills in their offsets when it loads the program. This needs Linux
5.17 built with CONFIG_DEBUG_INFO_BTF, as all distributions build theirs.
"""

import ctypes
import os
import struct
from errno import EINVAL

from tapster.kernel import libc
from tapster.light import NamedTuple

BPF_MAP_CREATE = 0
BPF_PROG_LOAD = 5
BPF_OBJ_GET_INFO_BY_FD = 15
BPF_BTF_LOAD = 18
BPF_PROG_TYPE_SCHED_CLS = 3
BPF_MAP_TYPE_ARRAY = 2

MEMBER_OFFSET, SHIFT_LEFT, SHIFT_RIGHT = 0, 4, 5
"""BPF_CORE_FIELD_BYTE_OFFSET, _LSHIFT_U64 and _RSHIFT_U64: what to fill in."""

_BTF_MAGIC = 0xEB9F
_INT, _STRUCT, _FUNCTION, _PROTOTYPE = 1, 4, 12, 13
_STRUCTURE, _INTEGER, _RETURNS_INTEGER = 3, 4, 5
"""The ids of a program's types, in the order in which `_types` describes them."""
_INFO_SIZE = 232


class StructMember(NamedTuple):
    """A member of one of the kernel's structures."""

    name: str
    bits: int
    """8 or 16, or fewer for a bit field."""


class Reference(NamedTuple):
    """An instruction whose immediate value the kernel fills in."""

    instruction: int
    member: int
    """The index of the member."""
    kind: int
    """MEMBER_OFFSET, SHIFT_LEFT or SHIFT_RIGHT."""


class Program(NamedTuple):
    """A program for traffic control, with what it refers to."""

    name: str
    instructions: bytes
    structure: str
    """The kernel's structure, as `sk_buff`."""
    members: tuple[StructMember, ...]
    references: tuple[Reference, ...]
    state: int = 0
    """Bytes that the program keeps from frame to frame; 0 if it keeps none."""
    state_uses: tuple[int, ...] = ()
    """The instructions that load the address of the state."""


def offset_of(member: int) -> int:
    """Return where a member is in the program's own description of the structure.

    An instruction that refers to the member's offset has this value to begin with.
    """
    return 2 * member


def load(program: Program) -> int:
    """Load a program; return its descriptor, which the caller closes.

    Raises OSError, with the kernel's reason in its text.
    """
    types, function, accesses = _types(program)
    references = b"".join(
        struct.pack("IIII", 8 * at, _STRUCTURE, accesses[member], kind)
        for at, member, kind in program.references
    )
    opened = [_load_types(types)]
    try:
        if program.state:
            opened.append(_create_state(program))
            program = _with_state(program, opened[-1])
        return _load(program, opened[0], function, references)
    finally:
        for fd in opened:  # the kernel keeps what the program uses
            os.close(fd)


def tag(fd: int) -> bytes:
    """Return the digest by which the kernel shows a loaded program."""
    info = ctypes.create_string_buffer(_INFO_SIZE)
    address = ctypes.addressof(info)
    libc.bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("IIQ", fd, _INFO_SIZE, address))
    return info.raw[8:16]


def _load(program: Program, types: int, function: int, references: bytes) -> int:
    code = ctypes.create_string_buffer(program.instructions, len(program.instructions))
    # The helper that reads the kernel's memory is only for programs under the GPL.
    # So the instructions of our programs may be used under GPL-2.0 as well.
    license = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(1 << 16)
    functions = ctypes.create_string_buffer(struct.pack("II", 0, function), 8)
    relocations = ctypes.create_string_buffer(references, len(references))
    attributes = struct.pack(
        "IIQQIIQII16sIIIIQIIQIIIIQQI",
        BPF_PROG_TYPE_SCHED_CLS,
        len(program.instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(license),
        1,
        len(log),
        ctypes.addressof(log),
        *(0, 0, program.name.encode(), 0, 0),
        *(types, 8, ctypes.addressof(functions), 1),
        *(0, 0, 0, 0, 0),
        *(len(program.references), 0, ctypes.addressof(relocations), 16),
    )
    try:
        return libc.bpf(BPF_PROG_LOAD, attributes)
    except OSError as error:
        raise _with_reason(error, log.value.decode(errors="replace")) from error


def _create_state(program: Program) -> int:
    """Create the memory of a program: an array of one element."""
    name = program.name.encode()
    attributes = struct.pack(
        "IIIIIII16s", BPF_MAP_TYPE_ARRAY, 4, program.state, 1, 0, 0, 0, name
    )
    return libc.bpf(BPF_MAP_CREATE, attributes)


def _with_state(program: Program, state: int) -> Program:
    """Return the program with a descriptor of its state in its instructions."""
    code = bytearray(program.instructions)
    for at in program.state_uses:
        struct.pack_into("i", code, 8 * at + 4, state)
    return program._replace(instructions=bytes(code))


def _load_types(types: bytes) -> int:
    data = ctypes.create_string_buffer(types, len(types))
    return libc.bpf(
        BPF_BTF_LOAD,
        struct.pack("QQIII", ctypes.addressof(data), 0, len(types), 0, 0),
    )


def _with_reason(error: OSError, log: str) -> OSError:
    lines = [line for line in log.splitlines() if line.strip()]
    # The last line is a count; the line before it says what was wrong.
    reason = lines[-2] if len(lines) > 1 and error.errno == EINVAL else ""
    text = f"{error.strerror}: {reason}" if reason else error.strerror
    return OSError(error.errno, text)


def _types(program: Program) -> tuple[bytes, int, list[int]]:
    """Return the BTF of a program, its function's id, and the names of its members.

    A name is an offset into the strings. An id counts the records, from 1.
    """
    strings = _Strings()
    sizes = {8: 1, 16: 2}
    records = [_integer(strings, f"u{bits}", bits, 0) for bits in sizes]
    entries = b""
    for place, member in enumerate(program.members):
        holder = sizes[8 if member.bits <= 8 else 16]
        bits = member.bits if member.bits not in sizes else 0
        offset = 8 * offset_of(place)
        entries += struct.pack(
            "III", strings.add(member.name), holder, bits << 24 | offset
        )
    size = offset_of(len(program.members))
    structure = strings.add(program.structure)
    records += [
        _record(structure, _STRUCT, size, len(program.members), flag=1) + entries,
        _integer(strings, "int", 32, 1),
        _record(0, _PROTOTYPE, _INTEGER),
        _record(strings.add(program.name), _FUNCTION, _RETURNS_INTEGER),
    ]
    accesses = [strings.add(f"0:{place}") for place in range(len(program.members))]
    types, text = b"".join(records), strings.text
    sections = 0, len(types), len(types), len(text)
    header = struct.pack("HBBIIIII", _BTF_MAGIC, 1, 0, 24, *sections)
    return header + types + text, len(records), accesses


class _Strings:
    """The strings of a BTF, each known by its offset."""

    def __init__(self) -> None:
        self.text = b"\0"

    def add(self, string: str) -> int:
        offset = len(self.text)
        self.text += string.encode() + b"\0"
        return offset


def _integer(strings: _Strings, name: str, bits: int, signed: int) -> bytes:
    encoding = struct.pack("I", signed << 24 | bits)
    return _record(strings.add(name), _INT, bits // 8) + encoding


def _record(name: int, kind: int, size: int, count: int = 0, flag: int = 0) -> bytes:
    return struct.pack("III", name, count | kind << 24 | flag << 31, size)
