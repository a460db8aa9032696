# SPDX-License-Identifier: Apache-2.0
"""Only the user for whom a tap was made can open the tap by name.

The kernel lets any user open a tap that has neither owner nor group, and udev makes
/dev/net/tun open to everybody. So every tap gets an owner.
"""

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from lab import iproute, shell
from tapster import Host, Tap
from tapster.kernel import tun

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("open_tun")]

NOBODY = 65534
TUNSETQUEUE = 0x400454D9
IFF_DETACH_QUEUE = 0x0400

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


@pytest.mark.parametrize("disable", [False, True], ids=["attached", "detached"])
def test_a_queue_that_another_process_attaches_to_a_new_tap_is_not_left(
    host: Host, monkeypatch: pytest.MonkeyPatch, disable: bool
) -> None:
    """As a process does that tries again and again, until the tap has an owner."""
    intruders: list[int] = []
    join = tun.join

    def late(name: str, flags: int) -> int:
        if not intruders:
            intruders.append(join(name, flags))
            if disable:
                request = struct.pack("16sH22x", b"", IFF_DETACH_QUEUE)
                fcntl.ioctl(intruders[0], TUNSETQUEUE, request)
        return join(name, flags)

    monkeypatch.setattr(tun, "join", late)
    with host.acquire(Tap(bridge="br0", queues=2)) as opened:
        data = iproute.links()[opened.name]["linkinfo"]["info_data"]
        assert (data["numqueues"], data["numdisabled"]) == (2, 0)
        with pytest.raises(OSError, match="File descriptor in bad state"):
            tun.name_of(intruders[0])
    os.close(intruders[0])


def test_another_user_cannot_open_a_waiting_tap(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0"))
    lease.close()
    host.release(lease.id)
    assert attach(lease.name) == "Operation not permitted"


WAITING = pytest.mark.parametrize(
    "spec",
    [
        Tap(bridge="br0", uid=NOBODY),
        Tap(bridge="br0", gid=4321),
        Tap(bridge="br0", uid=NOBODY, gid=4321),
    ],
    ids=["user", "group", "both"],
)


@contextmanager
def held_elsewhere(fds: Sequence[int]) -> Iterator[None]:
    """Let another process have these descriptors open, too."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=fds)
    try:
        yield
    finally:
        process.communicate()


def attach_as_owner(name: str, *, queues: int = 1) -> str:
    return attach(name, queues=queues, groups="4321")


@WAITING
@pytest.mark.parametrize("queues", [1, 2])
def test_a_user_cannot_open_the_users_waiting_tap(
    host: Host, spec: Tap, queues: int
) -> None:
    lease = host.acquire(spec._replace(queues=queues))
    lease.close()
    assert attach_as_owner(lease.name, queues=queues) == "attached"
    host.release(lease.id)
    assert attach_as_owner(lease.name, queues=queues) == "Operation not permitted"
    assert "not permitted" not in attach(lease.name, queues=queues, uid=0)


@WAITING
@pytest.mark.parametrize("queues", [1, 2])
def test_a_tap_that_is_open_at_its_release_belongs_to_root_after_its_close(
    host: Host, spec: Tap, queues: int
) -> None:
    """Another process has it open, as a VM has that its user did not stop."""
    lease = host.acquire(spec._replace(queues=queues))
    with held_elsewhere(lease.fds):
        lease.close()
        host.release(lease.id)
    assert attach_as_owner(lease.name, queues=queues) == "Operation not permitted"


def test_a_user_that_takes_its_tap_back_loses_it_after_the_close(
    host: Host,
) -> None:
    """A process needs no privilege to change the owner of a tap that it has open."""
    lease = host.acquire(Tap(bridge="br0", uid=NOBODY))
    host.release(lease.id)
    fcntl.ioctl(lease.fds[0], tun.TUNSETOWNER, NOBODY)
    lease.close()
    assert attach(lease.name) == "attached"
    host.recover()
    assert attach(lease.name) == "Operation not permitted"
    assert host.recover() == []


def test_a_renamed_tap_belongs_to_root_while_it_waits(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0", uid=NOBODY))
    lease.close()
    shell.sh(f"ip link set {lease.name} down name web")
    host.release(lease.id)
    assert attach("web") == "Operation not permitted"


def test_recover_gives_the_tap_of_a_half_done_release_to_root(host: Host) -> None:
    lease = host.acquire(Tap(bridge="br0", uid=NOBODY))
    lease.close()
    host.release(lease.id)
    # As if the release had been killed before.
    fd = tun.join(lease.name, tun.flags(queues=1, vnet_hdr=True))
    tun.give(fd, uid=NOBODY, gid=None)
    os.close(fd)
    (repair,) = host.recover()
    assert repair.action == "finish"
    assert attach(lease.name) == "Operation not permitted"
    assert host.recover() == []


def test_no_attach_opens_the_tap_of_a_lasting_lease_of_root(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's taps are not opened at their release: there is nothing to take."""
    lease = host.acquire(Tap(bridge="br0"))
    lease.close()
    monkeypatch.setattr(tun, "join", pytest.fail)
    host.release(lease.id)


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "free"])
def test_a_foreign_tap_that_gets_the_name_before_the_opening_is_left_alone_I4(
    host: Host, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    lease = host.acquire(Tap(uid=NOBODY))
    lease.close()
    join = tun.join

    def late(name: str, flags: int) -> int:
        shell.sh(f"ip link delete {name}")
        if taken:
            shell.sh(f"ip tuntap add {name} mode tap user 4711 vnet_hdr")
        return join(name, flags)

    monkeypatch.setattr(tun, "join", late)
    host.release(lease.id)
    there = iproute.links().get(lease.name)
    if taken:
        assert there is not None
        data = there["linkinfo"]["info_data"]
        assert (data["user"], data["persist"]) == (4711, True)
        assert "ifalias" not in there
        assert attach(lease.name, uid=4711) == "attached", "it is not held open"
    else:
        assert there is None, "none was made"


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


@pytest.mark.parametrize("id_", [(1 << 31) - 1, 1 << 31, (1 << 32) - 2])
def test_ids_have_32_bits(host: Host, id_: int) -> None:
    """As those of nobody in another user namespace, and of containers."""
    lease = host.acquire(Tap(uid=id_, gid=id_))
    lease.close()
    data = iproute.links()[lease.name]["linkinfo"]["info_data"]
    assert (int(data["user"]), int(data["group"])) == (id_, id_)
    assert attach(lease.name, uid=id_, groups=str(id_)) == "attached"
    host.release(lease)
    assert iproute.links()[lease.name]["linkinfo"]["info_data"]["user"] == "root"


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
