# SPDX-License-Identifier: Apache-2.0
"""Unix sockets that carry descriptors: unix(7).

Python's `recv_fds` and `send_fds` do not report cut control data. So this module uses
recvmsg and sendmsg. Traps:

- If the descriptor table is full, the kernel drops the descriptors that do not fit and
  sets MSG_CTRUNC. The others have arrived. They are closed here.
- Descriptors end a read. They belong to the message of the last byte.
"""

import fcntl
import os
import select
import stat
import struct
import sys
from errno import (
    EAGAIN,
    EEXIST,
    EINVAL,
    EMFILE,
    ENODATA,
    ENOPROTOOPT,
    ENOTCONN,
    ERANGE,
    ESRCH,
)

from tapster.kernel import sockets
from tapster.light import TYPE_CHECKING, Callable, Iterable, NamedTuple, Sequence

if TYPE_CHECKING:
    import socket


SO_SNDTIMEO = 21
SO_PEERGROUPS = 59
SO_PEERPIDFD = 77
SO_PASSRIGHTS = 83
SIOCINQ, SIOCOUTQ = 0x541B, 0x5411
SCM_MAX_FD = 253
"""How many descriptors one message can carry (include/net/scm.h)."""

_UCRED = struct.Struct("iII")
_INT = struct.calcsize("i")


class Peer(NamedTuple):
    """The process that connected, as the kernel recorded it (SO_PEERCRED)."""

    pid: int
    uid: int
    gids: tuple[int, ...]


def connect(path: str, timeout: float | None = None) -> sockets.socket:
    """Connect to the socket at `path`. The caller closes the new socket.

    Connecting, sending and receiving raise TimeoutError after `timeout` seconds each.
    """
    made = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC)
    made.settimeout(timeout)
    try:
        try:
            made.connect(path)
        except BlockingIOError:
            _wait_for_room(made, path, timeout)
    except BaseException:
        made.close()
        raise
    return made


def _wait_for_room(made: sockets.socket, path: str, timeout: float | None) -> None:
    """Connect when the queue of those who wait to be accepted has room again.

    A socket with a timeout of Python's is non-blocking, and does not wait for that: a
    user who connects again and again would keep all others out.
    """
    if timeout is not None:
        whole, parts = divmod(max(int(timeout * 1e6), 1), 1_000_000)
        made.setsockopt(
            sockets.SOL_SOCKET, SO_SNDTIMEO, struct.pack("ll", whole, parts)
        )
    made.settimeout(None)
    while True:
        try:
            made.connect(path)
            made.getpeername()  # Python takes a connect that a signal ended for done
        except BlockingIOError:
            raise TimeoutError(EAGAIN, "the queue of callers stays full") from None
        except OSError as error:
            if error.errno != ENOTCONN:
                raise
        else:
            made.settimeout(timeout)
            return


def listen(path: str, *, mode: int) -> "socket.socket":
    """Return a socket that listens at `path`, with its directory if that is missing.

    A socket at which no process answers is replaced. Raise OSError if a process
    answers there, or if something else than a socket is there.
    """
    directory = os.path.dirname(path)
    if directory:
        umask = os.umask(0o022)  # users go through each directory that is made here
        try:
            os.makedirs(directory, exist_ok=True)
        finally:
            os.umask(umask)
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISSOCK(there.st_mode):
            raise FileExistsError(EEXIST, "something else than a socket is there", path)
        _remove_if_dead(path)
    import socket  # slow, and for the daemon alone: it accepts connections

    made = socket.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC)
    try:
        made.bind(path)
        os.chmod(path, mode)
        made.listen()
    except BaseException:
        made.close()
        raise
    return made


def _remove_if_dead(path: str) -> None:
    try:
        connect(path).close()
    except ConnectionRefusedError:
        os.unlink(path)  # its process was killed
    except FileNotFoundError:
        pass
    else:
        raise FileExistsError(EEXIST, "another process answers there already", path)


def send(to: sockets.socket, data: bytes | bytearray, fds: Sequence[int] = ()) -> int:
    """Send as much of `data` as fits, with all descriptors. Return its length."""
    numbers = struct.pack(f"{len(fds)}i", *fds)
    control = [(sockets.SOL_SOCKET, sockets.SCM_RIGHTS, numbers)]
    return to.sendmsg([data], control if fds else [], sockets.MSG_NOSIGNAL)


def receive(
    at: sockets.socket,
    size: int,
    fds: int,
    discard: Callable[[list[int]], None] | None = None,
) -> tuple[bytes, list[int]]:
    """Return at most `size` bytes and `fds` descriptors, which the caller closes.

    No bytes: the other end has closed. Raises OSError (EMFILE) if the kernel dropped
    descriptors. Then those that did come are closed, by `discard` if that is given.
    """
    space = sockets.CMSG_SPACE(fds * _INT) if fds else 0
    data, control, flags, _ = at.recvmsg(size, space, sockets.MSG_CMSG_CLOEXEC)
    received: list[int] = []
    for level, kind, content in control:
        if (level, kind) == (sockets.SOL_SOCKET, sockets.SCM_RIGHTS):
            whole = len(content) - len(content) % _INT
            received += memoryview(content[:whole]).cast("i")
    if flags & sockets.MSG_CTRUNC:
        (discard or close)(received)
        raise OSError(EMFILE, "more descriptors came than there is room for")
    return data, received


def unread(at: sockets.socket) -> int:
    """Return how many bytes have come and are not yet received."""
    return _number(at, SIOCINQ)


def untaken(of: sockets.socket) -> int:
    """More than 0 if the other end has not yet received all that was sent to it.

    0 also if the other end has closed: `reset` tells whether it had received all.
    """
    return _number(of, SIOCOUTQ)


def reset(of: sockets.socket) -> bool:
    """Return whether the other end closed without having received all. True only
    once."""
    return bool(of.getsockopt(sockets.SOL_SOCKET, sockets.SO_ERROR))


def _number(of: sockets.socket, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(of, request, bytes(_INT)), sys.byteorder)


def shut_down(connection: sockets.socket) -> None:
    """Let neither end send any more; what has come stays."""
    try:
        connection.shutdown(sockets.SHUT_RDWR)
    except OSError:
        return  # the other end has left already


def refuse_descriptors(at: sockets.socket) -> bool:
    """Let the kernel refuse descriptors that are sent here; False if it cannot.

    It can since Linux 6.16.
    """
    try:
        at.setsockopt(sockets.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno == ENOPROTOOPT:
            return False
        raise
    return True


def at_end(of: sockets.socket) -> bool:
    """Return whether the other end has closed, and nothing that it said is unread."""
    # A socket with a timeout waits for data although it is asked not to.
    if not readable(of, 0):
        return False
    try:
        return not of.recv(1, sockets.MSG_PEEK)
    except ConnectionError:
        return True


def readable(at: sockets.socket, seconds: float) -> bool:
    """Wait until the socket can be read, or for `seconds`. Return whether it can."""
    poll = select.poll()
    poll.register(at, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def peer(of: sockets.socket) -> Peer:
    """Return the process at the other end."""
    raw = of.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    try:
        # getsockopt() of Python allows no larger buffer: 256 groups.
        groups = of.getsockopt(sockets.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError as error:
        if error.errno != ERANGE:
            raise
        groups = b""  # in more groups: only the first counts
    return Peer(pid, uid, (gid, *memoryview(groups).cast("I")))


def peer_pidfd(of: sockets.socket) -> int | None:
    """Return a pidfd of the process at the other end. The caller closes it.

    Return None if the process has ended, or if Linux is older than 6.5.
    """
    try:
        raw = of.getsockopt(sockets.SOL_SOCKET, SO_PEERPIDFD, _INT)
    except OSError as error:
        # EINVAL: before Linux 6.16 of a process that has ended.
        if error.errno in (ENOPROTOOPT, ENODATA, ESRCH, EINVAL):
            return None
        raise
    return int.from_bytes(raw, sys.byteorder)


def close(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
