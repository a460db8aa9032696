# SPDX-License-Identifier: Apache-2.0
"""Processes, identified by pid and start time: pids are reused (proc_pid_stat(5))."""

import os
import select

from tapster.errors import RequestError
from tapster.kernel import netns
from tapster.model import Process

_STATE, _START = 0, 19
"""Where fields 3 and 22 are, after the closing parenthesis of the command."""


def process(pid: int) -> Process | None:
    """Return the process that has `pid` now, or None."""
    fields = _stat(pid)
    return Process(pid, int(fields[_START]), netns.pidns()) if fields else None


def ended(process: Process) -> bool:
    """Return whether a process has ended for certain. A zombie has ended.

    Return False if /proc does not show the pid namespace of its pid.
    """
    if process.pidns == 0 or process.pidns != netns.pidns():
        return False
    fields = _stat(process.pid)
    return (
        fields is None
        or int(fields[_START]) != process.start
        or fields[_STATE] in ("Z", "X")
    )


def open_process(wanted: Process) -> int | None:
    """Return a pidfd of this process, which the caller closes; None if it has ended."""
    try:
        pidfd = os.pidfd_open(wanted.pid)
    except ProcessLookupError:
        return None
    if ended(wanted):  # another process may have its pid by now
        os.close(pidfd)
        return None
    return pidfd


def _stat(pid: int) -> list[str] | None:
    # Not open(): there may be thousands of processes, and a file object takes longer
    # than the kernel.
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may contain spaces and parentheses. The last parenthesis ends it.
    return text.rpartition(b")")[2].decode().split()


def pid_of(pidfd: int) -> int:
    """Return the pid of a pidfd's process in this pid namespace.

    Raise RequestError if the descriptor is no pidfd, if the process has ended, or if
    it is in no pid namespace that is visible here.
    """
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        pid = int(fields["Pid"])
    except (OSError, KeyError, ValueError):
        raise RequestError("the descriptor is no pidfd: see pidfd_open(2)") from None
    if pid <= 0:
        raise RequestError("the process has ended, or belongs to another pid namespace")
    return pid


def owner(pid: int) -> int:
    """Return the user id of a process, or -1 if it has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except (FileNotFoundError, ProcessLookupError):
        return -1


def over(pidfd: int) -> bool:
    """Return whether the process of a pidfd has ended. False for -1."""
    if pidfd < 0:
        return False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
