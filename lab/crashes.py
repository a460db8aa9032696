# SPDX-License-Identifier: Apache-2.0
"""Kill a command at each of its system calls (strace); check what recover leaves."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab import iproute, library, shell
from lab.reapers import kill_reapers, wait_dead
from tapster import Host, Lease, Macvtap, State, Tap

CALLS = {"sendto": 1, "ioctl": 1, "pwrite64": 5, "clone": 1, "execve": 1, "mknodat": 1}
"""The system calls to kill at, each with the distance between kills. A transaction is
several writes, and SQLite handles a death in any of them: every fifth will do."""
LOOK = re.compile(r"ioctl\(\d+, (TCGET|NS_GET|TUNGET|SIOCG)")
"""An ioctl that changes nothing. A command makes as many of them as the host has open
files and namespaces to look at."""


class Crashes:
    """Run a command again and again; kill it some system calls later each time."""

    calls = CALLS

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._calls = ledger.with_name("calls")
        self._environment = {**os.environ, "TAPSTER_LEDGER": str(ledger)}
        self.host = Host(ledger, reaper=library.no_reaper)
        self.kills = 0
        self.input: Path | None = None
        """What the command reads; None: nothing."""

    def killed(self, *arguments: str) -> Iterator[str]:
        """Yield where the command was killed, and when it ran to its end.

        The caller checks what is left, and makes what the command needs.
        """
        command = " ".join(arguments)
        for call, distance in self.calls.items():
            numbers = self._numbers(call, arguments)
            yield f"{command}, which ran to its end"
            for number in numbers[::distance]:
                self.kills += self._killed_at(call, number, arguments)
                yield f"{command}, killed at {call} {number}"

    def _numbers(self, call: str, arguments: tuple[str, ...]) -> list[int]:
        """Run the command to its end; return which of these calls to kill it at.

        Nothing changes between two looks, so a row of looks has one kill: at its first.
        """
        self._run(call, [], arguments)
        lines = self._calls.read_text().splitlines()
        calls = [line for line in lines if line.startswith(f"{call}(")]
        looks = [bool(LOOK.match(line)) for line in calls]
        return [
            number
            for number, look in enumerate(looks, 1)
            if not (look and number > 1 and looks[number - 2])
        ]

    def _killed_at(self, call: str, number: int, arguments: tuple[str, ...]) -> bool:
        inject = ["-e", f"inject={call}:signal=KILL:when={number}"]
        return self._run(call, inject, arguments) == -signal.SIGKILL

    def _run(self, call: str, inject: list[str], arguments: tuple[str, ...]) -> int:
        trace = ["strace", "-o", str(self._calls), "-e", f"trace={call}"]
        with open(self.input or os.devnull, "rb") as read:
            done = subprocess.Popen(
                [*trace, *inject, shell.TAPSTER, *arguments],
                env=self._environment,
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        done.wait()
        _wait_for_session(done.pid)
        kill_reapers(self._ledger)  # they would repair what is checked
        return done.returncode

    def acquire(self, spec: Tap | Macvtap) -> Lease:
        lease = library.acquire(self.host, spec)
        return lease

    def repair(self, where: str) -> None:
        """Recover, check, and see that a second recover finds nothing to do."""
        self.host.recover()
        self.check(where)
        assert self.host.recover() == [], where

    def check(self, where: str) -> None:
        """Check that each device of Tapster has a lease, and each lease its device."""
        devices = {
            link["ifalias"].rpartition(":")[2]: link
            for link in iproute.links().values()
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
            data = link["linkinfo"].get("info_data", {})
            assert active or data.get("user", "root") == "root", where
            assert (link.get("master") == "br0") is (active and not lease.lower), where

    def clear(self) -> None:
        for lease in self.host.leases():
            self.host.release(lease.id)
        self.host.reap(now=True)


def _wait_for_session(leader: int) -> None:
    """Wait until the processes that a command left in its session have ended.

    If `run` is killed between fork and exec, its child ends by itself, but has the
    devices open until then. So a lease bound to `run` lasts as long as that child.
    Reapers have sessions of their own.
    """
    found = subprocess.run(
        ["pgrep", "--session", str(leader)], capture_output=True, check=False
    )
    wait_dead([int(pid) for pid in found.stdout.split()])
