# SPDX-License-Identifier: Apache-2.0
"""The operations of a host on the store, as generators without side effects.

A generator yields its requests and receives the answers. `member` asks a real
store. The explorer asks a store that answers late, loses answers, or applies a write
after its sender has given up, and stops a generator at any step.

A request that got no answer can be applied at any later time. So a record remembers
(`Sending`) that it is about to send one. When the lease is over, the last commit of
such a record also changes the permit of the host, and the store takes a commit of the
host only if the permit is what the host has read. From then on, no earlier request of
the host can be applied. The host repeats a request that the changed permit refused, if
the request is still wanted.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

from tapster.errors import RequestError
from tapster.fleet import keys, registration
from tapster.fleet.keys import Block, InventoryRow, Keys, Permit, encode
from tapster.fleet.registration import (
    Epoch,
    PushAction,
    Record,
    RecordState,
    Registration,
    Standing,
)
from tapster.fleet.store import MAX_KEYS, Committed, FleetUnavailable, Transactions
from tapster.light import Any, NamedTuple, TypeVar

TRIES = 20
"""How many commits in a row may fail because another host was faster."""


class Read(NamedTuple):
    """Ask for the values of keys: `Store.read`."""

    keys: tuple[str, ...]


class Commit(NamedTuple):
    """Ask for a commit: `Store.commit`."""

    expected: Mapping[str, str | None]
    writes: Mapping[str, str | None]


class Sending(NamedTuple):
    """Ask the book to remember that requests which activate registrations are sent."""

    leases: tuple[str, ...]


Ask = Read | Commit | Sending
T = TypeVar("T")
Steps = Generator[Ask, Any, T]


class Me(NamedTuple):
    """The host that asks."""

    host: str
    ledger: str
    boot: str = ""


class Push(NamedTuple):
    """A record to push, with its line of the inventory."""

    record: Record
    row: InventoryRow | None = None
    given_up: bool = False
    """The user says that the host that has the registration is gone."""
    given: bool = False
    """The user chose the MAC: it may be in the block of another host."""


class Outcome(NamedTuple):
    """What became of a push."""

    lease: str
    action: PushAction
    epoch: Epoch | None
    """The epoch that the record has now."""
    against: Registration | None = None
    """With REPORT: the registration that is in the way."""
    block: Block | None = None
    """With REPORT: the block of another host that the MAC is in."""


class NoPermit(FleetUnavailable):
    """The store takes no writes of this host: it is fenced, evicted or unknown."""


class Fenced(NoPermit):
    """This host was declared dead, and runs."""


def push(
    where: Keys,
    me: Me,
    pending: Push,
    running: frozenset[str],
    guess: Mapping[str, str] | None = None,
) -> Steps[Outcome]:
    """Bring the store to the state of a record, if the record is the latest.

    `guess` holds likely values of the store. If they are right, one round trip is
    enough.
    """
    record = pending.record
    key, permit_key = (
        where.registration(record.segment, record.mac),
        where.permit(me.host),
    )
    for _ in range(TRIES):
        if guess is None:
            asked = [permit_key, key]
            if pending.given:
                asked.append(where.block(keys.block_of(record.mac)))
            if pending.row is not None:
                asked.append(where.row(me.host, record.lease))
            values = yield Read(tuple(asked))
        else:
            values, guess = guess, None
        plan = make_plan(where, me, pending, running, values)
        found = plan.outcome.against
        if (
            plan.standing is Standing.HELD
            and found
            and record.state is RecordState.ACTIVE
        ):
            others = (where.permit(found.host), where.session(found.host))
            seen = yield Read(others)
            if _is_lost(where, found, seen, given_up=pending.given_up):
                expected = {other: seen.get(other) for other in others}
                plan = make_plan(where, me, pending, running, values, lost=True)
                plan = plan._replace(expected=plan.expected | expected)
        if not plan.writes:
            return plan.outcome
        if plan.activates:
            yield Sending((record.lease,))
        answer: Committed = yield Commit(plan.expected, plan.writes)
        if answer.done:
            return plan.outcome
        guess = answer.found  # of all keys of `asked` but the row
    raise FleetUnavailable(f"{key} changes too often: {TRIES} tries failed")


def push_all(
    where: Keys, me: Me, pushes: Sequence[Push], running: frozenset[str]
) -> Steps[list[Outcome]]:
    """As `push`, for many records, with few round trips."""
    outcomes: list[Outcome] = []
    for batch in _batches(pushes):
        done = yield from _push_batch(where, me, batch, running)
        if done is None:
            done = []
            for pending in batch:
                done += [(yield from push(where, me, pending, running))]
        outcomes += done
    return outcomes


def _push_batch(
    where: Keys, me: Me, batch: Sequence[Push], running: frozenset[str]
) -> Steps[list[Outcome] | None]:
    """Push records in one commit; None if they must be pushed singly."""
    registrations = [
        where.registration(pending.record.segment, pending.record.mac)
        for pending in batch
    ]
    rows = [
        where.row(me.host, pending.record.lease)
        for pending in batch
        if pending.row is not None
    ]
    values = yield Read((where.permit(me.host), *registrations, *rows))
    plans = [make_plan(where, me, pending, running, values) for pending in batch]
    expected: dict[str, str | None] = {}
    writes: dict[str, str | None] = {}
    for plan in plans:
        if plan.standing is Standing.HELD:
            return None  # the permit of another host must be read first
        if plan.writes:
            expected |= plan.expected
            writes |= plan.writes
    if activating := [p.outcome.lease for p in plans if p.activates]:
        yield Sending(tuple(activating))
    if writes:
        answer: Committed = yield Commit(expected, writes)
        if not answer.done:
            return None
    return [plan.outcome for plan in plans]


def _batches(pushes: Iterable[Push]) -> Iterator[list[Push]]:
    """Cut into batches that fit into a commit and have each MAC once."""
    batch: list[Push] = []
    macs: set[tuple[str, str]] = set()
    for pending in pushes:
        mac = (pending.record.segment, pending.record.mac)
        if mac in macs or len(batch) == (MAX_KEYS - 1) // 2:
            yield batch
            batch, macs = [], set()
        batch.append(pending)
        macs.add(mac)
    if batch:
        yield batch


class PushPlan(NamedTuple):
    """The result of a push, from the values that the store has."""

    standing: Standing
    outcome: Outcome
    expected: dict[str, str | None]
    writes: dict[str, str | None]
    activates: bool
    """It writes an active registration."""


def make_plan(
    where: Keys,
    me: Me,
    pending: Push,
    running: frozenset[str],
    values: Mapping[str, str],
    *,
    lost: bool = False,
) -> PushPlan:
    record = pending.record
    key, permit_key = (
        where.registration(record.segment, record.mac),
        where.permit(me.host),
    )
    permit = own_permit(where, me, values)
    stored = keys.registration_of(key, values.get(key))
    found = registration.known_here(me.host, stored, running)
    standing = registration.stand(me.host, record, found, lost=lost)
    action = registration.decide(record.state, standing)
    block = _foreign_block(where, me, pending, found, values)
    if block is not None:
        action = PushAction.REPORT
    new = registration.wanted(me.host, record, action, found)
    writes: dict[str, str | None] = {}
    expected: dict[str, str | None]
    if new is not None and new != stored:
        writes[key] = encode(new)
    if pending.row is not None:
        row_key = where.row(me.host, record.lease)
        shown = None if record.state in registration.RELEASED else encode(pending.row)
        # Each write stays in the history of etcd.
        if shown is None or values.get(row_key) != shown:
            writes[row_key] = shown
    expected = {permit_key: values[permit_key], key: values.get(key)}
    if pending.given:
        block_key = where.block(keys.block_of(record.mac))
        expected[block_key] = values.get(block_key)
    if record.state in registration.RELEASED and record.sent:
        writes[permit_key] = encode(permit._replace(number=permit.number + 1))
    return PushPlan(
        standing,
        Outcome(
            record.lease,
            PushAction.KEEP if new is not None and new == stored else action,
            new.epoch if new else record.epoch,
            found if action is PushAction.REPORT else None,
            block,
        ),
        expected,
        writes,
        key in writes and record.state is RecordState.ACTIVE,
    )


def _foreign_block(
    where: Keys,
    me: Me,
    pending: Push,
    found: Registration | None,
    values: Mapping[str, str],
) -> Block | None:
    """Return the block of another host that a given MAC is in, if that host may use it.

    That host need not have pushed its registration yet.
    """
    if found is not None and found.vm == pending.record.vm:
        return None
    key = where.block(keys.block_of(pending.record.mac))
    block = keys.block_value_of(key, values.get(key))
    return block if block is not None and block.host != me.host else None


def _is_lost(
    where: Keys, found: Registration, seen: Mapping[str, str], *, given_up: bool
) -> bool:
    """Return whether a registration may be replaced that its host has not released."""
    key = where.permit(found.host)
    permit = keys.permit_of(key, seen.get(key))
    if permit is None or permit.fenced or not permit.ledger:
        return True
    return given_up and where.session(found.host) not in seen


def sweep(where: Keys, me: Me, segment: str, mac: str) -> Steps[bool]:
    """Delete an ended registration of this host; False if there is none.

    A request that expects no registration may still be under way from an earlier lease.
    The release of that lease has changed the permit of its host, so the request fails.
    """
    key, permit_key = where.registration(segment, mac), where.permit(me.host)
    values = yield Read((permit_key, key))
    own_permit(where, me, values)
    found = keys.registration_of(key, values.get(key))
    if found is None or found.host != me.host or found.state is not RecordState.ENDED:
        return False
    expected = {permit_key: values[permit_key], key: values[key]}
    answer: Committed = yield Commit(expected, {key: None})
    return answer.done


# Gates


def own_permit(where: Keys, me: Me, values: Mapping[str, str]) -> Permit:
    """Return the permit of this host. Raises NoPermit if this ledger has none."""
    key = where.permit(me.host)
    permit = keys.permit_of(key, values.get(key))
    if permit is None:
        raise NoPermit(
            f"host {me.host!r} is not in the fleet, or its store was restored from "
            "an earlier state: tapster fleet join"
        )
    if not permit.ledger:
        raise NoPermit(f"host {me.host!r} was evicted: tapster fleet join")
    if permit.ledger != me.ledger:
        raise NoPermit(
            f"host name {me.host!r} belongs to ledger {permit.ledger}, and this is "
            f"ledger {me.ledger}; give this host another name, or if that ledger is "
            f"lost: tapster fleet evict {me.host}"
        )
    _refuse_fenced(me, permit)
    return permit


def _refuse_fenced(me: Me, permit: Permit) -> None:
    if permit.fenced:
        raise Fenced(
            f"host {me.host!r} was declared dead by {permit.by!r} ({permit.why}); "
            "if it has rebooted since, tapster fleet sync renews its permit"
        )


def enter(where: Keys, me: Me, *, joins: bool = False) -> Steps[bool]:
    """Get a permit for this host; False if it has one.

    A fence is lifted only if this host has rebooted since. A host that has no permit,
    or was evicted, gets one only if it `joins`.
    """
    key = where.permit(me.host)
    for _ in range(TRIES):
        values = yield Read((key,))
        permit = keys.permit_of(key, values.get(key))
        if permit is None and joins:
            new = Permit(me.ledger, 1)
        elif permit is not None and (
            (not permit.ledger and joins)
            or (permit.ledger == me.ledger and permit.fenced not in ("", me.boot))
        ):
            new = Permit(me.ledger, permit.number + 1)
        else:
            own_permit(where, me, values)
            return False
        answer: Committed = yield Commit({key: values.get(key)}, {key: encode(new)})
        if answer.done:
            return True
    raise FleetUnavailable(f"{key} changes too often: {TRIES} tries failed")


def change_permit(where: Keys, host: str, change: Mapping[str, Any]) -> Steps[Permit]:
    """Change fields of a host's permit, and end all its requests under way."""
    key = where.permit(host)
    for _ in range(TRIES):
        values = yield Read((key,))
        permit = keys.permit_of(key, values.get(key))
        if permit is None:
            raise RequestError(f"no host of the fleet is called {host!r}")
        new = permit._replace(number=permit.number + 1, **change)
        answer: Committed = yield Commit({key: values[key]}, {key: encode(new)})
        if answer.done:
            return new
    raise FleetUnavailable(f"{key} changes too often: {TRIES} tries failed")


# Blocks


def take_block(
    where: Keys, me: Me, candidates: Iterable[str], now: float
) -> Steps[str | None]:
    """Take the first block among `candidates` that no host has; None if none is free.

    A block that the store already gives to this host counts as free: an earlier
    request may have been applied without an answer.
    """
    permit_key = where.permit(me.host)
    mine = Block(me.host, me.ledger, now)
    for block in candidates:
        key = where.block(block)
        values = yield Read((permit_key, key))
        own_permit(where, me, values)
        owner = keys.block_value_of(key, values.get(key))
        if owner is not None:
            if owner[:2] == mine[:2]:
                return block
            continue
        expected = {permit_key: values[permit_key], key: None}
        answer: Committed = yield Commit(expected, {key: encode(mine)})
        if answer.done:
            return block
    return None


def run(
    asking: Steps[T],
    store: Transactions,
    sending: Callable[[Sequence[str]], None] = lambda _: None,
) -> T:
    """Run steps on a store; `sending` is called with the leases of each `Sending`."""
    answer: object = None
    while True:
        try:
            ask = asking.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value
        answer = None
        if isinstance(ask, Read):
            answer = store.read(ask.keys)
        elif isinstance(ask, Commit):
            answer = store.commit(ask.expected, ask.writes)
        else:
            sending(ask.leases)
