# SPDX-License-Identifier: Apache-2.0
"""Every operation on the leases of one ledger, constructed once.

Host is the face of these for users. The daemon, the reaper and the doctor need
more than a user does, and work with the operations themselves.
"""

import os

from tapster.backends import MakeBackends
from tapster.kernel.port import System
from tapster.light import TYPE_CHECKING, Callable, Self, cached_property
from tapster.operations.context import Context, open_context
from tapster.operations.devices import Devices
from tapster.operations.orphans import find_orphans

if TYPE_CHECKING:
    from tapster.operations.acquire import Acquire
    from tapster.operations.bind import Bind
    from tapster.operations.decision import Repair
    from tapster.operations.leftovers import RemoveLeftovers
    from tapster.operations.look import Look
    from tapster.operations.reap import Reap
    from tapster.operations.recover import Recover
    from tapster.operations.release import Release
    from tapster.operations.reopen import Reopen
    from tapster.operations.rewire import Rewire


class Operations:
    """The operations. Close them, or use them as a context manager.

    Each is imported when it is first used: a verb needs one or two.
    """

    def __init__(
        self,
        context: Context,
        *,
        devices: type[Devices] = Devices,
        acquire: "type[Acquire] | None" = None,
        rewire: "type[Rewire] | None" = None,
    ) -> None:
        """The classes given are constructed in place of the usual ones."""
        self.context = context
        self.devices = devices(context)
        self._acquire = acquire
        self._rewire = rewire

    @cached_property
    def acquire(self) -> "Acquire":
        from tapster.operations.acquire import Acquire

        return (self._acquire or Acquire)(self.context, self.devices)

    @cached_property
    def bind(self) -> "Bind":
        from tapster.operations.bind import Bind

        return Bind(self.context, lambda: self.recover)

    @cached_property
    def release(self) -> "Release":
        from tapster.operations.release import Release

        return Release(self.context, self.devices)

    @cached_property
    def rewire(self) -> "Rewire":
        from tapster.operations.rewire import Rewire

        return (self._rewire or Rewire)(self.context, self.devices)

    @cached_property
    def reap(self) -> "Reap":
        from tapster.operations.reap import Reap

        return Reap(self.context, self.devices)

    @cached_property
    def recover(self) -> "Recover":
        from tapster.operations.recover import Recover

        return Recover(self.context, self.devices, self.rewire)

    @cached_property
    def remove_leftovers(self) -> "RemoveLeftovers":
        from tapster.operations.leftovers import RemoveLeftovers

        return RemoveLeftovers(self.context)

    @cached_property
    def look(self) -> "Look":
        from tapster.operations.look import Look

        return Look(self.context, self.devices)

    @cached_property
    def reopen(self) -> "Reopen":
        from tapster.operations.reopen import Reopen

        return Reopen(self.context, self.look)

    def settle(self) -> "list[Repair]":
        """Repair what dead processes left, as `recover.settle`, which is seldom
        needed."""
        context = self.context
        with context.gate:
            context.claims.drop_stale()
            if find_orphans(context):
                return self.recover.settle()
            context.wake_reaper()
            return []

    def close(self) -> None:
        """Close everything but the leases."""
        self.context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_operations(
    ledger: str | os.PathLike[str] | None = None,
    *,
    netns: str | None = None,
    system: System | None = None,
    backends: MakeBackends | None = None,
    reaper: Callable[[str], None] | None = None,
    make: bool = True,
) -> Operations:
    """Open a ledger for all operations; the other parameters are those of `Host`.

    A missing ledger is made only if `make` is set.
    """
    return Operations(
        open_context(
            ledger,
            netns=netns,
            system=system,
            backends=backends,
            reaper=reaper,
            make=make,
        )
    )
