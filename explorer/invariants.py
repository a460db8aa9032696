# SPDX-License-Identifier: Apache-2.0
"""What must hold after every step, and at the end: one function a promise.

Each returns what is wrong, or None. The numbers are those of the design.
"""

from collections.abc import Callable, Iterator

from explorer.kernels import BRIDGE_IFINDEX, View
from explorer.script import LEDGER, Failed, Held, held_in
from explorer.world import Moment, Rest
from tapster.model import Lease, Link, State
from tapster.operations.decision import DeviceState, look
from tapster.testing import Device


def i1_no_two_leases_share(moment: Moment) -> str | None:
    """I1: no two leases share a name or an ifindex."""
    for what in ("name", "ifindex"):
        values = [getattr(lease, what) for lease in moment.leases]
        if len(set(values)) < len(values):
            return f"two leases share a {what}"
    return None


def i2_a_name_waits(moment: Moment) -> str | None:
    """I2: a lease that was active ends only after its FIN WAIT."""
    left = {lease.id for lease in moment.leases}
    for lease in moment.leases_before:
        if lease.id in left or lease.state is State.RESERVED:
            continue
        if moment.event.op == "acquire" and lease.owner == moment.event.actor:
            continue  # the owner reclaims its own name
        if lease.deadline is None or lease.deadline > moment.now:
            return f"{lease.name} is free before its FIN WAIT is over"
        if any(entry.lease == lease.id for entry in moment.rest.entries):
            return f"{lease.name} is free before a backend has let go of it"
    return None


def i3_only_its_own_device(moment: Moment) -> str | None:
    """I3: an operation changes no device of a lease that others work on."""
    event = moment.event
    if not event.ours:
        return None
    for change in event.changes:
        lease = _lease_of(moment, change.device.ifindex)
        if lease is None or lease.owner in (event.actor, event.actor.partition("'")[0]):
            continue
        claimed = lease.manager not in (None, moment.manager)
        alive = any(manager == lease.manager for _, manager in moment.rest.locks)
        if event.op in ("acquire", "release") or (claimed and alive):
            return f"{event.actor} {change.what} {_named(change.device)}, not its own"
    return None


def i3_only_its_own_entries(moment: Moment) -> str | None:
    """I3, I4: an operation changes nothing in a backend of a lease that others hold."""
    event = moment.event
    if not event.ours:
        return None
    leases = {lease.id: lease for lease in moment.leases_before}
    for entry in moment.rest_before.entries ^ moment.rest.entries:
        lease = leases.get(entry.lease)
        if not entry.lease:
            return f"{event.actor} changed {entry.backend} {entry.key}, a stranger's"
        if lease is None or lease.owner == event.actor:
            continue
        if event.op in ("acquire", "release") or lease.manager != moment.manager:
            return f"{event.actor} changed {entry.backend} {entry.key}, not its own"
    return None


def identity_first(moment: Moment) -> str | None:
    """I5: each device of ours has its row before it exists, and until it is gone."""
    event = moment.event
    if event.ours:
        for change in event.changes:
            if _lease_of(moment, change.device.ifindex) is None:
                return f"{event.actor} {change.what} {_named(change.device)}: no row"
    return None


def claimed_first(moment: Moment) -> str | None:
    """I3: recover and reap touch only what they have claimed."""
    event = moment.event
    if not event.ours or event.op in ("acquire", "release"):
        return None
    for change in event.changes:
        lease = _lease_of(moment, change.device.ifindex)
        if lease is None or lease.manager != moment.manager:
            return f"{event.actor} {change.what} {_named(change.device)}: no claim"
    return None


def i4_nothing_foreign(moment: Moment) -> str | None:
    """I4: no operation of ours changes, deletes or attaches to a foreign device."""
    event = moment.event
    if not event.ours:
        return None
    for change in event.changes:
        if change.author not in moment.ours:
            whose = f"{_named(change.device)}, which {change.author} made"
            return f"{event.actor} {change.what} {whose}"
    return None


def i6_wired_or_nothing(moment: Moment) -> str | None:
    """I6, I8: an acquire that returns has wired the device; else there is none."""
    event = moment.event
    if event.op != "acquire" or event.done is None:
        return None
    (memory,) = event.done
    for held in held_in(memory):
        if held.ifindex not in moment.namespace.moved and (
            wrong := _cut_off(moment.namespace, held, moment.rest)
        ):
            return wrong
    if isinstance(memory, Failed):
        # A name that a service may still know waits, and then ends by itself.
        waiting = {one for one in moment.leases if one.state is State.FIN_WAIT}
        left = {one for one in moment.leases if one.owner == event.actor} - waiting
        if left:
            return f"{event.actor}'s acquire failed and left a lease"
        waits = {one.ifindex for one in waiting}
        for ifindex, author in moment.namespace.authors.items():
            if author == event.actor and ifindex not in waits:
                return f"{event.actor}'s acquire failed and left device {ifindex}"
        known = {one.id for one in moment.leases} | {""}
        if any(entry.lease not in known for entry in moment.rest.entries):
            return f"{event.actor}'s acquire failed and left something in a backend"
    return None


MAY_FAIL = ("acquire", "change")


def i7_may_be_done_at_any_time(moment: Moment) -> str | None:
    """I7: release, reap and recover do not fail, whatever others do meanwhile."""
    event = moment.event
    if event.ours and event.op not in MAY_FAIL and event.done is not None:
        (memory,) = event.done
        if isinstance(memory, Failed) and memory.why != "ServiceUnavailable":
            return f"{event.actor}'s {event.op} failed: {memory.why}"
    return None


def machines_stay_connected(moment: Moment) -> str | None:
    """A running machine's device is up and on its bridge."""
    return all_connected(moment.namespace, moment.rest)


def all_connected(namespace: View, rest: Rest) -> str | None:
    for owner, held in rest.running:
        wrong = (
            None if held.ifindex in namespace.moved else _cut_off(namespace, held, rest)
        )
        if wrong:
            return f"{owner}'s running machine is cut off: {wrong}"
    return None


def a_running_port_is_protected(moment: Moment) -> str | None:
    """A port that should be isolated is so as long as it runs on its bridge."""
    for lease in moment.leases:
        device = moment.namespace.devices.get(lease.ifindex)
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


def standby_is_off(moment: Moment) -> str | None:
    """A device on standby is on no bridge."""
    for lease in moment.leases:
        device = moment.namespace.devices.get(lease.ifindex)
        if lease.wiring.standby and lease.manager is None and device and device.master:
            return f"{_named(device)} is on standby, and on a bridge"
    return None


HARM = (i4_nothing_foreign, i6_wired_or_nothing, machines_stay_connected)
"""What is looked at after each step of a program that has no ledger."""

STEP: tuple[Callable[[Moment], str | None], ...] = (
    i1_no_two_leases_share,
    i2_a_name_waits,
    i3_only_its_own_device,
    i3_only_its_own_entries,
    a_running_port_is_protected,
    standby_is_off,
    *HARM,
)
"""What is looked at after each step: promises to users."""

STRICT = (*STEP, i7_may_be_done_at_any_time, identity_first, claimed_first)
"""The same and the means by which they are kept, each step of ours."""


def i5_leased_or_gone(
    namespace: View, leases: tuple[Lease, ...], ours: frozenset[str]
) -> str | None:
    """I5: after recover, each device of ours is a lease's, and each lease settled."""
    known = {lease.ifindex: lease for lease in leases}
    for ifindex, author in namespace.authors.items():
        if author in ours and ifindex not in known:
            return f"{_named(namespace.devices[ifindex])} is nobody's after recover"
    for lease in leases:
        if lease.state is State.RESERVED:
            return f"lease {lease.name} is still being worked on after recover"
        device = namespace.devices.get(lease.ifindex)
        seen = look(LEDGER, lease, _link(device) if device else None)
        if lease.state is State.FIN_WAIT and seen is DeviceState.CONNECTED:
            return f"{lease.name} waits, but is not at rest after recover"
        if seen is DeviceState.ABSENT and not _name_is_taken(namespace, lease.name):
            return f"{lease.name} waits, but nothing holds its name after recover"
    return None


def released_is_at_rest(namespace: View, leases: tuple[Lease, ...]) -> str | None:
    """Who releases a device finds it at rest, whatever others did to it meanwhile."""
    for lease in leases:
        device = namespace.devices.get(lease.ifindex)
        if lease.state is not State.FIN_WAIT or device is None:
            continue
        if look(LEDGER, lease, _link(device)) is DeviceState.CONNECTED:
            return f"{lease.name} is released, but {_named(device)} is not at rest"
    return None


def i5_planes_agree(leases: tuple[Lease, ...], rest: Rest) -> str | None:
    """I5: after recover, backends hold what active leases want, and nothing else."""
    held = {(entry.backend, entry.lease) for entry in rest.entries if entry.lease}
    wanted = {
        (backend, lease.id)
        for lease in leases
        if lease.state is State.ACTIVE
        for backend in lease.backends
    }
    if held != wanted:
        return f"backends hold {sorted(held)}, but leases want {sorted(wanted)}"
    return None


def i5_only_running_ones_stay(
    namespace: View, leases: tuple[Lease, ...], ours: frozenset[str], rest: Rest
) -> str | None:
    """I5: when FIN WAIT is over and all is reaped, nothing waits any more."""
    stopped = {owner for owner, _ in rest.stopped}
    for lease in leases:
        if lease.state is not State.ACTIVE:
            return f"{lease.name} is {lease.state} after all was reaped"
        if lease.process is not None and lease.owner in stopped:
            return f"{lease.name} is leased, but its process has ended"
    return i5_leased_or_gone(namespace, leases, ours)


def _cut_off(namespace: View, held: Held, rest: Rest) -> str | None:
    device = namespace.devices.get(held.ifindex)
    if device is None:
        return f"{held.name} is gone"
    if not device.up:
        return f"{_named(device)} is down"
    if held.bridge and device.master != BRIDGE_IFINDEX:
        return f"{_named(device)} is off its bridge"
    for backend in held.backends:
        if not any(one[::2] == (backend, held.lease) for one in rest.entries):
            return f"{_named(device)} is not in {backend} any more"
    return None


def _name_is_taken(namespace: View, name: str) -> bool:
    return any(device.name == name for device in namespace.devices.values())


def _link(device: Device) -> Link:
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


def _lease_of(moment: Moment, ifindex: int) -> Lease | None:
    return next((one for one in moment.leases if one.ifindex == ifindex), None)


def _named(device: Device) -> str:
    return f"{device.name} (ifindex {device.ifindex})"


def broken(
    checks: tuple[Callable[[Moment], str | None], ...], moment: Moment
) -> Iterator[str]:
    """What a step broke."""
    for check in checks:
        if wrong := check(moment):
            yield f"{check.__name__}: {wrong}"
