# SPDX-License-Identifier: Apache-2.0
"""The claims of one manager: the leases that it alone works on at the moment.

Each operation of several steps first claims its leases in the ledger. A manager
has a number, and holds a lock on that number for as long as its process lives.
So the claims of a dead manager can be recognized and taken over, and no pid is
relied on.
"""

from tapster.kernel.lock import LockFile
from tapster.kernel.port import Managers
from tapster.ledger import Ledger
from tapster.light import Callable, Iterable, Iterator, contextmanager
from tapster.model import Lease


class Claims:
    """The claims of one manager, and its number."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        open_locks: Callable[..., Managers] = LockFile,
        make: bool = True,
        number: int = 0,
    ) -> None:
        """`open_locks` opens the lock file of a ledger, and makes it if `make` is set.

        `number` is that of a manager that has one already.
        """
        self.number = number
        """The manager's number; 0 until the manager needs one."""
        self._ledger = ledger
        self._open_locks = open_locks
        self._make = make
        self._locks: Managers | None = None

    def close(self) -> None:
        """Give up the number. What is still claimed can be taken over."""
        if self._locks is not None:
            self._locks.leave()
            self._locks = None

    def take_number(self) -> int:
        """Return the manager's number. Reading needs none, so it is taken late."""
        if not self.number:
            number = self._ledger.new_manager()
            self._lock_file().enter(number)
            self.number = number
        return self.number

    def is_alive(self, manager: int) -> bool:
        """Return whether a manager lives."""
        return manager == self.number or self._lock_file().alive(manager)

    def is_reaper_awake(self) -> bool:
        """Return whether a reaper of the ledger runs, and is not stopped or frozen."""
        return self._lock_file().is_reaper_awake()

    def claim(self, id: str) -> Lease:
        """Claim one lease. Raises NoSuchLease, and LeaseBusy if another has it."""
        return self._ledger.claim(id, self.take_number(), self.is_alive)

    @contextmanager
    def claimed(self, ids: Iterable[str]) -> Iterator[list[Lease]]:
        """Claim, for a block, those of these leases that no other manager has."""
        leases = self._ledger.claim_available(ids, self.take_number(), self.is_alive)
        try:
            yield leases
        finally:
            if leases:
                self.release()

    def claim_due(self, boottime: float, limit: int) -> list[Lease]:
        """Claim at most `limit` leases whose FIN WAIT was over at `boottime`."""
        return self._ledger.claim_due(
            self.take_number(), self.is_alive, boottime=boottime, limit=limit
        )

    def release(self) -> None:
        """End every claim of this manager."""
        self._ledger.release_claims(self.take_number())

    def drop_stale(self) -> None:
        """End the claims that an interrupted operation of this manager left.

        A manager runs one operation at a time. So at the beginning of an operation
        every claim under the manager's own number is stale.
        """
        if self.number:
            self._ledger.release_claims(self.number)

    def _lock_file(self) -> Managers:
        if self._locks is None:
            self._locks = self._open_locks(self._ledger.path, make=self._make)
        return self._locks
