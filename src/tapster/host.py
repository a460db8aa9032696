# SPDX-License-Identifier: Apache-2.0
"""Acquire, release, change, look: what a user of the library calls.

Every change of a device is keyed by (network namespace, ifindex), an identity
that is in the ledger before the device is in the kernel. So at every moment
each device of ours has a row that names it, whoever is killed when.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from errno import EBUSY, EEXIST
from typing import Any, NamedTuple

from tapster import model
from tapster.backends import bridge, lower
from tapster.errors import (
    KernelError,
    LeaseBusy,
    NameTaken,
    NoSuchLease,
    NoSuchLink,
    RequestError,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel.port import LinkChange, Namespace
from tapster.ledger import Ledger, Reservation
from tapster.model import (
    HistoryEntry,
    Kind,
    Lease,
    Link,
    Macvtap,
    Mode,
    Naming,
    Netns,
    Spec,
    State,
    Tap,
    Wiring,
)
from tapster.operations import decision
from tapster.operations.decision import DeviceState
from tapster.operations.devices import ATTEMPTS, close_fds
from tapster.operations.mending import Mender


class Plan(NamedTuple):
    """A checked request, with what it was resolved to."""

    reservation: Reservation
    bridge: int
    """Its ifindex, or 0."""
    lower: lower.Lower | None

    @property
    def spec(self) -> Spec:
        return self.reservation.spec


class Host(Mender):
    """The devices of one ledger on this host.

    May be shared by the threads of a process, which it lets in one at a time,
    but not by a forked child. Close it, or use it as a context manager; that
    ends no lease.
    """

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
        caller_uid: int | None = None,
    ) -> tuple[Lease, ...]:
        """As `acquire`, for all the devices of one machine, or for none.

        With `on_close` each lease ends when nobody has its tap open any more and a
        manager sees it. `caller_uid` is recorded: the user id for whom it is done.
        """
        process = None if pid is None else self._process(pid)
        with self._lock:
            plans = [
                plan._replace(
                    reservation=plan.reservation._replace(
                        caller_uid=caller_uid, on_close=on_close
                    )
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
                    self._attach(plan, made[-1])
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
                ending.callback(close_fds, lease)
            yield leases

    def bind(self, leases: Sequence[Lease], pid: int | None) -> None:
        """Let active leases end with the process `pid`, and with no other; None: with
        no process.

        Once it has ended, whichever manager next looks releases them. Raises
        NoSuchLease, and binds none, if one has been released meanwhile.
        """
        process = None if pid is None else self._process(pid)
        with self._lock:
            self._ledger.bind([lease.id for lease in leases], process)

    def reopen(self, id: str) -> tuple[int, ...]:
        """Open an active lease's device once more: a descriptor for each queue.

        For a VMM that replaces itself. The caller closes them. Raises LeaseBusy
        while a tap of one queue is open elsewhere: the kernel lets only one in.
        """
        with self._lock:
            lease = self.find(id)
            link = self.device(lease)
            if lease.state is not State.ACTIVE or link is None:
                raise NoSuchLease(f"lease {id} has no device any more")
            with self._world(lease.netns) as namespace, ExitStack() as opened:
                assert namespace is not None, "its device has just been seen"
                if lease.kind is Kind.MACVTAP:
                    return namespace.open_macvtap(
                        lease.ifindex, queues=lease.queues, vnet_hdr=lease.vnet_hdr
                    )
                fds: list[int] = []
                for _ in range(lease.queues):
                    fds.append(_reopened(namespace, lease, link))
                    opened.callback(os.close, fds[-1])
                opened.pop_all()
                return tuple(fds)

    def _plan(self, spec: Spec) -> Plan:
        template = model.check_spec(spec)
        mac = spec.mac and spec.mac.lower()
        wanted = spec.wiring
        under = on = None
        if isinstance(spec, Macvtap):
            under = lower.find(self._namespace, spec)
            if spec.mode == Mode.PASSTHRU:
                mac = under.mac
            wanted = wanted._replace(mtu=spec.mtu or under.mtu)
        elif wanted.bridge is not None:
            on = bridge.find_room(self._namespace, wanted.bridge)
            bridge.check(on, wanted)
            wanted = wanted._replace(mtu=wanted.mtu or on.mtu)
        elif wanted.ovs is not None:
            local = self._namespace.named(wanted.ovs)
            wanted = wanted._replace(mtu=wanted.mtu or (local and local.mtu))
        reservation = Reservation(
            spec, template, mac, wanted, self._check_backends(self._namespace, wanted)
        )
        return Plan(reservation, on.ifindex if on else 0, under)

    def _reserve(self, plans: Sequence[Plan]) -> list[Lease]:
        try:
            return self._ledger.reserve(
                self._namespace.netns,
                [plan.reservation for plan in plans],
                manager=self._me(),
                holder_of=self._taken,
                changed_links=self._namespace.changed_links,
            )
        except BaseException:
            # What was rolled back may include what the changes led to.
            self._namespace.forget_changes()
            raise

    def _taken(self, name: str) -> int:
        """The ifindex of the device that has a name no lease has, or 0."""
        ifindex = self._namespace.ifindex(name)
        self.collisions += ifindex != 0
        return ifindex

    def _make(self, plan: Plan, lease: Lease) -> Lease:
        """Make the device, under another name or ifindex if these are taken."""
        attempts = 0
        while True:
            try:
                return lease._replace(fds=self._create(plan, lease))
            except KernelError as error:
                attempts += 1
                if error.errno not in (EBUSY, EEXIST) or attempts == ATTEMPTS:
                    raise
                lease = self._step_aside(plan, lease, error)

    def _create(self, plan: Plan, lease: Lease) -> tuple[int, ...]:
        spec = plan.spec
        if isinstance(spec, Tap):
            return self._namespace.create_tap(
                lease.name,
                lease.ifindex,
                queues=spec.queues,
                vnet_hdr=spec.vnet_hdr,
                uid=spec.uid,
                gid=spec.gid,
            )
        assert plan.lower is not None
        passthru = spec.mode == Mode.PASSTHRU
        self._namespace.create_macvtap(
            lease.name,
            lease.ifindex,
            lower=plan.lower.ifindex,
            mode=Mode(spec.mode),
            mac=None if passthru else lease.mac,
            mtu=lease.wiring.mtu,
            queues=spec.queues,
        )
        try:
            return self._namespace.open_macvtap(
                lease.ifindex, queues=spec.queues, vnet_hdr=spec.vnet_hdr
            )
        except BaseException:
            self._namespace.delete_links([lease.ifindex])
            raise

    def _step_aside(self, plan: Plan, lease: Lease, error: KernelError) -> Lease:
        """Another name or ifindex for a device that could not be made."""
        holder = self._namespace.ifindex(lease.name)
        if not holder and self._namespace.link(lease.ifindex):
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

    def _attach(self, plan: Plan, lease: Lease) -> None:
        mac = model.host_mac(lease.mac) if lease.kind is Kind.TAP else None
        named = LinkChange(
            lease.ifindex,
            mac=mac,
            mtu=lease.wiring.mtu,
            alias=self._mark(lease),
            no_ipv6=True,
        )
        self._connect(
            self._namespace, lease, [named], bridge.attach(lease, plan.bridge)
        )

    def _undo(
        self, ids: Sequence[str], made: Sequence[Lease], error: BaseException
    ) -> None:
        """Take back an acquire that failed; nobody else has seen its devices."""
        try:
            for lease in made:
                close_fds(lease)
            # By the ledger, not by `made`: Ctrl-C may have come between the two.
            rows = [row for id in ids if (row := self._ledger.lease(id))]
            done = [lease for lease in rows if self._unwired(lease)]
            self._delete(self._namespace, done)
            self._ledger.end([lease.id for lease in done])
        except TapsterError as second:
            error.add_note(f"taking it back failed too ({second}); recover will do it")

    def _unwired(self, lease: Lease) -> bool:
        """Whether no backend has anything of a lease that was never active.

        If that cannot be told now, the lease waits as if it had been released.
        """
        try:
            self._detach(self._namespace, lease)
        except ServiceUnavailable:
            self._bring_to_rest(self._namespace, self._ledger.abandon(lease.id))
            self._wake_reaper()
            return False
        return True

    # Change

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
                self._ledger.release_claims(self._me())
            return changed._replace(manager=None)

    def _set(self, lease: Lease, wanted: Wiring) -> Lease:
        if lease.state is not State.ACTIVE:
            raise NoSuchLease(f"lease {lease.id} ({lease.name}) is released")
        model.check_wiring(wanted)
        if lease.kind is Kind.MACVTAP:
            model.check_macvtap_wiring(wanted)
        with self._world(lease.netns) as namespace:
            if namespace is None or self._seen(namespace, lease) is DeviceState.ABSENT:
                raise NoSuchLink(f"device {lease.name!r} is gone: tapster recover")
            if wanted.bridge not in (None, lease.wiring.bridge):
                bridge.find_room(namespace, wanted.bridge)
            try:
                return self._rewire(namespace, lease, wanted)
            except NoSuchLease:
                raise
            except BaseException as error:
                try:
                    now = self._ledger.lease(lease.id) or lease
                    self._rewire(namespace, now, lease.wiring)
                except TapsterError as second:
                    error.add_note(
                        f"going back failed too ({second}); recover will do it"
                    )
                raise

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
            with self._world(lease.netns) as namespace:
                if namespace is not None:
                    self._quiet(namespace, lease)
                with suppress(ServiceUnavailable):  # it will be tried again
                    if lease.fin_wait == 0:
                        self._mend(namespace, [lease], {}, {})
                    elif lease.backends:
                        self._take_down(namespace, lease)
            self._wake_reaper()

    def _quiet(self, namespace: Namespace, lease: Lease) -> None:
        """Take a released lease's device down, whatever became of it."""
        if not self._bring_to_rest(namespace, lease):
            self._hold_name(namespace, lease)

    def _take_down(self, namespace: Namespace | None, lease: Lease) -> None:
        """Let every backend take down what it has of a released lease."""
        with self._claimed([lease.id]) as claimed:
            for one in claimed:
                self._detach(namespace, one)

    def _hold_name(self, namespace: Namespace, lease: Lease) -> None:
        """Let a bare tap hold the name until FIN WAIT ends."""
        with self._claimed([lease.id]) as claimed:
            for one in claimed:
                self._plant(namespace, one)

    # Looking

    @property
    def netns(self) -> Netns:
        """The network namespace in which devices are made."""
        return self._namespace.netns

    def namespaces(self) -> list[Netns]:
        """The network namespaces in which there are leases."""
        with self._lock:
            return self._ledger.namespaces()

    def number(self, netns: Netns) -> int | None:
        """What the Host's namespace calls another, as in `Kernel`; None if it is
        gone."""
        with self._lock, self._world(netns) as namespace:
            return None if namespace is None else self._namespace.number(namespace)

    def at(self, netns: Netns, ifindexes: Iterable[int]) -> list[Lease]:
        """The leases of a namespace that have one of these ifindexes."""
        with self._lock:
            return self._ledger.at(netns, ifindexes)

    def joined(self, link: Link, lease: Lease) -> bool:
        """Whether a tap is on the bridge that its lease says."""
        with self._lock, self._world(lease.netns) as namespace:
            if namespace is None or not link.master:
                return False
            return link.master == namespace.ifindex(lease.wiring.bridge or "")

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

    def device(self, lease: Lease) -> Link | None:
        """The lease's device as the kernel shows it now, if it is there."""
        with self._lock, self._world(lease.netns) as namespace:
            link = namespace.link(lease.ifindex) if namespace else None
            if link and decision.is_ours(self._ledger.id, lease, link):
                return link
            return None

    def differences(self, lease: Lease) -> dict[str, str]:
        """How an active lease's device is not wired as it should be, by backend.

        Raises ServiceUnavailable if that cannot be told.
        """
        with self._lock, self._world(lease.netns) as namespace:
            link = namespace.link(lease.ifindex) if namespace else None
            links = {link.ifindex: link} if link else {}
            differ, reason = self._differences(namespace, [lease], links)
            if reason is not None:
                raise reason
            return differ.get(lease.id, {})

    def count(self, caller_uid: int | None = None) -> dict[State, int]:
        """How many leases are in each state: those of a user id, or all."""
        with self._lock:
            return self._ledger.count(caller_uid)

    def who(self, name: str, at: float | None = None) -> list[HistoryEntry]:
        """Who holds or held `name`, latest first; at wall clock `at` if given."""
        with self._lock:
            entries = self._ledger.entries(name)
        if at is None:
            return entries
        return [
            one
            for one in entries
            if one.created <= at and (one.ended is None or at < one.ended)
        ]

    @contextmanager
    def looking(self) -> Iterator[tuple[Ledger, Namespace]]:
        """The ledger and the Host's own namespace, for whoever only reads."""
        with self._lock:
            yield self._ledger, self._namespace

    def remove_leftovers(self, ledger: str) -> list[str]:
        """Delete the devices here that carry the stamp of a lost ledger.

        Of this Host's own ledger, only those without a lease; and no tap that
        somebody has open, a running machine say. Whether a ledger is lost nobody
        can know but the caller. Returns the devices' names.
        """
        with self._lock:
            links = self._namespace.links()
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
            self._namespace.delete_links([link.ifindex for link in found])
            return [link.name for link in found]


def _reopened(namespace: Namespace, lease: Lease, link: Link) -> int:
    try:
        return namespace.open_tap(
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
