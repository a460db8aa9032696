# SPDX-License-Identifier: Apache-2.0
"""A macvtap is opened by its number, which the kernel gives to another one later."""

import os
from collections.abc import Iterator
from errno import EACCES, EBADFD, ENODEV, ENOENT

import pytest

from lab import shell
from tapster.errors import KernelError
from tapster.kernel import libc
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.port import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

OURS, THEIRS = 1 << 30, (1 << 30) + 1


def add(name: str, ifindex: int) -> None:
    shell.sh(
        f"ip link add link low name {name} index {ifindex} type macvtap mode bridge"
    )


def number(name: str) -> int:
    (node,) = os.listdir(f"/sys/class/net/{name}/macvtap")
    with open(f"/sys/class/net/{name}/macvtap/{node}/dev") as file:
        major, minor = map(int, file.read().split(":"))
    return os.makedev(major, minor)


def take(device: int) -> None:
    """Make macvtaps until another device than the deleted one has its number.

    The kernel gives the lowest free number, and all namespaces share the numbers: a
    test that runs at the same time may free a lower one, or take this one.
    """
    for count in range(100):
        add(f"other{count}", THEIRS + count)
        if number(f"other{count}") >= device:
            return
    raise AssertionError("each new macvtap got a lower number")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    shell.sh("ip link add low type veth peer name far")
    add("vnet0", OURS)
    namespace = LinuxSystem().netns(None)
    yield namespace
    namespace.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_macvtap_whose_number_goes_to_another_is_not_opened(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    mknod = os.mknod

    def late(node: str, mode: int, device: int, *, dir_fd: int) -> None:
        shell.sh("ip link del vnet0")
        take(device)
        if again:
            add("vnet0", OURS)
        mknod(node, mode, device, dir_fd=dir_fd)

    before = set(os.listdir("/proc/self/fd"))
    namespace_fds = namespace.open_macvtap(OURS, queues=1, vnet_hdr=True)
    os.close(namespace_fds[0])
    opened = set(os.listdir("/proc/self/fd")) - before  # the directory of nodes
    monkeypatch.setattr(os, "mknod", late)
    with pytest.raises(KernelError) as raised:
        namespace.open_macvtap(OURS, queues=1, vnet_hdr=True)
    assert raised.value.errno == (EBADFD if again else ENOENT)
    assert set(os.listdir("/proc/self/fd")) - before == opened


def test_a_macvtap_that_is_deleted_during_the_look_hides_no_other(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers ENODEV to a read in sysfs then (kernfs_fop_read_iter())."""
    add("vnet1", THEIRS)
    (fd,) = namespace.open_macvtap(OURS, queues=1, vnet_hdr=True)
    read, reads = os.read, []

    def late(file: int, size: int) -> bytes:
        reads.append(file)
        if len(reads) == 1:
            raise OSError(ENODEV, "No such device")
        return read(file, size)

    monkeypatch.setattr(os, "read", late)
    assert namespace.macvtap_holders([THEIRS, OURS]) == {OURS: os.getpid()}
    os.close(fd)


def test_a_file_that_may_not_be_looked_at_hides_no_macvtap(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file in another user's FUSE (fuse_allow_current_process())."""
    with open(os.devnull) as private:
        (fd,) = namespace.open_macvtap(OURS, queues=1, vnet_hdr=True)
        devices = libc.devices

        def refuse(path: str) -> libc.DeviceNumbers:
            if path.endswith(f"/fd/{private.fileno()}"):
                raise PermissionError(EACCES, "Permission denied")
            return devices(path)

        monkeypatch.setattr(libc, "devices", refuse)
        assert private.fileno() < fd, "it is looked at first"
        assert namespace.macvtap_holders([OURS]) == {OURS: os.getpid()}
        os.close(fd)
