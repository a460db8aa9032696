# SPDX-License-Identifier: Apache-2.0
"""Processes, told apart although pids are reused: proc_pid_stat(5)."""

import os
import select

from tapster.errors import RequestError
from tapster.kernel import netns
from tapster.model import Process

_STATE, _START = 0, 19
"""Fields 3 and 22, counted after the command's closing parenthesis."""


def process(pid: int) -> Process | None:
    """The process that has `pid` now, or None."""
    fields = _stat(pid)
    return Process(pid, int(fields[_START]), netns.pidns()) if fields else None


def ended(process: Process) -> bool:
    """Whether the process is surely over; a zombie is.

    A pid says nothing in another pid namespace: then the answer is no.
    """
    if process.pidns == 0 or process.pidns != netns.pidns():
        return False
    fields = _stat(process.pid)
    return (
        fields is None
        or int(fields[_START]) != process.start
        or fields[_STATE] in ("Z", "X")
    )


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may contain spaces and parentheses: the last one ends it.
    return text.rpartition(")")[2].split()


def pid_of(pidfd: int) -> int:
    """The pid of a pidfd's process, as it is seen here. Raises RequestError if the
    descriptor is none, or the process cannot be seen or is over."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        pid = int(fields["Pid"])
    except (OSError, KeyError, ValueError):
        raise RequestError("the descriptor is not one of a process (pidfd)") from None
    if pid <= 0:
        raise RequestError("the process is over, or cannot be seen from here")
    return pid


def owner(pid: int) -> int:
    """The user id of a process, or -1 if it is over."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except (FileNotFoundError, ProcessLookupError):
        return -1


def over(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended; False for no pidfd."""
    if pidfd < 0:
        return False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
