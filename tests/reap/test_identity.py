# SPDX-License-Identifier: Apache-2.0
"""The reaper puts back MACs and aliases that another program changes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import iproute, library, shell
from lab.reapers import kill_reapers, reapers, wait_for, wait_reaping
from tapster import Host, Lease, Tap
from tapster.kernel import udev
from tapster.operations.context import WATCHED
from tapster.operations.operations import open_operations
from tapster.operations.pace import AT_ONCE

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

FOREIGN = "02:00:00:00:00:99"


@pytest.fixture
def waiting(ledger: Path) -> Iterator[Host]:
    """A Host whose reaper runs, because a lease waits."""
    with Host(ledger) as host:
        host.release(library.acquire(host, Tap(fin_wait=3600)).id)
        wait_reaping(ledger)
        yield host
    kill_reapers(ledger)


@pytest.fixture
def udev_without_files(world: None) -> None:
    """A host with udev, and without Tapster's files, as every process sees it here."""
    control = Path(udev.CONTROL)
    control.parent.mkdir(parents=True)
    control.touch()
    for place in udev.LIBRARIES:
        folder = Path(place, udev.HANDS_OFF).parent
        if folder.exists():
            shell.sh(f"mount -t tmpfs none {folder}")
    assert udev.interferes()


def mac_of(lease: Lease) -> str:
    return str(iproute.links()[lease.name]["address"])


def wait_restored(lease: Lease) -> None:
    wait_for(lambda: mac_of(lease) == "fe" + lease.mac[2:], "the MAC is put back")


def test_a_foreign_mac_is_put_back_while_the_reaper_runs(waiting: Host) -> None:
    lease = library.acquire(waiting, Tap(bridge="br0"))
    for _ in range(AT_ONCE + 2):  # and again, if more slowly
        shell.sh(f"ip link set {lease.name} address {FOREIGN}")
        wait_restored(lease)


def test_a_foreign_alias_is_put_back_while_the_reaper_runs(waiting: Host) -> None:
    lease = library.acquire(waiting, Tap(bridge="br0"))
    stamp = iproute.links()[lease.name]["ifalias"]
    shell.sh(f"ip link set {lease.name} alias web")
    wait_for(
        lambda: iproute.links()[lease.name]["ifalias"] == stamp, "it is stamped again"
    )


def test_a_mac_that_was_changed_before_the_reaper_began_is_put_back(
    ledger: Path,
) -> None:
    with Host(ledger, reaper=library.no_reaper) as host:
        lease = library.acquire(host, Tap(bridge="br0"))
    shell.sh(f"ip link set {lease.name} address {FOREIGN}")
    with Host(ledger) as host:
        host.release(library.acquire(host, Tap(fin_wait=3600)).id)
        wait_restored(lease)
    kill_reapers(ledger)


def test_nothing_else_of_a_device_is_restored_by_the_reaper(waiting: Host) -> None:
    """An administrator may take a device off its bridge for a time."""
    lease = library.acquire(waiting, Tap(bridge="br0"))
    watched = library.acquire(waiting, Tap(bridge="br0"))
    shell.sh(f"ip link set {lease.name} nomaster")
    shell.sh(f"ip link set {watched.name} address {FOREIGN}")
    wait_restored(watched)
    assert "master" not in iproute.links()[lease.name]


@pytest.mark.usefixtures("udev_without_files")
def test_where_udev_changes_macs_the_reaper_watches_new_devices(ledger: Path) -> None:
    with Host(ledger) as host:
        lease = library.acquire(host, Tap(bridge="br0"))
        wait_reaping(ledger)
        shell.sh(f"ip link set {lease.name} address {FOREIGN}")
        wait_restored(lease)
    kill_reapers(ledger)


def test_where_udev_keeps_its_hands_off_no_reaper_starts(ledger: Path) -> None:
    with Host(ledger) as host:
        library.acquire(host, Tap(bridge="br0"))
        assert reapers(ledger) == []


@pytest.mark.usefixtures("udev_without_files")
def test_a_device_is_watched_for_a_time_only(host: Host, ledger: Path) -> None:
    library.acquire(host, Tap(bridge="br0"))
    with open_operations(ledger, reaper=library.no_reaper) as operations:
        context = operations.context
        quits: list[str] = []
        assert not operations.reap.quit_if_idle(lambda: quits.append("quit"))
        now = context.system.wallclock()
        assert context.watched_since() == pytest.approx(now - WATCHED, abs=60)
        later = context.ledger.call_if_idle(lambda: quits.append("quit"), since=now + 1)
        assert later
        assert quits == ["quit"]
