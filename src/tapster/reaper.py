# SPDX-License-Identifier: Apache-2.0
"""The reaper: a process that ends leases when no other process does.

It deletes released devices when their FIN WAIT is over, releases the leases of
processes that have ended and of taps that were closed, and replaces waiting devices
that somebody deleted. A release, and an acquire that binds a lease, start the reaper
unless one runs. It ends when no lease waits or is bound.

The reaper is two processes: a leader that works, and a standby that waits for the
leader's lock, and takes over if the leader is killed. If both are killed, the next
command starts a reaper again.

The leader does not poll. It sleeps until the next FIN WAIT ends, a process ends
(pidfd_open(2)), or the kernel reports a change of a device. Only leases in other
network namespaces than its own are looked at every few seconds: the kernel reports
their devices there.

The reaper gives up its lock inside a transaction of the ledger in which no lease
waits or is bound. So another process either finds the lock free and starts a reaper,
or the running reaper sees the lease.
"""

import os
import resource
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from tapster.errors import ConflictError, HostError, LedgerError, TapsterError
from tapster.kernel.boot import boottime
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.lock import REAPER, LockFile
from tapster.kernel.port import HERE, Watch
from tapster.ledger import FIRST_IFINDEX
from tapster.light import NamedTuple
from tapster.model import Process, State
from tapster.operations.operations import Operations, open_operations

LONGEST_NAP = 1.0
"""Seconds. A lease that is released during a nap may have a shorter FIN WAIT."""
LEDGER_RETRY = 2.0
"""Seconds until a ledger that is locked, or whose disk is full, is tried again."""
LONGEST_WATCH = 5.0
"""Seconds that the reaper waits for a report while leases are bound."""


class Report(NamedTuple):
    """The devices and processes that the reaper has to look at."""

    settle: bool
    """Whether a process may have ended."""
    changed: set[int] | None
    """The ifindexes of the devices that changed here; None: any may have changed."""


class Processes:
    """The processes that leases are bound to; their ends wake the reaper."""

    def __init__(self, system: LinuxSystem) -> None:
        self._system = system
        self._pidfds: dict[Process, int] = {}

    def follow(self, processes: Sequence[Process]) -> None:
        """Watch these processes and no others."""
        for process in self._pidfds.keys() - set(processes):
            os.close(self._pidfds.pop(process))
        for process in set(processes) - self._pidfds.keys():
            with suppress(HostError):
                pidfd = self._system.open_process(process)
                if pidfd is not None:
                    self._pidfds[process] = pidfd

    def fds(self) -> list[int]:
        return [*self._pidfds.values()]

    def forget(self, ended: set[int]) -> None:
        """Stop watching the processes with these descriptors."""
        for process, pidfd in [*self._pidfds.items()]:
            if pidfd in ended:
                os.close(self._pidfds.pop(process))


def run(ledger: str) -> None:
    """Work until no lease waits or is bound, unless another reaper runs."""
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
    """Return whether there is no work, or the ledger cannot be used."""
    try:
        with _open(ledger) as operations:
            return operations.reap.quit_if_idle(lambda: locks.free(REAPER))
    except LedgerError as error:
        return not _may_pass(error, ledger)
    except TapsterError:
        return True


def _may_pass(error: LedgerError, ledger: str) -> bool:
    """Return whether the ledger may be usable later: its file system is full, say."""
    return type(error) is LedgerError and os.path.exists(ledger)


def _lead(ledger: str, locks: LockFile) -> bool:
    """Work until there is no work; False if the ledger cannot be used."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a pidfd for each VM
    system = LinuxSystem()
    processes = Processes(system)
    watch = system.watch(first=FIRST_IFINDEX)
    report = Report(settle=True, changed=None)
    try:
        while True:
            try:
                nap = _work(ledger, locks, processes, report)
            except LedgerError as error:
                if not _may_pass(error, ledger):
                    return False
                _wait(watch, processes, LEDGER_RETRY)
                report = Report(settle=True, changed=None)
                continue
            if nap is None:
                return True
            report = _wait(watch, processes, nap)
    except TapsterError:
        return False
    finally:
        watch.close()


def _work(
    ledger: str, locks: LockFile, processes: Processes, report: Report
) -> float | None:
    """Do what is to be done; return the seconds to wait, or None if all is done."""
    # Opened again each time: a process that naps should hold no ledger open.
    with _open(ledger) as operations:
        # One lease that cannot be judged or ended now hinders no other: a service
        # comes back, a process closes a device.
        ended = 0
        with suppress(HostError, ConflictError):
            _repair(operations, report)
        with suppress(HostError, ConflictError):
            operations.recover.restrict()
        with suppress(HostError, ConflictError):
            ended = operations.reap()
        if operations.reap.quit_if_idle(lambda: locks.free(REAPER)):
            return None
        deadline = operations.reap.next_deadline()
        processes.follow(operations.context.ledger.processes())
    return _nap(deadline, ended)


def _repair(operations: Operations, report: Report) -> None:
    """Repair the leases that a report is about."""
    if report.settle:
        operations.recover.settle()
    ledger, netns = operations.context.ledger, operations.context.namespace.netns
    if report.changed is None:
        waiting = [lease for lease in ledger.leases() if lease.state is State.FIN_WAIT]
        ids = [lease.id for lease in waiting]
    else:
        ids = [lease.id for lease in ledger.at(netns, report.changed)]
    if ids:
        operations.recover.some(ids)


def _nap(deadline: float | None, ended: int) -> float:
    """Return how long to wait for a report, in seconds."""
    if deadline is None:
        return LONGEST_WATCH
    left = deadline - boottime()
    if left <= 0 and not ended:
        # A lease is due, and another manager has claimed it: that manager may be
        # stopped.
        return LONGEST_NAP
    return min(max(left, 0), LONGEST_NAP)


def _wait(watch: Watch, processes: Processes, seconds: float) -> Report:
    """Wait for a change of a device, or the end of a process, for so long at most."""
    poll = select.poll()
    for fd in (watch.fileno(), *processes.fds()):
        poll.register(fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(seconds * 1000)}
    processes.forget(ready - {watch.fileno()})
    changes = watch.changes()
    changed = None if changes is None else set(changes.links.get(HERE, ()))
    return Report(settle=ready != {watch.fileno()}, changed=changed)


def _open(ledger: str) -> Operations:
    """Return the operations of a reaper, which starts no reaper."""
    return open_operations(ledger, reaper=lambda _: None)


if __name__ == "__main__":
    run(sys.argv[1])
