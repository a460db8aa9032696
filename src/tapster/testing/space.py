# SPDX-License-Identifier: Apache-2.0
"""One network namespace in memory: its devices, and the kernel's rules for them.

The rules are those of net/core/dev.c, net/core/rtnetlink.c, net/bridge/br_if.c,
drivers/net/tun.c and drivers/net/macvlan.c, as far as Tapster meets them. If the kernel
would refuse a call, OSError is raised with the kernel's errno. Then nothing has
changed, except for the parts of a message before its failing part.

Devices are immutable. So copying a namespace copies only a few small dicts.
"""

import os
from errno import (
    E2BIG,
    EADDRINUSE,
    EBADFD,
    EBUSY,
    EEXIST,
    EINVAL,
    ELOOP,
    ENODEV,
    ENOENT,
    EOPNOTSUPP,
    ERANGE,
    EXFULL,
)

from tapster.kernel.port import LinkChange, NewMacvtap, Vlans
from tapster.light import Any, NamedTuple
from tapster.model import Mode

MAX_BYTES = 15
MAX_ALTNAME_BYTES = 127
SYSCTL_NAMES = ("all", "default")
"""Names that /proc/sys/net/ipv4/conf has already: the kernel refuses them late."""
MAX_PORTS = 1023
MAX_QUEUES = 256
MAX_MTU = 65535
MAX_TAP_MTU = 65521
MIN_IPV6_MTU = 1280
MIN_IPV4_MTU = 68
ETHERNET_MTU = 1500
NO_MAC = "00:00:00:00:00:00"


class FakeDevice(NamedTuple):
    """A network device. A field that does not apply to its kind keeps the default."""

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int = ETHERNET_MTU
    alias: str = ""
    up: bool = False
    master: int = 0
    isolated: bool = False
    learning: bool = True
    """False: the bridge does not learn from this port, nor flood to it."""
    root_guard: bool = False
    bpdu_guard: bool = False
    neighbours: frozenset[str] = frozenset()
    """The MACs for which its bridge has a permanent entry at this port."""
    vlan_filtering: bool = False
    vlans: Vlans | None = None
    """Of a bridge port: its VLANs."""
    group: int = 0
    no_ipv6: bool = False
    ipv6_disabled: bool = False
    no_ipv4: bool = False
    altnames: tuple[str, ...] = ()
    persist: bool = False
    multi_queue: bool = False
    vnet_hdr: bool = False
    uid: int | None = None
    gid: int | None = None
    lower: int = 0
    """Of a macvtap: the ifindex of its lower device."""
    mode: Mode | None = None
    lower_mac: str = ""
    """Of a passthru macvtap: the MAC that its lower device had, and gets back."""
    peer: int = 0
    """Of a veth: the ifindex of the other end."""
    fixed_mac: bool = False
    """The MAC was set: a bridge then keeps it, whichever ports join or leave."""
    fixed_mtu: bool = False
    """The MTU was set: a bridge then keeps it too."""


def check_length(name: str, most: int = MAX_BYTES) -> None:
    """Refuse a longer name, as the kernel does before it looks at the message."""
    if len(name.encode()) > most:
        raise refusal(ERANGE)


def cut(name: str) -> str:
    """Return the part of a name that fits an ifreq."""
    return name.encode()[:MAX_BYTES].decode()


def refusal(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Space:
    """A network namespace."""

    __slots__ = ("counter", "devices", "macs", "names", "queues", "watches")

    def __init__(self) -> None:
        self.devices: dict[int, FakeDevice] = {}
        self.names: dict[str, int] = {}
        """Names and altnames: they share one name space."""
        self.queues: dict[int, int] = {}
        """The device to which an open file is attached."""
        self.watches: dict[int, set[int]] = {}
        """The changed links that each watch has not reported yet."""
        self.counter = 1
        """The ifindex that the kernel tries next."""
        self.macs = 0
        self.register("lo", "", mac=NO_MAC, mtu=65536)

    def copy(self) -> "Space":
        twin = Space.__new__(Space)
        twin.devices = self.devices.copy()
        twin.names = self.names.copy()
        twin.queues = self.queues.copy()
        twin.watches = {watch: seen.copy() for watch, seen in self.watches.items()}
        twin.counter = self.counter
        twin.macs = self.macs
        return twin

    # Looking

    def find(self, name: str) -> FakeDevice | None:
        """Return the device that has `name` as name or altname."""
        return self.devices.get(self.names.get(name, 0))

    def get(self, ifindex: int) -> FakeDevice:
        if device := self.devices.get(ifindex):
            return device
        raise refusal(ENODEV)

    def open_queues(self, ifindex: int) -> int:
        """Return how many open files are attached to a device."""
        return sum(1 for attached in self.queues.values() if attached == ifindex)

    def carrier(self, device: FakeDevice) -> bool:
        """Return whether LOWER_UP is shown: of a tap, while somebody holds it open."""
        if not device.up:
            return False
        return device.kind != "tun" or self.open_queues(device.ifindex) > 0

    def ports(self, bridge: int) -> list[FakeDevice]:
        return [device for device in self.devices.values() if device.master == bridge]

    def macvtaps(self, lower: int) -> list[FakeDevice]:
        return [device for device in self.devices.values() if device.lower == lower]

    # Coming and going

    def register(
        self, name: str, kind: str, ifindex: int = 0, **more: Any
    ) -> FakeDevice:
        """Add a device under a name or a template; register_netdevice()."""
        name = self._free_name(name)
        if ifindex in self.devices:
            raise refusal(EBUSY)
        if not ifindex:
            while self.counter in self.devices:
                self.counter += 1
            ifindex = self.counter
            self.counter += 1
        if name in SYSCTL_NAMES:
            raise refusal(EINVAL)
        if "mac" not in more:
            self.macs += 1
            more["mac"] = "02:00:" + self.macs.to_bytes(4, "big").hex(":")
        device = FakeDevice(ifindex, name, kind, **more)
        self.names[name] = ifindex
        self._put(device)
        return device

    def add_macvtap(
        self, device: NewMacvtap, beneath: "Space | None" = None
    ) -> FakeDevice:
        """RTM_NEWLINK with NLM_F_EXCL; macvlan_common_newlink().

        If the lower device is in another namespace, no later change of it is followed.
        """
        name, ifindex, lower, mode, mac, mtu, _ = device
        check_length(name)
        if ifindex in self.devices if ifindex else name in self.names:
            raise refusal(EEXIST)
        if mtu is not None and not 68 <= mtu <= MAX_MTU:
            raise refusal(EINVAL)
        beneath = beneath or self
        under = beneath.get(lower)
        if under.lower:
            under = beneath.get(under.lower)
        if under.kind == "" or (mtu or 0) > under.mtu:
            raise refusal(EINVAL)
        beside = beneath.macvtaps(under.ifindex)
        if not beside and under.master:
            raise refusal(EBUSY)
        if any(device.mode is Mode.PASSTHRU for device in beside):
            raise refusal(EINVAL)
        given = {} if mac is None else {"mac": mac}
        if mode is Mode.PASSTHRU:
            if beside:
                raise refusal(EINVAL)
            given = {
                "mac": under.mac,
                "lower_mac": under.mac if beneath is self else "",
            }
        return self.register(
            name,
            "macvtap",
            ifindex,
            lower=under.ifindex if beneath is self else 0,
            mode=mode,
            mtu=mtu or under.mtu,
            **given,
        )

    def delete(self, ifindex: int) -> None:
        """RTM_DELLINK."""
        device = self.get(ifindex)
        if not device.kind:
            raise refusal(EOPNOTSUPP)
        self._remove(device)

    def delete_group(self, group: int) -> None:
        """RTM_DELLINK with IFLA_GROUP: all of a group, or none."""
        found = [member for member in self.devices.values() if member.group == group]
        if not found:
            raise refusal(ENODEV)
        if not all(member.kind for member in found):
            raise refusal(EOPNOTSUPP)
        for device in found:
            if device.ifindex in self.devices:
                self._remove(device)

    # Open files

    def attach(
        self,
        file: int,
        name: str,
        *,
        exclusive: bool,
        multi_queue: bool,
        vnet_hdr: bool,
        ifindex: int = 0,
    ) -> FakeDevice:
        """TUNSETIFF, with an earlier TUNSETIFINDEX: attach to a tap, or make it."""
        name = cut(name)
        tap = self.find(name)
        if tap is None:
            tap = self.register(
                name or "tap%d",
                "tun",
                ifindex,
                multi_queue=multi_queue,
                vnet_hdr=vnet_hdr,
            )
        elif exclusive:
            raise refusal(EBUSY)
        else:
            self._join(tap, multi_queue, vnet_hdr)
        self.queues[file] = tap.ifindex
        self._note(tap.ifindex)
        return tap

    def open_macvtap(self, file: int, ifindex: int) -> None:
        """Open the node of a macvtap."""
        device = self.devices.get(ifindex)
        if device is None or device.kind != "macvtap":
            raise refusal(ENOENT)
        if self.open_queues(ifindex) == MAX_QUEUES:
            raise refusal(EBUSY)
        self.queues[file] = ifindex

    def attached(self, file: int) -> FakeDevice:
        """Return the device behind an open file: TUNGETIFF."""
        if file not in self.queues:
            raise refusal(EBADFD)
        return self.devices[self.queues[file]]

    def detach(self, file: int) -> None:
        """Detach an open file from its device: the last close of the file."""
        device = self.devices[self.queues.pop(file)]
        if device.kind == "tun" and not self.open_queues(device.ifindex):
            self._note(device.ifindex)
            if not device.persist:
                self._remove(device)

    # Changing

    def edit(self, ifindex: int, **fields: Any) -> None:
        """Change properties that have no rules: owner of a tap, persistence, group."""
        self._put(self.get(ifindex)._replace(**fields))

    def change(self, change: LinkChange) -> None:
        """RTM_SETLINK, in the order of do_setlink()."""
        ifindex = change.ifindex
        if len((change.alias or "").encode()) > 255:
            raise refusal(ERANGE)
        had_ipv6 = has_ipv6(self.get(ifindex))
        if change.mac is not None:
            self._set_mac(self.get(ifindex), change.mac)
        if change.mtu is not None:
            self._set_mtu(self.get(ifindex), change.mtu)
        if change.mode is not None:
            self._set_mode(self.get(ifindex), change.mode)
        if change.alias is not None:
            self.edit(ifindex, alias=change.alias)
        if change.up is not None:
            self._set_up(self.get(ifindex), change.up)
        if change.master is not None:
            self._set_master(self.get(ifindex), change.master)
        if change.no_ipv6 and had_ipv6:
            self.edit(ifindex, no_ipv6=True)
        if change.no_ipv4 is not None:
            self.edit(ifindex, no_ipv4=change.no_ipv4)

    def disable_ipv6(self, ifindex: int, *, disabled: bool) -> None:
        """Write to /proc/sys/net/ipv6/conf. A device without IPv6 has no file there."""
        if has_ipv6(self.get(ifindex)):
            self.edit(ifindex, ipv6_disabled=disabled)

    def change_port(
        self,
        ifindex: int,
        *,
        isolated: bool | None,
        learning: bool | None,
        root_guard: bool | None,
        bpdu_guard: bool | None,
    ) -> None:
        """RTM_NEWLINK with IFLA_INFO_SLAVE_DATA."""
        port = self.get(ifindex)
        if not port.master:
            raise refusal(EOPNOTSUPP)
        self.edit(
            ifindex,
            isolated=port.isolated if isolated is None else isolated,
            learning=port.learning if learning is None else learning,
            root_guard=port.root_guard if root_guard is None else root_guard,
            bpdu_guard=port.bpdu_guard if bpdu_guard is None else bpdu_guard,
        )

    def set_vlans(self, ifindex: int, vlans: Vlans) -> None:
        """RTM_SETLINK and RTM_DELLINK with IFLA_BRIDGE_VLAN_INFO."""
        if not self.get(ifindex).master:
            raise refusal(EOPNOTSUPP)
        self.edit(ifindex, vlans=vlans)

    def add_neighbour(self, ifindex: int, mac: str) -> None:
        """RTM_NEWNEIGH to the bridge of a port."""
        port = self.get(ifindex)
        if not port.master:
            raise refusal(EOPNOTSUPP)
        others = [other for other in self.devices.values() if other.ifindex != ifindex]
        if any(
            other.master == port.master and mac in other.neighbours for other in others
        ):
            raise refusal(EEXIST)
        self.edit(ifindex, neighbours=port.neighbours | {mac})

    def rename(self, ifindex: int, name: str) -> None:
        check_length(name)
        device = self.get(ifindex)
        if name in ("", device.name):
            return
        name = self._free_name(name)
        if name in SYSCTL_NAMES and has_ipv6(device):
            raise refusal(EINVAL)
        del self.names[device.name]
        self.names[name] = ifindex
        self._put(device._replace(name=name))

    def add_altname(self, ifindex: int, name: str) -> None:
        device = self.get(ifindex)
        if name in self.names:
            raise refusal(EEXIST)
        self.names[name] = ifindex
        self._set_altnames(device, (*device.altnames, name))

    def del_altname(self, ifindex: int, name: str) -> None:
        device = self.get(ifindex)
        if name not in self.names:
            raise refusal(ENOENT)
        if name not in device.altnames:
            raise refusal(EINVAL)
        del self.names[name]
        rest = tuple(altname for altname in device.altnames if altname != name)
        self._set_altnames(device, rest)

    # Rules

    def _free_name(self, name: str) -> str:
        """Return the name that a device gets by a name or template:
        dev_get_valid_name()."""
        prefix, percent, rest = name.partition("%")
        if not percent:
            if not _valid(name):
                raise refusal(EINVAL)
            if name in self.names:
                raise refusal(EEXIST)
            return name
        if not rest.startswith("d") or "%" in rest:
            raise refusal(EINVAL)
        number = 0
        while (numbered := f"{prefix}{number}{rest[1:]}") in self.names:
            number += 1
        if not _valid(numbered):
            raise refusal(EINVAL)
        return numbered

    def _join(self, tap: FakeDevice, multi_queue: bool, vnet_hdr: bool) -> None:
        if tap.kind != "tun" or tap.multi_queue != multi_queue:
            raise refusal(EINVAL)
        queues = self.open_queues(tap.ifindex)
        if queues and not multi_queue:
            raise refusal(EBUSY)
        if queues == MAX_QUEUES:
            raise refusal(E2BIG)
        if not queues:
            # Without IFF_TUN_EXCL the kernel hands over a foreign tap, and changes its
            # flags.
            self._put(tap._replace(vnet_hdr=vnet_hdr))

    def _set_altnames(self, device: FakeDevice, altnames: tuple[str, ...]) -> None:
        # netdev_state_change() reports no device that is down.
        self.devices[device.ifindex] = device._replace(altnames=altnames)
        if device.up:
            self._note(device.ifindex)

    def _set_mac(self, device: FakeDevice, mac: str) -> None:
        fixed = device.kind == "bridge"
        if mac == device.mac:
            self._assign(device, mac=mac, fixed_mac=fixed)
            return
        if device.mode is Mode.PASSTHRU:
            self._set_mac(self.get(device.lower), mac)
            # The lower device has this MAC only until the macvtap goes.
            self.edit(device.ifindex, lower_mac=device.lower_mac)
            return
        if device.lower and self._mac_busy(device, mac):
            raise refusal(EADDRINUSE)
        self._assign(device, mac=mac, fixed_mac=fixed)
        self._follow_ports(device.master)

    def _set_mtu(self, device: FakeDevice, mtu: int) -> None:
        if mtu == device.mtu:
            return
        most = MAX_TAP_MTU if device.kind == "tun" else MAX_MTU
        if device.lower:
            most = self.get(device.lower).mtu
        if device.kind and not 68 <= mtu <= most:
            raise refusal(EINVAL)
        self._assign(device, mtu=mtu, fixed_mtu=device.kind == "bridge")
        self._follow_ports(device.master)

    def _set_mode(self, device: FakeDevice, mode: Mode) -> None:
        if device.mode is None:
            raise refusal(EOPNOTSUPP)
        if device.mode is not mode and Mode.PASSTHRU in (device.mode, mode):
            raise refusal(EINVAL)
        self.edit(device.ifindex, mode=mode)

    def _assign(self, device: FakeDevice, **fields: Any) -> None:
        """Give a device another MAC or MTU, which the macvtaps on it follow."""
        device = device._replace(**fields)
        self._put(device)
        for above in self.macvtaps(device.ifindex):
            follows = above._replace(mtu=min(above.mtu, device.mtu))
            if above.mode is Mode.PASSTHRU and "mac" in fields:
                follows = follows._replace(mac=device.mac, lower_mac=device.mac)
            if follows != above:
                self._put(follows)

    def _set_master(self, device: FakeDevice, master: int) -> None:
        if device.master == master:
            return
        if device.master:
            self._leave(device)
            device = self.get(device.ifindex)
        if not master:
            return
        bridge = self.devices.get(master)
        if bridge is None:
            raise refusal(EINVAL)
        if bridge.kind != "bridge":
            raise refusal(EOPNOTSUPP)
        if device.kind == "" or device.mac == NO_MAC:
            raise refusal(EINVAL)
        if device.kind == "bridge":
            raise refusal(ELOOP)
        if len(self.ports(master)) >= MAX_PORTS:
            raise refusal(EXFULL)
        if device.kind == "macvtap" or self.macvtaps(device.ifindex):
            raise refusal(EBUSY)
        vlans = Vlans(1, ()) if bridge.vlan_filtering else None
        self._put(device._replace(master=master, vlans=vlans))
        self._follow_ports(master)

    def _set_up(self, device: FakeDevice, up: bool) -> None:
        shares = device.lower and device.mode is not Mode.PASSTHRU
        if up and not device.up and shares and self._mac_busy(device, device.mac):
            raise refusal(EADDRINUSE)
        self._put(device._replace(up=up))

    def _mac_busy(self, macvtap: FakeDevice, mac: str) -> bool:
        """Return whether the lower device or another macvtap that is up has the MAC."""
        return self.get(macvtap.lower).mac == mac or any(
            other.mac == mac and other.up and other.ifindex != macvtap.ifindex
            for other in self.macvtaps(macvtap.lower)
        )

    def _leave(self, port: FakeDevice) -> None:
        self._put(_alone(port))
        self._follow_ports(port.master)

    def _follow_ports(self, ifindex: int) -> None:
        """Give a bridge the lowest MAC and MTU of its ports, unless they were set."""
        bridge = self.devices.get(ifindex)
        if bridge is None:
            return
        ports = self.ports(ifindex)
        if not bridge.fixed_mac:
            mac = min((port.mac for port in ports), default=NO_MAC)
            if mac != bridge.mac:
                self._assign(bridge, mac=mac)
        if not bridge.fixed_mtu:
            mtu = min((port.mtu for port in ports), default=ETHERNET_MTU)
            if mtu != bridge.mtu:
                self._assign(self.get(ifindex), mtu=mtu)

    def _remove(self, device: FakeDevice) -> None:
        ifindex = device.ifindex
        del self.devices[ifindex]
        for name in (device.name, *device.altnames):
            del self.names[name]
        for file in [f for f, attached in self.queues.items() if attached == ifindex]:
            del self.queues[file]
        self._note(ifindex)
        self._follow_ports(device.master)
        if device.kind == "bridge":
            for port in self.ports(ifindex):
                self._put(_alone(port))
        for above in self.macvtaps(ifindex):
            self._remove(above)
        if device.lower_mac and (under := self.devices.get(device.lower)):
            self._set_mac(under, device.lower_mac)
        if peer := self.devices.get(device.peer):
            self._remove(peer)

    def _put(self, device: FakeDevice) -> None:
        if not has_ipv6(device):
            device = device._replace(no_ipv6=False, ipv6_disabled=False)
        if device.no_ipv4 and device.mtu < MIN_IPV4_MTU:
            device = device._replace(no_ipv4=False)
        self.devices[device.ifindex] = device
        self._note(device.ifindex)

    def _note(self, ifindex: int) -> None:
        for seen in self.watches.values():
            seen.add(ifindex)


def _alone(port: FakeDevice) -> FakeDevice:
    """Return a device without the properties that it had as a bridge port."""
    return port._replace(
        master=0,
        isolated=False,
        learning=True,
        root_guard=False,
        bpdu_guard=False,
        neighbours=frozenset(),
        vlans=None,
    )


def has_ipv6(device: FakeDevice) -> bool:
    """Return whether a device has IPv6, which can be switched off."""
    return device.mtu >= MIN_IPV6_MTU or not device.kind


def _valid(name: str) -> bool:
    """Return whether the kernel's dev_valid_name() accepts a name."""
    return (
        0 < len(name.encode()) <= MAX_BYTES
        and name not in {".", ".."}
        and not any(mark in "/:" or mark.isspace() for mark in name)
    )
