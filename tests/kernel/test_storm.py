# SPDX-License-Identifier: Apache-2.0
"""Many processes at once, and strangers among them."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tapster import Host
from tests.kernel import tools
from tests.kernel.test_reaper import reapers, wait_dead

PROCESSES = 8
ROUNDS = 200


class Squatter(threading.Thread):
    """Makes and deletes taps of our names, by `ip`, until told to stop."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._stop_now = threading.Event()
        self.made = 0

    def run(self) -> None:
        while not self._stop_now.is_set():
            name = f"vnet{self._random.randrange(40)}"
            if self._ip("tuntap", "add", name, "mode", "tap"):
                self.made += 1
                # By the name that nobody can have meanwhile: it is ours.
                assert self._ip("link", "del", name)

    def stop(self) -> None:
        self._stop_now.set()
        self.join()

    def _ip(self, *arguments: str) -> bool:
        done = subprocess.run(["ip", *arguments], capture_output=True, check=False)
        return done.returncode == 0


@pytest.mark.timeout(240)
def test_a_storm_of_commands_I1_I2_I4(ledger: Path) -> None:
    for number in (3, 11, 12, 30):
        tools.sh(f"ip tuntap add vnet{number} mode tap")
    tools.sh("ip link set vnet11 master br0")
    before = {name: tools.steady(link) for name, link in tools.links().items()}
    squatter = Squatter(seed=1)
    squatter.start()
    storm = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.kernel.stress", str(ROUNDS)],
            env={**os.environ, "TAPSTER_LEDGER": str(ledger)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    complaints = [process.communicate()[1] for process in storm]
    squatter.stop()
    assert [process.returncode for process in storm] == [0] * PROCESSES, complaints
    assert squatter.made > 0
    wait_dead(reapers(ledger))
    after = {name: tools.steady(link) for name, link in tools.links().items()}
    assert after == before
    with Host(ledger, reaper=tools.no_reaper) as host:
        assert host.leases() == []
        assert host.recover() == []
    assert_no_name_was_shared(ledger, PROCESSES * ROUNDS)


def assert_no_name_was_shared(ledger: Path, expected: int) -> None:
    """By the history, read as any program can."""
    with closing(sqlite3.connect(ledger)) as db:
        rows = db.execute(
            "SELECT name, created, ended FROM history ORDER BY name, created"
        ).fetchall()
    total = 0
    last_name, last_end = "", 0.0
    for name, created, ended in rows:
        total += 1
        assert name != last_name or created >= last_end, name
        last_name, last_end = name, ended
    assert total == expected
