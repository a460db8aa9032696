# SPDX-License-Identifier: Apache-2.0
"""Devices as other programs see them: on the real host, through `ip`."""

from typing import Any, NamedTuple

from lab import iproute
from tapster.kernel.port import Vlans
from tapster.testing import FakeDevice
from tapster.testing.space import Space


class Shown(NamedTuple):
    """A device as others see it; what does not apply to its kind is empty."""

    ifindex: int
    name: str
    altnames: frozenset[str]
    kind: str
    mac: str
    mtu: int
    alias: str
    up: bool
    master: str
    isolated: bool
    learning: bool
    guards: tuple[bool, bool]
    """Of a bridge port: root_guard and bpdu_guard."""
    neighbours: frozenset[str]
    """The MACs that its bridge knows there for good."""
    vlans: Vlans | None
    group: str
    no_ipv6: bool
    carrier: bool | None
    """Of a tap alone: others follow their neighbours after a while."""
    persist: bool
    vnet_hdr: bool
    queues: int | None
    """Of a multi-queue tap alone."""
    mode: str | None
    lower: str


def in_memory(space: Space) -> dict[str, Shown]:
    """Return every device by name, in the memory of a FakeSystem."""
    return {device.name: _device(space, device) for device in space.devices.values()}


def by_ip(netns: str | None = None) -> dict[str, Shown]:
    """Return every device by name, as `ip -d -j link` shows it."""
    found = {name: _link(link) for name, link in iproute.links(netns).items()}
    for name, macs in iproute.neighbours(netns).items():
        found[name] = found[name]._replace(neighbours=frozenset(macs))
    for name, vlans in iproute.vlans(netns).items():
        if found[name].master:
            found[name] = found[name]._replace(vlans=vlans)
    return found


def _device(space: Space, device: FakeDevice) -> Shown:
    tap = device.kind == "tun"
    return Shown(
        ifindex=device.ifindex,
        name=device.name,
        altnames=frozenset(device.altnames),
        kind=device.kind,
        mac=device.mac,
        mtu=device.mtu,
        alias=device.alias,
        up=device.up,
        master=space.devices[device.master].name if device.master else "",
        isolated=device.isolated,
        learning=device.learning,
        guards=(device.root_guard, device.bpdu_guard),
        neighbours=device.neighbours,
        vlans=device.vlans,
        group=_group(str(device.group or "default")),
        no_ipv6=device.no_ipv6,
        carrier=space.carrier(device) if tap else None,
        persist=device.persist,
        vnet_hdr=device.vnet_hdr,
        queues=space.open_queues(device.ifindex) if device.multi_queue else None,
        mode=device.mode,
        lower=space.devices[device.lower].name if device.lower else "",
    )


def _link(link: dict[str, Any]) -> Shown:
    info = link.get("linkinfo", {})
    kind, data = info.get("info_kind", ""), info.get("info_data", {})
    tap, macvtap = kind == "tun", kind == "macvtap"
    port = info.get("info_slave_data", {})
    return Shown(
        ifindex=link["ifindex"],
        name=link["ifname"],
        altnames=frozenset(link.get("altnames", ())),
        kind=kind,
        mac=link["address"],
        mtu=link["mtu"],
        alias=link.get("ifalias", ""),
        up="UP" in link["flags"],
        master=link.get("master", ""),
        isolated=port.get("isolated", False),
        learning=port.get("learning", True) and port.get("flood", True),
        guards=(port.get("root_block", False), port.get("guard", False)),
        neighbours=frozenset(),
        vlans=None,
        group=_group(link["group"]),
        no_ipv6=link.get("inet6_addr_gen_mode") == "none",
        carrier="LOWER_UP" in link["flags"] if tap else None,
        persist=tap and data["persist"],
        vnet_hdr=tap and data["vnet_hdr"],
        queues=data["numqueues"] if tap and data["multi_queue"] else None,
        mode=data["mode"] if macvtap else None,
        lower=link["link"] if macvtap else "",
    )


def _group(group: str) -> str:
    """Return a group's number; one word for all those that are random."""
    return "random" if len(group) == 10 else group
