# SPDX-License-Identifier: Apache-2.0
"""Bind: let active leases end with a process."""

from collections.abc import Sequence
from contextlib import suppress

from tapster.errors import TapsterError
from tapster.operations.context import Context


class Bind:
    """The operation. Call it with the ids of leases."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, ids: Sequence[str], pid: int | None) -> None:
        """Let leases end with the process `pid`, and with no other; None: with none.

        Raises NoSuchLease, and binds none, if one has been released.
        """
        context = self.context
        process = None if pid is None else context.process(pid)
        with context.gate:
            context.ledger.bind(ids, process)
            if process is not None:
                # The leases are bound. A reaper that cannot start now is started by
                # the next operation.
                with suppress(TapsterError):
                    context.wake_reaper()
