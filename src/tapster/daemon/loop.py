# SPDX-License-Identifier: Apache-2.0
"""The loop of the thread that serves the sockets: descriptors, and points in time."""

import heapq
import select
import time
from collections.abc import Callable
from itertools import count

READ, WRITE, HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
LONGEST = 60.0
"""Seconds to wait at most when nothing is due."""

OnReady = Callable[[int], None]
"""Called with what a descriptor is ready for: READ, WRITE or HANGUP, or several."""


class Loop:
    """Calls back when a descriptor is ready or a point in time has come.

    A hang-up is reported for each descriptor, also for one that waits for nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._epoll = select.epoll()
        self._calls: dict[int, OnReady] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def add(self, fd: int, events: int, call: OnReady) -> None:
        """Wait for events of a descriptor."""
        self._epoll.register(fd, events)
        self._calls[fd] = call

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Wait for a descriptor no more; close it afterwards, not before."""
        self._epoll.unregister(fd)
        del self._calls[fd]

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call at this time of `now`."""
        heapq.heappush(self._timers, (when, next(self._order), call))

    def turn(self, seconds: float = LONGEST) -> None:
        """Wait, at most so long, and call back for all that is ready or due."""
        if self._timers:
            seconds = min(seconds, self._timers[0][0] - self.now())
        ready = self._epoll.poll(max(seconds, 0.0))
        # A descriptor's number may pass to another file within this turn.
        calls = [(fd, events, self._calls.get(fd)) for fd, events in ready]
        for fd, events, call in calls:
            if call is not None and self._calls.get(fd) is call:
                call(events)
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        """Close the loop, and none of its descriptors."""
        self._epoll.close()
