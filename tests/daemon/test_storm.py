# SPDX-License-Identifier: Apache-2.0
"""Many clients at once: some of them die, and so does the daemon."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from lab import iproute, library
from lab.daemon import Daemon, as_user
from tapster import Client, Tap

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("world")]

CLIENTS = 64
PAIRS = int(os.environ.get("STORM_PAIRS", "200"))
KILLS = 12
DAEMON_KILLS = 3
USERS = range(61101, 61109)
GROWTH = 4 << 20
"""Bytes that the daemon may have grown by in the last quarter: none that matter."""

POLICY = f"""
[limits]
requests = 100000
waiting = 10000

[[allow]]
users = {[str(uid) for uid in USERS]}
bridges = ["br0"]
features = ["fin-wait"]
devices = 64
""".replace("'", '"')


class ClientStorm:
    """The clients, and what they have written so far."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._random = random.Random(1)
        self._read, self._write = os.pipe()
        self._clients: list[subprocess.Popen[bytes]] = []
        self._started = 0
        self.seen: dict[str, int] = {"p": 0, "r": 0, "l": 0}
        for _ in range(CLIENTS):
            self._start()

    def _start(self) -> None:
        self._started += 1
        uid = USERS[self._started % len(USERS)]
        library = self._daemon.programs.parent / "lib"
        script = Path(__file__).with_name("stress.py").read_text()
        where = (str(self._daemon.socket), str(self._started))
        self._clients.append(
            subprocess.Popen(
                [*as_user(uid), "/usr/bin/python3", "-c", script, *where],
                env={**os.environ, "PYTHONPATH": str(library)},
                stdout=self._write,
            )
        )

    def until(self, pairs: int) -> None:
        """Let them go on until there are so many pairs."""
        while self.seen["p"] < pairs:
            for letter in os.read(self._read, 4096).decode():
                self.seen[letter] += 1
            assert all(client.poll() is None for client in self._clients)

    def kill_one(self) -> None:
        """Kill a client in the middle of whatever it does; another comes."""
        victim = self._clients.pop(self._random.randrange(CLIENTS))
        victim.kill()
        victim.wait()
        self._start()

    def end(self) -> None:
        for client in self._clients:
            client.kill()
        for client in self._clients:
            client.wait()
        os.close(self._read)
        os.close(self._write)


def usage(pid: int) -> tuple[int, int]:
    """A process's memory in bytes, and its open descriptors."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE"), len(
        os.listdir(f"/proc/{pid}/fd")
    )


def release_the_unbound(root: Client) -> None:
    """What is bound to nothing stays when its client is killed, or is told that the
    daemon was: that is what it is for. So it is one for each of these at most."""
    left = [one for one in root.leases(all=False) if not (one.process or one.on_close)]
    assert len(left) <= CLIENTS + KILLS + CLIENTS * DAEMON_KILLS
    for owner in {one.owner for one in left}:
        assert sum(one.owner == owner for one in left) <= 1 + DAEMON_KILLS
    for lease in left:
        root.release(lease.id)


def wait_until_empty(daemon: Daemon, root: Client) -> None:
    """Until the last lease is over, as the events say."""
    events = daemon.events()
    while root.leases():
        next(events)


@pytest.mark.timeout(900 + PAIRS)
def test_a_storm_of_clients_leaks_nothing_and_mixes_up_no_devices_I1_I2(
    world: None,
) -> None:
    with Daemon(policy=POLICY) as daemon:
        daemon.start()
        with daemon.connect() as root:
            # Once, so that all is open that stays open.
            lease = library.acquire(root, Tap(bridge="br0", fin_wait=0))
            root.release(lease.id)
            _, idle = usage(daemon.pid)
        storm = ClientStorm(daemon)
        try:
            for step in range(KILLS):
                storm.until(PAIRS // 2 * (step + 1) // KILLS)
                storm.kill_one()
                if step % (KILLS // DAEMON_KILLS) == 2:
                    daemon.stop(signal.SIGKILL)
                    daemon.start()
            # Not at once: a new daemon has not filled its cache of SQLite, and has
            # not had the calls that wait.
            storm.until(PAIRS * 3 // 4)
            with daemon.connect() as root:
                root.leases()
            before, _ = usage(daemon.pid)
            storm.until(PAIRS)
        finally:
            storm.end()
        assert storm.seen["r"] > 0
        assert storm.seen["l"] >= DAEMON_KILLS
        with daemon.connect() as root:
            release_the_unbound(root)
            wait_until_empty(daemon, root)
            after, fds = usage(daemon.pid)
            counts = {(one.name, one.label): one.value for one in root.statistics()}
        sys.stderr.write(
            f"{storm.seen}, memory {before >> 10} to {after >> 10} KiB, "
            f"descriptors {idle} to {fds}, {counts}\n"
        )
        assert after - before < GROWTH
        assert fds <= idle + 2, "the watcher's socket and pidfd"
        assert set(iproute.links()) == {"lo", "br0"}
        assert_names_not_shared(daemon.ledger)


def assert_names_not_shared(ledger: Path) -> None:
    """By the history, read as any program can."""
    with closing(sqlite3.connect(ledger)) as db:
        rows = db.execute(
            "SELECT name, created, ended FROM history ORDER BY name, created"
        ).fetchall()
    for (name, _, ended), (next_name, created, _) in pairwise(rows):
        assert name != next_name or created >= ended, name
