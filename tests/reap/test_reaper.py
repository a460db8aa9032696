# SPDX-License-Identifier: Apache-2.0
"""Finished waits are reaped without anybody remembering."""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import tapster
from lab import iproute, library, shell
from lab.interrupts import act_at, moments
from lab.reapers import (
    Monitor,
    kill_reapers,
    reapers,
    wait_dead,
    wait_for,
    wait_reaping,
)
from tapster import Host, HostError, State, Tap, reaper
from tapster.kernel import detached, tun
from tapster.kernel.lock import REAPER, STARTING, LockFile
from tapster.ledger import transactions
from tapster.operations.operations import open_operations

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture
def released(ledger: Path) -> Iterator[Host]:
    """A Host that has just released vnet0, which waits for a few seconds.

    A test on a busy host must have begun to listen before vnet0 is deleted.
    """
    with Host(ledger) as host:
        lease = library.acquire(host, Tap(bridge="br0", fin_wait=4.0))
        host.release(lease.id)
        wait_reaping(ledger)
        yield host


def test_a_release_is_reaped_by_itself_and_the_reaper_ends(
    released: Host, ledger: Path
) -> None:
    both = reapers(ledger)
    with Monitor() as monitor:
        monitor.wait_deleted("vnet0")
    wait_dead(both)
    assert released.leases() == []
    assert reapers(ledger) == []


def test_a_lease_that_recover_puts_into_fin_wait_is_reaped(ledger: Path) -> None:
    with Host(ledger) as host:
        host.acquire(Tap(bridge="br0", fin_wait=1.0)).close()
        shell.sh("ip link del vnet0")
        host.recover()
        wait_reaping(ledger)
        both = reapers(ledger)
        with Monitor() as monitor:
            monitor.wait_deleted("vnet0")
        wait_dead(both)
        assert host.leases() == []


def test_the_reaper_survives_the_death_of_its_leader(
    released: Host, ledger: Path
) -> None:
    leader, standby = reapers(ledger)
    with Monitor() as monitor:
        os.kill(leader, signal.SIGKILL)
        monitor.wait_deleted("vnet0")
    wait_dead([standby])
    assert released.leases() == []


def test_the_next_command_starts_a_reaper_after_both_died(
    released: Host, ledger: Path
) -> None:
    both = reapers(ledger)
    with Monitor() as monitor:
        for pid in both:
            os.kill(pid, signal.SIGKILL)
        wait_dead(both)
        shell.sh(f"{shell.TAPSTER} ls --ledger {ledger}")
        monitor.wait_deleted("vnet0")


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_program_that_brings_tapster_along_has_a_reaper(
    ledger: Path, tmp_path: Path, kind: str
) -> None:
    """Its interpreter does not find the package by itself."""
    package = Path(tapster.__file__).parent
    place = str(package.parent)
    if kind == "archive":
        place = shutil.make_archive(
            str(tmp_path / "app"), "zip", package.parent, package.name
        )
    code = (
        f"import sys; sys.path.insert(0, {place!r})\n"
        "import tapster\n"
        f"with tapster.Host({str(ledger)!r}) as host:\n"
        "    spec = tapster.Tap(bridge='br0', filter=True, fin_wait=0.2)\n"
        "    device = host.acquire(spec)\n"
        "    device.close()\n"
        "    host.release(device)\n"
    )
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    outside = Path(sys.base_prefix, "bin", version)
    with Monitor() as monitor:
        subprocess.run([outside, "-c", code], check=True)
        monitor.wait_deleted("vnet0")


def test_an_error_tells_a_program_without_an_interpreter_how_to_reap(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with Host(ledger) as host:
        device = host.acquire(Tap(fin_wait=0.2))
        device.close()
        with pytest.raises(HostError, match=r"python3 -m tapster\.reaper"):
            host.release(device)
        assert host.find(device.id).state is State.FIN_WAIT
        monkeypatch.undo()
        host.reap(now=True)


def test_a_tap_that_was_closed_while_no_reaper_listened_is_released(
    ledger: Path,
) -> None:
    with Host(ledger, reaper=library.no_reaper) as host:
        opened = host.acquire(Tap(bridge="br0", fin_wait=0.1), on_close=True)
        opened.close()
    with Monitor() as monitor:
        shell.sh(f"{shell.TAPSTER} ls --ledger {ledger}")
        monitor.wait_index_deleted(opened.ifindex)


def test_one_reaper_is_enough(released: Host, ledger: Path) -> None:
    before = reapers(ledger)
    with Monitor() as monitor:
        for _ in range(5):
            lease = library.acquire(released, Tap(bridge="br0", fin_wait=1.0))
            released.release(lease.id)
        assert reapers(ledger) == before
        monitor.wait_index_deleted(lease.ifindex)


def count_starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets an entry for each reaper that this process starts."""
    started: list[str] = []
    start = detached.start

    def count(module: str, ledger: str, keep: int | None = None) -> None:
        started.append(module)
        start(module, ledger, keep=keep)

    monkeypatch.setattr(detached, "start", count)
    return started


def test_no_second_reaper_is_started_before_the_first_is_awake(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = count_starts(monkeypatch)
    with Host(ledger) as host, Host(ledger) as other:
        for _ in range(10):
            for manager in (host, other):
                lease = library.acquire(manager, Tap(bridge="br0", fin_wait=3600))
                manager.release(lease.id)
        assert started == ["tapster.reaper"]
        wait_reaping(ledger)
        assert len(reapers(ledger)) == 2
    kill_reapers(ledger)


def test_another_reaper_is_started_if_one_ends_or_hangs_while_it_starts(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = count_starts(monkeypatch)
    with Host(ledger) as host:
        leases = [
            library.acquire(host, Tap(bridge="br0", fin_wait=3600)) for _ in range(3)
        ]
        starting = LockFile(str(ledger))
        assert starting.announce_reaper()
        host.release(leases[0].id)
        assert started == [], "one is about to begin"
        with open(f"{ledger}.lock", "r+b") as file:
            file.seek(8 * 32)
            file.write(bytes(8))  # the moment of the boot
        host.release(leases[1].id)
        assert len(started) == 1, "it hangs"
        kill_reapers(ledger)
        starting.leave()
        host.release(leases[2].id)
        assert len(started) == 2, "its process has ended"
        wait_reaping(ledger)
    kill_reapers(ledger)


def test_a_reaper_looks_again_for_the_other_one_that_it_saw_while_it_started(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one ends, and a release then relies on the reaper that starts."""
    starting, other = LockFile(str(ledger)), LockFile(str(ledger))
    assert starting.announce_reaper()
    other.enter(REAPER)
    standby = os.pidfd_open(os.getpid())
    with Host(ledger, reaper=library.no_reaper) as host:
        lease = library.acquire(host, Tap(bridge="br0", fin_wait=0.1))
        free = LockFile.free

        def release_first(locks: LockFile, byte: int) -> None:
            if byte == STARTING:
                other.leave()
                host.release(lease.id)
            free(locks, byte)

        monkeypatch.setattr(LockFile, "free", release_first)
        assert not reaper.lead(str(ledger), standby, os.dup(starting.fileno()))
        assert host.leases() == []
    starting.leave()
    os.close(standby)


def test_the_reaper_ends_with_a_deleted_ledger(released: Host, ledger: Path) -> None:
    both = reapers(ledger)
    for file in ledger.parent.glob("ledger.db*"):
        file.unlink()
    wait_dead(both)


def delete_directory(directory: Path) -> None:
    """Delete a ledger's directory as a purge does."""
    directory.rename(directory.with_name("purged"))


def delete_files(directory: Path) -> None:
    """Delete the files of a ledger as `rm -r` does, before it deletes the directory."""
    for file in directory.iterdir():
        file.unlink()


@pytest.mark.parametrize("delete", [delete_directory, delete_files])
def test_a_reaper_makes_nothing_after_a_purge_at_any_moment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    delete: Callable[[Path], None],
) -> None:
    ledger = tmp_path / "tapster" / "ledger.db"
    monkeypatch.setattr(transactions, "DEFAULT_PATH", str(ledger))
    standby = os.pidfd_open(os.getpid())

    def lead() -> None:
        reaper.lead(str(ledger), standby)

    def make() -> None:
        shutil.rmtree(tmp_path)
        ledger.parent.mkdir(parents=True)
        with Host(ledger, reaper=library.no_reaper) as host:
            library.acquire(host, Tap(fin_wait=0))  # this makes the lock file, too
            host.recover()
            for lease in host.leases():
                host.release(lease.id)
            host.reap(now=True)

    make()
    lead()
    there = moments(lead)
    for moment in random.Random(1).sample(there, 150):
        make()
        act_at(moment, lambda: delete(ledger.parent), lead)
        left = list(ledger.parent.iterdir()) if ledger.parent.exists() else []
        assert left == [], moment
    os.close(standby)


def test_a_disk_that_is_full_for_a_time_loses_no_release(tmp_path: Path) -> None:
    """The process of a lease ends while the ledger cannot be changed."""
    shell.sh(f"mount -t tmpfs -o size=300k none {tmp_path}")
    ledger = tmp_path / "ledger.db"
    with subprocess.Popen(["sleep", "1000"]) as vm:
        with Host(ledger) as host:
            host.acquire(Tap(bridge="br0", fin_wait=0.1), pid=vm.pid).close()
        wait_reaping(ledger)
        leader, _ = reapers(ledger)
        with suppress(OSError), open(tmp_path / "fill", "wb", buffering=0) as fill:
            while True:
                fill.write(bytes(1024))
        vm.kill()
    # The leader has seen the end, and could record nothing.
    wait_for(lambda: count_pidfds(leader) == 1, "the leader hears of the end")
    assert iproute.ports() == {"vnet0"}
    with Monitor() as monitor:
        (tmp_path / "fill").unlink()
        monitor.wait_deleted("vnet0")  # no command was typed


def count_pidfds(leader: int) -> int:
    """Return how many processes a reaper follows. One is its standby."""
    count = 0
    for info in Path(f"/proc/{leader}/fdinfo").iterdir():
        with suppress(OSError):
            count += "Pid:" in info.read_text()
    return count


def ticks_of(pid: int) -> int:
    """Return the processor time of a process, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_due_lease_that_a_stopped_manager_has_claimed_costs_no_time(
    ledger: Path,
) -> None:
    """The manager lives, so its claim stands: Ctrl-Z in `tapster set`, say."""
    with Host(ledger) as host, open_operations(ledger, reaper=library.no_reaper) as by:
        claimed = library.acquire(host, Tap(fin_wait=0.1))
        by.context.claims.claim(claimed.id)
        host.release(claimed.id)
        wait_reaping(ledger)
        leader, _ = reapers(ledger)
        with Monitor() as monitor:
            before = ticks_of(leader)
            other = library.acquire(host, Tap(fin_wait=3.0))
            host.release(other.id)
            monitor.wait_index_deleted(other.ifindex)
            assert ticks_of(leader) - before < 20, "of some 300"
            assert claimed.name in iproute.links()
            by.context.claims.release()
            monitor.wait_index_deleted(claimed.ifindex)


def test_the_reaper_gives_a_tap_to_root_again_after_its_user_took_it(
    ledger: Path,
) -> None:
    """A process needs no privilege to change the owner of a tap that it has open."""
    with Host(ledger) as host:
        device = host.acquire(Tap(uid=4711, fin_wait=600))
        host.release(device.id)
        wait_reaping(ledger)
        fcntl.ioctl(device.fds[0], tun.TUNSETOWNER, 4711)
        device.close()

        def is_roots() -> bool:
            data = iproute.links()[device.name]["linkinfo"]["info_data"]
            return bool(data["user"] == "root")

        wait_for(is_roots, "the tap is root's")
        kill_reapers(ledger)
