# SPDX-License-Identifier: Apache-2.0
"""A VM: it announces itself, and sends and receives frames on its network cards.

Below `tapster run` it is a process of its own: it prints "up" and its pid, and stops
when it reads input.
"""

import json
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Self

from lab.namespaces import inside
from soak.ground import LOWER
from soak.marks import Marker
from soak.messages import Begin, Cut, End, Move, Moved
from soak.part import boottime
from soak.random_specs import Spec
from tapster import Macvtap, Mode, Naming

ETHERTYPE = 0x88B5
"""For experiments: IEEE 802."""
VIRTIO_HEADER = bytes(10)
BACKGROUND, FOREGROUND = "background", "foreground"
TRIES = 8
FRAME_SECONDS = 0.5
"""Seconds for a frame to arrive; it takes microseconds."""


class Card(NamedTuple):
    """One network card, as the VM knows it."""

    token: str
    netns: str
    ledger: str
    bridge: str
    peer: str
    """The device at which its frames arrive; "" for none."""
    wait: float
    tried: str
    """The template whose lowest free number the device has."""
    fleeting: bool
    """See `account.VmRecord`."""
    macvtap: bool
    name: str = ""
    ifindex: int = 0
    mac: str = ""
    fds: tuple[int, ...] = ()

    @classmethod
    def asked(cls, spec: Spec, netns: str, ledger: str) -> Self:
        """Return the requested card, which has no device yet."""
        numbered = "%d" in spec.name and spec.naming is Naming.LOWEST
        bridge = "" if isinstance(spec, Macvtap) else spec.bridge or ""
        return cls(
            token=spec.owner,
            netns=netns,
            ledger=ledger,
            bridge=bridge,
            peer=LOWER[spec.lower] if isinstance(spec, Macvtap) else bridge,
            wait=spec.fin_wait,
            tried=spec.name if numbered else "",
            fleeting=isinstance(spec, Macvtap) and spec.mode == Mode.PASSTHRU,
            macvtap=isinstance(spec, Macvtap),
        )

    @property
    def mac_in_host(self) -> str:
        """The MAC of the device; that of a tap must not be its guest's."""
        if self.macvtap:
            return self.mac
        return ("fa" if self.mac.startswith("fe") else "fe") + self.mac[2:]


class RunningVm:
    """A running VM."""

    def __init__(self, marker: Marker, cards: list[Card], *, bound: bool) -> None:
        """Announce that the VM runs. `bound`: it ends with the announcing process."""
        self.cards = cards
        self._marker = marker
        self._talks = dict.fromkeys((card.token for card in cards), 0)
        for card in cards:
            begin = Begin(
                token=card.token,
                ledger=card.ledger,
                name=card.name,
                ifindex=card.ifindex,
                wait=card.wait,
                bound=bound,
                fleeting=card.fleeting,
                on=card.bridge,
                mac=card.mac_in_host,
                tried=card.tried,
            )
            marker.say(card.netns, begin)

    def talk(self) -> None:
        """Prove that each card is connected, or say that it is not."""
        for card in self.cards:
            if not (card.peer and card.fds):
                continue
            since = boottime()
            if talks(card):
                self._talks[card.token] += 1
            else:
                self.cut(card, since)

    def cut(self, card: Card, since: float) -> None:
        """Say that a card is cut off."""
        self._marker.say(card.netns, Cut(card.token, since))

    def move(self, card: Card, bridge: str, move: Callable[[str], None]) -> None:
        """Move a card to another bridge, or report that the move fails."""
        at = self.cards.index(card)
        self._marker.say(card.netns, Move(card.token, bridge))
        try:
            move(bridge)
            self.cards[at] = card._replace(bridge=bridge, peer=bridge)
        finally:
            on = self.cards[at].bridge
            self._marker.say(card.netns, Moved(card.token, on))

    def stop(self) -> None:
        """Announce that the VM stops, and close its cards."""
        for card in self.cards:
            self._marker.say(card.netns, End(card.token, self._talks[card.token]))
            for fd in card.fds:
                os.close(fd)


def talks(card: Card) -> bool:
    """Return whether frames go both ways between the card and the device behind it."""
    with (
        inside(f"/run/netns/{card.netns}"),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as peer,
    ):
        try:
            peer.bind((card.peer, ETHERTYPE))
        except OSError:  # an administrator has deleted the bridge
            return False
        far = peer.getsockname()[4]
        near = bytes.fromhex(card.mac.replace(":", ""))
        token = os.urandom(16)
        kind = struct.pack("!H", ETHERTYPE)
        there = (far + near + kind + token).ljust(60, b"\0")
        back = (near + far + kind + token).ljust(60, b"\0")
        try:
            return any(
                _sent_there(card, there, peer, token)
                and _sent_back(card, back, peer, token)
                for _ in range(TRIES)
            )
        except OSError:  # the card's device is down, or gone
            return False


def _sent_there(card: Card, frame: bytes, peer: socket.socket, token: bytes) -> bool:
    os.write(card.fds[0], VIRTIO_HEADER + frame)
    while select.select([peer], [], [], FRAME_SECONDS)[0]:
        if token in peer.recv(2048):
            return True
    return False


def _sent_back(card: Card, frame: bytes, peer: socket.socket, token: bytes) -> bool:
    peer.send(frame)
    while ready := select.select(card.fds, [], [], FRAME_SECONDS)[0]:
        if token in os.read(ready[0], 2048):
            return True
    return False


def main() -> None:
    """Be a VM of `tapster run`: NAME, WHERE, then a card and its device for each.

    If WHERE is "background", the VM goes on in a process that its starter does not
    know, as QEMU does with -daemonize.
    """
    name, where, *rest = sys.argv[1:]
    if where == BACKGROUND:
        if os.fork():
            os._exit(0)
        os.setsid()
    cards = []
    for text, device in zip(rest[::2], rest[1::2], strict=True):
        ifindex, tap, mac, fds = device.split(",")
        numbers = tuple(int(fd) for fd in fds.split(":"))
        card = Card(*json.loads(text))
        cards.append(
            card._replace(name=tap, ifindex=int(ifindex), mac=mac, fds=numbers)
        )
    vm = RunningVm(Marker(name), cards, bound=True)
    vm.talk()
    # If the starter was killed, nobody reads this. The VM must still say that it stops.
    with suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), f"up {os.getpid()}\n".encode())
    sys.stdin.readline()
    vm.talk()
    vm.stop()


if __name__ == "__main__":
    main()
