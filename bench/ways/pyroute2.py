# SPDX-License-Identifier: Apache-2.0
"""pyroute2, in a program that keeps its socket open."""

from collections import deque

from pyroute2 import IPRoute

from bench.clock import timed
from bench.floor import ALIAS


class Pyroute2:
    """Three requests to start, one to stop."""

    title = "pyroute2"
    note = (
        "persistent tap, MAC, alias, bridge, up; the name is given; nothing is "
        "recorded, checked or held"
    )

    def __init__(self, bridge: int) -> None:
        self._bridge = bridge
        self._ip = IPRoute()
        self._live: deque[int] = deque()
        self._started = 0

    def start(self) -> float:
        self._started += 1
        taken, ifindex = timed(self._start)
        self._live.append(ifindex)
        return taken

    def stop(self) -> float:
        ifindex = self._live.popleft()
        return timed(lambda: self._ip.link("del", index=ifindex))[0]

    def tidy(self) -> None:
        """Nothing is left."""

    def close(self) -> None:
        self._ip.close()

    def _start(self) -> int:
        name = f"pyroute{self._started}"
        self._ip.link("add", ifname=name, kind="tuntap", mode="tap")
        (ifindex,) = self._ip.link_lookup(ifname=name)
        self._ip.link(
            "set",
            index=ifindex,
            address="fe:02:" + self._started.to_bytes(4, "big").hex(":"),
            ifalias=ALIAS,
            master=self._bridge,
            state="up",
        )
        return int(ifindex)
