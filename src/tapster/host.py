# SPDX-License-Identifier: Apache-2.0
"""Host: does what a Manager does, in the caller's own process.

Each method is an operation with a file of its own in `tapster.operations`.
"""

import os
from collections.abc import Callable, Iterable, Sequence

from tapster import backends as all_backends
from tapster.api import Manager, Reference, check_acquire, id_of, ids_of
from tapster.backends import MakeBackends
from tapster.checks import check_record, check_value
from tapster.kernel.port import System
from tapster.light import Unpack
from tapster.model import (
    Changes,
    HistoryEntry,
    HistoryEvent,
    HistoryQuery,
    Lease,
    Link,
    Netns,
    Problem,
    Spec,
)
from tapster.open_device import OpenDevice
from tapster.operations.decision import Repair
from tapster.operations.operations import Operations, open_operations


class Host(Manager):
    """The devices of one ledger on this host.

    Needs CAP_NET_ADMIN. Threads may share a Host, which lets one in at a time. A
    forked child opens a Host of its own. Close it, or use it as a context manager;
    that ends no lease.
    """

    def __init__(
        self,
        ledger: str | os.PathLike[str] | None = None,
        *,
        netns: str | None = None,
        system: System | None = None,
        backends: MakeBackends = all_backends.make,
        reaper: Callable[[str], None] | None = None,
    ) -> None:
        """Open the ledger, by default `TAPSTER_LEDGER` or /var/lib/tapster.

        New devices are made in the network namespace `netns` (a name or a path;
        None is the caller's). After a release `reaper` is called, with the ledger's
        path, if no reaper runs; by default one is started that ends when no lease
        waits. `system` and `backends`, which makes the backends, are for tests: see
        `tapster.testing`.
        """
        check_value(str | os.PathLike | None, ledger, "ledger")
        check_value(str | None, netns, "netns")
        self._operations = open_operations(
            ledger, netns=netns, system=system, backends=backends, reaper=reaper
        )

    @property
    def netns(self) -> Netns:
        """The network namespace in which devices are made."""
        return self._operations.context.namespace.netns

    @property
    def operations(self) -> Operations:
        """The operations themselves, for tools and tests. Not a stable interface."""
        return self._operations

    def close(self) -> None:
        self._operations.close()

    # Acquire and release

    def acquire_all(
        self,
        specs: Sequence[Spec],
        *,
        pid: int | None = None,
        on_close: bool = False,
        vhost: bool = False,
    ) -> tuple[OpenDevice, ...]:
        check_acquire(specs, pid, on_close, vhost)
        acquired = self._operations.acquire(
            specs, pid=pid, on_close=on_close, vhost=vhost
        )
        return tuple(OpenDevice(*opened) for opened in acquired)

    def release(self, lease: Reference) -> None:
        self._operations.release(id_of(lease))

    def bind(self, leases: Iterable[Reference], pid: int | None) -> None:
        check_value(int | None, pid, "pid")
        self._operations.bind(ids_of(leases), pid)

    def reopen(self, lease: Reference) -> OpenDevice:
        return OpenDevice(*self._operations.reopen(id_of(lease)))

    def set(self, lease: Reference, **changes: Unpack[Changes]) -> Lease:
        return self._operations.rewire.set(id_of(lease), changes)

    # Look

    def leases(self, *, all: bool = True) -> list[Lease]:
        check_value(bool, all, "all")
        return self._operations.look.leases(all=all)

    def look_up(self, name_or_id: str, *, owner: str | None = None) -> Lease:
        check_value(str, name_or_id, "name_or_id")
        check_value(str | None, owner, "owner")
        return self._operations.look.find(name_or_id, owner)

    def device(self, lease: Reference) -> Link | None:
        look = self._operations.look
        return look.device(look.lease(id_of(lease)))

    def differences(self, lease: Reference) -> dict[str, str]:
        look = self._operations.look
        return look.differences(look.lease(id_of(lease)))

    def differing(self, leases: Iterable[Lease]) -> frozenset[str]:
        return self._operations.look.differing(leases)

    def history(self, query: HistoryQuery) -> list[HistoryEntry]:
        check_record(query)
        return self._operations.look.history(query)

    def events(
        self, since: float | None = None, until: float | None = None
    ) -> list[HistoryEvent]:
        check_value(float | None, since, "since")
        check_value(float | None, until, "until")
        return self._operations.look.events(since, until)

    # Look after

    def reap(
        self, leases: Iterable[Reference] | None = None, *, now: bool = False
    ) -> int:
        check_value(bool, now, "now")
        if leases is not None:
            return self._operations.reap.some(ids_of(leases))
        return self._operations.reap(now=now)

    def recover(self, *, dry_run: bool = False) -> list[Repair]:
        check_value(bool, dry_run, "dry_run")
        return self._operations.recover(dry_run=dry_run)

    def settle(self) -> list[Repair]:
        """Repair what dead processes left: a cheap `recover`, for before other work.

        Releases leases that are bound to an ended process, finishes or undoes the
        operations of dead managers, and closes leases of an earlier boot.
        """
        return self._operations.recover.settle()

    def examine(self) -> list[Problem]:
        from tapster import doctor  # rarely needed

        return doctor.examine(self._operations)

    def remove_leftovers(self, ledger: str) -> list[str]:
        check_value(str, ledger, "ledger")
        return self._operations.remove_leftovers(ledger)
