# SPDX-License-Identifier: Apache-2.0
"""Host: does what an AnyHost does, in the caller's own process.

Each method is an operation with a file of its own in `tapster.operations`.
"""

import os

from tapster.api import (
    AnyHost,
    Reference,
    check_acquire,
    check_name,
    id_of,
    ids_of,
    leases_of,
    names_of,
)
from tapster.backends import MakeBackends
from tapster.checks import check_has, check_value
from tapster.kernel.port import System
from tapster.kernel.signals import Deferral, deferred
from tapster.light import Callable, Iterable, TypeVar, Unpack
from tapster.model import (
    EVERY_EVENT,
    Changes,
    EventQuery,
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

T = TypeVar("T")


class Host(AnyHost):
    """The devices of one ledger on this host.

    Needs CAP_NET_ADMIN. Threads may share a Host, which lets one in at a time. A forked
    child opens a Host of its own. A signal handler that interrupts a call cannot use
    the same Host. Close it, or use it as a context manager; that ends no lease.
    """

    def __init__(
        self,
        ledger: str | os.PathLike[str] | None = None,
        *,
        netns: str | None = None,
        system: System | None = None,
        backends: MakeBackends | None = None,
        reaper: Callable[[str], None] | None = None,
    ) -> None:
        """Open the ledger, by default `TAPSTER_LEDGER` or /var/lib/tapster.

        New devices are made in the network namespace `netns` (a name or a path;
        None is the caller's). After a release `reaper` is called, with the ledger's
        path, if no reaper runs; by default one is started that ends when no lease
        waits. `system` and `backends`, which makes the backends, are for tests: see
        `tapster.testing`. With a host in memory as `system`, ledger, backends and
        reaper stand in for the host's own.
        """
        check_value(str | os.PathLike | None, ledger, "ledger")
        check_value(str | None, netns, "netns")
        check_has("__call__", backends, "backends", "a function")
        check_has("__call__", reaper, "reaper", "a function")
        check_has("boottime", system, "system", "a System")
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

    def _run(self, work: Callable[[Operations], T]) -> T:
        """Carry out one call of a user; no other call comes in between."""
        operations = self._operations
        return operations.context.run(lambda: work(operations))

    # Acquire and release

    def acquire_all(
        self,
        specs: Iterable[Spec],
        *,
        pid: int | None = None,
        on_close: bool = False,
        vhost: bool = False,
    ) -> tuple[OpenDevice, ...]:
        chosen = check_acquire(specs, pid, on_close, vhost)

        def acquire(operations: Operations) -> tuple[OpenDevice, ...]:
            devices: tuple[OpenDevice, ...] = ()
            try:
                # A descriptor must not be lost on its way to the object that owns it.
                with Deferral() as hand_over:
                    acquired = operations.acquire(
                        chosen,
                        pids=[pid] * len(chosen),
                        on_close=on_close,
                        vhost=vhost,
                        hand_over=hand_over,
                    )
                    devices = tuple(OpenDevice(*opened) for opened in acquired)
            except BaseException:
                # A deferred signal came, such as that of a time limit: the caller does
                # not get these devices.
                for device in devices:
                    device.close()
                    operations.release(device.id)
                raise
            return devices

        return self._run(acquire)

    def release(self, lease: Reference) -> None:
        id = id_of(lease)
        self._run(lambda do: do.release(id))

    def bind(self, leases: Iterable[Reference], pid: int | None) -> None:
        check_value(int | None, pid, "pid")
        ids = ids_of(leases)
        self._run(lambda do: do.bind(ids, pid))

    def reopen(self, lease: Reference) -> OpenDevice:
        id = id_of(lease)

        def reopen(operations: Operations) -> OpenDevice:
            with deferred():
                return OpenDevice(*operations.reopen(id))

        return self._run(reopen)

    def set(self, lease: Reference, **changes: "Unpack[Changes]") -> Lease:
        id = id_of(lease)
        return self._run(lambda do: do.rewire.set(id, changes))

    # Look

    def leases(self, *, all: bool = True) -> list[Lease]:
        check_value(bool, all, "all")
        return self._run(lambda do: do.look.leases(all=all))

    def look_up(self, name_or_id: str, *, owner: str | None = None) -> Lease:
        check_name(name_or_id)
        check_value(str | None, owner, "owner")
        return self._run(lambda do: do.look.find(name_or_id, owner))

    def device(self, lease: Reference) -> Link | None:
        id = id_of(lease)
        return self._run(lambda do: do.look.device(do.look.lease(id)))

    def differences(self, lease: Reference) -> dict[str, str]:
        id = id_of(lease)
        return self._run(lambda do: do.look.differences(do.look.lease(id)))

    def differing(self, leases: Iterable[Lease]) -> frozenset[str]:
        chosen = leases_of(leases)
        return self._run(lambda do: do.look.differing(chosen))

    def history(self, query: HistoryQuery) -> list[HistoryEntry]:
        check_value(HistoryQuery, query, "query")
        return self._run(lambda do: do.look.history(query))

    def events(self, query: EventQuery = EVERY_EVENT) -> list[HistoryEvent]:
        check_value(EventQuery, query, "query")
        return self._run(lambda do: do.look.events(query))

    # Look after

    def reap(
        self, leases: Iterable[Reference] | None = None, *, now: bool = False
    ) -> int:
        check_value(bool, now, "now")
        if leases is not None:
            ids = ids_of(leases)
            return self._run(lambda do: do.reap.some(ids))
        return self._run(lambda do: do.reap(now=now))

    def recover(self, *, dry_run: bool = False) -> list[Repair]:
        check_value(bool, dry_run, "dry_run")
        return self._run(lambda do: do.recover(dry_run=dry_run))

    def settle(self) -> list[Repair]:
        """Repair what dead processes left: a cheap `recover`, for before other work.

        Releases leases that are bound to an ended process, finishes or undoes the
        operations of dead managers, and closes leases of an earlier boot.
        """
        return self._run(lambda do: do.settle())

    def examine(self) -> list[Problem]:
        from tapster import doctor  # rarely needed

        return self._run(doctor.examine)

    def remove_leftovers(
        self, ledger: str, names: Iterable[str] | None = None
    ) -> list[str]:
        check_value(str, ledger, "ledger")
        chosen = names_of(names)
        return self._run(lambda do: do.remove_leftovers(ledger, chosen))
