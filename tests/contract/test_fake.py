# SPDX-License-Identifier: Apache-2.0
"""What only the host in memory can do: go back, stop at a step, let time pass."""

import os
from collections.abc import Callable, Iterator
from errno import EBADFD
from pathlib import Path

import pytest

import tapster
from lab import library
from lab.library import close, no_reaper
from tapster import Host, HostError, Macvtap, Mode, State, Tap
from tapster.kernel.port import LinkChange
from tapster.model import Life
from tapster.testing import FakeSystem
from tests.contract.makers import OURS, refused, tap, taps


@pytest.fixture
def system() -> FakeSystem:
    """A host with a bridge br0, a device low, and a process 1."""
    system = FakeSystem()
    system.stranger().add_bridge("br0", mac="02:00:00:00:00:01")
    system.stranger().add_veth("low", "far")
    system.start(1)
    return system


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def host(system: FakeSystem, ledger: Path) -> Iterator[Host]:
    with Host(ledger, system=system, reaper=no_reaper) as host:
        yield host


# Going back


def test_the_same_calls_make_the_same_world() -> None:
    def history() -> str:
        system = FakeSystem()
        namespace, others = system.netns(None), system.stranger()
        others.add_bridge("br0")
        others.add_tap("vnet%d")
        close(taps(namespace, "vnet1", OURS, 2))
        namespace.set_links([LinkChange(OURS, master=2, up=True)])
        system.start(42)
        system.advance(1.5)
        return system.render()

    assert history() == history()


def test_all_that_matters_is_shown() -> None:
    system = FakeSystem()
    namespace, others = system.netns(None), system.stranger()
    seen = [system.render()]

    def differs() -> None:
        assert system.render() not in seen
        seen.append(system.render())

    fd = tap(namespace, "vnet0", OURS)
    differs()
    os.close(fd)
    differs()
    others.add_altname("vnet0", "other")
    differs()
    namespace.set_links([LinkChange(OURS, up=True)])
    differs()
    system.add_netns("blue")
    differs()
    system.start(42)
    differs()
    system.advance(1)
    differs()


def test_a_snapshot_can_be_gone_back_to_again_and_again(system: FakeSystem) -> None:
    namespace = system.netns(None)
    fd = tap(namespace, "vnet0", OURS)
    snapshot, shown = system.snapshot(), system.render()
    for name in ("one", "two"):
        late = tap(namespace, name, OURS + 1)
        system.stranger().delete_by_name("vnet0")
        system.add_netns("blue")
        system.end(1)
        system.advance(10)
        system.restore(snapshot)
        assert system.render() == shown
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.close(late)
    namespace.set_links([LinkChange(OURS, up=True)])
    assert system.stranger().carrier("vnet0"), "it was open, and still is"
    os.close(fd)
    assert not system.stranger().carrier("vnet0")


def test_a_descriptor_of_a_restored_world_can_be_closed(system: FakeSystem) -> None:
    namespace = system.netns(None)
    fd = tap(namespace, "vnet0", OURS)
    namespace.set_links([LinkChange(OURS, up=True)])
    snapshot = system.snapshot()
    system.close_fd(fd)
    assert not system.stranger().carrier("vnet0")
    system.restore(snapshot)
    assert system.stranger().carrier("vnet0"), "although no descriptor is open"
    system.close_fd(fd)
    assert not system.stranger().carrier("vnet0")


def test_no_descriptor_leaks(system: FakeSystem) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before, namespace, snapshot = count(), system.netns(None), system.snapshot()
    close(taps(namespace, "vnet0", OURS, 2))
    system.step = _renaming(system, "vnet1")
    with refused(EBADFD):
        taps(namespace, "vnet1", OURS + 1, 2)
    taps(namespace, "vnet2", OURS + 2, 2)
    system.restore(snapshot)
    assert count() == before


def test_an_open_tap_keeps_its_namespace(system: FakeSystem) -> None:
    system.add_netns("blue")
    namespace = system.netns("blue")
    fd = tap(namespace, "vnet0", OURS)
    namespace.close()
    system.delete_netns("blue")
    assert "vnet0" in system.render()
    os.close(fd)
    assert "vnet0" not in system.render()


# Time


def test_a_name_waits_until_its_deadline_I2(system: FakeSystem, host: Host) -> None:
    lease = library.acquire(host, Tap(bridge="br0", fin_wait=5))
    host.release(lease.id)
    system.set_wallclock(0)
    system.advance(4.999)
    assert host.reap() == 0
    system.advance(0.001)
    assert host.reap() == 1
    assert system.stranger().show("vnet0") is None


def test_a_boot_closes_every_lease(
    system: FakeSystem, host: Host, ledger: Path
) -> None:
    host.acquire(Tap(bridge="br0")).close()
    host.close()
    system.reboot()
    system.stranger().add_bridge("vnet0")
    shown = system.render()
    with Host(ledger, system=system, reaper=no_reaper) as later:
        assert [repairs.action for repairs in later.recover()] == [tapster.Action.CLOSE]
        assert later.leases() == []
    assert system.render() == shown, "whatever has its name now"


def test_a_pid_that_is_used_again_is_another_process(system: FakeSystem) -> None:
    first = system.process(1)
    assert first
    system.end(1)
    second = system.start(1)
    assert first != second
    assert system.life(first) is Life.ENDED
    assert system.life(second) is Life.LIVES


# Stepping in


def _renaming(system: FakeSystem, name: str) -> Callable[[str], None]:
    """Somebody renames a tap between its first queue and its second, and takes
    the name for a tap of his own."""

    def step(what: str) -> None:
        if what == f"join {name}":
            system.stranger().rename(name, "renamed")
            system.stranger().add_tap(name, multi_queue=True)

    return step


@pytest.mark.parametrize("times", [1, 10])
def test_a_queue_that_somebody_attaches_to_a_new_tap_is_not_left(
    system: FakeSystem, host: Host, times: int
) -> None:
    left = times

    def attach(what: str) -> None:
        nonlocal left
        if what == "join vnet0" and left:
            left -= 1
            system.stranger().open_tap("vnet0", multi_queue=True)

    system.step = attach
    with host.acquire(Tap(queues=2)) as opened:
        assert opened.name == ("vnet0" if times < 10 else "vnet1")
        world = system.looked_at()
        attached = world.spaces[world.own].queues.values()
        assert list(attached) == [opened.ifindex] * 2
    assert left == 0


def test_no_queue_of_a_foreign_tap_is_taken_I4(system: FakeSystem, host: Host) -> None:
    system.step = _renaming(system, "vnet0")
    with pytest.raises(tapster.KernelError, match="vnet0"):
        host.acquire(Tap(queues=2))
    assert host.leases() == []
    assert system.stranger().names() == {"lo", "br0", "low", "far", "vnet0"}
    theirs = system.stranger().show("vnet0")
    assert theirs
    assert (theirs.alias, theirs.persist) == ("", True)


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "free"])
def test_a_tap_deleted_while_its_user_loses_it_does_no_harm_I4(
    system: FakeSystem, host: Host, taken: bool
) -> None:
    """The name may be a foreign tap's when the kernel is asked for it."""
    lease = library.acquire(host, Tap(uid=1234))

    def delete(what: str) -> None:
        if what == "join vnet0":
            system.step = lambda _: None
            system.stranger().delete_by_name("vnet0")
            if taken:
                system.stranger().add_tap("vnet0")

    system.step = delete
    host.release(lease.id)
    there = system.stranger().show("vnet0")
    if taken:
        assert there
        assert (there.uid, there.alias, there.persist) == (None, "", True)
        assert not system.looked_at().files, "it was closed"
    else:
        assert there is None, "none was made"
        host.recover()
        placeholder = system.stranger().show("vnet0")
        assert placeholder
        assert placeholder.uid == os.geteuid()


def test_a_name_taken_just_before_the_device_is_made_is_stepped_over_I4(
    system: FakeSystem, host: Host
) -> None:
    def steal(what: str) -> None:
        for name in ("vnet0", "vnet1"):
            if what.startswith((f"attach {name} ", f"add {name} ")):
                system.stranger().add_tap(name)

    system.step = steal
    leases = [host.acquire(Tap()), host.acquire(Macvtap(lower="low"))]
    assert [lease.name for lease in leases] == ["vnet2", "vnet3"]
    library.close_all(*leases)


def test_a_bridge_that_fills_up_during_an_acquire_undoes_it_I6(
    system: FakeSystem, host: Host
) -> None:
    namespace = system.netns(None)
    bridge = namespace.ifindex("br0")
    for number in range(1022):
        os.close(tap(namespace, f"p{number}", number + 100))
    namespace.set_links([LinkChange(n + 100, master=bridge) for n in range(1022)])

    def fill(what: str) -> None:
        if "master=" in what:
            system.step = lambda _: None
            system.stranger().set_by_name("far", master="br0")

    system.step = fill
    with pytest.raises(tapster.BridgeFull, match="'br0' is full"):
        host.acquire(Tap(bridge="br0"))
    assert host.leases() == []
    assert system.stranger().show("vnet0") is None


@pytest.mark.parametrize("times", [1, 2])
def test_devices_moved_out_of_the_group_keep_their_leases_I5(
    system: FakeSystem, host: Host, times: int
) -> None:
    for _ in range(3):
        lease = library.acquire(host, Tap(bridge="br0"))
        host.release(lease.id)
    groups = 0

    def move(what: str) -> None:
        nonlocal groups
        groups += what == "delete group"
        if what == "delete group" and groups <= times:
            for name in ("vnet1", "vnet2"):
                system.stranger().set_by_name(name, group=7)

    system.step = move
    if times == 2:  # the first time they are deleted once more
        with pytest.raises(tapster.ConflictError, match="another group"):
            host.reap(now=True)
        assert {lease.name for lease in host.leases()} == {"vnet1", "vnet2"}
        assert all(system.stranger().show(name) for name in ("vnet1", "vnet2"))
    host.reap(now=True)
    assert host.leases() == []
    assert not any(system.stranger().show(name) for name in ("vnet1", "vnet2"))
    assert system.stranger().names() == {"lo", "br0", "low", "far"}


# Dying


class Killed(BaseException):
    """The process is killed: it does nothing more to the kernel."""


def _dying_at(last: int) -> Callable[[str], None]:
    """A step that nobody survives, and those after it."""
    left = iter(range(last))

    def step(_: str) -> None:
        if next(left, None) is None:
            raise Killed

    return step


def _whole_life(host: Host, spec: Tap | Macvtap) -> None:
    lease = library.acquire(host, spec)
    host.release(lease.id)
    host.reap(now=True)


SPECS = [
    Tap(bridge="br0", isolated=True, queues=3),
    Macvtap(lower="low", queues=2),
    Macvtap(lower="low", mode=Mode.PASSTHRU),
]


@pytest.mark.parametrize("spec", SPECS, ids=["tap", "macvtap", "passthru"])
def test_after_death_at_any_step_recover_leaves_nothing_of_ours_I5(
    system: FakeSystem, ledger: Path, spec: Tap | Macvtap
) -> None:
    before = _devices(system)
    for last in range(1000):
        host = Host(ledger, system=system, reaper=no_reaper)
        system.step = _dying_at(last)
        try:
            _whole_life(host, spec)
        except Killed:
            survived = False
        else:
            survived = True
        system.step = lambda _: None
        host.close()
        with Host(ledger, system=system, reaper=no_reaper) as other:
            other.recover()
            assert other.recover() == []
            for lease in other.leases():
                device = system.stranger().show(lease.name)
                assert device, "every lease that is left has its device"
                assert device.ifindex == lease.ifindex
                assert lease.state is not State.RESERVED
                other.release(lease.id)
            other.reap(now=True)
        assert _devices(system) == before
        if survived:
            assert last > 10
            return


def _devices(system: FakeSystem) -> str:
    """The world without its clocks and counters."""
    lines = system.render().splitlines()
    return "\n".join(line for line in lines if line.startswith("  "))


def test_the_fake_says_that_it_has_no_nftables() -> None:
    namespace = FakeSystem().netns(None)
    for ask in (namespace.nft, namespace.nft_list):
        with pytest.raises(tapster.HostError, match="no nftables"):
            ask("")


def test_another_pid_namespace_cannot_tell_that_a_namespace_is_gone(
    system: FakeSystem,
) -> None:
    system.add_netns("blue")
    namespace = system.netns("blue")
    namespace.close()
    blue = namespace.netns
    there = blue._replace(pidns=blue.pidns + 1)
    found = system.find(there)
    assert found, "its path leads to it from everywhere"
    found.close()
    system.delete_netns("blue")
    with pytest.raises(HostError, match="pid namespace"):
        system.find(there)
    assert system.ended_namespaces([blue, there]) == {blue}
