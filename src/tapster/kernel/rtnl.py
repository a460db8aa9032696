# SPDX-License-Identifier: Apache-2.0
"""Links over rtnetlink: the few messages that Tapster needs.

See rtnetlink(7) and include/uapi/linux/if_link.h. A message that changes a device
carries its ifindex and no name: if it has both, the kernel finds the device by the
ifindex, and ignores the name or renames the device. Only creation and renaming have a
name.
"""

import fcntl
import os
import struct
import sys
from errno import EAGAIN, EEXIST, ENOBUFS, ENODEV

from tapster.kernel import sockets
from tapster.kernel.port import LinkChange, NewMacvtap, Vlans
from tapster.light import Any, Collection, Iterator, NamedTuple, Sequence
from tapster.model import Link, Mode, parse_mac

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWNEIGH = 28
RTM_NEWNSID = 88
RTM_GETNSID = 90
RTM_GETNEIGH = 30

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_AF_SPEC = 26
IFLA_GROUP = 27
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
IFLA_NUM_TX_QUEUES = 31
IFLA_NUM_RX_QUEUES = 32
IFLA_CARRIER = 33
IFLA_LINK_NETNSID = 37
IFLA_ALT_IFNAME = 53
LONGEST_NAME = 15
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_KIND = 4
IFLA_INFO_SLAVE_DATA = 5
IFLA_BR_FORWARD_DELAY = 1
IFLA_BR_STP_STATE = 5
IFLA_BR_VLAN_FILTERING = 7
IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_NF_CALL_IP6TABLES = 36, 37
USER_HZ = 100
"""The unit of IFLA_BR_FORWARD_DELAY (clock_t)."""
IFLA_BRIDGE_VLAN_INFO = 2
BRIDGE_VLAN_INFO_PVID = 0x2
BRIDGE_VLAN_INFO_UNTAGGED = 0x4
BRIDGE_VLAN_INFO_RANGE_BEGIN = 0x8
BRIDGE_VLAN_INFO_RANGE_END = 0x10
IFLA_BRPORT_MODE = 4
"""Hairpin."""
IFLA_BRPORT_GUARD = 5
IFLA_BRPORT_STATE, FORWARDING = 1, b"\3"  # BR_STATE_FORWARDING
IFLA_BRPORT_PROTECT = 6
IFLA_BRPORT_LEARNING = 8
IFLA_BRPORT_UNICAST_FLOOD = 9
IFLA_BRPORT_PROXYARP = 10
IFLA_BRPORT_MCAST_FLOOD = 27
IFLA_BRPORT_BCAST_FLOOD = 30
IFLA_BRPORT_ISOLATED = 33
IFLA_BRPORT_LOCKED = 39
IFLA_MACVLAN_MODE = 1
IFLA_MACVLAN_BC_QUEUE_LEN_USED = 8
IFLA_TUN_OWNER = 1
IFLA_TUN_GROUP = 2
IFLA_TUN_PERSIST = 6
IFLA_TUN_NUM_QUEUES = 8
IFLA_TUN_NUM_DISABLED_QUEUES = 9
IFLA_INET_CONF = 1
IPV4_DEVCONF_RP_FILTER, IPV4_DEVCONF_ARP_IGNORE = 8, 19
STRICT, NO_ANSWER = 1, 8
"""As rp_filter and arp_ignore in Linux's Documentation/networking/ip-sysctl.rst."""
IFLA_INET6_CONF, DEVCONF_DISABLE_IPV6 = 2, 26
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1
SIOCGIFNAME = 0x8910
RTEXT_FILTER_SKIP_STATS = 8
RTEXT_FILTER_BRVLAN = 2
LAST_VLAN = 4094
NETNSA_NSID = 1
NETNSA_FD = 3
NETNSA_NSID_NOT_ASSIGNED = -1
NDA_LLADDR = 2
NDA_MASTER = 9
NTF_MASTER = 0x4
NTF_STICKY = 0x40
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
IFF_UP = 1
IFF_RUNNING = 0x40
IFF_LOWER_UP = 0x10000
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

MACVLAN_MODE = {Mode.PRIVATE: 1, Mode.VEPA: 2, Mode.BRIDGE: 4, Mode.PASSTHRU: 8}
_MODES = {number: mode for mode, number in MACVLAN_MODE.items()}

_HEADER = struct.Struct("IHHII")  # nlmsghdr: len, type, flags, seq, pid
IFINFO = struct.Struct("BxHiII")  # ifinfomsg: family, type, index, flags, change
_RTGENMSG = struct.Struct("Bxxx")  # rtgenmsg: family
_NDMSG = struct.Struct("BxxxiHBB")  # ndmsg: family, ifindex, state, flags, type
_ATTR = struct.Struct("HH")  # rtattr: len, type
_LENGTH, _TYPE = (0, 16) if sys.byteorder == "little" else (16, 0)  # their bits
_VLAN = struct.Struct("HH")  # bridge_vlan_info: flags, vid
_VLAN_INFO = struct.Struct("HHHH")  # the same as an attribute
_IFREQ = struct.Struct("16si20x")  # ifr_name, ifr_ifindex
_ENCODING = sys.getfilesystemencoding()
_U32 = struct.Struct("I")
_I32 = struct.Struct("i")
_NUMBER = struct.Struct("HHI")  # an attribute of 32 bits
_GET = struct.Struct("BxHiIIHHI")  # ifinfomsg, and one such attribute
_NO_STATS = (8, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)

_BUFFER = 1 << 18
"""The bytes of the largest answer. The kernel sends a dump in parts of 32 KiB."""

_DUMPS = 5

_SEQUENCES = (1 << 32) - 1
"""A sequence number has 32 bits (`struct nlmsghdr`). After the last comes 0."""

_BATCH = 64
"""Messages in one send: their acknowledgements must fit the receive buffer."""
_LOOKS = 16
"""Links that are asked for in one send: the answer for each takes 4 KiB of it."""


class Message(NamedTuple):
    """One request, without its sequence number."""

    type: int
    flags: int
    payload: bytes


class Rtnl:
    """A socket for requests, in the network namespace of the thread that made it."""

    def __init__(self, sequence: int = 0) -> None:
        """Open a socket. The first request has the number after `sequence`."""
        self._socket = connect()
        # Keep it: to allocate and free so much memory costs more than most answers.
        self._buffer = memoryview(bytearray(_BUFFER))
        self._sequence = sequence

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def execute(self, messages: Sequence[Message]) -> list[OSError | None]:
        """Execute requests in order, also if one fails. Return one result for each."""
        results: list[OSError | None] = []
        for start in range(0, len(messages), _BATCH):
            batch = messages[start : start + _BATCH]
            first = self._send(batch)
            answers: dict[int, OSError | None] = {}
            while len(answers) < len(batch):
                for type_, flags, sequence, body in self._receive():
                    place = (sequence - first) & _SEQUENCES
                    if type_ == NLMSG_ERROR and place < len(batch):
                        answers[place] = _error(type_, flags, body)
            results += [answers[place] for place in range(len(batch))]
        return results

    def get(self, ifindex: int) -> Link | None:
        """Return the link with this ifindex, or None."""
        body = self._get(_GET.pack(0, 0, ifindex, 0, 0, *_NO_STATS))
        return None if body is None else link_of(body)

    def get_some(self, ifindexes: Collection[int]) -> dict[int, Link]:
        """Return those of some links that exist, by ifindex."""
        found: dict[int, Link] = {}
        wanted = [*ifindexes]
        for start in range(0, len(wanted), _LOOKS):
            batch = [
                Message(RTM_GETLINK, 0, _GET.pack(0, 0, ifindex, 0, 0, *_NO_STATS))
                for ifindex in wanted[start : start + _LOOKS]
            ]
            first = self._send(batch)
            answered: set[int] = set()
            while len(answered) < len(batch):
                for kind, flags, sequence, body in self._receive():
                    place = (sequence - first) & _SEQUENCES
                    if place >= len(batch):
                        continue
                    answered.add(place)
                    if kind == RTM_NEWLINK:
                        link = link_of(body)
                        found[link.ifindex] = link
                    elif (error := _error(kind, flags, body)) and error.errno != ENODEV:
                        raise error
        return found

    def name(self, ifindex: int) -> str:
        """Return a link's name. Raises OSError (ENODEV)."""
        # In a bytearray: with bytes, ioctl() first raises an error inside.
        request = bytearray(_IFREQ.pack(b"", ifindex))
        fcntl.ioctl(self._socket, SIOCGIFNAME, request)
        return _text(_IFREQ.unpack(request)[0])

    def named(self, name: str) -> Link | None:
        """Return the link that has this name or altname, or None."""
        body = self._get_named(name)
        return None if body is None else link_of(body)

    def find(self, name: str) -> int:
        """Return the ifindex of the link that has this name or altname, or 0."""
        body = self._get_named(name)
        return 0 if body is None else int(IFINFO.unpack_from(body)[2])

    def _get_named(self, name: str) -> bytes | None:
        raw = os.fsencode(name)
        # A name that is longer can only be an alternative one.
        type_ = IFLA_IFNAME if len(raw) <= LONGEST_NAME else IFLA_ALT_IFNAME
        named = attribute(type_, raw + b"\0")
        return self._get(_GET.pack(0, 0, 0, 0, 0, *_NO_STATS) + named)

    def _get(self, wanted: bytes) -> bytes | None:
        answer = self._answer(Message(RTM_GETLINK, 0, wanted), RTM_NEWLINK)
        if isinstance(answer, OSError):
            if answer.errno == ENODEV:
                return None
            raise answer
        return answer

    def neighbours(self, ifindex: int) -> set[str]:
        """Return the static MACs of a bridge port, as `bridge fdb show dev` does.

        The port's own MAC, which is permanent, is not among them.
        """
        # The filter by ifindex is a bridge's own: rtnl_fdb_dump() in
        # net/core/rtnetlink.c takes it from ndm_ifindex.
        request = _NDMSG.pack(sockets.AF_BRIDGE, ifindex, 0, 0, 0)
        found = set()
        for body in self.list_bodies(RTM_GETNEIGH, request):
            _, at, state, flags, _ = _NDMSG.unpack_from(body)
            entry = parse_attributes(body, _NDMSG.size)
            known = state == NUD_NOARP and flags & NTF_STICKY and NDA_MASTER in entry
            if at == ifindex and known:
                found.add(entry[NDA_LLADDR].hex(":"))
        return found

    def static_entries(self, bridge: int) -> dict[str, set[int]]:
        """Return the ports for which a bridge has static entries, by MAC."""
        request = _NDMSG.pack(sockets.AF_BRIDGE, 0, 0, 0, 0)
        request += attribute_u32(NDA_MASTER, bridge)
        ports: dict[str, set[int]] = {}
        for body in self.list_bodies(RTM_GETNEIGH, request):
            _, port, state, _, _ = _NDMSG.unpack_from(body)
            if state & (NUD_NOARP | NUD_PERMANENT):
                entry = parse_attributes(body, _NDMSG.size)
                if NDA_MASTER in entry:
                    ports.setdefault(entry[NDA_LLADDR].hex(":"), set()).add(port)
        return ports

    def vlans(self, ifindex: int) -> Vlans | None:
        """Return the VLANs of a bridge port, as `bridge vlan show` does."""
        mask = attribute_u32(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN)
        # Only a dump contains VLANs. It contains every port of every bridge.
        request = ifinfo(0, family=sockets.AF_BRIDGE) + mask
        for body in self.list_bodies(RTM_GETLINK, request):
            if IFINFO.unpack_from(body)[2] == ifindex:
                port = parse_attributes(body, IFINFO.size)
                return _port_vlans(port.get(IFLA_AF_SPEC, b""))
        return None

    def nsid(self, netns: int) -> int:
        """Return the number by which this namespace knows that of a descriptor.

        Assign one if there is none. It keeps nothing open. When the namespace ends, its
        number may be given to another.
        """
        wanted = _RTGENMSG.pack(sockets.AF_UNSPEC) + attribute(
            NETNSA_FD, _U32.pack(netns)
        )
        if (known := self._nsid(wanted)) != NETNSA_NSID_NOT_ASSIGNED:
            return known
        any_ = attribute(NETNSA_NSID, _I32.pack(NETNSA_NSID_NOT_ASSIGNED))
        (error,) = self.execute([Message(RTM_NEWNSID, 0, wanted + any_)])
        if error is not None and error.errno != EEXIST:
            raise error
        return self._nsid(wanted)

    def _nsid(self, wanted: bytes) -> int:
        request = Message(RTM_GETNSID, 0, wanted)
        return nsid_of(self._only_answer(request, RTM_NEWNSID))

    def dump(self) -> list[Link]:
        """Return every link. Read the list again if it changed during the reading.

        If it changes each time, a link that came or went may be missing or too many.
        """
        return [link_of(body) for body in self._links()]

    def names(self) -> dict[str, int]:
        """Return the ifindex of every link, by its name."""
        return dict(map(_name_of, self._links()))

    def _links(self) -> list[bytes]:
        wanted = _GET.pack(0, 0, 0, 0, 0, *_NO_STATS)
        return self.list_bodies(RTM_GETLINK, wanted)

    def list_bodies(self, type_: int, wanted: bytes) -> list[bytes]:
        """List what the kernel has of a kind: the bodies of its messages.

        The list is read again while it changes, at most _DUMPS times.
        """
        for _ in range(_DUMPS):
            bodies, whole = self._dump(type_, wanted)
            if whole:
                break
        return bodies

    def _dump(self, type_: int, wanted: bytes) -> tuple[list[bytes], bool]:
        """Return all answers to a request, and whether nothing changed during it."""
        # Throw away the rest of a dump that failed: it would delay this one.
        drain(self._socket)
        bodies: list[bytes] = []
        whole = True
        sequence = self._send_one(Message(type_, NLM_F_DUMP, wanted))
        while True:
            for kind, flags, answered, body in self._receive():
                if answered != sequence:
                    continue
                if flags & NLM_F_DUMP_INTR:
                    whole = False
                if kind not in (NLMSG_DONE, NLMSG_ERROR):
                    bodies.append(body)
                elif error := _error(kind, flags, body):
                    raise error
                else:
                    return bodies, whole

    def _only_answer(self, request: Message, type_: int) -> bytes:
        """Send a request that one message of a type answers. Return its body."""
        answer = self._answer(request, type_)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _answer(self, request: Message, type_: int) -> bytes | OSError:
        """Send a request that one message of a type answers. Return its body, or the
        kernel's refusal.

        An exception that is raised here and caught above would form a cycle with the
        frames of the caller. Each acquire asks for a name that no link has.
        """
        sequence = self._send_one(request)
        while True:
            for kind, flags, answered, body in self._receive():
                if answered != sequence:
                    continue
                if kind == type_:
                    return body
                if kind == NLMSG_ERROR and (error := _error(kind, flags, body)):
                    return error

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Return an iterator over the messages of the next datagram.

        An earlier request may have failed before its answers were read. The caller
        skips them, by their sequence numbers.
        """
        length = self._socket.recv_into(self._buffer)
        return messages(bytes(self._buffer[:length]))

    def _send(self, messages: Sequence[Message]) -> int:
        """Send requests. Return the sequence number of the first."""
        first = (self._sequence + 1) & _SEQUENCES
        self._socket.send(b"".join(map(self._numbered, messages)))
        return first

    def _send_one(self, message: Message) -> int:
        """Send a request. Return its sequence number."""
        self._socket.send(self._numbered(message))
        return self._sequence

    def _numbered(self, message: Message) -> bytes:
        """Give a request the next sequence number; return it as the kernel takes it."""
        type_, flags, payload = message
        self._sequence = sequence = (self._sequence + 1) & _SEQUENCES
        flags |= NLM_F_REQUEST
        if type_ not in _ANSWERED and flags & NLM_F_DUMP != NLM_F_DUMP:
            flags |= NLM_F_ACK
        length = _HEADER.size + len(payload)
        return _HEADER.pack(length, type_, flags, sequence, 0) + payload


_ANSWERED = (RTM_GETLINK, RTM_GETNSID)
"""The requests that an answer acknowledges, unless they fail."""


def nsid_of(body: bytes) -> int:
    """Return the number of the namespace that a message is about."""
    (number,) = _I32.unpack(parse_attributes(body, _RTGENMSG.size)[NETNSA_NSID])
    return int(number)


def set_messages(change: LinkChange) -> list[Message]:
    """Return the requests that make one change."""
    attributes = b""
    if change.mac is not None:
        attributes += attribute(IFLA_ADDRESS, parse_mac(change.mac))
    if change.mtu is not None:
        attributes += attribute_u32(IFLA_MTU, change.mtu)
    if change.alias is not None:
        attributes += attribute(IFLA_IFALIAS, change.alias.encode())
    attributes += _TOLD[change.no_ipv4, change.no_ipv6]
    if change.master is not None:
        attributes += attribute_u32(IFLA_MASTER, change.master)
    flags = 0 if change.up is None else IFF_UP
    header = ifinfo(change.ifindex, IFF_UP if change.up else 0, flags)
    messages = []
    if attributes or flags:
        messages.append(Message(RTM_SETLINK, 0, header + attributes))
    if change.mode is not None:
        # As in `_port`: RTM_NEWLINK without NLM_F_CREATE changes a link.
        data = ifinfo(change.ifindex) + _macvtap_info(change.mode)
        messages.append(Message(RTM_NEWLINK, 0, data))
    port = b""
    if change.isolated is not None:
        port += attribute(IFLA_BRPORT_ISOLATED, bytes([change.isolated]))
    if change.learning is not None:
        port += attribute(IFLA_BRPORT_LEARNING, bytes([change.learning]))
        port += attribute(IFLA_BRPORT_UNICAST_FLOOD, bytes([change.learning]))
    if change.root_guard is not None:
        port += attribute(IFLA_BRPORT_PROTECT, bytes([change.root_guard]))
    if change.bpdu_guard is not None:
        port += attribute(IFLA_BRPORT_GUARD, bytes([change.bpdu_guard]))
    if port:
        messages.append(_port(change.ifindex, port))
    if change.vlans is not None:
        messages += _vlans(change.ifindex, change.vlans)
    return messages


def _told(no_ipv4: bool | None, no_ipv6: bool | None) -> bytes:
    """Return an attribute with what IPv4 and IPv6 are told about a device."""
    families = b""
    if no_ipv4 is not None:
        strict, no_answer = (STRICT, NO_ANSWER) if no_ipv4 else (0, 0)
        settings = attribute_u32(IPV4_DEVCONF_RP_FILTER, strict)
        settings += attribute_u32(IPV4_DEVCONF_ARP_IGNORE, no_answer)
        families += nest(sockets.AF_INET, nest(IFLA_INET_CONF, settings))
    if no_ipv6:
        mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
        families += nest(sockets.AF_INET6, mode)
    return nest(IFLA_AF_SPEC, families) if families else b""


def macvtap_message(device: NewMacvtap, into: int | None = None) -> Message:
    """Return the request that creates a macvtap, exclusively.

    `into` is a descriptor of the macvtap's namespace, if that is not the namespace of
    the lower device.
    """
    attributes = (
        attribute(IFLA_IFNAME, os.fsencode(device.name) + b"\0")
        + attribute(IFLA_LINK, _I32.pack(device.lower))
        + attribute_u32(IFLA_NUM_TX_QUEUES, device.queues)
        + attribute_u32(IFLA_NUM_RX_QUEUES, device.queues)
        + _macvtap_info(device.mode)
    )
    if device.mac is not None:
        attributes += attribute(IFLA_ADDRESS, parse_mac(device.mac))
    if device.mtu is not None:
        attributes += attribute_u32(IFLA_MTU, device.mtu)
    if into is not None:
        attributes += attribute_u32(IFLA_NET_NS_FD, into)
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Message(RTM_NEWLINK, flags, ifinfo(device.ifindex) + attributes)


def _macvtap_info(mode: Mode) -> bytes:
    data = attribute_u32(IFLA_MACVLAN_MODE, MACVLAN_MODE[mode])
    kind = attribute(IFLA_INFO_KIND, b"macvtap")
    return nest(IFLA_LINKINFO, kind + nest(IFLA_INFO_DATA, data))


def rename_message(ifindex: int, name: str) -> Message:
    """Return the request that gives a device another name."""
    named = attribute(IFLA_IFNAME, os.fsencode(name) + b"\0")
    return Message(RTM_SETLINK, 0, ifinfo(ifindex) + named)


def group_message(ifindex: int, group: int) -> Message:
    """Return the request that puts a device into a group."""
    return Message(RTM_SETLINK, 0, ifinfo(ifindex) + attribute_u32(IFLA_GROUP, group))


def delete_message(ifindex: int) -> Message:
    """Return the request that deletes one device."""
    return Message(RTM_DELLINK, 0, ifinfo(ifindex))


def delete_group_message(group: int) -> Message:
    """Return the request that deletes every device of a group."""
    return Message(RTM_DELLINK, 0, ifinfo(0) + attribute_u32(IFLA_GROUP, group))


def _port(ifindex: int, data: bytes) -> Message:
    # RTM_NEWLINK without NLM_F_CREATE changes a link. RTM_SETLINK would ignore
    # IFLA_INFO_SLAVE_DATA.
    info = attribute(IFLA_INFO_SLAVE_KIND, b"bridge") + nest(IFLA_INFO_SLAVE_DATA, data)
    return Message(RTM_NEWLINK, 0, ifinfo(ifindex) + nest(IFLA_LINKINFO, info))


def _vlans(ifindex: int, vlans: Vlans) -> list[Message]:
    """Return what `bridge vlan add` and `bridge vlan del` send, for all VLANs at once.

    To delete a VLAN that the port is not in is no error (`br_vlan_info()` in
    net/bridge/br_netlink.c). So the present VLANs need not be read first.
    """
    untagged = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED
    native = [] if vlans.native is None else [(untagged, vlans.native)]
    wanted = [*native, *((0, vlan) for vlan in vlans.tagged)]
    others = []
    first = 1
    for last in [*sorted(vlan for _, vlan in wanted), LAST_VLAN + 1]:
        if first < last - 1:
            others.append((BRIDGE_VLAN_INFO_RANGE_BEGIN, first))
            others.append((BRIDGE_VLAN_INFO_RANGE_END, last - 1))
        elif first == last - 1:
            others.append((0, first))
        first = last + 1
    return [
        Message(
            type_,
            0,
            ifinfo(ifindex, family=sockets.AF_BRIDGE)
            + nest(
                IFLA_AF_SPEC,
                b"".join(
                    attribute(IFLA_BRIDGE_VLAN_INFO, _VLAN.pack(*entry))
                    for entry in entries
                ),
            ),
        )
        for type_, entries in ((RTM_DELLINK, others), (RTM_SETLINK, wanted))
        if entries
    ]


def neighbour_message(ifindex: int, mac: str, *, replace: bool) -> Message:
    """Return the request that lets the bridge of a port know a MAC there.

    As `bridge fdb add MAC dev PORT master static sticky`, or `replace`. EEXIST: there
    is an entry, of whatever kind and port, and it is not to be replaced.
    """
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    marks = NTF_MASTER | NTF_STICKY
    header = _NDMSG.pack(sockets.AF_BRIDGE, ifindex, NUD_NOARP, marks, 0)
    return Message(RTM_NEWNEIGH, flags, header + attribute(NDA_LLADDR, parse_mac(mac)))


def connect(groups: int = 0) -> sockets.socket:
    """Open a socket. It also receives messages to these groups (rtnetlink(7))."""
    made = sockets.socket(
        sockets.AF_NETLINK,
        sockets.SOCK_RAW | sockets.SOCK_CLOEXEC,
        sockets.NETLINK_ROUTE,
    )
    try:
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            made.setsockopt(SOL_NETLINK, option, 1)
        made.bind((0, groups))
    except OSError:
        made.close()
        raise
    return made


def drain(opened: sockets.socket) -> None:
    """Discard all messages that wait to be read."""
    while True:
        try:
            opened.recv(1 << 16, sockets.MSG_DONTWAIT)
        except OSError as error:
            if error.errno == EAGAIN:
                return
            if error.errno != ENOBUFS:
                raise


def ifinfo(
    ifindex: int, flags: int = 0, change: int = 0, family: int = sockets.AF_UNSPEC
) -> bytes:
    return IFINFO.pack(family, 0, ifindex, flags, change)


def attribute(type_: int, value: bytes) -> bytes:
    padding = -len(value) % 4
    return _ATTR.pack(_ATTR.size + len(value), type_) + value + bytes(padding)


def attribute_u32(type_: int, value: int) -> bytes:
    """Return an attribute of 32 bits."""
    return _NUMBER.pack(_NUMBER.size, type_, value)


def nest(type_: int, attributes: bytes) -> bytes:
    return attribute(type_ | NLA_F_NESTED, attributes)


_TOLD = {
    (no_ipv4, no_ipv6): _told(no_ipv4, no_ipv6)
    for no_ipv4 in (None, False, True)
    for no_ipv6 in (None, False, True)
}


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the type, flags, sequence number and body of each message."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, type_, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield type_, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += length + 3 & ~3


def parse_attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the values of attributes, by type: the last one of each."""
    return dict(attributes(data, offset))


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the type and value of each attribute of a list, in which types may
    repeat."""
    while offset + _ATTR.size <= len(data):
        length, type_ = _ATTR.unpack_from(data, offset)
        if length < _ATTR.size:
            return
        yield type_ & NLA_TYPE_MASK, data[offset + _ATTR.size : offset + length]
        offset += length + 3 & ~3


_Path = tuple[int, ...]
"""Where a value of a link is: the types of the lists around it, and its own type."""
_INFO, _FAMILIES = (IFLA_LINKINFO,), (IFLA_AF_SPEC,)
_DATA, _PORT = (*_INFO, IFLA_INFO_DATA), (*_INFO, IFLA_INFO_SLAVE_DATA)
_IPV4, _IPV6 = (*_FAMILIES, sockets.AF_INET), (*_FAMILIES, sockets.AF_INET6)
_LISTS = frozenset((_INFO, _FAMILIES, _DATA, _PORT, _IPV4, _IPV6))
"""The lists inside a link's list of attributes that are read."""
_OWN: tuple[_Path, ...] = ((IFLA_IFNAME,), (IFLA_IFALIAS,), (IFLA_ADDRESS,))
"""The values in which links differ from each other."""
_SHARED: frozenset[_Path] = frozenset(
    (
        (IFLA_MTU,),
        (IFLA_MASTER,),
        (IFLA_CARRIER,),
        (*_INFO, IFLA_INFO_KIND),
        (*_INFO, IFLA_INFO_SLAVE_KIND),
        *(
            (*_DATA, type_)
            for type_ in (
                IFLA_TUN_OWNER,
                IFLA_TUN_GROUP,
                IFLA_TUN_PERSIST,
                IFLA_TUN_NUM_QUEUES,
                IFLA_TUN_NUM_DISABLED_QUEUES,
                IFLA_BR_FORWARD_DELAY,
                IFLA_BR_STP_STATE,
                IFLA_BR_VLAN_FILTERING,
                IFLA_BR_NF_CALL_IPTABLES,
                IFLA_BR_NF_CALL_IP6TABLES,
                IFLA_MACVLAN_MODE,
                IFLA_MACVLAN_BC_QUEUE_LEN_USED,
            )
        ),
        *(
            (*_PORT, type_)
            for type_ in (
                IFLA_BRPORT_STATE,
                IFLA_BRPORT_GUARD,
                IFLA_BRPORT_PROTECT,
                IFLA_BRPORT_LEARNING,
                IFLA_BRPORT_UNICAST_FLOOD,
                IFLA_BRPORT_ISOLATED,
                IFLA_BRPORT_BCAST_FLOOD,
                IFLA_BRPORT_MCAST_FLOOD,
                IFLA_BRPORT_PROXYARP,
                IFLA_BRPORT_MODE,
                IFLA_BRPORT_LOCKED,
            )
        ),
        (*_IPV4, IFLA_INET_CONF),
        (*_IPV6, IFLA_INET6_CONF),
        (*_IPV6, IFLA_INET6_ADDR_GEN_MODE),
    )
)
"""The values in which many links agree, such as the ports of a bridge."""


_MOST_LAYOUTS = 256
"""How many shapes of links to remember, and sets of values of a shape."""


def link_of(body: bytes) -> Link:
    # A link has more than a hundred attributes, and links are much alike. So all
    # headers are compared, in one call, with those of the last link that was as long
    # and whose first header was the same. If they are the same, the values are in the
    # same places. To look for them takes ten times as long.
    key = body[IFINFO.size : IFINFO.size + _ATTR.size], len(body)
    shape = _shapes.get(key)
    if shape is None or not shape.fits(body):
        shape = _Shape(body)
        if len(_shapes) == _MOST_LAYOUTS:
            _shapes.clear()
        _shapes[key] = shape
    return shape.link_of(body)


class _Shape:
    """The headers of all attributes of a link, and where its values are."""

    def __init__(self, body: bytes) -> None:
        headers: list[tuple[int, int]] = []
        places: dict[_Path, tuple[int, int]] = {}
        _walk_link(body, IFINFO.size, len(body), (), headers, places)
        self._headers = _at([(start, start + 4) for start, _ in headers], "I")
        self._words = tuple(word for _, word in headers)
        self._own = [places.get(path, (0, 0)) for path in _OWN]
        here = (IFLA_LINK_NETNSID,) not in places
        self._lower = places.get((IFLA_LINK,), (0, 0)) if here else (0, 0)
        shared = sorted(
            (place, path) for path, place in places.items() if path in _SHARED
        )
        self._shared = _at([place for place, _ in shared], "s")
        self._paths = [path for _, path in shared]
        self._rests: dict[tuple[bytes, ...], _Shared] = {}

    def fits(self, body: bytes) -> bool:
        """Return whether a link of the same length has the same headers."""
        return self._headers.unpack_from(body) == self._words

    def link_of(self, body: bytes) -> Link:
        """Return the link of a message that fits."""
        values = self._shared.unpack_from(body)
        rest = self._rests.get(values)
        if rest is None:
            rest = _shared_of(dict(zip(self._paths, values, strict=True)))
            if len(self._rests) == _MOST_LAYOUTS:
                self._rests.clear()
            self._rests[values] = rest
        (name, name_end), (alias, alias_end), (mac, mac_end) = self._own
        _, _, ifindex, flags, _ = IFINFO.unpack_from(body)
        link = Link(
            ifindex,
            _text(body[name:name_end]),
            rest.kind,
            _text(body[alias:alias_end]),
            body[mac:mac_end].hex(":"),
            rest.mtu,
            flags & IFF_UP != 0,
            rest.master,
            flags & IFF_LOWER_UP != 0,
            *rest.others,
        )
        # The port of a device without a carrier is stopped, too.
        if rest.stopped and flags & IFF_RUNNING:
            return link._replace(blocked=True)
        if rest.kind == "macvtap":
            start, end = self._lower
            return link._replace(lower=_number(body[start:end]))
        return link


_shapes: dict[tuple[bytes, int], _Shape] = {}


class _Shared(NamedTuple):
    """What many links have in common."""

    kind: str
    mtu: int
    master: int
    stopped: bool
    """Of a bridge port: the bridge lets no frames pass."""
    others: tuple[Any, ...]
    """The fields of a Link from `isolated` on."""


def _at(places: Sequence[tuple[int, int]], kind: str) -> struct.Struct:
    """Return the layout of some values, in rising order: words, or bytes."""
    format_, at = "=", 0
    for start, end in places:
        format_ += f"{start - at}x" + ("I" if kind == "I" else f"{end - start}s")
        at = end
    return struct.Struct(format_)


def _walk_link(
    body: bytes,
    start: int,
    end: int,
    within: _Path,
    headers: list[tuple[int, int]],
    places: dict[_Path, tuple[int, int]],
) -> None:
    """Find the headers of a list of attributes, and of the lists in it that are read:
    where each is, and its word. Find where the values are, too."""
    while start + _ATTR.size <= end:
        (word,) = _U32.unpack_from(body, start)
        headers.append((start, word))
        length = word >> _LENGTH & 0xFFFF
        if length < _ATTR.size:
            break
        path = (*within, word >> _TYPE & NLA_TYPE_MASK)
        value = start + _ATTR.size, min(start + length, end)
        places[path] = value
        if path in _LISTS:
            _walk_link(body, *value, path, headers, places)
        start += length + 3 & ~3


def _shared_of(found: dict[_Path, bytes]) -> _Shared:
    kind = found.get((*_INFO, IFLA_INFO_KIND), b"").rstrip(b"\0").decode()
    on = found.get((*_INFO, IFLA_INFO_SLAVE_KIND), b"").rstrip(b"\0")
    data = _list_of(found, _DATA)
    tap = data if kind == "tun" else {}
    bridge = data if kind == "bridge" else {}
    macvtap = data if kind == "macvtap" else {}
    port = _list_of(found, _PORT) if on == b"bridge" else {}
    gen_mode, ipv6_disabled = _ipv6(_list_of(found, _IPV6))
    link = Link(
        ifindex=0,
        name="",
        kind=kind,
        alias="",
        mac="",
        mtu=_number(found.get((IFLA_MTU,))),
        up=False,
        # No netlink message can remove a port of Open vSwitch. A device in a VRF is no
        # port: the host routes its packets by another table.
        master=0
        if on in (b"openvswitch", b"vrf")
        else _number(found.get((IFLA_MASTER,))),
        isolated=port.get(IFLA_BRPORT_ISOLATED) == b"\1",
        learning=port.get(IFLA_BRPORT_LEARNING) != b"\0",
        flood=port.get(IFLA_BRPORT_UNICAST_FLOOD) != b"\0",
        vlan_filtering=bridge.get(IFLA_BR_VLAN_FILTERING) == b"\1",
        port_delay=_port_delay(bridge),
        no_ipv6=ipv6_disabled or gen_mode == IN6_ADDR_GEN_MODE_NONE,
        ipv6_disabled=ipv6_disabled,
        # IFF_LOWER_UP needs a device that is up. IFLA_CARRIER does not: the kernel
        # sets a tap's carrier when a file is attached, and clears the carrier when
        # the last one is detached (tun_set_iff(), __tun_detach()). But others may
        # change the carrier; the kernel counts queues only of multi-queue taps.
        open=bool(tap) and (found.get((IFLA_CARRIER,)) == b"\1" or bool(_queues(tap))),
        tap_owner=_optional_number(tap.get(IFLA_TUN_OWNER)),
        tap_group=_optional_number(tap.get(IFLA_TUN_GROUP)),
        persistent=tap.get(IFLA_TUN_PERSIST) != b"\0",
        queues=_queues(tap),
        no_ipv4=_refuses_ipv4(found.get((*_IPV4, IFLA_INET_CONF), b"")),
        root_guard=port.get(IFLA_BRPORT_PROTECT) == b"\1",
        bpdu_guard=port.get(IFLA_BRPORT_GUARD) == b"\1",
        forwarding=port.get(IFLA_BRPORT_STATE) == FORWARDING,
        locked=port.get(IFLA_BRPORT_LOCKED) == b"\1",
        bcast_flood=port.get(IFLA_BRPORT_BCAST_FLOOD) != b"\0"
        and macvtap.get(IFLA_MACVLAN_BC_QUEUE_LEN_USED) != bytes(4),
        mode=_MODES.get(_number(macvtap.get(IFLA_MACVLAN_MODE))),
        calls_iptables=bridge.get(IFLA_BR_NF_CALL_IPTABLES) == b"\1",
        calls_ip6tables=bridge.get(IFLA_BR_NF_CALL_IP6TABLES) == b"\1",
        hairpin=port.get(IFLA_BRPORT_MODE) == b"\1",
        mcast_flood=port.get(IFLA_BRPORT_MCAST_FLOOD) != b"\0",
        proxy_arp=port.get(IFLA_BRPORT_PROXYARP) == b"\1",
    )
    first = Link._fields.index("isolated")
    stopped = port.get(IFLA_BRPORT_STATE, FORWARDING) != FORWARDING
    return _Shared(kind, link.mtu, link.master, stopped, link[first:])


def _list_of(found: dict[_Path, bytes], within: _Path) -> dict[int, bytes]:
    """Return the values of a list inside a link's list of attributes, by type."""
    return {path[-1]: value for path, value in found.items() if path[:-1] == within}


def _queues(tap: dict[int, bytes]) -> int | None:
    """Return how many files are attached; the kernel says so of multi-queue taps
    only."""
    if IFLA_TUN_NUM_QUEUES not in tap:
        return None
    disabled = _number(tap.get(IFLA_TUN_NUM_DISABLED_QUEUES))
    return _number(tap[IFLA_TUN_NUM_QUEUES]) + disabled


def _name_of(body: bytes) -> tuple[str, int]:
    """Return the name and the ifindex of a link."""
    _, _, ifindex, _, _ = IFINFO.unpack_from(body)
    start = IFINFO.size
    length, type_ = _ATTR.unpack_from(body, start)
    if type_ == IFLA_IFNAME:  # it comes first: rtnl_fill_ifinfo()
        name = body[start + _ATTR.size : start + length]
    else:
        name = parse_attributes(body, start)[IFLA_IFNAME]
    return _text(name), ifindex


def _port_delay(bridge: dict[int, bytes]) -> float:
    """Return the seconds until a new port of a bridge forwards frames."""
    if not _number(bridge.get(IFLA_BR_STP_STATE)):
        return 0.0
    # A port listens, and then learns, for this time each (br_make_forwarding()).
    return 2 * _number(bridge.get(IFLA_BR_FORWARD_DELAY)) / USER_HZ


def _refuses_ipv4(settings: bytes) -> bool:
    """Return whether the host's IPv4 is told to take nothing from a link.

    `settings` has the link's IPv4 settings in the kernel's order. Their numbers begin
    at 1.
    """
    found = [
        _U32.unpack_from(settings, 4 * (number - 1))[0]
        for number in (IPV4_DEVCONF_RP_FILTER, IPV4_DEVCONF_ARP_IGNORE)
        if len(settings) >= 4 * number
    ]
    return found in ([], [STRICT, NO_ANSWER])


def _ipv6(ipv6: dict[int, bytes]) -> tuple[int, bool]:
    """Return how the kernel makes a link's IPv6 address, and whether IPv6 is off."""
    if not ipv6:
        return IN6_ADDR_GEN_MODE_NONE, True
    (disabled,) = _I32.unpack_from(ipv6[IFLA_INET6_CONF], 4 * DEVCONF_DISABLE_IPV6)
    return ipv6[IFLA_INET6_ADDR_GEN_MODE][0], bool(disabled)


def _port_vlans(data: bytes) -> Vlans | None:
    # One attribute for each VLAN, and no others: br_fill_ifinfo().
    entries = [(flags, vlan) for _, _, flags, vlan in _VLAN_INFO.iter_unpack(data)]
    native = [vlan for flags, vlan in entries if flags & BRIDGE_VLAN_INFO_PVID]
    tagged = sorted(vlan for _, vlan in entries if vlan not in native)
    return Vlans(next(iter(native), None), tuple(tagged)) if entries else None


def _text(value: bytes) -> str:
    # As os.fsdecode(), which takes three times as long.
    return value.rstrip(b"\0").decode(_ENCODING, "surrogateescape")


def _number(value: bytes | None) -> int:
    return _U32.unpack(value)[0] if value else 0


def _optional_number(value: bytes | None) -> int | None:
    return _U32.unpack(value)[0] if value else None


def _error(type_: int, flags: int, body: bytes) -> OSError | None:
    """Return the error that an acknowledgement or the end of a dump reports, if any."""
    (code,) = _I32.unpack_from(body)
    if code == 0:
        return None
    text = os.strerror(-code)
    if type_ == NLMSG_ERROR and flags & NLM_F_ACK_TLVS:
        # With NETLINK_CAP_ACK only the header of the request is repeated.
        texts = parse_attributes(body, _I32.size + _HEADER.size)
        if reason := texts.get(NLMSGERR_ATTR_MSG):
            text = reason.rstrip(b"\0").decode(errors="replace")
    return OSError(-code, text)
