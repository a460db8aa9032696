# SPDX-License-Identifier: Apache-2.0
"""Rewire: change what an active lease's device is connected to, or restore it."""

from errno import EBUSY, EEXIST

from tapster import model
from tapster.backends import bridge
from tapster.errors import (
    KernelError,
    NoSuchLease,
    NoSuchLink,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel.port import Namespace
from tapster.light import Collection, suppress
from tapster.model import Changes, Kind, Lease, Link, State, Wiring
from tapster.operations.context import Context
from tapster.operations.devices import Devices, pids_of


class Rewire:
    """The operation."""

    def __init__(self, context: Context, devices: Devices) -> None:
        self.context = context
        self.devices = devices

    def set(self, id: str, changes: Changes) -> Lease:
        """Change fields of an active lease's wiring, all or none of them.

        The VM keeps its descriptors. Raises NoSuchLease, LeaseBusy, and what
        acquire raises. If a change fails, the former wiring is restored.
        """
        model.check_changes(changes)
        with self.context.gate:
            lease = self.context.claims.claim(id)
            try:
                changed = self._set(lease, changes)
            finally:
                self.context.claims.release()
            return changed._replace(manager=None)

    def reconnect(
        self,
        namespace: Namespace,
        lease: Lease,
        wiring: Wiring,
        *,
        sound: Collection[str] = (),
    ) -> Lease:
        """Connect a claimed lease's device as `wiring` says, wherever it is now.

        The backends in `sound` have what `wiring` asks of them: they are left alone.
        A release does not wait for claims. Raises NoSuchLease if the lease was
        released during the change; then the device is at rest.
        """
        released = f"lease {lease.id} ({lease.name}) was released while it was changed"
        try:
            changed = self._reconnect(namespace, lease, wiring, sound)
        except TapsterError:
            if self.rest_if_released(namespace, lease.id):
                raise NoSuchLease(released, reference=lease.id) from None
            raise
        if self.rest_if_released(namespace, lease.id):
            raise NoSuchLease(released, reference=lease.id)
        return changed

    def take_off(self, id: str) -> None:
        """Take an active lease's device down and off its bridge, until `reconnect`.

        Raises NoSuchLease, LeaseBusy and HostError.
        """
        with self.context.gate:
            lease = self.context.claims.claim(id)
            try:
                with self.context.opened(lease.netns) as namespace:
                    if (
                        lease.state is State.ACTIVE
                        and namespace is not None
                        and self.devices.is_there(namespace, lease)
                    ):
                        namespace.set_links([bridge.detach(lease.ifindex)])
            finally:
                self.context.claims.release()

    def restore_tap(self, namespace: Namespace, lease: Lease) -> bool:
        """Give a claimed lease's tap its owner, group and persistence back.

        False if that is impossible: no process has the tap open, or none may be looked
        into.
        """
        return namespace.restore_tap(
            lease.ifindex,
            uid=lease.tap_owner,
            gid=lease.tap_group,
            pids=pids_of(lease),
        )

    def rename(self, namespace: Namespace, lease: Lease) -> bool:
        """Give a claimed lease's device its name back; False if that is impossible.

        Another device may have the name, or the kernel may be older than 6.2 and the
        device up. A running VM's device does not go down for its name.
        """
        try:
            namespace.rename_link(lease.ifindex, lease.name)
        except KernelError as error:
            if error.errno not in (EEXIST, EBUSY):
                raise
            return False
        return True

    def rest_if_released(self, namespace: Namespace, id: str) -> bool:
        """Bring a claimed lease's device to rest if the lease was released."""
        lease = self.context.ledger.lease(id)
        if lease is None or lease.state is State.ACTIVE:
            return lease is None
        if not self.devices.rest(namespace, lease, released=True):
            self.devices.hold_name(namespace, lease)
        with suppress(ServiceUnavailable):  # the reaper will try again
            self.devices.detach(namespace, lease)
        return True

    def _set(self, lease: Lease, changes: Changes) -> Lease:
        wiring = lease.wiring._replace(**changes)
        if lease.state is not State.ACTIVE:
            raise NoSuchLease(
                f"lease {lease.id} ({lease.name}) is released", reference=lease.id
            )
        model.check_wiring(wiring)
        self.context.ledger.refuse_same_mac(lease, wiring)
        if lease.kind is Kind.MACVTAP:
            model.check_macvtap_wiring(wiring)
        with self.context.opened(lease.netns) as namespace:
            if namespace is None or not self.devices.is_there(namespace, lease):
                raise _gone(lease)
            if wiring.bridge not in (None, lease.wiring.bridge):
                on = bridge.find_room(namespace, wiring.bridge)
                # The change may name an alternative name of the bridge.
                wiring = wiring._replace(bridge=on.name)
            if lease.kind is Kind.TAP and _asks_for_no_mtu(namespace, lease, changes):
                # As in an acquire. With the MTU of the device that it was on, the tap
                # might lower that of the other one.
                over = _joined(namespace, wiring)
                wiring = wiring._replace(mtu=over.mtu if over else lease.wiring.mtu)
            try:
                return self.reconnect(namespace, lease, wiring)
            except NoSuchLease:
                raise
            except BaseException as error:
                self._restore(namespace, lease, error)
                raise

    def _restore(
        self, namespace: Namespace, lease: Lease, error: BaseException
    ) -> None:
        """Connect a device again as it was before a change that failed."""
        try:
            now = self.context.ledger.lease(lease.id) or lease
            self.reconnect(namespace, now, lease.wiring)
        except TapsterError as second:
            error.add_note(
                f"restoring the former wiring failed too ({second}); recover will do it"
            )

    def _reconnect(
        self,
        namespace: Namespace,
        lease: Lease,
        wiring: Wiring,
        sound: Collection[str],
    ) -> Lease:
        on = self._find_bridge(namespace, lease, wiring.bridge)
        if on is not None:
            bridge.check(on, wiring)
        needed = self.devices.check_backends(namespace, wiring)
        link = namespace.link(lease.ifindex)
        if link is None:
            raise _gone(lease)
        changed = lease._replace(wiring=wiring, backends=needed)
        to = on.ifindex if on and not wiring.standby else 0
        asked = changed
        if wiring.mtu == lease.wiring.mtu:
            mtu = bridge.possible_mtu(namespace, changed, link, {})
            asked = changed._replace(wiring=wiring._replace(mtu=mtu))
        leaving = bridge.leave(asked, lease.wiring, link, to)
        joining = bridge.rewire(changed, lease.wiring, link, to)
        # Until the change is complete, both old and new backends may have something.
        both = dict.fromkeys([*lease.backends, *needed])
        if tuple(both) != lease.backends:
            self.context.ledger.rewire(lease.id, lease.wiring, both)
        if restored := bridge.identify(lease, self.devices.stamp(lease), link):
            leaving = [restored, *leaving]
        stays = bridge.stays(changed, lease.wiring, link, to)
        if not stays:
            namespace.set_links(leaving)
            leaving = []
            self._detach_obsolete(namespace, lease, changed)
        self.devices.connect(namespace, changed, leaving, joining, sound=sound)
        if stays:
            self._detach_obsolete(namespace, lease, changed)
        if _moves(lease.wiring, wiring):
            # Switches still send the guest's frames to where it was, and its VMM has
            # announced it at a time when the device was connected to nothing.
            namespace.announce(lease.ifindex, lease.mac, pids=pids_of(lease))
        return self.context.ledger.rewire(lease.id, wiring, needed)

    def _find_bridge(
        self, namespace: Namespace, lease: Lease, name: str | None
    ) -> Link | None:
        """Return the bridge that a wiring asks for, if any. Raises NoSuchLink."""
        if name is None:
            return None
        try:
            return bridge.find(namespace, name)
        except NoSuchLink:
            link = namespace.link(lease.ifindex)
            now = namespace.link(link.master) if link and link.master else None
            if now is None or name != lease.wiring.bridge or namespace.ifindex(name):
                raise
            raise NoSuchLink(
                f"there is no bridge {name!r}, and device {lease.name!r} is on "
                f"{now.name!r}; if that is the same bridge under another name: "
                f"tapster set {lease.id} --bridge {now.name}",
                name=name,
            ) from None

    def _detach_obsolete(
        self, namespace: Namespace, lease: Lease, changed: Lease
    ) -> None:
        """Let the backends that the new wiring does not need remove what they have.

        A port that stays gets its new properties first. Any other has left its bridge.
        """
        for backend in self.context.backends:
            if backend.name in lease.backends and backend.name not in changed.backends:
                backend.detach(namespace, changed)


def _moves(was: Wiring, wiring: Wiring) -> bool:
    """Return whether frames for the guest take another way after this change."""
    if wiring.standby or not wiring.up:
        return False
    return (
        was.standby
        or not was.up
        or (was.bridge, was.ovs, was.vlan) != (wiring.bridge, wiring.ovs, wiring.vlan)
    )


def _asks_for_no_mtu(namespace: Namespace, lease: Lease, changes: Changes) -> bool:
    """Return whether a change leaves a tap's MTU to the device that the tap is on.

    The ledger does not record whether the request named an MTU. A tap that moves, and
    has the MTU of the device that it is on, has probably asked for none.
    """
    if "mtu" in changes:
        return changes["mtu"] is None
    wiring = lease.wiring
    if _joined_name(wiring._replace(**changes)) in (None, _joined_name(wiring)):
        return False
    on = _joined(namespace, wiring)
    return on is not None and on.mtu == wiring.mtu


def _joined(namespace: Namespace, wiring: Wiring) -> Link | None:
    """Return the device that a tap is on. A bridge of Open vSwitch has one of its
    name."""
    name = _joined_name(wiring)
    return namespace.named(name) if name else None


def _joined_name(wiring: Wiring) -> str | None:
    return wiring.bridge or wiring.ovs or wiring.redirect


def _gone(lease: Lease) -> NoSuchLink:
    return NoSuchLink(
        f"device {lease.name!r} is gone; run: tapster recover", name=lease.name
    )
