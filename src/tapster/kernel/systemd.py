# SPDX-License-Identifier: Apache-2.0
"""Sockets from systemd, and messages to it: sd_listen_fds(3), sd_notify(3)."""

import os
import socket

from tapster.errors import RequestError
from tapster.light import suppress

SD_LISTEN_FDS_START = 3


def listeners() -> dict[str, list[socket.socket]]:
    """Return the sockets that systemd listens on for this process, by their names.

    The caller owns them. A second call returns none. Raises RequestError if there is
    something else than sockets.
    """
    meant = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    told = os.environ.pop("LISTEN_FDS", "0")
    if meant and not (told.isascii() and told.isdigit()):
        raise RequestError(f"LISTEN_FDS is a number of sockets, not {told!r}")
    number = int(told) if meant else 0
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for place in range(number):
        fd = SD_LISTEN_FDS_START + place
        name = names[place] if place < len(names) else ""
        try:
            os.set_inheritable(fd, False)
            found.setdefault(name, []).append(socket.socket(fileno=fd))
        except OSError as error:
            raise RequestError(
                f"descriptor {fd} of LISTEN_FDS={told} is no socket: {error.strerror}"
            ) from None
    return found


def notify(state: str) -> None:
    """Send a state to systemd, if it started this process and asked for states."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to,
    ):
        to.sendto(state.encode(), address)
