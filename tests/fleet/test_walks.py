# SPDX-License-Identifier: Apache-2.0
"""Random walks of a VM between two hosts, with real ledgers and a bad store.

The explorer tries every order of the steps on a model of the ledger. Here the ledger is
the real one, with its triggers, and the walks are long.
"""

import random
from contextlib import suppress
from pathlib import Path

import pytest

from tapster.fleet.store import FleetUnavailable, MacRegistered
from tapster.model import Lease, Vm
from tests.fleet.hosts import MAC, FleetHost, Pair, X, pair_of_hosts

STEPS = 60


class Walk:
    """A VM that starts, moves and stops, beside a store that is often away."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair = pair
        self.dice = random.Random(seed)
        self.runs: tuple[FleetHost, Lease] | None = None
        self.left: list[tuple[FleetHost, Lease]] = []
        """Leases of hosts that the VM has left."""
        self.moves = 0

    def host(self) -> FleetHost:
        return self.dice.choice([self.pair.a, self.pair.b])

    def step(self) -> None:
        self.dice.choice(
            [self.start, self.move, self.move, self.stop, self.leave, self.sync]
        )()
        # The store is well most of the time.
        self.pair.store.away = self.dice.random() < 0.15
        self.pair.store.loses = self.dice.random() < 0.15

    def start(self) -> None:
        # A VM that runs or whose source is not released is not started: its user knows.
        if self.runs is None and not self.left and not self.pair.store.away:
            host = self.host()
            with suppress(MacRegistered):
                self.runs = host, host.add(MAC, X)

    def move(self) -> None:
        if self.runs is None or self.left:
            return
        source, lease = self.runs
        target = self.pair.b if source is self.pair.a else self.pair.a
        epoch = source.epoch(lease) if self.dice.random() < 0.8 else None
        vm = Vm("X", incoming=None if epoch == "None" else epoch)
        there = target.add(MAC, vm, standby=True)
        if self.dice.random() < 0.2:  # the migration is given up
            target.host.release(there.id)
            return
        if self.dice.random() < 0.5:
            self.sync()
        target.host.set(there.id, standby=False)
        self.runs = target, there
        self.left.append((source, lease))
        self.moves += 1

    def leave(self) -> None:
        while self.left:
            host, lease = self.left.pop()
            host.host.release(lease.id)

    def stop(self) -> None:
        if self.runs is not None:
            host, lease = self.runs
            host.host.release(lease.id)
            self.runs = None

    def sync(self) -> None:
        with suppress(FleetUnavailable):
            self.host().start().sync(everything=self.dice.random() < 0.2)

    def rest(self) -> None:
        """Everything arrives, and the store must be right."""
        self.pair.store.away = self.pair.store.loses = False
        self.leave()
        for _ in range(3):
            for host in (self.pair.a, self.pair.b):
                host.start().sync()
        registration = self.pair.registration()
        if self.runs is None:
            assert registration is None or registration.state != "active"
            return
        host, lease = self.runs
        assert registration is not None
        assert (registration.host, registration.lease) == (host.settings.name, lease.id)
        assert registration.state == "active"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_after_a_walk_the_store_says_where_the_vm_runs(
    tmp_path: Path, seed: int
) -> None:
    moves = 0
    with pair_of_hosts(tmp_path) as pair:
        walk = Walk(pair, seed)
        for _ in range(5):
            for _ in range(STEPS // 5):
                walk.step()
            walk.rest()
        moves = walk.moves
    assert moves or walk.runs is None
