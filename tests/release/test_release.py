# SPDX-License-Identifier: Apache-2.0
"""What release and reap promise, on the real kernel."""

import fcntl
import os
from errno import EBUSY
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tapster
from lab import iproute, library, shell, strangers
from tapster import (
    Action,
    Host,
    KernelError,
    LeaseBusy,
    Macvtap,
    NoSuchLease,
    Rate,
    RequestError,
    State,
    Tap,
)
from tapster.backends import htb
from tapster.kernel import tun
from tapster.operations.devices import Devices

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


def test_release_may_be_repeated_I7(host: Host) -> None:
    lease = library.acquire(host, Tap(bridge="br0"))
    host.release(lease.id)
    deadline = host.find(lease.id).deadline
    host.release(lease.id)
    assert host.find(lease.id).deadline == deadline, "the wait does not restart"
    host.reap(now=True)
    host.release(lease.id)
    assert host.leases() == []
    with pytest.raises(tapster.NoSuchLease, match="0000"):
        host.release("0000")


def test_a_placeholder_that_is_deleted_while_it_is_made_is_made_again_I2(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = library.acquire(host, Tap(bridge="br0"))
    shell.sh("ip link del vnet0")
    lost = 0

    def ioctl(fd: int, request: int, *arguments: Any) -> Any:
        nonlocal lost
        if request == strangers.TUNSETPERSIST and lost < 2:
            shell.sh("ip link del vnet0")
            lost += 1
        return fcntl.ioctl(fd, request, *arguments)

    monkeypatch.setattr(tun, "fcntl", SimpleNamespace(ioctl=ioctl))
    host.release(lease.id)
    assert lost == 2
    (waiting,) = host.leases()
    assert iproute.links()["vnet0"]["ifindex"] == waiting.ifindex
    assert waiting.placeholder


def test_a_device_that_is_deleted_while_its_rate_is_removed_is_released(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = htb.Queues.clear

    def delete_first(queues: htb.Queues, ifindex: int) -> None:
        shell.sh("ip link del vnet0")
        clear(queues, ifindex)

    lease = library.acquire(host, Tap(bridge="br0", inbound=Rate(1000)))
    monkeypatch.setattr(htb.Queues, "clear", delete_first)
    host.release(lease)
    assert host.find(lease.id).backends == ()


def test_a_release_that_fails_half_way_starts_a_reaper(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detach(*_: object) -> None:
        raise KernelError(EBUSY, "removing a filter")

    started: list[str] = []
    with Host(ledger, reaper=started.append) as host:
        lease = library.acquire(host, Tap(bridge="br0", filter=True))
        monkeypatch.setattr(Devices, "detach", detach)
        with pytest.raises(KernelError, match="removing a filter"):
            host.release(lease)
    assert started == [str(ledger)]


def test_reap_waits_for_the_deadline_and_takes_no_more(host: Host) -> None:
    ended, waiting, running = (
        host.acquire(Tap(bridge="br0", fin_wait=wait)) for wait in (0.0, 60.0, 60.0)
    )
    for lease in (ended, waiting, running):
        lease.close()
    host.release(waiting.id)
    host.release(ended.id)
    assert set(iproute.links()) == {"lo", "br0", waiting.name, running.name}
    assert host.reap() == 0
    assert host.reap(now=True) == 1
    assert set(iproute.links()) == {"lo", "br0", running.name}
    (entry,) = host.who(waiting.name)
    assert entry.lease == waiting.id
    assert entry.created <= (entry.released or 0) <= (entry.ended or 0)


def test_a_device_whose_vm_still_runs_can_be_reaped(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0"))
    host.release(lease.id)
    assert host.reap(now=True) == 1
    with pytest.raises(OSError, match="bad state"):
        os.read(lease.fds[0], 1)
    lease.close()


def test_a_lease_bound_to_its_taps_last_close_is_released_by_recover(
    host: Host,
) -> None:
    (lease,) = host.acquire_all([Tap(bridge="br0", queues=2)], on_close=True)
    first, second = lease.detach_fds()
    os.close(first)
    assert host.recover() == []
    os.close(second)
    assert [one.action for one in host.recover()] == [Action.RELEASE]
    assert iproute.ports() == set()
    assert host.find(lease.id).state is State.FIN_WAIT


def test_the_close_of_a_macvtap_cannot_be_waited_for(host: Host) -> None:
    shell.sh("ip link add eth0 type veth peer name eth1")
    shell.sh("ip link set eth0 up")
    with pytest.raises(RequestError, match="bind it to a process"):
        host.acquire_all([Macvtap("eth0")], on_close=True)
    assert host.leases() == []


def test_a_second_process_gets_a_descriptor_of_the_same_device(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0"))
    with pytest.raises(LeaseBusy, match="one queue"):
        host.reopen(lease.id)
    lease.close()
    with host.reopen(lease.id):
        assert iproute.links()["vnet0"]["flags"].count("LOWER_UP") == 1
    host.release(lease.id)
    with pytest.raises(NoSuchLease):
        host.reopen(lease.id)


def test_one_lease_can_be_mended_alone(host: Host) -> None:
    one, other = host.acquire_all([Tap(bridge="br0")] * 2)
    library.close_all(one, other)
    shell.sh(f"ip link del {one.name}")
    shell.sh(f"ip link del {other.name}")
    repairs = host.operations.recover.some([one.id])
    assert [repair.lease.id for repair in repairs] == [one.id]
    assert list(iproute.links()).count(one.name) == 1, "a placeholder has it"
    assert other.name not in iproute.links()
