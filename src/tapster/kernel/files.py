# SPDX-License-Identifier: Apache-2.0
"""The files of a ledger: making them, and finding the processes that lock them."""

import os
from errno import EINVAL, EPERM

from tapster.errors import RequestError
from tapster.light import Iterable, suppress


def absolute(path: str) -> str:
    """Return the path from the root. Raise RequestError if nothing can be there.

    A process may be in a directory that was deleted.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise RequestError(
            f"{path!r} leads nowhere, because the working directory was deleted: give "
            "a path that begins with '/'"
        ) from None


def make(path: str) -> None:
    """Make an empty file if it is missing, readable only by its owner.

    The file belongs to the owner of its directory, if root makes it: a daemon that is
    not root must open what root's command made before. SQLite does the same with the
    files beside its own (robustFchown() in os_unix.c).
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with suppress(FileExistsError):
        made = os.open(path, flags, 0o600)
        try:
            owner = os.stat(os.path.dirname(path))
            if os.geteuid() == 0 != owner.st_uid:
                _give_to(made, owner)
        finally:
            os.close(made)


def _give_to(fd: int, owner: os.stat_result) -> None:
    try:
        os.fchown(fd, owner.st_uid, owner.st_gid)
    except OSError as error:
        # EPERM: root without CAP_CHOWN. EINVAL: the directory's owner has no number
        # in this user namespace (user_namespaces(7)). Then root keeps the file.
        if error.errno not in (EPERM, EINVAL):
            raise


def lock_holders(paths: Iterable[str]) -> set[int]:
    """Return the processes that have a write lock on one of these files.

    Processes in other pid namespaces are not seen. This opens no file: closing it
    would drop the caller's own locks (fcntl(2)).
    """
    wanted = set()
    for path in paths:
        with suppress(FileNotFoundError):
            found = os.stat(path)
            major, minor = os.major(found.st_dev), os.minor(found.st_dev)
            wanted.add(f"{major:02x}:{minor:02x}:{found.st_ino}")
    holders = set()
    with suppress(OSError), open("/proc/locks") as file:  # proc_locks(5)
        for line in file:
            fields = line.split()
            # A line with "->" is a process that waits.
            if fields[1] == "POSIX" and fields[3] == "WRITE" and fields[5] in wanted:
                holders.add(int(fields[4]))
    return holders - {0, -1}


def command_of(pid: int) -> str:
    """Return the name of a process's command, or "?" if that cannot be told."""
    with suppress(OSError), open(f"/proc/{pid}/comm", errors="replace") as file:
        return file.read().strip()
    return "?"
