# SPDX-License-Identifier: Apache-2.0
"""Reap and recover: what brings ledger and kernel into agreement."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf

from tapster import lifecycle
from tapster.devices import Devices
from tapster.errors import NoSuchLease, TapsterError
from tapster.kernel.port import Kernel
from tapster.lifecycle import Action, Facts, Mended, Seen
from tapster.model import Lease, Link, Netns, State
from tapster.wiring.plane import Plane, Stray

REAP_BATCH = 32
"""Devices deleted at a time. The kernel lets nobody else make a device for
about 0.5 ms for each, so this bounds how long an acquire waits for a reap."""
POSTPONED = 1.0
"""Seconds after which another attempt is made to end a lease that could not be."""
FEW = 8
"""So few devices are better looked at one by one than among all there are."""


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

        At most about `limit` of them; `told` is called with those that ended. Returns
        how many did. What cannot be reaped keeps waiting, and the first reason is
        raised after the rest is done.
        """
        boottime = inf if now else self._system.boottime()
        ended = 0
        reason: TapsterError | None = None
        with self._lock:
            self._drop_stale_claims()
            try:
                while (limit is None or ended < limit) and (
                    due := self._ledger.claim_due(
                        self._me(), self._alive, boottime=boottime, limit=REAP_BATCH
                    )
                ):
                    self.batches += 1
                    for netns in {lease.netns for lease in due}:
                        batch = [lease for lease in due if lease.netns == netns]
                        try:
                            ended += self._end(netns, batch)
                            if told is not None:
                                told(batch)
                        except TapsterError as error:
                            reason = reason or error
                            self._postpone(batch)
            finally:
                # Those that could not be ended: until then they stay claimed, or
                # they would be due again at once.
                self._ledger.give_back(self._me())
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
            return self._ledger.quit_if_idle(quit)

    def _end(self, netns: Netns, leases: Sequence[Lease]) -> int:
        """Delete claimed leases' devices and end the leases; how many."""
        reason: TapsterError | None = None
        ready: list[Lease] = []
        with self._world(netns) as kernel:
            for lease in leases:
                try:
                    self._unwire(kernel, lease)
                    ready.append(lease)
                except TapsterError as error:
                    reason = reason or error
            if kernel is not None:
                self._delete(kernel, ready)
        self._ledger.finish([lease.id for lease in ready])
        if reason is not None:
            raise reason
        return len(leases)

    def _postpone(self, leases: Sequence[Lease]) -> None:
        """Try again later to end what is left of these leases."""
        later = self._system.boottime() + POSTPONED
        self._ledger.postpone([lease.id for lease in leases], later)

    # Recover

    def recover(self, *, dry_run: bool = False) -> list[Mended]:
        """Bring ledger and kernel into agreement; say what was (to be) done.

        Leases that a living manager works on are left alone. May be repeated.
        """
        with self._lock:
            if not dry_run:
                self._drop_stale_claims()
            leases = self._ledger.leases()
            try:
                mended = self._mend_all(leases, dry_run=dry_run, wiring=True)
                for plane, stray in [] if dry_run else self.strays():
                    plane.remove(self._kernel, stray)
                return mended
            finally:
                if not dry_run:
                    self._wake_reaper()

    def mend(self, ids: Iterable[str], *, wiring: bool = False) -> list[Mended]:
        """As `recover`, for these leases alone; how they are wired only if told to."""
        with self._lock:
            self._drop_stale_claims()
            leases = [lease for id in ids if (lease := self._ledger.lease(id))]
            try:
                return self._mend_all(leases, dry_run=False, wiring=wiring)
            finally:
                self._wake_reaper()

    def settle(self) -> list[Mended]:
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
                return self._mend_all(left, dry_run=False, wiring=False)
            finally:
                self._wake_reaper()

    def strays(self) -> list[tuple[Plane, Stray]]:
        """What planes have here that carries the ledger's stamp, but no lease's."""
        with self._lock:
            if not self._planes:
                return []
            leases = [one for one in self._ledger.leases() if self._is_here(one.netns)]
            found = [
                (plane, stray)
                for plane in self._planes
                for stray in plane.observe(self._kernel, leases).strays
            ]
            # Read after what was found: each lease precedes what is made for it.
            known = {lease.id for lease in self._ledger.leases()}
            return [one for one in found if one[1].lease not in known]

    def _mend_all(
        self, leases: Sequence[Lease], *, dry_run: bool, wiring: bool
    ) -> list[Mended]:
        """Mend each; what cannot be mended hinders no other, and is raised last."""
        mended: list[Mended] = []
        reason: TapsterError | None = None
        for netns in dict.fromkeys(lease.netns for lease in leases):
            batch = [lease for lease in leases if lease.netns == netns]
            try:
                with self._world(netns) as kernel:
                    links = _links(kernel, batch)
                    differ: dict[str, dict[str, str]] = {}
                    if wiring:
                        differ, unseen = self._differences(kernel, batch, links)
                        reason = reason or unseen
                    for lease in batch:
                        link = links.get(lease.ifindex)
                        wrong = differ.get(lease.id, {})
                        differs = bool(wrong)
                        action = self._decide(kernel, lease, link, differs=differs)
                        if not dry_run and self._needs_mending(lease, action):
                            try:
                                action = self._mend(kernel, lease, wrong)
                            except TapsterError as error:
                                reason = reason or error
                        if action is not Action.LEAVE:
                            mended.append(Mended(lease, action))
            except TapsterError as error:
                reason = reason or error
        if reason is not None:
            raise reason
        return mended

    def _needs_mending(self, lease: Lease, action: Action) -> bool:
        """Whether there is anything to do: the claim of a dead manager is to go."""
        claimed = lease.manager is not None and not self._alive(lease.manager)
        return claimed or action is not Action.LEAVE

    def _mend(
        self,
        kernel: Kernel | None,
        lease: Lease,
        wrong: Mapping[str, str] | None = None,
    ) -> Action:
        """Look again under a claim, and do what the table says.

        `wrong` is how it was not wired as it should be, by plane.
        """
        with self._claimed(lease.id) as claimed:
            if claimed is None:
                return Action.LEAVE
            link = kernel.link(claimed.ifindex) if kernel else None
            unclaimed = claimed._replace(manager=None)
            # Planes are asked again only if somebody was at it meanwhile: to see one
            # lease takes some as long as to see all.
            if wrong and unclaimed != lease._replace(manager=None):
                links = {link.ifindex: link} if link else {}
                differ, _ = self._differences(kernel, [claimed], links)
                wrong = differ.get(claimed.id, {})
            action = self._decide(kernel, unclaimed, link, differs=bool(wrong))
            # Planes may have something that the ledger knows nothing of.
            there = [one for one in wrong or () if one != "link"]
            wired = tuple(dict.fromkeys([*claimed.wired, *there]))
            try:
                self._act(action, kernel, claimed._replace(wired=wired))
            except TapsterError:
                if action is not Action.REWIRE or kernel is None:
                    raise
                # It may be that the device is gone, since it was looked at.
                if self._seen(kernel, claimed) is not Seen.ABSENT:
                    raise
                action = self._decide(kernel, unclaimed, None)
                self._act(action, kernel, claimed)
            return action

    def _act(self, action: Action, kernel: Kernel | None, lease: Lease) -> None:
        if action is Action.CLOSE and lease.state is State.ACTIVE:
            # Its world is gone. What planes have of it may have to wait for them.
            lease = self._ledger.begin_release(lease.id)
        if action in (Action.UNDO, Action.CLOSE):
            self._unwire(kernel, lease)
            if kernel is not None:
                self._delete(kernel, [lease])
        if action is Action.UNDO:
            self._ledger.forget([lease.id])
        elif action is Action.CLOSE:
            self._ledger.finish([lease.id])
        elif action is Action.REWIRE and kernel is not None:
            with suppress(NoSuchLease):
                self._rewire(kernel, lease, lease.wiring)
        elif action is not Action.LEAVE and kernel is not None:
            lease = self._ledger.begin_release(lease.id)
            if not self._bring_to_rest(kernel, lease):
                self._plant(kernel, lease)
            else:
                self._unwire(kernel, lease)

    def _decide(
        self,
        kernel: Kernel | None,
        lease: Lease,
        link: Link | None,
        *,
        differs: bool = False,
    ) -> Action:
        deadline = inf if lease.deadline is None else lease.deadline
        facts = Facts(
            worked_on=lease.manager is not None and self._alive(lease.manager),
            world_gone=kernel is None,
            due=deadline <= self._system.boottime(),
            owner_gone=self._owner_gone(lease, link),
            differs=differs,
            wired=bool(lease.wired),
        )
        seen = lifecycle.look(self._ledger.id, lease, link)
        return lifecycle.decide(lease.state, seen, facts)

    def _owner_gone(self, lease: Lease, link: Link | None) -> bool:
        """Whether that to which the lease is bound is over."""
        if lease.process is not None and self._system.ended(lease.process):
            return True
        # A tap that is down shows no carrier, whoever has it open.
        return lease.on_close and link is not None and link.up and not link.carrier


def _links(kernel: Kernel | None, leases: Sequence[Lease]) -> dict[int, Link]:
    """The devices that have these leases' ifindexes."""
    if kernel is None:
        return {}
    if len(leases) < FEW:
        found = [kernel.link(lease.ifindex) for lease in leases]
        return {link.ifindex: link for link in found if link}
    return {link.ifindex: link for link in kernel.links()}
