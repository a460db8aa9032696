# SPDX-License-Identifier: Apache-2.0
"""Decide what a host does with a MAC claim. Pure.

A *claim* is the store's entry for a MAC in a segment: which VM has the MAC, on which
host, by which lease. A *record* is the entry of a host's ledger for the same MAC.
A host pushes the state of a record, never a list of operations. So a push can be
repeated, merged with a later one, or arrive late.

Rule 1: an *epoch*, `term.step`, orders the claims of a MAC. A hand-over from host to
host raises the step: the target gets the epoch of the source and adds 1, without the
store. Every other start of a VM raises the term, and only the store knows which term
is next. A record without an epoch is *unordered*: the store has not answered yet.
Rule 2: a host replaces a claim only by a claim of a higher epoch, and only in a
transaction that fails if the claim has changed since the host read it.
Rule 3: the end of a lease does not delete its claim. It parks the claim of a VM that
has a name of its own in the fleet (`--vm`), and ends the claim of any other.
"""

from tapster.light import NamedTuple, StrEnum


class Epoch(NamedTuple):
    """The place of a claim in the order of all claims of its MAC."""

    term: int
    step: int

    def __str__(self) -> str:
        return f"{self.term}.{self.step}"


FIRST = Epoch(0, 0)


def parse_epoch(text: str) -> Epoch:
    """Return the epoch that `text` means, such as "0.7". Raises ValueError."""
    term, dot, step = text.partition(".")
    if not (dot and term.isdecimal() and step.isdecimal() and text.isascii()):
        raise ValueError(f"an epoch is TERM.STEP, such as 0.7, not {text!r}")
    return Epoch(int(term), int(step))


def handed_over(epoch: Epoch) -> Epoch:
    """Return the epoch of the target, from the epoch of the source."""
    return epoch._replace(step=epoch.step + 1)


class ClaimState(StrEnum):
    """The state of a record. A claim has one of the last three."""

    RESERVED = "reserved"
    """The device is being made."""
    STANDBY = "standby"
    """The device waits for a VM that still runs on another host."""
    ACTIVE = "active"
    """The VM has the device."""
    PARKED = "parked"
    """No host runs the VM, and the MAC is still reserved for the VM."""
    ENDED = "ended"
    """The VM is gone. Another VM can have the MAC, by a new term."""


RELEASED = (ClaimState.PARKED, ClaimState.ENDED)


class Claim(NamedTuple):
    """The store's entry for a MAC."""

    vm: str
    host: str
    lease: str
    epoch: Epoch
    state: ClaimState
    since: float
    """Wall clock of the host, for people."""


class Record(NamedTuple):
    """The entry of a host's ledger for a MAC."""

    lease: str
    segment: str
    mac: str
    vm: str
    epoch: Epoch | None
    """None while the record is unordered."""
    state: ClaimState
    since: float
    sent: bool = False
    """A request that activates the claim was sent at some time. If it got no answer,
    the store can still apply it."""


def own_vm(lease: str) -> str:
    """Return the VM of a lease that was acquired without `--vm`: the lease itself."""
    return f"lease/{lease}"


def released_state(vm: str, lease: str) -> ClaimState:
    """Return the state of a record after the release of its lease."""
    return ClaimState.ENDED if vm == own_vm(lease) else ClaimState.PARKED


class Standing(StrEnum):
    """How the claim in the store stands to the record of a host."""

    ABSENT = "absent"
    """There is no claim."""
    OURS = "ours"
    """It is the claim of this record."""
    OLDER = "older"
    """The same VM by a lower epoch."""
    NEWER = "newer"
    """The same VM by a higher epoch: another host has taken the VM over."""
    RIVAL = "rival"
    """The same VM by the same epoch, but another lease runs it."""
    VACANT = "vacant"
    """The same VM, which no host runs, and no lower epoch."""
    HELD = "held"
    """The same VM, which another lease runs, and the record is unordered."""
    LOST = "lost"
    """As HELD, but the host of that lease is fenced, or the user has given it up."""
    FREE = "free"
    """Another VM, which is gone."""
    OTHER = "other"
    """Another VM."""


class ClaimAction(StrEnum):
    """An action of the host."""

    PUT = "put"
    """Write the record, with its epoch, or the first one."""
    NEW_TERM = "new_term"
    """Write the record with a new term."""
    KEEP = "keep"
    """Nothing: the store is right."""
    REPORT = "report"
    """Nothing, and tell people: two hosts believe that they have the MAC."""
    DROP = "drop"
    """Nothing: the record is over, and the store has gone on without it."""


TABLE: dict[tuple[ClaimState, Standing], ClaimAction] = {
    (ClaimState.ACTIVE, Standing.ABSENT): ClaimAction.PUT,
    (ClaimState.ACTIVE, Standing.OURS): ClaimAction.PUT,
    (ClaimState.ACTIVE, Standing.OLDER): ClaimAction.PUT,
    (ClaimState.ACTIVE, Standing.NEWER): ClaimAction.REPORT,
    (ClaimState.ACTIVE, Standing.RIVAL): ClaimAction.REPORT,
    (ClaimState.ACTIVE, Standing.VACANT): ClaimAction.NEW_TERM,
    (ClaimState.ACTIVE, Standing.HELD): ClaimAction.REPORT,
    (ClaimState.ACTIVE, Standing.LOST): ClaimAction.NEW_TERM,
    (ClaimState.ACTIVE, Standing.FREE): ClaimAction.NEW_TERM,
    (ClaimState.ACTIVE, Standing.OTHER): ClaimAction.REPORT,
    **{
        (released, standing): ClaimAction.DROP
        for released in RELEASED
        for standing in Standing
    },
    **{(released, Standing.OURS): ClaimAction.PUT for released in RELEASED},
    **{(released, Standing.OLDER): ClaimAction.PUT for released in RELEASED},
}
"""A record that is reserved or in standby is never pushed, so it has no line here."""


def settled(host: str, found: Claim | None, running: frozenset[str]) -> Claim | None:
    """Return the claim as this host knows it to be.

    If the store still says that a lease of this host runs, and the ledger says that
    the lease is over, then the ledger is right. `running` are the leases of this host
    that are not released.
    """
    if found is None or found.host != host or found.lease in running:
        return found
    if found.state is not ClaimState.ACTIVE:
        return found
    return found._replace(state=released_state(found.vm, found.lease))


def stand(host: str, record: Record, found: Claim | None, *, lost: bool) -> Standing:
    """Return how the claim in the store, after `settled`, stands to a record of `host`.

    `lost`: the host of the claim is fenced, or the user has given it up.
    """
    if found is None:
        return Standing.ABSENT
    if (found.host, found.lease) == (host, record.lease):
        # A higher epoch than that of the record is from a push whose answer got lost.
        known = record.epoch is not None and found.epoch < record.epoch
        return Standing.OLDER if known else Standing.OURS
    if found.vm != record.vm:
        return Standing.FREE if found.state is ClaimState.ENDED else Standing.OTHER
    if record.epoch is None:
        if found.state is not ClaimState.ACTIVE:
            return Standing.VACANT
        return Standing.LOST if lost else Standing.HELD
    if found.epoch < record.epoch:
        return Standing.OLDER
    if found.state is not ClaimState.ACTIVE:
        return Standing.VACANT
    return Standing.RIVAL if found.epoch == record.epoch else Standing.NEWER


def decide(state: ClaimState, standing: Standing) -> ClaimAction:
    """Return what a host does with the claim of a record in `state`."""
    return TABLE[state, standing]


def wanted(
    host: str, record: Record, action: ClaimAction, found: Claim | None
) -> Claim | None:
    """Return the claim that `action` writes; None if it writes none."""
    if action is ClaimAction.NEW_TERM:
        assert found is not None, "a new term follows an old one"
        epoch = Epoch(found.epoch.term + 1, 0)
    elif action is ClaimAction.PUT:
        epoch = record.epoch or FIRST
        if found is not None and found.lease == record.lease:
            epoch = max(epoch, found.epoch)
    else:
        return None
    return Claim(record.vm, host, record.lease, epoch, record.state, record.since)
