# SPDX-License-Identifier: Apache-2.0
"""Find what on a host may harm VMs although every lease is as requested.

These are equal MACs, a spanning tree, a firewall that judges bridged frames, and
programs that configure new devices.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from tapster.backends.bridge import MAX_PORTS
from tapster.errors import HostError
from tapster.kernel import udev
from tapster.kernel.port import Namespace
from tapster.model import Lease, Link, Mode, Problem, State

NEARLY_FULL = MAX_PORTS * 9 // 10
"""A bridge with at least this many ports is reported."""
CALLS_IPTABLES = "/proc/sys/net/bridge/bridge-nf-call-iptables"


def find(
    namespace: Namespace, links: Sequence[Link], leases: Sequence[Lease]
) -> Iterator[Problem]:
    """Yield the hazards to the leases of a namespace; `links` are its devices."""
    active = [lease for lease in leases if lease.state is State.ACTIVE]
    yield from _equal_macs(links, active)
    yield from _bridges(namespace, links, leases)
    if any(lease.wiring.bridge for lease in active):
        yield from _firewall(namespace)
    yield from _udev()


def _equal_macs(links: Sequence[Link], leases: Sequence[Lease]) -> Iterator[Problem]:
    holders: dict[tuple[str, str], list[str]] = {}
    names = {link.ifindex: link.name for link in links}
    ours = {lease.ifindex for lease in leases}
    for lease in leases:
        segment = lease.wiring.bridge or lease.wiring.ovs or lease.lower
        # A device on standby is connected to nothing. In mode passthru the guest has
        # the MAC of the lower device.
        if segment and not lease.wiring.standby and lease.mode is not Mode.PASSTHRU:
            which = f"lease {lease.name} ({lease.id})"
            holders.setdefault((lease.mac, segment), []).append(which)
    for link in links:
        place = (link.mac, names.get(link.master, ""))
        if place in holders and link.ifindex not in ours:
            holders[place].append(f"device {link.name}")
    for (mac, segment), several in holders.items():
        if len(several) > 1:
            yield Problem(
                f"MAC {mac} is used more than once on {segment}: "
                f"{', '.join(several)}; they take each other's frames",
                "give each VM a MAC of its own",
            )


def _bridges(
    namespace: Namespace, links: Sequence[Link], leases: Sequence[Lease]
) -> Iterator[Problem]:
    used = {lease.wiring.bridge for lease in leases}
    for link in links:
        if link.name in used and not link.up:
            yield Problem(
                f"bridge {link.name} is down, with VMs on it",
                f"ip link set {link.name} up",
            )
        if link.name in used and link.port_delay:
            yield Problem(
                f"bridge {link.name} takes part in the spanning tree: a new VM hears "
                f"and says nothing for {link.port_delay:g} s, and many guests give up "
                "DHCP before",
                f"ip link set {link.name} type bridge forward_delay 200, or, if no "
                "loop is possible: stp_state 0; or let each VM wait: tapster run "
                "--wait-forwarding",
            )
        if link.kind == "bridge" and (ports := namespace.ports(link)) >= NEARLY_FULL:
            yield Problem(
                f"bridge {link.name} has {ports} of {MAX_PORTS} possible ports",
                "spread the VMs over several bridges",
            )


def _firewall(namespace: Namespace) -> Iterator[Problem]:
    """Find a forward policy of drop that br_netfilter applies to bridged packets."""
    try:
        with namespace.inside(), open(CALLS_IPTABLES) as file:
            if file.read().strip() != "1":
                return
    except OSError:
        return
    with suppress(HostError):  # without libnftables it cannot be told
        for listed in namespace.nft_list("chains"):
            chain = listed.get("chain", {})
            if (
                chain.get("family") in ("ip", "inet")
                and chain.get("hook") == "forward"
                and chain.get("policy") == "drop"
            ):
                yield Problem(
                    f"chain {chain['family']} {chain['table']} {chain['name']} drops "
                    "what it does not accept, and judges bridged packets too "
                    "(br_netfilter): ARP passes between VMs, and IPv4 does not",
                    "sysctl -w net.bridge.bridge-nf-call-iptables=0, or accept them: "
                    "iptables -I FORWARD -m physdev --physdev-is-bridged -j ACCEPT",
                )


def _udev() -> Iterator[Problem]:
    if udev.interferes():
        yield Problem(
            "udev is not told to keep its hands off Tapster's devices: it gives some "
            "of them another MAC",
            "tapster install-service",
        )
