# SPDX-License-Identifier: Apache-2.0
"""People and programs that change Tapster's devices, by name and with `ip`.

An administrator picks one of our devices at random, whatever its state, and deletes it,
renames it, takes it down, moves it off its bridge, gives it another MAC, or moves it to
another namespace and perhaps back. Now and then an administrator deletes a bridge, and
makes it again. A stranger cleans up after a
VM that has stopped, as a manager does that learns late of its end and knows only a
name.
"""

import heapq
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from random import Random
from threading import Event, Thread
from typing import Any

from soak import ground
from soak.account import ADMIN, EFFECTS, REBUILD, STRANGER
from soak.judge import StoppedVm
from soak.marks import Marker
from soak.messages import Acted, Acting
from soak.part import Part, boottime, given, stop_at_end_of_input

ADMIN_NAP = 2.0
"""Seconds at most between two acts of an administrator in a namespace."""
RENAMED = (*(f"lost{n}" for n in range(20)), *(f"vnet{n}" for n in range(20)))
"""Names that an administrator may give a device; a VM could get some of them."""
REBUILDS = 0.05
"""The share of an administrator's acts that rebuild a bridge."""
REBUILD_NAP = 0.5
"""Seconds at most from the end of a bridge to its return."""
RETURNS = 0.3
"""The share of acts before which a device is moved back from the other namespace."""
CLEANUPS = (("nomaster", "down", "del"), ("nomaster", "down"), ("down",), ("del",))
CARES = 0.7
"""The share of stopping VMs after which a stranger cleans up."""
SOONER = 0.15
"""Seconds before the end of FIN WAIT at which a stranger gives up: `ip` takes a while,
and what it does later proves nothing."""


def act(marker: Marker, netns: str, acting: Acting, *words: str) -> None:
    """Do something with `ip link`, between two marks."""
    marker.say(netns, acting)
    ground.ip(netns, "link", *words)
    marker.say(netns, Acted())


class Administrator:
    """An administrator of one namespace."""

    def __init__(self, part: Part, stop: Event) -> None:
        self._netns = part.netns
        self._stop = stop
        self._marker = Marker(f"{part.process}/")
        self._random = part.random()

    def work(self) -> None:
        while not self._stop.wait(self._random.random() * ADMIN_NAP):
            if self._random.random() < RETURNS:
                self._bring_back()
            if self._random.random() < REBUILDS:
                self._rebuild(self._random.choice([*ground.BRIDGES]))
                continue
            verb = self._random.choice([verb for verb in EFFECTS if verb != REBUILD])
            to = self._random.choice(RENAMED)
            place, running = self._random.random(), self._random.random() < 0.7
            ours = [
                link["ifname"]
                for link in _ours(self._netns)
                if ("UP" in link["flags"] or not running)
                # The MAC of such a device is also that of its lower device.
                and (verb != "address" or not _is_passthru(link))
            ]
            if ours:
                self._act(ours[int(place * len(ours))], verb, to)

    def _act(self, name: str, verb: str, to: str) -> None:
        words = {
            "del": ("del", "dev", name),
            "rename": ("set", "dev", name, "name", to),
            "down": ("set", "dev", name, "down"),
            "nomaster": ("set", "dev", name, "nomaster"),
            "master": ("set", "dev", name, "master", "br1"),
            "address": ("set", "dev", name, "address", self._address()),
            "away": ("set", "dev", name, "netns", ground.AWAY),
        }[verb]
        act(self._marker, self._netns, Acting(ADMIN, verb, name), *words)

    def _address(self) -> str:
        return "02:ad:" + self._random.randbytes(4).hex(":")

    def _bring_back(self) -> None:
        """Move a device of this namespace, or of another one, here."""
        if away := _ours(ground.AWAY):
            name = self._random.choice(away)["ifname"]
            ground.ip(ground.AWAY, "link", "set", "dev", name, "netns", self._netns)

    def _rebuild(self, bridge: str) -> None:
        """Delete a bridge with all its ports on it, and make it again."""
        self._marker.say(self._netns, Acting(ADMIN, REBUILD, bridge))
        ground.ip(self._netns, "link", "del", "dev", bridge)
        self._stop.wait(self._random.random() * REBUILD_NAP)
        for command in ground.BRIDGES[bridge]:
            ground.ip(self._netns, *command.split())
        self._marker.say(self._netns, Acted())


def _ours(netns: str) -> list[dict[str, Any]]:
    """Return the devices of Tapster in a namespace."""
    links = ground.links(netns)
    return [link for link in links if link.get("ifalias", "").startswith("tapster:")]


def _is_passthru(link: dict[str, Any]) -> bool:
    data = link.get("linkinfo", {}).get("info_data", {})
    return bool(data.get("mode") == "passthru")


class Strangers:
    """The programs that clean up late. They read the ends of VMs from their input."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._due: list[tuple[float, StoppedVm, str]] = []

    def work(self, hands: int = 3) -> None:
        """Until the input ends and all is cleaned up."""
        heard: SimpleQueue[StoppedVm | None] = SimpleQueue()
        Thread(target=_listen, args=(heard,), daemon=True).start()
        listening = True
        jobs: SimpleQueue[tuple[StoppedVm, str] | None] = SimpleQueue()
        with ThreadPoolExecutor(hands) as pool:
            working = [pool.submit(self._clean, n, jobs) for n in range(hands)]
            while listening or self._due:
                left = self._due[0][0] - boottime() if self._due else None
                try:
                    news = heard.get(timeout=None if left is None else max(left, 0))
                except Empty:
                    _, stopped, verb = heapq.heappop(self._due)
                    jobs.put((stopped, verb))
                    continue
                if news is None:
                    listening = False
                    heard = SimpleQueue()
                else:
                    self._plan(news)
            for _ in working:
                jobs.put(None)
        for future in working:
            future.result()

    def _plan(self, stopped: StoppedVm) -> None:
        random = Random(f"{self._part.seed}/{stopped.token}")
        if random.random() > CARES:
            return
        verbs = random.choice(CLEANUPS)
        parts = sorted(random.random() for _ in verbs)
        now = boottime()
        for part, verb in zip(parts, verbs, strict=True):
            heapq.heappush(
                self._due, (now + part * (stopped.until - now), stopped, verb)
            )

    def _clean(
        self, hand: int, jobs: "SimpleQueue[tuple[StoppedVm, str] | None]"
    ) -> None:
        marker = Marker(f"{self._part.process}/{hand}")
        while job := jobs.get():
            (token, netns, name, until), verb = job
            if boottime() > until - SOONER:
                continue
            words = (
                ("del", "dev", name) if verb == "del" else ("set", "dev", name, verb)
            )
            act(marker, netns, Acting(STRANGER, verb, name, token), *words)


def _listen(heard: "SimpleQueue[StoppedVm | None]") -> None:
    for line in sys.stdin:
        heard.put(StoppedVm(*json.loads(line)))
    heard.put(None)


def main() -> None:
    part = given()
    if part.netns:
        Administrator(part, stop_at_end_of_input()).work()
    else:
        Strangers(part).work()


if __name__ == "__main__":
    main()
