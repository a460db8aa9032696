# SPDX-License-Identifier: Apache-2.0
"""Only the user for whom a tap was made can open the tap by name.

The kernel lets any user open a tap that has neither owner nor group, and udev makes
/dev/net/tun open to everybody. So every tap gets an owner.
"""

import os
import subprocess
import sys

import pytest

from lab import iproute, shell
from tapster import Host, Tap

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("open_tun")]

NOBODY = 65534

ATTACH = """
import fcntl, os, struct, sys
name, flags, uid, *groups = sys.argv[1:]
flags, uid = int(flags, 0), int(uid)
os.setgroups([int(group) for group in groups])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
tun = os.open("/dev/net/tun", os.O_RDWR)
try:
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), flags))
except OSError as error:
    sys.exit(error.strerror)
print("attached")
"""


@pytest.fixture
def open_tun(world: None) -> None:
    """Make /dev/net/tun as udev does on a host: everybody may open it."""
    shell.sh("mount -t tmpfs none /dev/net")
    shell.sh("mknod -m 0666 /dev/net/tun c 10 200")


def attach(name: str, *, queues: int = 1, uid: int = NOBODY, groups: str = "") -> str:
    """Open a tap by name as an unprivileged user; what the kernel says."""
    flags = 0x1002 | 0x4000 | (0x0100 if queues > 1 else 0)
    shown = subprocess.run(
        [sys.executable, "-c", ATTACH, name, hex(flags), str(uid), *groups.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    return (shown.stdout or shown.stderr).strip()


@pytest.mark.parametrize("queues", [1, 2])
def test_another_user_cannot_open_an_idle_tap(host: Host, queues: int) -> None:
    lease = host.acquire(Tap(bridge="br0", queues=queues))
    lease.close()
    assert attach(lease.name, queues=queues) == "Operation not permitted"


def test_another_user_cannot_add_a_queue_to_a_running_vms_tap(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0", queues=2))
    try:
        assert attach(lease.name, queues=2) == "Operation not permitted"
        assert iproute.links()[lease.name]["linkinfo"]["info_data"]["numqueues"] == 2
    finally:
        lease.close()


def test_another_user_cannot_open_a_waiting_tap(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0"))
    lease.close()
    host.release(lease.id)
    assert attach(lease.name) == "Operation not permitted"


def test_another_user_cannot_open_a_placeholder(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0", vnet_hdr=True))
    lease.close()
    shell.sh(f"ip link delete {lease.name}")
    host.release(lease.id)
    assert lease.name in iproute.links()
    assert attach(lease.name) == "Operation not permitted"


def test_the_owner_that_was_asked_for_can_open_the_tap(host: Host) -> None:
    lease = host.acquire(Tap(uid=NOBODY))
    lease.close()
    assert attach(lease.name) == "attached"
    assert attach(lease.name, uid=NOBODY - 1) == "Operation not permitted"


def test_a_member_of_the_group_that_was_asked_for_can_open_the_tap(host: Host) -> None:
    lease = host.acquire(Tap(gid=4321))
    lease.close()
    assert attach(lease.name, groups="4321") == "attached"
    assert attach(lease.name) == "Operation not permitted"


def test_a_lease_says_who_may_open_its_tap(host: Host) -> None:
    lease = host.acquire(Tap())
    lease.close()
    (known,) = host.leases()
    assert (known.tap_owner, known.tap_group) == (os.geteuid(), None)
    shown = host.device(known)
    assert shown is not None
    assert (shown.tap_owner, shown.tap_group) == (os.geteuid(), None)
