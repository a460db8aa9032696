# SPDX-License-Identifier: Apache-2.0
"""Convert an interface of libvirt's to the options of a device of Tapster's. Pure."""

from collections.abc import Callable

from tapster.errors import RequestError
from tapster.libvirt.domain import DomainInterface

Resolve = Callable[[str], dict[str, str]]
"""Returns what a libvirt network is on, as attributes of a nic. Raises RequestError if
Tapster cannot connect a device to that network."""


def converted(
    interface: DomainInterface, uuid: str, resolve: Resolve
) -> tuple[dict[str, str], list[str]]:
    """Return the attributes of the nic, and the settings that they do not cover."""
    lost: list[str] = []
    attributes = _place(interface, uuid, resolve, lost)
    if interface.span.attributes.get("trustGuestRxFilters") == "yes":
        lost.append("trustGuestRxFilters, by which a guest changes its MAC itself")
    if group := interface.attribute("source", "portgroup"):
        lost.append(f"port group {group!r} of the network")
    if interface.attribute("port", "isolated") == "yes":
        attributes["isolated"] = "yes"
    _rates(interface, attributes, lost)
    _vlans(interface, attributes, lost)
    _filter(interface, attributes, lost)
    lost += [
        f"<{part}>, which libvirt allows only on its own devices"
        for part in ("coalesce", "script", "downscript", "backenddomain")
        if part in interface.parts
    ]
    if "link" in attributes:
        for option in set(attributes) & {
            "isolated",
            "vlan",
            "trunk",
            "filter",
            "address",
            "inbound",
            "outbound",
        }:
            lost.append(f"{option}, which a macvtap cannot have")
            del attributes[option]
    return attributes, lost


def _place(
    interface: DomainInterface, uuid: str, resolve: Resolve, lost: list[str]
) -> dict[str, str]:
    kind = interface.span.attributes.get("type", "")
    virtualport = interface.attribute("virtualport", "type")
    if kind == "bridge":
        bridge = interface.attribute("source", "bridge")
        if not bridge:
            raise RequestError("it names no bridge")
        place = {"bridge": bridge}
    elif kind == "network":
        place = dict(resolve(interface.attribute("source", "network") or ""))
    elif kind == "direct":
        mode = interface.attribute("source", "mode") or "vepa"
        lower = interface.attribute("source", "dev")
        if not lower:
            raise RequestError("it names no device")
        place = {
            "link": lower,
            "mode": "passthru" if mode == "passthrough" else mode,
        }
    else:
        raise RequestError(f"type {kind!r} needs no device of Tapster's")
    if virtualport == "openvswitch":
        switch = place.get("ovs") or place.get("bridge")
        if not switch:
            raise RequestError("a port of Open vSwitch is on a bridge, not on a device")
        place = {"ovs": switch}
        ids = {"attached-mac": interface.attribute("mac", "address"), "vm-id": uuid}
        for parameters in interface.within("virtualport"):
            ids["iface-id"] = parameters.attributes.get("interfaceid")
            ids["port-profile"] = parameters.attributes.get("profileid")
        given = {key: value for key, value in ids.items() if value}
        split = [key for key, value in given.items() if len(value.split()) != 1]
        lost += [f"{key} {given.pop(key)!r}, which has a space" for key in split]
        place["external-id"] = " ".join(f"{key}={given[key]}" for key in given)
    elif virtualport is not None:
        raise RequestError(f"virtualport {virtualport!r} is libvirt's own")
    return place


def _rates(
    interface: DomainInterface, attributes: dict[str, str], lost: list[str]
) -> None:
    for span in interface.within("bandwidth"):
        direction, given = span.path[-1], span.attributes
        if "floor" in given:
            lost.append("the guaranteed rate (floor)")
        if average := given.get("average"):
            numbers = [average, given.get("peak", ""), given.get("burst", "")]
            attributes[direction] = ":".join(numbers).rstrip(":")


def _vlans(
    interface: DomainInterface, attributes: dict[str, str], lost: list[str]
) -> None:
    trunk = interface.attribute("vlan", "trunk") == "yes"
    tags = interface.within("vlan")
    trunks = []
    for tag in tags:
        vlan, native = tag.attributes.get("id", ""), tag.attributes.get("nativeMode")
        if native == "tagged":
            lost.append(f"native VLAN {vlan} that stays tagged")
        elif native == "untagged" or not (trunk or len(tags) > 1):
            attributes["vlan"] = vlan
        else:
            trunks.append(vlan)
    if trunks:
        attributes["trunk"] = ",".join(trunks)


WITH_ADDRESSES = {
    "clean-traffic",
    "no-ip-spoofing",
    "no-arp-spoofing",
    "no-arp-ip-spoofing",
    "no-ipv6-spoofing",
}
MAC_ALONE = {
    "no-mac-spoofing",
    "no-arp-mac-spoofing",
    "no-mac-broadcast",
    "no-other-l2-traffic",
}


def _filter(
    interface: DomainInterface, attributes: dict[str, str], lost: list[str]
) -> None:
    name = interface.attribute("filterref", "filter")
    if name is None:
        return
    parameters = [span.attributes for span in interface.within("filterref")]
    addresses = [
        parameter.get("value", "")
        for parameter in parameters
        if parameter.get("name") in ("IP", "IPV6")
    ]
    if name in MAC_ALONE:
        attributes["filter"] = "yes"
    elif name in WITH_ADDRESSES and addresses:
        attributes["filter"] = "yes"
        attributes["address"] = ",".join(addresses)
    elif name in WITH_ADDRESSES:
        lost.append(f"filter {name} that learns the guest's address: give it IP")
    else:
        lost.append(f"filter {name}")
    lost += [
        f"filter parameter {parameter.get('name')}"
        for parameter in parameters
        if parameter.get("name") not in ("IP", "IPV6", "MAC")
    ]
