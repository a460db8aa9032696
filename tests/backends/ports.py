# SPDX-License-Identifier: Apache-2.0
"""A bridge with guests that send and receive frames, and what nft and tc say of it."""

import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tapster import Host, Lease, Tap
from tests.backends import frames
from tests.kernel import tools

NO_OFFLOAD = bytes(10)
"""The virtio_net_hdr before each frame: nothing is left for the other side to do."""
MARK = frames.ether("02:00:00:00:00:99", frames.BROADCAST, 0x88B5, b"the last one")
"""A frame of a type for experiments."""


class Guest:
    """A machine: whoever has the descriptor of a tap."""

    def __init__(self, fd: int, mac: str) -> None:
        self.fd = fd
        self.mac = mac

    def send(self, frame: bytes) -> None:
        os.write(self.fd, NO_OFFLOAD + frame)

    def receive(self) -> bytes:
        """The next frame, which is on its way."""
        ready, _, _ = select.select([self.fd], [], [], 10)
        assert ready, "no frame came"
        return os.read(self.fd, 1 << 17)[len(NO_OFFLOAD) :]


class Leased(Guest):
    """A machine with a lease."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease.fds[0], lease.mac)
        self.lease = lease


class Lab:
    """A host with the bridge br0, and two guests that nothing is asked of."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger
        self.host = Host(ledger, reaper=tools.no_reaper)
        self.peer = self.guest()
        self._marker = self.guest()

    def guest(self, **wiring: Any) -> Leased:
        """A machine on br0."""
        return Leased(self.host.acquire(Tap(bridge="br0", **wiring)))

    def arrive(self, sender: Guest, sent: list[bytes], receiver: Guest) -> list[bytes]:
        """Those of the frames that get from one guest to another.

        The kernel carries a frame over a bridge within the write that sends it. A
        last one, from a third guest, still says for certain that no more will come.
        """
        for frame in sent:
            sender.send(frame)
        self._marker.send(MARK)
        arrived = []
        while (frame := receiver.receive()) != MARK:
            arrived.append(frame)
        return [frame for frame in sent if frame in arrived]

    def passes(self, sender: Guest, frame: bytes) -> bool:
        """Whether a frame gets from a guest to one that is not filtered."""
        return self.arrive(sender, [frame], self.peer) == [frame]


@contextmanager
def lab(ledger: Path) -> Iterator[Lab]:
    """A lab on the bridge br0, where the host sends nothing and drops nothing."""
    tools.sh("ip link set br0 type bridge mcast_snooping 0")
    for setting, value in (
        ("ipv6/conf/br0/disable_ipv6", "1"),
        ("bridge/bridge-nf-call-iptables", "0"),
        ("bridge/bridge-nf-call-ip6tables", "0"),
    ):
        path = Path("/proc/sys/net", setting)
        if path.exists():  # a module that is not loaded does nothing either
            path.write_text(value)
    lab = Lab(ledger)
    with lab.host:
        yield lab


def ruleset() -> list[dict[str, Any]]:
    """All that `nft -j list ruleset` shows."""
    said = tools.sh("nft -j list ruleset")
    try:
        objects: list[dict[str, Any]] = json.loads(said)["nftables"]
    except ValueError:  # nftables 1.0.6, where a table has flags
        return [{"broken": {"table": "", "said": said}}]
    return [one for one in objects if "metainfo" not in one]


def table_of(one: dict[str, Any]) -> str:
    (body,) = one.values()
    return str(body["name"] if "table" in one else body["table"])


def foreign() -> list[dict[str, Any]]:
    """What of it is in no table that is called as Tapster's are."""
    return [one for one in ruleset() if not table_of(one).startswith("tapster_")]


def elements(table: str) -> dict[str, list[Any]]:
    """What nft shows of the elements of each set of a table that is called so."""
    return {
        body["name"]: body.get("elem", [])
        for one in ruleset()
        if (body := one.get("set")) and body["table"] == table
    }


def unnumbered(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Objects without what depends on how often they were made, sorted."""
    for one in objects:
        for body in one.values():
            body.pop("handle", None)
            if "elem" in body:
                body["elem"].sort(key=json.dumps)
    return sorted(objects, key=lambda one: (table_of(one), "rule" in one))


def nft(commands: str) -> None:
    """Let nft do what somebody types."""
    subprocess.run(["nft", commands], check=True)
