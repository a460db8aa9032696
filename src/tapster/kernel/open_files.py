# SPDX-License-Identifier: Apache-2.0
"""Finds the processes that have a device open, and copies their descriptors.

Only /proc says which processes have a device open. A process may have files open that
are on a server which does not answer. No call here waits for such a server.
"""

import os
from errno import ENAMETOOLONG, ENOMEM
from itertools import islice

from tapster.kernel import netns, tun
from tapster.light import (
    TYPE_CHECKING,
    Callable,
    Collection,
    Generator,
    Iterator,
    closing,
    suppress,
)

if TYPE_CHECKING:
    from tapster.kernel.libc import DeviceNumbers

MANY = 1024
"""How many files of another user's process are looked at."""
_NO_PATH = ("socket:", "pipe:", "anon_inode:")
"""The beginnings of the links in /proc/PID/fd that lead to no path."""


def holders(devices: Collection[int]) -> dict[int, int]:
    """Return, by device number, the pid of a process that has the device open.

    Processes that the caller may not look into are left out.
    """
    found: dict[int, int] = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            for _, opened in files_of(pid):
                if opened.st_rdev in devices:
                    found[opened.st_rdev] = int(pid)
        except (*netns.GONE, PermissionError):
            continue
    return found


def open_taps(
    namespace: int,
    ifindex: int,
    find: Callable[[str], int],
    first: Collection[int] = (),
) -> Generator[int]:
    """Yield copies of the descriptors of a tap, as `opened` does.

    `namespace` is a descriptor of the tap's namespace. `find` returns the ifindex of
    the device that has a name there.
    """
    with closing(opened(os.stat(tun.DEVICE).st_rdev, first)) as taps:
        for tap in taps:
            if _is_tap(tap, namespace, ifindex, find):
                yield tap


def held_taps(namespace: int, find: Callable[[str], int]) -> set[int]:
    """Return the ifindexes of the taps of a namespace that a process has open.

    The arguments are as in `open_taps`.
    """
    with closing(opened(os.stat(tun.DEVICE).st_rdev)) as taps:
        return {_ifindex_of(tap, namespace, find) for tap in taps} - {0}


def _is_tap(tap: int, namespace: int, ifindex: int, find: Callable[[str], int]) -> bool:
    """Return whether an open tap is the device with this ifindex in a namespace."""
    return _ifindex_of(tap, namespace, find) == ifindex


def _ifindex_of(tap: int, namespace: int, find: Callable[[str], int]) -> int:
    """Return the ifindex of an open tap; 0 if it is not in this namespace."""
    try:
        there = tun.namespace_of(tap)
        try:
            found, own = os.fstat(there), os.fstat(namespace)
        finally:
            os.close(there)
        if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            return 0
        name = tun.name_of(tap)
    except OSError:
        return 0  # its device is gone, or it is no tap yet
    # It is asked for its name again: it may have been renamed in between.
    ifindex = find(name)
    return ifindex if tun.name_of(tap) == name else 0


def opened(device: int, first: Collection[int] = ()) -> Generator[int]:
    """Yield a copy of each process's descriptors of a device, by the device's number,
    and close it after.

    The processes `first` come first. Processes that the caller may not look into are
    left out.
    """
    likely = [str(pid) for pid in first]
    others = [pid for pid in os.listdir("/proc") if pid.isdecimal()]
    for pid in dict.fromkeys([*likely, *others]):
        try:
            try:
                numbers = [n for n, found in files_of(pid) if found.st_rdev == device]
            except PermissionError:
                if pid not in likely:
                    continue
                numbers = [*_numbers_of_taps(pid)]
            yield from copies(pid, numbers)
        except (*netns.GONE, PermissionError):
            continue


def _numbers_of_taps(pid: str) -> Iterator[str]:
    """Yield the numbers of a process's descriptors of taps, from /proc/PID/fdinfo.

    Only the process's user, or CAP_DAC_READ_SEARCH, may list /proc/PID/fd. For
    /proc/PID/fdinfo CAP_SYS_PTRACE is enough since Linux 5.14; see
    tun_chr_show_fdinfo() in drivers/net/tun.c. A user may have very many files open.
    """
    with os.scandir(f"/proc/{pid}/fdinfo") as entries:
        for entry in islice(entries, MANY):
            with suppress(FileNotFoundError), open(entry.path, "rb") as file:
                if b"\niff:\t" in file.read():
                    yield entry.name


def files_of(pid: str) -> "Iterator[tuple[str, DeviceNumbers]]":
    """Yield the number and the devices of each open file of a process that has a
    path."""
    from tapster.kernel.libc import devices  # rarely needed

    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        try:
            found = None if _has_no_path(path) else devices(path)
        except OSError as error:
            if error.errno == ENOMEM:
                raise
            continue  # it was closed, or its file system tells this caller nothing
        if found is not None:
            yield number, found


def _has_no_path(link: str) -> bool:
    """Return whether a link of /proc/PID/fd leads to no path."""
    try:
        return os.readlink(link).startswith(_NO_PATH)
    except OSError as error:
        if error.errno != ENAMETOOLONG:
            raise
        return False  # the kernel shows 4,095 bytes at most


def copies(pid: str, numbers: list[str]) -> Iterator[int]:
    """Yield a copy of each of these descriptors of a process, and close it after."""
    if not numbers:
        return
    from tapster.kernel.libc import pidfd_getfd  # rarely needed

    pidfd = os.pidfd_open(int(pid))
    try:
        for number in numbers:
            try:
                copy = pidfd_getfd(pidfd, int(number))
            except PermissionError:
                raise
            except OSError:
                continue  # it was closed
            try:
                yield copy
            finally:
                os.close(copy)
    finally:
        os.close(pidfd)
