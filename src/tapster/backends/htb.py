# SPDX-License-Identifier: Apache-2.0
"""A rate for what the host sends to a device: tc-htb(8), through pyroute2.

The queue is qdisc 1: at the root of the device, with the class 1:1. The kernel deletes
it with the device, so nothing can be left over.
"""

from errno import EINVAL, ENODEV, ENOENT

from tapster.errors import KernelError, RequestError, ServiceUnavailable
from tapster.kernel.port import Namespace
from tapster.light import Any, Iterator, NamedTuple, Self, contextmanager
from tapster.model import Rate

TC_H_ROOT = 0xFFFFFFFF
QDISC, CLASS, LEAF = 0x10000, 0x10001, 0x20000  # 1:, 1:1 and 2:

LEAVES = ("fq_codel", "sfq")
"""Qdiscs that share the rate among the guest's flows. The first that the kernel has
is used."""

TICKS = 15.625
"""Ticks of the packet scheduler in a microsecond."""
LONGEST_BURST = 274
"""Seconds whose ticks 32 bits can count."""


class Class(NamedTuple):
    """The figures of a class: bytes, and bytes a second."""

    rate: int
    ceil: int
    burst: int
    cburst: int

    @classmethod
    def of(cls, wanted: Rate) -> Self:
        """Return the class that enforces a rate. Raises RequestError."""
        rate, ceil = wanted.average * 1000, (wanted.peak or wanted.average) * 1000
        longest = rate * LONGEST_BURST // 1024
        if wanted.burst is not None and wanted.burst > longest:
            raise RequestError(
                f"inbound burst {wanted.burst} exceeds what the kernel can count: "
                f"with an average of {wanted.average} it can be at most {longest}"
            )
        burst = _burst(rate) if wanted.burst is None else wanted.burst * 1024
        return cls(rate, ceil, burst, _burst(ceil))


def _burst(rate: int) -> int:
    """Return the bytes of a frame and of a timer that is 1 ms late."""
    return 1600 + rate // 1000


class Queues:
    """The queues of a network namespace."""

    def __init__(self, ip: Any, refusal: type[Exception], leaves: list[str]) -> None:
        self._ip = ip
        self._refusal = refusal
        self._leaves = leaves

    def set(self, ifindex: int, wanted: Class) -> None:
        """Give a device this rate, whatever rate it has now."""
        new = self._class(ifindex) is None
        if new:
            self._delete(ifindex, None)
            self.tc("replace", "htb", ifindex, QDISC, default=CLASS - QDISC)
        # The quantum of an only class has no effect. But without one given the kernel
        # chooses a large one and logs a warning about it.
        figures = {**wanted._asdict(), "parent": QDISC, "quantum": 1600}
        self.tc("replace-class", "htb", ifindex, CLASS, **figures)
        if new:
            self._add_leaf(ifindex)

    def _add_leaf(self, ifindex: int) -> None:
        while self._leaves:
            try:
                self.tc("add", self._leaves[0], ifindex, LEAF, parent=CLASS)
                return
            except KernelError as error:
                if error.errno != ENOENT:
                    raise
                del self._leaves[0]  # the kernel lacks it, and has looked for a module

    def clear(self, ifindex: int) -> None:
        """Remove Tapster's rate from a device."""
        self._delete(ifindex, "htb")

    def difference(self, ifindex: int, wanted: Class | None) -> str | None:
        """Say how a device's rate differs from the wanted one; None wants no rate."""
        present = self._class(ifindex)
        if present is None or wanted is None:
            return "is missing" if wanted else "is left over" if present else None
        # The kernel keeps a burst as the microseconds that it takes.
        slack = Class(0, 0, 2 + wanted.rate // 10**6, 2 + wanted.ceil // 10**6)
        figures = zip(Class._fields, present, wanted, slack, strict=True)
        differences = [
            f"has a {field} of {is_now}, not {should_be}"
            for field, is_now, should_be, tolerance in figures
            if abs(is_now - should_be) > tolerance
        ]
        return ", ".join(differences) or None

    def _class(self, ifindex: int) -> Class | None:
        for listed in self._ip.get_classes(index=ifindex):
            if (listed["handle"], listed.get_attr("TCA_KIND")) == (CLASS, "htb"):
                options = listed.get_attr("TCA_OPTIONS")
                figures = options.get_attr("TCA_HTB_PARMS")
                rate = options.get_attr("TCA_HTB_RATE64") or figures["rate"]
                ceil = options.get_attr("TCA_HTB_CEIL64") or figures["ceil"]
                burst = _bytes(figures["buffer"], rate)
                return Class(rate, ceil, burst, _bytes(figures["cbuffer"], ceil))
        return None

    def _delete(self, ifindex: int, kind: str | None) -> None:
        """Delete the qdisc 1: at the root if it is of this kind."""
        try:
            self.tc("del", kind, ifindex, QDISC, parent=TC_H_ROOT)
        except KernelError as error:
            # Another qdisc, or none; or the device is gone, and its qdisc with it.
            if error.errno not in (ENOENT, EINVAL, ENODEV):
                raise

    def tc(
        self, command: str, kind: str | None, ifindex: int, handle: int, **more: int
    ) -> None:
        try:
            self._ip.tc(command, kind, index=ifindex, handle=handle, **more)
        except self._refusal as error:
            code, reason = error.args
            action = f"setting the rate of device {ifindex}"
            raise KernelError(code, action, reason) from error


def _bytes(ticks: int, rate: int) -> int:
    return round(ticks / TICKS * rate / 10**6)


@contextmanager
def queues(namespace: Namespace, leaves: list[str]) -> Iterator[Queues]:
    """Open the queues of a namespace. Raises ServiceUnavailable without pyroute2.

    Kinds of qdiscs that the kernel lacks are removed from `leaves`.
    """
    socket, refusal = load()
    with namespace.inside(), socket() as ip:
        yield Queues(ip, refusal, leaves)


def load() -> tuple[Any, type[Exception]]:
    """Import what this file needs of pyroute2. The import takes 0.3 s."""
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        raise ServiceUnavailable(
            "inbound rates need pyroute2, which is not installed; install it with: "
            "pip install 'tapster[shape]'"
        ) from None
    return IPRoute, NetlinkError
