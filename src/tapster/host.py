# SPDX-License-Identifier: Apache-2.0
"""Acquire, release, reap, recover: where ledger, kernel and wiring meet.

Every change of a device is keyed by (network namespace, ifindex), an identity
that is in the ledger before the device is in the kernel. So at every moment
each device of ours has a row that names it, whoever is killed when.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from errno import EBADFD, EBUSY, EEXIST, ENODEV, EOPNOTSUPP, EXFULL
from math import inf
from typing import Any, NamedTuple, Self

from tapster import lifecycle, model, wiring
from tapster.errors import (
    ConflictError,
    KernelError,
    LeaseBusy,
    NameTaken,
    NoSuchLease,
    NoSuchLink,
    RequestError,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel.detached import start as start_detached
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.lock import REAPER, LockFile
from tapster.kernel.port import Kernel, LinkChange, System
from tapster.ledger import DEFAULT_PATH, Ledger, Reservation
from tapster.lifecycle import Action, Facts, Seen
from tapster.model import (
    Kind,
    Lease,
    Link,
    Macvtap,
    Mode,
    Naming,
    Netns,
    Process,
    Spec,
    State,
    Tap,
    Tenure,
    Wiring,
)
from tapster.wiring import bridge, lower
from tapster.wiring.plane import Plane, Stray

REAP_BATCH = 32
"""Devices deleted at a time. The kernel lets nobody else make a device for
about 0.5 ms for each, so this bounds how long an acquire waits for a reap."""


FEW = 8
"""So few devices are better looked at one by one than among all there are."""


def ledger_path(path: str | os.PathLike[str] | None = None) -> str:
    """The ledger to use: `path`, else `TAPSTER_LEDGER`, else the default."""
    if path is None:
        path = os.environ.get("TAPSTER_LEDGER") or DEFAULT_PATH
    if not os.fspath(path):
        raise RequestError("the ledger's path is empty")
    return os.fspath(path)


POSTPONED = 1.0
"""Seconds after which another attempt is made to end a lease that could not be."""


class Plan(NamedTuple):
    """A checked request, with what it was resolved to."""

    reservation: Reservation
    bridge: int
    """Its ifindex, or 0."""
    lower: lower.Lower | None

    @property
    def spec(self) -> Spec:
        return self.reservation.spec


class Mended(NamedTuple):
    """What recover did, or would do, with a lease."""

    lease: Lease
    action: Action


class Host:
    """The devices of one ledger on this host.

    May be shared by the threads of a process, which it lets in one at a time,
    but not by a forked child. Close it, or use it as a context manager; that
    ends no lease.
    """

    def __init__(
        self,
        ledger: str | os.PathLike[str] | None = None,
        *,
        netns: str | None = None,
        system: System | None = None,
        planes: Sequence[Plane] | None = None,
        reaper: Callable[[str], None] | None = None,
    ) -> None:
        """Open the ledger, by default `TAPSTER_LEDGER` or /var/lib/tapster.

        New devices are made in the network namespace `netns` (a name or a path;
        None is the caller's). After a release `reaper` is called if no process
        waits to reap it; by default one is started that ends when nothing is
        left. Raises LedgerError, NoSuchLink and MissingCapability.
        """
        self._start_reaper = reaper or _start_reaper
        self._lock = threading.RLock()
        self._system = system or LinuxSystem()
        self._ledger = Ledger(ledger_path(ledger), self._system)
        self._locks: LockFile | None = None
        self._manager = 0
        self._planes = wiring.planes(self._ledger.id) if planes is None else planes
        self.collisions = 0
        """How often a name was found taken by a foreign device."""
        self.batches = 0
        """How many batches of devices were reaped."""
        try:
            self._kernel = self._system.netns(netns)
        except BaseException:
            self._ledger.close()
            raise

    def close(self) -> None:
        """Close everything but the leases."""
        with self._lock:
            if self._locks is not None:
                self._locks.leave()
                self._locks = None
            self._kernel.close()
            self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Acquire

    def acquire(self, spec: Spec, *, pid: int | None = None) -> Lease:
        """Make a device and wire it; the lease has its open descriptors.

        The caller closes them. The lease lasts until `release`, or, if `pid` is
        given, until that process has ended and a manager sees it. Raises
        RequestError, ConflictError, HostError or LedgerError; then nothing is
        left behind.
        """
        (lease,) = self.acquire_all([spec], pid=pid)
        return lease

    def acquire_all(
        self,
        specs: Sequence[Spec],
        *,
        pid: int | None = None,
        on_close: bool = False,
        user: int | None = None,
    ) -> tuple[Lease, ...]:
        """As `acquire`, for all the devices of one machine, or for none.

        With `on_close` each lease ends when nobody has its tap open any more and a
        manager sees it. `user` is recorded: the user id for whom it is done.
        """
        process = None if pid is None else self._process(pid)
        with self._lock:
            plans = [
                plan._replace(
                    reservation=plan.reservation._replace(user=user, on_close=on_close)
                )
                for plan in map(self._plan, specs)
            ]
            if on_close and any(plan.lower for plan in plans):
                raise RequestError(
                    "the close of a macvtap cannot be seen: bind it to a process"
                )
            leases = self._reserve(plans)
            ids = [lease.id for lease in leases]
            made: list[Lease] = []
            try:
                for plan, lease in zip(plans, leases, strict=True):
                    made.append(self._make(plan, lease))
                    self._wire(plan, made[-1])
                return tuple(self._ledger.activate(made, process))
            except BaseException as error:
                self._undo(ids, made, error)
                raise

    @contextmanager
    def holding(self, *specs: Spec) -> Iterator[tuple[Lease, ...]]:
        """Hold leases for the time of a block; then close and release them."""
        leases = self.acquire_all(specs)
        with ExitStack() as ending:  # each, whatever becomes of the others
            for lease in leases:
                ending.callback(self.release, lease.id)
                ending.callback(_close_fds, lease)
            yield leases

    def bind(self, leases: Sequence[Lease], pid: int) -> None:
        """Let active leases end with the process `pid`, and with no other.

        Once it has ended, whichever manager next looks releases them. Raises
        NoSuchLease, and binds none, if one has been released meanwhile.
        """
        process = self._process(pid)
        with self._lock:
            self._ledger.bind([lease.id for lease in leases], process)

    def set(self, id: str, **changes: Any) -> Lease:
        """Change what an active lease's device is connected to, all or nothing.

        `changes` are fields of `Wiring`. The machine keeps its descriptors. May
        be repeated. Raises NoSuchLease, LeaseBusy, and as `acquire`.
        """
        if unknown := sorted(changes.keys() - set(Wiring._fields)):
            raise RequestError(
                f"{', '.join(unknown)} cannot be changed, but these can: "
                f"{', '.join(Wiring._fields)}"
            )
        with self._lock:
            lease = self._ledger.claim(id, self._me(), self._alive)
            try:
                changed = self._set(lease, lease.wiring._replace(**changes))
            finally:
                self._ledger.give_back(self._me())
            return changed._replace(manager=None)

    def _set(self, lease: Lease, wanted: Wiring) -> Lease:
        if lease.state is not State.ACTIVE:
            raise NoSuchLease(f"lease {lease.id} ({lease.name}) is released")
        model.check_wiring(wanted)
        if lease.kind is Kind.MACVTAP:
            model.check_macvtap_wiring(wanted)
        with self._world(lease.netns) as kernel:
            if kernel is None or self._seen(kernel, lease) is Seen.ABSENT:
                raise NoSuchLink(f"device {lease.name!r} is gone: tapster recover")
            if wanted.bridge not in (None, lease.wiring.bridge):
                bridge.find_room(kernel, wanted.bridge)
            try:
                return self._rewire(kernel, lease, wanted)
            except NoSuchLease:
                raise
            except BaseException as error:
                try:
                    now = self._ledger.lease(lease.id) or lease
                    self._rewire(kernel, now, lease.wiring)
                except TapsterError as second:
                    error.add_note(
                        f"going back failed too ({second}); recover will do it"
                    )
                raise

    def reopen(self, id: str) -> tuple[int, ...]:
        """Open an active lease's device once more: a descriptor for each queue.

        For a VMM that replaces itself. The caller closes them. Raises LeaseBusy
        while a tap of one queue is open elsewhere: the kernel lets only one in.
        """
        with self._lock:
            lease = self.find(id)
            link = self.link(lease)
            if lease.state is not State.ACTIVE or link is None:
                raise NoSuchLease(f"lease {id} has no device any more")
            with self._world(lease.netns) as kernel, ExitStack() as opened:
                assert kernel is not None, "its device has just been seen"
                if lease.kind is Kind.MACVTAP:
                    return kernel.open_macvtap(
                        lease.ifindex, queues=lease.queues, vnet_hdr=lease.vnet_hdr
                    )
                fds: list[int] = []
                for _ in range(lease.queues):
                    fds.append(_reopened(kernel, lease, link))
                    opened.callback(os.close, fds[-1])
                opened.pop_all()
                return tuple(fds)

    def _plan(self, spec: Spec) -> Plan:
        template = model.check_spec(spec)
        mac = spec.mac and spec.mac.lower()
        wanted = spec.wiring
        under = on = None
        if isinstance(spec, Macvtap):
            under = lower.find(self._kernel, spec)
            if spec.mode == Mode.PASSTHRU:
                mac = under.mac
            wanted = wanted._replace(mtu=spec.mtu or under.mtu)
        elif wanted.bridge is not None:
            on = bridge.find_room(self._kernel, wanted.bridge)
            bridge.check(on, wanted)
            wanted = wanted._replace(mtu=wanted.mtu or on.mtu)
        elif wanted.ovs is not None:
            local = self._kernel.named(wanted.ovs)
            wanted = wanted._replace(mtu=wanted.mtu or (local and local.mtu))
        reservation = Reservation(
            spec, template, mac, wanted, self._check_planes(self._kernel, wanted)
        )
        return Plan(reservation, on.ifindex if on else 0, under)

    def _check_planes(self, kernel: Kernel, wanted: Wiring) -> tuple[str, ...]:
        """The planes that a wiring concerns, if they can be had."""
        concerned = [plane for plane in self._planes if plane.concerns(wanted)]
        for plane in concerned:
            plane.check(kernel, wanted)
        return tuple(plane.name for plane in concerned)

    def _reserve(self, plans: Sequence[Plan]) -> list[Lease]:
        try:
            return self._ledger.reserve(
                self._kernel.netns,
                [plan.reservation for plan in plans],
                manager=self._me(),
                taken=self._taken,
                changed=self._kernel.changed_links,
            )
        except BaseException:
            # What was rolled back may include what the changes led to.
            self._kernel.forget_changes()
            raise

    def _make(self, plan: Plan, lease: Lease) -> Lease:
        """Make the device, under another name or ifindex if these are taken."""
        while True:
            try:
                return lease._replace(fds=self._create(plan, lease))
            except KernelError as error:
                if error.errno not in (EBUSY, EEXIST):
                    raise
                lease = self._step_aside(plan, lease, error)

    def _create(self, plan: Plan, lease: Lease) -> tuple[int, ...]:
        spec = plan.spec
        if isinstance(spec, Tap):
            return self._kernel.create_tap(
                lease.name,
                lease.ifindex,
                queues=spec.queues,
                vnet_hdr=spec.vnet_hdr,
                uid=spec.uid,
                gid=spec.gid,
            )
        assert plan.lower is not None
        passthru = spec.mode == Mode.PASSTHRU
        self._kernel.create_macvtap(
            lease.name,
            lease.ifindex,
            lower=plan.lower.ifindex,
            mode=Mode(spec.mode),
            mac=None if passthru else lease.mac,
            mtu=lease.wiring.mtu,
            queues=spec.queues,
        )
        try:
            return self._kernel.open_macvtap(
                lease.ifindex, queues=spec.queues, vnet_hdr=spec.vnet_hdr
            )
        except BaseException:
            self._kernel.delete_links([lease.ifindex])
            raise

    def _step_aside(self, plan: Plan, lease: Lease, error: KernelError) -> Lease:
        """Another name or ifindex for a device that could not be made."""
        holder = self._kernel.ifindex(lease.name)
        if not holder and self._kernel.link(lease.ifindex):
            return self._ledger.reindex(lease.id)
        if not holder and plan.lower and error.errno == EBUSY:
            raise error  # it is the lower device that is busy
        reservation = plan.reservation
        spec, template = reservation.spec, reservation.template
        if not template.numbered or spec.naming == Naming.STABLE:
            raise NameTaken(
                f"name {lease.name!r} was taken by a foreign device "
                "at the moment it was to be made"
            )
        return self._ledger.rename(lease.id, template, spec, self._taken)

    def _wire(self, plan: Plan, lease: Lease) -> None:
        mac = model.host_mac(lease.mac) if lease.kind is Kind.TAP else None
        named = LinkChange(
            lease.ifindex,
            mac=mac,
            mtu=lease.wiring.mtu,
            alias=self._mark(lease),
            no_ipv6=True,
        )
        self._connect(self._kernel, lease, [named], bridge.wire(lease, plan.bridge))

    def _connect(
        self,
        kernel: Kernel,
        lease: Lease,
        first: Sequence[LinkChange],
        joining: Sequence[LinkChange],
    ) -> None:
        """Change a device, let its planes put up what they have, then join it."""
        if lease.wired:
            # What guards a port has to be there before the port.
            kernel.set_links(first)
            for plane in self._planes:
                if plane.name in lease.wired:
                    plane.wire(kernel, lease)
        try:
            kernel.set_links(joining if lease.wired else [*first, *joining])
        except KernelError as error:
            if error.errno == EXFULL and lease.wiring.bridge:
                raise bridge.full(lease.wiring.bridge) from error
            raise

    def _undo(
        self, ids: Sequence[str], made: Sequence[Lease], error: BaseException
    ) -> None:
        """Take back an acquire that failed; nobody else has seen its devices."""
        try:
            for lease in made:
                _close_fds(lease)
            # By the ledger, not by `made`: Ctrl-C may have come between the two.
            rows = [row for id in ids if (row := self._ledger.lease(id))]
            done = [lease for lease in rows if self._unwired(lease)]
            self._delete(self._kernel, done)
            self._ledger.forget([lease.id for lease in done])
        except TapsterError as second:
            error.add_note(f"taking it back failed too ({second}); recover will do it")

    def _unwired(self, lease: Lease) -> bool:
        """Whether no plane has anything of a lease that was never active.

        If that cannot be told now, the lease waits as if it had been released.
        """
        try:
            self._unwire(self._kernel, lease)
        except ServiceUnavailable:
            self._bring_to_rest(self._kernel, self._ledger.abandon(lease.id))
            self._wake_reaper()
            return False
        return True

    # Release

    def release(self, id: str) -> None:
        """End the lease with this id: the device goes down and off its bridge.

        It stays, holding its name, until its FIN WAIT is over. May be repeated.
        Raises NoSuchLease, LeaseBusy, HostError or LedgerError.
        """
        with self._lock:
            try:
                lease = self._ledger.begin_release(id)
            except NoSuchLease:
                if self._ledger.ended(id):
                    return
                raise
            with self._world(lease.netns) as kernel:
                if kernel is not None:
                    self._quiet(kernel, lease)
                with suppress(ServiceUnavailable):  # it will be tried again
                    if lease.fin_wait == 0:
                        self._mend(kernel, lease)
                    elif lease.wired:
                        self._take_down(kernel, lease)
            self._wake_reaper()

    def _quiet(self, kernel: Kernel, lease: Lease) -> None:
        """Take a released lease's device down, whatever became of it."""
        if not self._bring_to_rest(kernel, lease):
            self._replant(kernel, lease)

    def _bring_to_rest(self, kernel: Kernel, lease: Lease) -> bool:
        """Take a device down and off its bridge; False if it must be replaced."""
        # A passthru macvtap excludes everything else from its lower device: a
        # waiting one would keep the next machine from starting.
        exclusive = lease.mode is Mode.PASSTHRU and not lease.placeholder
        if exclusive or self._seen(kernel, lease) is Seen.ABSENT:
            return False
        rest = bridge.unwire(lease.ifindex)._replace(alias=self._mark(lease))
        try:
            try:
                kernel.set_links([rest])
            except KernelError as error:
                if error.errno != EOPNOTSUPP:
                    raise
                # A port of Open vSwitch in the kernel: it leaves when its row goes.
                kernel.set_links([rest._replace(master=None)])
        except KernelError as error:
            if error.errno != ENODEV:
                raise
            return False
        return True

    def _take_down(self, kernel: Kernel | None, lease: Lease) -> None:
        """Let every plane take down what it has of a released lease."""
        with self._claimed(lease.id) as claimed:
            if claimed is not None:
                self._unwire(kernel, claimed)

    def _unwire(self, kernel: Kernel | None, lease: Lease) -> None:
        """Let every plane take down what it has of a claimed lease."""
        if not lease.wired:
            return
        reason: TapsterError | None = None
        for plane in self._planes:
            if plane.name in lease.wired:
                try:
                    plane.unwire(kernel, lease)
                except TapsterError as error:
                    reason = reason or error
        if reason is not None:
            raise reason
        self._ledger.unwired(lease.id)

    def _replant(self, kernel: Kernel, lease: Lease) -> None:
        """Let a bare tap hold the name until FIN WAIT ends."""
        with self._claimed(lease.id) as claimed:
            if claimed is not None:
                self._plant(kernel, claimed)

    @contextmanager
    def _claimed(self, id: str) -> Iterator[Lease | None]:
        """A lease, claimed; None if somebody else is at it, or if it is over."""
        try:
            lease = self._ledger.claim(id, self._me(), self._alive)
        except (LeaseBusy, NoSuchLease):
            yield None
            return
        try:
            yield lease
        finally:
            self._ledger.give_back(self._me())

    def _plant(self, kernel: Kernel, lease: Lease) -> None:
        with suppress(TapsterError):  # it will be tried again
            self._unwire(kernel, lease)
        self._delete(kernel, [lease])
        while True:
            lease = self._ledger.replant(lease.id)
            try:
                fds = kernel.create_tap(
                    lease.name,
                    lease.ifindex,
                    queues=1,
                    vnet_hdr=False,
                    uid=None,
                    gid=None,
                )
            except KernelError as error:
                if error.errno == EBADFD:
                    continue  # deleted while it was made
                if error.errno != EBUSY:
                    raise
                if kernel.ifindex(lease.name):
                    return  # a foreign device has the name: nobody else can get it
                continue
            _close_fds(lease._replace(fds=fds))
            try:
                kernel.set_links([LinkChange(lease.ifindex, alias=self._mark(lease))])
            except KernelError as error:
                if error.errno != ENODEV:
                    raise
                continue  # deleted once more
            return

    # Reap

    def reap(self, *, now: bool = False) -> int:
        """Delete the devices whose FIN WAIT is over, or all that wait if `now`.

        Returns how many leases ended. What cannot be reaped keeps waiting, and
        the first reason is raised after the rest is done.
        """
        boottime = inf if now else self._system.boottime()
        ended = 0
        reason: TapsterError | None = None
        with self._lock:
            self._drop_stale_claims()
            try:
                while due := self._ledger.claim_due(
                    self._me(), self._alive, boottime=boottime, limit=REAP_BATCH
                ):
                    self.batches += 1
                    for netns in {lease.netns for lease in due}:
                        batch = [lease for lease in due if lease.netns == netns]
                        try:
                            ended += self._end(netns, batch)
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

    def _delete(self, kernel: Kernel, leases: Sequence[Lease]) -> None:
        """Delete what there is of these leases' devices, and see that it is gone."""
        ours = [
            lease.ifindex
            for lease in leases
            if self._seen(kernel, lease) is not Seen.ABSENT
        ]
        if ours:
            kernel.delete_links(ours)
        for lease in leases:
            if self._seen(kernel, lease) is not Seen.ABSENT:
                raise ConflictError(
                    f"device {lease.name!r} (ifindex {lease.ifindex}) was not deleted: "
                    "somebody moved it to another group meanwhile"
                )

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

    def mend(self, ids: Iterable[str]) -> list[Mended]:
        """As `recover`, for these leases alone."""
        with self._lock:
            self._drop_stale_claims()
            leases = [lease for id in ids if (lease := self._ledger.lease(id))]
            try:
                return self._mend_all(leases, dry_run=False, wiring=True)
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
                        differs = lease.id in differ
                        action = self._decide(kernel, lease, link, differs=differs)
                        if not dry_run and self._needs_mending(lease, action):
                            try:
                                action = self._mend(kernel, lease, wiring=differs)
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
        self, kernel: Kernel | None, lease: Lease, *, wiring: bool = False
    ) -> Action:
        """Look again under a claim, and do what the table says."""
        with self._claimed(lease.id) as claimed:
            if claimed is None:
                return Action.LEAVE
            link = kernel.link(claimed.ifindex) if kernel else None
            links = {link.ifindex: link} if link else {}
            differs = wiring and bool(self._differences(kernel, [claimed], links)[0])
            unclaimed = claimed._replace(manager=None)
            action = self._decide(kernel, unclaimed, link, differs=differs)
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

    def _rewire(self, kernel: Kernel, lease: Lease, wanted: Wiring) -> Lease:
        """Connect the device of a claimed lease as `wanted`, wherever it is now.

        Raises NoSuchLease if it was released meanwhile: a release waits for nobody.
        """
        released = f"lease {lease.id} ({lease.name}) was released meanwhile"
        try:
            changed = self._reconnect(kernel, lease, wanted)
        except TapsterError:
            if self._rest_if_released(kernel, lease.id):
                raise NoSuchLease(released) from None
            raise
        if self._rest_if_released(kernel, lease.id):
            raise NoSuchLease(released)
        return changed

    def _rest_if_released(self, kernel: Kernel, id: str) -> bool:
        """Bring a claimed lease's device to rest if it has been released."""
        lease = self._ledger.lease(id)
        if lease is None or lease.state is State.ACTIVE:
            return lease is None
        if not self._bring_to_rest(kernel, lease):
            self._plant(kernel, lease)
        with suppress(ServiceUnavailable):  # it will be tried again
            self._unwire(kernel, lease)
        return True

    def _reconnect(self, kernel: Kernel, lease: Lease, wanted: Wiring) -> Lease:
        on = bridge.find(kernel, wanted.bridge) if wanted.bridge else None
        if on is not None:
            bridge.check(on, wanted)
        concerned = self._check_planes(kernel, wanted)
        link = kernel.link(lease.ifindex)
        if link is None:
            raise NoSuchLink(f"device {lease.name!r} is gone: tapster recover")
        changed = lease._replace(wiring=wanted, wired=concerned)
        to = on.ifindex if on else 0
        joining = bridge.rewire(changed, lease.wiring, link, to)
        both = dict.fromkeys([*lease.wired, *concerned])
        if tuple(both) != lease.wired:
            self._ledger.rewire(lease.id, lease.wiring, both)
        for plane in self._planes:
            if plane.name in lease.wired and plane.name not in concerned:
                plane.unwire(kernel, changed)
        self._connect(
            kernel, changed, bridge.leave(changed, lease.wiring, link, to), joining
        )
        return self._ledger.rewire(lease.id, wanted, concerned)

    def _differences(
        self, kernel: Kernel | None, leases: Sequence[Lease], links: dict[int, Link]
    ) -> tuple[dict[str, dict[str, str]], TapsterError | None]:
        """How leases are not wired as they should be: by id and plane.

        And why that cannot be told of some plane: of the others it is.
        """
        found: dict[str, dict[str, str]] = {}
        reason: TapsterError | None = None
        if kernel is None:
            return found, reason
        for lease in leases:
            link = links.get(lease.ifindex)
            if (
                lease.state is State.ACTIVE
                and link is not None
                and lifecycle.is_ours(self._ledger.id, lease, link)
                and (wrong := bridge.differs(lease, link, kernel))
            ):
                found.setdefault(lease.id, {})["link"] = wrong
        for plane in self._planes:
            try:
                observed = plane.observe(kernel, leases)
            except TapsterError as error:
                reason = reason or error
                continue
            for id, wrong in observed.wrong.items():
                found.setdefault(id, {})[plane.name] = wrong
        return found, reason

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

    # Looking

    def leases(self, *, all: bool = True) -> list[Lease]:
        """Every lease, oldest first; without those in FIN WAIT if not `all`."""
        with self._lock:
            return self._ledger.leases(all=all)

    def find(self, name_or_id: str) -> Lease:
        """The lease of this id, or of this name here, or else anywhere.

        "Here" is the Host's network namespace. Raises NoSuchLease.
        """
        with self._lock:
            if lease := self._ledger.lease(name_or_id):
                return lease
            named = self._ledger.named(name_or_id)
        here = [one for one in named if self._is_here(one.netns)]
        found = here or named
        if not found:
            raise NoSuchLease(f"no lease has the name or id {name_or_id!r}")
        if len(found) > 1:
            ids = ", ".join(one.id for one in found)
            raise NoSuchLease(
                f"{name_or_id!r} is leased in several namespaces; use an id: {ids}"
            )
        return found[0]

    def link(self, lease: Lease) -> Link | None:
        """The lease's device as the kernel shows it now, if it is there."""
        with self._lock, self._world(lease.netns) as kernel:
            link = kernel.link(lease.ifindex) if kernel else None
            if link and lifecycle.is_ours(self._ledger.id, lease, link):
                return link
            return None

    def differences(self, lease: Lease) -> dict[str, str]:
        """How an active lease's device is not wired as it should be, by plane.

        Raises ServiceUnavailable if that cannot be told.
        """
        with self._lock, self._world(lease.netns) as kernel:
            link = kernel.link(lease.ifindex) if kernel else None
            links = {link.ifindex: link} if link else {}
            differ, reason = self._differences(kernel, [lease], links)
            if reason is not None:
                raise reason
            return differ.get(lease.id, {})

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

    def who(self, name: str, at: float | None = None) -> list[Tenure]:
        """Who holds or held `name`, latest first; at wall clock `at` if given."""
        with self._lock:
            tenures = self._ledger.tenures(name)
        if at is None:
            return tenures
        return [
            one
            for one in tenures
            if one.created <= at and (one.ended is None or at < one.ended)
        ]

    @contextmanager
    def looking(self) -> Iterator[tuple[Ledger, Kernel]]:
        """The ledger and the Host's own namespace, for whoever only reads."""
        with self._lock:
            yield self._ledger, self._kernel

    def remove_leftovers(self, ledger: str) -> list[str]:
        """Delete the devices here that carry the stamp of a lost ledger.

        Of this Host's own ledger, only those without a lease; and no tap that
        somebody has open, a running machine say. Whether a ledger is lost nobody
        can know but the caller. Returns the devices' names.
        """
        with self._lock:
            links = self._kernel.links()
            # Read after the devices: a lease is written before its device is made.
            known = {lease.id for lease in self._ledger.leases()}
            found = [
                link
                for link in links
                if (stamp := model.parse_stamp(link.alias))
                and stamp.ledger == ledger
                and stamp.lease not in known
                and not (link.kind == "tun" and link.carrier)
            ]
            self._kernel.delete_links([link.ifindex for link in found])
            return [link.name for link in found]

    # Helpers

    def _taken(self, name: str) -> int:
        """The ifindex of the device that has a name no lease has, or 0."""
        ifindex = self._kernel.ifindex(name)
        self.collisions += ifindex != 0
        return ifindex

    @contextmanager
    def _world(self, netns: Netns) -> Iterator[Kernel | None]:
        """The kernel of a lease's namespace for a moment; None if it is gone.

        No longer than that: an open namespace cannot end.
        """
        if self._is_here(netns):
            yield self._kernel
            return
        kernel = self._system.find(netns)
        try:
            yield kernel
        finally:
            if kernel is not None:
                kernel.close()

    def _is_here(self, netns: Netns) -> bool:
        own = self._kernel.netns
        return (own.boot, own.cookie) == (netns.boot, netns.cookie)

    def _drop_stale_claims(self) -> None:
        """End what an operation of this Host left claimed when it was interrupted.

        They exclude each other, so at the beginning of one there is no other.
        """
        if self._manager:
            self._ledger.give_back(self._manager)

    def _process(self, pid: int) -> Process:
        if process := self._system.process(pid):
            return process
        raise RequestError(f"there is no process {pid} to bind a lease to")

    def _seen(self, kernel: Kernel, lease: Lease) -> Seen:
        return lifecycle.look(self._ledger.id, lease, kernel.link(lease.ifindex))

    def _mark(self, lease: Lease) -> str:
        return model.stamp(self._ledger.id, lease.id)

    def _me(self) -> int:
        """This manager's number, taken when first needed: reading needs none."""
        if not self._manager:
            manager = self._ledger.new_manager()
            self._open_locks().enter(manager)
            self._manager = manager
        return self._manager

    def _alive(self, manager: int) -> bool:
        return manager == self._manager or self._open_locks().alive(manager)

    def _open_locks(self) -> LockFile:
        if self._locks is None:
            self._locks = LockFile(self._ledger.path)
        return self._locks

    def _wake_reaper(self) -> None:
        if self._ledger.next_deadline() is None or self._open_locks().alive(REAPER):
            return
        self._start_reaper(self._ledger.path)


def _links(kernel: Kernel | None, leases: Sequence[Lease]) -> dict[int, Link]:
    """The devices that have these leases' ifindexes."""
    if kernel is None:
        return {}
    if len(leases) < FEW:
        found = [kernel.link(lease.ifindex) for lease in leases]
        return {link.ifindex: link for link in found if link}
    return {link.ifindex: link for link in kernel.links()}


def _reopened(kernel: Kernel, lease: Lease, link: Link) -> int:
    try:
        return kernel.open_tap(
            link.name,
            lease.ifindex,
            multi_queue=lease.queues > 1,
            vnet_hdr=lease.vnet_hdr,
        )
    except KernelError as error:
        if error.errno != EBUSY:
            raise
        raise LeaseBusy(
            f"tap {link.name!r} has one queue, and somebody has it open; "
            "close it there first, or hand that descriptor on"
        ) from error


def _start_reaper(ledger: str) -> None:
    start_detached("tapster.reaper", ledger)


def _close_fds(lease: Lease) -> None:
    for fd in lease.fds:
        os.close(fd)
