# SPDX-License-Identifier: Apache-2.0
"""The repair of the leases of one network namespace: looks, decides and acts."""

from tapster.backends.backend import Backend, Leftover
from tapster.errors import HostError, NoSuchLease, ServiceUnavailable, TapsterError
from tapster.kernel.port import Namespace
from tapster.light import Collection, Iterator, Mapping, Sequence, suppress
from tapster.model import Kind, Lease, Link, Process, State
from tapster.operations import decision
from tapster.operations.context import Context
from tapster.operations.decision import Action, Conditions, DeviceState
from tapster.operations.devices import (
    OWN,
    RENAMED,
    TAP,
    Devices,
    Differences,
    is_openable,
)
from tapster.operations.failures import Failures
from tapster.operations.reap import REAP_BATCH
from tapster.operations.rewire import Rewire

REPAIR_BATCH = 16
"""Leases that are claimed at a time to be repaired one after the other. Each claim
costs a transaction, and a lease that is claimed cannot be changed by its owner."""

ENDING = (Action.UNDO, Action.CLOSE)
"""The actions that end a lease: its device, if it exists, is deleted."""

Leftovers = list[tuple[Backend, Leftover]]


class NamespaceRepair:
    """The leases of one namespace, what was found of them, and their repair.

    First `look`, then `repair`.
    """

    def __init__(
        self,
        context: Context,
        devices: Devices,
        rewire: Rewire,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        failures: Failures,
    ) -> None:
        """`namespace` is None if it is gone. `failures` collects the errors of leases
        that cannot be repaired: they hinder no other."""
        self._context = context
        self._devices = devices
        self._rewire = rewire
        self._namespace = namespace
        self._leases = leases
        self._failures = failures
        self._differences: Differences = {}
        """How devices are not as requested, by lease."""
        self._elsewhere: frozenset[str] = frozenset()
        """The active leases whose devices may be in other namespaces than they were."""
        self._holders: Mapping[str, int] = {}
        """By lease: the pid of a process that has the lease's macvtap open, although
        the process that the lease is bound to has ended."""
        self._ended: Mapping[str, Process] = {}
        """By lease: the process that a macvtap's lease is bound to, if it has ended and
        no process has the macvtap open. A process that ends later may leave its macvtap
        to a process that was not looked for."""
        self.actions: dict[str, Action] = {}
        """What is to be done with each lease, and after `repair` what was done."""

    def look(
        self, *, wiring: bool, backends: bool, leftovers: Leftovers | None
    ) -> None:
        """Look at the devices, and decide what is to be done with each lease.

        With `wiring`, also at how the devices are connected; with `backends`, also at
        what the backends have. `leftovers` collects what these have of no lease.
        """
        namespace, leases = self._namespace, self._leases
        links = self._devices.links(namespace, leases)
        if wiring and backends:
            self._differences = self._devices.differences(
                namespace, leases, links, self._failures, leftovers
            )
        elif wiring:
            self._differences = self._devices.link_differences(namespace, leases, links)
        self._elsewhere = self._find_elsewhere(links)
        self._holders, self._ended = self._find_holders()
        self.actions = {
            lease.id: self._decide(
                lease,
                links.get(lease.ifindex),
                differs=lease.id in self._differences,
            )
            for lease in leases
        }

    def repair(self) -> None:
        """Do what was decided, unless a lease or its device has changed since."""
        for id, pid in self._holders.items():
            # The lease ends with that process. If it has ended by now, the next look
            # releases the lease.
            with suppress(TapsterError):
                self._context.ledger.bind([id], self._context.process(pid))
        restored = self._restore_together()
        remaining = [lease for lease in self._leases if lease.id not in restored]
        for portion in self._portions(remaining):
            left = [lease.id for lease in portion]
            self.actions.update(dict.fromkeys(left, Action.LEAVE))
            try:
                self._repair(portion)
            except TapsterError as error:
                self._failures.add(error, left)

    def _find_elsewhere(self, links: Mapping[int, Link]) -> frozenset[str]:
        """Return the ids of active leases whose devices may be in other namespaces."""
        look, ledger = decision.look, self._context.ledger.id
        lost = [
            lease
            for lease in self._leases
            if self._namespace is not None
            and lease.state is State.ACTIVE
            and look(ledger, lease, links.get(lease.ifindex)) is DeviceState.ABSENT
        ]
        try:
            return frozenset(self._devices.moved(lost))
        except TapsterError as error:
            # An active lease does not end because its device cannot be found.
            self._failures.add(error, [lease.id for lease in lost])
            return frozenset(lease.id for lease in lost)

    def _find_holders(self) -> tuple[dict[str, int], dict[str, Process]]:
        """Return processes that go on with macvtaps of processes that have ended, and
        the ended processes of the other macvtaps.

        A process may start the VM in the background, and end.
        """
        ended = {
            lease.ifindex: (lease.id, lease.process)
            for lease in self._leases
            if lease.kind is Kind.MACVTAP
            and lease.state is State.ACTIVE
            and lease.process is not None
            and self._context.has_ended(lease.process)
        }
        holders: dict[int, int] = {}
        if self._namespace is not None and ended:
            try:
                holders = self._namespace.macvtap_holders(ended)
            except HostError as error:
                # An active lease does not end because nothing tells who has it open.
                self._failures.add(error, [id for id, _ in ended.values()])
                return {}, {}
        return (
            {ended[ifindex][0]: pid for ifindex, pid in holders.items()},
            dict(at for ifindex, at in ended.items() if ifindex not in holders),
        )

    def _restore_together(self) -> set[str]:
        """Let each backend restore many leases in one step, if it can.

        Return the ids of the leases that are as requested now.
        """
        namespace, differences = self._namespace, self._differences
        rewired = [
            lease for lease in self._leases if self.actions[lease.id] is Action.REWIRE
        ]
        if namespace is None or len(rewired) < 2:
            return set()
        for backend in self._context.backends:
            wrong = {
                lease.id: lease
                for lease in rewired
                if backend.name in lease.backends
                and backend.name in differences[lease.id]
            }
            if len(wrong) > 1:
                with suppress(TapsterError):  # then each lease is tried by itself
                    self._restore(namespace, backend, wrong)
        return {lease.id for lease in rewired if not differences[lease.id]}

    def _restore(
        self, namespace: Namespace, backend: Backend, wrong: Mapping[str, Lease]
    ) -> None:
        """Let one backend restore these leases, unless they have changed.

        What was restored is a difference no more.
        """
        with self._context.claims.claimed([*wrong]) as claimed:
            same = [
                lease
                for lease in claimed
                if lease._replace(manager=None)
                == wrong[lease.id]._replace(manager=None)
                and self._devices.is_there(namespace, lease)
            ]
            restored = backend.restore(namespace, same)
            for lease in same:
                if lease.id in restored:
                    self._rewire.rest_if_released(namespace, lease.id)
                    del self._differences[lease.id][backend.name]

    def _portions(self, leases: Sequence[Lease]) -> Iterator[Sequence[Lease]]:
        """Divide the leases to repair into batches: those that end, then the others."""
        is_alive = self._context.claims.is_alive
        ending: list[Lease] = []
        others: list[Lease] = []
        for lease in leases:
            action = self.actions[lease.id]
            # A dead manager's claim has to go, even if nothing else is to be done.
            claimed = lease.manager is not None and not is_alive(lease.manager)
            if action in ENDING:
                ending.append(lease)
            elif claimed or action is not Action.LEAVE:
                others.append(lease)
        for group, size in ((ending, REAP_BATCH), (others, REPAIR_BATCH)):
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _repair(self, leases: Sequence[Lease]) -> None:
        """Claim the leases, look again, and do what the table says."""
        before = {lease.id: lease for lease in leases}
        with self._context.claims.claimed([*before]) as claimed:
            ending: dict[str, Action] = {}
            ready: list[Lease] = []
            for lease in claimed:
                try:
                    lease, action, wrong = self._decide_again(lease, before[lease.id])
                    if action in ENDING:
                        ending[lease.id] = action
                        ready.append(lease)
                    else:
                        self.actions[lease.id] = self._act(action, lease, wrong)
                except TapsterError as error:
                    self._failures.add(error, [lease.id])
            if ready:
                try:
                    ended = self._devices.end(self._namespace, ready, self._failures)
                    self.actions.update((each.id, ending[each.id]) for each in ended)
                except TapsterError as error:
                    self._failures.add(error, [lease.id for lease in ready])

    def _decide_again(
        self, lease: Lease, before: Lease
    ) -> tuple[Lease, Action, Collection[str]]:
        """Decide on a claimed lease. Return the lease, the action and the differences.

        The returned lease names every backend that has a part of it. The differences
        are named by kind. `before` is the lease when the backends were asked.
        """
        namespace = self._namespace
        link = namespace.link(lease.ifindex) if namespace else None
        unclaimed = lease._replace(manager=None)
        wrong = self._differences.get(lease.id, {})
        # Backends are asked again only if the lease has changed, or a dead manager may
        # have changed its device: some need as long for one lease as for all.
        if before.manager is not None or (wrong and not _is_same(lease, before)):
            links = {link.ifindex: link} if link else {}
            again = self._devices.differences(namespace, [lease], links, Failures())
            wrong = again.get(lease.id, {})
        action = self._decide(unclaimed, link, differs=bool(wrong))
        if (
            action is Action.RELEASE
            and namespace is not None
            and link is not None
            and decision.is_ours(self._context.ledger.id, lease, link)
            and _may_be_held(namespace, lease, link)
        ):
            action = Action.LEAVE
        # Backends may have something that the ledger does not know of.
        there = [part for part in wrong if part not in OWN]
        backends = tuple(dict.fromkeys([*lease.backends, *there]))
        return lease._replace(backends=backends), action, wrong.keys()

    def _act(self, action: Action, lease: Lease, wrong: Collection[str]) -> Action:
        """Do an action that ends no lease; return the one that was done in the end."""
        try:
            return self._do(action, lease, wrong)
        except TapsterError:
            if action is not Action.REWIRE or self._namespace is None:
                raise
            # The device may have been deleted after it was looked at.
            if self._devices.is_there(self._namespace, lease):
                raise
            action = self._decide(lease._replace(manager=None), None)
            return self._do(action, lease, wrong)

    def _do(self, action: Action, lease: Lease, wrong: Collection[str]) -> Action:
        namespace = self._namespace
        if action is Action.REWIRE and namespace is not None:
            restored = (
                (RENAMED in wrong and self._rewire.rename(namespace, lease)),
                (TAP in wrong and self._rewire.restore_tap(namespace, lease)),
            )
            if not set(wrong) - {RENAMED, TAP}:
                return action if any(restored) else Action.LEAVE
            sound = [backend for backend in lease.backends if backend not in wrong]
            with suppress(NoSuchLease):
                self._rewire.reconnect(namespace, lease, lease.wiring, sound=sound)
        elif action is not Action.LEAVE and namespace is not None:
            lease = self._context.ledger.begin_release(lease.id)
            if lease.fin_wait == 0:
                self._end_at_once(namespace, lease)
                return action
            released = action is Action.RELEASE
            if not self._devices.rest(namespace, lease, released=released):
                self._devices.hold_name(namespace, lease)
            else:
                self._devices.detach(namespace, lease)
        return action

    def _end_at_once(self, namespace: Namespace, lease: Lease) -> None:
        """End a lease that has no FIN WAIT; no placeholder has to hold its name."""
        failures = Failures()
        self._devices.end(namespace, [lease], failures)
        with suppress(ServiceUnavailable):  # the reaper will try again
            failures.raise_any()

    def _decide(
        self, lease: Lease, link: Link | None, *, differs: bool = False
    ) -> Action:
        """Ask the table, for a lease and the device with its ifindex."""
        context, namespace = self._context, self._namespace
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
        if lease.kind is Kind.MACVTAP:
            ended = self._ended.get(lease.id)
            return ended is not None and ended == lease.process
        if link is not None and link.open:
            return False
        if lease.process is not None and self._context.has_ended(lease.process):
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
