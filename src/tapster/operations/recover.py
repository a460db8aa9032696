# SPDX-License-Identifier: Apache-2.0
"""Recover: bring ledger and kernel into agreement.

For each lease the decision table says what to do, from the lease, its device and
whether its manager lives. The lease is then claimed, looked at once more, and
repaired.
"""

from tapster.errors import LedgerError, TapsterError
from tapster.kernel.port import Namespace
from tapster.light import Callable, Iterable, Sequence, suppress
from tapster.model import HistoryEvent, Lease, Netns, by_namespace, stamp
from tapster.operations.context import Context
from tapster.operations.decision import Action, Repair
from tapster.operations.devices import Devices
from tapster.operations.failures import Failures
from tapster.operations.orphans import find_orphans
from tapster.operations.repair import Leftovers, NamespaceRepair
from tapster.operations.rewire import Rewire

OnRepaired = Callable[[Sequence[Repair]], None]


class Recover:
    """The operation. Call it to repair every lease."""

    def __init__(self, context: Context, devices: Devices, rewire: Rewire) -> None:
        self.context = context
        self.devices = devices
        self.rewire = rewire

    def __call__(
        self,
        *,
        dry_run: bool = False,
        on_repaired: OnRepaired | None = None,
        failures: Failures | None = None,
    ) -> list[Repair]:
        """Repair every lease, and remove leftovers; return what was, or would be, done.

        Leases that a living manager works on are left alone. May be repeated.
        `on_repaired` is called with what was done. A lease that cannot be repaired
        hinders no other; its error is raised after the rest is done, and is in
        `failures` with the lease.
        """
        context = self.context
        failures = Failures() if failures is None else failures
        with context.gate:
            if not dry_run:
                context.claims.drop_stale()
            leases = context.ledger.leases()
            leftovers: Leftovers = []
            try:
                repairs = self._repair_all(
                    leases,
                    failures,
                    dry_run=dry_run,
                    wiring=True,
                    on_repaired=on_repaired,
                    leftovers=leftovers,
                )
                if not dry_run:
                    self._remove_leftovers(leftovers, failures)
                failures.raise_any()
                return repairs
            finally:
                if not dry_run:
                    context.wake_reaper()

    def some(
        self,
        ids: Iterable[str],
        *,
        wiring: bool = False,
        backends: bool = True,
        on_repaired: OnRepaired | None = None,
        failures: Failures | None = None,
    ) -> list[Repair]:
        """Repair these leases alone; with `wiring`, also how they are connected.

        Without `backends`, look at the devices alone, which is quick. The rest is as
        for every lease.
        """
        context = self.context
        with context.gate:
            context.claims.drop_stale()
            leases = [lease for id in ids if (lease := context.ledger.lease(id))]
            return self._repair_and_wake(
                leases,
                Failures() if failures is None else failures,
                on_repaired,
                wiring=wiring,
                backends=backends,
            )

    def settle(self) -> list[Repair]:
        """Repair what dead processes left: a cheap recover, for before other work.

        Releases leases that are bound to an ended process, finishes or undoes the
        operations of dead managers, changes of a wiring included, and closes leases of
        an earlier boot.
        """
        context = self.context
        with context.gate:
            context.claims.drop_stale()
            return self._repair_and_wake(find_orphans(context), Failures())

    def restrict(self) -> list[Repair]:
        """Take from users the right to open waiting taps that are closed by now.

        A tap that was open at its release may not have lost its user's right then: its
        process may be hidden, or may have given the right back to itself.
        """
        with self.context.gate:
            ids = self.context.ledger.waiting_open()
            return self.some(ids, backends=False) if ids else []

    def leftovers(self) -> Leftovers:
        """Return what backends have here with the ledger's stamp, and no lease for
        it."""
        context = self.context
        with context.gate:
            failures = Failures()
            leftovers: Leftovers = []
            here = [
                lease
                for lease in context.ledger.leases()
                if context.is_here(lease.netns)
            ]
            self.devices.differences(context.namespace, here, {}, failures, leftovers)
            failures.raise_any()
            return self._without_lease(leftovers)

    def _without_lease(self, observed: Leftovers) -> Leftovers:
        """Return what belongs to no lease and to no device.

        The ledger is asked after the backends: a lease precedes what is made for it.
        A ledger that was restored from a backup does not know the VMs that were
        started later: what their devices are connected to stays, as the devices do.
        """
        context = self.context
        lost = [
            each for each in observed if context.ledger.lease(each[1].lease) is None
        ]
        if not lost:
            return []
        stamps = {link.alias for link in context.namespace.links()}
        return [
            each
            for each in lost
            if stamp(context.ledger.id, each[1].lease) not in stamps
        ]

    def _remove_leftovers(self, observed: Leftovers, failures: Failures) -> None:
        for backend, leftover in self._without_lease(observed):
            try:
                backend.remove(self.context.namespace, leftover)
            except TapsterError as error:
                failures.add(error)

    def _repair_and_wake(
        self,
        leases: Sequence[Lease],
        failures: Failures,
        on_repaired: OnRepaired | None = None,
        *,
        wiring: bool = False,
        backends: bool = False,
    ) -> list[Repair]:
        try:
            repairs = self._repair_all(
                leases,
                failures,
                wiring=wiring,
                backends=backends,
                on_repaired=on_repaired,
            )
            failures.raise_any()
            return repairs
        finally:
            self.context.wake_reaper()

    def _repair_all(
        self,
        leases: Sequence[Lease],
        failures: Failures,
        *,
        dry_run: bool = False,
        wiring: bool = False,
        backends: bool = True,
        on_repaired: OnRepaired | None = None,
        leftovers: Leftovers | None = None,
    ) -> list[Repair]:
        """Repair the leases, one namespace after the other.

        `leftovers` collects what backends have here that belongs to none of the leases.
        """
        context = self.context
        spaces = by_namespace(leases)
        if leftovers is not None and not any(map(context.is_here, spaces)):
            spaces[context.namespace.netns] = []
        actions: dict[str, Action] = {}

        def repair(namespace: Namespace | None, batch: Sequence[Lease]) -> None:
            found = NamespaceRepair(
                context, self.devices, self.rewire, namespace, batch, failures
            )
            here = namespace is context.namespace
            found.look(
                wiring=wiring,
                backends=backends,
                leftovers=leftovers if here else None,
            )
            if not dry_run:
                found.repair()
            actions.update(found.actions)

        # Hundreds of namespaces may end at once.
        ended = self._ended(spaces)
        repair(None, [lease for netns in ended for lease in spaces.pop(netns)])
        for netns, batch in spaces.items():
            try:
                with context.opened(netns) as namespace:
                    repair(namespace, batch)
            except TapsterError as error:
                failures.add(error, [lease.id for lease in batch])
        repairs = [
            Repair(lease, action)
            for lease in leases
            if (action := actions.get(lease.id, Action.LEAVE)) is not Action.LEAVE
        ]
        if not dry_run:
            self._record(repairs, reported=on_repaired is not None)
            if repairs and on_repaired is not None:
                on_repaired(repairs)
        return repairs

    def _record(self, repairs: Iterable[Repair], *, reported: bool) -> None:
        """Record the repairs of devices in the history.

        A caller that has repairs `reported` also records the replaced devices. A full
        disk loses the record, not the repair.
        """
        for lease, action in repairs:
            if action is Action.REWIRE:
                event, detail = "repaired", "the device is connected as requested again"
            elif action is Action.HOLD_NAME and not reported:
                event, detail = "held", "a placeholder holds the name"
            else:
                continue
            happened = HistoryEvent(
                round(self.context.system.wallclock(), 3),
                event,
                lease.id,
                lease.name,
                lease.owner,
                lease.caller_uid,
                detail,
            )
            with suppress(LedgerError):
                self.context.ledger.record_event(happened)

    def _ended(self, netnses: Iterable[Netns]) -> list[Netns]:
        """Return which of several namespaces have ended."""
        elsewhere = [netns for netns in netnses if not self.context.is_here(netns)]
        if len(elsewhere) < 2:
            return []
        ended = self.context.system.ended_namespaces(elsewhere)
        return [netns for netns in elsewhere if netns in ended]
