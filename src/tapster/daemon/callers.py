# SPDX-License-Identifier: Apache-2.0
"""Identify the process at the other end of a connection, through the kernel.

This file looks up no name, because that may wait for a directory server. The rules of
the policy have users and groups by id. The configuration has looked up the names of
users that the rules mention.
"""

import os
import socket
from collections.abc import Mapping

from tapster.daemon.policy import Caller
from tapster.kernel import unix


def identify(connected: socket.socket, names: Mapping[int, str]) -> tuple[Caller, int]:
    """Return the caller at the other end, and a pidfd of the calling process, or -1.

    `names` has the known names of users, by id.

    The caller closes the pidfd.
    """
    peer = unix.peer(connected)
    pidfd = unix.peer_pidfd(connected)
    if pidfd is None:
        pidfd = _pidfd_of(peer.pid)
    return Caller(peer.uid, peer.gids, peer.pid, names.get(peer.uid, "")), pidfd


def _pidfd_of(pid: int) -> int:
    """Return a pidfd of a process that has just connected, or -1.

    Only for a kernel that does not give the peer's own pidfd: the pid could, in theory,
    belong to another process by now.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1
