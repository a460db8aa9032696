# SPDX-License-Identifier: Apache-2.0
"""Kill a command at each of its system calls (strace); check what recover leaves."""

import os
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


class Crashes:
    """Run a command again and again; kill it some system calls later each time."""

    calls = CALLS

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._environment = {**os.environ, "TAPSTER_LEDGER": str(ledger)}
        self.host = Host(ledger, reaper=library.no_reaper)
        self.kills = 0
        self.input: Path | None = None
        """What the command reads, if it reads anything."""

    def killed(self, *arguments: str) -> Iterator[str]:
        """Yield where the command was killed; the caller checks what is left."""
        for call, distance in self.calls.items():
            number = 1
            while self._killed_at(call, number, arguments):
                self.kills += 1
                yield f"{' '.join(arguments)}, killed at {call} {number}"
                number += distance

    def _killed_at(self, call: str, number: int, arguments: tuple[str, ...]) -> bool:
        trace = ["strace", "-o", "/dev/null", "-e", f"trace={call}"]
        inject = ["-e", f"inject={call}:signal=KILL:when={number}"]
        done = subprocess.Popen(
            [*trace, *inject, shell.TAPSTER, *arguments],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        done.wait()
        _wait_for_session(done.pid)
        kill_reapers(self._ledger)  # they would repair what is checked
        return done.returncode == -signal.SIGKILL

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
