# SPDX-License-Identifier: Apache-2.0
"""Watch a wire for DHCP: which client asked for an address, and which one it got.

tcpdump does the watching, so what is believed here is neither Tapster's word nor the
DHCP server's.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.lines import Lines

_TCPDUMP = ("tcpdump", "-l", "-n", "-v", "-tt", "-Z", "root")
_FILTER = "udp port 67 or udp port 68"

_FIELD = re.compile(
    r"^(?P<time>\d+\.\d+) "
    r"|Client-Ethernet-Address (?P<mac>[0-9a-f:]{17})"
    r"|Your-IP (?P<address>[0-9.]+)"
    r"|DHCP-Message \(53\), length 1: (?P<kind>\w+)"
)


def on_device(name: str) -> tuple[str, ...]:
    """Return the command that listens on a network device."""
    return (*_TCPDUMP, "--immediate-mode", "-i", name, _FILTER)


def in_file(path: Path) -> tuple[str, ...]:
    """Return the command that reads packets from a file or a named pipe."""
    return (*_TCPDUMP, "-r", str(path), _FILTER)


@dataclass(frozen=True)
class DhcpMessage:
    """One DHCP message on the wire."""

    kind: str
    """Discover, Offer, Request or ACK."""
    mac: str
    """The client that asks, or that is answered."""
    address: str | None
    time: float
    """When it passed, on the wall clock."""


class Wire:
    """The DHCP messages that tcpdump has captured so far, and ways to wait for more."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._fields: dict[str, str] = {}
        self._heard: list[DhcpMessage] = []

    def wait_until_listening(self, timeout: float) -> None:
        """Wait until tcpdump misses nothing any more.

        On a named pipe that is when somebody has begun to write to it.
        """
        self._lines.wait_for("listening on|reading from", timeout)

    def heard(self, kind: str, mac: str) -> list[DhcpMessage]:
        """Return the messages of one kind from or to one client, up to now."""
        self.wait_for(lambda: False, 0)
        return self._of(kind, mac)

    def wait_for(self, enough: Callable[[], bool], timeout: float) -> None:
        """Listen until ``enough`` says so, or the time is over."""
        if enough():
            return
        for line in self._lines.until(time.monotonic() + timeout):
            if self._take(line) and enough():
                return

    def wait_for_ack(self, mac: str, timeout: float) -> str | None:
        """Return the address that this client is given, or None in the end."""
        self.wait_for(lambda: bool(self._of("ACK", mac)), timeout)
        return next((m.address for m in self._of("ACK", mac)), None)

    def wait_for_answer(self, mac: str, asks: int, timeout: float) -> bool:
        """Say whether this client got an address before it had asked so often."""
        self.wait_for(
            lambda: (
                bool(self._of("ACK", mac)) or len(self._of("Discover", mac)) >= asks
            ),
            timeout,
        )
        return bool(self._of("ACK", mac))

    def _of(self, kind: str, mac: str) -> list[DhcpMessage]:
        return [m for m in self._heard if (m.kind, m.mac) == (kind, mac)]

    def _take(self, line: str) -> bool:
        """Read a line of tcpdump; say whether it completed a message."""
        match = _FIELD.search(line)
        if match is None:
            return False
        if match["time"]:
            self._fields = {}
        self._fields |= {k: v for k, v in match.groupdict().items() if v}
        # The kind is an option, and the options come after all that is wanted here.
        if match["kind"] is None:
            return False
        self._heard.append(_message(self._fields))
        return True


def _message(fields: dict[str, str]) -> DhcpMessage:
    return DhcpMessage(
        kind=fields["kind"],
        mac=fields["mac"],
        address=fields.get("address"),
        time=float(fields["time"]),
    )
