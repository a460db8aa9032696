# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a connection, as the kernel says."""

import os
import socket

from tapster.daemon.config import caller_of
from tapster.daemon.policy import Caller
from tapster.kernel import unix


def identify(connected: socket.socket) -> tuple[Caller, int]:
    """The caller at the other end, and a pidfd of the calling process, or -1.

    The caller closes the pidfd.
    """
    peer = unix.peer(connected)
    pidfd = unix.peer_pidfd(connected)
    if pidfd is None:
        pidfd = _pidfd_of(peer.pid)
    return caller_of(peer), pidfd


def _pidfd_of(pid: int) -> int:
    """A pidfd of a process that has just connected, or -1.

    Only for a kernel that does not give the peer's own pidfd: the pid could, in theory,
    belong to another process by now.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1
