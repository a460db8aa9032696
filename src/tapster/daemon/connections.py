# SPDX-License-Identifier: Apache-2.0
"""The open connections: admits clients, reads their requests, and drops connections.

Each user has a share of the connections and of the requests. A user who sends more
than the rate allows is not read until the rate allows it again.
"""

import socket
from collections.abc import Callable, Sequence
from errno import EMFILE, ENFILE
from functools import partial

from tapster.daemon.closer import Closer
from tapster.daemon.config import Limits
from tapster.daemon.connection import Connection
from tapster.daemon.log import WARNING, Log
from tapster.daemon.loop import HANGUP, READ, WRITE, Loop
from tapster.daemon.metrics import Metrics
from tapster.daemon.policy import Caller
from tapster.daemon.state import ConnectionEvent, ConnectionState
from tapster.daemon.throttle import Throttle
from tapster.errors import Overloaded, RequestError, TapsterError
from tapster.kernel import unix

ACCEPTS = 8
"""Connections to accept at a time, before others are served."""
ACCEPT_PAUSE = 0.002
"""Seconds until further connections are accepted, after ACCEPTS came at a time. The
user of a connection is known only after accepting it. So this pause alone keeps a flood
of connections from delaying other users."""
REQUESTS = 8
"""Requests of one connection to take at a time, before others are served."""
TAKEN_PAUSE = 0.01
"""A client can send its next request before it has received an answer. Then the daemon
looks again after so many seconds whether the client has received the answer."""
STRANGERS = -2
"""Stands for all users for whom there is no rule: they have one share together. One
user may have the ids of thousands (subuid(5))."""
CLOSING_FDS = 64
"""Descriptors of a user that may wait to be closed."""
CLOSING_PAUSE = 0.05
"""Seconds until the daemon looks again whether fewer wait."""

OnRequest = Callable[[Connection, bytes], None]


class Connections:
    """The clients of one daemon."""

    def __init__(
        self,
        loop: Loop,
        limits: Callable[[], Limits],
        metrics: Metrics,
        log: Log,
        *,
        identify: Callable[[socket.socket], tuple[Caller, int]],
        is_stranger: Callable[[Caller], bool] = lambda _: False,
        may_send_descriptors: Callable[[Caller], bool] = lambda _: True,
    ) -> None:
        """`limits` gives the limits as they are now; `identify` gives the caller at the
        other end of a socket, and a pidfd of the calling process or -1. A stranger is
        a caller for whom there is no rule. If the caller may not send descriptors, the
        kernel refuses them, where it can."""
        self.on_request: OnRequest = _ignore
        """Called with each request that is to be answered."""
        self.take_back: Callable[[Callable[[], None]], None] = _call
        """Called with the undo of an answer that its client did not receive."""
        self.fail: Callable[[Connection, TapsterError], None] = _ignore_error
        """Called to send an error to a connection that is about to be closed."""
        self.explain: Callable[[Exception], object] = _ignore_fault
        """Called with an error that nobody foresaw."""
        self.stopping = False
        self._loop = loop
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._identify = identify
        self.is_stranger = is_stranger
        self._may_send_descriptors = may_send_descriptors
        self._throttle = Throttle()
        self._closer = Closer()
        self._open: dict[Connection, None] = {}
        self._watching: dict[Connection, None] = {}
        """The open connections whose clients have asked to watch."""
        self._by_user: dict[int, int] = {}
        self._waiting: dict[int, dict[Connection, None]] = {}
        """The paused connections of each user, in the order of their requests."""
        self._events: dict[Connection, int] = {}
        """The events that the loop waits for, by connection."""
        self._paused_listeners: list[socket.socket] = []
        self._logged: set[tuple[int, str]] = set()
        """What has been logged about each user, so that it is logged once."""

    def __len__(self) -> int:
        return len(self._open)

    def subscribe(self, connection: Connection) -> None:
        """Let a client watch from now on."""
        connection.step(ConnectionEvent.SUBSCRIPTION)
        self._watching[connection] = None

    def watching(self) -> Sequence[Connection]:
        """Return the connections whose clients watch."""
        # Each event asks for them. Most of a busy daemon's connections do not watch.
        watching = ConnectionState.WATCHING
        return [
            connection for connection in self._watching if connection.state is watching
        ]

    # Accepting

    def listen(self, listener: socket.socket) -> None:
        """Accept connections on this socket, which stays the caller's."""
        listener.setblocking(False)
        self._loop.add(listener.fileno(), READ, partial(self._accept, listener))

    def _accept(self, listener: socket.socket, _: int) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._not_accepted(listener, error)
                return
            try:
                self.welcome(accepted)
            except OSError as error:
                accepted.close()
                self._not_accepted(listener, error)
                return
        self._accept_later(listener)

    def _accept_later(self, listener: socket.socket) -> None:
        fd = listener.fileno()
        self._loop.change(fd, 0)

        def resume() -> None:
            if not self.stopping and listener not in self._paused_listeners:
                self._loop.change(fd, READ)

        self._loop.at(self._loop.now() + ACCEPT_PAUSE, resume)

    def _not_accepted(self, listener: socket.socket, error: OSError) -> None:
        if (STRANGERS, "not-accepted") not in self._logged:
            self._logged.add((STRANGERS, "not-accepted"))
            self._log(WARNING, "not-accepted", error=error)
        if error.errno in (EMFILE, ENFILE):
            # Retrying before a descriptor is free would only use processor time.
            self._loop.remove(listener.fileno())
            self._paused_listeners.append(listener)

    def _resume_listeners(self) -> None:
        """Accept again: a descriptor may be free."""
        listeners, self._paused_listeners = self._paused_listeners, []
        for listener in listeners:
            self.listen(listener)

    def welcome(self, accepted: socket.socket) -> None:
        """Take in a client. Raises OSError; then the socket stays the caller's."""
        caller, pidfd = self._identify(accepted)
        if not self._may_send_descriptors(caller):
            unix.refuse_descriptors(accepted)
        now = self._loop.now()
        share = STRANGERS if self.is_stranger(caller) else caller.uid
        connection = Connection(accepted, caller, pidfd, now, self._closer, share)
        self._open[connection] = None
        self._by_user[share] = self._by_user.get(share, 0) + 1
        self._events[connection] = READ
        self._loop.add(connection.fd, READ, partial(self._ready, connection))
        if reason := self.crowded(connection):
            self._metrics.add("refused", "connections")
            self._log_once(connection, "crowded", reason)
            connection.step(ConnectionEvent.REJECTION)
            self.fail(connection, Overloaded(reason))
            self.drop(connection, "crowded")

    def crowded(self, newcomer: Connection) -> str | None:
        """Return why there is no room for one more connection of its user, or None."""
        caller, share = newcomer.caller, newcomer.share
        if caller.root:
            return None
        limits = self._limits()
        if self._by_user[share] > limits.connections_per_user:
            if share == STRANGERS:
                return "too many users for whom there is no rule are connected"
            return f"{caller} has {limits.connections_per_user} connections: close some"
        if self._closer.waiting(share) > CLOSING_FDS:
            return f"descriptors that {caller} sent are still being closed"
        if len(self._open) > limits.connections and not self._make_room(share):
            return f"there are {limits.connections} connections: try again later"
        return None

    def _make_room(self, share: int) -> bool:
        """Drop a connection of the user with the most connections; if no user has more
        than the newcomer, the one that has been idle for the longest time.

        Return whether there is room now. The client of an idle connection connects
        again at its next call.
        """
        user = max(self._by_user, key=self._by_user.__getitem__)
        others = [connection for connection in self._open if connection.share != share]
        idle = [
            connection
            for connection in others
            if connection.state is ConnectionState.IDLE and connection.undo is None
        ]
        if self._by_user[user] > self._by_user[share]:
            others = [connection for connection in others if connection.share == user]
            idle = [connection for connection in idle if connection.share == user]
            idle = idle or others
        if not idle:
            return False
        evicted = min(idle, key=lambda connection: connection.since)
        self._log_once(evicted, "evicted", "other users need connections")
        self.drop(evicted, "evicted")
        return True

    def _log_once(self, connection: Connection, event: str, detail: str) -> None:
        """Log what happens to a user, but only once until `sweep` forgets it."""
        if (connection.share, event) not in self._logged:
            self._logged.add((connection.share, event))
            user = connection.caller.uid
            self._log(WARNING, event, user=user, detail=detail)

    # Serving

    def _ready(self, connection: Connection, events: int) -> None:
        try:
            if self._exchange(connection, events):
                self.go_on(connection)
        except Exception as error:  # noqa: BLE001 - one client must not end all
            self._fault(connection, error)

    def _exchange(self, connection: Connection, events: int) -> bool:
        """Send and receive what can be. Return whether to go on with the connection."""
        now = self._loop.now()
        try:
            if events & WRITE and connection.sending:
                if connection.state is ConnectionState.WATCHING:
                    connection.since = now
                connection.flush()
            if events & READ and connection.events & READ:
                connection.receive(now)
            elif events & HANGUP:
                self._lost(connection)
                return False
            elif events & READ:
                self._events[connection] = connection.events
                self._loop.change(connection.fd, connection.events)
                return False
        except OSError as error:
            self.drop(connection, error.strerror or "lost")
            return False
        if connection.fds and self._closer.waiting(connection.share) > CLOSING_FDS:
            connection.held = True
            self._loop.at(now + CLOSING_PAUSE, partial(self._let_go, connection))
        return True

    def _let_go(self, connection: Connection) -> None:
        """Read again from a client that sent descriptors, once fewer are left to be
        closed."""
        if connection not in self._open:
            return
        if self._closer.waiting(connection.share) > CLOSING_FDS:
            self._log_once(connection, "delayed", "its descriptors are not closed yet")
            when = self._loop.now() + CLOSING_PAUSE
            self._loop.at(when, partial(self._let_go, connection))
            return
        connection.held = False
        self._resume(connection)

    def _fault(self, connection: Connection, error: Exception) -> None:
        """Close a connection for which the daemon itself has failed."""
        self.explain(error)
        self.drop(connection, "fault")

    def _lost(self, connection: Connection) -> None:
        """Act on a client that left while its connection is not read."""
        if connection.state is ConnectionState.WORKING and not connection.droppable:
            # The request is carried out all the same. The hang-up is known now.
            connection.half_closed = True
            self._forget(connection)
            return
        if not connection.sending and not unix.reset(connection.socket):
            connection.undo = None  # it had received the last answer
        self.drop(connection, "closed")

    def go_on(self, connection: Connection) -> None:
        """Take requests that have arrived, as far as they can be answered now."""
        limit = self._limits().message
        taken = 0
        while (
            connection.state is ConnectionState.IDLE
            and not connection.sending
            and not connection.paused
            and not self.stopping
        ):
            if taken == REQUESTS:
                self._come_back(connection, 0.0)
                break
            if connection.undo is not None and not self._confirm(connection):
                break
            if not self._may_go_on(connection):
                break
            request = connection.next_request()
            if request is None or len(request) > limit:
                if request is not None or connection.received > limit:
                    self.reject(connection, f"a request has at most {limit} bytes")
                break
            taken += 1
            connection.since = self._loop.now()
            connection.step(ConnectionEvent.REQUEST)
            self.on_request(connection, request)
        if connection.state is ConnectionState.WATCHING and connection.received:
            self.reject(connection, "a client that watches has nothing to send")
        if connection.state is ConnectionState.WORKING and not connection.sending:
            self._fetch_page(connection)
        self.settle(connection)

    def _resume(self, connection: Connection) -> None:
        connection.scheduled = False
        if connection not in self._open:
            return
        try:
            self.go_on(connection)
        except Exception as error:  # noqa: BLE001 - as in `_ready`
            self._fault(connection, error)

    def _fetch_page(self, connection: Connection) -> None:
        fetch, connection.next_page = connection.next_page, None
        if fetch is not None:
            fetch()

    def _confirm(self, connection: Connection) -> bool:
        """Return whether the client has received its last answer; if not, look again
        soon."""
        if not connection.received and not connection.half_closed:
            return True  # no lease depends on the answer yet
        if connection.taken:
            connection.undo = None
            return True
        self._come_back(connection, TAKEN_PAUSE)
        return False

    def _come_back(self, connection: Connection, seconds: float) -> None:
        """Go on with a connection later, even if no event arrives until then."""
        if not connection.scheduled:
            connection.scheduled = True
            when = self._loop.now() + seconds
            self._loop.at(when, partial(self._resume, connection))

    def _may_go_on(self, connection: Connection) -> bool:
        """Return whether the rate of the connection's user allows a request now."""
        if connection.caller.root or not connection.has_request:
            return True
        user, now = connection.share, self._loop.now()
        delay = self._throttle.admit(user, self._limits().requests, now)
        if not delay:
            return True
        if connection not in self._events:
            self.drop(connection, "closed")  # its client has left
            return False
        connection.paused = True
        self._metrics.add("delayed")
        self._log_once(connection, "delayed", "more requests than the rate allows")
        if user not in self._waiting:
            self._waiting[user] = {}
            self._loop.at(now + delay, partial(self._admit_next, user))
        self._waiting[user][connection] = None
        return False

    def charge(self, connection: Connection, work: float) -> None:
        """Charge a user for the seconds of processor time that a request took."""
        if not connection.caller.root:
            rate, now = self._limits().requests, self._loop.now()
            self._throttle.charge(connection.share, rate, work, now)

    def _admit_next(self, user: int) -> None:
        """Let the next paused connection of a user go on."""
        waiting = self._waiting[user]
        if waiting:
            connection = next(iter(waiting))
            del waiting[connection]
            connection.paused = False
            self._resume(connection)
        if waiting:
            pause = 1.0 / self._limits().requests
            self._loop.at(self._loop.now() + pause, partial(self._admit_next, user))
        else:
            del self._waiting[user]

    def settle(self, connection: Connection) -> None:
        """Wait for the next event of a connection, or close the connection."""
        if connection not in self._open:
            return
        state = connection.state
        leaves = connection.half_closed and not connection.sending
        if state is ConnectionState.CLOSED:
            self.drop(connection, "closed")
        elif leaves and state in (ConnectionState.IDLE, ConnectionState.WATCHING):
            if connection.has_request:  # it waits for its turn
                self._wait_for(connection)
                return
            if not unix.reset(connection.socket):
                if connection.undo is not None and not connection.taken:
                    self._wait_for(connection)  # it may still read the last answer
                    return
                connection.undo = None
            self.drop(connection, "closed")
        else:
            self._wait_for(connection)

    def _forget(self, connection: Connection) -> None:
        """Stop waiting for events of this connection."""
        if self._events.pop(connection, None) is not None:
            self._loop.remove(connection.fd)

    def _wait_for(self, connection: Connection) -> None:
        events = connection.events
        if connection not in self._events:
            return
        if not events and connection.state is ConnectionState.WORKING:
            # Most clients send nothing before they have the answer, and cost no system
            # call here. `_ready` handles the other clients.
            return
        if self._events[connection] != events:
            self._events[connection] = events
            self._loop.change(connection.fd, events)

    def send(
        self,
        connection: Connection,
        data: bytes,
        fds: Sequence[int] = (),
        undo: Callable[[], None] | None = None,
    ) -> None:
        """Send to a client; takes the descriptors over."""
        if not connection.sending:
            connection.since = self._loop.now()
        try:
            connection.send(data, fds, undo)
        except OSError as error:
            self.drop(connection, error.strerror or "lost")
            return
        if connection.behind:
            self.drop(connection, "behind")
            return
        self.settle(connection)

    def reject(self, connection: Connection, reason: str) -> None:
        """Send a client an error and hang up: the bytes that follow cannot be
        understood."""
        connection.step(ConnectionEvent.REJECTION)
        self.fail(connection, RequestError(reason))

    # Closing

    def drop(self, connection: Connection, reason: str) -> None:
        """Close a connection, and take back what its client did not receive."""
        if connection not in self._open:
            return
        del self._open[connection]
        self._watching.pop(connection, None)
        user = connection.share
        self._by_user[user] -= 1
        if not self._by_user[user]:
            del self._by_user[user]
        if connection.paused:
            del self._waiting[user][connection]
        if connection.job is not None and connection.droppable:
            connection.job.drop()
        undo, connection.undo = connection.undo, None
        self._forget(connection)
        connection.close()
        if undo is not None:
            self.take_back(undo)
        self._metrics.add("dropped", reason)
        self._resume_listeners()

    def drop_all(self, reason: str) -> None:
        """Close every connection at the daemon's end. A client may still receive an
        answer that was sent completely, so such an answer is not undone."""
        self._paused_listeners = []
        for connection in list(self._open):
            if not connection.sending:
                connection.undo = None
            self.drop(connection, reason)

    def sweep(self) -> None:
        """Drop the connections that are idle or stalled."""
        now = self._loop.now()
        limits = self._limits()
        self._throttle.forget(limits.requests, now)
        self._closer.retry()
        self._logged.clear()
        self._resume_listeners()
        for connection in list(self._open):
            quiet = now - connection.since
            if connection.sending or (
                connection.state is ConnectionState.IDLE
                and connection.received
                and not connection.paused
                and not connection.has_request
            ):
                if quiet > limits.stall:
                    self.drop(connection, "stalled")
            elif connection.state is ConnectionState.IDLE and not connection.paused:
                # A client that is stopped can still read an answer when it continues.
                kept = connection.undo is not None and not connection.taken
                if quiet > limits.idle and not kept:
                    connection.undo = None
                    self.drop(connection, "idle")


def _ignore(connection: Connection, request: bytes) -> None:
    """Stand in until the connections are given to a dispatcher."""


def _ignore_error(connection: Connection, error: TapsterError) -> None:
    """Stand in until the connections are given to a dispatcher."""


def _ignore_fault(error: Exception) -> None:
    """Stand in until the connections are given to a dispatcher."""


def _call(undo: Callable[[], None]) -> None:
    undo()
