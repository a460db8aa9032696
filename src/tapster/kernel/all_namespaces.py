# SPDX-License-Identifier: Apache-2.0
"""Finds all network namespaces that are in use, by name, by a process or by a file."""

import os
from errno import EINVAL

from tapster.kernel import netns
from tapster.kernel.held_namespaces import held_namespaces
from tapster.kernel.libc import setns
from tapster.light import Iterator


def cookies() -> set[int]:
    """Return the cookies of all namespaces that are in use.

    Raise OSError if that cannot be determined.
    """
    found: set[int] = set()
    with netns.coming_back():
        for fd, _ in named_and_others():
            setns(fd, netns.CLONE_NEWNET)
            found.add(netns.cookie())
    return found


def named_and_others() -> Iterator[tuple[int, str]]:
    """Yield a descriptor of each namespace that is in use, and close it after.

    First those that have a name, each with its path, then those that `everywhere`
    yields, with "". So a namespace may come twice. Raise OSError as `everywhere`.
    """
    for path in netns.named():
        try:
            fd = netns.open_netns(path)
        except netns.GONE:
            continue
        except OSError as error:
            if error.errno != EINVAL:
                raise
            continue  # no namespace any more
        try:
            yield fd, path
        finally:
            os.close(fd)
    for fd in everywhere():
        yield fd, ""


def everywhere() -> Iterator[int]:
    """Yield a descriptor of each namespace that is in use, and close it after.

    First those that a process is in, then those that files keep. Raise OSError if /proc
    does not tell. Raise PermissionError at the end if there is a namespace that the
    caller may not open.
    """
    # To open /proc/PID/ns/net one needs every capability that the process has, which
    # may be more than root has. /proc/PID/net/dev can be looked at without them, and
    # its inode is the same for all processes of a namespace. So one process that can
    # be opened is enough for each namespace.
    opened: set[int] = set()
    refused: list[tuple[int, str, PermissionError]] = []
    os.stat("/proc/1/net/dev")  # it is hidden (hidepid in proc(5)) if processes are
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            inode = os.stat(f"/proc/{pid}/net/dev").st_ino
        except netns.GONE:
            continue
        if inode in opened:
            continue
        try:
            fd = netns.open_netns(f"/proc/{pid}/ns/net")
        except PermissionError as error:
            refused.append((inode, pid, error))
            continue
        except netns.GONE:
            continue
        opened.add(inode)
        try:
            yield fd
        finally:
            os.close(fd)
    yield from held_namespaces()
    for inode, pid, refusal in refused:
        # EACCES is also the answer for a process that ended during the call
        # (proc_ns_get_link() in fs/proc/namespaces.c).
        if inode not in opened and not netns.is_nothing_at(f"/proc/{pid}/net/dev"):
            raise refusal
