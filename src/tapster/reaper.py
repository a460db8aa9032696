# SPDX-License-Identifier: Apache-2.0
"""The reaper: a process that deletes released devices when their FIN WAIT is over.

A release starts the reaper, unless one runs. The reaper ends when no lease waits
any more. It is two processes: a leader that works, and a standby that waits for
the leader's lock, and takes over if the leader is killed. If both are killed, the
next command starts a reaper again.

The reaper gives up its lock inside a transaction of the ledger in which no lease
waits. So a release either finds the lock free and starts a reaper, or the running
reaper sees the lease.
"""

import os
import signal
import sys
import time
from contextlib import suppress

from tapster.errors import ConflictError, HostError, TapsterError
from tapster.kernel.lock import REAPER, LockFile
from tapster.operations.operations import Operations, open_operations

LONGEST_NAP = 1.0
"""Seconds. A lease that is released during a nap may have a shorter FIN WAIT."""


def run(ledger: str) -> None:
    """Reap until no lease waits, unless another reaper of the ledger runs."""
    locks = LockFile(ledger)
    if not locks.try_enter(REAPER):
        return
    os.chdir("/")
    while not _done(ledger, locks):
        standby = os.fork()
        if standby:
            done = False
            try:
                done = _lead(ledger, locks)
            finally:
                if not done:
                    # The same failure would stop the standby too. The next command
                    # tries again, and shows the reason to its user.
                    os.kill(standby, signal.SIGKILL)
            return
        # The lock belongs to the open file that the leader shares with this
        # process. So close it, and wait for the lock with a file of our own.
        locks.leave()
        locks = LockFile(ledger)
        locks.wait_enter(REAPER)


def _done(ledger: str, locks: LockFile) -> bool:
    """Whether no lease waits, or the ledger cannot be used."""
    try:
        with _open(ledger) as operations:
            return operations.reap.quit_if_idle(lambda: locks.free(REAPER))
    except TapsterError:
        return True


def _lead(ledger: str, locks: LockFile) -> bool:
    """Reap until no lease waits; False if that failed."""
    while True:
        try:
            ended = 0
            # Opened again each time: a process that naps should hold nothing open.
            with _open(ledger) as operations:
                # One lease that cannot be judged or ended now hinders no other: a
                # service comes back, a process closes a device.
                with suppress(HostError, ConflictError):
                    operations.recover.settle()
                with suppress(HostError, ConflictError):
                    ended = operations.reap()
                if operations.reap.quit_if_idle(lambda: locks.free(REAPER)):
                    return True
                deadline = operations.reap.next_deadline()
        except TapsterError:
            return False
        if deadline is not None:
            left = deadline - time.clock_gettime(time.CLOCK_BOOTTIME)
            if left <= 0 and not ended:
                # A lease is due, and another manager has claimed it: that manager
                # may be stopped.
                left = LONGEST_NAP
            time.sleep(min(max(left, 0), LONGEST_NAP))  # noqa: TID251 - until then


def _open(ledger: str) -> Operations:
    """The operations of a reaper, which starts no reaper."""
    return open_operations(ledger, reaper=lambda _: None)


if __name__ == "__main__":
    run(sys.argv[1])
