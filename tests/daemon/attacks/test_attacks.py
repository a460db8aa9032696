# SPDX-License-Identifier: Apache-2.0
"""Each attack: other users are served during it, and nothing of it is left
afterwards.

`make bench ARGS=attacks` measures how much longer the other users wait.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import shell
from lab.daemon import ALICE, Daemon
from lab.mallory import ATTACKS, MALLORY, METRICS, POLICY, Target, attacked
from lab.reapers import wait_for
from tapster import Client, Tap
from tests.daemon.test_storm import usage

ROUNDS = 12
GROWTH = 16 << 20
"""Bytes that the daemon may keep."""
LINES = 30
"""Lines about the attacker in the log, whatever it does."""

pytestmark = pytest.mark.kernel


@pytest.fixture
def daemon(world: None) -> Iterator[Daemon]:
    shell.sh("ip link add br1 type bridge")
    with Daemon(policy=POLICY) as daemon:
        daemon.start()
        yield daemon


def use(client: Client) -> None:
    """Call as another user does, while Mallory attacks."""
    for _ in range(ROUNDS):
        client.ping()
        opened = client.acquire(Tap(bridge="br0", fin_wait=0))
        opened.close()
        client.release(opened)


def wait_calm(daemon: Daemon, client: Client, descriptors: int) -> None:
    """Wait until the attacker's connections are gone: so many descriptors are left."""

    def is_calm() -> bool:
        client.ping()
        return usage(daemon.pid)[1] <= descriptors

    wait_for(is_calm, f"the daemon has no more than {descriptors} descriptors")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ATTACKS)
def test_others_are_served_while_one_user_attacks(daemon: Daemon, name: str) -> None:
    with daemon.connect(ALICE) as client:
        kept = client.acquire(Tap(bridge="br0"))
        kept.close()
        target = Target(str(daemon.socket), METRICS, kept.id)
        use(client)
        memory, descriptors = usage(daemon.pid)
        with attacked(ATTACKS[name], target):
            use(client)
        wait_calm(daemon, client, descriptors + 2)
        assert usage(daemon.pid)[0] - memory < GROWTH
        assert [lease.id for lease in client.leases(all=False)] == [kept.id]
    assert not daemon.logged("failed")
    about = [
        line
        for line in daemon.log.read_text().splitlines()
        if f"user={MALLORY}" in line
    ]
    assert len(about) <= LINES
    assert Path(f"/proc/{daemon.pid}").exists()
