# SPDX-License-Identifier: Apache-2.0
"""The daemon's parts for tests without root, on a host in memory and socket pairs."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapster import Host
from tapster.daemon.config import Config, Limits, Loaded
from tapster.daemon.connections import Connections
from tapster.daemon.dispatch import Dispatcher
from tapster.daemon.log import Log
from tapster.daemon.loop import READ, Loop
from tapster.daemon.methods.access import Access
from tapster.daemon.metrics import Metrics
from tapster.daemon.policy import Caller, Rule
from tapster.daemon.service import Service
from tapster.daemon.upkeep import Upkeep
from tapster.daemon.worker import Worker
from tapster.testing import FakeSystem

if TYPE_CHECKING:
    from tapster.model import Process
    from tapster.rpc.interface import Event

ALICE = Caller(1000, (1000,), os.getpid(), "alice")
BOB = Caller(1001, (1001,), os.getpid(), "bob")
ROOT = Caller(0, (0,), os.getpid(), "root")


class FakeClock:
    """Time that a test lets pass."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


class RecordingLog(Log):
    """Keeps the events that are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, level: int, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


class Peer:
    """A client's end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)

    def send(self, *methods: str, **more: Any) -> None:
        """Send requests of methods that take nothing."""
        for method in methods:
            message = {"method": method, **more}
            self.socket.sendall(json.dumps(message).encode() + b"\0")

    def received(self) -> list[Any]:
        """The messages that have come, and None at the end if the daemon closed."""
        data, closed = b"", False
        try:
            while True:
                chunk = self.socket.recv(1 << 16)
                if not chunk:
                    closed = True
                    break
                data += chunk
        except BlockingIOError:
            pass
        except ConnectionResetError:
            closed = True
        messages: list[Any] = [json.loads(one) for one in data.split(b"\0") if one]
        return [*messages, None] if closed else messages


class Parts:
    """Connections, a dispatcher and a service, put together as in a server.

    The test turns the loop, and lets the worker's jobs run in its own thread.
    """

    def __init__(self, folder: Path, config: Config = Config()) -> None:  # noqa: B008
        self.clock = FakeClock()
        self.log = RecordingLog()
        self.metrics = Metrics()
        self.system = FakeSystem()
        self.system.stranger().add_bridge("br0")
        self.events: list[Event] = []
        self.watched: set[Process] = set()
        self.submitted: list[Callable[[], object]] = []
        """The jobs that upkeep has asked for."""
        self.host = Host(
            folder / "ledger.db",
            system=self.system,
            reaper=lambda _: None,
            backends=lambda *_: (),
        )
        self.loop = Loop(self.clock)
        self.worker = Worker(self._explain)
        self.lookups = Worker(self._explain)
        operations = self.host.operations
        self.upkeep = Upkeep(
            operations,
            self.metrics,
            self.log,
            on_event=self.events.append,
            watch_process=self.watched.add,
            forget_process=self.watched.discard,
            submit=self.submitted.append,
            clock=self.clock,
        )
        self.access = Access(
            operations,
            str(folder / "ledger.db"),
            Loaded(config, rules=config.allow),
            self.metrics,
        )
        self.service = Service(
            operations, self.access, self.metrics, self.log, self.upkeep
        )
        self.caller, self.pidfd = ALICE, -1
        self.connections = Connections(
            self.loop,
            lambda: self.access.loaded.config.limits,
            self.metrics,
            self.log,
            identify=lambda _: (self.caller, self.pidfd),
        )
        self.dispatcher = Dispatcher(
            self.connections,
            self.worker,
            self.lookups,
            self.service,
            self.metrics,
            self.log,
        )
        self.loop.add(self.worker.wake, READ, lambda _: self.worker.deliver())
        self.peers: list[Peer] = []

    def _explain(self, error: Exception) -> Any:
        raise error

    def connect(self, caller: Caller = ALICE, pidfd: int = -1) -> Peer:
        """A client, as this caller. The connection will own the descriptor."""
        theirs, ours = socket.socketpair()
        self.caller, self.pidfd = caller, pidfd
        self.peers.append(Peer(theirs))
        self.connections.welcome(ours)
        return self.peers[-1]

    def turn(self, times: int = 3) -> None:
        """Let the loop do what is ready, without waiting."""
        for _ in range(times):
            self.loop.turn(0)

    def work(self) -> int:
        """Do the worker's jobs, and hand their results over; how many there were."""
        done = 0
        while self.worker.waiting:
            self.worker.run_one()
            done += 1
        self.turn()
        return done

    def serve(self) -> None:
        """Turn and work until nothing is left to do."""
        self.turn()
        while self.work():
            self.turn()

    def close(self) -> None:
        self.connections.drop_all("stopping")
        for peer in self.peers:
            peer.socket.close()
        self.work()
        self.host.close()
        self.loop.close()
        os.close(self.worker.wake)
        os.close(self.lookups.wake)


RULES = (
    Rule(users=("1000",), bridges=("br0",), features=("fin-wait",)),
    Rule(users=("1001",), bridges=("br0",)),
)


@contextmanager
def parts(folder: Path, **limits: Any) -> Iterator[Parts]:
    """The daemon's parts under a policy for Alice and Bob."""
    made = Parts(folder, Config(Limits(**limits), RULES))
    try:
        yield made
    finally:
        made.close()
