# SPDX-License-Identifier: Apache-2.0
"""The reaper goes on after a failure: VMs that end rely on it."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from errno import EMFILE, ENOBUFS
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, library, shell
from lab.reapers import Monitor, wait_for, wait_reaping
from tapster import (
    Host,
    InternalError,
    KernelError,
    LedgerDamaged,
    LedgerError,
    MissingCapability,
    NoSuchLink,
    Tap,
    reaper,
)
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.lock import REAPER, LockFile
from tapster.kernel.port import Watch
from tapster.operations.decision import Repair
from tapster.operations.reap import Reap
from tapster.operations.recover import Recover

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

FOREIGN = "02:00:00:00:00:99"


def test_a_lease_that_cannot_be_repaired_does_not_end_the_reaper(ledger: Path) -> None:
    """Its bridge is gone. The reaper still sees the end of the VM."""
    shell.sh("ip link add br1 type bridge")
    with Host(ledger) as host, subprocess.Popen(["sleep", "1000"]) as vm:
        lost = library.acquire(host, Tap(bridge="br1", fin_wait=0.1), pid=vm.pid)
        sound = library.acquire(host, Tap(bridge="br0"))
        wait_reaping(ledger)
        shell.sh("ip link del br1")
        for lease in (lost, sound):
            shell.sh(f"ip link set {lease.name} address {FOREIGN}")
        mac = "fe" + sound.mac[2:]
        wait_for(
            lambda: iproute.links()[sound.name]["address"] == mac,
            "the reaper has looked at both",
        )
        with Monitor() as monitor:
            vm.kill()
            monitor.wait_index_deleted(lost.ifindex)


def fail(patch: pytest.MonkeyPatch, error: Exception, times: int) -> list[Exception]:
    """Let a part of the reaper's work fail so often. Return the failures."""
    failed: list[Exception] = []
    quit_if_idle = Reap.quit_if_idle

    def fail_or_quit(reap: Reap, on_idle: Callable[[], None]) -> bool:
        if len(failed) == times:
            return quit_if_idle(reap, on_idle)
        failed.append(error)
        raise error

    patch.setattr(Reap, "quit_if_idle", fail_or_quit)
    return failed


@pytest.fixture
def waiting(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A Host with a device whose FIN WAIT is over in a moment, and no reaper."""
    monkeypatch.setattr(reaper, "RETRY", 0.0)
    with Host(ledger, reaper=library.no_reaper) as host:
        host.release(library.acquire(host, Tap(fin_wait=0.1)).id)
        yield host


def lead(ledger: Path) -> bool:
    standby = os.pidfd_open(os.getpid())
    try:
        return reaper.lead(str(ledger), standby)
    finally:
        os.close(standby)


@pytest.mark.parametrize(
    "error",
    [
        KernelError(ENOBUFS, "listing the links"),
        OSError(EMFILE, "Too many open files"),
        NoSuchLink("there is no bridge 'br1'"),
        LedgerError("the disk is full"),
        InternalError("a fault"),
        KeyError("a fault"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_work_that_fails_is_tried_again(
    waiting: Host, ledger: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failed = fail(monkeypatch, error, reaper.FAILURES - 1)
    assert not lead(ledger)
    assert len(failed) == reaper.FAILURES - 1
    assert waiting.leases() == []
    assert iproute.ports() == set()


def test_a_reaper_hears_of_every_namespace_although_memory_was_short_at_its_start(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "RETRY", 0.0)
    shell.sh("ip netns add pod")
    with Host(ledger, netns="pod", reaper=library.no_reaper) as pod:
        opened = pod.acquire(Tap(fin_wait=0), on_close=True)
    watch, next_deadline = LinuxSystem.watch, Reap.next_deadline
    failed: list[bool] = []

    def fail_once(system: LinuxSystem, *, first: int, elsewhere: bool = False) -> Watch:
        if elsewhere and not failed:
            failed.append(True)
            raise KernelError(ENOBUFS, "watching the devices")
        return watch(system, first=first, elsewhere=elsewhere)

    def close_first(reap: Reap) -> float | None:
        opened.close()  # after the first look, so it must be reported
        return next_deadline(reap)

    monkeypatch.setattr(LinuxSystem, "watch", fail_once)
    monkeypatch.setattr(Reap, "next_deadline", close_first)
    assert not lead(ledger), "it ends: there is no work left"
    with Host(ledger, reaper=library.no_reaper) as host:
        assert host.leases() == []


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (KernelError(ENOBUFS, "listing the links"), reaper.FAILURES),
        (MissingCapability("this needs CAP_NET_ADMIN"), 1),
        (LedgerDamaged("the file is not a ledger"), 1),
    ],
    ids=["again and again", "for want of a capability", "for want of a ledger"],
)
def test_work_that_cannot_be_done_ends_the_reaper_and_the_next_command_tries(
    waiting: Host,
    ledger: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    times: int,
) -> None:
    failed = fail(monkeypatch, error, reaper.FAILURES + 1)
    assert not lead(ledger)
    assert len(failed) == times
    locks = LockFile(str(ledger))
    assert not locks.alive(REAPER)
    locks.leave()
    with Monitor() as monitor:
        shell.sh(f"{shell.TAPSTER} ls --ledger {ledger}")
        monitor.wait_deleted("vnet0")


def test_the_end_of_a_process_is_seen_although_devices_change_all_the_time(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the first attempt to release its lease fails."""
    monkeypatch.setattr(reaper, "LONGEST_WATCH", 0.2)
    errors = iter([KernelError(ENOBUFS, "listing the links")])
    settle = Recover.settle

    def fail_once(recover: Recover) -> list[Repair]:
        if error := next(errors, None):
            raise error
        return settle(recover)

    monkeypatch.setattr(Recover, "settle", fail_once)
    ended = threading.Event()

    def change() -> None:
        for number in range(2000):
            if ended.is_set():
                return
            shell.sh(f"ip link set {other.name} mtu {1300 + number % 2}")

    with Host(ledger, reaper=library.no_reaper) as host:
        other = library.acquire(host, Tap())
        with subprocess.Popen(["sleep", "1000"]) as vm:
            # The device is down, so the kernel sends no later report of its carrier.
            library.acquire(host, Tap(up=False, fin_wait=0.1), pid=vm.pid)
            vm.kill()
        changing = threading.Thread(target=change)
        changing.start()
        assert not lead(ledger)
        assert changing.is_alive(), "the device changed all the time"
        ended.set()
        changing.join()
        assert [lease.id for lease in host.leases()] == [other.id]


def test_a_mac_that_cannot_be_put_back_at_once_is_put_back_later(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([KernelError(ENOBUFS, "changing a link")])
    some = Recover.some

    def fail_once(*arguments: Any, **options: Any) -> list[Repair]:
        if options.get("wiring") and (error := next(errors, None)):
            raise error
        return some(*arguments, **options)

    monkeypatch.setattr(Recover, "some", fail_once)
    with Host(ledger, reaper=library.no_reaper) as host:
        lease = library.acquire(host, Tap(bridge="br0"))
        host.release(library.acquire(host, Tap(fin_wait=1.5)).id)
        shell.sh(f"ip link set {lease.name} address {FOREIGN}")
        assert not lead(ledger)
        assert iproute.links()[lease.name]["address"] == "fe" + lease.mac[2:]
