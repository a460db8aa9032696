# SPDX-License-Identifier: Apache-2.0
"""A rate for what is sent to a device: tc-htb(8), through pyroute2.

It is at the root of the device, as qdisc 1: with the class 1:1, and ends with the
device: none can be left behind.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL, ENOENT
from typing import Any, NamedTuple, Self

from tapster.errors import KernelError, RequestError, ServiceUnavailable
from tapster.kernel.port import Namespace
from tapster.model import Rate

TC_H_ROOT = 0xFFFFFFFF
QDISC, CLASS, LEAF = 0x10000, 0x10001, 0x20000  # 1:, 1:1 and 2:

LEAVES = ("fq_codel", "sfq")
"""What shares the rate among the guest's flows: the first that the kernel has."""

TICKS = 15.625
"""Of the packet scheduler in a microsecond."""
LONGEST_BURST = 274
"""The seconds of them that 32 bits can count."""


class Class(NamedTuple):
    """The figures of a class: bytes, and bytes a second."""

    rate: int
    ceil: int
    burst: int
    cburst: int

    @classmethod
    def of(cls, wanted: Rate) -> Self:
        """The class that makes a rate. Raises RequestError."""
        rate, ceil = wanted.average * 1000, (wanted.peak or wanted.average) * 1000
        longest = rate * LONGEST_BURST // 1024
        if wanted.burst is not None and wanted.burst > longest:
            raise RequestError(
                f"inbound burst {wanted.burst} is more than the kernel can count: "
                f"at an average of {wanted.average} at most {longest}"
            )
        burst = _burst(rate) if wanted.burst is None else wanted.burst * 1024
        return cls(rate, ceil, burst, _burst(ceil))


def _burst(rate: int) -> int:
    """A frame, and what is due at once when a timer is 1 ms late."""
    return 1600 + rate // 1000


class Queues:
    """The queues of a network namespace."""

    def __init__(self, ip: Any, refusal: type[Exception], leaves: list[str]) -> None:
        self._ip = ip
        self._refusal = refusal
        self._leaves = leaves

    def put(self, ifindex: int, wanted: Class) -> None:
        """Let a device have this rate, whatever it has now."""
        new = self._class(ifindex) is None
        if new:
            self._delete(ifindex, None)
            self._tc("replace", "htb", ifindex, QDISC, default=CLASS - QDISC)
        # Where there is one class, its quantum means nothing. But the kernel
        # complains of a large one, which is what it would take by itself.
        figures = {**wanted._asdict(), "parent": QDISC, "quantum": 1600}
        self._tc("replace-class", "htb", ifindex, CLASS, **figures)
        if new:
            self._put_leaf(ifindex)

    def _put_leaf(self, ifindex: int) -> None:
        while self._leaves:
            try:
                self._tc("add", self._leaves[0], ifindex, LEAF, parent=CLASS)
                return
            except KernelError as error:
                if error.errno != ENOENT:
                    raise
                del self._leaves[0]  # the kernel has none, and has looked for a module

    def drop(self, ifindex: int) -> None:
        """Let a device have no rate of ours."""
        self._delete(ifindex, "htb")

    def differs(self, ifindex: int, wanted: Class | None) -> str | None:
        """How a device has not this rate, or with None how it has one."""
        there = self._class(ifindex)
        if there is None or wanted is None:
            return "is missing" if wanted else "is there" if there else None
        # The kernel keeps a burst as the microseconds that it takes.
        slack = Class(0, 0, 2 + wanted.rate // 10**6, 2 + wanted.ceil // 10**6)
        figures = zip(Class._fields, there, wanted, slack, strict=True)
        wrong = [
            f"has a {field} of {found}, not {value}"
            for field, found, value, near in figures
            if abs(found - value) > near
        ]
        return ", ".join(wrong) or None

    def _class(self, ifindex: int) -> Class | None:
        for one in self._ip.get_classes(index=ifindex):
            if (one["handle"], one.get_attr("TCA_KIND")) == (CLASS, "htb"):
                options = one.get_attr("TCA_OPTIONS")
                figures = options.get_attr("TCA_HTB_PARMS")
                rate = options.get_attr("TCA_HTB_RATE64") or figures["rate"]
                ceil = options.get_attr("TCA_HTB_CEIL64") or figures["ceil"]
                burst = _bytes(figures["buffer"], rate)
                return Class(rate, ceil, burst, _bytes(figures["cbuffer"], ceil))
        return None

    def _delete(self, ifindex: int, kind: str | None) -> None:
        """Delete the qdisc 1: at the root, if it is of this kind."""
        try:
            self._tc("del", kind, ifindex, QDISC, parent=TC_H_ROOT)
        except KernelError as error:
            if error.errno not in (ENOENT, EINVAL):  # there is another, or none
                raise

    def _tc(
        self, command: str, kind: str | None, ifindex: int, handle: int, **more: int
    ) -> None:
        try:
            self._ip.tc(command, kind, index=ifindex, handle=handle, **more)
        except self._refusal as error:
            code, said = error.args
            raise KernelError(code, f"shaping device {ifindex}", said) from error


def _bytes(ticks: int, rate: int) -> int:
    return round(ticks / TICKS * rate / 10**6)


@contextmanager
def queues(namespace: Namespace, leaves: list[str]) -> Iterator[Queues]:
    """The queues there, for a moment. Raises ServiceUnavailable without pyroute2.

    Kinds of `leaves` that the kernel turns out not to have are taken out.
    """
    socket, refusal = load()
    with namespace.inside(), socket() as ip:
        yield Queues(ip, refusal, leaves)


def load() -> tuple[Any, type[Exception]]:
    """What it takes of pyroute2, which takes 0.3 s to import."""
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        raise ServiceUnavailable(
            "inbound rates need pyroute2, which is not installed: "
            "pip install 'tapster[shape]'"
        ) from None
    return IPRoute, NetlinkError
