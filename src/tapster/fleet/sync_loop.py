# SPDX-License-Identifier: Apache-2.0
"""Syncs a ledger with its fleet again and again, in a thread of its own.

Nothing waits for this thread, and it holds no transaction of the ledger while it
waits for the store.
"""

import os
import threading
from collections.abc import Callable, Mapping

from tapster.errors import OF_ONE_LEASE, TapsterError
from tapster.fleet import settings
from tapster.fleet.member import Member, open_store
from tapster.fleet.steps import Fenced
from tapster.ledger import Clock, Ledger
from tapster.light import Any

INTERVAL = 20.0
"""Seconds between two syncs."""
ALL_EVERY = 90
"""Every so many syncs, a sync also compares records that were pushed before."""

Say = Callable[[str, dict[str, Any]], None]
TakeDown = Callable[[str], object]


class SyncLoop:
    """The thread that syncs."""

    def __init__(
        self, ledger: str, clock: Clock, file: str, say: Say, take_down: TakeDown
    ) -> None:
        """`say` is called with each event and its fields. `take_down` takes the device
        of a lease down."""
        self._ledger = ledger
        self._clock = clock
        self._file = file
        self._say = say
        self._take_down = take_down
        self._down: set[str] = set()
        self._not_down: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._said = ""
        self._count = 0
        self._problems: set[tuple[str, str]] = set()

        self._up = self._fenced = False

    def figures(self) -> Mapping[str, float]:
        """Return numbers for monitoring: how the last sync went."""
        return {"up": float(self._up), "fenced": float(self._fenced)}

    def start(self) -> None:
        """Begin to sync."""
        self._thread.start()

    def stop(self) -> None:
        """Sync no more. Does not wait for a sync that waits for the store."""
        self._ending.set()

    def open(self) -> Member | None:
        """This host in its fleet; None if it has not joined."""
        loaded = settings.load(self._file)
        ledger = Ledger(self._ledger, self._clock)
        if loaded is not None and ledger.in_fleet():
            return Member(loaded, ledger, open_store(loaded))
        ledger.close()
        self._report("this host has not joined: tapster fleet join")
        return None

    def step(self, member: Member) -> None:
        """Sync once, and report what has changed since the last sync."""
        try:
            synced = member.sync(everything=self._count % ALL_EVERY == 0)
        except Fenced as error:
            self._up, self._fenced = False, True
            self._report(str(error))
            if member.settings.on_fenced == "down":
                self._let_go(member)
            return
        self._up, self._fenced = True, False
        self._count += 1
        if self._said:
            self._say("fleet-synced", {"pushed": synced.pushed})
            self._said = ""
        if synced.block:
            self._say("fleet-block", {"block": synced.block})
        problems = {(e.record.mac, e.problem) for e in synced.problems}
        for mac, problem in sorted(problems - self._problems):
            self._say("fleet-conflict", {"mac": mac, "problem": problem})
        self._problems = problems

    def _let_go(self, member: Member) -> None:
        """Take down the devices of VMs that another host has taken over."""
        for entry in member.superseded():
            lease = entry.record.lease
            if lease in self._down:
                continue
            fields = {"name": entry.row.name, "vm": entry.record.vm}
            try:
                self._take_down(lease)
            except OF_ONE_LEASE as error:
                # The next sync tries again.
                if lease not in self._not_down:
                    self._say("fleet-not-down", {**fields, "problem": str(error)})
                    self._not_down.add(lease)
                continue
            self._down.add(lease)
            self._say("fleet-down", fields)

    def turn(self, member: Member | None) -> Member | None:
        """Sync once, whatever happens; return the member for the next time."""
        problem = ""
        try:
            if member is not None and settings.load(self._file) != member.settings:
                member.close()
                member = None
            member = member or self.open()
            if member is not None:
                self.step(member)
        except TapsterError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - a fault must not end the syncs
            problem = f"{type(error).__name__}: {error}"
        if problem:
            self._up = self._fenced = False
            self._report(problem)
        return member

    def _run(self) -> None:
        # Hosts that start at once do not sync at once.
        pause = os.urandom(1)[0] / 256 * INTERVAL / 4
        member: Member | None = None
        while not self._ending.wait(pause):
            pause = INTERVAL
            member = self.turn(member)
        if member is not None:
            member.close()

    def _report(self, problem: str) -> None:
        """Report once why this host cannot sync."""
        if problem != self._said:
            self._said = problem
            self._say("fleet-away", {"problem": problem})
