# SPDX-License-Identifier: Apache-2.0
"""What a guest may send from its bridge port: its own MAC and addresses only.

The rules stand in filter.nft; here is what each port adds to them.
"""

from collections.abc import Iterator, Sequence

from tapster.backends.backend import Observed, Stray
from tapster.backends.table import Element, Table
from tapster.kernel.port import Namespace
from tapster.model import Lease, Wiring, parse_mac


class Filter:
    """The backend that keeps a guest from passing for another."""

    name = "filter"

    def __init__(self, ledger: str) -> None:
        self._table = Table(ledger, self.name)

    def concerns(self, wiring: Wiring) -> bool:
        return wiring.filter

    def check(self, namespace: Namespace, wiring: Wiring) -> None:
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
    wiring = lease.wiring
    if not wiring.filter:
        return
    mac = parse_mac(lease.mac)
    yield Element("ports")
    yield Element("macs", (_number(mac),))
    if wiring.trunks:
        yield Element("trunks")
    if wiring.addresses:
        yield Element("addressed")
        yield from _addresses(wiring.addresses, mac)


def _addresses(addresses: Sequence[str], mac: bytes) -> Iterator[Element]:
    from ipaddress import ip_address  # only here: it is slow to import

    for address in map(ip_address, addresses):
        if address.version == 4:
            yield Element("ipv4", (str(address),))
        else:
            yield Element("ipv6", (_number(address.packed),))
            yield Element("ipv6", (_number(_link_local(mac)),))


def _link_local(mac: bytes) -> bytes:
    """The address that IPv6 derives from a MAC: RFC 4291, appendix A."""
    interface = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
    return bytes.fromhex("fe80000000000000") + interface


def _number(raw: bytes) -> str:
    return f"{int.from_bytes(raw, 'big'):#x}"
