# SPDX-License-Identifier: Apache-2.0
"""When to reap: the serving thread asks the worker for one batch at a time."""

from collections.abc import Callable
from functools import partial

from tapster.daemon.log import WARNING, Log
from tapster.daemon.loop import Loop
from tapster.daemon.upkeep import Upkeep
from tapster.daemon.worker import Worker
from tapster.errors import TapsterError
from tapster.kernel.boot import boottime
from tapster.light import Any
from tapster.operations.reap import REAP_BATCH

REAP_PAUSE = 0.25
"""Seconds between two reaps. Deleting a device takes 20 ms alone and 0.5 ms in a batch.
So a due device waits a little longer for others."""
FAILED_PAUSE = 1.0
"""Seconds until the next reap after a failure: the failed leases are still due."""
ASIDE = 0.01
"""Seconds until the next attempt if a call waits: reaping lets calls go first."""
LATE = 2.0
"""Seconds after its deadline from which a device is reaped all the same. Many devices
wait by then, and a large batch deletes them in less time."""
SMALL_BATCH = 16
"""Devices in a batch while clients are active: so a call waits 24 ms, and not 36."""
LONGEST = 1.0
"""Seconds until the deadline is read again: other managers change it too."""


class ReapSchedule:
    """Tells the worker to reap when a FIN WAIT is over."""

    def __init__(
        self,
        loop: Loop,
        worker: Worker,
        upkeep: Upkeep,
        log: Log,
        boottime: Callable[[], float] = boottime,
    ) -> None:
        self._loop = loop
        self._worker = worker
        self._upkeep = upkeep
        self._log = log
        self._boottime = boottime
        self._reaping = False
        self._not_before = 0.0
        self._calls = 0
        """How many calls had been done at the previous reap."""

    def seconds(self) -> float:
        """Seconds until `run` has something to do."""
        deadline = self._upkeep.deadline
        if deadline is None or self._reaping:
            return LONGEST
        pause = self._not_before - self._loop.now()
        if pause > 0:  # each turn of the loop asks, and the deadline costs more to ask
            return min(LONGEST, pause)
        return min(LONGEST, max(deadline - self._boottime(), 0.0))

    def run(self) -> None:
        """Tell the worker to reap if a FIN WAIT is over, and no call waits."""
        deadline = self._upkeep.deadline
        if deadline is None or self.seconds() > 0:
            return
        late = self._boottime() - deadline > LATE
        if self._worker.waiting and not late:
            self._not_before = self._loop.now() + ASIDE
            return
        idle = self._calls == self._worker.calls
        self._calls = self._worker.calls
        self._reaping = True
        batch = REAP_BATCH if idle or late else SMALL_BATCH
        self._worker.submit(partial(self._upkeep.reap, batch), self._reaped)

    def _reaped(self, result: Any) -> None:
        self._reaping = False
        pause = REAP_PAUSE
        if isinstance(result, TapsterError):
            self._log(WARNING, "not-reaped", error=result)
            pause = FAILED_PAUSE
        self._not_before = self._loop.now() + pause
