# SPDX-License-Identifier: Apache-2.0
"""Leases that wait for their repair: it is done in turns, and again if it fails."""

from collections.abc import Callable, Sequence
from functools import partial

from tapster.daemon.log import WARNING, Log
from tapster.daemon.turns import Turns
from tapster.errors import TapsterError
from tapster.light import NamedTuple
from tapster.operations.decision import Repair
from tapster.operations.failures import Failures
from tapster.operations.operations import Operations

FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds until a repair that failed is tried again. The wait doubles from the first
value to the last."""
REPAIR_BATCH = 8
"""Leases that are repaired in one piece of work: each takes about a millisecond."""


class Repairing(NamedTuple):
    """What is to be repaired of some leases, and why."""

    reason: str | None = None
    wiring: bool = False
    backends: bool = False
    """As in `Recover.some`."""

    @property
    def batch(self) -> int | None:
        """How many leases are repaired in one piece of work; None for all.

        One transaction restores the rules of all leases, and a list of a table takes
        as long for one lease as for all.
        """
        return None if self.backends else REPAIR_BATCH


PLAIN = Repairing()


class Retry(NamedTuple):
    """When to try a repair again that failed."""

    when: float
    wait: float
    """Seconds between the previous attempt and this attempt."""


class Repairs:
    """The leases that wait. They are repaired when it is their turn."""

    def __init__(
        self,
        operations: Operations,
        turns: Turns,
        log: Log,
        clock: Callable[[], float],
        *,
        on_repaired: Callable[[Sequence[Repair], str | None], None],
        on_done: Callable[[Sequence[str], Repairing], None],
    ) -> None:
        """`on_repaired` gets what was repaired, and the reason. `on_done` gets the
        leases whose repair is complete."""
        self._operations = operations
        self._turns = turns
        self._log = log
        self._clock = clock
        self._on_repaired = on_repaired
        self._on_done = on_done
        self._waiting: dict[Repairing, list[str]] = {}
        self._retries: dict[str, dict[Repairing, Retry]] = {}
        """By lease. A repair that succeeds has not done what another one waits for."""

    def __len__(self) -> int:
        """How many leases wait for a retry. Any thread may ask."""
        return len(self._retries)

    def __contains__(self, id: str) -> bool:
        """Whether a lease waits for a retry."""
        return id in self._retries

    def add(self, ids: Sequence[str], what: Repairing = PLAIN) -> None:
        """Repair these leases when it is their turn; try again if that fails."""
        waiting = self._waiting.setdefault(what, [])
        if ids and not waiting:
            self._turns.add(partial(self._repair, what))
        waiting += ids

    def add_later(self, id: str, what: Repairing, wait: float) -> None:
        """Repair a lease in so many seconds, unless it waits for this already."""
        retries = self._retries.setdefault(id, {})
        retries.setdefault(what, Retry(self._clock() + wait, wait))

    def retry(self) -> None:
        """Repair the leases whose retry is due, when it is their turn."""
        now = self._clock()
        for id, retries in self._retries.items():
            for what, retry in retries.items():
                if retry.when <= now:
                    self.add([id], what)

    def hasten(self, reason: str) -> None:
        """Repair the leases that wait for a retry for this reason, when it is their
        turn."""
        for id, retries in self._retries.items():
            for what in retries:
                if what.reason == reason:
                    self.add([id], what)

    def _repair(self, what: Repairing) -> None:
        """Repair the next of the leases that wait."""
        waiting = self._waiting.pop(what)
        self.add(waiting[len(waiting[: what.batch]) :], what)
        ids = [*dict.fromkeys(waiting[: what.batch])]
        failures = Failures()
        left: Sequence[str] = ids
        try:
            self._operations.recover.some(
                ids,
                wiring=what.wiring,
                backends=what.backends,
                on_repaired=lambda repairs: self._on_repaired(repairs, what.reason),
                failures=failures,
            )
            left = ()
        except TapsterError as error:
            left = failures.left(error, ids)
            self._log(WARNING, "not-repaired", leases=" ".join(left), error=error)
        finally:  # also after an error that nobody foresaw
            self._schedule(ids, left, what)
        if done := [id for id in ids if id not in left]:
            self._on_done(done, what)

    def _schedule(
        self, ids: Sequence[str], left: Sequence[str], what: Repairing
    ) -> None:
        """Try again later to repair the leases that are `left`, but not the others."""
        for id in ids:
            last = self._retries.get(id, {}).pop(what, None)
            if id in left:
                wait = min(2 * last.wait, LAST_RETRY) if last else FIRST_RETRY
                self.add_later(id, what, wait)
            elif not self._retries.get(id):
                self._retries.pop(id, None)
