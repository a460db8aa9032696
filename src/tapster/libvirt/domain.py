# SPDX-License-Identifier: Apache-2.0
"""What a domain's XML says of its network devices. Pure.

An interface whose device Tapster makes is of type ethernet with an unmanaged target:
libvirt then opens the device of that name and neither creates, connects nor deletes it.
The domain's metadata says what the device is connected to. libvirt keeps the metadata
unchanged and gives it to its hooks:

    <metadata>
      <tapster:nics xmlns:tapster="urn:tapster:libvirt:1">
        <tapster:nic dev="tv1b2c3d4e-0" bridge="br0">
          <tapster:was>...the interface element before...</tapster:was>
        </tapster:nic>
      </tapster:nics>
    </metadata>

The attributes of a nic are the options of "tapster add". A device that was plugged into
a running domain has its nic in the metadata of that run alone. libvirt saves this with
the domain, and sends it to the host that the domain migrates to. libvirt documents the
elements in formatdomain, "Network interfaces".
"""

from collections.abc import Iterator

from tapster.errors import RequestError
from tapster.libvirt.spans import Span, children, spans
from tapster.light import NamedTuple

NAMESPACE = "urn:tapster:libvirt:1"
NIC = f"{NAMESPACE} nic"
NICS = f"{NAMESPACE} nics"
WAS = f"{NAMESPACE} was"
INTERFACE = ("domain", "devices", "interface")

PLUGGED = "plugged"
"""The attribute of a nic that was plugged in. It may be unplugged without Tapster: then
no interface opens its device, and the nic counts for nothing."""

PLACES = {"bridge", "ovs", "link", "redirect"}
"""The attributes of a nic that say what its device is on."""

WITH_VNET_HDR = ("virtio", "e1000e", "igb", "vmxnet3")
"""The models for which libvirt opens a tap with the virtio header."""


class NicRequest(NamedTuple):
    """One line of the metadata: a device and what it is connected to."""

    dev: str
    attributes: dict[str, str]
    """Options of `tapster add` without their dashes."""
    was: str | None = None
    """The interface element before it was adopted."""


class DomainInterface(NamedTuple):
    """An interface of the domain, with the elements in it."""

    span: Span
    parts: dict[str, Span]
    inside: list[Span]

    def attribute(self, part: str, name: str) -> str | None:
        span = self.parts.get(part)
        return span.attributes.get(name) if span else None

    def within(self, part: str) -> list[Span]:
        return children(self.inside, self.parts[part]) if part in self.parts else []


def nics_of(xml: bytes) -> list[NicRequest]:
    """Return the devices that a domain's metadata requests from Tapster."""
    if NAMESPACE.encode() not in xml:
        return []
    elements = spans(xml)
    opened = {each.attribute("target", "dev") for each in interfaces_of(elements)}
    found = []
    for span in elements:
        if span.path[-1] == NIC:
            attributes = dict(span.attributes)
            dev = attributes.pop("dev", "")
            if not dev:
                raise RequestError("a tapster:nic of the metadata has no dev")
            if PLUGGED in attributes and dev not in opened:
                continue
            inside = children(elements, span)
            was = [child.text for child in inside if child.path[-1] == WAS]
            found.append(NicRequest(dev, attributes, was[0] if was else None))
    return found


def requests_of(xml: bytes) -> list[NicRequest]:
    """Return the devices that a domain needs before it starts.

    The interface adds the MAC, the queues, the MTU, and whether the model knows the
    virtio header, unless the metadata has them. Raises RequestError if no interface
    opens a device, or two do.
    """
    opened: dict[str, DomainInterface] = {}
    for interface in interfaces_of(spans(xml)):
        dev = interface.attribute("target", "dev")
        if dev in opened:
            raise RequestError(f"two interfaces of the domain open device {dev!r}")
        if dev and interface.attribute("target", "managed") == "no":
            opened[dev] = interface
    requests = []
    for nic in nics_of(xml):
        if "%" in nic.dev:
            raise RequestError(
                f"dev={nic.dev!r} of a tapster:nic must be a name: libvirt opens the "
                "device of exactly this name"
            )
        if nic.dev not in opened:
            raise RequestError(
                f"the metadata has device {nic.dev!r}, and no interface of the domain "
                f"opens it: it needs <target dev={nic.dev!r} managed='no'/>; if this "
                "domain is a clone: tapster libvirt adopt"
            )
        interface = opened[nic.dev]
        properties = _properties(interface, linked="link" in nic.attributes)
        attributes = properties | nic.attributes
        attributes.pop(PLUGGED, None)
        requests.append(nic._replace(attributes=attributes))
    return requests


def uuid_of(xml: bytes) -> str:
    """Return the domain's UUID, which is the owner of its leases under any name."""
    return text(xml, "uuid")


def name_of(xml: bytes) -> str:
    return text(xml, "name")


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


def targets(xml: bytes) -> list[Target]:
    """Return the interfaces of a domain that name a device."""
    return [
        Target(
            dev,
            interface.attribute("target", "managed") != "no",
            frozenset(interface.parts),
            interface.span.start,
            interface.span.end,
        )
        for interface in interfaces_of(spans(xml))
        if (dev := interface.attribute("target", "dev"))
    ]


def text(xml: bytes, name: str) -> str:
    """Return the text of an element of a domain. Raises RequestError."""
    for span in spans(xml):
        if span.path == ("domain", name) and span.text.strip():
            return span.text.strip()
    raise RequestError(f"the XML is no definition of a domain: it has no <{name}>")


def interfaces_of(elements: list[Span]) -> Iterator[DomainInterface]:
    """Yield the interfaces among the elements of a domain."""
    for span in elements:
        if span.path == INTERFACE:
            inside = [item for item in elements if span.start < item.start < span.end]
            parts = {part.path[-1]: part for part in children(elements, span)}
            yield DomainInterface(span, parts, inside)


def free_name(uuid: str, taken: set[str]) -> str:
    """Return a free name from the domain's UUID. So a name in the live XML belongs to
    one domain, and two domains never request the same name."""
    number = 0
    while (name := f"{prefix(uuid)}{number}") in taken:
        number += 1
    return name


def prefix(uuid: str) -> str:
    """Return how the names begin that `free_name` gives to a domain's devices."""
    return f"tv{uuid.replace('-', '')[:8]}-"


def _properties(interface: DomainInterface, *, linked: bool) -> dict[str, str]:
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
