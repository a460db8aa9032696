# SPDX-License-Identifier: Apache-2.0
"""Finds network namespaces that only open files or mounts keep in use.

A namespace lives while a file of it is open, or while it is mounted. So this module
looks, in every process and every mount namespace, at

- descriptors of namespaces (ioctl_nsfs(2))
- open taps, each of which knows the namespace of its device (TUNGETDEVNETNS in
  drivers/net/tun.c): a VMM may run in another namespace than its device is in
- mounts of namespaces, wherever they are: /run/netns of a container, say

A namespace is not found if other files alone keep it: a socket, an open macvtap, a
descriptor that is on its way through a socket; or if a process keeps it that even
CAP_SYS_PTRACE does not open, because it has more privileges, as the manager of a
container has; or if it is mounted at a path that cannot be followed at once: a path of
more than 4,095 bytes, or on a file system in user space.
"""

import os
from errno import EINVAL, EMFILE, ENFILE, ENOMEM, EPERM
from functools import partial

from tapster.kernel import netns, open_files, tun
from tapster.kernel.failure import has
from tapster.kernel.libc import devices, open_cached
from tapster.light import Callable, Iterable, Iterator


def held_namespaces() -> Iterator[int]:
    """Yield a descriptor of each held namespace, and close it after.

    A namespace may come several times. Raise PermissionError in the end if a process
    could not be looked into for want of CAP_SYS_PTRACE.
    """
    refused = False
    mounts: set[int] = set()
    namespaces = os.stat(netns.OWN).st_dev  # the file system of all namespaces
    device = os.stat(tun.DEVICE).st_rdev if os.path.exists(tun.DEVICE) else -1
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            files = [*open_files.files_of(pid)]
            held = [
                f"/proc/{pid}/fd/{number}"
                for number, found in files
                if found.st_dev == namespaces
            ]
            yield from _open_each(_look_at, held, namespaces)
            mount = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if mount not in mounts:
                yield from _mounted(pid, namespaces)
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
    if refused and not has("CAP_SYS_PTRACE"):
        raise PermissionError(EPERM, "not every process can be looked into")


_SHORTAGES = (EMFILE, ENFILE, ENOMEM)
"""The errors that say nothing of a path."""


def _open_each(
    look_at: Callable[[str], int], paths: Iterable[str], device: int
) -> Iterator[int]:
    """Yield a descriptor of each of these namespaces, and close it after.

    Leave out a path that cannot be followed: another program chose where to mount.
    """
    for path in paths:
        try:
            fd = open_if_namespace(look_at(path), device)
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise
            continue
        try:
            yield fd
        finally:
            os.close(fd)


def _look_at(path: str) -> int:
    """Open a path of /proc, for `open_if_namespace`."""
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def open_if_namespace(found: int, device: int) -> int:
    """Open the namespace at a descriptor with O_PATH, which this function closes.

    Raise OSError with EINVAL if it is another file. To open another file may have
    effects, and to close it drops the locks that this process has on it
    (fcntl_locking(2)). O_PATH has none of these.
    """
    try:
        itself = f"/proc/self/fd/{found}"
        if devices(itself).st_dev != device:
            raise OSError(EINVAL, "not a namespace")
        return netns.open_netns(itself)
    finally:
        os.close(found)


def _mounted(pid: str, device: int) -> Iterator[int]:
    """Yield a descriptor of each namespace that is mounted where a process sees it, and
    close it after."""
    if places := [*_mounts(pid)]:
        root = _look_at(f"/proc/{pid}/root")
        try:
            yield from _open_each(partial(open_cached, root), places, device)
        finally:
            os.close(root)


def _mounts(pid: str) -> Iterator[str]:
    """Yield the places, below its root, of the namespaces that a process sees
    mounted."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            _, _, _, root, place, *_ = line.split(b" ", 5)
            if root.startswith(b"net:["):
                # Spaces and the like are written as \040: proc_pid_mountinfo(5).
                path = place.decode("unicode_escape").encode("latin-1")
                yield os.fsdecode(path).lstrip("/")


def _taps(pid: str, numbers: list[str]) -> Iterator[int]:
    """Yield a descriptor of the namespace of each of these open taps of a process.

    Close it after.
    """
    for tap in open_files.copies(pid, numbers):
        try:
            fd = tun.namespace_of(tap)
        except OSError:
            continue  # it was opened, and is no tap yet
        try:
            yield fd
        finally:
            os.close(fd)
