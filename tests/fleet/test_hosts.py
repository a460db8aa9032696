# SPDX-License-Identifier: Apache-2.0
"""What two hosts of a fleet do: blocks, registrations, hand-over, fences, no store."""

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

import tapster
from lab import library
from tapster import ConflictError, RequestError, Tap
from tapster.fleet import doctor, keys
from tapster.fleet.book import REST, figures
from tapster.fleet.keys import Keys, Permit
from tapster.fleet.member import LOW
from tapster.fleet.steps import NoPermit
from tapster.fleet.store import (
    Committed,
    FleetUnavailable,
    FleetUnclear,
    MacRegistered,
)
from tapster.model import Vm
from tests.fleet.hosts import MAC, Pair, X


def test_each_host_makes_up_macs_of_its_own_block(pair: Pair) -> None:
    macs = {host.add().mac for host in (pair.a, pair.b) for _ in range(20)}
    assert len(macs) == 40
    owners = {block: owner.host for block, owner in pair.fleet.blocks()}
    assert sorted(owners.values()) == ["a", "b"]
    assert {owners[keys.block_of(mac)] for mac in macs} == {"a", "b"}


def test_macs_are_made_up_without_the_store(pair: Pair) -> None:
    pair.store.away = True
    calls = pair.store.calls
    assert pair.a.add().mac.startswith("0a:54:00:")
    assert pair.store.calls == calls


def test_a_mac_rests_before_another_vm_gets_it(pair: Pair) -> None:
    (block,) = pair.a.member.book.blocks()
    book = pair.a.member.book
    lease = pair.a.add()
    pair.a.host.release(lease.id)
    pair.a.host.reap(now=True)
    pair.a.member.sync()
    given = {book.next_mac(time.time()) for _ in range(2 * keys.BLOCK_SIZE)}
    assert given == {*keys.macs_of(block)} - {lease.mac}
    pair.a.late = REST + 10
    pair.a.member.sync()
    assert pair.registration(lease.mac) is None
    given = {book.next_mac(1e12) for _ in range(keys.BLOCK_SIZE)}
    assert lease.mac in given


def test_a_clock_that_was_wrong_lets_no_mac_rest_for_years(pair: Pair) -> None:
    lease = pair.a.add()
    pair.a.host.release(lease.id)
    pair.a.host.reap(now=True)
    pair.a.member.sync()
    now = time.time()
    assert pair.a.member.book.free_macs(now) == keys.BLOCK_SIZE - 1
    assert pair.a.member.book.free_macs(now - 1) == keys.BLOCK_SIZE - 1
    year = 365 * 86400
    for shown in (now - year, now + year):
        assert pair.a.member.book.free_macs(shown) == keys.BLOCK_SIZE
        assert len(pair.a.member.book.rested(shown)) == 1


def test_a_host_takes_another_block_in_time(pair: Pair) -> None:
    leases = [pair.a.add() for _ in range(keys.BLOCK_SIZE - LOW + 1)]
    assert pair.a.member.sync().block
    assert len(pair.a.member.book.blocks()) == 2
    assert len({lease.mac for lease in leases}) == len(leases)


def test_a_host_without_macs_makes_up_random_ones(pair: Pair) -> None:
    (block,) = pair.a.member.book.blocks()
    pair.a.member.book.set_block(block, lost=True)
    assert pair.a.add().mac.startswith("52:54:00:")


def test_a_mac_that_a_vm_has_is_refused_to_another(pair: Pair) -> None:
    pair.a.add(MAC, X)
    with pytest.raises(MacRegistered, match=r"VM X has it on host a \(epoch 0\.0\)"):
        pair.b.add(MAC)
    assert pair.b.host.leases() == []
    assert pair.b.member.sync().problems == ()
    assert pair.holder() == "X a active"


def test_segments_have_registrations_of_their_own(pair: Pair) -> None:
    pair.b.member.book.open({"br1": "lab"})
    pair.a.add(MAC, X)
    lease = pair.b.add(MAC, bridge="br1")
    assert pair.registration(MAC, "lab") is not None
    pair.b.host.set(lease.id, bridge="br0")
    assert pair.b.member.sync().problems[0].record.segment == "default"
    ended = pair.registration(MAC, "lab")
    assert ended is not None
    assert ended.state == "ended"
    assert pair.holder() == "X a active"


def test_registrations_follow_a_changed_configuration_of_segments(pair: Pair) -> None:
    own = pair.a.add()
    lease = pair.a.add(MAC, X)
    pair.a.member.sync()
    for segments, here, there in (
        ({"br0": "prod"}, "prod", "default"),
        ({}, "default", "prod"),
    ):
        pair.a.settings = pair.a.settings._replace(segments=segments)
        pair.a.start().sync()
        for mac, left in ((MAC, "parked"), (own.mac, "ended")):
            begun, ended = pair.registration(mac, here), pair.registration(mac, there)
            assert begun is not None
            assert ended is not None
            assert (begun.host, begun.state, ended.state) == ("a", "active", left)
    pair.a.host.release(lease.id)
    pair.a.member.sync()
    assert pair.holder() == "X a parked"


def test_a_mac_of_another_hosts_block_is_refused_before_that_host_has_pushed(
    pair: Pair,
) -> None:
    mac = pair.a.add().mac
    assert pair.registration(mac) is None
    with pytest.raises(MacRegistered, match="a block of host a"):
        pair.b.add(mac)


def test_a_vm_keeps_its_mac_while_no_host_runs_it(pair: Pair) -> None:
    lease = pair.a.add(MAC, X)
    pair.a.host.release(lease.id)
    pair.a.member.sync()
    assert pair.holder() == "X a parked"
    with pytest.raises(MacRegistered, match="reserved for VM X"):
        pair.b.add(MAC)
    again = pair.b.add(MAC, X)
    assert pair.b.epoch(again) == "1.0"
    assert pair.holder() == "X b active"


def test_a_vm_without_a_name_of_its_own_keeps_nothing(pair: Pair) -> None:
    lease = pair.a.add(MAC)
    pair.a.host.release(lease.id)
    pair.a.member.sync()
    other = pair.b.add(MAC)
    assert pair.b.epoch(other) == "1.0"


def test_a_vm_starts_again_where_it_ran_before_its_release_was_pushed(
    pair: Pair,
) -> None:
    lease = pair.a.add(MAC, X)
    pair.a.host.release(lease.id)
    pair.a.host.reap(now=True)
    again = pair.a.add(MAC, X)
    assert pair.a.epoch(again) == "1.0"
    pair.a.member.sync()
    assert pair.holder() == "X a active"


@pytest.mark.parametrize("first", ["take", "release"])
def test_a_hand_over_ends_the_same_in_every_order_of_the_pushes(
    pair: Pair, first: str
) -> None:
    source = pair.a.add(MAC, X)
    target = pair.b.add(MAC, Vm("X", incoming=pair.a.epoch(source)), standby=True)
    pair.b.member.sync()
    assert pair.holder() == "X a active"  # it still runs there
    pair.b.host.set(target.id, standby=False)
    pair.a.host.release(source.id)
    hosts = [pair.b, pair.a] if first == "take" else [pair.a, pair.b]
    for host in hosts:
        assert host.member.sync().problems == ()
    registration = pair.registration()
    assert registration is not None
    assert (registration.host, registration.lease, str(registration.epoch)) == (
        "b",
        target.id,
        "0.1",
    )


def test_a_cancelled_hand_over_leaves_no_trace(pair: Pair) -> None:
    source = pair.a.add(MAC, X)
    target = pair.b.add(MAC, Vm("X", incoming=pair.a.epoch(source)), standby=True)
    pair.b.host.release(target.id)
    pair.b.member.sync()
    registration = pair.registration()
    assert registration is not None
    assert registration.lease == source.id
    assert registration.state == "active"


def test_a_hand_over_without_an_epoch_waits_for_the_release(pair: Pair) -> None:
    source = pair.a.add(MAC, X)
    target = pair.b.add(MAC, X, standby=True)
    pair.b.host.set(target.id, standby=False)
    (problem,) = pair.b.member.sync().problems
    assert "on host a" in problem.problem
    pair.a.host.release(source.id)
    for host in (pair.a, pair.b):
        assert host.member.sync().problems == ()
    assert pair.b.epoch(target) == "1.0"
    assert pair.holder() == "X b active"


def test_an_epoch_is_for_a_device_on_standby(pair: Pair) -> None:
    with pytest.raises(RequestError, match="standby"):
        pair.b.add(MAC, Vm("X", incoming="0.0"))


def test_without_an_epoch_a_vm_that_runs_elsewhere_is_refused(pair: Pair) -> None:
    pair.a.add(MAC, X)
    with pytest.raises(MacRegistered, match="on host a"):
        pair.b.add(MAC, X)


# The store is away


def test_an_acquire_goes_on_without_the_store_and_is_checked_later(
    pair: Pair,
) -> None:
    pair.a.add(MAC, X)
    pair.store.away = True
    lease = pair.b.add(MAC)
    (entry,) = pair.b.member.book.dirty()
    assert "unasked" in entry.problem
    pair.store.away = False
    (problem,) = pair.b.member.sync().problems
    assert "VM X has it on host a" in problem.problem
    assert pair.b.host.find(lease.id).state == "active"  # nobody is cut off
    assert pair.holder() == "X a active"


@pytest.mark.parametrize("text", ["[fleet", "[fleet]\nbudget = 0", "", None])
def test_an_acquire_goes_on_although_the_configuration_is_damaged(
    pair: Pair, text: str | None
) -> None:
    pair.a.add(MAC, X)
    if text is None:
        pair.b.config.unlink()
    else:
        pair.b.config.write_text(text)
    pair.b.add(MAC)
    (entry,) = pair.b.member.book.dirty()
    assert entry.problem.startswith(f"unasked: {pair.b.config}")


def test_an_acquire_can_be_refused_without_the_store(pair: Pair) -> None:
    pair.b.configure('when_away = "refuse"')
    pair.store.away = True
    with pytest.raises(FleetUnavailable, match=r"away.*when_away"):
        pair.b.add(MAC)
    assert pair.b.host.leases() == []
    assert pair.b.add().mac  # one of its own block needs no question


def test_a_registration_whose_answer_was_lost_is_no_obstacle(pair: Pair) -> None:
    pair.store.loses = True
    lease = pair.a.add(MAC, X)
    pair.store.loses = False
    assert pair.a.member.sync().problems == ()
    assert pair.a.epoch(lease) == "0.0"
    assert pair.holder() == "X a active"


def test_a_sync_whose_answers_are_lost_can_be_repeated(pair: Pair) -> None:
    lease = pair.a.add()
    pair.store.loses = True
    with pytest.raises(FleetUnclear):
        pair.a.member.sync()
    pair.store.loses = False
    pair.a.host.release(lease.id)
    pair.a.start().sync()
    registration = pair.registration(lease.mac)
    assert registration is not None
    assert registration.state == "ended"


def test_ending_a_lease_never_asks_the_store(pair: Pair) -> None:
    lease = pair.a.add(MAC, X)
    calls = pair.store.calls
    pair.a.host.set(lease.id, bridge="br1")
    pair.a.host.release(lease.id)
    pair.a.host.reap(now=True)
    pair.a.host.recover()
    assert pair.store.calls == calls


def test_the_session_outlives_another_process_that_synced(pair: Pair) -> None:
    key = Keys().session("a")
    daemon = pair.a.member
    daemon.sync()
    pair.a.late = 1.0
    pair.a.start().sync()  # tapster fleet sync
    daemon.sync()
    pair.store.end_session(pair.store.last_session)
    assert key in pair.store.values


def test_a_sync_of_everything_writes_only_what_differs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.a.add(MAC, X)
    leases = [pair.a.add() for _ in range(60)]
    pair.a.member.sync()
    key = Keys().row("a", leases[0].id)
    right = pair.store.values[key]
    pair.store.values[key] = "{}"
    written: list[str] = []
    commit = pair.store.commit

    def note(
        expected: Mapping[str, str | None],
        writes: Mapping[str, str | None],
        *,
        session: int = 0,
    ) -> Committed:
        written.extend(writes)
        return commit(expected, writes, session=session)

    monkeypatch.setattr(pair.store, "commit", note)
    pair.a.member.sync(everything=True)
    assert written == [key]
    assert pair.store.values[key] == right


def test_an_old_store_learns_what_is_newer(pair: Pair) -> None:
    old = dict(pair.store.values)
    lease = pair.a.add(MAC, X)
    pair.a.host.release(lease.id)
    pair.a.member.sync()
    moved = pair.b.add(MAC, X)
    pair.b.member.sync()
    pair.store.values = old
    for host in (pair.a, pair.b):
        host.start().sync(everything=True)
    registration = pair.registration()
    assert registration is not None
    assert (registration.host, registration.lease) == ("b", moved.id)


def test_a_block_that_an_old_store_gave_away_is_used_no_more(pair: Pair) -> None:
    (block,) = pair.a.member.book.blocks()
    key = Keys().block(block)
    pair.store.values[key] = pair.store.values[key].replace('"a"', '"b"')
    pair.a.member.sync(everything=True)
    assert pair.a.member.book.blocks()[block] is False
    assert keys.block_of(pair.a.add().mac) != block


# Hosts that die, leave, or share a name


def test_a_restored_ledger_gives_out_no_mac_of_a_vm_that_was_started_later(
    pair: Pair, tmp_path: Path
) -> None:
    """That VM may run here, where the ledger does not know it, or elsewhere by now."""
    first, backup = pair.a.add(), tmp_path / "backup.db"
    pair.a.member.sync()
    with closing(sqlite3.connect(pair.a.ledger)) as db:
        db.execute("VACUUM INTO ?", (str(backup),))
    later = [pair.a.add(), pair.a.add(vm=X)]
    pair.a.member.sync()
    epoch = pair.a.epoch(later[1])
    moved = pair.b.add(later[1].mac, Vm("X", incoming=epoch), standby=True)
    pair.b.host.set(moved.id, standby=False)
    pair.b.member.sync()
    pair.a.host.close()
    for file in tmp_path.glob("a.db*"):
        file.unlink()
    shutil.copy(backup, pair.a.ledger)
    pair.a.host = tapster.Host(
        pair.a.ledger, system=pair.a.system, reaper=library.no_reaper
    )
    pair.callback(pair.a.host.close)
    pair.a.start().sync(everything=True)
    macs = {pair.a.add().mac for _ in range(10)}
    assert not macs & {first.mac, *[lease.mac for lease in later]}


def test_a_vm_of_a_fenced_host_starts_elsewhere(pair: Pair) -> None:
    pair.a.add(MAC, X)
    pair.fleet.fence("a", by="ha", why="no heartbeat", boot="boot-a")
    lease = pair.b.add(MAC, X)
    assert pair.b.epoch(lease) == "1.0"
    with pytest.raises(NoPermit, match="declared dead by 'ha'"):
        pair.a.start().sync()
    assert [e.record.vm for e in pair.a.member.superseded()] == ["X"]
    # Host a has rebooted, and its recover has ended the lease.
    pair.a.boot = "another"
    (lease_of_a,) = pair.a.host.leases()
    pair.a.host.release(lease_of_a.id)
    pair.a.start().sync()
    assert pair.holder() == "X b active"


def test_a_silent_host_is_given_up_by_the_user_alone(pair: Pair) -> None:
    pair.a.add(MAC, X)
    gone = Vm("X", takeover=True)
    with pytest.raises(MacRegistered):
        pair.b.add(MAC, gone)  # its session lives
    del pair.store.values[Keys().session("a")]
    with pytest.raises(MacRegistered):
        pair.b.add(MAC, X)
    pair.b.add(MAC, gone)
    (problem,) = pair.a.member.sync(everything=True).problems
    assert "host b" in problem.problem


def test_a_fence_can_be_lifted(pair: Pair) -> None:
    pair.fleet.fence("a", by="me", why="mistake")
    pair.fleet.lift("a")
    assert pair.a.member.sync().problems == ()


def test_two_ledgers_cannot_have_one_name(pair: Pair) -> None:
    pair.b.settings = pair.b.settings._replace(name="a")
    with pytest.raises(NoPermit, match="belongs to ledger"):
        pair.b.start().join()


def test_an_evicted_host_changes_nothing_and_its_vms_are_free(pair: Pair) -> None:
    named = pair.a.add(MAC, X)
    other = pair.a.add()
    pair.a.member.sync()
    done = pair.fleet.evict("a")
    assert any("parked" in line for line in done)
    assert pair.holder() == "X a parked"
    assert pair.registration(other.mac) is None
    assert [owner.host for _, owner in pair.fleet.blocks()] == ["b"]
    pair.a.host.release(named.id)
    with pytest.raises(NoPermit, match="evicted"):
        pair.a.member.sync()
    assert pair.b.add(MAC, X)


def test_a_host_leaves_when_it_has_no_leases(pair: Pair) -> None:
    lease = pair.a.add(MAC)
    with pytest.raises(ConflictError, match="1 leases are not released"):
        pair.a.member.leave()
    pair.a.host.release(lease.id)
    pair.a.member.leave()
    assert [owner.host for _, owner in pair.fleet.blocks()] == ["b"]
    assert pair.registration() is None
    assert pair.a.add().mac.startswith("52:54:00:")
    with sqlite3.connect(pair.a.ledger) as db:
        left = db.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'fleet_%'")
        assert left.fetchall() == []
    db.close()
    pair.a.start().join()
    assert pair.a.add().mac.startswith("0a:54:00:")


def test_a_host_joins_with_its_running_vms(pair: Pair) -> None:
    pair.a.host.release(pair.a.add().id)
    pair.a.member.leave()
    lease = pair.a.add(MAC)
    pair.b.add(MAC)
    (problem,) = pair.a.start().join().problems
    assert problem.record.lease == lease.id


def test_a_vm_that_no_host_runs_can_be_forgotten(pair: Pair) -> None:
    lease = pair.a.add(MAC, X)
    with pytest.raises(ConflictError, match="runs on host a"):
        pair.fleet.forget("X")
    pair.a.host.release(lease.id)
    pair.a.member.sync()
    assert pair.fleet.forget("X") == [f"deleted registration of {MAC} by X"]
    assert pair.registration() is None
    with pytest.raises(RequestError, match="no registration"):
        pair.fleet.forget("X")


# Looking


def test_the_inventory_shows_running_vms(pair: Pair) -> None:
    lease = pair.a.add(MAC, X)
    pair.b.add()
    for host in (pair.a, pair.b):
        host.member.sync()
    assert {(name, row.mac) for name, _, row in pair.fleet.rows()} >= {("a", MAC)}
    ((name, _, row),) = pair.fleet.who(MAC)
    assert (name, row.name, row.on, row.vm) == ("a", lease.name, "br0", "X")
    (located,) = pair.fleet.where_is("X")
    assert located.registration.host == "a"
    pair.a.host.release(lease.id)
    pair.a.member.sync()
    assert pair.fleet.who(MAC) == []
    assert len(pair.fleet.where_is("X")) == 1


def test_figures_need_no_store(pair: Pair) -> None:
    pair.store.away = True
    pair.a.add(MAC, X)
    shown = figures(pair.a.member.book, 1e12)
    assert shown["dirty_rows"] == 1
    assert shown["conflicts"] == 0  # the MAC was not checked, and may be free
    assert shown["unregistered"] == 1
    assert shown["block_free"] == keys.BLOCK_SIZE


def test_figures_count_conflicts_and_unchecked_macs_apart(
    pair: Pair,
) -> None:
    pair.a.add(MAC, X)
    pair.store.away = True
    pair.b.add(MAC)
    problems = doctor.examine(pair.b.member, time.time())
    assert any("compares the MAC" in problem.remedy for problem in problems)
    pair.store.away = False
    pair.b.member.sync()
    shown = figures(pair.b.member.book, time.time())
    assert (shown["conflicts"], shown["unregistered"]) == (1, 1)
    problems = doctor.examine(pair.b.member, time.time())
    assert any("end one of the VMs" in problem.remedy for problem in problems)


def test_a_dry_run_changes_nothing(pair: Pair) -> None:
    lease = pair.a.add(MAC, X)
    pair.a.host.release(lease.id)
    pair.a.member.sync()
    before = dict(pair.store.values)
    fleet = type(pair.fleet)(pair.store, Keys(), dry_run=True)
    assert fleet.forget("X")
    assert fleet.evict("a")
    fleet.fence("b", by="me", why="test")
    assert pair.store.values == before


def test_a_permit_never_goes_back(pair: Pair) -> None:
    key = Keys().permit("a")
    numbers = []
    for change in (
        lambda: pair.a.host.release(pair.a.add().id),
        lambda: pair.fleet.fence("a", by="me", why="x"),
        lambda: pair.fleet.lift("a"),
        lambda: pair.fleet.evict("a"),
        lambda: pair.a.start().join(),
    ):
        change()
        permit = keys.permit_of(key, pair.store.values[key])
        assert isinstance(permit, Permit)
        numbers.append(permit.number)
    assert numbers == sorted(numbers)


# Outside a fleet


def test_outside_a_fleet_nothing_of_it_is_imported() -> None:
    code = """
import sys, tempfile, tapster
from tapster.testing import FakeSystem
with tempfile.TemporaryDirectory() as folder:
    with tapster.Host(folder + "/l.db", system=FakeSystem(), reaper=print) as host:
        host.acquire(tapster.Tap(mac="52:54:00:00:00:01"))
print(*[name for name in sys.modules if "tapster.fleet" in name or name == "ssl"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == ""


def test_outside_a_fleet_a_vm_has_no_id(pair: Pair) -> None:
    pair.a.member.leave()
    with pytest.raises(RequestError, match="tapster fleet join"):
        pair.a.host.acquire(Tap(vm=X))
