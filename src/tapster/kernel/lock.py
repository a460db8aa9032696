# SPDX-License-Identifier: Apache-2.0
"""Tells which managers live: the kernel drops a manager's lock when its process dies.

A manager holds an open file description lock (fcntl(2), F_OFD_SETLK) on the byte of
its number, in a file beside the ledger. A pid would not do: pids are reused, and a pid
means another process in another pid namespace.

The lock belongs to the open file description, which a forked child shares. So a child
that lives on without exec keeps its parent's locks.

A reaper that is stopped, or frozen with its cgroup, keeps its lock. So a reaper writes
the time into the file whenever it wakes. A reaper that has not been awake for a time is
replaced. The new reaper takes another byte. If both are awake again, the one with the
lower byte ends. Until then they share the work, by their claims.

A reaper starts as slowly as Python does. A lease that is released during that time
needs no second reaper. So a process that starts a reaper first locks a further byte.
The reaper inherits that lock, and frees it when the reaper has a lock of its own. If
the reaper is killed before that, the kernel frees the lock.
"""

import fcntl
import os
import struct

from tapster.errors import HostError, LedgerError
from tapster.kernel import files
from tapster.kernel.boot import boottime
from tapster.light import Iterator, NamedTuple, contextmanager, suppress

# include/uapi/asm-generic/fcntl.h; the fcntl module has no names for them.
F_OFD_GETLK = 36
F_OFD_SETLK = 37

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, len, pid

REAPER = 0
"""The byte of a ledger's reaper. Managers are numbered from 1."""
_FURTHER = range(1 << 62, (1 << 62) + 7)
REAPERS = (REAPER, *_FURTHER)
"""The bytes of reapers: the usual one, and those of the reapers that replace others."""
STARTING = _FURTHER.stop
"""The byte of a reaper that was started, and has no lock of its own yet."""
_WRITTEN = (*REAPERS, STARTING)
"""The bytes whose holders write when they were awake, in the order of the file."""
AWAKE = 15.0
"""Seconds for which a reaper counts as awake. It wakes every 5 seconds at least."""

_WAKING = struct.Struct("=dQQQ")  # CLOCK_BOOTTIME; a pid, its start, its pid namespace


class Waking(NamedTuple):
    """The time at which a reaper was last awake, and the reaper's process."""

    when: float
    pid: int
    start: int
    pidns: int

    def is_recent(self) -> bool:
        """Return whether the reaper counts as awake."""
        return 0 <= boottime() - self.when < AWAKE


class LockFile:
    """The bytes of one lock file, through one open file description."""

    def __init__(
        self, ledger: str, *, make: bool = True, inherited: int | None = None
    ) -> None:
        """Open the lock file of a ledger; make it if missing and `make` is set.

        Or take over `inherited`, a descriptor of it, with the locks of its open file.
        """
        self._path = f"{ledger}.lock"
        if inherited is not None:
            self._fd = inherited
            return
        try:
            if make:
                files.make(self._path)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._failure(error) from error

    def enter(self, byte: int) -> None:
        """Lock `byte`. Raise LedgerError if another process holds it."""
        if not self.try_enter(byte):
            raise LedgerError(
                f"lock file {self._path!r}: another process has locked byte {byte}"
            )

    def try_enter(self, byte: int) -> bool:
        """Lock `byte` unless another process holds it. Return whether it is locked."""
        try:
            self._call(F_OFD_SETLK, fcntl.F_WRLCK, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def free(self, byte: int) -> None:
        """Unlock `byte`."""
        self._call(F_OFD_SETLK, fcntl.F_UNLCK, byte)

    def alive(self, byte: int, count: int = 1) -> bool:
        """Return whether another open file description has locked `byte`.

        With `count`, whether it has locked one of so many bytes.
        """
        return self._call(F_OFD_GETLK, fcntl.F_WRLCK, byte, count) != fcntl.F_UNLCK

    def is_reaper_awake(self, besides: int = -1) -> bool:
        """Return whether a reaper has its lock and is awake.

        Bytes up to `besides` are ignored. A reaper that has written nothing yet has
        just begun.
        """
        further = self.alive(_FURTHER.start, len(_FURTHER))
        for byte in REAPERS if further else (REAPER,):
            if byte > besides and self.alive(byte):
                waking = self.waking(byte)
                if waking is None or waking.is_recent():
                    return True
        return False

    def announce_reaper(self) -> bool:
        """Lock STARTING, for a reaper that is started next, and inherits the file.

        Return False if another reaper has been started, and has no lock yet: it will
        see every lease that is recorded by now, so no other is needed.
        """
        if self.try_enter(STARTING):
            self.awake(STARTING, os.getpid(), 0, 0)
            return True
        waking = self.waking(STARTING)
        return waking is not None and not waking.is_recent()

    def fileno(self) -> int:
        """Return the descriptor of the lock file."""
        return self._fd

    def awake(self, byte: int, pid: int, start: int, pidns: int) -> None:
        """Write that the reaper with this byte is awake."""
        place = _WRITTEN.index(byte) * _WAKING.size
        with suppress(OSError):  # a full disk: it counts as asleep
            waking = _WAKING.pack(boottime(), pid, start, pidns)
            os.pwrite(self._fd, waking, place)

    def waking(self, byte: int) -> Waking | None:
        """Return what the reaper with this byte wrote last; None if it never did."""
        place = _WRITTEN.index(byte) * _WAKING.size
        try:
            written = os.pread(self._fd, _WAKING.size, place)
        except OSError as error:
            raise self._failure(error) from error
        if len(written) < _WAKING.size or not any(written):
            return None
        return Waking(*_WAKING.unpack(written))

    def leave(self) -> None:
        """Close the file. That drops every lock."""
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def _call(self, command: int, kind: int, byte: int, count: int = 1) -> int:
        """Call fcntl(2) for so many bytes. Return the kind of lock in the answer."""
        request = _FLOCK.pack(kind, os.SEEK_SET, byte, count, 0)
        try:
            answer = fcntl.fcntl(self._fd, command, request)
        except (BlockingIOError, PermissionError):
            raise  # another process holds it: fcntl(2)
        except OSError as error:
            raise self._failure(error) from error
        return int(_FLOCK.unpack(answer)[0])

    def _failure(self, error: OSError) -> LedgerError:
        return LedgerError(f"lock file {self._path!r}: {error.strerror}")


@contextmanager
def held(path: str) -> Iterator[None]:
    """Have a file to oneself, among those who ask here: flock(2).

    Other kinds of lock, such as QEMU's on its pid file, do not count. Raise HostError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path!r} cannot be locked: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
