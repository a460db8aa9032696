# SPDX-License-Identifier: Apache-2.0
"""Hosts of a fleet: network namespaces whose bridges are joined by a switch.

Each host has a ledger of its own and a link to the etcd of the lab. Its user types the
command.
"""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import strangers
from lab.fleet.etcd import NET, Cluster
from lab.namespaces import inside
from lab.reapers import kill_reapers
from lab.shell import TAPSTER, sh
from lab.veth import ETH_P_ALL, RECEIVE_BUFFER, SO_RCVBUFFORCE

SWITCH = "switch"
FIRST_ADDRESS = 101
"""The last byte of the first host's address in the network of etcd."""


class SwitchedHost:
    """A host in the network namespace that has its name."""

    def __init__(self, name: str, number: int, folder: Path, etcd: Cluster) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        self.ledger = folder / f"{name}.db"
        self._config = folder / f"{name}.toml"
        self._config.write_text(
            f'[fleet]\nname = "{name}"\nendpoints = {json.dumps(etcd.endpoints)}\n'
        )
        sh(f"ip netns add {name}")
        sh(f"ip -n {name} link set lo up")
        self._plug(f"mgmt-{name}", "mgmt", "fleet")
        address = f"{NET}.{FIRST_ADDRESS + number}/24"
        sh(f"ip -n {name} address add {address} dev mgmt")
        sh(f"ip -n {name} link add br0 type bridge mcast_snooping 0")
        sh(f"ip -n {name} link set br0 addrgenmode none")
        sh(f"ip -n {name} link set br0 up")
        self._plug(f"port-{name}", "uplink", SWITCH)
        sh(f"ip -n {name} link set uplink master br0")

    def _plug(self, port: str, device: str, bridge: str) -> None:
        """Join the host to a bridge of the lab."""
        sh(f"ip link add {port} type veth peer name {device} netns {self.name}")
        sh(f"ip link set {port} addrgenmode none")
        sh(f"ip link set {port} master {bridge} up")
        sh(f"ip -n {self.name} link set {device} addrgenmode none")
        sh(f"ip -n {self.name} link set {device} up")

    def run(self, *arguments: str, allowed: Sequence[int] = (0,)) -> str:
        """Run the command; what it prints. Fails the test if the command fails."""
        done = self._start([], arguments)
        printed, said = done.communicate()
        assert done.returncode in allowed, (self.name, arguments, printed, said)
        return printed.decode()

    def killed(
        self, call: str, number: int, *arguments: str, allowed: Sequence[int] = (0,)
    ) -> bool:
        """Run the command; kill it at a system call. False if it ended before."""
        trace = ["strace", "-o", "/dev/null", "-e", f"trace={call}"]
        inject = ["-e", f"inject={call}:signal=KILL:when={number}"]
        done = self._start([*trace, *inject], arguments)
        _, said = done.communicate()
        killed = done.returncode == -signal.SIGKILL
        assert killed or done.returncode in allowed, (self.name, arguments, said)
        return killed

    def _start(
        self, before: Sequence[str], arguments: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *before, TAPSTER, *arguments],
            env={
                **os.environ,
                "TAPSTER_LEDGER": str(self.ledger),
                "TAPSTER_CONFIG": str(self._config),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def leases(self) -> list[dict[str, Any]]:
        """Return the leases, as the command lists them."""
        found: list[dict[str, Any]] = json.loads(self.run("ls", "--json"))["leases"]
        return found

    def open_tap(self, name: str) -> int:
        """Open a tap as a VMM does. Return its descriptor."""
        with inside(self.path):
            return strangers.foreign_tap(name)

    def sniff(self, device: str) -> socket.socket:
        """Return a socket that receives every frame of a device, both ways."""
        with inside(self.path):
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        opened.bind((device, ETH_P_ALL))
        opened.setblocking(False)
        return opened

    def close(self) -> None:
        """End the reapers that the command left."""
        kill_reapers(self.ledger)


def join_hosts(names: Sequence[str], folder: Path, etcd: Cluster) -> list[SwitchedHost]:
    """Make hosts, join them by a switch, and let them join a fleet."""
    sh(f"ip link add {SWITCH} type bridge mcast_snooping 0")
    sh(f"ip link set {SWITCH} addrgenmode none")
    sh(f"ip link set {SWITCH} up")
    os.makedirs("/run/tapster", exist_ok=True)
    hosts = [SwitchedHost(name, n, folder, etcd) for n, name in enumerate(names)]
    hosts[0].run("fleet", "init", "--apply")
    for host in hosts:
        host.run("fleet", "join")
    return hosts
