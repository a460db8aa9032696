# SPDX-License-Identifier: Apache-2.0
"""Recover: bring ledger and kernel into agreement.

For each lease the decision table says what to do, from the lease, its device and
whether its manager lives. The lease is then claimed, looked at once more, and
repaired.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import inf

from tapster.backends.backend import Backend, Leftover
from tapster.errors import NoSuchLease, TapsterError
from tapster.kernel.port import Namespace
from tapster.model import Lease, Link, State
from tapster.operations import decision
from tapster.operations.context import Context
from tapster.operations.decision import Action, Conditions, Repair
from tapster.operations.devices import Devices, Differences
from tapster.operations.failures import Failures
from tapster.operations.reap import REAP_BATCH
from tapster.operations.rewire import Rewire

FEW = 8
"""Up to so many devices are asked for one by one; more are listed at once."""

ENDING = (Action.UNDO, Action.CLOSE)
"""The actions that end a lease: its device, if it exists, is deleted."""

OnRepaired = Callable[[Sequence[Repair]], None]


class Recover:
    """The operation. Call it to repair every lease."""

    def __init__(self, context: Context, devices: Devices, rewire: Rewire) -> None:
        self.context = context
        self.devices = devices
        self.rewire = rewire

    def __call__(
        self, *, dry_run: bool = False, on_repaired: OnRepaired | None = None
    ) -> list[Repair]:
        """Repair every lease, and remove leftovers; return what was, or would be, done.

        Leases that a living manager works on are left alone. May be repeated.
        `on_repaired` is called with what was done. A lease that cannot be repaired
        hinders no other; why is raised after the rest is done.
        """
        context = self.context
        with context.gate:
            if not dry_run:
                context.claims.drop_stale()
            leases = context.ledger.leases()
            failures = Failures()
            try:
                repairs = self._repair_all(
                    leases,
                    failures,
                    dry_run=dry_run,
                    wiring=True,
                    on_repaired=on_repaired,
                )
                if not dry_run:
                    self._remove_leftovers(leases, failures)
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
        on_repaired: OnRepaired | None = None,
    ) -> list[Repair]:
        """Repair these leases alone; how they are connected only if `wiring`."""
        context = self.context
        with context.gate:
            context.claims.drop_stale()
            leases = [lease for id in ids if (lease := context.ledger.lease(id))]
            return self._repair_and_wake(leases, wiring, on_repaired)

    def settle(self) -> list[Repair]:
        """Repair what dead processes left: a cheap recover, for before other work.

        Releases leases that are bound to an ended process, finishes or undoes the
        operations of dead managers, and closes leases of an earlier boot.
        """
        context = self.context
        with context.gate:
            context.claims.drop_stale()
            boot = context.system.boot_id
            leases = [
                lease
                for lease in context.ledger.suspects(boot, context.has_ended)
                if self._is_left_over(lease, boot)
            ]
            return self._repair_and_wake(leases, False, None)

    def leftovers(self) -> list[tuple[Backend, Leftover]]:
        """Return what backends have here with the ledger's stamp, and no lease for
        it."""
        with self.context.gate:
            failures = Failures()
            leftovers = self._leftovers(self.context.ledger.leases(), failures)
            failures.raise_any()
            return leftovers

    def _is_left_over(self, lease: Lease, boot: str) -> bool:
        """Return whether the process that had a lease, or worked on it, is dead."""
        if lease.manager is not None and not self.context.claims.is_alive(
            lease.manager
        ):
            return True
        if lease.manager is None and lease.state is State.RESERVED:
            return True
        if lease.process is not None and self.context.has_ended(lease.process):
            return True
        return lease.netns.boot != boot

    def _leftovers(
        self, leases: Sequence[Lease], failures: Failures
    ) -> list[tuple[Backend, Leftover]]:
        """As `leftovers`; `leases` were all leases, a moment ago."""
        context = self.context
        here = [lease for lease in leases if context.is_here(lease.netns)]
        observed: list[tuple[Backend, Leftover]] = []
        for backend in context.backends:
            try:
                leftovers = backend.observe(context.namespace, here).leftovers
            except TapsterError as error:
                failures.add(error)
                continue
            observed += [(backend, leftover) for leftover in leftovers]
        # Asked after the backends: a lease precedes what is made for it.
        return [
            (backend, leftover)
            for backend, leftover in observed
            if context.ledger.lease(leftover.lease) is None
        ]

    def _remove_leftovers(self, leases: Sequence[Lease], failures: Failures) -> None:
        for backend, leftover in self._leftovers(leases, failures):
            try:
                backend.remove(self.context.namespace, leftover)
            except TapsterError as error:
                failures.add(error)

    def _repair_and_wake(
        self,
        leases: Sequence[Lease],
        wiring: bool,
        on_repaired: OnRepaired | None,
    ) -> list[Repair]:
        failures = Failures()
        try:
            repairs = self._repair_all(
                leases, failures, wiring=wiring, on_repaired=on_repaired
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
        on_repaired: OnRepaired | None = None,
    ) -> list[Repair]:
        """Repair the leases, one namespace after the other."""
        repairs: list[Repair] = []
        for netns in dict.fromkeys(lease.netns for lease in leases):
            batch = [lease for lease in leases if lease.netns == netns]
            try:
                with self.context.opened(netns) as namespace:
                    actions = self._repair_in(
                        namespace, batch, failures, dry_run=dry_run, wiring=wiring
                    )
            except TapsterError as error:
                failures.add(error)
                continue
            repairs += [
                Repair(lease, action)
                for lease in batch
                if (action := actions[lease.id]) is not Action.LEAVE
            ]
        if repairs and on_repaired is not None and not dry_run:
            on_repaired(repairs)
        return repairs

    def _repair_in(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        failures: Failures,
        *,
        dry_run: bool,
        wiring: bool,
    ) -> dict[str, Action]:
        """Repair the leases of one namespace; the action on each, by its id."""
        links = _links(namespace, leases)
        differences: Differences = {}
        if wiring:
            differences = self.devices.differences(namespace, leases, links, failures)
        actions = {
            lease.id: self._decide(
                namespace,
                lease,
                links.get(lease.ifindex),
                differs=lease.id in differences,
            )
            for lease in leases
        }
        for portion in [] if dry_run else self._portions(leases, actions):
            actions.update(dict.fromkeys([lease.id for lease in portion], Action.LEAVE))
            try:
                self._repair(namespace, portion, differences, failures, actions)
            except TapsterError as error:
                failures.add(error)
        return actions

    def _portions(
        self, leases: Sequence[Lease], actions: Mapping[str, Action]
    ) -> Iterator[Sequence[Lease]]:
        """The leases to repair: those that end in batches, each other by itself."""
        ending = [lease for lease in leases if actions[lease.id] in ENDING]
        for start in range(0, len(ending), REAP_BATCH):
            yield ending[start : start + REAP_BATCH]
        is_alive = self.context.claims.is_alive
        for lease in leases:
            action = actions[lease.id]
            # A dead manager's claim has to go, even if nothing else is to be done.
            claimed = lease.manager is not None and not is_alive(lease.manager)
            if action not in ENDING and (claimed or action is not Action.LEAVE):
                yield [lease]

    def _repair(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        differences: Differences,
        failures: Failures,
        done: dict[str, Action],
    ) -> None:
        """Claim the leases, look again, and do what the table says.

        Add the action on each lease that was repaired to `done`, by its id.
        """
        before = {lease.id: lease for lease in leases}
        with self.context.claims.claimed([*before]) as claimed:
            ending: dict[str, Action] = {}
            ready: list[Lease] = []
            for lease in claimed:
                try:
                    lease, action = self._decide_again(
                        namespace, lease, before[lease.id], differences
                    )
                    if action in ENDING:
                        ending[lease.id] = action
                        ready.append(lease)
                    else:
                        done[lease.id] = self._act(action, namespace, lease)
                except TapsterError as error:
                    failures.add(error)
            if ready:
                try:
                    ended = self.devices.end(namespace, ready, failures)
                    done.update((lease.id, ending[lease.id]) for lease in ended)
                except TapsterError as error:
                    failures.add(error)

    def _decide_again(
        self,
        namespace: Namespace | None,
        lease: Lease,
        before: Lease,
        differences: Differences,
    ) -> tuple[Lease, Action]:
        """Decide on a claimed lease; return it with every backend that has some of it.

        `before` is the lease as it was when the backends were asked.
        """
        link = namespace.link(lease.ifindex) if namespace else None
        unclaimed = lease._replace(manager=None)
        wrong = differences.get(lease.id, {})
        # Backends are asked again only if the lease has changed: some need as long
        # for one lease as for all.
        if wrong and unclaimed != before._replace(manager=None):
            links = {link.ifindex: link} if link else {}
            again = self.devices.differences(namespace, [lease], links, Failures())
            wrong = again.get(lease.id, {})
        action = self._decide(namespace, unclaimed, link, differs=bool(wrong))
        # Backends may have something that the ledger does not know of.
        there = [backend for backend in wrong if backend != "link"]
        backends = tuple(dict.fromkeys([*lease.backends, *there]))
        return lease._replace(backends=backends), action

    def _act(self, action: Action, namespace: Namespace | None, lease: Lease) -> Action:
        """Do an action that ends no lease; return the one that was done in the end."""
        try:
            self._do(action, namespace, lease)
        except TapsterError:
            if action is not Action.REWIRE or namespace is None:
                raise
            # The device may have been deleted after it was looked at.
            if self.devices.is_there(namespace, lease):
                raise
            action = self._decide(namespace, lease._replace(manager=None), None)
            self._do(action, namespace, lease)
        return action

    def _do(self, action: Action, namespace: Namespace | None, lease: Lease) -> None:
        if action is Action.REWIRE and namespace is not None:
            with suppress(NoSuchLease):
                self.rewire.reconnect(namespace, lease, lease.wiring)
        elif action is not Action.LEAVE and namespace is not None:
            lease = self.context.ledger.begin_release(lease.id)
            released = action is Action.RELEASE
            if not self.devices.rest(namespace, lease, released=released):
                self.devices.hold_name(namespace, lease)
            else:
                self.devices.detach(namespace, lease)

    def _decide(
        self,
        namespace: Namespace | None,
        lease: Lease,
        link: Link | None,
        *,
        differs: bool = False,
    ) -> Action:
        context = self.context
        deadline = inf if lease.deadline is None else lease.deadline
        conditions = Conditions(
            worked_on=lease.manager is not None
            and context.claims.is_alive(lease.manager),
            namespace_gone=namespace is None,
            due=deadline <= context.system.boottime(),
            owner_gone=self._owner_gone(lease, link),
            differs=differs,
            backends=bool(lease.backends),
        )
        device = decision.look(context.ledger.id, lease, link)
        return decision.decide(lease.state, device, conditions)

    def _owner_gone(self, lease: Lease, link: Link | None) -> bool:
        """Return whether the process, or the open tap, that a lease is bound to is
        gone.

        The process that the caller named may have started the VM and ended, as with
        QEMU's -daemonize. So a lease does not end while a process has its tap open.
        """
        if link is not None and link.open:
            return False
        if lease.process is not None and self.context.has_ended(lease.process):
            return True
        return lease.on_close and link is not None


def _links(namespace: Namespace | None, leases: Sequence[Lease]) -> dict[int, Link]:
    """Return the devices that have these leases' ifindexes."""
    if namespace is None:
        return {}
    if len(leases) < FEW:
        links = [namespace.link(lease.ifindex) for lease in leases]
        return {link.ifindex: link for link in links if link}
    return {link.ifindex: link for link in namespace.links()}
