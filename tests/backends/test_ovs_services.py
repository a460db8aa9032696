# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch's daemons down, hung or restarted, at every bad moment."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, shell
from lab.openvswitch import RUNDIR, OpenVswitch, ports, rows
from lab.reapers import Monitor, reapers, wait_dead, wait_reaping
from tapster import (
    ConflictError,
    Host,
    HostError,
    Lease,
    NameTaken,
    OpenDevice,
    ServiceUnavailable,
    State,
    Tap,
)
from tapster.backends import ovs, ovsrpc
from tapster.model import Rate
from tests.backends.ovs_vms import (
    TAG,
    acquire,
    frame,
    received,
    send,
    shown,
)

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that does not answer is given up soon."""
    monkeypatch.setattr(ovs, "PATIENT_SECONDS", 0.4)


def nothing_is_left(host: Host) -> None:
    assert host.leases() == []
    assert "vnet0" not in iproute.links()
    assert (ports("ovs0"), rows("QoS"), rows("Queue")) == ([], [], [])


# The database is away while a VM stops


@pytest.mark.parametrize("fin_wait", [0.0, 1.0])
def test_release_succeeds_and_the_reaper_ends_it_when_the_database_is_back(
    ledger: Path, switch: OpenVswitch, fin_wait: float
) -> None:
    with Host(ledger) as host, Monitor() as monitor:
        lease = acquire(host, fin_wait=fin_wait)
        switch.stop_database()
        host.release(lease.id)
        assert "UP" not in iproute.links()["vnet0"]["flags"]
        wait_reaping(ledger)
        both = reapers(ledger)
        wait_postponed(host, lease)
        # FIN WAIT is long over, and nobody gets the name.
        listed = shell.sh(f"{shell.TAPSTER} ls --all --ledger {ledger}")
        assert f"vnet0  {State.FIN_WAIT} " in listed
        with pytest.raises(NameTaken):
            host.acquire(Tap(bridge="br0", name="vnet0"))
        assert acquire(host, Tap(bridge="br0")).name == "vnet1"
        switch.start_database()
        monitor.wait_deleted("vnet0")
        assert (ports("ovs0"), rows("QoS"), rows("Queue")) == ([], [], [])
        wait_dead(both)
        assert [one.name for one in host.leases()] == ["vnet1"]


def wait_postponed(host: Host, lease: Lease) -> None:
    """Wait until the reaper has tried in vain twice."""
    seen: set[float | None] = set()
    while len(seen) < 3:
        select.select([], [], [], 0.05)
        seen.add(host.find(lease.id).deadline)


def test_release_gives_up_a_database_that_does_not_answer(
    host: Host, switch: OpenVswitch, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = acquire(host)
    switch.signal_database(signal.SIGSTOP)
    host.release(lease.id)
    with pytest.raises(ServiceUnavailable, match="no answer"):
        host.reap(now=True)
    assert [one.state for one in host.leases()] == [State.FIN_WAIT]
    monkeypatch.undo()
    switch.signal_database(signal.SIGCONT)
    assert host.reap(now=True) == 1
    nothing_is_left(host)


def test_a_database_whose_disk_is_full_is_tried_again(
    host: Host, switch: OpenVswitch
) -> None:
    lease = acquire(host)
    with full(RUNDIR.parent):
        host.release(lease.id)
        assert ports("ovs0") == ["vnet0"]
        with pytest.raises(ServiceUnavailable, match="I/O error"):
            host.reap(now=True)
    assert host.reap(now=True) == 1
    nothing_is_left(host)


@contextmanager
def full(mount: Path) -> Iterator[None]:
    """Leave the database no space on its tmpfs, also not in its last page."""
    shell.sh(f"mount -o remount,size=2m {mount}")
    free = os.statvfs(mount)
    ballast = mount / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    note = ["ovs-vsctl", "--timeout=10", "set", "Open_vSwitch", "."]
    for number in range(100):
        noted = subprocess.run([*note, f"external_ids:n={number}"], check=False)
        if noted.returncode:
            break
    yield
    ballast.unlink()


def test_without_the_database_recover_says_so_and_waits(
    host: Host, switch: OpenVswitch
) -> None:
    released, active = acquire(host), acquire(host)
    switch.stop_database()
    with pytest.raises(ServiceUnavailable):
        host.differences(active)
    host.release(released.id)
    with pytest.raises(ServiceUnavailable, match="is ovsdb-server running"):
        host.recover()
    switch.start_database()
    host.recover()
    assert ports("ovs0") == ["vnet1"]
    assert host.differences(active) == {}
    assert host.reap(now=True) == 1


# The database is away while a VM starts


def test_without_the_database_doctor_finds_what_else_is_wrong(
    host: Host, switch: OpenVswitch
) -> None:
    lease = acquire(host)
    acquire(host, Tap(bridge="br0"))
    shell.sh(f"ip link del {lease.name}")
    shell.sh("ip link set br0 down")
    switch.stop_database()
    found = [problem.description for problem in host.examine()]
    assert any("database cannot be reached" in text for text in found)
    assert "bridge br0 is down, with VMs on it" in found


def test_without_the_database_nothing_is_made(host: Host, switch: OpenVswitch) -> None:
    switch.stop_database()
    with pytest.raises(ServiceUnavailable, match=str(RUNDIR)):
        acquire(host)
    switch.start_database()
    nothing_is_left(host)


def test_a_database_that_stops_after_the_port_was_made_leaves_nothing_for_good(
    host: Host, switch: OpenVswitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        monkeypatch.undo()
        switch.stop_database()

    monkeypatch.setattr(ovs, "wait_done", after(ovs.wait_done, stop))
    with pytest.raises(ServiceUnavailable):
        acquire(host)
    with pytest.raises(NameTaken):
        host.acquire(Tap(name="vnet0"))
    switch.start_database()
    assert ports("ovs0") == ["vnet0"]
    host.reap(now=True)
    nothing_is_left(host)


def after(real: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    def both(*arguments: object) -> Any:
        then()
        return real(*arguments)

    return both


def test_a_start_waits_for_a_database_that_has_just_restarted(
    host: Host, switch: OpenVswitch
) -> None:
    before = acquire(host)
    switch.stop_database(signal.SIGKILL)
    switch.start_database()
    acquire(host)
    assert sorted(ports("ovs0")) == ["vnet0", "vnet1"]
    assert host.differences(before) == {}
    assert host.recover() == []


# ovs-vswitchd


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_vswitchd_loses_nothing(
    host: Host,
    switch: OpenVswitch,
    pair: tuple[OpenDevice, OpenDevice],
    how: signal.Signals,
) -> None:
    limited = acquire(host)
    before = [shown(name) for name in ("vnet0", "vnet1", "vnet2")]
    switch.stop(how)
    switch.start()
    assert [shown(name) for name in ("vnet0", "vnet1", "vnet2")] == before
    assert "rate 8Mbit" in shell.sh("tc class show dev vnet2")
    access, trunk = pair
    send(access, trunk)
    assert received(trunk) == frame(access, trunk, TAG)
    assert host.recover() == []
    host.release(limited.id)
    assert sorted(ports("ovs0")) == ["vnet0", "vnet1"]


def test_without_vswitchd_release_deletes_the_rows_and_does_not_wait(
    host: Host, switch: OpenVswitch
) -> None:
    lease = acquire(host)
    switch.stop(signal.SIGKILL)
    host.release(lease.id)
    assert (ports("ovs0"), rows("QoS")) == ([], [])
    assert host.find("vnet0").backends == ()
    assert host.reap(now=True) == 1


def test_without_vswitchd_a_start_fails_and_nothing_is_left(
    host: Host, switch: OpenVswitch, impatient: None
) -> None:
    switch.stop(signal.SIGKILL)
    with pytest.raises(ServiceUnavailable, match="is it running"):
        acquire(host)
    nothing_is_left(host)


def test_without_vswitchd_a_vm_stays_where_it_is(
    host: Host, switch: OpenVswitch, impatient: None
) -> None:
    lease = acquire(host, Tap(bridge="br0"))
    switch.stop(signal.SIGKILL)
    with pytest.raises(ServiceUnavailable) as caught:
        host.set(lease.id, bridge=None, ovs="ovs0", inbound=Rate(1000))
    assert not hasattr(caught.value, "__notes__"), "it could not go back"
    assert iproute.ports("br0") == {"vnet0"}
    assert (ports("ovs0"), rows("QoS"), rows("Queue")) == ([], [], [])
    assert host.find("vnet0").wiring == lease.wiring


def test_the_name_waits_for_a_vswitchd_that_hangs(
    host: Host, switch: OpenVswitch, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still hold the device, whatever the database says."""
    lease = acquire(host)
    switch.signal(signal.SIGSTOP)
    host.release(lease.id)
    assert ports("ovs0") == []
    with pytest.raises(ServiceUnavailable):
        host.reap(now=True)
    assert [one.name for one in host.leases()] == ["vnet0"]
    monkeypatch.undo()
    switch.signal(signal.SIGCONT)
    assert host.reap(now=True) == 1


def test_a_released_device_is_down_although_vswitchd_puts_its_flags_back(
    host: Host, switch: OpenVswitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then it remembers IFF_UP from before; here it always does."""
    lease = acquire(host)
    done = ovs.wait_done

    def let_go(*arguments: Any) -> None:
        done(*arguments)
        shell.sh("ip link set vnet0 up")

    monkeypatch.setattr(ovs, "wait_done", let_go)
    host.release(lease.id)
    assert "UP" not in iproute.links()["vnet0"]["flags"]
    assert host.recover() == []


def test_a_device_that_vswitchd_cannot_use_is_not_handed_out(
    host: Host, switch: OpenVswitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_port = ovs.Ovs.write_port

    def lose(backend: ovs.Ovs, db: Any, lease: Lease) -> tuple[bool, int]:
        shell.sh(f"ip link del {lease.name}")
        return write_port(backend, db, lease)

    monkeypatch.setattr(ovs.Ovs, "write_port", lose)
    with pytest.raises(HostError, match="'vnet0': somebody deleted it"):
        acquire(host)
    nothing_is_left(host)


@pytest.mark.parametrize("daemon", ["ovsdb-server", "ovs-vswitchd"])
def test_a_start_gives_up_a_daemon_that_hangs(
    host: Host,
    switch: OpenVswitch,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    daemon: str,
) -> None:
    tell = switch.signal if daemon == "ovs-vswitchd" else switch.signal_database
    tell(signal.SIGSTOP)
    with pytest.raises(ServiceUnavailable):
        acquire(host)
    tell(signal.SIGCONT)
    monkeypatch.undo()
    host.reap(now=True)
    nothing_is_left(host)


@pytest.mark.parametrize("daemon", ["ovsdb-server", "ovs-vswitchd"])
def test_a_daemon_that_hangs_is_waited_for_once_and_then_hardly(
    host: Host, switch: OpenVswitch, impatient: None, daemon: str
) -> None:
    """In tapsterd other users wait for it, also users without Open vSwitch."""
    tell = switch.signal if daemon == "ovs-vswitchd" else switch.signal_database
    after = 0.0 if daemon == "ovs-vswitchd" else ovsrpc.ANSWER_SECONDS
    tell(signal.SIGSTOP)
    for seconds in (ovs.PATIENT_SECONDS, ovs.HURRIED_SECONDS, ovs.HURRIED_SECONDS):
        with pytest.raises(ServiceUnavailable, match=rf"in {seconds + after:g} s"):
            acquire(host)
    tell(signal.SIGCONT)
    host.reap(now=True)
    acquire(host)
    tell(signal.SIGSTOP)
    with pytest.raises(
        ServiceUnavailable, match=rf"in {ovs.PATIENT_SECONDS + after:g} s"
    ):
        acquire(host)
    tell(signal.SIGCONT)


def test_a_device_of_the_name_that_is_not_ours_is_no_vms_port(
    host: Host, switch: OpenVswitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_port = ovs.Ovs.write_port

    def swap(backend: ovs.Ovs, db: Any, lease: Lease) -> tuple[bool, int]:
        shell.sh(f"ip link del {lease.name}")
        shell.sh(f"ip tuntap add {lease.name} mode tap")
        return write_port(backend, db, lease)

    monkeypatch.setattr(ovs.Ovs, "write_port", swap)
    with pytest.raises(ConflictError, match="another device"):
        acquire(host)
    assert host.leases() == []
    assert (ports("ovs0"), rows("QoS")) == ([], [])
    assert "ifalias" not in iproute.links()["vnet0"]


# Who pays for it

RECOVER = """
import sys
from tapster import Host
with Host(sys.argv[1], reaper=lambda _: None) as host:
    host.recover()
print("ovs" in sys.modules)
"""


def test_without_open_vswitch_its_library_is_not_loaded(ledger: Path) -> None:
    command = [sys.executable, "-c", RECOVER, str(ledger)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_missing_library_is_named(
    host: Host, switch: OpenVswitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tapster.backends.ovsrpc")
    monkeypatch.delattr("tapster.backends.ovsrpc")
    monkeypatch.setitem(sys.modules, "ovs", None)
    with pytest.raises(ServiceUnavailable, match="python3-openvswitch"):
        acquire(host)
    # A host without Open vSwitch does not need the library.
    acquire(host, Tap(bridge="br0"))
    assert host.recover() == []


def test_the_sockets_are_looked_for_where_open_vswitchs_tools_do(
    switch: OpenVswitch, ledger: Path
) -> None:
    elsewhere = RUNDIR.with_name("elsewhere")
    RUNDIR.rename(elsewhere)
    environment = os.environ | {"OVS_RUNDIR": str(elsewhere)}
    add = [shell.TAPSTER, "add", "--ledger", str(ledger), "--ovs", "ovs0"]
    options = ["--vlan", "5", "--trunk", "6", "--external-id", "iface-id=nic-1"]
    subprocess.run([*add, *options], env=environment, check=True)
    elsewhere.rename(RUNDIR)
    shows = shown()
    assert shows["bridges"] == ["ovs0"]
    assert (shows["tag"], shows["trunks"]) == (5, 6)
    assert shows["ids"][1]["iface-id"] == "nic-1"
