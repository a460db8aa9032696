# SPDX-License-Identifier: Apache-2.0
"""The life of a lease, and its name and interface index."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import chain, repeat
from math import inf
from pathlib import Path
from typing import Any

import pytest

from tapster import model, names
from tapster.errors import (
    LeaseBusy,
    NamesExhausted,
    NameTaken,
    NoSuchLease,
    NotAllowed,
)
from tapster.ledger import FIRST_IFINDEX, LAST_IFINDEX, Ledger, Reservation, history
from tapster.model import (
    HistoryQuery,
    Kind,
    Lease,
    Macvtap,
    Mode,
    Naming,
    Netns,
    Rate,
    Spec,
    State,
    Tap,
    Wiring,
)
from tests.ledger.making import (
    HERE,
    ME,
    PROCESS,
    TEN,
    THERE,
    Clock,
    alive,
    dead,
    end,
    hold,
    names_of,
    nobody_has,
    nothing_changed,
    release,
    reserve,
)


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


RECORDED = [
    Tap(),
    Tap(bridge="br0", fin_wait=3, uid=0, labels=(("a", "b=c"), ("d", ""))),
    Tap(
        bridge="br0",
        isolated=True,
        learning=False,
        root_guard=True,
        bpdu_guard=True,
        vlan=7,
        trunks=(20, 30),
        filter=True,
        guard=False,
        addresses=("192.0.2.7", "2001:db8::/64"),
        outbound=Rate(100),
        outbound_pps=9,
        mtu=1400,
        up=False,
        vnet_hdr=False,
        queues=3,
        uid=1000,
        gid=1001,
    ),
    Tap(ovs="ovs0", external_ids=(("iface-id", "x"),), inbound=Rate(1, 2, 3)),
    Tap(redirect="eth0"),
    Macvtap(lower="eth0", mode=Mode("vepa"), standby=True, owner="ann"),
]


@pytest.mark.parametrize("spec", RECORDED)
@pytest.mark.parametrize("known_as", ["", "/run/netns/other", HERE.path])
def test_a_reserved_lease_is_returned_as_it_is_recorded(
    ledger: Ledger, spec: Spec, known_as: str
) -> None:
    reserve(ledger, Tap())
    for uid in (None, 1000):
        netns = HERE._replace(path=known_as, pidns=8)
        (lease,) = reserve(ledger, spec, netns=netns, caller_uid=uid)
        read = ledger.lease(lease.id)
        assert read == lease
        assert read is not None
        types = [[*map(type, value)] for value in (lease, read)]
        assert types[0] == types[1]


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
    (active,) = ledger.activate([lease], [PROCESS])
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
    (entry,) = ledger.entries(HistoryQuery("vnet0"))
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


def test_a_lease_whose_release_is_refused_stays_as_it_is(ledger: Ledger) -> None:
    (lease,) = hold(ledger, Tap())

    def refuse(found: Lease) -> None:
        assert found == lease
        raise NotAllowed("it is not yours")

    with pytest.raises(NotAllowed):
        ledger.begin_release(lease.id, refuse)
    assert ledger.lease(lease.id) == lease


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
    assert ledger.entries(HistoryQuery(first.name)) == []
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
    assert len(ledger.entries(HistoryQuery("vnet0"))) == (make is hold)


def test_a_lease_that_is_gone_is_named(ledger: Ledger) -> None:
    (lease,) = reserve(ledger, Tap())
    calls: list[Callable[[], object]] = [
        lambda: ledger.activate([lease._replace(id="none")], [None]),
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
    entries = ledger.entries(HistoryQuery("vnet0"))
    assert [entry.owner for entry in entries] == ["vm3", "vm2", "vm1"]
    assert [entry.created for entry in entries] == [400.0, 310.0, 200.0]
    assert [entry.ended for entry in entries] == [None, 320.0, 210.0]
    assert [entry.netns for entry in entries] == [THERE.path, HERE.path, HERE.path]
    assert ledger.entries(HistoryQuery("vnet1")) == []


def test_history_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HISTORY_ROWS", 3)
    leases = hold(ledger, *[Tap()] * 5)
    for lease in leases:
        end(ledger, lease)
    assert [ledger.ended(lease.id) for lease in leases] == [False] * 2 + [True] * 3
    end(ledger, *hold(ledger, *[Tap()] * 2))
    assert [ledger.ended(lease.id) for lease in leases] == [False] * 4 + [True]


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


def test_an_interface_index_is_never_in_use_twice_I1(ledger: Ledger) -> None:
    leases = hold(ledger, *[Tap()] * 3)
    replanted = ledger.hold_name(leases[0].id)
    reindexed = ledger.reindex(leases[1].id)
    given = [lease.ifindex for lease in (*leases, replanted, reindexed)]
    assert len(set(given)) == 5
    assert all(FIRST_IFINDEX <= ifindex <= LAST_IFINDEX for ifindex in given)


@pytest.mark.parametrize("column", ["name", "ifindex", "id"])
def test_the_file_itself_refuses_what_two_leases_may_not_share_I1(
    ledger: Ledger, column: str
) -> None:
    hold(ledger, Tap(), Tap())
    with pytest.raises(sqlite3.IntegrityError, match=f"UNIQUE.*{column}"):
        ledger.file.connection.execute(f"UPDATE lease SET {column} = 1")  # noqa: S608 - not a value


def test_interface_indexes_wrap_around_and_skip_those_in_use(
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


def test_a_lease_with_a_placeholder_keeps_its_name_and_says_so(ledger: Ledger) -> None:
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
def test_a_name_comes_back_only_after_fin_wait_I2(
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


def test_many_foreign_names_are_listed_at_once(ledger: Ledger) -> None:
    taken = {f"vnet{number}": 2 + number for number in range(1000)}
    asked: list[str] = []

    def ask(name: str) -> int:
        asked.append(name)
        return taken.get(name, 0)

    def pick(changed: set[int] | None) -> str:
        (lease,) = ledger.reserve(
            HERE,
            [Reservation(Tap(), names.parse("vnet%d"), None, Wiring())],
            manager=ME,
            holder_of=ask,
            changed_links=lambda: changed,
            list_holders=lambda: taken,
        )
        ledger.end([lease.id])
        return lease.name

    assert pick(set()) == "vnet1000"
    assert len(asked) < 20
    asked.clear()
    assert pick(None) == "vnet1000", "any device may have changed"
    assert len(asked) < 20
    del taken["vnet500"], taken["vnet7"]
    assert pick({502, 9}) == "vnet7"
    assert pick({9}) == "vnet7"


def test_templates_are_those_that_were_used(ledger: Ledger) -> None:
    hold(ledger, Tap(), Tap(name="ci%d-a"), Tap(name="plain"))
    hold(ledger, Tap(), netns=THERE)
    assert sorted(ledger.templates()) == ["ci%d-a", "vnet%d"]


def test_the_reaper_quits_only_when_nothing_waits(ledger: Ledger) -> None:
    quits: list[str] = []
    waiting, _ = hold(ledger, Tap(), Tap())
    release(ledger, waiting)
    assert not ledger.call_if_idle(lambda: quits.append("quit"))
    assert quits == []
    ledger.end([waiting.id])
    assert ledger.call_if_idle(lambda: quits.append("quit"))
    assert quits == ["quit"]


def test_no_process_can_release_while_the_reaper_quits(ledger: Ledger) -> None:
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


def stable(ledger: Ledger, key: str, netns: Netns = HERE, **more: Any) -> Lease:
    """Lease the stable name of a key."""
    (lease,) = reserve(ledger, Tap(naming=Naming.STABLE, key=key, **more), netns=netns)
    (lease,) = ledger.activate([lease], [None])
    return lease


def test_stable_gives_a_key_its_mac_again(path: Path) -> None:
    macs = []
    for _ in range(3):  # as after a restart of the host
        ledger = Ledger(path, Clock())
        lease = stable(ledger, "web")
        macs.append(lease.mac)
        end(ledger, lease)
        end(ledger, *hold(ledger, Tap(), Tap()))
        ledger.close()
    assert len(set(macs)) == 1
    with closing(Ledger(path, Clock())) as other:
        assert stable(other, "db").mac != macs[0]


def test_a_mac_that_was_given_is_not_the_keys(ledger: Ledger) -> None:
    given = stable(ledger, "web", mac="52:54:00:00:00:01")
    end(ledger, given)
    first = stable(ledger, "web")
    assert (given.mac, first.mac != given.mac) == ("52:54:00:00:00:01", True)
    end(ledger, first)
    end(ledger, stable(ledger, "web", mac="52:54:00:00:00:01"))
    assert stable(ledger, "web").mac == first.mac


def test_no_other_lease_gets_the_mac_of_a_key(path: Path) -> None:
    drawn = iter([b"\0\0\1", b"\0\0\1", b"\0\0\2"])

    def randomness(size: int) -> bytes:
        return next(drawn) if size == 3 else os.urandom(size)

    with closing(Ledger(path, Clock(), randomness=randomness)) as ledger:
        web = stable(ledger, "web")
        end(ledger, web)
        assert web.mac == "52:54:00:00:00:01"
        (other,) = reserve(ledger, Tap())
        assert other.mac == "52:54:00:00:00:02"


def test_two_namespaces_do_not_share_the_mac_of_a_key(ledger: Ledger) -> None:
    """Their macvtaps may be on one network."""
    here = stable(ledger, "web")
    there = stable(ledger, "web", THERE)
    assert (here.name, here.mac != there.mac) == (there.name, True)


def test_a_key_gets_another_mac_while_another_device_has_its_own(
    ledger: Ledger,
) -> None:
    web = stable(ledger, "web", bridge="br0")
    end(ledger, web)
    (other,) = reserve(ledger, Tap(bridge="br0", mac=web.mac))
    ledger.activate([other], [None])
    assert stable(ledger, "web", bridge="br0").mac != web.mac


def test_a_mac_that_is_only_offered_gives_way_to_that_of_the_key(
    ledger: Ledger,
) -> None:
    """A fleet offers a MAC of the host's blocks; the key had one before."""
    spec = Tap(naming=Naming.STABLE, key="web")
    template = model.check_spec(spec)
    macs = []
    for mac in ("0a:54:00:00:00:01", "0a:54:00:00:00:02"):
        offered = Reservation(spec, template, mac, Wiring(), mac_is_any=True)
        (lease,) = ledger.reserve(
            HERE,
            [offered],
            manager=ME,
            holder_of=nobody_has,
            changed_links=nothing_changed,
        )
        macs.append(lease.mac)
        ledger.end([lease.id])
    assert macs == ["0a:54:00:00:00:01"] * 2
