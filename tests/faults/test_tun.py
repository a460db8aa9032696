# SPDX-License-Identifier: Apache-2.0
"""I5, I6: /dev/net/tun is missing, refused, or something else."""

import ctypes
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import shell
from tapster import HostError, Macvtap, MissingCapability, Mode, Tap
from tests.faults.faulty_child import FaultyChild, Script
from tests.faults.sweep import FaultLab, acquire, attempt

TUN = "/dev/net/tun"
TAP = Tap(bridge="br0", fin_wait=3600)
PASSTHRU = Macvtap(lower="low", mode=Mode.PASSTHRU, fin_wait=3600)


def nothing() -> None:
    """No module, and so no node."""


def directory() -> None:
    os.mkdir(TUN)


def file() -> None:
    Path(TUN).touch()


def null() -> None:
    os.mknod(TUN, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def pipe() -> None:
    os.mkfifo(TUN)


def unknown() -> None:
    """A node without a driver."""
    os.mknod(TUN, 0o600 | stat.S_IFCHR, os.makedev(300, 0))


def refused() -> None:
    """A mount on which no process can open device nodes."""
    os.mknod(TUN, 0o600 | stat.S_IFCHR, os.makedev(10, 200))
    shell.sh("mount -o remount,nodev /dev/net")


@pytest.mark.parametrize(
    "wrong", [nothing, directory, file, null, pipe, unknown, refused]
)
def test_without_the_tun_device_nothing_is_made_and_nothing_lost_I5_I6(
    here: FaultLab, wrong: Callable[[], None]
) -> None:
    with here.host() as host:
        users = TAP._replace(uid=4711)
        to_replace = [acquire(host, spec) for spec in (TAP, PASSTHRU, users)]
        shell.sh(f"ip link del {to_replace[0].name}")
        before = here.rows()
        assert not any(TUN in problem.description for problem in host.examine())
        shell.sh("mount -t tmpfs tmpfs /dev/net")
        wrong()
        assert any(TUN in problem.description for problem in host.examine())
        with pytest.raises(HostError, match=TUN):
            host.acquire(TAP)
        assert here.rows() == before
        for lease in to_replace:  # by a placeholder, or it gets another owner
            with pytest.raises(HostError, match=TUN):
                host.release(lease.id)
        here.judge(wrong.__name__, settled=False)
        shell.sh("umount /dev/net")
        for lease in to_replace:
            host.release(lease.id)
        here.judge("it is back")
    assert [row.state for row in here.repair()] == ["fin_wait"] * 3


def test_without_capabilities_nothing_is_made_I6(here: FaultLab) -> None:
    def steps() -> Script:
        version_3 = struct.pack("Ii", 0x20080522, 0)
        assert ctypes.CDLL(None).capset(version_3, bytes(24)) == 0  # it has none now
        with here.host() as host:
            yield attempt(acquire, host, TAP)

    with FaultyChild(steps) as child:
        error = child.step()
    assert isinstance(error, MissingCapability)
    assert here.judge("without capabilities") == []
