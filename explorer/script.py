# SPDX-License-Identifier: Apache-2.0
"""Actors: real code that stops at each of its calls on the world.

An actor runs a few operations one after the other. To know what its code does
next, an operation is run from its start, each call being given the answer that
is on record, up to the first call that has none: that is the next call. There
the run is thrown away. The code depends on nothing but these answers, so this
is the same as having stopped there. What came of it is kept in a tree of
answers, so no piece of code is run twice for the same answers.

Between two operations nothing is kept but a `memory` and the manager's number;
a new `Host` is made for each, which is as good as the old one: a `Host` has no
other state that outlives a call.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from explorer.backends import PORTS, RULES, RemoteBackend
from explorer.calls import (
    Ask,
    Call,
    Client,
    Raised,
    RemoteKernel,
    RemoteLedger,
)
from tapster.host import Host
from tapster.model import Lease
from tapster.testing import FakeSystem

LEDGER = "00000000"
"""The id of the ledger in every scenario."""
NETNS = FakeSystem().netns(None).netns
"""The one network namespace of every scenario."""


class Held(NamedTuple):
    """What an actor remembers of a device it has acquired."""

    lease: str
    name: str
    ifindex: int
    bridge: str | None
    backends: tuple[str, ...] = ()
    """The backends that have something of it."""

    @classmethod
    def of(cls, lease: Lease) -> "Held":
        bridge = lease.wiring.bridge
        return cls(lease.id, lease.name, lease.ifindex, bridge, lease.backends)


def held_in(memory: "Memory") -> tuple[Held, ...]:
    """The devices that an actor remembers: it acquired one, or several, or none."""
    if isinstance(memory, Held):
        return (memory,)
    return memory if type(memory) is tuple else ()


class Failed(NamedTuple):
    """What an actor remembers of an operation that failed: it gives up."""

    why: str


Memory = Any
"""What an actor carries from one operation to the next; it can be compared."""


class Stopped(BaseException):
    """Raised in an actor's code at the first call without an answer."""


class Actor:
    """One run of an operation's code, with the answers on record."""

    def __init__(
        self, name: str, memory: Memory, manager: int, log: tuple[Any, ...]
    ) -> None:
        self.name = name
        self.memory = memory
        self.next: Call | None = None
        self._answers = iter(log)
        self._host: ExploredHost | None = None
        self._manager = manager

    @property
    def manager(self) -> int:
        return self._host.manager if self._host else self._manager

    def ask(self, call: Call) -> Any:
        """The answer to the next call. Code that cleans up when it is stopped
        comes here too, and is stopped again."""
        if self.next is None:
            for answer in self._answers:
                if isinstance(answer, Raised):
                    raise answer.error()
                return answer
            self.next = call
        raise Stopped

    def host(self, make: "type[ExploredHost] | None" = None) -> "ExploredHost":
        """A Host, which is this actor for the time of the operation."""
        self._host = (make or ExploredHost)(self.ask, self._manager)
        return self._host


class ExploredHost(Host):
    """A Host on stand-ins. Its own code is all real."""

    namespace: type[RemoteKernel] = RemoteKernel
    ledger: type[RemoteLedger] = RemoteLedger
    backend: type[RemoteBackend] = RemoteBackend
    backends: tuple[str, ...] = ()

    def __init__(self, ask: Ask, manager: int) -> None:
        # Not Host.__init__, which opens what is stood in for here.
        system: Any = Client(ask, "clock", boot_id=NETNS.boot)
        ledger: Any = self.ledger(ask, "ledger", id=LEDGER, path="")
        namespace: Any = self.namespace(ask, "kernel", netns=NETNS)
        locks: Any = Client(ask, "locks")
        self._system, self._ledger = system, ledger
        self._namespace, self._locks = namespace, locks
        self._start_reaper = _nobody
        self._backends = [
            self.backend(ask, "backend", name=one) for one in self.backends
        ]
        self._lock = threading.RLock()
        self._manager = manager

    @property
    def manager(self) -> int:
        return self._manager


class Wired(ExploredHost):
    """A Host with backends."""

    backends: tuple[str, ...] = (PORTS, RULES)


def _nobody(_: str) -> None:
    """Reapers are actors here."""


class Op(NamedTuple):
    """An operation: what it is called, and its code, which returns a memory."""

    name: str
    run: Callable[[Actor], Memory]


class Script(NamedTuple):
    """An actor of a scenario."""

    name: str
    ops: tuple[Op, ...]
    ours: bool = True
    """Whether it is Tapster (or what a model puts in its place)."""
    mortal: bool = False
    """Whether it may be killed."""


class Node:
    """How far an actor has come: all that its future depends on."""

    __slots__ = ("actor", "call", "id", "log", "manager", "memory", "next", "op")

    def __init__(
        self, id: int, actor: int, op: int, memory: Memory, manager: int
    ) -> None:
        self.id = id
        self.actor = actor
        self.op = op
        """Which operation; the number of them when all are done."""
        self.memory = memory
        self.manager = manager
        self.log: tuple[Any, ...] = ()
        self.call: Call | None = None
        """Its next call; None when all is done."""
        self.next: dict[Any, Node] = {}
        """Where each answer leads."""


class Scripts:
    """The nodes of all actors, made when first reached."""

    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.scripts = scripts
        self.nodes: list[Node] = []
        self._roots: dict[tuple[Any, ...], Node] = {}
        self.dead = [self._node(i, -1, None, 0) for i in range(len(scripts))]
        self.first = [self.root(i, 0, None, 0) for i in range(len(scripts))]

    def root(self, actor: int, op: int, memory: Memory, manager: int) -> Node:
        """The actor before an operation."""
        ops = self.scripts[actor].ops
        if op == len(ops) or isinstance(memory, Failed):
            op, manager = len(ops), 0
        key = (actor, op, memory, manager)
        if key not in self._roots:
            node = self._roots[key] = self._node(actor, op, memory, manager)
            if op < len(ops):
                self._play(node)
        return self._roots[key]

    def after(self, node: Node, answer: Any) -> Node:
        """The actor after its call was answered."""
        if answer not in node.next:
            child = self._node(node.actor, node.op, node.memory, node.manager)
            child.log = (*node.log, answer)
            node.next[answer] = self._play(child)
        return node.next[answer]

    def _node(self, actor: int, op: int, memory: Memory, manager: int) -> Node:
        node = Node(len(self.nodes), actor, op, memory, manager)
        self.nodes.append(node)
        return node

    def _play(self, node: Node) -> Node:
        """Find a node's next call; or the next root, if its operation is over."""
        script = self.scripts[node.actor]
        actor = Actor(script.name, node.memory, node.manager, node.log)
        try:
            memory = script.ops[node.op].run(actor)
        except Stopped:
            node.call = actor.next
            return node
        return self.root(node.actor, node.op + 1, memory, actor.manager)
