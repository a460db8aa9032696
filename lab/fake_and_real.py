# SPDX-License-Identifier: Apache-2.0
"""Two hosts for one contract: the real one, and the one in memory."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from lab import shell, witness
from lab.namespaces import namespaces
from lab.strangers import RealStranger
from lab.witness import Shown
from tapster.kernel.linux import LinuxSystem
from tapster.kernel.netns import OWN, path_of
from tapster.kernel.port import System
from tapster.testing import FakeSystem, Stranger


class ContractLab(Protocol):
    """A host, and other programs that act on it."""

    @property
    def system(self) -> System: ...

    def others(self, netns: str | None = None) -> Stranger | RealStranger:
        """Other programs, in a namespace."""

    def show(self, netns: str | None = None) -> dict[str, Shown]:
        """Return every device by name, as other programs see it."""

    def add_netns(self, name: str) -> None: ...

    def delete_netns(self, name: str) -> None: ...

    def start(self, netns: str | None = None) -> int:
        """Start a process in a namespace; return its pid."""

    def end(self, pid: int) -> None: ...


class FakeLab:
    """The host in memory."""

    def __init__(self) -> None:
        self.system = FakeSystem()
        self._pid = 0

    def others(self, netns: str | None = None) -> Stranger:
        return self.system.stranger(netns)

    def show(self, netns: str | None = None) -> dict[str, Shown]:
        world = self.system.looked_at()
        cookie = world.own if netns is None else world.paths[path_of(netns)]
        return witness.in_memory(world.spaces[cookie])

    def add_netns(self, name: str) -> None:
        self.system.add_netns(name)

    def delete_netns(self, name: str) -> None:
        self.system.delete_netns(name)

    def start(self, netns: str | None = None) -> int:
        self._pid += 1
        return self.system.start(self._pid, netns).pid

    def end(self, pid: int) -> None:
        self.system.end(pid)


class RealLab:
    """The real host, in a network and a mount namespace of its own."""

    def __init__(self, stack: ExitStack) -> None:
        self.system = LinuxSystem()
        self._stack = stack
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def others(self, netns: str | None = None) -> RealStranger:
        strangers = RealStranger(OWN if netns is None else path_of(netns))
        self._stack.callback(strangers.stop)
        return strangers

    def show(self, netns: str | None = None) -> dict[str, Shown]:
        return witness.by_ip(netns)

    def add_netns(self, name: str) -> None:
        shell.sh(f"ip netns add {name}")

    def delete_netns(self, name: str) -> None:
        shell.sh(f"ip netns del {name}")

    def start(self, netns: str | None = None) -> int:
        command = ["cat"] if netns is None else ["ip", "netns", "exec", netns, "cat"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)
        self._stack.callback(process.communicate)
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"!")
        assert process.stdout.read(1) == b"!", "it is inside now"
        self._processes[process.pid] = process
        return process.pid

    def end(self, pid: int) -> None:
        self._processes[pid].communicate()


@contextmanager
def fake() -> Iterator[ContractLab]:
    yield FakeLab()


@contextmanager
def real() -> Iterator[ContractLab]:
    with namespaces(), ExitStack() as stack:
        yield RealLab(stack)
