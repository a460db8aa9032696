# SPDX-License-Identifier: Apache-2.0
"""Bind: let active leases end with a process."""

from tapster.errors import TapsterError
from tapster.light import TYPE_CHECKING, Callable, Sequence, suppress
from tapster.operations.context import Context

if TYPE_CHECKING:
    from tapster.operations.recover import OnRepaired, Recover


class Bind:
    """The operation. Call it with the ids of leases."""

    def __init__(self, context: Context, recover: Callable[[], "Recover"]) -> None:
        """`recover` makes the operation, which is rarely needed."""
        self.context = context
        self._recover = recover

    def __call__(
        self,
        ids: Sequence[str],
        pid: int | None,
        *,
        on_repaired: "OnRepaired | None" = None,
    ) -> None:
        """Let leases end with the process `pid`, and with no other; None: with none.

        A child that has ended, and that its parent has not waited for, is treated as if
        it ended just after this call: its leases end, and `on_repaired` is called with
        them. Raises RequestError if no process has this pid. Raises NoSuchLease, and
        binds none, if one has been released.
        """
        context = self.context
        process = None if pid is None else context.process(pid, ended=True)
        with context.gate:
            context.ledger.bind(ids, process)
            if process is None:
                return
            # The leases are bound. If one cannot be released now, or no reaper can
            # start, the next operation does it.
            with suppress(TapsterError):
                if context.has_ended(process):
                    self._recover().some(ids, backends=False, on_repaired=on_repaired)
                else:
                    context.wake_reaper()
