# SPDX-License-Identifier: Apache-2.0
"""Reap: delete the devices whose FIN WAIT is over, in batches, and end their leases."""

from math import inf

from tapster.errors import ConflictError, LeaseBusy, NoSuchLease, TapsterError
from tapster.light import Callable, Sequence
from tapster.model import Lease, State, by_namespace
from tapster.operations.context import Context
from tapster.operations.devices import Devices
from tapster.operations.failures import Failures

REAP_BATCH = 64
"""Devices deleted in one batch. During a batch the kernel lets no other process make a
device: for 20 ms, and 0.25 ms more for each device. In batches of 32 a device takes
1.1 ms, and the 99th percentile of the acquires that meet a reap is 19 ms; with 64 it
is 0.7 and 32 ms, with 96 0.8 and 62 ms (`make bench ARGS="reaping waiting"`)."""
POSTPONED = 1.0
"""Seconds until the next attempt to end a lease that could not be ended."""


class Reap:
    """The operation. Call it."""

    batches = 0
    """How many batches were reaped."""

    def __init__(self, context: Context, devices: Devices) -> None:
        self.context = context
        self.devices = devices

    def __call__(
        self,
        *,
        now: bool = False,
        limit: int | None = None,
        on_reaped: Callable[[Sequence[Lease]], None] | None = None,
    ) -> int:
        """End the leases whose FIN WAIT is over, or all that wait if `now`.

        Return how many ended. At most `limit` are tried. `on_reaped` is called with
        those that ended, a batch at a time. A lease that cannot be ended keeps waiting;
        its error is raised after the rest is done.
        """
        context = self.context
        boottime = inf if now else context.system.boottime()
        tried = ended = 0
        failures = Failures()
        with context.gate:
            context.claims.drop_stale()
            try:
                while limit is None or tried < limit:
                    room = REAP_BATCH if limit is None else limit - tried
                    due = context.claims.claim_due(boottime, min(REAP_BATCH, room))
                    if not due:
                        break
                    self.batches += 1
                    tried += len(due)
                    for batch in by_namespace(due).values():
                        reaped = self._reap(batch, failures)
                        ended += len(reaped)
                        if reaped and on_reaped is not None:
                            on_reaped(reaped)
            finally:
                # A lease that could not be ended stays claimed until here, or it
                # would be due again at once.
                context.claims.release()
        failures.raise_any()
        return ended

    def some(
        self,
        ids: Sequence[str],
        *,
        on_reaped: Callable[[Sequence[Lease]], None] | None = None,
    ) -> int:
        """End the FIN WAIT of these leases at this moment; return how many ended.

        A lease that has ended already is no failure. Raises NoSuchLease,
        ConflictError if a lease has not been released, and LeaseBusy.
        """
        context = self.context
        failures = Failures()
        with context.gate:
            context.claims.drop_stale()
            waiting = [lease for id in ids if (lease := self._waiting(id))]
            with context.claims.claimed([lease.id for lease in waiting]) as claimed:
                ended: list[Lease] = []
                for netns, batch in by_namespace(claimed).items():
                    with context.opened(netns) as namespace:
                        ended += self.devices.end(namespace, batch, failures)
            if ended and on_reaped is not None:
                on_reaped(ended)
            free = {lease.id for lease in claimed}
            for lease in waiting:
                if lease.id not in free and context.ledger.lease(lease.id):
                    failures.add(
                        LeaseBusy(
                            f"another process works on lease {lease.id} ({lease.name}) "
                            "at this moment; try again",
                            lease=lease.id,
                        )
                    )
        failures.raise_any()
        return len(ended)

    def _waiting(self, id: str) -> Lease | None:
        """Return the lease, which must be in FIN WAIT; None if it has ended."""
        lease = self.context.ledger.lease(id)
        if lease is None:
            if self.context.ledger.ended(id):
                return None
            raise NoSuchLease(f"no lease has the id {id!r}", reference=id)
        if lease.state is not State.FIN_WAIT:
            raise ConflictError(
                f"lease {id} ({lease.name}) is {lease.state}, not in FIN WAIT: "
                "release it first"
            )
        return lease

    def next_deadline(self) -> float | None:
        """Return when the next FIN WAIT ends, on `CLOCK_BOOTTIME`; None if none
        waits."""
        with self.context.gate:
            return self.context.ledger.next_deadline()

    def quit_if_idle(self, on_idle: Callable[[], None]) -> bool:
        """Call `on_idle` if no lease waits, while no process can release a lease."""
        with self.context.gate:
            since = self.context.watched_since()
            return self.context.ledger.call_if_idle(on_idle, since=since)

    def _reap(self, batch: Sequence[Lease], failures: Failures) -> list[Lease]:
        """End the claimed leases of one namespace; postpone those that cannot end."""
        ended: list[Lease] = []
        try:
            with self.context.opened(batch[0].netns) as namespace:
                ended = self.devices.end(namespace, batch, failures)
        except TapsterError as error:
            failures.add(error)
        over = {lease.id for lease in ended}
        if left := [lease.id for lease in batch if lease.id not in over]:
            later = self.context.system.boottime() + POSTPONED
            self.context.ledger.postpone(left, later)
        return ended
