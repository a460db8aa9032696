# SPDX-License-Identifier: Apache-2.0
"""Reap and recover: what brings ledger and kernel into agreement."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import inf

from tapster.backends.backend import Backend, Leftover
from tapster.errors import ConflictError, NoSuchLease, TapsterError
from tapster.kernel.port import Namespace
from tapster.model import Lease, Link, State
from tapster.operations import decision
from tapster.operations.decision import Action, Conditions, DeviceState, Repair
from tapster.operations.devices import Devices, Differ

REAP_BATCH = 64
"""Devices deleted at a time. Meanwhile the kernel lets nobody else make one: for 20 ms,
and 0.25 ms for each of them. With 32 at a time a device takes 1.1 ms, and the 99th
percentile of the acquires that meet a reap is 19 ms; with 64 it is 0.7 and 32, with 96
0.8 and 62 (`make bench ARGS="reaping waiting"`)."""
POSTPONED = 1.0
"""Seconds after which another attempt is made to end a lease that could not be."""
FEW = 8
"""So few devices are better looked at one by one than among all there are."""

ENDING = (Action.UNDO, Action.CLOSE)
"""What ends a lease: its device, if it is there, is deleted."""


class Mender(Devices):
    """A manager that ends leases whose time is over, and mends what others left."""

    # Reap

    def reap(
        self,
        *,
        now: bool = False,
        limit: int | None = None,
        told: Callable[[Sequence[Lease]], None] | None = None,
    ) -> int:
        """Delete the devices whose FIN WAIT is over, or all that wait if `now`.

        At most about `limit` are tried; `told` is called with those that ended. Returns
        how many did. What cannot be reaped keeps waiting, and the first reason is
        raised after the rest is done.
        """
        boottime = inf if now else self._system.boottime()
        tried = ended = 0
        reason: TapsterError | None = None
        with self._lock:
            self._drop_stale_claims()
            try:
                while (limit is None or tried < limit) and (
                    due := self._ledger.claim_due(
                        self._me(), self._alive, boottime=boottime, limit=REAP_BATCH
                    )
                ):
                    self.batches += 1
                    tried += len(due)
                    for netns in {lease.netns for lease in due}:
                        batch = [lease for lease in due if lease.netns == netns]
                        over: list[Lease] = []
                        try:
                            with self._world(netns) as namespace:
                                self._end(namespace, batch, over)
                        except TapsterError as error:
                            reason = reason or error
                            self._postpone(batch)
                        ended += len(over)
                        if over and told is not None:
                            told(over)
            finally:
                # Those that could not be ended: until then they stay claimed, or
                # they would be due again at once.
                self._ledger.release_claims(self._me())
        if reason is not None:
            raise reason
        return ended

    def next_deadline(self) -> float | None:
        """When the next FIN WAIT ends, on `CLOCK_BOOTTIME`; None if none waits."""
        with self._lock:
            return self._ledger.next_deadline()

    def quit_if_idle(self, quit: Callable[[], None]) -> bool:
        """Call `quit` if nothing waits, while nobody else can release anything."""
        with self._lock:
            return self._ledger.call_if_idle(quit)

    def _end(
        self, namespace: Namespace | None, leases: Sequence[Lease], over: list[Lease]
    ) -> None:
        """Delete claimed leases' devices and end the leases; add those to `over`.

        One that cannot be ended now hinders no other, and is raised last.
        """
        reason: TapsterError | None = None
        ready: list[Lease] = []
        for lease in leases:
            try:
                if lease.backends and lease.state is State.ACTIVE:
                    # Its world is gone. What backends have of it may have to wait.
                    lease = self._ledger.begin_release(lease.id)
                self._detach(namespace, lease)
                ready.append(lease)
            except TapsterError as error:
                reason = reason or error
        if namespace is not None:
            try:
                self._delete(namespace, ready)
            except ConflictError as error:
                reason = reason or error
                gone = DeviceState.ABSENT
                ready = [one for one in ready if self._seen(namespace, one) is gone]
        self._ledger.end([lease.id for lease in ready])
        over += ready
        if reason is not None:
            raise reason

    def _postpone(self, leases: Sequence[Lease]) -> None:
        """Try again later to end what is left of these leases."""
        later = self._system.boottime() + POSTPONED
        self._ledger.postpone([lease.id for lease in leases], later)

    # Recover

    def recover(
        self,
        *,
        dry_run: bool = False,
        told: Callable[[Sequence[Repair]], None] | None = None,
    ) -> list[Repair]:
        """Bring ledger and kernel into agreement; say what was (to be) done.

        Leases that a living manager works on are left alone. May be repeated. `told`
        is called with what was done, also if the rest could not be, which is raised.
        """
        with self._lock:
            if not dry_run:
                self._drop_stale_claims()
            leases = self._ledger.leases()
            try:
                repairs = self._mend_all(
                    leases, dry_run=dry_run, wiring=True, told=told
                )
                for backend, stray in [] if dry_run else self._strays(leases):
                    backend.remove(self._namespace, stray)
                return repairs
            finally:
                if not dry_run:
                    self._wake_reaper()

    def mend(
        self,
        ids: Iterable[str],
        *,
        wiring: bool = False,
        told: Callable[[Sequence[Repair]], None] | None = None,
    ) -> list[Repair]:
        """As `recover`, for these leases alone; how they are wired only if `wiring`."""
        with self._lock:
            self._drop_stale_claims()
            leases = [lease for id in ids if (lease := self._ledger.lease(id))]
            try:
                return self._mend_all(leases, wiring=wiring, told=told)
            finally:
                self._wake_reaper()

    def settle(self) -> list[Repair]:
        """Mend what dead processes left: a cheap recover, for before other work.

        Leases bound to a process that has ended are released, operations of
        managers that died are finished or undone, and leases of an earlier boot
        are closed. Raises as `recover`, after the rest is done.
        """
        with self._lock:
            self._drop_stale_claims()
            left = [
                lease
                for lease in self._ledger.suspects(self._system.boot_id)
                if (lease.manager is not None and not self._alive(lease.manager))
                or (lease.manager is None and lease.state is State.RESERVED)
                or (lease.process is not None and self._system.ended(lease.process))
                or lease.netns.boot != self._system.boot_id
            ]
            try:
                return self._mend_all(left)
            finally:
                self._wake_reaper()

    def strays(self) -> list[tuple[Backend, Leftover]]:
        """What backends have here that carries the ledger's stamp, but no lease's."""
        with self._lock:
            return self._strays(self._ledger.leases())

    def _strays(self, leases: Sequence[Lease]) -> list[tuple[Backend, Leftover]]:
        """As `strays`; `leases` were all there are, a moment ago."""
        here = [lease for lease in leases if self._is_here(lease.netns)]
        found = [
            (backend, stray)
            for backend in self._backends
            for stray in backend.observe(self._namespace, here).leftovers
        ]
        # Asked after what was found: each lease precedes what is made for it.
        return [one for one in found if self._ledger.lease(one[1].lease) is None]

    def _mend_all(
        self,
        leases: Sequence[Lease],
        *,
        dry_run: bool = False,
        wiring: bool = False,
        told: Callable[[Sequence[Repair]], None] | None = None,
    ) -> list[Repair]:
        """Mend each; what cannot be mended hinders no other, and is raised last."""
        repairs: list[Repair] = []
        reason: TapsterError | None = None
        for netns in dict.fromkeys(lease.netns for lease in leases):
            batch = [lease for lease in leases if lease.netns == netns]
            try:
                with self._world(netns) as namespace:
                    links = _links(namespace, batch)
                    differ: Differ = {}
                    if wiring:
                        differ, unseen = self._differences(namespace, batch, links)
                        reason = reason or unseen
                    actions = {
                        lease.id: self._decide(
                            namespace,
                            lease,
                            links.get(lease.ifindex),
                            differs=lease.id in differ,
                        )
                        for lease in batch
                    }
                    for some in [] if dry_run else self._portions(batch, actions):
                        try:
                            self._mend(namespace, some, differ, actions)
                        except TapsterError as error:
                            reason = reason or error
                    repairs += [
                        Repair(lease, action)
                        for lease in batch
                        if (action := actions[lease.id]) is not Action.LEAVE
                    ]
            except TapsterError as error:
                reason = reason or error
        if repairs and told is not None and not dry_run:
            told(repairs)
        if reason is not None:
            raise reason
        return repairs

    def _portions(
        self, leases: Sequence[Lease], actions: Mapping[str, Action]
    ) -> Iterator[Sequence[Lease]]:
        """Those to be mended: what ends many at a time, each other by itself."""
        ending = [lease for lease in leases if actions[lease.id] in ENDING]
        for start in range(0, len(ending), REAP_BATCH):
            yield ending[start : start + REAP_BATCH]
        for lease in leases:
            action = actions[lease.id]
            # The claim of a dead manager is to go, whatever else there is to do.
            claimed = lease.manager is not None and not self._alive(lease.manager)
            if action not in ENDING and (claimed or action is not Action.LEAVE):
                yield [lease]

    def _mend(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        differ: Differ,
        done: dict[str, Action],
    ) -> None:
        """Look again under claims, and do what the table says; put it into `done`.

        `differ` is how leases were not wired as they should be. What cannot be done
        hinders no other, and is raised last.
        """
        before = {lease.id: lease for lease in leases}
        done.update(dict.fromkeys(before, Action.LEAVE))
        reason: TapsterError | None = None
        with self._claimed([*before]) as claimed:
            ending: dict[str, Action] = {}
            ready: list[Lease] = []
            over: list[Lease] = []
            for lease in claimed:
                try:
                    lease, action = self._judge(
                        namespace, lease, before[lease.id], differ
                    )
                    if action in ENDING:
                        ending[lease.id] = action
                        ready.append(lease)
                    else:
                        done[lease.id] = self._act(action, namespace, lease)
                except TapsterError as error:
                    reason = reason or error
            if ready:
                try:
                    self._end(namespace, ready, over)
                except TapsterError as error:
                    reason = reason or error
            done.update((lease.id, ending[lease.id]) for lease in over)
        if reason is not None:
            raise reason

    def _judge(
        self, namespace: Namespace | None, lease: Lease, before: Lease, differ: Differ
    ) -> tuple[Lease, Action]:
        """A claimed lease, with what backends have of it, and what is to be done."""
        link = namespace.link(lease.ifindex) if namespace else None
        unclaimed = lease._replace(manager=None)
        wrong = differ.get(lease.id, {})
        # Backends are asked again only if somebody was at it meanwhile: to see one
        # lease takes some as long as to see all.
        if wrong and unclaimed != before._replace(manager=None):
            links = {link.ifindex: link} if link else {}
            again, _ = self._differences(namespace, [lease], links)
            wrong = again.get(lease.id, {})
        action = self._decide(namespace, unclaimed, link, differs=bool(wrong))
        # Backends may have something that the ledger knows nothing of.
        there = [one for one in wrong if one != "link"]
        backends = tuple(dict.fromkeys([*lease.backends, *there]))
        return lease._replace(backends=backends), action

    def _act(self, action: Action, namespace: Namespace | None, lease: Lease) -> Action:
        """Do what ends no lease; say what was done in the end."""
        try:
            self._do(action, namespace, lease)
        except TapsterError:
            if action is not Action.REWIRE or namespace is None:
                raise
            # It may be that the device is gone, since it was looked at.
            if self._seen(namespace, lease) is not DeviceState.ABSENT:
                raise
            action = self._decide(namespace, lease._replace(manager=None), None)
            self._do(action, namespace, lease)
        return action

    def _do(self, action: Action, namespace: Namespace | None, lease: Lease) -> None:
        if action is Action.REWIRE and namespace is not None:
            with suppress(NoSuchLease):
                self._rewire(namespace, lease, lease.wiring)
        elif action is not Action.LEAVE and namespace is not None:
            lease = self._ledger.begin_release(lease.id)
            if not self._bring_to_rest(namespace, lease):
                self._plant(namespace, lease)
            else:
                self._detach(namespace, lease)

    def _decide(
        self,
        namespace: Namespace | None,
        lease: Lease,
        link: Link | None,
        *,
        differs: bool = False,
    ) -> Action:
        deadline = inf if lease.deadline is None else lease.deadline
        facts = Conditions(
            worked_on=lease.manager is not None and self._alive(lease.manager),
            namespace_gone=namespace is None,
            due=deadline <= self._system.boottime(),
            owner_gone=self._owner_gone(lease, link),
            differs=differs,
            backends=bool(lease.backends),
        )
        seen = decision.look(self._ledger.id, lease, link)
        return decision.decide(lease.state, seen, facts)

    def _owner_gone(self, lease: Lease, link: Link | None) -> bool:
        """Whether that to which the lease is bound is over."""
        if lease.process is not None and self._system.ended(lease.process):
            return True
        # A tap that is down shows no carrier, whoever has it open.
        return lease.on_close and link is not None and link.up and not link.carrier


def _links(namespace: Namespace | None, leases: Sequence[Lease]) -> dict[int, Link]:
    """The devices that have these leases' ifindexes."""
    if namespace is None:
        return {}
    if len(leases) < FEW:
        found = [namespace.link(lease.ifindex) for lease in leases]
        return {link.ifindex: link for link in found if link}
    return {link.ifindex: link for link in namespace.links()}
