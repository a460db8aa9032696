# SPDX-License-Identifier: Apache-2.0
"""Every operation on the leases of one ledger, constructed once.

Host is the face of these for users. The daemon, the reaper and the doctor need
more than a user does, and work with the operations themselves.
"""

import os
from collections.abc import Callable

from tapster import backends as all_backends
from tapster.backends import MakeBackends
from tapster.kernel.port import System
from tapster.light import Self
from tapster.operations.acquire import Acquire
from tapster.operations.bind import Bind
from tapster.operations.context import Context, open_context
from tapster.operations.devices import Devices
from tapster.operations.leftovers import RemoveLeftovers
from tapster.operations.look import Look
from tapster.operations.reap import Reap
from tapster.operations.recover import Recover
from tapster.operations.release import Release
from tapster.operations.reopen import Reopen
from tapster.operations.rewire import Rewire


class Operations:
    """The operations. Close them, or use them as a context manager."""

    def __init__(
        self,
        context: Context,
        *,
        devices: type[Devices] = Devices,
        acquire: type[Acquire] = Acquire,
        rewire: type[Rewire] = Rewire,
    ) -> None:
        """The classes given are constructed in place of the usual ones."""
        self.context = context
        self.devices = devices(context)
        self.acquire = acquire(context, self.devices)
        self.bind = Bind(context)
        self.release = Release(context, self.devices)
        self.rewire = rewire(context, self.devices)
        self.reap = Reap(context, self.devices)
        self.recover = Recover(context, self.devices, self.rewire)
        self.remove_leftovers = RemoveLeftovers(context)
        self.look = Look(context, self.devices)
        self.reopen = Reopen(context, self.look)

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
    backends: MakeBackends = all_backends.make,
    reaper: Callable[[str], None] | None = None,
) -> Operations:
    """Open a ledger for all operations; the parameters are those of `Host`."""
    return Operations(
        open_context(
            ledger, netns=netns, system=system, backends=backends, reaper=reaper
        )
    )
