# SPDX-License-Identifier: Apache-2.0
"""Actors: real code that stops at each of its calls on the world.

An actor runs a few operations one after the other. To find the next call of its
code, an operation is run from its start. Each call is given the answer that is on
record, up to the first call without an answer: that is the next call. There the run
is thrown away. The code depends on nothing but these answers, so this is the same
as having stopped there. The result is kept in a tree of answers, so no piece of
code is run twice for the same answers.

Between two operations an actor keeps a `memory` and the manager's number, and
nothing else. New `Operations` are constructed for each. These are as good as the
former ones, which have no other state that outlives a call.
"""

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
    RemoteSystem,
)
from tapster.model import Lease
from tapster.operations.acquire import Acquire
from tapster.operations.claims import Claims
from tapster.operations.context import Context
from tapster.operations.devices import Devices
from tapster.operations.operations import Operations
from tapster.operations.rewire import Rewire
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
        bridge = lease.wiring.in_force.bridge
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
        self._operations: Operations | None = None
        self._manager = manager

    @property
    def manager(self) -> int:
        if self._operations is None:
            return self._manager
        return self._operations.context.claims.number

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

    def operations(self, parts: "Parts") -> Operations:
        """The operations of this actor, until its operation ends."""
        self._operations = parts.construct(self.ask, self._manager)
        return self._operations


class Parts(NamedTuple):
    """The classes that an actor's operations are constructed from.

    Ledger, kernel, backends, locks and clock are stand-ins. All other code is real,
    unless a scenario takes a protection away by replacing a part.
    """

    system: type[RemoteSystem] = RemoteSystem
    namespace: type[RemoteKernel] = RemoteKernel
    ledger: type[RemoteLedger] = RemoteLedger
    backend: type[RemoteBackend] = RemoteBackend
    backends: tuple[str, ...] = ()
    devices: type[Devices] = Devices
    acquire: type[Acquire] = Acquire
    rewire: type[Rewire] = Rewire

    def construct(self, ask: Ask, manager: int) -> Operations:
        """Operations whose calls on the world are put to `ask`."""
        system: Any = self.system(ask, "clock", boot_id=NETNS.boot)
        ledger: Any = self.ledger(ask, "ledger", id=LEDGER, path="")
        namespace: Any = self.namespace(ask, "kernel", netns=NETNS)
        locks: Any = Client(ask, "locks")
        context = Context(
            ledger=ledger,
            system=system,
            namespace=namespace,
            backends=[
                self.backend(ask, "backend", name=name) for name in self.backends
            ],
            claims=Claims(ledger, open_locks=lambda _: locks, number=manager),
            start_reaper=lambda _: None,  # reapers are actors here
        )
        return Operations(
            context, devices=self.devices, acquire=self.acquire, rewire=self.rewire
        )


USUAL = Parts()
WITH_BACKENDS = Parts(backends=(PORTS, RULES))


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
