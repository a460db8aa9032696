# SPDX-License-Identifier: Apache-2.0
"""A runtime whose plugins are killed at any moment: GC then leaves what is valid.

PAIRS=500 makes 500 pairs of ADD and DEL. With `-s` the test prints what it
did.
"""

import os
import random
import select
import sys
import time
from contextlib import closing
from typing import Any

import pytest

from lab import iproute
from lab.shell import sh
from tapster import Host, Tap
from tests.cni.plugin import Plugin, pod

pytestmark = [pytest.mark.kernel, pytest.mark.crash]

PAIRS = int(os.environ.get("PAIRS", "25"))
PODS = 4
SEED = 1


class Runtime:
    """A container runtime. It remembers which attachments are valid."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.random = random.Random(SEED)
        self.networks = [
            plugin.configuration(ipam=plugin.ipam("198.51.100.0/22")),
            plugin.configuration(
                bridge="br0", finWait=0, ipam=plugin.ipam("198.51.100.0/22")
            ),
        ]
        self.pods = [pod(f"pod{number}") for number in range(PODS)]
        self.killed = {"ADD": 0, "DEL": 0, "GC": 0}
        self.longest = 0.0
        """Seconds that a command takes on this host."""
        self.valid: dict[str, tuple[dict[str, Any], str]] = {}

    def run(
        self, verb: str, network: dict[str, Any], *, kill: bool, **call: str
    ) -> bool:
        """Run a command; say whether it ended by itself, and with success."""
        start = time.monotonic()
        process = self.plugin.start(verb, network, **call)
        if kill:
            pidfd = os.pidfd_open(process.pid)
            select.select([pidfd], [], [], self.random.uniform(0, self.longest))
            os.close(pidfd)
            process.kill()
        # An IPAM plugin that the killed one started has its end of the pipe, too.
        output, _ = process.communicate(timeout=60)
        assert process.returncode in (0, -9), output
        self.killed[verb] += process.returncode == -9
        if not kill:
            self.longest = max(self.longest, time.monotonic() - start)
        return process.returncode == 0

    def pair(self, number: int) -> None:
        """ADD, and mostly DEL, of one container; either may be killed."""
        container = f"c{number}"
        network = self.random.choice(self.networks)
        netns = self.random.choice(self.pods)
        call = {"container": container, "netns": netns, "ifname": f"e{number}"}
        added = self.run("ADD", network, kill=self.random.random() < 0.4, **call)
        if added and self.random.random() < 0.2:
            self.valid[container] = network, call["ifname"]
        elif self.random.random() < 0.8:  # else the runtime was killed, too
            self.run("DEL", network, kill=self.random.random() < 0.3, **call)

    def collect_garbage(self, *, kill: bool = False) -> bool:
        listed = [
            {"containerID": container, "ifname": ifname}
            for container, (_, ifname) in self.valid.items()
        ]
        # Both configurations are of one network: its leases are everywhere.
        network = {**self.networks[0], "cni.dev/valid-attachments": listed}
        return self.run("GC", network, kill=kill)


def test_gc_leaves_exactly_what_is_valid(plugin: Plugin) -> None:
    runtime = Runtime(plugin)
    sh("ip tuntap add foreign mode tap")
    sh("ip link set foreign master br0")
    with closing(Host(plugin.ledger)) as host:
        host.acquire(Tap(bridge="br0", owner="c1", name="neighbour")).close()
    runtime.collect_garbage()
    for number in range(PAIRS):
        runtime.pair(number)
        if number % 10 == 9:
            runtime.collect_garbage(kill=True)
    with closing(Host(plugin.ledger)) as host:
        before = len(host.leases()) - 1  # the neighbour's
    assert runtime.collect_garbage()

    with closing(Host(plugin.ledger)) as host:
        leases = [lease for lease in host.leases() if lease.name != "neighbour"]
        assert {lease.owner for lease in leases} == runtime.valid.keys()
        assert len(leases) == len(runtime.valid)
        assert len(host.leases()) == len(leases) + 1
    on_host = {lease.name for lease in leases if lease.wiring.bridge}
    assert iproute.ports("br0") == on_host | {"foreign", "neighbour"}
    assert iproute.links().keys() == on_host | {"lo", "br0", "foreign", "neighbour"}
    in_pods = {
        name
        for number in range(PODS)
        for name in iproute.links(f"pod{number}").keys() - {"lo"}
    }
    assert in_pods == {lease.name for lease in leases if not lease.wiring.bridge}
    assert len(plugin.reserved()) == len(runtime.valid)
    recorded = os.listdir(plugin.folder / "reservations" / "net")
    assert len(recorded) == len(runtime.valid)
    sys.stdout.write(
        f"\n{PAIRS} pairs, killed: {runtime.killed}, "
        f"leases before the last GC: {before}, after: {len(leases)}, "
        f"valid: {len(runtime.valid)}\n"
    )
