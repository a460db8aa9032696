# SPDX-License-Identifier: Apache-2.0
"""I4: what is foreign is never created over, attached to, modified or deleted."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tapster
from lab import iproute, library, shell, strangers
from tapster import Host, HostError, Macvtap, NoSuchLink, Tap
from tapster.kernel import rtnl

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

IFF_MULTI_QUEUE = 0x0100


def squat_idle(name: str) -> None:
    shell.sh(f"ip tuntap add {name} mode tap")


def test_a_foreign_name_that_is_gone_is_the_lowest_again(host: Host) -> None:
    for number in range(5):
        squat_idle(f"vnet{number}")
    names = []
    for gone in (None, "vnet3", "vnet1"):
        if gone:
            shell.sh(f"ip link del {gone}")
        lease = library.acquire(host, Tap())
        names.append(lease.name)
    assert names == ["vnet5", "vnet3", "vnet1"]


def test_a_foreign_rename_frees_its_name(host: Host) -> None:
    squat_idle("vnet0")
    host.acquire(Tap()).close()
    shell.sh("ip link set vnet0 name elsewhere")
    lease = library.acquire(host, Tap())
    assert lease.name == "vnet0"


class Thief:
    """A kernel in which somebody takes each name just before it is made."""

    def __init__(self, namespace: Any, steal: list[str]) -> None:
        self._namespace = namespace
        self._steal = steal

    def __getattr__(self, verb: str) -> Any:
        real = getattr(self._namespace, verb)
        if not verb.startswith("create_"):
            return real

        def create(device: Any, *arguments: Any, **options: Any) -> Any:
            name = getattr(device, "name", device)
            if name in self._steal:
                squat_idle(name)
            return real(device, *arguments, **options)

        return create


def test_a_name_taken_between_choice_and_creation_is_stepped_over_I4(
    host: Host,
) -> None:
    shell.sh("ip link add low type veth peer name low2")
    shell.sh("ip link set low up")
    context = host.operations.context
    context.namespace = Thief(context.namespace, ["vnet0", "vnet1", "vnet3", "web"])
    first = host.acquire(Tap(bridge="br0"))
    second = host.acquire(Macvtap(lower="low"))
    library.close_all(first, second)
    assert (first.name, second.name) == ("vnet2", "vnet4")
    with pytest.raises(tapster.NameTaken, match="'web'"):
        host.acquire(Tap(name="web"))
    assert {lease.name for lease in host.leases()} == {"vnet2", "vnet4"}
    assert iproute.ports() == {"vnet2"}
    assert "ifalias" not in iproute.links()["web"]


def test_a_foreign_device_that_has_our_ifindex_is_left_alone_I4(host: Host) -> None:
    lease = library.acquire(host, Tap(bridge="br0"))
    shell.sh("ip link del vnet0")
    shell.sh(f"ip link add twin index {lease.ifindex} type veth peer name twin2")
    shell.sh("ip link set twin master br0 up alias tapster:01234567:0123456789abcdef")
    before = iproute.steady(iproute.links()["twin"])
    host.release(lease.id)
    host.recover()
    host.reap(now=True)
    assert iproute.steady(iproute.links()["twin"]) == before
    assert host.leases() == []


def test_two_ledgers_on_one_host_leave_each_other_alone(
    host: Host, tmp_path: Path
) -> None:
    with Host(tmp_path / "other.db", reaper=library.no_reaper) as other:
        ours, theirs = host.acquire(Tap(bridge="br0")), other.acquire(Tap(bridge="br0"))
        library.close_all(ours, theirs)
        assert (ours.name, theirs.name) == ("vnet0", "vnet1")
        host.release(ours.id)
        host.recover()
        host.reap(now=True)
        assert other.recover() == []
        assert iproute.ports() == {"vnet1"}
        assert host.remove_leftovers("nobodys") == []
        assert "vnet1" in iproute.links()


def test_leftovers_in_use_or_with_a_lease_are_not_removed(host: Host) -> None:
    used, idle, leased = (host.acquire(Tap(bridge="br0")) for _ in range(3))
    ledger = host.operations.context.ledger
    ledger.end([used.id, idle.id])  # as an older ledger would have it
    own = ledger.id
    library.close_all(idle, leased)
    for stays, reason in ((used, "open in a process"), (leased, "has a lease")):
        with pytest.raises(tapster.TapsterError, match=reason):
            host.remove_leftovers(own, [idle.name, stays.name])
    assert iproute.ports() == {used.name, idle.name, leased.name}
    assert host.remove_leftovers(own) == [idle.name]
    assert iproute.ports() == {used.name, leased.name}
    used.close()


def test_one_ledger_by_two_paths_has_one_lock_file(
    host: Host, ledger: Path, tmp_path: Path
) -> None:
    """Else a living manager would be taken for dead, and its acquire undone."""
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(ledger)
    settled = []
    create = host.operations.context.namespace.create_tap

    def settle_during_the_creation(*arguments: Any, **options: Any) -> tuple[int, ...]:
        fds = create(*arguments, **options)
        with Host(link, reaper=library.no_reaper) as other:
            settled.extend([*other.settle(), *other.recover()])
        return fds

    host.operations.context.namespace.create_tap = settle_during_the_creation  # type: ignore[method-assign]
    host.acquire(Tap(bridge="br0")).close()
    assert settled == []
    assert iproute.ports() == {"vnet0"}


def test_a_rename_between_queues_fails_and_leaves_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def rename_before_second(path: str, flags: int, *rest: int, **named: int) -> int:
        if path == "/dev/net/tun" and "vnet0" in iproute.links():
            shell.sh("ip link set vnet0 name mine")
            squat = strangers.foreign_tap("vnet0", persist=True, flags=IFF_MULTI_QUEUE)
            os.close(squat)
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", rename_before_second)
    with pytest.raises(tapster.KernelError, match="renamed"):
        host.acquire(Tap(bridge="br0", queues=2))
    monkeypatch.undo()
    assert host.leases() == []
    assert "mine" not in iproute.links()
    assert iproute.links()["vnet0"]["linkinfo"]["info_data"]["numqueues"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ip link del vnet0", "device 'vnet0': somebody deleted it"),
        ("ip link del br0", "bridge 'br0' was deleted while the device joined it"),
    ],
)
def test_an_acquire_says_what_was_deleted_at_any_moment_of_its_connection(
    host: Host, monkeypatch: pytest.MonkeyPatch, change: str, said: str
) -> None:
    execute, when, calls = rtnl.Rtnl.execute, -1, 0

    def execute_later(
        self: rtnl.Rtnl, messages: Sequence[rtnl.Message]
    ) -> list[OSError | None]:
        nonlocal calls
        if calls == when:
            shell.sh(change)
        calls += 1
        return execute(self, messages)

    monkeypatch.setattr(rtnl.Rtnl, "execute", execute_later)
    spec = Tap(bridge="br0", filter=True)
    host.release(library.acquire(host, spec))
    host.reap(now=True)
    errors = []
    for when in range(calls):
        calls = 0
        try:
            library.acquire(host, spec)
        except (HostError, NoSuchLink) as error:
            errors.append(str(error))
        when = -1
        for lease in host.leases():
            host.release(lease)
        host.reap(now=True)
        assert iproute.links().keys() - {"br0"} == {"lo"}
        if "br0" not in iproute.links():
            shell.sh("ip link add br0 type bridge")
            shell.sh("ip link set br0 up")
    assert len(errors) > 3
    assert [error for error in errors if said not in error] == []


def test_an_acquire_says_that_its_bridge_was_deleted_while_its_entries_were_read(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac = "52:54:00:00:00:01"
    shell.sh("ip link add uplink type veth peer name other")
    shell.sh("ip link set uplink master br0")
    shell.sh(f"bridge fdb add {mac} dev uplink master static")
    entries = rtnl.Rtnl.static_entries

    def delete_first(self: rtnl.Rtnl, bridge: int) -> dict[str, set[int]]:
        shell.sh("ip link del br0")
        return entries(self, bridge)

    monkeypatch.setattr(rtnl.Rtnl, "static_entries", delete_first)
    with pytest.raises(NoSuchLink, match="bridge 'br0' was deleted"):
        host.acquire(Tap(bridge="br0", mac=mac, learning=False))
    assert host.leases() == []
