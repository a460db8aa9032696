# SPDX-License-Identifier: Apache-2.0
"""Whoever works on leases: its number, its claims, the namespaces it looks into.

A row of the ledger is worked on by one manager at a time, which claims it first.
A manager holds a lock on its number for as long as it lives, so a claim ends
with its manager, and no pid is believed.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from tapster import backends as all_backends
from tapster.backends.backend import Backend
from tapster.errors import HostError, RequestError
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.lock import REAPER, LockFile
from tapster.kernel.port import Namespace, System
from tapster.ledger import DEFAULT_PATH, Ledger
from tapster.model import Lease, Netns, Process


def ledger_path(path: str | os.PathLike[str] | None = None) -> str:
    """The ledger to use: `path`, else `TAPSTER_LEDGER`, else the default."""
    if path is None:
        path = os.environ.get("TAPSTER_LEDGER") or DEFAULT_PATH
    if not os.fspath(path):
        raise RequestError("the ledger's path is empty")
    return os.fspath(path)


class Manager:
    """A ledger, a network namespace, and the right to change what is claimed."""

    collisions = 0
    """How often a name was found taken by a foreign device."""
    batches = 0
    """How many batches of devices were reaped."""

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
        None is the caller's). After a release `reaper` is called if no process
        waits to reap it; by default one is started that ends when nothing is
        left. Raises LedgerError, NoSuchLink and MissingCapability.
        """
        self._start_reaper = reaper or _start_reaper
        self._lock = threading.RLock()
        self._system = system or LinuxSystem()
        self._ledger = Ledger(ledger_path(ledger), self._system)
        self._locks: LockFile | None = None
        self._manager = 0
        self._backends = (
            all_backends.make(self._ledger.id) if backends is None else backends
        )
        try:
            self._namespace = self._system.netns(netns)
        except BaseException:
            self._ledger.close()
            raise

    def close(self) -> None:
        """Close everything but the leases."""
        with self._lock:
            if self._locks is not None:
                self._locks.leave()
                self._locks = None
            self._namespace.close()
            self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _me(self) -> int:
        """This manager's number, taken when first needed: reading needs none."""
        if not self._manager:
            manager = self._ledger.new_manager()
            self._open_locks().enter(manager)
            self._manager = manager
        return self._manager

    def _alive(self, manager: int) -> bool:
        return manager == self._manager or self._open_locks().alive(manager)

    @contextmanager
    def _claimed(self, ids: Iterable[str]) -> Iterator[list[Lease]]:
        """Those of these leases that nobody else is at, claimed."""
        claimed = self._ledger.claim_available(ids, self._me(), self._alive)
        try:
            yield claimed
        finally:
            if claimed:
                self._ledger.release_claims(self._me())

    def _drop_stale_claims(self) -> None:
        """End what an operation of this Host left claimed when it was interrupted.

        They exclude each other, so at the beginning of one there is no other.
        """
        if self._manager:
            self._ledger.release_claims(self._manager)

    def _open_locks(self) -> LockFile:
        if self._locks is None:
            self._locks = LockFile(self._ledger.path)
        return self._locks

    def _wake_reaper(self) -> None:
        if self._ledger.next_deadline() is None or self._open_locks().alive(REAPER):
            return
        self._start_reaper(self._ledger.path)

    @contextmanager
    def _world(self, netns: Netns) -> Iterator[Namespace | None]:
        """The kernel of a lease's namespace for a moment; None if it is gone.

        No longer than that: an open namespace cannot end.
        """
        if self._is_here(netns):
            yield self._namespace
            return
        namespace = self._system.find(netns)
        try:
            yield namespace
        finally:
            if namespace is not None:
                namespace.close()

    def _is_here(self, netns: Netns) -> bool:
        own = self._namespace.netns
        return (own.boot, own.cookie) == (netns.boot, netns.cookie)

    def _process(self, pid: int) -> Process:
        if process := self._system.process(pid):
            return process
        raise RequestError(f"there is no process {pid} to bind a lease to")


def _start_reaper(ledger: str) -> None:
    from tapster.kernel.detached import start  # rarely needed, and slow to import

    try:
        start("tapster.reaper", ledger)
    except OSError as error:
        raise HostError(
            f"the reaper could not be started: {error.strerror}; what waits goes on "
            "waiting until the next command starts it"
        ) from error
