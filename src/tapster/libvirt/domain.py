# SPDX-License-Identifier: Apache-2.0
"""Convert a domain's interfaces to devices that Tapster makes, and back. Pure.

An adopted interface is of type ethernet with an unmanaged target: libvirt then opens
the device of that name and neither creates, connects nor deletes it. The domain's
metadata says what the device is connected to. libvirt keeps the metadata unchanged and
gives it to its hooks:

    <metadata>
      <tapster:nics xmlns:tapster="urn:tapster:libvirt:1">
        <tapster:nic dev="tv1b2c3d4e-0" bridge="br0">
          <tapster:was>...the interface element before...</tapster:was>
        </tapster:nic>
      </tapster:nics>
    </metadata>

The attributes of a nic are the options of "tapster add". libvirt documents the elements
in formatdomain, "Network interfaces".
"""

from collections.abc import Callable

from tapster.errors import RequestError
from tapster.libvirt.spans import (
    Span,
    children,
    indent,
    replaced,
    spans,
    with_line,
)
from tapster.light import NamedTuple

NAMESPACE = "urn:tapster:libvirt:1"
NIC = f"{NAMESPACE} nic"
NICS = f"{NAMESPACE} nics"
WAS = f"{NAMESPACE} was"
INTERFACE = ("domain", "devices", "interface")

PLACES = {"bridge", "ovs", "link", "redirect"}
"""The attributes of a nic that say what its device is on."""

Resolve = Callable[[str], dict[str, str]]
"""Returns what a libvirt network is on, as attributes of a nic. Raises RequestError if
Tapster cannot connect a device to that network."""


WITH_VNET_HDR = ("virtio", "e1000e", "igb", "vmxnet3")
"""The models for which libvirt opens a tap with the virtio header."""


class Nic(NamedTuple):
    """One line of the metadata: a device and what it is connected to."""

    dev: str
    attributes: dict[str, str]
    """Options of `tapster add` without their dashes."""
    was: str | None = None
    """The interface element before it was adopted."""


class Conversion(NamedTuple):
    """A domain after a conversion."""

    xml: bytes
    nics: tuple[Nic, ...]
    lost: tuple[str, ...]
    """The settings of the domain that Tapster does not support, as text."""
    left: tuple[str, ...]
    """The interfaces that stay as they are, and why."""


class Interface(NamedTuple):
    """An interface of the domain, with the elements in it."""

    span: Span
    parts: dict[str, Span]
    inside: list[Span]

    def attribute(self, part: str, name: str) -> str | None:
        span = self.parts.get(part)
        return span.attributes.get(name) if span else None

    def within(self, part: str) -> list[Span]:
        return children(self.inside, self.parts[part]) if part in self.parts else []


def nics_of(xml: bytes) -> list[Nic]:
    """Return the devices that a domain's metadata requests from Tapster."""
    if NAMESPACE.encode() not in xml:
        return []
    elements = spans(xml)
    found = []
    for span in elements:
        if span.path[-1] == NIC:
            attributes = dict(span.attributes)
            dev = attributes.pop("dev", "")
            if not dev:
                raise RequestError("a tapster:nic of the metadata has no dev")
            inside = children(elements, span)
            was = [child.text for child in inside if child.path[-1] == WAS]
            found.append(Nic(dev, attributes, was[0] if was else None))
    return found


def requests_of(xml: bytes) -> list[Nic]:
    """Return the devices that a domain needs before it starts.

    The interface adds the MAC, the queues, the MTU, and whether the model knows the
    virtio header, unless the metadata has them. Raises RequestError if no interface
    opens a device, or two do.
    """
    elements = spans(xml)
    opened: dict[str, Interface] = {}
    for span in elements:
        if span.path == INTERFACE:
            interface = _interface(elements, span)
            dev = interface.attribute("target", "dev")
            if dev in opened:
                raise RequestError(f"two interfaces of the domain open device {dev!r}")
            if dev and interface.attribute("target", "managed") == "no":
                opened[dev] = interface
    requests = []
    for nic in nics_of(xml):
        if nic.dev not in opened:
            raise RequestError(
                f"the metadata has device {nic.dev!r}, and no interface of the domain "
                f"opens it: it needs <target dev={nic.dev!r} managed='no'/>; if this "
                "domain is a clone: tapster libvirt adopt"
            )
        interface = opened[nic.dev]
        properties = _properties(interface, linked="link" in nic.attributes)
        requests.append(nic._replace(attributes=properties | nic.attributes))
    return requests


def uuid_of(xml: bytes) -> str:
    """Return the domain's UUID, which is the owner of its leases under any name."""
    return _text(xml, "uuid")


def name_of(xml: bytes) -> str:
    return _text(xml, "name")


class Target(NamedTuple):
    """An interface of a domain, by the device that it opens."""

    dev: str
    managed: bool
    """libvirt makes and deletes the device."""
    parts: frozenset[str]
    """The names of the elements in it."""
    start: int
    """Of its first byte in the XML."""
    end: int


def interfaces(xml: bytes) -> list[Target]:
    """The interfaces of a domain that name a device."""
    elements = spans(xml)
    found = []
    for span in elements:
        if span.path == INTERFACE:
            interface = _interface(elements, span)
            if dev := interface.attribute("target", "dev"):
                managed = interface.attribute("target", "managed") != "no"
                parts = frozenset(interface.parts)
                found.append(Target(dev, managed, parts, span.start, span.end))
    return found


def adopt(xml: bytes, resolve: Resolve) -> Conversion:
    """Let Tapster make the devices of a domain's interfaces.

    A domain that is the clone of an adopted one gets devices of its own.
    `xml` is the inactive definition. Raises RequestError if it is no domain.
    """
    uuid = _text(xml, "uuid")
    xml = _without_clones(_with_devices(xml), uuid)
    elements = spans(xml)
    known = nics_of(xml)
    taken = {nic.dev for nic in known}
    nics: list[Nic] = []
    lost: list[str] = []
    left: list[str] = []
    changes: list[tuple[int, int, bytes]] = []
    for span in elements:
        if span.path != INTERFACE:
            continue
        interface = _interface(elements, span)
        mac = interface.attribute("mac", "address") or "without MAC"
        if interface.attribute("target", "dev") in taken:
            left.append(f"{mac}: adopted already")
            continue
        try:
            attributes, not_given = _converted(interface, uuid, resolve)
        except RequestError as error:
            left.append(f"{mac}: {error}")
            continue
        dev = free_name(uuid, taken)
        taken.add(dev)
        lost += [f"{mac}: {what}" for what in not_given]
        was = xml[span.start : span.end].decode()
        nics.append(Nic(dev, attributes, was))
        changes.append((span.start, span.end, _adopted(xml, interface, dev)))
    if nics:
        changes.append(_metadata(xml, elements, [*known, *nics]))
    return Conversion(replaced(xml, changes), tuple(nics), tuple(lost), tuple(left))


def release(
    xml: bytes, *, chosen: Callable[[str], bool] = lambda _: True
) -> Conversion:
    """Restore every interface that was adopted, byte for byte.

    Only those whose device is `chosen`, by its name.
    """
    elements = spans(xml)
    nics = {nic.dev: nic for nic in nics_of(xml)}
    changes: list[tuple[int, int, bytes]] = []
    released: list[Nic] = []
    left: list[str] = []
    for span in elements:
        if span.path != INTERFACE:
            continue
        dev = _interface(elements, span).attribute("target", "dev")
        nic = nics.pop(dev, None) if dev else None
        if nic is None:
            continue
        if not chosen(nic.dev):
            nics[nic.dev] = nic
            continue
        if nic.was is None:
            left.append(f"{nic.dev}: written by hand, so there is no earlier element")
            nics[nic.dev] = nic
            continue
        changes.append((span.start, span.end, nic.was.encode()))
        released.append(nic)
    left += [
        f"{dev}: no interface has this device"
        for dev, nic in nics.items()
        if nic.was is not None and chosen(nic.dev)
    ]
    kept = [nic for nic in nics.values() if nic.was is None or not chosen(nic.dev)]
    if any(span.path[-1] == NICS for span in elements):
        changes.append(_metadata(xml, elements, kept))
    return Conversion(replaced(xml, changes), tuple(released), (), tuple(left))


def _text(xml: bytes, name: str) -> str:
    for span in spans(xml):
        if span.path == ("domain", name) and span.text.strip():
            return span.text.strip()
    raise RequestError(f"the XML is no definition of a domain: it has no <{name}>")


def _interface(elements: list[Span], span: Span) -> Interface:
    inside = [child for child in elements if span.start < child.start < span.end]
    return Interface(
        span, {child.path[-1]: child for child in children(elements, span)}, inside
    )


def free_name(uuid: str, taken: set[str]) -> str:
    """Return a free name from the domain's UUID. So a name in the live XML belongs to
    one domain, and two domains never request the same name."""
    number = 0
    while (name := f"{_prefix(uuid)}{number}") in taken:
        number += 1
    return name


def _prefix(uuid: str) -> str:
    return f"tv{uuid.replace('-', '')[:8]}-"


def _with_devices(xml: bytes) -> bytes:
    """Name the device of each interface whose device has lost its name.

    virt-clone removes the name. The metadata has the former interface element. The
    address on the guest's bus tells which element belongs to which interface.
    """
    elements = spans(xml)
    adopted = {
        _address(spans(nic.was.encode())): nic.dev for nic in nics_of(xml) if nic.was
    }
    adopted.pop(frozenset(), None)  # an element without an address fits any interface
    changes = []
    for span in elements:
        if span.path != INTERFACE:
            continue
        interface = _interface(elements, span)
        target = interface.parts.get("target")
        dev = adopted.get(_address(interface.inside))
        if dev and target and target.attributes == {"managed": "no"}:
            changes.append((target.start, target.end, _target(dev)))
    return replaced(xml, changes)


def _address(inside: list[Span]) -> frozenset[tuple[str, str]]:
    """Return the address of an interface on the guest's bus."""
    return frozenset(
        item
        for span in inside
        if span.path[-1] == "address"
        for item in span.attributes.items()
    )


def _without_clones(xml: bytes, uuid: str) -> bytes:
    """Put back the interfaces that were adopted under another UUID.

    A clone has the devices of its original in its XML. The clone keeps its own MACs.
    """
    shape = len(_prefix(uuid))
    opened = {interface.dev for interface in interfaces(xml)}

    def cloned(dev: str) -> bool:
        other = dev[:2] == "tv" and dev[shape - 1 : shape] == "-"
        return other and not dev.startswith(_prefix(uuid)) and dev in opened

    if not any(nic.was and cloned(nic.dev) for nic in nics_of(xml)):
        return xml
    macs = [mac for _, mac in _macs(xml)]
    released = release(xml, chosen=cloned).xml
    changes = [
        (span.start, span.end, mac)
        for (span, now), mac in zip(_macs(released), macs, strict=True)
        if now != mac
    ]
    return replaced(released, changes)


def _macs(xml: bytes) -> list[tuple[Span, bytes]]:
    """Return the MAC elements of a domain's interfaces, in their order."""
    return [
        (span, xml[span.start : span.end])
        for span in spans(xml)
        if span.path == (*INTERFACE, "mac")
    ]


# From an interface to the attributes of a nic


def _converted(
    interface: Interface, uuid: str, resolve: Resolve
) -> tuple[dict[str, str], list[str]]:
    """Return the attributes of the nic, and the settings that they do not cover."""
    attributes = _place(interface, uuid, resolve)
    lost: list[str] = []
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


def _properties(interface: Interface, *, linked: bool) -> dict[str, str]:
    """Return the attributes that the guest's part of the interface determines."""
    attributes = {}
    if mac := interface.attribute("mac", "address"):
        attributes["mac"] = mac
    if mtu := interface.attribute("mtu", "size"):
        attributes["mtu"] = mtu
    if queues := interface.attribute("driver", "queues"):
        attributes["queues"] = queues
    model = interface.attribute("model", "type") or ""
    if not linked and not model.startswith(WITH_VNET_HDR):
        attributes["vnet-hdr"] = "no"
    return attributes


def _place(interface: Interface, uuid: str, resolve: Resolve) -> dict[str, str]:
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
        place = {
            "link": interface.attribute("source", "dev") or "",
            "mode": "passthru" if mode == "passthrough" else mode,
        }
    else:
        raise RequestError(f"type {kind!r} needs no device of Tapster's")
    if virtualport == "openvswitch":
        place = {"ovs": place.get("ovs") or place["bridge"]}
        ids = {"attached-mac": interface.attribute("mac", "address"), "vm-id": uuid}
        for parameters in interface.within("virtualport"):
            ids["iface-id"] = parameters.attributes.get("interfaceid")
            ids["port-profile"] = parameters.attributes.get("profileid")
        place["external-id"] = " ".join(
            f"{key}={value}" for key, value in ids.items() if value
        )
    elif virtualport is not None:
        raise RequestError(f"virtualport {virtualport!r} is libvirt's own")
    return place


def _rates(interface: Interface, attributes: dict[str, str], lost: list[str]) -> None:
    for span in interface.within("bandwidth"):
        direction, given = span.path[-1], span.attributes
        if "floor" in given:
            lost.append("the guaranteed rate (floor)")
        if average := given.get("average"):
            numbers = [average, given.get("peak", ""), given.get("burst", "")]
            attributes[direction] = ":".join(numbers).rstrip(":")


def _vlans(interface: Interface, attributes: dict[str, str], lost: list[str]) -> None:
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


def _filter(interface: Interface, attributes: dict[str, str], lost: list[str]) -> None:
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


# From a nic to the XML

REPLACED = (
    "source",
    "virtualport",
    "bandwidth",
    "vlan",
    "filterref",
    "port",
    "coalesce",
    "script",
    "downscript",
    "backenddomain",
    "target",
)


def _target(dev: str) -> bytes:
    """Return the element that lets libvirt open a device and not make it."""
    from xml.sax.saxutils import quoteattr  # slow to import: not in the hook

    return f"<target dev={quoteattr(dev)} managed='no'/>".encode()


def _adopted(xml: bytes, interface: Interface, dev: str) -> bytes:
    """Return the interface element of an adopted device."""
    span = interface.span
    cuts = [
        with_line(xml, part.start, part.end)
        for name, part in interface.parts.items()
        if name in REPLACED
    ]
    first = min((part.start for part in interface.parts.values()), default=span.inner)
    margin = indent(xml, first)
    head = b"<interface type='ethernet'>"
    body = replaced(xml[: span.end], [(a, b, b"") for a, b in cuts])
    inner = body[span.inner :] if span.inner < span.end else b"</interface>"
    return head + b"\n" + margin + _target(dev) + inner


def _metadata(
    xml: bytes, elements: list[Span], nics: list[Nic]
) -> tuple[int, int, bytes]:
    """Return the change after which the metadata requests these devices and no
    others."""
    now = [span for span in elements if span.path[-1] == NICS]
    metadata = [span for span in elements if span.path == ("domain", "metadata")]
    (domain,) = [span for span in elements if span.path == ("domain",)]
    if now:
        margin = indent(xml, now[0].start)
        alone = len(children(elements, metadata[0])) == 1
        if not nics and alone:
            return (*with_line(xml, metadata[0].start, metadata[0].end), b"")
        if not nics:
            return (*with_line(xml, now[0].start, now[0].end), b"")
        return now[0].start, now[0].end, _nics(nics, margin)
    if metadata and metadata[0].inner < metadata[0].end:
        margin = indent(xml, metadata[0].start) + b"  "
        place = metadata[0].inner
        return place, place, b"\n" + margin + _nics(nics, margin)
    inside = children(elements, domain)
    (uuid,) = [span for span in inside if span.path[-1] == "uuid"]
    margin = indent(xml, uuid.start)
    block = b"<metadata>\n" + margin + b"  " + _nics(nics, margin + b"  ")
    block += b"\n" + margin + b"</metadata>"
    if metadata:
        return metadata[0].start, metadata[0].end, block
    return uuid.end, uuid.end, b"\n" + margin + block


def _nics(nics: list[Nic], margin: bytes) -> bytes:
    from xml.sax.saxutils import escape, quoteattr  # as above

    lines = [f'<tapster:nics xmlns:tapster="{NAMESPACE}">'.encode()]
    for nic in nics:
        named = {"dev": nic.dev, **nic.attributes}
        attributes = " ".join(
            f"{key}={quoteattr(value)}" for key, value in named.items()
        )
        if nic.was is None:
            lines.append(margin + f"  <tapster:nic {attributes}/>".encode())
        else:
            lines += [
                margin + f"  <tapster:nic {attributes}>".encode(),
                margin + f"    <tapster:was>{escape(nic.was)}</tapster:was>".encode(),
                margin + b"  </tapster:nic>",
            ]
    return b"\n".join([*lines, margin + b"</tapster:nics>"])
