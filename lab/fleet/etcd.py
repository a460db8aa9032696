# SPDX-License-Identifier: Apache-2.0
"""A real etcd, each node in a network namespace; etcdctl shows what it holds."""

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.shell import sh

NET = "10.99.0"
GATEWAY = f"{NET}.254"
READY_SECONDS = 30.0


class Node:
    """One member, which can be killed, stopped and started again."""

    def __init__(self, number: int, folder: Path, options: Sequence[str]) -> None:
        self.name = f"etcd{number}"
        self.address = f"{NET}.{number}"
        self.options = [*options]
        self.data = folder / self.name
        self.log = folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        sh(f"ip netns add {self.name}")
        sh(f"ip link add {self.name} type veth peer name eth0 netns {self.name}")
        sh(f"ip link set {self.name} master fleet up")
        sh(f"ip -n {self.name} address add {self.address}/24 dev eth0")
        sh(f"ip -n {self.name} link set eth0 up")
        sh(f"ip -n {self.name} link set lo up")

    def start(self, ready: socket.socket) -> None:
        command = [*("ip", "netns", "exec", self.name, "etcd"), *self.options]
        environment = os.environ | {"NOTIFY_SOCKET": str(ready.getsockname())}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def wait_log(self, text: str) -> None:
        """Wait until the node has logged `text`."""
        deadline = time.monotonic() + READY_SECONDS
        while text not in (log := self.log.read_text()):
            assert time.monotonic() < deadline, log[-2000:]
            select.select([], [], [], 0.02)

    @contextmanager
    def slow_disk(self, seconds: float) -> Iterator[None]:
        """Let each write to the disk take longer for a while."""
        assert self.process is not None
        delay = f"inject=fdatasync:delay_enter={int(seconds * 1e6)}"
        command = ["strace", "-f", "-o", os.devnull, "-e", "trace=fdatasync"]
        with subprocess.Popen(
            [*command, "-e", delay, "-p", str(self.process.pid)],
            stderr=subprocess.PIPE,
            text=True,
        ) as tracer:
            assert tracer.stderr is not None
            try:
                assert "attached" in tracer.stderr.readline()
                yield
            finally:
                tracer.terminate()

    def cut(self) -> None:
        """Let every packet to and from the node vanish."""
        sh(f"ip netns exec {self.name} nft -f {_DROP}")

    def join(self) -> None:
        """End `cut`."""
        sh(f"ip netns exec {self.name} nft flush ruleset")


_DROP = Path(__file__).with_name("drop.nft")


class Cluster:
    """Some members. Start them, or use it as a context manager."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        *,
        scheme: str = "http",
        options: Sequence[str] = (),
        cluster_options: Mapping[int, Sequence[str]] = {},
    ) -> None:
        self.folder = folder
        self.scheme = scheme
        sh("ip link add fleet type bridge")
        sh("ip link set fleet up")
        sh(f"ip address add {GATEWAY}/24 dev fleet")
        peers = ",".join(f"etcd{n}=http://{NET}.{n}:2380" for n in range(1, nodes + 1))
        self.nodes = [
            Node(
                number,
                folder,
                [
                    f"--name=etcd{number}",
                    f"--data-dir={folder}/etcd{number}",
                    f"--listen-client-urls={scheme}://{NET}.{number}:2379",
                    f"--advertise-client-urls={scheme}://{NET}.{number}:2379",
                    f"--listen-peer-urls=http://{NET}.{number}:2380",
                    f"--initial-advertise-peer-urls=http://{NET}.{number}:2380",
                    f"--initial-cluster={peers}",
                    "--initial-cluster-state=new",
                    "--logger=zap",
                    "--heartbeat-interval=50",
                    "--election-timeout=500",
                    "--enable-v2=false",
                    *options,
                    *cluster_options.get(number, ()),
                ],
            )
            for number in range(1, nodes + 1)
        ]
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(str(folder / "ready"))

    @property
    def endpoints(self) -> list[str]:
        return [f"{self.scheme}://{node.address}:2379" for node in self.nodes]

    def start(self, *nodes: Node) -> None:
        """Start nodes, or all, and wait until each is part of a quorum."""
        started = nodes or tuple(self.nodes)
        for node in started:
            node.start(self._ready)
        for _ in started:
            self._wait_ready()

    def _wait_ready(self) -> None:
        while select.select([self._ready], [], [], READY_SECONDS)[0]:
            if b"READY=1" in self._ready.recv(4096):
                return
        raise AssertionError(self.nodes[0].log.read_text()[-2000:])

    def leader(self) -> Node:
        """Return the node that leads, as etcdctl shows it."""
        for shown in json.loads(self.ctl("endpoint status -w json")):
            status = shown["Status"]
            if status["leader"] == status["header"]["member_id"]:
                return self.node_at(shown["Endpoint"])
        raise AssertionError("there is no leader")

    def node_at(self, endpoint: str) -> Node:
        return next(node for node in self.nodes if f"//{node.address}:" in endpoint)

    def ctl(self, command: str, *options: str, only: Node | None = None) -> str:
        endpoints = ",".join(
            f"{self.scheme}://{node.address}:2379"
            for node in ([only] if only else self.nodes)
            if node.process is not None and node.process.poll() is None
        )
        done = subprocess.run(
            ["etcdctl", f"--endpoints={endpoints}", *options, *command.split()],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"ETCDCTL_API": "3"},
            timeout=READY_SECONDS,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def values(self, prefix: str, *options: str) -> dict[str, Any]:
        """Keys and their JSON, as etcdctl shows them."""
        lines = self.ctl(f"get --prefix {prefix}", *options).splitlines()
        return {
            key: json.loads(value)
            for key, value in zip(lines[::2], lines[1::2], strict=True)
        }

    @contextmanager
    def watching(self, prefix: str) -> Iterator[Iterator[str]]:
        """Lines of `etcdctl watch`, as they come."""
        command = ["etcdctl", f"--endpoints={self.endpoints[0]}", "watch", "--prefix"]
        environment = os.environ | {"ETCDCTL_API": "3"}
        with subprocess.Popen(
            [*command, prefix], stdout=subprocess.PIPE, text=True, env=environment
        ) as watcher:
            assert watcher.stdout is not None
            try:
                yield iter(watcher.stdout)
            finally:
                watcher.kill()

    def close(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                node.process.kill()
                node.process.wait()
        self._ready.close()


@contextmanager
def cluster(folder: Path, nodes: int = 3, **options: Any) -> Iterator[Cluster]:
    """A running cluster; in namespaces of the caller's."""
    made = Cluster(folder, nodes, **options)
    try:
        made.start()
        yield made
    finally:
        made.close()
