# SPDX-License-Identifier: Apache-2.0
"""QEMU's own control channel: commands with an answer, and events."""

import json
import socket
from collections.abc import Mapping
from typing import Any


class Qmp:
    """A connection to a QEMU that listens on a socket of this path."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lines = connection.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._read()  # the greeting
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """Carry out a command; what it returns. Raises RuntimeError if refused."""
        request = {"execute": name, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._read()
            if "error" in answer:
                raise RuntimeError(f"QEMU refused {name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
            self._events.append(answer)

    def wait_for(self, event: str, **data: Any) -> None:
        """Wait for an event that has this data."""
        while True:
            message = self._events.pop(0) if self._events else self._read()
            if message.get("event") == event and _holds(message.get("data", {}), data):
                return

    def close(self) -> None:
        """Close the connection; QEMU goes on."""
        self._lines.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise EOFError("QEMU has ended")
        message: dict[str, Any] = json.loads(line)
        return message


def _holds(data: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(data.get(key) == value for key, value in wanted.items())
