# SPDX-License-Identifier: Apache-2.0
"""Which name a request gets."""

import sqlite3
from collections.abc import Iterator
from itertools import count, islice, pairwise
from pathlib import Path
from random import Random

import pytest

import tapster
from tapster import names
from tapster.errors import NamesExhausted, NameTaken, QuotaExceeded
from tapster.ledger import namespaces
from tapster.ledger.allocator import MOST_TEMPLATES, Allocator, KeyShare
from tapster.model import Naming, Netns

SCHEMA = (Path(tapster.__file__).parent / "ledger" / "schema.sql").read_text("utf-8")

TEN = "fourteen-bytes%d"  # room for one digit
VNET = "vnet%d"


class NamespaceRow:
    """A network namespace: its allocator, leases and foreign devices."""

    def __init__(self, db: sqlite3.Connection, row: int) -> None:
        self.db = db
        self.row = row
        self.allocator = Allocator(db, row)
        self.foreign: dict[str, int] = {}
        self.asked: list[str] = []
        self._numbers = count()
        db.execute("INSERT INTO netns VALUES (?, 'boot', ?, '', 0)", (row, row))

    def taken(self, name: str) -> int:
        self.asked.append(name)
        return self.foreign.get(name, 0)

    def lease(
        self,
        template: str = VNET,
        naming: Naming = Naming.LOWEST,
        key: str | None = None,
    ) -> str:
        """Pick a name and lease it."""
        name = self.allocator.pick(names.parse(template), naming, key, self.taken)
        number = next(self._numbers)
        self.db.execute(
            "INSERT INTO lease (id, netns, name, ifindex, kind, state, owner, mac, "
            "queues, isolated, created, fin_wait) "
            "VALUES (?, ?, ?, ?, 'tap', 'active', 'vm', '', 1, 0, 0, 5)",
            (f"{self.row}-{number}", self.row, name, number),
        )
        return name

    def leases(self, number: int, template: str = VNET) -> list[str]:
        return [self.lease(template) for _ in range(number)]

    def wait(self, name: str) -> None:
        """Let FIN WAIT begin."""
        self.db.execute(
            "UPDATE lease SET state = 'fin_wait', deadline = 9 WHERE name = ?", (name,)
        )

    def end(self, *leased: str) -> None:
        for name in leased:
            self.db.execute(
                "DELETE FROM lease WHERE netns = ? AND name = ?", (self.row, name)
            )
            self.allocator.free_names([name])

    def has_foreign(self) -> bool:
        netns = Netns("boot", self.row, "")
        return namespaces.find(self.db, netns).has_foreign

    def noted(self) -> dict[str, int]:
        return dict(
            self.db.execute(
                "SELECT name, ifindex FROM foreign_name WHERE netns = ?", (self.row,)
            )
        )


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(SCHEMA)
    db.execute("PRAGMA foreign_keys = ON")
    yield db
    db.close()


@pytest.fixture
def ns(db: sqlite3.Connection) -> NamespaceRow:
    return NamespaceRow(db, 1)


# lowest


def test_lowest_counts_from_zero(ns: NamespaceRow) -> None:
    assert ns.leases(3) == ["vnet0", "vnet1", "vnet2"]


def test_lowest_takes_the_first_hole(ns: NamespaceRow) -> None:
    ns.leases(6)
    ns.end("vnet4", "vnet1", "vnet2")
    assert ns.leases(4) == ["vnet1", "vnet2", "vnet4", "vnet6"]


def test_names_given_back_in_any_order_come_again(ns: NamespaceRow) -> None:
    ns.leases(10, TEN)
    for number in (5, 3, 4, 9, 0, 8, 1, 6, 2, 7):
        ns.end(names.parse(TEN).name(number))
    assert ns.db.execute("SELECT first, last FROM free").fetchall() == [(0, 9)]
    assert len(set(ns.leases(10, TEN))) == 10


def test_a_name_given_back_twice_is_given_out_once(ns: NamespaceRow) -> None:
    ns.leases(3)
    ns.end("vnet1")
    ns.allocator.free_names(["vnet1"])
    assert ns.leases(2) == ["vnet1", "vnet3"]


def test_each_namespace_has_names_of_its_own(db: sqlite3.Connection) -> None:
    one, two = NamespaceRow(db, 1), NamespaceRow(db, 2)
    assert one.leases(2) == two.leases(2) == ["vnet0", "vnet1"]
    one.end("vnet0")
    assert two.lease() == "vnet2"
    assert one.lease() == "vnet0"


# next


def test_next_counts_on_past_a_hole(ns: NamespaceRow) -> None:
    assert [ns.lease(naming=Naming.NEXT) for _ in range(3)] == [
        "vnet0",
        "vnet1",
        "vnet2",
    ]
    ns.end("vnet0", "vnet2")
    assert ns.lease(naming=Naming.NEXT) == "vnet3"


def test_next_steps_over_what_lowest_gave(ns: NamespaceRow) -> None:
    ns.leases(3)
    assert ns.lease(naming=Naming.NEXT) == "vnet3"
    assert ns.lease() == "vnet4"
    assert ns.lease(naming=Naming.NEXT) == "vnet5"


def test_next_wraps_by_the_room_of_its_template_and_skips_what_is_used(
    ns: NamespaceRow,
) -> None:
    ten = names.parse(TEN)
    first = [ns.lease(TEN, Naming.NEXT) for _ in range(9)]
    assert first == [ten.name(number) for number in range(9)]
    ns.end(ten.name(2), ten.name(5))
    again = [ns.lease(TEN, Naming.NEXT) for _ in range(3)]
    assert again == [ten.name(number) for number in (9, 2, 5)]
    assert ns.lease(VNET, Naming.NEXT) == "vnet0"


def test_next_wraps_when_all_after_it_is_used(ns: NamespaceRow) -> None:
    ten = names.parse(TEN)
    for _ in range(5):
        ns.lease(TEN, Naming.NEXT)
    ns.leases(5, TEN)
    ns.end(ten.name(1), ten.name(3))
    assert ns.lease(TEN, Naming.NEXT) == ten.name(1)
    assert ns.lease(TEN, Naming.NEXT) == ten.name(3)


def test_next_does_not_wrap_before_its_room_is_used_up(ns: NamespaceRow) -> None:
    ten = names.parse(TEN)
    given = []
    for _ in range(25):
        given.append(ns.lease(TEN, Naming.NEXT))
        ns.end(given[-1])
    assert given == [ten.name(number % 10) for number in range(25)]


def test_next_counts_for_all_namespaces_and_outlives_them(
    db: sqlite3.Connection,
) -> None:
    one, two = NamespaceRow(db, 1), NamespaceRow(db, 2)
    assert one.lease(naming=Naming.NEXT) == "vnet0"
    assert two.lease(naming=Naming.NEXT) == "vnet1"
    db.execute("DELETE FROM lease")
    db.execute("DELETE FROM netns")
    assert NamespaceRow(db, 3).lease(naming=Naming.NEXT) == "vnet2"


# stable


HOME = 7


def keys_that_meet(number: int) -> list[str]:
    """Keys that all have the same home in TEN."""
    keys = (f"vm{each}" for each in count())
    met = (key for key in keys if names.home(names.parse(TEN), key) == HOME)
    return list(islice(met, number))


def test_stable_gives_a_key_its_home_at_every_start(ns: NamespaceRow) -> None:
    home = names.parse(TEN).name(HOME)
    (key,) = keys_that_meet(1)
    for _ in range(3):
        assert ns.lease(TEN, Naming.STABLE, key) == home
        ns.end(home)
        ns.end(ns.lease(TEN), ns.lease(TEN, Naming.NEXT))


def test_stable_counts_for_all_namespaces_and_outlives_them(
    db: sqlite3.Connection,
) -> None:
    one, two = NamespaceRow(db, 1), NamespaceRow(db, 2)
    keys = keys_that_meet(2)
    given = [one.lease(TEN, Naming.STABLE, key) for key in keys]
    assert two.lease(TEN, Naming.STABLE, keys[1]) == given[1]
    db.execute("DELETE FROM lease")
    db.execute("DELETE FROM netns")
    assert NamespaceRow(db, 3).lease(TEN, Naming.STABLE, keys[1]) == given[1]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_stable_keys_that_collide_get_distinct_names_in_any_order(
    ns: NamespaceRow, order: tuple[int, int]
) -> None:
    keys = keys_that_meet(2)
    before = {key: ns.lease(TEN, Naming.STABLE, key) for key in keys}
    assert len(set(before.values())) == 2
    ns.end(*before.values())
    after = {keys[i]: ns.lease(TEN, Naming.STABLE, keys[i]) for i in order}
    assert after == before


def test_stable_keys_that_meet_at_the_last_number_go_on_at_the_first(
    ns: NamespaceRow,
) -> None:
    keys = keys_that_meet(10)
    ten = names.parse(TEN)
    assert [ns.lease(TEN, Naming.STABLE, key) for key in keys] == [
        ten.name(number) for number in (7, 8, 9, 0, 1, 2, 3, 4, 5, 6)
    ]


def test_stable_says_when_every_name_belongs_to_a_key(ns: NamespaceRow) -> None:
    for number in range(10):
        ns.end(ns.lease(TEN, Naming.STABLE, f"vm{number}"))
    with pytest.raises(NamesExhausted, match=f"all 10 names of template '{TEN}'"):
        ns.lease(TEN, Naming.STABLE, "one more")
    ns.lease(TEN, Naming.STABLE, "vm3")


def test_stable_refuses_a_name_that_is_leased(ns: NamespaceRow) -> None:
    ns.leases(10, TEN)
    with pytest.raises(NameTaken, match="is leased"):
        ns.lease(TEN, Naming.STABLE, "web")


def test_stable_refuses_a_name_that_a_foreign_device_has(ns: NamespaceRow) -> None:
    name = ns.lease(naming=Naming.STABLE, key="web")
    ns.end(name)
    ns.foreign[name] = 7
    with pytest.raises(NameTaken, match=f"'{name}' belongs to a foreign device"):
        ns.lease(naming=Naming.STABLE, key="web")
    del ns.foreign[name]
    assert ns.lease(naming=Naming.STABLE, key="web") == name


# Plain names


def test_a_plain_name_is_given_if_it_is_free(ns: NamespaceRow) -> None:
    assert ns.lease("mytap") == "mytap"


def test_a_plain_name_that_is_leased_is_refused_with_its_owner(
    ns: NamespaceRow,
) -> None:
    ns.lease("mytap")
    with pytest.raises(NameTaken, match=r"'mytap' is leased: lease .*, owner 'vm'"):
        ns.lease("mytap")


def test_a_plain_name_in_fin_wait_is_refused_I2(ns: NamespaceRow) -> None:
    ns.wait(ns.lease("mytap"))
    with pytest.raises(NameTaken, match="'mytap' is in FIN WAIT, which lasts 5 s"):
        ns.lease("mytap")


def test_a_plain_name_that_a_foreign_device_has_is_refused(ns: NamespaceRow) -> None:
    ns.foreign["mytap"] = 7
    with pytest.raises(NameTaken, match=r"'mytap' belongs .* 7"):
        ns.lease("mytap")


# Invariants


@pytest.mark.parametrize("naming", [Naming.LOWEST, Naming.NEXT])
def test_two_leases_never_share_a_name_I1(ns: NamespaceRow, naming: Naming) -> None:
    given = [ns.lease(TEN, naming) for _ in range(10)]
    assert len(set(given)) == 10


@pytest.mark.parametrize("naming", [Naming.LOWEST, Naming.NEXT])
def test_a_name_in_fin_wait_is_not_given_out_I2(
    ns: NamespaceRow, naming: Naming
) -> None:
    waiting = ns.leases(9, TEN)
    for name in waiting:
        ns.wait(name)
    assert ns.lease(TEN, naming) not in waiting
    with pytest.raises(NamesExhausted):
        ns.lease(TEN, naming)
    ns.end(waiting[4])
    assert ns.lease(TEN, naming) == waiting[4]


def test_templates_that_overlap_never_share_a_name(ns: NamespaceRow) -> None:
    assert ns.lease("vnet12") == "vnet12"
    narrow = [ns.lease("vnet1%d") for _ in range(4)]
    assert narrow == ["vnet10", "vnet11", "vnet13", "vnet14"]
    wide = ns.leases(12)
    assert wide == [f"vnet{n}" for n in range(17) if not 10 <= n <= 14]
    assert ns.lease("vnet1%d") == "vnet17"
    with pytest.raises(NameTaken):
        ns.lease("vnet15")


@pytest.mark.parametrize("first", [VNET, "vnet1%d", "vnet12"])
@pytest.mark.parametrize("again", [VNET, "vnet1%d", "vnet12"])
def test_a_name_comes_back_to_every_template_that_can_make_it(
    ns: NamespaceRow, first: str, again: str
) -> None:
    ns.leases(12)  # vnet0 to vnet11
    assert ns.lease(first) == "vnet12"
    # Now both templates find that it is blocked.
    assert ns.lease() == "vnet13"
    assert ns.lease("vnet1%d") == "vnet14"
    ns.end("vnet12")
    assert ns.lease(again) == "vnet12"


# No name left


def test_templates_that_nobody_uses_any_more_are_forgotten(ns: NamespaceRow) -> None:
    """Each release goes through all templates, and a user may make any number."""
    kept = ns.lease("kept%d")
    ns.foreign["near0"] = 7
    near = ns.lease("near%d")
    for number in range(5 * MOST_TEMPLATES):
        first, second = ns.leases(2, f"t{number}-%d")
        ns.end(first)
        ns.end(second)
    query = "SELECT count(*), count(DISTINCT template) FROM template, free "
    rows, known = ns.db.execute(query + "WHERE template = template.id").fetchone()
    assert rows == known == MOST_TEMPLATES
    assert (ns.lease("kept%d"), ns.lease("near%d")) == ("kept1", "near2")
    ns.end(kept, near)
    assert (ns.lease("kept%d"), ns.lease("near%d")) == ("kept0", "near1")
    assert ns.leases(2, "t0-%d") == ["t0-0", "t0-1"]


def test_a_user_has_so_many_counters_of_next(ns: NamespaceRow) -> None:
    share = KeyShare(1000, 2)

    def pick(text: str, share: KeyShare | None) -> str:
        template = names.parse(text)
        return ns.allocator.pick(template, Naming.NEXT, None, ns.taken, share)

    assert [pick("a%d", share), pick("b%d", share), pick("a%d", share)] == [
        *("a0", "b0", "a1"),
    ]
    with pytest.raises(QuotaExceeded, match="2 templates of naming next"):
        pick("c%d", share)
    assert [pick("c%d", None), pick("c%d", share)] == ["c0", "c1"]


@pytest.mark.parametrize("naming", [Naming.LOWEST, Naming.NEXT])
def test_exhaustion_is_seen_at_once(ns: NamespaceRow, naming: Naming) -> None:
    thousand = "twelve-bytes%d"
    small, large = ns.leases(10, TEN), ns.leases(1000, thousand)
    assert len(small) + len(large) == 1010
    ns.asked.clear()
    cost = {}
    for template in (TEN, thousand):
        statements: list[str] = []
        ns.db.set_trace_callback(statements.append)
        with pytest.raises(NamesExhausted, match=f"'{template}' are in use"):
            ns.lease(template, naming)
        ns.db.set_trace_callback(None)
        cost[template] = len(statements)
    assert cost[TEN] == cost[thousand] <= 6
    assert ns.asked == []


def test_names_that_end_together_are_free_again(ns: NamespaceRow) -> None:
    random = Random(1)
    leased: set[int] = set()
    for _ in range(100):
        for _ in range(random.randrange(1, 9)):
            lowest = next(n for n in count() if n not in leased)
            assert ns.lease() == f"vnet{lowest}"
            leased.add(lowest)
        ended = random.sample(sorted(leased), len(leased) // 2)
        leased -= {*ended}
        gone = [f"vnet{number}" for number in ended]
        ns.db.executemany("DELETE FROM lease WHERE name = ?", [(n,) for n in gone])
        # Some have been free all the while, as after a plain name.
        ns.allocator.free_names([*gone, "vnet900", "vnet901", "vnet903", "other"])
        free = ns.db.execute("SELECT first, last FROM free ORDER BY first").fetchall()
        # The intervals are disjoint, and have gaps between them.
        assert all(one[1] + 1 < two[0] for one, two in pairwise(free))
        numbers = range(max(leased, default=0) + 2)
        assert {n for n in numbers if not any(a <= n <= b for a, b in free)} == leased


# Foreign devices


def test_a_foreign_name_is_stepped_over_and_remembered(ns: NamespaceRow) -> None:
    ns.foreign = {"vnet0": 5, "vnet2": 6}
    assert ns.leases(2) == ["vnet1", "vnet3"]
    assert ns.noted() == ns.foreign
    assert ns.has_foreign()


def test_without_foreign_devices_nothing_is_remembered(ns: NamespaceRow) -> None:
    ns.leases(3)
    assert not ns.has_foreign()


def test_a_thousand_foreign_devices_are_asked_about_once(ns: NamespaceRow) -> None:
    ns.foreign = {f"vnet{number}": number + 2 for number in range(1000)}
    assert ns.lease() == "vnet1000"
    ns.asked.clear()
    ns.allocator.recheck(set(), ns.taken)
    assert ns.lease() == "vnet1001"
    assert ns.asked == ["vnet1001"]


@pytest.mark.parametrize("changed", [None, {5}, {5, 99}])
def test_a_foreign_name_that_is_gone_comes_back(
    ns: NamespaceRow, changed: set[int] | None
) -> None:
    ns.foreign = {"vnet0": 5, "vnet1": 6}
    ns.lease()
    del ns.foreign["vnet0"]
    ns.allocator.recheck(changed, ns.taken)
    assert ns.noted() == {"vnet1": 6}
    assert ns.leases(2) == ["vnet0", "vnet3"]


def test_only_devices_that_changed_are_asked_about(ns: NamespaceRow) -> None:
    ns.foreign = {"vnet0": 5, "vnet1": 6, "vnet2": 7}
    ns.lease()
    ns.asked.clear()
    ns.allocator.recheck({6}, ns.taken)
    assert ns.asked == ["vnet1"]
    assert ns.noted() == ns.foreign


def test_a_foreign_device_that_was_gone_before_it_was_seen_is_asked_about(
    ns: NamespaceRow,
) -> None:
    # The kernel refused the name; by the time of the question nobody had it.
    ns.lease()
    ns.allocator.note_foreign("vnet0", 0)
    ns.db.execute("DELETE FROM lease")
    ns.allocator.recheck(set(), ns.taken)
    assert ns.noted() == {}
    assert ns.lease() == "vnet0"


def test_a_foreign_name_that_another_device_took_over_stays_blocked(
    ns: NamespaceRow,
) -> None:
    ns.foreign = {"vnet0": 5}
    ns.lease()
    ns.foreign = {"vnet0": 8}
    ns.allocator.recheck({5, 8}, ns.taken)
    assert ns.noted() == {"vnet0": 8}
    assert ns.lease() == "vnet2"
    del ns.foreign["vnet0"]
    ns.allocator.recheck({8}, ns.taken)
    assert ns.lease() == "vnet0"


def test_a_foreign_name_comes_back_to_every_template(ns: NamespaceRow) -> None:
    ns.foreign = {"vnet10": 5}
    ns.leases(11)
    assert ns.lease("vnet1%d") == "vnet12"
    ns.foreign.clear()
    ns.allocator.recheck({5}, ns.taken)
    assert ns.lease("vnet1%d") == "vnet10"
    ns.end("vnet10")
    assert ns.lease() == "vnet10"


def test_next_steps_over_foreign_names_and_counts_on(ns: NamespaceRow) -> None:
    ns.foreign = {"vnet0": 5, "vnet1": 6, "vnet3": 7}
    assert ns.lease(naming=Naming.NEXT) == "vnet2"
    assert ns.lease(naming=Naming.NEXT) == "vnet4"


def test_a_template_full_of_foreign_names_is_exhausted(ns: NamespaceRow) -> None:
    ten = names.parse(TEN)
    ns.foreign = {ten.name(number): number + 2 for number in range(10)}
    with pytest.raises(NamesExhausted):
        ns.lease(TEN)
    assert len(ns.asked) == 10


def test_a_foreign_name_is_never_given_out_I4(ns: NamespaceRow) -> None:
    ten = names.parse(TEN)
    ns.foreign = {ten.name(number): number + 2 for number in range(0, 10, 2)}
    given = ns.leases(5, TEN)
    assert not set(given) & set(ns.foreign)
    ns.end(*given)
    assert not set(ns.leases(5, TEN)) & set(ns.foreign)
