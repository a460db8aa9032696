# SPDX-License-Identifier: Apache-2.0
"""I5: the command is killed at its n-th system call, for every n; then recover.

strace kills it (SIGKILL, on entry of the call), so it dies wherever a change of
the kernel or of the ledger begins: `sendto` and `ioctl` are the kernel's,
`pwrite64` the ledger's; `clone` and `execve` are where `run` starts its child.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tapster import Host, Lease, Macvtap, Mode, State, Tap
from tests.kernel import tools
from tests.kernel.test_reaper import reapers, wait_dead

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

CALLS = {"sendto": 1, "ioctl": 1, "pwrite64": 5, "clone": 1, "execve": 1, "mknodat": 1}
"""By the distance from one place to the next. A transaction is several writes, and
which of them it dies in is SQLite's business: some in each will do."""


class Crashes:
    """Runs a command again and again, killed some system calls later each time."""

    calls = CALLS

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._environment = {**os.environ, "TAPSTER_LEDGER": str(ledger)}
        self.host = Host(ledger, reaper=tools.no_reaper)
        self.kills = 0

    def killed(self, *arguments: str) -> Iterator[str]:
        """Where it was killed, for each place; the caller looks at what is left."""
        for call, distance in self.calls.items():
            number = 1
            while self._killed_at(call, number, arguments):
                self.kills += 1
                yield f"{' '.join(arguments)}, killed at {call} {number}"
                number += distance

    def _killed_at(self, call: str, number: int, arguments: tuple[str, ...]) -> bool:
        trace = ["strace", "-o", "/dev/null", "-e", f"trace={call}"]
        inject = ["-e", f"inject={call}:signal=KILL:when={number}"]
        done = subprocess.run(
            [*trace, *inject, tools.TAPSTER, *arguments],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        self._kill_reapers()
        return done.returncode == -signal.SIGKILL

    def _kill_reapers(self) -> None:
        """Those that were started would mend it, too, while it is looked at."""
        while found := reapers(self._ledger):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_dead(found)

    def acquire(self, spec: Tap | Macvtap) -> Lease:
        lease = self.host.acquire(spec)
        tools.close(lease.fds)
        return lease

    def mend(self, where: str) -> None:
        """Recover, check, and see that a second recover finds nothing to do."""
        self.host.recover()
        self.check(where)
        assert self.host.recover() == [], where

    def check(self, where: str) -> None:
        """Every device of ours has a lease, and every lease a device, as it must."""
        devices = {
            link["ifalias"].rpartition(":")[2]: link
            for link in tools.links().values()
            if link.get("ifalias", "").startswith("tapster:")
        }
        leases = {lease.id: lease for lease in self.host.leases()}
        assert set(devices) == set(leases), where
        for id_, lease in leases.items():
            link = devices[id_]
            assert lease.ifindex == link["ifindex"], where
            assert lease.name == link["ifname"], where
            assert lease.state is not State.RESERVED, where
            active = lease.state is State.ACTIVE
            assert ("UP" in link["flags"]) is active, where
            assert (link.get("master") == "br0") is (active and not lease.lower), where

    def clear(self) -> None:
        for lease in self.host.leases():
            self.host.release(lease.id)
        self.host.reap(now=True)


@pytest.fixture
def crashes(ledger: Path) -> Iterator[Crashes]:
    tools.sh("ip tuntap add vnet1 mode tap")  # foreign, and in the way
    tools.sh("ip link set vnet1 master br0")
    tools.sh("ip link add low type veth peer name far")
    tools.sh("ip link set low up")
    crashes = Crashes(ledger)
    yield crashes
    crashes.host.close()


def foreign() -> dict[str, dict[str, Any]]:
    return {
        name: tools.steady(link)
        for name, link in tools.links().items()
        if name in ("lo", "br0", "vnet1", "far")
    }


TAP = Tap(bridge="br0")
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
        crashes.mend(where)
        crashes.clear()
        assert foreign() == before, where
    assert crashes.kills > 10


@pytest.mark.parametrize("spec", [TAP, PASSTHRU])
def test_rm_killed_anywhere_I5(crashes: Crashes, spec: Tap | Macvtap) -> None:
    before = foreign()
    name = crashes.acquire(spec).name
    for where in crashes.killed("rm", name):
        crashes.mend(where)
        crashes.clear()
        assert crashes.acquire(spec).name == name, where
    crashes.clear()
    assert crashes.kills > 5
    assert foreign() == before


def test_rm_of_a_lost_device_killed_anywhere_I5(crashes: Crashes) -> None:
    def lose() -> str:
        name = crashes.acquire(TAP).name
        tools.sh(f"ip link del {name}")
        return name

    name = lose()
    for where in crashes.killed("rm", name):
        crashes.mend(where)
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
        tools.sh(f"ip link del {lost.name}")

    prepare()
    for where in crashes.killed(*verb):
        crashes.mend(where)
        crashes.clear()
        prepare()
    crashes.clear()
    assert crashes.kills > 5
    assert foreign() == before


def test_run_killed_anywhere_I5(crashes: Crashes) -> None:
    before = foreign()
    run = ["run", "--nic", "bridge=br0", "--nic", "link=low", "--", "true"]
    for where in crashes.killed(*run):
        crashes.mend(where)
        crashes.clear()
        assert foreign() == before, where
    assert crashes.kills > 20
