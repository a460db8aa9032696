# SPDX-License-Identifier: Apache-2.0
"""Just enough HTTP for Prometheus: every request is answered with the figures."""

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

MOST = 4
"""Scrapes at a time."""
PATIENCE = 5.0
LONGEST = 8192

Ask = Callable[[Callable[[str], None]], None]


class _Scrapers:
    """The open connections of one daemon's metrics."""

    def __init__(self, selector: DefaultSelector, ask: Ask) -> None:
        self._selector = selector
        self._ask = ask
        self._open: dict[socket.socket, float] = {}

    def accept(self, listener: socket.socket, _: int) -> None:
        now = time.monotonic()
        for old, since in list(self._open.items()):
            if now - since > PATIENCE:
                self._close(old)
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        if len(self._open) >= MOST:
            accepted.close()
            return
        accepted.setblocking(False)
        self._open[accepted] = now
        self._selector.register(
            accepted, EVENT_READ, partial(self._read, accepted, bytearray())
        )

    def _read(self, sock: socket.socket, request: bytearray, _: int) -> None:
        try:
            data = sock.recv(LONGEST)
        except OSError:
            data = b""
        request += data
        if b"\r\n\r\n" in request:
            self._selector.unregister(sock)
            self._ask(partial(self._reply, sock))
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
        self._selector.register(sock, EVENT_WRITE, partial(self._write, sock, rest))

    def _write(self, sock: socket.socket, rest: bytearray, _: int) -> None:
        try:
            del rest[: sock.send(rest)]
        except BlockingIOError:
            return
        except OSError:
            rest.clear()
        if not rest:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        del self._open[sock]
        with suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()


def serve(
    selector: DefaultSelector, listeners: Sequence[socket.socket], ask: Ask
) -> None:
    """Answer on these sockets; `ask` is given where to put the text."""
    scrapers = _Scrapers(selector, ask)
    for listener in listeners:
        listener.setblocking(False)
        selector.register(listener, EVENT_READ, partial(scrapers.accept, listener))
