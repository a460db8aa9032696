# SPDX-License-Identifier: Apache-2.0
"""A guest whose device moves is announced, so that frames for it take the new way.

The guest says nothing itself. The VMM's own announcements are over, or were lost while
the device was connected to nothing.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lab import frames, shell
from lab.veth import wait_forwarding
from tapster import Host, Macvtap, Tap

pytestmark = pytest.mark.kernel

MAC = "52:54:00:00:00:42"
RARP = frames.arp(MAC, "0.0.0.0", "0.0.0.0", target=MAC, operation=3)
ANNOUNCED = frames.ether(MAC, frames.BROADCAST, frames.RARP, RARP).ljust(60, b"\0")
KIND = 0x88B5
ETH_P_ALL, SOL_PACKET, PACKET_IGNORE_OUTGOING = 3, 263, 23


@pytest.fixture
def far(world: None) -> Iterator[socket.socket]:
    """Another host, by a cable to br0. It was the last to send from the guest's MAC."""
    shell.sh("ip link add cable type veth peer name far")
    shell.sh("ip link set far up")
    shell.sh("ip link set cable master br0 up")
    wait_forwarding("cable")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as opened:
        opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        opened.settimeout(10)
        opened.bind(("far", ETH_P_ALL))
        opened.send(frames.ether(MAC, frames.BROADCAST, KIND, b""))
        assert where() == "cable"
        yield opened


def where() -> str:
    """Return the port behind which br0 believes the guest's MAC to be."""
    known = json.loads(shell.sh("bridge -j fdb show br br0"))
    (port,) = [one["ifname"] for one in known if one["mac"] == MAC]
    return str(port)


def wait_announced(far: socket.socket) -> None:
    while far.recv(2048) != ANNOUNCED:
        pass


def not_waiting(fds: tuple[int, ...]) -> None:
    """Make the descriptors non-blocking, as VMMs do."""
    for fd in fds:
        os.set_blocking(fd, False)


TAPS = {
    "plain": Tap("br0", mac=MAC, vnet_hdr=False, standby=True),
    "with a virtio header": Tap("br0", mac=MAC, standby=True),
    "of several queues": Tap("br0", mac=MAC, queues=3, standby=True),
    "with a filter": Tap("br0", mac=MAC, filter=True, standby=True),
}


@pytest.mark.parametrize("request_", TAPS.values(), ids=TAPS)
def test_a_guest_that_arrives_on_a_tap_is_announced(
    host: Host, far: socket.socket, request_: Tap
) -> None:
    with host.acquire(request_) as device:
        not_waiting(device.fds)
        host.set(device.id, standby=False)
        assert where() == device.name
        wait_announced(far)


def test_a_guest_that_arrives_on_a_macvtap_is_announced(
    host: Host, far: socket.socket
) -> None:
    shell.sh("ip link set cable nomaster")
    with host.acquire(Macvtap(lower="cable", mac=MAC, standby=True)) as device:
        not_waiting(device.fds)
        host.set(device.id, standby=False)
        wait_announced(far)


def test_a_guest_whose_cable_is_plugged_in_is_announced(
    host: Host, far: socket.socket
) -> None:
    with host.acquire(Tap("br0", mac=MAC, up=False)) as device:
        not_waiting(device.fds)
        host.set(device.id, up=True)
        assert where() == device.name


def test_a_guest_that_moves_to_another_bridge_is_announced_there(
    host: Host, far: socket.socket
) -> None:
    shell.sh("ip link add br1 type bridge")
    shell.sh("ip link set br1 up")
    with host.acquire(Tap("br1", mac=MAC)) as device:
        not_waiting(device.fds)
        host.set(device.id, bridge="br0")
        assert where() == device.name
        wait_announced(far)


VMM = """
import os, sys, socket
for fd in map(int, sys.argv[1:]): os.set_blocking(fd, False)
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("bound", [True, False])
def test_the_device_may_be_open_in_another_process(
    host: Host, far: socket.socket, bound: bool
) -> None:
    device = host.acquire(Tap("br0", mac=MAC, standby=True))
    pipe = subprocess.PIPE
    vmm = subprocess.Popen(
        [sys.executable, "-c", VMM, *map(str, device.fds)],
        stdin=pipe,
        stdout=pipe,
        pass_fds=device.fds,
    )
    with vmm:
        assert vmm.stdout
        assert vmm.stdin
        vmm.stdout.readline()
        device.close()
        if bound:
            host.bind([device.lease], vmm.pid)
        host.set(device.id, standby=False)
        assert where() == device.name
        vmm.stdin.close()


def test_no_write_waits_for_a_process_that_has_the_device_open(
    host: Host, far: socket.socket
) -> None:
    with host.acquire(Tap("br0", mac=MAC, standby=True)) as device:
        assert os.get_blocking(device.fds[0])
        host.set(device.id, standby=False)
        assert where() == "cable"


def test_a_change_on_the_same_bridge_announces_nothing(
    host: Host, far: socket.socket
) -> None:
    with host.acquire(Tap("br0", mac=MAC)) as device:
        not_waiting(device.fds)
        host.set(device.id, isolated=True)
        assert where() == "cable"
