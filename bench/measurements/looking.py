# SPDX-License-Identifier: Apache-2.0
"""How long one user of the daemon waits while another makes long requests.

To compare a port's filter with the lease, Tapster lists the table of all filters. What
a request takes of the processor beyond 10 ms is charged to its user's rate: see
`tapster.daemon.throttle`.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from bench.measurements import Run
from bench.measurements.attacks import use
from bench.result import Row, Table, interleave
from lab import shell
from lab.daemon import ALICE, Daemon
from lab.mallory import MALLORY, METRICS, POLICY, Target, attacked, call
from lab.namespaces import namespaces
from tapster import Tap

if TYPE_CHECKING:
    from socket import socket

LEASES = 800
"""Leases with a filter."""
CALLS = 100
"""Acquires and releases a round."""
CONNECTIONS = 4
"""Requests of the other user that are under way."""
ALONE = "alone"
BESIDE = "beside a user who asks all the time"
FREE = "the same, without a charge for long requests"
CHARGE = "FREE_WORK = 0.01\n"
NO_CHARGE = "FREE_WORK = float('inf')\n"


def measure(run: Run) -> Iterator[Table]:
    calls = run.size(CALLS, 2)
    with namespaces():
        shell.sh("ip link set lo up")
        shell.sh("ip link add br0 type bridge")
        shell.sh("ip link set br0 up")
        with Daemon(policy=POLICY) as daemon:
            daemon.start()
            with daemon.connect() as root:
                for _ in range(run.size(LEASES, 3)):
                    root.acquire(Tap(bridge="br0", filter=True)).close()
            with daemon.connect(MALLORY) as mallory:
                opened = mallory.acquire(Tap(bridge="br0", filter=True))
                opened.close()
            daemon.stop()
            ways = {
                ALONE: partial(_alone, daemon, calls),
                BESIDE: partial(_beside, daemon, calls, opened.id, CHARGE),
                FREE: partial(_beside, daemon, calls, opened.id, NO_CHARGE),
            }
            found = interleave(ways, run.rounds)
    yield Table(
        "looking",
        f"Acquire and release beside a user who looks at one of {LEASES} filters",
        "ms",
        [Row(way, waits) for way, waits in found.items()],
        base=ALONE,
        about="The median of both calls together, through the daemon. The other user "
        f"has {CONNECTIONS} requests under way.",
    )


def _alone(daemon: Daemon, calls: int) -> float:
    daemon.start()
    try:
        with daemon.connect(ALICE) as client:
            return use(client, calls).middle
    finally:
        daemon.stop()


def _beside(daemon: Daemon, calls: int, lease: str, charge: str) -> float:
    throttle = daemon.programs.parent / "lib/tapster/daemon/throttle.py"
    text = throttle.read_text()
    assert CHARGE in text
    throttle.write_text(text.replace(CHARGE, charge))
    daemon.start()
    try:
        target = Target(str(daemon.socket), METRICS, lease)
        with daemon.connect(ALICE) as client, attacked(_Looks(lease), target):
            return use(client, calls).middle
    finally:
        daemon.stop()
        throttle.write_text(text)


class _Looks:
    """The attack: so many requests at a time, again and again."""

    def __init__(self, lease: str) -> None:
        self._request = call("Get", {"lease": lease})
        self._connections: list[socket] = []

    def __call__(self, target: Target) -> None:
        if not self._connections:
            self._connections = [target.connect() for _ in range(CONNECTIONS)]
        for made in self._connections:
            made.settimeout(60)
            made.sendall(self._request)
        for made in self._connections:
            while not made.recv(1 << 16).endswith(b"\0"):
                pass
