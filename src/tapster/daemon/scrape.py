# SPDX-License-Identifier: Apache-2.0
"""Just enough HTTP for Prometheus: answers every request with the figures."""

import socket
from collections.abc import Callable, Sequence
from functools import partial

from tapster.daemon.loop import READ, WRITE, Loop

MOST = 16
"""Scrapes at a time. A further one takes the place of the oldest."""
SCRAPE_TIMEOUT = 5.0
"""Seconds that a scrape may take."""
PAUSE = 0.01
"""Seconds from one scrape to the next, for all clients together. If the daemon had no
descriptor left to accept a connection, it tries again after this time."""
LONGEST = 8192
"""Bytes that a request may have."""

Measure = Callable[[Callable[[str], None]], None]


class Scrapers:
    """The open connections of the programs that read a daemon's metrics."""

    def __init__(
        self, loop: Loop, measure: Measure, may_read: Callable[[socket.socket], bool]
    ) -> None:
        """`measure` passes the text of the figures to its argument, a function.
        `may_read` says whether the process at the other end of a socket may read the
        figures."""
        self._may_read = may_read
        self._loop = loop
        self._measure = measure
        self._open: dict[socket.socket, float] = {}
        self._waiting: set[socket.socket] = set()
        """The sockets that the loop waits for."""

    def listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._loop.add(listener.fileno(), READ, partial(self._accept, listener))

    def _accept(self, listener: socket.socket, _: int) -> None:
        self._loop.change(listener.fileno(), 0)
        resume = partial(self._loop.change, listener.fileno(), READ)
        self._loop.at(self._loop.now() + PAUSE, resume)
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        try:
            allowed = self._may_read(accepted)
        except OSError:  # the caller has left, or no descriptor is left
            allowed = False
        if not allowed:
            accepted.close()
            return
        if len(self._open) >= MOST:
            self._close(next(iter(self._open)))
        accepted.setblocking(False)
        now = self._loop.now()
        self._open[accepted] = now
        self._loop.at(now + SCRAPE_TIMEOUT, partial(self._end, accepted))
        self._wait(accepted, READ, partial(self._read, accepted, bytearray()))

    def _wait(
        self, sock: socket.socket, events: int, call: Callable[[int], None]
    ) -> None:
        self._waiting.add(sock)
        self._loop.add(sock.fileno(), events, call)

    def _wait_no_more(self, sock: socket.socket) -> None:
        if sock in self._waiting:
            self._waiting.discard(sock)
            self._loop.remove(sock.fileno())

    def _read(self, sock: socket.socket, request: bytearray, _: int) -> None:
        try:
            data = sock.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        request += data
        if b"\r\n\r\n" in request:
            self._wait_no_more(sock)
            self._measure(partial(self._reply, sock))
        elif not data or len(request) > LONGEST:
            self._close(sock)

    def _reply(self, sock: socket.socket, text: str) -> None:
        if sock not in self._open:
            return
        body = text.encode()
        head = (
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        rest = bytearray(head.encode() + body)
        self._wait(sock, WRITE, partial(self._write, sock, rest))

    def _write(self, sock: socket.socket, rest: bytearray, _: int) -> None:
        try:
            del rest[: sock.send(rest)]
        except BlockingIOError:
            return
        except OSError:
            rest.clear()
        if not rest:
            self._close(sock)

    def _end(self, sock: socket.socket) -> None:
        if sock in self._open:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        del self._open[sock]
        self._wait_no_more(sock)
        sock.close()


def serve(
    loop: Loop,
    listeners: Sequence[socket.socket],
    measure: Measure,
    may_read: Callable[[socket.socket], bool],
) -> None:
    """Answer on these sockets. The caller closes them."""
    scrapers = Scrapers(loop, measure, may_read)
    for listener in listeners:
        scrapers.listen(listener)
