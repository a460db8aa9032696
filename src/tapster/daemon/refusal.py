# SPDX-License-Identifier: Apache-2.0
"""Answer callers when the daemon cannot start: systemd's socket accepts them anyway.

Without an answer, a caller would wait until an administrator has removed the cause.
"""

import socket
from collections.abc import Iterable
from contextlib import suppress

from tapster.errors import DaemonError
from tapster.rpc import interface, varlink
from tapster.rpc.wire import NAME

CALLERS = 4096
"""Callers of one socket to answer at most: the longest queue that the kernel keeps."""


def refuse(listeners: Iterable[socket.socket], reason: str) -> None:
    """Answer each caller that waits with a DaemonError.

    Everybody may read `reason`. A caller that comes later makes systemd start the
    daemon again. The request need not be read: the answer is in the caller's queue
    before its socket reports the close.
    """
    answer = _answer(reason)
    for listener in listeners:
        listener.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(CALLERS):
                caller, _ = listener.accept()
                with caller, suppress(OSError):
                    caller.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _answer(reason: str) -> bytes:
    error = DaemonError(
        f"tapsterd cannot start: {reason}; "
        "an administrator finds more with: journalctl -u tapsterd"
    )
    name = f"{NAME}.{type(error).__name__}"
    parameters = varlink.to_json(interface.failure(error))
    return varlink.encode({"error": name, "parameters": parameters})
