# SPDX-License-Identifier: Apache-2.0
"""The filter of a bridge port: the guest can send only from its own MAC and addresses.

The rules are in filter.nft. This file derives the elements of one lease.
"""

from tapster.backends.table import Element, Limit, Purpose
from tapster.light import Iterator, Sequence
from tapster.model import Lease, Wiring, parse_mac

GROUPS = Limit(32, 4096)
"""How much a guest may say of its multicast groups. A bridge that snoops has room for
4,096 groups (mcast_hash_max), and forgets a group after 260 s. When the room is used
up, the bridge stops to snoop, and sends all multicast to every VM. A group takes at
least 8 bytes of IGMP or 20 of MLD: so a guest can have 1,556 groups. A query comes each
125 s, and a guest can answer with 500 groups of IPv4, or 200 of IPv6."""


def _concerns(wiring: Wiring) -> bool:
    return wiring.filter


def _check(wiring: Wiring) -> None:
    """Accept every wiring: the model has checked its MAC and addresses."""


def _elements(lease: Lease) -> Iterator[Element]:
    wiring = lease.wiring
    if not wiring.filter:
        return
    mac = parse_mac(lease.mac)
    yield Element("ports")
    yield Element("macs", (_number(mac),))
    yield Element("groups", limit=GROUPS)
    if wiring.trunks:
        yield Element("trunks")
    if wiring.addresses:
        yield Element("addressed")
        yield from _addresses(wiring.addresses, mac)


PURPOSE = Purpose("filter", _concerns, _check, _elements)


def _addresses(addresses: Sequence[str], mac: bytes) -> Iterator[Element]:
    from ipaddress import collapse_addresses, ip_network  # late: the import is slow

    networks = [ip_network(address) for address in addresses]
    # nftables refuses networks that overlap.
    four = [network for network in networks if network.version == 4]
    for ipv4 in collapse_addresses(four):
        if ipv4.prefixlen == ipv4.max_prefixlen:
            yield Element("ipv4", (str(ipv4.network_address),))
        else:
            yield Element("ipv4_nets", (str(ipv4),))
    six = [network for network in networks if network.version == 6]
    for ipv6 in collapse_addresses(six):
        first = _number(ipv6.network_address.packed)
        if ipv6.prefixlen == ipv6.max_prefixlen:
            yield Element("ipv6", (first,))
        else:
            last = _number(ipv6.broadcast_address.packed)
            yield Element("ipv6_nets", (f"{first}-{last}",))
    if six:
        yield Element("ipv6", (_number(_link_local(mac)),))


def _link_local(mac: bytes) -> bytes:
    """Derive the link-local address of a MAC: RFC 4291, appendix A."""
    interface = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
    return bytes.fromhex("fe80000000000000") + interface


def _number(raw: bytes) -> str:
    return f"{int.from_bytes(raw, 'big'):#x}"
