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
"""Called with the events of a descriptor: READ, WRITE, HANGUP, or several of these."""


class Loop:
    """Calls back when a descriptor is ready or a point in time has come.

    A hang-up is reported for every descriptor, also if no event was asked for.
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
        """Stop waiting for a descriptor. The caller closes it afterwards, not
        before."""
        self._epoll.unregister(fd)
        del self._calls[fd]

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call a function at this time, as `now` counts."""
        heapq.heappush(self._timers, (when, next(self._order), call))

    def turn(self, seconds: float = LONGEST) -> None:
        """Wait at most so long. Then call back for every descriptor and time that is
        due."""
        if self._timers:
            seconds = min(seconds, self._timers[0][0] - self.now())
        ready = self._epoll.poll(max(seconds, 0.0))
        # Within this turn, another file may get the number of a closed descriptor.
        calls = [(fd, events, self._calls.get(fd)) for fd, events in ready]
        for fd, events, call in calls:
            if call is not None and self._calls.get(fd) is call:
                call(events)
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        """Close the loop, but none of its descriptors."""
        self._epoll.close()
