# SPDX-License-Identifier: Apache-2.0
"""How much may come from a guest.

It has been sent already, and is dropped where it is too much: the rules of that stand
in outbound.nft.
"""

from collections.abc import Iterator, Sequence

from tapster.backends.backend import Observed, Stray
from tapster.backends.table import Element, Limit, Table
from tapster.errors import RequestError
from tapster.kernel.port import Namespace
from tapster.model import Lease, Rate, Wiring

FRAME = 65536
"""Bytes of the largest frame, which a guest with segmentation offload sends: if not
even one could pass, none ever would."""

MOST = 18_000_000
"""Kilobytes a second: with more, nftables' reckoning in 64 bits overflows."""
MOST_AT_ONCE = (1 << 32) // 1024 - 1
"""KiB: nftables counts the bytes of a burst in 32 bits."""


class Outbound:
    """The backend of outbound rates. Open vSwitch has its own."""

    name = "outbound"

    def __init__(self, ledger: str) -> None:
        self._table = Table(ledger, self.name)

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.ovs is None and wiring.outbound is not None

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
        if wiring.outbound is not None:
            _check(wiring.outbound)
            self._table.check(namespace)

    def attach(self, namespace: Namespace, lease: Lease) -> None:
        self._table.put(namespace, lease, _elements(lease))

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        if namespace is not None:
            self._table.drop(namespace, lease, _elements(lease))

    def observe(self, namespace: Namespace, leases: Sequence[Lease]) -> Observed:
        return self._table.observe(namespace, leases, _elements)

    def remove(self, namespace: Namespace, stray: Stray) -> None:
        self._table.remove(namespace, stray)


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
