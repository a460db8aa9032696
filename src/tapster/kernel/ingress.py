# SPDX-License-Identifier: Apache-2.0
"""Programs at the ingress of a device: the clsact qdisc and its bpf filters.

As `tc qdisc add dev DEV clsact` and `tc filter replace dev DEV ingress pref 1 handle 1
bpf direct-action`. The kernel deletes both with the device.
"""

import os
import socket
import struct
from errno import EEXIST, EINVAL, ENODEV, ENOENT

from tapster.kernel.failure import failure
from tapster.kernel.port import GuardLimit
from tapster.kernel.rtnl import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Rtnl,
    attribute,
    nest,
    parse_attributes,
)
from tapster.light import Iterator, NamedTuple, Sequence, contextmanager

RTM_NEWQDISC, RTM_DELQDISC = 36, 37
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
TC_H_CLSACT = 0xFFFFFFF1
CLSACT = 0xFFFF0000
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_TAG = 6, 7, 8, 10
TCA_BPF_FLAG_ACT_DIRECT = 1
ETH_P_ALL = 3

PREFERENCE, HANDLE = 1, 1
"""A filter with a lower preference runs first, and 1 is the lowest."""

GUARD = "tapster-guard"
"""The name under which tc shows the guard."""

TCMSG = struct.Struct("BxxxiIII")  # tcmsg: family, ifindex, handle, parent, info
_U32 = struct.Struct("I")
_INFO = PREFERENCE << 16 | socket.htons(ETH_P_ALL)


class Filter(NamedTuple):
    """A filter as the kernel lists it."""

    preference: int
    handle: int
    kind: str
    tag: bytes
    direct: bool
    """Its program's result is what happens to the frame."""


def attach(rtnl: Rtnl, ifindex: int, program: int, name: str) -> None:
    """Let a program be the first filter at a device's ingress. Raises OSError."""
    qdisc = message(RTM_NEWQDISC, ifindex, CLSACT, TC_H_CLSACT, 0, kind("clsact"))
    (error,) = rtnl.execute([qdisc._replace(flags=NLM_F_CREATE | NLM_F_EXCL)])
    if error is not None and error.errno != EEXIST:
        raise error
    options = nest(
        TCA_OPTIONS,
        attribute(TCA_BPF_FD, _U32.pack(program))
        + attribute(TCA_BPF_NAME, name.encode() + b"\0")
        + attribute(TCA_BPF_FLAGS, _U32.pack(TCA_BPF_FLAG_ACT_DIRECT)),
    )
    added = message(
        RTM_NEWTFILTER, ifindex, HANDLE, INGRESS, _INFO, kind("bpf") + options
    )
    (error,) = rtnl.execute([added._replace(flags=NLM_F_CREATE)])
    if error is not None:
        raise error


def detach(rtnl: Rtnl, ifindex: int) -> None:
    """Delete the first filter; then the qdisc, if it has no other. Raises OSError."""
    gone = message(RTM_DELTFILTER, ifindex, HANDLE, INGRESS, _INFO, kind("bpf"))
    (error,) = rtnl.execute([gone])
    if error is not None and error.errno not in (ENOENT, EINVAL, ENODEV):
        raise error
    if not any(filters(rtnl, ifindex, parent) for parent in (INGRESS, EGRESS)):
        qdisc = message(RTM_DELQDISC, ifindex, CLSACT, TC_H_CLSACT, 0)
        (error,) = rtnl.execute([qdisc])
        if error is not None and error.errno not in (ENOENT, EINVAL, ENODEV):
            raise error


def filters(rtnl: Rtnl, ifindex: int, parent: int = INGRESS) -> list[Filter]:
    """List the filters at a device's ingress or egress. Raises OSError."""
    wanted = TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, parent, 0)
    listed = []
    for body in rtnl.list_bodies(RTM_GETTFILTER, wanted):
        _, at, handle, _, info = TCMSG.unpack_from(body)
        found = parse_attributes(body, TCMSG.size)
        options = parse_attributes(found.get(TCA_OPTIONS, b""))
        if at == ifindex and handle:
            flags = _U32.unpack(options.get(TCA_BPF_FLAGS, bytes(4)))[0]
            kind = found.get(TCA_KIND, b"").rstrip(b"\0").decode()
            tag = options.get(TCA_BPF_TAG, b"")
            direct = bool(flags & TCA_BPF_FLAG_ACT_DIRECT)
            listed.append(Filter(info >> 16, handle, kind, tag, direct))
    return listed


def is_first(rtnl: Rtnl, ifindex: int, tag: bytes) -> bool:
    """Say whether the program with this tag is the first filter at the ingress."""
    first = min(filters(rtnl, ifindex), default=None)
    return first == Filter(PREFERENCE, HANDLE, "bpf", tag, True)


class Guards:
    """The guards of devices in one network namespace. Errors are Tapster's own."""

    def __init__(self, rtnl: Rtnl) -> None:
        self._rtnl = rtnl
        self._tags: dict[tuple[bool, tuple[GuardLimit, ...]], bytes] = {}
        """The digests by which the kernel shows guards."""

    def attach(self, ifindex: int, judge: bool, limits: Sequence[GuardLimit]) -> None:
        """Let a guard be the first filter of a device."""
        try:
            with self._loaded(judge, limits) as program:
                attach(self._rtnl, ifindex, program, GUARD)
        except OSError as error:
            action = f"loading the guard of device {ifindex}"
            raise failure(error, action, "CAP_BPF") from error

    def detach(self, ifindex: int) -> None:
        """Remove the guard of a device. There may be none."""
        try:
            detach(self._rtnl, ifindex)
        except OSError as error:
            raise failure(error, f"removing the guard of {ifindex}") from error

    def is_first(self, ifindex: int, judge: bool, limits: Sequence[GuardLimit]) -> bool:
        """Return whether the first filter of a device is this guard."""
        from tapster.kernel import bpf

        try:
            kind = judge, tuple(limits)
            if kind not in self._tags:
                with self._loaded(judge, limits) as program:
                    self._tags[kind] = bpf.tag(program)
            return is_first(self._rtnl, ifindex, self._tags[kind])
        except OSError as error:
            action = f"looking at the guard of device {ifindex}"
            raise failure(error, action, "CAP_BPF") from error

    @contextmanager
    def _loaded(self, judge: bool, limits: Sequence[GuardLimit]) -> Iterator[int]:
        """Load a guard's program for the time of a block."""
        from tapster.kernel import bpf, guard

        fd = bpf.load(guard.program(judge=judge, limits=limits))
        try:
            yield fd
        finally:
            os.close(fd)


def kind(name: str) -> bytes:
    return attribute(TCA_KIND, name.encode() + b"\0")


def message(
    type: int, ifindex: int, handle: int, parent: int, info: int, rest: bytes = b""
) -> Message:
    header = TCMSG.pack(socket.AF_UNSPEC, ifindex, handle, parent, info)
    return Message(type, 0, header + rest)
