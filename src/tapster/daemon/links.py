# SPDX-License-Identifier: Apache-2.0
"""Gathers reports of changed links, so that the worker looks once for many reports."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from tapster.daemon.loop import READ, Loop
from tapster.daemon.metrics import Metrics
from tapster.daemon.upkeep import Upkeep
from tapster.kernel.port import Watch, WatchReport
from tapster.light import Any

PAUSE = 0.01
"""Seconds between two looks: each acquire causes a dozen reports. The worker looks at
the first report after a quiet time immediately."""
BUSY_PAUSE = 0.05
"""The same while calls wait. Most reports then tell of what the calls do. So an acquire
and the release after it are looked at once, and not in each of their stages."""

Submit = Callable[[Callable[[], Any]], None]


class Links:
    """Takes reports from the watches, and lets the worker look at the named devices."""

    def __init__(
        self,
        loop: Loop,
        watches: Sequence[Watch],
        upkeep: Upkeep,
        submit: Submit,
        metrics: Metrics,
        busy: Callable[[], bool],
    ) -> None:
        """`submit` hands a job to the worker; `busy` says whether calls wait for it.
        Owns the watches."""
        self._loop = loop
        self._watches = watches
        self._upkeep = upkeep
        self._submit = submit
        self._metrics = metrics
        self._busy = busy
        self._changed: deque[WatchReport] = deque()
        self._looking = self._recovering = self._closed = False
        self._paused: set[Watch] = set()
        """The watches that are read at the end of a pause."""
        for watch in watches:
            loop.add(watch.fileno(), READ, partial(self._reported, watch))

    def close(self) -> None:
        self._closed = True
        for watch in self._watches:
            self._loop.remove(watch.fileno())
            watch.close()

    def _reported(self, watch: Watch, _: int) -> None:
        """Read, and then only once in a while until there is nothing to read."""
        if watch not in self._paused:
            self._paused.add(watch)
            self._loop.change(watch.fileno(), 0)
            self._pause(watch)
        self._read(watch)

    def _pause(self, watch: Watch) -> None:
        pause = BUSY_PAUSE if self._busy() else PAUSE
        self._loop.at(self._loop.now() + pause, partial(self._go_on, watch))

    def _go_on(self, watch: Watch) -> None:
        if self._closed:
            return
        if self._read(watch):
            self._pause(watch)
        else:
            self._paused.remove(watch)
            self._loop.change(watch.fileno(), READ)

    def _read(self, watch: Watch) -> bool:
        """Read the reports of a watch. Return whether there were any."""
        changes = watch.changes()
        if changes is None:  # reports were lost: any device may have changed
            self._metrics.add("overruns")
            if not self._recovering:
                self._recovering = True
                self._submit(self._recover)
            return True
        found = any(changes)
        if found:
            self._changed.append(changes)
        if self._changed and not self._looking:
            self._looking = True
            self._submit(self._look)
        return found

    def _recover(self) -> None:
        """Look at every lease. Runs in the worker's thread.

        The flag is cleared first: reports that are lost from now on need another look.
        """
        self._recovering = False
        self._upkeep.recover()

    def _look(self) -> None:
        """Look at what has changed until now. Runs in the worker's thread.

        The flag is cleared first. A report that comes before the queue is read is
        looked at now, and a later report gets a look of its own.
        """
        self._looking = False
        merged = WatchReport({}, set(), {}, {})
        while self._changed:
            changes = self._changed.popleft()
            for number, links in changes.links.items():
                merged.links.setdefault(number, {}).update(links)
            merged.ended.update(changes.ended)
            for number, devices in changes.rules.items():
                merged.rules.setdefault(number, set()).update(devices)
            for number, ports in changes.entries.items():
                merged.entries.setdefault(number, set()).update(ports)
        self._upkeep.look_at(merged)
