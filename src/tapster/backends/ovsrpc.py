# SPDX-License-Identifier: Apache-2.0
"""A connection to ovsdb-server, on which nothing waits for ever.

The transport is that of Open vSwitch's own library. Its IDL would copy the whole
database before the first change, and its JSON parser, where it is not compiled,
takes 20 times as long as Python's.

Import it only where it is used: the library takes as long to load as all the rest.
"""

import codecs
import json
import os
from errno import EAGAIN
from typing import Any, Self

import ovs.poller
import ovs.stream
import ovs.timeval

from tapster.backends.ovsdb import Operation, Refused, Row, decoded
from tapster.errors import ServiceUnavailable

PATIENCE = 5.0
"""Seconds that a transaction may take, as many as libvirt gives ovs-vsctl."""
CHUNK = 1 << 16


class Connection:
    """A connection. Making it raises ServiceUnavailable, as what it does."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        error, self._stream = _connect(socket)
        if error:
            raise self._unavailable(os.strerror(error))
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._received = ""
        self._requests = 0

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def transact(self, *operations: Operation) -> list[list[Row]]:
        """Do all or nothing; what each operation found. Raises Refused."""
        self._requests += 1
        self._deadline = ovs.timeval.msec() + PATIENCE * 1000
        request = {
            "method": "transact",
            "params": ["Open_vSwitch", *operations],
            "id": self._requests,
        }
        self._send(json.dumps(request).encode())
        reply = self._reply()
        if reply["error"]:
            raise Refused(str(reply["error"]))
        for result in reply["result"]:
            if result and "error" in result:
                raise Refused(result["error"], result.get("details", ""))
        return [
            [decoded(row) for row in one.get("rows", ())] for one in reply["result"]
        ]

    def _reply(self) -> dict[str, Any]:
        """The reply to the last request; the server may have questions of its own."""
        decoder = json.JSONDecoder()
        while True:
            try:
                message, end = decoder.raw_decode(self._received)
            except ValueError:  # the rest is still to come
                self._received += self._utf8.decode(self._receive())
                continue
            self._received = self._received[end:]
            if message["id"] == self._requests and "method" not in message:
                reply: dict[str, Any] = message
                return reply

    def _send(self, data: bytes) -> None:
        while data:
            sent = self._stream.send(data)
            if sent == -EAGAIN:
                self._wait(self._stream.send_wait)
            elif sent < 0:
                raise self._unavailable(os.strerror(-sent))
            else:
                data = data[sent:]

    def _receive(self) -> bytes:
        while True:
            error, data = self._stream.recv(CHUNK)
            if error == EAGAIN:
                self._wait(self._stream.recv_wait)
            elif error or not data:
                why = os.strerror(error) if error else "it closed the connection"
                raise self._unavailable(why)
            else:
                received: bytes = data
                return received

    def _wait(self, until: Any) -> None:
        if ovs.timeval.msec() >= self._deadline:
            raise self._unavailable(f"no answer in {PATIENCE:g} s")
        poller = ovs.poller.Poller()
        until(poller)
        poller.timer_wait_until(self._deadline)
        poller.block()

    def _unavailable(self, why: str) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"Open vSwitch's database cannot be reached at {self._socket} ({why}): "
            "is ovsdb-server running?"
        )


def listens(socket: str) -> bool:
    """Whether a process listens on a socket, as each daemon of Open vSwitch does."""
    error, stream = _connect(socket)
    if not error:
        stream.close()
    return not error


def _connect(socket: str) -> tuple[int, Any]:
    opened = ovs.stream.Stream.open(f"unix:{socket}")
    found: tuple[int, Any] = ovs.stream.Stream.open_block(opened, PATIENCE * 1000)
    return found
