# SPDX-License-Identifier: Apache-2.0
"""Whether a legacy table of iptables drops what it does not accept.

nftables does not list these tables: they are the kernel's older ones
(iptables-legacy(8)). See include/uapi/linux/netfilter_ipv4/ip_tables.h and
netfilter_ipv6/ip6_tables.h.
"""

import socket
import struct

from tapster.kernel import libc
from tapster.light import NamedTuple

FILTER, FORWARD, DROP = b"filter", 2, -1
"""The table, the number of the hook, and the verdict -NF_DROP - 1."""
GET_INFO, GET_ENTRIES = 64, 65
_INFO = struct.Struct("32sI5I5III")  # name, valid_hooks, hook_entry, underflow, ...
_WANTED = struct.Struct("32sIxxxx")  # name, size, and padding before the entries
_VERDICT = struct.Struct("32xi")  # xt_standard_target


class _Family(NamedTuple):
    domain: int
    level: int
    tables: str
    """Which tables there are. To ask for another one would load its module."""
    target: int
    """Where an entry says where its target begins."""


FAMILIES = {
    "ip": _Family(socket.AF_INET, socket.IPPROTO_IP, "ip_tables_names", 88),
    "ip6": _Family(socket.AF_INET6, socket.IPPROTO_IPV6, "ip6_tables_names", 140),
}


def drops_forwarded(family: str) -> bool:
    """Return whether the policy of the chain FORWARD is to drop, in the namespace of
    the calling thread. Raises OSError."""
    how = FAMILIES[family]
    try:
        with open(f"/proc/thread-self/net/{how.tables}", "rb") as file:
            if FILTER not in file.read().split():
                return False
    except FileNotFoundError:  # the kernel has no such tables
        return False
    with socket.socket(how.domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as opened:
        asked = _INFO.pack(FILTER, *[0] * 13)
        info = _INFO.unpack(
            libc.getsockopt(opened.fileno(), how.level, GET_INFO, asked)
        )
        size, policy = info[-1], info[7 + FORWARD]
        asked = _WANTED.pack(FILTER, size) + bytes(size)
        entries = libc.getsockopt(opened.fileno(), how.level, GET_ENTRIES, asked)[
            _WANTED.size :
        ]
    (target,) = struct.unpack_from("H", entries, policy + how.target)
    (verdict,) = _VERDICT.unpack_from(entries, policy + target)
    return bool(verdict == DROP)
