# SPDX-License-Identifier: Apache-2.0
"""Recover: bring ledger and kernel into agreement.

For each lease the decision table says what to do, from the lease, its device and
whether its manager lives. The lease is then claimed, looked at once more, and
repaired.
"""

from tapster.backends.backend import Backend, Leftover
from tapster.errors import (
    HostError,
    LedgerError,
    NoSuchLease,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel.port import Namespace
from tapster.light import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    suppress,
)
from tapster.model import HistoryEvent, Kind, Lease, Link, Netns, State
from tapster.operations import decision
from tapster.operations.context import Context
from tapster.operations.decision import Action, Conditions, DeviceState, Repair
from tapster.operations.devices import (
    OWN,
    RENAMED,
    TAP,
    Devices,
    Differences,
    is_openable,
)
from tapster.operations.failures import Failures
from tapster.operations.orphans import find_orphans
from tapster.operations.reap import REAP_BATCH
from tapster.operations.rewire import Rewire

REPAIR_BATCH = 16
"""Leases that are claimed at a time to be repaired one after the other. Each claim
costs a transaction, and a lease that is claimed cannot be changed by its owner."""

ENDING = (Action.UNDO, Action.CLOSE)
"""The actions that end a lease: its device, if it exists, is deleted."""

Leftovers = list[tuple[Backend, Leftover]]

OnRepaired = Callable[[Sequence[Repair]], None]


class Recover:
    """The operation. Call it to repair every lease."""

    def __init__(self, context: Context, devices: Devices, rewire: Rewire) -> None:
        self.context = context
        self.devices = devices
        self.rewire = rewire
        self._holders: Mapping[str, int] = {}
        """By lease: the pid of a process that has the lease's macvtap open, although
        the process that the lease is bound to has ended."""
        self._elsewhere: frozenset[str] = frozenset()
        """The active leases whose devices may be in other namespaces than they were."""

    def __call__(
        self, *, dry_run: bool = False, on_repaired: OnRepaired | None = None
    ) -> list[Repair]:
        """Repair every lease, and remove leftovers; return what was, or would be, done.

        Leases that a living manager works on are left alone. May be repeated.
        `on_repaired` is called with what was done. A lease that cannot be repaired
        hinders no other; its error is raised after the rest is done.
        """
        context = self.context
        with context.gate:
            if not dry_run:
                context.claims.drop_stale()
            leases = context.ledger.leases()
            failures = Failures()
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
    ) -> list[Repair]:
        """Repair these leases alone; with `wiring`, also how they are connected.

        Without `backends`, look at the devices alone, which is quick.
        """
        context = self.context
        with context.gate:
            context.claims.drop_stale()
            leases = [lease for id in ids if (lease := context.ledger.lease(id))]
            return self._repair_and_wake(
                leases, on_repaired, wiring=wiring, backends=backends
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
            return self._repair_and_wake(find_orphans(context))

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
        """Return what belongs to no lease.

        The ledger is asked after the backends: a lease precedes what is made for it.
        """
        find = self.context.ledger.lease
        return [found for found in observed if find(found[1].lease) is None]

    def _remove_leftovers(self, observed: Leftovers, failures: Failures) -> None:
        for backend, leftover in self._without_lease(observed):
            try:
                backend.remove(self.context.namespace, leftover)
            except TapsterError as error:
                failures.add(error)

    def _repair_and_wake(
        self,
        leases: Sequence[Lease],
        on_repaired: OnRepaired | None = None,
        *,
        wiring: bool = False,
        backends: bool = False,
    ) -> list[Repair]:
        failures = Failures()
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
        spaces: dict[Netns, list[Lease]] = {}
        for lease in leases:
            spaces.setdefault(lease.netns, []).append(lease)
        if leftovers is not None and not any(map(self.context.is_here, spaces)):
            spaces[self.context.namespace.netns] = []
        actions: dict[str, Action] = {}

        def repair(namespace: Namespace | None, batch: Sequence[Lease]) -> None:
            here = namespace is self.context.namespace
            actions.update(
                self._repair_in(
                    namespace,
                    batch,
                    failures,
                    dry_run=dry_run,
                    wiring=wiring,
                    backends=backends,
                    leftovers=leftovers if here else None,
                )
            )

        # Hundreds of namespaces may end at once.
        ended = self._ended(spaces)
        repair(None, [lease for netns in ended for lease in spaces.pop(netns)])
        for netns, batch in spaces.items():
            try:
                with self.context.opened(netns) as namespace:
                    repair(namespace, batch)
            except TapsterError as error:
                failures.add(error)
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

    def _repair_in(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        failures: Failures,
        *,
        dry_run: bool,
        wiring: bool,
        backends: bool,
        leftovers: Leftovers | None,
    ) -> dict[str, Action]:
        """Repair the leases of one namespace; the action on each, by its id."""
        links = self.devices.links(namespace, leases)
        differences: Differences = {}
        if wiring and backends:
            differences = self.devices.differences(
                namespace, leases, links, failures, leftovers
            )
        elif wiring:
            differences = self.devices.link_differences(namespace, leases, links)
        self._elsewhere = self._find_elsewhere(namespace, leases, links, failures)
        self._holders = self._find_holders(namespace, leases)
        actions = {
            lease.id: self._decide(
                namespace,
                lease,
                links.get(lease.ifindex),
                differs=lease.id in differences,
            )
            for lease in leases
        }
        if dry_run:
            return actions
        for id, pid in self._holders.items():
            # The lease ends with that process. If it has ended by now, the next look
            # releases the lease.
            with suppress(TapsterError):
                self.context.ledger.bind([id], self.context.process(pid))
        restored = self._restore(namespace, leases, actions, differences)
        remaining = [lease for lease in leases if lease.id not in restored]
        for portion in self._portions(remaining, actions):
            actions.update(dict.fromkeys([lease.id for lease in portion], Action.LEAVE))
            try:
                self._repair(namespace, portion, differences, failures, actions)
            except TapsterError as error:
                failures.add(error)
        return actions

    def _find_elsewhere(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        links: Mapping[int, Link],
        failures: Failures,
    ) -> frozenset[str]:
        """Return the ids of active leases whose devices may be in other namespaces."""
        look, ledger = decision.look, self.context.ledger.id
        lost = [
            lease
            for lease in leases
            if namespace is not None
            and lease.state is State.ACTIVE
            and look(ledger, lease, links.get(lease.ifindex)) is DeviceState.ABSENT
        ]
        try:
            return frozenset(self.devices.moved(lost))
        except TapsterError as error:
            # An active lease does not end because its device cannot be found.
            failures.add(error)
            return frozenset(lease.id for lease in lost)

    def _find_holders(
        self, namespace: Namespace | None, leases: Sequence[Lease]
    ) -> dict[str, int]:
        """Return processes that go on with macvtaps of processes that have ended.

        A process may start the VM in the background, and end.
        """
        ended = [
            lease
            for lease in leases
            if lease.kind is Kind.MACVTAP
            and lease.state is State.ACTIVE
            and lease.process is not None
            and self.context.has_ended(lease.process)
        ]
        holders: dict[int, int] = {}
        if namespace is not None and ended:
            with suppress(HostError):  # as if no process had them open
                wanted = [lease.ifindex for lease in ended]
                holders = namespace.macvtap_holders(wanted)
        return {
            lease.id: holders[lease.ifindex]
            for lease in ended
            if lease.ifindex in holders
        }

    def _restore(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        actions: Mapping[str, Action],
        differences: Differences,
    ) -> set[str]:
        """Let each backend restore many leases in one step, if it can.

        Remove what was restored from `differences`. Return the ids of the leases that
        are as requested now.
        """
        rewired = [lease for lease in leases if actions[lease.id] is Action.REWIRE]
        if namespace is None or len(rewired) < 2:
            return set()
        for backend in self.context.backends:
            wrong = {
                lease.id: lease
                for lease in rewired
                if backend.name in lease.backends
                and backend.name in differences[lease.id]
            }
            if len(wrong) > 1:
                with suppress(TapsterError):  # then each lease is tried by itself
                    self._restore_in(namespace, backend, wrong, differences)
        return {lease.id for lease in rewired if not differences[lease.id]}

    def _restore_in(
        self,
        namespace: Namespace,
        backend: Backend,
        wrong: Mapping[str, Lease],
        differences: Differences,
    ) -> None:
        """Let one backend restore these leases, unless they have changed."""
        with self.context.claims.claimed([*wrong]) as claimed:
            same = [
                lease
                for lease in claimed
                if lease._replace(manager=None)
                == wrong[lease.id]._replace(manager=None)
                and self.devices.is_there(namespace, lease)
            ]
            restored = backend.restore(namespace, same)
            for lease in same:
                if lease.id in restored:
                    self.rewire.rest_if_released(namespace, lease.id)
                    del differences[lease.id][backend.name]

    def _portions(
        self, leases: Sequence[Lease], actions: Mapping[str, Action]
    ) -> Iterator[Sequence[Lease]]:
        """Divide the leases to repair into batches: those that end, then the others."""
        is_alive = self.context.claims.is_alive
        ending: list[Lease] = []
        others: list[Lease] = []
        for lease in leases:
            action = actions[lease.id]
            # A dead manager's claim has to go, even if nothing else is to be done.
            claimed = lease.manager is not None and not is_alive(lease.manager)
            if action in ENDING:
                ending.append(lease)
            elif claimed or action is not Action.LEAVE:
                others.append(lease)
        for group, size in ((ending, REAP_BATCH), (others, REPAIR_BATCH)):
            for start in range(0, len(group), size):
                yield group[start : start + size]

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
                    lease, action, wrong = self._decide_again(
                        namespace, lease, before[lease.id], differences
                    )
                    if action in ENDING:
                        ending[lease.id] = action
                        ready.append(lease)
                    else:
                        done[lease.id] = self._act(action, namespace, lease, wrong)
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
    ) -> tuple[Lease, Action, Collection[str]]:
        """Decide on a claimed lease; return it with every backend that has some of it.

        The third value names what is not as requested. `before` is the lease as it was
        when the backends were asked.
        """
        link = namespace.link(lease.ifindex) if namespace else None
        unclaimed = lease._replace(manager=None)
        wrong = differences.get(lease.id, {})
        # Backends are asked again only if the lease has changed, or a dead manager may
        # have changed its device: some need as long for one lease as for all.
        if before.manager is not None or (wrong and not _is_same(lease, before)):
            links = {link.ifindex: link} if link else {}
            again = self.devices.differences(namespace, [lease], links, Failures())
            wrong = again.get(lease.id, {})
        action = self._decide(namespace, unclaimed, link, differs=bool(wrong))
        if (
            action is Action.RELEASE
            and namespace is not None
            and link is not None
            and decision.is_ours(self.context.ledger.id, lease, link)
            and _may_be_held(namespace, lease, link)
        ):
            action = Action.LEAVE
        # Backends may have something that the ledger does not know of.
        there = [part for part in wrong if part not in OWN]
        backends = tuple(dict.fromkeys([*lease.backends, *there]))
        return lease._replace(backends=backends), action, wrong.keys()

    def _act(
        self,
        action: Action,
        namespace: Namespace | None,
        lease: Lease,
        wrong: Collection[str],
    ) -> Action:
        """Do an action that ends no lease; return the one that was done in the end."""
        try:
            return self._do(action, namespace, lease, wrong)
        except TapsterError:
            if action is not Action.REWIRE or namespace is None:
                raise
            # The device may have been deleted after it was looked at.
            if self.devices.is_there(namespace, lease):
                raise
            action = self._decide(namespace, lease._replace(manager=None), None)
            return self._do(action, namespace, lease, wrong)

    def _do(
        self,
        action: Action,
        namespace: Namespace | None,
        lease: Lease,
        wrong: Collection[str],
    ) -> Action:
        if action is Action.REWIRE and namespace is not None:
            restored = (
                (RENAMED in wrong and self.rewire.rename(namespace, lease)),
                (TAP in wrong and self.rewire.restore_tap(namespace, lease)),
            )
            if not set(wrong) - {RENAMED, TAP}:
                return action if any(restored) else Action.LEAVE
            sound = [backend for backend in lease.backends if backend not in wrong]
            with suppress(NoSuchLease):
                self.rewire.reconnect(namespace, lease, lease.wiring, sound=sound)
        elif action is not Action.LEAVE and namespace is not None:
            lease = self.context.ledger.begin_release(lease.id)
            if lease.fin_wait == 0:
                self._end_at_once(namespace, lease)
                return action
            released = action is Action.RELEASE
            if not self.devices.rest(namespace, lease, released=released):
                self.devices.hold_name(namespace, lease)
            else:
                self.devices.detach(namespace, lease)
        return action

    def _end_at_once(self, namespace: Namespace, lease: Lease) -> None:
        """End a lease that has no FIN WAIT; no placeholder has to hold its name."""
        failures = Failures()
        self.devices.end(namespace, [lease], failures)
        with suppress(ServiceUnavailable):  # the reaper will try again
            failures.raise_any()

    def _decide(
        self,
        namespace: Namespace | None,
        lease: Lease,
        link: Link | None,
        *,
        differs: bool = False,
    ) -> Action:
        context = self.context
        device = decision.look(context.ledger.id, lease, link)
        conditions = Conditions(
            worked_on=lease.manager is not None
            and context.claims.is_alive(lease.manager),
            namespace_gone=namespace is None,
            due=lease.deadline is not None
            and lease.deadline <= context.system.boottime(),
            owner_gone=self._owner_gone(lease, link),
            elsewhere=lease.id in self._elsewhere,
            differs=differs,
            backends=bool(lease.backends),
            openable=link is not None and not link.open and is_openable(link),
            name_taken=namespace is not None
            and lease.state is State.FIN_WAIT
            and device is DeviceState.ABSENT
            and namespace.ifindex(lease.name) != 0,
        )
        return decision.decide(lease.state, device, conditions)

    def _owner_gone(self, lease: Lease, link: Link | None) -> bool:
        """Return whether the process, or the open tap, that a lease is bound to is
        gone.

        The process that the caller named may have started the VM and ended, as with
        QEMU's -daemonize. So a lease does not end while a process has its device open.
        """
        if (link is not None and link.open) or lease.id in self._holders:
            return False
        if lease.process is not None and self.context.has_ended(lease.process):
            return True
        return lease.on_close and link is not None


def _may_be_held(namespace: Namespace, lease: Lease, link: Link) -> bool:
    """Return whether a process has a tap open although the tap has no carrier."""
    if link.kind != "tun" or link.queues is not None:
        return False
    return namespace.is_held(link.name, link.ifindex, vnet_hdr=lease.vnet_hdr)


def _is_same(lease: Lease, before: Lease) -> bool:
    """Return whether a lease is as before, apart from its claim."""
    return lease._replace(manager=before.manager) == before
