# SPDX-License-Identifier: Apache-2.0
"""What must hold after every step, and at the end: one function for each promise.

Each function returns the problem, or None. ARCHITECTURE.md lists the numbers.
"""

from collections.abc import Callable, Iterator

from explorer.kernel_states import BRIDGE_IFINDEX, USER, KernelState
from explorer.script import LEDGER, Acquired, Failed, Reopened, acquired_in
from explorer.state_space import Environment, Transition
from tapster.model import Lease, Link, State, host_mac, parse_stamp
from tapster.operations.decision import DeviceState, look
from tapster.testing import FakeDevice

ENDS_OWN = ("acquire", "release", "GC")
"""Operations that need no claim on the leases of the actor's owners."""


def i1_no_two_leases_share(transition: Transition) -> str | None:
    """I1: no two leases share a name or an ifindex."""
    for what in ("name", "ifindex"):
        values = [getattr(lease, what) for lease in transition.leases]
        if len(set(values)) < len(values):
            return f"two leases share a {what}"
    return None


def i2_a_name_waits(transition: Transition) -> str | None:
    """I2: a lease that was active ends only after its FIN WAIT."""
    left = {lease.id for lease in transition.leases}
    for lease in transition.leases_before:
        if lease.id in left or lease.state is State.RESERVED:
            continue
        if transition.step.op == "acquire" and lease.owner in transition.owners:
            continue  # the owner reclaims its own name
        if lease.deadline is None or lease.deadline > transition.now:
            return f"{lease.name} is free before its FIN WAIT is over"
        if any(entry.lease == lease.id for entry in transition.environment.entries):
            return f"{lease.name} is free before a backend has detached it"
    return None


def i3_only_its_own_device(transition: Transition) -> str | None:
    """I3: an operation changes no device of a lease that another actor works on.

    Acquire and release change devices of the actor's own owners only. Recover and reap
    may change any device, unless a living manager has claimed its lease.
    """
    step = transition.step
    if not step.ours:
        return None
    for change in step.changes:
        lease = _lease_of(transition, change.device)
        if lease is None or lease.owner in transition.owners:
            continue
        if lease.manager == transition.manager:
            continue  # claimed, to repair what a dead manager has left
        claimed = lease.manager is not None
        alive = any(
            manager == lease.manager for _, manager in transition.environment.locks
        )
        if step.op in ENDS_OWN or (claimed and alive):
            return f"{step.actor} {change.what} {_named(change.device)}, not its own"
    return None


def i3_only_its_own_entries(transition: Transition) -> str | None:
    """I3, I4: an operation changes no backend's part of another actor's lease."""
    step = transition.step
    if not step.ours:
        return None
    leases = {lease.id: lease for lease in transition.leases_before}
    for entry in transition.environment_before.entries ^ transition.environment.entries:
        lease = leases.get(entry.lease)
        if not entry.lease:
            return f"{step.actor} changed {entry.backend} {entry.key}, a stranger's"
        if lease is None or lease.owner in transition.owners:
            continue
        if lease.manager != transition.manager:
            return f"{step.actor} changed {entry.backend} {entry.key}, not its own"
    return None


def identity_first(transition: Transition) -> str | None:
    """I5: each device of ours has a lease from before it exists until it is gone."""
    step = transition.step
    if step.ours:
        for change in step.changes:
            if _lease_of(transition, change.device) is None:
                return f"{step.actor} {change.what} {_named(change.device)}: no lease"
    return None


def claimed_first(transition: Transition) -> str | None:
    """I3: recover and reap change only devices whose leases they have claimed."""
    step = transition.step
    if not step.ours or step.op in ENDS_OWN:
        return None
    for change in step.changes:
        lease = _lease_of(transition, change.device)
        if lease is None or lease.manager != transition.manager:
            return f"{step.actor} {change.what} {_named(change.device)}: no claim"
    return None


def i4_nothing_foreign(transition: Transition) -> str | None:
    """I4: no operation of ours changes, deletes or attaches to a foreign device."""
    step = transition.step
    if not step.ours:
        return None
    for change in step.changes:
        if change.author not in transition.ours:
            whose = f"{_named(change.device)}, which {change.author} made"
            return f"{step.actor} {change.what} {whose}"
    return None


def i6_wired_or_nothing(transition: Transition) -> str | None:
    """I6, I8: an acquire that returns has connected its device; one that fails leaves
    none."""
    step = transition.step
    if step.op != "acquire" or step.done is None:
        return None
    (memory,) = step.done
    for acquired in acquired_in(memory):
        if acquired.ifindex not in transition.namespace.disturbed and (
            wrong := _cut_off(transition.namespace, acquired, transition.environment)
        ):
            return wrong
    # If the device may be in a namespace that is hidden, recover ends the lease.
    if isinstance(memory, Failed) and not transition.environment.hidden:
        # A name that a service may still know waits, and then ends by itself.
        waiting = {
            lease for lease in transition.leases if lease.state is State.FIN_WAIT
        }
        own = {lease for lease in transition.leases if lease.owner in transition.owners}
        if own - waiting:
            return f"{step.actor}'s acquire failed and left a lease"
        waits = {lease.ifindex for lease in waiting}
        for ifindex, author in transition.namespace.authors.items():
            if author == step.actor and ifindex not in waits:
                return f"{step.actor}'s acquire failed and left device {ifindex}"
        known = {lease.id for lease in transition.leases} | {""}
        if any(entry.lease not in known for entry in transition.environment.entries):
            return f"{step.actor}'s acquire failed and left something in a backend"
    return None


MAY_FAIL = ("acquire", "change", "reopen")
"""Operations that other actors can cause to fail."""
MAY_BE_AWAY = ("ServiceUnavailable", "HostError")
"""Errors of a switch that cannot be reached, and of namespaces that cannot be seen.
A reap also reports a waiting tap that a program has open."""


def i7_may_be_done_at_any_time(transition: Transition) -> str | None:
    """I7: release, reap and recover do not fail, whatever others do."""
    step = transition.step
    if step.ours and step.op not in MAY_FAIL and step.done is not None:
        (memory,) = step.done
        away = MAY_BE_AWAY if step.op != "reap" else (*MAY_BE_AWAY, "ConflictError")
        if isinstance(memory, Failed) and memory.why not in away:
            return f"{step.actor}'s {step.op} failed: {memory.why}"
    return None


def vms_stay_connected(transition: Transition) -> str | None:
    """The device of a running VM is up and on its bridge.

    A change of its wiring may take it off for a moment, under a claim.
    """
    namespace, environment = transition.namespace, transition.environment
    leases = {lease.id: lease for lease in transition.leases}
    changing = {id for id, lease in leases.items() if lease.manager is not None}
    for owner, device in environment.running:
        if device.lease in leases:  # a change may have ended its part in a backend
            device = device._replace(backends=leases[device.lease].backends)
        excused = device.ifindex in namespace.disturbed or device.lease in changing
        if not excused and (wrong := _cut_off(namespace, device, environment)):
            return f"{owner}'s running VM is cut off: {wrong}"
    return None


def a_running_vm_is_leased(transition: Transition) -> str | None:
    """The lease of a running VM is active, unless an administrator took its device."""
    active = {lease.id for lease in transition.leases if lease.state is State.ACTIVE}
    for owner, device in transition.environment.running:
        if device.ifindex in transition.namespace.disturbed:
            continue
        if device.lease and device.lease not in active:
            return f"the lease of {owner}'s running VM has ended: {device.name}"
    return None


def an_opened_device_stays(transition: Transition) -> str | None:
    """A waiting tap stays if a program opened it before an operation claimed it."""
    if not transition.step.ours:
        return None
    before = transition.kernel_before.devices
    for ifindex in transition.environment.opened & before.keys():
        if transition.namespace.find(ifindex) is None:
            return f"a program has a waiting tap open, and it was deleted: {ifindex}"
    return None


def a_released_tap_has_no_user(transition: Transition) -> str | None:
    """After a release, the tap's user may not open the tap by its name."""
    step = transition.step
    if step.op != "release" or step.done is None:
        return None
    for lease in transition.leases:
        device = transition.namespace.devices.get(lease.ifindex)
        if lease.owner not in transition.owners or lease.state is not State.FIN_WAIT:
            continue
        if device and device.uid == USER and lease.manager is None:
            return f"{_named(device)} is released, and its user may open it"
    return None


def reopen_opens_its_own(transition: Transition) -> str | None:
    """I8: reopen opens the device of its lease, and no other."""
    done = transition.step.done
    if done and isinstance(done[0], Reopened) and done[0].opened != done[0].ifindex:
        return f"{transition.step.actor} has another device open than its own"
    return None


def gc_leaves_nothing_stale(transition: Transition) -> str | None:
    """After GC, no lease of a stale pod is active or half made.

    Another manager that lives may be undoing one at that moment.
    """
    step = transition.step
    if step.op != "GC" or step.done is None or isinstance(step.done[0], Failed):
        return None
    alive = {manager for _, manager in transition.environment.locks}
    for lease in transition.leases:
        own = lease.owner in transition.owners and lease.manager not in alive
        if own and lease.state is not State.FIN_WAIT:
            return f"GC left {lease.name}, which no valid attachment has"
    return None


def a_running_port_is_protected(transition: Transition) -> str | None:
    """A port that was requested isolated is isolated while it is up on a bridge."""
    for lease in transition.leases:
        device = transition.namespace.devices.get(lease.ifindex)
        if (
            lease.state is State.ACTIVE
            and lease.wiring.isolated
            and device is not None
            and device.up
            and device.master
            and not device.isolated
        ):
            return f"{_named(device)} runs on its bridge, and is not isolated"
    return None


def standby_is_off(transition: Transition) -> str | None:
    """A device on standby is on no bridge."""
    for lease in transition.leases:
        device = transition.namespace.devices.get(lease.ifindex)
        if lease.wiring.standby and lease.manager is None and device and device.master:
            return f"{_named(device)} is on standby, and on a bridge"
    return None


HARM = (i4_nothing_foreign, i6_wired_or_nothing, vms_stay_connected)
"""The checks after each step of a program that has no ledger."""

STEP: tuple[Callable[[Transition], str | None], ...] = (
    i1_no_two_leases_share,
    i2_a_name_waits,
    i3_only_its_own_device,
    i3_only_its_own_entries,
    a_running_port_is_protected,
    standby_is_off,
    a_running_vm_is_leased,
    an_opened_device_stays,
    a_released_tap_has_no_user,
    reopen_opens_its_own,
    gc_leaves_nothing_stale,
    *HARM,
)
"""The checks after each step: promises to users."""

STRICT = (*STEP, i7_may_be_done_at_any_time, identity_first, claimed_first)
"""The same checks, and those of the means by which Tapster keeps the promises."""


def i5_leased_or_gone(
    namespace: KernelState,
    leases: tuple[Lease, ...],
    ours: frozenset[str],
) -> str | None:
    """I5: after recover, each device of ours has a lease, and each lease is settled."""
    known = {lease.ifindex for lease in leases}
    ids = {lease.id for lease in leases}
    for ifindex, author in namespace.authors.items():
        if author not in ours or ifindex in known:
            continue
        device = namespace.find(ifindex)
        assert device is not None, "a device that is gone has no author"
        stamp = parse_stamp(device.alias)
        if ifindex in namespace.devices or stamp is None or stamp.lease not in ids:
            return f"{_named(device)} has no lease after recover"
    for lease in leases:
        if lease.state is State.RESERVED:
            return f"lease {lease.name} is still being worked on after recover"
        device = namespace.devices.get(lease.ifindex)
        seen = look(LEDGER, lease, _link(device) if device else None)
        if lease.state is State.FIN_WAIT and seen is DeviceState.NOT_AT_REST:
            return f"{lease.name} waits, but is not at rest after recover"
        if lease.state is State.FIN_WAIT and device and device.uid == USER:
            return f"{lease.name} waits, and its user may open it after recover"
        if lease.state is State.ACTIVE and lease.ifindex in namespace.elsewhere:
            continue  # it was moved, and may be in use there
        if seen is DeviceState.ABSENT and not _name_is_taken(namespace, lease.name):
            return f"{lease.name} waits, but nothing holds its name after recover"
    return None


def released_is_at_rest(
    namespace: KernelState, leases: tuple[Lease, ...]
) -> str | None:
    """A device that was released is at rest, whatever others did to it."""
    for lease in leases:
        device = namespace.devices.get(lease.ifindex)
        if lease.state is not State.FIN_WAIT or device is None:
            continue
        if look(LEDGER, lease, _link(device)) is DeviceState.NOT_AT_REST:
            return f"{lease.name} is released, but {_named(device)} is not at rest"
        if device.uid == USER:
            return f"{lease.name} is released, and its user may open it"
    return None


def upkeep_repairs(namespace: KernelState, leases: tuple[Lease, ...]) -> str | None:
    """A daemon that has seen every change has repaired every active lease."""
    for lease in leases:
        device = namespace.devices.get(lease.ifindex)
        if lease.state is not State.ACTIVE:
            continue
        if device is None:
            return f"{lease.name} is gone, and active"
        if lease.wiring.bridge and device.master != BRIDGE_IFINDEX:
            return f"{_named(device)} is off its bridge"
        if not device.up:
            return f"{_named(device)} is down"
        if device.mac != host_mac(lease.mac):
            return f"{_named(device)} has a foreign MAC"
    return None


def i5_backends_agree(
    leases: tuple[Lease, ...], environment: Environment
) -> str | None:
    """I5: after recover, backends have the parts of active leases, and no others."""
    attached = {
        (entry.backend, entry.lease) for entry in environment.entries if entry.lease
    }
    wanted = {
        (backend, lease.id)
        for lease in leases
        if lease.state is State.ACTIVE
        for backend in lease.backends
    }
    if attached != wanted:
        return f"backends have {sorted(attached)}, but leases want {sorted(wanted)}"
    return None


def i5_only_running_ones_stay(
    namespace: KernelState,
    leases: tuple[Lease, ...],
    ours: frozenset[str],
    environment: Environment,
) -> str | None:
    """I5: when FIN WAIT is over and all is reaped, no lease waits."""
    stopped = {owner for owner, _ in environment.stopped}
    for lease in leases:
        if lease.state is not State.ACTIVE:
            return f"{lease.name} is {lease.state} after all was reaped"
        if lease.process is not None and lease.owner in stopped:
            return f"{lease.name} is leased, but its process has ended"
    return i5_leased_or_gone(namespace, leases, ours)


def _cut_off(
    namespace: KernelState, acquired: Acquired, environment: Environment
) -> str | None:
    device = namespace.devices.get(acquired.ifindex)
    if device is None:
        return f"{acquired.name} is gone"
    if not device.up:
        return f"{_named(device)} is down"
    if acquired.bridge and device.master != BRIDGE_IFINDEX:
        return f"{_named(device)} is off its bridge"
    for backend in acquired.backends:
        part = (backend, acquired.lease)
        if not any(
            (entry.backend, entry.lease) == part for entry in environment.entries
        ):
            return f"{_named(device)} is not in {backend} any more"
    return None


def _name_is_taken(namespace: KernelState, name: str) -> bool:
    return any(device.name == name for device in namespace.devices.values())


def _link(device: FakeDevice) -> Link:
    return Link(
        ifindex=device.ifindex,
        name=device.name,
        kind=device.kind,
        alias=device.alias,
        mac=device.mac,
        mtu=device.mtu,
        up=device.up,
        master=device.master,
    )


def _lease_of(transition: Transition, device: FakeDevice) -> Lease | None:
    """Return the lease that a device is of: by ifindex, or by stamp if it was moved."""
    for lease in transition.leases:
        if lease.ifindex == device.ifindex:
            return lease
    stamp = parse_stamp(device.alias)
    if stamp is None or device.ifindex in transition.kernel_before.devices:
        return None
    return next((lease for lease in transition.leases if lease.id == stamp.lease), None)


def _named(device: FakeDevice) -> str:
    return f"{device.name} (ifindex {device.ifindex})"


def broken(
    checks: tuple[Callable[[Transition], str | None], ...], transition: Transition
) -> Iterator[str]:
    """Yield the promises that a step broke."""
    for check in checks:
        if wrong := check(transition):
            yield f"{check.__name__}: {wrong}"
