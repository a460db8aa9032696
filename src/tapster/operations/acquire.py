# SPDX-License-Identifier: Apache-2.0
"""Acquire: reserve leases, make their devices, connect them, activate the leases.

A lease is in the ledger before its device is in the kernel. So at every moment
each device of ours has a lease that names it, whenever a process is killed.
"""

import os
from errno import EBUSY, EEXIST, EINVAL

from tapster import model
from tapster.backends import bridge, lower
from tapster.errors import (
    ConflictError,
    KernelError,
    NameTaken,
    NotAllowed,
    RequestError,
    ServiceUnavailable,
    TapsterError,
)
from tapster.kernel.port import LinkChange
from tapster.kernel.signals import Deferral, deferred
from tapster.ledger import Reservation
from tapster.light import TYPE_CHECKING, NamedTuple, Sequence
from tapster.model import Kind, Lease, Macvtap, Mode, Naming, Spec, State, Tap
from tapster.operations.context import Context
from tapster.operations.devices import ATTEMPTS, Devices, Opened, close_fds
from tapster.operations.failures import Failures

if TYPE_CHECKING:
    from tapster.fleet.macs import FleetMacs


class Plan(NamedTuple):
    """A checked request, and the devices that it names."""

    reservation: Reservation
    bridge: int
    """The ifindex of the Linux bridge, or 0."""
    lower: int
    """The ifindex of a macvtap's lower device, or 0."""


def _with_mac(plan: Plan, fleet: "FleetMacs") -> Plan:
    """Give a MAC of this host's blocks to a device for which any MAC will do."""
    reservation = plan.reservation
    if reservation.mac is not None:
        return plan
    mac = fleet.next_mac()
    return plan._replace(reservation=reservation._replace(mac=mac, mac_is_any=True))


class Acquire:
    """The operation. Call it with requests."""

    collisions = 0
    """How often a name turned out to be a foreign device's."""

    def __init__(self, context: Context, devices: Devices) -> None:
        self.context = context
        self.devices = devices

    def __call__(
        self,
        specs: Sequence[Spec],
        *,
        pids: Sequence[int | None] = (),
        on_close: bool = False,
        vhost: bool = False,
        caller_uid: int | None = None,
        asked: Sequence[str] = (),
        max_keys: int | None = None,
        hand_over: Deferral | None = None,
    ) -> list[Opened]:
        """Make all the devices, or none. The caller closes the descriptors.

        A lease ends with the process that `pids` names for its device, if it names one;
        with `on_close`, when no process has the tap open any more. With `vhost` there
        are descriptors of /dev/vhost-net, where the host has it. `caller_uid` is
        recorded: the user id that the daemon acts for; so is what was `asked` for each
        device, as the daemon's policy judges it. `max_keys` bounds the user's keys of
        stable names. Signals are deferred from the moment that the descriptors are the
        caller's until the end of the block `hand_over`.
        """
        context = self.context
        with context.gate:
            processes = [
                None if pid is None else context.process(pid)
                for pid in pids or [None] * len(specs)
            ]
            plans = [self._plan(spec, on_close, caller_uid) for spec in specs]
            fleet = context.find_fleet()
            if fleet is not None:
                plans = [_with_mac(plan, fleet) for plan in plans]
            elif any(spec.vm for spec in specs):
                raise RequestError(
                    "the id of a VM is for a fleet, and this host is in none: "
                    "tapster fleet join"
                )
            if len(plans) > 1:
                _refuse_equal_macs(plans)
            for number, text in enumerate(asked):
                reservation = plans[number].reservation._replace(
                    asked=text, max_keys=max_keys
                )
                plans[number] = plans[number]._replace(reservation=reservation)
            leases = self._reserve_or_reclaim(plans)
            ids = [lease.id for lease in leases]
            made: list[Opened] = []
            try:
                if fleet is not None:
                    fleet.check([*zip(leases, specs, strict=True)])
                for plan, lease in zip(plans, leases, strict=True):
                    with deferred():  # a descriptor must not be lost on its way
                        made.append(self.make(plan, lease))
                    self._connect(plan, made[-1].lease)
                    if vhost:
                        with deferred():
                            made[-1] = self._open_vhost(made[-1])
                active = context.ledger.activate(
                    [opened.lease for opened in made], processes
                )
                new = context.system.udev_interferes()
                if new or any(processes) or on_close:
                    context.wake_reaper(new=new)
                if hand_over is not None:
                    hand_over.begin()
                return [
                    opened._replace(lease=lease)
                    for lease, opened in zip(active, made, strict=True)
                ]
            except BaseException as error:
                self._undo(ids, made, error)
                raise

    def _reserve_or_reclaim(self, plans: Sequence[Plan]) -> list[Lease]:
        """Reserve; end the owner's own waits of names that are to be reclaimed."""
        for _ in plans:
            try:
                return self.reserve(plans)
            except NameTaken as error:
                if not self._reclaim(error, plans):
                    raise
        return self.reserve(plans)

    def _reclaim(self, error: NameTaken, plans: Sequence[Plan]) -> bool:
        """End the FIN WAIT that holds a name, if the request may. Say whether it ended.

        The waiting device is deleted by its identity; the new one has another index.
        """
        context = self.context
        if error.lease is None:
            return False
        lease = context.ledger.lease(error.lease)
        if lease is None:
            return True  # the wait was over, and has just been ended
        if lease.state is not State.FIN_WAIT:
            return False
        wanted = (lease.owner, lease.caller_uid)
        if not any(
            plan.reservation.spec.reclaim
            and (plan.reservation.spec.owner, plan.reservation.caller_uid) == wanted
            for plan in plans
        ):
            return False
        failures = Failures()
        with (
            context.opened(lease.netns) as namespace,
            context.claims.claimed([lease.id]) as claimed,
        ):
            self.devices.end(namespace, claimed, failures)
        failures.raise_any()
        if not claimed and context.ledger.lease(lease.id):
            # Another manager ends the wait, or repairs the device, at this moment.
            error.until = context.system.boottime()
            return False
        return True

    def reserve(self, plans: Sequence[Plan]) -> list[Lease]:
        """Reserve a name and an ifindex for each plan, or for none."""
        namespace = self.context.namespace
        try:
            return self.context.ledger.reserve(
                namespace.netns,
                [plan.reservation for plan in plans],
                manager=self.context.claims.take_number(),
                holder_of=self._holder_of,
                list_holders=namespace.names,
                changed_links=namespace.changed_links,
            )
        except BaseException:
            # The transaction was rolled back. So the next one must read these changes
            # again.
            namespace.forget_changes()
            raise

    def make(self, plan: Plan, lease: Lease) -> Opened:
        """Make the device; under another name or ifindex if these are in use."""
        attempts = 0
        while True:
            try:
                fds = self.devices.make(lease, plan.reservation.spec, plan.lower)
                return Opened(lease, fds)
            except KernelError as error:
                if plan.lower and error.errno == EINVAL:
                    raise self._lower_taken(plan, error) from error
                attempts += 1
                if error.errno not in (EBUSY, EEXIST) or attempts == ATTEMPTS:
                    raise
                lease = self._step_aside(plan, lease, error)

    def _lower_taken(self, plan: Plan, error: KernelError) -> TapsterError:
        """Return the error for a lower device that cannot carry a macvtap.

        A macvtap in mode passthru is alone on its lower device: the kernel refuses it
        beside others, and others beside it.
        """
        spec = plan.reservation.spec
        assert isinstance(spec, Macvtap)
        asker = plan.reservation.caller_uid
        holders = [
            f"lease {lease.id} ({lease.name}), owner {lease.owner!r}, in mode "
            f"{lease.mode}"
            if asker in (None, 0, lease.caller_uid)
            else f"another user's lease in mode {lease.mode}"
            for lease in self.context.ledger.leases()
            if lease.lower == spec.lower
            and lease.state is not State.RESERVED
            and self.context.is_here(lease.netns)
            and not lease.placeholder
        ]
        passthru = spec.mode == Mode.PASSTHRU
        if not holders and not passthru:
            return error
        others = "; ".join(holders) or "another program's device"
        return ConflictError(
            f"{spec.lower!r} cannot carry a further macvtap in mode {spec.mode}: "
            f"{others} is on it, and one in mode passthru must be alone there"
        )

    def _plan(self, spec: Spec, on_close: bool, caller_uid: int | None) -> Plan:
        """Check a request, and find the devices that it names."""
        namespace = self.context.namespace
        template = model.check_spec(spec)
        mac = spec.mac and spec.mac.lower()
        wiring = spec.wiring
        if isinstance(spec, Tap) and spec.uid is None and spec.gid is None:
            # The kernel lets any user open a tap that has neither owner nor group.
            owner = os.geteuid() if caller_uid is None else caller_uid
            spec = spec._replace(uid=owner)
        bridge_index = lower_index = 0
        if isinstance(spec, Macvtap):
            if on_close:
                raise RequestError(
                    "the close of a macvtap cannot be seen: bind it to a process"
                )
            with self.context.lower_namespace(spec) as beneath:
                below = lower.find(beneath, spec)
            if caller_uid and below.name != spec.lower:
                raise NotAllowed(
                    f"{spec.lower!r} is an alternative name of a device: the policy "
                    "lists devices by their own names"
                )
            spec = spec._replace(lower=below.name)
            lower_index = below.ifindex
            if spec.mode == Mode.PASSTHRU:
                mac = below.mac
            wiring = wiring._replace(mtu=spec.mtu or below.mtu)
        elif wiring.bridge is not None:
            # Whether it has room, the kernel says when the device joins.
            on = bridge.find(namespace, wiring.bridge)
            bridge.check(on, wiring)
            bridge_index = on.ifindex
            # The request may have an alternative name of the bridge.
            wiring = wiring._replace(bridge=on.name, mtu=wiring.mtu or on.mtu)
        elif wiring.ovs is not None:
            local = namespace.named(wiring.ovs)
            wiring = wiring._replace(mtu=wiring.mtu or (local and local.mtu))
        elif wiring.redirect is not None:
            from tapster.backends import redirect  # rarely needed

            # The guest takes the place of this device, whose MAC others know.
            outer = redirect.find(namespace, wiring.redirect)
            mac = mac or outer.mac
            wiring = wiring._replace(redirect=outer.name, mtu=wiring.mtu or outer.mtu)
        reservation = Reservation(
            spec,
            template,
            mac,
            wiring,
            self.devices.check_backends(namespace, wiring),
            caller_uid=caller_uid,
            on_close=on_close,
        )
        return Plan(reservation, bridge_index, lower_index)

    def _holder_of(self, name: str) -> int:
        """Return the ifindex of the device that has a name which no lease has, or 0."""
        ifindex = self.context.namespace.ifindex(name)
        self.collisions += ifindex != 0
        return ifindex

    def _step_aside(self, plan: Plan, lease: Lease, error: KernelError) -> Lease:
        """Give another name or ifindex to a lease whose device could not be made."""
        context = self.context
        holder = context.namespace.ifindex(lease.name)
        if not holder and context.namespace.link(lease.ifindex):
            return context.ledger.reindex(lease.id)
        if not holder and plan.lower and error.errno == EBUSY:
            raise error  # the lower device is busy, not the name
        reservation = plan.reservation
        spec, template = reservation.spec, reservation.template
        if not template.numbered or spec.naming == Naming.STABLE:
            raise NameTaken(
                f"name {lease.name!r} was taken by a foreign device "
                "at the moment it was to be made; ask for another name",
                name=lease.name,
            )
        return context.ledger.rename(lease.id, template, spec, self._holder_of)

    def _connect(self, plan: Plan, lease: Lease) -> None:
        """Configure a new device, and connect it."""
        mac = model.host_mac(lease.mac) if lease.kind is Kind.TAP else None
        configured = LinkChange(
            lease.ifindex,
            mac=mac,
            mtu=lease.wiring.mtu,
            alias=self.devices.stamp(lease),
            no_ipv6=True,
            no_ipv4=True if plan.bridge else None,
            disable_ipv6=None if bridge.is_routed(lease) else True,
        )
        self.devices.connect(
            self.context.namespace,
            lease,
            [configured],
            bridge.attach(lease, plan.bridge),
        )

    def _open_vhost(self, opened: Opened) -> Opened:
        queues = opened.lease.queues
        return opened._replace(vhost_fds=self.context.system.open_vhost(queues))

    def _undo(
        self, ids: Sequence[str], made: Sequence[Opened], error: BaseException
    ) -> None:
        """Undo an acquire that failed: no other process knows of its devices."""
        context = self.context
        try:
            for _, fds, vhost_fds in made:
                close_fds(fds + vhost_fds)
            # By the ledger, not by `made`: Ctrl-C may have come between the two.
            leases = [lease for id in ids if (lease := context.ledger.lease(id))]
            detached = [lease for lease in leases if self._detach(lease)]
            absent = self.devices.delete(context.namespace, detached).absent
            # A device that was made, and was not there, may have been moved.
            known = {opened.lease.id for opened in made}
            self.devices.delete_moved([each for each in absent if each.id in known])
            context.ledger.end([lease.id for lease in detached])
        except TapsterError as second:
            error.add_note(f"undoing it failed too ({second}); recover will do it")

    def _detach(self, lease: Lease) -> bool:
        """Detach a lease that never was active from its backends.

        If a service is away the lease waits, as a released one does. Then False.
        """
        try:
            self.devices.detach(self.context.namespace, lease)
        except ServiceUnavailable:
            abandoned = self.context.ledger.abandon(lease.id)
            self.devices.rest(self.context.namespace, abandoned)
            self.context.wake_reaper()
            return False
        return True


def _refuse_equal_macs(plans: Sequence[Plan]) -> None:
    # A passthru macvtap has its lower device's MAC. The kernel refuses a second one.
    macs = [
        plan.reservation.mac
        for plan in plans
        if plan.reservation.mac
        and getattr(plan.reservation.spec, "mode", None) != Mode.PASSTHRU
    ]
    for mac in macs:
        if macs.count(mac) > 1:
            raise RequestError(
                f"two NICs of this request have the MAC {mac}: give each its own"
            )
