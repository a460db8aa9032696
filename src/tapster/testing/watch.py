# SPDX-License-Identifier: Apache-2.0
"""A watch on the links of the host in memory."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from tapster.kernel.port import HERE, WatchReport
from tapster.model import Link
from tapster.testing.world import World


class FakeWatch:
    """Sees changes of links, as `tapster.kernel.watch.LinkWatch` does.

    Its descriptor is readable after `FakeSystem.deliver`, so that a test decides when
    its reader wakes up.
    """

    def __init__(
        self,
        world: Callable[[], World],
        link_of: Callable[[int, int], Link | None],
        *,
        first: int,
        elsewhere: bool,
    ) -> None:
        """`link_of` gives a link by the cookie of its namespace and its ifindex."""
        self.elsewhere = elsewhere
        self._first = first
        self.closed = False
        self._world = world
        self._link_of = link_of
        self._handle = world().number()
        self._cookies: set[int] = set()
        self._numbered: set[int] = set()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._overrun = False
        if not elsewhere:
            self._look_into(world().own)

    def include(self, cookie: int) -> None:
        """Know this namespace by a number from now on."""
        self._numbered.add(cookie)
        if self.elsewhere:
            self._look_into(cookie)

    def _look_into(self, cookie: int) -> None:
        self._cookies.add(cookie)
        self._world().spaces[cookie].watches.setdefault(self._handle, set())

    def overrun(self) -> None:
        """Lose the reports, as a socket with a full buffer does."""
        self._overrun = True
        self.deliver()

    def deliver(self) -> None:
        """Let `fileno` be readable."""
        os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        return self._event

    def changes(self) -> WatchReport | None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        changes = WatchReport({}, set(), {}, {})
        spaces = self._world().spaces
        if not self.elsewhere:
            changes.ended.update(self._numbered - spaces.keys())
        self._cookies &= spaces.keys()
        self._numbered &= spaces.keys()
        for cookie in sorted(self._cookies):
            number = cookie if self.elsewhere else HERE
            seen = spaces[cookie].watches[self._handle]
            links = {
                ifindex: self._report(cookie, ifindex)
                for ifindex in seen
                if ifindex >= self._first
            }
            if links:
                changes.links[number] = links
            seen.clear()
        overrun, self._overrun = self._overrun, False
        return None if overrun else changes

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        os.close(self._event)
        for cookie in self._cookies & self._world().spaces.keys():
            self._world().spaces[cookie].watches.pop(self._handle, None)

    def _report(self, cookie: int, ifindex: int) -> Callable[[], Link] | None:
        link = self._link_of(cookie, ifindex)
        return None if link is None else partial(_same, link)


def _same(link: Link) -> Link:
    return link
