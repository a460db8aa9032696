# SPDX-License-Identifier: Apache-2.0
"""QEMU in the background, by name, by descriptors, and migrated."""

import os
import signal
import socket

import pytest

from lab import iproute, ping
from lab.host.qmp import Qmp
from lab.reapers import Monitor
from lab.shell import TAPSTER
from lab.vm_network import BRIDGE, FILES, VmNetwork, wait_until_ended

pytestmark = pytest.mark.e2e

MAC = "52:54:00:00:00:0a"
QEMU = (
    *("qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none"),
    *("-machine", "pc", "-accel", "tcg", "-m", "32"),
)
CARD = ("-device", "virtio-net-pci,netdev=n0,mac={mac}")
TIMEOUT = 30.0


def tap(netdev: str) -> tuple[str, ...]:
    return (*QEMU, "-netdev", f"tap,id=n0,{netdev}", *CARD)


class Control:
    """A socket to which a QEMU connects, to be controlled."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        self._socket.bind(f"{FILES}/{name}.qmp")
        self._socket.listen()
        self.options = ("-qmp", f"unix:{FILES}/{name}.qmp")

    def accept(self) -> Qmp:
        """Return the connection of the QEMU that runs now."""
        connection, _ = self._socket.accept()
        self._socket.close()
        connection.settimeout(TIMEOUT)
        return Qmp(connection)


@pytest.mark.parametrize("kind", ["tap", "macvtap"])
def test_qemu_in_the_background_keeps_its_device_and_its_end_frees_it(
    lab: VmNetwork, kind: str
) -> None:
    where = ("--bridge", BRIDGE)
    if kind == "macvtap":
        lab.call("ip", "link", "add", "low", "type", "veth", "peer", "name", "far")
        lab.call("ip", "link", "set", "low", "up")
        where = ("--link", "low")
    pidfile = FILES / "pid"
    started = lab.spawn(
        *(TAPSTER, "run", *where, "--fin-wait", "0.2", "--"),
        *(*tap("fd={fd}"), "-daemonize", "-pidfile", str(pidfile)),
    )
    assert wait_until_ended(started, TIMEOUT) == 0
    pid = int(pidfile.read_text())
    try:
        assert lab.leases()["vnet0"]["state"] == "active"
        assert "UP" in lab.links()["vnet0"]["flags"]
        assert lab.bridge_of("vnet0") == (BRIDGE if kind == "tap" else None)
    finally:
        with Monitor() as monitor:
            os.kill(pid, signal.SIGKILL)
            monitor.wait_deleted("vnet0")  # no command was typed


@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("how", ["name", "descriptors"])
def test_qemu_has_every_queue(lab: VmNetwork, how: str, queues: int) -> None:
    netdev = {
        ("name", 1): "ifname={name},script=no,downscript=no",
        ("name", 2): "ifname={name},script=no,downscript=no,queues=2",
        ("descriptors", 1): "fd={fd}",
        ("descriptors", 2): "fds={fds}",
    }[how, queues]
    waiting = Control("vm")
    command = (*tap(netdev), *waiting.options, "-S")
    nic = ("--bridge", BRIDGE, "--queues", str(queues), "--fin-wait", "0.2")
    vm = lab.spawn(TAPSTER, "run", *nic, "--", *command)
    control = waiting.accept()
    link = iproute.links()["vnet0"]
    data = link["linkinfo"]["info_data"]
    assert data.get("numqueues", 1) + data.get("numdisabled", 0) == queues
    assert "LOWER_UP" in link["flags"]
    with Monitor() as monitor:
        control.command("quit")
        monitor.wait_deleted("vnet0")
    control.close()
    assert wait_until_ended(vm, TIMEOUT) == 0


def test_a_guest_migrates_and_answers_from_its_target(lab: VmNetwork) -> None:
    nic = ("--bridge", BRIDGE, "--mac", MAC)
    from_, to = Control("from"), Control("to")
    command = (*tap("fd={fd}"), *from_.options)
    vm = lab.spawn(TAPSTER, "run", *nic, "--owner", "from", "--", *command)
    source = from_.accept()
    address = lab.wire.wait_for_ack(MAC, TIMEOUT)
    assert address
    assert ping.answers(address)
    incoming = f"unix:{FILES}/migration"
    command = (*tap("fd={fd}"), *to.options, "-incoming", incoming)
    standby = ("--owner", "to", "--standby", "--name", "to")
    lab.spawn(TAPSTER, "run", *nic, *standby, "--", *command)
    target = to.accept()
    assert ping.answers(address), "the target takes nothing yet"
    assert lab.bridge_of("to") is None
    events = {"capability": "events", "state": True}
    for side in (source, target):
        side.command("migrate-set-capabilities", capabilities=[events])
    source.command("migrate", uri=incoming)
    source.wait_for("MIGRATION", status="completed")
    source.command("quit")
    assert wait_until_ended(vm, TIMEOUT) == 0
    lab.call(TAPSTER, "take", "to", "--owner", "to")
    target.wait_for("MIGRATION", status="completed")
    assert target.command("query-status")["status"] == "running"
    assert lab.bridge_of("to") == BRIDGE
    assert any(ping.answers(address, 2) for _ in range(10))
    source.close()
    target.close()
