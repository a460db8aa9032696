# SPDX-License-Identifier: Apache-2.0
"""A talking guest moves between three hosts, and each command on the way is killed.

`python -m bench.fleet handover 1000` does the same more often.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fleet.etcd import cluster
from lab.fleet.handover import Relay, relay
from lab.namespaces import namespaces
from lab.shell import sh

pytestmark = [pytest.mark.kernel, pytest.mark.crash, pytest.mark.timeout(600)]

HANDOVERS = 20


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Relay]:
    with namespaces():
        sh("ip link set lo up")
        with cluster(tmp_path) as etcd, relay(tmp_path, etcd, seed=1) as guest:
            yield guest


def test_a_talking_guest_moves_although_each_command_is_killed(guest: Relay) -> None:
    while guest.figures.handed_over < HANDOVERS:
        guest.step()
        assert guest.talk.faults == []
    guest.rest()
    figures = guest.figures
    assert set(figures.kills) == {"add", "take", "rm", "fleet"}
    assert all(figures.kills.values())
    assert figures.cancelled
    assert figures.at_rest > 1
    assert guest.talk.answered > HANDOVERS
