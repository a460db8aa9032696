# SPDX-License-Identifier: Apache-2.0
"""A device that somebody moves to another namespace is found, and never forgotten."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import combinations, cycle, pairwise
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, library, shell
from tapster import (
    Action,
    ConflictError,
    Host,
    HostError,
    Lease,
    Macvtap,
    Mode,
    State,
    Tap,
)
from tapster.kernel.linux import LinuxNamespace, LinuxSystem
from tapster.kernel.port import LinkChange, Namespace
from tapster.operations.devices import Devices

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture
def host(ledger: Path) -> Iterator[Host]:
    shell.sh("ip netns add pod")
    shell.sh("ip link add low type veth peer name far")
    shell.sh("ip link set low up")
    with Host(ledger, reaper=library.no_reaper) as host:
        yield host


@pytest.fixture(
    params=[Tap(bridge="br0"), Macvtap(lower="low")], ids=["tap", "macvtap"]
)
def moved(host: Host, request: pytest.FixtureRequest) -> Lease:
    """A lease whose device is in the pod, under another name."""
    lease = library.acquire(host, request.param)
    shell.sh(f"ip link set {lease.name} netns pod name eth0")
    return lease


def ours(netns: str | None = None) -> dict[str, str]:
    """The devices with a stamp: names and leases."""
    return {
        name: link["ifalias"].rpartition(":")[2]
        for name, link in iproute.links(netns).items()
        if link.get("ifalias", "").startswith("tapster:")
    }


def test_its_lease_stays_and_its_place_is_shown(host: Host, moved: Lease) -> None:
    assert host.recover() == []
    assert host.find(moved.id).state is State.ACTIVE
    assert ours() == {}
    where = "it is called eth0 in the network namespace /run/netns/pod"
    assert host.differences(moved) == {"device": where}
    assert host.differing([moved]) == {moved.id}
    (problem,) = [one for one in host.examine() if moved.id in one.description]
    assert where in problem.description
    shell.sh(f"ip -n pod link set eth0 netns {os.getpid()} name {moved.name}")
    assert moved.name in iproute.links()
    assert [one.action for one in host.recover()] in ([Action.REWIRE], [])
    assert host.differences(moved) == {}


def test_a_release_holds_the_name_and_a_reap_deletes_it(
    host: Host, moved: Lease
) -> None:
    host.release(moved)
    assert ours() == {moved.name: moved.id}
    assert host.recover() == []
    assert ours("pod") == {"eth0": moved.id}
    assert host.reap(now=True) == 1
    assert ours() == ours("pod") == {}


def test_a_moved_passthru_device_frees_its_lower_device_at_once(host: Host) -> None:
    spec = Macvtap(lower="low", mode=Mode.PASSTHRU)
    lease = library.acquire(host, spec)
    shell.sh(f"ip link set {lease.name} netns pod name eth0")
    host.release(lease)
    assert ours("pod") == {}
    assert ours() == {lease.name: lease.id}, "a placeholder"
    host.release(library.acquire(host, spec))


def test_one_that_is_moved_while_it_is_reaped_is_deleted_there(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the device and its deletion."""
    plain = LinuxNamespace.delete_links
    leases = [library.acquire(host, Tap(bridge="br0")) for _ in range(2)]

    def delete_links(self: LinuxNamespace, ifindexes: Sequence[int]) -> set[int]:
        if len(ifindexes) > 1:
            shell.sh("ip link set vnet0 netns pod")
        return plain(self, ifindexes)

    monkeypatch.setattr(LinuxNamespace, "delete_links", delete_links)
    for lease in leases:
        host.release(lease)
    assert host.reap(now=True) == 2
    assert ours() == ours("pod") == {}


def test_placeholders_that_are_moved_are_deleted_too(host: Host, moved: Lease) -> None:
    host.release(moved)
    for name in ("eth1", "eth2"):
        shell.sh(f"ip link set {moved.name} netns pod name {name}")
        assert [one.action for one in host.recover()] == [Action.HOLD_NAME]
    assert ours("pod").keys() == {"eth0", "eth1", "eth2"}
    assert host.reap(now=True) == 1
    assert ours() == ours("pod") == {}


def test_a_moved_placeholder_of_a_passthru_device_is_deleted_too(host: Host) -> None:
    lease = library.acquire(host, Macvtap(lower="low", mode=Mode.PASSTHRU))
    host.release(lease)
    shell.sh(f"ip link set {lease.name} netns pod name eth0")
    assert [one.action for one in host.recover()] == [Action.HOLD_NAME]
    assert host.reap(now=True) == 1
    assert ours() == ours("pod") == {}


def test_one_that_is_moved_on_before_it_is_deleted_is_found_again(
    host: Host, moved: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.sh("ip netns add other")
    plain = LinuxNamespace.delete_links
    moves = iter(("pod eth0 netns other", "other eth0 netns pod"))

    def delete_links(self: LinuxNamespace, ifindexes: Sequence[int]) -> set[int]:
        if self.netns.path in ("/run/netns/pod", "/run/netns/other"):
            for move in moves:
                netns, name, *to = move.split()
                shell.sh(f"ip -n {netns} link set {name} {' '.join(to)}")
                break
        return plain(self, ifindexes)

    monkeypatch.setattr(LinuxNamespace, "delete_links", delete_links)
    host.release(moved)
    assert host.reap(now=True) == 1
    assert ours() == ours("pod") == ours("other") == {}


class Mover:
    """Moves vnet0 to the pod and back, before calls of the kernel.

    It counts the calls by which a reap looks at the devices here and in the pod, and
    deletes them.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._moves: dict[int, str] = {}
        self._places: set[int] = set()
        for name in (None, "pod"):
            with closing(LinuxSystem().netns(name)) as place:
                self._places.add(place.netns.cookie)
        for name in ("delete_links", "link", "links", "links_with"):
            patch.setattr(LinuxNamespace, name, self._counted(name))

    def plan(self, *numbers: int) -> None:
        """Move vnet0 away, back, and so on, before these calls; count from 0."""
        away = "ip link set vnet0 netns pod"
        back = f"ip -n pod link set vnet0 netns {os.getpid()}"
        self.calls = 0
        self._moves = dict(zip(numbers, cycle((away, back))))

    def _counted(self, name: str) -> Callable[..., Any]:
        call = getattr(LinuxNamespace, name)

        def counted(namespace: LinuxNamespace, *arguments: Any) -> Any:
            if namespace.netns.cookie in self._places:
                if way := self._moves.pop(self.calls, None):
                    subprocess.run(way.split(), capture_output=True, check=False)
                self.calls += 1
            return call(namespace, *arguments)

        return counted


@pytest.mark.parametrize("device", ["its own", "a placeholder"])
def test_one_that_is_moved_at_any_moment_of_a_reap_is_deleted(
    host: Host, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    mover = Mover(monkeypatch)

    def reap(*numbers: int) -> int:
        lease = library.acquire(host, Tap(bridge="br0"))
        host.release(lease)
        if device == "a placeholder":
            shell.sh("ip link del vnet0")
            host.recover()
        mover.plan(*numbers)
        with suppress(ConflictError):
            host.reap(now=True)
        made = mover.calls
        mover.plan()
        host.reap(now=True)
        assert (ours(), ours("pod")) == ({}, {}), numbers
        assert host.leases() == []
        return made

    most = max(reap(number) for number in range(reap()))
    for moves in combinations(range(most), 2):
        reap(*moves)


def test_one_that_is_moved_at_any_moment_of_an_acquire_that_fails_is_deleted(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac = "52:54:00:00:00:01"
    shell.sh("ip link set low master br0")
    shell.sh(f"bridge fdb add {mac} dev low master static")
    mover = Mover(monkeypatch)

    def acquire(*numbers: int) -> int:
        mover.plan(*numbers)
        with pytest.raises(HostError):
            host.acquire(Tap(bridge="br0", mac=mac, learning=False))
        made = mover.calls
        mover.plan()
        host.recover()
        assert (ours(), ours("pod")) == ({}, {}), numbers
        assert host.leases() == []
        return made

    most = max(acquire(number) for number in range(acquire()))
    for moves in pairwise(range(most)):
        acquire(*moves)


@pytest.mark.parametrize("first", ["recover", "reap"])
def test_one_that_waits_is_deleted_where_it_is(host: Host, first: str) -> None:
    lease = library.acquire(host, Tap(bridge="br0"))
    host.release(lease)
    shell.sh(f"ip link set {lease.name} netns pod")
    if first == "recover":
        assert [one.action for one in host.recover()] == [Action.HOLD_NAME]
    assert host.reap(now=True) == 1
    assert ours() == ours("pod") == {}


def test_one_that_is_moved_during_its_acquire_is_deleted_where_it_is(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Devices.connect

    def move_first(
        devices: Devices,
        namespace: Namespace,
        lease: Lease,
        first: Sequence[LinkChange],
        joining: Sequence[LinkChange],
    ) -> None:
        namespace.set_links(first)
        shell.sh(f"ip link set {lease.name} netns pod")
        connect(devices, namespace, lease, [], joining)

    monkeypatch.setattr(Devices, "connect", move_first)
    with pytest.raises(HostError, match="moved it to another network namespace"):
        host.acquire(Tap(bridge="br0"))
    assert ours() == ours("pod") == {}
    assert host.leases() == []


def test_a_deleted_one_is_replaced_as_before(host: Host) -> None:
    lease = library.acquire(host, Tap(bridge="br0"))
    shell.sh(f"ip link del {lease.name}")
    assert [one.action for one in host.recover()] == [Action.HOLD_NAME]
    assert ours() == {lease.name: lease.id}
