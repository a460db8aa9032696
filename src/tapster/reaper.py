# SPDX-License-Identifier: Apache-2.0
"""The reaper: a process that ends leases when no other process does.

It deletes released devices when their FIN WAIT is over, releases the leases of
processes that have ended and of taps that were closed, replaces waiting devices
that somebody deleted, and puts back MACs and aliases that somebody changed. A release,
and an acquire that binds a lease, start the reaper unless one runs; where udev changes
MACs, so does every acquire. The reaper ends when no lease waits or is bound, and none
is new.

The reaper is two processes: a leader that works, and its parent, the standby. If the
leader is killed or stopped (SIGSTOP), the standby kills it for good and forks another.
If the standby is killed, the leader takes its place, and forks another leader. If both
are killed, or stopped, or frozen with their cgroup, the next command starts a reaper
again: see kernel/lock.py. A reaper that goes on afterwards does no harm: other reapers
leave alone what it has claimed, and it ends when it sees that another is awake.

The leader does not poll. It sleeps until the next FIN WAIT ends, a process ends
(pidfd_open(2)), or the kernel reports a change of a device, in whichever namespace the
device is. New namespaces are looked for every few seconds.

A network namespace lasts as long as a process is in it. The reaper may have been
started in a pod, and works on the leases of all others. So it goes into a namespace of
its own, unless it is in the host's. If it may not, it stays, and hears of the devices
there alone.

The reaper gives up its lock inside a transaction of the ledger in which no lease
waits or is bound. So another process either finds the lock free and starts a reaper,
or the running reaper sees the lease.
"""

import os
import resource
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from math import inf

from tapster.errors import (
    LASTING,
    OF_ONE_LEASE,
    HostError,
    LedgerError,
    MissingCapability,
    is_shortage,
)
from tapster.kernel.boot import boottime
from tapster.kernel.failure import has
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.lock import AWAKE, REAPERS, STARTING, LockFile
from tapster.kernel.netns import is_hosts, leave, pidns
from tapster.kernel.port import Watch
from tapster.kernel.process import is_halted
from tapster.ledger import FIRST_IFINDEX
from tapster.light import NamedTuple
from tapster.model import Lease, Netns, Process, State, by_namespace
from tapster.operations.followed import FollowedNamespaces
from tapster.operations.operations import Operations, open_operations
from tapster.operations.pace import Pace

LONGEST_NAP = 1.0
"""Seconds. A lease that is released during a nap may have a shorter FIN WAIT."""
RETRY = 2.0
"""Seconds until the reaper tries again after a failure. The ledger may be locked or its
disk full, or the kernel may be out of memory or descriptors."""
LONGEST_WATCH = 5.0
"""Seconds that the reaper waits for a report while leases are bound."""
FAILURES = 20
"""How many leaders in a row may be killed in their first second (a seccomp filter), and
how often in a row the leader's work may fail. Then the reaper ends; the next command
starts a reaper again."""
KILLING = 1.0
"""Seconds to wait for the end of a stopped reaper that was killed."""


class Report(NamedTuple):
    """The devices and processes that the reaper has to look at."""

    settle: bool
    """Whether a process may have ended."""
    changed: Mapping[int, set[int]] | None
    """The ifindexes of the devices that changed, by the numbers of their namespaces;
    None: any may have changed."""
    ended: frozenset[int] = frozenset()
    """The numbers of namespaces that may have ended."""
    alone: bool = False
    """Whether the standby has ended."""


class Lock:
    """The leader's lock."""

    def __init__(self, file: LockFile, byte: int, own: Process) -> None:
        self.file = file
        self.byte = byte
        self._own = own
        self._written = -inf

    def awake(self) -> None:
        """Write that this reaper is awake, unless that was written a moment ago."""
        now = boottime()
        if now - self._written >= AWAKE / 4:
            self.file.awake(self.byte, *self._own)
            self._written = now

    def is_replaced(self) -> bool:
        """Return whether a reaper with a higher byte is awake."""
        return self.file.is_reaper_awake(besides=self.byte)

    def free(self) -> None:
        self.file.free(self.byte)

    def free_if_replaced(self) -> bool:
        """Give the lock up if another reaper is awake; return whether it is."""
        if replaced := self.is_replaced():
            self.free()
        return replaced


class Identities:
    """Puts foreign MACs and aliases back."""

    def __init__(self) -> None:
        self.pending: set[str] = set()
        """The leases whose devices are to be looked at again, soon."""
        self._pace = Pace()

    def restore(self, operations: Operations, leases: Sequence[Lease]) -> None:
        """Put back what was changed of these leases' devices, and of those that wait.

        With another VM's MAC in the host, a bridge delivers that VM's frames to the
        host. udev changes MACs of new devices, and a VMM may change its own.
        """
        find = operations.context.ledger.lease
        by_id = {lease.id: lease for lease in leases}
        for id in self.pending - by_id.keys():
            if lease := find(id):
                by_id[id] = lease
        self.pending.clear()
        active = [lease for lease in by_id.values() if lease.state is State.ACTIVE]
        ids: list[str] = []
        for netns, here in by_namespace(active).items():
            with suppress(HostError):
                ids += self._misidentified(operations, netns, here)
        if ids:
            self.pending.update(ids)  # until it succeeds
            operations.recover.some(ids, wiring=True, backends=False)
            self.pending.difference_update(ids)

    def _misidentified(
        self, operations: Operations, netns: Netns, leases: Sequence[Lease]
    ) -> list[str]:
        """Return the leases to restore now; the others are pending."""
        with operations.context.opened(netns) as namespace:
            links = operations.devices.links(namespace, leases)
        ids = []
        for lease in leases:
            link = links.get(lease.ifindex)
            if link is None or operations.look.misidentified(lease, link) is None:
                continue
            if lease.manager is None and self._pace.allows(lease.id, boottime()):
                ids.append(lease.id)
            else:
                self.pending.add(lease.id)
        return ids


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


def run(ledger: str, announcement: int | None = None) -> None:
    """Work until no lease waits or is bound, unless another reaper runs.

    `announcement` is a descriptor of the lock file that the starter has left, with a
    lock on STARTING: while that lasts, no other reaper is started.
    """
    os.chdir("/")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a pidfd for each VM
    _leave_namespace()
    guarding, failures = True, 0
    while guarding and failures < FAILURES:
        standby = os.pidfd_open(os.getpid())
        began = boottime()
        leader = os.fork()
        if leader:
            os.close(standby)
            if announcement is not None:
                os.close(announcement)  # the leader ends it
                announcement = None
            guarding = _was_killed(leader)
            failures = failures + 1 if boottime() - began < 1 else 0
        else:
            failures = 0
            # If the standby ends before the work does, this process is the standby.
            guarding = lead(ledger, standby, announcement)
            announcement = None
            os.close(standby)


def _leave_namespace() -> None:
    """Go into a network namespace without devices, unless this one is the host's.

    Leases in other namespaces must be found, and their devices heard of, from there.
    """
    if not (pidns() and has("CAP_SYS_ADMIN") and has("CAP_NET_BROADCAST")):
        return
    with suppress(OSError):  # /proc hides processes, or there may be no namespace more
        if not is_hosts():
            leave()


def _was_killed(leader: int) -> bool:
    """Wait for the end of the leader; kill it if it is stopped. Say if it was killed.

    If it ends by itself there is no work, or the ledger cannot be used. The next
    command tries again, and shows the reason to its user.
    """
    while True:
        _, status = os.waitpid(leader, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return os.WIFSIGNALED(status)
        os.kill(leader, signal.SIGKILL)


def _enter(ledger: str) -> Lock | None:
    """Take the lock of the ledger's reaper.

    Return None if another reaper is awake, or if the ledger is deleted.
    """
    try:
        file = LockFile(ledger, make=False)  # its starter has made it
    except LedgerError:
        return None
    own = LinuxSystem().process(os.getpid()) or Process(os.getpid(), 0, 0)
    for byte in REAPERS:
        if not file.try_enter(byte):
            if file.is_reaper_awake(besides=byte - 1):
                break
            if not _kill_halted(ledger, file, byte) or not file.try_enter(byte):
                continue
        lock = Lock(file, byte, own)
        lock.awake()  # at once: the former entry is old
        return lock
    file.leave()
    return None


def _kill_halted(ledger: str, file: LockFile, byte: int) -> bool:
    """Kill a reaper that is stopped or frozen, so that its claims end with it.

    Return whether it has ended. Its standby, if that goes on, finds its lock taken.
    """
    waking = file.waking(byte)
    if waking is None:
        return False
    process = Process(waking.pid, waking.start, waking.pidns)
    if not is_halted(process):
        return False
    with suppress(HostError, OSError):
        with open(f"/proc/{process.pid}/cmdline", "rb") as command:
            if ledger.encode() not in command.read().split(b"\0"):
                return False  # not what a reaper wrote
        pidfd = LinuxSystem().open_process(process)
        if pidfd is None:
            return True
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return _is_ready(pidfd, KILLING)
        finally:
            os.close(pidfd)
    return False


def lead(ledger: str, standby: int, announcement: int | None = None) -> bool:
    """Work until there is no work, or until the ledger cannot be used.

    Return True if the standby has ended before. `standby` is its pidfd. `announcement`
    is that of `run`.
    """
    lock = _enter(ledger)
    if announcement is not None:
        starting = LockFile(ledger, inherited=announcement)
        starting.free(STARTING)  # although the standby may have it open, too
        starting.leave()
        if lock is None:
            # The other reaper may have seen no work, and ended. Then a lease that was
            # released since relies on this reaper.
            lock = _enter(ledger)
    if lock is None:
        return False
    try:
        return _work_on(ledger, lock, standby)
    finally:
        lock.file.leave()


def _work_on(ledger: str, lock: Lock, standby: int) -> bool:
    """Work until there is no work, or until the ledger cannot be used, however often
    the work fails.

    Return True if the standby has ended before.
    """
    failures = 0
    while True:
        began = boottime()
        try:
            with _open(ledger) as operations:
                if operations.reap.quit_if_idle(lock.free):
                    return False
            return _work_and_watch(ledger, lock, standby)
        except MissingCapability:
            return False  # the next command shows the reason to its user
        except LASTING:
            return False
        except LedgerError:
            if not os.path.exists(ledger):
                return False
        except Exception:  # noqa: BLE001 - VMs that end rely on this process
            failures = failures + 1 if boottime() - began < LONGEST_WATCH else 1
            if failures == FAILURES:
                return False
        lock.awake()
        if _is_ready(standby, RETRY):
            return True


def _work_and_watch(ledger: str, lock: Lock, standby: int) -> bool:
    """Work until there is no work; return True if the standby has ended before.

    Raises what the work raises; the work can begin again.
    """
    system = LinuxSystem()
    processes = Processes(system)
    identities = Identities()
    with closing(system.netns(None)) as own:
        followed = FollowedNamespaces(own.netns)
    watches: list[Watch] = []
    report = Report(settle=True, changed=None)
    settled = boottime()
    try:
        watches.append(system.watch(first=FIRST_IFINDEX))
        try:
            watches.append(system.watch(first=FIRST_IFINDEX, elsewhere=True))
        except HostError as error:
            if is_shortage(error):
                raise  # it passes
            # Only the devices of this namespace are reported.
        while not report.alone:
            lock.awake()
            nap = _work(ledger, lock, processes, identities, followed, report)
            if nap is None:
                return False
            lock.awake()
            if report.settle:
                settled = boottime()
            report = _wait(watches, processes, standby, nap)
            # Devices may change without a pause, and a process may have ended before
            # it was followed.
            if boottime() - settled >= LONGEST_WATCH:
                report = report._replace(settle=True)
        return True
    finally:
        processes.follow([])
        for watch in watches:
            watch.close()


def _is_ready(fd: int, seconds: float) -> bool:
    """Wait for a descriptor to be readable, so long at most; return whether it is."""
    return bool(select.select([fd], [], [], seconds)[0])


def _work(
    ledger: str,
    lock: Lock,
    processes: Processes,
    identities: Identities,
    followed: FollowedNamespaces,
    report: Report,
) -> float | None:
    """Do what is to be done; return the seconds to wait, or None if all is done."""
    # Opened again each time: a process that naps should hold no ledger open.
    with _open(ledger) as operations:
        # The other one gives up its lock inside a transaction, too.
        call_alone = operations.context.ledger.call_alone
        if lock.is_replaced() and call_alone(lock.free_if_replaced):
            return None
        # One lease that cannot be judged or ended now hinders no other: a service
        # comes back, a process closes a device.
        ended = 0
        leases, changed = _changed(operations, followed, report)
        with suppress(*OF_ONE_LEASE):
            if report.settle:
                operations.recover.settle()
        with suppress(*OF_ONE_LEASE):
            if changed:
                operations.recover.some([lease.id for lease in changed])
        with suppress(*OF_ONE_LEASE):
            identities.restore(operations, leases)
        with suppress(*OF_ONE_LEASE):
            operations.recover.restrict()
        with suppress(*OF_ONE_LEASE):
            ended = operations.reap()
        if operations.reap.quit_if_idle(lock.free):
            return None
        deadline = operations.reap.next_deadline()
        processes.follow(operations.context.ledger.processes())
    nap = _nap(deadline, ended)
    return min(nap, LONGEST_NAP) if identities.pending else nap


def _changed(
    operations: Operations, followed: FollowedNamespaces, report: Report
) -> tuple[Sequence[Lease], Sequence[Lease]]:
    """Return the leases whose MAC and alias to compare, and those to repair."""
    look, at = operations.look, operations.context.ledger.at
    numbered = followed.numbered()
    if report.changed is None:  # the reports of ended namespaces may be lost, too
        followed.suspect(followed.others())
    followed.suspect(netns for netns, number in numbered if number in report.ended)
    gone = set(followed.forget_ended(look, followed.suspects(soon=True)))
    new = followed.follow_all(look)
    gone.update(netns for netns in new if netns.cookie not in followed)
    if gone or new or report.changed is None:
        leases = look.leases()
        return leases, [
            lease
            for lease in leases
            if lease.state is State.FIN_WAIT or lease.on_close or lease.netns in gone
        ]
    leases = [
        lease
        for netns, number in followed.numbered()
        if (ifindexes := report.changed.get(number))
        for lease in at(netns, ifindexes)
    ]
    return leases, leases


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


def _wait(
    watches: Sequence[Watch], processes: Processes, standby: int, seconds: float
) -> Report:
    """Wait for a change of a device, or the end of a process, for so long at most."""
    reports = {watch.fileno() for watch in watches}
    poll = select.poll()
    for fd in (*reports, standby, *processes.fds()):
        poll.register(fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(seconds * 1000)}
    processes.forget(ready - reports)
    changed: dict[int, set[int]] | None = {}
    ended: set[int] = set()
    for watch in watches:
        changes = watch.changes()
        if changes is None:
            changed = None
            continue
        ended |= changes.ended
        if changed is not None:
            for number, links in changes.links.items():
                changed.setdefault(number, set()).update(links)
    settle = not ready or bool(ready - reports)
    return Report(settle, changed, frozenset(ended), standby in ready)


def _open(ledger: str) -> Operations:
    """Return the operations of a reaper, which starts no reaper and makes no ledger.

    A purge may delete the ledger at any moment. Raises LedgerError then.
    """
    return open_operations(ledger, reaper=lambda _: None, make=False)


if __name__ == "__main__":
    run(sys.argv[1], *map(int, sys.argv[2:]))
