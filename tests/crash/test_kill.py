# SPDX-License-Identifier: Apache-2.0
"""I5: the command is killed at its n-th system call, for every n; then recover.

strace kills it (SIGKILL, on entry of the call), so it dies wherever a change of
the kernel or of the ledger begins: `sendto` and `ioctl` are the kernel's,
`pwrite64` the ledger's; `clone` and `execve` are where `run` starts its child.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import iproute, shell
from lab.crashes import Crashes
from tapster import Macvtap, Mode, Tap

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("world"),
]


@pytest.fixture
def crashes(ledger: Path) -> Iterator[Crashes]:
    shell.sh("ip tuntap add vnet1 mode tap")  # foreign, and in the way
    shell.sh("ip link set vnet1 master br0")
    shell.sh("ip link add low type veth peer name far")
    shell.sh("ip link set low up")
    crashes = Crashes(ledger)
    yield crashes
    crashes.host.close()


def foreign() -> dict[str, dict[str, Any]]:
    return {
        name: iproute.steady(link)
        for name, link in iproute.links().items()
        if name in ("lo", "br0", "vnet1", "far")
    }


TAP = Tap(bridge="br0")
USERS = Tap(bridge="br0", uid=4711)
PASSTHRU = Macvtap(lower="low", mode=Mode.PASSTHRU)


@pytest.mark.parametrize(
    "options",
    [
        "--bridge br0",
        "--bridge br0 --queues 2 --isolated",
        "--link low",
        "--link low --mode passthru",
    ],
)
def test_add_killed_anywhere_I5(crashes: Crashes, options: str) -> None:
    before = foreign()
    for where in crashes.killed("add", *options.split()):
        crashes.repair(where)
        crashes.clear()
        assert foreign() == before, where
    assert crashes.kills > 10


@pytest.mark.parametrize("spec", [TAP, USERS, PASSTHRU])
def test_rm_killed_anywhere_I5(crashes: Crashes, spec: Tap | Macvtap) -> None:
    before = foreign()
    name = crashes.acquire(spec).name
    for where in crashes.killed("rm", name):
        crashes.repair(where)
        crashes.clear()
        assert crashes.acquire(spec).name == name, where
    crashes.clear()
    assert crashes.kills > 5
    assert foreign() == before


def test_rm_of_a_lost_device_killed_anywhere_I5(crashes: Crashes) -> None:
    def lose() -> str:
        name = crashes.acquire(TAP).name
        shell.sh(f"ip link del {name}")
        return name

    name = lose()
    for where in crashes.killed("rm", name):
        crashes.repair(where)
        crashes.clear()
        assert lose() == name, where
    assert crashes.kills > 5


@pytest.mark.parametrize("verb", [["reap", "--now"], ["recover"]])
def test_reap_and_recover_killed_anywhere_I5_I7(
    crashes: Crashes, verb: list[str]
) -> None:
    before = foreign()

    def prepare() -> None:
        waiting, lost, _ = (crashes.acquire(TAP) for _ in range(3))
        crashes.host.release(waiting.id)
        shell.sh(f"ip link del {lost.name}")

    prepare()
    for where in crashes.killed(*verb):
        crashes.repair(where)
        crashes.clear()
        prepare()
    crashes.clear()
    assert crashes.kills > 5
    assert foreign() == before


def test_run_killed_anywhere_I5(crashes: Crashes) -> None:
    before = foreign()
    run = ["run", "--nic", "bridge=br0", "--nic", "link=low", "--", "true"]
    for where in crashes.killed(*run):
        crashes.repair(where)
        crashes.clear()
        assert foreign() == before, where
    assert crashes.kills > 20
