# SPDX-License-Identifier: Apache-2.0
"""Random operations on a ledger, compared with a model."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tapster import names
from tapster.errors import NamesExhausted, NameTaken, TapsterError
from tapster.ledger import FIRST_IFINDEX, LAST_IFINDEX, Ledger, Reservation, allocator
from tapster.model import Lease, Naming, Netns, State, Tap, Wiring
from tests.ledger.making import HERE, ME, THERE, Clock, alive, names_of

pytestmark = pytest.mark.slow

WIDE = "thirteen-byte%d"  # room for two digits
NARROW = "thirteen-byte1%d"  # its names are WIDE's as well
PLAIN = "thirteen-byte12"  # a name of both
TAIL = "%d-tail-14-bytes"

TAPS = [Tap(name=PLAIN), Tap(name="1-tail-14-bytes"), Tap(name="2-tail-14-bytes")] + [
    Tap(name=name, naming=naming, key=key)
    for name in (WIDE, NARROW, TAIL)
    for naming, key in (
        (Naming.LOWEST, None),
        (Naming.NEXT, None),
        (Naming.STABLE, "vm1"),
        (Naming.STABLE, "vm2"),
        (Naming.STABLE, "vm3"),
    )
]

NAMES = sorted(
    {names.parse(name).name(number) for name in (NARROW, TAIL) for number in range(10)}
    | {names.parse(WIDE).name(number) for number in range(20)}
)


class Naive:
    """Names picked by trying every number."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.stable: dict[tuple[str, str], int] = {}

    def copy(self) -> "Naive":
        other = Naive()
        other.next = dict(self.next)
        other.stable = dict(self.stable)
        return other

    def pick(self, tap: Tap, used: set[str]) -> str:
        template = names.parse(tap.name)
        if not template.numbered:
            return self.only(tap.name, used)
        if tap.key is not None:
            return self.only(template.name(self.number(template, tap.key)), used)
        free = [n for n in range(template.capacity) if template.name(n) not in used]
        if not free:
            raise NamesExhausted
        if tap.naming is Naming.NEXT:
            start = self.next.get(tap.name, 0)
            free = [n for n in free if n >= start] or free
        self.picked(tap, free[0])
        return template.name(free[0])

    def picked(self, tap: Tap, number: int) -> None:
        if tap.naming is Naming.NEXT:
            self.next[tap.name] = (number + 1) % names.parse(tap.name).capacity

    def only(self, name: str, used: set[str]) -> str:
        if name in used:
            raise NameTaken
        return name

    def number(self, template: names.Template, key: str) -> int:
        others = {n for (text, _), n in self.stable.items() if text == str(template)}
        number = names.home(template, key)
        while number in others:
            number = (number + 1) % template.capacity
        return self.stable.setdefault((str(template), key), number)


netnses = st.sampled_from([HERE, THERE])
which = st.integers(0, 1000)


def some_lease(*states: State, claimed: bool | None = None) -> Callable[..., object]:
    """There is a lease in one of these states; the rule may choose among them."""
    return precondition(lambda self: bool(self.in_state(*states, claimed=claimed)))


class LedgerMachine(RuleBasedStateMachine):
    """A ledger, foreign devices that come and go, and what must be true of both."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name) / "ledger.db"
        self.clock = Clock()
        self.ledger = Ledger(self.path, self.clock)
        self.naive = Naive()
        self.leases: dict[str, Lease] = {}
        self.taps: dict[str, Tap] = {}
        self.foreign: dict[tuple[Netns, str], int] = {}
        self.changes: dict[Netns, set[int] | None] = {HERE: None, THERE: None}
        self.ifindexes = count(2)
        self.given: set[int] = set()

    def teardown(self) -> None:
        self.ledger.close()
        self.directory.cleanup()

    @initialize()
    def ten_leases_bring_wide_to_where_narrow_begins(self) -> None:
        self.reserve(HERE, [Tap(name=WIDE)] * 10)

    # The kernel

    def taken(self, netns: Netns) -> Callable[[str], int]:
        devices = {
            lease.name: lease.ifindex
            for lease in self.leases.values()
            if lease.netns == netns and lease.state is not State.RESERVED
        }
        foreign = {
            name: i for (where, name), i in self.foreign.items() if where == netns
        }
        return lambda name: (devices | foreign).get(name, 0)

    def holders(self, netns: Netns) -> dict[str, int]:
        """Every device, ours included."""
        taken = self.taken(netns)
        return {name: taken(name) for name in NAMES if taken(name)}

    def changed(self, netns: Netns) -> set[int] | None:
        changes, self.changes[netns] = self.changes[netns], set()
        return changes

    def change(self, netns: Netns, *ifindexes: int) -> None:
        if (changes := self.changes[netns]) is not None:
            changes.update(ifindexes)

    def used(self, netns: Netns) -> set[str]:
        leased = {one.name for one in self.leases.values() if one.netns == netns}
        return leased | {name for where, name in self.foreign if where == netns}

    def noted(self, netns: Netns) -> set[str]:
        rows = self.ledger.file.connection.execute(
            "SELECT name FROM foreign_name JOIN netns ON netns.id = netns "
            "WHERE cookie = ?",
            (netns.cookie,),
        )
        return {name for (name,) in rows}

    @rule(netns=netnses, name=st.sampled_from(NAMES))
    def foreign_device_comes(self, netns: Netns, name: str) -> None:
        if (netns, name) not in self.foreign:
            self.foreign[netns, name] = next(self.ifindexes)
            self.change(netns, self.foreign[netns, name])

    @precondition(lambda self: self.foreign)
    @rule(which=which)
    def foreign_device_goes(self, which: int) -> None:
        netns, name = list(self.foreign)[which % len(self.foreign)]
        self.change(netns, self.foreign.pop((netns, name)))

    @precondition(lambda self: self.foreign)
    @rule(which=which)
    def foreign_device_goes_and_another_takes_its_name(self, which: int) -> None:
        netns, name = list(self.foreign)[which % len(self.foreign)]
        self.foreign_device_goes(which)
        self.foreign_device_comes(netns, name)

    @precondition(lambda self: self.foreign)
    @rule(which=which, new=st.sampled_from(NAMES))
    def foreign_device_is_renamed(self, which: int, new: str) -> None:
        netns, name = list(self.foreign)[which % len(self.foreign)]
        if (netns, new) not in self.foreign:
            self.foreign[netns, new] = self.foreign.pop((netns, name))
            self.change(netns, self.foreign[netns, new])

    @rule(netns=netnses)
    def too_much_happens_to_be_told(self, netns: Netns) -> None:
        self.changes[netns] = None

    # Leases

    def in_state(self, *states: State, claimed: bool | None = None) -> list[Lease]:
        return [
            lease
            for lease in self.leases.values()
            if lease.state in states
            and (claimed is None or claimed == (lease.manager is not None))
        ]

    def gains_ifindex(self, lease: Lease) -> None:
        assert FIRST_IFINDEX <= lease.ifindex <= LAST_IFINDEX
        assert lease.ifindex not in self.given
        self.given.add(lease.ifindex)

    def loses_device(self, lease: Lease) -> None:
        self.change(lease.netns, lease.ifindex)

    @rule(netns=netnses, taps=st.lists(st.sampled_from(TAPS), min_size=1, max_size=3))
    def reserve(self, netns: Netns, taps: list[Tap]) -> None:
        naive, used = self.naive.copy(), self.used(netns)
        expected: list[str] = []
        error: type[TapsterError] | None = None
        try:
            for tap in taps:
                expected.append(naive.pick(tap, used))
                used.add(expected[-1])
        except TapsterError as raised:
            error = type(raised)

        def act() -> list[Lease]:
            return self.ledger.reserve(
                netns,
                [
                    Reservation(tap, names.parse(tap.name), None, Wiring())
                    for tap in taps
                ],
                manager=ME,
                holder_of=self.taken(netns),
                changed_links=lambda: self.changed(netns),
                list_holders=lambda: self.holders(netns),
            )

        if error is not None:
            with pytest.raises(error):
                act()
            self.changes[netns] = None
            return
        made = act()
        assert names_of(made) == expected
        self.naive = naive
        for lease, tap in zip(made, taps, strict=True):
            assert (lease.state, lease.manager) == (State.RESERVED, ME)
            self.gains_ifindex(lease)
            self.leases[lease.id], self.taps[lease.id] = lease, tap
        # What is remembered of foreign devices is true now.
        held = {name for where, name in self.foreign if where == netns}
        ours = {one.name for one in self.leases.values() if one.netns == netns}
        assert self.noted(netns) <= held | ours

    @some_lease(State.RESERVED)
    @rule(which=which, gone=st.booleans())
    def foreign_device_takes_the_name_of_a_reserved_lease(
        self, which: int, gone: bool
    ) -> None:
        reserved = self.in_state(State.RESERVED)
        lease = reserved[which % len(reserved)]
        tap, template = self.taps[lease.id], names.parse(self.taps[lease.id].name)
        if not template.numbered or tap.key is not None:
            return
        self.foreign_device_comes(lease.netns, lease.name)
        if gone:
            ifindex = self.foreign.pop((lease.netns, lease.name))
            self.change(lease.netns, ifindex)
        used = self.used(lease.netns)
        blocked = used | self.noted(lease.netns)
        taken = self.taken(lease.netns)
        try:
            renamed = self.ledger.rename(lease.id, template, tap, taken)
        except NamesExhausted:
            assert all(template.name(n) in blocked for n in range(template.capacity))
            return
        number = template.number(renamed.name)
        assert number is not None
        assert renamed == lease._replace(name=renamed.name, created=self.clock.wall)
        assert renamed.name not in used
        if tap.naming is Naming.LOWEST:
            assert all(template.name(n) in blocked for n in range(number))
        self.naive.picked(tap, number)
        self.leases[lease.id] = renamed

    @some_lease(State.RESERVED)
    @rule(which=which)
    def reindex(self, which: int) -> None:
        reserved = self.in_state(State.RESERVED)
        lease = reserved[which % len(reserved)]
        reindexed = self.ledger.reindex(lease.id)
        self.gains_ifindex(reindexed)
        self.leases[lease.id] = lease._replace(ifindex=reindexed.ifindex)

    @some_lease(State.RESERVED)
    @rule(which=which)
    def activate(self, which: int) -> None:
        reserved = self.in_state(State.RESERVED)
        lease = reserved[which % len(reserved)]
        (self.leases[lease.id],) = self.ledger.activate([lease], [None])

    @some_lease(State.RESERVED)
    @rule(which=which)
    def undo(self, which: int) -> None:
        reserved = self.in_state(State.RESERVED)
        lease = reserved[which % len(reserved)]
        self.ledger.end([lease.id])
        del self.leases[lease.id]

    @some_lease(State.ACTIVE, State.FIN_WAIT)
    @rule(which=which)
    def begin_release(self, which: int) -> None:
        releasable = self.in_state(State.ACTIVE, State.FIN_WAIT)
        lease = releasable[which % len(releasable)]
        self.clock.boot += 0.25
        self.clock.wall += 0.25
        self.ledger.begin_release(lease.id)
        if lease.state is State.ACTIVE:
            self.leases[lease.id] = lease._replace(
                state=State.FIN_WAIT,
                deadline=self.clock.boot + lease.fin_wait,
                released=self.clock.wall,
            )

    @some_lease(State.ACTIVE, State.FIN_WAIT)
    @rule(which=which)
    def hold_name(self, which: int) -> None:
        plantable = self.in_state(State.ACTIVE, State.FIN_WAIT)
        lease = plantable[which % len(plantable)]
        replanted = self.ledger.hold_name(lease.id)
        self.gains_ifindex(replanted)
        self.loses_device(lease)
        self.leases[lease.id] = lease._replace(
            ifindex=replanted.ifindex, placeholder=True
        )

    @rule(limit=st.integers(1, 3), passed=st.sampled_from([0.0, 2.0, 9.0]))
    def claim_due(self, limit: int, passed: float) -> None:
        self.clock.boot += passed
        due = [
            lease
            for lease in self.in_state(State.FIN_WAIT, claimed=False)
            if (lease.deadline or 0) <= self.clock.boot
        ]
        due.sort(key=lambda lease: lease.deadline or 0)
        claimed = self.ledger.claim_due(
            ME, alive, boottime=self.clock.boot, limit=limit
        )
        assert [lease.id for lease in claimed] == [lease.id for lease in due[:limit]]
        for lease in due[:limit]:
            self.leases[lease.id] = lease._replace(manager=ME)

    @some_lease(State.FIN_WAIT, claimed=True)
    @rule(which=which, give_back=st.booleans())
    def end(self, which: int, give_back: bool) -> None:
        claimed = self.in_state(State.FIN_WAIT, claimed=True)
        lease = claimed[which % len(claimed)]
        if give_back:
            self.ledger.release_claims(ME)
            for id_, one in self.leases.items():
                if one.manager == ME:
                    self.leases[id_] = one._replace(manager=None)
            return
        self.ledger.end([lease.id])
        self.loses_device(lease)
        del self.leases[lease.id]
        assert self.ledger.ended(lease.id)

    @rule()
    def quit_if_idle(self) -> None:
        idle = not self.in_state(State.FIN_WAIT)
        assert self.ledger.call_if_idle(lambda: None) == idle

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.path, self.clock)

    # What must be true

    @invariant()
    def the_ledger_has_the_leases(self) -> None:
        assert self.ledger.leases() == list(self.leases.values())

    @invariant()
    def no_two_leases_share_a_name_or_an_ifindex(self) -> None:
        leases = self.ledger.leases()
        assert len({(one.netns, one.name) for one in leases}) == len(leases)
        assert len({(one.netns, one.ifindex) for one in leases}) == len(leases)

    @invariant()
    def every_number_is_free_or_leased_or_foreign(self) -> None:
        db = self.ledger.file.connection
        for row, text, cookie in db.execute(
            "SELECT template.id, text, cookie FROM template "
            "JOIN netns ON netns.id = netns"
        ).fetchall():
            netns = HERE if cookie == HERE.cookie else THERE
            template = names.parse(text)
            free: set[int] = set()
            end = -2
            for first, last in db.execute(
                "SELECT first, last FROM free WHERE template = ? ORDER BY first", (row,)
            ):
                # Disjoint, and joined where they meet.
                assert end + 1 < first <= last < template.capacity
                free.update(range(first, last + 1))
                end = last
            leased = {one.name for one in self.leases.values() if one.netns == netns}
            blocked = leased | self.noted(netns)
            for number in set(range(template.capacity)) - free:
                assert template.name(number) in blocked


class ListingMachine(LedgerMachine):
    """The same, with all devices listed after the first foreign name that is met."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(allocator, "MANY", 1)

    def teardown(self) -> None:
        self.patch.undo()
        super().teardown()


TestLedgerThatListsDevices = ListingMachine.TestCase
TestLedgerThatListsDevices.settings = settings(
    derandomize=True, deadline=None, max_examples=40, stateful_step_count=50
)
TestLedgerAgainstAModel = LedgerMachine.TestCase
TestLedgerAgainstAModel.settings = settings(
    derandomize=True, deadline=None, max_examples=40, stateful_step_count=50
)
