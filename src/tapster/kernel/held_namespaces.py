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
container has.
"""

import os
from collections.abc import Iterator
from errno import EINVAL, EPERM

from tapster.kernel import netns, open_files, tun
from tapster.kernel.failure import has


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
        yield from _open_each(paths, namespaces)
    if refused and not has("CAP_SYS_PTRACE"):
        raise PermissionError(EPERM, "not every process can be looked into")


def _open_each(paths: list[str], device: int) -> Iterator[int]:
    """Yield a descriptor of each of these namespaces, and close it after."""
    for path in paths:
        try:
            fd = open_if_namespace(path, device)
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


def _mounts(pid: str) -> Iterator[str]:
    """Yield paths of the namespaces that are mounted where a process sees them."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            _, _, _, root, place, *_ = line.split(b" ", 5)
            if root.startswith(b"net:["):
                # Spaces and the like are written as \040: proc_pid_mountinfo(5).
                path = place.decode("unicode_escape").encode("latin-1")
                yield f"/proc/{pid}/root{os.fsdecode(path)}"


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
