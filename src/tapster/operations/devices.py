# SPDX-License-Identifier: Apache-2.0
"""The verbs on one lease's device: make, connect, rest, hold its name, delete.

Every verb finds the device by its identity (namespace, ifindex). The lease is
claimed or released, unless the verb only looks.
"""

import os
from errno import EBADFD, EBUSY, ENODEV, EOPNOTSUPP, EXFULL
from itertools import count

from tapster import model
from tapster.backends import bridge
from tapster.errors import ConflictError, HostError, KernelError, TapsterError
from tapster.kernel.port import LinkChange, Namespace, NewMacvtap
from tapster.light import (
    TYPE_CHECKING,
    Collection,
    Iterable,
    Mapping,
    NamedTuple,
    Sequence,
    closing,
    remembered,
    suppress,
)
from tapster.model import Lease, Link, Mode, Netns, Spec, State, Tap, Wiring
from tapster.operations import decision
from tapster.operations.context import Context
from tapster.operations.decision import DeviceState
from tapster.operations.failures import Failures

if TYPE_CHECKING:
    from tapster.backends.backend import Backend, Leftover

ATTEMPTS = 100
"""How often to try again to make a device that other programs prevent."""

FEW = 8
"""The largest number of devices that are read one by one; more are listed at once."""

LINK, RENAMED, TAP = OWN = "link", "name", "tap"
"""The kinds of differences of a device itself. Other kinds are names of backends."""

Differences = dict[str, dict[str, str]]
"""How leases differ from their requests: by id, then by backend."""


class Opened(NamedTuple):
    """A lease, and open descriptors of its device. The caller closes them."""

    lease: Lease
    fds: tuple[int, ...]
    """One for each queue."""
    vhost_fds: tuple[int, ...] = ()
    """Of /dev/vhost-net: one for each queue, or none."""


class Deletion(NamedTuple):
    """What became of the devices that were to be deleted."""

    absent: list[Lease]
    """The leases whose devices were not there."""
    left: list[Lease]
    """The leases whose devices are still there."""


class Devices:
    """The devices of a context's leases."""

    def __init__(self, context: Context) -> None:
        self.context = context
        # Most devices of a host are wired alike.
        self._concerned = remembered(self._find_concerned)

    # Making and connecting

    def make(self, lease: Lease, spec: Spec, lower: int) -> tuple[int, ...]:
        """Make a reserved lease's device, down; return a descriptor for each queue.

        `lower` is the ifindex of a macvtap's lower device, or 0.
        """
        namespace = self.context.namespace
        if isinstance(spec, Tap):
            return namespace.create_tap(
                lease.name,
                lease.ifindex,
                queues=spec.queues,
                vnet_hdr=spec.vnet_hdr,
                uid=spec.uid,
                gid=spec.gid,
            )
        passthru = spec.mode == Mode.PASSTHRU
        device = NewMacvtap(
            lease.name,
            lease.ifindex,
            lower=lower,
            mode=Mode(spec.mode),
            mac=None if passthru else lease.mac,
            mtu=lease.wiring.mtu,
            queues=spec.queues,
        )
        with self.context.lower_namespace(spec) as beneath:
            namespace.create_macvtap(device, beneath=beneath)
        try:
            return namespace.open_macvtap(
                lease.ifindex, queues=spec.queues, vnet_hdr=spec.vnet_hdr
            )
        except BaseException:
            namespace.delete_links([lease.ifindex])
            raise

    def connect(
        self,
        namespace: Namespace,
        lease: Lease,
        first: Sequence[LinkChange],
        joining: Sequence[LinkChange],
        *,
        sound: Collection[str] = (),
    ) -> None:
        """Change a device, attach its backends, then join the device to its bridge.

        A port must be protected before it exists. The backends in `sound` have what
        they should have.
        """
        needed = lease.backends and [
            backend
            for backend in self.context.backends
            if backend.name in lease.backends and backend.name not in sound
        ]
        try:
            if needed:
                namespace.set_links(first)
                for backend in needed:
                    backend.attach(namespace, lease)
            namespace.set_links(joining if needed else [*first, *joining])
        except HostError as error:
            errno = error.errno if isinstance(error, KernelError) else 0
            if errno == EXFULL and lease.wiring.bridge:
                raise bridge.full(lease.wiring.bridge) from error
            # What failed may say no more than that a device is not there any more.
            if namespace.link(lease.ifindex) is None:
                raise _vanished(lease) from error
            on = [change.master for change in joining if change.master]
            if on and not any(map(namespace.link, on)):
                raise bridge.gone(lease.wiring.bridge or "") from error
            raise

    def check_backends(self, namespace: Namespace, wiring: Wiring) -> tuple[str, ...]:
        """Return the names of the backends that a wiring needs. Raise if one fails."""
        needed = self._concerned(wiring)
        for backend in needed:
            backend.check(namespace, wiring)
        # A device on standby has its wiring only when it is taken.
        force = wiring.in_force
        return tuple([each.name for each in needed if each.concerns(force)])

    def _find_concerned(self, wiring: Wiring) -> "list[Backend]":
        """Return the backends that a wiring concerns, also when it is taken later."""
        return [each for each in self.context.backends if each.concerns(wiring)]

    # Ending

    def rest(
        self, namespace: Namespace, lease: Lease, *, released: bool = False
    ) -> bool:
        """Take a device down and off its bridge; False if it must be replaced.

        `released` says that the lease has just been released. No user may open a
        resting tap by its name.

        An absent device must be replaced. A passthru macvtap must be replaced, too: it
        excludes every other device from its lower device, so a waiting one would keep
        the next VM from starting.
        """
        exclusive = lease.mode is Mode.PASSTHRU and not lease.placeholder
        link = namespace.link(lease.ifindex)
        ledger = self.context.ledger.id
        if exclusive or decision.look(ledger, lease, link) is DeviceState.ABSENT:
            return False
        openable = link is not None and is_openable(link)
        if link is not None and link.open and (released or openable):
            self.context.ledger.note_open(lease.id)
        rest = bridge.detach(lease.ifindex)
        stamp = self.stamp(lease)
        if link is not None and link.alias != stamp:
            rest = rest._replace(alias=stamp)
        try:
            try:
                namespace.set_links([rest])
            except KernelError as error:
                if error.errno != EOPNOTSUPP:
                    raise
                # A port of Open vSwitch in the kernel: it leaves when its row goes.
                namespace.set_links([rest._replace(master=None)])
        except KernelError as error:
            if error.errno != ENODEV:
                raise
            return False
        if link is not None and openable:
            self.restrict(namespace, lease, link)
        return True

    def restrict(self, namespace: Namespace, lease: Lease, link: Link) -> None:
        """Let no user open a released tap by its name any more.

        A process that has the tap open keeps it. If Tapster cannot look into that
        process, the tap gets its new owner after the close: see `Recover.restrict`.
        """
        for _ in range(ATTEMPTS):
            if namespace.give_tap(
                link.name,
                link.ifindex,
                multi_queue=link.queues is not None,
                vnet_hdr=lease.vnet_hdr,
                uid=os.geteuid(),
                gid=None if link.tap_group is None else os.getegid(),
                pids=pids_of(lease),
            ):
                return
            now = namespace.link(link.ifindex)
            if now is None or not is_openable(now):
                return
            if now.open and now.name == link.name:
                return  # a hidden process has it open
            link = now  # it was renamed, or closed, at that moment
        raise ConflictError(
            f"device {lease.name!r} is at rest, but user {link.tap_owner} may still "
            "open it by name; to take that right: tapster recover"
        )

    def detach(self, namespace: Namespace | None, lease: Lease) -> None:
        """Let every backend remove what it has of a claimed lease."""
        if not lease.backends:
            return
        failures = Failures()
        for backend in self.context.backends:
            if backend.name in lease.backends:
                try:
                    backend.detach(namespace, lease)
                except TapsterError as error:
                    failures.add(error)
        failures.raise_any()
        if namespace is not None and lease.state is State.FIN_WAIT:
            # Open vSwitch restores the flags of a device that it lets go, and may
            # not have heard yet that the device is down.
            self.rest(namespace, lease)
        self.context.ledger.clear_backends(lease.id)

    def hold_name(self, namespace: Namespace, lease: Lease) -> None:
        """Replace a claimed lease's device by a placeholder that holds its name."""
        with suppress(TapsterError):  # reap or recover will try again
            self.detach(namespace, lease)
        absent = self.delete(namespace, [lease]).absent
        if lease.mode is Mode.PASSTHRU:
            # Wherever it is, it excludes others from its lower device. A placeholder
            # that was moved is not looked for at the end of the wait: see `_is_lost`.
            self.delete_moved(absent)
        for attempt in count(1):
            lease = self.context.ledger.hold_name(lease.id)
            try:
                fds = namespace.create_tap(
                    lease.name,
                    lease.ifindex,
                    queues=1,
                    vnet_hdr=False,
                    uid=os.geteuid(),
                    gid=None,
                )
            except KernelError as error:
                if error.errno == EBUSY and namespace.ifindex(lease.name):
                    return  # a foreign device has the name: no VM can get it
                if error.errno not in (EBUSY, EBADFD) or attempt == ATTEMPTS:
                    raise
                continue  # its ifindex is taken, or it was deleted while it was made
            close_fds(fds)
            try:
                stamped = LinkChange(lease.ifindex, alias=self.stamp(lease))
                namespace.set_links([stamped])
            except KernelError as error:
                if error.errno != ENODEV or attempt == ATTEMPTS:
                    raise
                continue  # somebody deleted the placeholder too
            return

    def delete(self, namespace: Namespace, leases: Sequence[Lease]) -> Deletion:
        """Delete these leases' devices. Raise ConflictError if one is still there."""
        deletion = self.try_to_delete(namespace, leases, self._look(namespace, leases))
        for lease in deletion.left:
            raise _not_deleted(lease)
        return deletion

    def try_to_delete(
        self, namespace: Namespace, leases: Sequence[Lease], links: Mapping[int, Link]
    ) -> Deletion:
        """Delete these leases' devices, and look whether they are gone.

        `links` are the devices that were there a moment ago, by ifindex.
        """
        there = {lease.ifindex for lease in leases if self._is_in(links, lease)}
        if there:
            there -= namespace.delete_links(sorted(there))
        absent = [lease for lease in leases if lease.ifindex not in there]
        links = self._look(namespace, leases)
        return Deletion(
            absent, [lease for lease in leases if self._is_in(links, lease)]
        )

    def end(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        failures: Failures,
    ) -> list[Lease]:
        """Delete claimed leases' devices and end the leases; return those that ended.

        A lease that cannot be ended now hinders no other.
        """
        ready = self._detach_all(namespace, leases, failures)
        if namespace is not None:
            ready = self._delete_all(namespace, ready, failures)
        self.context.ledger.end([lease.id for lease in ready])
        return ready

    def _detach_all(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        failures: Failures,
    ) -> list[Lease]:
        """Detach leases that end from their backends; return those that are."""
        ready: list[Lease] = []
        for lease in leases:
            try:
                if lease.backends and lease.state is State.ACTIVE:
                    # Its namespace is gone. Its backends may have to be waited for.
                    lease = self.context.ledger.begin_release(lease.id)
                if lease.backends and namespace is not None:
                    self._refuse_opened(lease, namespace.link(lease.ifindex))
                self.detach(namespace, lease)
                ready.append(lease)
            except TapsterError as error:
                failures.add(error, [lease.id])
        return ready

    def _delete_all(
        self, namespace: Namespace, leases: Sequence[Lease], failures: Failures
    ) -> list[Lease]:
        """Delete the devices of leases that end; return the leases that can end.

        One look tells whether a device is ours, whether it was opened, and whether it
        is elsewhere. A second look tells that it is gone.
        """
        links = self._look(namespace, leases)
        ready: list[Lease] = []
        for lease in leases:
            try:
                self._refuse_opened(lease, links.get(lease.ifindex))
                ready.append(lease)
            except ConflictError as error:
                failures.add(error, [lease.id])
        searched: list[Lease] = []
        if lost := [lease for lease in ready if self._is_lost(links, lease)]:
            ready = self._delete_lost(lost, ready, failures, moving=False)
            before, links = links, self._look(namespace, ready)
            searched = [
                lease
                for lease in lost
                if not (self._is_in(before, lease) or self._is_in(links, lease))
            ]
        absent, left = self.try_to_delete(namespace, ready, links)
        # Those that were moved since the first look.
        missed = [lease for lease in absent if lease not in searched]
        if left:  # once more: it was moved away and back, or to another group
            absent, left = self.try_to_delete(
                namespace, left, self._look(namespace, left)
            )
            missed += absent
        for lease in left:
            failures.add(_not_deleted(lease), [lease.id])
        ready = [lease for lease in ready if lease not in left]
        return self._delete_lost(missed, ready, failures, moving=True)

    def _is_lost(self, links: Mapping[int, Link], lease: Lease) -> bool:
        """Return whether a lease's device may be in another namespace.

        A waiting passthru macvtap always has a placeholder. Tapster looked for its
        device when it made the placeholder.
        """
        return (
            lease.state is not State.ACTIVE
            and lease.mode is not Mode.PASSTHRU
            and (lease.placeholder or not self._is_in(links, lease))
        )

    def _delete_lost(
        self,
        lost: Sequence[Lease],
        leases: Sequence[Lease],
        failures: Failures,
        *,
        moving: bool,
    ) -> list[Lease]:
        """Delete the devices of lost leases that are in other namespaces.

        Return those of `leases` that can end. A waiting lease whose device may be
        anywhere goes on waiting. An acquire that was interrupted has most likely made
        no device.
        """
        if not lost:
            return [*leases]
        try:
            self.delete_moved(lost, moving=moving)
        except TapsterError as error:
            waiting = {lease.id for lease in lost if lease.state is State.FIN_WAIT}
            if waiting:
                failures.add(error, waiting)
            return [lease for lease in leases if lease.id not in waiting]
        return [*leases]

    def _refuse_opened(self, lease: Lease, link: Link | None) -> None:
        """Raise ConflictError if a waiting tap was opened: it may be a VM's device.

        `link` is the device that has the lease's ifindex. A program that opens taps by
        name without Tapster, as libvirt does with an unmanaged target, gets a waiting
        device as readily as a new one. It must not lose that device while it runs.
        """
        if link is None or not link.open:
            return
        if lease.state is not State.FIN_WAIT or lease.open_at_release:
            return
        if decision.is_ours(self.context.ledger.id, lease, link):
            raise ConflictError(
                f"device {lease.name!r} was released, and then a process opened it; "
                "Tapster deletes it when that process has closed it"
            )

    # Looking

    def links(
        self, namespace: Namespace | None, leases: Sequence[Lease]
    ) -> dict[int, Link]:
        """Return the devices that have these leases' ifindexes, by ifindex."""
        if namespace is None:
            return {}
        if len(leases) < FEW:
            links = [namespace.link(lease.ifindex) for lease in leases]
            return {link.ifindex: link for link in links if link}
        return {link.ifindex: link for link in namespace.links()}

    def moved(
        self, leases: Collection[Lease], *, back: bool = False
    ) -> dict[str, list[tuple[Netns, Link]]]:
        """Return where devices are that another program moved, by the lease's id.

        A device keeps its stamp when it is moved to another network namespace. A lease
        may have several such devices, because its placeholders can be moved, too. With
        `back`, also those that are back at their places. This looks into every
        namespace. Raises HostError if that is impossible.
        """
        stamps = {self.stamp(lease): lease for lease in leases}
        found: dict[str, list[tuple[Netns, Link]]] = {}
        if not stamps:
            return found
        seen: set[int] = set()
        with closing(self.context.system.namespaces()) as namespaces:
            for namespace in namespaces:
                if namespace.netns.cookie in seen:
                    continue
                seen.add(namespace.netns.cookie)
                cookie = namespace.netns.cookie
                for link in namespace.links():
                    lease = stamps.get(link.alias)
                    # A placeholder has the stamp of the device that it replaces.
                    if lease and (
                        back
                        or (cookie, link.ifindex) != (lease.netns.cookie, lease.ifindex)
                    ):
                        found.setdefault(lease.id, []).append((namespace.netns, link))
        return found

    def delete_moved(self, leases: Collection[Lease], *, moving: bool = True) -> None:
        """Delete the devices of leases that end, if another program moved them.

        The search is repeated until it finds nothing: a device may be moved again
        between the search and the deletion. If devices are `moving` at this moment,
        it must find nothing twice, also at their places: a device may come to a
        namespace after the search has looked there.
        """
        needed = 2 if moving else 1
        in_vain = 0
        for _ in range(ATTEMPTS):
            moved = self.moved(leases, back=moving)
            in_vain = 0 if moved else in_vain + 1
            if in_vain == needed:
                return
            for places in moved.values():
                for netns, link in places:
                    with self.context.opened(netns) as there:
                        if there is not None:
                            there.delete_links([link.ifindex])

    def state(self, namespace: Namespace, lease: Lease) -> DeviceState:
        """Return the present state of the lease's device."""
        link = namespace.link(lease.ifindex)
        return decision.look(self.context.ledger.id, lease, link)

    def is_there(self, namespace: Namespace, lease: Lease) -> bool:
        """Return whether the lease's device exists."""
        return self.state(namespace, lease) is not DeviceState.ABSENT

    def _look(self, namespace: Namespace, leases: Sequence[Lease]) -> dict[int, Link]:
        """Return the devices that have these leases' ifindexes, by ifindex."""
        return namespace.links_with([lease.ifindex for lease in leases])

    def _is_in(self, links: Mapping[int, Link], lease: Lease) -> bool:
        """Return whether a lease's device is among these."""
        link = links.get(lease.ifindex)
        return link is not None and decision.is_ours(
            self.context.ledger.id, lease, link
        )

    def stamp(self, lease: Lease) -> str:
        """Return the stamp that the lease's device carries."""
        return model.stamp(self.context.ledger.id, lease.id)

    def differences(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        links: dict[int, Link],
        failures: Failures,
        leftovers: "list[tuple[Backend, Leftover]] | None" = None,
    ) -> Differences:
        """Return how active leases are not connected as requested.

        With `leftovers`, ask every backend; each adds its parts that belong to none of
        the leases. Otherwise, ask only the backends that may have a part of a lease. A
        backend that fails hinders no other.
        """
        if namespace is None:
            return {}
        differences = self.link_differences(namespace, leases, links)
        leases = [
            lease._replace(wiring=lease.wiring.in_force)
            if lease.wiring.standby
            else lease
            for lease in leases
        ]
        # In each namespace a backend takes as long for one lease as for all.
        for backend in self.context.backends:
            concerned = [lease.id for lease in leases if _may_have(backend, lease)]
            if leftovers is None and not concerned:
                continue
            try:
                observed = backend.observe(namespace, leases)
            except TapsterError as error:
                failures.add(error, concerned)
                continue
            for id, wrong in observed.differences.items():
                differences.setdefault(id, {})[backend.name] = wrong
            if leftovers is not None:
                leftovers += [(backend, leftover) for leftover in observed.leftovers]
        return differences

    def link_differences(
        self,
        namespace: Namespace | None,
        leases: Sequence[Lease],
        links: dict[int, Link],
    ) -> Differences:
        """Return the differences of active leases' devices, without their backends."""
        if namespace is None:
            return {}
        differences: Differences = {}
        for lease in leases:
            link = links.get(lease.ifindex)
            if (
                link is None
                or lease.state is not State.ACTIVE
                or not decision.is_ours(self.context.ledger.id, lease, link)
            ):
                continue
            stamp = self.stamp(lease)
            if wrong := bridge.differs(lease, stamp, link, namespace, links):
                differences[lease.id] = {LINK: wrong}
            # While another device has the name, recover could do nothing about it.
            if link.name != lease.name and not namespace.ifindex(lease.name):
                differences.setdefault(lease.id, {})[RENAMED] = link.name
            if decision.is_restorable(lease, link):
                differences.setdefault(lease.id, {})[TAP] = link.name
        return differences


def pids_of(lease: Lease) -> tuple[int, ...]:
    """Return the processes that are likely to have a lease's device open."""
    return () if lease.process is None else (lease.process.pid,)


def is_openable(link: Link) -> bool:
    """Return whether a process without privileges may open a tap by its name.

    Linux asks for the owner and for the group, if both are set; some releases are
    content with either.
    """
    return link.kind == "tun" and (
        link.tap_owner not in (0, os.geteuid())
        or link.tap_group not in (None, 0, os.getegid())
    )


def _vanished(lease: Lease) -> KernelError:
    return KernelError(
        ENODEV,
        f"connecting device {lease.name!r}",
        "somebody deleted it at this moment, or moved it to another network namespace",
    )


def _not_deleted(lease: Lease) -> ConflictError:
    return ConflictError(
        f"device {lease.name!r} (ifindex {lease.ifindex}) was not deleted: "
        "somebody moved it to another group or namespace at the same time; try again"
    )


def _may_have(backend: "Backend", lease: Lease) -> bool:
    """Return whether a backend may have a part of a lease, or should have one.

    The ledger records a backend before the backend attaches anything.
    """
    return backend.name in lease.backends or backend.concerns(lease.wiring)


def close_fds(fds: Iterable[int]) -> None:
    """Close these descriptors."""
    for fd in fds:
        os.close(fd)
