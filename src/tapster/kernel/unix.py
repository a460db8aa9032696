# SPDX-License-Identifier: Apache-2.0
"""Unix sockets that carry descriptors: unix(7).

Python's `recv_fds` and `send_fds` drop their flags and what the kernel says of cut
control data, so recvmsg and sendmsg are used themselves. Traps:

- With a full descriptor table the kernel drops what does not fit and sets
  MSG_CTRUNC; the rest has arrived, and is closed here.
- Descriptors end a read: those that come belong to the message of the last byte.
"""

import array
import os
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from errno import EMFILE, ENODATA, ENOPROTOOPT, ERANGE, ESRCH
from typing import NamedTuple

SO_PEERGROUPS = 59
SO_PEERPIDFD = 77
SCM_MAX_FD = 253
"""So many descriptors go with one message: include/net/scm.h."""

_UCRED = struct.Struct("3i")
_INT = array.array("i").itemsize


class Peer(NamedTuple):
    """Who is at the other end, as the kernel says: those who connected."""

    pid: int
    uid: int
    gids: tuple[int, ...]


def connect(path: str) -> socket.socket:
    """A socket connected to the one at `path`; the caller closes it."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.connect(path)
    except BaseException:
        made.close()
        raise
    return made


def listen(path: str, *, mode: int, backlog: int = 128) -> socket.socket:
    """A socket that listens at `path`. Raises OSError if somebody answers there."""
    try:
        connect(path).close()
        raise FileExistsError(f"somebody answers at {path!r} already")
    except ConnectionRefusedError:
        os.unlink(path)  # left by one that was killed
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.bind(path)
        os.chmod(path, mode)
        made.listen(backlog)
    except BaseException:
        made.close()
        raise
    return made


def send(to: socket.socket, data: bytes | bytearray, fds: Sequence[int] = ()) -> int:
    """Send what fits, with all descriptors; how much of `data` that was."""
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    return to.sendmsg([data], control if fds else [], socket.MSG_NOSIGNAL)


def receive(at: socket.socket, size: int, fds: int) -> tuple[bytes, list[int]]:
    """At most `size` bytes and `fds` descriptors, which the caller closes.

    No bytes: the other end has closed. Raises OSError (EMFILE) if descriptors were
    dropped: then none is left open.
    """
    space = socket.CMSG_SPACE(fds * _INT) if fds else 0
    data, control, flags, _ = at.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    received: list[int] = []
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(content) - len(content) % _INT
            received += array.array("i", content[:whole])
    if flags & socket.MSG_CTRUNC:
        close(received)
        raise OSError(EMFILE, "more descriptors came than there is room for")
    return data, received


def readable(at: socket.socket, seconds: float) -> bool:
    """Whether there is something to read, or will be within so many seconds."""
    poll = select.poll()
    poll.register(at, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def peer(of: socket.socket) -> Peer:
    """Who is at the other end."""
    raw = of.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    try:
        # Python gives the kernel no more room than this: 256 groups.
        groups = of.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError as error:
        if error.errno != ERANGE:
            raise
        groups = b""  # in so many groups: then only the first one counts
    return Peer(pid, uid, (gid, *array.array("I", groups)))


def peer_pidfd(of: socket.socket) -> int | None:
    """A pidfd of who is at the other end, for the caller to close; None where the
    kernel has none (it is older than Linux 6.5), or they have ended."""
    try:
        raw = of.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, _INT)
    except OSError as error:
        if error.errno in (ENOPROTOOPT, ENODATA, ESRCH):
            return None
        raise
    (fd,) = array.array("i", raw)
    return fd


def close(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
