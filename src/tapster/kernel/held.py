# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that no name and no process leads to, and that are still in use.

A namespace lives as long as a file of it is open, or it is mounted somewhere. So these
are looked at, in every process and every mount namespace:

- descriptors of namespaces (ioctl_nsfs(2))
- open taps, each of which knows the namespace of its device (TUNGETDEVNETNS in
  drivers/net/tun.c): a VMM may run in another namespace than its device is in
- mounts of namespaces, wherever they are: /run/netns of a container, say

A namespace is not found if other files alone keep it: a socket, an open macvtap, a
descriptor that is on its way through a socket; or if a process keeps it that even
CAP_SYS_PTRACE does not open, because it has more privileges, as the manager of a
container has.
"""

import os
from collections.abc import Collection, Generator, Iterator
from contextlib import suppress
from errno import EINVAL, EPERM
from itertools import islice

from tapster.kernel import netns, tun
from tapster.kernel.failure import has

MANY = 1024
"""How many files of another user's process are looked at."""
_NO_PATH = ("socket:", "pipe:", "anon_inode:")
"""How the targets of links in /proc/PID/fd begin that are no files with a path."""


def held() -> Iterator[int]:
    """Yield a descriptor of each such namespace, and close it after.

    A namespace may come several times. Raise PermissionError in the end if a process
    could not be looked into for want of CAP_SYS_PTRACE.
    """
    refused = False
    mounts: set[int] = set()
    namespaces = os.stat(netns.OWN).st_dev  # the file system of all namespaces
    device = os.stat(tun.DEVICE).st_rdev if os.path.exists(tun.DEVICE) else -1
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            files = [*_files(pid)]
            paths = [
                f"/proc/{pid}/fd/{number}"
                for number, found in files
                if found.st_dev == namespaces
            ]
            mount = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if mount not in mounts:
                paths += _mounts(pid)
                mounts.add(mount)
            yield from _taps(pid, [n for n, found in files if found.st_rdev == device])
        except netns.GONE:
            continue  # the process has ended
        except PermissionError:
            refused = True
            continue
        except OSError as error:
            if error.errno == EINVAL:
                continue  # a zombie sees no mounts
            raise
        for path in paths:
            try:
                fd = open_if_namespace(path, namespaces)
            except netns.GONE:
                continue
            except OSError as error:
                if error.errno == EINVAL:
                    continue  # another file has the number or the place by now
                raise
            try:
                yield fd
            finally:
                os.close(fd)
    if refused and not has("CAP_SYS_PTRACE"):
        raise PermissionError(EPERM, "not every process can be looked into")


def open_if_namespace(path: str, device: int) -> int:
    """Open a namespace; raise OSError with EINVAL if another file is there by now.

    To open another file may have effects, and to close it drops the locks that this
    process has on it (fcntl_locking(2)). So look at it through O_PATH, which has none.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if os.fstat(found).st_dev != device:
            raise OSError(EINVAL, "not a namespace", path)
        return netns.open_netns(f"/proc/self/fd/{found}")
    finally:
        os.close(found)


def _files(pid: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the open files of a process that have a path: its number, and its stat."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        try:
            if not os.readlink(path).startswith(_NO_PATH):
                yield number, os.stat(path)
        except netns.GONE:
            continue  # it was closed


def _mounts(pid: str) -> Iterator[str]:
    """Yield paths of the namespaces that are mounted where a process sees them."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            _, _, _, root, place, *_ = line.split(b" ", 5)
            if root.startswith(b"net:["):
                # Spaces and the like are written as \040: proc_pid_mountinfo(5).
                path = place.decode("unicode_escape").encode("latin-1")
                yield f"/proc/{pid}/root{os.fsdecode(path)}"


def holders(devices: Collection[int]) -> dict[int, int]:
    """Return, by device number, the pid of a process that has the device open.

    Processes that the caller may not look into are left out.
    """
    found: dict[int, int] = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            for _, opened in _files(pid):
                if opened.st_rdev in devices:
                    found[opened.st_rdev] = int(pid)
        except (*netns.GONE, PermissionError):
            continue
    return found


def open_taps(first: Collection[int] = ()) -> Generator[int]:
    """Yield a copy of each process's descriptors of taps, and close it after.

    The processes `first` come first. Processes that the caller may not look into are
    left out.
    """
    device = os.stat(tun.DEVICE).st_rdev
    likely = [str(pid) for pid in first]
    others = [pid for pid in os.listdir("/proc") if pid.isdecimal()]
    for pid in dict.fromkeys([*likely, *others]):
        try:
            try:
                numbers = [n for n, found in _files(pid) if found.st_rdev == device]
            except PermissionError:
                if pid not in likely:
                    continue
                numbers = [*_numbers_of_taps(pid)]
            yield from _copies(pid, numbers)
        except (*netns.GONE, PermissionError):
            continue


def _numbers_of_taps(pid: str) -> Iterator[str]:
    """Yield the numbers of a process's descriptors of taps, by what is public.

    /proc/PID/fd is its user's alone, or CAP_DAC_READ_SEARCH is needed. For
    /proc/PID/fdinfo CAP_SYS_PTRACE is enough since Linux 5.14; tun_chr_show_fdinfo()
    in drivers/net/tun.c. A user may have very many files open.
    """
    with os.scandir(f"/proc/{pid}/fdinfo") as entries:
        for entry in islice(entries, MANY):
            with suppress(FileNotFoundError), open(entry.path, "rb") as file:
                if b"\niff:\t" in file.read():
                    yield entry.name


def _taps(pid: str, numbers: list[str]) -> Iterator[int]:
    """Yield a descriptor of the namespace of each of these open taps of a process.

    Close it after.
    """
    for tap in _copies(pid, numbers):
        try:
            fd = tun.namespace_of(tap)
        except OSError:
            continue  # it was opened, and is no tap yet
        try:
            yield fd
        finally:
            os.close(fd)


def _copies(pid: str, numbers: list[str]) -> Iterator[int]:
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
