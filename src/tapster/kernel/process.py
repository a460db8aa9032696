# SPDX-License-Identifier: Apache-2.0
"""Whether the process that a lease is bound to lives. All evidence is weighed here.

A pid alone tells nothing: pids are reused. So a process is its pid, its start time and
its pid namespace. Evidence must not depend on the process that asks:

- The start time in /proc is shifted in a time namespace; see boot.py.
- /proc may hide processes of other users, or be absent. Then a process that is missing
  there may live. pidfd_open(2) needs no /proc and no privilege.
- A process whose main thread has ended is a zombie in /proc while its other threads
  run. Its pidfd becomes readable only when the last thread has ended.
- A pid of another pid namespace means nothing here. From the initial pid namespace
  every process can be seen, with its pids in all namespaces it belongs to.

Where the evidence does not suffice, the functions say so (`Life.CANNOT_TELL`, OSError).
"""

import os
import select
from errno import EINVAL, ENOENT, EPERM

from tapster.errors import RequestError
from tapster.kernel import boot, netns
from tapster.light import Iterator
from tapster.model import Life, Process

_STATE, _START = 0, 19
"""Where fields 3 and 22 are, after the closing parenthesis of the command."""
_FROZEN = ("do_freezer_trap", "get_signal")
"""Where a process of a frozen cgroup v2 waits, in kernel/signal.c; the compiler may
have put the first function into the second."""
_ROUNDED = 1
"""Clock ticks by which two readers of one start time may differ."""


def process(pid: int, *, ended: bool = False) -> Process | None:
    """Return the process that has `pid` now and lives, or None.

    With `ended`, also one that has ended and that its parent has not waited for.
    /proc has the numbers of threads, too: a thread is no process.
    """
    fields = _stat(pid)
    if fields is None:
        return None
    found = Process(pid, _start_in(fields), netns.pidns())
    try:
        pidfd = open_process(found)
    except OSError:
        return found  # it cannot be told: it may live
    if pidfd is None:
        return found if ended and fields[_STATE] == "Z" else None
    os.close(pidfd)
    return found


def life(process: Process) -> Life:
    """Return whether a process lives. A zombie without a running thread has ended."""
    try:
        # The usual case reads one small file. There may be thousands of processes.
        if process.pidns == netns.pidns() != 0:
            fields = _stat(process.pid)
            if fields and fields[_STATE] not in "ZX" and _is_start(process, fields):
                return Life.LIVES
        pidfd = open_process(process)
    except OSError:
        return Life.CANNOT_TELL
    if pidfd is None:
        return Life.ENDED
    os.close(pidfd)
    return Life.LIVES


def is_halted(process: Process) -> bool:
    """Return whether a process is stopped, or frozen with its cgroup.

    False if that is unknown. SIGKILL does not end a process in the freezer of cgroup v1
    until the process is thawed.
    """
    if process.pidns != netns.pidns():
        return False
    fields = _stat(process.pid)
    if not fields or not _is_start(process, fields):
        return False
    if fields[_STATE] == "T":
        return True
    try:
        with open(f"/proc/{process.pid}/wchan") as file:
            return file.read() in _FROZEN
    except OSError:
        return False


def open_process(wanted: Process) -> int | None:
    """A pidfd of this process, which the caller closes; None if it has ended.

    Raise OSError if that cannot be told.
    """
    for pid in _pids_here(wanted):
        pidfd = _open(wanted, pid)
        if pidfd is not None:
            return pidfd
    return None


def _pids_here(wanted: Process) -> Iterator[int]:
    """Yield the pids that a process may have in this pid namespace.

    Raise PermissionError in the end if there may be others.
    """
    own = netns.pidns()
    if wanted.pidns == own != 0:
        yield wanted.pid
        return
    if wanted.pidns and own:
        for name in filter(str.isdecimal, os.listdir("/proc")):
            pid = int(name)
            fields = _stat(pid)
            if fields and _is_start(wanted, fields) and wanted.pid in _inner_pids(pid):
                yield pid
    if not wanted.pidns or own != netns.INITIAL_PIDNS or _stat(1) is None:
        raise PermissionError(EPERM, "process of a pid namespace that is not seen here")


def _open(wanted: Process, pid: int) -> int | None:
    """A pidfd of the process if it has this pid here; None if it has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        # The pid is now a thread's, or that of a process group without its leader.
        if error.errno in (EINVAL, ENOENT):
            return None
        raise
    try:
        fields = _stat(pid)
        if not over(pidfd):
            if fields is None:
                raise PermissionError(EPERM, "/proc hides the process")
            if _is_start(wanted, fields):
                kept, pidfd = pidfd, -1
                return kept
        return None
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _inner_pids(pid: int) -> list[int]:
    """The pids of a process in the pid namespaces below the one that /proc shows."""
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            for line in file:
                if line.startswith("NSpid:"):
                    return [int(inner) for inner in line.split()[2:]]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return []


def _start_in(fields: list[str]) -> int:
    """The start time in a process's `stat`, as outside all time namespaces."""
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[_START]) - boot.shift() * ticks // 1_000_000_000


def _is_start(wanted: Process, fields: list[str]) -> bool:
    return abs(_start_in(fields) - wanted.start) <= _ROUNDED


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on; None if the file is not there."""
    # Not open(): there may be thousands of processes, and a file object takes longer
    # than the kernel.
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command may contain spaces and parentheses. The last parenthesis ends it.
    return text.rpartition(b")")[2].decode().split()


def is_pidfd(fd: int) -> bool:
    """Return whether a descriptor that another process sent is a pidfd."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[pidfd]"
    except OSError:  # the path of its file is too long to be read
        return False


def pid_of(pidfd: int) -> int:
    """Return the pid of a pidfd's process in this pid namespace.

    Raise RequestError if the descriptor is no pidfd, if the process has ended, or if
    it is in no pid namespace that is visible here.
    """
    # For other kinds, such as epoll(7), the kernel writes a line about each file that
    # the sender has put into the descriptor. That may take seconds.
    if not is_pidfd(pidfd):
        raise RequestError("the descriptor is no pidfd: see pidfd_open(2)")
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        pid = int(fields["Pid"])
    except (OSError, KeyError, ValueError):
        raise RequestError("the process of the descriptor cannot be told") from None
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
