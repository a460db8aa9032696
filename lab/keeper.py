# SPDX-License-Identifier: Apache-2.0
"""Kill every process of this network namespace once stdin is closed.

The keeper is a process of its own. So no process survives a test, even if the test
itself is killed: its end of the pipe closes too. The keeper looks for the namespace,
not for child processes, so it also finds a command that was orphaned on purpose, such
as a VM whose supervisor was killed.

Not every process in the namespace lives there. A program that looks at all namespaces
of the host, as recover does, is in each of them for a moment. Such a visitor may be the
command of another test, or the process that runs another test. A process of this test
has this mount namespace, or else has inherited `MARK`. It is killed in whichever
network namespace it is: a reaper goes into one of its own.
"""

import os
import select
import signal
import sys
from collections.abc import Iterator

MARK = "LAB_NAMESPACE"
"""The variable in the environment of a test's processes: the identity of the test's
network namespace."""
END_SECONDS = 5.0
"""Seconds to wait for a killed process to end before the next process is killed."""


def namespace(pid: int | str) -> int | None:
    """Return the identity of a process's network namespace; None if it has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def lives(pid: int, home: int) -> bool:
    """Return whether a process belongs to the test that has the namespace."""
    try:
        mounts = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        if mounts == os.stat("/proc/self/ns/mnt").st_ino:
            return True
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARK}={home}".encode() in file.read().split(b"\0")
    except OSError:
        return False  # it has ended


def kill_in(pid: int, home: int) -> bool:
    """Kill the process if it lives in the namespace; say whether it did."""
    try:
        # The descriptor first: a pid that is reused in between cannot be hit.
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not lives(pid, home):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], END_SECONDS)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def others() -> Iterator[int]:
    """Yield all processes but this one."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            yield int(entry)


def kill_everything(home: int) -> None:
    """Kill until no process is left: a killed process may have forked just before.

    The parent, which runs the test, is spared: it may still be leaving the namespace.
    """
    while any(kill_in(pid, home) for pid in others() if pid != os.getppid()):
        pass


def main() -> int:
    """Take the host's namespace as the argument: its processes are never killed."""
    home = namespace("self")
    if home is None or home == int(sys.argv[1]):
        return 1
    sys.stdin.read()
    kill_everything(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
