# SPDX-License-Identifier: Apache-2.0
"""Real VMs on devices of ``tapster run``: what happens around them does not hurt."""

import os
import re
import signal
import subprocess
import time

import pytest

from demo.ways import TapsterNames
from lab import ping, vm
from lab.lines import readable
from lab.reapers import wait_for
from lab.shell import TAPSTER
from lab.vm_network import BRIDGE, VmNetwork, wait_until_ended

pytestmark = pytest.mark.e2e

FIRST = "192.0.2.10"
"""The address that the lab gives to the first who asks."""
MAC = "52:54:00:00:00:0a"
OTHER_MAC = "52:54:00:00:00:0b"

ROUNDS = 100
ROUNDS_PER_VM = 25

TIMEOUT = 20.0


@pytest.mark.parametrize(
    ("card", "wiring"),
    [
        ("virtio-net-pci", ""),
        ("e1000", ""),
        ("virtio-net-pci", f",address={FIRST},inbound=1000:2000:100,outbound=1000"),
    ],
)
def test_a_vm_gets_its_address(lab: VmNetwork, card: str, wiring: str) -> None:
    argv = [
        *(TAPSTER, "run", "--nic", f"bridge={BRIDGE},mac={MAC}{wiring}", "--"),
        *vm.command("A", "{mac}", "{fd}", card),
    ]
    vm.start(lab, "A", MAC, argv)
    address = lab.wire.wait_for_ack(MAC, TIMEOUT)
    assert address == FIRST
    assert ping.answers(address)


@pytest.mark.timeout(180)  # a hundred commands, one after the other
def test_a_vm_keeps_its_network_while_neighbours_come_and_go(lab: VmNetwork) -> None:
    tap = TapsterNames(lab).start("A", MAC).tap()
    address = lab.wire.wait_for_ack(MAC, TIMEOUT)
    assert address is not None
    stale = "nobody"
    for number in range(ROUNDS):
        neighbour = killed_vm if number % ROUNDS_PER_VM == 0 else short_command
        stale = neighbour(lab, f"neighbour{number}", stale)
        assert stale != tap
        assert lab.bridge_of(tap) == BRIDGE, f"round {number}"
        assert ping.answers(address), f"round {number}"


def test_a_vm_outlives_its_supervisor(lab: VmNetwork) -> None:
    a = TapsterNames(lab).start("A", MAC)
    qemu, tap = os.pidfd_open(a.pid), a.tap()
    address = lab.wire.wait_for_ack(MAC, TIMEOUT)
    assert address is not None
    try:
        os.kill(a.process.pid, signal.SIGKILL)
        wait_until_ended(a.process, TIMEOUT)

        assert lab.leases()[tap]["state"] == "active"
        assert lab.bridge_of(tap) == BRIDGE
        assert ping.answers(address)

        signal.pidfd_send_signal(qemu, signal.SIGKILL)
        assert readable(qemu, time.monotonic() + TIMEOUT)
    finally:
        os.close(qemu)

    # The reaper may be ending the lease. Until it has, `ls` shows the lease as before.
    wait_for(
        lambda: lab.leases()[tap]["state"] == "fin_wait" and lab.bridge_of(tap) is None,
        "the lease ends, and the device leaves the bridge",
    )


def short_command(lab: VmNetwork, name: str, stale: str) -> str:
    """A command that ends at once, during a cleanup of its predecessor's tap."""
    shows_its_tap = ("cat", "/proc/self/fdinfo/{fd}")
    process = lab.spawn(
        *(TAPSTER, "run", "--nic", f"bridge={BRIDGE}", "--", *shows_its_tap),
        stdout=subprocess.PIPE,
    )
    lab.clean_up_by_name(stale)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    match = re.search(rb"^iff:\s+(\S+)$", output, re.MULTILINE)
    assert match is not None, output
    return match[1].decode()


def killed_vm(lab: VmNetwork, name: str, stale: str) -> str:
    """A VM that is killed, during a cleanup of its predecessor's tap."""
    b = TapsterNames(lab).start(name, OTHER_MAC)
    tap = b.tap()
    lab.clean_up_by_name(stale)
    assert lab.bridge_of(tap) == BRIDGE
    os.kill(b.pid, signal.SIGKILL)
    wait_until_ended(b.process, TIMEOUT)
    return tap
