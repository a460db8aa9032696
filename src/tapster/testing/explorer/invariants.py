# SPDX-License-Identifier: Apache-2.0
"""What must hold after every step, and at the end: one function a promise.

Each returns what is wrong, or None. The numbers are those of the design.
"""

from collections.abc import Callable, Iterator

from tapster.lifecycle import Seen, look
from tapster.model import Lease, Link, State
from tapster.testing import Device
from tapster.testing.explorer.kernels import BRIDGE_IFINDEX, View
from tapster.testing.explorer.script import LEDGER, Failed, Held
from tapster.testing.explorer.world import Moment, Rest


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
        if lease.deadline is None or lease.deadline > moment.now:
            return f"{lease.name} is free before its FIN WAIT is over"
    return None


def i3_only_its_own_device(moment: Moment) -> str | None:
    """I3: an operation changes no device of a lease that others work on."""
    event = moment.event
    if not event.ours:
        return None
    for change in event.changes:
        lease = _lease_of(moment, change.device.ifindex)
        if lease is None or lease.owner == event.actor:
            continue
        claimed = lease.manager not in (None, moment.manager)
        alive = any(manager == lease.manager for _, manager in moment.rest.locks)
        if event.op in ("acquire", "release") or (claimed and alive):
            return f"{event.actor} {change.what} {_named(change.device)}, not its own"
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
    if isinstance(memory, Held):
        if memory.ifindex in moment.kernel.moved:
            return None
        return _cut_off(moment.kernel, memory)
    if isinstance(memory, Failed):
        for ifindex, author in moment.kernel.authors.items():
            if author == event.actor:
                return f"{event.actor}'s acquire failed and left device {ifindex}"
        if any(lease.owner == event.actor for lease in moment.leases):
            return f"{event.actor}'s acquire failed and left a lease"
    return None


def i7_may_be_done_at_any_time(moment: Moment) -> str | None:
    """I7: release, reap and recover do not fail, whatever others do meanwhile."""
    event = moment.event
    if event.ours and event.op != "acquire" and event.done is not None:
        (memory,) = event.done
        if isinstance(memory, Failed):
            return f"{event.actor}'s {event.op} failed: {memory.why}"
    return None


def machines_stay_connected(moment: Moment) -> str | None:
    """S1, S12: a running machine's device is up and on its bridge."""
    return all_connected(moment.kernel, moment.rest)


def all_connected(kernel: View, rest: Rest) -> str | None:
    for owner, held in rest.running:
        wrong = None if held.ifindex in kernel.moved else _cut_off(kernel, held)
        if wrong:
            return f"{owner}'s running machine is cut off: {wrong}"
    return None


HARM = (i4_nothing_foreign, i6_wired_or_nothing, machines_stay_connected)
"""What is looked at after each step of a program that has no ledger."""

STEP: tuple[Callable[[Moment], str | None], ...] = (
    i1_no_two_leases_share,
    i2_a_name_waits,
    i3_only_its_own_device,
    *HARM,
)
"""What is looked at after each step: promises to users."""

STRICT = (*STEP, i7_may_be_done_at_any_time, identity_first, claimed_first)
"""The same and the means by which they are kept, each step of ours."""


def i5_leased_or_gone(
    kernel: View, leases: tuple[Lease, ...], ours: frozenset[str]
) -> str | None:
    """I5: after recover, each device of ours is a lease's, and each lease settled."""
    known = {lease.ifindex: lease for lease in leases}
    for ifindex, author in kernel.authors.items():
        if author in ours and ifindex not in known:
            return f"{_named(kernel.devices[ifindex])} is nobody's after recover"
    for lease in leases:
        if lease.state is State.RESERVED:
            return f"lease {lease.name} is still being worked on after recover"
        device = kernel.devices.get(lease.ifindex)
        seen = look(LEDGER, lease, _link(device) if device else None)
        if lease.state is State.FIN_WAIT and seen is Seen.WIRED:
            return f"{lease.name} waits, but is not at rest after recover"
        if seen is Seen.ABSENT and not _name_is_taken(kernel, lease.name):
            return f"{lease.name} waits, but nothing holds its name after recover"
    return None


def i5_only_running_ones_stay(
    kernel: View, leases: tuple[Lease, ...], ours: frozenset[str], rest: Rest
) -> str | None:
    """I5: when FIN WAIT is over and all is reaped, nothing waits any more."""
    stopped = {owner for owner, _ in rest.stopped}
    for lease in leases:
        if lease.state is not State.ACTIVE:
            return f"{lease.name} is {lease.state} after all was reaped"
        if lease.process is not None and lease.owner in stopped:
            return f"{lease.name} is leased, but its process has ended"
    return i5_leased_or_gone(kernel, leases, ours)


def _cut_off(kernel: View, held: Held) -> str | None:
    device = kernel.devices.get(held.ifindex)
    if device is None:
        return f"{held.name} is gone"
    if not device.up:
        return f"{_named(device)} is down"
    if held.bridge and device.master != BRIDGE_IFINDEX:
        return f"{_named(device)} is off its bridge"
    return None


def _name_is_taken(kernel: View, name: str) -> bool:
    return any(device.name == name for device in kernel.devices.values())


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
