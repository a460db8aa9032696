# SPDX-License-Identifier: Apache-2.0
"""Reapers that are stopped or frozen are replaced, and do no harm."""

import os
import select
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from lab import library, shell
from lab.reapers import (
    Monitor,
    kill_reapers,
    reapers,
    wait_dead,
    wait_for,
    wait_reaping,
)
from tapster import Host, Tap
from tapster.kernel.boot import boottime
from tapster.kernel.lock import REAPER, REAPERS, LockFile

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture
def waiting(ledger: Path) -> Iterator[Host]:
    """A Host whose vnet0 waits for long, and its reaper."""
    with Host(ledger) as host:
        lease = library.acquire(host, Tap(bridge="br0", fin_wait=3600))
        host.release(lease.id)
        wait_reaping(ledger)
        yield host
    kill_reapers(ledger)


def halt(ledger: Path, pids: list[int]) -> None:
    """Stop processes while none of them is in a transaction, which would lock all."""
    while True:
        for pid in reversed(pids):  # a standby kills a leader that is stopped
            os.kill(pid, signal.SIGSTOP)
            wait_for(lambda: state_of(pid) == "T", f"process {pid} stops")  # noqa: B023
        if not is_locked(ledger):
            return
        go_on(pids)


def is_locked(ledger: Path) -> bool:
    with closing(sqlite3.connect(ledger, timeout=0)) as file:
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


def go_on(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def state_of(pid: int) -> str:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def let_time_pass(ledger: Path, *, known: bool = True) -> None:
    """Let the reaper's last waking be long ago; unless `known`, of a hidden process."""
    locks = LockFile(str(ledger))
    waking = locks.waking(REAPER)
    assert waking
    assert waking.is_recent()
    pidns = waking.pidns if known else 1
    locks.awake(REAPER, waking.pid, waking.start, pidns)
    with open(f"{ledger}.lock", "r+b") as file:
        file.write(bytes(8))  # the moment of the boot
    assert locks.waking(REAPER) == waking._replace(when=0, pidns=pidns)
    locks.leave()


def command(ledger: Path) -> None:
    shell.sh(f"{shell.TAPSTER} ls --ledger {ledger}")


def other_reapers(ledger: Path, than: list[int]) -> list[int]:
    return [pid for pid in reapers(ledger) if pid not in than]


def wait_replaced(ledger: Path, former: list[int]) -> list[int]:
    """Wait until a leader and a standby are there beside the former ones."""
    wait_for(lambda: len(other_reapers(ledger, former)) == 2, "another reaper comes up")
    return other_reapers(ledger, former)


def test_a_reaper_is_awake_while_it_says_so(ledger: Path) -> None:
    looking, reaping, other = (LockFile(str(ledger)) for _ in range(3))
    assert not looking.is_reaper_awake()
    reaping.enter(REAPERS[1])
    assert looking.is_reaper_awake(), "it has just begun"
    reaping.awake(REAPERS[1], 1, 2, 3)
    waking = looking.waking(REAPERS[1])
    assert waking
    assert waking[1:] == (1, 2, 3)
    assert waking.when == pytest.approx(boottime(), abs=60)
    assert looking.is_reaper_awake()
    assert looking.is_reaper_awake(besides=REAPERS[0])
    assert not looking.is_reaper_awake(besides=REAPERS[1])
    assert not reaping.is_reaper_awake(), "its own lock does not count"
    with open(f"{ledger}.lock", "r+b") as file:
        file.seek(32)
        file.write(bytes(8))
    assert not looking.is_reaper_awake(), "that was at the boot"
    other.enter(REAPER)
    assert looking.is_reaper_awake()
    for locks in (looking, reaping, other):
        locks.leave()


def test_a_leader_that_is_stopped_is_killed_and_replaced(
    waiting: Host, ledger: Path
) -> None:
    leader, standby = reapers(ledger)
    os.kill(leader, signal.SIGSTOP)
    wait_dead([leader])
    wait_for(
        lambda: len(reapers(ledger)) == 2 and reapers(ledger)[1] == standby,
        "the standby forks another leader",
    )
    with Monitor() as monitor:
        lease = library.acquire(waiting, Tap(bridge="br0", fin_wait=0.1))
        waiting.release(lease.id)
        monitor.wait_index_deleted(lease.ifindex)


def test_a_leader_whose_standby_is_killed_becomes_the_standby(
    waiting: Host, ledger: Path
) -> None:
    leader, standby = reapers(ledger)
    for _ in range(2):
        os.kill(standby, signal.SIGKILL)
        wait_dead([standby])
        wait_for(
            lambda: len(reapers(ledger)) == 2 and reapers(ledger)[1] == leader,  # noqa: B023
            "the leader forks another leader",
        )
        wait_reaping(ledger)
        leader, standby = reapers(ledger)
    os.kill(leader, signal.SIGKILL)
    wait_dead([leader])
    wait_reaping(ledger)
    both = reapers(ledger)
    waiting.reap(now=True)
    wait_dead(both)


def test_reaping_goes_on_while_a_standby_is_stopped(
    waiting: Host, ledger: Path
) -> None:
    leader, standby = reapers(ledger)
    halt(ledger, [standby])
    os.kill(leader, signal.SIGKILL)
    wait_for(lambda: state_of(leader) == "Z", "its standby does not wait for it")
    command(ledger)
    wait_replaced(ledger, [leader, standby])
    go_on([standby])
    wait_dead([standby])
    assert len(reapers(ledger)) == 2


def test_a_standby_gives_up_if_each_leader_is_killed_at_once(
    waiting: Host, ledger: Path
) -> None:
    _, standby = reapers(ledger)
    ended = os.pidfd_open(standby)
    while not select.select([ended], [], [], 0)[0]:
        for pid in reapers(ledger):
            if pid != standby:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    os.close(ended)
    command(ledger)
    wait_reaping(ledger)
    assert waiting.leases()


@pytest.mark.parametrize("known", [True, False], ids=["killed", "hidden"])
def test_reapers_that_are_both_stopped_are_replaced_by_the_next_command(
    waiting: Host, ledger: Path, known: bool
) -> None:
    both = reapers(ledger)
    halt(ledger, both)
    command(ledger)
    assert reapers(ledger) == both, "they may be slow"
    let_time_pass(ledger, known=known)
    command(ledger)
    again = wait_replaced(ledger, both)
    with Monitor() as monitor:
        lease = library.acquire(waiting, Tap(bridge="br0", fin_wait=0.1))
        waiting.release(lease.id)
        monitor.wait_index_deleted(lease.ifindex)
    go_on(both)
    wait_dead(both)
    assert sorted(reapers(ledger)) == sorted(again)
    waiting.reap(now=True)
    wait_dead(again)
    assert waiting.leases() == []


@contextmanager
def frozen(pids: list[int], mount: Path) -> Iterator[Callable[[], object]]:
    """Freeze processes in a cgroup of their own; yield a function that thaws them."""
    group = mount / f"tapster-test-{os.getpid()}"
    mount.mkdir()
    try:
        shell.sh(f"mount -t cgroup2 none {mount}")
        group.mkdir()
    except (subprocess.CalledProcessError, OSError):
        pytest.skip("no cgroup of version 2 can be made here")
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        (group / "cgroup.freeze").write_text("1")
        events = group / "cgroup.events"
        wait_for(lambda: "frozen 1" in events.read_text(), "they freeze")
        yield lambda: (group / "cgroup.freeze").write_text("0")
    finally:
        (group / "cgroup.kill").write_text("1")
        populated = "populated 1"
        wait_for(lambda: populated not in events.read_text(), "they end")
        group.rmdir()


def test_reapers_that_are_frozen_with_their_cgroup_are_replaced(
    waiting: Host, ledger: Path, tmp_path: Path
) -> None:
    both = reapers(ledger)
    with frozen(both, tmp_path / "cgroup") as thaw:
        let_time_pass(ledger)
        command(ledger)
        again = wait_replaced(ledger, both)
        wait_dead([both[0]])
        with Monitor() as monitor:
            lease = library.acquire(waiting, Tap(bridge="br0", fin_wait=0.1))
            waiting.release(lease.id)
            monitor.wait_index_deleted(lease.ifindex)
        thaw()
        wait_dead(both)
        assert sorted(reapers(ledger)) == sorted(again)
        waiting.reap(now=True)
        wait_dead(again)
