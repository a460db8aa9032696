# SPDX-License-Identifier: Apache-2.0
"""The part of an actor in a storm: its parameters, and how it learns of the end."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from random import Random
from typing import NamedTuple

from lab.lines import readable

RUN = "/run/soak"
"""A private tmpfs: all of it vanishes with the storm."""
NAMESPACES = ("n1", "n2", "n3")
LEDGERS = ("a", "b")

BY_NAME, NO_WAIT = "by-name", "no-wait"
BROKEN = {
    BY_NAME: "managers clean up by name, some time after FIN WAIT",
    NO_WAIT: "leases have no FIN WAIT, while strangers count on one",
}
"""Harmful ways to manage VMs: a storm must count the harm."""


class Part(NamedTuple):
    """One actor's part. A killed actor is followed by its next generation."""

    seed: int
    name: str
    netns: str = ""
    ledger: str = ""
    generation: int = 0
    inside: bool = False
    """The actor lives in the namespace; otherwise it passes the namespace's name."""
    broken: str = ""

    @property
    def process(self) -> str:
        return f"{self.name}.{self.generation}"

    def random(self, *more: object) -> Random:
        """Return a random stream of its own, which no other actor's timing changes."""
        return Random(f"{self.seed}/{self.process}/{more}")

    def command(self, module: str) -> list[str]:
        """Return what starts the actor."""
        command = [sys.executable, "-X", "faulthandler", "-m", f"soak.{module}"]
        enter = ["nsenter", f"--net=/run/netns/{self.netns}", "--"]
        return [*(enter if self.inside else []), *command, json.dumps(self)]


def given() -> Part:
    """Return the part of the process that asks."""
    return Part(*json.loads(sys.argv[1]))


def ledger_path(ledger: str) -> str:
    return f"{RUN}/{ledger}/ledger.db"


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def stop_at_end_of_input() -> threading.Event:
    """Return an event that is set when the starter of this process closes its input."""
    stop = threading.Event()

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    return stop


def work_all(work: Sequence[Callable[[], None]], stop: threading.Event) -> None:
    """Do all of it at once; if one fails, let the others stop, and raise."""
    with ThreadPoolExecutor(len(work)) as pool:
        working = [pool.submit(job) for job in work]
        for done in as_completed(working):
            if done.exception():
                stop.set()
    for future in working:
        future.result()


def wait_ended(pidfd: int, seconds: float) -> bool:
    """Return whether the process ends within that time."""
    return readable(pidfd, time.monotonic() + seconds)
