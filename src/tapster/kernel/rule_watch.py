# SPDX-License-Identifier: Apache-2.0
"""Reports of rules and bridge entries that are taken from a device.

The rules are those of nftables and traffic control. Rules that are added are not
reported: they change nothing of what Tapster has there, or the kernel refuses them. A
redirection is an exception, because another program may replace it. What this process
deletes itself in nftables is not reported either; the kernel says which thread made a
transaction.
"""

import os
import struct
from errno import EPROTONOSUPPORT

from tapster.kernel import rtnl, sockets
from tapster.kernel.ingress import RTM_NEWTFILTER, TC_H_CLSACT
from tapster.kernel.mirred import PREFERENCE
from tapster.kernel.nft import NETLINK_NETFILTER
from tapster.kernel.nft_rules import NFNL_SUBSYS_NFTABLES
from tapster.kernel.port import ALL, REDIRECTED, WatchReport
from tapster.kernel.watch import HIGH, NetlinkWatch
from tapster.light import Iterator, Sequence

PREFIX = b"tapster_"
"""How the names of our tables begin."""

# include/uapi/linux/rtnetlink.h
RTMGRP_TC = 1 << 3
DELETIONS_OF_TC = (RTM_DELQDISC, RTM_DELTCLASS, RTM_DELTFILTER) = 37, 41, 45
_TCMSG = struct.Struct("BxxxiIII")  # tcmsg: family, ifindex, handle, parent, info

# include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h
NFNLGRP_NFTABLES = 7
NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN = 0, 2, 3, 5
NFT_MSG_NEWRULE, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM = 6, 8, 11, 14
NFT_MSG_NEWGEN = 15
NAME, ELEMENTS, KEY, VALUE, PROCESS = 1, 3, 1, 1, 2
"""Types of attributes: the table's name, a message's elements, an element's key, the
bytes of a key, and the thread that made a transaction."""
_OF_TABLES = {
    *(NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN),
    *(NFT_MSG_NEWRULE, NFT_MSG_DELRULE, NFT_MSG_DELSET),
}
"""The messages that concern every device of a table. A rule may be added before ours,
and a table may be made dormant."""
_NFGENMSG = 4
_IFINDEX = struct.Struct("I")
_PID = struct.Struct(">I")


# include/uapi/linux/neighbour.h
RTMGRP_NEIGH, RTM_DELNEIGH = 1 << 2, 29
_NDMSG = struct.Struct("BxxxiHBB")  # ndmsg: family, ifindex, state, flags, type
_STICKY_ENTRIES = (
    (0x28, 0, 0, 4),  # load nlmsg_type, 16 bits, which comes in the wrong order
    (0x15, 0, 5, RTM_DELNEIGH << 8),
    (0x30, 0, 0, 26),  # load ndm_flags
    (0x45, 0, 3, rtnl.NTF_STICKY),
    (0x30, 0, 0, 23),  # load the highest byte of ndm_ifindex
    (0x45, 0, 1, HIGH >> 24),
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
    (0x06, 0, 0, 0),  # drop
)
"""Classic BPF: lets pass what `EntryWatch` reports. A bridge learns and forgets all
the time."""


def rule_watches(
    *, first: int, elsewhere: bool
) -> Sequence["TcWatch | EntryWatch | NftWatch"]:
    """Watch the rules and the bridge entries of devices with an ifindex from `first`.

    With `elsewhere`, watch the numbered namespaces and not this thread's own. The
    caller closes the watches. Raises PermissionError if that needs CAP_NET_BROADCAST.
    """
    watches: list[TcWatch | EntryWatch | NftWatch] = []
    try:
        watches.append(TcWatch(first, elsewhere=elsewhere))
        watches.append(EntryWatch(first, elsewhere=elsewhere))
        watches.append(NftWatch(first, elsewhere=elsewhere))
    except OSError as error:
        if error.errno != EPROTONOSUPPORT:  # this kernel has no nftables
            for watch in watches:
                watch.close()
            raise
    return watches


class TcWatch(NetlinkWatch):
    """Hears of qdiscs, classes and filters that are deleted or replaced."""

    def __init__(self, first: int, *, elsewhere: bool) -> None:
        super().__init__(rtnl.connect(RTMGRP_TC), first, elsewhere=elsewhere)

    def changes(self) -> WatchReport | None:
        reports = self.read()
        if reports is None:
            return None
        changed: dict[int, set[int]] = {}
        for number, type_, body in reports:
            if type_ not in (*DELETIONS_OF_TC, RTM_NEWTFILTER):
                continue
            _, ifindex, _, parent, info = _TCMSG.unpack_from(body)
            ours = ifindex >= self._first
            if (ours and type_ in DELETIONS_OF_TC) or (
                # With the qdisc every filter goes.
                parent == TC_H_CLSACT
                if type_ == RTM_DELQDISC
                else info >> 16 == PREFERENCE
            ):
                device = ifindex if ours else REDIRECTED
                changed.setdefault(number, set()).add(device)
        return WatchReport({}, set(), changed, {})


class EntryWatch(NetlinkWatch):
    """Hears of static, sticky entries that a bridge loses, as by `bridge fdb flush`.

    A port without learning gets no unicast frames without its entry.
    """

    def __init__(self, first: int, *, elsewhere: bool) -> None:
        opened = rtnl.connect(RTMGRP_NEIGH)
        super().__init__(opened, first, elsewhere=elsewhere, program=_STICKY_ENTRIES)

    def changes(self) -> WatchReport | None:
        reports = self.read()
        if reports is None:
            return None
        lost: dict[int, set[int]] = {}
        for number, type_, body in reports:
            if type_ == RTM_DELNEIGH:
                family, ifindex, _, flags, _ = _NDMSG.unpack_from(body)
                of_a_bridge = family == sockets.AF_BRIDGE
                if of_a_bridge and flags & rtnl.NTF_STICKY and ifindex >= self._first:
                    lost.setdefault(number, set()).add(ifindex)
        return WatchReport({}, set(), {}, lost)


class NftWatch(NetlinkWatch):
    """Hears of what another program changes in our tables."""

    def __init__(self, first: int, *, elsewhere: bool) -> None:
        opened = sockets.socket(
            sockets.AF_NETLINK,
            sockets.SOCK_RAW | sockets.SOCK_CLOEXEC,
            NETLINK_NETFILTER,
        )
        try:
            opened.bind((0, 1 << NFNLGRP_NFTABLES - 1))
        except OSError:
            opened.close()
            raise
        super().__init__(opened, first, elsewhere=elsewhere)
        self._pending: dict[int, set[int]] = {}
        """The devices that the present transaction of a namespace has changed."""

    def changes(self) -> WatchReport | None:
        reports = self.read()
        if reports is None:
            self._pending.clear()
            return None
        changed: dict[int, set[int]] = {}
        for number, type_, body in reports:
            subsystem, message = divmod(type_, 256)
            if subsystem != NFNL_SUBSYS_NFTABLES:
                continue
            # A transaction ends with this message (nf_tables_commit() in
            # net/netfilter/nf_tables_api.c).
            if message == NFT_MSG_NEWGEN:
                devices = self._pending.pop(number, None)
                if devices and not _is_ours(body):
                    changed.setdefault(number, set()).update(devices)
            else:
                devices = set(self._devices(message, body))
                if devices:
                    self._pending.setdefault(number, set()).update(devices)
        return WatchReport({}, set(), changed, {})

    def _devices(self, message: int, body: bytes) -> Iterator[int]:
        """Yield the devices that a message concerns."""
        if message not in _OF_TABLES and message != NFT_MSG_DELSETELEM:
            return
        attributes = rtnl.parse_attributes(body, _NFGENMSG)
        if not attributes.get(NAME, b"").startswith(PREFIX):
            return
        if message in _OF_TABLES:
            yield ALL
            return
        for _, element in rtnl.attributes(attributes.get(ELEMENTS, b"")):
            key = rtnl.parse_attributes(rtnl.parse_attributes(element).get(KEY, b""))
            # The key of each element begins with the ifindex.
            (ifindex,) = _IFINDEX.unpack_from(key.get(VALUE, bytes(_IFINDEX.size)))
            if ifindex >= self._first:
                yield ifindex


def _is_ours(body: bytes) -> bool:
    """Return whether a thread of this process made a transaction."""
    # The thread is named by its pid in the initial pid namespace. In another one the
    # answer is no, and the devices are looked at once more than necessary.
    raw = rtnl.parse_attributes(body, _NFGENMSG).get(PROCESS, bytes(_PID.size))
    (thread,) = _PID.unpack(raw)
    return os.path.exists(f"/proc/self/task/{thread}")
