# SPDX-License-Identifier: Apache-2.0
"""Tells which managers live: the kernel drops a manager's lock when its process dies.

A manager holds an open file description lock (fcntl(2), F_OFD_SETLK) on the byte of
its number, in a file beside the ledger. A pid would not do: pids are reused, and a pid
means another process in another pid namespace.

The lock belongs to the open file description, which a forked child shares. So a child
that lives on without exec keeps its parent's locks.
"""

import fcntl
import os
import struct
from contextlib import suppress

from tapster.errors import LedgerError
from tapster.kernel import files

# include/uapi/asm-generic/fcntl.h; the fcntl module has no names for them.
F_OFD_GETLK = 36
F_OFD_SETLK = 37
F_OFD_SETLKW = 38

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, len, pid

REAPER = 0
"""The byte of a ledger's reaper. Managers are numbered from 1."""


class LockFile:
    """The bytes of one lock file, through one open file description."""

    def __init__(self, ledger: str) -> None:
        self._path = f"{ledger}.lock"
        try:
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

    def wait_enter(self, byte: int) -> None:
        """Lock `byte`. Wait for as long as another process holds it."""
        self._call(F_OFD_SETLKW, fcntl.F_WRLCK, byte)

    def free(self, byte: int) -> None:
        """Unlock `byte`."""
        self._call(F_OFD_SETLK, fcntl.F_UNLCK, byte)

    def alive(self, byte: int) -> bool:
        """Return whether another open file description has locked `byte`."""
        return self._call(F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK

    def leave(self) -> None:
        """Close the file. That drops every lock."""
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def _call(self, command: int, kind: int, byte: int) -> int:
        """Call fcntl(2) for one byte. Return the kind of lock in the answer."""
        request = _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
        try:
            answer = fcntl.fcntl(self._fd, command, request)
        except (BlockingIOError, PermissionError):
            raise  # another process holds it: fcntl(2)
        except OSError as error:
            raise self._failure(error) from error
        return int(_FLOCK.unpack(answer)[0])

    def _failure(self, error: OSError) -> LedgerError:
        return LedgerError(f"lock file {self._path!r}: {error.strerror}")
