# SPDX-License-Identifier: Apache-2.0
"""A connection to ovsdb-server on which every wait has a limit.

The transport comes from Open vSwitch's own library. The library's IDL would copy the
whole database before the first change. Its JSON parser, where it is not compiled, takes
20 times as long as Python's.

Import this module only where it is used: the library takes as long to load as the rest
of the command.
"""

import codecs
import json
import os
from errno import EAGAIN

import ovs.poller
import ovs.stream
import ovs.timeval

from tapster.backends.ovsdb import Operation, OvsdbRefusal, Row, TooLate, decoded
from tapster.errors import ServiceUnavailable
from tapster.light import Any, Self

ANSWER_SECONDS = 0.5
"""How long ovsdb-server may take by itself, beside the wait that it is asked for."""
CHUNK = 1 << 16


class OvsdbConnection:
    """A connection. Its constructor and its methods raise ServiceUnavailable."""

    def __init__(self, socket: str, seconds: float) -> None:
        """Connect. A transaction may wait so many seconds for ovs-vswitchd."""
        self.seconds = seconds
        self.kept_up = False
        """Whether ovs-vswitchd did in time what it was waited for."""
        self._limit = seconds + ANSWER_SECONDS
        self._socket = socket
        error, self._stream = _connect(socket, self._limit)
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
        """Do all operations or none; return the rows of each. Raises OvsdbRefusal."""
        self._requests += 1
        self._deadline = ovs.timeval.msec() + self._limit * 1000
        request = {
            "method": "transact",
            "params": ["Open_vSwitch", *operations],
            "id": self._requests,
        }
        self._send(json.dumps(request).encode())
        reply = self._reply()
        if reply["error"]:
            raise OvsdbRefusal(str(reply["error"]))
        for result in reply["result"]:
            if result and "error" in result:
                raise OvsdbRefusal(result["error"], result.get("details", ""))
        return [
            [decoded(row) for row in result.get("rows", ())]
            for result in reply["result"]
        ]

    def _reply(self) -> dict[str, Any]:
        """Return the reply to the last request; skip requests of the server."""
        decoder = json.JSONDecoder()
        while True:
            try:
                message, end = decoder.raw_decode(self._received)
            except ValueError:  # the message is not complete yet
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
                reason = os.strerror(error) if error else "it closed the connection"
                raise self._unavailable(reason)
            else:
                received: bytes = data
                return received

    def _wait(self, until: Any) -> None:
        if ovs.timeval.msec() >= self._deadline:
            late = self._unavailable(f"no answer in {self._limit:g} s")
            raise TooLate(str(late))
        poller = ovs.poller.Poller()
        until(poller)
        poller.timer_wait_until(self._deadline)
        poller.block()

    def _unavailable(self, reason: str) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"Open vSwitch's database cannot be reached at {self._socket} ({reason}): "
            "is ovsdb-server running?"
        )


def listens(socket: str) -> bool:
    """Say whether a process listens on a socket, as Open vSwitch's daemons do."""
    error, stream = _connect(socket, ANSWER_SECONDS)
    if not error:
        stream.close()
    return not error


def _connect(socket: str, seconds: float) -> tuple[int, Any]:
    opened = ovs.stream.Stream.open(f"unix:{socket}")
    result: tuple[int, Any] = ovs.stream.Stream.open_block(opened, seconds * 1000)
    return result
