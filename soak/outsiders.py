# SPDX-License-Identifier: Apache-2.0
"""People and programs that change Tapster's devices, by name and with `ip`.

An administrator picks one of our devices at random, whatever its state, and deletes it,
renames it, takes it down, or moves it off its bridge. A stranger cleans up after a
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

from soak import ground
from soak.account import ADMIN, EFFECTS, STRANGER
from soak.judge import StoppedVm
from soak.marks import Marker
from soak.messages import Acted, Acting
from soak.part import Part, boottime, given, stop_at_end_of_input

ADMIN_NAP = 2.0
"""Seconds at most between two acts of an administrator in a namespace."""
RENAMED = (*(f"lost{n}" for n in range(20)), *(f"vnet{n}" for n in range(20)))
"""Names that an administrator may give a device; a VM could get some of them."""
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
            verb = self._random.choice([*EFFECTS])
            to = self._random.choice(RENAMED)
            place, running = self._random.random(), self._random.random() < 0.7
            ours = [
                link["ifname"]
                for link in ground.links(self._netns)
                if link.get("ifalias", "").startswith("tapster:")
                and ("UP" in link["flags"] or not running)
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
        }[verb]
        act(self._marker, self._netns, Acting(ADMIN, verb, name), *words)


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
