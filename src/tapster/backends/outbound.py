# SPDX-License-Identifier: Apache-2.0
"""The limit of traffic from a guest, at its bridge port.

The host cannot make a guest wait: it drops what exceeds the limit. The rules are in
outbound.nft. This file derives the elements of one lease. Ports of Open vSwitch have
their own limit.
"""

from tapster.backends.table import Element, Limit, Purpose
from tapster.errors import RequestError
from tapster.light import Iterator
from tapster.model import Lease, Wiring

FRAME = 65536
"""Bytes of the largest frame, which a guest with segmentation offload sends. A smaller
bucket would never let such a frame pass."""

MOST = 18_000_000
"""Kilobytes a second: a higher rate overflows the 64-bit arithmetic of nftables."""
MOST_AT_ONCE = (1 << 32) // 1024 - 1
"""KiB: nftables counts the bytes of a burst in 32 bits."""


def _concerns(wiring: Wiring) -> bool:
    limited = wiring.outbound is not None or wiring.outbound_pps is not None
    return wiring.ovs is None and limited


def _check(wiring: Wiring) -> None:
    rate = wiring.outbound
    if rate is None:
        return
    for field, most in (("average", MOST), ("peak", MOST), ("burst", MOST_AT_ONCE)):
        value = getattr(rate, field)
        if value is not None and value > most:
            raise RequestError(f"outbound {field} must be 1 to {most}, not {value}")


def _elements(lease: Lease) -> Iterator[Element]:
    rate, frames = lease.wiring.outbound, lease.wiring.outbound_pps
    if lease.wiring.ovs is not None:
        return
    if frames is not None:
        yield Element("frames", limit=Limit(frames, max(frames // 10, 1), "packets"))
    if rate is None:
        return
    burst = rate.average if rate.burst is None else rate.burst
    yield Element("average", limit=_limit(rate.average, burst * 1024))
    if rate.peak is not None:
        yield Element("peak", limit=_limit(rate.peak, 0))


PURPOSE = Purpose("outbound", _concerns, _check, _elements)


def _limit(kilobytes: int, burst: int) -> Limit:
    """Make a limit for a rate a second, with a bucket of at least `burst` bytes."""
    # The bucket of nftables holds the bytes of one second and the given burst. It
    # refuses a burst of 0.
    rate = kilobytes * 1000
    return Limit(rate, max(burst - rate, FRAME - rate, 1))
