# SPDX-License-Identifier: Apache-2.0
"""Decide what a host does with a MAC registration. Pure.

A *registration* is the store's entry for a MAC in a segment: which VM has the MAC, on
which host, by which lease. A *record* is the entry of a host's ledger for the same MAC.
A host pushes the state of a record, never a list of operations. So a push can be
repeated, merged with a later one, or arrive late.

Rule 1: an *epoch*, `term.step`, orders the registrations of a MAC. A hand-over from
host to host raises the step: the target gets the epoch of the source and adds 1,
without the store. Every other start of a VM raises the term, and only the store knows
which term is next. A record without an epoch is *unordered*: the store has not answered
yet.
Rule 2: a host replaces a registration only by one of a higher epoch, and only in a
transaction that fails if the registration has changed since the host read it.
Rule 3: the end of a lease does not delete its registration. It parks the registration
of a VM that has a name of its own in the fleet (`--vm`), and ends any other.
"""

from tapster.light import NamedTuple, StrEnum


class Epoch(NamedTuple):
    """The place of a registration in the order of all registrations of its MAC."""

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


class RecordState(StrEnum):
    """The state of a record. A registration has one of the last three."""

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


RELEASED = (RecordState.PARKED, RecordState.ENDED)


class Registration(NamedTuple):
    """The store's entry for a MAC."""

    vm: str
    host: str
    lease: str
    epoch: Epoch
    state: RecordState
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
    state: RecordState
    since: float
    sent: bool = False
    """A request that activates the registration was sent at some time. If it got no
    answer, the store can still apply it."""


def own_vm(lease: str) -> str:
    """Return the VM of a lease that was acquired without `--vm`: the lease itself."""
    return f"lease/{lease}"


def released_state(vm: str, lease: str) -> RecordState:
    """Return the state of a record after the release of its lease."""
    return RecordState.ENDED if vm == own_vm(lease) else RecordState.PARKED


class Standing(StrEnum):
    """How the registration in the store stands to the record of a host."""

    ABSENT = "absent"
    """There is no registration."""
    OURS = "ours"
    """It is the registration of this record."""
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


class PushAction(StrEnum):
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


TABLE: dict[tuple[RecordState, Standing], PushAction] = {
    (RecordState.ACTIVE, Standing.ABSENT): PushAction.PUT,
    (RecordState.ACTIVE, Standing.OURS): PushAction.PUT,
    (RecordState.ACTIVE, Standing.OLDER): PushAction.PUT,
    (RecordState.ACTIVE, Standing.NEWER): PushAction.REPORT,
    (RecordState.ACTIVE, Standing.RIVAL): PushAction.REPORT,
    (RecordState.ACTIVE, Standing.VACANT): PushAction.NEW_TERM,
    (RecordState.ACTIVE, Standing.HELD): PushAction.REPORT,
    (RecordState.ACTIVE, Standing.LOST): PushAction.NEW_TERM,
    (RecordState.ACTIVE, Standing.FREE): PushAction.NEW_TERM,
    (RecordState.ACTIVE, Standing.OTHER): PushAction.REPORT,
    **{
        (released, standing): PushAction.DROP
        for released in RELEASED
        for standing in Standing
    },
    **{(released, Standing.OURS): PushAction.PUT for released in RELEASED},
    **{(released, Standing.OLDER): PushAction.PUT for released in RELEASED},
}
"""A record that is reserved or in standby is never pushed, so it has no line here."""


def known_here(
    host: str, found: Registration | None, running: frozenset[str]
) -> Registration | None:
    """Return the registration as this host knows it to be.

    If the store still says that a lease of this host runs, and the ledger says that
    the lease is over, then the ledger is right. `running` are the leases of this host
    that are not released.
    """
    if found is None or found.host != host or found.lease in running:
        return found
    if found.state is not RecordState.ACTIVE:
        return found
    return found._replace(state=released_state(found.vm, found.lease))


def stand(
    host: str, record: Record, found: Registration | None, *, lost: bool
) -> Standing:
    """Return how the store's registration, after `known_here`, stands to a record.

    `host` has the record. `lost`: the host of the registration is fenced, or the user
    has given it up.
    """
    if found is None:
        return Standing.ABSENT
    if (found.host, found.lease) == (host, record.lease):
        # A higher epoch than that of the record is from a push whose answer got lost.
        known = record.epoch is not None and found.epoch < record.epoch
        return Standing.OLDER if known else Standing.OURS
    if found.vm != record.vm:
        return Standing.FREE if found.state is RecordState.ENDED else Standing.OTHER
    if record.epoch is None:
        if found.state is not RecordState.ACTIVE:
            return Standing.VACANT
        return Standing.LOST if lost else Standing.HELD
    if found.epoch < record.epoch:
        return Standing.OLDER
    if found.state is not RecordState.ACTIVE:
        return Standing.VACANT
    return Standing.RIVAL if found.epoch == record.epoch else Standing.NEWER


def decide(state: RecordState, standing: Standing) -> PushAction:
    """Return what a host does with the registration of a record in `state`."""
    return TABLE[state, standing]


def wanted(
    host: str, record: Record, action: PushAction, found: Registration | None
) -> Registration | None:
    """Return the registration that `action` writes; None if it writes none."""
    if action is PushAction.NEW_TERM:
        assert found is not None, "a new term follows an old one"
        epoch = Epoch(found.epoch.term + 1, 0)
    elif action is PushAction.PUT:
        epoch = record.epoch or FIRST
        if found is not None and found.lease == record.lease:
            epoch = max(epoch, found.epoch)
    else:
        return None
    return Registration(
        record.vm, host, record.lease, epoch, record.state, record.since
    )
