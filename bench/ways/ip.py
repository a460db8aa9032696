# SPDX-License-Identifier: Apache-2.0
"""iproute2, as people use it: a command a step, or all steps in one process."""

from collections import deque

from bench.floor import ALIAS
from bench.processes import run

WHAT = "the name is given; nothing is recorded, checked or held"


class ByHand:
    """A process for each step."""

    title = "ip, by hand"
    note = f"`ip tuntap add`, `ip link set` twice, `ip link del`; {WHAT}"

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge
        self._live: deque[str] = deque()
        self._started = 0

    def start(self) -> float:
        name = self._next()
        return (
            run("ip", "tuntap", "add", "dev", name, "mode", "tap")
            + run("ip", "link", "set", name, "address", self._mac(), "alias", ALIAS)
            + run("ip", "link", "set", name, "master", self._bridge, "up")
        )

    def stop(self) -> float:
        return run("ip", "link", "del", self._live.popleft())

    def tidy(self) -> None:
        """Nothing is left."""

    def _next(self) -> str:
        self._started += 1
        name = f"{type(self).__name__.lower()}{self._started}"
        self._live.append(name)
        return name

    def _mac(self) -> str:
        return "fe:01:" + self._started.to_bytes(4, "big").hex(":")


class Batch(ByHand):
    """One process for all steps."""

    title = "ip -batch"
    note = f"the same commands in one process; {WHAT}"

    def start(self) -> float:
        name = self._next()
        lines = (
            f"tuntap add dev {name} mode tap\n"
            f"link set {name} address {self._mac()} alias {ALIAS}\n"
            f"link set {name} master {self._bridge} up\n"
        )
        return run("ip", "-batch", "-", standard_input=lines)

    def stop(self) -> float:
        line = f"link del {self._live.popleft()}\n"
        return run("ip", "-batch", "-", standard_input=line)
