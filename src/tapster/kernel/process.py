# SPDX-License-Identifier: Apache-2.0
"""Processes, told apart although pids are reused: proc_pid_stat(5)."""

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
