# SPDX-License-Identifier: Apache-2.0
"""Kinds of messages of neighbour discovery, which routers and hosts believe."""

from collections.abc import Iterator

from lab import frames
from lab.frame_kinds.ipv6 import extension, multicast6
from lab.frame_kinds.kind import (
    AH,
    DESTINATION,
    MINE6,
    NO,
    OTHER6,
    OTHER_MAC,
    OWN,
    ROUTER6,
    ROUTING,
    YES,
    FrameKind,
    authenticated,
    link_local,
)
from lab.frames import FRAGMENT, HOP_BY_HOP, ICMPV6, fragment, icmpv6, option

NONCE = option(14, b"nonce!")


def _icmp(me: str, source: str, to: str, kind: int, body: bytes) -> bytes:
    return multicast6(me, source, to, icmpv6(source, to, kind, body), ICMPV6)


def _solicit(me: str, source: str, target: str, *options: bytes) -> bytes:
    body = frames.solicitation(target, options)
    return _icmp(me, source, "ff02::1:ff00:5", 135, body)


def _advertise(me: str, source: str, target: str, *options: bytes) -> bytes:
    return _icmp(me, source, "ff02::1", 136, frames.advertisement(target, options))


def _macs(me: str, number: int) -> tuple[bytes, bytes]:
    """Return the option with the guest's MAC, and with another's."""
    return option(number, frames.mac(me)), option(number, frames.mac(OTHER_MAC))


def _router_solicitations(me: str) -> Iterator[FrameKind]:
    own, other = _macs(me, 1)

    def ask(source: str, options: bytes) -> bytes:
        return _icmp(me, source, "ff02::2", 133, bytes(4) + options)

    local = link_local(me)
    yield FrameKind("router solicitation", ask(local, own), YES)
    yield FrameKind("router solicitation from ::", ask("::", b""), YES)
    yield FrameKind("router solicitation for another's MAC", ask(local, other), NO)
    yield FrameKind(
        "router solicitation, another's MAC second", ask(local, NONCE + other), NO
    )


def _link_layer_options(me: str) -> Iterator[FrameKind]:
    for number in (1, 2):
        own, other = _macs(me, number)
        for whose, address, passes in (
            ("its MAC", own, YES),
            ("another's MAC", other, NO),
        ):
            yield FrameKind(
                f"solicitation, option {number} with {whose}",
                _solicit(me, MINE6, OTHER6, address),
                passes,
            )
            yield FrameKind(
                f"advertisement, option {number} with {whose}",
                _advertise(me, MINE6, MINE6, address),
                passes,
            )


def _solicitations(me: str) -> Iterator[FrameKind]:
    own, other = _macs(me, 1)
    for name, passes, frame in (
        ("is its address free?", YES, _solicit(me, "::", MINE6)),
        ("is its address free? with a nonce", YES, _solicit(me, "::", MINE6, NONCE)),
        ("is its link-local address free?", YES, _solicit(me, "::", link_local(me))),
        ("is another's address free?", OWN, _solicit(me, "::", OTHER6)),
        ("solicitation from another's address", OWN, _solicit(me, OTHER6, MINE6, own)),
        (
            "solicitation, another's MAC second",
            NO,
            _solicit(me, MINE6, OTHER6, NONCE, other),
        ),
    ):
        yield FrameKind(name, frame, passes)


def _advertisements(me: str) -> Iterator[FrameKind]:
    own, other = _macs(me, 2)
    for name, passes, frame in (
        (", short", YES, _advertise(me, link_local(me), MINE6)),
        (" of another's address", OWN, _advertise(me, MINE6, OTHER6, own)),
        (" of the router's address", OWN, _advertise(me, MINE6, ROUTER6, own)),
        (" from another's address", OWN, _advertise(me, OTHER6, MINE6, own)),
        (", another's MAC second", NO, _advertise(me, MINE6, MINE6, own, other)),
        (
            ", another's MAC after a nonce",
            NO,
            _advertise(me, MINE6, MINE6, NONCE, other),
        ),
    ):
        yield FrameKind(f"advertisement{name}", frame, passes)


def _hidden_messages(me: str) -> Iterator[FrameKind]:
    for kind, body in (
        (135, frames.solicitation(OTHER6)),
        (136, frames.advertisement(MINE6)),
    ):
        message = icmpv6(MINE6, "ff02::1", kind, body)
        for how, protocol, payload in (
            ("in fragments", FRAGMENT, fragment(ICMPV6, message, more=True)),
            (
                "in a fragment that is all",
                FRAGMENT,
                fragment(ICMPV6, message, more=False),
            ),
            ("behind an authentication header", AH, authenticated(ICMPV6, message)),
        ):
            frame = multicast6(me, MINE6, "ff02::1", payload, protocol)
            yield FrameKind(f"type {kind} {how}", frame, NO)


def _routers(me: str) -> Iterator[FrameKind]:
    local = link_local(me)
    for kind, name, to in (
        (134, "router advertisement", "ff02::1"),
        (137, "redirect", MINE6),
    ):
        message = icmpv6(local, to, kind, bytes(36))
        evasions: dict[str, tuple[int, bytes]] = {
            "plain": (ICMPV6, message),
            "behind hop-by-hop options": (HOP_BY_HOP, extension(ICMPV6, message)),
            "behind destination options": (DESTINATION, extension(ICMPV6, message)),
            "behind a routing header": (ROUTING, extension(ICMPV6, message)),
            "behind two headers": (
                HOP_BY_HOP,
                extension(DESTINATION, extension(ICMPV6, message)),
            ),
            "behind six headers": (DESTINATION, _nested(6, message)),
            "behind twenty headers": (DESTINATION, _nested(20, message)),
            "behind an authentication header": (AH, authenticated(ICMPV6, message)),
            "behind options and an authentication header": (
                HOP_BY_HOP,
                extension(AH, authenticated(ICMPV6, message)),
            ),
            "behind an authentication header and options": (
                AH,
                authenticated(DESTINATION, extension(ICMPV6, message)),
            ),
            "in a first fragment": (FRAGMENT, fragment(ICMPV6, message, more=True)),
            "in a fragment that is all": (
                FRAGMENT,
                fragment(ICMPV6, message, more=False),
            ),
            "in a first fragment that ends in options": (
                FRAGMENT,
                fragment(HOP_BY_HOP, b"\x3a\0\1\4\0\0\0\0", more=True),
            ),
            "in a first fragment behind options": (
                DESTINATION,
                extension(FRAGMENT, fragment(ICMPV6, message, more=True)),
            ),
            "cut short": (ICMPV6, message[:2]),
        }
        for how, (protocol, payload) in evasions.items():
            if (how, kind) == ("in a first fragment that ends in options", 137):
                continue
            yield FrameKind(
                f"{name}, {how}", multicast6(me, local, to, payload, protocol), NO
            )


def _nested(count: int, payload: bytes) -> bytes:
    for number in range(count):
        payload = extension(DESTINATION if number else ICMPV6, payload)
    return payload


GROUPS = {
    "neighbour discovery": (
        _router_solicitations,
        _link_layer_options,
        _solicitations,
        _advertisements,
        _hidden_messages,
    ),
    "router advertisement and redirect": (_routers,),
}
