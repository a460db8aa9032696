# SPDX-License-Identifier: Apache-2.0
"""The decision table: what recover does with a lease. Pure.

Rule 1: the ledger says who owns a device, the kernel says which devices exist. This
file compares the two and changes neither.
Rule 2: a device that is not provably the lease's counts as absent. No operation
touches it.
Rule 3: each action may be repeated. After the action, the table says to leave the
same lease alone.
"""

from tapster.light import NamedTuple, StrEnum
from tapster.model import Kind, Lease, Link, State, parse_stamp
from tapster.model import stamp as stamp_of


class DeviceState(StrEnum):
    """How a lease's device looks."""

    NOT_AT_REST = "not at rest"
    """The device exists, and is up, or on a bridge, or has no stamp."""
    AT_REST = "at rest"
    """The device exists, and is down, off any bridge, and stamped."""
    ABSENT = "absent"
    """The device does not exist. If another device has its ifindex, that device is
    not ours."""


class Action(StrEnum):
    """What recover does with a lease."""

    LEAVE = "leave"
    UNDO = "undo"
    """Delete the device of an acquire that was interrupted, and remove the lease."""
    RELEASE = "release"
    """Release the lease: the process, or the open tap, that it was bound to is gone."""
    FINISH = "finish"
    """Bring the device of a released lease to rest."""
    REWIRE = "rewire"
    """Connect the device of an active lease as requested."""
    HOLD_NAME = "hold_name"
    """Let a placeholder hold the name of a lost device until FIN WAIT ends."""
    CLOSE = "close"
    """End the lease: delete what is left of its device, and record its history."""


class Repair(NamedTuple):
    """What recover did, or would do, with a lease."""

    lease: Lease
    action: Action


class Conditions(NamedTuple):
    """What the table must know of a lease, apart from its record and its device."""

    worked_on: bool = False
    """A living manager has claimed the lease."""
    namespace_gone: bool = False
    """The boot, or the network namespace, of the lease has ended."""
    due: bool = False
    """The lease's FIN WAIT is over."""
    owner_gone: bool = False
    """The lease was bound to a process that has ended, or to an open tap that was
    closed."""
    elsewhere: bool = False
    """The device is not in the lease's namespace, but may be in another one."""
    differs: bool = False
    """The device exists, but is not connected as requested."""
    backends: bool = False
    """Backends may have something of the lease."""
    openable: bool = False
    """A user may open the waiting tap by its name, and no process has it open."""
    name_taken: bool = False
    """The lease's device does not exist, and another device has its name."""


TABLE: dict[tuple[State, DeviceState], Action] = {
    (State.RESERVED, DeviceState.NOT_AT_REST): Action.UNDO,
    (State.RESERVED, DeviceState.AT_REST): Action.UNDO,
    (State.RESERVED, DeviceState.ABSENT): Action.UNDO,
    (State.ACTIVE, DeviceState.NOT_AT_REST): Action.LEAVE,
    (State.ACTIVE, DeviceState.AT_REST): Action.LEAVE,
    (State.ACTIVE, DeviceState.ABSENT): Action.HOLD_NAME,
    (State.FIN_WAIT, DeviceState.NOT_AT_REST): Action.FINISH,
    (State.FIN_WAIT, DeviceState.AT_REST): Action.LEAVE,
    (State.FIN_WAIT, DeviceState.ABSENT): Action.HOLD_NAME,
}


def decide(state: State, device: DeviceState, conditions: Conditions) -> Action:
    """Return what recover does with a lease, by its state and that of its device."""
    if conditions.worked_on:
        return Action.LEAVE
    if conditions.namespace_gone:
        return Action.CLOSE
    if state is State.FIN_WAIT and conditions.due:
        return Action.CLOSE
    if state is State.ACTIVE and conditions.owner_gone:
        return Action.RELEASE
    if state is State.ACTIVE and device is DeviceState.ABSENT and conditions.elsewhere:
        return Action.LEAVE
    if (
        state is State.ACTIVE
        and device is not DeviceState.ABSENT
        and conditions.differs
    ):
        return Action.REWIRE
    if (
        state is State.FIN_WAIT
        and device is DeviceState.AT_REST
        and (conditions.backends or conditions.openable)
    ):
        return Action.FINISH
    if state is State.FIN_WAIT and conditions.name_taken and not conditions.backends:
        return Action.LEAVE
    return TABLE[state, device]


def look(ledger: str, lease: Lease, link: Link | None) -> DeviceState:
    """Return the state of a lease's device.

    `link` is the device that has the lease's ifindex, if any.
    """
    if link is None or not is_ours(ledger, lease, link):
        return DeviceState.ABSENT
    at_rest = not link.up and not link.master and parse_stamp(link.alias)
    return DeviceState.AT_REST if at_rest else DeviceState.NOT_AT_REST


UNREPAIRED = ("process", "device")
"""The differences that recover does not restore, or not always."""


class Unrestored(NamedTuple):
    """A change of a lease's device that recover does not restore, or not always."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def beyond_repair(lease: Lease, link: Link) -> Unrestored | None:
    """Say what of a lease's device was changed that recover may not restore.

    Recover renames a device if the kernel can and the name is free. A device of no
    bridge may be on one because somebody wants it there. The rest can be changed only
    through a descriptor of the tap. Recover copies one from a process that has the tap
    open. To open another one would take a queue from the VM, or keep the VM's process
    from opening the tap.
    """
    if link.name != lease.name:
        return Unrestored(
            f"it is called {link.name!r}, not {lease.name!r}",
            f"to rename it, unless another device is called {lease.name}: tapster "
            f"recover; on Linux before 6.2 first: ip link set dev {link.name!r} down",
        )
    if lease.kind is not Kind.TAP or lease.placeholder:
        return None
    wiring = lease.wiring
    if link.master and not (wiring.bridge or wiring.ovs or wiring.standby):
        return Unrestored(
            "it is on a bridge, and none was requested",
            f"to take it off: ip link set dev {link.name!r} nomaster",
        )
    again = (
        "to restore it while its VM has it open: tapster recover; otherwise: "
        f"tapster rm {lease.id}, and make a new device"
    )
    if (lease.tap_owner, lease.tap_group) != (None, None):
        # Leases of the first release do not record them.
        for what, wanted, present in (
            ("user", lease.tap_owner, link.tap_owner),
            ("group", lease.tap_group, link.tap_group),
        ):
            if present != wanted:
                return Unrestored(
                    f"the {what} id that may open it is "
                    f"{'any' if present is None else present}, not {wanted}",
                    again,
                )
    if not link.persistent:
        return Unrestored(
            "it is not persistent: the kernel deletes it when its VM closes it", again
        )
    if link.queues is not None and link.queues > lease.queues:
        return Unrestored(
            f"it has {link.queues} open queues, not {lease.queues}: the kernel also "
            "sends frames to those that nobody reads",
            "end the process beside its VM that has it open",
        )
    return None


def is_restorable(lease: Lease, link: Link) -> bool:
    """Return whether a tap's owner, group or persistence was changed, and recover may
    be able to restore it.

    That takes an open descriptor, and the kernel cannot take an owner or group away.
    """
    if lease.kind is not Kind.TAP or lease.placeholder or not link.open:
        return False
    return not link.persistent or any(
        wanted not in (None, present)
        for wanted, present in (
            (lease.tap_owner, link.tap_owner),
            (lease.tap_group, link.tap_group),
        )
    )


def is_ours(ledger: str, lease: Lease, link: Link) -> bool:
    """Return whether the device with the lease's ifindex is the lease's device.

    The ledger chose the ifindex, and the device was created exclusively. So another
    device can have the ifindex only if another ledger drew the same number after
    ours was lost. That device carries the other ledger's stamp. A device without a
    stamp was left by a crash between creation and stamp, or somebody changed its
    alias. Then its name must be the lease's.
    """
    if link.ifindex != lease.ifindex:
        return False
    if link.alias == stamp_of(ledger, lease.id):
        return True
    if stamp := parse_stamp(link.alias):
        return stamp == (ledger, lease.id)
    return link.name == lease.name
