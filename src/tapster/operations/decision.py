# SPDX-License-Identifier: Apache-2.0
"""What recover does with a lease: one pure table.

Rule 1: the ledger says who owns, the kernel says what exists; this file only
compares the two and touches neither.
Rule 2: whatever is not provably our device counts as absent. It is never
touched, only stepped around.
Rule 3: each action may be repeated; after it the same lease is left alone.
"""

from enum import StrEnum

from tapster.light import NamedTuple
from tapster.model import Lease, Link, State, parse_stamp


class DeviceState(StrEnum):
    """How a lease's device looks."""

    CONNECTED = "wired"
    """It is there, and something is to be done until it is at rest: it is up, or
    on a bridge, or not stamped."""
    AT_REST = "quiet"
    """It is there and at rest."""
    ABSENT = "absent"
    """It is not there; what has its ifindex, if anything, is not ours."""


class Action(StrEnum):
    """What recover does."""

    LEAVE = "leave"
    UNDO = "undo"
    """Delete the device of an acquire that never ended, and forget the lease."""
    RELEASE = "release"
    """Release the lease of an owner that is gone."""
    FINISH = "finish"
    """Bring the device of a released lease to rest: down, off its bridge, stamped."""
    REWIRE = "rewire"
    """Connect the device of an active lease again as it should be."""
    HOLD_NAME = "hold_name"
    """Let a placeholder hold the name of a lost device until FIN WAIT ends."""
    CLOSE = "close"
    """End the lease: delete what is left of it and write its history."""


class Repair(NamedTuple):
    """What recover did, or would do, with a lease."""

    lease: Lease
    action: Action


class Conditions(NamedTuple):
    """What is known of a lease beside its row and its device."""

    worked_on: bool = False
    """A living manager has claimed it."""
    namespace_gone: bool = False
    """Its boot or its network namespace is over."""
    due: bool = False
    """Its FIN WAIT is over."""
    owner_gone: bool = False
    """It was bound to a process that has ended, or to the last close of its tap."""
    differs: bool = False
    """Its device is there, but not connected as its wiring wants."""
    backends: bool = False
    """Backends may have something of it."""


TABLE: dict[tuple[State, DeviceState], Action] = {
    (State.RESERVED, DeviceState.CONNECTED): Action.UNDO,
    (State.RESERVED, DeviceState.AT_REST): Action.UNDO,
    (State.RESERVED, DeviceState.ABSENT): Action.UNDO,
    (State.ACTIVE, DeviceState.CONNECTED): Action.LEAVE,
    (State.ACTIVE, DeviceState.AT_REST): Action.LEAVE,
    (State.ACTIVE, DeviceState.ABSENT): Action.HOLD_NAME,
    (State.FIN_WAIT, DeviceState.CONNECTED): Action.FINISH,
    (State.FIN_WAIT, DeviceState.AT_REST): Action.LEAVE,
    (State.FIN_WAIT, DeviceState.ABSENT): Action.HOLD_NAME,
}


def decide(state: State, seen: DeviceState, facts: Conditions) -> Action:
    """What recover does with a lease in `state` whose device looks like `seen`."""
    if facts.worked_on:
        return Action.LEAVE
    if facts.namespace_gone:
        return Action.CLOSE
    if state is State.FIN_WAIT and facts.due:
        return Action.CLOSE
    if state is State.ACTIVE and facts.owner_gone:
        return Action.RELEASE
    if state is State.ACTIVE and seen is not DeviceState.ABSENT and facts.differs:
        return Action.REWIRE
    if state is State.FIN_WAIT and seen is DeviceState.AT_REST and facts.backends:
        return Action.FINISH
    return TABLE[state, seen]


def look(ledger: str, lease: Lease, link: Link | None) -> DeviceState:
    """How `link`, the device that has the lease's ifindex, looks to the lease."""
    if link is None or not is_ours(ledger, lease, link):
        return DeviceState.ABSENT
    at_rest = not link.up and not link.master and parse_stamp(link.alias)
    return DeviceState.AT_REST if at_rest else DeviceState.CONNECTED


def is_ours(ledger: str, lease: Lease, link: Link) -> bool:
    """Whether the device with the lease's ifindex is the lease's device.

    The ifindex was chosen by the ledger and requested exclusively, so it nearly
    says all. It may be another's only if another ledger drew the same number
    after ours was lost, and then the device carries that ledger's stamp. An
    unstamped device is one that a crash left between creation and stamp (or
    whose alias somebody changed): then the name must agree.
    """
    if link.ifindex != lease.ifindex:
        return False
    if marked := parse_stamp(link.alias):
        return marked == (ledger, lease.id)
    return link.name == lease.name
