# SPDX-License-Identifier: Apache-2.0
"""Closes descriptors that clients sent, in threads that delay no other user.

A client may send a descriptor whose last close waits: a TCP socket with SO_LINGER and
unsent data, or a file of a file system in user space. When a connection is closed, the
kernel also closes the descriptors that lie unread in it. So a thread of the sending
user closes both descriptors and connections. The thread ends when it has nothing left
to close.
"""

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from tapster.kernel import process, unix

LINGER = 1.0
"""Seconds that a thread waits for more work: starting a thread takes a while."""


class Closer:
    """One thread for each user whose descriptors or connections were closed
    recently."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[int, deque[Callable[[], None]]] = {}
        """What is left to close, by user. Each user in this table has a thread, unless
        the thread could not be started."""
        self._idle: set[int] = set()
        """The users whose thread could not be started."""

    def waiting(self, user: int) -> int:
        """Return how many of this user's descriptors and connections are not closed
        yet."""
        return len(self._waiting.get(user, ()))

    def close_fds(self, user: int, fds: Iterable[int]) -> None:
        """Close descriptors that a user sent."""
        for fd in fds:
            if process.is_pidfd(fd):  # its close waits for nothing
                unix.close([fd])
            else:
                self._put(user, partial(unix.close, [fd]))

    def close_connection(self, user: int, connection: socket.socket) -> None:
        """Close a user's connection, and the descriptors that lie unread in it."""
        # After this the client can send nothing more into it.
        unix.shut_down(connection)
        if unix.unread(connection):
            self._put(user, connection.close)
        else:
            connection.close()

    def retry(self) -> None:
        """Start the threads that could not be started before.

        The host, or the limits of the daemon's unit, may have had no room for one.
        """
        for user in list(self._idle):
            self._start(user)

    def _put(self, user: int, close: Callable[[], None]) -> None:
        with self._changed:
            if user in self._waiting:
                self._waiting[user].append(close)
                self._changed.notify_all()
                return
            self._waiting[user] = deque([close])
        self._start(user)

    def _start(self, user: int) -> None:
        thread = threading.Thread(
            target=self._run, args=(user,), name=f"closer {user}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # as Python says that there is no room for a thread
            self._idle.add(user)
        else:
            self._idle.discard(user)

    def _run(self, user: int) -> None:
        waiting = self._waiting[user]
        while True:
            # A file of a file system in user space chooses what its close returns.
            with suppress(OSError):
                waiting[0]()
            with self._changed:
                waiting.popleft()
                if not waiting:
                    self._changed.wait_for(lambda: bool(waiting), LINGER)
                if not waiting:
                    del self._waiting[user]
                    return
