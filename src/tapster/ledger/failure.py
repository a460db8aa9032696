# SPDX-License-Identifier: Apache-2.0
"""SQLite's errors as errors of the ledger, with what would be right."""

import os

from tapster.errors import LedgerDamaged, LedgerError
from tapster.kernel import files
from tapster.ledger import sqlite

LITTLE = 1 << 20
"""A file system with fewer free bytes has no room for SQLite's files."""


def failure(path: str, error: sqlite.Error) -> LedgerError:
    """Return the error to raise for an error of SQLite."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # Python's own have none
    if _is_read_only(path):
        # SQLite says so only if its files are there: else, that it cannot open them.
        return LedgerError(
            f"ledger {path!r} cannot be written: its file system is read-only, as "
            "after an error of its disk (see dmesg)"
        )
    if code in (sqlite.SQLITE_FULL, sqlite.SQLITE_IOERR) and _is_full(path):
        return LedgerError(
            f"ledger {path!r}: its file system is full; free some space on it"
        )
    if code == sqlite.SQLITE_CANTOPEN and _has_no_room_for_files(path):
        return LedgerError(
            f"ledger {path!r}: its file system has no room for another file; delete "
            "some there (see df -i)"
        )
    if code == sqlite.SQLITE_CANTOPEN and _is_denied(path):
        return denied(path)
    if code == sqlite.SQLITE_BUSY:
        return LedgerError(f"ledger {path!r} is locked{_by_whom(path)}")
    if code == sqlite.SQLITE_READONLY:
        return LedgerError(
            f"ledger {path!r} cannot be written: the file or its directory is read-only"
        )
    of_the_file = isinstance(error, sqlite.DatabaseError) and not isinstance(
        error,
        sqlite.OperationalError | sqlite.ProgrammingError | sqlite.IntegrityError,
    )
    if of_the_file or str(error).startswith("Could not decode"):
        return damaged(path, str(error))
    return LedgerError(f"ledger {path!r}: {error}")


def damaged(path: str, reason: str) -> LedgerDamaged:
    """Return the error to raise for a file that cannot be understood."""
    return LedgerDamaged(
        f"{path!r} is not a ledger, or a damaged one: {reason}; "
        "if its disk is well, restore it, or move it away to begin a new one"
    )


def denied(path: str) -> LedgerError:
    """Return the error to raise for a file that this process may not use."""
    remedy = "; run as root" if os.geteuid() != 0 else ""
    return LedgerError(f"ledger {path!r}: Permission denied{remedy}")


def _is_denied(path: str) -> bool:
    place = path if os.path.exists(path) else os.path.dirname(path)
    return not os.access(place, os.R_OK | os.W_OK, effective_ids=True)


def _is_full(path: str) -> bool:
    try:
        found = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < LITTLE or found.f_favail == 0


def _has_no_room_for_files(path: str) -> bool:
    try:
        found = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    return found.f_files > 0 and found.f_favail == 0


def _is_read_only(path: str) -> bool:
    try:
        return os.statvfs(os.path.dirname(path)).f_flag & os.ST_RDONLY != 0
    except OSError:
        return False


def _by_whom(path: str) -> str:
    """Name the processes that keep other processes out of the ledger."""
    # The -shm file has the lock of a write-ahead log (wal.c in SQLite).
    holders = files.lock_holders([path, f"{path}-shm"]) - {os.getpid()}
    if not holders:
        return " by another process; try again"
    shown = ", ".join(f"{pid} ({files.command_of(pid)})" for pid in sorted(holders))
    return (
        f" by process {shown}: if it is stopped, let it go on (kill -CONT) or end it, "
        "then try again"
    )
