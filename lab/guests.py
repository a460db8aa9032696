# SPDX-License-Identifier: Apache-2.0
"""A bridge with guests that send and receive frames."""

import os
import select
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import frames, library, shell
from tapster import Host, OpenDevice, Tap

NO_OFFLOAD = bytes(10)
"""The virtio_net_hdr before each frame: no offloads."""
VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
MARK = frames.ether("02:00:00:00:00:99", frames.BROADCAST, 0x88B5, b"the last one")
"""A frame of a type for experiments."""


SECONDS = 20
"""Time in which a frame that was sent surely arrives, even on a busy host."""


def next_frame(fds: Sequence[int], wanted: Callable[[bytes], bool]) -> bytes:
    """Read frames from taps until one is wanted; return it.

    A test must not mistake other frames for its own: a bridge and the host's IPv4 and
    IPv6 send some of theirs (IGMP, MLD, neighbour discovery).
    """
    while True:
        ready, _, _ = select.select(fds, [], [], SECONDS)
        assert ready, "no such frame arrives"
        if wanted(frame := os.read(ready[0], 1 << 17)):
            return frame


def checksum_request(start: int, offset: int) -> bytes:
    """Return a virtio_net_hdr: the host shall write the checksum of frame[start:]
    there."""
    return struct.pack("BBHHHH", VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, start, offset)


class Guest:
    """A VM as far as a bridge can tell: a descriptor of a tap, and a MAC."""

    def __init__(self, fd: int, mac: str) -> None:
        self.fd = fd
        self.mac = mac

    def send(self, frame: bytes, request: bytes = NO_OFFLOAD) -> None:
        os.write(self.fd, request + frame)

    def receive(self, source: str | None = None) -> bytes:
        """Return the next frame, if `source` is given only one from that MAC."""
        start = len(NO_OFFLOAD)
        sender = slice(start + 6, start + 12)
        mac = None if source is None else frames.mac(source)
        frame = next_frame([self.fd], lambda data: mac in (None, data[sender]))
        return frame[start:]


class Leased(Guest):
    """A VM with a lease."""

    def __init__(self, opened: OpenDevice) -> None:
        super().__init__(opened.fds[0], opened.mac)
        self.opened = opened
        self.lease = opened.lease


class GuestBridge:
    """A host with the bridge br0, and two guests without a filter or a rate."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger
        self.host = Host(ledger, reaper=library.no_reaper)
        self._guests: list[Leased] = []
        self.peer = self.guest()
        self._marker = self.guest()

    def guest(self, **wiring: Any) -> Leased:
        """Start a VM, on br0 unless another bridge is given."""
        guest = Leased(self.host.acquire(Tap(**{"bridge": "br0", **wiring})))
        self._guests.append(guest)
        return guest

    def close(self) -> None:
        """Close the guests' descriptors."""
        library.close_all(*(guest.opened for guest in self._guests))

    def arrive(self, sender: Guest, sent: list[bytes], receiver: Guest) -> list[bytes]:
        """Send frames from one guest to another; return those that arrive.

        The kernel carries a frame over a bridge within the write that sends it. A
        last frame, from a third guest, proves that no more will come.
        """
        for frame in sent:
            sender.send(frame)
        self._marker.send(MARK)
        arrived = []
        while (frame := receiver.receive()) != MARK:
            arrived.append(frame)
        return [frame for frame in sent if frame in arrived]

    def until_mark(self, receiver: Guest) -> list[bytes]:
        """Return what a guest receives of the frames that have been sent."""
        self._marker.send(MARK)
        arrived = []
        while (frame := receiver.receive()) != MARK:
            arrived.append(frame)
        return arrived

    def passes(self, sender: Guest, frame: bytes) -> bool:
        """Say whether a frame gets from a guest to the unfiltered peer."""
        return self.arrive(sender, [frame], self.peer) == [frame]


@contextmanager
def lab(ledger: Path) -> Iterator[GuestBridge]:
    """Open a bridge br0 on which the host sends little and drops nothing."""
    shell.sh("ip link set br0 type bridge mcast_snooping 0")
    for setting, value in (
        ("ipv6/conf/br0/disable_ipv6", "1"),
        ("bridge/bridge-nf-call-iptables", "0"),
        ("bridge/bridge-nf-call-ip6tables", "0"),
    ):
        path = Path("/proc/sys/net", setting)
        if path.exists():  # a module that is not loaded does nothing either
            path.write_text(value)
    lab = GuestBridge(ledger)
    with lab.host:
        yield lab
    lab.close()
