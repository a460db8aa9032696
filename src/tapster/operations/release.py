# SPDX-License-Identifier: Apache-2.0
"""Release: end a lease. Its device goes down, and holds its name during FIN WAIT.

1. The ledger records the release, with the deadline of FIN WAIT. From here on a
   crash loses nothing: reap and recover go on from the record.
2. The device goes down and off its bridge, and no user may open it by its name any
   more. If the device is gone, or excludes others, a placeholder takes its place.
3. Backends remove what they have of the lease. If a service is away, reap tries
   again until the service is back.
4. A reaper is started, if none runs; it deletes the device after FIN WAIT.

A release waits for nobody. An operation that has claimed the lease sees the
record when it is done, and brings the device to rest itself.
"""

from tapster.errors import NoSuchLease, ServiceUnavailable, TapsterError
from tapster.kernel.port import Namespace
from tapster.light import Callable
from tapster.model import Lease
from tapster.operations.context import Context
from tapster.operations.devices import Devices
from tapster.operations.failures import Failures


class Release:
    """The operation. Call it with the id of a lease."""

    def __init__(self, context: Context, devices: Devices) -> None:
        self.context = context
        self.devices = devices

    def __call__(
        self, id: str, check: Callable[[Lease], None] = lambda _: None
    ) -> None:
        """Release a lease. May be repeated, also after the lease has ended.

        `check` gets the lease as it is before its release, and may raise; then the
        lease stays as it is.
        """
        context = self.context
        with context.gate:
            try:
                lease = context.ledger.begin_release(id, check)
            except NoSuchLease:
                if context.ledger.ended(id):
                    return
                raise
            failures = Failures()
            try:
                with context.opened(lease.netns) as namespace:
                    if namespace is not None:
                        try:
                            self._rest(namespace, lease)
                        except TapsterError as error:
                            failures.add(error)
                    try:
                        self._finish(namespace, lease)
                    except ServiceUnavailable:
                        pass  # the reaper will try again
                    except TapsterError as error:
                        failures.add(error)
            finally:
                context.wake_reaper()
            failures.raise_any()

    def _rest(self, namespace: Namespace, lease: Lease) -> None:
        """Bring the device to rest, or let a placeholder hold its name."""
        if not self.devices.rest(namespace, lease, released=True):
            with self.context.claims.claimed([lease.id]) as claimed:
                for lease in claimed:
                    self.devices.hold_name(namespace, lease)

    def _finish(self, namespace: Namespace | None, lease: Lease) -> None:
        """Detach the lease from its backends; end it if there is no FIN WAIT."""
        at_once = lease.fin_wait == 0
        if not at_once and not lease.backends:
            return
        with self.context.claims.claimed([lease.id]) as claimed:
            if at_once:
                failures = Failures()
                self.devices.end(namespace, claimed, failures)
                failures.raise_any()
                return
            for lease in claimed:
                self.devices.detach(namespace, lease)
