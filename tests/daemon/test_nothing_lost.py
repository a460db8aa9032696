# SPDX-License-Identifier: Apache-2.0
"""What the daemon could not do, it does when it can: a disk, a service, a bridge."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path

import pytest

from lab import iproute, shell
from lab.daemon import POLICY, SERVICE, Daemon
from lab.openvswitch import OpenVswitch, ports, switch
from tapster import State, Tap
from tapster.daemon.log import INFO, Log
from tapster.rpc.interface import Event

__all__ = ["switch"]

pytestmark = pytest.mark.kernel

REPAIRING = f"{POLICY}\n[watch]\nrepair = true\n"


def wait_for(events: Iterator[Event], event: str) -> None:
    """Wait until a client that watches is told of an event."""
    assert any(told.event == event for told in events)


@pytest.fixture
def small(world: None) -> Iterator[Path]:
    """A small file system for a ledger, in a folder that the daemon may enter."""
    place = Path("/run/small")
    place.mkdir()
    shell.sh(f"mount -t tmpfs -o size=512k,uid={SERVICE} tmpfs {place}")
    yield place
    shell.sh(f"umount -l {place}")


@contextmanager
def full(place: Path) -> Iterator[None]:
    """Leave no space on a file system."""
    ballast = place / "ballast"
    free = os.statvfs(place)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    yield
    ballast.unlink()


def test_a_release_that_a_full_disk_prevented_is_done_when_there_is_space(
    small: Path,
) -> None:
    with Daemon() as daemon:
        daemon.ledger = small / "ledger.db"
        daemon.start()
        with subprocess.Popen(["sleep", "infinity"]) as vm, daemon.connect() as root:
            tap = root.acquire(Tap(bridge="br0", fin_wait=60), pid=vm.pid)
            tap.close()
            events = daemon.events()
            with full(small):
                vm.kill()
                daemon.wait_logged("not-repaired")
                assert root.look_up(tap.id).state is State.ACTIVE
            wait_for(events, "released")
            assert root.look_up(tap.id).state is State.FIN_WAIT
            assert "UP" not in iproute.links()[tap.name]["flags"]


def test_what_a_full_disk_prevented_at_the_start_is_done_when_there_is_space(
    small: Path,
) -> None:
    with Daemon() as daemon:
        daemon.ledger = small / "ledger.db"
        daemon.start()
        with daemon.connect() as root:
            lost = root.acquire(Tap(bridge="br0", fin_wait=60))
            moved = root.acquire(Tap(bridge="br0", fin_wait=60))
        daemon.stop(signal.SIGKILL)  # it leaves SQLite's files, which need space
        shell.sh(f"ip link del {lost.name}")
        shell.sh(f"ip link set {moved.name} nomaster")
        with full(small):
            daemon.start()
            daemon.wait_logged("not-recovered")
            events = daemon.events()
            assert lost.name not in iproute.links()
        wait_for(events, "held")
        assert lost.name in iproute.links()
        assert iproute.links()[moved.name]["master"] == "br0"
        lost.close()
        moved.close()


def test_a_log_whose_disk_was_full_goes_on_when_there_is_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, later = Log(), StringIO()
    with suppress(OSError), open("/dev/full", "w", buffering=1) as full_disk:
        monkeypatch.setattr(sys, "stderr", full_disk)
        log(INFO, "lost")
    monkeypatch.setattr(sys, "stderr", later)
    log(INFO, "kept")
    assert later.getvalue() == "level=info event=kept\n"


def test_a_port_that_a_stopped_service_kept_goes_when_the_service_is_back(
    switch: OpenVswitch,
) -> None:
    with Daemon(root=True) as daemon:
        daemon.start()
        with daemon.connect() as root:
            tap = root.acquire(Tap(ovs="ovs0", fin_wait=0.1))
            tap.close()
            events = daemon.events()
            switch.stop_database()
            root.release(tap)
            daemon.wait_logged("not-reaped")
            assert root.look_up(tap.id).state is State.FIN_WAIT
            switch.start_database()
            wait_for(events, "ended")
            assert ports("ovs0") == []
            assert tap.name not in iproute.links()


def test_a_device_whose_bridge_was_missing_is_put_back_on_the_new_one(
    world: None,
) -> None:
    with Daemon(policy=REPAIRING) as daemon:
        daemon.start()
        with daemon.connect() as root:
            tap = root.acquire(Tap(bridge="br0"))
            events = daemon.events()
            shell.sh("ip link del br0")
            daemon.wait_logged("not-repaired")
            assert "master" not in iproute.links()[tap.name]
            shell.sh("ip link add br0 type bridge")
            wait_for(events, "sound")
            assert iproute.links()[tap.name]["master"] == "br0"
            tap.close()


def test_a_vm_in_the_background_is_put_back_on_its_new_bridge(world: None) -> None:
    """Its starter ends while there is no bridge. That end is no repair of its port."""
    with Daemon(policy=REPAIRING) as daemon:
        daemon.start()
        with (
            subprocess.Popen(["sleep", "infinity"]) as starter,
            daemon.connect() as root,
        ):
            tap = root.acquire(Tap(bridge="br0"), pid=starter.pid)
            unopened = root.acquire(Tap(), pid=starter.pid)
            unopened.close()
            events = daemon.events()
            shell.sh("ip link del br0")
            daemon.wait_logged("not-repaired")
            starter.kill()
            wait_for(events, "released")
            assert root.look_up(tap.id).state is State.ACTIVE
            shell.sh("ip link add br0 type bridge")
            wait_for(events, "sound")
            assert iproute.links()[tap.name]["master"] == "br0"
            tap.close()
