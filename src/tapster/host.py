# SPDX-License-Identifier: Apache-2.0
"""Host: what a user of the library calls.

Each method is an operation of its own file in `tapster.operations`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from tapster.backends.backend import Backend
from tapster.kernel.port import System
from tapster.model import HistoryEntry, Lease, Link, Netns, Spec
from tapster.operations.decision import Repair
from tapster.operations.devices import close_fds
from tapster.operations.operations import Operations, open_operations


class Host:
    """The devices of one ledger on this host.

    Threads may share a Host, which lets one in at a time. A forked child opens a
    Host of its own. Close it, or use it as a context manager; that ends no lease.
    """

    def __init__(
        self,
        ledger: str | os.PathLike[str] | None = None,
        *,
        netns: str | None = None,
        system: System | None = None,
        backends: Sequence[Backend] | None = None,
        reaper: Callable[[str], None] | None = None,
    ) -> None:
        """Open the ledger, by default `TAPSTER_LEDGER` or /var/lib/tapster.

        New devices are made in the network namespace `netns` (a name or a path;
        None is the caller's). After a release `reaper` is called, with the ledger's
        path, if no reaper runs; by default one is started that ends when no lease
        waits. Raises LedgerError, NoSuchLink and MissingCapability.
        """
        self._operations = open_operations(
            ledger, netns=netns, system=system, backends=backends, reaper=reaper
        )

    @property
    def operations(self) -> Operations:
        """The operations themselves, for tools and tests. Not a stable interface."""
        return self._operations

    def close(self) -> None:
        """Close everything but the leases."""
        self._operations.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def netns(self) -> Netns:
        """The network namespace in which devices are made."""
        return self._operations.context.namespace.netns

    # Changing

    def acquire(self, spec: Spec, *, pid: int | None = None) -> Lease:
        """Make a device and connect it; the lease has its open descriptors.

        The caller closes them. The lease lasts until `release`, or, if `pid` is
        given, until that process has ended and a manager sees it. Raises
        RequestError, ConflictError, HostError or LedgerError; then nothing is
        left behind.
        """
        (lease,) = self.acquire_all([spec], pid=pid)
        return lease

    def acquire_all(
        self, specs: Sequence[Spec], *, pid: int | None = None, on_close: bool = False
    ) -> tuple[Lease, ...]:
        """As `acquire`, for all the devices of one VM, or for none.

        With `on_close` each lease ends when no process has its tap open any more
        and a manager sees it.
        """
        acquired = self._operations.acquire(specs, pid=pid, on_close=on_close)
        return tuple(lease._replace(fds=fds) for lease, fds in acquired)

    @contextmanager
    def holding(self, *specs: Spec) -> Iterator[tuple[Lease, ...]]:
        """Hold leases for a block; then close and release them."""
        leases = self.acquire_all(specs)
        with ExitStack() as ending:  # each, even if another fails
            for lease in leases:
                ending.callback(self.release, lease.id)
                ending.callback(close_fds, lease.fds)
            yield leases

    def bind(self, leases: Sequence[Lease], pid: int | None) -> None:
        """Let active leases end with the process `pid`, and with no other; None: with
        no process.

        Once it has ended, the next manager that looks releases them. Raises
        NoSuchLease, and binds none, if one has been released.
        """
        self._operations.bind([lease.id for lease in leases], pid)

    def reopen(self, id: str) -> tuple[int, ...]:
        """Open an active lease's device again: a descriptor for each queue.

        For a VMM that replaces itself. The caller closes them. Raises LeaseBusy
        while a tap of one queue is open elsewhere: the kernel lets only one in.
        """
        return self._operations.reopen(id)

    def set(self, id: str, **changes: Any) -> Lease:
        """Change what an active lease's device is connected to, all or nothing.

        `changes` are fields of `Wiring`. The VM keeps its descriptors. May be
        repeated. Raises NoSuchLease, LeaseBusy, and as `acquire`.
        """
        return self._operations.rewire.set(id, changes)

    def release(self, id: str) -> None:
        """End the lease with this id: the device goes down and off its bridge.

        It stays, holding its name, until its FIN WAIT is over. May be repeated.
        Raises NoSuchLease, LeaseBusy, HostError or LedgerError.
        """
        self._operations.release(id)

    def reap(self, *, now: bool = False) -> int:
        """Delete the devices whose FIN WAIT is over, or all that wait if `now`.

        Return how many leases ended. What cannot be reaped keeps waiting; why is
        raised after the rest is done.
        """
        return self._operations.reap(now=now)

    def recover(self, *, dry_run: bool = False) -> list[Repair]:
        """Bring ledger and kernel into agreement; return what was, or would be, done.

        Leases that a living manager works on are left alone. May be repeated.
        """
        return self._operations.recover(dry_run=dry_run)

    def settle(self) -> list[Repair]:
        """Repair what dead processes left: a cheap recover, for before other work."""
        return self._operations.recover.settle()

    def remove_leftovers(self, ledger: str) -> list[str]:
        """Delete the devices here that carry the stamp of a lost ledger.

        Of this Host's own ledger, only those without a lease; and no tap that a
        process has open. Only the caller can know that a ledger is lost. Return the
        devices' names.
        """
        return self._operations.remove_leftovers(ledger)

    # Looking

    def leases(self, *, all: bool = True) -> list[Lease]:
        """Every lease, oldest first; without those in FIN WAIT if not `all`."""
        return self._operations.look.leases(all=all)

    def find(self, name_or_id: str) -> Lease:
        """The lease with this id, or with this name here, or else anywhere.

        "Here" is the Host's network namespace. Raises NoSuchLease.
        """
        return self._operations.look.find(name_or_id)

    def device(self, lease: Lease) -> Link | None:
        """The lease's device as the kernel shows it now; None if it is gone."""
        return self._operations.look.device(lease)

    def differences(self, lease: Lease) -> dict[str, str]:
        """How an active lease's device is not connected as requested, by backend.

        Raises ServiceUnavailable if a backend cannot tell.
        """
        return self._operations.look.differences(lease)

    def differing(self, leases: Sequence[Lease]) -> frozenset[str]:
        """The ids of active leases whose devices are not as requested.

        A quick look at many: `differences` also asks the backends, and says how.
        """
        return self._operations.look.differing(leases)

    def who(self, name: str, at: float | None = None) -> list[HistoryEntry]:
        """Who holds or held `name`, latest first; at wall clock `at` if given."""
        return self._operations.look.who(name, at)
