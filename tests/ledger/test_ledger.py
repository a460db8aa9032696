# SPDX-License-Identifier: Apache-2.0
"""The durable record: leases, its cost, its file, and what a crash leaves."""

import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, count, repeat
from math import inf
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

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

from tapster import model, names
from tapster.errors import (
    LeaseBusy,
    LedgerDamaged,
    LedgerError,
    LedgerTooNew,
    NamesExhausted,
    NameTaken,
    NoSuchLease,
    TapsterError,
)
from tapster.ledger import (
    FIRST_IFINDEX,
    LAST_IFINDEX,
    Ledger,
    Reservation,
    database,
    history,
)
from tapster.model import (
    Kind,
    Lease,
    Macvtap,
    Mode,
    Naming,
    Netns,
    Process,
    Rate,
    Spec,
    State,
    Tap,
    Wiring,
)

HERE = Netns("boot", 1, "/run/netns/here")
THERE = Netns("boot", 2, "/run/netns/there")
PROCESS = Process(pid=10, start=20, pidns=30)
ME, OTHER, GONE = 1, 2, 3
TEN = "fourteen-bytes%d"  # room for one digit


class Clock:
    """The clocks, set by hand."""

    def __init__(self) -> None:
        self.boot = 10.0
        self.wall = 100.0

    def boottime(self) -> float:
        return self.boot

    def wallclock(self) -> float:
        return self.wall


def nobody_has(_: str) -> int:
    return 0


def nothing_changed() -> set[int]:
    return set()


def alive(_: int) -> bool:
    return True


def dead(_: int) -> bool:
    return False


def reserve(ledger: Ledger, *specs: Spec, netns: Netns = HERE) -> list[Lease]:
    """Reserve where no foreign device is."""
    return ledger.reserve(
        netns,
        [
            Reservation(spec, model.check_spec(spec), spec.mac, spec.wiring)
            for spec in specs
        ],
        manager=ME,
        holder_of=nobody_has,
        changed_links=nothing_changed,
    )


def hold(ledger: Ledger, *specs: Spec, netns: Netns = HERE) -> list[Lease]:
    """Active leases."""
    return ledger.activate(reserve(ledger, *specs, netns=netns), None)


def release(ledger: Ledger, *leases: Lease) -> None:
    for lease in leases:
        ledger.begin_release(lease.id)


def end(ledger: Ledger, *leases: Lease) -> None:
    release(ledger, *leases)
    ledger.end([lease.id for lease in leases])


def names_of(leases: list[Lease]) -> list[str]:
    return [lease.name for lease in leases]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger" / "ledger.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(path, clock)
    yield ledger
    ledger.close()


# The life of a lease


def test_a_reserved_lease_records_the_whole_request(ledger: Ledger) -> None:
    spec = Tap(
        bridge="br0",
        owner="vm1",
        mac="52:54:00:12:34:56",
        queues=4,
        isolated=True,
        learning=False,
        vlan=7,
        trunks=(20, 30),
        filter=True,
        addresses=("192.0.2.11", "2001:db8::11"),
        inbound=Rate(1000, 2000, 64),
        outbound=Rate(500),
        up=False,
        fin_wait=7.5,
    )
    wanted = Reservation(
        spec,
        model.check_spec(spec),
        spec.mac,
        spec.wiring._replace(mtu=1400),
        backends=("filter", "outbound"),
    )
    (lease,) = ledger.reserve(
        HERE, [wanted], manager=ME, holder_of=nobody_has, changed_links=nothing_changed
    )
    assert lease == Lease(
        id=lease.id,
        name="vnet0",
        ifindex=lease.ifindex,
        kind=Kind.TAP,
        state=State.RESERVED,
        owner="vm1",
        mac="52:54:00:12:34:56",
        lower=None,
        mode=None,
        queues=4,
        wiring=spec.wiring._replace(mtu=1400),
        backends=("filter", "outbound"),
        netns=HERE,
        created=100.0,
        fin_wait=7.5,
        deadline=None,
        released=None,
        process=None,
        placeholder=False,
        manager=ME,
    )
    assert ledger.lease(lease.id) == lease


def test_a_macvtap_shares_the_names_of_taps(ledger: Ledger) -> None:
    tap, macvtap = reserve(ledger, Tap(), Macvtap("eth0", mode=Mode.VEPA))
    assert (tap.name, macvtap.name) == ("vnet0", "vnet1")
    assert (macvtap.kind, macvtap.lower, macvtap.mode) == (
        Kind.MACVTAP,
        "eth0",
        Mode.VEPA,
    )


def test_a_lease_lives_from_reserved_to_history(ledger: Ledger, clock: Clock) -> None:
    (lease,) = reserve(ledger, Tap(owner="vm1"))
    (active,) = ledger.activate([lease], PROCESS)
    assert (active.state, active.process, active.manager) == (
        State.ACTIVE,
        PROCESS,
        None,
    )
    clock.wall = 200.0
    waiting = ledger.begin_release(lease.id)
    assert (waiting.state, waiting.deadline, waiting.released) == (
        State.FIN_WAIT,
        15.0,
        200.0,
    )
    assert not ledger.ended(lease.id)
    clock.wall = 300.0
    ledger.end([lease.id])
    assert ledger.ended(lease.id)
    assert ledger.leases() == []
    (entry,) = ledger.entries("vnet0")
    assert (entry.lease, entry.owner) == (lease.id, "vm1")
    assert (entry.created, entry.released, entry.ended) == (100.0, 200.0, 300.0)


def test_leases_come_oldest_first(ledger: Ledger) -> None:
    made = hold(ledger, *[Tap()] * 4)
    assert ledger.leases() == made
    release(ledger, made[1])
    assert ledger.leases(all=False) == [made[0], *made[2:]]
    assert names_of(ledger.leases()) == names_of(made)


def test_all_devices_of_a_request_are_reserved_or_none(ledger: Ledger) -> None:
    hold(ledger, Tap(name="mytap"))
    before = ledger.leases()
    with pytest.raises(NameTaken):
        reserve(ledger, Tap(), Tap(naming=Naming.NEXT), Tap(name="mytap"))
    assert ledger.leases() == before
    assert names_of(reserve(ledger, Tap(naming=Naming.NEXT))) == ["vnet0"]


def test_a_released_lease_stays_as_it_is_when_released_again(
    ledger: Ledger, clock: Clock
) -> None:
    (lease,) = hold(ledger, Tap())
    first = ledger.begin_release(lease.id)
    clock.boot, clock.wall = 99.0, 999.0
    assert ledger.begin_release(lease.id) == first


def test_a_lease_that_is_being_acquired_cannot_be_released(ledger: Ledger) -> None:
    (lease,) = reserve(ledger, Tap())
    with pytest.raises(LeaseBusy, match=rf"{lease.id} \(vnet0\) is still being"):
        ledger.begin_release(lease.id)
    assert ledger.lease(lease.id) == lease


def test_a_lease_that_was_never_active_leaves_no_history_and_frees_its_name(
    ledger: Ledger,
) -> None:
    first, _ = reserve(ledger, Tap(), Tap())
    ledger.end([first.id])
    assert ledger.entries(first.name) == []
    assert not ledger.ended(first.id)
    assert names_of(reserve(ledger, Tap())) == [first.name]


@pytest.mark.parametrize("make", [hold, reserve])
def test_ending_a_lease_may_be_repeated(
    ledger: Ledger, make: Callable[..., list[Lease]]
) -> None:
    (lease,) = make(ledger, Tap())
    for _ in range(2):
        ledger.end([lease.id])
    assert ledger.leases() == []
    assert len(ledger.entries("vnet0")) == (make is hold)


def test_a_lease_that_is_gone_is_named(ledger: Ledger) -> None:
    (lease,) = reserve(ledger, Tap())
    calls: list[Callable[[], object]] = [
        lambda: ledger.activate([lease._replace(id="none")], None),
        lambda: ledger.begin_release("none"),
        lambda: ledger.claim("none", ME, dead),
        lambda: ledger.hold_name("none"),
        lambda: ledger.reindex("none"),
        lambda: ledger.rename("none", names.parse("vnet%d"), Tap(), nobody_has),
    ]
    for call in calls:
        with pytest.raises(NoSuchLease, match="'none'"):
            call()
    assert ledger.lease("none") is None


def test_only_active_leases_are_bound_to_a_process(ledger: Ledger) -> None:
    active, waiting = hold(ledger, Tap(), Tap())
    release(ledger, waiting)
    with pytest.raises(NoSuchLease, match=f"{waiting.id} was released in the meantime"):
        ledger.bind([active.id, waiting.id], PROCESS)
    assert [lease.process for lease in ledger.leases()] == [None, None]
    ledger.bind([active.id], PROCESS)
    assert [lease.process for lease in ledger.leases()] == [PROCESS, None]


def test_history_says_who_held_a_name_latest_first(
    ledger: Ledger, clock: Clock
) -> None:
    for owner in ("vm1", "vm2"):
        clock.wall += 100.0
        leases = hold(ledger, Tap(owner=owner))
        clock.wall += 10.0
        end(ledger, *leases)
    clock.wall = 400.0
    hold(ledger, Tap(owner="vm3"), netns=THERE)
    entries = ledger.entries("vnet0")
    assert [entry.owner for entry in entries] == ["vm3", "vm2", "vm1"]
    assert [entry.created for entry in entries] == [400.0, 310.0, 200.0]
    assert [entry.ended for entry in entries] == [None, 320.0, 210.0]
    assert [entry.netns for entry in entries] == [THERE.path, HERE.path, HERE.path]
    assert ledger.entries("vnet1") == []


def test_history_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HISTORY_ROWS", 3)
    leases = hold(ledger, *[Tap()] * 5)
    for lease in leases:
        end(ledger, lease)
    assert [ledger.ended(lease.id) for lease in leases] == [False] * 2 + [True] * 3
    end(ledger, *hold(ledger, *[Tap()] * 2))
    assert [ledger.ended(lease.id) for lease in leases] == [False] * 4 + [True]


# Claims


def test_a_lease_has_one_manager_at_a_time(ledger: Ledger) -> None:
    (lease,) = hold(ledger, Tap())
    assert ledger.claim(lease.id, ME, alive).manager == ME
    assert ledger.claim(lease.id, ME, dead).manager == ME
    with pytest.raises(LeaseBusy, match=rf"{lease.id} \(vnet0\)"):
        ledger.claim(lease.id, OTHER, alive)
    ledger.release_claims(OTHER)
    with pytest.raises(LeaseBusy, match=lease.id):
        ledger.claim(lease.id, OTHER, alive)
    ledger.release_claims(ME)
    assert ledger.claim(lease.id, OTHER, alive).manager == OTHER


def test_the_claim_of_a_dead_manager_is_taken_over(ledger: Ledger) -> None:
    (lease,) = hold(ledger, Tap())
    ledger.claim(lease.id, ME, dead)
    assert ledger.claim(lease.id, OTHER, dead).manager == OTHER


def test_those_that_are_free_are_claimed(ledger: Ledger) -> None:
    mine, free, others, dropped, ended = hold(ledger, *[Tap()] * 5)
    ledger.claim(mine.id, ME, alive)
    ledger.claim(others.id, OTHER, alive)
    ledger.claim(dropped.id, GONE, alive)
    ledger.end([ended.id])
    ids = [lease.id for lease in (mine, free, others, dropped, ended)]
    claimed = ledger.claim_available(ids, ME, lambda manager: manager != GONE)
    assert [lease.id for lease in claimed] == [mine.id, free.id, dropped.id]
    assert {lease.manager for lease in claimed} == {ME}
    assert [lease.manager for lease in ledger.leases()] == [ME, ME, OTHER, ME]


def test_managers_have_numbers_that_never_come_again(path: Path) -> None:
    given = []
    for _ in range(3):
        ledger = Ledger(path, Clock())
        given += [ledger.new_manager(), ledger.new_manager()]
        ledger.close()
    assert given == list(range(given[0], given[0] + 6))


def test_due_leases_are_claimed_by_deadline(ledger: Ledger, clock: Clock) -> None:
    first, second, third, active = hold(ledger, *[Tap()] * 4)
    for lease, clock.boot in ((second, 10.0), (third, 11.0), (first, 12.0)):
        release(ledger, lease)
    assert ledger.next_deadline() == 15.0
    assert ledger.claim_due(ME, alive, boottime=14.9, limit=9) == []
    due = ledger.claim_due(ME, alive, boottime=16.0, limit=9)
    assert [lease.id for lease in due] == [second.id, third.id]
    assert [lease.manager for lease in ledger.leases()] == [None, ME, ME, None]
    assert active.id not in [lease.id for lease in due]
    ledger.end([second.id, third.id])
    assert ledger.next_deadline() == 17.0
    ledger.end([first.id])
    assert ledger.next_deadline() is None


def test_no_more_due_leases_are_claimed_than_asked_for(ledger: Ledger) -> None:
    release(ledger, *hold(ledger, *[Tap()] * 5))
    batches = [ledger.claim_due(ME, alive, boottime=inf, limit=2) for _ in range(4)]
    assert [len(batch) for batch in batches] == [2, 2, 1, 0]


def test_due_leases_of_a_living_manager_are_left_and_of_a_dead_one_taken(
    ledger: Ledger,
) -> None:
    leases = hold(ledger, Tap(), Tap())
    release(ledger, *leases)
    ledger.claim(leases[0].id, OTHER, dead)
    due = ledger.claim_due(ME, alive, boottime=inf, limit=9)
    assert [lease.id for lease in due] == [leases[1].id]
    again = ledger.claim_due(ME, lambda one: one == ME, boottime=inf, limit=9)
    assert [lease.id for lease in again] == [leases[0].id]


def test_suspects_are_those_claimed_or_bound_to_a_process(ledger: Ledger) -> None:
    free, claimed, bound, waiting = hold(ledger, *[Tap()] * 4)
    (reserved,) = reserve(ledger, Tap())
    ledger.claim(claimed.id, ME, dead)
    ledger.bind([bound.id, waiting.id], PROCESS)
    release(ledger, waiting)
    suspects = {lease.id for lease in ledger.suspects("boot")}
    assert suspects == {claimed.id, bound.id, reserved.id}
    assert free.id not in suspects
    assert len(ledger.suspects("next boot")) == 5


# Names and interface indexes


def test_next_survives_reopening(path: Path) -> None:
    given = []
    for _ in range(12):
        ledger = Ledger(path, Clock())
        leases = hold(ledger, Tap(name=TEN, naming=Naming.NEXT))
        given += names_of(leases)
        end(ledger, *leases)
        ledger.close()
    ten = names.parse(TEN)
    assert given == [ten.name(number % 10) for number in range(12)]


def test_stable_survives_reopening(path: Path) -> None:
    def start(*keys: str) -> list[str]:
        ledger = Ledger(path, Clock())
        specs = [Tap(name=TEN, naming=Naming.STABLE, key=key) for key in keys]
        leases = hold(ledger, *specs)
        end(ledger, *leases)
        ledger.close()
        return names_of(leases)

    keys = [f"vm{number}" for number in range(10)]
    given = start(*keys)
    assert len(set(given)) == 10
    assert start(*reversed(keys)) == given[::-1]


def test_I1_an_interface_index_is_never_in_use_twice(ledger: Ledger) -> None:
    leases = hold(ledger, *[Tap()] * 3)
    replanted = ledger.hold_name(leases[0].id)
    reindexed = ledger.reindex(leases[1].id)
    given = [lease.ifindex for lease in (*leases, replanted, reindexed)]
    assert len(set(given)) == 5
    assert all(FIRST_IFINDEX <= ifindex <= LAST_IFINDEX for ifindex in given)


@pytest.mark.parametrize("column", ["name", "ifindex", "id"])
def test_I1_the_file_itself_refuses_what_two_leases_may_not_share(
    ledger: Ledger, column: str
) -> None:
    hold(ledger, Tap(), Tap())
    with pytest.raises(sqlite3.IntegrityError, match=f"UNIQUE.*{column}"):
        ledger.file.connection.execute(f"UPDATE lease SET {column} = 1")  # noqa: S608 - not a value


def test_interface_indexes_start_anew_after_the_last_and_skip_those_in_use(
    ledger: Ledger,
) -> None:
    def set_next(ifindex: int) -> None:
        ledger.file.connection.execute(
            "UPDATE meta SET value = ? WHERE key = 'next_ifindex'", (ifindex,)
        )

    set_next(FIRST_IFINDEX + 1)
    hold(ledger, Tap())
    set_next(LAST_IFINDEX - 1)
    given = [lease.ifindex for lease in hold(ledger, *[Tap()] * 4)]
    assert given == [LAST_IFINDEX - 1, LAST_IFINDEX, FIRST_IFINDEX, FIRST_IFINDEX + 2]


def test_two_ledgers_begin_at_different_interface_indexes(tmp_path: Path) -> None:
    given = set()
    for number in range(3):
        ledger = Ledger(
            tmp_path / f"{number}.db", Clock(), randomness=bytes([number]).__mul__
        )
        given.add(hold(ledger, Tap())[0].ifindex)
        ledger.close()
    assert len(given) == 3


def test_a_replanted_lease_keeps_its_name_and_says_so(ledger: Ledger) -> None:
    (lease,) = hold(ledger, Tap())
    replanted = ledger.hold_name(lease.id)
    assert replanted == lease._replace(ifindex=replanted.ifindex, placeholder=True)


def test_macs_that_are_made_up_are_never_in_use_twice(path: Path) -> None:
    unlucky = iter(chain([b"\1\1\1", b"\1\1\1", b"\1\1\1"], repeat(b"\2\2\2")))
    ledger = Ledger(
        path,
        Clock(),
        randomness=lambda size: next(unlucky) if size == 3 else os.urandom(size),
    )
    macs = [lease.mac for lease in hold(ledger, Tap(), Tap())]
    assert macs == ["52:54:00:01:01:01", "52:54:00:02:02:02"]
    ledger.close()


@pytest.mark.parametrize("naming", [Naming.LOWEST, Naming.NEXT])
def test_I2_a_name_comes_back_only_after_fin_wait(
    ledger: Ledger, naming: Naming
) -> None:
    spec = Tap(name=TEN, naming=naming)
    leases = hold(ledger, *[spec] * 10)
    release(ledger, leases[4])
    with pytest.raises(NamesExhausted):
        reserve(ledger, spec)
    ledger.claim_due(ME, alive, boottime=inf, limit=1)
    with pytest.raises(NamesExhausted):
        reserve(ledger, spec)
    ledger.end([leases[4].id])
    assert names_of(reserve(ledger, spec)) == [leases[4].name]


def test_a_name_may_be_leased_once_in_each_namespace(ledger: Ledger) -> None:
    here, there = *hold(ledger, Tap()), *hold(ledger, Tap(), netns=THERE)
    assert here.name == there.name == "vnet0"
    assert ledger.named("vnet0") == [here, there]
    assert [lease.netns for lease in ledger.leases()] == [HERE, THERE]


def test_a_namespace_is_the_same_under_another_path(ledger: Ledger) -> None:
    hold(ledger, Tap(), netns=HERE._replace(path=""))
    assert ledger.leases()[0].netns.path == ""
    hold(ledger, Tap(), netns=HERE)
    hold(ledger, Tap(), netns=HERE._replace(path=""))
    assert [lease.netns for lease in ledger.leases()] == [HERE] * 3
    assert names_of(ledger.leases()) == ["vnet0", "vnet1", "vnet2"]


def test_a_cookie_means_another_namespace_in_another_boot(ledger: Ledger) -> None:
    hold(ledger, Tap())
    (lease,) = hold(ledger, Tap(), netns=HERE._replace(boot="next boot"))
    assert lease.name == "vnet0"


def test_a_lease_whose_name_a_foreign_device_took_gets_another(
    ledger: Ledger, clock: Clock
) -> None:
    (lease,) = reserve(ledger, Tap())
    taken = {"vnet0": 5, "vnet1": 6}
    template = names.parse("vnet%d")

    def ask(name: str) -> int:
        return taken.get(name, 0)

    clock.wall = 101.0
    renamed = ledger.rename(lease.id, template, Tap(), ask)
    # The history will say since when it has that name.
    assert renamed == lease._replace(name="vnet2", created=101.0)
    ledger.end([lease.id])
    wanted = [Reservation(Tap(), template, None, Wiring())]
    (again,) = ledger.reserve(
        HERE, wanted, manager=ME, holder_of=ask, changed_links=nothing_changed
    )
    assert again.name == "vnet2"
    taken.clear()
    (back,) = ledger.reserve(
        HERE, wanted, manager=ME, holder_of=ask, changed_links=lambda: {5}
    )
    assert back.name == "vnet0"


def test_changes_are_asked_for_only_if_foreign_names_are_remembered(
    ledger: Ledger,
) -> None:
    asked: list[str] = []

    def changed() -> set[int]:
        asked.append("asked")
        return set()

    taken = {"vnet0": 5}
    wanted = [Reservation(Tap(), names.parse("vnet%d"), None, Wiring())]
    counts = []
    for _ in range(2):
        ledger.reserve(
            HERE,
            wanted,
            manager=ME,
            holder_of=lambda name: taken.get(name, 0),
            changed_links=changed,
        )
        counts.append(len(asked))
    assert counts == [0, 1]


def test_templates_are_those_that_were_used(ledger: Ledger) -> None:
    hold(ledger, Tap(), Tap(name="ci%d-a"), Tap(name="plain"))
    hold(ledger, Tap(), netns=THERE)
    assert sorted(ledger.templates()) == ["ci%d-a", "vnet%d"]


# The end of the reaper


def test_the_reaper_quits_only_when_nothing_waits(ledger: Ledger) -> None:
    quits: list[str] = []
    waiting, _ = hold(ledger, Tap(), Tap())
    release(ledger, waiting)
    assert not ledger.call_if_idle(lambda: quits.append("quit"))
    assert quits == []
    ledger.end([waiting.id])
    assert ledger.call_if_idle(lambda: quits.append("quit"))
    assert quits == ["quit"]


def test_nobody_can_release_while_the_reaper_quits(ledger: Ledger) -> None:
    def look() -> None:
        other = sqlite3.connect(ledger.path, timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()

    assert ledger.call_if_idle(look)


def test_a_namespace_without_leases_is_forgotten_but_not_its_counters(
    ledger: Ledger,
) -> None:
    end(ledger, *hold(ledger, Tap(naming=Naming.NEXT)))
    hold(ledger, Tap(naming=Naming.NEXT), netns=THERE)
    ledger.call_if_idle(lambda: None)
    rows = ledger.file.connection.execute("SELECT cookie FROM netns").fetchall()
    assert rows == [(THERE.cookie,)]
    assert names_of(hold(ledger, Tap(naming=Naming.NEXT))) == ["vnet2"]
    assert names_of(hold(ledger, Tap())) == ["vnet0"]


# The cost


def populated(path: Path, leases: int) -> Ledger:
    """A ledger whose leases have every other number, half of them in FIN WAIT."""
    ledger = Ledger(path, Clock())
    hold(ledger, Tap())
    db = ledger.file.connection
    db.execute("BEGIN")
    db.execute(
        "CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i FROM n",
        (leases,),
    )
    db.execute(
        "INSERT INTO lease (id, netns, name, ifindex, kind, state, owner, mac, queues,"
        " isolated, created, fin_wait, deadline) "
        "SELECT printf('%016x', i), netns, 'vnet' || (2 * i), i, kind,"
        " iif(i % 2, 'active', 'fin_wait'), owner, printf('%012x', i), queues,"
        " isolated, created, fin_wait, iif(i % 2, NULL, 1000.0 + i) "
        "FROM n JOIN (SELECT * FROM lease)"
    )
    db.execute("UPDATE free SET first = ?", (2 * leases + 1,))
    db.execute(
        "INSERT INTO free SELECT template.id, 2 * i - 1, 2 * i - 1 FROM template, n"
    )
    db.execute("COMMIT")
    return ledger


class Two(NamedTuple):
    """A ledger, and two of its leases."""

    ledger: Ledger
    active: str
    reserved: Lease


VERBS: dict[str, Callable[[Two], object]] = {
    "new_manager": lambda two: two.ledger.new_manager(),
    "reserve lowest": lambda two: reserve(two.ledger, Tap()),
    "reserve next": lambda two: reserve(two.ledger, Tap(naming=Naming.NEXT)),
    "reserve stable": lambda two: reserve(
        two.ledger, Tap(name="s%d", naming=Naming.STABLE, key="k")
    ),
    "reserve plain": lambda two: reserve(two.ledger, Tap(name="plain")),
    "rename": lambda two: two.ledger.rename(
        two.reserved.id, names.parse("vnet%d"), Tap(), nobody_has
    ),
    "reindex": lambda two: two.ledger.reindex(two.reserved.id),
    "activate": lambda two: two.ledger.activate([two.reserved], None),
    "bind": lambda two: two.ledger.bind([two.reserved.id], PROCESS),
    "lease": lambda two: two.ledger.lease(two.active),
    "named": lambda two: two.ledger.named("vnet4"),
    "entries": lambda two: two.ledger.entries("vnet4"),
    "suspects": lambda two: two.ledger.suspects("boot"),
    "begin_release": lambda two: two.ledger.begin_release(two.active),
    "claim": lambda two: two.ledger.claim(two.active, ME, dead),
    "claim_available": lambda two: two.ledger.claim_available([two.active], ME, dead),
    "hold_name": lambda two: two.ledger.hold_name(two.active),
    "release_claims": lambda two: two.ledger.release_claims(ME),
    "next_deadline": lambda two: two.ledger.next_deadline(),
    "claim_due": lambda two: two.ledger.claim_due(ME, dead, boottime=100, limit=32),
    "end": lambda two: two.ledger.end([two.active]),
    "ended": lambda two: two.ledger.ended(two.active),
    "end, never active": lambda two: two.ledger.end([two.reserved.id]),
    "call_if_idle": lambda two: two.ledger.call_if_idle(lambda: None),
}
"""What is done with a lease from its VM's start to its end, in that order."""


def costs(ledger: Ledger) -> dict[str, int]:
    """How many steps SQLite's machine takes for each of VERBS."""
    (active,), (reserved,) = hold(ledger, Tap()), reserve(ledger, Tap())
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    found = {}
    ledger.file.connection.set_progress_handler(step, 1)
    for verb, call in VERBS.items():
        steps = 0
        call(Two(ledger, active.id, reserved))
        found[verb] = steps
    ledger.file.connection.set_progress_handler(None, 1)
    return found


@pytest.fixture(scope="module")
def cost_with(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, dict[str, int]]:
    found = {}
    for leases in (10, 100_000):
        ledger = populated(tmp_path_factory.mktemp("cost") / "ledger.db", leases)
        found[leases] = costs(ledger)
        ledger.close()
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_the_cost_does_not_grow_with_the_number_of_leases(
    cost_with: dict[int, dict[str, int]], verb: str
) -> None:
    assert 0 < cost_with[100_000][verb] <= 2 * cost_with[10][verb]


# The file


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file in a directory.

    Not to be taken while this process has a ledger open there: when a process
    closes a file, it loses all the locks that it has on it (fcntl(2)).
    """
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


@pytest.fixture
def whole(path: Path) -> bytes:
    """The bytes of a closed ledger with leases and history."""
    ledger = Ledger(path, Clock())
    leases = hold(ledger, *[Tap(owner="somebody")] * 40)
    end(ledger, *leases[:10])
    release(ledger, *leases[10:20])
    ledger.close()
    return path.read_bytes()


def over(data: bytes, at: int, garbage: bytes) -> bytes:
    assert at + len(garbage) <= len(data)
    return data[:at] + garbage + data[at + len(garbage) :]


def page_of(data: bytes, table: str) -> int:
    """Where in the file the root page of a table begins."""
    db = sqlite3.connect(":memory:")
    db.deserialize(over(data, 18, b"\1\1"))  # memory has no write-ahead log
    query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
    (page,) = db.execute(query, (table,)).fetchone()
    db.close()
    return (int(page) - 1) * 4096


def lease_table(data: bytes) -> int:
    """Where in the file the schema says what the leases' table is."""
    return data.rindex(b"CREATE TABLE lease")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut in the header": lambda data: data[:50],
    "cut in the first page": lambda data: data[:2000],
    "cut after the first page": lambda data: data[:4096],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut before the last page": lambda data: data[:-4096],
    "all zeros": lambda data: bytes(len(data)),
    "the magic overwritten": lambda data: over(data, 0, b"garbage!"),
    "the page size overwritten": lambda data: over(data, 16, b"\xff\xff"),
    "the application overwritten": lambda data: over(data, 68, b"\xff\xff\xff\xff"),
    "the version zeroed": lambda data: over(data, 60, bytes(4)),
    "the schema's tree overwritten": lambda data: over(data, 100, b"\xff" * 200),
    "the schema overwritten with letters": lambda data: over(
        data, lease_table(data), b"x" * 500
    ),
    "the schema overwritten with 0xff": lambda data: over(
        data, lease_table(data), b"\xff" * 500
    ),
    "the schema overwritten with zeros": lambda data: over(
        data, lease_table(data), bytes(500)
    ),
    "the settings overwritten": lambda data: over(
        data, page_of(data, "meta"), b"\xff" * 4096
    ),
    "the settings emptied": lambda data: over(
        data, page_of(data, "meta"), bytes.fromhex("0a00000000000000") + bytes(4088)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_is_refused_and_left_as_it_is(
    path: Path, whole: bytes, damage: str
) -> None:
    path.write_bytes(DAMAGE[damage](whole))
    before = snapshot(path.parent)
    with pytest.raises(LedgerDamaged, match=str(path)):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


LATENT: dict[str, Callable[[bytes], bytes]] = {
    "a page of leases overwritten with 0xff": lambda data: over(
        data, page_of(data, "lease"), b"\xff" * 4096
    ),
    "a page of leases zeroed": lambda data: over(
        data, page_of(data, "lease"), bytes(4096)
    ),
    "an owner that is not text": lambda data: data.replace(b"somebody", b"\xff" * 8),
    "a state that is none": lambda data: data.replace(
        b"fin_waitsomebody", b"fin_whatsomebody"
    ),
}


@pytest.mark.parametrize("damage", LATENT)
def test_damage_that_is_found_later_is_an_error_and_changes_nothing(
    path: Path, whole: bytes, damage: str
) -> None:
    path.write_bytes(LATENT[damage](whole))
    before = snapshot(path.parent)
    ledger = Ledger(path, Clock())
    try:
        with pytest.raises(LedgerDamaged, match=str(path)):
            ledger.leases()
        with pytest.raises(LedgerDamaged, match=str(path)):
            ledger.claim_due(ME, dead, boottime=inf, limit=99)
    finally:
        ledger.close()
    assert snapshot(path.parent) == before


def test_a_text_file_is_no_ledger(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("This is a text file.\n" * 20, "utf-8")
    before = snapshot(path.parent)
    with pytest.raises(LedgerDamaged, match="is not a ledger"):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_another_programs_database_is_no_ledger(path: Path, mode: str) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.executescript(f"PRAGMA journal_mode = {mode}; CREATE TABLE t (x)")
    other.close()
    before = snapshot(path.parent)
    with pytest.raises(LedgerDamaged, match="a database of another kind"):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


def test_another_programs_log_is_not_worked_off(path: Path, tmp_path: Path) -> None:
    # Its program was killed, or runs: what is in the log is not ours to move.
    other = sqlite3.connect(tmp_path / "other.db", isolation_level=None)
    other.executescript("PRAGMA journal_mode = wal; CREATE TABLE t (x)")
    path.parent.mkdir()
    for suffix in ("", "-wal"):
        copy = (tmp_path / f"other.db{suffix}").read_bytes()
        path.with_name(path.name + suffix).write_bytes(copy)
    other.close()
    before = snapshot(path.parent)
    with pytest.raises(LedgerDamaged, match=str(path)):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


def test_a_ledger_of_a_later_release_is_refused(path: Path, whole: bytes) -> None:
    later = database.SCHEMA_VERSION + 1
    path.write_bytes(over(whole, 60, later.to_bytes(4, "big")))
    before = snapshot(path.parent)
    with pytest.raises(LedgerTooNew, match=f"schema {later}.* up to {later - 1}"):
        Ledger(path, Clock())
    assert snapshot(path.parent) == before


def test_a_ledger_that_a_later_release_has_just_changed_is_refused(
    path: Path, whole: bytes
) -> None:
    # The new version is in the write-ahead log, and not yet in the header.
    assert whole
    later = database.SCHEMA_VERSION + 1
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute(f"PRAGMA user_version = {later}")
        with pytest.raises(LedgerTooNew, match=f"schema {later}"):
            Ledger(path, Clock())
        assert other.execute("PRAGMA user_version").fetchone() == (later,)
    finally:
        other.close()


def test_an_empty_file_is_a_new_ledger(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    ledger = Ledger(path, Clock())
    assert ledger.leases() == []
    assert names_of(hold(ledger, Tap())) == ["vnet0"]
    ledger.close()


def test_a_ledger_and_its_directory_are_for_their_owner_alone(path: Path) -> None:
    ledger = Ledger(path, Clock())
    ledger.new_manager()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    modes = {entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()}
    assert modes == {0o600}
    ledger.close()


def test_a_ledger_keeps_its_id_and_leases_when_reopened(path: Path) -> None:
    first = Ledger(path, Clock())
    id, leases = first.id, hold(first, Tap(), Tap())
    first.close()
    second = Ledger(path, Clock())
    assert (second.id, second.leases()) == (id, leases)
    assert second.check() == []
    second.close()


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """As nobody, if the tests run as root, whom no mode stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked_directory(path: Path, whole: bytes) -> Iterator[Path]:
    assert whole
    path.parent.chmod(0)
    yield path.parent
    path.parent.chmod(0o700)


@pytest.mark.usefixtures("locked_directory", "unprivileged")
def test_a_directory_that_cannot_be_read_is_an_error(path: Path) -> None:
    with pytest.raises(LedgerError, match=f"{path}.*Permission denied"):
        Ledger(path, Clock())


def test_a_directory_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(LedgerError, match="'/proc/tapster"):
        Ledger("/proc/tapster/ledger.db", Clock())


def test_a_directory_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=str(tmp_path)):
        Ledger(tmp_path, Clock())
    assert snapshot(tmp_path) == {}


def remove(path: Path) -> None:
    path.unlink()


def remove_all(path: Path) -> None:
    for entry in path.parent.iterdir():
        entry.unlink()
    path.parent.rmdir()


def replace(path: Path) -> None:
    Ledger(path.with_name("new.db"), Clock()).close()
    path.with_name("new.db").replace(path)


@pytest.mark.parametrize("change", [remove, remove_all, replace])
def test_a_ledger_that_was_deleted_or_replaced_takes_no_writes(
    ledger: Ledger, path: Path, change: Callable[[Path], None]
) -> None:
    first, second = hold(ledger, Tap(), Tap())
    change(path)
    writes: list[Callable[[], object]] = [
        lambda: ledger.new_manager(),
        lambda: reserve(ledger, Tap()),
        lambda: ledger.claim(first.id, ME, dead),
        lambda: ledger.begin_release(first.id),
        lambda: ledger.end([second.id]),
        lambda: ledger.call_if_idle(lambda: pytest.fail("it quit")),
    ]
    for write in writes:
        with pytest.raises(LedgerError, match=f"{path}.*deleted or replaced"):
            write()


# Several processes

_together: Barrier


def _remember(barrier: Barrier) -> None:
    global _together
    _together = barrier


PROCESSES = 4


@pytest.fixture(scope="module")
def others() -> Iterator[ProcessPoolExecutor]:
    """Other processes, which inherit nothing."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        PROCESSES,
        mp_context=spawn,
        initializer=_remember,
        initargs=(spawn.Barrier(PROCESSES),),
    ) as pool:
        yield pool


def open_together(paths: list[Path]) -> list[str]:
    """Open one ledger after the other, each at the same time as the others do."""
    ids = []
    for path in paths:
        _together.wait(10)
        try:
            ledger = Ledger(path, Clock())
            ledger.new_manager()
            ids.append(ledger.id)
            ledger.close()
        except TapsterError as error:
            ids.append(str(error))
    return ids


def leave_alone(_: Path) -> None:
    """The ledger is yet to be made."""


def half_make(path: Path) -> None:
    """A ledger whose maker was killed just before its last step."""
    Ledger(path, Clock()).close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    db.close()


def journal_mode(ledger: Ledger) -> str:
    (mode,) = ledger.file.connection.execute("PRAGMA journal_mode").fetchone()
    return str(mode)


@pytest.mark.parametrize("make", [leave_alone, half_make])
def test_processes_that_make_a_ledger_at_once_end_with_one(
    others: ProcessPoolExecutor, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    paths = [tmp_path / f"{number}.db" for number in range(20)]
    for path in paths:
        make(path)
    jobs = [others.submit(open_together, paths) for _ in range(PROCESSES)]
    for ids in zip(*(job.result() for job in jobs), strict=True):
        assert set(ids) == {ids[0]}
    for path in paths:
        ledger = Ledger(path, Clock())
        assert journal_mode(ledger) == "wal"
        ledger.close()


def hold_one(path: Path) -> tuple[str, int]:
    """A lease of another process, which then closes the ledger."""
    ledger = Ledger(path, Clock())
    (lease,) = hold(ledger, Tap())
    ledger.close()
    return lease.name, lease.ifindex


@pytest.mark.parametrize("close", [False, True])
def test_I1_two_ledgers_in_one_process_do_not_unlock_each_other(
    others: ProcessPoolExecutor, path: Path, close: bool
) -> None:
    # SQLite's locks belong to the process, and it loses all that it has on a
    # file when it closes any descriptor of that file.
    first = Ledger(path, Clock())
    given = [(lease.name, lease.ifindex) for lease in hold(first, Tap())]
    second = Ledger(path, Clock())
    if close:
        second.close()
    given.append(others.submit(hold_one, path).result())
    given += [(lease.name, lease.ifindex) for lease in hold(first, Tap())]
    given.append(others.submit(hold_one, path).result())
    first.close()
    second.close()
    assert [name for name, _ in given] == ["vnet0", "vnet1", "vnet2", "vnet3"]
    assert len({ifindex for _, ifindex in given}) == 4


# A process that is killed


def killed_before(statement: int, work: Callable[[Path], None], path: Path) -> bool:
    """Do the work in a child that is killed before its n-th SQL statement.

    False if the work has fewer of them, and is done.
    """
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), f"the work failed: status {status}"
        return status != 0
    try:
        left = statement

        def trace(_: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        connect = sqlite3.connect

        def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            db: sqlite3.Connection = connect(*arguments, **options)
            db.set_trace_callback(trace)
            return db

        pytest.MonkeyPatch().setattr(sqlite3, "connect", traced)
        work(path)
        os._exit(0)
    finally:
        os._exit(1)


def dump(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    lines = list(db.iterdump())
    db.close()
    return lines


def create(path: Path) -> None:
    Ledger(path, Clock())


def acquire(path: Path) -> None:
    ledger = Ledger(path, Clock())
    foreign = {"vnet0": 5, "vnet4": 6}
    specs = [Tap(), Tap(naming=Naming.NEXT), Tap(naming=Naming.STABLE, key="k")]
    wanted = [
        Reservation(spec, names.parse("vnet%d"), None, Wiring()) for spec in specs
    ]
    ledger.reserve(
        HERE,
        wanted,
        manager=ME,
        holder_of=lambda name: foreign.get(name, 0),
        changed_links=lambda: None,
    )


def reap(path: Path) -> None:
    ledger = Ledger(path, Clock())
    ledger.end([lease.id for lease in ledger.leases()])


def kill_at_every_statement_of_creation(path: Path) -> int:
    for statement in count(1):
        killed = killed_before(statement, create, path)
        ledger = Ledger(path, Clock())
        assert ledger.check() == []
        assert journal_mode(ledger) == "wal", f"killed before statement {statement}"
        assert names_of(hold(ledger, Tap())) == ["vnet0"]
        ledger.close()
        path.unlink()
        if not killed:
            return statement
    raise AssertionError("unreachable")


def kill_at_every_statement(work: Callable[[Path], None], path: Path) -> int:
    before = dump(path)
    for statement in count(1):
        if not killed_before(statement, work, path):
            assert dump(path) != before
            return statement
        assert dump(path) == before, f"killed before statement {statement}"
    raise AssertionError("unreachable")


def test_a_process_that_is_killed_while_it_creates_a_ledger_leaves_none_or_all(
    others: ProcessPoolExecutor, path: Path
) -> None:
    path.parent.mkdir()
    job = others.submit(kill_at_every_statement_of_creation, path)
    assert job.result() > 20


@pytest.mark.parametrize("work", [acquire, reap])
def test_a_process_that_is_killed_leaves_the_state_before_its_transaction(
    others: ProcessPoolExecutor, path: Path, work: Callable[[Path], None]
) -> None:
    ledger = Ledger(path, Clock())
    leases = hold(ledger, *[Tap()] * 5)
    end(ledger, leases[0], leases[3])
    release(ledger, leases[1])
    ledger.close()
    assert others.submit(kill_at_every_statement, work, path).result() > 20


class Stop(BaseException):
    """What may come at any moment, as KeyboardInterrupt does."""


def stop(*_: object) -> Any:
    raise Stop


WANTED = [Reservation(Tap(), names.parse("vnet%d"), None, Wiring())]

INTERRUPTED: dict[str, Callable[[Ledger], object]] = {
    "taken": lambda ledger: ledger.reserve(
        HERE, WANTED, manager=ME, holder_of=stop, changed_links=nothing_changed
    ),
    "changed": lambda ledger: ledger.reserve(
        HERE, WANTED, manager=ME, holder_of=nobody_has, changed_links=stop
    ),
    "alive": lambda ledger: ledger.claim_due(ME, stop, boottime=inf, limit=9),
    "quit": lambda ledger: ledger.call_if_idle(stop),
}


@pytest.mark.parametrize("at", INTERRUPTED)
def test_an_operation_that_is_interrupted_leaves_the_state_before(
    ledger: Ledger, at: str
) -> None:
    ledger.reserve(
        HERE,
        WANTED,
        manager=ME,
        holder_of=lambda name: 5 if name == "vnet0" else 0,
        changed_links=nothing_changed,
    )
    end(ledger, *hold(ledger, Tap(), netns=THERE))
    if at == "alive":
        (lease,) = hold(ledger, Tap())
        release(ledger, lease)
        ledger.claim(lease.id, OTHER, dead)
    before = list(ledger.file.connection.iterdump())
    with pytest.raises(Stop):
        INTERRUPTED[at](ledger)
    assert list(ledger.file.connection.iterdump()) == before
    ledger.new_manager()


# Everything at once, against a model

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
        (self.leases[lease.id],) = self.ledger.activate([lease], None)

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
    def I1_no_two_leases_share_a_name_or_an_ifindex(self) -> None:
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


TestLedgerAgainstAModel = LedgerMachine.TestCase
TestLedgerAgainstAModel.settings = settings(
    derandomize=True, deadline=None, max_examples=40, stateful_step_count=50
)
