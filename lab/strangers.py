# SPDX-License-Identifier: Apache-2.0
"""Other programs on the real host, with the verbs of tapster.testing.Stranger.

They use plain system calls, so that the errno of each is seen.
"""

import fcntl
import os
import struct
from errno import ENODEV

from tapster.kernel import netns, rtnl
from tapster.kernel.port import LinkChange, NewMacvtap
from tapster.model import Mode

IFLA_PROP_LIST = 52
IFLA_ALT_IFNAME = 53
RTM_NEWLINKPROP = 108
RTM_DELLINKPROP = 109
VETH_INFO_PEER = 1

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
IFF_TAP_NO_PI = 0x1002
IFF_TUN_EXCL = 0x8000
IFF_MULTI_QUEUE = 0x0100
TUNGETIFF = 0x800454D2


def foreign_tap(name: str, *, persist: bool = False, flags: int = 0) -> int:
    """Make a tap as any other program does. Return its descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    request = struct.pack("16sH22x", name.encode(), IFF_TAP_NO_PI | flags)
    fcntl.ioctl(fd, TUNSETIFF, request)
    if persist:
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    return fd


class RealStranger:
    """Other programs in a namespace."""

    def __init__(self, path: str = netns.OWN) -> None:
        self._netns = netns.open_netns(path)
        with netns.inside(self._netns):
            self._rtnl = rtnl.Rtnl()

    def stop(self) -> None:
        """Close what was opened to be them."""
        self._rtnl.close()
        os.close(self._netns)

    # Making

    def add_bridge(
        self, name: str, *, mac: str | None = None, vlan_filtering: bool = False
    ) -> None:
        address = b"" if mac is None else _mac(mac)
        data = (
            rtnl.attribute(rtnl.IFLA_BR_VLAN_FILTERING, b"\1")
            if vlan_filtering
            else b""
        )
        self._new(_name(name) + address + _kind(b"bridge", data))
        self.set_by_name(name, up=True)

    def filter_vlans(self, name: str, on: bool) -> None:
        data = rtnl.attribute(rtnl.IFLA_BR_VLAN_FILTERING, bytes([on]))
        header = rtnl.ifinfo(self._named(name))
        kind = _kind(b"bridge", data)
        self._execute(rtnl.Message(rtnl.RTM_NEWLINK, 0, header + kind))

    def add_veth(self, name: str, peer: str) -> None:
        other = rtnl.nest(VETH_INFO_PEER, rtnl.ifinfo(0) + _name(peer))
        self._new(_name(name) + _kind(b"veth", other))
        for end in (name, peer):
            self.set_by_name(end, up=True)

    def add_tap(
        self, name: str, *, exclusive: bool = True, multi_queue: bool = False
    ) -> str:
        fd = self.open_tap(name, exclusive=exclusive, multi_queue=multi_queue)
        try:
            fcntl.ioctl(fd, TUNSETPERSIST, 1)
            answer = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
        finally:
            os.close(fd)
        return answer[:16].rstrip(b"\0").decode()

    def open_tap(
        self, name: str, *, exclusive: bool = False, multi_queue: bool = False
    ) -> int:
        flags = (
            IFF_TAP_NO_PI
            | (IFF_TUN_EXCL if exclusive else 0)
            | (IFF_MULTI_QUEUE if multi_queue else 0)
        )
        with netns.inside(self._netns):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            request = struct.pack("16sH22x", name.encode(), flags)
            fcntl.ioctl(fd, TUNSETIFF, request)
        except OSError:
            os.close(fd)
            raise
        return fd

    def close(self, handle: int) -> None:
        os.close(handle)

    def add_macvtap(
        self, name: str, lower: str, *, mode: Mode = Mode.VEPA, mac: str | None = None
    ) -> None:
        under = self._named(lower)
        self._execute(
            rtnl.macvtap_message(NewMacvtap(name, 0, lower=under, mode=mode, mac=mac))
        )

    # Changing

    def set_by_name(
        self,
        name: str,
        *,
        master: str | None = None,
        up: bool | None = None,
        alias: str | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        mode: Mode | None = None,
        group: int | None = None,
    ) -> None:
        ifindex = self._named(name)
        if group is not None:
            self._execute(rtnl.group_message(ifindex, group))
        to = None if master is None else self._named(master) if master else 0
        change = LinkChange(
            ifindex, mac=mac, mtu=mtu, mode=mode, alias=alias, master=to, up=up
        )
        for message in rtnl.set_messages(change):
            self._execute(message)

    def rename(self, name: str, to: str) -> None:
        header = rtnl.ifinfo(self._named(name))
        self._execute(rtnl.Message(rtnl.RTM_SETLINK, 0, header + _name(to)))

    def add_altname(self, name: str, altname: str) -> None:
        flags = rtnl.NLM_F_CREATE | rtnl.NLM_F_EXCL
        self._altname(RTM_NEWLINKPROP, flags, name, altname)

    def del_altname(self, name: str, altname: str) -> None:
        self._altname(RTM_DELLINKPROP, 0, name, altname)

    def delete_by_name(self, name: str) -> None:
        self.delete_by_ifindex(self._named(name))

    def delete_by_ifindex(self, ifindex: int) -> None:
        self._execute(rtnl.delete_message(ifindex))

    def _altname(self, verb: int, flags: int, name: str, altname: str) -> None:
        properties = rtnl.nest(
            IFLA_PROP_LIST, rtnl.attribute(IFLA_ALT_IFNAME, altname.encode() + b"\0")
        )
        header = rtnl.ifinfo(self._named(name))
        self._execute(rtnl.Message(verb, flags, header + properties))

    def _new(self, attributes: bytes) -> None:
        flags = rtnl.NLM_F_CREATE | rtnl.NLM_F_EXCL
        payload = rtnl.ifinfo(0) + attributes
        self._execute(rtnl.Message(rtnl.RTM_NEWLINK, flags, payload))

    def _execute(self, message: rtnl.Message) -> None:
        (error,) = self._rtnl.execute([message])
        if error is not None:
            raise error

    def _named(self, name: str) -> int:
        if ifindex := self._rtnl.find(name):
            return ifindex
        raise OSError(ENODEV, os.strerror(ENODEV))


def _name(name: str) -> bytes:
    return rtnl.attribute(rtnl.IFLA_IFNAME, name.encode() + b"\0")


def _mac(mac: str) -> bytes:
    return rtnl.attribute(rtnl.IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))


def _kind(kind: bytes, data: bytes = b"") -> bytes:
    nested = rtnl.nest(rtnl.IFLA_INFO_DATA, data) if data else b""
    name = rtnl.attribute(rtnl.IFLA_INFO_KIND, kind)
    return rtnl.nest(rtnl.IFLA_LINKINFO, name + nested)
