# SPDX-License-Identifier: Apache-2.0
"""Tagged frames of VMs on a bridge that tells VLANs apart, on Debian's kernel."""

import os
import select
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.frames import BROADCAST, QINQ, VLAN, ether, tagged
from tapster import Host, OpenDevice, Tap

HEADER = bytes(10)  # of virtio, in front of each frame
EXPERIMENT = 0x88B5
SECONDS = 20.0
"""Seconds for a frame to arrive, on a host without KVM."""

PORTS = {
    "a": Tap(bridge="br0", vlan=10),
    "b": Tap(bridge="br0", vlan=10),
    "c": Tap(bridge="br0", vlan=11),
    "n": Tap(bridge="br0", vlan=5),
    "t": Tap(bridge="br0", vlan=5, trunks=(10, 11)),
}
MARKS = {"a": "t 10", "b": "t 10", "c": "t 11", "n": "t", "t": "a"}
"""The port whose frame, with this tag, arrives at a port after all others."""


class Sent(NamedTuple):
    """A frame with these tags from a port, and the tags that other ports see on it."""

    port: str
    tags: str
    seen: dict[str, str]


LEGITIMATE = [
    Sent("a", "", {"b": "", "t": "10"}),
    Sent("c", "", {"t": "11"}),
    Sent("n", "", {"t": ""}),
    Sent("t", "", {"n": ""}),
    Sent("t", "10", {"a": "", "b": ""}),
    Sent("t", "11", {"c": ""}),
    Sent("t", "20", {}),
]
FORBIDDEN = [  # a filtered port sends no such frame
    Sent("a", "0", {"b": "", "t": "10"}),
    Sent("a", "10", {"b": "", "t": "10"}),
    Sent("a", "11", {}),
    Sent("a", "5", {}),
    Sent("a", "11 10", {}),
    Sent("a", "10 11", {"b": "11", "t": "10 11"}),
    Sent("a", "0 11", {"b": "11", "t": "10 11"}),
    Sent("a", "q11", {"b": "q11", "t": "10 q11"}),
    # The bridge takes the native VLAN's tag off: the next switch sees VLAN 10.
    Sent("n", "5 10", {"t": "10"}),
    Sent("n", "0 10", {"t": "10"}),
    Sent("t", "10 11", {"a": "11", "b": "11"}),
]


@pytest.fixture
def host(bridge: str, ledger: Path) -> Iterator[Host]:
    with Host(ledger) as host:
        yield host


def devices(host: Host, stack: ExitStack, *, filter: bool) -> dict[str, OpenDevice]:
    """Make one tap for each of PORTS."""
    return {
        name: stack.enter_context(host.acquire(tap._replace(filter=filter)))
        for name, tap in PORTS.items()
    }


def write(device: OpenDevice, tags: str, payload: bytes) -> None:
    """Send a frame as the VM with this device would; "q7" is an 802.1ad tag."""
    frame = ether(device.mac, BROADCAST, EXPERIMENT, payload.ljust(46, b"\0"))
    for tag in reversed(tags.split()):
        kind = QINQ if tag.startswith("q") else VLAN
        frame = tagged(frame, int(tag.removeprefix("q")), kind)
    os.write(device.fds[0], HEADER + frame)


def read(device: OpenDevice) -> tuple[str, bytes]:
    """Wait for the next frame of these tests; return its tags and its payload."""
    while select.select([device.fds[0]], [], [], SECONDS)[0]:
        frame = os.read(device.fds[0], 65536)[len(HEADER) + 12 :]
        tags = []
        while True:
            kind, number = struct.unpack_from("!HH", frame)
            if kind not in (VLAN, QINQ):
                break
            tags.append(f"{'q' * (kind == QINQ)}{number & 0xFFF}")
            frame = frame[4:]
        if kind == EXPERIMENT:
            return " ".join(tags), frame[2:].rstrip(b"\0")
    raise TimeoutError(f"no frame arrived at {device.name}")


def deliver(ports: dict[str, OpenDevice], sent: Sent) -> dict[str, str]:
    """Send a frame; return the tags with which it arrived, by port."""
    write(ports[sent.port], sent.tags, b"frame")
    arrived = {}
    for name, device in ports.items():
        if name == sent.port:
            continue
        port, _, tags = MARKS[name].partition(" ")
        mark = f"mark of {name}".encode()
        write(ports[port], tags, mark)
        while (frame := read(device))[1] != mark:
            if frame[1] == b"frame":
                arrived[name] = frame[0]
    return arrived


@pytest.mark.parametrize("filter", [False, True])
def test_tags_bring_a_frame_into_no_other_vlan(host: Host, filter: bool) -> None:
    with ExitStack() as stack:
        ports = devices(host, stack, filter=filter)
        for sent in LEGITIMATE:
            assert deliver(ports, sent) == sent.seen, sent
        for sent in FORBIDDEN:
            expected = {} if filter else sent.seen
            assert deliver(ports, sent) == expected, sent
