# SPDX-License-Identifier: Apache-2.0
"""How much goes to a guest, and how much comes from it.

What goes to it is held back: see htb.py. What comes from it has been sent already,
and is dropped where it is too much: the rules of that stand in shape.nft.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from tapster.errors import RequestError, ServiceUnavailable, TapsterError
from tapster.kernel.port import Kernel
from tapster.model import Lease, Rate, State, Wiring, stamp
from tapster.wiring import htb
from tapster.wiring.plane import Observed, Stray
from tapster.wiring.table import Element, Limit, Table

FRAME = 65536
"""Bytes of the largest frame, which a guest with segmentation offload sends: if not
even one could pass, none ever would."""

MOST = 18_000_000
"""Kilobytes a second: with more, nftables' reckoning in 64 bits overflows."""
MOST_AT_ONCE = (1 << 32) // 1024 - 1
"""KiB: nftables counts the bytes of a burst in 32 bits."""


class Shape:
    """The plane of rates. Open vSwitch has its own."""

    name = "shape"

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger
        self._table = Table(ledger, self.name)
        self._leaves = list(htb.LEAVES)

    def concerns(self, wiring: Wiring) -> bool:
        rates = (wiring.inbound, wiring.outbound)
        return wiring.ovs is None and rates != (None, None)

    def check(self, kernel: Kernel, wiring: Wiring) -> None:
        if wiring.inbound is not None:
            htb.Class.of(wiring.inbound)
            htb.load()
        if wiring.outbound is not None:
            _check(wiring.outbound)
            self._table.check(kernel)

    def wire(self, kernel: Kernel, lease: Lease) -> None:
        wiring, new = lease.wiring, lease.state is State.RESERVED
        try:
            if wiring.outbound is not None:
                self._table.put(kernel, lease, _elements(lease))
            elif not new:
                self._drop_limits(kernel, lease)
            if wiring.inbound is not None:
                with htb.queues(kernel, self._leaves) as queues:
                    queues.put(lease.ifindex, htb.Class.of(wiring.inbound))
            elif not new:
                self._drop_queue(kernel, lease)
        except BaseException:
            with suppress(TapsterError):
                self.unwire(kernel, lease)
            raise

    def unwire(self, kernel: Kernel | None, lease: Lease) -> None:
        if kernel is not None:
            self._drop_limits(kernel, lease)
            # That of a released device which should have none goes with the device.
            if lease.wiring.inbound is not None or lease.state is State.ACTIVE:
                self._drop_queue(kernel, lease)

    def observe(self, kernel: Kernel, leases: Sequence[Lease]) -> Observed:
        limits = self._table.observe(kernel, leases, _elements)
        wrong = dict(limits.wrong)
        for id, said in self._look_at_queues(kernel, leases):
            wrong[id] = "; ".join([*filter(None, [wrong.get(id)]), said])
        return Observed(wrong, limits.strays)

    def _look_at_queues(
        self, kernel: Kernel, leases: Sequence[Lease]
    ) -> Iterator[tuple[str, str]]:
        """The leases, by id, of which the inbound rate is not right, and how."""
        shaped = [
            lease
            for lease in leases
            if self.name in lease.wired
            and lease.state is not State.RESERVED
            and self._is_there(kernel, lease)
        ]
        if not shaped:
            return
        try:
            with htb.queues(kernel, self._leaves) as queues:
                for lease in shaped:
                    rate = lease.wiring.inbound if lease.state is State.ACTIVE else None
                    wanted = rate and htb.Class.of(rate)
                    if said := queues.differs(lease.ifindex, wanted):
                        yield lease.id, f"the inbound rate {said}"
        except ServiceUnavailable:
            if any(lease.wiring.inbound for lease in shaped):
                raise

    def remove(self, kernel: Kernel, stray: Stray) -> None:
        self._table.remove(kernel, stray)

    def _drop_limits(self, kernel: Kernel, lease: Lease) -> None:
        try:
            self._table.drop(kernel, lease, _elements(lease))
        except ServiceUnavailable:
            if lease.wiring.outbound is not None:
                raise

    def _drop_queue(self, kernel: Kernel, lease: Lease) -> None:
        if not self._is_there(kernel, lease):
            return
        try:
            with htb.queues(kernel, self._leaves) as queues:
                queues.drop(lease.ifindex)
        except ServiceUnavailable:
            if lease.wiring.inbound is not None:
                raise

    def _is_there(self, kernel: Kernel, lease: Lease) -> bool:
        """Whether the lease's device is there, and not another with its ifindex."""
        link = kernel.link(lease.ifindex)
        return link is not None and link.alias == stamp(self._ledger, lease.id)


def _elements(lease: Lease) -> Iterator[Element]:
    """What the rules are to know of a lease's port."""
    rate = lease.wiring.outbound
    if rate is None or lease.wiring.ovs is not None:
        return
    burst = rate.average if rate.burst is None else rate.burst
    yield Element("average", limit=_limit(rate.average, burst * 1024))
    if rate.peak is not None:
        yield Element("peak", limit=_limit(rate.peak, 0))


def _limit(kilobytes: int, burst: int) -> Limit:
    """A limit of so much a second, with a bucket that holds `burst` bytes or more."""
    # nftables adds what one second lets through to the burst that it is given, and
    # refuses 0.
    rate = kilobytes * 1000
    return Limit(rate, max(burst - rate, FRAME - rate, 1))


def _check(rate: Rate) -> None:
    for field, most in (("average", MOST), ("peak", MOST), ("burst", MOST_AT_ONCE)):
        value = getattr(rate, field)
        if value is not None and value > most:
            raise RequestError(f"outbound {field} must be 1 to {most}, not {value}")
