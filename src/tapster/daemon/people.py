# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a connection, as the kernel says.

No name is looked up here: that may wait for a server. The rules of the policy name
users and groups by id, and the names of users that they mention are at hand.
"""

import os
import socket
from collections.abc import Mapping

from tapster.daemon.policy import Caller
from tapster.kernel import unix


def identify(connected: socket.socket, names: Mapping[int, str]) -> tuple[Caller, int]:
    """Return the caller at the other end, and a pidfd of the calling process, or -1.

    `names` has names of users by id, as far as they are known.

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
