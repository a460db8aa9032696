# SPDX-License-Identifier: Apache-2.0
"""One client's connection: bytes and descriptors, in and out, within bounds.

A connection has at most one request under way. Until its answer has been sent, nothing
more is read. So a client that sends more than it receives delays only itself, and the
memory that it occupies is bounded.
"""

import socket
from collections.abc import Callable, Sequence
from errno import EAGAIN
from functools import partial

from tapster.daemon.closer import Closer
from tapster.daemon.loop import READ, WRITE
from tapster.daemon.policy import Caller
from tapster.daemon.state import READING, ConnectionEvent, ConnectionState, after
from tapster.kernel import unix
from tapster.light import TYPE_CHECKING

if TYPE_CHECKING:
    from tapster.daemon.worker import Job

CHUNK = 1 << 16
"""Bytes to read at a time."""
FDS = 8
"""Descriptors to receive with one read; no request needs more than one."""
BACKLOG = 1 << 18
"""Bytes of events that a watching client may be behind."""


class Connection:
    """A non-blocking socket with its buffers. Owns the socket and `pidfd`."""

    def __init__(
        self,
        sock: socket.socket,
        caller: Caller,
        pidfd: int,
        now: float,
        closer: Closer,
        share: int | None = None,
    ) -> None:
        """`share` is the user id to whose share of the daemon the connection counts, by
        default the caller's."""
        sock.setblocking(False)
        self.socket = sock
        self.fd = sock.fileno()
        self.caller = caller
        self.share = caller.uid if share is None else share
        self.pidfd = pidfd
        self.state = ConnectionState.IDLE
        self.half_closed = False
        """The client has closed its sending side."""
        self.paused = False
        """The client's user has used up its rate."""
        self.held = False
        """Too many descriptors of the client's user wait to be closed."""
        self.scheduled = False
        """The loop will come back to this connection without an event."""
        self.since = now
        """When the first byte of the request arrived, or the daemon began to send the
        answer; otherwise, when the last request was done."""
        self.undo: Callable[[], None] | None = None
        """Undoes the last answer's request, in case the client has not received the
        answer."""
        self.job: Job | None = None
        """The request under way."""
        self.droppable = False
        """Whether the daemon may skip that request if the client leaves."""
        self.next_page: Callable[[], None] | None = None
        """Fetches the next page of a long answer."""
        self.fds: list[int] = []
        """Descriptors that came with the request that is being received."""
        self._closer = closer
        self._in = bytearray()
        self._out = bytearray()
        self._out_fds: Sequence[int] = ()

    @property
    def closed(self) -> bool:
        return self.state is ConnectionState.CLOSED

    def step(self, event: ConnectionEvent) -> None:
        """Go to the state that follows an event."""
        self.state = after(self.state, event)

    def close(self) -> None:
        """Close everything. The caller runs `undo`, if needed."""
        self.step(ConnectionEvent.LOSS)
        self._closer.close_connection(self.share, self.socket)
        self.discard(self.fds)
        unix.close(self._out_fds)
        self.fds, self._out_fds = [], ()
        self._in.clear()
        self._out.clear()
        if self.pidfd >= 0:
            unix.close([self.pidfd])
            self.pidfd = -1

    def discard(self, fds: Sequence[int]) -> None:
        """Close descriptors that the client sent."""
        self._closer.close_fds(self.share, fds)

    @property
    def events(self) -> int:
        """The events to wait for: incoming bytes, or room for outgoing bytes."""
        watching = self.state is ConnectionState.WATCHING
        reading = self.state in READING and not self.half_closed
        reading = reading and not (self.paused or self.held)
        # Answer the present request before reading more: so one request at most is
        # kept.
        reading = reading and (watching or not (self._out or self.has_request))
        return (READ if reading else 0) | (WRITE if self._out else 0)

    @property
    def sending(self) -> bool:
        """Whether bytes wait to be sent."""
        return bool(self._out)

    @property
    def received(self) -> int:
        """Bytes received and not yet taken."""
        return len(self._in)

    @property
    def has_request(self) -> bool:
        """Whether a whole request has been received and not yet taken."""
        return 0 in self._in

    @property
    def behind(self) -> bool:
        """Whether a watching client is too far behind."""
        return len(self._out) > BACKLOG

    @property
    def taken(self) -> bool:
        """Whether the client has received everything that was sent."""
        return not self._out and not unix.untaken(self.socket)

    def receive(self, now: float) -> None:
        """Read once. Raises OSError if the connection or a descriptor is lost."""
        discard = partial(self._closer.close_fds, self.share)
        try:
            data, fds = unix.receive(self.socket, CHUNK, FDS, discard)
        except BlockingIOError:
            return
        if not data:
            self.half_closed = True
            return
        if not self._in:
            self.since = now
        self._in += data
        if fds:
            # Descriptors belong to the last request; the requests before it have none.
            self.discard(self.fds)
            self.fds = fds

    def next_request(self) -> bytes | None:
        """Take the next whole request, without its NUL."""
        end = self._in.find(0)
        if end < 0:
            return None
        request = bytes(self._in[:end])
        del self._in[: end + 1]
        return request

    def send(
        self,
        data: bytes,
        fds: Sequence[int] = (),
        undo: Callable[[], None] | None = None,
    ) -> None:
        """Begin to send, and take the descriptors over. Raises OSError if the
        connection is lost."""
        assert not self._out_fds
        self._out += data
        self._out_fds = fds
        if undo is not None:
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
        if self.state in _SENDING:
            self.step(ConnectionEvent.SENT)


_SENDING = frozenset(
    {
        ConnectionState.WORKING,
        ConnectionState.ANSWERING,
        ConnectionState.WATCHING,
        ConnectionState.CLOSING,
    }
)
