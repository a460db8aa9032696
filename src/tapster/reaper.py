# SPDX-License-Identifier: Apache-2.0
"""The process that reaps when nobody else does.

Whoever releases a lease starts it, if it does not run; it ends when nothing
waits any more. It is two processes: a leader that works, and a standby that
waits for the leader's lock and takes over when the leader is killed. If both
are killed, the next command starts them again.

It ends inside a transaction of the ledger in which nothing waits, and gives up
its lock there. So whoever releases a lease either finds the lock free and
starts a reaper, or has been seen by this one.
"""

import os
import signal
import sys
import time
from contextlib import suppress

from tapster.errors import ServiceUnavailable, TapsterError
from tapster.host import Host
from tapster.kernel.lock import REAPER, LockFile

LONGEST_NAP = 1.0
"""Seconds: a lease released meanwhile may wait for less than the others."""


def run(ledger: str) -> None:
    """Reap until nothing waits, unless another reaper of the ledger runs."""
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
                    # What stopped the leader would stop the standby too. The next
                    # command tries again, and shows its user the reason.
                    os.kill(standby, signal.SIGKILL)
            return
        # The lock belongs to the open file, which the leader shares with us
        # until we close it; our own is another.
        locks.leave()
        locks = LockFile(ledger)
        locks.wait_enter(REAPER)


def _done(ledger: str, locks: LockFile) -> bool:
    """Whether there is nothing to do, or nothing that can be done."""
    try:
        with Host(ledger, reaper=_nobody) as host:
            return host.quit_if_idle(lambda: locks.free(REAPER))
    except TapsterError:
        return True


def _lead(ledger: str, locks: LockFile) -> bool:
    """Reap until nothing waits; False if that failed."""
    while True:
        try:
            # Opened anew each time: an idle process should hold nothing open.
            with Host(ledger, reaper=_nobody) as host:
                # A service that is away comes back: it is tried again until then.
                with suppress(ServiceUnavailable):
                    host.settle()
                with suppress(ServiceUnavailable):
                    host.reap()
                if host.quit_if_idle(lambda: locks.free(REAPER)):
                    return True
                deadline = host.next_deadline()
        except TapsterError:
            return False
        if deadline is not None:
            left = deadline - time.clock_gettime(time.CLOCK_BOOTTIME)
            time.sleep(min(max(left, 0), LONGEST_NAP))  # noqa: TID251 - until then


def _nobody(_: str) -> None:
    """A reaper starts no reaper."""


if __name__ == "__main__":
    run(sys.argv[1])
