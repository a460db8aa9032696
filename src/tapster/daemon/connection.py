# SPDX-License-Identifier: Apache-2.0
"""One client's connection: bytes and descriptors, in and out, within bounds.

A connection has at most one call under way. While it has, and while the answer has
not been taken, nothing more is read: so a client that sends more than it takes holds
up itself, and what it can make the daemon keep is bounded.
"""

import socket
from collections.abc import Callable, Sequence
from errno import EAGAIN
from selectors import EVENT_READ, EVENT_WRITE

from tapster.daemon.policy import Caller
from tapster.kernel import unix

READ = 1 << 16
FDS = 8
"""So many descriptors are taken with one read; nobody needs to send more than one."""
BACKLOG = 1 << 18
"""Bytes of events that a watcher may be behind."""


class Connection:
    """A non-blocking socket with its buffers. Owns the socket and `pidfd`."""

    def __init__(self, sock: socket.socket, caller: Caller, pidfd: int, now: float):
        sock.setblocking(False)
        self.socket = sock
        self.caller = caller
        self.pidfd = pidfd
        self.busy = False
        """A call is under way."""
        self.watching = False
        self.ended = False
        """The client sends no more."""
        self.closing = False
        """To be closed when all is sent."""
        self.closed = False
        self.since = now
        """When a request or its first byte last came, or an answer was last taken."""
        self.undo: Callable[[], None] | None = None
        """What to do if the answer that is being sent is not taken."""
        self.fds: list[int] = []
        self._in = bytearray()
        self._out = bytearray()
        self._out_fds: Sequence[int] = ()

    def close(self) -> None:
        """Close it all; `undo` is the caller's to do."""
        self.closed = True
        self.socket.close()
        unix.close([*self.fds, *self._out_fds])
        self.fds, self._out_fds = [], ()
        if self.pidfd >= 0:
            unix.close([self.pidfd])
            self.pidfd = -1

    @property
    def events(self) -> int:
        """What to wait for: bytes to come, or room for what is to go."""
        reading = not self.ended and not self.closing and not self.busy
        reading = reading and (self.watching or not self._out)
        return (EVENT_READ if reading else 0) | (EVENT_WRITE if self._out else 0)

    @property
    def sending(self) -> bool:
        return bool(self._out)

    @property
    def receiving(self) -> bool:
        """A request has begun to come."""
        return bool(self._in)

    @property
    def full(self) -> bool:
        """A watcher is too far behind."""
        return len(self._out) > BACKLOG

    @property
    def size(self) -> int:
        """Bytes received and not yet taken."""
        return len(self._in)

    def receive(self, now: float) -> None:
        """Read once. Raises OSError if the connection or a descriptor is lost."""
        try:
            data, fds = unix.receive(self.socket, READ, FDS)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
            return
        if not self._in:
            self.since = now
        self._in += data
        if fds:
            # They belong to the last message; what came before has none.
            unix.close(self.fds)
            self.fds = fds

    def next_message(self) -> bytes | None:
        """Take the next whole message, without its NUL."""
        end = self._in.find(0)
        if end < 0:
            return None
        message = bytes(self._in[:end])
        del self._in[: end + 1]
        return message

    def send(
        self,
        data: bytes,
        fds: Sequence[int] = (),
        undo: Callable[[], None] | None = None,
    ) -> None:
        """Begin to send; takes the descriptors over. Raises OSError if it is lost."""
        assert not self._out_fds
        self._out += data
        self._out_fds = fds
        self.undo = undo
        self.flush()

    def flush(self) -> None:
        """Send what can be sent. Raises OSError if the connection is lost."""
        while self._out:
            try:
                sent = unix.send(self.socket, self._out, self._out_fds)
            except OSError as error:
                if error.errno == EAGAIN:
                    return
                raise
            unix.close(self._out_fds)
            self._out_fds = ()
            del self._out[:sent]
        self.undo = None
