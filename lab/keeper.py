# SPDX-License-Identifier: Apache-2.0
"""End everybody who lives in this network namespace once stdin is closed.

Run as a process of its own, so that nothing survives a laboratory even when the
laboratory itself is killed: its end of the pipe closes then, too. A command that
was orphaned on purpose (a VM whose supervisor was killed) is found as well, because
what is looked for is the namespace, not the family.
"""

import os
import select
import signal
import sys
from collections.abc import Iterator

PATIENCE = 5.0
"""Seconds for a killed process to end; then the others have their turn first."""


def namespace(pid: int | str) -> int | None:
    """The identity of a process's network namespace; None when it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def end_one(pid: int, home: int | None) -> bool:
    """Kill the process if it lives in the namespace; say whether it did."""
    try:
        # The descriptor first: a pid that is reused in between cannot be hit.
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if namespace(pid) != home:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], PATIENCE)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def others() -> Iterator[int]:
    """All processes but this one."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            yield int(entry)


def end_everybody(home: int | None) -> None:
    """Kill until nobody is left: one who is killed may have forked just before.

    Only the laboratory itself is spared: it may be on its way out.
    """
    while any(end_one(pid, home) for pid in others() if pid != os.getppid()):
        pass


def main() -> int:
    """Take the host's namespace as the argument: that one is never emptied."""
    home = namespace("self")
    if home is None or home == int(sys.argv[1]):
        return 1
    sys.stdin.read()
    end_everybody(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
