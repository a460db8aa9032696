# SPDX-License-Identifier: Apache-2.0
"""Upkeep on the host in memory: what it reports, repairs, releases and retries."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from errno import EEXIST
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lab.library import close_all, no_reaper
from tapster import Host, KernelError, Macvtap, OpenDevice, Repair, State, Tap
from tapster.daemon.repairs import FIRST_RETRY
from tapster.daemon.upkeep import CLOSE, PATROL, SWITCH_SECONDS, TAKEN_OFF
from tapster.errors import HostError, LedgerError
from tapster.kernel.port import HERE, LinkChange, Vlans, WatchReport
from tapster.ledger import FIRST_IFINDEX
from tapster.model import Lease, Netns
from tapster.operations.followed import NAMESPACE_RETRY, FollowedNamespaces
from tapster.operations.look import Look
from tapster.operations.pace import AT_ONCE, SECONDS
from tapster.testing import FakeSystem
from tapster.testing.backends import Attached, make_backends
from tests.daemon.parts import Parts, parts

BR0 = Tap(bridge="br0", fin_wait=60)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Parts]:
    with parts(tmp_path) as made:
        yield made


class Watched:
    """Upkeep with both its watches, as the serving thread feeds it."""

    def __init__(self, made: Parts) -> None:
        self.made = made
        self.upkeep = made.upkeep
        self.here = made.system.watch(first=FIRST_IFINDEX)
        self.elsewhere = made.system.watch(first=FIRST_IFINDEX, elsewhere=True)
        self.upkeep.recover()

    def hear(self) -> list[str]:
        """Let upkeep look at what has changed; the events that it reports."""
        before = len(self.made.events)
        for watch in (self.here, self.elsewhere):
            changes = watch.changes()
            if changes is None:
                self.upkeep.recover()
            else:
                self.upkeep.look_at(changes)
        return [event.event for event in self.made.events[before:]]

    def close(self) -> None:
        self.here.close()
        self.elsewhere.close()


@pytest.fixture(params=["the daemon's", "another manager's"])
def watched(
    made: Parts, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watched]:
    """Upkeep of leases that the daemon, or another manager, has acquired."""
    watched = Watched(made)
    if request.param == "the daemon's":
        by_library = made.host.acquire

        def acquire(*how: Any, **more: Any) -> OpenDevice:
            opened = by_library(*how, **more)
            made.upkeep.acquired(opened.lease)
            assert made.events.pop().event == "acquired"
            return opened

        monkeypatch.setattr(made.host, "acquire", acquire)
    yield watched
    watched.close()


def acquire(host: Host, spec: Tap = BR0, **how: Any) -> OpenDevice:
    return host.acquire(spec, **how)


def test_tapsters_own_changes_are_no_events(watched: Watched) -> None:
    host = watched.made.host
    lease = acquire(host)
    assert watched.hear() == []
    host.set(lease.id, mtu=1400)
    lease.close()
    host.release(lease.id)
    assert watched.hear() == []


def test_the_first_look_at_the_daemons_own_device_reads_no_row(
    made: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(made)
    read: list[int] = []
    at = Look.at

    def looked(self: Look, netns: Netns, ifindexes: Iterable[int]) -> list[Lease]:
        read.extend(ifindexes)
        return at(self, netns, ifindexes)

    monkeypatch.setattr(Look, "at", looked)
    with acquire(made.host) as theirs, acquire(made.host) as ours:
        made.upkeep.acquired(ours.lease)
        assert watched.hear() == []
        assert read == [theirs.ifindex]
        made.system.stranger().set_by_name(ours.name, up=False)
        assert watched.hear() == ["down"]
        assert read == [theirs.ifindex, ours.ifindex]
    watched.close()


def test_a_device_on_standby_is_as_it_should_be(watched: Watched) -> None:
    made = watched.made
    with acquire(made.host) as opened:
        made.host.set(opened, standby=True)
        assert watched.hear() == []
        made.host.set(opened, standby=False)
        made.system.stranger().set_by_name("vnet0", up=False)
        assert watched.hear() == ["down"]


def test_a_foreign_change_is_reported_once_and_so_is_its_end(watched: Watched) -> None:
    stranger = watched.made.system.stranger()
    stranger.add_bridge("br1")
    lease = acquire(watched.made.host)
    for act, event in (
        (partial(stranger.set_by_name, "vnet0", up=False), "down"),
        (partial(stranger.set_by_name, "vnet0", up=True), "sound"),
        (partial(stranger.set_by_name, "vnet0", master="br1"), "moved"),
        (partial(stranger.set_by_name, "vnet0", master="br0"), "sound"),
        (partial(stranger.rename, "vnet0", "other"), "renamed"),
        (partial(stranger.rename, "other", "vnet0"), "sound"),
    ):
        act()
        assert watched.hear() == [event]
        assert watched.hear() == []
    stranger.delete_by_name("vnet0")
    assert watched.hear() == ["lost", "held"]
    assert watched.hear() == []
    lease.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mac": "02:00:00:00:00:01"}, "its MAC in the host is 02:00:00:00:00:01"),
        ({"alias": "mine\x1b"}, "its alias is 'mine\\x1b', not 'tapster:"),
        ({"alias": ""}, "its alias is ''"),
    ],
)
def test_a_foreign_mac_or_alias_is_put_back_at_once(
    watched: Watched, change: dict[str, Any], said: str
) -> None:
    lease = acquire(watched.made.host)
    stranger = watched.made.system.stranger()
    before = stranger.show("vnet0")
    stranger.set_by_name("vnet0", **change)
    assert stranger.show("vnet0") != before
    assert watched.hear() == ["changed"]
    assert said in str(watched.made.events[-1].detail)
    assert stranger.show("vnet0") == before
    assert watched.hear() == ["sound"]
    lease.close()


@pytest.mark.parametrize("repair", [False, True])
def test_who_changes_a_mac_again_and_again_is_off_the_bridge_for_a_minute(
    watched: Watched, repair: bool
) -> None:
    """A guest's VMM can do so without end, and take another VM's frames."""
    watched.upkeep.reconnect = repair
    lease = acquire(watched.made.host)
    stranger = watched.made.system.stranger()
    before = stranger.show("vnet0")
    for _ in range(AT_ONCE):
        stranger.set_by_name("vnet0", mac="02:00:00:00:00:01")
        assert watched.hear() == ["changed"]
        assert stranger.show("vnet0") == before
        assert watched.hear() == ["sound"]
    stranger.set_by_name("vnet0", mac="02:00:00:00:00:01")
    assert watched.hear() == [], "reports are paced, too"
    watched.made.clock.advance(FIRST_RETRY)
    watched.upkeep.retry()
    assert [one.event for one in watched.made.events[-2:]] == ["changed", "moved"]
    assert watched.made.events[-1].detail == TAKEN_OFF
    for _ in range(3):
        device = stranger.show("vnet0")
        assert device
        assert (device.up, device.master) == (False, 0)
        stranger.set_by_name("vnet0", mac="02:00:00:00:00:02")
        assert watched.hear() == []
        watched.upkeep.patrol()
        watched.upkeep.retry()
    watched.made.clock.advance(SECONDS)
    watched.upkeep.retry()
    assert watched.hear() == ["sound"]
    assert stranger.show("vnet0") == before
    stranger.set_by_name("vnet0", mac="02:00:00:00:00:01")
    watched.hear()
    assert stranger.show("vnet0") == before, "a minute later it is put back at once"
    lease.close()


def test_an_entry_is_put_back_when_who_took_it_has_its_own_mac_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device with another VM's MAC takes that VM's entry from the bridge."""
    made = watched.made
    victim = acquire(made.host, BR0._replace(learning=False))
    other = acquire(made.host)
    watched.hear()
    recover = made.host.operations.recover
    some, tried = recover.some, []

    def refuse_first(ids: Sequence[str], **how: Any) -> list[Repair]:
        tried.append([*ids])
        if tried == [[victim.id]]:
            raise KernelError(EEXIST, "adding an entry")
        return some(ids, **how)

    monkeypatch.setattr(recover, "some", refuse_first)
    watched.upkeep.look_at(WatchReport({}, set(), {}, {HERE: {victim.ifindex}}))
    assert tried == [[victim.id]]
    made.system.stranger().set_by_name(other.name, mac=victim.mac)
    assert watched.hear() == ["changed"]
    assert tried == [[victim.id], [other.id], [victim.id]]
    assert watched.upkeep.retries == 0
    close_all(victim, other)


def test_a_macvtap_whose_mac_changes_without_end_is_down_for_a_minute(
    watched: Watched,
) -> None:
    """With a router's MAC it gets what other VMs send there."""
    stranger = watched.made.system.stranger()
    stranger.add_veth("low", "far")
    lease = watched.made.host.acquire(Macvtap(lower="low", fin_wait=60))
    before = stranger.show(lease.name)
    for _ in range(AT_ONCE):
        stranger.set_by_name(lease.name, mac="02:00:00:00:00:01")
        assert watched.hear() == ["changed"]
        assert watched.hear() == ["sound"]
    stranger.set_by_name(lease.name, mac="02:00:00:00:00:01")
    watched.hear()
    watched.made.clock.advance(FIRST_RETRY)
    watched.upkeep.retry()
    assert watched.made.events[-1].detail == TAKEN_OFF
    device = stranger.show(lease.name)
    assert device
    assert not device.up
    watched.made.clock.advance(SECONDS)
    watched.upkeep.retry()
    assert watched.hear() == ["sound"]
    assert stranger.show(lease.name) == before
    lease.close()


def test_patrols_find_every_change_that_nobody_reports(watched: Watched) -> None:
    made, stranger = watched.made, watched.made.system.stranger()
    with ExitStack() as opened:
        for _ in range(2 * PATROL + 1):
            opened.enter_context(acquire(made.host))
        made.host.release(made.host.find("vnet1").id)
        watched.hear()
        for name in ("vnet1", "vnet2", f"vnet{PATROL}", f"vnet{2 * PATROL}"):
            stranger.set_by_name(name, mac="02:00:00:00:00:01")
        watched.here.changes()  # nobody hears of it
        changed = []
        for _ in range(3):
            before = len(made.events)
            watched.upkeep.patrol()
            changed.append([event.name for event in made.events[before:]])
            watched.hear()
        assert changed == [["vnet2", f"vnet{PATROL}"], [f"vnet{2 * PATROL}"], []]
        watched.upkeep.patrol()
        assert watched.hear() == []
    device = stranger.show("vnet2")
    assert device
    assert device.mac != "02:00:00:00:00:01"


def test_a_port_that_leaves_while_it_is_looked_at_has_lost_nothing(
    watched: Watched,
) -> None:
    """That it left is reported, and its former bridge has nothing of it."""
    look = watched.made.host.operations.look
    with acquire(watched.made.host, Tap(bridge="br0", learning=False)) as device:
        before = look.device(device.lease)
        assert before
        watched.made.system.stranger().set_by_name("vnet0", master="")
        assert look.unreported(device.lease, before) is None
        assert not look.lacks_entry(device.lease, before)


@pytest.mark.parametrize("repair", [False, True])
def test_patrols_find_a_renamed_bridge(watched: Watched, repair: bool) -> None:
    """As recover, which would put the device on another bridge of that name."""
    made, stranger = watched.made, watched.made.system.stranger()
    watched.upkeep.reconnect = repair
    with acquire(made.host):
        watched.hear()
        watched.upkeep.patrol()
        assert made.events == []
        stranger.rename("br0", "lan0")
        watched.upkeep.patrol()
        assert [one.event for one in made.events] == ["moved"]
        assert watched.upkeep.retries == repair
        stranger.rename("lan0", "br0")
        watched.upkeep.patrol()
        assert [one.event for one in made.events] == ["moved", "sound"]


@pytest.mark.parametrize("repair", [False, True])
def test_patrols_find_changed_vlans(watched: Watched, repair: bool) -> None:
    made, stranger = watched.made, watched.made.system.stranger()
    watched.upkeep.reconnect = repair
    stranger.add_bridge("br1", vlan_filtering=True)
    lease = acquire(made.host, Tap(bridge="br1", vlan=10))
    watched.hear()
    with closing(made.system.netns(None)) as namespace:
        namespace.set_links([LinkChange(lease.ifindex, vlans=Vlans(20, ()))])
        watched.here.changes()  # nobody hears of it
        watched.upkeep.patrol()
        assert made.events[-1].event == "changed"
        assert made.events[-1].detail == "vlans is 20/-, not 10/-"
        watched.upkeep.patrol()
        assert (made.events[-1].event == "sound") is repair
        assert (namespace.vlans(lease.ifindex) == Vlans(10, ())) is repair
    lease.close()


def test_a_macvtap_gets_its_mtu_back_when_its_lower_device_has(
    watched: Watched,
) -> None:
    """The kernel lowers it with the lower device's, and reports no later raise."""
    made, stranger = watched.made, watched.made.system.stranger()
    watched.upkeep.reconnect = True
    stranger.add_veth("low", "far")
    lease = made.host.acquire(Macvtap(lower="low", fin_wait=60))
    watched.hear()
    stranger.set_by_name("low", mtu=1300)
    assert watched.hear() == ["changed"]
    watched.upkeep.patrol()
    assert watched.hear() == []
    stranger.set_by_name("low", mtu=1500)
    watched.hear()
    watched.upkeep.patrol()
    device = stranger.show(lease.name)
    assert device
    assert device.mtu == 1500
    assert watched.hear() == ["sound"]
    lease.close()


@pytest.mark.parametrize("repair", [False, True])
def test_patrols_find_changed_ports_of_open_vswitch(
    watched: Watched, repair: bool
) -> None:
    """Its database reports nothing to the kernel."""
    made, context = watched.made, watched.made.host.operations.context
    watched.upkeep.reconnect = repair
    made.system.stranger().add_bridge("ovs0")
    attached: Attached = {}
    context.backends = make_backends(attached, lambda _: None, context.ledger.id)
    with acquire(made.host, Tap(ovs="ovs0")), acquire(made.host):
        watched.hear()
        before = dict(attached)
        watched.upkeep.patrol()  # meets it
        watched.upkeep.patrol()
        assert made.events == []
        attached.clear()
        watched.upkeep.patrol()
        assert made.events == [], "each look reads the whole database"
        made.clock.advance(SWITCH_SECONDS)
        watched.upkeep.patrol()
        assert [(one.event, one.detail) for one in made.events] == [
            ("changed", "is missing")
        ]
        made.clock.advance(SWITCH_SECONDS)
        watched.upkeep.patrol()
        said = [one.event for one in made.events]
        assert said == (["changed", "sound"] if repair else ["changed"])
        assert attached == (before if repair else {})
        attached |= before
        made.clock.advance(SWITCH_SECONDS)
        watched.upkeep.patrol()
        assert [one.event for one in made.events] == ["changed", "sound"]


def test_no_patrol_takes_the_end_of_a_namespace_for_a_lost_device(
    watched: Watched, tmp_path: Path
) -> None:
    made = watched.made
    made.system.add_netns("pod")
    ledger = tmp_path / "ledger.db"
    with (
        Host(ledger, system=made.system, netns="pod", reaper=no_reaper) as host,
        acquire(host, Tap()),
    ):
        watched.upkeep.follow_new_namespaces()
    made.system.delete_netns("pod")
    watched.upkeep.patrol()
    assert made.events == []
    assert watched.hear() == ["ended"]


def test_a_device_that_changes_without_end_is_reported_once_a_second(
    watched: Watched,
) -> None:
    """Each report is a line of the log and a row of the history."""
    made, stranger = watched.made, watched.made.system.stranger()
    with acquire(made.host):
        told = 0
        names = ["vnet0", *(f"name{number}" for number in range(100))]
        for old, new in pairwise(names):
            stranger.rename(old, new)
            told += len(watched.hear())
        assert told == AT_ONCE
        made.clock.advance(1.0)
        watched.upkeep.retry()
        assert made.events[-1].detail == f"the device is called {names[-1]} now"
        stranger.rename(names[-1], "vnet0")
        assert watched.hear() == ["sound"]


def test_a_device_is_put_back_if_that_is_asked_for(watched: Watched) -> None:
    watched.upkeep.reconnect = True
    lease = acquire(watched.made.host)
    stranger = watched.made.system.stranger()
    stranger.set_by_name("vnet0", up=False)
    assert watched.hear() == ["down"]
    assert watched.hear() == ["sound"]
    device = stranger.show("vnet0")
    assert device
    assert device.up
    lease.close()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"mtu": 1300}, "mtu is 1300, not 1500"),
        ({"isolated": False}, "isolated is off, not on"),
        ({"learning": False}, "learning is off, not on; flood is off, not on"),
        ({"bpdu_guard": False}, "bpdu_guard is off, not on"),
        ({"root_guard": True}, "root_guard is on, not off"),
        ({"no_ipv4": False}, "IPv4 of the host is on, not off"),
    ],
)
@pytest.mark.parametrize("repair", [False, True])
def test_every_changed_property_is_reported_and_put_back_if_configured(
    watched: Watched, what: dict[str, Any], said: str, repair: bool
) -> None:
    made = watched.made
    watched.upkeep.reconnect = repair
    lease = acquire(made.host, BR0._replace(isolated=True, bpdu_guard=True))
    assert watched.hear() == []
    with closing(made.system.netns(None)) as namespace:
        namespace.set_links([LinkChange(lease.ifindex, **what)])
    assert watched.hear() == ["changed"]
    assert made.events[-1].detail == said
    assert watched.hear() == (["sound"] if repair else [])
    assert bool(made.host.differences(lease)) is not repair
    lease.close()


@pytest.mark.parametrize("from_start", [False, True])
def test_a_change_while_another_manager_works_on_the_lease_is_not_forgotten(
    watched: Watched, tmp_path: Path, from_start: bool
) -> None:
    watched.upkeep.reconnect = True
    lease = acquire(watched.made.host)
    stranger = watched.made.system.stranger()
    watched.hear()
    with Host(
        tmp_path / "ledger.db", system=watched.made.system, reaper=no_reaper
    ) as other:
        claims = other.operations.context.claims
        claims.claim(lease.id)
        stranger.set_by_name("vnet0", master="")
        if from_start:
            watched.here.changes()
            watched.upkeep.recover()
        assert watched.hear() == []
        watched.upkeep.retry()
        assert watched.upkeep.retries == 1, "it is still worked on"
        claims.release()
    watched.upkeep.retry()
    device, bridge = stranger.show("vnet0"), stranger.show("br0")
    assert device
    assert bridge
    assert device.master == bridge.ifindex
    assert watched.upkeep.retries == 0
    lease.close()


def test_a_device_is_put_back_when_its_bridge_comes_back(watched: Watched) -> None:
    made = watched.made
    watched.upkeep.reconnect = True
    lease = acquire(made.host)
    stranger = made.system.stranger()
    stranger.delete_by_name("br0")
    assert watched.hear() == ["moved"]
    made.clock.advance(FIRST_RETRY)
    watched.upkeep.retry()
    assert watched.upkeep.retries == 1, "there is no bridge yet"
    stranger.add_bridge("br0")
    made.clock.advance(2 * FIRST_RETRY)
    watched.upkeep.retry()
    assert watched.upkeep.retries == 0
    assert watched.hear() == ["sound"]
    lease.close()


def test_a_renamed_device_gets_its_name_back_if_that_is_configured(
    watched: Watched,
) -> None:
    stranger, host = watched.made.system.stranger(), watched.made.host
    watched.upkeep.reconnect = True
    lease = acquire(host)
    stranger.rename("vnet0", "other")
    assert watched.hear() == ["renamed"]
    assert watched.hear() == ["sound"]
    device = host.device(lease)
    assert device
    assert device.name == "vnet0"
    stranger.rename("vnet0", "other")
    stranger.add_tap("vnet0")
    assert watched.hear() == ["renamed"]
    assert watched.hear() == [], "another device has the name"
    lease.close()


def test_a_name_cannot_move_a_cursor(watched: Watched) -> None:
    lease = acquire(watched.made.host)
    watched.made.system.stranger().rename("vnet0", "a\x1b[2J")
    assert watched.hear() == ["renamed"]
    assert watched.made.events[-1].detail == "the device is called a?[2J now"
    lease.close()


def test_the_last_close_of_a_tap_releases_its_lease(watched: Watched) -> None:
    lease = acquire(watched.made.host, on_close=True)
    assert watched.hear() == []
    lease.close()
    watched.made.system.looked_at()
    assert watched.hear() == ["released"]
    assert watched.made.host.find(lease.id).state is State.FIN_WAIT


def test_the_end_of_a_process_releases_its_leases_and_ends_its_watch(
    watched: Watched,
) -> None:
    made = watched.made
    process = made.system.start(7)
    lease = acquire(made.host, pid=7)
    watched.upkeep.bind(lease.lease)
    assert made.watched == {process}
    lease.close()
    made.system.end(7)
    watched.upkeep.processes_ended([process])
    assert [event.event for event in made.events] == ["released"]


def test_a_lease_whose_process_has_ended_lasts_until_its_tap_is_closed(
    watched: Watched,
) -> None:
    made = watched.made
    process = made.system.start(7)
    lease = acquire(made.host, pid=7)
    watched.upkeep.bind(lease.lease)
    made.system.end(7)
    watched.upkeep.processes_ended([process])
    assert made.host.find(lease.id).state is State.ACTIVE
    lease.close()
    assert watched.hear() == ["released"]
    assert made.host.find(lease.id).state is State.FIN_WAIT


def test_one_process_is_watched_for_a_lease_however_often_it_is_bound(
    watched: Watched,
) -> None:
    made = watched.made
    lease = acquire(made.host)
    for pid in range(100, 400):
        made.system.start(pid)
        made.host.bind([lease], pid)
        watched.upkeep.bind(made.host.find(lease.id))
        assert len(made.watched) == 1
    made.host.bind([lease], None)
    watched.upkeep.bind(made.host.find(lease.id))
    assert made.watched == set()
    lease.close()


@pytest.mark.parametrize(
    "error", [HostError("the disk is full"), KeyError("a fault")], ids=repr
)
def test_a_release_that_fails_is_tried_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    made = watched.made
    process = made.system.start(7)
    lease = acquire(made.host, pid=7)
    watched.upkeep.bind(lease.lease)
    lease.close()
    made.system.end(7)

    def full(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as broken, suppress(KeyError):
        broken.setattr(made.host.operations.recover, "some", full)
        watched.upkeep.processes_ended([process])
    assert made.host.find(lease.id).state is State.ACTIVE
    watched.upkeep.retry()
    assert made.host.find(lease.id).state is State.ACTIVE, "it is not due yet"
    made.clock.advance(FIRST_RETRY)
    watched.upkeep.retry()
    assert made.host.find(lease.id).state is State.FIN_WAIT
    assert watched.upkeep.retries == 0


def test_a_lease_that_cannot_be_repaired_keeps_no_other_waiting(
    watched: Watched,
) -> None:
    """Both wait for their bridges, and one bridge comes back."""
    made = watched.made
    watched.upkeep.reconnect = True
    stranger = made.system.stranger()
    stranger.add_bridge("br1")
    back, lost = acquire(made.host), acquire(made.host, Tap(bridge="br1"))
    for bridge in ("br0", "br1"):
        stranger.delete_by_name(bridge)
    watched.hear()
    assert watched.upkeep.retries == 2
    stranger.add_bridge("br0")
    made.clock.advance(FIRST_RETRY)
    watched.upkeep.retry()
    assert watched.upkeep.retries == 1
    assert watched.hear() == ["sound"]
    (failure,) = made.log.named("not-repaired")[-1:]
    assert failure["leases"] == lost.id
    close_all(back, lost)


def test_a_repair_waits_although_another_of_the_same_lease_succeeds(
    watched: Watched,
) -> None:
    """The process of a VM in the background ends while there is no bridge."""
    made = watched.made
    watched.upkeep.reconnect = True
    process = made.system.start(7)
    lease = acquire(made.host, pid=7)
    watched.upkeep.bind(lease.lease)
    stranger = made.system.stranger()
    stranger.delete_by_name("br0")
    watched.hear()
    made.system.end(7)
    watched.upkeep.processes_ended([process])
    assert watched.upkeep.retries == 1
    stranger.add_bridge("br0")
    made.clock.advance(FIRST_RETRY)
    watched.upkeep.retry()
    assert watched.hear() == ["sound"]
    assert watched.upkeep.retries == 0
    lease.close()


def test_nothing_is_kept_of_leases_that_have_ended(watched: Watched) -> None:
    """The daemon runs for months."""
    made, upkeep = watched.made, watched.upkeep
    for number in range(10):
        closed = acquire(made.host, Tap(fin_wait=0), on_close=True)
        made.system.start(100 + number)
        bound = acquire(made.host, Tap(fin_wait=0), pid=100 + number)
        upkeep.bind(bound.lease)
        watched.hear()
        closed.close()
        watched.hear()
        made.host.release(bound)
        bound.close()
    assert made.host.leases() == []
    assert made.watched
    upkeep.patrol()
    assert made.watched == set()
    kept = [each for each in vars(upkeep).values() if isinstance(each, dict | set)]
    assert not any(kept)


def test_a_change_in_another_namespace_is_noticed(
    watched: Watched, tmp_path: Path
) -> None:
    made = watched.made
    made.system.add_netns("blue")
    made.system.stranger("blue").add_bridge("br0")
    with Host(
        tmp_path / "ledger.db",
        netns="blue",
        system=made.system,
        reaper=lambda _: None,
        backends=lambda *_: (),
    ) as blue:
        lease = acquire(blue)
    watched.upkeep.follow_new_namespaces()
    made.system.stranger("blue").set_by_name("vnet0", up=False)
    assert watched.hear() == ["down"]
    lease.close()
    made.system.delete_netns("blue")
    assert watched.hear() == ["ended"]
    assert made.host.leases() == []


def namespaces_with_a_lease_each(made: Parts, ledger: Path) -> list[str]:
    """Make twelve namespaces with a lease in each; return their names."""
    names = [f"space{number}" for number in range(12)]
    for name in names:
        made.system.add_netns(name)
        there = Host(
            ledger,
            netns=name,
            system=made.system,
            reaper=lambda _: None,
            backends=lambda *_: (),
        )
        with there:
            acquire(there, Tap()).close()
    return names


def test_one_look_finds_all_namespaces_that_end_at_once(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched.made
    names = namespaces_with_a_lease_each(made, tmp_path / "ledger.db")
    watched.upkeep.follow_new_namespaces()
    for name in names[:6]:
        made.system.delete_netns(name)
    looks: list[int] = []
    ended_namespaces = type(made.system).ended_namespaces

    def look(system: FakeSystem, netnses: Collection[Netns]) -> set[Netns]:
        looks.append(len(netnses))
        return ended_namespaces(system, netnses)

    monkeypatch.setattr(type(made.system), "ended_namespaces", look)
    assert watched.hear() == ["ended"] * 6
    assert looks == [6, 6], "once to stop watching them, once to end the leases"


def test_namespaces_that_ended_before_they_were_watched_are_looked_for_together(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched.made
    names = namespaces_with_a_lease_each(made, tmp_path / "ledger.db")
    for name in names[:6]:
        made.system.delete_netns(name)
    look = made.host.operations.look
    asked: list[Netns] = []
    number = look.number

    def ask(netns: Netns) -> int | None:
        asked.append(netns)
        return number(netns)

    monkeypatch.setattr(look, "number", ask)
    watched.upkeep.follow_new_namespaces()
    assert len(made.host.leases()) == 6
    assert {*asked} == {*look.namespaces()} - {made.host.netns}


def test_ended_namespaces_whose_leases_remain_are_not_looked_for_at_each_wake_up(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a lease waits for a service, the reaper wakes up each second."""
    made = watched.made
    names = namespaces_with_a_lease_each(made, tmp_path / "ledger.db")
    looks: list[int] = []
    ended_namespaces = type(made.system).ended_namespaces

    def count(system: FakeSystem, netnses: Collection[Netns]) -> set[Netns]:
        looks.append(len(netnses))
        return ended_namespaces(system, netnses)

    look = made.host.operations.look
    followed = FollowedNamespaces(made.host.netns, clock=made.clock)
    assert len(followed.follow_all(look)) == 12
    for name in names[:6]:
        made.system.delete_netns(name)
    monkeypatch.setattr(type(made.system), "ended_namespaces", count)
    assert len(followed.forget_ended(look, followed.others())) == 6
    looks.clear()
    for _ in range(3):
        followed.follow_all(look)
        made.clock.advance(1)
    assert looks == [6]
    made.clock.advance(NAMESPACE_RETRY)
    assert len(followed.follow_all(look)) == 6
    assert looks == [6, 6]


def test_a_namespace_that_cannot_be_determined_is_asked_again_later(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched.made
    asked: list[object] = []

    def refuse(netns: object) -> int:
        asked.append(netns)
        raise KernelError(5, "looking", "a disk failed")

    other = made.host.netns._replace(cookie=99)
    with monkeypatch.context() as broken:
        broken.setattr(made.host.operations.look, "number", refuse)
        for wait, times in ((0.0, 1), (NAMESPACE_RETRY / 2, 1), (NAMESPACE_RETRY, 2)):
            made.clock.advance(wait)
            assert not watched.upkeep.follow(other)
            assert len(asked) == times
    assert len(made.log.named("not-watched")) == 2


def test_many_devices_are_put_back_in_turns_of_20_ms(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls run between two turns."""
    made, stranger = watched.made, watched.made.system.stranger()
    watched.upkeep.reconnect = True
    for _ in range(60):
        acquire(made.host).close()
    watched.hear()
    recover = made.host.operations.recover
    some, asked = recover.some, []

    def slow(ids: Sequence[str], **how: Any) -> list[Repair]:
        asked.append(len(ids))
        made.clock.advance(0.001 * len(ids))
        return some(ids, **how)

    monkeypatch.setattr(recover, "some", slow)
    for number in range(60):
        stranger.set_by_name(f"vnet{number}", up=False)
    changes = watched.here.changes()
    assert changes is not None
    turns: list[Callable[[], object]] = [partial(watched.upkeep.look_at, changes)]
    lasted = []
    while turns:
        before = made.clock()
        turns.pop()()
        lasted.append(made.clock() - before)
        turns += made.submitted
        made.submitted.clear()
        assert len(turns) <= 1
    assert max(lasted) <= 0.02
    assert len(lasted) > 3
    assert sum(asked) == 60
    assert len(asked) == 8
    assert made.host.differing(made.host.leases()) == frozenset()
    assert watched.hear() == ["sound"] * 60


def test_processes_that_end_together_are_worked_on_together(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched.made
    processes = [made.system.start(pid) for pid in range(10, 18)]
    for process in processes:
        lease = acquire(made.host, pid=process.pid)
        watched.upkeep.bind(lease.lease)
        lease.close()
    recover = made.host.operations.recover
    some, asked = recover.some, []

    def count(ids: Sequence[str], **how: Any) -> list[Repair]:
        asked.append(len(ids))
        return some(ids, **how)

    monkeypatch.setattr(recover, "some", count)
    for process in processes:
        made.system.end(process.pid)
    watched.upkeep.processes_ended(processes)
    assert asked == [8]
    assert {lease.state for lease in made.host.leases()} == {State.FIN_WAIT}


def test_lost_reports_make_it_look_at_everything(watched: Watched) -> None:
    lease = acquire(watched.made.host)
    assert watched.hear() == []
    watched.made.system.stranger().delete_by_name("vnet0")
    watched.here.overrun()
    assert watched.hear() == ["held"]
    lease.close()


def test_a_close_among_lost_reports_is_reported_as_a_close(watched: Watched) -> None:
    lease = acquire(watched.made.host, on_close=True)
    assert watched.hear() == []
    lease.close()
    watched.here.overrun()
    assert watched.hear() == ["released"]
    assert watched.made.events[-1].detail == CLOSE


@pytest.mark.parametrize("part", ["followed", "leases", "repaired"])
def test_a_recover_that_fails_after_lost_reports_is_tried_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    made = watched.made
    lease = acquire(made.host)
    assert watched.hear() == []

    def full(*_: object, **__: object) -> None:
        raise LedgerError("the disk is full")

    with monkeypatch.context() as broken:
        ledger = made.host.operations.context.ledger
        if part == "followed":
            broken.setattr(ledger, "namespaces", full)
        elif part == "leases":
            broken.setattr(ledger, "leases", full)
        else:
            broken.setattr(ledger, "claim_available", full)
        made.system.stranger().delete_by_name("vnet0")
        watched.here.overrun()
        with suppress(LedgerError):
            watched.hear()
    assert watched.upkeep.retries == 1
    made.clock.advance(FIRST_RETRY)
    made.events.clear()
    watched.upkeep.retry()
    assert [event.event for event in made.events] == ["held"]
    assert watched.upkeep.retries == 0
    lease.close()


def test_a_lease_whose_time_is_over_is_reaped_and_reported(watched: Watched) -> None:
    made = watched.made
    lease = acquire(made.host)
    lease.close()
    made.host.release(lease.id)
    watched.upkeep.find_deadline()
    assert watched.upkeep.deadline == made.system.boottime() + 60
    made.system.advance(60)
    watched.upkeep.reap(64)
    watched.upkeep.find_deadline()
    assert [event.event for event in made.events] == ["ended"]
    assert watched.upkeep.deadline is None


def test_a_user_that_takes_a_waiting_tap_back_loses_it_when_it_is_closed(
    made: Parts,
) -> None:
    """A process needs no privilege to change the owner of a tap that it has open."""
    lease = made.host.acquire(BR0._replace(uid=4711))
    made.host.release(lease.id)
    space = made.system.space(made.system.world.own)
    assert space.devices[lease.ifindex].uid != 4711
    space.edit(lease.ifindex, uid=4711)
    made.upkeep.restrict()
    lease.close()
    made.upkeep.restrict()
    device = made.system.space(made.system.world.own).devices[lease.ifindex]
    assert device.uid == os.geteuid()
