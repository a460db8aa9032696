# SPDX-License-Identifier: Apache-2.0
"""Which frames pass the filters of Tapster and of others: counts, not times.

The rules of others do what each project's do for one port with one MAC, one IPv4 and
one IPv6 address. What a project does outside of the bridge (a firewall of the host,
security groups for TCP and UDP) is not part of this.
"""

import subprocess
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, NamedTuple

from bench.measurements import Run
from bench.result import Goal, Row, Table, interleave
from bench.world import world
from lab import guests, shell
from lab.frame_kinds import frame_kinds
from lab.frame_kinds.kind import ADDRESSES, MINE4, MINE6, OTHER_MAC, FrameKind
from lab.guests import GuestBridge, Leased

TAPSTER_MAC, TAPSTER = "Tapster, MAC", "Tapster, MAC and addresses"
NONE, INCUS, CNI, NEUTRON = "no filter", "Incus", "CNI bridge", "Neutron"
NOTES = {
    NONE: "what a bridge forwards",
    TAPSTER_MAC: "`--filter`; judged as if addresses had been asked for, too",
    TAPSTER: "`--filter --address IPV4 --address IPV6`",
    INCUS: "`security.mac_filtering`, `ipv4_filtering` and `ipv6_filtering`; "
    "link-local addresses allowed",
    CNI: "`macspoofchk` of the bridge plugin, which knows MACs alone",
    NEUTRON: "the MAC and ARP protection of the Linux bridge agent",
}

_INCUS = """
table bridge incus {{
  chain rules {{
    ether saddr != {mac} drop
    ether type arp arp saddr ether != {mac} drop
    ether type ip6 icmpv6 type 136 @nh,528,48 != {raw_mac} drop
    ether type arp arp saddr ip != {ipv4} drop
    ether type ip ip saddr != {ipv4} drop
    ether type ip6 icmpv6 type 134 drop
    ether type ip6 icmpv6 type 136 @nh,384,128 != {raw_ipv6} @nh,384,10 != 0x3fa drop
    ether type ip6 ip6 saddr != {{ {ipv6}, fe80::/10 }} drop
    ether type != {{ arp, ip, ip6 }} drop
  }}
  chain input {{
    type filter hook input priority -200; policy accept;
    iifname "{port}" ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp dport 67 accept
    iifname "{port}" ip6 saddr fe80::/10 ip6 daddr ff02::1:2 udp dport 547 accept
    iifname "{port}" ip6 saddr fe80::/10 ip6 daddr ff02::2 icmpv6 type 133 accept
    iifname "{port}" jump rules
  }}
  chain forward {{
    type filter hook forward priority -200; policy accept;
    iifname "{port}" jump rules
  }}
}}
"""
_CNI = """
table bridge nat {{
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{port}" ether saddr != {mac} drop
  }}
}}
"""
_NEUTRON = """
table bridge nat {{
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{port}" ether saddr != {mac} drop
    iifname "{port}" ether type arp arp saddr ip != {ipv4} drop
  }}
}}
"""
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    NONE: ({}, ""),
    TAPSTER_MAC: ({"filter": True}, ""),
    TAPSTER: ({"filter": True, "addresses": ADDRESSES}, ""),
    INCUS: ({}, _INCUS),
    CNI: ({}, _CNI),
    NEUTRON: ({}, _NEUTRON),
}


class Counts(NamedTuple):
    """The kinds that a filter judges otherwise than the table of kinds."""

    forbidden: int
    """Forbidden kinds that arrive."""
    legitimate: int
    """Legitimate kinds that do not arrive."""
    learnt: int
    """1 if the bridge learns another guest's MAC from one of the frames."""


def measure(run: Run) -> Iterator[Table]:
    ways = {title: partial(_count, run, *way) for title, way in WAYS.items()}
    found = interleave(ways, 1 if run.small else run.rounds)
    forbidden = len([kind for kind in _bridged("") if not kind.passes[True]])
    legitimate = len([kind for kind in _bridged("") if kind.passes[True]])
    for key, title, unit in (
        (
            "forbidden",
            f"Forbidden kinds of frames that arrive, of {forbidden}",
            "kinds",
        ),
        (
            "legitimate",
            f"Legitimate kinds of frames that are dropped, of {legitimate}",
            "kinds",
        ),
        (
            "learnt",
            "MACs of others that the bridge learns from a guest's frames",
            "MACs",
        ),
    ):
        yield Table(
            f"filters-{key}",
            title,
            unit,
            [
                Row(way, [getattr(counts, key) for counts in rounds], NOTES[way])
                for way, rounds in found.items()
            ],
            goals=[Goal(TAPSTER, 0)],
            about="The frames that filter.md lists, sent through real taps.",
        )


def _bridged(mac: str) -> list[FrameKind]:
    """Return the kinds that a bridge forwards without a filter."""
    return [kind for kind in frame_kinds(mac or OTHER_MAC) if kind.bridged]


def _count(run: Run, wiring: dict[str, Any], rules: str) -> Counts:
    with world(run.program) as place:
        place.bridge("br0")
        with guests.lab(place.directory / "ledger.db") as lab:
            guest = lab.guest(**wiring)
            if rules:
                _apply(place.directory / "rules.nft", rules, guest)
            return _send_all(lab, guest)


def _apply(path: Path, rules: str, guest: Leased) -> None:
    """Set up the rules of another project for a guest's port."""
    text = rules.format(
        port=guest.opened.name,
        mac=guest.mac,
        raw_mac="0x" + guest.mac.replace(":", ""),
        ipv4=MINE4,
        ipv6=MINE6,
        raw_ipv6=f"{int(IPv6Address(MINE6)):#034x}",
    )
    path.write_text(text)
    subprocess.run(["nft", "--file", path], check=True)


def _send_all(lab: GuestBridge, guest: Leased) -> Counts:
    forbidden = legitimate = 0
    for kind in _bridged(guest.mac):
        guest.send(kind.frame, kind.request)
        # Where the host writes a checksum, the frame that arrives is another.
        arrived = lab.until_mark(lab.peer)
        passed = bool(arrived) if any(kind.request) else kind.frame in arrived
        forbidden += passed and not kind.passes[True]
        legitimate += kind.passes[True] and not passed
    learnt = OTHER_MAC in shell.sh("bridge fdb show br br0")
    return Counts(forbidden, legitimate, int(learnt))
