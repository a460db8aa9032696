# SPDX-License-Identifier: Apache-2.0
"""Adopt a domain: let Tapster make the devices of its interfaces, and back. Pure."""

from collections.abc import Callable
from xml.sax.saxutils import escape, quoteattr

from tapster.errors import RequestError
from tapster.libvirt import domain
from tapster.libvirt.conversion import Resolve, converted
from tapster.libvirt.domain import (
    INTERFACE,
    NAMESPACE,
    NICS,
    DomainInterface,
    NicRequest,
    interfaces_of,
)
from tapster.libvirt.spans import (
    Span,
    children,
    indent,
    replaced,
    spans,
    with_line,
)
from tapster.light import NamedTuple


class Conversion(NamedTuple):
    """A domain after a conversion."""

    xml: bytes
    nics: tuple[NicRequest, ...]
    lost: tuple[str, ...]
    """The settings of the domain that Tapster does not support, as text."""
    left: tuple[str, ...]
    """The interfaces that stay as they are, and why."""


def adopt(xml: bytes, resolve: Resolve) -> Conversion:
    """Let Tapster make the devices of a domain's interfaces.

    A domain that is the clone of an adopted one gets devices of its own.
    `xml` is the inactive definition. Raises RequestError if it is no domain.
    """
    uuid = domain.text(xml, "uuid")
    xml = _without_clones(_with_devices(xml), uuid)
    elements = spans(xml)
    known = domain.nics_of(xml)
    taken = {nic.dev for nic in known}
    nics: list[NicRequest] = []
    lost: list[str] = []
    left: list[str] = []
    changes: list[tuple[int, int, bytes]] = []
    for interface in interfaces_of(elements):
        span = interface.span
        mac = interface.attribute("mac", "address") or "without MAC"
        if interface.attribute("target", "dev") in taken:
            left.append(f"{mac}: adopted already")
            continue
        try:
            attributes, not_given = converted(interface, uuid, resolve)
        except RequestError as error:
            left.append(f"{mac}: {error}")
            continue
        dev = domain.free_name(uuid, taken)
        taken.add(dev)
        lost += [f"{mac}: {what}" for what in not_given]
        was = xml[span.start : span.end].decode()
        nics.append(NicRequest(dev, attributes, was))
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
    nics = {nic.dev: nic for nic in domain.nics_of(xml)}
    changes: list[tuple[int, int, bytes]] = []
    released: list[NicRequest] = []
    left: list[str] = []
    for interface in interfaces_of(elements):
        span, dev = interface.span, interface.attribute("target", "dev")
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


def _with_devices(xml: bytes) -> bytes:
    """Name the device of each interface whose device has lost its name.

    virt-clone removes the name. The metadata has the former interface element. The
    address on the guest's bus tells which element belongs to which interface.
    """
    adopted = {
        _address(spans(nic.was.encode())): nic.dev
        for nic in domain.nics_of(xml)
        if nic.was
    }
    adopted.pop(frozenset(), None)  # an element without an address fits any interface
    changes = []
    for interface in interfaces_of(spans(xml)):
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
    shape = len(domain.prefix(uuid))
    opened = {interface.dev for interface in domain.targets(xml)}

    def cloned(dev: str) -> bool:
        other = dev[:2] == "tv" and dev[shape - 1 : shape] == "-"
        return other and not dev.startswith(domain.prefix(uuid)) and dev in opened

    if not any(nic.was and cloned(nic.dev) for nic in domain.nics_of(xml)):
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
    return f"<target dev={quoteattr(dev)} managed='no'/>".encode()


def _adopted(xml: bytes, interface: DomainInterface, dev: str) -> bytes:
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
    xml: bytes, elements: list[Span], nics: list[NicRequest]
) -> tuple[int, int, bytes]:
    """Return the change after which the metadata requests these devices and no
    others."""
    now = [span for span in elements if span.path[-1] == NICS]
    metadata = [span for span in elements if span.path == ("domain", "metadata")]
    (whole,) = [span for span in elements if span.path == ("domain",)]
    if now:
        margin = indent(xml, now[0].start)
        alone = len(children(elements, metadata[0])) == 1
        if not nics and alone:
            return (*with_line(xml, metadata[0].start, metadata[0].end), b"")
        if not nics:
            return (*with_line(xml, now[0].start, now[0].end), b"")
        return now[0].start, now[0].end, nics_element(nics, margin)
    if metadata and metadata[0].inner < metadata[0].end:
        margin = indent(xml, metadata[0].start) + b"  "
        place = metadata[0].inner
        return place, place, b"\n" + margin + nics_element(nics, margin)
    inside = children(elements, whole)
    (uuid,) = [span for span in inside if span.path[-1] == "uuid"]
    margin = indent(xml, uuid.start)
    block = b"<metadata>\n" + margin + b"  " + nics_element(nics, margin + b"  ")
    block += b"\n" + margin + b"</metadata>"
    if metadata:
        return metadata[0].start, metadata[0].end, block
    return uuid.end, uuid.end, b"\n" + margin + block


def nics_element(nics: list[NicRequest], margin: bytes = b"") -> bytes:
    """Return the element of the metadata that requests these devices."""
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
