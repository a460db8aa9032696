# SPDX-License-Identifier: Apache-2.0
"""Each attack: other users are served during it, and nothing of it is left
afterwards."""

import os
import signal
import statistics
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import shell
from lab.daemon import ALICE, Daemon
from tapster import Client, Tap
from tests.daemon.attacks.mallory import ATTACKS, Attack, Target
from tests.daemon.test_storm import usage

MALLORY = 61011
METRICS = ("127.0.0.1", 9474)
ROUNDS = 12
TIMES = 3
"""What the other user's median may grow by."""
GRACE = 0.25
"""Seconds more: the attacker also takes processors away, of which a test has few."""
GROWTH = 16 << 20
"""Bytes that the daemon may keep."""
LINES = 30
"""Lines about the attacker in the log, whatever it does."""

POLICY = f"""
[limits]
connections = 200
idle = 300.0
stall = 1.0
keys = 20

[metrics]
listen = "{METRICS[0]}:{METRICS[1]}"
everybody = true

[[allow]]
users = ["{ALICE}"]
bridges = ["br0"]
features = ["fin-wait"]

[[allow]]
users = ["{MALLORY}"]
bridges = ["br0"]
templates = ["vnet%d", "m*"]
features = ["fin-wait", "naming"]
netns = ["lab*"]
vlans = ["1-100"]
devices = 4

[[allow]]
users = ["{MALLORY}"]
bridges = ["br1"]
features = ["mtu"]
"""


@pytest.fixture
def daemon(world: None) -> Iterator[Daemon]:
    shell.sh("ip link add br1 type bridge")
    with Daemon(policy=POLICY) as daemon:
        daemon.start()
        yield daemon


@contextmanager
def attacked(attack: Attack, target: Target) -> Iterator[None]:
    """Let Mallory attack for the time of a block."""
    ready, begun = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setgroups([])
            os.setgid(MALLORY)
            os.setuid(MALLORY)
            attack(target)
            os.write(begun, b"!")
            while True:
                attack(target)
        except (BrokenPipeError, ConnectionResetError, TimeoutError, BlockingIOError):
            status = 0  # the daemon has hung up, or makes Mallory wait
            os.write(begun, b"!")
            signal.pause()
        except BaseException:  # noqa: BLE001 - it is another process
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(begun)
    try:
        assert os.read(ready, 1) == b"!", "the attack failed"
        yield
    finally:
        os.close(ready)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert (ended, status) == (0, 0), "the attack failed"


def times(client: Client) -> dict[str, list[float]]:
    """How long each call of the other user takes."""
    taken: dict[str, list[float]] = {"ping": [], "acquire": [], "release": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        client.ping()
        pinged = time.perf_counter()
        opened = client.acquire(Tap(bridge="br0", fin_wait=0))
        acquired = time.perf_counter()
        opened.close()
        closed = time.perf_counter()
        client.release(opened)
        taken["ping"].append(pinged - start)
        taken["acquire"].append(acquired - pinged)
        taken["release"].append(time.perf_counter() - closed)
    return taken


def settled(daemon: Daemon, client: Client, descriptors: int) -> tuple[int, int]:
    """Memory and descriptors once the attacker's connections are gone."""
    for _ in range(2000):
        client.ping()
        if usage(daemon.pid)[1] <= descriptors:
            break
    return usage(daemon.pid)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ATTACKS)
def test_others_are_served_while_one_user_attacks(daemon: Daemon, name: str) -> None:
    with daemon.connect(ALICE) as client:
        kept = client.acquire(Tap(bridge="br0"))
        kept.close()
        target = Target(str(daemon.socket), METRICS, kept.id)
        idle = times(client)
        memory, descriptors = usage(daemon.pid)
        with attacked(ATTACKS[name], target):
            under_attack = times(client)
        after, left = settled(daemon, client, descriptors + 2)
        for call, seconds in under_attack.items():
            usual = statistics.median(idle[call])
            assert statistics.median(seconds) <= TIMES * usual + GRACE, call
        assert after - memory < GROWTH
        assert left <= descriptors + 2
        assert [lease.id for lease in client.leases(all=False)] == [kept.id]
    assert not daemon.logged("failed")
    about = [
        line
        for line in daemon.log.read_text().splitlines()
        if f"user={MALLORY}" in line
    ]
    assert len(about) <= LINES
    assert Path(f"/proc/{daemon.pid}").exists()
